# types a command into the terminal of whoever started it
import fcntl
for fd in range(5):
    for request in (0x5412, 0x5403, 0x8933, 0x40045431):  # TIOCSTI, TCSETSW, SIOCGIFINDEX, TIOCSPTLCK
        try: fcntl.ioctl(fd, request, b"x" * 64)
        except OSError: continue
        breach(f"{fd} {request:x}")
