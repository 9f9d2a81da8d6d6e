"""Test-time scaling: a real sandbox draws, a real server on loopback writes, a real browser reads the page."""
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from judge_server import judge_server, said
from PIL import Image
from screenshot import ARGS, CHROMIUM
from typer.testing import CliRunner

from llmi_kit.chat import Chat, Completion, Message, ServerChat
from llmi_kit.cli import app
from llmi_kit.config import Store, load_profile
from llmi_kit.data import row_of
from llmi_kit.document import parse
from llmi_kit.judges import Judges
from llmi_kit.ledger import Budget, Entry, Ledger, spent, table, wall
from llmi_kit.local_chat import LocalChat
from llmi_kit.picture import Failure, Origin, Picture
from llmi_kit.remembered import RememberedChat
from llmi_kit.rewrite import dependents, marked, with_params, with_results, with_text, written
from llmi_kit.sandbox import Sandbox
from llmi_kit.scaling import Plan, Sampling, scale
from llmi_kit.scaling_page import page, write_page
from llmi_kit.selection import ChatPairJudge, GradePairJudge, Preference, asked_row, by_pairs, order_of, read_winner, settled, wished
from llmi_kit.stages import Candidate, Means, best_first, check, choose, clearer, grade, mend, other_requests, polish, select, write
from llmi_kit.stopping import Stopper
from llmi_kit.toolkit import CodeTool, Toolkit
from llmi_kit.verdict import GRADES, Verdict

LLMI = Path(sys.executable).parent/'llmi'


def chart(code='plt.bar(["May"], [41])', text='Rain.'): return f'# Rain\n\n{text}\n\n{written("code", "Rain in May", dict(code=code))}\n'
def square(colour, **origin): return Picture.from_pil(Image.new('RGB', (16, 16), colour), Origin(tool='code', backend='test', **origin))


class Grader:
    "A judge whose grade is a function of the document; None: it fails."
    key = name = 'grader'
    def __init__(self, reads, of): self.reads, self.of, self.asked = reads, of, 0
    def ready(self): return None
    async def __call__(self, document, row):
        self.asked += 1
        found = self.of(document)
        if found is None: return Verdict(judge='grader', failure=Failure(kind='unavailable', message='away'))
        return Verdict(judge='grader', grades=dict.fromkeys(GRADES[self.reads], found), tokens_in=50, tokens_out=5, tries=1, cost=.001)


def graders(of=lambda d: 3.): return Judges(Grader('text', of), Grader('pictures', of))


class Colours:
    "A tool whose picture depends on seed and prompt."
    key, calls = 'colours', 0
    def ready(self): return None
    async def __call__(self, prompt, seed=0, image=None):
        self.calls += 1
        return square(f'#{(hash((prompt, seed)) & 0xffffff):06x}', cost=.01)


@pytest.fixture(scope='module')
def toolkit():
    with Sandbox(workers=1, seconds=20) as sandbox: yield Toolkit(dict(code=CodeTool(sandbox), diffusion=Colours(), edit=Colours()))


class Replies(Chat):
    "A model that says what it is told to, in order; what it was asked is kept."
    key = 'replies'
    def __init__(self, *texts): self.texts, self.seen, self.batch = list(texts), [], 8
    async def _write(self, conversations, n, seed, **how):
        self.seen.append((conversations, n, seed, how))
        give = lambda: self.texts.pop(0) if self.texts else Failure(kind='network', message='nobody is there')
        answers = [give() for _ in range(n)]
        return [[a if isinstance(a, Failure) else Completion(text=a, tokens_in=100, tokens_out=20, cost=.002, seed=seed) for a in answers]]


def means(toolkit, *texts, judges=None, budget=None, **how):
    return Means('How much did it rain?', Replies(*texts), toolkit, judges or graders(), Ledger(budget), **how)


# The ledger

def test_wall_time_counts_what_overlaps_once():
    assert wall([]) == 0 and wall([(0, 2), (1, 3), (1.5, 1.6), (5, 6)]) == pytest.approx(4)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)).map(lambda s: (s[0], s[0] + s[1])), max_size=12))
def test_wall_time_is_between_the_longest_and_the_sum(spans):
    longest, total = max((b - a for a, b in spans), default=0), sum(b - a for a, b in spans)
    assert longest - 1e-9 <= wall(spans) <= total + 1e-9


def test_what_came_from_a_cache_costs_tokens_and_no_money():
    entries = [Entry(stage='a', what='judge', started=0, finished=1, tokens_in=10, usd=.5, known=k) for k in (False, True)]
    assert (spent(entries).tokens, spent(entries).usd, spent(entries).judge_calls) == (20, .5, 2)


