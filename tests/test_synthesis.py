"""Synthesis of prompts against a real HTTP server that stands in for two models and errs as they do: every fault has its reason,
a run that is killed repeats nothing, no two runs share a folder, and the costs are the server's own."""
import asyncio, json, os, re, signal, subprocess, sys, time
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from prompt_server import PromptServer

from llmi_kit.chat import Chat, ServerChat
from llmi_kit.data import DataError, check, load_rows, misleading
from llmi_kit.synthesis import GIVE_UP, synthesise
from llmi_kit.synthesis_checks import Reading, Rejection, disagreement, first_object, given_away, question_of
from llmi_kit.synthesis_ledger import Budget, Ledger, read_items
from llmi_kit.synthesis_plan import Plan, Spec, ask_writer, kinds, read_topics
from llmi_kit.writer import UnusableInput

TOPICS = ['Art Nouveau posters', 'volcanoes of Iceland', 'honey bees', 'sourdough bread', 'chess', 'suspension bridges', 'tea ceremonies', 'alpine glaciers',
          'the Silk Road', 'lighthouses', 'coral reefs', 'steam engines']


def chats(server, **how):
    how = dict(retries=3, seconds=20, price_in=.5, price_out=2., max_tokens=300) | how
    return ServerChat(server.url, 'writer', **how), ServerChat(server.url, 'reader', **how)

async def make(server, out, n=12, **how): return await synthesise(how.pop('topics', TOPICS), n, *chats(server), out, **how)
def reasons(done): return Counter(o.rejection.why for o in done.outcomes if o.rejection)
def lines(file): return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    "Five figures take a second: they are drawn for real where a test looks at the report."
    if 'keep_to_the_plan' not in request.node.name: monkeypatch.setattr('llmi_kit.synthesis_report._png', lambda figure: b'')


# A good run

async def test_rows_pass_the_check_and_keep_to_the_plan(tmp_path):
    with PromptServer() as server: done = await make(server, tmp_path/'out', 30, test_share=.2)
    parts = {s: check(tmp_path/'out'/f'{s}.jsonl') for s in ('train', 'test')}
    assert not any(p.problems for p in parts.values()) and sum(len(p.rows) for p in parts.values()) == len(done.kept) >= 28
    topics = {s: {r.extra_info.topic for r in p.rows} for s, p in parts.items()}
    assert topics['test'] and not topics['train'] & topics['test'] and {r.extra_info.split for r in parts['test'].rows} == {'test'}
    plan = Plan(TOPICS, 30, 0, test_share=.2)
    for o in done.kept: assert o.spec == plan.spec(*map(int, o.spec.id.split('.')))
    assert not any(misleading(r) for p in parts.values() for r in p.rows)
    report = (tmp_path/'out'/'report.html').read_text()
    assert str(len(done.kept)) in report and report.count('data:image/png') == 5 and not re.search(r'(src|href|url)[=(]["\']?http', report)


async def test_costs_are_the_servers_own(tmp_path):
    with PromptServer(dict(garbage=.2, wrong_tool=.2)) as server: done = await make(server, tmp_path/'out')
    for step in ('write', 'check'):
        cost, (read, written) = done.costs[step], server.tokens(step)
        assert (cost.tokens_in, cost.tokens_out, cost.calls) == (read, written, sum(r['step'] == step for r in server.answered)) and read
        assert cost.usd == pytest.approx((read*.5 + written*2)/1e6)
    assert f'${done.usd:.4f}' in str(done)


async def test_same_seed_same_rows_whatever_the_order(tmp_path):
    with PromptServer(dict(wrong_tool=.2, repeat=.2)) as server:
        a = await make(server, tmp_path/'a', workers=8)
        b = await make(server, tmp_path/'b', workers=1)
        c = await make(server, tmp_path/'c', seed=1)
    assert (tmp_path/'a'/'train.jsonl').read_bytes() == (tmp_path/'b'/'train.jsonl').read_bytes()
    assert (tmp_path/'a'/'rejected.jsonl').read_bytes() == (tmp_path/'b'/'rejected.jsonl').read_bytes()
    assert a.outcomes == b.outcomes and [o.question for o in a.kept] != [o.question for o in c.kept]


# What models do wrong

