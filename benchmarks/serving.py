"""What do batches bring to a picture server?

Two servers of the same model, `llmi serve images --batch 8` and `--batch 1`, side by side: the same 16 pictures are asked for one
after the other, and all at once. The ratio is pictures per second; the bytes must be the same whoever travels with whom. On a
processor a batch is drawn in double precision for that, so it pays in small models only. Run:
python benchmarks/serving.py [MODEL [GPU [STEPS]]]   (without a model: the tiny one of the notebooks, on the processor)
"""
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

PICTURES, ROUNDS, BATCH = 16, 3, 8
LLMI = Path(sys.executable).parent/'llmi'


@contextmanager
def serving(model, gpu, batch):
    "The address of `llmi serve images`, which ends with the block."
    words = [LLMI, 'serve', 'images', '--model', model, '--gpus', gpu, '--batch', batch, '--port', 0]
    with subprocess.Popen(list(map(str, words)), stdout=-1, text=True, env=os.environ | dict(OMP_NUM_THREADS='1')) as process:
        try: yield re.search(r'http://\S+', process.stdout.readline())[0]
        finally: process.terminate()


async def drawn(url, steps, together):
    "(seconds, pictures) of all requests, at once or one after the other."
    async with httpx.AsyncClient(base_url=url, timeout=600) as web:
        async def one(seed):
            answer = await web.post('/generate/', json=dict(prompt=f'a fox {seed}', seed=seed, num_inference_steps=steps))
            return answer.raise_for_status().json()['images'][0]
        start = time.perf_counter()
        pictures = await asyncio.gather(*map(one, range(PICTURES))) if together else [await one(k) for k in range(PICTURES)]
        return time.perf_counter() - start, pictures


async def compare(batched, single, steps):
    "Median pictures per second: batched, all at once to a server without batches, one after the other."
    roads, seconds, seen = [(batched, True), (single, True), (batched, False)], [[], [], []], [[], [], []]
    for _ in range(ROUNDS):
        for k, (url, together) in enumerate(roads):
            taken, pictures = await drawn(url, steps, together)
            seconds[k].append(taken); seen[k].append(pictures)
    exact = all(p == seen[0][0] for p in seen[0] + seen[2])
    return [[PICTURES/s for s in road] for road in seconds], exact


def main(model='', gpu='cpu', steps=8):
    with tempfile.TemporaryDirectory() as d:
        if not model:
            from llmi_kit.tools.image_model import tiny_pipeline
            model = Path(d)/'tiny'
            tiny_pipeline().save_pretrained(model)
        with serving(model, gpu, BATCH) as batched, serving(model, gpu, 1) as single:
            asyncio.run(drawn(batched, int(steps), True)); asyncio.run(drawn(single, int(steps), True))    # what is set up at the first call
            rates, exact = asyncio.run(compare(batched, single, int(steps)))
    for name, rate in zip((f'batches of {BATCH}', 'no batches', 'one after the other'), rates, strict=True):
        print(f'{name:20} {statistics.median(rate):7.2f} pictures/s')
    for name, other in ('no batches', rates[1]), ('one after the other', rates[2]):
        ratios = [a/b for a, b in zip(rates[0], other, strict=True)]
        print(f'batches against {name}: median {statistics.median(ratios):.2f}, worst {min(ratios):.2f} times')
    print('batched and alone:', 'the same bytes' if exact else 'not the same bytes')
    return statistics.median(rates[0]) > statistics.median(rates[1])


if __name__ == '__main__':
    raise SystemExit(not main(*sys.argv[1:]))
