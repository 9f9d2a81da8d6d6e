# uses up the file system's file numbers
for n in range(10**7): open(f"{n}", "w").close()
breach("10^7 files")
