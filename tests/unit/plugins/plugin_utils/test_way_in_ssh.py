"""What the way in over SSH makes of what the target's shell says; the shell itself is the lab's."""

from __future__ import annotations

import gzip
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import network, ssh_client
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


@pytest.mark.parametrize(("code", "error"), [(-1, EOFError), (0, SojournError)])
def test_a_connection_that_ends_during_the_upload_is_no_fault_of_the_disk(code: int, error: type[Exception]) -> None:
    """The script says in the end what has come; where it could say nothing, whoever counts the bytes has none."""
    way_in = SshWayIn(Target.make("ssh", "::1", host="web1"), "0123456789ab")
    command = SimpleNamespace(output=b"folder /tmp/x\n", errors=b"", wait_for=lambda unused: None, finish=lambda: code)
    with pytest.raises(error):
        way_in._wait_for_size(command, 7_000_000)


def test_the_connection_to_the_first_jump_host_is_noticed_to_be_dead() -> None:
    """It is the only one of the kernel's own: what leads on from there has no socket."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server, socket.create_connection(server.getsockname()[:2]) as connection:
        way_in = SshWayIn(Target.make("ssh", "::1", host="web1", ssh_common_args="-J gate"), "0123456789ab")
        jump = ssh_client.Client()
        jump._socket = connection
        way_in._jumps = [jump]
        way_in.keep()
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == network.SILENCE_SECONDS * 1000
        jump._socket = None


@pytest.mark.parametrize(("method", "given"), [
    ("sudo", {"password": "Geheim1!"}), ("sudo", {"password": "Geheim1!", "become_password": "Geheim2!"}), ("su", {"become_password": "Geheim2!"}),
])  # fmt: skip
def test_what_is_answered_on_the_way_to_root(method: str, given: dict[str, str]) -> None:
    """Nothing, where the host key is another one than is known; that is so before any key was seen."""
    way_in = SshWayIn(Target.make("ssh", "::1", host="web1", **given), "0123456789ab")
    assert way_in._root_password(method) is None and "no password is sent" in str(way_in._no_password(method))
    way_in._trusted = True
    assert way_in._root_password(method) == given.get("become_password", "Geheim1!")
