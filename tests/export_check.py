"""The package in git is what the notebooks export, and the README is what nbs/index.ipynb says."""
import hashlib
import subprocess
import sys
from pathlib import Path

root = Path(__file__).parent.parent
venv = Path(sys.prefix)
if sys.prefix == sys.base_prefix: sys.exit('run it with the environment of the kit: .venv/bin/python tests/export_check.py')


def state():
    files = [*sorted((root/'llmi_kit').rglob('*.py')), root/'README.md']
    return {f: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.exists()}


before = state()
subprocess.run(['make', '-s', 'readme', f'VENV={venv}'], cwd=root, check=True)
after = state()
stale = sorted(str(f.relative_to(root)) for f in before.keys() | after.keys() if before.get(f) != after.get(f))
if stale:
    sys.exit(f"`make readme` changed {', '.join(stale)}: commit what the notebooks export")
print(f'export leaves no difference in {len(after)} files')
