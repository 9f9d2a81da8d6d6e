"""What does stopping early save, and what does it lose, against best-of-16?

It reads the studies that the pipeline notebook `scaling` writes (results/PROFILE/scaling/studies.jsonl, or its record figures/PROFILE/runs/scaling.json): every answer to each question with what it cost,
its score from judges who know the question alone (by that one is chosen) and its reward from judges who know what was wanted (by that the choice is
measured). No model is needed here: the answers are handed out in random orders, to best-of-1, 2, 4, 8, 16 and to a stopper that was tuned on the
calibration questions alone.
Run: python benchmarks/scaling_replay.py [FILE] [--cost tokens] [--wave 1] [--loss 0.005] [--orders 20]
Without a file, made-up candidates are replayed, whose easy and hopeless questions a good rule leaves early.
"""
import argparse, json
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np

from llmi_kit.intervals import compare
from llmi_kit.scaling_study import Studied, Tried, read_studies
from llmi_kit.stopping import Fixed, Recorded, best, replay, tune

N, SAVED, LOST, SEED = 16, .4, .01, 0
PARTS = 'calibration', 'heldout'


class Taken(NamedTuple):
    "Of one rule, one value a question, the mean over all orders."
    candidates: list
    cost: list
    reward: list    # None where no chosen candidate had one


def studies_of(file):
    "Of a file that a study writes line by line, or of a record with all of them."
    if file.suffix != '.json': return read_studies(file)
    return [Studied.model_validate(s) for s in json.loads(file.read_text())['studies']]


def recorded(studies, part, cost='tokens'):
    "The questions of a part, each with all its candidates."
    found = []
    for s in (s for s in studies if s.part == part):
        # what has no reward can't be measured: it counts as a judge that failed
        rows = [(None if t.reward is None else t.score, dict(tokens=t.tokens, candidates=1)[cost], t.reward) for t in s.tried]
        found.append(Recorded(*map(list, zip(*rows, strict=True))))
    return found


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
    for part in PARTS:
        for q in range(120):
            kind = rng.choice(3, p=[.4, .35, .25])
            worth = [np.where(rng.random(n) < .7, 1, .6), np.full(n, rng.choice([.2, .3, .4])), np.where(rng.random(n) < .5, .9, .5)][kind]
            noisy = np.clip(worth + rng.normal(0, .01, n)*(worth < 1), 0, 1)
            rows = enumerate(zip(noisy, worth, rng.integers(60, 240, n), strict=True))
            tried = [Tried(seed=seed, score=score, reward=value, tokens=tokens, holes=0, answer='') for seed, (score, value, tokens) in rows]
            found.append(Studied(number=q, question=str(q), part=part, tools=(), tried=tried, after={}, cost={}))
    return found


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', nargs='?', type=Path, help='studies.jsonl of the pipeline notebook scaling')
    parser.add_argument('--cost', choices=('tokens', 'candidates'), default='tokens')
    parser.add_argument('--wave', type=int, default=1, help='candidates written at the same time')
    parser.add_argument('--loss', type=float, default=LOST/2, help='that the tuning allows itself: half the target, as new questions differ')
    parser.add_argument('--orders', type=int, default=20, help='random orders of each question')
    args = parser.parse_args(argv)
    if args.file and not args.file.exists(): parser.error(f'{args.file.name} does not exist: the pipeline notebook scaling writes it')
    if min(args.wave, args.orders) < 1: parser.error('numbers are 1 or more')
    return args


def main(argv=None):
    "True: the target is met."
    args = arguments(argv)
    if not args.file: print('no file: these are made-up candidates')
    studies = studies_of(args.file) if args.file else made_up()
    calibration, heldout = (recorded(studies, part, args.cost) for part in PARTS)
    if not calibration or not heldout: raise SystemExit('the studies have no questions of one part: the pipeline notebook scaling writes both')
    return report(calibration, heldout, args)


if __name__ == '__main__': raise SystemExit(not main())
