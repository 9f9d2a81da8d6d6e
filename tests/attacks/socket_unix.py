# connects to a server's socket file | naked
import socket
s = socket.socket(socket.AF_UNIX)
s.connect(W["unix"])
breach("connected")
