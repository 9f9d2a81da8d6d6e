"""The papermill pipeline through its Snakefile: it runs from a question file to reports, and reruns only what is stale."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def papermill(tmp_path, questions, **env):
    (tmp_path/'questions.jsonl').write_text('\n'.join(map(json.dumps, questions)))
    return subprocess.run([BIN/'papermill', ROOT/'nbs'/'pipelines'/'generate.ipynb', tmp_path/'executed.ipynb', '--cwd', ROOT,
                           '-p', 'questions', tmp_path/'questions.jsonl', '-p', 'out', tmp_path/'out'],
                          capture_output=True, text=True, timeout=290, env=os.environ | {'PATH': f"{BIN}:{os.environ['PATH']}"} | env)


@pytest.mark.timeout(600)
def test_questions_become_reports(tmp_path):
    done = papermill(tmp_path, [dict(question='What does a red motorcycle look like?', id='moto')])
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path/'out'
    record = json.loads((out/'record.json').read_text())
    assert record['questions'] == 1 and record['unwritten'] == [] and record['seconds'] > 0
    assert (out/'moto'/'report.html').exists() and 'href="moto/report.html"' in (out/'index.html').read_text()
    assert 'moto' in (out/'summary.txt').read_text()


def test_parameters_explain_themselves():
    done = subprocess.run([BIN/'papermill', '--help-notebook', 'generate.ipynb'], cwd=ROOT/'nbs'/'pipelines', capture_output=True, text=True)
    for name in ('profile', 'questions', 'out', 'seed'): assert f'{name}: ' in done.stdout
    assert 'folder for the reports' in done.stdout


@pytest.fixture
def copy(tmp_path):
    "The project without its results, with a pretended result that is newer than everything."
    root = tmp_path/'project'
    keep = shutil.ignore_patterns('.git', '.venv', 'results', '.snakemake', '__pycache__', 'figures', 'tests')
    shutil.copytree(ROOT, root, ignore=keep)
    return root


def dry(root):
    done = subprocess.run([BIN/'snakemake', '--cores', '1', '--dry-run', '--rerun-triggers', 'mtime', '--', 'demo'], cwd=root,
                          capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return 'rule generate' in done.stdout + done.stderr


def test_only_what_is_stale_reruns(copy):
    assert dry(copy)
    for name in ('demo/summary.txt', 'demo/record.json', 'notebooks/generate.ipynb'):
        file = copy/'results'/'cpu'/name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('made')
    assert not dry(copy)
    for changed in ('settings.ini', 'llmi_kit/writer.py', 'nbs/pipelines/generate.ipynb', 'llmi_kit/assets/demo/questions.jsonl'):
        os.utime(copy/changed)
        assert dry(copy), f'{changed} changed and nothing would rerun'
        (copy/'results'/'cpu'/'demo'/'summary.txt').write_text('made')
        for name in ('demo/record.json', 'notebooks/generate.ipynb'): os.utime(copy/'results'/'cpu'/name)
        assert not dry(copy)