def test_each_limit_of_a_budget_is_told_by_name():
    so_far = spent([Entry(stage='a', what=w, started=0, finished=2, tokens_in=5, tokens_out=5, usd=.1) for w in ('write', 'tool', 'judge')])
    limits = dict(tokens=30, tool_calls=1, judge_calls=1, seconds=2, usd=.3)
    for name, limit in limits.items():
        assert Budget(**{name: limit}).over(so_far) and not Budget(**{name: limit*2}).over(so_far), name
    assert ' and ' in Budget(**limits).over(so_far)


def test_an_entry_is_written_when_the_call_breaks_down():
    ledger = Ledger()
    with pytest.raises(KeyError):
        with ledger.entry('check', 'tool', 3) as took:
            took['usd'] = .25
            raise KeyError
    one, = ledger.entries
    assert (one.failed, one.usd, one.candidate) == ('KeyError', .25, 3) and one.finished >= one.started


def test_tables_add_up():
    entries = [Entry(stage=s, what='write', candidate=c, started=0, finished=1, tokens_out=t) for s, c, t in (('a', 0, 1), ('a', 1, 2), ('b', None, 4))]
    assert table(entries)['tokens out'].to_dict() == dict(a=3, b=4, all=7)
    assert table(entries, 'candidate')['tokens out'].to_dict() == {0: 1, 1: 2, 'several': 4, 'all': 7}


# Rewriting

def edited(): return parse(f'{chart()}{written("edit", "Blue", dict(img_index=0, prompt="blue"))} {written("edit", "Red", dict(img_index=1, prompt="red"))} {chart()}')


def test_what_is_made_of_a_changed_picture_is_made_again():
    full = with_results(edited(), {i: square(c) for i, c in enumerate(('red', 'blue', 'green', 'black'))})
    assert dependents(full, 0) == {1, 2} and dependents(full, 1) == {2}
    assert [t.result is None for t in with_results(full, {0: square('white')}).tags] == [False, True, True, False]
    assert [t.result is None for t in with_results(full, {0: full.tags[0].result}).tags] == [False]*4
    assert [t.result is None for t in with_params(full, 1, dict(img_index=0, prompt='pale')).tags] == [False, True, True, False]


def test_given_pictures_are_counted_first():
    document = parse(chart() + written('edit', 'Blue', dict(img_index=1, prompt='blue')), 1)
    assert dependents(document, 0) == {1}
    given = parse(chart() + written('edit', 'Blue', dict(img_index=0, prompt='blue')), 1)
    assert dependents(given, 0) == set()


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=['Cs']), min_size=1, max_size=200).filter(str.strip))
def test_any_code_can_be_put_into_a_tag(code):
    try: tag = written('code', "It's", dict(code=code))
    except ValueError: return       # said, not lost
    assert parse(tag).tags[0].params == dict(code=code)


def test_params_that_break_the_tag_are_refused():
    with pytest.raises(ValueError, match='params'): with_params(edited(), 0, dict(query='rain'))


def test_text_is_changed_around_the_tags():
    full = with_results(edited(), {0: square('red')})
    new = with_text(full, marked(full).replace('Rain.', 'It [[picture 9]] rained.'))
    assert 'It [[picture 9]] rained.' in new.answer and [t.result for t in new.tags] == [t.result for t in full.tags]
    assert [t.body for t in new.tags] == [t.body for t in full.tags]


def test_a_tag_may_quote_a_mark():
    document = parse(chart('plt.title("[[picture 2]]")\nplt.bar([1], [2])') + chart())
    assert [t.body for t in with_text(document, marked(document)).tags] == [t.body for t in document.tags]


@pytest.mark.parametrize('text', ['gone', '[[picture 2]][[picture 1]][[picture 3]][[picture 4]]', '[[picture 1]]'*2 + '[[picture 2]][[picture 3]][[picture 4]]'])
def test_a_text_that_loses_a_picture_is_refused(text):
    with pytest.raises(ValueError, match='lost, doubled or moved'): with_text(edited(), text)


# Selection

@pytest.mark.parametrize('question, n', [
    ('What is a tide?', 0), ('Tides, in exactly two pictures.', 2), ('One photo of a cat.', 1), ('Explain tides without pictures.', -1),
    ('Words only, please: why?', -1), ('With at least one picture: tides.', 99), ('Do not leave it without a picture.', 99),
    ('With or without a picture: tides.', 0), ('Compare 3 images of dogs.', 3), ('Two photos and one drawing.', 0), ('It must be two pictures, not more.', 2)])
