"""A stand-in for two chat models, over real HTTP on loopback: one words prompts, one reads them. It knows no language: it fills templates
from what the request says and reads prompts by a few words. Seeded faults make it err as models and servers do:

    garbage, cut, tool_named, wrong_tool, wrong_number, no_data, repeat, script   (the writer: something else than the brief asks)
    deaf, nonsense                                                                (the second model: finds no fault; no JSON)
    429, 500, hang, refuse                                                        (the server; the first three pass when asked again)
"""
import hashlib, json, random, re, threading, time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SIGNS = dict(code='chart', search='photo', diffusion='imagin', edit='alter')   # how briefs and prompts speak of the four tools
WORDS = {n: w for n, w in enumerate('no one two three four five six'.split())}
SAYS = dict(
    search=['A photo of {t} as it really is', 'What does {t} look like on a real photo', 'Photos of {t} from real life'],
    diffusion=['An imagined scene about {t} in watercolour', 'I am imagining {t} on another planet, as a drawing', 'An imaginary mascot for {t}'],
    code=['A chart of our figures on {t}: {d}', 'How did {t} develop, as a chart? {d}', '{d}: that is what we counted for {t}; a chart would tell'],
    edit=['and that same one altered to night', 'altered so that the sky is red', 'with its background altered'])
OPENINGS = ['For {v}: ', 'Hello! ', 'We meet on Monday. ', 'My class asks about it. ', 'It is for a wall. ', '', 'Honestly curious: ', 'Before the trip: ',
            'On behalf of {v}. ', 'Short and clear: ', 'It rains, so we read about {t}. ', 'A wish from {v}: ']
ENDS = ['Tell the story behind it.', 'Say what is special.', 'Explain it to a beginner.', 'Begin with the oldest part.', 'Keep it light.', 'What surprised people?',
        'Who cares for it today?', 'Add what most people get wrong.', 'And why does it matter?', 'I know nothing of it.']


def number_words(n): return {-1: 'Words only, no pictures.', 0: '', 99: 'Some pictures would be lovely.'}.get(n, f'Exactly {WORDS.get(n, n)} picture{"s"[:n != 1]}, please.')


