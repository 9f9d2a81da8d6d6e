"""Runs every attack of tests/attacks in a sandbox, as root or as an ordinary user, and watches the world around it.

    python tests/attack_runner.py [--user 65534] full [name ...]      prints one line of JSON per attack
    python tests/attack_runner.py limits                              without fences: shows that the attacks are real

An attack is a piece of drawing code. It prints BREACH if it got something, or changes the world in a way that is noticed.
"""
import argparse, ctypes, json, os, resource, shutil, signal, socket, subprocess, sys, tempfile, threading, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SECRET = "sk-secret-0123456789"
REFERENCE = """plt.figure(figsize=(2, 1)); plt.plot([1, 3, 2]); plt.axis('off'); plt.text(0, 2, '$x^2$ unharmed')
print(np.random.default_rng().integers(9))"""  # cheap, for it is drawn after each attack


def open_up(needed):
    "Make folders reachable for everybody by covering closed parents, in a mount namespace of our own."
    libc = ctypes.CDLL(None, use_errno=True)
    def mount(source, target, kind, flags):
        if libc.mount(source, bytes(target), kind, flags, None): sys.exit(f"SKIP mounting is not allowed here: {ctypes.get_errno()}")
    closed = {p for n in needed for p in n.parents if not p.stat().st_mode & 1}
    if not closed: return
    if libc.unshare(0x20000): sys.exit("SKIP no mount namespace can be made here")
    mount(b"none", Path("/"), None, 1 << 18 | 16384)  # private, recursively
    handles = {n: os.open(n, os.O_PATH) for n in needed if closed & set(n.parents)}
    for cover in (p for p in closed if not closed & set(p.parents)): mount(b"none", cover, b"tmpfs", 0); cover.chmod(0o755)
    for path, fd in handles.items():
        path.mkdir(parents=True, exist_ok=True)
        mount(f"/proc/self/fd/{fd}".encode(), path, None, 4096 | 16384)  # bind


def become_ordinary(uid):
    "Drop to user `uid` and start again. Exits with SKIP where root may not do that."
    open_up({Path(p).resolve() for p in (HERE.parent, sys.prefix, sys.base_prefix)})
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
    home = tempfile.mkdtemp(prefix="llmi-home-")
    arguments = [a for a in sys.argv[1:] if a not in ("--user", str(uid))]
    os.execve(sys.executable, [sys.executable, __file__, *arguments, "--home", home],
              dict(PATH=os.environ["PATH"], HOME=home, LLMI_CACHE=home + "/cache", LANG="C.UTF-8"))


