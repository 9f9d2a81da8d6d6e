"""How long does a batch of rewards take, against its slowest answer?

32 answers of four tags each: two searches, a drawing, and an edit of the first. Tools take 0.1 to 0.6 s (seeded), the judges, behind real HTTP on
loopback, 0.3 to 0.9 s by the text they read. Everything runs at enough concurrency: a batch can't be faster than its slowest answer alone.
Beside it: TRL's order for a reward that is no batch, one answer after the other. Run: python benchmarks/reward.py
"""
import asyncio
import json
import random
import statistics
import tempfile
import threading
import time
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

from llmi_kit.chat import ServerChat
from llmi_kit.chat_judge import ChatJudge
from llmi_kit.config import Store, load_profile
from llmi_kit.data import row_of
from llmi_kit.judges import Judges
from llmi_kit.picture import Origin, Picture
from llmi_kit.scorer import Scorer, TRLReward
from llmi_kit.slots import Slots
from llmi_kit.toolkit import Toolkit

ANSWERS, ROUNDS, LIMIT = 32, 5, 1.3


def pause(text, low, high): return random.Random(sha256(text.encode()).hexdigest()).uniform(low, high)


class Slow:
    "A tool that takes its time and paints a colour of its own."
    key = 'slow'

    async def __call__(self, seed=0, **request):
        request.pop('image', None)
        await asyncio.sleep(pause(json.dumps(request), .1, .6))
        return Picture.from_pil(Image.new('RGB', (64, 64), seed & 0xffffff), Origin(tool='slow', title='a colour'))


class Judge(BaseHTTPRequestHandler):
    "Answers every conversation with fours, slowly."
    protocol_version = 'HTTP/1.1'
    def log_message(self, *_): pass

    def do_POST(self):
        said = self.rfile.read(int(self.headers['Content-Length'])).decode()
        time.sleep(pause(said, .3, .9))
        lines = 'Image Quality: 4\nTask Relevance: 4\nText-Image Relevance: 4' if 'image_url' in said else 'Text: 4\nImage: 4'
        reply = json.dumps(dict(id='x', object='chat.completion', created=0, model='judge', usage=dict(prompt_tokens=9, completion_tokens=9, total_tokens=18),
                                choices=[dict(index=0, finish_reason='stop', message=dict(role='assistant', content=lines))])).encode()
        self.send_response(200)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)


class Server(ThreadingHTTPServer):
    request_queue_size, daemon_threads = 256, True


def answer(i, round):
    tag = lambda source, **params: '<imgen>' + repr(dict(source=source, description=f'picture of {i}', params=params)) + '</imgen>'
    tags = [tag('search', query=f'{round} {i} a'), tag('search', query=f'{round} {i} b'), tag('diffusion', prompt=f'{round} {i} c'), tag('edit', img_index=0, prompt=f'{round} {i} d')]
    return '\n\n'.join(f'Part {k} of answer {i} in round {round}.\n\n{t}' for k, t in enumerate(tags))


async def seconds(scorer, answers, row):
    start = time.perf_counter()
    values = await TRLReward(scorer)(answers, [row.extra_info.model_dump()]*len(answers))
    assert None not in values, 'every answer has its reward'
    return time.perf_counter() - start, values


async def main(url, folder):
    row = row_of('Show me colours.', 4, ['search', 'diffusion', 'edit'])
    def scorer(name):
        "A scorer that remembers nothing of the others."
        toolkit = Toolkit({s: Slow() for s in ('search', 'diffusion', 'edit')}, Store(folder/f'tools {name}'), workers=4*ANSWERS)
        judge = lambda reads: ChatJudge(reads, ServerChat(url, 'judge', workers=2*ANSWERS, retries=0), slots=Slots(2*ANSWERS, folder/f'slots {name}'), store=Store(folder/f'judges {name}'))
        return Scorer(load_profile('cpu'), toolkit=toolkit, judges=Judges(judge('text'), judge('pictures')))
    await seconds(scorer('warm'), [answer(0, 'warm')], row)   # imports
    ratios = []
    print('round  slowest answer  batch of 32  ratio  one after the other')
    for round in range(ROUNDS):
        answers = [answer(i, round) for i in range(ANSWERS)]
        alone = scorer(f'alone {round}')
        each = [await seconds(alone, [a], row) for a in answers]
        batch, values = await seconds(scorer(f'batch {round}'), answers, row)
        assert values == [v for _, vs in each for v in vs], 'the same numbers, together and alone'
        slowest = max(s for s, _ in each)
        ratios.append(batch/slowest)
        print(f'{round:5} {slowest:13.2f} s {batch:10.2f} s {ratios[-1]:6.2f} {sum(s for s, _ in each):18.1f} s')
    median = statistics.median(ratios)
    print(f'median {median:.2f}, worst {max(ratios):.2f} times the slowest answer (limit {LIMIT})')
    return median <= LIMIT


if __name__ == '__main__':
    server = Server(('127.0.0.1', 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as temporary:
        good = asyncio.run(main(f'http://127.0.0.1:{server.server_port}/v1', Path(temporary)))
    server.shutdown()
    raise SystemExit(not good)
