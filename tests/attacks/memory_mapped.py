# takes memory that isn't its heap: maps, shared memory, memory files, System V segments
import ctypes, mmap, os
libc = ctypes.CDLL(None)
try:
    m = [mmap.mmap(-1, 10**8) for _ in range(30)]
    breach("3 GB of maps")
except (OSError, MemoryError): pass
try: os.memfd_create("x"); breach("memfd")
except OSError: pass
if libc.shmget(0, 10**6, 0o1600) >= 0: breach("shm")
