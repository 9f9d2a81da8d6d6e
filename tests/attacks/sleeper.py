# sleeps away its time limit in a thread while the rest waits
import threading, time
t = threading.Thread(target=time.sleep, args=(60,)); t.start(); t.join()
