# pins another process to one processor | naked
import os
os.sched_setaffinity(W["victim"], {0})
breach("affinity")
