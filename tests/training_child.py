"""A training on a tiny policy, in a process of its own, so that it can be killed.

    python tests/training_child.py FOLDER [--resume] [--die STEP] [--interrupt MICROBATCH]

FOLDER holds `model` and gets `run` and scored.txt, a line for each answer that was really scored.
"""
import argparse, os, signal, sys, warnings
from itertools import count
from pathlib import Path

from transformers.utils import logging

from llmi_kit.config import load_profile
from llmi_kit.grpo import Recipe
from llmi_kit.grpo_trainer import FastGRPOTrainer
from llmi_kit.prompts import embedded_rows
from llmi_kit.reward import Reward
from llmi_kit.scorer import Scored, Scorer
from llmi_kit.training import training

RECIPE = Recipe(steps=6, prompts=2, answers=4, micro=4, max_tokens=16, warmup=1, rank=4, lr=1e-2)


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("folder", type=Path); ask.add_argument("--resume", action="store_true")
    ask.add_argument("--die", type=int, default=-1); ask.add_argument("--interrupt", type=int, default=-1)
    ask = ask.parse_args()
    warnings.simplefilter("ignore"); logging.set_verbosity_error(); logging.disable_progress_bar()
    scored = ask.folder/"scored.txt"

    async def score(self, answer, row, seed=None):  # the share of small letters: cheap, and something to learn
        with scored.open("a") as f: print(repr((answer, row.extra_info.question)), file=f)
        text = sum("a" <= c <= "z" for c in answer)/max(1, len(answer))
        return Scored(None, Reward(value=.2 + .5*text, count=1, text=text, pictures=0.))
    Scorer.__call__ = score
    calls, usual = count(1), FastGRPOTrainer.training_step

    def training_step(self, *args, **kwargs):   # in the main thread, which is the one that hears a signal
        if next(calls) == ask.interrupt: os.kill(os.getpid(), signal.SIGINT)
        return usual(self, *args, **kwargs)
    FastGRPOTrainer.training_step = training_step

    def tell(log):
        if log["step"] == ask.die: os.kill(os.getpid(), signal.SIGKILL)
    profile = load_profile("cpu").model_copy(update=dict(backbone=str(ask.folder/"model"), adapter=""))
    try: training(profile, embedded_rows("train")[:40], RECIPE, ask.folder/"run", ask.resume, save_steps=2, tell=tell)
    except KeyboardInterrupt: sys.exit(130)


if __name__ == "__main__": main()
