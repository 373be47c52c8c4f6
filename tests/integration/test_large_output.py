"""Output: bytes of every value, and 100 MB of it, whole, held once by the worker, in pieces by the broker, on the disk by the agent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import Controller
from tests.integration.recording import Recording

SIZE = 100 << 20
LINE = b"0123456789abcdef" * 64
# Bytes that the worker may take beyond the output itself: the frame that is being received, and what the allocator keeps.
WORKER = 16 << 20
# Bytes that broker and agent may have more, at most, than after a small command: a few pieces of 4 MB, as they are read, parsed and sent.
BROKER, AGENT = 32 << 20, 12 << 20

# The largest of the agent's processes is the one that serves.
PEAK = "for pid in $(pgrep -f 'sojourn-.*agent serve'); do sed -n 's/^VmHWM:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$pid/status; done | sort -n | tail -n1"


# To become another user, a password has to be given: what sudo said is then taken off the output, which takes a copy for a moment.
@pytest.mark.parametrize(("become", "copies"), [(False, 1), (True, 2)], ids=["plain", "become"])
def test_large_output(controller: Controller, linux_target: Any, become: bool, copies: int, tmp_path: Path, say: Callable[[str], None]) -> None:
    recording = Recording(tmp_path, "ssh")
    login = "deployer" if become else "root"
    words = f"ansible_connection=recorded ansible_user={login} ansible_password={linux_target.password(login)}"
    if become:
        words += f" ansible_become_password={linux_target.password(login)}"
    commands = ["echo small", PEAK, f"yes {LINE.decode()} | tr -d '\\n' | head -c {SIZE}", PEAK, "echo small"]
    # Shown and kept it would cost ansible-core some times as much again.
    tasks = [{"ansible.builtin.raw": command, "no_log": True} for command in commands]
    path = tmp_path / "play.yml"
    path.write_text(yaml.safe_dump([{"hosts": "linux1", "gather_facts": False, "become": become, "tasks": tasks}]))
    done = controller.run("ansible-playbook", str(path), "-e", words, environment=recording.environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]

    (small,), (before,), (large,), (after,), (again,) = recording.tasks()
    assert small.said(b"small\n", b"", 0) and again.said(b"small\n", b"", 0)
    expected = hashlib.sha256((LINE * (SIZE // len(LINE) + 1))[:SIZE]).hexdigest()
    assert (large.size, large.sha256, large.code) == (SIZE, expected, 0)
    agent = [int(execution.stdout) << 10 for execution in (before, after)]
    more = {"worker": large.worker, "broker": large.broker - before.broker, "agent": agent[1] - agent[0]}
    say(f"100 MB of output, {'become' if become else 'plain'}: more memory by " + ", ".join(f"{size / (1 << 20):.1f} MB ({who})" for who, size in more.items())
        + f"; a small command: {small.worker / (1 << 20):.1f} MB (worker), then {before.broker >> 20} MB (broker), {agent[0] >> 20} MB (agent) in all")
    assert small.worker < WORKER
    assert SIZE <= more["worker"] <= copies * SIZE + WORKER
    assert more["broker"] <= BROKER and more["agent"] <= AGENT


def test_bytes_go_in_and_out_as_they_are(controller: Controller, linux_target: Any) -> None:
    data = bytes(range(256)) * 20_000
    done = controller.agent(linux_target).execute(["sh", "-c", "tee /dev/stderr; exit 255"], input_data=data)
    assert (done["stdout"], done["stderr"], done["exit_code"]) == (data, data, 255)
