# opens a TCP connection over IPv4 | naked
import socket
socket.create_connection(("127.0.0.1", W["port"]), 2).close()
breach("connected")
