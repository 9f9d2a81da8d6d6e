"The writer: seeds, batches, limits and cancellation in this process; real servers, good and faulty, on loopback."
import asyncio, json, os, shutil, socket, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx, pytest, torch
from PIL import Image

from llmi_kit.backbone import embedded_folder, load_embedded
from llmi_kit.chat import Completion, Message, ServerChat, chat_from_profile, copies, shares
from llmi_kit.config import load_profile
from llmi_kit.local_chat import LocalChat
from llmi_kit.picture import Failure, Origin, Picture


def ask(text, *images): return [Message('user', text, images)]
def picture(colour, size=(60, 80)): return Picture.from_pil(Image.new('RGB', size, colour), Origin(tool='input'))


@pytest.fixture(scope='module')
def chat(): return LocalChat(loaded=load_embedded(dtype=torch.float32), max_tokens=12, batch=4)    # bfloat16 rounds differently in other batches


# In this process

async def test_answers_in_order_with_counts(chat):
    (a,), (b,) = await chat.write([ask('What is the capital of France?'), ask('Say hi. ' * 30)])
    assert 'Paris' in a.text and a.finish_reason == 'stop' and a.tokens_in < b.tokens_in
    assert a.tokens_out == len(chat.loaded[1](a.text).input_ids) + 1     # the end token counts


async def test_seeds_repeat_and_differ(chat):
    how = dict(n=3, temperature=1., max_tokens=6)
    first, again, other = [(await chat.write([ask('Name a colour.')], seed=s, **how))[0] for s in (1, 1, 2)]
    assert [a.text for a in first] == [a.text for a in again] != [a.text for a in other]
    assert len({a.text for a in first}) > 1 and len({a.seed for a in first}) == 3
    alone = (await chat.write([ask('Name a colour.')], seed=first[2].seed, **{**how, 'n': 1}))[0][0]
    assert alone.text == first[2].text      # an answer can be asked for again by its seed


async def test_greedy_is_written_once(chat):
    (answers,) = await chat.write([ask('Name a colour.')], n=3, temperature=0., max_tokens=4)
    assert len({a.text for a in answers}) == 1 and [a.tokens_out > 0 for a in answers] == [True, False, False]


@pytest.mark.parametrize('flowing', [True, False])
async def test_progress_counts_the_tokens_as_they_are_written(chat, monkeypatch, capsys, flowing):
    monkeypatch.setattr('llmi_kit.local_chat.flows', lambda model: flowing)
    told = []
    written = await chat._write([ask('Say hi.'), ask('Name a colour.'), []], 2, 0, tell=told.append, **chat._how(.7, 8, None))
    assert sum(told) == sum(a.tokens_out for a, b in written for a in (a, b) if isinstance(a, Completion)) > 4
    assert len(told) >= (8 if flowing else 1)
    await chat.write([ask('Say hi.')], max_tokens=3, progress=True)
    assert 'writing' in capsys.readouterr().err
    await chat.write([ask('Say hi.')], max_tokens=3)
    assert capsys.readouterr().err == ''


async def test_stop_text_is_left_out(chat):
    (full,), = await chat.write([ask('What is the capital of France?')])
    (a,), = await chat.write([ask('What is the capital of France?')], stop=[' Paris'])
    assert a.text == full.text[:full.text.index(' Paris')] and a.finish_reason == 'stop' and a.tokens_out < full.tokens_out


async def test_length(chat):
    (a,), = await chat.write([ask('Tell a long story.')], max_tokens=3)
    assert (a.finish_reason, a.tokens_out) == ('length', 3)


async def test_what_cannot_be_answered_fails_alone(chat):
    asked = [ask('word '*9000), [], ask('What is this?', picture('red')), ask('Hi')]
    long, empty, image, fine = await chat.write(asked, n=2, max_tokens=2)
    assert [f[0].kind for f in (long, empty, image)] == ['invalid', 'invalid', 'unsupported']
    assert '8,192' in long[0].message and 'text only' in image[0].message and long[0] == long[1]
    assert isinstance(fine[0], Completion)


async def test_loop_stays_free_and_cancelling_stops_the_model(chat):
    steps, model = [], chat.loaded[0]
    hook = model.register_forward_hook(lambda *_: steps.append(time.perf_counter()))
    task = asyncio.create_task(chat.write([ask('Tell a very long story.')], max_tokens=2000))
    while len(steps) < 3: await asyncio.sleep(.01)      # noqa: ASYNC110 - would never end if the loop were blocked
    task.cancel()
    with pytest.raises(asyncio.CancelledError): await task
    await chat.write([ask('Hi')], max_tokens=1)         # waits for the thread
    hook.remove()
    assert len(steps) < 20


