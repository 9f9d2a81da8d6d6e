# starts thousands of threads with tiny stacks that wait forever
import threading, time
threading.stack_size(32768)
count = 0
try:
    for count in range(20000): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
except BaseException: pass
time.sleep(.5)
if count > 10000: breach(f"{count} threads")
