# reads and writes through a symbolic link in its own folder | naked
import os
os.symlink(W["secret"], "link")
if "sk-secret" in open("link").read(): breach("link")
