# takes an open file out of another process | naked
import ctypes, os
fd = os.pidfd_open(W["victim"])
breach("pidfd")
