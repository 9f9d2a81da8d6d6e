# doubles itself
import os
for _ in range(6):
    try: os.fork()
    except OSError: pass
if os.getppid() != W["warm"]: open(W["folder"] + "/forked", "w")