class World:
    "What an attack could steal or harm: a key file, a process, servers, an environment variable."
    def __init__(self, home):
        self.folder, self.home = Path(tempfile.mkdtemp(prefix="llmi-world-")), home
        self.calls = []
        self.servers = [self.listen(socket.AF_INET, ("127.0.0.1", 0)), self.listen(socket.AF_UNIX, str(self.folder / "socket")),
                        self.listen(socket.AF_UNIX, f"\0llmi-{os.getpid()}")]
        self.victim = None
        self.rebuild()

    def listen(self, family, address):
        server = socket.socket(family)
        server.bind(address); server.listen()
        def answer():
            while True:
                try: server.accept()[0].close(); self.calls.append(address)
                except OSError: return
        threading.Thread(target=answer, daemon=True).start()
        return server

    def rebuild(self):
        if self.victim: self.victim.kill(); self.victim.wait()
        self.victim = subprocess.Popen(["sleep", "1000"], start_new_session=True, stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for p in self.folder.iterdir():
            if p.name != "socket": shutil.rmtree(p) if p.is_dir() and not p.is_symlink() else p.unlink()
        (self.folder / "key.txt").write_text(SECRET)
        os.chmod(self.folder, 0o777); os.chmod(self.folder / "key.txt", 0o600)
        self.calls.clear()
        time.sleep(.01)
        self.before = self.state()

    def state(self):
        "Everything that must stay as it is."
        files = {}
        for p in sorted(self.folder.iterdir()):
            s = p.lstat()
            files[p.name] = (s.st_mode, s.st_uid, s.st_nlink, s.st_mtime_ns, s.st_size, p.read_text() if p.is_file() else "")
        alive = self.victim.poll() is None
        process = (os.getpriority(os.PRIO_PROCESS, self.victim.pid), os.sched_getaffinity(self.victim.pid),
                   resource.prlimit(self.victim.pid, resource.RLIMIT_AS)) if alive else None
        return files, alive, process, list(self.calls)

    def prelude(self, sandbox):
        w = dict(folder=str(self.folder), secret=str(self.folder / "key.txt"), home=self.home, checkout=str(HERE.parent),
                 port=self.servers[0].getsockname()[1], unix=str(self.folder / "socket"), abstract=f"llmi-{os.getpid()}",
                 parent=os.getpid(), victim=self.victim.pid, warm=sandbox._warm.process.pid)
        return f"W = {w!r}\ndef breach(what): print('BREACH', what)\n"

    def close(self):
        self.victim.kill(); self.victim.wait()
        for s in self.servers: s.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def descendants(of):
    "Processes below `of`: {pid: command}."
    parents = {}
    for p in Path("/proc").glob("[0-9]*/stat"):
        try: text = p.read_text()
        except OSError: continue
        parents[int(text.split()[0])] = int(text.rpartition(")")[2].split()[1])
    found, new = set(), {of}
    while new: new = {c for c, p in parents.items() if p in new} - found; found |= new
    return found


def settled(warm):
    """Processes below the warm process, and folders of drawings, once the killed have had time to end: none if all is well.

    A folder goes just after its process, so a busy machine may show the one without the other.
    """
    for _ in range(40):
        left, folders = descendants(warm.process.pid), os.listdir(warm.base) if os.path.isdir(warm.base) else []
        if not left and not folders: break
        time.sleep(.05)
    return sorted(left), len(folders)


def peak_mb():
    "Most memory that this program has held. Not ru_maxrss: that one starts with what the forking parent held before exec."
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
    return int(line.split()[1]) >> 10


def run(ask, world, Sandbox):
    "Each attack, and a drawing after it."
    files = [p for p in sorted((HERE / "attacks").glob("*.py")) if not ask.names or p.stem in ask.names]
    if ask.isolation == "limits": files = [p for p in files if "naked" in p.read_text().splitlines()[0].rpartition("|")[2]]
    with Sandbox(workers=2, seconds=2, memory_mb=600, isolation=ask.isolation) as sandbox:
        reference = sandbox.draw(REFERENCE)
        assert reference.png, reference
        open_files = len(os.listdir("/proc/self/fd"))
        for file in files:
            warm = sandbox._warm
            start = time.monotonic()
            drawing = sandbox.draw(world.prelude(sandbox) + file.read_text())
            seconds = time.monotonic() - start
            (left, folders), state = settled(warm), world.state()
            after = sandbox.draw(REFERENCE)
            folders += settled(sandbox._warm)[1]
            print(json.dumps(dict(
                name=file.stem, uid=os.getuid(), breach="BREACH" in drawing.stdout, stdout=drawing.stdout[:300], error=drawing.error,
                kind=drawing.kind, seconds=round(seconds, 2), left=left, harmed=repr(state) if state != world.before else "",
                restarted=sandbox._warm is not warm, unharmed=after.png == reference.png and after.stdout == reference.stdout,
                after=after.error, folders=folders, files=len(os.listdir("/proc/self/fd")) - open_files,
                peak_mb=peak_mb())), flush=True)
            if state != world.before or ask.isolation == "limits": world.rebuild()


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("isolation"); ask.add_argument("names", nargs="*")
    ask.add_argument("--user", type=int); ask.add_argument("--home", default=os.path.expanduser("~"))
    ask = ask.parse_args()
    if ask.user: become_ordinary(ask.user)
    os.environ["LLMI_ATTACK"] = SECRET
    from llmi_kit.sandbox import Sandbox
    world = World(ask.home)
    try: run(ask, world, Sandbox)
    finally: world.close()
    if ask.home.startswith(tempfile.gettempdir()): shutil.rmtree(ask.home, ignore_errors=True)


if __name__ == "__main__":
    signal.alarm(1500)
    main()
