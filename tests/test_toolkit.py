"All tags of a document: order in time, faults, cache, limits. Real servers, a real sandbox, real processes."
import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from PIL import Image

from llmi_kit.config import Store, load_profile
from llmi_kit.document import PARAMS, Document, Params, Words, parse
from llmi_kit.picture import Failure, Origin, Picture
from llmi_kit.sandbox import Sandbox
from llmi_kit.toolkit import CodeTool, Toolkit, attempts, failure_table, resolve, tool_table


def tag(source, **params):
    return '<imgen>' + repr(dict(source=source, description='d', params=params)) + '</imgen>\n'


def search(query): return tag('search', query=query)
def edit(n, prompt='p'): return tag('edit', img_index=n, prompt=prompt)


def swatch(*what):
    "A small picture whose colour follows from `what`."
    return Picture.from_pil(Image.new('RGB', (4, 4), tuple(hashlib.sha256(repr(what).encode()).digest()[:3])), Origin(tool='test'))


class Swatches:
    "A tool that takes the seconds that its request says, notes every call, and fails when it is told to."
    def __init__(self, key='swatches', **kinds): self.key, self.kinds, self.calls, self.now, self.most = key, kinds, [], 0, 0

    async def __call__(self, query=None, prompt=None, image=None, seed=0):
        said = query or prompt
        self.calls.append(said)
        self.now += 1
        self.most = max(self.most, self.now)
        try: await asyncio.sleep(float(said.partition('=')[2] or 0))
        finally: self.now -= 1
        if said in self.kinds: return Failure(kind=self.kinds[said], message=f'no {said}')
        return swatch(said, seed, image and image.sha256)


def kit(store=None, seconds=20, workers=8, **kinds):
    tool = Swatches(**kinds)
    return Toolkit(dict(search=tool, edit=tool), store, seconds, workers), tool


# Order in time

async def test_an_edit_starts_the_moment_its_picture_exists():
    toolkit, _ = kit()
    done = await resolve(parse(search('slow=.8') + search('fast=.1') + edit(1, 'e=.1') + edit(2, 'f=.1')), toolkit)
    slow, fast, first, second = (t.call for t in done.tags)
    assert second.finished < slow.finished      # two edits one after the other, while the slow search still runs
    assert fast.finished <= first.started < fast.finished + .2 and first.finished <= second.started
    assert all(isinstance(t.result, Picture) for t in done.tags)


async def test_a_failed_picture_fails_what_is_made_from_it():
    toolkit, tool = kit(bad='not_found')
    done = await resolve(parse(search('bad') + edit(0, 'a') + edit(1, 'b') + search('good')), toolkit)
    assert [getattr(t.result, 'kind', 'picture') for t in done.tags] == ['not_found', 'dependency', 'dependency', 'picture']
    assert 'no bad' in done.tags[2].result.message and sorted(tool.calls) == ['bad', 'good']


async def test_what_can_not_be_called_is_a_failure_with_a_reason():
    toolkit, _ = kit()
    done = await resolve(parse(tag('video', prompt='p') + tag('code', code='x') + edit(0, 'a') + edit(9) + '<imgen>', n_inputs=1), toolkit)
    kinds = [t.result.kind for t in done.tags]
    assert kinds == ['invalid', 'unavailable', 'dependency', 'invalid', 'invalid']
    assert 'video' in done.tags[0].result.message and "no tool 'code'" in done.tags[1].result.message
    assert 'inputs' in done.tags[2].result.message and 'not closed' in done.tags[4].result.message


async def test_given_pictures_are_edited():
    toolkit, _ = kit()
    given = swatch('given')
    done = await resolve(parse(edit(0) + edit(1)), toolkit, inputs=[given])
    assert done.inputs == [given] and all(isinstance(t.result, Picture) for t in done.tags)
    again = Document.model_validate_json(done.model_dump_json())
    assert again == done and (await resolve(again, Toolkit({}))).tags == done.tags     # pictures that are there stay


