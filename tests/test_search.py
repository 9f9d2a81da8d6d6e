"The search tool: photographs on this machine, three services against recorded answers over real HTTP, and the chain."
import asyncio, io, json, os, resource, subprocess, sys, time
from pathlib import Path

import numpy as np, pytest
from PIL import Image

from llmi_kit.config import SettingsError, Store, load_profile
from llmi_kit.picture import Failure, Origin, Picture
from llmi_kit.tools import photos as photos_module
from llmi_kit.tools.photos import Embedder, Index, LocalSearch, Photo, open_photo, read_folder, shipped
from llmi_kit.tools.search import SearchTool, commons, from_profile, openverse, plain, serpapi, serpapi_read
from loopback import loopback

RECORDED = Path(__file__).parent/'recorded'
HOSTS = dict(commons='https://upload.wikimedia.org', openverse='https://live.staticflickr.com', serpapi='https://images.example.org')

def jpeg(w=640, h=480, seed=0, **kwargs):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (h, w, 3), np.uint8)).save(buffer, 'JPEG', **kwargs)
    return buffer.getvalue()

@pytest.fixture(scope='module')
def embed(tmp_path_factory): return Embedder(Store(tmp_path_factory.mktemp('vectors')))

@pytest.fixture(scope='module')
def local(embed): return LocalSearch(embed=embed)

# ---- the photographs that packages ship

def test_every_photograph_is_there_and_credited():
    found = shipped()
    assert len(found) >= 20 and len({p.id for p in found}) == len(found)
    for p in found:
        with Image.open(p.file) as image: assert image.size >= (100, 100)
        assert p.caption and p.author and p.licence and p.page.startswith('http') and len(p.keywords) >= 4, p.id
        assert len(p.facts) >= 3 and all(f.endswith('.') and len(f) < 120 for f in p.facts), p.id
        assert 2 <= p.caption.count('. ') + 1 <= 4, p.id

@pytest.mark.parametrize('query, title', [
    ('a cat', 'Chelsea the cat'), ('Grace Hopper', 'Grace Hopper'), ('the surface of the Moon', 'Surface of the Moon'),
    ('an espresso', 'Cup of espresso'),
    ('Falcon 9 on the launch pad', 'Falcon 9 rocket with DSCOVR'), ('a red motorcycle', 'Red Yamaha motorcycle in a garage')])
async def test_what_is_there_is_found(local, query, title):
    answer = await local(query)
    assert isinstance(answer, Picture) and answer.origin.title == title
    assert answer.origin.author and answer.origin.licence and answer.origin.page and answer.origin.request == {'query': query}

@pytest.mark.parametrize('query', ['Eiffel Tower in Paris', 'Albert Einstein', 'map of Brazil', 'asdf qwer', '🙂', 'x'*5000])
async def test_what_is_not_there_is_refused_with_the_closest(local, query):
    answer = await local(query)
    assert isinstance(answer, Failure) and answer.kind == 'not_found'
    assert any(p.title in answer.message for p in local.photos) and len(answer.message) < 400

async def test_same_query_same_picture(local, embed):
    a, b = await local('a tabby cat', seed=1), await LocalSearch(embed=embed)('a tabby cat', seed=2)
    assert a == b

def test_no_network_no_noise_and_vectors_kept(tmp_path):
    "A fresh process without sockets finds a picture silently; a second one does not even load the encoder."
    code = '''if 1:
        import socket, asyncio, sys
        class No(socket.socket):
            def connect(self, *a): raise SystemExit('network used')
        socket.socket = No; socket.getaddrinfo = None
        from llmi_kit.tools.photos import LocalSearch
        p = asyncio.run(LocalSearch()('a tabby cat'))
        print(p.origin.title, 'transformers' in sys.modules)'''
    said = []
    for _ in range(2):
        run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | {'LLMI_CACHE': str(tmp_path)})
        said.append(run.stdout.strip())
        assert run.stderr == ''
    assert said == ['Chelsea the cat True', 'Chelsea the cat False']

