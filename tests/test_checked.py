"""The benchmark that code checks: real tools make the pictures; for each kind of criterion wrong answers fail it alone."""
import asyncio
import json

import pytest
from hypothesis import given, settings, strategies as st

from llmi_kit.checked import CHECKS, MET, absent, calls, evaluate, group_table, kind_table, scores
from llmi_kit.checked_making import make_checked
from llmi_kit.checked_pictures import CHANGES, chart_fault, edit_fault, forms, read_chart, unpacked
from llmi_kit.checked_questions import (GROUPS, INSTRUCTIONS, SOURCES, Chart, Checkable, Clean, Count, Drawn, Edited, Form, Found, Length, Order,
                                        QuestionsError, Says, Tools, load_checked, reference_answer, save_checked, to_question, to_row)
from llmi_kit.config import Store, asset, load_profile
from llmi_kit.data import misleading
from llmi_kit.document import parse
from llmi_kit.picture import Failure, Origin, Picture
from llmi_kit.prompts import embedded_rows, given_photo
from llmi_kit.questions import tag
from llmi_kit.toolkit import Toolkit
from llmi_kit.tools.edit import retouch_picture
from llmi_kit.writer import read_inputs

QUESTIONS = load_checked()
BY_ID = {q.id: q for q in QUESTIONS}
BASES = ('astronaut', 'chelsea', 'coffee', 'motorcycle', 'rocket', 'china', 'flower', 'grace_hopper')


@pytest.fixture(scope='module')
def toolkit(tmp_path_factory):
    kit = Toolkit.from_profile(load_profile('cpu', diffusion_steps=4), Store(tmp_path_factory.mktemp('tools')))
    yield kit
    kit.close()


def missed(checked): return [(m.kind, m.reason) for m in checked.marks if not m.met]
def draws(q): return len(q.all(Drawn))


# ---- the file

def test_balance():
    assert len(QUESTIONS) >= 160
    assert all(sum(q.group == g for q in QUESTIONS) >= 12 for g in GROUPS)
    for source, kind in (('search', Found), ('diffusion', Drawn), ('code', Chart), ('edit', Edited)):
        assert sum(bool(q.all(kind)) for q in QUESTIONS) >= 40, source
    assert {c.change for q in QUESTIONS for c in q.all(Edited)} == set(INSTRUCTIONS) == set(CHANGES)
    assert {c.kind for q in QUESTIONS for c in q.criteria} == set(CHECKS) == set(MET)
    assert {to_row(q).extra_info.image_num for q in QUESTIONS} >= {-1, 0, 1, 2, 3, 4, 99}
    assert len({q.id for q in QUESTIONS}) == len({q.text for q in QUESTIONS}) == len(QUESTIONS)


def test_the_file_is_what_the_seed_makes(tmp_path):
    assert make_checked(0) == QUESTIONS and make_checked(1) != QUESTIONS
    save_checked(QUESTIONS, tmp_path/'again.jsonl')
    assert (tmp_path/'again.jsonl').read_bytes() == asset('checked/questions.jsonl').read_bytes()


def test_no_question_is_of_the_synthesis():
    seen = {' '.join(r.extra_info.question.lower().split()) for split in ('train', 'test') for r in embedded_rows(split)}
    assert not [q.id for q in QUESTIONS if ' '.join(q.text.lower().split()) in seen]


def test_writers_and_judges_can_take_every_question():
    assert not [why for q in QUESTIONS for why in misleading(to_row(q))]
    for q in QUESTIONS:
        assert len(read_inputs(to_question(q).inputs)) == len(to_row(q).images) == len(q.photos) and to_question(q).id == q.id
        assert '{' not in q.text and 'None' not in q.text
        document = parse(reference_answer(q), len(q.photos))
        assert [t.source for t in document.tags if not t.error] == q.tools.needed


GOOD = BY_ID['search+edit-01'].model_dump_json()


def changed(**changes): return json.dumps(json.loads(GOOD) | changes)


def without(kind): return changed(criteria=[c for c in json.loads(GOOD)['criteria'] if c['kind'] != kind])


