"""Every notebook, each in a process of its own: two processes for all of them, as nbdev-test has, grow to 23 GB.

Run: python tests/notebooks.py [processes at once]. The processes fork from one that has imported the large libraries."""
import multiprocessing
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb

ROOT = Path(__file__).parent.parent
FORKS = multiprocessing.get_context('forkserver')
# slow to import, and with one thread for products none of these starts a thread, which a fork would lose
LARGE = ['torch', 'transformers.models.auto.modeling_auto', 'torch._dynamo', 'bitsandbytes', 'peft', 'diffusers.pipelines.auto_pipeline']


def one(file):
    "In the process of this notebook: does it run to its end?"
    good, _ = test_nb(file, skip_flags=get_config().tst_flags.split(), basepath=ROOT)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(not good)      # what a notebook has left behind, threads or models, ends here


def tried(file, again=True):
    start, process = time.perf_counter(), FORKS.Process(target=one, args=(file,))
    process.start()
    process.join()
    if process.exitcode == 255 and again: return tried(file, again=False)   # multiprocessing's word for "I don't know how it ended"
    return file, process.exitcode, time.perf_counter() - start


if __name__ == '__main__':
    os.chdir(ROOT/'nbs')
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    os.environ.setdefault('PYTHONWARNINGS', 'ignore:resource_tracker')     # of locks that were open when a notebook's process ended
    FORKS.set_forkserver_preload(['nbdev.test', *LARGE])
    found = [f for f in nbglob(as_path=True) if not (f.parent/'.notest').exists()]      # nbdev-test's own sign: the pipelines take hours
    files = sorted(found, key=lambda f: ('tutorials' not in f.parts, f.name))   # tutorials take longest: they begin
    with ThreadPoolExecutor(int(sys.argv[1]) if len(sys.argv) > 1 else 2) as threads: found = list(threads.map(tried, files))
    slow = ', '.join(f'{f.stem} {s:.0f} s' for f, _, s in sorted(found, key=lambda x: -x[-1])[:8])
    print(f'{len(found)} notebooks; the longest: {slow}')
    if failed := [f'{f.name} ({"failed" if code == 1 else f"ended by signal {-code}" if code < 0 else f"ended with {code}"})' for f, code, _ in found if code]:
        sys.exit('these notebooks failed: ' + ', '.join(failed))
