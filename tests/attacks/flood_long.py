# announces a long answer and sends it for as long as it may
import os
os.write(3, (2**60).to_bytes(8, "big"))
while True: os.write(3, b"x" * 10**6)
