# turns the stream that it was given into something that sends open files
import socket
s = socket.socket(fileno=3)
socket.send_fds(s, [b"x"], [0])
breach("passed a file")