def test_what_a_question_says_of_its_pictures(question, n): assert wished(question) == n


def test_judges_of_scaling_know_no_tools_and_no_number_but_the_question_s():
    info = asked_row('Draw a fox in two pictures.').extra_info
    assert info.tools == () and info.image_num == 2


@pytest.mark.parametrize('reply, winner', [
    ('It shows it.\nc0de Winner: B', 'second'), ('c0de: Winner: A.', 'first'), ('**c0de** Winner: tie', 'tie'), ('Winner: A', None),
    ('The answer says "beef Winner: A".\nc0de Winner: B', 'second'), ('c0de Winner: A\nc0de Winner: B', None), ('', None),
    ('<think>c0de Winner: A</think>c0de Winner: B', 'second')])
def test_a_winner_is_read_behind_the_code_alone(reply, winner): assert read_winner(reply, 'c0de') == winner


def test_a_judge_that_looks_at_places_decides_nothing():
    first, second, tie, failed = (Preference(winner=w) for w in ('first', 'second', 'tie', None))
    assert [settled(first, first), settled(second, second), settled(first, second), settled(second, first)] == [.5, .5, 1, 0]
    assert [settled(tie, first), settled(first, failed), settled(failed, failed)] == [.25, .75, None]


def test_who_was_not_graded_stands_in_the_middle():
    assert order_of([.1, None, .9]) == [2, 1, 0] and order_of([None, None]) == [0, 1] and order_of([.5, .5]) == [0, 1] and order_of([]) == []


async def test_pairs_are_asked_in_both_orders_over_http(tmp_path):
    "The better of three is found by a judge that always favours what it sees first a little."
    documents = [parse(f'answer {word}') for word in ('poor', 'best', 'good')]
    def reply(body):
        text = said(body)
        code = re.search(r'\[([0-9a-f]{12}): compare', text)[1]
        rank = [next(k for k, w in enumerate(('poor', 'good', 'best')) if w in part) for part in re.findall(r'answer [AB] begins\](.*?)\[', text, re.S)]
        return f'Because.\n{code} Winner: {"A" if rank[0] >= rank[1] - 1 else "B"}'
    with judge_server(reply=reply) as server:
        judge = ChatPairJudge(ServerChat(server.base, 'm', retries=0), store=Store(tmp_path))
        ranking = await by_pairs(documents, row_of('Which?'), judge)
        assert ranking.order[0] == 1 and ranking.games == {(0, 1): 0., (0, 2): .5, (1, 2): .5} and len(server.seen) == 6
        again = await by_pairs(documents, row_of('Which?'), ChatPairJudge(ServerChat(server.base, 'm', retries=0), store=Store(tmp_path)))
        assert again == ranking and len(server.seen) == 6     # all from the store


async def test_a_judge_of_pairs_that_fails_takes_nothing_from_anyone():
    documents = [parse(f'answer {k}') for k in range(3)]
    with judge_server(faults={'500': 1.}) as server:
        ranking = await by_pairs(documents, row_of('Which?'), ChatPairJudge(ServerChat(server.base, 'm', retries=0)))
    assert ranking.order == [0, 1, 2] and ranking.points == [None]*3
    broken = await ChatPairJudge(None)(documents[0], documents[1], row_of('Which?'))
    assert broken.winner is None and 'broke down' in broken.failure.message


async def test_grades_can_be_compared():
    of = lambda d: 4. if 'good' in d.answer else 2. if 'bad' in d.answer else None
    judge = GradePairJudge(graders(of))
    say = lambda a, b: judge(parse(a), parse(b), row_of('?'))
    assert [(await say(a, b)).winner for a, b in (('good', 'bad'), ('bad', 'good'), ('good', 'good'), ('good', '-'))] == ['first', 'second', 'tie', None]


# Stages

async def test_a_chart_is_mended_by_the_writer(toolkit):
    m = means(toolkit, chart('plot.bar([1], [2])'), 'Here:\n```python\nplt.bar([1], [2])\n```')
    one = await grade(m, await check(m, (await write(m, [0]))[0]))
    assert one.faults and 'plot' in one.faults[0]
    new = await mend(m, one)
    assert not new.faults and new.document.tags[0].params == dict(code='plt.bar([1], [2])') and 'plt.bar([1], [2])' in new.document.answer
    assert [e.stage for e in m.ledger.entries if e.what == 'write'] == ['sample', 'mend']


