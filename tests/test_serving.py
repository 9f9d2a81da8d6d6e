"""`llmi serve images` as people run it: a real process, real HTTP on loopback, the official client, real faults."""
import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from PIL import Image
from typer.testing import CliRunner

from llmi_kit.cli import app
from llmi_kit.picture import Failure, Origin, Picture
from llmi_kit.tools.image_model import tiny_pipeline
from llmi_kit.tools.image_server import ImagesAPI, QwenServers

LLMI = Path(sys.executable).parent/'llmi'
FOX = dict(prompt='a fox', num_inference_steps=2)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('models')/'tiny'
    tiny_pipeline().save_pretrained(path)
    tiny_pipeline(edits=True).save_pretrained(path.parent/'tiny-edit')
    return path


def children(pid):
    return [int(c) for t in Path(f'/proc/{pid}/task').iterdir() for c in (t/'children').read_text().split()]


def models(pid):
    "The model processes of a server: the others of its children have one job, to watch shared memory."
    return [c for c in children(pid) if b'spawn_main' in Path(f'/proc/{c}/cmdline').read_bytes()]


def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError: return False


def within(seconds, holds):
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end: return False
        time.sleep(.02)
    return True


class Serving:
    def __init__(self, process, line):
        self.process, self.line = process, line
        self.url = re.search(r'http://\S+', line)[0]
        self.web = httpx.Client(base_url=self.url, timeout=60)

    def info(self): return self.web.get('/info').json()
    def models(self): return models(self.process.pid)
    def client(self, key='none'): return openai.AsyncOpenAI(api_key=key, base_url=f'{self.url}/v1', max_retries=0, timeout=100)
    def api(self, seconds=60): return ImagesAPI('', f'{self.url}/v1', seconds=seconds)


@contextmanager
def serving(model, *words, **env):
    "`llmi serve images` on a free port, killed at the end if it still runs."
    command = [LLMI, 'serve', 'images', '--model', model, '--gpus', 'cpu', '--port', '0', *words]
    env = os.environ | dict(OMP_NUM_THREADS='1') | env
    with subprocess.Popen(list(map(str, command)), stdout=-1, stderr=-1, text=True, env=env, start_new_session=True) as process:
        try:
            line = process.stdout.readline()
            while line and 'http://' not in line: line = process.stdout.readline()
            assert line, process.stderr.read()
            with (s := Serving(process, line)).web: yield s
        finally:
            process.kill()


@pytest.fixture(scope='module')
def server(folder):
    with serving(folder, '--batch', 8) as s:
        yield s
        s.process.terminate()
        assert s.process.wait(20) == 0 and 'stopped after' in s.process.stdout.read() and s.process.stderr.read() == ''


def png(size=(48, 32), colour='orange'):
    buffer = io.BytesIO()
    Image.new('RGB', size, colour).save(buffer, 'PNG')
    return buffer.getvalue()


def b64(data): return base64.b64encode(data).decode()
def picture(text): return Picture.read(base64.b64decode(text), Origin(tool='diffusion'))


# ---- what is asked for is done

def test_it_says_where_it_is(server, folder):
    assert server.line.startswith('tiny draws and changes pictures at http://127.0.0.1:') and '1 x cpu, batches of 8' in server.line
    assert server.web.get('/health').json()['status'] == 'healthy'
    info = server.info()
    assert (info['model'], info['device'], info['exact'], info['processes']) == ('tiny', 'cpu', True, 1)
    assert str(folder.parent) not in json.dumps(info)


async def test_openai_client(server):
    async with server.client() as client:
        assert [m.id async for m in client.models.list()] == ['tiny']
        extra = dict(num_inference_steps=2, seed=5, guidance_scale=2)
        answer = await client.images.generate(model='tiny', prompt='a fox', n=3, size='64x32', extra_body=extra)
        pictures = [picture(d.b64_json) for d in answer.data]
        assert [(p.width, p.height, p.mime) for p in pictures] == [(64, 32, 'image/png')]*3
        assert [d.seed for d in answer.data] == [5, 6, 7] and len({p.data for p in pictures}) == 3
        third = await client.images.generate(prompt='a fox', size='64x32', extra_body=extra | dict(seed=7))
        assert third.data[0].b64_json == answer.data[2].b64_json, 'picture k of n is the one with seed + k'
        edited = await client.images.edit(image=('a.png', png(), 'image/png'), prompt='a fox', n=2, extra_body=extra | dict(strength=.8))
        assert [(picture(d.b64_json).width, picture(d.b64_json).height) for d in edited.data] == [(48, 32)]*2
        sized = await client.images.edit(image=png(), prompt='a fox', size='32x64', extra_body=dict(num_inference_steps=4))
        assert picture(sized.data[0].b64_json).height == 64