@pytest.mark.parametrize('fault, why', [
    ('garbage', 'unreadable'), ('cut', 'unreadable'), ('tool_named', 'given away'), ('wrong_tool', 'tools'), ('wrong_number', 'number'),
    ('script', 'language'), ('nonsense', 'no verdict'), ('refuse', 'refused')])
async def test_each_fault_is_rejected_with_its_reason(tmp_path, fault, why):
    with PromptServer({fault: 1.}) as server: done = await make(server, tmp_path/'out', 4)
    assert not done.kept and reasons(done)[why] >= 9, reasons(done)     # 4 slots, 3 attempts
    told = lines(tmp_path/'out'/'rejected.jsonl')
    assert len(told) == 12 and all(t['why'] and t['detail'] for t in told)
    if why in ('unreadable', 'given away', 'language'): assert not [q for q in server.requests if q['step'] == 'check']     # a rule costs no second call
    assert done.trouble and not (tmp_path/'out'/'train.jsonl').exists()


async def test_a_chart_without_numbers_costs_no_second_call(tmp_path):
    with PromptServer(dict(no_data=1.)) as server: done = await make(server, tmp_path/'out')
    bare = {o.spec.id for o in done.outcomes if o.rejection and o.rejection.why == 'no numbers'}
    assert bare and not bare & {i['spec'] for i in lines(tmp_path/'out'/'items.jsonl') if i['step'] == 'check'}
    assert not any('code' in o.spec.tools for o in done.kept)


async def test_near_duplicates_go_the_first_one_stays(tmp_path):
    spec = lambda o: tuple(map(int, o.spec.id.split('.')))[::-1]
    with PromptServer(dict(repeat=1.)) as server: done = await make(server, tmp_path/'out', 40, topics=['chess', 'bees'])
    twice = [o for o in done.outcomes if o.rejection and o.rejection.why == 'duplicate']
    for o in twice: assert o.similarity >= .85 and any(k.spec.id == o.closest.removeprefix('prompt ') and spec(k) < spec(o) for k in done.kept)
    same = Counter(o.question for o in done.kept)
    assert twice and max(same.values()) == 1


async def test_apart_from_a_file_of_rows(tmp_path):
    with PromptServer() as server:
        first = await make(server, tmp_path/'first', 6)
        second = await make(server, tmp_path/'second', 6, apart_from=[tmp_path/'first'/'train.jsonl'])
    assert len(first.kept) == 6 and any('of train.jsonl' in o.rejection.detail for o in second.outcomes if o.rejection)
    assert not {o.question for o in first.kept} & {o.question for o in second.kept}
    (tmp_path/'bad.jsonl').write_text('{')
    with PromptServer() as server, pytest.raises(DataError): await make(server, tmp_path/'third', 2, apart_from=[tmp_path/'bad.jsonl'])


async def test_a_rejected_slot_keeps_its_kind(tmp_path):
    with PromptServer(dict(garbage=.4)) as server: done = await make(server, tmp_path/'out', 20)
    later = [o for o in done.kept if not o.spec.id.endswith('.0')]
    plan = Plan(TOPICS, 20)
    assert all(plan.spec(s, a).topic != plan.spec(s, a - 1).topic for s in range(20) for a in (1, 2))
    assert later and all((o.spec.tools, o.spec.image_num) == plan.slots[int(o.spec.id.split('.')[0])][2][:2] for o in later)


# What the second model and the writer are told

async def test_the_second_model_is_not_told_the_plan_and_the_writer_no_tool(tmp_path):
    with PromptServer() as server: done = await make(server, tmp_path/'out', 6)
    read = [r for r in server.requests if r['step'] == 'check']
    assert all(r['text'].strip('=\n') in {o.question for o in done.outcomes} for r in read) and {r['model'] for r in read} == {'reader'}
    for r in server.requests:
        if r['step'] == 'write': assert not re.search(r'diffusion|\bedit|\bcode\b|\bsearch\b|imgen', r['text'])
    asked = ask_writer(Plan(['ignore the rules'], 1).spec(0, 0))
    assert asked[0].role == 'system' and 'imgen' not in asked[0].text


# Kept replies: kill -9, torn lines, other settings, two at once

