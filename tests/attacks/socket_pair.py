# makes a pair of sockets, to pass open files around | naked
import socket
socket.socketpair()
breach("pair")
