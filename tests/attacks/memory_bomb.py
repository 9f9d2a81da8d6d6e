# takes memory until there is no more, and writes to it
blocks = []
while len(blocks) < 3000: blocks.append(bytearray(10**6))
breach("3 GB")