# Calls: once, seeded, limited

async def test_equal_requests_run_once():
    toolkit, tool = kit()
    done = await resolve(parse(search('same=.1') * 3 + edit(0, 'x') + edit(2, 'x') + search('other')), toolkit)
    assert sorted(tool.calls) == ['other', 'same=.1', 'x']
    assert len({t.result.sha256 for t in done.tags[:3]}) == 1 and done.tags[3].result == done.tags[4].result
    assert [t.call.cached for t in done.tags] == [False, True, True, False, True, False]


async def test_seeds_follow_from_requests_not_places():
    toolkit, _ = kit()
    async def pictures(answer, seed=0): return [t.result.sha256 for t in (await resolve(parse(answer), toolkit, seed=seed)).tags]
    one, two = await pictures(search('a') + search('b'))
    assert one != two and await pictures(search('new') + search('b') + search('a')) == [*await pictures(search('new')), two, one]
    assert (await pictures(search('a'), seed=1)) != [one] == await pictures(search('a'))


@pytest.mark.parametrize('workers', [3, dict(search=3)])
async def test_the_limit_of_a_tool_holds_over_documents(workers):
    tool, free = Swatches(), Swatches()
    toolkit = Toolkit(dict(search=tool, edit=free), workers=workers)
    answers = [''.join(search(f'{i}-{j}=.02') for j in range(4)) + edit(0, f'{i}=.01') for i in range(4)]
    await asyncio.gather(*(resolve(parse(a), toolkit) for a in answers))
    assert tool.most == 3 and len(tool.calls) == 16 and len(free.calls) == 4


def test_a_toolkit_works_in_one_event_loop_after_another_and_in_threads(tmp_path):
    toolkit, tool = kit(Store(tmp_path), workers=1)     # one place: the second call must wait in each loop
    def run(i): return asyncio.run(resolve(parse(search(f'{i}a=.05') + search(f'{i}b=.05')), toolkit))
    done = [run(0), run(1)]
    threads = [threading.Thread(target=lambda i=i: done.append(run(i))) for i in (2, 3)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(done) == 4 and all(isinstance(t.result, Picture) for d in done for t in d.tags) and len(tool.calls) == 8


# Faults

async def test_a_stuck_tool_costs_its_deadline_and_nobody_else():
    toolkit, _ = kit(seconds=.3)
    start = time.perf_counter()
    done = await resolve(parse(search('stuck=60') + edit(0) + search('good')), toolkit)
    assert time.perf_counter() - start < 5
    stuck, dependent, good = (t.result for t in done.tags)
    assert (stuck.kind, dependent.kind) == ('timeout', 'dependency') and '0.3 s' in stuck.message and isinstance(good, Picture)


@pytest.mark.parametrize('wrong', [
    'raise ZeroDivisionError("1/0")', 'raise TimeoutError()', 'raise SystemError', 'return None', 'return b"png"',
])
async def test_a_broken_tool_is_an_internal_failure(wrong):
    scope = {}
    exec(f'async def tool(query, seed):\n    {wrong}', scope)
    done = await resolve(parse(search('q') + edit(0)), Toolkit(dict(search=scope['tool'])))
    assert [t.result.kind for t in done.tags] == ['internal', 'dependency'] and '\n' not in done.tags[0].result.message


async def test_a_tool_whose_key_or_ready_breaks_still_answers(tmp_path):
    class Odd(Swatches):
        key = property(lambda self: 1/0)
        def __init__(self): self.kinds, self.calls, self.now, self.most = {}, [], 0, 0
        def ready(self): raise OSError('gone')
    toolkit = Toolkit(dict(search=Odd()), Store(tmp_path))
    assert isinstance((await resolve(parse(search('q')), toolkit)).tags[0].result, Picture)
    assert 'gone' in toolkit.ready()['search']


async def test_cancelling_stops_every_call_and_frees_the_store(tmp_path):
    toolkit, tool = kit(Store(tmp_path), workers=2)
    work = asyncio.create_task(resolve(parse(search('a=60') + search('b=60') + search('c=60') + search('a=60') + edit(0)), toolkit))
    while tool.now < 2: await asyncio.sleep(.01)    # noqa: ASYNC110
    work.cancel()
    with pytest.raises(asyncio.CancelledError): await work
    assert tool.now == 0 and asyncio.all_tasks() == {asyncio.current_task()}
    toolkit.tools['search'] = quick = Swatches()        # the same key: nobody may still hold its flight
    async def at_once(query, seed): return await quick('x', seed=seed)
    at_once.key = 'swatches'
    toolkit.tools['search'] = at_once
    async with asyncio.timeout(3): assert isinstance((await resolve(parse(search('a=60')), toolkit)).tags[0].result, Picture)


# A real server

@pytest.fixture
def server():
    "Serves pictures at /NAME; `server.plan` holds answers to give first, `server.hits` what was asked."
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            here = self.server
            with here.lock:
                here.hits.append(self.path)
                code, headers = here.plan.pop(0) if here.plan else (200, {})
            if code == 0: return self.connection.close()
            body = swatch(self.path).data
            time.sleep(here.delay)
            self.send_response(code)
            for k, v in headers.items(): self.send_header(k, v)
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *_): pass
    here = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    here.daemon_threads = True
    here.hits, here.plan, here.delay, here.lock = [], [], 0, threading.Lock()
    threading.Thread(target=here.serve_forever, daemon=True).start()
    yield here
    here.shutdown(); here.server_close()


