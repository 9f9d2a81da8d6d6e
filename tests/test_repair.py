"""Repair of charts: a real sandbox draws, a real server on loopback answers as a model recorded in tests/data would.

tests/data/broken_charts.jsonl holds {name, kind, code, error, mended}: a program that fails, what the sandbox says, the model's reply."""
import asyncio, json, re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from judge_server import judge_server, pictures, said

from llmi_kit.chat import Completion, ServerChat
from llmi_kit.picture import Failure, Picture
from llmi_kit.repair import (MENDABLE, Round, another_talk, change, fenced, improve, plotted, read_code, repair, repair_talk, skeleton,
                             stands_alone, syntax, unfenced)
from llmi_kit.sandbox import Sandbox
from llmi_kit.toolkit import CodeTool

ROWS = [json.loads(line) for line in (Path(__file__).parent/'data'/'broken_charts.jsonl').read_text('utf8').splitlines()]
BY_NAME = {row['name']: row for row in ROWS}
TYPO, OLD = BY_NAME['misspelt pyplot function'], BY_NAME['DataFrame.append']
GOOD = 'plt.bar(["a", "b"], [1, 2])'


@pytest.fixture(scope='module')
def draw():
    with Sandbox(workers=1, seconds=20) as sandbox: yield CodeTool(sandbox)


@pytest.fixture(scope='module')
def hasty():
    "For what never ends."
    with Sandbox(workers=1, seconds=2) as sandbox: yield CodeTool(sandbox)


def recorded(body):
    "The reply to the program that a request holds."
    return next((row['mended'] for row in ROWS if row['code'] in said(body)), 'I know no such program.')


def asker(server, **how):
    "`ask` as a caller hands it in."
    chat = ServerChat(server.base, 'm', retries=0, **{'seconds': 20, **how})
    async def ask(messages, seed): return (await chat.write([messages], seed=seed))[0][0]
    return ask


def replies(*texts):
    "A model without a server, for what no server is needed for; it remembers what it was asked."
    todo, seen = list(texts), []
    async def ask(messages, seed):
        seen.append((messages, seed))
        return todo.pop(0) if not isinstance(todo[0], str) else Completion(text=todo.pop(0))
    ask.seen = seen
    return ask


def block(code): return f'```python\n{code}\n```'
def fails(message='NameError: no', kind='code'): return Failure(kind=kind, message=message)
async def never(*_): raise AssertionError('it must not be called')


# The set

def test_set_is_varied():
    assert len(ROWS) >= 40 and all(set(r) == {'name', 'kind', 'code', 'error', 'mended'} for r in ROWS)
    assert len({r['name'] for r in ROWS}) == len({skeleton(r['code']) for r in ROWS}) == len(ROWS)
    assert all(3 <= len(r['code'].splitlines()) <= 15 for r in ROWS)
    kinds = Counter(r['kind'] for r in ROWS)
    assert set(kinds) == {'name', 'shape', 'import', 'syntax', 'removed', 'type', 'argument', 'refused', 'limit', 'blank'} and min(kinds.values()) >= 4
    assert all(skeleton(read_code(r['mended'])) != skeleton(r['code']) for r in ROWS)


async def test_all_are_found_and_mended(draw, hasty):
    found, done, asked = [], {}, 0
    with judge_server(reply=recorded) as server:
        ask = asker(server)
        for row in ROWS:
            tool = hasty if row['kind'] == 'limit' else draw
            failure = await tool(row['code'])
            assert isinstance(failure, Failure) and row['error'] in failure.message, (row['name'], failure)
            assert failure.kind == ('timeout' if 'Timeout' in row['error'] else 'code')
            found.append(row['name'])
            done[row['name']] = await repair(row['code'], failure, 'How is it?', row['name'], ask, draw)
            assert server.seen[-1]['body']['messages'][0]['role'] == 'system' and failure.message in said(server.seen[-1]['body'])
        asked = len(server.seen)
    assert len(found) == len(ROWS) == asked
    assert [name for name, d in done.items() if not d.mended] == []
    assert all(d.code == read_code(BY_NAME[n]['mended']) and [r.outcome for r in d.rounds] == ['it draws'] for n, d in done.items())


