"""A real HTTP server on loopback that speaks both picture protocols, with faults: the OpenAI images API
(generations, edits; Volcengine Ark's extras) and the Qwen-Image protocol. Stops when its `with` block ends."""
import base64, hashlib, io, json, re, threading, time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image, ImageOps

KEY = 'sk-test-0123456789'


def png(prompt, seed=0, size=(64, 48)):
    "One colour that depends on prompt and seed."
    buffer = io.BytesIO()
    Image.new('RGB', size, '#' + hashlib.sha256(f'{prompt}|{seed}'.encode()).hexdigest()[:6]).save(buffer, 'PNG')
    return buffer.getvalue()


def negative(data):
    "The edit that this server does: it shows that the picture itself arrived."
    buffer = io.BytesIO()
    ImageOps.invert(Image.open(io.BytesIO(data)).convert('RGB')).save(buffer, 'PNG')
    return buffer.getvalue()


class ImageServer:
    def __init__(self, *faults, answers='b64', refuses=(), needs_key=False, edits=True, delay=0.):
        self.faults, self.answers, self.refuses = deque(faults), answers, refuses
        self.needs_key, self.edits, self.delay = needs_key, edits, delay
        self.requests, self.paths, self.busiest, self._busy = [], [], 0, 0
        self._stop, self._lock = threading.Event(), threading.Lock()

    def __enter__(self):
        self.http = ThreadingHTTPServer(('127.0.0.1', 0), type('Handler', (_Handler,), dict(owner=self)))
        self.http.daemon_threads = True
        self.url = f'http://127.0.0.1:{self.http.server_port}'
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs=dict(poll_interval=.02), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self.http.shutdown(); self.http.server_close(); self.thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    owner: ImageServer

    def log_message(self, *_): pass

    def do_GET(self):
        self.owner.paths.append(self.path)
        if self.path == '/health': return self.reply(200, {'status': 'healthy'})
        if self.path == '/info': return self.reply(200, {'model': 'Qwen/Qwen-Image', 'device': 'cpu'})
        if self.path.startswith('/files/'): return self.reply(200, png(self.path), 'image/png')
        self.reply(404, {'detail': 'Not Found'})

    def do_POST(self):
        o = self.owner
        raw = self.rfile.read(int(self.headers['Content-Length']))
        o.paths.append(self.path)
        with o._lock: o._busy += 1; o.busiest = max(o.busiest, o._busy)
        try:
            body = self.form(raw) if 'multipart' in self.headers['Content-Type'] else json.loads(raw)
            o.requests.append(dict(path=self.path, body=body, key=self.headers.get('Authorization', '')))
            if o.delay: o._stop.wait(o.delay)
            fault = o.faults.popleft() if o.faults else 'ok'
            getattr(self, f'fault_{fault}')(body)
        except (BrokenPipeError, ConnectionResetError): self.close_connection = True
        finally:
            with o._lock: o._busy -= 1

    def form(self, raw):
        "Fields of a multipart form."
        boundary = re.search('boundary=([^;]+)', self.headers['Content-Type'])[1].strip('"').encode()
        fields = {}
        for part in raw.split(b'--' + boundary)[1:-1]:
            head, _, value = part.partition(b'\r\n\r\n')
            name = re.search(rb'name="([^"]+)"', head)[1].decode()
            fields[name] = value[:-2] if b'filename=' in head else value[:-2].decode()
        return fields

    def reply(self, status, answer, mime='application/json', headers=()):
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for k, v in (('Content-Type', mime), ('Content-Length', str(len(data))), *headers): self.send_header(k, v)
        self.end_headers()
        self.wfile.write(data)

    # -- what a healthy server does

    def fault_ok(self, body):
        o = self.owner
        if o.needs_key and self.headers.get('Authorization') != f'Bearer {KEY}':
            return self.error(401, f"Incorrect API key provided: {self.headers.get('Authorization')}", 'invalid_api_key')
        for name in o.refuses:
            if name in body: return self.error(400, f"Unknown parameter: '{name}'.", 'unknown_parameter', name)
        if self.path == '/v1/images/edits' and not o.edits: return self.error(404, 'Not Found')
        known = {'/v1/images/generations', '/v1/images/edits', '/generate/', '/edit/'}
        if self.path not in known: return self.error(404, 'Not Found')
        self.answer(self.picture(body))

    def picture(self, body):
        image = body.get('image_b64') or body.get('image')
        if isinstance(image, str): image = base64.b64decode(image.rpartition(',')[2])
        return negative(image) if image else png(body['prompt'], body.get('seed', 0))

    def answer(self, data):
        if not self.path.startswith('/v1'): return self.reply(200, {'status': 'success', 'images': [base64.b64encode(data).decode()]})
        one = {'url': f'{self.owner.url}/files/{hashlib.sha256(data).hexdigest()[:8]}.png'} if self.owner.answers == 'url' else \
            {'b64_json': base64.b64encode(data).decode()}
        self.reply(200, {'created': int(time.time()), 'data': [one]})

    def error(self, status, message, code=None, param=None, headers=()):
        openai = {'error': {'message': message, 'type': 'invalid_request_error', 'code': code, 'param': param}}
        self.reply(status, openai if self.path.startswith('/v1') else {'detail': message}, headers=headers)

    # -- faults

    def fault_500(self, body): self.error(500, 'CUDA error: an illegal memory access was encountered')
    def fault_429(self, body): self.error(429, 'Rate limit reached', 'rate_limit_exceeded', headers=[('Retry-After', '7')])
    def fault_quota(self, body): self.error(429, 'You exceeded your current quota', 'insufficient_quota')
    def fault_policy(self, body): self.error(400, 'Your request was rejected by our safety system.', 'moderation_blocked')
    def fault_bad_request(self, body): self.error(400, 'prompt is too long')
    def fault_hang(self, body): self.owner._stop.wait(20); self.close_connection = True
    def fault_drop(self, body): self.connection.close(); self.close_connection = True
    def fault_garbage(self, body): self.reply(200, b'<html>nginx is starting</html>', 'text/html')
    def fault_truncated(self, body): self.reply(200, b'{"data": [{"b64_json": "iVBOR', 'application/json')
    def fault_list(self, body): self.reply(200, [1, 2])
    def fault_empty(self, body): self.reply(200, {'status': 'success', 'images': [], 'data': []})
    def fault_bad_base64(self, body): self.reply(200, {'status': 'success', 'images': ['%%%'], 'data': [{'b64_json': '%%%'}]})
    def fault_not_an_image(self, body): self.answer(b'hello, I am a text')
    def fault_numbers(self, body): self.reply(200, {'status': 'success', 'images': [7], 'data': [{'b64_json': 7}]})
    def fault_error_inside(self, body): self.reply(200, {'status': 'error', 'message': 'no free worker', 'error': {'message': 'no free worker'}})
    def fault_trickle(self, body):
        "A byte now and then: no read ever times out, the whole does."
        self.send_response(200); self.send_header('Content-Length', '100000'); self.end_headers()
        while not self.owner._stop.wait(.1): self.wfile.write(b' '); self.wfile.flush()

    def fault_oversized(self, body):
        "Ten times what a picture may have, sent in pieces."
        self.send_response(200); self.send_header('Content-Type', 'application/json'); self.send_header('Connection', 'close')
        self.end_headers()
        self.close_connection = True
        self.wfile.write(b'{"data": [{"b64_json": "')
        for _ in range(300): self.wfile.write(b'A'*1_000_000)

    def fault_huge_side(self, body): self.answer(png('huge', size=(6000, 10)))
