# writes to every open file it can find, and kills or stops the warm process
import os, signal
for fd in range(256):
    if fd == 3: continue
    try: os.write(fd, b'{"seconds": 1}')
    except OSError: continue
    if fd > 3: breach(f"file {fd}")
for s in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGCHLD):
    for target in (os.getppid(), -os.getppid()):
        try: os.kill(target, s)
        except OSError: continue
        breach(f"signal {s}")
