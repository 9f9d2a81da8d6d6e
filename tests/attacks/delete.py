# deletes a file and a folder | naked
import os
os.remove(W["secret"])
breach("gone")