def test_a_full_disk_costs_no_vector(tmp_path):
    "The kernel refuses every write of this process, as on a full disk; what was kept before is still read."
    embed = Embedder(Store(tmp_path))
    embed(['a cat'])
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try: full = embed(['a cat', 'a dog', 'a red car ' * 300])
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert np.allclose(full, embed(['a cat', 'a dog', 'a red car ' * 300]), atol=1e-5)

def test_a_broken_cache_costs_no_vector(tmp_path):
    (tmp_path/'cache.db').write_bytes(b'no database' * 1000)
    class Broken(Embedder):
        store = property(lambda self: Store(tmp_path))
    assert Broken()(['a cat']).shape == (1, 384)

def test_each_photograph_is_closest_to_its_own_facts(embed):
    found = shipped()
    similarity = Index(found, embed)([f'{p.title}: {p.keywords[0]}' for p in found])
    assert [found[i].id for i in similarity.argmax(1)] == [p.id for p in found]

# ---- a folder of the user's

def test_folder(tmp_path):
    (tmp_path/'Rome'/'2019').mkdir(parents=True)
    exif = Image.new('RGB', (1, 1)).getexif(); exif[270], exif[315] = 'Brücke über den Tiber'.encode(), 'Ann'
    (tmp_path/'Rome'/'2019'/'IMG_1.jpg').write_bytes(jpeg(exif=exif))
    (tmp_path/'my_old-boat.png').write_bytes(jpeg())
    (tmp_path/'a.jpg').write_bytes(jpeg()); (tmp_path/'a.txt').write_text('A fox in the snow.')
    (tmp_path/'b.jpg').write_bytes(jpeg()); (tmp_path/'b.json').write_text('{"title": "Owl", "licence": "CC0", "author": 7}')
    (tmp_path/'c.jpg').write_bytes(jpeg()); (tmp_path/'c.json').write_text('{broken')
    (tmp_path/'bad.jpg').write_bytes(b'nothing'); (tmp_path/'empty.png').write_bytes(b''); (tmp_path/'notes.txt').write_text('x')
    found, broken = read_folder(tmp_path)
    by = {p.id: p for p in found}
    assert by['Rome/2019/IMG_1.jpg'].caption == 'Brücke über den Tiber' and by['Rome/2019/IMG_1.jpg'].author == 'Ann'
    assert by['Rome/2019/IMG_1.jpg'].keywords == ['Rome', '2019'] and by['my_old-boat.png'].title == 'my old boat'
    assert by['a.jpg'].caption == 'A fox in the snow.'
    assert by['b.jpg'].title == 'Owl' and by['b.jpg'].licence == 'CC0' and not by['b.jpg'].author
    assert by['c.jpg'].title == 'c' and broken == ['bad.jpg', 'empty.png'] and len(found) == 5

async def test_own_picture_wins_and_a_broken_one_is_passed_over(tmp_path, embed):
    (tmp_path/'1.jpg').write_bytes(jpeg()[:2000]); (tmp_path/'1.txt').write_text('A red fox in deep snow')     # header fine, rest missing
    (tmp_path/'2.jpg').write_bytes(jpeg()); (tmp_path/'2.txt').write_text('A red fox in deep snow')
    answer = await LocalSearch(tmp_path, embed=embed)('a red fox in the snow')
    assert isinstance(answer, Picture) and answer.origin.address == '2.jpg' and str(tmp_path) not in answer.model_dump_json()

async def test_large_own_picture_is_shrunk(tmp_path):
    Image.new('RGB', (6000, 3000), 'teal').save(tmp_path/'big.jpg')
    found, _ = read_folder(tmp_path)
    assert max((p := open_photo(found[0], Origin(tool='search'))).width, p.height) == 2048

async def test_missing_folder_and_missing_encoder(monkeypatch, embed):
    assert 'no/such' in LocalSearch('no/such').ready() and (await LocalSearch('no/such')('cat')).kind == 'unavailable'
    monkeypatch.setattr(photos_module, '_package', lambda name: None)
    assert 'pip install' in LocalSearch(embed=embed).ready()

