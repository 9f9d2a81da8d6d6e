"""Tokens per second of the embedded backbone: batch 1, 8 and 32, in bfloat16, float32 and NF4, side by side.

Run on a quiet machine: python benchmarks/chat.py [tokens]. Each figure is the median of three, the kinds taking turns;
the first token, which waits for the prompt, is left out and given as seconds."""
import statistics, sys, time

import torch

from llmi_kit.backbone import load_embedded, write_batch

KINDS = dict(bf16={}, f32=dict(dtype=torch.float32), nf4=dict(quantization='nf4'))


def rows(tokenizer, n):
    words = 'bread wine tea salt gold silk paper glass'.split()
    ask = lambda w: [dict(role='user', content=f'Write about the history of {w} in a few paragraphs.')]
    prompt = lambda w: dict(tokenizer.apply_chat_template(ask(w), add_generation_prompt=True, return_dict=True, return_tensors='pt'))
    return [prompt(words[i % 8]) for i in range(n)]


def timed(model, tokenizer, inputs, tokens):
    "Seconds to the first token, and tokens per second after it."
    spent = []
    for length in (1, tokens):
        start = time.perf_counter()
        out = write_batch(model, tokenizer, inputs, [length]*len(inputs), seeds=list(range(len(inputs))), temperature=1.)
        spent.append((time.perf_counter() - start, sum(o[1] for o in out)))
    (first, n), (whole, m) = spent
    return first, (m - n)/(whole - first)


def main(tokens=33):
    loaded = {name: load_embedded(**how) for name, how in KINDS.items()}
    print(f'{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, cuda {torch.cuda.is_available()}')
    for batch in (1, 8, 32):
        seen = {name: [] for name in KINDS}
        for _ in range(3):
            for name, (model, tokenizer) in loaded.items():
                seen[name].append(timed(model, tokenizer, rows(tokenizer, batch), tokens))
        for name, runs in seen.items():
            first, speed = (statistics.median(column) for column in zip(*runs, strict=True))
            print(f'batch {batch:2}  {name:5} first token {first:6.2f} s  then {speed:7.1f} tokens/s', flush=True)


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
