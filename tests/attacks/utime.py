# changes the times of a file | naked
import os
os.utime(W["secret"], (1, 1))
breach("time")
