"""People's ratings: a file that a kill can't hurt, sides that give nothing away, tables that know when to be silent."""
import json
import multiprocessing
import random
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from pydantic import ValidationError

from llmi_kit.data import DataError
from llmi_kit.document import parse
from llmi_kit.ratings import (FEWEST, JUDGE, Rating, RatingFile, agreement, blind_order, counted, edition, find_reports, game_of, item_of, items_of,
    judged, newest, preferences, question_of, read_report, sides, system_names, tables, verdicts_of)
from llmi_kit.report import write_report
from llmi_kit.reward import Reward
from llmi_kit.verdict import Verdict

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def rated(question='q', value=3, rater='ann', criterion='text', systems=('one',), editions=('e',), shown=None, note=''):
    return Rating(question=question, systems=systems, editions=editions, shown=shown or systems, rater=rater, criterion=criterion, value=value,
                  note=note, time=NOON, seconds=1.5)

def reports(folder, *names, question='What is {}?', text='About {}.'):
    for name in names: write_report(parse(text.format(name)), folder/name, question=question.format(name))
    return folder


# ---- the file --------------------------------------------------------------------------------------------------------

def test_a_kill_at_any_byte_loses_no_other_line(tmp_path):
    book = RatingFile(tmp_path)
    for v in (1, 2, 3): book.add(rated(value=v, note='zwölf €'))
    whole = book.path.read_bytes()
    starts = [i for i in range(len(whole)) if i == 0 or whole[i - 1:i] == b'\n']
    for cut in random.Random(0).sample(range(len(whole) + 1), 60) + [0, *starts]:
        book.path.write_bytes(whole[:cut])
        book.add(rated(value=5))
        found, torn = book.read()
        complete = whole[:cut].count(b'\n') + (whole[cut:cut + 1] == b'\n')     # a line that only lacks its end is whole
        assert [r.value for r in found] == [*(1, 2, 3)[:complete], 5]
        assert torn == (cut not in starts and whole[cut:cut + 1] != b'\n' and cut != len(whole))

def _write_many(folder, rater):
    book = RatingFile(folder)
    for n in range(40): book.add(rated(f'q{n}', rater=rater, note='x'*3000))

def test_two_raters_at_once_write_whole_lines(tmp_path):
    context = multiprocessing.get_context('fork')
    several = [context.Process(target=_write_many, args=(tmp_path, name)) for name in ('ann', 'bob')]
    for p in several: p.start()
    for p in several: p.join()
    found, torn = RatingFile(tmp_path).read()
    assert (len(found), torn) == (80, 0)

def test_what_others_wrote_into_the_file_is_counted_not_raised(tmp_path):
    book = RatingFile(tmp_path)
    book.add(rated())
    with book.path.open('ab') as f: f.write(b'\xff\xfe\n\n[]\n' + rated().model_dump_json().replace('3', '9', 1).encode() + b'\n')
    found, torn = book.read()
    assert (len(found), torn) == (1, 3)

def test_the_newest_line_wins_and_what_was_taken_back_is_gone():
    lines = [rated('a', 1), rated('b', 2), rated('a', 4), rated('b', None), rated('a', 5, rater='bob'), rated('c', None, note='dull', criterion='note')]
    assert [(r.question, r.rater, r.value) for r in newest(lines).values()] == [('a', 'ann', 4), ('a', 'bob', 5), ('c', 'ann', None)]
    assert [r.question for r in counted(lines).ratings] == ['a', 'a'], 'a note is no rating'

@pytest.mark.parametrize('systems, value', [(('a',), 0), (('a',), 6), (('a', 'b'), 2), (('a', 'b', 'c'), 1)])
def test_no_value_outside_its_scale(systems, value):
    with pytest.raises(ValidationError): rated(systems=systems, value=value)

def test_what_was_shown_are_the_systems():
    with pytest.raises(ValidationError): rated(systems=('a', 'b'), shown=('a', 'a'), value=0)


# ---- reports ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('question, answer, told', [
    ('Why <b>not</b> & "so"?', 'Text.', 'Why <b>not</b> & "so"?'), ('Line one\n\nline two ' + 'x '*300, 'Text.', None), ('', 'Text.', ''),
    ('', '# Own heading\n\nText.', ''), ('Own heading', '# Own heading\n\nText.', ''), ('Short?', 'Text.', 'Short?'),
    ('Real?', '<p class="words" dir="auto">False?</p></header>', 'Real?'), ('Why?', '# <p class="words" dir="auto">False?</p>\n\nText.', 'Why?')])
def test_the_question_is_read_from_the_page(tmp_path, question, answer, told):
    write_report(parse(answer), tmp_path, question=question)
    assert read_report(tmp_path).question.split() == (question if told is None else told).split()

