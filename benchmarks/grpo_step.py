"""How much faster is our GRPO step than TRL's, and in how much less memory?

Stock TRL and ours train the embedded backbone with LoRA, each in a process of its own, step by step in turns: same questions,
same weights (the learning rate is 0), and the same answers, which both are made to write. Then an asynchronous reward that
takes as long as the writing, beside TRL's order of doing things. Seconds depend on the machine; the ratios count.
Run: python benchmarks/grpo_step.py [--rounds 1] [--prompts 4] [--bf16] [--no-checkpointing] [--no-overlap]
"""
import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

PROMPTS, ANSWERS, TOKENS, SEED = 4, 4, 140, 3     # 8 questions are the 32 answers of a usual step, and take twice as long
FASTER, SMALLER, SAME, OVERLAP = 2., .6, 1e-3, 1.6


def peak(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1e6     # GB


def answers():
    "Token ids to be written, as a warm started writer might: mean about 60, some to the limit."
    import random

    from llmi_kit.backbone import embedded_folder
    from llmi_kit.questions import make_rows
    from transformers import AutoTokenizer
    tokenizer, rng, found = AutoTokenizer.from_pretrained(embedded_folder()), random.Random(SEED), []
    for row in make_rows(PROMPTS, seed=SEED):
        ids = tokenizer(row.answer*3)['input_ids']
        for _ in range(ANSWERS):
            n = min(TOKENS, max(4, round(rng.lognormvariate(3.95, .6))))
            found.append(ids[:n - 1] + [tokenizer.eos_token_id] if n < TOKENS else ids[:TOKENS])
    return found


class Clock:
    "Seconds by name."
    def __init__(self): self.seconds = {}

    def timed(self, name, method):
        def run(*args, **kwargs):
            start = time.perf_counter()
            try: return method(*args, **kwargs)
            finally: self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - start
        return run


def forced(torch, fast, said):
    "Make whoever samples draw the tokens of `said`; the real draw still happens."
    import llmi_kit.grpo_trainer as ours
    real, at = torch.multinomial, [0]*len(said)

    def take(rows):
        tokens = [said[i][at[i]] if at[i] < len(said[i]) else 0 for i in rows]
        for i in rows: at[i] += 1
        return torch.tensor(tokens)

    def everyone(probabilities, num_samples):
        real(probabilities, num_samples)
        return take(range(len(said)))[:, None]

    def sampler(*args):
        draw = real_sampler(*args)
        def some(scores, rows):
            draw(scores, rows)
            return take(rows)
        return some
    real_sampler = ours.sampler
    if fast: ours.sampler = sampler
    else: torch.multinomial = everyone
    return lambda: at.__setitem__(slice(None), [0]*len(said))


def trainer(options, reward, **more):
    "Stock trainer or ours, on the warm started backbone."
    from datasets import Dataset
    from llmi_kit.backbone import load
    from llmi_kit.document import instructions
    from llmi_kit.grpo_trainer import FastGRPOTrainer
    from llmi_kit.questions import make_rows
    from trl import GRPOConfig, GRPOTrainer
    model, tokenizer = load('embedded', adapter='embedded')
    for name, p in model.named_parameters(): p.requires_grad_('lora_' in name)
    head = dict(role='system', content=instructions('compact'))
    rows = [dict(prompt=[head, dict(role='user', content=r.prompt)]) for r in make_rows(PROMPTS, seed=SEED)]
    config = dict(per_device_train_batch_size=8, gradient_accumulation_steps=PROMPTS*ANSWERS//8, num_generations=ANSWERS,
                  max_completion_length=TOKENS, max_steps=options.rounds, learning_rate=0., max_grad_norm=0., loss_type='dr_grpo',
                  bf16=options.bf16, gradient_checkpointing=not options.no_checkpointing, shuffle_dataset=False, use_cpu=True, seed=SEED,
                  report_to=[], save_strategy='no', logging_strategy='no', disable_tqdm=True)
    kind = FastGRPOTrainer if options.child == 'ours' else GRPOTrainer
    return kind(model=model, reward_funcs=reward, args=GRPOConfig(options.folder, **config), train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer, **more)


def child(options):
    "One side: a step whenever the parent says so, then its gradient and its peak."
    import torch
    from transformers import TrainerCallback
    said, clock, weigh = answers(), Clock(), lambda completions, **k: [len(c[0]['content']) % 7 / 7 for c in completions]
    again = forced(torch, options.child == 'ours', said)

    class Turns(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            print('ready', flush=True)
            if not sys.stdin.readline(): raise SystemExit('the other side ended')
            again()
            clock.seconds.clear(); self.start, self.cpu = time.perf_counter(), time.process_time()

        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 0:
                grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
                torch.save(grads, Path(options.folder)/f'{options.child}.pt')

        def on_step_end(self, *args, **kwargs):
            step = time.perf_counter() - self.start
            print(json.dumps(clock.seconds | dict(step=step, cpu=time.process_time() - self.cpu)), flush=True)

    t = trainer(options, weigh, callbacks=[Turns()])
    for name, method in dict(writing='_generate_single_turn', scoring='_calculate_rewards', all='_generate_and_score_completions').items():
        setattr(t, method, clock.timed(name, getattr(t, method)))
    t.train()
    print(json.dumps(dict(peak=peak())), flush=True)


class Side:
    "A child process that trains in turns."
    def __init__(self, name, options, folder):
        self.name, self.steps = name, []
        command = [sys.executable, __file__, '--child', name, '--folder', folder, '--rounds', str(options.rounds), '--prompts', str(PROMPTS)]
        command += ['--bf16']*options.bf16 + ['--no-checkpointing']*options.no_checkpointing
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | dict(HF_HUB_OFFLINE='1'))

    def line(self, start):
        for line in self.process.stdout:
            if line.startswith(start): return line
        raise RuntimeError(f'{self.name} ended early')

    def step(self):
        self.process.stdin.write('go\n'); self.process.stdin.flush()
        found = json.loads(self.line('{'))
        found['loss'] = found['step'] - found['all']
        self.steps.append(found)
        print(f"{self.name:6}" + ''.join(f"{found[k]:10.1f}" for k in ('writing', 'scoring', 'loss', 'step', 'cpu')), flush=True)


def gradients_differ(folder):
    import torch
    a, b = (torch.load(Path(folder)/f'{name}.pt') for name in ('stock', 'ours'))
    assert a.keys() == b.keys()
    return (sum((a[k] - b[k]).pow(2).sum() for k in a) / sum(a[k].pow(2).sum() for k in a)).sqrt().item()


def overlap(options):
    "Ratio of writing and then scoring to doing both at once; scoring all answers takes as long as writing them."
    import torch
    said, clock = answers(), Clock()
    again, pace = forced(torch, True, said), {}

    async def judge(completions, **kwargs):
        for _ in completions:
            async with pace['one at a time']: await asyncio.sleep(pace['seconds'])
        return [len(c[0]['content']) % 7 / 7 for c in completions]
    options.child = 'ours'
    t = trainer(options, judge, overlap=False)
    rows = [t.train_dataset[i // ANSWERS] for i in range(PROMPTS*ANSWERS)]
    write = t._generate_single_turn
    t._generate_single_turn = clock.timed('writing', write)

    def run(overlapped, slots, seconds):
        again(); clock.seconds.clear()
        t.overlap, t.slots = overlapped, slots
        pace.update({'one at a time': asyncio.Semaphore(1), 'seconds': seconds})
        start, t.early = time.perf_counter(), None
        t._metrics['train'].clear(); t._logs['rewards'].clear()
        t._generate_and_score_completions([dict(r) for r in rows])
        return time.perf_counter() - start, clock.seconds['writing'], list(t._logs['rewards']['judge'])
    t.model.train()
    _, writing, _ = run(False, None, 0)
    found = []
    for _ in range(options.rounds):
        after, alone, plain = run(False, None, writing/len(rows))
        at_once, busy, early = run(True, None, writing/len(rows))
        assert early == plain, 'other rewards'
        found.append((after, at_once))
        print(f'scoring takes {writing:.1f} s: {after:.1f} s after writing for {alone:.1f} s, {at_once:.1f} s while writing for {busy:.1f} s')
        writing = busy      # the machine's speed now, for the next round
    gain = statistics.median(a for a, _ in found)/statistics.median(b for _, b in found)
    print(f'scoring while writing is {gain:.2f} times faster (at least {OVERLAP})')
    return gain


def main(options):
    with tempfile.TemporaryDirectory() as folder:
        sides = []
        for name in 'stock', 'ours':
            sides.append(Side(name, options, folder)); sides[-1].line('ready')
        print(f"{'s':6}{'writing':>10}{'scoring':>10}{'loss':>10}{'step':>10}{'processor':>10}")
        for _ in range(options.rounds):
            for side in sides: side.step()
        stock, ours = sides
        memory = [json.loads(s.line('{"peak"'))['peak'] for s in sides]
        ratios = {k: statistics.median(s[k] for s in stock.steps)/statistics.median(s[k] for s in ours.steps) for k in ('writing', 'loss', 'step', 'cpu')}
        differ = gradients_differ(folder)
        print(f"a step {ratios['step']:.2f} times faster (at least {FASTER}); writing {ratios['writing']:.2f}, loss and gradient {ratios['loss']:.2f}; processor time {ratios['cpu']:.2f}")
        print(f'peak memory {memory[0]:.2f} and {memory[1]:.2f} GB: {memory[1]/memory[0]:.2f} (at most {SMALLER}); gradient differs by {differ:.1e} (at most {SAME})')
        options.folder = folder
        gain = overlap(options) if not options.no_overlap else OVERLAP
    return ratios['step'] >= FASTER and memory[1] <= SMALLER*memory[0] and differ <= SAME and gain >= OVERLAP


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    p = argparse.ArgumentParser()
    p.add_argument('--rounds', type=int, default=1)
    p.add_argument('--prompts', type=int, default=PROMPTS)
    for flag in 'bf16', 'no-checkpointing', 'no-overlap': p.add_argument('--' + flag, action='store_true')
    for hidden in 'child', 'folder': p.add_argument('--' + hidden, help=argparse.SUPPRESS)
    options = p.parse_args()
    PROMPTS = options.prompts
    if options.child: child(options)
    else: raise SystemExit(not main(options))