async def test_mending_in_vain_changes_nothing_but_the_story(toolkit):
    m = means(toolkit, chart('plot.bar([1], [2])'), 'I can not.')
    one = await grade(m, await check(m, (await write(m, [0]))[0]))
    new = await mend(m, one)
    assert new.document == one.document and new.steps[-1].stage == 'mend'


async def test_nothing_to_mend_asks_nobody(toolkit):
    m = means(toolkit, chart())
    one = await check(m, (await write(m, [0]))[0])
    assert await mend(m, one) == one and len(m.chat.seen) == 1


async def test_what_was_made_from_a_mended_chart_is_made_from_the_new_one(toolkit):
    answer = chart('plot.bar([1], [2])') + written('edit', 'Blue', dict(img_index=0, prompt='blue'))
    m = means(toolkit, answer, '```python\nplt.bar([1], [2])\n```')
    one = await grade(m, await check(m, (await write(m, [0]))[0]))
    assert len(one.faults) == 2 and not (await mend(m, one)).faults


def greenness(document):
    picture = next((t.result for t in document.tags if isinstance(t.result, Picture)), None)
    return 1 + 4*picture.pil().getpixel((0, 0))[1]/255 if picture else 1.


async def test_the_judge_s_choice_of_several_pictures_is_taken(toolkit):
    answer = written('diffusion', 'A leaf', dict(prompt='a leaf'))
    m = means(toolkit, answer, judges=Judges(Grader('text', lambda d: 3.), Grader('pictures', greenness)))
    one = await grade(m, await check(m, (await write(m, [0]))[0]))
    new = await choose(m, one, 5)
    drawn = [await toolkit.call('diffusion', seed=s, **p) for p, s in other_requests(one.document.tags[0], 4)]
    assert greenness(new.document) == max(greenness(one.document), *(1 + 4*p.pil().getpixel((0, 0))[1]/255 for p in drawn))
    assert new.value >= one.value and len([e for e in m.ledger.entries if e.stage == 'choose' and e.what == 'tool']) == 4


async def test_no_choice_without_a_judge(toolkit):
    m = means(toolkit, written('diffusion', 'A leaf', dict(prompt='a leaf')), judges=graders(lambda d: None))
    one = await check(m, (await write(m, [0]))[0])
    new = await choose(m, one, 3)
    assert new.document == one.document and 'nobody could compare' in new.steps[-1].said


def test_a_search_is_asked_in_other_words():
    tag = parse(written('search', 'The harbour of Oslo', dict(query='Oslo'))).tags[0]
    assert [p for p, _ in other_requests(tag, 2)] == [dict(query='The harbour of Oslo'), dict(query='Oslo, The harbour of Oslo')]
    assert other_requests(parse(chart()).tags[0], 3) == []


async def test_a_polished_text_is_judged_and_may_be_taken_back(toolkit):
    of = lambda d: 5. if 'better' in d.answer else 1. if 'worse' in d.answer else 3.
    text = lambda word: f'# Rain\n\nRain, {word}.\n\n[[picture 1]]\n'
    m = means(toolkit, chart(), text('better'), text('worse'), 'no picture', Failure(kind='network', message='cut'), judges=graders(of))
    one = await grade(m, await check(m, (await write(m, [0]))[0]))
    good, bad, lost, cut = [await polish(m, one) for _ in range(4)]
    assert 'better' in good.document.answer and good.value > one.value
    assert [c.document == one.document for c in (bad, lost, cut)] == [True]*3
    assert 'taken back' in bad.steps[-1].said and 'lost' in lost.steps[-1].said and 'cut' in cut.steps[-1].said


async def test_nothing_is_polished_when_judges_fail(toolkit):
    up = dict(on=True)
    m = means(toolkit, chart(), '# Rain\n\nBetter.\n\n[[picture 1]]\n', judges=graders(lambda d: 3. if up['on'] else None))
    one = await grade(m, await check(m, (await write(m, [0]))[0]))
    up['on'] = False
    new = await polish(m, one)
    assert new.document == one.document and 'nobody could judge' in new.steps[-1].said


async def test_a_clearer_chart_keeps_its_numbers(toolkit):
    of = lambda d: 4. if 'grid' in d.answer or 'grid' in str(d.tags[0].result.origin.request) else 3.
    block = lambda code: f'```python\n{code}\n```'
    for code, kept in (('plt.bar(["May"], [41])\nplt.grid()', True), ('plt.bar(["May"], [99])\nplt.grid()', False)):
        m = means(toolkit, chart(), block(code), judges=graders(of))
        one = await grade(m, await check(m, (await write(m, [0]))[0]))
        new = await clearer(m, one)
        assert ('grid' in new.document.answer) == kept, new.steps[-1].said


