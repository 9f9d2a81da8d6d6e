# calls the kernel with the x32 numbers | x86_64
import ctypes
if ctypes.CDLL(None).syscall(0x40000000 | 39) > 0: breach("getpid")
breach("alive")
