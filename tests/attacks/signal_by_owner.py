# makes the kernel send a signal for it, when input arrives | naked
import fcntl, os
r, w = os.pipe()
fcntl.fcntl(r, 8, W["victim"])  # F_SETOWN
fcntl.fcntl(r, 10, 9)           # F_SETSIG: SIGKILL
breach("owner")