def test_every_setting_reaches_the_pipeline(server):
    ask = FOX | dict(seed=1, width=32, height=32, guidance_scale=4, negative_prompt='fog')
    def drawn(**changes): return server.web.post('/generate/', json=ask | changes).json()['images'][0]
    first = drawn()
    assert first == drawn() and first == drawn(true_cfg_scale=4)
    others = [drawn(**c) for c in (dict(seed=2), dict(num_inference_steps=3), dict(guidance_scale=9), dict(negative_prompt='an owl'), dict(width=48), dict(prompt='cat'))]
    assert len({first, *others}) == 7
    def edited(strength): return server.web.post('/edit/', json=dict(prompt='x', image_b64=b64(png()), num_inference_steps=6, seed=1, strength=strength)).json()['images'][0]
    assert edited(.3) != edited(.9)


def test_no_seed_is_another_picture_each_time(server):
    one, two = (server.web.post('/generate/', json=FOX).json() for _ in range(2))
    assert one['images'] != two['images']
    assert server.web.post('/generate/', json=FOX | dict(seed=one['seeds'][0])).json()['images'] == one['images']


async def test_batches_are_drawn_together_and_with_the_same_bytes(server):
    async with httpx.AsyncClient(base_url=server.url, timeout=100) as web:
        async def drawn(seed, **more): return (await web.post('/generate/', json=dict(prompt=f'a fox {seed}', num_inference_steps=4, seed=seed, **more))).json()['images'][0]
        alone = [await drawn(k) for k in range(12)]
        before = server.info()
        mixed = await asyncio.gather(*[drawn(k) for k in range(12)], *[drawn(k, guidance_scale=3) for k in range(12)])
        after = server.info()
    assert mixed[:12] == alone and not set(mixed[12:]) & set(alone)
    calls = after['calls'] - before['calls']
    assert after['drawn'] - before['drawn'] == 24 and 4 <= calls <= 8, f'{calls} calls'


async def test_our_own_clients(server):
    openai_one = await server.api().generate('a fox', seed=3)
    assert isinstance(openai_one, Picture) and (openai_one.width, openai_one.height) == (32, 32)
    qwen = QwenServers([server.url], size=(32, 32), steps=(2, 4))
    assert qwen.ready() is None and (await qwen.info()).popitem()[1]['model'] == 'tiny'
    one, again = await qwen.generate('a fox', 3), await qwen.generate('a fox', 3)
    assert isinstance(one, Picture) and one.data == again.data
    for client in (server.api(), qwen):
        changed = await client.edit(one, 'an owl', seed=1)
        assert isinstance(changed, Picture) and (changed.width, changed.height) == (32, 32)
    said = await QwenServers([server.url], size=(33, 32)).generate('a fox')
    assert isinstance(said, Failure) and said.kind == 'invalid' and 'multiple of 16' in said.message


# ---- what can't be done is said

JSON = [('', 'JSON'), ('{"prompt": "', 'JSON'), ('[1]', 'JSON'), ('"x"', 'JSON'), ('[' * 100_000, ''), *[(json.dumps(FOX | wrong), says) for wrong, says in [
    (dict(prompt='  '), 'empty'), (dict(prompt=None), 'prompt'), (dict(prompt='x'*10_001), 'prompt'), (dict(seed=-1), 'seed'), (dict(seed=2**63), 'seed'),
    (dict(num_inference_steps=0), 'num_inference_steps'), (dict(num_inference_steps=201), '200'), (dict(guidance_scale='much'), 'guidance_scale'),
    (dict(guidance_scale=float('nan')), 'guidance_scale')]]]
