# asks for a ring that does its system calls in the kernel, unseen by filters
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
params = ctypes.create_string_buffer(120)
if libc.syscall(425, 8, params) >= 0: breach("ring")
