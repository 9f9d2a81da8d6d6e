# sends a datagram out | naked
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b"secret", ("127.0.0.1", W["port"]))
breach("sent")