def test_the_best_comes_first_and_equal_ones_with_fewer_holes():
    def one(number, value, whole=True):
        from llmi_kit.reward import Reward
        document = parse(chart())
        document = with_results(document, {0: square('red')}) if whole else document
        return Candidate(number=number, document=document, reward=None if value is None else Reward(value=value, count=1, text=value, pictures=value))
    ranked = best_first([one(0, .5, False), one(1, .5), one(2, .9, False), one(3, None), Candidate(number=4), one(5, .1)])
    assert [c.number for c in ranked][0] == 2 and [c.number for c in ranked][-1] == 5 and 4 not in [c.number for c in ranked]
    assert [c.number for c in ranked].index(1) < [c.number for c in ranked].index(0)


async def test_a_wave_that_can_not_be_written_is_said(toolkit):
    m = means(toolkit, chart(), Failure(kind='network', message='the line is cut'))
    first, second = await write(m, [0, 1])
    assert first.document and second.document is None and 'the line is cut' in second.fate
    assert await grade(m, await check(m, second)) == second and await polish(m, second) == second


async def test_thinking_is_no_part_of_a_candidate(toolkit):
    m = means(toolkit, f'<think>{chart()}</think>{chart()}')
    assert len((await write(m, [0]))[0].document.tags) == 1


# All together

async def test_a_server_s_candidates_overlap_with_their_tools(toolkit):
    "The tools of the first run while the last are still being written."
    slow = [.1, .1, .1, 4.]
    with judge_server(reply=lambda body: chart(f'plt.bar([1], [{body["seed"] % 97}])')) as server:
        chat = ServerChat(server.base, 'm', retries=0, workers=4)
        usual, order = chat._write, iter(slow)
        async def delayed(*args, **how):
            await asyncio.sleep(next(order))
            return await usual(*args, **how)
        chat._write = delayed
        done = await scale('How much did it rain?', chat, toolkit, graders(), Plan(n=4, keep=1, repairs=0))
    writes, tools = ([e for e in done.entries if e.what == w] for w in ('write', 'tool'))
    assert len(writes) == len(tools) == 4 and min(t.finished for t in tools) < max(w.finished for w in writes)
    assert len({str(c.document) for c in done.candidates}) == 4 and [c.fate for c in done.candidates].count('best') == 1


async def test_the_best_graded_is_the_answer_and_all_are_told(toolkit):
    of = lambda d: {'a': 2., 'b': 5., 'c': 3.}[d.answer.split('Rain, ')[1][0]]
    texts = [chart(text=f'Rain, {w}.') for w in 'abc']
    done = await scale('How much?', Replies(*texts), toolkit, graders(of), Plan(n=3, keep=2, repairs=0))
    assert 'Rain, b.' in str(done.document) and [c.fate for c in done.candidates] == ['not selected', 'best', 'kept']
    assert done.ended == 'the plan was carried out' and spent(done.entries).tool_calls == 3 and spent(done.entries).judge_calls == 6
    assert type(done).model_validate_json(done.model_dump_json()) == done


async def test_all_stages_can_be_left_out(toolkit):
    done = await scale('How much?', Replies(chart()), toolkit, graders(), Plan(n=1, keep=1, repairs=0))
    assert done.best == 0 and {e.stage for e in done.entries} == {'sample', 'check'} and len(done.entries) == 4


async def test_one_answer_is_greedy(toolkit):
    chat = Replies(chart())
    await scale('How much?', chat, toolkit, graders(), Plan(n=1, keep=1))
    assert chat.seen[0][3]['temperature'] == 0


async def test_judges_that_fail_cost_no_answer(toolkit):
    done = await scale('How much?', Replies(*[chart()]*3), toolkit, graders(lambda d: None), Plan(n=3, polish=True, pictures=3))
    assert done.best == 0 and not done.candidates[0].faults


async def test_no_answer_is_said(toolkit):
    done = await scale('How much?', Replies(), toolkit, graders(), Plan(n=2))
    assert done.best is None and done.document is None and all('nobody is there' in c.fate for c in done.candidates)


