"Downloads from strangers: every guard and every fault over real HTTP on loopback."
import asyncio, gzip, io, shutil, ssl, struct, subprocess, time, zlib

import httpcore, httpx, numpy as np, pytest
from hypothesis import given, strategies as st
from PIL import Image

from llmi_kit.picture import Failure, Origin, Picture
from llmi_kit.tools import fetch
from llmi_kit.tools.fetch import first_good, forbidden, get, get_picture, web
from loopback import loopback

PUBLIC = '127.0.0.2'    # plays a public host in tests of redirects: a server there, and `forbidden` told to let it pass

def png(w=420, h=410, seed=0):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (h, w, 3), np.uint8)).save(buffer, 'PNG', compress_level=1)
    return buffer.getvalue()

GOOD = png()

def bomb_png(side):
    "A well-formed PNG of side x side black pixels, in a few kB a hundred megapixels."
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    packer, rows = zlib.compressobj(9), bytearray()
    row = bytes(side//8 + 1)
    for _ in range(side): rows += packer.compress(row)
    rows += packer.flush()
    header = struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', bytes(rows)) + chunk(b'IEND', b'')

@pytest.fixture(scope='module')
def server():
    with loopback() as s: yield s

@pytest.fixture
def public(monkeypatch):
    "A server that counts as public, on a port that counts as a web server's; everything else stays guarded."
    with loopback(PUBLIC) as s:
        real = forbidden
        monkeypatch.setattr(fetch, 'forbidden', lambda a: None if a == PUBLIC else real(a))
        monkeypatch.setattr(fetch, 'PORTS', fetch.PORTS | {s.port})
        yield s

async def picture(address, allow_private=True, **kwargs):
    async with web(allow_private) as client: return await get_picture(client, Origin(tool='search', address=address), **kwargs)

async def fetched(address, allow_private=True, **kwargs):
    async with web(allow_private) as client: return await get(client, address, **kwargs)

# ---- addresses

@given(st.ip_addresses(v=4))
def test_ipv4_in_disguise_is_no_way_in(ip):
    "An IPv4 address inside an IPv6 one is never looked through: all forms are refused."
    n = int(ip)
    mapped, nat64, six = f'::ffff:{ip}', f'64:ff9b::{n >> 16:x}:{n & 0xffff:x}', f'2002:{n >> 16:x}:{n & 0xffff:x}::1'
    assert all(forbidden(a) for a in (mapped, nat64, six))

@given(st.ip_addresses(v=6))
def test_ipv6_outside_the_global_block_is_refused(ip):
    if int(ip) >> 125 != 1: assert forbidden(str(ip))

@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost', '127.1', '0x7f000001', '2130706433', '017700000001', '[::1]', '0.0.0.0',
                                  '[::ffff:127.0.0.1]', '169.254.169.254', '10.0.0.1', '100.64.0.1', '224.0.0.1', '[64:ff9b::7f00:1]'])
async def test_private_hosts_are_refused(host):
    answer = await fetched(f'http://{host}/', allow_private=False, tries=1, seconds=5)
    assert isinstance(answer, Failure) and answer.kind == 'refused', answer

@pytest.mark.parametrize('address', ['file:///etc/passwd', 'ftp://93.184.215.14/a.png', 'gopher://93.184.215.14/', 'http://u:p@93.184.215.14/',
                                     'http://93.184.215.14:22/', 'https://93.184.215.14:6379/', 'data:image/png;base64,AAAA'])
async def test_odd_addresses_are_refused(address):
    answer = await fetched(address, allow_private=False, tries=1, seconds=5)
    assert isinstance(answer, Failure) and answer.kind == 'refused' and not answer.transient, answer

@pytest.mark.parametrize('address', ['', 'http://', 'http://[::1', 'http://' + 'a'*300 + '.org/', 'not an address',
                                     'http://\x00/', 'http://a b/', 'http://x:99999/'])
async def test_nonsense_is_a_failure(address):
    answer = await fetched(address, allow_private=False, tries=1, seconds=5)
    assert isinstance(answer, Failure) and answer.message

async def test_public_host_works(public):
    public.routes['/a.png'] = GOOD
    assert isinstance(await picture(f'{public.base}/a.png', allow_private=False), Picture)
    assert public.seen[0]['headers']['user-agent'].startswith('llmi_kit/')

