"""Ansible's own way of restarting Windows: the real ansible.windows.win_reboot over the connection. (The one of Linux is a row of test_faults.py.)"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import COLLECTIONS
from tests.integration.conftest import Controller
from tests.integration.faults import AGENT, WITHIN, Attempt, Watch
from tests.lab.other_collections import other_collections
from tests.lab.snapshot import AT_NEXT_START

# What win_reboot itself asks first, and then again and again until the answer is another one.
BOOT_TIME = "(Get-CimInstance -ClassName Win32_OperatingSystem -Property LastBootUpTime).LastBootUpTime.ToFileTime()"


@pytest.fixture
def attempt(controller: Controller, windows_target: Any, tmp_path: Path) -> Iterator[Attempt]:
    """A run against the Windows target."""
    attempt = Attempt(controller, windows_target, tmp_path)
    try:
        yield attempt
    finally:
        attempt.kill()


@pytest.mark.leaves(*AT_NEXT_START)
def test_win_reboot(attempt: Attempt, windows_target: Any) -> None:
    """It resets the connection, asks the target until it has restarted, and the run goes on."""
    watch = Watch(windows_target)
    tasks: list[dict[str, Any]] = [
        AGENT | {"name": "agent before"},
        {"name": "time before", "ansible.builtin.raw": BOOT_TIME},
        # A connect_timeout other than the connection's has win_reboot reset it: before it looks for the target, and when that is back.
        {"name": "restart", "ansible.windows.win_reboot": {"reboot_timeout": 120, "connect_timeout": 3, "msg": "It's time"}},
        {"name": "time after", "ansible.builtin.raw": BOOT_TIME},
        AGENT | {"name": "agent after"},
        {"name": "anything else", "ansible.builtin.raw": "Get-Date", "failed_when": False},
    ]
    # With PowerShell for the shell, as a Windows host has it by default; the lab's inventory says otherwise.
    attempt.begin(
        tasks, "-e", "ansible_shell_type=powershell", "-vvvv", environment={"ANSIBLE_COLLECTIONS_PATH": f"{COLLECTIONS}:{other_collections()}"})
    code, since = attempt.end(200), time.monotonic()
    assert code == 0, attempt.output
    found = {entry["task"]: entry["result"] for entry in attempt.results}
    restart = found["restart"]
    assert restart["rebooted"] and restart["changed"] and not restart.get("failed") and not restart.get("unreachable"), restart
    before, after = found["agent before"]["info"], found["agent after"]["info"]
    assert before["boot_id"] != after["boot_id"]
    assert int(found["time before"]["stdout"]) < int(found["time after"]["stdout"])
    # Each reset took an agent away, and the next command put one there.
    assert attempt.output.count("resetting connection plugin") >= 2, attempt.output
    assert len(re.findall(r"<windows1> AGENT sojourn-\w+ ON PORT", attempt.output)) >= 2, attempt.output
    refused = found["anything else"]
    assert refused["rc"] == 1 and "the lab's powershell.exe knows only what win_reboot sends" in refused["stderr"], refused
    watch.wait_clean(since)
    attempt.wait_over(since + WITHIN)
