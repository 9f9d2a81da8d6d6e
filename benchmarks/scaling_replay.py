"""What does stopping early save, and what does it lose, against best-of-16?

`record` lets the embedded writer answer each question 16 times and writes down what every answer cost, what a judge thinks of it who
knows only the question (its score: by that a candidate is chosen), and its reward, from judges who know the question's tools and
number of pictures (by that the choice is measured). Kill it whenever you like: it goes on where it was. `replay`, the default, needs no model: it hands
the candidates out in random orders, to best-of-1, 2, 4, 8, 16 and to a stopper that was tuned on the calibration questions alone.
Run: python benchmarks/scaling_replay.py record FILE [--calibration 60] [--heldout 60] [--n 16]
     python benchmarks/scaling_replay.py [replay FILE] [--cost tokens] [--wave 1] [--loss 0.005] [--orders 20]
Without a file, made-up candidates are replayed, whose easy and hopeless questions a good rule leaves early.
"""
import argparse
import asyncio
import os
import tempfile
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ValidationError

from llmi_kit.data import row_of
from llmi_kit.intervals import compare
from llmi_kit.stopping import Fixed, Recorded, best, replay, tune

N, TEMPERATURE, SAVED, LOST, SEED = 16, .8, .4, .01, 0
SPLITS = dict(calibration='train', heldout='test')


class Candidate(BaseModel):
    "A line of a recording."
    part: str               # calibration | heldout
    question: int           # number of its row
    seed: int
    text: str = ''
    tokens: int             # written; the prompt costs every rule the same
    seconds: float          # from the call for all answers to this one, without tools and judges
    score: float | None     # of judges who know the question alone, 0 to 1
    reward: float | None    # of judges who know the row


# Recording

def blind(verdicts):
    "0 to 1: the mean of the judges' mean grades; None where one that should have judged failed."
    if any(v.failure for v in verdicts.values()): return None
    grades = [mean(v.grades.values()) for v in verdicts.values() if v.grades]
    return (mean(grades) - 1)/4 if grades else None


async def candidate(written, row, facts, scorer):
    "One answer with its pictures, judged without the row's secrets and with them."
    text = written.completion.text
    with_row = await scorer(text, row)
    bare = row_of(row.extra_info.question, image_num=0, tools=(), images=row.images)
    score = blind(await scorer.judges(with_row.document, bare)) if with_row.document.answer.strip() else 0.
    took = dict(tokens=written.completion.tokens_out, seconds=written.completion.seconds, seed=written.completion.seed)
    return Candidate(text=text, score=score, reward=with_row.reward.value, **took, **facts)


def read(file):
    "All whole lines; a line that a kill cut short is left out."
    found = []
    for line in file.read_text(encoding='utf-8').splitlines() if file.exists() else []:
        try: found.append(Candidate.model_validate_json(line))
        except ValidationError: continue
    return found


def mend(file, kept):
    "The file with these lines alone, in one step."
    beside = file.with_name(f'.{file.name}.{os.getpid()}')
    beside.write_text(''.join(c.model_dump_json() + '\n' for c in kept), encoding='utf-8')
    beside.replace(file)


async def answers(writer, row, folder, n, seed):
    "n answers to a row, in one call: the same ones whenever it is asked."
    from llmi_kit.writer import Question
    paths = []
    for i, picture in enumerate(row.images):    # a writer reads files, and takes what they show from their names
        paths.append(folder/str(i)/f"{picture.origin.title or 'picture'}.{picture.mime[6:]}")
        paths[-1].parent.mkdir(exist_ok=True)
        paths[-1].write_bytes(picture.data)
    question = Question(question=row.extra_info.question, inputs=[str(p) for p in paths])
    return (await writer.write([question], n=n, seed=seed, temperature=TEMPERATURE))[0]


