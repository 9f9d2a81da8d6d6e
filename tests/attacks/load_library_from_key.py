# makes the dynamic linker open a forbidden file and quotes its error
import ctypes
try: ctypes.CDLL(W["secret"])
except OSError as e:
    if "Permission denied" not in str(e) and "cannot open" not in str(e): breach(e)