OPENAI = [dict(n=0), dict(n=11), dict(n='many'), dict(size='big'), dict(size='33x32'), dict(size='0x0'), dict(size='4096x16'), dict(response_format='url'),
          dict(output_format='webp'), dict(background='transparent'), dict(stream=True), dict(sead=1)]

@pytest.mark.parametrize('path', ['/v1/images/generations', '/generate/'])
def test_unusable_requests_are_4xx_with_one_sentence(server, path):
    for body, says in JSON:
        answer = server.web.post(path, content=body, headers={'Content-Type': 'application/json'})
        told = answer.json()['error']['message'] if path.startswith('/v1') else answer.json()['message']
        assert answer.status_code == 400 and says in told and len(told) < 200 and '\n' not in told, (body[:50], answer.text)


def test_openai_parameters_are_checked(server):
    for wrong in OPENAI:
        answer = server.web.post('/v1/images/generations', json=FOX | wrong)
        error = answer.json()['error']
        assert answer.status_code == 400 and error['param'] == next(iter(wrong)) and error['type'] == 'invalid_request_error', (wrong, answer.text)
    missing = server.web.post('/v1/images/generations', json=FOX | dict(model='dall-e-3'))
    assert missing.status_code == 404 and missing.json()['error']['code'] == 'model_not_found'
    assert server.web.get('/v1/nothing').json()['error'] and server.web.get('/generate/').status_code == 405


def edit(server, files, **fields): return server.web.post('/v1/images/edits', files=files, data=dict(prompt='x', num_inference_steps='4') | fields)

def bomb():
    "A PNG of 6000 x 6000 px in a few bytes."
    data = bytearray(png((1, 1)))
    data[16:24] = (6000).to_bytes(4, 'big')*2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, 'big')
    return bytes(data)


@pytest.mark.parametrize('files, fields, status, says', [
    (dict(image=b'hello'), {}, 400, 'not a readable'), (dict(image=png()[:60]), {}, 400, 'not a readable'), (dict(image=b''), {}, 400, 'not a readable'),
    (dict(image=png((5200, 1))), {}, 413, '5120'), (dict(image=png(), mask=png()), {}, 400, 'mask'), (dict(image=png()), dict(size='1x1'), 400, 'multiple'),
    (dict(image=png()), dict(strength='2'), 400, 'strength'), (dict(image=png()), dict(prompt=''), 400, 'prompt'), (dict(other=png()), {}, 400, 'one picture'),
    ([('image[]', png()), ('image[]', png())], {}, 400, 'one picture'), (dict(image=png()), dict(num_inference_steps='1', strength='.1'), 400, 'steps times strength'),
])
def test_unusable_edits(server, files, fields, status, says):
    answer = edit(server, files, **fields)
    assert answer.status_code == status and says in answer.json()['error']['message'], answer.text


def test_edits_that_are_no_form(server):
    assert server.web.post('/v1/images/edits', json=FOX).status_code == 415
    assert server.web.post('/v1/images/edits', content=b'x', headers={'Content-Type': 'multipart/form-data'}).status_code == 400
    assert server.web.post('/edit/', json=dict(prompt='x', image_b64='%%')).json()['message'] == 'image_b64 is not base64'


def test_a_picture_is_measured_before_it_is_decoded(server):
    answer = edit(server, dict(image=bomb()))
    assert answer.status_code == 413 and '6000x6000' in answer.json()['error']['message']


