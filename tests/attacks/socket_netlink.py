# asks the kernel for network interfaces over netlink | naked
import socket
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
breach("netlink")