async def record(args):
    "Write what is missing. Raises SystemExit where the model can not be had."
    from llmi_kit.config import load_profile
    from llmi_kit.prompts import embedded_rows
    from llmi_kit.scorer import Scorer
    from llmi_kit.writer import Writer
    profile, known = load_profile('cpu'), read(args.file)
    if args.file.exists(): mend(args.file, known)
    done = {(c.part, c.question, c.seed) for c in known}
    todo = [(part, i, row) for part, split in SPLITS.items() for i, row in enumerate(embedded_rows(split, getattr(args, part)))]    # the first of all
    with Writer.from_profile(profile) as writer, Scorer(profile) as scorer, args.file.open('a', encoding='utf-8') as pen:
        for number, (part, i, row) in enumerate(todo, 1):
            if sum((part, i) == key[:2] for key in done) >= args.n: continue
            with tempfile.TemporaryDirectory() as folder: written = await answers(writer, row, Path(folder), args.n, i)
            for answer in written:
                if answer.failure: raise SystemExit(f'no answer: {answer.failure.message}')
                if (part, i, answer.completion.seed) in done: continue
                found = await candidate(answer, row, dict(part=part, question=i), scorer)
                print(found.model_dump_json(), file=pen, flush=True)
            print(f'{part} {i}: {number} of {len(todo)} questions', flush=True)


# Replaying

class Taken(NamedTuple):
    "Of one rule, one value a question, the mean over all orders."
    candidates: list
    cost: list
    reward: list    # None where no chosen candidate had one


def recorded(candidates, part, cost='tokens'):
    "The questions of a part, each with all its candidates."
    found = {}
    for c in sorted((c for c in candidates if c.part == part), key=lambda c: (c.question, c.seed)):
        # what has no reward can't be measured: it counts as a judge that failed
        row = (None if c.reward is None else c.score, dict(tokens=c.tokens, seconds=c.seconds, candidates=1)[cost], c.reward)
        found.setdefault(c.question, []).append(row)
    return [Recorded(*map(list, zip(*rows, strict=True))) for rows in found.values()]


def once(rule, question, wave):
    n = replay(rule, question.scores, question.costs, wave)
    at = best(question.scores[:n])
    return n, sum(question.costs[:n]), None if at is None else question.values[at]


def taken(rule, questions, orders=20, wave=1, seed=SEED):
    "What a rule takes, spends and gets. Every rule sees the same orders."
    rows = []
    for i, question in enumerate(questions):
        rng = np.random.default_rng([seed, i])
        seen = [once(rule, question.shuffled(rng), wave) for _ in range(orders)]
        rewards = [r for _, _, r in seen if r is not None]
        rows.append((mean(n for n, _, _ in seen), mean(c for _, c, _ in seen), mean(rewards) if rewards else None))
    return Taken(*map(list, zip(*rows, strict=True)))


def rules(calibration, n, args):
    "Name and rule of each line of the table."
    tuned = tune(calibration, args.loss, most=n, wave=args.wave, seed=SEED)
    return {f'best of {k}': Fixed(n=k) for k in sorted({k for k in (1, 2, 4, 8) if k < n} | {n})} | {'stopper': tuned}


def line(name, it, full, groups):
    saved, lost = 1 - mean(it.cost)/mean(full.cost), compare(full.reward, it.reward, groups, bounds=(0, 1)).difference
    got = mean(r for r in it.reward if r is not None)
    between = f'{lost.low:+.4f} to {lost.high:+.4f}' if lost.low is not None else lost.method
    print(f'{name:12} {mean(it.candidates):10.2f} {mean(it.cost):10.1f} {saved:7.1%} {got:8.4f} {lost.value:+10.4f}  ({between})')


def percent(full, it):
    "(saved, lost): shares of best-of-n's cost and mean reward; questions without a reward are in neither reward."
    pairs = [(a, b) for a, b in zip(full.reward, it.reward, strict=True) if a is not None and b is not None]
    return 1 - mean(it.cost)/mean(full.cost), 1 - mean(b for _, b in pairs)/mean(a for a, _ in pairs)


