"""The papermill pipeline through its Snakefile: it runs from a question file to reports, and reruns only what is stale."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


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
        time.sleep(.05)     # times of files come in steps
        os.utime(copy/changed)
        assert dry(copy), f'{changed} changed and nothing would rerun'
        (copy/'results'/'cpu'/'demo'/'summary.txt').write_text('made')
        for name in ('demo/record.json', 'notebooks/generate.ipynb'): os.utime(copy/'results'/'cpu'/name)
    assert not dry(copy)


@pytest.mark.timeout(400)
def test_killed_it_goes_on_and_never_beside_what_it_left_behind(copy):
    questions = copy/'llmi_kit'/'assets'/'demo'/'questions.jsonl'
    questions.write_text(questions.read_text().splitlines()[0] + '\n')
    command = [BIN/'snakemake', '--quiet', 'all', '--cores', '1', '--nolock', '--rerun-incomplete', '--', 'demo']
    how = dict(cwd=copy, env=os.environ | {'PATH': f"{BIN}:{os.environ['PATH']}", 'PYTHONPATH': str(copy)})
    run = lambda: subprocess.run(command, capture_output=True, text=True, timeout=200, **how)
    first = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how)
    try:
        log = copy/'results'/'cpu'/'logs'/'generate.log'
        while not (log.exists() and log.read_text()): assert first.poll() is None; time.sleep(.2)
        first.kill(); first.wait()
        refused = run()     # papermill is alive
        assert refused.returncode and f'process {first.pid}, or a notebook that it began, still works here' in refused.stderr, refused.stderr
        assert 'Traceback' not in refused.stderr
    finally:
        with suppress(ProcessLookupError): os.killpg(first.pid, signal.SIGKILL)
    done, out, name = run(), copy/'results'/'cpu'/'demo', json.loads(questions.read_text())['id']
    assert done.returncode == 0, done.stderr
    record = json.loads((out/'record.json').read_text())
    assert record['questions'] == 1 and record['unwritten'] == [] and record['seconds'] > 0
    assert (out/name/'report.html').exists() and f'href="{name}/report.html"' in (out/'index.html').read_text()
    assert name in (out/'summary.txt').read_text()


def planned(*words):
    "Jobs by rule of a dry run in a folder without results, and what is said."
    done = subprocess.run([BIN/'snakemake', '--dry-run', '--quiet', 'all', '--directory', *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=200)
    said = done.stdout + done.stderr
    return {l.split()[0]: int(l.split()[1]) for l in said.splitlines() if re.fullmatch(r'\w+ +\d+', l)}, said


@pytest.mark.parametrize('scale, trainings', [('full', 7), ('quick', 1), ('smoke', 1)])
def test_a_scale_says_what_runs(tmp_path, scale, trainings):
    for name in ('nbs', 'llmi_kit', 'settings.ini'): (tmp_path/name).symlink_to(ROOT/name)
    jobs, said = planned(tmp_path, '--cores', '2', '--config', f'scale={scale}', '--', 'figures')
    assert jobs['grpo'] == trainings and {'warmup', 'learning', 'scaling', 'evaluate', 'draw', 'figures'} <= set(jobs), said
    assert jobs.get('average', 0) == (scale == 'full')      # one seed has no average
    assert ('ablation.svg' in said) == (scale == 'full') and ('figures/cpu/' in said) == (scale == 'full')


def test_an_unknown_scale_is_a_sentence(tmp_path):
    _, said = planned(tmp_path, '--cores', '1', '--config', 'scale=huge', '--', 'figures')
    assert "there is no scale 'huge': choose full, quick, smoke" in said and 'Traceback' not in said


@pytest.mark.parametrize('name', ['slurm', 'kubernetes'])
def test_profiles_for_clusters_are_read_by_their_plugins(tmp_path, name):
    for part in ('nbs', 'llmi_kit', 'settings.ini'): (tmp_path/part).symlink_to(ROOT/part)
    place = ('--default-storage-prefix', tmp_path) if name == 'kubernetes' else ()
    jobs, said = planned(tmp_path, '--profile', ROOT/'profiles'/name, *place, '--', 'figures')
    assert jobs.get('grpo') == 7 and 'mem_mb=12000' in said and 'mem_mb=16000' in said and 'gpu=' not in said, said[-2000:]
    jobs, said = planned(tmp_path, '--profile', ROOT/'profiles'/name, *place, '--config', 'profile=gpu24', '--', 'demo')
    assert jobs.get('generate') == 1 and 'gpu=1' in said and 'results/gpu24/' in said, said[-2000:]


def test_parameters_that_the_pipeline_sets_are_there():
    "papermill only warns of a parameter that a notebook doesn't have."
    text = (ROOT/'Snakefile').read_text()
    scales = {}
    exec(text[text.index('ABLATIONS ='):text.index('if SCALE not in')], scales)
    for scale in scales['SCALES'].values():
        for notebook, told in ((k, v) for k, v in scale.items() if isinstance(v, dict)):
            cells = json.loads((ROOT/'nbs'/'pipelines'/f'{notebook}.ipynb').read_text())['cells']
            named = ''.join(''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', []))
            for parameter in told: assert re.search(rf'^{parameter}: ', named, re.M), (notebook, parameter)
