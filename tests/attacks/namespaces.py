# makes itself root of a new user namespace, and mounts | naked
import ctypes
libc = ctypes.CDLL(None)
for flags in (0x10000000, 0x10020000, 0x40000000, 0x20000000):
    if libc.unshare(flags) == 0: breach(hex(flags))
if libc.mount(b"none", W["folder"].encode(), b"tmpfs", 0, None) == 0: breach("mount")