def test_long_bodies(server):
    most = server.info()['max_body']
    for path in ('/v1/images/generations', '/edit/', '/v1/images/edits'):
        told = server.web.post(path, content=b'x'*(most + 1), headers={'Content-Type': 'application/json'})
        assert told.status_code == 413 and 'more than' in told.text
    def pieces():
        for _ in range(most//1_000_000 + 2): yield b' '*1_000_000
    answer = server.web.post('/generate/', content=pieces(), headers={'Content-Type': 'application/json'})
    assert answer.status_code == 413, 'also when it does not say how long it is'
    assert server.web.post('/generate/', json=FOX).status_code == 200


def test_models_that_only_change_pictures(folder):
    with serving(folder.parent/'tiny-edit') as s:
        assert 'tiny-edit changes pictures at' in s.line and 'batches of 1' in s.line
        answer = s.web.post('/generate/', json=FOX)
        assert answer.status_code == 400 and 'only changes pictures' in answer.json()['message']
        ask = dict(prompt='x', image_b64=b64(png()), num_inference_steps=2)
        assert picture(s.web.post('/edit/', json=ask).json()['images'][0]).width == 48
        twice_ctrl_c(s, ask)


def twice_ctrl_c(s, ask):
    "The second one ends what is being drawn."
    processes = [s.process.pid, *children(s.process.pid)]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(s.web.post, '/edit/', json=ask | dict(num_inference_steps=200, width=512, height=512))
        assert within(20, lambda: s.info()['drawing'] == 1)
        for _ in range(2): os.killpg(s.process.pid, signal.SIGINT); time.sleep(.3)
        assert s.process.wait(10) == 0 and within(5, lambda: not any(map(alive, processes)))
        assert answer.result(20).status_code == 503


# ---- one server that is closed, small, and then stopped

async def test_key_queue_and_stop(folder):
    with serving(folder, '--key-env', 'MY_KEY', '--queue', 3, MY_KEY='sk-secret-1') as s:
        for headers in ({}, {'Authorization': 'Bearer sk-secret-2'}, {'Authorization': 'Bearer'}, {'Authorization': 'sk-secret-1'}, {'Authorization': 'Basic !'}):
            for answer in (s.web.post('/v1/images/generations', json=FOX, headers=headers), s.web.get('/info', headers=headers), s.web.post('/edit/', headers=headers)):
                assert answer.status_code == 401 and 'sk-secret' not in answer.text
        assert s.web.get('/health').status_code == 200, 'open to those who watch machines'
        async with s.client('sk-secret-1') as client:
            assert (await client.images.generate(prompt='a fox', extra_body=dict(num_inference_steps=2))).data
            with pytest.raises(openai.AuthenticationError): await s.client('sk-no').models.list()
        address = s.url.replace('http://', 'http://any:sk-secret-1@')
        assert isinstance(await QwenServers([address], size=(32, 32), steps=(2, 2)).generate('a fox'), Picture)
        s.web.headers['Authorization'] = 'Bearer sk-secret-1'
        assert s.web.post('/generate/', json=FOX | dict(num_images_per_prompt=4)).status_code == 400, 'four never fit into three'
        await full_and_stopped(s)


async def full_and_stopped(s):
    "One long picture is drawn and three wait: the next is refused, one client leaves, and Ctrl-C ends all in good order."
    async with httpx.AsyncClient(base_url=s.url, headers=s.web.headers, timeout=100) as web:
        def ask(steps): return asyncio.create_task(web.post('/generate/', json=FOX | dict(num_inference_steps=steps, seed=1, width=96, height=96)))
        def state(**fields): return within(20, lambda: fields.items() <= s.info().items())
        running = ask(200)
        assert await asyncio.to_thread(state, drawing=1)
        waiting = [ask(5 + k) for k in range(3)]
        assert await asyncio.to_thread(state, waiting=3)
        full = await web.post('/v1/images/generations', json=FOX)
        assert full.status_code == 503 and int(full.headers['Retry-After']) >= 1 and 'full' in full.json()['error']['message']
        waiting[0].cancel()
        assert await asyncio.to_thread(state, waiting=2), 'who hangs up waits no more'
        processes = [s.process.pid, *children(s.process.pid)]
        assert not running.done()
        os.killpg(s.process.pid, signal.SIGINT)     # as Ctrl-C does: the model processes are hit, too
        told = await asyncio.gather(*waiting[1:])
        assert [t.status_code for t in told] == [503]*2 and all('stopping' in t.text and t.headers['Retry-After'] for t in told)
        assert (await running).status_code == 200, 'what was being drawn is finished'
    assert await asyncio.to_thread(s.process.wait, 20) == 0
    assert 'stopped after' in s.process.stdout.read() and s.process.stderr.read() == ''
    assert within(5, lambda: not any(map(alive, processes)))


# ---- 50 people, and a model process killed in the middle

async def test_a_killed_process_costs_nobody_a_picture(folder):
    with serving(folder, '--batch', 4, '--gpus', 'cpu,cpu') as s:
        first = s.models()
        assert len(first) == 2
        async with s.client() as client:
            def ask(k): return client.images.generate(prompt=f'a fox {k}', extra_body=dict(num_inference_steps=30, seed=k))
            answers = [asyncio.create_task(ask(k)) for k in range(50)]
            assert await asyncio.to_thread(within, 20, lambda: s.info()['drawn'] >= 4 and s.info()['drawing'] > 4)
            os.kill(first[0], signal.SIGKILL)
            done = await asyncio.gather(*answers, return_exceptions=True)
            lost = [d for d in done if isinstance(d, Exception)]
            assert not lost, lost
            assert [d.data[0].seed for d in done] == list(range(50)) and len({d.data[0].b64_json for d in done}) == 50
            assert within(30, lambda: s.info()['ready'] == 2) and s.info()['restarts'] == 1
            assert (await ask(0)).data[0].b64_json == done[0].data[0].b64_json
        assert first[0] not in s.models() and len(s.models()) == 2
        await twice_and_away(s)


def busiest(pids, seconds=.5):
    "The process that computes most just now."
    def ticks(pid): return sum(map(int, Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[11:13]))
    before = {pid: ticks(pid) for pid in pids}
    time.sleep(seconds)
    return max(pids, key=lambda pid: ticks(pid) - before[pid])


async def twice_and_away(s):
    "A picture that dies with two processes is a 500; then the server itself is killed, and no process stays."
    both = s.models()
    async with httpx.AsyncClient(base_url=s.url, timeout=100) as web:
        task = asyncio.create_task(web.post('/generate/', json=FOX | dict(num_inference_steps=200, width=512, height=512)))
        assert await asyncio.to_thread(within, 30, lambda: s.info()['drawing'] == 1)
        before, first = s.info()['calls'], await asyncio.to_thread(busiest, both)
        os.kill(first, signal.SIGKILL)
        # the other process is at it once the call is counted; `drawing` may still be the dead one's
        assert await asyncio.to_thread(within, 30, lambda: s.info()['calls'] == before + 1)
        os.kill(next(pid for pid in both if pid != first), signal.SIGKILL)
        answer = await task
        assert answer.status_code == 500 and 'SIGKILL' in answer.json()['message'] and 'twice' in answer.json()['message'], answer.text
    processes = children(s.process.pid)
    s.process.kill()
    assert within(10, lambda: not any(map(alive, processes))), 'model processes end with their server'


def test_a_client_that_hangs_in_the_middle_of_its_request_stops_nobody(server):
    host, port = server.url.removeprefix('http://').split(':')
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b'POST /generate/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{')
        assert server.web.post('/generate/', json=FOX).status_code == 200


