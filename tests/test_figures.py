"Every figure in git can be drawn again from the records beside it, and is the same picture."
import json, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
PLACES = sorted(f.parent for f in (ROOT/'figures').glob('*/README.md'))


def drawn(runs, out):
    "The figures of these records."
    name = lambda p: str(Path(p).resolve())
    scale = next((s for s in ('quick', 'smoke') if out.name.endswith(s)), 'full')
    told = dict(runs=name(runs), out=name(out), scale=scale)
    call = [sys.executable, '-m', 'papermill', 'figures.ipynb', name(out/'executed.ipynb'), '--no-progress-bar', *(w for k, v in told.items() for w in ('-p', k, v))]
    done = subprocess.run(call, cwd=ROOT/'nbs/pipelines', capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return {f.name: f for f in out.iterdir() if f.suffix in ('.png', '.svg')}


def differs(a, b):
    "Share of the pixels that two pictures show differently; 1 where even their sizes differ."
    one, two = (np.asarray(Image.open(f).convert('RGB'), dtype=int) for f in (a, b))
    return (np.abs(one - two).max(-1) > 16).mean() if one.shape == two.shape else 1.


@pytest.fixture(scope='module', params=PLACES, ids=lambda p: p.name)
def again(request, tmp_path_factory):
    place, out = request.param, tmp_path_factory.mktemp('figures')/request.param.name
    out.mkdir()
    return place, drawn(place/'runs', out), out


def test_there_are_figures(): assert ROOT/'figures'/'cpu' in PLACES


def test_all_figures_are_there(again):
    place, found, _ = again
    assert set(found) == {f.name for f in place.iterdir() if f.suffix in ('.png', '.svg')} - {'report.png'}     # a screenshot
    assert len(found) >= 10


def test_they_are_the_same_pictures(again):
    place, found, _ = again
    wrong = {name: differs(file, place/name) for name, file in found.items() if file.suffix == '.png'}
    assert max(wrong.values()) < .001, wrong


def test_captions_say_the_same(again):
    place, _, out = again
    assert (out/'README.md').read_text() == (place/'README.md').read_text()


def test_another_record_is_another_picture(again, tmp_path):
    "Or the test above would pass whatever is drawn."
    place, _, _ = again
    shutil.copytree(place/'runs', tmp_path/'runs')
    record = json.loads((tmp_path/'runs'/'scaling.json').read_text())
    for study in record['studies']:
        for tried in study['tried']: tried['reward'] = 0.
    (tmp_path/'runs'/'scaling.json').write_text(json.dumps(record))
    (tmp_path/place.name).mkdir()
    found = drawn(tmp_path/'runs', tmp_path/place.name)
    assert differs(found['scaling.png'], place/'scaling.png') > .001 and 'one answer 0.00' in (tmp_path/place.name/'README.md').read_text()
