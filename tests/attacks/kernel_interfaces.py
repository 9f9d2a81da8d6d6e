# tries kernel interfaces with a history: bpf, perf, userfaultfd, keys, handles, fanotify, modules
import ctypes, platform
libc = ctypes.CDLL(None, use_errno=True)
page = ctypes.create_string_buffer(4096)
x86 = {"bpf": 321, "perf": 298, "userfaultfd": 323, "add_key": 248, "keyctl": 250, "handle": 303, "fanotify": 300, "module": 175,
       "kexec": 246, "reboot": 169, "swapon": 167, "acct": 163, "inotify": 294, "timer_create": 222, "mq_open": 240, "mbind": 237,
       "syslog": 103, "quotactl": 179, "pkey": 330, "mount_setattr": 442, "fsopen": 430, "landlock": 444, "seccomp": 317, "modify_ldt": 154}
arm = {"bpf": 280, "perf": 241, "userfaultfd": 282, "add_key": 217, "keyctl": 219, "handle": 264, "seccomp": 277, "landlock": 444}
for name, number in (x86 if platform.machine() == "x86_64" else arm).items():
    answer = libc.syscall(number, page, 0, 0, 0, 0)
    if answer >= 0 or ctypes.get_errno() not in (1, 38): breach(f"{name} {answer} {ctypes.get_errno()}")
