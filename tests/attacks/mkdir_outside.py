# makes and removes folders outside | naked
import os
os.mkdir(W["folder"] + "/new")
breach("made")
