# prints a gigabyte
block = "x" * 10**6
for _ in range(1000): print(block)
plt.plot([1, 2])
