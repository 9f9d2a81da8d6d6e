# attaches to other processes as a debugger | naked
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for pid in (W["victim"], W["parent"]):
    if libc.ptrace(0x4206, pid, 0, 0) != -1: breach(pid)  # PTRACE_SEIZE doesn't stop it