@pytest.mark.parametrize('line, why', [
    ('{"id": 3', 'Invalid JSON'), ('[]', 'object'), (changed(id=''), 'id'), (changed(group='poems'), 'group'), (changed(text=' '), 'text'),
    (changed(mood='good'), 'mood'), (changed(criteria=[]), 'criteria'), (changed(criteria=[dict(kind='beauty')]), "'beauty'"),
    (changed(criteria=[dict(kind='says')]), 'criteria.0.says.words: Field required'), (changed(photos=['mars']), "no photograph 'mars'"),
    (without('count'), 'how many pictures'), (without('tools'), 'its tools are none'), (without('found'), 'its pictures take'),
    (changed(criteria=[dict(kind='tools', needed=['edit']), dict(kind='count', least=1, most=1), dict(kind='edited', of='chart', change='grey')]),
     "'chart' is to be edited"),
    (changed(criteria=[dict(kind='count', least=2, most=1)]), 'at least 2 and at most 1'),
    (changed(photos=['moon'], criteria=[dict(kind='tools', needed=['edit']), dict(kind='count', least=1, most=1),
                                        dict(kind='edited', of='moon', change='resized')]), 'lacks its colour or its size'),
    (GOOD, "the id 'search+edit-01' is that of line 1"), (changed(id='another'), 'the question is that of line 1')])
def test_a_damaged_line_is_named(tmp_path, line, why):
    file = tmp_path/'mine.jsonl'
    file.write_text(f'{GOOD}\n\n{line}\n')
    with pytest.raises(QuestionsError, match='mine.jsonl, line 3: ') as e: load_checked(file)
    assert why in str(e.value) and '\n' not in str(e.value)


def test_a_file_that_is_none(tmp_path):
    (tmp_path/'empty.jsonl').write_text('\n')
    (tmp_path/'bytes.jsonl').write_bytes(b'\xff\xfe')
    for name, why in (('empty.jsonl', 'no questions'), ('bytes.jsonl', 'UTF-8'), ('gone.jsonl', 'can not be read')):
        with pytest.raises(QuestionsError, match=why): load_checked(tmp_path/name)


# ---- right answers

@pytest.mark.timeout(300)
async def test_reference_answers_meet_everything(toolkit):
    "All questions without drawings, and those with one drawing of each group, with the real tools."
    some = {}
    for q in QUESTIONS:
        if draws(q) == 1: some.setdefault(q.group, q)
    asked = [q for q in QUESTIONS if not draws(q)] + list(some.values())
    assert len(asked) > 130 and sum(map(draws, asked)) <= 6
    done = await evaluate({q.id: reference_answer(q) for q in asked}, toolkit, asked)
    assert not [(c.id, missed(c)) for c in done if not c.all_met]
    assert all(c.hits == len(BY_ID[c.id].tools.needed) and not c.missed and not c.unneeded for c in done)
    assert {k: e.value for k, e in scores(done).items()} == {'criteria': 1, 'all met': 1, 'precision': 1, 'recall': 1}


# ---- wrong answers: each fails one criterion alone

def first(kind, **more): return next(q for q in QUESTIONS if q.all(kind) and not draws(q) and all(getattr(q, k) == v for k, v in more.items()))
def search(query='coffee in a red cup'): return '\n\n' + tag('search', 'Cup', query=query)


BARS = tag('code', 'Bars', code="plt.bar(['a'], [1])")
OPEN = next(q for q in QUESTIONS if q.group == 'counts' and q.all(Found) and q.all(Count)[0].most is None)     # any number of photographs
PLAIN = first(Found, group='search')
BAR = next(q for q in QUESTIONS if q.group == 'code' and q.all(Form)[0].form == 'bar')
ORDERED = next(q for q in QUESTIONS if q.group == 'search+code' and q.all(Order))
SILENT = next(q for q in QUESTIONS if q.group == 'no pictures' and q.all(Length))
EDIT = next(q for q in QUESTIONS if q.group == 'edit' and q.all(Edited)[0].change == 'mirrored')
DRAWN = next(q for q in QUESTIONS if q.group == 'diffusion')
CODE = reference_answer(BAR)


