# opens devices and terminals | naked
import os
for path in ("/dev/mem", "/dev/tty", "/dev/ptmx", "/dev/full", "/dev/fuse", "/dev/kvm", "/dev/net/tun", "/sys/kernel", "/proc/sys/kernel/hostname"):
    try: os.open(path, os.O_RDONLY)
    except OSError: continue
    breach(path)
