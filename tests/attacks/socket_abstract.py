# connects to an abstract socket, which has no file | naked
import socket
s = socket.socket(socket.AF_UNIX)
s.connect("\0" + W["abstract"])
breach("connected")
