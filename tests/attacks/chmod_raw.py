# the same with the system calls that the C library doesn't wrap | naked
import ctypes
libc = ctypes.CDLL(None)
for number in (90, 268, 452, 52, 53):
    args = (W["secret"].encode(), 0o777) if number == 90 else (-100, W["secret"].encode(), 0o777, 0)
    if libc.syscall(number, *args) == 0: breach(number)
