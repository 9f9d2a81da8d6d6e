"""The documentation site: the notebooks as they are, an API reference, and a few pages. Built by `make docs`."""
import os, re, shutil
from pathlib import Path

from fastcore.docments import docments

import llmi_kit

HERE, ROOT = Path(__file__).parent, Path(__file__).parent.parent
project, author, release = 'llmi_kit', 'The llmi_kit authors', llmi_kit.__version__
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.autosummary', 'sphinx.ext.viewcode']
exclude_patterns = ['_build', '**/.ipynb_checkpoints']
html_theme, html_title = 'furo', 'llmi_kit'
html_theme_options = dict(source_repository='', top_of_page_buttons=[])

# Notebooks are shown with the outputs that they were committed with: `make test` runs them.
nb_execution_mode = 'off'
myst_enable_extensions = ['dollarmath', 'linkify', 'colon_fence']
myst_heading_anchors = 4
# A notebook's raw cells are for nbdev; a definition in a notebook has no highlighter of its own.
suppress_warnings = ['mystnb.unknown_mime_type', 'misc.highlighting_failure', 'myst.header']

autosummary_generate = True
autodoc_default_options = dict(members=True, undoc_members=True, member_order='bysource')
autodoc_typehints = 'signature'
autodoc_mock_imports = []


def notebooks():
    "Copies of the notebooks under docs/, with nbdev's directives taken out; Sphinx reads nothing above its folder."
    import json
    target = HERE/'nbs'
    shutil.rmtree(target, ignore_errors=True)
    for source in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in source.parts: continue
        nb = json.loads(source.read_text())
        nb['cells'] = [c for c in nb['cells'] if c['cell_type'] != 'raw' and not hidden(c)]
        for c in nb['cells']: c['source'] = re.sub(r'^#\|.*\n?', '', ''.join(c['source']), flags=re.M)
        if not any(c['cell_type'] == 'markdown' and c['source'].startswith('# ') for c in nb['cells']):
            nb['cells'].insert(0, dict(cell_type='markdown', metadata={}, source=f'# {source.stem}'))
        copy = target/source.relative_to(ROOT/'nbs')
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(json.dumps(nb))
    shutil.copy(ROOT/'nbs'/'log.md', target/'log.md')
    shutil.copytree(ROOT/'nbs'/'recipes', target/'recipes')
    shutil.copytree(ROOT/'figures', HERE/'figures', dirs_exist_ok=True, ignore=shutil.ignore_patterns('runs'))


def hidden(cell):
    return cell['cell_type'] == 'code' and re.search(r'^#\|\s*(hide|default_exp)\b', ''.join(cell['source']), re.M)


def executed():
    "Pipeline notebooks as they ran, or a page that says that none has run here yet: the index has a place for them."
    shutil.rmtree(HERE/'executed', ignore_errors=True)
    none = HERE/'executed'/'none'/'yet'/'here.md'
    none.parent.mkdir(parents=True)
    none.write_text('# As they ran here\n\nNo pipeline has been run on this machine yet: `make demo` and `make figures` do.\n')
    for ran in sorted((ROOT/'results').glob('*/notebooks/*.ipynb')):
        copy = HERE/'executed'/ran.relative_to(ROOT/'results')
        none.unlink(missing_ok=True)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ran, copy)


def modules():
    "One page a module, from the package as it is."
    parts = [p.relative_to(ROOT).with_suffix("").parts for p in (ROOT/"llmi_kit").rglob("*.py") if p.stem not in ("__init__", "_modidx")]
    names = sorted(".".join(p) for p in parts)
    lines = ['# Reference', '', 'Every module, with what its names take and give. How each was built is in its notebook.', '',
             '```{eval-rst}', '.. autosummary::', '   :toctree: api', '', *(f'   {n}' for n in names), '```', '']
    (HERE/'reference.md').write_text('\n'.join(lines))


notebooks(); executed(); modules()


def comments(app, what, name, obj, options, lines):
    "Comments beside parameters are their documentation. Docstrings are plain text: a bar in one is no substitution."
    lines[:] = [line.replace('|', '\\|') for line in lines]
    if what not in ('function', 'method', 'class'): return
    try: about = docments(obj, returns=False)
    except Exception: return     # what has no source
    told = {k: v for k, v in about.items() if v and k not in ('self', 'return')}
    if not told: return
    lines += ['', *(f':param {k}: {" ".join(str(v).split())}' for k, v in told.items())]


def setup(app): app.connect('autodoc-process-docstring', comments)
os.environ.setdefault('HF_HUB_OFFLINE', '1')