def test_key_knows_the_contents(tmp_path, embed):
    keys = {LocalSearch(embed=embed).key, LocalSearch(embed=embed, threshold=.3).key, LocalSearch(tmp_path, embed=embed).key}
    (tmp_path/'a.jpg').write_bytes(jpeg()); keys.add(LocalSearch(tmp_path, embed=embed).key)
    (tmp_path/'a.txt').write_text('an ant'); keys.add(LocalSearch(tmp_path, embed=embed).key)
    assert len(keys) == 4       # an empty folder changes nothing

# ---- services, over real HTTP

@pytest.fixture
def server():
    with loopback() as s: yield s

def recorded(name, server): return (RECORDED/f'{name}.json').read_text().replace(HOSTS[name], server.base).encode()

def service(name, server, **kwargs):
    make = dict(commons=commons, openverse=openverse, serpapi=lambda **k: serpapi('s3cret', **k))[name]
    return make(address=f'{server.base}/api', allow_private=True, **kwargs)

def files(server, name):
    "Paths of the candidates' files in the recorded answer, best first."
    tool = service(name, server)
    return [o.address.removeprefix(server.base) for o in tool.read(json.loads(recorded(name, server)))]

CREDITS = dict(commons=('Lighthouse at dusk 1', 'Example One', 'CC BY-SA 4.0', 'https://commons.wikimedia.org/wiki/File:Lighthouse_at_dusk_1.jpg'),
               openverse=('Lighthouse, north side', 'Example Walker', 'CC BY-SA 2.0', 'https://www.flickr.com/photos/example/500000001'),
               serpapi=('Lighthouse holiday homes', 'Example Travel', 'unknown: ask on the page before you publish it', 'https://www.example1.org/lighthouse'))

@pytest.mark.parametrize('name', CREDITS)
async def test_service_finds_and_credits(server, name):
    server.routes['/api'] = recorded(name, server)
    for i, path in enumerate(files(server, name)): server.routes[path] = jpeg(seed=i)
    answer = await service(name, server)('lighthouse & sea')
    o = answer.origin
    assert (o.title, o.author, o.licence, o.page) == CREDITS[name] and o.backend == name and o.request == {'query': 'lighthouse & sea'}
    asked = server.asked('/api')[0]['target']
    assert 'lighthouse%20%26%20sea' in asked.replace('+', '%20') and ('api_key=s3cret' in asked) == (name == 'serpapi')
    assert 's3cret' not in answer.model_dump_json(exclude={'data'}) + repr(service(name, server)) + service(name, server).key

@pytest.mark.parametrize('name', CREDITS)
async def test_next_candidate_when_the_first_is_bad(server, name):
    server.routes['/api'] = recorded(name, server)
    first, second = files(server, name)[:2]
    for bad in (b'<html>login</html>', jpeg()[:3000], (500, {}, b''), (302, {'Location': 'ftp://x/'}, b''), jpeg(100, 100)):
        server.routes |= {first: bad, second: jpeg()}
        assert (await service(name, server)('lighthouse')).origin.address.endswith(second)

@pytest.mark.parametrize('name', CREDITS)
async def test_service_faults(server, name):
    tool = service(name, server, seconds=2)
    odd_results = b'{"results": [1, null], "images_results": ["x"], "query": {"pages": [{}]}}'
    for route, kind in [((500, {}, b''), 'network'), ((429, {'Retry-After': '60'}, b''), 'network'), (b'<html>', 'network'),
                        (b'[]', 'network'), (b'null', 'network'), (b'{}', 'not_found'), (odd_results, 'not_found')]:
        server.routes['/api'] = route
        answer = await tool('lighthouse')
        assert isinstance(answer, Failure) and answer.kind == kind and 's3cret' not in answer.message, (route, answer)
    async def hang(writer): await asyncio.sleep(20)
    server.routes['/api'], start = hang, time.monotonic()
    assert (await tool('lighthouse')).kind == 'timeout' and time.monotonic() - start < 4