# What the model reads

def test_talk_holds_all_that_is_needed():
    system, user = repair_talk(GOOD, fails('KeyError: 3 (line 1)'), 'How many boats are there?', 'Boats by year')
    for part in (GOOD, 'KeyError: 3 (line 1)', 'How many boats are there?', 'Boats by year'): assert part in user.text
    for part in ('plt', 'sns', 'no files', 'no network', 'plt.show', '```python'): assert part in system.text
    assert len(system.text) < 800 and len(repair_talk(GOOD, fails(), 'x'*100_000, '')[1].text) < 3000


def test_code_with_fences_stays_whole():
    code = "plt.text(0, 0, '''\n```\ninner\n```\n''')"
    (_, found), = fenced(repair_talk(code, fails(), '', '')[1].text)
    assert found == code


async def test_second_round_sees_the_first(draw):
    failure, half = await draw(OLD['code']), read_code(OLD['mended']).replace('concat', 'concatenate')
    with judge_server() as server:
        server.plan += [block(half), OLD['mended']]
        done = await repair(OLD['code'], failure, 'q', 'a', asker(server), draw)
        first, second = (s['body']['messages'] for s in server.seen)
    assert done.mended and len(done.rounds) == 2 and "no attribute 'concatenate'" in done.rounds[0].outcome
    assert done.rounds[0].code == half and done.code == done.rounds[1].code == read_code(OLD['mended'])
    assert second[:2] == first and [m['role'] for m in second] == ['system', 'user', 'assistant', 'user']
    assert half in second[2]['content'] and "no attribute 'concatenate'" in second[3]['content']
    assert all(r.seconds > 0 for r in done.rounds) and isinstance(done.result, Picture)


async def test_syntax_error_of_the_reply_goes_back(draw):
    ask = replies('```python\nplt.plot([1, 2)\n```', block(GOOD))
    done = await repair(TYPO['code'], await draw(TYPO['code']), '', '', ask, draw)
    assert done.mended and 'SyntaxError' in done.rounds[0].outcome and 'SyntaxError' in ask.seen[1][0][-1].text


# How it ends

async def ended(plan, draw, **how):
    "A repair by a server that behaves as planned, and how often it was asked."
    with judge_server() as server:
        server.plan += plan
        failure = await draw(TYPO['code'])
        done = await repair(TYPO['code'], failure, 'q', 'a', asker(server, **how), draw)
        assert done.code == TYPO['code'] and done.result == failure and not done.mended
        return done, len(server.seen)


@pytest.mark.parametrize('plan, reason', [
    (['500'], 'status 500'), (['drop'], 'no chat server answers'), (['html'], 'no chat completion'), (['hang'], 'took too long'),
    (['401'], 'refused the key'), (['garbage'], 'no code'), (['I can not see what is wrong, sorry.'], 'no code'), ([''], 'no code'),
    (['<think>I wonder about plt.plot([1])'], 'no code'), (['```python\n```'], 'no code'),
    ([block(TYPO['code'] + '\n\n# all good')], 'same code'),
])
async def test_one_bad_reply_ends_it(draw, plan, reason):
    done, asked = await ended(plan, draw, seconds=1 if plan == ['hang'] else 20)
    assert asked == len(done.rounds) == 1 and reason in done.reason and done.reason == done.rounds[0].outcome


async def test_own_wrong_code_again_ends_it(draw):
    wrong = 'plt.plott([1])'
    done, asked = await ended([block(wrong), block(wrong + '  # now it works'), block(GOOD)], draw)
    assert asked == 2 and 'same code' in done.reason and done.rounds[1].code.startswith(wrong)


