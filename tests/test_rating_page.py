"""The page on which people rate, in a real browser, before the real command: by keyboard, blind, resumed after a kill, deaf to everybody else."""
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer
from markupsafe import Markup
from PIL import Image
from screenshot import ARGS, CHROMIUM
from test_report_browser import CONTRAST, HOSTILE, document_with
from typer.testing import CliRunner

from llmi_kit.cli_rating import rate
from llmi_kit.document import parse
from llmi_kit.picture import Failure, Origin, Picture
from llmi_kit.rating_page import Desk, RatingServer, Shown, blind, criteria_from
from llmi_kit.ratings import RatingFile, items_of, sides
from llmi_kit.report import write_report

sync_playwright = pytest.importorskip('playwright.sync_api').sync_playwright
pytestmark = pytest.mark.skipif(not os.access(CHROMIUM, os.X_OK), reason=f'no {CHROMIUM}: apt-get install chromium')
RATE = [sys.executable, '-c', 'import typer; from llmi_kit.cli_rating import rate; typer.run(rate)']
TAG = "<imgen>{'source': 'diffusion', 'description': 'A sign', 'params': {'prompt': 'sign'}}</imgen>"


def resolved(text, *results):
    document = parse(text)
    return document.model_copy(update=dict(tags=[t.model_copy(update=dict(result=r)) for t, r in zip(document.tags, results, strict=True)]))

def system(folder, *names, says='Answer'):
    for name in names:
        made = Picture.from_pil(Image.new('RGB', (900, 500), 'teal'), Origin(tool='diffusion', backend=f'brush-of-{folder.name}', seed=4242))
        away = Failure(kind='unavailable', message=f"no model in profile '{folder.name}'")
        text = f'<think>I am {folder.name}.</think>\n\n{says} to {name}.\n\n{TAG}\n\nAnd more.\n\n{TAG}'
        write_report(resolved(text, made, away), folder/f'{name}-{folder.name}'.removesuffix('-alpha').removesuffix('-omega'), question=f'What is {name}?')
    return folder

def kept(folder): return RatingFile(folder).read()[0]

