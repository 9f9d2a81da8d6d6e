# breaks the end of its own process: replaced streams, endless destructors, exit handlers
import atexit, sys
class Bad:
    def __del__(self):
        while True: pass
    def __str__(self): raise ValueError(self)
    def write(self, text): raise OSError
atexit.register(lambda: 1 / 0)
sys.stdout = sys.stderr = Bad()
raise type("Evil", (Exception,), {"__str__": lambda e: 1 / 0})()