def report(calibration, heldout, args):
    "The table. True: the target is met."
    n = max(len(q.scores) for q in heldout)
    lines = rules(calibration, n, args)
    found = {name: taken(rule, heldout, args.orders, args.wave) for name, rule in lines.items()}
    groups, full = list(range(len(heldout))), found[f'best of {n}']
    print(f'{len(calibration)} questions to tune on, {len(heldout)} held out, {args.orders} orders, cost in {args.cost}, waves of {args.wave}, price {lines["stopper"].price:.3g}')
    print(f'{"rule":12} {"candidates":>10} {"cost":>10} {"saved":>7} {"reward":>8} {"difference":>10}  (95 %, paired by question)')
    for name, it in found.items(): line(name, it, full, groups)
    saved, lost = percent(full, found['stopper'])
    good = saved >= SAVED and lost <= LOST
    sure = compare(full.reward, found['stopper'].reward, groups).difference.low
    limit = -LOST*mean(r for r in full.reward if r is not None)
    print(f'stopper: {saved:.1%} less cost (target {SAVED:.0%}), {lost:.2%} less reward (target at most {LOST:.0%}): {"met" if good else "NOT MET"}'
          + ('' if sure is None else f"; the interval {'lies within' if sure >= limit else 'goes beyond'} the 1 %"))
    return good


def made_up(n=N, seed=SEED):
    "Candidates of easy, hopeless and mixed questions; the score is the reward with the judge's noise, the tokens know nothing of it."
    rng, found = np.random.default_rng(seed), []
    for part in SPLITS:
        for q in range(120):
            kind = rng.choice(3, p=[.4, .35, .25])
            worth = [np.where(rng.random(n) < .7, 1, .6), np.full(n, rng.choice([.2, .3, .4])), np.where(rng.random(n) < .5, .9, .5)][kind]
            for seed, (value, tokens) in enumerate(zip(worth, rng.integers(60, 240, n), strict=True)):
                score = float(np.clip(value + rng.normal(0, .01)*(value < 1), 0, 1))
                found.append(Candidate(part=part, question=q, seed=seed, tokens=int(tokens), seconds=tokens/100, score=score, reward=float(value)))
    return found


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('do', nargs='?', choices=('record', 'replay'), default='replay')
    parser.add_argument('file', nargs='?', type=Path, help='of candidates, .jsonl')
    parser.add_argument('--calibration', type=int, default=60, help='record: questions to tune on')
    parser.add_argument('--heldout', type=int, default=60, help='record: questions to measure on')
    parser.add_argument('--n', type=int, default=N, help='record: candidates to a question')
    parser.add_argument('--cost', choices=('tokens', 'seconds', 'candidates'), default='tokens')
    parser.add_argument('--wave', type=int, default=1, help='candidates written at the same time')
    parser.add_argument('--loss', type=float, default=LOST/2, help='that the tuning allows itself: half the target, as new questions differ')
    parser.add_argument('--orders', type=int, default=20, help='random orders of each question')
    args = parser.parse_args(argv)
    if args.do == 'record' and not args.file: parser.error('record needs a FILE to write to')
    if args.do == 'replay' and args.file and not args.file.exists(): parser.error(f'{args.file.name} does not exist: record it first')
    if min(args.n, args.wave, args.orders, args.calibration, args.heldout) < 1: parser.error('numbers are 1 or more')
    return args


def main(argv=None):
    "True: done, or the target is met."
    args = arguments(argv)
    if args.do == 'record':
        asyncio.run(record(args))
        return True
    if not args.file: print('no file: these are made-up candidates')
    candidates = read(args.file) if args.file else made_up()
    calibration, heldout = (recorded(candidates, part, args.cost) for part in SPLITS)
    if not calibration or not heldout: raise SystemExit('the recording has no questions of one part: record both')
    return report(calibration, heldout, args)


if __name__ == '__main__': raise SystemExit(not main())