# ---- mistakes on the command line

@pytest.mark.parametrize('words, says', [
    ('--model nowhere', 'no model folder nowhere'), ('--model {folder} --gpus 7', 'no GPU 7'), ('--model {folder} --gpus one', "'one' is not the number"),
    ('--model {folder} --port {port}', 'in use'), ('--model {folder} --host 192.0.2.1', 'can not listen on 192.0.2.1'),
    ('--model {folder} --key-env NO_SUCH_VARIABLE', 'NO_SUCH_VARIABLE is not set'), ('--model {folder} --key-env sk-abc', 'never the key itself'),
    ('--model {empty}', 'model_index.json'),
])
def test_mistakes_are_one_sentence_and_exit_code_2(folder, tmp_path, words, says):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        words = words.format(folder=folder, empty=tmp_path, port=taken.getsockname()[1])
        done = CliRunner().invoke(app, ['serve', 'images', *words.split()])
    assert done.exit_code == 2 and says in done.stderr and done.stderr.count('\n') == 1 and 'sk-abc' not in done.stderr, done.stderr


def test_a_model_that_can_not_be_loaded(folder, tmp_path):
    broken = tmp_path/'broken'
    broken.mkdir()
    (broken/'model_index.json').write_text((folder/'model_index.json').read_text())
    done = subprocess.run([LLMI, 'serve', 'images', '--model', broken, '--port', '0'], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and 'the model broken can not be loaded' in done.stderr and done.stderr.count('\n') == 1, done.stderr
