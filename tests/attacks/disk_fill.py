# fills the disk with one large file
with open("big", "wb") as f:
    for _ in range(1000): f.write(bytes(10**6))
breach("1 GB")
