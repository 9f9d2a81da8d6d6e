"""How much longer than necessary does a document take?

32 calls of 200 ms, 32 at once, where half of the tags edit a random earlier picture. No schedule can be shorter than the
critical path: 200 ms times the longest chain of edits. Beside it, the same work as the reference does it, 8 calls at
once in rounds, and one call after another. Run: python benchmarks/toolkit.py
"""
import asyncio
import random
import statistics
import tempfile
import time

from PIL import Image

from llmi_kit.config import Store
from llmi_kit.document import parse
from llmi_kit.picture import Origin, Picture
from llmi_kit.toolkit import Toolkit, resolve

CALLS, SECONDS, SEEDS, LIMIT = 32, .2, range(9), 1.2


class Sleeper:
    "A tool that takes 200 ms and draws a patch of its own colour."
    key = 'sleeper'

    async def __call__(self, seed=0, **request):
        await asyncio.sleep(SECONDS)
        return Picture.from_pil(Image.new('RGB', (64, 64), seed & 0xffffff), Origin(tool='sleeper'))


def answer(seed):
    "An answer whose tags need random earlier ones, and the longest chain."
    rng, depth, tags = random.Random(seed), [], []
    for i in range(CALLS):
        of = rng.randrange(i) if i and rng.random() < .5 else None
        depth.append(1 if of is None else depth[of] + 1)
        source, params = ('search', dict(query=f'{seed} {i}')) if of is None else ('edit', dict(img_index=of, prompt=f'{i}'))
        tags.append('<imgen>' + repr(dict(source=source, description='d', params=params)) + '</imgen>')
    return '\n'.join(tags), depth


async def seconds(document, store, workers=CALLS):
    toolkit = Toolkit(dict(search=Sleeper(), edit=Sleeper()), store, workers=workers)
    start = time.perf_counter()
    done = await resolve(document, toolkit)
    taken = time.perf_counter() - start
    assert all(isinstance(t.result, Picture) for t in done.tags)
    return taken


def in_rounds(depth, workers=8):
    "Seconds of a schedule that ends each round of edits before the next begins."
    return SECONDS * sum(-(-depth.count(d) // workers) for d in set(depth))


async def main():
    ratios, kept = [], []
    await seconds(parse(answer(0)[0]), None)    # what is imported at the first picture is no part of the schedule
    print('seed  critical path  resolve  ratio  with a fresh store  in rounds of 8  one by one')
    for seed in SEEDS:
        text, depth = answer(seed)
        path, document = SECONDS * max(depth), parse(text)
        taken = await seconds(document, None)
        with tempfile.TemporaryDirectory() as folder, Store(folder) as store: stored = await seconds(document, store)
        ratios.append(taken / path); kept.append(stored / path)
        print(f'{seed:4} {path:12.2f} s {taken:7.2f} s {taken/path:6.3f} {stored/path:19.3f}',
              f'{in_rounds(depth):13.2f} s {SECONDS*CALLS:9.2f} s')
    for name, r in ('without a store', ratios), ('with a store', kept):
        print(f'{name}: median {statistics.median(r):.3f}, worst {max(r):.3f} times the critical path (limit {LIMIT})')
    return statistics.median(ratios) <= LIMIT


if __name__ == '__main__':
    raise SystemExit(not asyncio.run(main()))
