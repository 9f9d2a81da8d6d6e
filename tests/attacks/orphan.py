# leaves a grandchild behind that outlives it
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(3); open(W["folder"] + "/orphan", "w")
    os._exit(0)
