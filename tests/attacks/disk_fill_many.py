# fills the disk with many files, and with deleted ones that stay open
import os
for n in range(10**6):
    with open(f"{n}", "wb") as f: f.write(bytes(10**6))
breach("10^6 files")