def swapped(answer):
    "The answer with its two tags in the other order."
    a, b = parse(answer).tags
    return answer[:a.start] + answer[b.start:b.end] + answer[a.end:b.start] + answer[a.start:a.end] + answer[b.end:]


WRONG = [
    ('tools', OPEN, reference_answer(OPEN) + BARS), ('count', PLAIN, reference_answer(PLAIN) + search()),
    ('count', SILENT, reference_answer(SILENT) + search()), ('count', SILENT, reference_answer(SILENT) + "<imgen>{'source': 'search'}</imgen>"),
    ('order', ORDERED, swapped(reference_answer(ORDERED))),
    ('clean', PLAIN, reference_answer(PLAIN) + '\n<image>'), ('clean', PLAIN, reference_answer(PLAIN) + '\n![Cup](cup.png)'),
    ('clean', PLAIN, reference_answer(PLAIN) + '</imgen>'), ('clean', PLAIN, reference_answer(PLAIN) + '\n<fail_to_generate_image>'),
    ('clean', PLAIN, '```\n' + reference_answer(PLAIN) + '\n```'),
    ('clean', PLAIN, reference_answer(PLAIN) + "\n\n<imgen>{'source': 'search', 'description': 'Cup', 'params': {'query': 'cup'}}"),
    ('says', PLAIN, ''.join(x for x in [reference_answer(PLAIN).rpartition('\n\n')[0]])),
    ('length', SILENT, reference_answer(SILENT) + ' and so on'*40),
    ('found', PLAIN, '\n\n'.join(['# An answer', tag('search', 'Page', query='scan of a printed page'), reference_answer(PLAIN).rpartition('\n\n')[2]])),
    ('chart', BAR, CODE.replace('y = [', 'y = [1 + ')), ('chart', BAR, CODE.replace('plt.bar(x, y)', 'plt.bar(range(len(x)), y)')),
    ('chart', BAR, CODE.replace('plt.bar(x, y)', 'plt.bar(x[1:], y[1:])')), ('chart', BAR, CODE.replace('plt.bar(x, y)', 'plt.bar(x, y[::-1])')),
    ('form', BAR, CODE.replace('plt.bar(x, y)', 'plt.plot(x, y)')),
    ('edited', EDIT, reference_answer(EDIT).replace('mirror it', 'rotate it by 180 degrees')),
    ('edited', EDIT, reference_answer(EDIT).replace('mirror it', 'make it brighter')),
    ('drawn', DRAWN, reference_answer(DRAWN).replace(DRAWN.all(Drawn)[0].words[0][0], 'thing')),
]


def test_a_wrong_answer_for_each_kind(): assert {kind for kind, *_ in WRONG} == set(CHECKS)


@pytest.mark.parametrize('kind, q, answer', WRONG, ids=[f'{kind} {i}' for i, (kind, *_) in enumerate(WRONG)])
async def test_a_wrong_answer_fails_its_criterion_alone(toolkit, kind, q, answer):
    assert answer != reference_answer(q)
    checked, = await evaluate({q.id: answer}, toolkit, [q])
    assert [k for k, _ in missed(checked)] == [kind], missed(checked)
    assert all(m.reason and '\n' not in m.reason for m in checked.marks)


async def test_an_unclosed_tag_makes_no_picture(toolkit):
    checked, = await evaluate({PLAIN.id: reference_answer(PLAIN).replace('</imgen>', '')}, toolkit, [PLAIN])
    assert {k for k, _ in missed(checked)} >= {'tools', 'count', 'found', 'clean'} and (checked.missed, checked.unneeded) == (1, 1)


# ---- charts

FIGS = Chart(form='bar', numbers={'figs': 4, 'rye': 7.5, 'barley': 1234})
X, Y = "x = ['figs', 'rye', 'barley']\n", 'y = [4, 7.5, 1234]\n'
RIGHT = ['plt.bar(x, y)', 'plt.barh(x, y)', 'plt.plot(x, y)', 'plt.pie(y, labels=x)', 'pd.Series(y, x).plot(kind="bar")', 'plt.scatter(x, y)',
         'sns.barplot(x=x, y=y)', 'plt.bar(range(3), y); plt.xticks(range(3), x)', 'plt.plot(x, y); plt.scatter(x, y)',
         'for a, b in zip(x, y): plt.bar(0, b, label=a)', 'plt.bar([n.title() for n in x], y)', 'plt.pie([v/2 for v in y], labels=x)']
