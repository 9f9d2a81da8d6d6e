"""Every link of the built site: inside, to a page and an anchor that are there; outside, well formed. Run: python docs/links.py _docs"""
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    "Anchors and links of a page."
    def __init__(self, file):
        super().__init__()
        self.anchors, self.links = set(), []
        self.feed(file.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[k] for k in ('id', 'name') if found.get(k)}
        self.links += [found[k] for k in ('href', 'src') if found.get(k)]


def faults(site: Path):
    "A sentence for each link that leads nowhere."
    pages = {f.resolve(): Page(f) for f in site.rglob('*.html')}
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ('data', 'mailto', 'javascript'): continue
            if parts.scheme or parts.netloc:
                there = '.' in parts.netloc or parts.hostname == 'localhost'
                if parts.scheme not in ('http', 'https') or not there: yield f'{file.name}: {link} is no address'
                continue
            target = (file.parent/unquote(parts.path)).resolve() if parts.path else file
            if target.is_dir(): target = target/'index.html'
            if not target.exists(): yield f'{file.relative_to(site.resolve())}: there is no {link}'
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f'{file.relative_to(site.resolve())}: {link} has no such place'


if __name__ == '__main__':
    found = sorted(set(faults(Path(sys.argv[1]))))
    print(*found, sep='\n', end='\n' if found else '')
    raise SystemExit(f'{len(found)} links lead nowhere' if found else 0)
