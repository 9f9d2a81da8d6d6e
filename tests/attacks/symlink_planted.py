# leaves a link behind in its folder, so that whoever cleans up deletes something else
import os
os.symlink(W["folder"], "trap")