class Web:
    "A tool over HTTP."
    key = 'web'
    def __init__(self, port): self.address = f'http://127.0.0.1:{port}/'

    async def __call__(self, query, seed=0):
        async with httpx.AsyncClient() as client:
            try: answer = await client.get(self.address + query)
            except httpx.HTTPError as e: return Failure(kind='network', message=f'no answer ({type(e).__name__})', transient=True)
        if answer.status_code == 200: return Picture.read(answer.content, Origin(tool='search', request=dict(query=query)))
        code, wait = answer.status_code, answer.headers.get('retry-after')
        return Failure(kind='network', message=f'status {code}', transient=code >= 429, retry_after=wait and float(wait))


async def test_what_passes_by_itself_is_tried_again(server):
    server.plan = [(503, {'Retry-After': '0.6'}), (0, {}), (200, {})]
    start = time.perf_counter()
    done = await resolve(parse(search('fox')), Toolkit(dict(search=Web(server.server_port))))
    assert isinstance(done.tags[0].result, Picture) and done.tags[0].call.tries == 3
    assert .8 < time.perf_counter() - start < 10       # the server's wish, then our own back-off


async def test_what_stays_wrong_is_not_tried_again(server):
    server.plan = [(404, {})]*9
    done = await resolve(parse(search('fox')), Toolkit(dict(search=Web(server.server_port))))
    assert done.tags[0].result.message == 'status 404' and server.hits == ['/fox']
    server.plan, server.hits[:] = [(500, {})]*9, []
    done = await resolve(parse(search('fox')), Toolkit(dict(search=Web(server.server_port))))
    assert done.tags[0].result.message == 'status 500' and len(server.hits) == 3


async def test_a_wait_beyond_the_deadline_is_not_begun(server):
    server.plan = [(429, {'Retry-After': '3600'})]
    start = time.perf_counter()
    failure, tries = await attempts(Web(server.server_port), dict(query='fox', seed=0), seconds=2)
    assert (failure.message, tries) == ('status 429', 1) and time.perf_counter() - start < 2


async def test_a_server_that_is_gone_is_a_failure(server):
    port = server.server_port
    server.shutdown(); server.server_close()
    done = await resolve(parse(search('fox') + edit(0)), Toolkit(dict(search=Web(port))))
    assert [t.result.kind for t in done.tags] == ['network', 'dependency']