async def test_rounds_are_counted(draw):
    wrong = [block(f'plt.wrong{k}()') for k in range(4)]
    done, asked = await ended(wrong, draw)
    assert asked == 2 and [r.code for r in done.rounds] == ['plt.wrong0()', 'plt.wrong1()'] and 'wrong1' in done.reason
    failure = fails()
    ask = replies(*wrong[:3], block(GOOD))
    assert len((await repair('x = 1', failure, '', '', ask, draw, rounds=4)).rounds) == 4
    none = await repair('x = 1', failure, '', '', never, never, rounds=0)
    assert (none.result, none.rounds) == (failure, []) and none.reason


async def test_a_reply_that_is_cut_off_is_not_drawn(draw):
    async def ask(messages, seed): return Completion(text='```python\nplt.plot([1])\nplt.pl', finish_reason='length')
    done = await repair(TYPO['code'], fails(), '', '', ask, never)
    assert 'cut off' in done.reason
    async def late(messages, seed): return Completion(text=block(GOOD) + '\nAs you can s', finish_reason='length')
    assert (await repair(TYPO['code'], fails(), '', '', late, draw)).mended


@pytest.mark.parametrize('kind', ['unavailable', 'unsupported', 'not_found', 'network', 'dependency', 'internal'])
async def test_no_model_is_asked_when_code_is_not_to_blame(kind):
    done = await repair(GOOD, fails('no sandbox here', kind), '', '', never, never)
    assert done.result.kind == kind and 'no sandbox here' in done.reason and kind not in MENDABLE


async def test_a_sandbox_that_goes_away_ends_it():
    closed = Sandbox(workers=1)
    closed.close()
    ask = replies(block(GOOD), block(GOOD + '\nplt.title("x")'))
    done = await repair(TYPO['code'], fails(), '', '', ask, CodeTool(closed))
    assert len(ask.seen) == 1 and 'closed' in done.reason and done.code == TYPO['code']


async def test_callables_that_break_are_failures(draw):
    async def breaks(*_): raise RuntimeError('out of order')
    async def answers_nothing(*_): return None
    for ask, tool in ((breaks, never), (answers_nothing, never), (replies(block(GOOD)), breaks), (replies(block(GOOD)), answers_nothing)):
        done = await repair(TYPO['code'], fails(), '', '', ask, tool)
        assert done.result == fails() and re.search('RuntimeError: out of order|answered with NoneType', done.reason)


async def test_seeds_repeat_and_differ_by_round(draw):
    asks = [replies(block('plt.no()'), block(GOOD)) for _ in range(3)]
    for ask, seed in zip(asks, (7, 7, 8), strict=True): await repair('x', fails(), '', '', ask, draw, seed=seed)
    first, again, other = ([seed for _, seed in ask.seen] for ask in asks)
    assert first == again != other and len(set(first + other)) == 4


async def test_cancelling_goes_through_and_hangs_up(draw):
    with judge_server() as server:
        server.plan += ['hang']
        task = asyncio.create_task(repair(TYPO['code'], fails(), '', '', asker(server), never))
        while not server.now: await asyncio.sleep(.02)      # noqa: ASYNC110
        task.cancel()
        with pytest.raises(asyncio.CancelledError): await task
        for _ in range(100):
            if not server.now: break
            await asyncio.sleep(.05)
        assert server.now == 0


async def test_cancelling_while_it_draws():
    begun = asyncio.Event()
    async def slow(code): begun.set(); await asyncio.sleep(60)
    task = asyncio.create_task(repair(TYPO['code'], fails(), '', '', replies(block(GOOD)), slow))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError): await task


# Code out of replies

P = 'x = [1, 2]\n\nfor v in x:\n    plt.axvline(v)'

