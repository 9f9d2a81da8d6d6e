# empties a file by path, by opening it and by creating it anew | naked
import os
for empty in (lambda p: os.truncate(p, 0), lambda p: os.open(p, os.O_RDONLY | os.O_TRUNC), lambda p: os.open(p, os.O_WRONLY | os.O_CREAT)):
    try: empty(W["secret"])
    except OSError: continue
    breach("emptied")
