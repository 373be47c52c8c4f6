"""What passes over Ansible's own ssh passes over ours: ansible-core's own integration targets on the lab's Linux target, over IPv6.

In every run of the tests ours has all of them by the newest ansible-core, and by the oldest too what is most about connections, or short; some without
a warm interpreter as well. What came of Ansible's own ssh, and of the rest, is in docs/conformance.md; with SOJOURN_TEST_CONFORMANCE=1 all of it is
run anew, and must be as it says there, ours with a warm interpreter and without.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conformance import ALL, ALWAYS_LEFT, NOISE_SHOWS, OURS, SSH, SUITES, Stage, Suite
from tests.integration.controllers import Other
from tests.lab import Lab


def chosen() -> list[Any]:
    """What is to be run now, each with what it may leave."""
    rows = []
    for suite in SUITES:
        for other in suite.versions:
            for connection, warm in ((OURS, True), (OURS, False), (SSH, False)):
                if os.environ.get(ALL) or connection == OURS and other in (suite.every_run if warm else suite.cold):
                    marks = [pytest.mark.leaves(*ALWAYS_LEFT, *suite.leaves)]
                    if suite.name == "signal_propagation":
                        marks.append(pytest.mark.xdist_group("signal_propagation"))  # it looks for its processes in all of the machine
                    name = connection if warm or connection == SSH else f"{connection}, cold"
                    rows.append(pytest.param(suite, other, connection, warm, marks=marks, id=f"{suite}-{other}-{name}"))
    return rows


@pytest.mark.parametrize(("suite", "other", "connection", "warm"), chosen())
def test_suite(
    lab: Lab, linux_target: Any, nothing_left: None, suite: Suite, other: Other, connection: str, warm: bool, tmp_path: Path,
    say: Callable[[str], None],
) -> None:
    with Stage(lab, linux_target, other, connection, tmp_path / "stage", warm=warm) as stage:
        outcome = stage.play(suite)
    passed = outcome.code == 0
    over = connection if warm or connection == SSH else f"{connection}, cold"
    say(f"ansible-core {other.core}, {suite}, over {over}: {'passed' if passed else 'failed'} in {outcome.seconds:.0f} s")
    why = suite.ssh_fails.get(other.name) if connection == SSH else None
    if why:
        assert not passed, f"docs/conformance.md says that it fails: {why}"
        assert NOISE_SHOWS.search(outcome.output), outcome.output[-20000:]
    else:
        assert passed, outcome.output[-20000:]
