# looks for a key in its own environment
import ctypes, os
seen = str(dict(os.environ)) + str(os.environb)
if "sk-secret" in seen or "LLMI_ATTACK" in seen: breach("environ")
block = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
n = 0
while block and block[n]:
    if b"sk-secret" in block[n]: breach("environ block")
    n += 1
