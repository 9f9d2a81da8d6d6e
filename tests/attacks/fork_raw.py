# makes a process with the bare system calls: fork, vfork, clone, clone3 and threads that share too little | naked
import ctypes, os
libc = ctypes.CDLL(None)
me = os.getpid()
for args in ((57,), (56, 17, 0, 0, 0, 0), (56, 0x8000 | 17, 0, 0, 0, 0), (435, (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17), 88), (220, 17, 0, 0, 0, 0)):
    answer = libc.syscall(*args)
    if os.getpid() != me: os._exit(0)
    if answer > 0 and args[0] != 220: breach(args[0])