BAD = ['plt.bar(x, [4, 7.5, 1233])', 'plt.bar(x[:2], y[:2])', 'plt.bar(x + ["oats"], y + [1])', 'plt.bar(x, y); plt.axhline(5)',
       'plt.bar(["a", "b", "c"], y)', 'plt.pie([1, 1, 1], labels=x)', 'plt.pie(y)', 'plt.plot([1, 2, 3], y)', 'plt.title("figs 4 rye 7.5 barley 1234")']


@pytest.mark.parametrize('draw', RIGHT)
async def test_charts_that_show_the_numbers(toolkit, draw): assert not chart_fault(FIGS, await read_chart(X + Y + draw, toolkit))


@pytest.mark.parametrize('draw', BAD)
async def test_charts_that_do_not(toolkit, draw): assert chart_fault(FIGS, await read_chart(X + Y + draw, toolkit))


async def test_years_as_places(toolkit):
    chart = Chart(form='line', numbers={'1990': 3, '1991': 5})
    for years in ('[1990, 1991]', "['1990', '1991']"): assert not chart_fault(chart, await read_chart(f'plt.plot({years}, [3, 5])', toolkit))
    assert chart_fault(chart, await read_chart('plt.plot([1990, 1992], [3, 5])', toolkit))


@settings(deadline=None)
@given(st.text() | st.binary().map(lambda b: f'plotted: {b.hex()} .'))
def test_nothing_that_a_program_says_breaks_the_reader(text): assert unpacked(text) is None


def test_what_is_cut_off_is_not_read():
    assert unpacked('LookupError: plotted: eJyLjlaKVdJRKi') is None and chart_fault(FIGS, None)


@given(st.text())
def test_forms_of_anything(code): assert isinstance(forms(code), set)


# ---- edits

def base(photo): return given_photo(photo)
def edit(photo, change): return retouch_picture(base(photo), criterion(photo, change).instruction)
def criterion(photo, change): return Edited(of=photo, change=change, width=300, height=160, colour='blue' if change == 'framed' else '')


def suit(photo): return [c for c in INSTRUCTIONS if not (c == 'square' and photo == 'astronaut')]


@pytest.mark.parametrize('photo', BASES)
def test_every_change_is_seen_and_nothing_else_passes_for_it(photo):
    done = {change: edit(photo, change) for change in suit(photo)}
    assert not [c for c, p in done.items() if isinstance(p, Failure)]
    assert {c: fault for c, p in done.items() if (fault := edit_fault(base(photo), p, criterion(photo, c)))} == {}
    same = [c for c in done if not edit_fault(base(photo), base(photo), criterion(photo, c))]
    other = next(p for p in BASES if p != photo)
    strange = [c for c in done if not edit_fault(base(photo), edit(other, c), criterion(photo, c))]
    assert (same, [c for c in strange if c != 'square']) == ([], [])
    # a change of lightness or colour comes along with others; what a turn, a cut or a size is, only that one has
    firm = ('mirrored', 'half_turn', 'quarter_right', 'quarter_left', 'square', 'left_half', 'right_half', 'framed', 'resized', 'halved', 'grey',
            'sepia', 'negative', 'pixelated')
    mixed = [(c, d) for c in firm if c in done for d, p in done.items() if c != d and not edit_fault(base(photo), p, criterion(photo, c))]
    assert mixed == []


async def test_two_steps_and_one_are_as_good(toolkit):
    q = Checkable(id='two', group='edit', text='Mirror it and take its colours out.', photos=['chelsea'], criteria=[
        Edited(of='chelsea', change='mirrored'), Edited(of='chelsea', change='grey'), Tools(needed=['edit', 'edit']), Count(least=1, most=2)])
    one = tag('edit', 'x', img_index=0, prompt='mirror it and make it black and white')
    two = tag('edit', 'x', img_index=0, prompt='mirror it') + tag('edit', 'x', img_index=1, prompt='make it black and white')
    for answer in (one, two): assert (await evaluate({'two': answer}, toolkit, [q]))[0].all_met
    found = '# \n' + search('a tabby cat') + tag('edit', 'x', img_index=1, prompt='mirror it')
    assert [k for k, _ in missed((await evaluate({'two': found}, toolkit, [q]))[0])] == ['edited', 'tools']


