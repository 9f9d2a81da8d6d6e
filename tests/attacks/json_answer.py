# sends JSON of the wrong shape and endless depth
import os
answer = b"[" * 500000 + b"\n"
os.write(3, len(answer).to_bytes(8, "big") + answer); os._exit(0)
