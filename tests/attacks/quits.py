# ends its process at once, and closes the stream
import os
os.close(3); os._exit(0)