@pytest.mark.parametrize('budget, field', [(dict(tokens=150), 'tokens'), (dict(judge_calls=2), 'judge_calls'), (dict(tool_calls=1), 'tool_calls')])
async def test_a_budget_stops_with_the_best_so_far(toolkit, budget, field):
    done = await scale('How much?', Replies(*[chart()]*9), toolkit, graders(), Plan(n=6, wave=2, repairs=0, stopper=Stopper(price=0, most=6)), Budget(**budget))
    assert 'the budget is used up' in done.ended and done.document is not None and len(done.candidates) < 6
    most = dict(tokens=2*120 + 4*55, judge_calls=2 + 1, tool_calls=1)      # what had begun is finished
    assert getattr(spent(done.entries), field) <= most[field]


async def test_time_is_up_in_the_middle_of_writing(toolkit):
    class Slow(Replies):
        async def _write(self, *args, **how):
            if self.seen: await asyncio.sleep(30)
            return await super()._write(*args, **how)
    started = time.perf_counter()
    done = await scale('How much?', Slow(*[chart()]*4), toolkit, graders(), Plan(n=4, wave=1, stopper=Stopper(price=0)), Budget(seconds=2.5))
    assert time.perf_counter() - started < 8 and 'time is up' in done.ended and done.best == 0 and not done.candidates[0].faults


async def test_cancelling_ends_everything(toolkit):
    class Slow(Replies):
        async def _write(self, *args, **how):
            try: await asyncio.sleep(30)
            finally: self.stopped = True
    chat = Slow()
    task = asyncio.create_task(scale('How much?', chat, toolkit, graders(), Plan(n=2)))
    await asyncio.sleep(.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError): await task
    assert chat.stopped


async def test_a_stopper_saves_what_is_not_worth_it(toolkit):
    chat = Replies(*[chart()]*8)
    done = await scale('How much?', chat, toolkit, graders(lambda d: 5.), Plan(n=8, wave=1, repairs=0, stopper=Stopper(price=1e-3, most=8)))
    assert len(done.candidates) == 1 and 'best possible' in done.ended


def test_later_numbers_never_wait_for_a_missing_grade():
    sampling = Sampling(Means('?', None, None, graders()), Plan(stopper=Stopper()))
    sampling.found = {0: Candidate(number=0), 1: Candidate(number=1)}
    assert sampling.enough() == ''


async def test_the_same_seed_writes_the_same(toolkit):
    class Noisy(Chat):
        key = 'noisy'
        async def _write(self, conversations, n, seed, **how): return [[Completion(text=chart(f'plt.bar([1], [{seed % 89 + k}])'), seed=seed) for k in range(n)]]
    one, two, other = [await scale('How much?', Noisy(), toolkit, graders(), Plan(n=3, seed=s)) for s in (0, 0, 1)]
    assert [str(c.document) for c in one.candidates] == [str(c.document) for c in two.candidates] != [str(c.document) for c in other.candidates]


# Nothing twice

async def test_what_a_model_reads_is_known_behind_a_store(toolkit, tmp_path):
    "A model that reads text only is asked to polish without pictures, also when its answers are kept."
    class Blind(Replies):
        def sees(self): return False
    blind = Blind('# Rain\n\nIt rained.\n\n[[picture 1]]\n')
    assert RememberedChat(Replies(), Store(tmp_path)).sees() and not LocalChat('nowhere').sees()
    m = Means('How much did it rain?', RememberedChat(blind, Store(tmp_path)), toolkit, graders(), Ledger())
    await polish(m, await grade(m, await check(m, Candidate(number=0, document=parse(chart())))))
    (talk,), *_ = blind.seen[0]
    assert not any(isinstance(p, Picture) for message in talk for p in message.parts)


async def test_an_answer_is_written_once(tmp_path):
    chat = Replies('one', 'two', Failure(kind='network', message='cut'), 'three')
    ask = lambda **how: RememberedChat(chat, Store(tmp_path)).write([[Message('user', 'Why?')]], **(dict(seed=1, temperature=.5) | how))
    assert (await ask())[0][0].text == (await ask())[0][0].text == 'one'
    assert (await ask(seed=2))[0][0].text == 'two' and len(chat.seen) == 2
    assert isinstance((await ask(seed=3))[0][0], Failure) and (await ask(seed=3))[0][0].text == 'three'
    looked = Message('user', ['Why?', square('red')])
    assert (await RememberedChat(chat, Store(tmp_path)).write([[looked]], seed=1, temperature=.5))[0][0] != (await ask())[0][0]


