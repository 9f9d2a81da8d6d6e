"""Documents through toolkit, judges and report while everything around them fails: is each accounted for, and does memory stay flat?

Images come from a real server on loopback that answers with an error, garbage, too late or not at all; judges likewise; the sandbox's warm process is
killed in the middle of drawings; the disk is full for moments (the kernel refuses every write of this process).
Run: python tests/soak.py [documents] [seed]; 2,000 documents by default. The last line is JSON."""
import asyncio
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.update(OPENAI_API_KEY='sk-test-0123456789', LLMI_CACHE=tempfile.mkdtemp(prefix='soak-'))
from image_server import ImageServer
from judge_server import judge_server

from llmi_kit.config import load_profile
from llmi_kit.data import row_of
from llmi_kit.document import parse
from llmi_kit.judges import Judges
from llmi_kit.picture import Failure, Picture
from llmi_kit.report import write_report
from llmi_kit.reward import score
from llmi_kit.toolkit import Toolkit, resolve

PAINTERS = ('500', '429', 'drop', 'garbage', 'truncated', 'list', 'empty', 'bad_base64', 'not_an_image', 'policy', 'hang', 'numbers', 'huge_side')
JUDGES = dict(hang=.02, drop=.1, html=.1, garbage=.1) | {'429': .03, '500': .1, '401': .05}
AT_ONCE, FULL_DISK, KILLS = 16, .03, .04     # documents in progress; shares of documents that meet a full disk, a killed sandbox


class Faulty(ImageServer):
    "Every third request meets a fault, drawn with a seed."
    def __init__(self, seed): super().__init__(); self.random = random.Random(seed); self.faults = self
    def __len__(self): return 1
    def popleft(self):
        self.requests.clear(); self.paths.clear()   # the server's own memory is not what is measured
        return self.random.choice(PAINTERS) if self.random.random() < 1/3 else 'ok'


def answer_of(rng):
    "Text with one to three tags, some of them broken."
    def tag(source, **params): return f'<imgen>{dict(source=source, description="a picture", params=params)}</imgen>'
    n = rng.randrange(10**6)
    tags = [tag('search', query=rng.choice(['a cup of coffee', 'a cat', 'the Moon', f'number {n}'])),
            tag('code', code=f'plt.figure(figsize=(2, 2)); plt.bar(["a", "b"], [{n % 7}, {n % 5}])'),
            tag('code', code=rng.choice(['plt.plot([1, 2], [1])', 'import socket', 'while True: pass', 'plt.plot(['])),
            tag('diffusion', prompt=f'a drawing of {n}'), tag('edit', img_index=0, prompt=rng.choice(['rotate it by 90 degrees', f'turn it into {n}'])),
            tag('nothing', query='x'), '<imgen>{"source": </imgen>']
    weights = [4, 5, 1, 4, 3, 1, 1]
    body = '\n\n'.join(f'Some words about {n}.\n\n{t}' for t in rng.choices(tags, weights, k=rng.randint(1, 3)))
    return f'# Number {n}\n\n{body}'


def kilobytes():
    "Memory of this process that is in use now."
    return int(Path('/proc/self/statm').read_text().split()[1])*resource.getpagesize()//1024


async def one(i, seed, toolkit, judges, out, found):
    "A document's whole way; what became of it goes into `found`."
    rng = random.Random(f'{seed} {i}')
    row = row_of(f'What about number {i}?', image_num=99, tools=['code'])
    document = parse(answer_of(rng))
    if rng.random() < KILLS and (warm := toolkit.tools['code'].sandbox._warm):
        try: os.kill(warm.process.pid, signal.SIGKILL)
        except (ProcessLookupError, AttributeError): pass
    document = await resolve(document, toolkit, seed=i)
    for t in document.tags: found['tags'][f'{t.source}: ' + (t.result.kind if isinstance(t.result, Failure) else 'picture' if isinstance(t.result, Picture) else '?')] += 1
    reward = await score(document, row, judges)
    found['rewards']['none' if reward.value is None else 'number'] += 1
    full = rng.random() < FULL_DISK
    if full: resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try: write_report(document, out/str(i % 50), title=f'Number {i}')
    except OSError as e: found['reports'][type(e).__name__ + ' ' + (e.strerror or '')] += 1
    else: found['reports']['written'] += 1
    finally:
        if full: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


async def soak(documents, seed):
    "Counts of everything that happened, and memory as it went."
    found, memory, started, done = dict(tags=Counter(), rewards=Counter(), reports=Counter(), broke=Counter()), [], time.perf_counter(), 0
    with Faulty(seed) as painter, judge_server(faults=JUDGES, seed=seed) as judge, tempfile.TemporaryDirectory() as out:
        profile = load_profile('cpu', images_server=f'{painter.url}/v1', diffusion='openai:test', edit='pillow, openai:test', llm_judge='small', mllm_judge='seeing',
                               judge_server=judge.base, judge_seconds=4, tool_seconds=3, code_seconds=2)
        toolkit, judges = Toolkit.from_profile(profile), Judges.from_profile(profile)
        numbers = iter(range(documents))
        async def work():
            nonlocal done
            for i in numbers:
                try: await one(i, seed, toolkit, judges, Path(out), found)
                except Exception as e: found['broke'][f'{type(e).__name__}: {e}'[:200]] += 1    # nothing may come here
                done += 1
                judge.seen.clear(); judge.answered.clear()
                if done % max(1, documents//20) == 0:
                    memory.append(kilobytes())
                    print(f'{done:5} documents  {memory[-1]/1024:6.0f} MB  {time.perf_counter() - started:5.0f} s', flush=True)
        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        toolkit.close()
    return {k: dict(v) for k, v in found.items()} | dict(documents=done, memory_kb=memory, seconds=round(time.perf_counter() - started, 1))


if __name__ == '__main__':
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)      # a write beyond the limit is an error, as on a full disk
    print(json.dumps(asyncio.run(soak(*map(int, sys.argv[1:] or ['2000']), *([0] if len(sys.argv) < 3 else [])))))
