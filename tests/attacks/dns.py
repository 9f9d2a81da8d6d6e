# leaks a word in a name look-up | naked
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 53))
breach("a resolver could be asked")