async def test_stream_is_the_text(chat):
    parts = [p async for p in chat.stream(ask('What is the capital of France?'))]
    assert isinstance(parts[-1], Completion) and ''.join(parts[:-1]) == parts[-1].text and len(parts) > 4
    stopped = [p async for p in chat.stream(ask('What is the capital of France?'), stop=['ance is'])]
    assert ''.join(stopped[:-1]) == stopped[-1].text == parts[-1].text.split('ance is')[0]


async def test_leaving_a_stream_stops_the_model(chat):
    stream = chat.stream(ask('Tell a very long story.'), max_tokens=2000)
    await anext(stream)
    await stream.aclose()
    await asyncio.wait_for(chat.write([ask('Hi')], max_tokens=1), 60)


async def test_calls_from_several_tasks_queue(chat):
    both = await asyncio.gather(*(chat.write([ask('Name a colour.')], max_tokens=3) for _ in range(2)))
    assert both[0][0][0].text == both[1][0][0].text


@pytest.mark.parametrize('way, whose', [('flowing', 'forward'), ('batches', 'generate')])
async def test_memory_runs_out_for_big_batches_only(chat, monkeypatch, way, whose):
    real, sizes = getattr(chat.loaded[0], whose), []
    def small(*args, **kwargs):
        sizes.append(len(kwargs['input_ids']))
        if sizes[-1] > 1: raise torch.OutOfMemoryError
        return real(*args, **kwargs)
    monkeypatch.setattr(chat.loaded[0], whose, small)
    if way == 'batches': monkeypatch.setattr('llmi_kit.local_chat.flows', lambda model: False)
    answers = await chat.write([ask('Hi'), ask('Ho'), ask('Hey')], max_tokens=2)
    assert all(isinstance(a[0], Completion) for a in answers) and max(sizes) == 3


async def test_where_memory_never_suffices_each_answer_says_so(chat, monkeypatch):
    def full(*args, **kwargs): raise torch.OutOfMemoryError
    monkeypatch.setattr(chat.loaded[0], 'forward', full)
    answers = await chat.write([ask('Hi'), [], ask('Hey')], max_tokens=2)
    assert [a[0].kind for a in answers] == ['unavailable', 'invalid', 'unavailable'] and 'max_tokens' in answers[0][0].message


@pytest.mark.parametrize('how', [dict(), dict(temperature=1., seed=3, n=3), dict(stop=['.', ' the']), dict(temperature=.7, stop=['a'], n=2)])
async def test_flowing_writes_what_batches_write(chat, monkeypatch, how):
    "Six questions in four slots, of lengths from 1 token to 12."
    asked = [ask(t) for t in ('Hi', 'Name a colour.', 'What is the capital of France?', 'Say no.', 'Count to three.', 'Why?')]
    flowing = await chat.write(asked, **how)
    monkeypatch.setattr('llmi_kit.local_chat.flows', lambda model: False)
    batches = await chat.write(asked, **how)
    told = lambda found: [[(a.text, a.tokens_in, a.tokens_out, a.finish_reason, a.seed) for a in one] for one in found]
    assert told(flowing) == told(batches) and len({a.tokens_out for one in flowing for a in one}) > 2


async def test_cancelling_reads_no_more_questions(chat):
    read, model = [], chat.loaded[0]
    hook = model.register_forward_pre_hook(lambda m, args, kwargs: read.append(kwargs['input_ids'].shape), with_kwargs=True)
    task = asyncio.create_task(chat.write([ask(f'Tell a story of {k} wolves.') for k in range(20)], max_tokens=500))
    while len(read) < 4: await asyncio.sleep(.01)       # noqa: ASYNC110
    task.cancel()
    with pytest.raises(asyncio.CancelledError): await task
    before = len(read)
    await chat.write([ask('Hi')], max_tokens=1)         # waits for the thread
    hook.remove()
    assert len(read) < before + 5


async def test_backbone_that_is_not_there():
    chat = LocalChat('./nowhere')
    assert 'no folder' in chat.ready()
    (a, b), = await chat.write([ask('Hi')], n=2)
    assert a == b and a.kind == 'unavailable' and 'no folder' in a.message
    assert [p async for p in chat.stream(ask('Hi'))] == [a]


async def test_adapter_key_and_profile():
    local = chat_from_profile(load_profile('cpu', adapter='', max_tokens=7, batch=3))
    assert isinstance(local, LocalChat) and (local.max_tokens, local.batch, local.ready()) == (7, 3, None)
    far = chat_from_profile(load_profile('cpu', server='http://localhost:1/v1', backbone='m', price_in=2.))
    assert isinstance(far, ServerChat) and far.model == 'm' and far.price_in == 2 and far.key != local.key