class Command:
    "The real verb in a process of its own."
    def __init__(self, *words):
        self.process = subprocess.Popen([*RATE, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.head = self.process.stdout.readline()
        self.address = self.process.stdout.readline().strip()
        assert self.address.startswith('http://127.0.0.1:'), self.head + self.process.stderr.read()

    def end(self, with_signal=signal.SIGKILL):
        self.process.send_signal(with_signal)
        out, err = self.process.communicate(timeout=10)
        return self.process.returncode, out, err

@pytest.fixture
def command():
    started = []
    def start(*words):
        started.append(Command(*words))
        return started[-1]
    yield start
    for c in started:
        if c.process.poll() is None: c.end()

@pytest.fixture
def serve():
    "The server in this process, to look behind it."
    servers = []
    def start(items, folder, rater='ann', criteria='', **more):
        desk = Desk(items, rater, RatingFile(folder), criteria_from(criteria, len(items[0].systems) == 2))
        server = RatingServer(desk, **more)
        servers.append((server, threading.Thread(target=server.serve)))
        servers[-1][1].start()
        return server
    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join(timeout=10)

@pytest.fixture(scope='module')
def browser():
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()

class Window:
    "A page, and everything that it asked for, said or complained about."
    def __init__(self, browser, **options):
        self.context = browser.new_context(**options)
        self.page, self.asked, self.trouble, self.html = self.context.new_page(), [], [], []
        self.context.on('request', lambda r: r.url.startswith('data:') or self.asked.append(f'{r.method} {r.url}'))
        self.page.on('console', lambda m: m.type in ('error', 'warning') and self.trouble.append(m.text))
        self.page.on('pageerror', lambda e: self.trouble.append(str(e)))
        self.page.on('dialog', lambda d: (self.trouble.append(d.message), d.dismiss()))

    def at(self, address, place): self.page.wait_for_url(address + place)
    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)
            self.page.wait_for_selector('body:not([aria-busy])')
    def chosen(self): return self.page.eval_on_selector_all('[aria-pressed=true]', 'b => b.map(x => x.getAttribute("aria-label"))')
    def said(self): return self.page.locator('.said').inner_text()

@pytest.fixture
def window(browser):
    windows = []
    def open_one(**options):
        windows.append(Window(browser, **options))
        return windows[-1]
    yield open_one
    for w in windows: w.context.close()


# ---- rating ----------------------------------------------------------------------------------------------------------

def test_alone_by_keyboard_and_on_after_a_kill(tmp_path, command, serve, window):
    folder = system(tmp_path/'alpha', 'q1', 'q2', 'q3')
    first = command(folder, '--rater', 'ann')
    w = window()
    w.page.goto(first.address)
    w.at(first.address, '1')
    assert w.page.title() == 'Report 1 of 3' and w.page.locator('.row.active').get_attribute('data-criterion') == 'text'
    w.press('4', '2')
    assert w.chosen() == ['text: 4, good', 'pictures: 2, weak'] and 'Next: together' in w.said()
    w.press('5')
    w.at(first.address, '2')
    w.press('1')
    lines = kept(folder)
    assert [(r.criterion, r.value) for r in lines] == [('text', 4), ('pictures', 2), ('together', 5), ('text', 1)]
    assert {r.rater for r in lines} == {'ann'} and len({r.question for r in lines}) == 2 and all(0 <= r.seconds < 60 for r in lines)
    first.end(signal.SIGKILL)
    w.press('3')
    assert 'Not saved' in w.said() and w.chosen() == ['text: 1, poor'], 'a rating that was not kept must not look kept'
    again = serve(items_of(folder)[0], folder)
    assert '0 of them rated by ann' in first.head and again.desk.count == 1 and len(kept(folder)) == 4
    w.page.goto(again.address)
    w.at(again.address, '2')
    assert w.chosen() == ['text: 1, poor'] and w.page.locator('.row.active').get_attribute('data-criterion') == 'pictures'
    assert Desk(items_of(folder)[0], 'bob', RatingFile(folder), criteria_from('')).count == 0, 'raters have their own progress'

def test_side_by_side_keys_mean_systems_not_sides(tmp_path, serve, window):
    names = [f'q{n}' for n in range(8)]
    one, two = system(tmp_path/'alpha', *names), system(tmp_path/'omega', *names)
    c, w = serve(items_of(one, two)[0], one), window()
    w.page.goto(c.address)
    for n, key in enumerate(('ArrowLeft', 'ArrowRight', '1', '2', '0', 'Space', '1', '1'), 1):
        w.at(c.address, str(n))
        w.press(key)
    w.at(c.address, 'done')
    assert 'Everything is rated' in w.page.inner_text('h1')
    items = {i.question: i for i in items_of(one, two)[0]}
    for r, side in zip(kept(one), (0, 1, 0, 1, None, None, 0, 0), strict=True):
        assert r.systems == ('alpha', 'omega') and r.shown == sides(items[r.question], 'ann')
        assert r.value == (0 if side is None else 1 if r.shown[side] == 'alpha' else -1)
    assert len(Counter(r.shown for r in kept(one))) == 2, 'both systems stand on either side'

def test_what_stands_left_is_what_is_written_down(tmp_path, serve, window):
    names = [f'q{n}' for n in range(6)]
    one, two = system(tmp_path/'alpha', *names, says='Blue'), system(tmp_path/'omega', *names, says='Red')
    server, w = serve(items_of(one, two)[0], one), window()
    for n in range(1, 7):
        w.page.goto(server.address + str(n))
        left = 'alpha' if 'Blue' in w.page.locator('.side').first.inner_text() else 'omega'
        w.press('1')
        assert kept(one)[-1].value == (1 if left == 'alpha' else -1) and kept(one)[-1].shown[0] == left

def test_nothing_tells_which_is_which(tmp_path, serve, window):
    one, two = system(tmp_path/'alpha', 'q1', 'q2'), system(tmp_path/'omega', 'q1', 'q2')
    server, w = serve(items_of(one, two)[0], one), window()
    for place in ('1', '2', 'done'):
        w.page.goto(server.address + place)
        html = w.page.content().partition('<script>')[0]
        assert not re.search(r'alpha|omega|brush-of|4242|I am|\.json|' + re.escape(tmp_path.name), html, re.I)
        assert 'Generated' in html or place == 'done', 'what kind of picture it is may be known'
    w.page.goto(server.address + '1')
    w.press('1')
    assert not [a for a in w.asked if re.search('alpha|omega|q1', a)] and not w.trouble
    assert all(a.split()[1].startswith(server.address) for a in w.asked), 'nothing is loaded from elsewhere'
    w.page.goto(server.address + '1')
    widths = [w.page.locator('.side').nth(i).locator('img').bounding_box()['width'] for i in (0, 1)]
    assert abs(widths[0] - widths[1]) < .1, 'the larger picture wins'

def test_undo_goes_back_also_after_a_restart(tmp_path, serve, window):
    folder = system(tmp_path/'alpha', 'q1', 'q2')
    server, w = serve(items_of(folder)[0], folder, criteria='text,wit'), window()
    w.page.goto(server.address)
    w.press('3', '4')
    w.at(server.address, '2')
    w.press('u')
    w.at(server.address, '1')
    assert w.chosen() == ['text: 3, fair']
    server = serve(items_of(folder)[0], folder, criteria='text,wit')
    w.page.goto(server.address)
    w.at(server.address, '1')
    w.press('u')
    w.page.wait_for_selector('body:not(:has([aria-pressed=true]))')
    w.press('5', '5')
    w.at(server.address, '2')
    assert [(r.criterion, r.value) for r in server.desk.said.values()] == [('text', 5), ('wit', 5)]
    assert [r.value for r in kept(folder)] == [3, 4, None, None, 5, 5], 'lines are only ever added'

def test_a_held_key_rates_once(tmp_path, serve, window):
    folder = system(tmp_path/'alpha', 'q1', 'q2')
    server, w = serve(items_of(folder)[0], folder), window()
    w.page.goto(server.address)
    for _ in range(6): w.page.keyboard.down('3')
    w.page.wait_for_timeout(300)
    assert len(kept(folder)) == 1
    w.press('Control+4', 'Alt+4', '9', 'x')
    assert len(kept(folder)) == 1

def test_a_note_is_typed_without_rating(tmp_path, serve, window):
    folder = system(tmp_path/'alpha', 'q1', 'q2')
    server, w = serve(items_of(folder)[0], folder, criteria='text'), window()
    w.page.goto(server.address)
    w.press('n')
    w.page.keyboard.type('1 u "zwölf" <b>')
    w.press('Escape')
    w.page.wait_for_selector('.said:text("The note is saved")')
    assert [(r.criterion, r.value, r.note) for r in kept(folder)] == [('note', None, '1 u "zwölf" <b>')]
    w.press('n')
    w.page.keyboard.type('!')
    w.page.locator('[data-value="4"]').click()      # straight from the note: both are kept, one after the other
    w.at(server.address, '2')
    w.page.goto(server.address + '1')
    assert w.page.input_value('#note').endswith('<b>!') and w.chosen() == ['text: 4, good']
    assert [r.criterion for r in kept(folder)] == ['note', 'note', 'text']

def test_broken_reports_are_shown_named_in_the_terminal_and_passed(tmp_path, command, window):
    folder = system(tmp_path/'alpha', 'q1', 'q2')
    (folder/'q1/document.json').write_text('{')
    (folder/'q2/document.json').unlink()
    c, w = command(folder, '--rater', 'ann'), window()
    w.page.goto(c.address)
    for n, sentence in ((1, 'its document.json is'), (2, 'its document.json is')):
        w.at(c.address, str(n))
        assert sentence in w.page.locator('main .trouble').inner_text() and 'What is q' in w.page.inner_text('h1')
        w.press('4')
        assert not w.page.locator('[data-value]').count()
        w.press('Enter')
    w.at(c.address, 'done')
    assert '0 of 2 are rated' in w.page.inner_text('main') and not kept(folder)
    code, out, err = c.end(signal.SIGINT)
    assert code == 0 and '0 of 2 reports are rated by ann' in out
    assert 'alpha/q1: This report can not be shown: its document.json is damaged' in err and 'alpha/q2' in err

def test_focus_rates_and_shows(tmp_path, serve, window):
    "By Tab, Enter and Space alone; focus can be seen; Space on a button is that button, not a tie."
    one, two = system(tmp_path/'alpha', 'q1', 'q2', 'q3'), system(tmp_path/'omega', 'q1', 'q2', 'q3')
    server, w = serve(items_of(one, two)[0], one), window()
    w.page.goto(server.address)
    seen = []
    for _ in range(20):
        w.page.keyboard.press('Tab')
        name, outline = w.page.evaluate('''() => { const e = document.activeElement, s = getComputedStyle(e)
            return [e.getAttribute('aria-label') || e.id || e.textContent.trim(), s.outlineStyle != 'none' && parseFloat(s.outlineWidth) >= 2] }''')
        seen.append(name)
        assert outline or e_is_body(w), name
        if name == 'together: answer 2 is better': break
    assert seen[-1] == 'together: answer 2 is better' and seen[:2] == ['Skip', 'Undo u']
    w.press('Space')
    w.at(server.address, '2')
    assert kept(one)[0].value == (1 if kept(one)[0].shown[1] == 'alpha' else -1)
    w.page.locator('#note').focus()
    w.page.keyboard.press('Space')
    assert len(kept(one)) == 1

def e_is_body(w): return w.page.evaluate('document.activeElement == document.body')

@pytest.mark.parametrize('width, scheme', [(320, 'light'), (390, 'dark'), (1280, 'light')])
@pytest.mark.parametrize('kind', ['alone', 'pair'])
def test_it_fits_and_can_be_read(tmp_path, serve, window, kind, width, scheme):
    one, two = system(tmp_path/'alpha', 'q1'), system(tmp_path/'omega', 'q1')
    server = serve(items_of(one, two if kind == 'pair' else None)[0], one)
    w = window(viewport=dict(width=width, height=780), color_scheme=scheme)
    w.page.goto(server.address)
    assert w.page.evaluate('document.documentElement.scrollWidth') <= width
    for b in w.page.locator('button').all():
        box = b.bounding_box()
        assert box['height'] >= 30 and box['width'] >= 30 and 0 <= box['x'] and box['x'] + box['width'] <= width, box
    assert w.page.locator('.bar').bounding_box()['height'] < 780/3, 'the report needs the room'
    assert w.page.evaluate(CONTRAST.replace("'main *'", "'body *'")) == []
    assert w.page.evaluate('[...document.querySelectorAll("button, textarea, progress")].every(e => e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim())')
    assert w.page.evaluate('document.querySelectorAll("h1").length') == 1 and not w.trouble


# ---- everybody else --------------------------------------------------------------------------------------------------

POSTS = {
    'form': '<form method=post action=act enctype="text/plain"><input name=\'{"do":"rate","item":"1","criterion":"text","value":5,"note":"\' value=\'"}\'><button>Go</button></form>',
    'auto': '<form id=f method=post action=act></form><script>document.forms[0].submit()</script>',
    'fetch': '<script>fetch("act",{method:"POST",headers:{"Content-Type":"application/json"},body:JSON.stringify({do:"rate",item:"1",criterion:"text",value:5})})</script>',
    'button': '<div class="row" data-criterion="text"><button data-value="5" data-keys="4 3 2 1">5</button></div><button data-do="undo">u</button>',
    'body': '</article></main></body><body class="done" data-item="2">',
    'handler': '<img src=x onerror=\'fetch("act",{method:"POST",headers:{"Content-Type":"application/json"},body:JSON.stringify({do:"rate",item:"1",criterion:"text",value:5})})\'>',
    'get': '![x](act) <img src="act?do=rate&item=1&criterion=text&value=5"> [x](act) <a href="./act" accesskey="1" autofocus>x</a>',
    'refresh': '<meta http-equiv="refresh" content="0;url=act">', 'base': '<base href="https://evil.example/">',
    'active': '<input autofocus onfocus=alert(1)><label for="note">n</label><textarea id=note>mine</textarea>',
}

@pytest.mark.parametrize('policy', [True, False])
def test_a_report_can_not_rate(tmp_path, serve, window, policy):
    "With the page's policy, and without it: what a report holds must be clean even where the policy does not help."
    attacks = {k: t.replace('\ud83d', '') for k, t in (POSTS if policy else POSTS | HOSTILE).items()}     # half a pair can't be stored
    for name, text in attacks.items(): write_report(document_with(text), tmp_path/name, question=text)
    server, w = serve(items_of(tmp_path)[0], tmp_path), window(bypass_csp=not policy)
    order = [i.question for i in server.desk.items]
    for name in attacks:
        address = server.address + str(order.index(name) + 1)
        w.asked.clear()
        w.page.goto(address)
        w.page.evaluate('document.querySelectorAll("main details").forEach(d => d.open = true)')
        w.page.evaluate('document.querySelectorAll("main *").forEach(e => { for (const n of ["mouseover", "focus", "toggle"]) e.dispatchEvent(new Event(n)) })')
        assert not w.page.locator('main :is(button, form, input, textarea, script, iframe, object, base, meta, style, [data-do], [data-value], [accesskey])').count(), name
        assert w.asked == [f'GET {address}'] and w.page.locator('.row').count() == 3, name
    assert not kept(tmp_path) and not w.trouble
    w.press('5')
    assert [r.value for r in kept(tmp_path)] == [5], 'the page itself still can'

@pytest.mark.parametrize('name', ['auto', 'fetch', 'handler', 'refresh'])
def test_the_policy_alone_stops_scripts_and_forms(tmp_path, serve, window, name):
    "Should the sanitiser ever miss something."
    folder = system(tmp_path/'alpha', 'q1')
    server, w = serve(items_of(folder)[0], folder), window()
    server.desk.show = lambda f: Shown('q', [], Markup(POSTS[name]))
    w.page.goto(server.address + '1')
    w.page.wait_for_timeout(150)
    assert not kept(folder) and not [a for a in w.asked if a.startswith('POST')]

@pytest.mark.parametrize('name', ['fetch', 'handler'])
def test_these_attacks_work_where_nothing_is_in_their_way(tmp_path, serve, window, name):
    folder = system(tmp_path/'alpha', 'q1')
    server, w = serve(items_of(folder)[0], folder), window(bypass_csp=True)
    server.desk.show = lambda f: Shown('q', [], Markup(POSTS[name]))
    w.page.goto(server.address + '1')
    w.page.wait_for_timeout(150)
    assert [r.value for r in kept(folder)] == [5], 'the two tests above could not fail'

ELSEWHERE = '''<!doctype html><form method=post action="%(a)sact" enctype="text/plain" target=t><input name='{"do":"rate","item":"1","criterion":"text","value":5,"note":"' value='"}'></form>
<iframe name=t></iframe><iframe id=framed src="%(a)s1"></iframe><script>
const body = JSON.stringify({do: 'rate', item: '1', criterion: 'text', value: 5}), all = []
for (const type of ['text/plain', 'application/json'])
  for (const mode of ['cors', 'no-cors']) all.push(fetch('%(a)sact', {method: 'POST', mode, body, headers: {'Content-Type': type}}).catch(() => 0))
all.push(fetch('%(a)s1').then(r => r.text()).then(t => { document.title = 'read it' }).catch(() => 0))
document.forms[0].submit()
Promise.all(all).then(() => { document.body.dataset.tried = 'yes' })</script>'''

def test_other_local_pages_can_not_rate_even_with_the_token(tmp_path, serve, window):
    folder = system(tmp_path/'alpha', 'q1')
    server, w = serve(items_of(folder)[0], folder), window()
    class Other(BaseHTTPRequestHandler):
        def log_message(self, *_): pass
        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Type', 'text/html')
            self.end_headers()
            self.wfile.write((ELSEWHERE % dict(a=server.address)).encode())
    other = ThreadingHTTPServer(('127.0.0.1', 0), Other)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    try:
        w.page.goto(f'http://127.0.0.1:{other.server_port}/')
        w.page.wait_for_function('document.body.dataset.tried', timeout=10_000)
        w.page.wait_for_timeout(200)
    finally:
        other.shutdown()
        other.server_close()
    assert [a for a in w.asked if a.startswith('POST')], 'nothing was tried'
    assert not kept(folder) and w.page.title() != 'read it'
    assert all('What is q1' not in f.content() for f in w.page.frames), 'it can not be framed, to steal clicks'

def ask(server, method='GET', path='1', data=None, **headers):
    c = http.client.HTTPConnection('127.0.0.1', server.server_port, timeout=5)
    own = {'Host': f'127.0.0.1:{server.server_port}', 'Origin': f'http://127.0.0.1:{server.server_port}', 'Content-Type': 'application/json'}
    c.request(method, path if path.startswith('/') else f'/{server.token}/{path}', data, {k: v for k, v in (own | headers).items() if v is not None})
    r = c.getresponse()
    return r.status, r.read().decode(), r.headers

GOOD = dict(do='rate', item='1', criterion='text', value=4)

def test_the_door(tmp_path, serve):
    folder = system(tmp_path/'alpha', 'q1')
    server = serve(items_of(folder)[0], folder)
    assert server.server_address[0] == '127.0.0.1'
    body = json.dumps(GOOD)
    for path in ('/', '/1', '/x/1', f'/{server.token[:-1]}/1', f'/{server.token}x/', '/%C3%A9/1'): assert ask(server, path=path)[0] == 404, path
    for path in ('0', '3', '-1', '%C2%B2', '1e1', '../etc/passwd', '1/2', '9'*30): assert ask(server, path=path)[0] == 404, path
    for host in ('rebound.example', f'rebound.example:{server.server_port}', '127.0.0.1', '127.0.0.1:1', None): assert ask(server, Host=host or '')[0] == 403
    refusals = [dict(Origin=None), dict(Origin='null'), dict(Origin='http://127.0.0.1:1'), dict(Origin='https://evil.example'),
                {'Content-Type': 'text/plain'}, {'Content-Type': None}, {'Sec-Fetch-Site': 'same-site'}, {'Sec-Fetch-Site': 'cross-site'}]
    for headers in refusals: assert ask(server, 'POST', 'act', body, **headers)[0] == 403, headers
    assert ask(server, 'POST', '/wrong/act', body)[0] == 404 and ask(server, 'POST', '1', body)[0] == 403
    assert ask(server, 'PUT', 'act', body)[0] == 501
    assert not kept(folder)
    status, _, headers = ask(server)
    assert status == 200 and headers['Cache-Control'] == 'no-store' and "frame-ancestors 'none'" in headers['Content-Security-Policy']
    assert ask(server, 'POST', 'act', body)[:2] == (200, '{"go": ""}') and len(kept(folder)) == 1

@pytest.mark.parametrize('data, status', [
    (b'', 400), (b'{', 400), (b'[]', 400), (b'\xff', 400), (b'x'*40_000, 413), (b'{"a":'*5000, 400), (json.dumps(GOOD | dict(do='erase')), 400),
    (json.dumps(GOOD | dict(value=6)), 409), (json.dumps(GOOD | dict(value=0)), 409), (json.dumps(GOOD | dict(value=4.5)), 400), (json.dumps(GOOD | dict(value='4')), 400),
    (json.dumps(GOOD | dict(value=True)), 400), (json.dumps(GOOD | dict(value=None)), 409), (json.dumps(GOOD | dict(item='0')), 409), (json.dumps(GOOD | dict(item='3')), 409),
    (json.dumps(GOOD | dict(item='done')), 409), (json.dumps(GOOD | dict(criterion='note')), 409), (json.dumps(GOOD | dict(seconds=-1)), 400),
    (json.dumps(GOOD | dict(do='pass')), 409), (json.dumps(GOOD | dict(do='note', note='x'*5000)), 400)])
def test_nonsense_is_a_sentence(tmp_path, serve, data, status):
    folder = system(tmp_path/'alpha', 'q1')
    server = serve(items_of(folder)[0], folder)
    found, said, _ = ask(server, 'POST', 'act', data)
    assert found == status and json.loads(said)['problem'].startswith('Not saved: ') and 'Traceback' not in said
    assert not kept(folder)

def test_a_full_disk_is_said_and_nothing_looks_saved(tmp_path, serve, window):
    folder = system(tmp_path/'alpha', 'q1')
    server, w = serve(items_of(folder)[0], folder), window()
    w.page.goto(server.address)
    server.desk.file.path = Path('/dev/full')
    w.press('4')
    assert 'can not be written (No space left on device)' in w.said() and not w.chosen() and server.desk.todo() == '1' and not server.desk.said

def test_blind_keeps_whom_a_photograph_is_by():
    found = Picture.from_pil(Image.new('RGB', (60, 40)), Origin(tool='search', backend='local', title='Moss', author='Eve', licence='CC0', page='https://example.org/moss'))
    tag = "<imgen>{'source': 'search', 'description': 'Moss', 'params': {'query': 'moss'}}</imgen>"
    origin = blind(resolved(tag, found)).tags[0].result.origin
    assert (origin.author, origin.licence, origin.backend) == ('Eve', 'CC0', '')


# ---- the command -----------------------------------------------------------------------------------------------------

APP = typer.Typer()
APP.command()(rate)

def run(*words): return CliRunner().invoke(APP, list(map(str, words)))

def test_stops_by_itself_only_if_asked(tmp_path, serve, window):
    folder, w = system(tmp_path/'alpha', 'q1'), window()
    staying, leaving = (serve(items_of(folder)[0], folder, rater, 'text', until_done=done) for rater, done in (('ann', False), ('bob', True)))
    for server in (staying, leaving):
        w.page.goto(server.address)
        w.press('4')
        w.at(server.address, 'done')
    time.sleep(2.5)
    assert ask(staying)[0] == 200
    with pytest.raises(OSError): ask(leaving)
    said = run(folder, '--report')
    assert said.exit_code == 0 and 'text: ann and bob  1 rated by both, 9 more are needed' in said.output

def test_does_not_stop_while_the_last_one_is_taken_back(tmp_path, serve):
    folder = system(tmp_path/'alpha', 'q1')
    server = serve(items_of(folder)[0], folder, criteria='text', until_done=True)
    assert json.loads(ask(server, 'POST', 'act', json.dumps(GOOD))[1]) == dict(go='done')
    assert json.loads(ask(server, 'POST', 'act', json.dumps(dict(do='undo', item='done')))[1]) == dict(go='1')
    time.sleep(2)
    assert ask(server)[0] == 200

def test_mistakes_are_one_sentence(tmp_path):
    folder = system(tmp_path/'alpha', 'q1')
    for name in ('odd/q1', 'apart/z9'): write_report(parse('x'), tmp_path/name)
    (tmp_path/'odd/ratings.jsonl').mkdir()
    taken = ThreadingHTTPServer(('127.0.0.1', 0), BaseHTTPRequestHandler)
    for words, sentence in (((tmp_path/'nowhere',), 'there is no folder'), ((folder, '--report'), 'rate its reports first'), ((folder, '--rater', ' '), '--rater needs a name'),
                            ((tmp_path/'odd',), 'can not be written'), ((folder, '--against', folder), 'was given twice'), ((folder, '--criteria', 'a,a'), '--criteria'),
                            ((folder, '--against', tmp_path/'apart'), 'no report of'), ((folder, '--port', taken.server_port), f'--port {taken.server_port} can not be used')):
        done = run(*words)
        assert done.exit_code == 2 and sentence in done.output and done.output.count('\n') == 1, done.output
    taken.server_close()
