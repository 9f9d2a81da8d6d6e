# attaches hidden data to a file | naked
import os
os.setxattr(W["secret"], "user.evil", b"x")
breach("attribute")
