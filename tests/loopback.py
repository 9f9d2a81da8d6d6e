"A small HTTP server on 127.0.0.1 (port 0) whose routes misbehave as asked: tests of downloads run against it."
import asyncio, threading, time
from contextlib import contextmanager

REASONS = {200: 'OK', 302: 'Found', 404: 'Not Found', 429: 'Too Many Requests', 500: 'Server Error', 503: 'Unavailable'}

class Loopback:
    "`routes[path]` is bytes, or a function (server, path) -> (status, headers, body) or an async writer (reader, writer)."
    def __init__(self, host='127.0.0.1'): self.host, self.routes, self.seen = host, {}, []

    @property
    def base(self): return f'http://{self.host}:{self.port}'
    def asked(self, path): return [r for r in self.seen if r['path'] == path]

    async def _answer(self, reader, writer):
        try:
            head = (await reader.readuntil(b'\r\n\r\n')).decode('latin-1').split('\r\n')
            target = head[0].split()[1]
            headers = {k.lower(): v for k, v in (line.split(': ', 1) for line in head[1:] if ': ' in line)}
            path = target.split('?')[0]
            self.seen.append(dict(path=path, target=target, headers=headers, time=time.monotonic()))
            await self._reply(self.routes.get(path, (404, {}, b'')), target, writer)
        except (ConnectionError, asyncio.IncompleteReadError): pass
        finally: writer.close()

    async def _reply(self, route, target, writer):
        if asyncio.iscoroutinefunction(route): return await route(writer)
        if callable(route): route = route(target)
        status, headers, body = (200, {}, route) if isinstance(route, bytes) else route
        headers = {'Content-Length': len(body), 'Connection': 'close'} | headers
        lines = ''.join(f'{k}: {v}\r\n' for k, v in headers.items() if v is not None)
        writer.write(f'HTTP/1.1 {status} {REASONS.get(status, "X")}\r\n{lines}\r\n'.encode() + body)
        await writer.drain()

@contextmanager
def in_thread(server, serve, host='127.0.0.1', **how):
    "`serve(reader, writer)` of a server, in a thread of its own; gone at the end. Sets its `port`."
    loop, up = asyncio.new_event_loop(), threading.Event()
    async def main():
        listening = await asyncio.start_server(serve, host, 0, **how)
        server.port, server.stop = listening.sockets[0].getsockname()[1], asyncio.Event()
        up.set()
        await server.stop.wait()
        listening.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}: task.cancel()
    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    assert up.wait(10)
    try: yield server
    finally:
        loop.call_soon_threadsafe(server.stop.set)
        thread.join(5)

def loopback(host='127.0.0.1', ssl=None):
    "A Loopback in a thread of its own; gone at the end."
    server = Loopback(host)
    return in_thread(server, server._answer, host, ssl=ssl)
