# sends its answer a byte at a time
import os, time
os.write(3, (10**6).to_bytes(8, "big"))
while True: os.write(3, b"x"); time.sleep(.01)