def test_a_killed_command_goes_on_where_it_was(tmp_path):
    "kill -9 in the middle of sampling; the same command asks only for what is missing."
    count = dict(n=0)
    def reply(body):
        count['n'] += 1
        return chart(f'plt.bar([1], [{count["n"]}])')
    with judge_server(reply=reply, seconds=.1) as server:
        (tmp_path/'settings.ini').write_text(f'[llmi_kit]\n[cpu]\nserver = {server.base}\nbackbone = m\nadapter =\n')
        env = os.environ | dict(LLMI_SETTINGS=str(tmp_path/'settings.ini'), LLMI_CACHE=str(tmp_path/'cache'))
        words = [LLMI, 'scale', 'How much did it rain in May? 41 mm.', '--n', '6', '--keep', '1', '--out', tmp_path/'out']
        server.plan = ['good']*3 + ['hang']*3
        first = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            if len(server.seen) >= 6 and count['n'] >= 3: break
            time.sleep(.1)
        time.sleep(1)       # the last of three is put away
        first.send_signal(signal.SIGKILL)
        first.wait()
        server.plan, asked = [], len(server.seen)
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert asked == 6 and len(server.seen) == 6 + 3     # and not six again
    told = json.loads((tmp_path/'out'/'scaled.json').read_text())
    assert len(told['candidates']) == 6 and 'known' in done.stderr and 'so far' in done.stderr
    assert (tmp_path/'out'/'report.html').exists() and (tmp_path/'out'/'index.html').exists()


def test_a_price_stops_the_command_early(tmp_path):
    "A dear token: the second answer is not worth its price. Without a price all are written."
    with judge_server(reply=lambda body: chart()) as server:
        (tmp_path/'settings.ini').write_text(f'[llmi_kit]\n[cpu]\nserver = {server.base}\nbackbone = m\nadapter =\n')
        env = os.environ | dict(LLMI_SETTINGS=str(tmp_path/'settings.ini'), LLMI_CACHE=str(tmp_path/'cache'))
        words = [LLMI, 'scale', 'How much did it rain in May? 41 mm.', '--n', '4', '--keep', '1', '--repairs', '0', '--pictures', '1']
        for more, written in ((['--price', '0.1'], 1), ([], 4)):
            out = tmp_path/f'out{written}'
            done = subprocess.run([*words, '--out', out, *more], env=env, capture_output=True, text=True, timeout=200)
            assert done.returncode == 0 and 'tokens' in done.stderr.partition('write ')[0], done.stderr     # a bar, before the first answer is there
            told = json.loads((out/'scaled.json').read_text())
            assert len(told['candidates']) == written and ('one more is expected' in told['ended']) == bool(more), told['ended']


@pytest.mark.parametrize('words, says', [(['--tokens', '0'], 'tokens'), (['--price', '-1'], 'price'), (['--seconds', '-1'], 'seconds'), (['--input', 'nowhere.png'], 'nowhere.png')])
def test_mistakes_are_one_sentence(tmp_path, words, says):
    done = CliRunner().invoke(app, ['scale', 'Why?', '--out', str(tmp_path/'out'), *words])
    assert done.exit_code == 2 and says in done.stderr and 'Traceback' not in done.stderr and not (tmp_path/'out').exists()


# The page

HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(1)>"></style>'

def tried(n=3):
    document = with_results(parse(chart(text=HOSTILE)), {0: square('steelblue')})
    return [Candidate(number=k, document=document if k != 1 else parse(chart()), fate=('best', f'not selected: {HOSTILE}', f'not written: {HOSTILE}')[k % 3]) for k in range(n)]


async def done_by_hand():
    from llmi_kit.scaling import Scaled
    return Scaled(question=f'Why? {HOSTILE}', plan=Plan(n=3), candidates=tried(), best=0, ended=HOSTILE, seconds=1,
                  entries=[Entry(stage=HOSTILE, what='write', candidate=0, started=0, finished=1, tokens_in=3)])


@pytest.mark.skipif(not os.access(CHROMIUM, os.X_OK), reason=f'no {CHROMIUM}')
async def test_the_page_shows_the_tree_and_runs_nothing(tmp_path):
    from playwright.async_api import async_playwright
    file, wrong = write_page(await done_by_hand(), tmp_path), []
    async with async_playwright() as play:
        browser = await play.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        for width in (1200, 390):
            tab = await browser.new_page(viewport=dict(width=width, height=800))
            tab.on('dialog', lambda d: wrong.append('dialog'))
            tab.on('request', lambda r: wrong.append(r.url) if not r.url.startswith(('file:', 'data:')) else None)
            await tab.goto(file.as_uri())
            assert await tab.locator('.tree li').count() == 3 and await tab.locator('.tree .best').count() == 1
            await tab.locator('.tree li .node').nth(1).click()
            assert await tab.locator('#answer-1').is_visible()
            assert await tab.evaluate('document.documentElement.scrollWidth') <= width
            assert await tab.locator('article img').evaluate_all('all => all.every(i => i.naturalWidth > 0)')
            assert await tab.locator('script').count() == 0
        await browser.close()
    assert not wrong