@pytest.mark.parametrize('reply, code', [
    (block(P), P), (f'```\n{P}\n```', P), (f'~~~py\n{P}\n~~~', P), (f'````python\n{P}\n````', P), (f'```Python title="a.py"\n{P}\n```', P),
    (P, P), (f'```python\n{P}', P), (f'Text.\n\n   ```python\n   {P.replace(chr(10), chr(10) + "   ")}\n   ```\nMore.', P),
    (f'Sure! Here it is:\n{P}\nHope it helps!', P), (f'Sure\n{P}\nDone', P),
    (f'<think>maybe\n{block("plt.no()")}\n</think>\n{block(P)}', P), (f'thinking aloud {block("plt.no()")}</think>{block(P)}', P),
    (f'{block("plt.old()")}\nbetter:\n{block(P)}', P), (f'{block(P)}\nI changed:\n{block("plt.axvline(y)")}', P),
    (f'{block(P)}\nIt prints\n```\n3 items\n```', P), (f'{block(P)}\nIt prints\n```\n[1, 2]\n```', P), (f'```bash\npip install seaborn\n```\n{block(P)}\n```\nsales\n```', P),
    ("<imgen>{'source': 'code', 'description': 'A', 'params': {'code': 'plt.plot([1])'}}</imgen>", 'plt.plot([1])'),
    ("```\n<imgen>{'source': 'code', 'description': 'A', 'params': {'code': 'plt.plot([1])'}}</imgen>\n```", 'plt.plot([1])'),
    ('', ''), ('Sorry.', ''), ('<think>```python\nplt.a()\n```', ''), ('```\nhello there\n```', ''), ('Use f(x) = x, then plot.', ''),
])
def test_read_code(reply, code): assert read_code(reply) == code


def test_read_code_of_a_reply_that_was_cut():
    assert read_code(f'{block(P)}\nand\n```python\nplt.plot(', whole=False) == P
    assert read_code(f'```python\n{P}', whole=False) == read_code(P, whole=False) == ''


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(['```', '~~~', 'python\n', '\n', 'plt.plot([1])', '    ', 'x = (', '<think>', '</think>', '<imgen>{', 'Sure', "'", '\\', '\0', '\ud800', 'for a in b:', ')']), max_size=25).map(''.join) | st.text(max_size=60))
def test_reading_never_raises_and_invents_nothing(reply):
    for whole in (True, False):
        code = read_code(reply, whole)
        assert isinstance(code, str) and all(line.strip() in reply for line in code.splitlines())
        skeleton(code), stands_alone(code), syntax(code)


def test_deep_and_long_replies_end():
    deep = ['plt.plot(' + '+'.join(['1']*n) + ')' for n in (100, 300, 600, 900, 2000, 6000)]
    assert all(isinstance(skeleton(code), str) for code in deep) and skeleton('('*5000) and not syntax('plt.a(' + '('*5000)
    assert unfenced('word and word\n'*100_000) == '' and read_code('`'*50_000) == '' and read_code('```\n'*20_000) == ''


# The same numbers

SALES = 'v = {"Jan": 3, "Feb": 5, "Mar": 4}\nplt.bar(list(v), list(v.values()))'
LINES = 'plt.plot([2020, 2021, 2022], [1, 4, 2], label="wins")\nplt.plot([2020, 2021, 2022], [2, 3, 1], label="draws")'