def write(brief, rng, fault):
    "What a model answers to a brief; `fault` says how it errs."
    topic, voice = re.search('Topic: (.*)', brief)[1], re.search('Who asks: (.*)', brief)[1]
    tools = [t for t, sign in SIGNS.items() if any(sign in l for l in brief.split('A good answer shows:')[1].splitlines() if l.startswith('- '))]
    said = brief.split('Number of pictures: ')[1]
    fixed = re.search(r'exactly (\d+)', said)
    number = int(fixed[1]) if fixed else -1 if 'no pictures at all' in said else 99 if 'leaves open' in said else 0
    if fault == 'wrong_tool': tools = ['diffusion'] if tools != ['diffusion'] else ['search']
    if fault == 'wrong_number': number = 5 if number != 5 else 1
    if fault == 'repeat': rng = random.Random(0)    # out of ideas: the same words for the same wish
    years = rng.sample(range(1950, 2020), 4)
    data = ', '.join(f'{y}: {rng.randint(2, 900)}' for y in sorted(years)) if fault != 'no_data' else 'you know the figures'
    parts = [rng.choice(SAYS[t]).format(t=topic, d=data) for t in tools] or [f'Something in words about {topic}']
    text = rng.choice(OPENINGS).format(v=voice if fault != 'repeat' else 'a friend', t=topic) + ', '.join(parts) + f'. {rng.choice(ENDS)} {number_words(number)}'.rstrip()
    if fault == 'tool_named': text += ' Use matplotlib.'
    if fault == 'script': text = 'Расскажите об этом, пожалуйста: 10, 20, 30, 40.'
    if fault == 'garbage': return 'Of course! What kind of question would you like?'
    answer = json.dumps(dict(question=text), ensure_ascii=False)
    return answer[:len(answer)//2] if fault == 'cut' else rng.choice([answer, f'Here it is:\n```json\n{answer}\n```', f'<think>{{hm}}</think>\n{answer}'])


def read(material, fault):
    "What a second model reads in a prompt, by its words."
    if fault == 'nonsense': return 'I like it very much.'
    text = re.sub(r'\[image \d+:.*?\]', '', material).lower()
    tools = [t for t, sign in SIGNS.items() if sign in text]
    number = next((n for n, w in WORDS.items() if f'exactly {w} picture' in text), None)
    if number is None: number = -1 if 'no pictures' in text else 99 if 'some pictures' in text else 0
    solvable = fault == 'deaf' or 'code' not in tools or len(re.findall(r'\d+', text)) > 2
    return json.dumps(dict(solvable=solvable, tools=tools, image_num=number, names_tool='matplotlib' in text, reason='read by its words'))


class PromptServer:
    "`with PromptServer(faults={'wrong_tool': .1}) as server`: the share of requests that go wrong so. `requests` holds what was asked and answered."
    def __init__(self, faults=None, seed=0, delay=0., sees=True, down=False, port=0):
        self.faults, self.seed, self.delay, self.sees, self.down, self.port = faults or {}, seed, delay, sees, down, port
        self.requests, self.passed, self.lock, self.stop = [], set(), threading.Lock(), threading.Event()

    def __enter__(self):
        self.http = ThreadingHTTPServer(('127.0.0.1', self.port), type('Handler', (_Handler,), dict(owner=self)))
        self.http.daemon_threads = True
        self.url = f'http://127.0.0.1:{self.http.server_port}/v1'
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs=dict(poll_interval=.02), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.http.shutdown(); self.http.server_close(); self.thread.join(5)

    @property
    def answered(self): return [r for r in self.requests if r['status'] == 200]
    def tokens(self, step): return [sum(r[k] for r in self.answered if r['step'] == step) for k in ('read', 'written')]
    def repeated(self):
        "Requests that were answered more than once."
        return [k for k, n in Counter(r['key'] for r in self.answered).items() if n > 1]

    def fault(self, key, step):
        "The fault of a request: the same for the same request."
        mine = ('deaf', 'nonsense') if step == 'check' else ('garbage', 'cut', 'tool_named', 'wrong_tool', 'wrong_number', 'no_data', 'repeat', 'script')
        at = random.Random(f'{self.seed} {key}').random()
        for name, share in self.faults.items():
            if name in (*mine, '429', '500', 'hang', 'refuse'):
                if at < share: return name
                at -= share


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    owner: PromptServer

    def log_message(self, *_): pass
    def do_GET(self): self.reply(200, dict(data=[]))

    def do_POST(self):
        o, body = self.owner, json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        try: self.answer(o, body)
        except (BrokenPipeError, ConnectionResetError): self.close_connection = True

    def answer(self, o, body):
        turns = [m['content'] if isinstance(m['content'], str) else m['content'][-1]['text'] for m in body['messages']]
        pictures = sum(len(m['content']) - 1 for m in body['messages'] if isinstance(m['content'], list))
        step = 'check' if turns[-1].startswith('====') else 'write'
        key = hashlib.sha256(json.dumps([turns, body.get('seed')]).encode()).hexdigest()[:16]
        fault, entry = o.fault(key, step), dict(key=key, step=step, model=body['model'], text=turns[-1], system=turns[0], pictures=pictures, status=0)
        with o.lock: o.requests.append(entry)
        if o.delay: o.stop.wait(o.delay)
        if o.down: return self.fail(entry, 500)
        if pictures and not o.sees: return self.fail(entry, 400, 'this model takes no images')
        if fault in ('429', '500', 'hang') and key not in o.passed:     # passes when asked again
            o.passed.add(key)
            if fault == 'hang': o.stop.wait(30); self.close_connection = True; return
            return self.fail(entry, int(fault))
        if fault == 'refuse': return self.fail(entry, 400, 'no', code='content_filter')
        text = read(turns[-1], fault) if step == 'check' else write(turns[-1], random.Random(key), fault)
        entry |= dict(status=200, read=sum(len(t.split()) for t in turns), written=len(text.split()), reply=text)
        usage = dict(prompt_tokens=entry['read'], completion_tokens=entry['written'], total_tokens=entry['read'] + entry['written'])
        choice = dict(index=0, message=dict(role='assistant', content=text), finish_reason='length' if fault == 'cut' else 'stop')
        self.reply(200, dict(id='x', object='chat.completion', created=int(time.time()), model=body['model'], choices=[choice], usage=usage))

    def fail(self, entry, status, message='busy', **error):
        entry['status'] = status
        self.reply(status, dict(error=dict(message=message, **error)), {'Retry-After': '0.05'} if status == 429 else {})

    def reply(self, status, value, headers=None):
        data = json.dumps(value).encode()
        self.send_response(status)
        for k, v in {'Content-Type': 'application/json', 'Content-Length': len(data), **(headers or {})}.items(): self.send_header(k, str(v))
        self.end_headers()
        self.wfile.write(data)
