# draws hundreds of figures
for n in range(300): plt.figure(figsize=(10, 8)); plt.plot([n])
