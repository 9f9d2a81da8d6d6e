# reads a key file step by step with openat and a folder handle | naked
import os
folder = os.open(os.path.dirname(W["secret"]), os.O_PATH)
fd = os.open(os.path.basename(W["secret"]), os.O_RDONLY, dir_fd=folder)
if b"sk-secret" in os.read(fd, 100): breach("key")
