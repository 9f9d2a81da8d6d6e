# reads command lines, memory maps and open files of others through /proc | naked
import os
for pid in (W["parent"], W["victim"], os.getppid()):
    for name in ("cmdline", "maps", "status", "mem", "auxv", "task", "root/etc/passwd", "cwd/x", "fd/0"):
        try: os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
        except OSError: continue
        breach(f"{pid}/{name}")
    for name in ("exe", "cwd", "root", "fd/1"):
        try: os.readlink(f"/proc/{pid}/{name}")
        except OSError: continue
        breach(f"{pid}/{name}")
