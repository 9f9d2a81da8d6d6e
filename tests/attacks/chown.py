# gives a file to somebody else | naked
import os
os.chown(W["secret"], os.getuid(), os.getgid())
breach("owner")
