"""A judge on 127.0.0.1 (port 0): real HTTP that speaks chat completions, and misbehaves as asked.

What happens to a request: the next of `plan`, or a fault drawn with the seeded `faults` (shares by name), or a good reply."""
import asyncio, json, random, re, sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))     # benchmarks and notebooks use this file too
from loopback import in_thread

FORM = re.compile(r'\[([0-9a-f]{12}): grade it now\]\n(.*)', re.S)


def said(body):
    "All text of the last message of a request."
    content = body['messages'][-1]['content']
    return content if isinstance(content, str) else ''.join(p.get('text', '<PICTURE>') for p in content)


def pictures(body):
    "Data URIs of the pictures of a request, in order."
    content = body['messages'][-1]['content']
    return [] if isinstance(content, str) else [p['image_url']['url'] for p in content if p['type'] == 'image_url']


def grades(body):
    "1 to 5 for each grade that is asked for, from the hash of the question."
    form = FORM.search(said(body))[2]
    names = re.findall(r'^([A-Z][\w -]*): n$', form, re.M) or re.findall(r'"(\w+)": n', form)
    digest = sha256(json.dumps(body['messages']).encode()).digest()
    return {name: 1 + digest[i] % 5 for i, name in enumerate(names)}


def good(body):
    "What a judge that does as it is told replies."
    code, form = FORM.search(said(body)).groups()
    found = grades(body)
    if '"code"' in form: return json.dumps(dict(code=code, reasons={n: f'{n} is as it is' for n in found}, **found))
    return f'It answers the question.\n{code}\n' + '\n'.join(f'{name}: {n}' for name, n in found.items())


class JudgeServer:
    def __init__(self, seconds=0., faults=None, seed=0, reply=good):
        self.seconds, self.faults, self.random, self.reply = seconds, faults or {}, random.Random(seed), reply
        self.plan, self.seen, self.answered, self.now, self.most = [], [], Counter(), 0, 0

    @property
    def base(self): return f'http://127.0.0.1:{self.port}/v1'

    def _what(self):
        "The next behaviour: of the plan, or drawn."
        if self.plan: return self.plan.pop(0)
        drawn = self.random.random()
        for name, share in self.faults.items():
            if (drawn := drawn - share) < 0: return name
        return 'good'

    async def serve(self, reader, writer):
        "One connection, kept alive."
        try:
            while head := await reader.readuntil(b'\r\n\r\n'):
                lines = head.decode('latin-1').split('\r\n')
                headers = {k.lower(): v for k, v in (line.split(': ', 1) for line in lines[1:] if ': ' in line)}
                data = await reader.readexactly(int(headers.get('content-length', 0)))
                if lines[0].startswith('GET'): await self._send(writer, 200, dict(data=[]))
                else: await self._complete(json.loads(data), headers, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError): pass
        finally: writer.close()

    async def _complete(self, body, headers, reader, writer):
        what = self._what()
        self.seen.append(dict(body=body, what=what, headers=headers, time=asyncio.get_running_loop().time()))
        self.now += 1; self.most = max(self.most, self.now)
        try: await self._behave(what, body, reader, writer)
        finally: self.now -= 1

    async def _behave(self, what, body, reader, writer):
        if what == 'hang': return await reader.read()    # until whoever asked has gone
        if what == 'drop': raise ConnectionResetError
        await asyncio.sleep(self.seconds)
        if reader.at_eof(): raise ConnectionResetError      # whoever asked has gone: nobody reads this
        if what in ('429', '500', '401'):
            more = {'Retry-After': '1'} if what == '429' else {}
            return await self._send(writer, int(what), dict(error=dict(message=f'status {what}')), **more)
        if what == 'html': return await self._send(writer, 200, b'<html>welcome</html>')
        text = self.reply(body) if what in ('good', 'length', 'content_filter') else '' if what == 'garbage' else what
        if what == 'garbage': text = 'The judge is in a strange mood today: Text: n'
        if what in ('length', 'content_filter'): text += '\nOn the other hand'
        await self._send(writer, 200, completion(text, what if what in ('length', 'content_filter') else 'stop'))
        self.answered[json.dumps(body['messages'])] += what == 'good'

    async def _send(self, writer, status, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {'Content-Type': 'application/json', 'Content-Length': len(data)} | headers
        writer.write(f'HTTP/1.1 {status} X\r\n'.encode() + ''.join(f'{k}: {v}\r\n' for k, v in headers.items()).encode() + b'\r\n' + data)
        await writer.drain()


def completion(text, reason='stop'):
    choice = dict(index=0, finish_reason=reason, message=dict(role='assistant', content=text))
    usage = dict(prompt_tokens=100, completion_tokens=10, total_tokens=110)
    return dict(id='x', object='chat.completion', created=0, model='judge', choices=[choice], usage=usage)


def judge_server(**how):
    "A JudgeServer in a thread of its own; gone at the end."
    server = JudgeServer(**how)
    return in_thread(server, server.serve, limit=1 << 27)
