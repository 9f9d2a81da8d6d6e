# makes itself visible to debuggers and immune to its parent's death | naked
import ctypes
libc = ctypes.CDLL(None)
if libc.prctl(4, 1, 0, 0, 0) == 0: breach("dumpable")
if libc.prctl(1, 0, 0, 0, 0) == 0: breach("death signal")
if libc.prctl(36, 1, 0, 0, 0) == 0: breach("subreaper")
