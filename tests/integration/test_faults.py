"""The fault matrix: whatever breaks, in whatever phase, on both families, over IPv6: nothing is left in the promised time, and no result lies.

docs/guarantee.md says what is promised; each of its lines is a row here. What takes long in a row is the product's own patience (the
lease, an installation), so the rows run beside each other, each worker on targets of its own.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Controller
from tests.integration.faults import BEGUN, FINISHED, PHASES, WITHIN, Attempt, Watch, forget_marks, marked

SIGNALS = ("SIGINT", "SIGTERM", "SIGKILL")


class Row:
    """What came of a fault."""

    def __init__(self, attempt: Attempt, watch: Watch) -> None:
        self.attempt = attempt
        self.watch = watch
        self.since = 0.0
        self.said = "no fault was made"

    def fault(self) -> None:
        """Now it happens."""
        self.since = time.monotonic()

    def clean(self, more: float = 0, note: str = "") -> None:
        """Nothing is left within the promised time, and so much more for an installation that is let finish."""
        seconds = self.watch.wait_clean(self.since, WITHIN + more)
        self.attempt.wait_over(self.since + WITHIN + more)
        self.said = f"clean after {seconds:.1f} s{note}"


@pytest.fixture
def attempt(controller: Controller, target: Any, tmp_path: Path) -> Iterator[Attempt]:
    """A run against one target after the other."""
    attempt = Attempt(controller, target, tmp_path)
    try:
        yield attempt
    finally:
        attempt.kill()
        forget_marks(target)


@pytest.fixture
def row(request: pytest.FixtureRequest, target: Any, capsys: pytest.CaptureFixture[str]) -> Iterator[Row]:
    """Watches the target, and prints the row when it is over."""
    row = Row(Watch(target))
    yield row
    with capsys.disabled():
        print(f"\n    {request.node.name}: {row.said}")


# Signals


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_to_ansible_playbook(attempt: Attempt, target: Any, row: Row, name: str, phase: str) -> None:
    with attempt.caught(phase):
        row.fault()
        os.kill(attempt.pid, getattr(signal, name))
        if name == "SIGKILL":
            attempt.end()
    code = attempt.end()
    assert code == (99 if name == "SIGINT" else -getattr(signal, name)), attempt.output
    row.clean()
    installed = phase in ("installing", "cleaning")
    assert marked(target, BEGUN) == marked(target, FINISHED) == installed, "an installation that begins finishes; what has not begun is dropped"
    if name == "SIGKILL":
        return
    if phase == "installing":
        assert "waiting until the installation of" in attempt.output and ": installed (exit code 0: installed)" in attempt.output, attempt.output
    elif phase != "cleaning":
        assert ": dropped (the run was cut off before it began)" in attempt.output, attempt.output
    if phase not in ("connecting", "uploading", "starting"):
        assert f"{target.name}: removed service sojourn-" in attempt.output, attempt.output
