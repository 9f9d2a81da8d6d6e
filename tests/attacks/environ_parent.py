# reads the environment of the caller and of the warm process through /proc | naked
import os
for pid in (W["parent"], os.getppid(), "self", "thread-self", 1):
    try: seen = open(f"/proc/{pid}/environ", "rb").read()
    except OSError: continue
    breach(pid)
