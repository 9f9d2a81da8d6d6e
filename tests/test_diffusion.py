"""The diffusion tool: a real (tiny) pipeline, and both server protocols over real HTTP with faults."""
import asyncio, inspect, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor

import pytest
from image_server import KEY, ImageServer

from llmi_kit.config import Profile
from llmi_kit.picture import Failure, Picture
from llmi_kit.tools.diffusion import DiffusionTool, from_profile
from llmi_kit.tools.image_model import ImageModel, tiny_pipeline
from llmi_kit.tools.image_server import ImagesAPI, QwenServers
from llmi_kit.toolkit import Toolkit

DEAD = 'http://127.0.0.1:9'     # the discard port: nobody listens


# ---- on this machine

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    import torch
    torch.set_num_threads(1)    # a model this small is slower on two
    path = tmp_path_factory.mktemp('models')/'tiny'
    tiny_pipeline().save_pretrained(path)
    return path


async def test_same_seed_same_bytes_also_after_loading_again(folder):
    first, again = DiffusionTool(ImageModel(folder, steps=2)), DiffusionTool(ImageModel(folder, steps=2))
    a, b, c, d = await first('a fox', 3), await first('a fox', 3), await again('a fox', 3), await first('a fox', 4)
    assert isinstance(a, Picture), a
    assert a.data == b.data == c.data != d.data and a.data != (await first('an owl', 3)).data
    o = a.origin
    assert (o.tool, o.backend, o.seed, o.request) == ('diffusion', 'tiny', 3, {'prompt': 'a fox'}) and o.seconds > 0
    assert str(folder.parent) not in a.model_dump_json() + first.key


async def test_loading_is_not_on_the_clock_and_drawing_is(folder, monkeypatch):
    load = ImageModel._load
    def at_length(self):
        if self.pipe is None: time.sleep(3)
        return load(self)
    monkeypatch.setattr(ImageModel, '_load', at_length)
    async with Toolkit(dict(diffusion=DiffusionTool(ImageModel(folder, steps=1)), slow=DiffusionTool(ImageModel(folder, steps=900))), seconds=2) as toolkit:
        several = await asyncio.gather(*(toolkit.call('diffusion', prompt=f'fox {i}') for i in range(3)))   # all wait for the same loading
        assert all(isinstance(p, Picture) for p in several), several
        late = await toolkit.call('slow', prompt='a fox')
    assert late.kind == 'timeout' and '2 s' in late.message


async def test_settings_reach_the_pipeline(folder):
    small = await ImageModel(folder, size=(48, 16), steps=1, guidance=1.).generate('a fox')
    assert (small.width, small.height) == (48, 16)
    assert len({ImageModel(folder, **k).key for k in ({}, dict(steps=1), dict(size=(48, 16)), dict(guidance=1.))}) == 4


async def test_one_at_a_time_and_the_loop_goes_on(folder):
    model, running, most = ImageModel(folder, steps=1), 0, 0
    model.load()
    call = model.pipe.__class__.__call__
    class Counting(type(model.pipe)):
        def __call__(self, *args, **kwargs):
            nonlocal running, most
            running += 1; most = max(most, running)
            try: return call(self, *args, **kwargs)
            finally: running -= 1
        __call__.__signature__ = inspect.signature(call)
    model.pipe.__class__ = Counting
    ticks = 0
    async def beat():
        nonlocal ticks
        while True: await asyncio.sleep(.001); ticks += 1
    task = asyncio.create_task(beat())
    answers = await asyncio.gather(*[model.generate('a fox', k) for k in range(4)])
    task.cancel()
    assert most == 1 and ticks > 4 and len({a.data for a in answers}) == 4


async def test_a_deadline_stops_the_drawing(folder):
    model, steps = ImageModel(folder, steps=1000), []
    step, loop, begun = model.load().scheduler.step, asyncio.get_running_loop(), asyncio.Event()
    def counted(*args, **kwargs):
        steps.append(1); loop.call_soon_threadsafe(begun.set)
        return step(*args, **kwargs)
    model.pipe.scheduler.step = counted
    task = asyncio.create_task(model.generate('a fox'))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError): await task
    model._asked['steps'] = 1
    assert isinstance(await model.generate('a fox'), Picture), 'the thread is free again'
    assert len(steps) < 900, 'it did not draw to the end for nobody'