# The store

async def test_pictures_are_remembered_on_disk_and_failures_are_not(tmp_path, server):
    async def ask(): return (await resolve(parse(search('fox')), Toolkit(dict(search=Web(server.server_port)), Store(tmp_path)))).tags[0]
    server.plan = [(404, {})]
    assert (await ask()).result.kind == 'network'
    first, second = await ask(), await ask()
    assert first.result == second.result and (first.call.cached, second.call.cached) == (False, True) and len(server.hits) == 2


async def test_the_key_holds_everything_that_determines_a_picture(tmp_path):
    store = Store(tmp_path)
    async def calls(key, request, **more):
        tool = Swatches(key)
        if 'seeded' in more: tool.seeded = more.pop('seeded')
        await Toolkit(dict(t=tool), store).call('t', **request, **more)
        return len(tool.calls)
    a, b = swatch('a'), swatch('b')
    assert await calls('one', dict(image=a, prompt='p')) == 1 and await calls('one', dict(image=a, prompt='p')) == 0
    for key, request, seed in [('two', dict(image=a, prompt='p'), 0), ('one', dict(image=b, prompt='p'), 0),
                               ('one', dict(image=a, prompt='q'), 0), ('one', dict(image=a, prompt='p'), 1)]:
        assert await calls(key, request, seed=seed) == 1
    assert [await calls('three', dict(query='q'), seeded=False, seed=seed) for seed in (1, 2)] == [1, 0]


async def test_a_broken_store_costs_no_picture(tmp_path):
    store = Store(tmp_path)
    toolkit, tool = kit(store)
    await resolve(parse(search('fox')), toolkit)
    for key in list(store.disk): store.set(key, '{"half a pict')
    assert isinstance((await resolve(parse(search('fox')), toolkit)).tags[0].result, Picture)
    store.disk.close()
    for file in tmp_path.glob('cache.db*'): file.write_bytes(b'no database' * 999)
    assert isinstance((await resolve(parse(search('fox')), toolkit)).tags[0].result, Picture) and len(tool.calls) == 3


PROCESS = """
import asyncio, sys
sys.path[:0] = sys.argv[3:]
from test_toolkit import Web, search
from llmi_kit.config import Store
from llmi_kit.document import parse
from llmi_kit.toolkit import Toolkit, resolve
toolkit = Toolkit(dict(search=Web(int(sys.argv[1]))), Store(sys.argv[2]))
done = asyncio.run(resolve(parse(search('fox') + search('owl')), toolkit))
print(*(t.result.sha256 for t in done.tags))
"""


