# asks numpy for a petabyte, then for what fits barely
try: np.ones(10**15)
except MemoryError: pass
np.ones(3 * 10**8).sum()
breach("2.4 GB")