@pytest.mark.parametrize('old, new', [
    (SALES, SALES + '\nplt.title("Sales"); plt.ylabel("EUR"); plt.xticks(rotation=45); plt.grid(axis="y")'),
    (SALES, 'v = {"Mar": 4, "Feb": 5, "Jan": 3}\nfig, ax = plt.subplots(figsize=(8, 3))\nax.barh(list(v), list(v.values()), height=.5)'),
    (SALES, SALES + '\nplt.bar_label(plt.gca().containers[0]); plt.show()'), (SALES, SALES + '\nplt.savefig("a.png"); plt.close()'),
    ('plt.bar(range(3), [3, 5, 4])', 'plt.bar(range(3), [3, 5, 4]); plt.xticks(range(3), ["Jan", "Feb", "Mar"])'),
    (SALES, 'plt.bar(range(3), [3, 5, 4]); plt.xticks(range(3), ["JAN", "Feb", "Mar"])'),
    (LINES, LINES + '\nplt.legend(); plt.xlabel("Year"); plt.xticks([2020, 2021, 2022])'),
    (LINES.replace(', label="wins"', '').replace(', label="draws"', ''), LINES + '\nplt.legend()'),
    ('plt.imshow(np.eye(3))', 'plt.imshow(np.eye(3), cmap="Blues"); plt.colorbar(label="share")'),
    ('plt.pie([3, 1], labels=["a", "b"])', 'plt.pie([3, 1], labels=["a", "b"], autopct="%d%%", startangle=90); plt.legend()'),
    ('plt.scatter([1, 2], [3, 4], c=[5, 6])', 'plt.scatter([1, 2], [3, 4], c=[5, 6], s=90); plt.colorbar()'),
    ('plt.plot(pd.date_range("2024-01-01", periods=3), [1, 2, 3])', 'plt.plot(pd.date_range("2024-01-01", periods=3), [1, 2, 3]); plt.gcf().autofmt_xdate()'),
    *[(D.format('%d %b'), D.format('%d %B')) for D in ['import matplotlib.dates as md\nplt.plot(pd.date_range("2024-01-01", periods=3), [1, 2, 3])\nplt.gca().xaxis.set_major_formatter(md.DateFormatter("{}"))']],
    ('sns.heatmap([[1, 2], [3, 4]])', 'sns.heatmap([[1, 2], [3, 4]], annot=True, cmap="mako")'),
    ('max = list = 3\nplt.plot([1, 2])', 'plt.plot([1, 2])\nplt.title("t")'),
])
async def test_a_clearer_chart_is_no_change(draw, old, new):
    a, b = await plotted(old, draw), await plotted(new, draw)
    assert a and b and change(a, b) == ''


@pytest.mark.parametrize('old, new, why', [
    (SALES, SALES.replace('5', '5.01'), 'values or names'), (SALES, SALES.replace('"Feb": 5, ', ''), '2 numbers instead of 3'),
    (SALES, 'v = {"Feb": 3, "Jan": 5, "Mar": 4}\nplt.bar(list(v), list(v.values()))', 'names'),
    (SALES, SALES + '\nplt.axhline(4)', 'numbers instead'), (LINES, LINES.replace('2021', '2019'), 'places'),
    (LINES, LINES.replace('wins', 'x').replace('draws', 'wins').replace('"x"', '"draws"'), 'labels'),
    (LINES, LINES.replace('4, 2]', '2, 4]'), 'places'),
    ('plt.bar(["18-29", "30-44"], [1, 2])', 'plt.bar(["30-44", "18-29"], [1, 2])', 'names'),
    ('plt.pcolormesh([0, 1, 2], [0, 1], [[3, 4]])', 'plt.pcolormesh([0, 1, 3], [0, 1], [[3, 4]])', 'places'),
    ('plt.pie([3, 1])', 'plt.pie([3, 2])', 'values'), ('plt.imshow(np.eye(3))', 'plt.imshow(1 - np.eye(3))', 'values'),
    ('plt.scatter([1, 2], [3, 4], c=[5, 6])', 'plt.scatter([1, 2], [3, 4], c=[6, 5])', 'values'),
    ('plt.scatter([1, 2], [3, 4])', 'plt.scatter([1, 2.5], [3, 4])', 'values'),
    ('plt.fill_between([1, 2], [3, 4])', 'plt.fill_between([1, 2], [3, 5])', 'values'),
    ('plt.stairs([1, 2])', 'plt.stairs([1, 3])', 'values'), ('sns.heatmap([[1, 2], [3, 4]])', 'sns.heatmap([[1, 2], [4, 3]])', 'values'),
    (SALES, SALES + '\nplt.figure().text(0, 0, "note")\nplt.bar([0], [9])', '4 numbers'),
    (SALES, SALES + '\nraise SystemExit', 'new chart can not be read'), (SALES, 'plt.text(.5, .5, "3, 5, 4")', 'new chart can not be read'),
    ('plt.figure().add_subplot(projection="3d").scatter([1], [2], [3])', SALES, 'old chart can not be read'),
])
async def test_other_numbers_are_a_change(draw, old, new, why):
    if 'read' in why: assert isinstance(await draw(old), Picture) and isinstance(await draw(new), Picture)
    assert why in change(await plotted(old, draw), await plotted(new, draw))