# ---- scores

async def test_answers_that_are_missing_count(toolkit):
    some = [BY_ID['no-pictures-01'], BY_ID['no-pictures-02'], BY_ID['search-01']]
    done = await evaluate({'no-pictures-01': reference_answer(some[0]), 'no-pictures-02': None}, toolkit, some)
    assert [c.id for c in done] == [q.id for q in some] and [c.written for c in done] == [True, False, False]
    assert [c.share for c in done] == [1, 0, 0] and scores(done)['criteria'].value == pytest.approx(1/3) and done[2].missed == 1
    table = group_table(done)
    assert list(table.missing) == [1, 1, 2] and list(table.questions) == [2, 1, 3] and set(kind_table(done).why) >= {'there is no answer'}
    empty, = await evaluate({'search-01': ''}, toolkit, some[2:])
    assert empty.written and not empty.all_met


async def test_an_answer_to_no_question(toolkit):
    with pytest.raises(ValueError, match="no question 'mars'"): await evaluate({'mars': 'Red.'}, toolkit)


async def test_thinking_is_no_answer(toolkit):
    q = BY_ID['no-pictures-05']
    checked, = await evaluate({q.id: '<think>Shall I write <imgen>?</think>' + reference_answer(q)}, toolkit, [q])
    assert checked.all_met


def call(*sources): return ''.join(tag('search', 's', query='x') if s == 'search' else BARS if s == 'code' else '<imgen>{}</imgen>' for s in sources)


@pytest.mark.parametrize('needed, optional, made, expected', [
    ('search', '', ['search'], (1, 0, 0)), ('search', '', [], (0, 1, 0)), ('search', '', ['code'], (0, 1, 1)), ('search', '', ['search']*3, (1, 0, 2)),
    ('search', 'search', ['search']*3, (1, 0, 0)), ('', '', ['code'], (0, 0, 1)), ('', 'code', ['code'], (0, 0, 0)),
    ('search', '', ['broken', 'search'], (1, 0, 1)), ('search search', '', ['search'], (1, 1, 0))])
def test_calls(needed, optional, made, expected):
    q = PLAIN.model_copy(update=dict(criteria=[Tools(needed=needed.split(), optional=optional.split())]))
    found = calls(q, parse(call(*made)))
    assert (found['hits'], found['missed'], found['unneeded']) == expected


@pytest.mark.parametrize('words, text, missing', [
    ([['24', 'twenty-four']], 'Twenty four coins', ''), ([['2426']], 'as many as **2,426**', ''), ([['58']], '158 and 58.5x', ''), ([['58']], '580', '58'),
    ([['STS-63']], 'mission sts 63', ''), ([['rye'], ['7']], 'Rye leads.', '7'), ([['O(n)']], 'in o(n) steps', '')])
def test_words(words, text, missing): assert absent(words, text) == missing


async def test_answers_overlap(toolkit):
    "All searches of many answers run at once, within the toolkit's limit."
    class Slow:
        key, now, most = 'slow', 0, 0
        def ready(self): return None
        async def __call__(self, query, seed=0):
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(.02)
            self.now -= 1
            return Failure(kind='not_found', message='nothing')
    slow, some = Slow(), [q for q in QUESTIONS if q.group == 'search']
    await evaluate({q.id: reference_answer(q) for q in some}, Toolkit({'search': slow}, None, workers=5), some)
    assert slow.most == 5


def test_clean_and_says_are_kinds_of_their_own():
    assert {c.kind for c in (Clean(), Says(words=[['a']]))} == {'clean', 'says'} and set(SOURCES) == {'found', 'drawn', 'chart', 'edited'}
    assert isinstance(Picture.from_pil(base('chelsea').pil(), Origin(tool='input')), Picture)
