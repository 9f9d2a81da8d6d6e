# writes a gigabyte to the standard streams, past Python's print
import os
block = b"x" * 10**6
for _ in range(1000): os.write(1, block); os.write(2, block)
plt.plot([1, 2])
