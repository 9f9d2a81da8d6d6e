"""The check of the built site's links (docs/links.py), and that every tutorial says what it takes."""
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT/'nbs'/'tutorials').glob('0*.ipynb'))


def checked(site):
    done = subprocess.run([sys.executable, ROOT/'docs'/'links.py', site], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_links_that_lead_nowhere_are_named(tmp_path):
    (tmp_path/'sub').mkdir()
    (tmp_path/'index.html').write_text('<h1 id="top">x</h1><a href="sub/page.html#there">a</a><a href="#top">b</a><a href="https://arxiv.org/abs/2509.13642">c</a>')
    (tmp_path/'sub'/'page.html').write_text('<p id="there">y</p><a href="../index.html">up</a><img src="data:image/png;base64,AA==">')
    assert checked(tmp_path) == (0, '')
    (tmp_path/'sub'/'page.html').write_text('<a href="gone.html">x</a><a href="../index.html#nowhere">y</a><a href="https://x">z</a>')
    code, said = checked(tmp_path)
    assert code == 1 and all(s in said for s in ('there is no gone.html', '#nowhere has no such place', 'https://x is no address', '#there has no such place', '4 links'))


@pytest.mark.parametrize('file', TUTORIALS, ids=lambda f: f.stem)
def test_a_tutorial_says_what_it_takes_and_was_run(file):
    cells = json.loads(file.read_text())['cells']
    first = ''.join(cells[0]['source'])
    assert re.search(r'(minutes?|seconds).*(GB|MB)', first, re.S), 'time and memory belong into the first cell'
    ran = [c for c in cells if c['cell_type'] == 'code' and c['outputs']]
    assert ran and not any(o.get('output_type') == 'error' or o.get('name') == 'stderr' for c in ran for o in c['outputs'])


def test_the_tool_of_the_tutorial_has_less_than_forty_lines():
    cells = [''.join(c['source']) for c in json.loads((ROOT/'nbs'/'tutorials'/'02_your_own_tool.ipynb').read_text())['cells'] if c['cell_type'] == 'code']
    tool = [c for c in cells if re.match(r'(class|def) |PARAMS\[', c)]
    assert len(tool) == 4 and sum(len(c.splitlines()) for c in tool) < 40