async def test_missing_and_broken_models(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    (tmp_path/'empty').mkdir()
    for name, says in (('no-such-folder', 'no model folder'), (tmp_path/'empty', 'model_index.json'), ('nobody/nothing', 'hf download')):
        model = ImageModel(name)
        answer = await DiffusionTool(model)('a fox')
        assert answer.kind == 'unavailable' and says in answer.message and says in model.ready(), answer
    (tmp_path/'empty'/'model_index.json').write_text('{"_class_name": "StableDiffusionPipeline"}')
    answer = await ImageModel(tmp_path/'empty').generate('a fox')
    assert answer.kind == 'unavailable' and 'can not be loaded' in answer.message and str(tmp_path) not in answer.message


@pytest.mark.parametrize('error, kind', [('out of memory', 'unavailable'), ('expected scalar type', 'internal')])
async def test_errors_while_drawing(folder, error, kind):
    model = ImageModel(folder)
    class Broken(type(model.load())):
        def __call__(self, prompt, generator): raise RuntimeError(error)
    model.pipe.__class__ = Broken
    answer = await model.generate('a fox')
    assert answer.kind == kind and 'tiny' in answer.message


def test_importing_the_tools_loads_no_torch():
    code = 'import sys, llmi_kit.tools.edit, llmi_kit.tools.diffusion; print("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout == 'False\n'


# ---- from a profile

async def test_from_profile():
    nothing = Profile(diffusion='')
    answer = await from_profile(nothing)('a fox')
    assert answer.kind == 'unavailable' and answer.message == (
        "no diffusion model in profile 'cpu': set diffusion in settings.ini to embedded, a model folder, a hub name, openai:MODEL or qwen:URL")
    assert from_profile(nothing).ready() == answer.message
    assert from_profile(Profile()).ready() is None and from_profile(Profile()).backend.notes.side == 64
    kinds = {s: type(from_profile(Profile(diffusion=s)).backend).__name__ for s in ('openai:m', 'qwen:http://a,http://b', 'some/model', './folder')}
    assert list(kinds.values()) == ['ImagesAPI', 'QwenServers', 'ImageModel', 'ImageModel']
    assert (await from_profile(Profile(diffusion='qwen:'))('a fox')).kind == 'unavailable'
    assert (await from_profile(Profile(diffusion='some/model'))(' \n')).kind == 'invalid'


async def test_profile_to_picture_over_http(monkeypatch):
    monkeypatch.setenv('PICTURE_KEY', KEY)
    with ImageServer(needs_key=True) as s:
        tool = from_profile(Profile(diffusion='openai:seedream-3', images_server=s.url + '/v1', images_key='PICTURE_KEY'))
        answer = await tool('a fox', seed=7)
        assert isinstance(answer, Picture) and KEY not in answer.model_dump_json() + tool.key
        assert s.requests == [dict(path='/v1/images/generations', key=f'Bearer {KEY}', body=dict(
            model='seedream-3', prompt='a fox', response_format='b64_json', watermark=False, seed=7))]
        assert (await tool('a fox', seed=7)).data == answer.data != (await tool('a fox', seed=8)).data


# ---- the OpenAI protocol

async def test_what_a_server_does_not_know_is_left_out():
    with ImageServer(refuses=('watermark', 'response_format', 'seed')) as s:
        api = ImagesAPI('m', s.url + '/v1')
        assert isinstance(await api.generate('a'), Picture) and len(s.requests) == 4
        assert isinstance(await api.generate('b'), Picture) and len(s.requests) == 5, 'it is remembered'


async def test_picture_at_an_address():
    with ImageServer(answers='url') as s:
        answer = await ImagesAPI('m', s.url + '/v1').generate('a')
        assert isinstance(answer, Picture) and s.paths[-1].startswith('/files/') and answer.origin.address == ''


async def test_an_address_inside_the_network_is_refused():
    "A server may send us to itself or to the public web, not to other machines of ours."
    with ImageServer() as other, ImageServer(answers='url') as s:
        s.http.RequestHandlerClass.owner.url = other.url
        answer = await ImagesAPI('m', f'http://127.0.0.1:{s.http.server_port}/v1').generate('a')
        assert answer.kind == 'refused' and not other.paths


async def test_keys_stay_secret(monkeypatch):
    monkeypatch.setenv('PICTURE_KEY', 'sk-wrong-key-987654321')
    with ImageServer(needs_key=True) as s:
        answer = await ImagesAPI('m', s.url + '/v1', 'PICTURE_KEY').generate('a')
    assert answer.kind == 'unavailable' and 'PICTURE_KEY' in answer.message and '987654321' not in answer.message
    monkeypatch.delenv('PICTURE_KEY')
    assert 'PICTURE_KEY' in ImagesAPI('m', key_name='PICTURE_KEY').ready()
    assert (await ImagesAPI('m', key_name='PICTURE_KEY').generate('a')).kind == 'unavailable'
    api = QwenServers(['http://me:secret@127.0.0.1:9'])
    assert 'secret' not in api.name + api.key + (await api.generate('a')).message


async def test_only_the_named_key_is_sent(monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', 'sk-of-somebody-else')
    with ImageServer() as s:
        await ImagesAPI('m', s.url + '/v1', 'PICTURE_KEY').generate('a')
        assert s.requests[0]['key'] == 'Bearer none'


# ---- faults of both protocols

FAULTS = {'500': ('network', True), '429': ('network', True), 'drop': ('network', True), 'error_inside': ('network', True), 'hang': ('timeout', True),
          'trickle': ('timeout', True), 'quota': ('unavailable', False), 'policy': ('refused', False), 'bad_request': ('invalid', False),
          **{f: ('network', False) for f in ('garbage', 'truncated', 'list', 'empty', 'bad_base64', 'not_an_image', 'numbers', 'oversized', 'huge_side')}}

@pytest.mark.parametrize('protocol', ['openai', 'qwen'])
@pytest.mark.parametrize('fault', FAULTS)
async def test_faults(fault, protocol):
    seconds = .5 if fault in ('hang', 'trickle') else 20
    with ImageServer(fault) as s:
        backend = ImagesAPI('m', s.url + '/v1', seconds=seconds) if protocol == 'openai' else QwenServers([s.url], seconds=seconds)
        answer = await DiffusionTool(backend)('a fox')
        assert isinstance(answer, Failure) and (answer.kind, answer.transient) == FAULTS[fault], answer
        assert 'Traceback' not in answer.message and len(answer.message) < 400 and answer.seconds > 0
        assert fault != 'oversized' or 'sent more than' in answer.message, 'it was read to the end'
        assert answer.retry_after == (7 if fault == '429' else None)
        backend.seconds = 20; s.faults.clear()      # on a busy machine the first request may have timed out before it arrived
        assert isinstance(await backend.generate('a fox'), Picture), 'the next request is unharmed'


# ---- several Qwen-Image servers

async def test_qwen_request_and_origin():
    with ImageServer() as s:
        answer = await DiffusionTool(QwenServers([s.url + '/']))('a fox', seed=7)
        assert s.requests[0]['body'] == dict(prompt='a fox', height=1024, width=1024, num_inference_steps=25, guidance_scale=7.5,
                                             num_images_per_prompt=1, seed=7)
        assert answer.origin.backend == f'qwen-image at 127.0.0.1:{s.http.server_port}'
        servers = QwenServers([DEAD, s.url])
        assert servers.ready() is None and 'healthy' in QwenServers([DEAD]).ready()
        assert list((await servers.info()).values()) == [None, {'model': 'Qwen/Qwen-Image', 'device': 'cpu'}]


@pytest.mark.parametrize('fault', ['500', '429', 'garbage', 'bad_base64', 'not_an_image', 'hang', 'drop', 'error_inside'])
async def test_fail_over_and_rest(fault):
    now = 0.
    with ImageServer(fault) as bad, ImageServer() as good:
        servers = QwenServers([bad.url, good.url], seconds=4 if fault == 'hang' else 20, clock=lambda: now)
        assert isinstance(await servers.generate('a'), Picture) and [s.served for s in servers.servers] == [1, 1]
        assert isinstance(await servers.generate('b'), Picture) and [s.served for s in servers.servers] == [1, 2], 'it rests'
        now = 31.
        assert isinstance(await servers.generate('c'), Picture) and [s.served for s in servers.servers] == [2, 2], 'and comes back'


async def test_a_hanging_server_leaves_time_for_the_next():
    with ImageServer('hang') as bad, ImageServer(delay=.5) as good:
        assert isinstance(await QwenServers([bad.url, good.url], seconds=6).generate('a'), Picture)


async def test_dead_first_server():
    with ImageServer() as good:
        servers = QwenServers([DEAD, good.url])
        answers = [await servers.generate(str(k)) for k in range(3)]
        assert all(isinstance(a, Picture) for a in answers) and [s.served for s in servers.servers] == [1, 3]


async def test_a_refusal_is_final():
    with ImageServer('policy') as a, ImageServer() as b:
        assert (await QwenServers([a.url, b.url]).generate('x')).kind == 'refused' and not b.requests


async def test_all_down_tells_of_each_and_tries_resting_ones():
    with ImageServer('500', '500') as a:
        servers = QwenServers([a.url, DEAD])
        answer = await servers.generate('x')
        assert answer.transient and '500' in answer.message and ':9 can not be reached' in answer.message
        a.faults.clear()
        assert isinstance(await servers.generate('x'), Picture), 'better a resting server than none'


async def test_least_busy():
    with ImageServer(delay=.3) as a, ImageServer(delay=.3) as b:
        servers = QwenServers([a.url, b.url])
        answers = await asyncio.gather(*[servers.generate(str(k)) for k in range(6)])
        assert all(isinstance(x, Picture) for x in answers) and len(a.requests) == len(b.requests) == 3


def test_models_that_load_at_once_do_not_spoil_each_other():
    "diffusers replaces a method of every module while it loads: without a lock half of the tries left MiniLM without weights."
    from llmi_kit.config import asset
    from llmi_kit.tools import photos
    for _ in range(5):
        photos._minilm.cache_clear()
        with ThreadPoolExecutor(2) as pool:
            drawing, words = pool.submit(ImageModel(asset("picture_model")).load), pool.submit(photos.encode, ["a cat"])
            assert drawing.result() and words.result().shape == (1, 384)