@pytest.mark.parametrize('data, says', [(None, 'missing'), (b'', 'damaged'), (b'{"answer": 1}', 'damaged'), (b'\xff', 'damaged'), ('folder', 'can not be read')])
def test_broken_files_are_one_sentence(tmp_path, data, says):
    folder = reports(tmp_path, 'secret-name')/'secret-name'
    (folder/'document.json').unlink()
    if data == 'folder': (folder/'document.json').mkdir()
    elif data is not None: (folder/'document.json').write_bytes(data)
    report = read_report(folder)
    assert says in report.trouble and 'secret' not in report.trouble and report.question == 'What is secret-name?'
    assert list(find_reports(tmp_path)) == ['secret-name'], 'a broken report is still there'
    assert edition(folder)

def test_folders_of_reports(tmp_path):
    reports(tmp_path/'run', 'a', 'deep/b')
    write_report(parse('Inner.'), tmp_path/'run/a/images')
    assert list(find_reports(tmp_path/'run')) == ['a', 'deep/b'], 'what lies inside a report is part of it'
    assert list(find_reports(tmp_path/'run/a')) == ['.']
    for bad in ('nowhere', 'run/a/report.html', 'empty'):
        (tmp_path/'empty').mkdir(exist_ok=True)
        with pytest.raises(DataError): find_reports(tmp_path/bad)

def test_pairs_by_folder_then_by_question_and_the_rest_is_named(tmp_path):
    one, two = reports(tmp_path/'one', 'a', 'b', 'c', 'same1', 'same2'), reports(tmp_path/'two', 'a')
    write_report(parse('x'), two/'z9', question='What  is\nb?')
    for name in ('s1', 's2'): write_report(parse('x'), two/name, question='What is c?')
    items, alone = items_of(one, two)
    assert {i.question: i.folders['two'].name for i in items} == {'a': 'a', 'b': 'z9'}, 'a question that comes twice matches nothing'
    assert sorted(alone) == ['one/c', 'one/same1', 'one/same2', 'two/s1', 'two/s2']

def test_systems_have_the_same_order_whoever_is_named_first(tmp_path):
    one, two = reports(tmp_path/'zz', 'a'), reports(tmp_path/'aa', 'a')
    assert items_of(one, two)[0] == items_of(two, one)[0]
    assert items_of(one, two)[0][0].systems == ('aa', 'zz')
    assert system_names(tmp_path/'x/demo', tmp_path/'y/demo') == ['x/demo', 'y/demo']


# ---- blind -----------------------------------------------------------------------------------------------------------

MANY = [item_of(f'q{n}', {}) for n in range(400)]
PAIRS = [i._replace(folders=dict(a=None, b=None)) for i in MANY]

@settings(max_examples=20, deadline=None)
@given(st.text(max_size=20), st.integers(0, 9))
def test_sides_are_even_and_do_not_go_with_the_order(rater, seed):
    left = [sides(i, rater, seed)[0] for i in blind_order(PAIRS, rater, seed)]
    assert 140 < left.count('a') < 260
    assert 140 < sum(x == y for x, y in zip(left, left[1:], strict=False)) < 260, 'the next side can be guessed'
    assert sides(PAIRS[0], rater, seed) == sides(PAIRS[0], rater, seed)

def test_raters_differ_in_order_and_sides():
    assert blind_order(PAIRS, 'ann') != blind_order(PAIRS, 'bob')
    assert 140 < sum(sides(i, 'ann') == sides(i, 'bob') for i in PAIRS) < 260


# ---- agreement -------------------------------------------------------------------------------------------------------

def graded(rater, values, **more): return [rated(f'q{n}', v, rater, **more) for n, v in enumerate(values)]

def test_agreement_of_planted_raters():
    dice = random.Random(1)
    truth = [dice.randint(1, 5) for _ in range(200)]
    near = [min(5, max(1, t + dice.choice((-1, 0, 1)))) for t in truth]
    noise = [dice.randint(1, 5) for _ in truth]
    ann = graded('ann', truth)
    assert agreement(ann, graded('bob', truth)).value == 1
    close, far = agreement(ann, graded('bob', near)), agreement(ann, graded('bob', noise))
    assert .75 < close.low < close.value < close.high < 1, 'one grade off is nearly the same: the weights are quadratic'
    assert far.low < 0 < far.high
    assert agreement(ann, list(reversed(graded('bob', truth)))).value == 1, 'matched by question, not by place'

