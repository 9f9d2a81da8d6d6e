"""What the sandbox promises to its callers: errors that help, pictures that repeat, nothing left behind."""
import asyncio, gc, io, os, shutil, signal, subprocess, sys, threading, time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llmi_kit import confine, drawing, sandbox
from llmi_kit.sandbox import Drawing, Sandbox, check_png

PLOT = "plt.plot([1, 3, 2])"


@pytest.fixture(scope="module")
def box():
    with Sandbox(seconds=60) as s: yield s


def pixels(d): return np.asarray(Image.open(io.BytesIO(d.png)))


def children(): return {int(p) for p in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


@pytest.mark.parametrize("code, says", [
    ("x = 1\ny = x / 0", "ZeroDivisionError: division by zero (line 2: y = x / 0)"),
    ("def f():\n    return undefined\n\nplt.plot(f())", "NameError: name 'undefined' is not defined (line 2: return undefined)"),
    ("plt.plot([1, 2)", "SyntaxError: closing parenthesis ')' does not match opening parenthesis '[' (line 1: plt.plot([1, 2))"),
    ("plt.plot([1, 2], [1])", "(line 1: plt.plot([1, 2], [1]))"),
    ("import sys; sys.exit('no data')", "SystemExit: no data (line 1"),
    ("raise KeyboardInterrupt", "KeyboardInterrupt (line 1"), ("x = '\0'", "null bytes"), ("x = '\ud800'", "surrogates"),
    ("", "drew nothing"), ("print('no figure')", "drew nothing"), ("plt.figure()", "drew nothing"),
    ("plt.subplots(2, 2)", "drew nothing"), ("plt.title('only a title')", "drew nothing"),
    ("plt.figure(figsize=(1e5, 1e5)); plt.plot([1])", "inches long"),
    ("plt.figure(figsize=(float('nan'), 1)); plt.plot([1])", "finite"),
    ("input('?')", "EOFError"), ("import tkinter.nothing", "ModuleNotFoundError"),
])
def test_errors_name_exception_and_line(box, code, says):
    d = box.draw(code)
    assert d.png is None and d.kind == "code" and says in d.error, d.error


def test_time_is_up_with_the_line_it_hung_on():
    with Sandbox(seconds=1) as s:
        d = s.draw("plt.plot([1])\nwhile True:\n    pass")
        assert d.kind == "timeout" and d.error.startswith("TimeoutError: still running after 1 s (line ") and d.seconds < 10
        d = s.draw("sum(range(10**15))")
        assert d.kind == "timeout" and "1 s" in d.error


@pytest.mark.parametrize("bad", [None, 3, b"plt.plot([1])"])
def test_code_that_is_no_text(box, bad): assert box.draw(bad).kind == "invalid"


def test_code_too_long(box): assert box.draw("#" * 2**20 + "\n").kind == "invalid"


def test_prints_are_captured_and_cut(box):
    d = box.draw("print('größte', 3)\n" + PLOT)
    assert d.png and d.stdout == "größte 3\n"
    d = box.draw("for _ in range(1000): print('x' * 1000)\n" + PLOT)
    assert d.png and len(d.stdout) < 21_000 and d.stdout.endswith("more characters")
    assert box.draw("print('before'); 1 / 0").stdout == "before\n"


def test_same_code_same_bytes(box):
    code = "import random\nx = np.random.rand(9) + np.random.default_rng().random(9) + random.random()\nsns.histplot(x); sns.kdeplot(x)"
    first = box.draw(code)
    assert first.png and {box.draw(code).png for _ in range(4)} == {first.png}
    with Sandbox(seconds=60) as other: assert other.draw(code).png == first.png
    assert box.draw(code + "; plt.title('b')").png != first.png


def test_all_figures_in_one_picture(box):
    one, two = box.draw(PLOT), box.draw(f"plt.figure(); {PLOT}; plt.figure(); {PLOT}; plt.figure()")
    assert pixels(two).shape[0] == 2 * pixels(one).shape[0] and pixels(two).shape[1] == pixels(one).shape[1]


@pytest.mark.parametrize("code", [
    "plt.show()", "plt.savefig('chart.png')", "plt.savefig('chart.png'); plt.close()", "plt.savefig('/nowhere/x.png'); plt.close('all')",
    "plt.gcf().savefig('chart.svg')", "plt.show(); plt.close()", "plt.show(block=True)", "import matplotlib; matplotlib.use('TkAgg')",
    "import io; plt.savefig(io.BytesIO(), format='pdf')", "import sys; sys.exit()",
    "plt.gcf().show()", "plt.pause(.01)", "plt.ion(); plt.draw()"])
def test_show_and_savefig_are_harmless(box, code):
    d = box.draw(PLOT + "\n" + code)
    assert d.png == box.draw(PLOT).png, d.error


def test_show_begins_a_new_figure(box):
    one, two = box.draw(PLOT), box.draw(f"{PLOT}; plt.show(); {PLOT}; plt.show()")
    assert pixels(two).shape[0] == 2 * pixels(one).shape[0]


def test_a_saved_file_can_be_read_again(box):
    d = box.draw(PLOT + "; plt.savefig('a.png'); plt.close(); from PIL import Image; print(Image.open('a.png').size)")
    assert d.png and d.stdout.startswith("(")


def test_transparency_is_kept(box):
    d = box.draw("fig = plt.figure(); fig.patch.set_alpha(0); " + PLOT)
    assert pixels(d).shape[2] == 4 and pixels(d)[0, 0, 3] == 0
    assert pixels(box.draw(PLOT))[0, 0, 3] == 255


def test_strings_are_not_decoded_twice(box):
    d = box.draw(r"""print('a\nb', '\u00e9', 'α'); plt.title('two\nlines'); plt.xlabel(r'$\alpha_1 + \beta$'); """ + PLOT)
    assert d.png and d.stdout == "a\nb é α\n"


def test_formulas_are_drawn_also_with_usetex(box):
    d = box.draw(rf"plt.rcParams['text.usetex'] = True; {PLOT}; plt.title(r'$\frac{{a}}{{b}}$')")
    assert d.png and d.png != box.draw(PLOT).png, d.error


@pytest.mark.parametrize("text", ["Ελλάδα Россия", "القاهرة", "עברית", "北京 東京 서울", "दिल्ली", "กรุงเทพ", "🎉👍", "𝔘𝔫𝔦", "人口 $x^2$"])
def test_all_scripts_are_drawn(box, text):
    d = box.draw(f"plt.rcParams['font.family'] = 'SimHei'; {PLOT}; plt.title({text!r})")
    assert d.png, d.error


HAN = shutil.which("fc-list") and subprocess.run(["fc-list", ":lang=zh"], capture_output=True).stdout
@pytest.mark.skipif(not HAN, reason="no Chinese font is installed here: apt install fonts-noto-cjk")
@pytest.mark.parametrize("math", ["", " $x^2$"])
def test_chinese_is_no_row_of_boxes(box, math):
    one, other = (box.draw(f"plt.figure(figsize=(3, 1)); plt.figtext(.1, .5, {c + math!r})") for c in "京口")
    assert one.png and one.png != other.png, "two characters look the same: the font has neither"


def test_plotting_libraries_work(box):
    for code in ("sns.heatmap(np.eye(3), annot=True)", "sns.pairplot(pd.DataFrame(np.eye(2), columns=list('ab')))", "plt.pie([1, 2])",
                 "plt.subplot(projection='3d').plot([1, 2], [1, 2], [3, 4])", "sns.jointplot(x=[1, 2, 3], y=[2, 3, 1])",
                 "sns.clustermap(np.eye(4))", "plt.subplot(projection='polar').plot([1, 2], [1, 2])", "plt.figtext(.5, .5, 'text')",
                 "plt.imshow(np.eye(3)); plt.colorbar()", "plt.table([['a']])", "plt.axis('off'); plt.text(.5, .5, 'box')",
                 "pd.Series([1, 2], pd.date_range('2024', periods=2, tz='Europe/Oslo')).plot()",
                 "plt.annotate('a', (0, 0), (1, 1), arrowprops={})"):
        d = box.draw(code)
        assert d.png, (code, d.error)


def test_large_figures_are_made_to_fit(box):
    d = box.draw("plt.figure(figsize=(100, 50), dpi=300); " + PLOT)
    assert max(pixels(d).shape) <= 5120
    d = box.draw(PLOT + "; plt.text(1e4, 1e4, 'far away')")
    assert d.png and max(pixels(d).shape) < 1000, d.error


def test_memory_is_limited():
    with Sandbox(seconds=60, memory_mb=300) as s:
        assert s.draw("x = np.ones(20 * 2**20); " + PLOT).png
        assert "MemoryError" in s.draw("x = np.ones(60 * 2**20); " + PLOT).error


async def test_many_callers_at_once(box):
    codes = [f"plt.plot([{n}, 1]); print({n}); plt.title('{n}')" for n in range(24)]
    drawings = await asyncio.gather(*map(box.adraw, codes))
    assert [d.stdout for d in drawings] == [f"{n}\n" for n in range(24)] and len({d.png for d in drawings}) == 24


def test_threads_share_a_sandbox(box):
    found = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: box.draw(f"print({n}); {PLOT}").stdout})) for n in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert found == {n: f"{n}\n" for n in range(8)}


