# makes a key readable for everybody | naked
import os
for change in (lambda: os.chmod(W["secret"], 0o777), lambda: os.chmod("..", 0o777), lambda: os.fchmod(os.open(W["secret"], os.O_PATH), 0o777)):
    try: change()
    except OSError: continue
    breach("mode")
