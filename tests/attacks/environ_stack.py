# searches its own stack, where the kernel put the first environment
import ctypes, sys
libc = ctypes.CDLL(None)
start = ctypes.c_void_p.in_dll(libc, "__libc_stack_end").value
end = (start | 0xFFF) + 1
if b"sk-" + b"secret" in ctypes.string_at(start, end - start): breach("stack")