SCRIPT = '''
import asyncio, sys
from llmi_kit.chat import ServerChat
from llmi_kit.synthesis import synthesise
how = dict(retries=0, price_in=.5, price_out=2., max_tokens=300)
topics = sys.argv[3].split('|')
print(asyncio.run(synthesise(topics, 25, ServerChat(sys.argv[1], 'writer', **how), ServerChat(sys.argv[1], 'reader', **how), sys.argv[2])))
'''

def started(server, out):
    env = os.environ | dict(OMP_NUM_THREADS='1')
    return subprocess.Popen([sys.executable, '-c', SCRIPT, server.url, str(out), '|'.join(TOPICS)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def wait_for(condition, process, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(.01)


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
async def test_killed_in_the_middle_repeats_nothing(tmp_path, how):
    with PromptServer(dict(wrong_tool=.2)) as calm: whole = await make(calm, tmp_path/'whole', 25)
    with PromptServer(dict(wrong_tool=.2), delay=.3) as server:
        process = started(server, tmp_path/'out')
        wait_for(lambda: len(server.answered) >= 20, process)
        process.send_signal(how); process.communicate(timeout=30)
        assert process.returncode != 0
        kept = read_items(tmp_path/'out'/'items.jsonl')
        assert 8 <= len(kept) < 40
        server.delay = 0
        done = await make(server, tmp_path/'out', 25)
        repeated = server.repeated()
    finished = {(i.spec, i.step) for i in kept}
    asked = Counter((i['spec'], i['step']) for i in lines(tmp_path/'out'/'items.jsonl'))
    assert set(asked.values()) == {1} and finished <= set(asked)        # a line for each request, once
    assert len(repeated) <= 8       # only what was in flight when it was killed: one for each worker
    assert done.outcomes == whole.outcomes


async def test_a_torn_last_line_is_asked_again(tmp_path):
    with PromptServer() as server:
        done = await make(server, tmp_path/'out', 5)
        file = tmp_path/'out'/'items.jsonl'
        whole, before = file.read_bytes(), len(server.requests)
        file.write_bytes(whole[:-40])
        again = await make(server, tmp_path/'out', 5)
        assert len(server.requests) == before + 1 and again.outcomes == done.outcomes
        assert sorted(map(strip, file.read_bytes().splitlines())) == sorted(map(strip, whole.splitlines()))
        file.write_bytes(b'{"spec"\n' + file.read_bytes())
        with pytest.raises(UnusableInput, match='line 1 is damaged'): await make(server, tmp_path/'out', 5)

def strip(line): return json.dumps({k: v for k, v in json.loads(line).items() if k != 'seconds'})


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_cut_of_the_file_is_read(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('cut')
    whole = ''.join(f'{{"spec":"{i}.0","step":"write","text":"Übung {i}"}}\n' for i in range(4)).encode()
    at = data.draw(st.integers(0, len(whole)))
    (folder/'items.jsonl').write_bytes(whole[:at])
    assert len(read_items(folder/'items.jsonl')) == whole[:at].count(b'\n') == len(read_items(folder/'items.jsonl'))


async def test_other_settings_and_two_at_once(tmp_path):
    with PromptServer(delay=.05) as server:
        first = asyncio.create_task(make(server, tmp_path/'out', 6))
        while not server.requests: await asyncio.sleep(.01)     # noqa: ASYNC110
        with pytest.raises(UnusableInput, match='another run is writing into out'): await make(server, tmp_path/'out', 6)
        await first
        before = len(server.requests)
        for how, why in ((dict(n=7), 'n was 6 and is 7'), (dict(seed=3), 'seed was 0'), (dict(topics=['x']), 'topics'), (dict(test_share=.5), 'test_share')):
            with pytest.raises(UnusableInput, match=why): await make(server, tmp_path/'out', **dict(n=6) | how)
        writer, reader = chats(server)
        writer.model = 'another'
        with pytest.raises(UnusableInput, match='writer was "writer" and is "another"'): await synthesise(TOPICS, 6, writer, reader, tmp_path/'out')
        assert len(server.requests) == before
        await make(server, tmp_path/'out', 6, workers=2, max_calls=1000)     # these may change
    with PromptServer() as moved: await make(moved, tmp_path/'out', 6)      # and so may the address
    assert not moved.requests


async def test_a_folder_of_somebody_elses_rows_is_left_alone(tmp_path):
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'train.jsonl').write_text('precious'); (tmp_path/'file').write_text('')
    with PromptServer() as server:
        with pytest.raises(UnusableInput, match='train.jsonl'): await make(server, tmp_path/'mine')
        with pytest.raises(UnusableInput, match='can not be used'): await make(server, tmp_path/'file')
    assert (tmp_path/'mine'/'train.jsonl').read_text() == 'precious' and not server.requests


# What servers do wrong

async def test_busy_broken_and_hanging_servers(tmp_path):
    with PromptServer({'429': .3, '500': .1, 'hang': .15}) as server:
        done = await synthesise(TOPICS, 10, *chats(server, seconds=2.), tmp_path/'out')
        assert {r['status'] for r in server.requests} >= {200, 429, 500}
        failed = len(done.failed)
        assert done.failed and all(o.failure.kind == 'timeout' for o in done.failed)
        waiting = {o.spec.id.split('.')[0]: o.spec.id for o in done.failed}     # their slots try nothing else in this run
        assert all(o.spec.id <= waiting.get(o.spec.id.split('.')[0], o.spec.id) for o in done.outcomes)
        again = await synthesise(TOPICS, 10, *chats(server), tmp_path/'out')
    assert not again.failed and len(again.kept) >= 9 and again.costs['write'].failures + again.costs['check'].failures == failed
    assert not server.repeated()


async def test_a_server_that_breaks_down_and_comes_back(tmp_path):
    with PromptServer() as server:
        server.down = True
        done = await synthesise(TOPICS, 40, *chats(server, retries=0), tmp_path/'out')
        assert GIVE_UP <= len(server.requests) < 40 and not done.kept and 'times in a row' in done.trouble and 'run the same again' in done.trouble
        assert (tmp_path/'out'/'report.html').exists() and {t['why'] for t in lines(tmp_path/'out'/'rejected.jsonl')} == {'failed: network'}
        server.down = False
        done = await make(server, tmp_path/'out', 40)
    assert len(done.kept) > 35 and not done.trouble and done.costs['write'].failures >= GIVE_UP
    assert not re.search('failed', str(done))


async def test_no_server_at_all(tmp_path):
    with PromptServer() as server: pass
    started = time.monotonic()
    done = await make(server, tmp_path/'out')
    assert 'no chat server answers' in done.trouble and time.monotonic() - started < 5 and not lines(tmp_path/'out'/'rejected.jsonl')


async def test_a_chat_that_raises_is_a_failure(tmp_path):
    class Broken(Chat):
        async def _write(self, *args, **how): raise RuntimeError('out of order')
    with PromptServer() as server: done = await synthesise(TOPICS, 3, Broken(), chats(server)[1], tmp_path/'out')
    assert 'out of order' in done.trouble and len(done.failed) == 3


# Budgets

async def test_a_budget_of_calls(tmp_path):
    with PromptServer() as server:
        done = await make(server, tmp_path/'out', 20, max_calls=9)
        assert len(server.requests) == 9 and '9 calls' in done.stopped and (tmp_path/'out'/'report.html').exists()
        assert not done.trouble or not done.kept
        done = await make(server, tmp_path/'out', 20, max_calls=9)
        assert len(server.requests) == 9
        done = await make(server, tmp_path/'out', 20)
    assert len(done.kept) >= 19 and not server.repeated()


@pytest.mark.parametrize('usd', [.004, .01])
async def test_a_budget_in_usd_is_never_overdrawn(tmp_path, usd):
    with PromptServer(delay=.01) as server:
        await make(server, tmp_path/'tiny', 40, max_cost=.0001)
        assert not server.requests      # not even one call is sure to fit
        done = await make(server, tmp_path/'out', 40, max_cost=usd)
    read, written = (a + b for a, b in zip(server.tokens('write'), server.tokens('check'), strict=True))
    assert (read*.5 + written*2)/1e6 == pytest.approx(done.usd) and usd*.2 < done.usd <= usd and 'does not cover' in done.stopped


async def test_a_budget_waits_for_what_is_out(tmp_path):
    with Ledger(tmp_path/'out', {}) as ledger:
        budget = Budget(ledger, max_cost=1.)
        async def call():
            async with budget.hold(.6) as bill:
                if not bill.refused: await asyncio.sleep(.01); bill.paid(.1)
                return not bill.refused
        assert sum(await asyncio.gather(*(call() for _ in range(9)))) == 5 and budget.usd == pytest.approx(.5) and not budget.out


# Pictures of the user's

@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path/'pictures'; folder.mkdir()
    for i, colour in enumerate(['red', 'green', 'blue', 'orange']): Image.new('RGB', (1400, 700), colour).save(folder/f'{colour}_barn_{i}.png')
    (folder/'broken.png').write_bytes(b'no picture')
    return folder


@pytest.mark.parametrize('sees', [True, False])
async def test_multimodal_rows(tmp_path, pictures, sees):
    with PromptServer(sees=sees) as server: done = await make(server, tmp_path/'out', 30, images=pictures, test_share=.3)
    rows = [r for s in ('train', 'test') for r in load_rows(tmp_path/'out'/f'{s}.jsonl')]
    seeing = [r for r in rows if r.images]
    assert 6 <= len(seeing) <= 12 and {r.data_source for r in seeing} == {'interleaved_mm'} and all(max(p.width, p.height) == 1024 for r in seeing for p in r.images)
    assert any(r.extra_info.tools == ('edit',) for r in seeing) and all('barn' in t for r in seeing for t in r.extra_info.titles)
    assert done.left_out == ('broken.png',) and any('[image 0: ' in r['text'] for r in server.answered)
    assert bool(sum(r['pictures'] for r in server.answered)) == sees      # titles only, for a server that takes no images
    of = {s: {p.sha256 for r in rows for p in r.images if r.extra_info.split == s} for s in ('train', 'test')}
    assert not of['train'] & of['test']


async def test_pictures_that_are_none(tmp_path):
    (tmp_path/'empty').mkdir()
    with PromptServer() as server:
        for folder, why in (('nowhere', 'does not exist'), ('empty', 'no readable picture')):
            with pytest.raises(UnusableInput, match=why): await make(server, tmp_path/'out', images=tmp_path/folder)
    assert not (tmp_path/'out').exists()


# Input that can't be meant

@pytest.mark.parametrize('data, why', [
    (None, 'No such file'), (b'', 'no topic'), (b'# remark\n\n', 'no topic'), ('Tübingen'.encode('latin-1'), 'UTF-8'), (b'\xff\xfe\x00b', 'UTF-8'),
    (b'fine\n' + b'x'*300, 'line 2'), (b'a\x00b', 'no text')])
def test_topic_files(tmp_path, data, why):
    file = tmp_path/'topics.txt'
    if data is not None: file.write_bytes(data)
    with pytest.raises(UnusableInput, match=why): read_topics(file)


def test_topic_files_that_are_fine(tmp_path):
    (tmp_path/'t').write_bytes('\ufeff  bees \r\n# no\r\nBEES\r\n蜜蜂\u200d\r\n'.encode())
    assert read_topics(tmp_path/'t') == ['bees', '蜜蜂\u200d']


async def test_arguments_that_cannot_be_meant(tmp_path):
    with PromptServer() as server:
        writer, reader = chats(server)
        for how, why in ((dict(n=0), 'at least one'), (dict(validator=writer), 'its own prompts'), (dict(test_share=1.), 'test share'),
                         (dict(topics=['one'], test_share=.5), 'two topics'), (dict(topics=[]), 'no topic')):
            with pytest.raises(UnusableInput, match=why):
                await synthesise(**dict(topics=TOPICS, n=4, writer=writer, validator=reader, out=tmp_path/'out') | how)
        free = ServerChat(server.url, 'a'), ServerChat(server.url, 'b')
        with pytest.raises(UnusableInput, match='needs prices'): await synthesise(TOPICS, 4, *free, tmp_path/'out', max_cost=1.)
        assert not (tmp_path/'out').exists() and not server.requests
        done = await synthesise(TOPICS, 2, writer, writer, tmp_path/'out', same_model=True)
    assert done.kept


# Rules

SPEC = Spec(id='0.0', topic='the code of Hammurabi', tools=('search',), image_num=1, voice='', shape='', seed=0)

@pytest.mark.parametrize('question, topic, found', [
    ('Use the search engine.', 'bees', ['search']), ('Our research on searchlights', 'bees', []), ('What does the Code say?', 'the code of Hammurabi', []),
    ('Write code about the code.', 'the edit war', ['code']), ('Draw it with stable diffusion', 'gas diffusion', []), ('An <IMGEN> or < image >', 'x', ['<IMGEN', '< image', 'IMGEN']),
    ('AI-generated art', 'x', ['AI-generated']), ('old gardening tools', 'x', []), ('your tools', 'x', ['your tools']), ('Photoshopped', 'x', ['Photoshopped'])])
def test_giveaways(question, topic, found): assert given_away(question, topic) == found


def test_the_plan_s_kinds_are_sound():
    for with_pictures in (True, False):
        assert sum(kinds(with_pictures).values()) == pytest.approx(1)
        assert {-1, 0, 99, 1, 2} <= {k.image_num for k in kinds(with_pictures)} and all(k.given or k.tools != ('edit',) for k in kinds(with_pictures))


@given(st.text(), st.booleans())
def test_any_reply_gives_a_prompt_or_a_reason(text, cut):
    for reply in (text, json.dumps(dict(question=text)), '{"question": ' + text):
        found = question_of(reply, SPEC, cut)
        assert isinstance(found, (str, Rejection)) and (not isinstance(found, str) or 12 <= len(found) <= 1500)


@given(st.text(alphabet='{}[]",:\\n ab1', max_size=200))
def test_any_braces_are_read(text): assert first_object(text, 'a') is None or 'a' in first_object(text, 'a')


@pytest.mark.parametrize('planned, read, ok', [(0, 99, True), (99, 0, True), (0, 0, True), (-1, 0, False), (0, -1, False), (2, 99, False), (99, 1, False), (2, 3, False), (0, 2, False)])
def test_numbers_of_pictures(planned, read, ok):
    reading = Reading(solvable=True, tools=['search'], image_num=read, names_tool=False)
    assert (disagreement(SPEC.model_copy(update=dict(image_num=planned)), reading) is None) == ok


def test_without_tools_some_is_not_free():
    bare = SPEC.model_copy(update=dict(tools=(), image_num=0))
    assert disagreement(bare, Reading(solvable=True, tools=[], image_num=99, names_tool=False)).why == 'number'


# The command

def command():
    from llmi_kit.cli import data
    return any(c.name == 'synthesise' or getattr(c.callback, '__name__', '') == 'synthesise' for c in data.registered_commands)

@pytest.mark.skipif(not command(), reason='`llmi data synthesise` is not there yet')
def test_the_command(tmp_path, monkeypatch):
    from typer.testing import CliRunner
    from llmi_kit.cli import app
    (tmp_path/'topics.txt').write_text('\n'.join(TOPICS))
    run = lambda *words: CliRunner().invoke(app, ['data', 'synthesise', *map(str, words)])
    with PromptServer(dict(garbage=.1)) as server:
        line = f'server = {server.url}\nprice_in = 1\nprice_out = 2\n'
        (tmp_path/'settings.ini').write_text(f'[llmi_kit]\nprofile = one\n[cpu]\n[one]\nbackbone = writer\n{line}[two]\nbackbone = reader\n{line}')
        monkeypatch.setenv('LLMI_SETTINGS', str(tmp_path/'settings.ini'))
        asked = tmp_path/'topics.txt', '--out', tmp_path/'out', '--n', 8
        done = run(*asked, '--validator', 'two', '--test-share', .25, '--max-cost', 1)
        assert done.exit_code == 0 and ' of 8 prompts' in done.output and 'report.html' in done.output
        for words, code, why in (
                (asked, 2, '--validator'), ((*asked, '--validator', 'three'), 2, 'no profile'), ((*asked, '--validator', 'two', '--seed', 4), 2, 'other settings'),
                ((tmp_path/'none.txt', '--out', tmp_path/'x', '--same-model'), 2, 'none.txt'),
                ((*asked[:2], tmp_path/'y', '--same-model', '--apart-from', tmp_path/'none.jsonl'), 2, 'none.jsonl')):
            failed = run(*words)
            assert failed.exit_code == code and why in failed.output and 'Traceback' not in failed.output, failed.output
        assert not (tmp_path/'x').exists()
    down = run(*asked[:2], tmp_path/'z', '--same-model')
    assert down.exit_code == 1 and 'no chat server answers' in down.output