# Improving

CLEAR = SALES + '\nplt.title("Sales")\nplt.ylabel("EUR")'
async def likes(old, new): return True

async def improved(draw, reply, better=likes, **how):
    old = await draw(SALES)
    done = await improve(SALES, old, 'q', 'a', replies(reply), draw, better, **how)
    if not done.improved: assert (done.code, done.picture) == (SALES, old)
    return done


async def test_improve_through_a_server(draw):
    old, judged = await draw(SALES), []
    async def better(*pair): judged.append(pair); return True
    with judge_server(reply=lambda body: block(CLEAR)) as server:
        done = await improve(SALES, old, 'How are sales?', 'They rise.', asker(server), draw, better)
        seen = await improve(SALES, old, 'How are sales?', 'They rise.', asker(server), draw, better, sees=True)
        blind, with_eyes = (s['body'] for s in server.seen)
    assert done.improved and done.code == CLEAR and done.picture.data == (await draw(CLEAR)).data and judged[0] == (old, done.picture)
    assert 'clearer' in done.tried.outcome and done.tried.seconds > 0 and done.picture.data == seen.picture.data
    assert pictures(blind) == [] and pictures(with_eyes) == [old.data_uri()]
    for part in (SALES, 'How are sales?', 'They rise.'): assert part in said(blind) and part in said(with_eyes)


@pytest.mark.parametrize('answer, why', [(False, 'prefers the old'), (None, 'judge failed'), ('yes', 'prefers the old'), (1, 'prefers the old')])
async def test_in_doubt_the_old_one_stays(draw, answer, why):
    async def better(old, new): return answer
    done = await improved(draw, block(CLEAR), better)
    assert not done.improved and why in done.tried.outcome and done.tried.code == CLEAR


async def test_a_judge_that_breaks_keeps_the_old_one(draw):
    async def breaks(old, new): raise ValueError('no key')
    done = await improved(draw, block(CLEAR), breaks)
    assert not done.improved and 'ValueError: no key' in done.tried.outcome


@pytest.mark.parametrize('reply, why', [
    ('Nice chart!', 'no code'), (block(SALES + '  # fine'), 'same code'), (block(SALES.replace('list(v),', 'list(v.keys()),')), 'same as before'),
    (block(CLEAR.replace('title', 'tittle')), "no attribute 'tittle'"), (block(CLEAR.replace('3', '30')), 'values or names'),
    (block(CLEAR + '\nraise SystemExit'), 'can not be read'), (fails('the server is gone', 'network'), 'the server is gone'),
])
async def test_no_judge_is_asked_about_what_can_not_be_taken(draw, reply, why):
    done = await improved(draw, reply, never)
    assert not done.improved and why in done.tried.outcome


async def test_improving_can_be_cancelled(draw):
    old, begun = await draw(SALES), asyncio.Event()
    async def ponders(*_): begun.set(); await asyncio.sleep(60)
    task = asyncio.create_task(improve(SALES, old, '', '', replies(block(CLEAR)), draw, ponders))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError): await task


async def test_results_survive_json(draw):
    done = await repair(TYPO['code'], await draw(TYPO['code']), '', '', replies(TYPO['mended']), draw)
    assert type(done).model_validate_json(done.model_dump_json()) == done
    new = await improved(draw, block(CLEAR))
    assert type(new).model_validate_json(new.model_dump_json()) == new
    with pytest.raises(ValueError): new.tried.outcome = ''
    assert Round(outcome='x').code == '' and another_talk([], 'a', fails())[0].role == 'assistant'