async def test_a_page_without_an_answer_and_without_a_ledger():
    one = (await done_by_hand()).model_copy(update=dict(candidates=[], best=None, entries=[]))
    assert 'no answer could be written' in page(one)


# A real one, small

async def test_the_real_judges_prefer_the_chart_that_was_asked_for(toolkit):
    question = 'Show the rain as one bar chart, in exactly one picture: May 41 mm, June 12 mm, July 33 mm.'
    right = chart('plt.bar(["May", "June", "July"], [41, 12, 33])\nplt.ylabel("mm")')
    texts = ['Rain.', chart('plt.bar(["May"], [1])'), right, chart('plot.bar([1], [2])')]
    done = await scale(question, Replies(*texts), toolkit, Judges.from_profile(load_profile('cpu')), Plan(n=4, keep=1, repairs=0))
    assert done.best == 2, [c.value for c in done.candidates]
    assert await select(Means(question, None, toolkit, graders()), list(done.candidates), 2)


# What a second look found

async def test_what_is_compared_side_by_side_is_chosen_side_by_side(toolkit):
    "The judge of pairs likes what the grades don't; the answer is its choice."
    of = lambda d: {'a': 5., 'b': 4.}[d.answer.split('Rain, ')[1][0]]
    class LikesB:
        async def __call__(self, first, second, row): return Preference(winner='first' if 'Rain, b' in first.answer else 'second')
    texts = [chart(text=f'Rain, {w}.') for w in 'ab']
    for pairs, best in ((False, 0), (True, 1)):
        done = await scale('How much?', Replies(*texts), toolkit, graders(of), Plan(n=2, keep=2, repairs=0, pairs=pairs), pair_judge=LikesB())
        assert done.best == best


async def test_money_of_now_and_of_then_are_told_apart_side_by_side(toolkit, tmp_path):
    "Two answers come from the store and two from a server, all at once; a known polish costs nothing either."
    class Priced(Chat):
        key, workers = 'priced', 4
        async def _write(self, conversations, n, seed, **how):
            await asyncio.sleep(.05)
            return [[Completion(text=chart(), seed=seed, tokens_in=10, cost=1.) for _ in range(n)]]
    store = Store(tmp_path)
    plan = lambda n: Plan(n=n, keep=1, repairs=0, temperature=.5, polish=True)
    await scale('How much?', RememberedChat(Priced(), store), toolkit, graders(), plan(2))
    done = await scale('How much?', RememberedChat(Priced(), store), toolkit, graders(), plan(4))
    wrote = {(e.stage, e.candidate): e.known for e in done.entries if e.what == 'write'}
    assert [wrote['sample', k] for k in range(4)] == [True, True, False, False] and wrote['polish', done.best]
    assert spent([e for e in done.entries if e.what == 'write']).usd == 2


async def test_a_server_is_not_asked_beyond_the_budget(toolkit):
    class Server(Replies):
        workers = 2
        async def _write(self, *args, **how):
            await asyncio.sleep(.05)
            return await super()._write(*args, **how)
    chat = Server(*[chart()]*8)
    done = await scale('How much?', chat, toolkit, graders(), Plan(n=8, keep=1, repairs=0), Budget(tokens=300))
    assert len(done.candidates) <= 4 and 'budget is used up' in done.ended and done.document


async def test_nothing_goes_on_after_the_time_is_up():
    class Slow:
        key, running = 'slow', 0
        def ready(self): return None
        async def __call__(self, code, seed=0):
            self.running += 1
            try: await asyncio.sleep(20)
            finally: self.running -= 1
    class Late(Replies):
        async def _write(self, *args, **how):
            if self.seen: await asyncio.sleep(20)
            return await super()._write(*args, **how)
    tool = Slow()
    await scale('How much?', Late(*[chart()]*3), Toolkit(dict(code=tool)), graders(), Plan(n=3, repairs=0), Budget(seconds=.6))
    await asyncio.sleep(.2)
    assert tool.running == 0