@pytest.mark.parametrize('target', ['http://127.0.0.1:{port}/secret', 'http://169.254.169.254/latest/meta-data', 'http://[::1]:8080/', 'http://localhost/',
                                    'http://[::ffff:127.0.0.1]/', 'file:///etc/passwd', '//127.0.0.1/x', 'http://127.0.0.1:22/'])
async def test_redirects_are_guarded(public, server, target):
    server.routes['/secret'] = GOOD
    fetch.PORTS.add(server.port)    # the set of this test: see `public`
    public.routes['/go'] = (302, {'Location': target.format(port=server.port)}, b'')
    before = len(server.asked('/secret'))
    answer = await fetched(f'{public.base}/go', allow_private=False, tries=1, seconds=5)
    assert isinstance(answer, Failure) and answer.kind == 'refused', answer
    assert len(server.asked('/secret')) == before

async def test_redirect_between_public_hosts_works(public):
    public.routes |= {'/old': (302, {'Location': '/new.png'}, b''), '/new.png': GOOD}
    assert isinstance(await picture(f'{public.base}/old', allow_private=False), Picture)

async def test_endless_redirects_end(public):
    public.routes['/round'] = (302, {'Location': '/round'}, b'')
    answer = await fetched(f'{public.base}/round', allow_private=False, tries=1)
    assert answer.kind == 'refused' and len(public.asked('/round')) == 6

async def test_rebinding_dns(public, server, monkeypatch):
    "A name that is public when it is checked and private right after: one look-up, and that address is connected."
    answers = iter([[PUBLIC], ['127.0.0.1'], ['127.0.0.1']])
    asked = []
    async def resolve(host, port): asked.append(host); return next(answers)
    monkeypatch.setattr(fetch, 'resolve', resolve)
    public.routes['/a.png'] = GOOD
    answer = await picture(f'http://rebind.example:{public.port}/a.png', allow_private=False)
    assert isinstance(answer, Picture) and asked == ['rebind.example']
    assert public.seen[0]['headers']['host'] == f'rebind.example:{public.port}'

async def test_one_private_address_among_public_ones_is_enough(public, monkeypatch):
    async def resolve(host, port): return [PUBLIC, '127.0.0.1']
    monkeypatch.setattr(fetch, 'resolve', resolve)
    public.routes['/a.png'] = GOOD
    assert (await picture(f'http://both.example:{public.port}/a.png', allow_private=False)).kind == 'refused'

async def test_proxies_and_passwords_of_the_environment_are_not_used(public, server, monkeypatch, tmp_path):
    "A proxy would resolve the name itself, behind the guard; a password in .netrc is not for strangers."
    (tmp_path/'netrc').write_text(f'machine {PUBLIC} login me password pw')
    monkeypatch.setenv('NETRC', str(tmp_path/'netrc'))
    monkeypatch.setenv('HTTP_PROXY', server.base); monkeypatch.setenv('ALL_PROXY', server.base)
    public.routes['/a.png'] = GOOD
    before = len(server.seen)
    assert isinstance(await picture(f'{public.base}/a.png', allow_private=False), Picture) and len(server.seen) == before
    assert 'authorization' not in public.seen[0]['headers']

@pytest.fixture
def certificate(tmp_path):
    "A fresh self-signed certificate for pictures.example: (certificate file, key file)."
    if not shutil.which('openssl'): pytest.skip('needs openssl to make a certificate')
    cert, key = tmp_path/'cert.pem', tmp_path/'key.pem'
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2',
                    '-subj', '/CN=x', '-addext', 'subjectAltName=DNS:pictures.example',
                    '-keyout', key, '-out', cert], check=True, capture_output=True)
    return cert, key

async def test_tls_checks_the_name_not_the_address(certificate, monkeypatch):
    "The connection goes to a number, yet SNI, Host and the certificate are about the name."
    names = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.sni_callback = lambda sock, name, ctx: names.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    monkeypatch.setattr(fetch, '_tls', lambda: trusting)
    async def resolve(host, port): return ['127.0.0.1']
    monkeypatch.setattr(fetch, 'resolve', resolve)
    with loopback(ssl=context) as s:
        s.routes['/a.png'] = GOOD
        assert isinstance(await picture(f'https://pictures.example:{s.port}/a.png'), Picture)
        assert names == ['pictures.example'] and s.seen[0]['headers']['host'] == f'pictures.example:{s.port}'
        other = await fetched(f'https://other.example:{s.port}/a.png', tries=1)
        assert other.kind == 'network' and len(s.seen) == 1