def test_pairs_have_plain_kappa():
    ann = [rated(f'q{n}', v, systems=('a', 'b')) for n, v in enumerate([1, 1, -1, 0]*10)]
    off = [r.model_copy(update=dict(rater='bob', value={1: 0, 0: 0, -1: -1}[r.value])) for r in ann]
    worse = [r.model_copy(update=dict(rater='bob', value={1: -1, 0: 0, -1: -1}[r.value])) for r in ann]
    assert abs(agreement(ann, off).value - agreement(ann, worse).value) < .15, 'a tie for a win is as wrong as a loss'

@pytest.mark.parametrize('n', range(0, FEWEST + 2))
def test_too_few_say_what_is_missing(n):
    found = agreement(graded('ann', [1, 5, 3, 2]*5), graded('bob', ([1, 5, 3, 2]*5)[:n]))
    if n < FEWEST: assert found == f'{n} rated by both, {FEWEST - n} more are needed'
    else: assert found.value == 1

def test_ratings_of_an_earlier_edition_do_not_count():
    old, new = graded('ann', [1, 2, 3], editions=('old',)), [rated('q1', 5, 'bob', editions=('new',))]
    said = counted([*old, *new])
    assert [(r.question, r.value) for r in said.ratings] == [('q0', 1), ('q2', 3), ('q1', 5)] and said.earlier == 1
    assert 'written anew' in str(tables([*old, *new])[0])

def duel(n, rater, winner):
    shown = sides(PAIRS[n], rater)
    value = dict(a=1, b=-1, tie=0, left=1 if shown[0] == 'a' else -1)[winner]
    return rated(f'q{n}', value, rater, 'together', ('a', 'b'), ('e', 'f'), shown)

def lines(table): return dict(table.lines)

def test_wins_are_counted_whichever_side_they_were_on():
    games = [duel(n, r, 'a') for n in range(40) for r in ('ann', 'bob')]
    assert {game_of(g).first for g in games} == {'a', 'b'}
    found = lines(preferences(games)[0])
    assert found['a wins, ties as half'].startswith('1.000') and found['b wins, ties as half'].startswith('0.000')
    assert '80 in 40 groups' in found['a wins, ties as half'], 'two raters of one question are one group'

def test_raters_who_always_press_left_are_found():
    found = lines(preferences([duel(n, 'ann', 'left') for n in range(60)])[0])
    assert found['left less right'].startswith('1.000') and 'p = 0.000' in found['left less right']
    assert .3 < float(found['a wins, ties as half'].split()[0]) < .7

def test_the_judge_is_one_more_rater(tmp_path):
    one, two = reports(tmp_path/'one', *(f'q{n}' for n in range(12))), reports(tmp_path/'two', *(f'q{n}' for n in range(12)))
    for folder, plus in (one, 0), (two, 1):
        for n in range(12):
            words = Verdict(judge='j', grades=dict(text=1 + n%4 + plus*(n%2), image=3))
            looks = Verdict(judge='j', grades=dict(quality=2, task=2, text_image=5))
            reward = Reward(value=.5, count=1, text=.5, pictures=.5, verdicts=dict(text=words, pictures=looks))
            if n: (folder/f'q{n}/reward.json').write_text(reward.model_dump_json())
            else: (folder/'q0/scaled.json').write_text(json.dumps(dict(best=1, candidates=[{}, dict(reward=json.loads(reward.model_dump_json()))])))
    assert judged(one/'q0') == dict(text=1, pictures=3, together=2)
    alone, pairs = items_of(one)[0], items_of(one, two)[0]
    ann = [rated(i.question, 1 + int(i.question[1:])%4, systems=i.systems, editions=i.editions) for i in alone]
    assert agreement(ann, verdicts_of(alone, ann)).value == 1
    duels = [rated(i.question, -(int(i.question[1:])%2), 'ann', 'text', i.systems, i.editions) for i in pairs]
    assert agreement(duels, verdicts_of(pairs, duels)).value == 1
    shown = '\n'.join(map(str, tables(ann + duels, alone + pairs)))
    assert shown.count(f'ann and {JUDGE}  1.000') == 2
    for damage in (b'{', b'[]', b'{"best": 7, "candidates": []}', b'{"best": 0, "candidates": [{"reward": null}]}'):
        (one/'q0/scaled.json').write_bytes(damage)
        assert judged(one/'q0') == {}

@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from('abc'), st.integers(1, 5), st.sampled_from(['ann', 'bob']), st.booleans()), max_size=40))
def test_tables_of_anything(said):
    ratings = [rated(q, v if not pair else v%3 - 1, r, systems=('a', 'b')[:1 + pair], editions=('e', 'f')[:1 + pair]) for q, v, r, pair in said]
    shown = '\n'.join(map(str, tables(ratings)))
    assert 'nan' not in shown and ('nobody has rated yet' in shown) == (not said)

def test_question_of_a_foreign_page(): assert question_of('<html>') == question_of('') == ''
