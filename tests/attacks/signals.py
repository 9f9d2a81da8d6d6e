# sends signals to a process of the same user in every way there is | naked
import ctypes, os, signal
libc = ctypes.CDLL(None)
v = W["victim"]
for send in (lambda: os.kill(v, 0), lambda: os.killpg(os.getpgid(v), 0), lambda: signal.pidfd_send_signal(os.pidfd_open(v), 0)):
    try: send()
    except OSError: continue
    breach("signal")
for number in (62, 200, 234):
    if libc.syscall(number, v, *([v] if number == 234 else []), 0) == 0: breach(number)
