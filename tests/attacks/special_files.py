# makes a named pipe and a device outside and inside | naked
import os
for path in (W["folder"] + "/pipe", "pipe"):
    for mode in (0o010600, 0o020600, 0o060600):
        try: os.mknod(path, mode, os.makedev(1, 1))
        except OSError: continue
        breach(f"{path} {mode:o}")
        os.remove(path)
