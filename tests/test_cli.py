"""The `llmi` command as people type it: real processes for the main roads, in process for the mistakes."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from llmi_kit.cli import app, spread
from llmi_kit.document import Document
from llmi_kit.picture import Failure, Picture

ROOT = Path(__file__).parent.parent
LLMI = Path(sys.executable).parent/'llmi'
ANSWER = """# Espresso

<imgen>{'source': 'search', 'description': 'Espresso', 'params': {'query': 'a cup of coffee'}}</imgen>

<imgen>{'source': 'code', 'description': 'Cups', 'params': {'code': "plt.bar(['Ada', 'Lin'], [3, 2])"}}</imgen>

<imgen>{'source': 'edit', 'description': 'Mine, grey', 'params': {'img_index': 0, 'prompt': 'make it black and white'}}</imgen>

<imgen>{'source': 'code', 'description': 'Broken', 'params': {'code': 'plt.plot(undefined)'}}</imgen>
"""


@pytest.fixture(scope='module')
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp('in')/'sunrise.png'
    Image.linear_gradient('L').convert('RGB').resize((320, 200)).save(file)
    return file


def llmi(*words, cwd=ROOT, **env):
    return subprocess.run([LLMI, *map(str, words)], cwd=cwd, capture_output=True, text=True, env=os.environ | env, timeout=280)


def mistake(*words, **env):
    "In process: the exit code and what was said on stderr."
    done = CliRunner(env=env).invoke(app, spread([str(w) for w in words]))
    return done.exit_code, done.stderr.strip()


def test_a_cache_that_can_not_be_used_is_a_sentence(tmp_path):
    (tmp_path/'answer.md').write_text(ANSWER)
    (tmp_path/'file').write_text('')
    (tmp_path/'broken'/'tools').mkdir(parents=True)
    (tmp_path/'broken'/'tools'/'cache.db').write_text('no database, whatever its name says')
    for cache, says in (('file', f'the cache can not be in {tmp_path}/file (File exists): set LLMI_CACHE'), ('broken', 'move it away')):
        code, said = mistake('render', tmp_path/'answer.md', '--out', tmp_path/'r', LLMI_CACHE=str(tmp_path/cache))
        assert code == 2 and says in said and len(said.splitlines()) == 1 and not (tmp_path/'r').exists(), said


@pytest.mark.timeout(600)
def test_render_makes_the_pictures_and_lists_what_failed(tmp_path, picture):
    (tmp_path/'answer.md').write_text(ANSWER)
    done = llmi('render', tmp_path/'answer.md', '--inputs', picture, '--out', tmp_path/'r', LLMI_CACHE=str(tmp_path/'cache'))
    assert done.returncode == 0, done.stderr
    assert 'report.html  (3 of 4 pictures)' in done.stdout
    assert 'picture 4 (code) failed, code: ' in done.stdout and 'undefined' in done.stdout
    made = tmp_path/'r'
    assert {p.name for p in made.iterdir()} == {'report.html', 'report.md', 'document.json', 'images'}
    document = Document.model_validate_json((made/'document.json').read_text())
    assert [type(t.result) for t in document.tags] == [Picture, Picture, Picture, Failure]
    grey = document.tags[2].result.pil().convert('RGB')
    assert grey.size == (320, 200) and all(r == g == b for _, (r, g, b) in grey.getcolors(1 << 16))
    assert Image.open(made/'images'/'01.png').size == (document.tags[0].result.width, document.tags[0].result.height)


def test_a_document_json_renders_again(tmp_path, picture):
    (tmp_path/'answer.md').write_text('One line, no picture.')
    assert CliRunner().invoke(app, ['render', str(tmp_path/'answer.md'), '--out', str(tmp_path/'a')]).exit_code == 0
    assert CliRunner().invoke(app, ['render', str(tmp_path/'a'/'document.json'), '--out', str(tmp_path/'b')]).exit_code == 0
    assert (tmp_path/'a'/'document.json').read_text() == (tmp_path/'b'/'document.json').read_text()


def test_doctor_names_what_is_ready_and_what_is_missing():
    done = CliRunner().invoke(app, ['doctor', '--profile', 'cpu'])
    assert done.exit_code == 0
    lines = {l.split()[0]: l.split(maxsplit=1)[1] for l in done.stdout.splitlines()}
    assert lines['profile'].startswith('cpu') and lines['memory'] == 'needs no GPU'
    assert lines['writer'] == lines['search'] == lines['diffusion'] == lines['edit'] == lines['code'] == 'ready'


def test_doctor_says_what_a_profile_weighs_and_under_which_licences():
    done = CliRunner().invoke(app, ['doctor', '--profile', 'gpu12'])
    assert done.exit_code == 0 and 'FLUX.2-klein-4B (Apache-2.0)' in done.stdout and 'Qwen3-4B' in done.stdout
    memory = next(l for l in done.stdout.splitlines() if l.startswith('memory'))
    assert 'GB' in memory and ('there is none' in memory or ' of ' in memory)


@pytest.mark.parametrize('words, says', [
    (['generate', '  '], 'the question is empty'),
    (['generate', 'Why?', '--profile', 'gpu80'], "there is no profile 'gpu80'"),
    (['generate', 'Make it grey.', '--inputs', 'nowhere.png'], 'input picture nowhere.png can not be read'),
    (['generate', 'Make it grey.', '--inputs', ROOT/'pyproject.toml'], 'not a readable PNG'),
    (['render', 'nowhere.md'], 'nowhere.md can not be read'),
    (['render', ROOT/'LICENSE', '--inputs', 'a.png', 'b.png'], 'a.png'),
    (['render', ROOT/'constraints.txt', '--profile', 'nope'], "there is no profile 'nope'"),
])
def test_mistakes_are_one_sentence_and_exit_code_2(words, says, tmp_path):
    code, said = mistake(*words, '--out', tmp_path/'out')
    assert code == 2 and said.startswith('llmi: ') and says in said and '\n' not in said and 'Traceback' not in said


@pytest.mark.parametrize('name, data, says', [
    ('empty.md', b' \n', 'is empty'), ('binary.md', b'\xff\xfe\x00x', 'UTF-8'), ('other.json', b'{"a": 1}', 'document.json'),
])
def test_unusable_answer_files(tmp_path, name, data, says):
    (tmp_path/name).write_bytes(data)
    code, said = mistake('render', tmp_path/name, '--out', tmp_path/'out')
    assert code == 2 and says in said and '\n' not in said


def test_out_must_be_a_folder(tmp_path):
    (tmp_path/'file').write_text('')
    code, said = mistake('render', ROOT/'LICENSE', '--out', tmp_path/'file')
    assert code == 2 and 'can not be a folder' in said


def test_a_broken_settings_file_is_named(tmp_path):
    (tmp_path/'settings.ini').write_text('[llmi_kit]\n[cpu]\nbatch = 0\n')
    code, said = mistake('doctor', LLMI_SETTINGS=str(tmp_path/'settings.ini'))
    assert code == 2 and 'batch' in said


@pytest.mark.timeout(600)
def test_generate_writes_a_report_offline(tmp_path):
    done = llmi('generate', 'What does Chelsea the cat look like?', '--out', tmp_path/'r', '--seed', 1, HF_HUB_OFFLINE='1')
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path/'r'/'document.json').read_text())
    assert [t['source'] for t in document['tags']] == ['search']
    assert document['tags'][0]['result']['origin']['title'] == 'Chelsea the cat'
    assert 'CC0' in (tmp_path/'r'/'report.html').read_text()
    assert 'writing' in done.stderr and 'Traceback' not in done.stderr


def test_a_dead_chat_server_is_named_before_anything_is_written(tmp_path):
    (tmp_path/'settings.ini').write_text('[llmi_kit]\n[cpu]\nserver = http://127.0.0.1:9/v1\nbackbone = any\nchat_key =\n')
    code, said = mistake('generate', 'Why?', '--out', tmp_path/'r', LLMI_SETTINGS=str(tmp_path/'settings.ini'))
    assert code == 2 and 'no chat server answers at http://127.0.0.1:9/v1' in said and '\n' not in said
    assert not (tmp_path/'r').exists()
