"""How fast does a local chat write many answers: each at its own length, 32 at once, against transformers' `generate` in batches of 8?

Run on a quiet machine: python benchmarks/writing.py [questions]. Greedy answers to questions of our benchmark by the embedded writer, at most 200 tokens, the two
ways taking turns; tokens per second of processor time, and how many answers are the same to the letter.
"""
import sys, threading, time

from llmi_kit.chat import chat_from_profile
from llmi_kit.local_chat import Call, Row
from llmi_kit.checked_questions import load_checked
from llmi_kit.config import load_profile
from llmi_kit.writer import conversation

TOKENS, ROUNDS = 200, 2


def main(n=24):
    chat, asked = chat_from_profile(load_profile('cpu')), load_checked()
    chat._open()
    talks = [conversation(q.text, [], 'compact') for q in asked[::max(1, len(asked)//n)][:n]]
    rows = [Row(chat.encode(t), TOKENS, 0, 0) for t in talks]
    ways, found, speeds = {'batches of 8': (chat._in_batches, 8), '32 at once': (chat._flowing, 32)}, {}, {}
    for name in list(ways)*ROUNDS:
        write, size = ways[name]
        start = time.process_time()
        found[name] = write(rows, Call(0., [], threading.Event(), None), size)
        took, tokens = time.process_time() - start, sum(count for _, count, _ in found[name])
        speeds.setdefault(name, []).append(tokens/took)
        print(f'{name:12} {tokens:6} tokens  {took:6.1f} s of processor time  {tokens/took:5.1f} tokens/s', flush=True)
    slow, fast = (sum(s)/len(s) for s in speeds.values())
    same = sum(a[0] == b[0] for a, b in zip(*found.values(), strict=True))
    print(f'{fast/slow:.2f} times as fast; {same} of {len(rows)} answers are the same')


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
