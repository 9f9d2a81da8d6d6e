# reads the memory of other processes directly | naked
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
class vec(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
mine = ctypes.create_string_buffer(64)
for pid in (W["victim"], W["parent"], os.getppid()):
    there = ctypes.addressof(ctypes.c_int.in_dll(libc, "optind"))
    if libc.process_vm_readv(pid, ctypes.byref(vec(ctypes.addressof(mine), 4)), 1, ctypes.byref(vec(there, 4)), 1, 0) != -1: breach(pid)
    if ctypes.get_errno() == 14: breach(f"allowed, but another address {pid}")