# A model that sees: tiny, random, built here

IMAGE_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{m.role}}\n{% for p in m.content %}{% if p.type=='image' %}<image>{% else %}{{p.text}}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")

@pytest.fixture(scope='module')
def seeing(tmp_path_factory):
    from transformers import (AutoTokenizer, CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig,
                              LlavaForConditionalGeneration, LlavaProcessor)
    folder, tokenizer = tmp_path_factory.mktemp('vlm'), AutoTokenizer.from_pretrained(embedded_folder())
    tokenizer.add_tokens(['<image>'], special_tokens=True)
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    text = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, eos_token_id=2, pad_token_id=0, **size)
    config = LlavaConfig(text_config=text,
                         vision_config=CLIPVisionConfig(image_size=32, patch_size=8, **size),
                         image_token_index=tokenizer.convert_tokens_to_ids('<image>'))
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    pixels = CLIPImageProcessor(size=dict(shortest_edge=32), crop_size=dict(height=32, width=32))
    LlavaProcessor(pixels, tokenizer, patch_size=8, vision_feature_select_strategy='default', num_additional_image_tokens=1,
                   chat_template=IMAGE_TEMPLATE).save_pretrained(folder)
    return LocalChat(str(folder), max_tokens=4, dtype=torch.float32)


async def test_images_are_read(seeing):
    red, blue, two, none = await seeing.write([ask('See', picture('red')), ask('See', picture('blue')),
                                               ask('Two', picture('red'), picture('green')), ask('See')])
    assert two[0].tokens_in - none[0].tokens_in == 2*16      # (32/8)^2 tokens an image
    alone, = await seeing.write([ask('See', picture('red'))])
    assert alone[0].text == red[0].text != blue[0].text


def test_pictures_between_words_stay_there(seeing):
    woven, first = (seeing.encode([m])['input_ids'][0].tolist() for m in (Message('user', ['cat', picture('red'), 'dog']), Message('user', 'catdog', [picture('red')])))
    mark = seeing.loaded[1].tokenizer.convert_tokens_to_ids('<image>')
    start = seeing.loaded[1].tokenizer.decode(woven[:woven.index(mark)])
    assert start.endswith('cat') and woven.count(mark) == first.count(mark) == 16 and 'cat' not in seeing.loaded[1].tokenizer.decode(first[:first.index(mark)])
    again = Message.model_validate_json(Message('user', ['cat', picture('red'), 'dog']).model_dump_json())
    assert [type(p) for p in again.parts] == [str, Picture, str] and again.text == 'catdog'


async def test_image_mark_in_text_is_no_image(seeing):
    (a,), = await seeing.write([ask('A literal <image> here', picture('red'))])
    assert isinstance(a, Completion)


# A faulty server: what the model is called decides what goes wrong

class Faulty(BaseHTTPRequestHandler):
    seen, flaky = [], {}
    def log_message(self, *_): pass

    def say(self, status, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {'content-type': 'application/json', 'content-length': len(data)} | {k.replace('_', '-'): v for k, v in headers.items()}
        for k, v in headers.items(): self.send_header(k, str(v))
        self.end_headers(); self.wfile.write(data)

    def do_GET(self): self.say(401 if 'locked' in self.path else 200, dict(data=[]))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['content-length'])))
        self.seen.append((body, self.headers.get('authorization'), time.monotonic()))
        getattr(self, body['model'])(body)

    def fine(self, body, n=None, reason='stop'):
        n = body.get('n', 1) if n is None else n
        texts = [f"answer {body['seed']}.{i}" for i in range(n)]
        choices = [dict(index=i, finish_reason=reason, message=dict(role='assistant', content=t)) for i, t in enumerate(texts)]
        self.say(200, dict(id='x', object='chat.completion', created=0, model='m', choices=choices,
                           usage=dict(prompt_tokens=10, completion_tokens=5*n, total_tokens=0)))

    def one(self, body): self.fine(body, 1)
    def picky(self, body): self.error(400, 'only one', param='n') if body.get('n') else self.fine(body)
    def none(self, body): self.fine(body, 0)
    def cut_off(self, body): self.fine(body, reason='content_filter')
    def slow(self, body): time.sleep(3); self.fine(body)
    def drip(self, body):       # never silent for long, never done
        self.send_response(200); self.send_header('content-type', 'application/json'); self.send_header('content-length', '9999')
        self.end_headers()
        for _ in range(20): self.wfile.write(b' '); self.wfile.flush(); time.sleep(.1)
    def html(self, body): self.say(200, b'<html>welcome</html>', content_type='text/html')
    def drop(self, body): self.connection.close()
    def error(self, status, message, code=None, param=None, **headers):
        self.say(status, dict(error=dict(message=message, code=code, param=param)), **headers)
    def locked(self, body): self.error(401, 'Incorrect API key provided: sk-secret')
    def absent(self, body): self.error(404, 'The model does not exist')
    def broke(self, body): self.error(429, 'quota', code='insufficient_quota')
    def busy(self, body): self.error(429, 'slow down', retry_after=1)
    def broken(self, body): self.error(503, 'oops')
    def prudish(self, body): self.error(400, 'no', code='content_filter')
    def long(self, body): self.error(400, 'maximum context length is 10 tokens')
    def recovers(self, body):
        self.flaky[body['seed']] = tries = self.flaky.get(body['seed'], 0) + 1
        self.fine(body) if tries > 1 else self.error(429, 'wait', retry_after=1)


