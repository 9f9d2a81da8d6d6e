# lists the home folder, the root folder and the folder of all drawings | naked
import os
for path in (W["home"], "/", "/proc", "/tmp", ".."):
    try: os.listdir(path)
    except OSError: continue
    breach(path)