def test_processes_that_share_a_store_ask_once(tmp_path, server):
    server.delay = .5
    here = os.path.dirname(__file__)
    command = [sys.executable, '-c', PROCESS, str(server.server_port), str(tmp_path), here, os.path.dirname(here)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {p.communicate(timeout=120)[0] for p in running}
    assert len(printed) == 1 and len(printed.pop().split()) == 2 and sorted(server.hits) == ['/fox', '/owl']


# The sandbox as a tool

@pytest.fixture(scope='module')
def sandbox():
    with Sandbox(workers=2, seconds=5) as s:
        if s.ready(): pytest.skip(s.ready())
        yield s


async def test_code_is_drawn_edited_and_its_error_remembered(sandbox, tmp_path):
    from llmi_kit.tools.edit import EditTool, PillowEdits
    draw = CodeTool(sandbox)
    toolkit = Toolkit(dict(code=draw, edit=EditTool(PillowEdits())), Store(tmp_path))
    document = parse(tag('code', code='plt.plot([1, 2])') + tag('code', code='plt.plot(nothing)') + edit(0, 'make it grayscale'))
    first, second = await resolve(document, toolkit), await resolve(document, toolkit, seed=5)
    chart, error, gray = (t.result for t in first.tags)
    assert chart.origin.tool == 'code' and chart.origin.request == dict(code='plt.plot([1, 2])') and chart.origin.seconds > 0
    assert error.kind == 'code' and 'line 1' in error.message and 'nothing' in error.message
    assert gray.sha256 != chart.sha256 and [t.call.cached for t in second.tags] == [True]*3    # neither code nor Pillow has a use for the seed


async def test_a_killed_warm_process_costs_one_drawing_at_most(sandbox):
    toolkit = Toolkit(dict(code=CodeTool(sandbox)), workers=2)
    codes = [f'import time; time.sleep(.3); plt.plot([{i}])' for i in range(4)]
    work = asyncio.create_task(resolve(parse(''.join(tag('code', code=c) for c in codes)), toolkit))
    await asyncio.sleep(.5)
    os.kill(sandbox.start().process.pid, signal.SIGKILL)
    done = await work
    assert all(isinstance(t.result, Picture | Failure) for t in done.tags)
    assert isinstance(await toolkit.call('code', code='plt.plot([9])'), Picture)


async def test_closing_a_toolkit_closes_its_sandbox():
    async with Toolkit(dict(code=CodeTool(Sandbox(workers=1)))) as toolkit: pass
    assert 'closed' in toolkit.ready()['code']
    toolkit.close()
    assert (await resolve(parse(tag('code', code='plt.plot([1])')), toolkit)).tags[0].result.kind == 'unavailable'


# Around it

async def test_a_fifth_tool_needs_no_change_of_the_library(monkeypatch):
    class Map(Params):
        "a map of a place"
        place: Words
    async def draw_map(place, seed): return swatch(place)
    monkeypatch.setitem(PARAMS, 'map', Map)
    done = await resolve(parse(tag('map', place='Brest') + edit(0)), Toolkit(dict(map=draw_map, edit=Swatches())))
    assert [isinstance(t.result, Picture) for t in done.tags] == [True, True]


async def test_the_bar_shows_only_if_asked(capsys):
    toolkit, _ = kit()
    await resolve(parse(search('a')), toolkit)
    assert capsys.readouterr().err == ''
    await resolve(parse(search('a') + search('b')), toolkit, progress=True)
    assert 'pictures' in capsys.readouterr().err


async def test_tables_say_which_tool_fails_and_why(tmp_path):
    toolkit, _ = kit(Store(tmp_path), bad='not_found', bad2='not_found', worse='refused')
    answers = [search('good=.1') + search('bad') + edit(1), search('good=.1') + search('bad2') + 'text',
               search('worse') + '<imgen>x</imgen>', '']
    documents = [await resolve(parse(a), toolkit) for a in answers]
    calls = tool_table(documents)
    assert calls.loc['search', ['calls', 'succeeded', 'cached']].tolist() == [5, 2, 1] and calls.loc['search', 'rate'] == .4
    assert calls.loc['?', 'calls'] == 1 and calls.loc['edit', 'succeeded'] == 0 and calls['seconds'].isna().tolist() == [True, True, False]
    why = failure_table(iter(documents))
    assert why.loc[('search', 'not_found')].tolist() == [2, 'no bad'] and why['count'].tolist() == [2, 1, 1, 1]
    assert len(failure_table(documents[0])) == 2
    assert len(tool_table([])) == len(failure_table(documents[3])) == 0 and len(tool_table(parse(search('q')))) == 0


def test_a_profile_gives_four_tools(tmp_path):
    pytest.importorskip('llmi_kit.tools.search')
    profile = load_profile('cpu', tool_seconds=7, tool_workers=3, code_workers=1)
    with Store(tmp_path) as store:
        toolkit = Toolkit.from_profile(profile, store)
        assert set(toolkit.tools) == set(PARAMS) == set(toolkit.ready()) and toolkit.seconds == 7
        assert toolkit.workers == dict(search=3, diffusion=3, edit=3, code=1)
        toolkit.close()
