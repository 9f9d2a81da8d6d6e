# starts a program with posix_spawn and with the C library's system() | naked
import ctypes, os
try: os.posix_spawn("/bin/true", ["true"], {}); breach("spawned")
except OSError: pass
if ctypes.CDLL(None).system(b"true") == 0: breach("system")