async def test_workers_bound_what_runs_at_once(box):
    code = f"import time; start = time.monotonic(); time.sleep(.3); {PLOT}; print(start, time.monotonic())"
    drawings = await asyncio.gather(*[box.adraw(code) for _ in range(6)])
    spans = [tuple(map(float, d.stdout.split())) for d in drawings]
    assert max(sum(a <= start < b for a, b in spans) for start, _ in spans) == 2


def test_a_dead_warm_process_is_replaced():
    with Sandbox(seconds=60) as s:
        first = s.draw(PLOT)
        s._warm.process.kill(); s._warm.process.wait()
        assert s.draw(PLOT).png == first.png
        timer = threading.Timer(.5, s._warm.process.kill); timer.start()
        assert s.draw("import time; time.sleep(2); " + PLOT).png == first.png
        timer.join()


def test_a_stopped_warm_process_is_replaced(monkeypatch):
    monkeypatch.setattr(sandbox, "GRACE", .05)
    with Sandbox(seconds=3) as s:
        assert s.draw(PLOT).png
        os.kill(s._warm.process.pid, signal.SIGSTOP)
        assert s.draw(PLOT).png


def test_nothing_is_left_behind():
    gc.collect()
    files, before = len(os.listdir("/proc/self/fd")), children()
    for how in ("with", "forgotten"):
        s = Sandbox(seconds=60)
        assert s.draw(PLOT).png
        base = s._warm.base
        if how == "with":
            with s: pass
        del s
        gc.collect()
        assert children() == before and not os.path.exists(base), how
    assert len(os.listdir("/proc/self/fd")) <= files


