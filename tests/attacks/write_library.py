# plants code in the libraries, for the next Python | naked
import os, numpy
path = os.path.dirname(os.path.dirname(numpy.__file__)) + "/llmi_attack.pth"
open(path, "w").write("import evil\n")
breach(path)
os.remove(path)
