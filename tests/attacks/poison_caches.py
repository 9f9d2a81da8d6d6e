# writes to the font cache, byte code and everything else that the warm process reads when it starts | naked
import glob, matplotlib, os
for path in [matplotlib.get_cachedir() + "/fontlist.json", os.path.dirname(matplotlib.__file__) + "/__pycache__/evil.pyc"]:
    try: open(path, "w")
    except OSError: continue
    breach(path)
    os.remove(path)