@pytest.fixture(scope='module')
def faulty():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Faulty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/v1'
    server.shutdown(); server.server_close()

def far(url, model, **kwargs): return ServerChat(url, model, key='LLMI_TEST_KEY', **{'retries': 0, 'temperature': .5, **kwargs})


@pytest.mark.parametrize('model, kind, says, transient', [
    ('locked', 'unavailable', 'LLMI_TEST_KEY', False), ('absent', 'unavailable', "no model 'absent'", False),
    ('broke', 'refused', 'quota', False), ('busy', 'network', '429', True), ('broken', 'network', '503', True),
    ('prudish', 'refused', 'policy', False), ('cut_off', 'refused', 'policy', False), ('long', 'invalid', 'maximum context length', False),
    ('html', 'network', '/v1', False), ('drop', 'network', 'no chat server answers', True),
    ('none', 'network', 'no answer at all', True)])
async def test_each_fault_is_one_sentence(faulty, model, kind, says, transient):
    (a,), = await far(faulty, model).write([ask('Hi')])
    assert (a.kind, a.transient) == (kind, transient) and says in a.message and 'sk-' not in a.message and '\n' not in a.message
    last = [p async for p in far(faulty, model).stream(ask('Hi'))][-1]
    if model not in ('none', 'cut_off', 'html'): assert last.kind == kind


async def test_busy_server_tells_how_long(faulty):
    (a,), = await far(faulty, 'busy').write([ask('Hi')])
    assert a.retry_after == 1


async def test_nobody_there():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0)); url = f'http://127.0.0.1:{s.getsockname()[1]}/v1'
    assert 'start it' in far(url, 'm').ready()
    (a,), = await far(url, 'm').write([ask('Hi')])
    assert a.kind == 'network' and a.transient and 'start it' in a.message


@pytest.mark.parametrize('model', ['slow', 'drip'])
async def test_deadline_and_ready(faulty, model):
    start = time.monotonic()
    (a,), = await far(faulty, model, seconds=.3).write([ask('Hi')])
    assert time.monotonic() - start < 1.5
    assert a.kind == 'timeout' and a.transient
    assert far(faulty, 'fine').ready() is None and 'LLMI_TEST_KEY' in far(faulty + '/locked', 'fine').ready()


async def test_retry_waits_as_asked(faulty):
    start = time.monotonic()
    (a,), = await far(faulty, 'recovers', retries=2).write([ask('Hi')], seed=77)
    assert a.text == 'answer 77.0' and time.monotonic() - start >= 1


@pytest.mark.parametrize('model', ['fine', 'one', 'picky'])
async def test_n_answers_whatever_the_server_makes_of_n(faulty, model):
    chat = far(faulty, model, price_in=1., price_out=2.)
    (answers,) = await chat.write([ask('Hi')], n=4, seed=5)
    assert len({a.text for a in answers}) == 4
    read = 10 if model == 'fine' else 40
    assert (sum(a.tokens_in for a in answers), sum(a.tokens_out for a in answers)) == (read, 20)
    assert sum(a.cost for a in answers) == pytest.approx((read + 2*20)/1e6)
    told = []
    await chat._write([ask('Hi'), ask('Ho')], 4, 5, tell=told.append, **chat._how(None, None, None))
    assert told == [20, 20]


