# asks for 100,000 dots per inch, and puts text far away
plt.figure(dpi=1e5); plt.plot([1, 2]); plt.text(1e7, 1e7, "far away")
