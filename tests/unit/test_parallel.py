"""Tests beside one another: who wants to be alone is, what belongs together stays together, and what is said is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("xdist")

CONFTEST = """\
import sys
sys.path.append({checkout!r})
from tests import parallel
from tests.parallel import give_way, say

def pytest_configure(config):
    parallel.install(config)
"""
TESTS = """\
import os, time
from pathlib import Path
import pytest

def note(name, seconds):
    for what in ("begins", "ends"):
        with open("notes", "a") as notes:
            notes.write(f"{name} {what} {os.getpid()}\\n")
        time.sleep(seconds)  # for others to come in between, if they can

@pytest.mark.parametrize("number", range(12))
def test_ordinary(number):
    note("ordinary", 0.05)

@pytest.mark.parametrize("number", range(4))
@pytest.mark.xdist_group("together")
def test_together(number):
    # The last test of all that is alone comes after these: the long one has begun by then, where there are processes for both.
    for _ in range(1500 if "PYTEST_XDIST_WORKER" in os.environ and number == 3 else 0):
        if "long begins" in Path("notes").read_text():
            break
        time.sleep(0.02)
    note("together", 0.02)

@pytest.mark.xdist_group("long")
def test_long(give_way):
    count = lambda: Path("notes").read_text().count("alone ends")
    note("long", 0)
    before = count()
    for _ in range(1500 if "PYTEST_XDIST_WORKER" in os.environ else 1):
        give_way()
        if count() > before:
            note("interrupted", 0)
            break
        time.sleep(0.02)

@pytest.mark.alone
@pytest.mark.parametrize("number", range(2))
def test_alone(number, say):
    note("alone", 0.1)
    say(f"said by {number}")
    say("no UTF-8: \\udcd8")

@pytest.mark.alone
@pytest.mark.xdist_group("together")
def test_alone_in_a_group():
    note("alone", 0.1)
"""


@pytest.mark.parametrize("workers", [0, 3])
def test_side_by_side(tmp_path: Path, workers: int) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST.format(checkout=str(Path(__file__).parents[2])))
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", "--strict-markers"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    variables["TMPDIR"] = str(tmp_path / "temporary")
    (tmp_path / "temporary").mkdir()
    done = subprocess.run([*command, "--numprocesses", str(workers), "."], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"=+ 20 passed in .* =+$", done.stdout.strip())
    assert "no UTF-8: \\udcd8\n" in done.stdout
    assert "said by 0\n" in done.stdout and "said by 1\n" in done.stdout
    assert list((tmp_path / "temporary").glob("sojourn-*")) == []

    notes = [line.split() for line in (tmp_path / "notes").read_text().splitlines()]
    assert len({process for name, _, process in notes if name == "together"}) == 1
    assert len({process for *_, process in notes}) == (workers or 1)
    assert ("interrupted" in {name for name, *_ in notes}) == bool(workers)
    # Between the beginning and the end of one that is alone there is nothing.
    for (name, what, process), following in zip(notes, notes[1:], strict=False):
        if (name, what) == ("alone", "begins"):
            assert following == ["alone", "ends", process]
    running = most = 0
    for _, what, _ in notes:
        running += 1 if what == "begins" else -1
        most = max(most, running)
    assert most > 1 or not workers
