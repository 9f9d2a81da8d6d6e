# writes next to the key, into the folder of all drawings and into /tmp | naked
import os
for path in (W["folder"] + "/new.txt", "../new.txt", "/tmp/llmi-attack.txt", "/dev/shm/llmi-attack", "/var/tmp/llmi-attack"):
    try: open(path, "w").write("x")
    except OSError: continue
    breach(path)
    os.remove(path)
