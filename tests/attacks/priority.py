# slows other processes down | naked
import os
os.setpriority(os.PRIO_PROCESS, W["victim"], 19)
breach("priority")
