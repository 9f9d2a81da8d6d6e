"""Drawings per second: the sandbox against a fresh `python -c` for each, and against drawing in this process.

The same code in the same run, in interleaved rounds, since the machine may be busy with other things; medians of the rounds.
About one minute on 2 cores.
"""
import argparse, io, os, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

os.environ["MPLBACKEND"] = "agg"
import matplotlib.pyplot as plt, numpy as np, pandas as pd, seaborn as sns
from llmi_kit.sandbox import Sandbox

CODE = """
data = pd.DataFrame({"city": ["Oslo", "Lima", "Cairo"] * 2, "year": [2000] * 3 + [2020] * 3, "people": [0.5, 6.8, 13.6, 0.7, 10.7, 20.9]})
sns.barplot(data, x="city", y="people", hue="year")
plt.title("Population in millions, $p(t)$")
"""
FRESH = f"import matplotlib.pyplot as plt, pandas as pd, seaborn as sns, numpy as np\n{CODE}\nplt.savefig('out.png', bbox_inches='tight')"


def here():
    "As a trusting program would: draw in this process."
    out = io.BytesIO()
    exec(CODE, dict(plt=plt, pd=pd, sns=sns, np=np))
    plt.savefig(out, format="png", bbox_inches="tight", metadata={"Software": None})
    plt.close("all")
    return out.getvalue()


def fresh(_):
    "As the reference implementation does: a fresh interpreter, no protection."
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", FRESH], cwd=folder, check=True)


def seconds_each(call, times, pool=None):
    start = time.perf_counter()
    if pool: list(pool.map(call, range(times)))
    else:
        for n in range(times): call(n)
    return (time.perf_counter() - start) / times


def main():
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--rounds", type=int, default=5); ask.add_argument("--workers", type=int, default=2)
    ask = ask.parse_args()
    names = "in process", "sandbox, one at a time", f"sandbox, {ask.workers} at once", f"fresh python -c, {ask.workers} at once"
    rows = {name: [] for name in names}
    with Sandbox(workers=ask.workers, seconds=60) as sandbox, ThreadPoolExecutor(ask.workers) as pool:
        pictures = {sandbox.draw(CODE).png for _ in range(4)}
        fresh(0); here()
        for _ in range(ask.rounds):
            rounds = (seconds_each(lambda _: here(), 6), seconds_each(lambda _: sandbox.draw(CODE), 6),
                      seconds_each(lambda _: pictures.add(sandbox.draw(CODE).png), 12, pool), seconds_each(fresh, 2, pool))
            for name, value in zip(rows, rounds, strict=True): rows[name].append(value)
    for name, values in rows.items():
        print(f"{name:32} {1000 * median(values):7.1f} ms a drawing {1 / median(values):7.1f} drawings/s")
    own, single, many, fresh_one = rows.values()
    faster = median(f / s for f, s in zip(fresh_one, many, strict=True))
    slower = median(s / o for s, o in zip(single, own, strict=True))
    print(f"sandbox against fresh processes: {faster:.1f} times as many drawings (wanted: at least 8)")
    print(f"sandbox against drawing in process: {slower:.2f} times the time (wanted: at most 1.7)")
    print(f"different pictures of the same code: {len(pictures)} (wanted: 1)")
    sys.exit(not (faster >= 8 and slower <= 1.7 and len(pictures) == 1 and None not in pictures))


if __name__ == "__main__": main()
