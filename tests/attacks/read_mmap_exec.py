# maps a forbidden file into memory | naked
import mmap, os
with open(W["secret"], "rb") as f:
    if b"sk-secret" in mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[:]: breach("key")
