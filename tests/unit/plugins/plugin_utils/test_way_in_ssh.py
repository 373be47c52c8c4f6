"""What the way in over SSH makes of what the target's shell says; the shell itself is the lab's."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in_ssh import SshWayIn


def refused(errors: bytes) -> SojournError:
    """The error where too little of the agent has come and the shell's programs said this."""
    way_in = SshWayIn(Target.make("ssh", "::1", host="web1"), "0123456789ab")
    command = SimpleNamespace(output=b"size 2097152\n", errors=errors, wait_for=lambda unused: None)
    with pytest.raises(SojournError) as refusal:
        way_in._wait_for_size(command, 7_000_000)
    return refusal.value


def test_no_room_for_an_agent_that_came_packed(tmp_path: Path) -> None:
    """The one who unpacks finds no room, the one before it then nobody who takes its output."""
    packed = tmp_path / "agent.gz"
    packed.write_bytes(gzip.compress(bytes(4_000_000), 0))
    said = subprocess.run(["sh", "-c", f"trap '' PIPE; head -c 3000000 {packed} | LC_ALL=C gzip -dc > /dev/full"], capture_output=True, check=False).stderr
    assert said.splitlines()[-1].startswith(b"head: ") and b"No space left" in said, said
    error = refused(said)
    assert error.code == "SD-402" and "No space left on device" in str(error)


@pytest.mark.parametrize(("errors", "code"), [
    (b"", "SD-408"), (b"head: error writing 'standard output': No space left on device\n", "SD-402"), (b"sh: 1: Disk quota exceeded\n", "SD-402"),
    (b"sh: 1: cannot create: Read-only file system\n", "SD-403"),
])  # fmt: skip
def test_why_the_agent_did_not_come(errors: bytes, code: str) -> None:
    assert refused(errors).code == code
