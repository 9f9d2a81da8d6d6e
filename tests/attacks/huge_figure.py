# asks for a figure of 100,000 x 100,000 inches
plt.figure(figsize=(1e5, 1e5)); plt.plot([1, 2])
