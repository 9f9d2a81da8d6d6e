"What a run leaves behind about itself."
import nbformat
import papermill
import pytest
from llmi_kit.provenance import run_record, took

USED = "from llmi_kit.provenance import Used, provenance\nUsed(provenance(), usd=.5)"


@pytest.fixture
def notebook(tmp_path):
    cells = [nbformat.v4.new_code_cell("seed: int = 1 # of everything\nout: str = 'there' # folder", metadata=dict(tags=["parameters"])),
             nbformat.v4.new_code_cell(USED)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name="python3", language="python", display_name="Python"))), tmp_path/"in.ipynb")
    papermill.execute_notebook(tmp_path/"in.ipynb", tmp_path/"out.ipynb", dict(seed=7), progress_bar=False)
    return tmp_path/"out.ipynb"


def test_the_record_of_an_executed_notebook(notebook):
    found = run_record(notebook)
    assert found["parameters"] == dict(seed=7, out="there") and found["seconds"] > 0 and found["started"].startswith("20")
    assert found["usd"] == .5 and found["peak_gb"] > .01 and found["machine"]["cores"] and found["versions"]["llmi_kit"]
    lines = took(dict(one=found, two=dict(seconds=90.))).splitlines()
    assert lines[1].split()[-1] == "0.50" and lines[2].split() == ["two", "1.5", "0.00"] and lines[-1].split()[0] == "all"
