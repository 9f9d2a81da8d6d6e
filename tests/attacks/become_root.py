# takes back rights: user ids, capabilities, set-uid programs | naked-root
import ctypes, os
libc = ctypes.CDLL(None)
if libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)) == 0: breach("capset")
for change in (lambda: os.setuid(1), lambda: os.setgroups([0]), lambda: os.setresuid(0, 1, 0)):
    try: change()
    except OSError: continue
    breach("ids")
