"""Every attack of tests/attacks, as root and as an ordinary user: none gets anything, and the next drawing is unharmed."""
import json, os, subprocess, sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ATTACKS = sorted(p.stem for p in (HERE / "attacks").glob("*.py"))
ROOT = os.getuid() == 0
USERS = {"root": [], "user": ["--user", "65534"]} if ROOT else {"user": []}


@pytest.fixture(scope="session")
def runs():
    "All attacks as all users, side by side; and those that should work without fences."
    calls = {name: [*options, "full"] for name, options in USERS.items()} | {"naked": ["limits"]}
    start = lambda options: subprocess.Popen([sys.executable, HERE / "attack_runner.py", *options], text=True,
                                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    processes = {name: start(options) for name, options in calls.items()}
    said = {name: p.communicate() for name, p in processes.items()}
    return {name: ({d["name"]: d for d in map(json.loads, out.splitlines())}, errors) for name, (out, errors) in said.items()}


@pytest.mark.timeout(1600)
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("user", USERS)
def test_attack_is_refused(runs, user, attack):
    told, errors = runs[user]
    if errors.startswith("SKIP"): pytest.skip(errors)
    assert attack in told, f"the runner stopped before: {errors[-2000:]}"
    seen = told[attack]
    assert (seen["uid"] == 0) == (user == "root")
    assert not seen["breach"], seen["stdout"]
    assert not seen["harmed"], "the world around has changed"
    assert not seen["left"], "processes are left"
    assert not seen["restarted"], "the warm process had to be restarted"
    assert seen["unharmed"], f"the next drawing differs: {seen['after']}"
    assert seen["seconds"] < 10, "it held up the caller"
    assert seen["folders"] == 0 and seen["files"] <= 0, "folders or open files are left"
    assert seen["peak_mb"] < 300, "it made the caller use memory"


def test_attacks_are_real(runs):
    "Without fences the same code gets what it wants: so the test above can fail."
    told, errors = runs["naked"]
    if not ROOT: told = {n: d for n, d in told.items() if "naked-root" not in (HERE / "attacks" / f"{n}.py").read_text().splitlines()[0]}
    failed = [n for n, d in told.items() if not d["breach"] and not d["harmed"]]
    assert len(told) > 40, errors[-2000:]
    assert len(failed) <= 4, failed  # some need IPv6, user namespaces or extended attributes
