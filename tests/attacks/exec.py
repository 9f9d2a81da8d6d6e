# replaces itself with another program
import os
for path in ("/bin/sh", "/usr/bin/env", "/bin/true"):
    try: os.execv(path, [path, "-c", "touch " + W["folder"] + "/executed"])
    except OSError: pass
