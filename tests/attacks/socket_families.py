# tries every family, type and protocol that there is, MPTCP and vsock too | naked
import socket
for family in range(46):
    for kind in (1, 2, 3, 5):
        for protocol in (0, 6, 17, 132, 262):
            try: socket.socket(family, kind, protocol)
            except OSError: continue
            breach(f"{family}/{kind}/{protocol}")