# ---- sizes and types

async def test_body_over_the_limit(server):
    async def endless(writer):
        writer.write(b'HTTP/1.1 200 OK\r\n\r\n')
        for _ in range(500): writer.write(bytes(100_000)); await writer.drain()
    server.routes['/huge'] = endless
    answer = await fetched(server.base + '/huge', max_bytes=1_000_000)
    assert answer.kind == 'refused' and '1,000,000' in answer.message

async def test_packed_body_is_counted_unpacked(server):
    server.routes['/gz'] = (200, {'Content-Encoding': 'gzip'}, gzip.compress(bytes(30_000_000)))
    assert (await fetched(server.base + '/gz', max_bytes=1_000_000)).kind == 'refused'
    server.routes['/gz.png'] = (200, {'Content-Encoding': 'gzip'}, gzip.compress(GOOD))
    assert (await picture(server.base + '/gz.png')).data == GOOD
    server.routes['/br'] = (200, {'Content-Encoding': 'br'}, b'xx')
    assert (await fetched(server.base + '/br')).kind == 'refused'
    server.routes['/badgz'] = (200, {'Content-Encoding': 'gzip'}, b'not gzip at all')
    assert (await fetched(server.base + '/badgz')).kind == 'invalid'

@pytest.mark.parametrize('side', [5121, 12_000])
async def test_bomb_is_refused_before_decoding(server, side, monkeypatch):
    server.routes['/bomb.png'] = bomb_png(side)
    decoded = []
    monkeypatch.setattr(Image.Image, 'load', lambda self: decoded.append(self.size))
    assert isinstance(await picture(server.base + '/bomb.png', seconds=20), Failure)
    assert not decoded

async def test_type_is_what_the_bytes_are(server):
    server.routes['/html.png'] = (200, {'Content-Type': 'image/png'}, b'<html><body>Sorry</body></html>')
    assert (await picture(server.base + '/html.png')).kind == 'invalid'
    server.routes['/odd'] = (200, {'Content-Type': 'text/html'}, GOOD)
    assert (await picture(server.base + '/odd')).mime == 'image/png'
    buffer = io.BytesIO(); Image.new('RGB', (500, 500)).save(buffer, 'BMP')
    server.routes['/x.png'] = (200, {'Content-Type': 'image/png'}, buffer.getvalue())
    assert (await picture(server.base + '/x.png')).kind == 'invalid'