async def test_what_is_sent(faulty, monkeypatch):
    monkeypatch.setenv('LLMI_TEST_KEY', 'abc')
    await far(faulty, 'fine').write([[Message('system', 'S'), *ask('See', picture('red'))]], seed=9, max_tokens=3, stop=['x'])
    body, key, _ = Faulty.seen[-1]
    assert key == 'Bearer abc' and (body['seed'], body['max_tokens'], body['stop'], body['temperature']) == (9, 3, ['x'], .5)
    system, user = body['messages']
    assert system['content'] == 'S' and user['content'][0]['image_url']['url'].startswith('data:image/png;base64,')


async def test_at_most_so_many_at_once(faulty, monkeypatch):
    now, most = [0], [0]
    def gate(self, body):
        now[0] += 1; most[0] = max(most[0], now[0]); time.sleep(.05); now[0] -= 1; self.fine(body)
    monkeypatch.setattr(Faulty, 'gated', gate, raising=False)
    await far(faulty, 'gated', workers=3).write([ask(str(i)) for i in range(9)])
    assert most[0] == 3


def test_one_chat_in_several_event_loops(faulty):
    chat = far(faulty, 'fine')
    assert [asyncio.run(chat.write([ask('Hi')]))[0][0].text for _ in range(2)] == ['answer 0.0']*2


def test_shares_and_copies():
    assert shares(10, [0, 0, 0, 0]) == [2, 3, 3, 2] or sum(shares(10, [0, 0, 0, 0])) == 10
    failure = Failure(kind='network', message='m')
    assert copies(failure, 2) == [failure]*2 and sum(c.tokens_out for c in copies(Completion(text='a', tokens_out=5), 3)) == 5


# A real server: transformers serve with the embedded backbone

@pytest.fixture(scope='module')
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp('served')/'smol'
    shutil.copytree(embedded_folder(), folder, copy_function=os.symlink)
    (folder/'generation_config.json').unlink()      # as it is, this server would never sample
    (folder/'generation_config.json').write_text(json.dumps(dict(do_sample=True, top_k=0, bos_token_id=1, eos_token_id=2, pad_token_id=0)))
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    command = [sys.executable, '-m', 'transformers.cli.transformers', 'serve', str(folder), '--port', str(port),
               '--host', '127.0.0.1', '--device', 'cpu']
    server = subprocess.Popen(command, env={**os.environ, 'HF_HUB_OFFLINE': '1'}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for _ in range(600):
        if server.poll() is not None: pytest.fail(server.stderr.read().decode()[-800:])
        try: httpx.get(f'http://127.0.0.1:{port}/health', timeout=2); break
        except httpx.HTTPError: time.sleep(.2)
    yield ServerChat(f'http://127.0.0.1:{port}/v1', str(folder), max_tokens=12, workers=1, price_out=1.)
    server.terminate(); server.wait(20)


async def test_real_server_agrees_with_the_local_chat(served, chat):
    question = ask('What is the capital of France?')
    assert served.ready() is None
    (a,), = await served.write([question])
    (b,), = await chat.write([question])
    assert a.text == b.text and a.tokens_in == b.tokens_in and a.cost == pytest.approx(a.tokens_out/1e6) and a.tokens_out > 3


async def test_real_server_samples_with_seeds(served):
    how = dict(n=3, temperature=1., max_tokens=6, seed=3)
    (first,), (again,) = await served.write([ask('Name a colour.')], **how), await served.write([ask('Name a colour.')], **how)
    assert [a.text for a in first] == [a.text for a in again] and len({a.text for a in first}) > 1


async def test_real_server_streams(served):
    parts = [p async for p in served.stream(ask('What is the capital of France?'))]
    assert ''.join(parts[:-1]) == parts[-1].text and len(parts) > 4 and parts[-1].tokens_out > 3


async def test_real_server_without_that_model(served):
    (a,), = await ServerChat(served.server, 'no/such-model', retries=0).write([ask('Hi')])
    assert isinstance(a, Failure) and '\n' not in a.message


def test_who_asks_a_server_does_not_wait_for_pytorch():
    "Importing it takes seconds; a model in this process needs it, and nothing else that can do without."
    code = ("import sys, llmi_kit.chat, llmi_kit.cli, llmi_kit.judges, llmi_kit.scaling, llmi_kit.scorer, llmi_kit.synthesis, llmi_kit.writer\n"
            "from llmi_kit.chat import chat_from_profile\nfrom llmi_kit.config import load_profile\n"
            "chat_from_profile(load_profile('cpu', server='http://127.0.0.1:9/v1', backbone='tiny'))\n"
            "assert not {'torch', 'transformers', 'diffusers'} & sys.modules.keys()")
    subprocess.run([sys.executable, '-c', code], check=True, timeout=100)