async def test_service_waits_for_retry_after(server):
    left = [(429, {'Retry-After': '1'}, b''), recorded('commons', server)]
    server.routes['/api'] = lambda target: (r if isinstance(r := left.pop(0), tuple) else (200, {}, r))
    server.routes[files(server, 'commons')[0]] = jpeg()
    start = time.monotonic()
    assert isinstance(await service('commons', server)('lighthouse'), Picture) and time.monotonic() - start >= 1

async def test_candidates_on_private_addresses_are_refused(server, monkeypatch):
    "The API may be reachable: a candidate that points inside is still refused."
    from llmi_kit.tools import fetch
    monkeypatch.setattr(fetch, 'forbidden', lambda a, real=fetch.forbidden: None if a == '127.0.0.2' else real(a))
    with loopback('127.0.0.2') as api:
        monkeypatch.setattr(fetch, 'PORTS', fetch.PORTS | {api.port, server.port})
        api.routes['/api'] = recorded('commons', server)
        for path in files(server, 'commons'): server.routes[path] = jpeg()
        answer = await commons(address=api.base + '/api')('lighthouse')
    assert isinstance(answer, Failure) and answer.kind == 'refused' and not server.seen

def test_hostile_text_and_links():
    assert plain('<img src=x onerror=alert(1)>A<script>x</script> &lt;b&gt;') == 'A <b>' and plain(7) == '' and len(plain('a'*9000)) == 300
    hostile = {'original': 'https://x.org/a.png', 'link': 'javascript:alert(1)', 'title': '<b>x'}
    found = serpapi_read({'images_results': [hostile, {'original': 'file:///etc/passwd'}]})
    assert [(o.page, o.title) for o in found] == [('', 'x')]

async def test_serpapi_key_problems(server):
    assert 'MY_KEY' in serpapi(None, 'MY_KEY').ready() and (await serpapi('')('x')).kind == 'unavailable'
    server.routes['/api'] = (401, {}, b'{"error": "Invalid API key."}')
    assert (await service('serpapi', server)('x')).kind == 'unavailable'
    server.routes['/api'] = b'{"error": "Your account has run out of searches."}'
    assert 'run out' in (await service('serpapi', server)('x')).message
    server.routes['/api'] = b'{"error": "Google hasn\'t returned any results for this query."}'
    assert (await service('serpapi', server)('x')).kind == 'not_found'

# ---- the chain

async def test_chain_takes_the_first_that_has_one(server, local):
    server.routes['/api'] = recorded('commons', server)
    for path in files(server, 'commons'): server.routes[path] = jpeg()
    tool = SearchTool([local, service('commons', server)])
    assert (await tool('a tabby cat')).origin.backend.startswith('local') and not server.seen
    answer = await tool('a lighthouse on a cliff')
    assert answer.origin.backend == 'commons' and answer.origin.seconds > 0

async def test_chain_sums_up_failures(server, local):
    server.routes['/api'] = (429, {'Retry-After': '99'}, b'')
    answer = await SearchTool([local, serpapi(None), service('commons', server)])('a lighthouse on a cliff')
    assert answer.kind == 'network' and answer.transient and answer.retry_after == 99
    assert all(word in answer.message for word in ('closest', 'SERPAPI_API_KEY', '429')) and 'Traceback' not in answer.message

async def test_chain_with_nothing(local):
    assert (await SearchTool([])('x')).kind == 'unavailable' and SearchTool([]).ready()
    assert (await SearchTool([local])(' \n ')).kind == 'invalid'
    assert SearchTool([serpapi(None), local]).ready() is None and 'serpapi' in SearchTool([serpapi(None)]).ready()

def test_from_profile(monkeypatch):
    monkeypatch.setenv('SERPAPI_API_KEY', 'k')
    tool = from_profile(load_profile('cpu', search='local, commons, openverse, serpapi'))
    assert [p.name for p in tool.providers] == ['local', 'commons', 'openverse', 'serpapi'] and tool.ready() is None
    assert tool.providers[3].ready() is None and 'k' == tool.providers[3].secret['api_key']
    with pytest.raises(SettingsError, match='bing'): from_profile(load_profile('cpu', search='bing'))

def test_a_photo_needs_no_package(): assert Photo(id='x', title='x', path='x.jpg', folder='f').file == Path('f/x.jpg')