def test_closed_sandbox_says_so():
    s = Sandbox()
    s.close(); s.close()
    assert s.draw(PLOT).kind == "unavailable" and "closed" in s.draw(PLOT).error


def test_close_ends_running_drawings():
    s = Sandbox(seconds=60)
    s.draw(PLOT)
    job = threading.Thread(target=s.draw, args=("while True: pass",)); job.start()
    time.sleep(.5)
    start = time.monotonic()
    s.close(); job.join(20)
    assert not job.is_alive() and time.monotonic() - start < 15


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_all_ends_with_the_caller(how):
    code = ("from llmi_kit.sandbox import Sandbox; import threading, time\ns = Sandbox(seconds=60); s.draw('plt.plot([1])')\n"
            "threading.Thread(target=s.draw, args=('while True: pass',), daemon=True).start(); time.sleep(.5)\n"
            "print(s._warm.process.pid, s._warm.base, flush=True); time.sleep(60)")
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid, base = caller.stdout.readline().split()
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert below
    caller.send_signal(how); caller.wait(); caller.stdout.close()
    end = time.monotonic() + 15
    gone = lambda p: not Path(f"/proc/{p}").exists() or Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    while time.monotonic() < end and not (all(map(gone, [pid, *below])) and not os.path.exists(base)): time.sleep(.1)
    assert all(map(gone, [pid, *below])) and not os.path.exists(base)


