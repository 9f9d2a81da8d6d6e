"""Are judges behind HTTP fast, asked once, and honest when their server isn't well?

A judge on loopback takes 0.4 s a reply; 5 % each of the requests meet a 429 with Retry-After, a 500, a hang or garbage. Measured
in one run: verdicts a second, 16 at once against one by one; two processes that ask the same questions at the same time (the
server counts); verdicts by what became of them; a rerun from the store. Run: python benchmarks/judges.py
"""
import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / 'tests'))
from judge_server import judge_server

from llmi_kit.chat import ServerChat
from llmi_kit.data import row_of
from llmi_kit.document import parse
from llmi_kit.judges import ChatJudge, Judges
from llmi_kit.picture import Origin, Picture
from llmi_kit.slots import Slots

LATENCY, AT_ONCE, SERIAL, ROUNDS = .4, 16, 8, 3
DOCUMENTS = 104     # two verdicts each
SECONDS, EACH = 20, 2   # deadline of a verdict, and of one try, which ends a hang
FAULTS = {'429': .05, '500': .05, 'hang': .05, 'garbage': .05}
TAG = "<imgen>{'source': 'search', 'description': 'd', 'params': {'query': 'a cat'}}</imgen>"


def cases(n, start=0):
    "Answers with a picture of their own each, and their rows."
    made = []
    for i in range(start, start + n):
        picture = Picture.from_pil(Image.linear_gradient('L').resize((320 + i, 240)), Origin(tool='search'))
        document = parse(f'Answer {i}. ' + 'Cats sleep most of the day. ' * 20 + TAG)
        document.tags[0].result = picture
        made.append((document, row_of(f'Question {i}?')))
    return made


def judges(server, folder, workers=AT_ONCE, tries=4):
    def one(reads):
        chat = ServerChat(server, 'judge', retries=0)
        return ChatJudge(reads, chat, seconds=SECONDS, try_seconds=EACH, tries=tries, slots=Slots(workers, f'{folder}/slots'), store=f'{folder}/verdicts')
    return Judges(one('text'), one('pictures'))


async def ask(panel, asked):
    "All verdicts, and the seconds they took."
    start = time.perf_counter()
    both = await asyncio.gather(*(panel(document, row) for document, row in asked))
    return [v for pair in both for v in pair.values()], time.perf_counter() - start


def told(verdicts):
    "How many verdicts have grades, how many a reason for none, and which."
    assert all(bool(v.grades) != bool(v.failure) for v in verdicts)
    return Counter('grades' if v.grades else v.failure.kind for v in verdicts)


def other(line):
    "One of two processes that ask all questions at the same moment, as soon as they are told where."
    verdicts, seconds = asyncio.run(ask(judges(*line.recv()), cases(DOCUMENTS)))
    line.send((told(verdicts), seconds))


def start():
    "Such a process, forked while this one has no threads."
    fork = multiprocessing.get_context('fork')
    here, there = fork.Pipe()
    fork.Process(target=other, args=(there,), daemon=True).start()
    return here


async def throughput():
    "(16 at once) / (one by one), verdicts a second over all rounds, faults included."
    serial, at_once = [], []
    for k in range(ROUNDS):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as many, judge_server(seconds=LATENCY, faults=FAULTS, seed=k) as server:
            panel = judges(server.base, many)
            await panel(*cases(1, 900)[0])     # imports and connections are no part of it
            alone = judges(server.base, one, 1)
            serial.append(sum([(await ask(alone, [case]))[1] for case in cases(SERIAL, 500 + 100*k)]))
            verdicts, seconds = await ask(panel, cases(DOCUMENTS))
            at_once.append(seconds)
            print(f'round {k}: one by one {2*SERIAL/serial[-1]:.2f}/s ({1/LATENCY:.1f}/s without faults), {AT_ONCE} at once',
                  f'{2*DOCUMENTS/seconds:.2f}/s; {server.most} at once at most;', dict(told(verdicts)))
    one, many = 2*SERIAL*ROUNDS/sum(serial), 2*DOCUMENTS*ROUNDS/sum(at_once)    # a hang more or less in a short round says little
    print(f'all rounds: one by one {one:.2f}/s, {AT_ONCE} at once {many:.2f}/s')
    return many/one


def two_processes(both):
    "Questions answered twice, all verdicts accounted for, and how often a warm rerun is faster."
    with tempfile.TemporaryDirectory() as folder, judge_server(seconds=LATENCY, faults=FAULTS, seed=9) as server:
        for line in both: line.send((server.base, folder))
        told_by, seconds = zip(*(line.recv() for line in both), strict=True)
        twice = sum(n - 1 for n in server.answered.values())
        print(f'two processes: {len(server.answered)} questions, {sum(server.answered.values())} good answers, {twice} given twice;',
              f'{server.most} at once at most;', *map(dict, told_by))
        full = all(t.total() == 2*DOCUMENTS for t in told_by)
        return twice, full and server.most <= AT_ONCE, *rerun(server, folder, min(seconds))


def rerun(server, folder, cold):
    "Seconds of the first run over those of one from the store."
    requests, asked, warm = len(server.seen), cases(DOCUMENTS), []
    asyncio.run(ask(judges(server.base, folder), asked))    # asks again what failed
    added = len(server.seen) - requests
    requests = len(server.seen)
    for _ in range(ROUNDS):
        verdicts, seconds = asyncio.run(ask(judges(server.base, folder), asked))
        warm.append(seconds)
    print(f'warm: {cold:.2f} s first, {statistics.median(warm):.3f} s from the store: {cold/statistics.median(warm):.0f} times;',
          f'{len(server.seen) - requests} requests; {added} before it for what had failed')
    return cold/statistics.median(warm), len(server.seen) == requests and all(v.grades and not v.tries for v in verdicts)


def main():
    both = [start(), start()]
    times = asyncio.run(throughput())
    twice, accounted, faster, silent = two_processes(both)
    print(f'{times:.1f} times the serial throughput (at least 8), {twice} duplicate calls (0), accounted for: {accounted},',
          f'a warm rerun {faster:.0f} times faster (at least 50), with no request: {silent}')
    return times >= 8 and twice == 0 and accounted and faster >= 50 and silent


if __name__ == '__main__':
    raise SystemExit(not main())
