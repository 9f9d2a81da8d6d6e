"""Everything fails around a few dozen documents (tests/soak.py does the same with 2,000): each is accounted for, and nothing breaks down."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).with_name('soak.py')


def soaked(documents):
    done = subprocess.run([sys.executable, SOAK, str(documents)], capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def accounted(found, documents):
    assert found['documents'] == documents and not found['broke'], found['broke']
    assert sum(found['rewards'].values()) == sum(found['reports'].values()) == documents
    assert documents <= sum(found['tags'].values()) and not any(k.endswith(('?', 'internal')) for k in found['tags']), found['tags']


@pytest.mark.timeout(280)
def test_every_document_is_accounted_for_while_everything_fails():
    found = soaked(60)
    accounted(found, 60)
    kinds = {k.split(': ')[1] for k in found['tags']}
    assert {'picture', 'invalid', 'code'} <= kinds and found['rewards']['none'] and found['rewards']['number']


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_memory_is_flat_over_two_thousand_documents():
    found = soaked(2000)
    accounted(found, 2000)
    memory = found['memory_kb']
    assert max(memory[-5:]) < 1.1*max(memory[4:9]), memory     # after it has warmed up
    assert any('File too large' in k for k in found['reports'])
