# sends a gigabyte to the caller instead of an answer
import os
block = b"\xff" * 10**6
for _ in range(1000): os.write(3, block)