async def test_truncated_picture(server):
    server.routes['/half.png'] = GOOD[:len(GOOD)//2]
    assert (await picture(server.base + '/half.png')).kind == 'invalid'
    server.routes['/cut.png'] = (200, {'Content-Length': len(GOOD)}, GOOD[:1000])     # the connection ends early
    answer = await picture(server.base + '/cut.png')
    assert answer.kind == 'network' and answer.transient

async def test_smallest_size(server):
    server.routes |= {'/399.png': png(399, 900), '/400.png': png(400, 400)}
    assert (await picture(server.base + '/399.png')).kind == 'refused'
    assert isinstance(await picture(server.base + '/400.png'), Picture)
    assert isinstance(await picture(server.base + '/399.png', min_side=100), Picture)

# ---- faults and retries

def flaky(*answers):
    "A route that gives these answers one after another, the last one for ever."
    left = list(answers)
    return lambda target: left.pop(0) if len(left) > 1 else left[0]

async def test_429_waits_as_asked(server):
    server.routes['/busy'] = flaky((429, {'Retry-After': '1'}, b''), b'done')
    start = time.monotonic()
    assert await fetched(server.base + '/busy') == b'done' and time.monotonic() - start >= 1
    assert len(server.asked('/busy')) == 2

@pytest.mark.parametrize('wait', [12, 3600])       # 12 s would fit into the deadline, and is still too long
async def test_long_retry_after_is_reported_not_waited_for(server, wait):
    server.routes[f'/later{wait}'] = (429, {'Retry-After': str(wait)}, b'')
    start = time.monotonic()
    answer = await fetched(f'{server.base}/later{wait}')
    assert answer.transient and answer.retry_after == wait and time.monotonic() - start < 5 and len(server.asked(f'/later{wait}')) == 1

def test_retry_after_forms():
    def wait(value): return fetch.status_failure(httpx.Response(503, headers={'Retry-After': value}, request=httpx.Request('GET', 'http://x/'))).retry_after
    assert wait('7') == 7 and wait('soon') is None and wait('Wed, 21 Oct 2015 07:28:00 GMT') == 0

async def test_500_is_tried_again_then_reported(server):
    server.routes |= {'/flaky': flaky((500, {}, b''), (503, {}, b''), b'ok'), '/down': (500, {}, b'')}
    assert await fetched(server.base + '/flaky') == b'ok'
    answer = await fetched(server.base + '/down')
    assert answer.kind == 'network' and answer.transient and len(server.asked('/down')) == 3

async def test_404_is_final(server):
    answer = await fetched(server.base + '/nothing')
    assert answer.kind == 'not_found' and not answer.transient and len(server.asked('/nothing')) == 1

async def hang(writer): await asyncio.sleep(30)
async def drip(writer):
    writer.write(b'HTTP/1.1 200 OK\r\n\r\n')
    for byte in GOOD[:300]: writer.write(bytes([byte])); await writer.drain(); await asyncio.sleep(.1)

@pytest.mark.parametrize('route', [hang, drip])
async def test_silent_and_dripping_servers_meet_the_deadline(server, route):
    server.routes['/slow'] = route
    start = time.monotonic()
    answer = await picture(server.base + '/slow', seconds=.5)
    assert answer.kind == 'timeout' and answer.transient and time.monotonic() - start < 2

async def test_keys_are_not_told(server):
    server.routes['/k'] = (500, {}, b'')
    for address in (server.base + '/k', 'http://127.0.0.1:1/k'):
        answer = await fetched(address, tries=1, params=dict(api_key='s3cret'))
        assert isinstance(answer, Failure) and 's3cret' not in answer.model_dump_json()

# ---- candidates

def candidates(server, *paths): return [Origin(tool='search', title=p, address=server.base + p) for p in paths]

async def best(server, *paths, seconds=.6, at_once=4):
    async with web(allow_private=True) as client:
        return await first_good(candidates(server, *paths), lambda o: get_picture(client, o, seconds=seconds), at_once)

def after(seconds):
    async def route(writer):
        await asyncio.sleep(seconds)
        writer.write(b'HTTP/1.1 200 OK\r\n\r\n' + GOOD); await writer.drain()
    return route

async def test_rank_beats_speed(server):
    server.routes |= {'/first': after(.3), '/second': GOOD}
    assert (await best(server, '/first', '/second', seconds=6)).origin.title == '/first'

async def test_a_slow_first_candidate_costs_its_deadline_only(server):
    server.routes |= {'/never': hang, '/then': after(1), '/last': GOOD}
    start = time.monotonic()
    assert (await best(server, '/never', '/then', '/last', seconds=2)).origin.title == '/then'
    assert time.monotonic() - start < 2.9     # not deadline + 1 s: they ran together

async def test_losers_are_cancelled(server):
    server.routes |= {'/win': GOOD} | {f'/lose{i}': hang for i in range(8)}
    start, tasks = time.monotonic(), len(asyncio.all_tasks())
    assert (await best(server, '/win', *[f'/lose{i}' for i in range(8)], seconds=20)).origin.title == '/win'
    assert time.monotonic() - start < 3 and len(asyncio.all_tasks()) == tasks
    assert sum(len(server.asked(f'/lose{i}')) for i in range(8)) <= 4      # at most so many were started

async def test_all_bad_is_one_failure(server):
    answer = await best(server, '/gone1', '/gone2')
    assert answer.kind == 'not_found' and '2 candidates' in answer.message
    assert (await first_good([], None)).kind == 'not_found'

def test_the_pool_is_the_guarded_one():
    "httpx keeps its pool in a private place: if that moves, the guard would be gone without this test."
    backend = fetch.GuardedTransport()._pool._network_backend
    assert isinstance(backend, fetch.PublicOnly) and isinstance(backend, httpcore.AsyncNetworkBackend)