def test_nothing_is_left_by_a_caller_that_dies_at_once():
    code = "from llmi_kit.sandbox import Sandbox; s = Sandbox(); print(s.start().base, flush=True); import os; os.kill(os.getpid(), 9)"
    base = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
    end = time.monotonic() + 60
    while time.monotonic() < end and os.path.exists(base): time.sleep(.1)
    assert base and not os.path.exists(base)


def test_missing_fences_are_refused(monkeypatch):
    monkeypatch.setattr(confine, "landlock_abi", lambda: 0)
    with Sandbox() as s:
        d = s.draw(PLOT)
        assert d.kind == "unavailable" and "Landlock is missing" in d.error and "\n" not in d.error and s._warm is None
    with Sandbox(isolation="limits", seconds=60) as s: assert s.draw(PLOT).png
    with pytest.raises(ValueError): Sandbox(isolation="none")


def test_a_fence_that_fails_to_close_stops_the_code(tmp_path):
    "The code must not run when confine raises: here the folder to confine it to is gone."
    import socket, json
    seen, told = os.pipe()
    here, there = socket.socketpair()
    code = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    here.sendall(len(code).to_bytes(8) + code)
    if os.fork() == 0: drawing.child(dict(seconds=5, memory_mb=512), there.fileno(), str(tmp_path), os.getppid(), ["/does/not/exist"])
    there.close(); os.wait()
    header = drawing.receive(here.fileno()).partition(b"\n")[0]
    here.close(); os.close(seen); os.close(told)
    assert json.loads(header)["kind"] == "unavailable" and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("abi", [1, 2, 3, 4, 5, 6])
def test_older_kernels_are_closed_too(tmp_path, abi):
    "With the rights of older Landlock versions seccomp must fill the gaps."
    (tmp_path / "own").mkdir(); (key := tmp_path / "key.txt").write_text("secret")
    tries = [lambda: key.read_text(), lambda: os.truncate(key, 0), lambda: os.open(key, os.O_RDONLY | os.O_TRUNC),
             lambda: key.chmod(0),
             lambda: os.rename(key, tmp_path / "own/k"), lambda: os.link(key, tmp_path / "own/k"), lambda: os.kill(os.getppid(), 0),
             lambda: __import__("socket").socket(), lambda: (tmp_path / "own/d").mkdir(), lambda: open("/etc/passwd")]
    seen, told = os.pipe()
    if os.fork() == 0:
        confine.confine(str(tmp_path / "own"), confine.readable(), abi)
        for n, attempt in enumerate(tries):
            try: attempt(); os.write(told, f"{n} ".encode())
            except OSError: pass
        (tmp_path / "own/fine").write_text("x"); os.write(told, b"end"); os._exit(0)
    os.wait(); os.close(told)
    with open(seen) as f: assert f.read() == "end"
    assert key.read_text() == "secret"


def test_filter_for_both_processors(monkeypatch):
    "Both programs are well formed: every jump lands inside, the last instruction answers."
    import struct
    for machine in ("x86_64", "aarch64"):
        monkeypatch.setattr(confine.platform, "machine", lambda m=machine: m)
        program = list(struct.iter_unpack("HBBI", confine.seccomp_program(7)))
        assert 300 < len(program) < 4096 and program[-1][0] == 0x06
        for at, (code, yes, no, _) in enumerate(program):
            if code in (0x15, 0x35): assert at + 1 + max(yes, no) < len(program)


def test_png_check_refuses_what_is_no_plain_png(box):
    png = box.draw(PLOT).png
    assert check_png(png) is None
    for bad in (b"", png[:-1], png[:100], png + b"x", png.replace(b"IDAT", b"IDAX"), png[:8], png[:30] + b"\0" + png[31:]):
        assert check_png(bad)


def test_import_is_cheap():
    code = "import sys, llmi_kit.sandbox; print([m for m in ('matplotlib', 'pandas', 'seaborn', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_drawing_shows_itself():
    assert "px" in repr(Drawing(png=b"\x89PNG\r\n\x1a\n" + bytes(16))) and "oops" in repr(Drawing(error="oops"))
