# makes an IPv6 socket | naked
import socket
socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
breach("socket")
