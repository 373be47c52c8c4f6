"""What the way in over SSH makes of what the target's shell says; the shell itself is the lab's."""

from __future__ import annotations

import contextlib
import gzip
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import network, ssh_client, way_in_ssh
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


class Here:
    """In the place of a target: commands run here, by a shell, as over a connection."""

    def __init__(self, instead: str = "") -> None:
        self.instead = instead
        self.lines: list[str] = []

    @contextlib.contextmanager
    def command(self, line: str, timeout: float) -> Iterator[ssh_client.Command]:
        self.lines.append(line)
        process = subprocess.Popen(
            ["sh", "-c", self.instead or line], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, start_new_session=True)
        try:
            yield ssh_client.Command(Channel(process), time.monotonic() + timeout, timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                stream.close()


class Channel:
    """Paramiko's, of a process."""

    closed = False

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.in_buffer = self.in_stderr_buffer = self
        self.status_event = threading.Event()

    def set_event(self, event: Any) -> None:
        """Comes at once, and so wakes nobody: it looks again and again."""
        event.wait = lambda timeout: time.sleep(0.01)

    def _ready(self, stream: Any) -> bool:
        return not stream.closed and bool(select.select([stream], [], [], 0)[0])

    def recv_ready(self) -> bool:
        return self._ready(self._process.stdout)

    def recv_stderr_ready(self) -> bool:
        return self._ready(self._process.stderr)

    def _take(self, stream: Any, size: int) -> bytes:
        data = os.read(stream.fileno(), size)
        if not data:
            stream.close()
        return data

    def recv(self, size: int) -> bytes:
        return self._take(self._process.stdout, size)

    def recv_stderr(self, size: int) -> bytes:
        return self._take(self._process.stderr, size)

    @property
    def eof_received(self) -> bool:
        return bool(self._process.stdout.closed and self._process.stderr.closed)

    def exit_status_ready(self) -> bool:
        if self._process.poll() is not None:
            self.status_event.set()
        return self.status_event.is_set()

    @property
    def exit_status(self) -> int:
        return self._process.wait()

    def settimeout(self, seconds: float) -> None:
        """A pipe here takes what it is given."""

    def send(self, data: bytes) -> int:
        return os.write(self._process.stdin.fileno(), data)

    def shutdown_write(self) -> None:
        self._process.stdin.close()


MACHINE = os.uname().machine
OTHER = "aarch64" if MACHINE == "x86_64" else "x86_64"


@pytest.fixture
def placing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A way in to here; the agent is a script that does nothing, one for each machine, and sudo asks for nothing."""
    executables = {}
    for architecture in set(way_in_ssh.ARCHITECTURES.values()):
        path = executables[architecture] = tmp_path / architecture
        path.write_bytes(f"#!/bin/sh\nexit 0 # {architecture}\n".encode() + bytes(300_000))

    def executable(system: str, architecture: str, host: str | None = None) -> str:
        if not executables[architecture].exists():
            raise SojournError("SD-405", host=host, step="choosing the agent", platform=architecture)
        return str(executables[architecture])

    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sudo").write_text("#!/bin/sh\nexit 0\n")
    (programs / "sudo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(way_in_ssh, "agent_executable", executable)
    monkeypatch.setattr(way_in_ssh, "BEGIN_SECONDS", 0.5)
    monkeypatch.setattr(SshWayIn, "likely", MACHINE)
    (tmp_path / "there").mkdir()
    way_in = SshWayIn(Target.make("ssh", "::1", host="web1", remote_folders=[str(tmp_path / "there")]), "0123456789ab")
    way_in._client = Here()
    with way_in._steps:
        yield SimpleNamespace(way_in=way_in, executables=executables, folder=tmp_path / "there/sojourn-0123456789ab", there=tmp_path / "there")


@pytest.mark.parametrize(("likely", "missing", "commands"), [(MACHINE, "", 1), (OTHER, "", 2), (OTHER, OTHER, 2)])
def test_one_command_looks_and_takes_the_agent(placing: Any, likely: str, missing: str, commands: int) -> None:
    """Where the target is as the last one was; else there are two, and the next one is expected to be as this one."""
    SshWayIn.likely = likely
    if missing:
        placing.executables[way_in_ssh.ARCHITECTURES[missing]].unlink()
    placing.way_in.place("token")
    assert len(placing.way_in._client.lines) == commands and SshWayIn.likely == MACHINE
    assert (placing.folder / "agent").read_bytes() == placing.executables[way_in_ssh.ARCHITECTURES[MACHINE]].read_bytes()
    assert (placing.folder / "session").read_text() == "token"


def test_what_waits_for_the_end_of_its_input_gets_it(placing: Any) -> None:
    placing.way_in._client.instead = "echo No shell here.; exec cat"
    with pytest.raises(SojournError) as refusal:
        placing.way_in.place("token")
    assert refusal.value.code == "SD-308" and "No shell here." in str(refusal.value)
    assert not list(placing.there.iterdir())


def test_who_takes_long_to_begin_is_sent_the_agent_by_another_command(placing: Any) -> None:
    """It has had the end of its input by then, and has taken its folder away."""
    run = placing.way_in._client.command

    def slow(line: str, timeout: float) -> Any:
        placing.way_in._client.instead = "" if placing.way_in._client.lines else f"sleep 1; {line}"
        return run(line, timeout)

    placing.way_in._client.command = slow
    placing.way_in.place("token")
    assert len(placing.way_in._client.lines) == 2 and (placing.folder / "agent").exists()


@pytest.mark.parametrize("more", [-100_000, 100_000])
def test_an_agent_that_is_exchanged_meanwhile(placing: Any, more: int) -> None:
    """Neither is more sent than was told, nor waited for what never comes."""
    path = placing.executables[way_in_ssh.ARCHITECTURES[MACHINE]]
    size = way_in_ssh.size_of(str(path))
    path.write_bytes((path.read_bytes() + bytes(max(more, 0)))[:size + more])
    if more > 0:  # what is beyond is not sent, and all else is as it was
        placing.way_in.place("token")
        assert (placing.folder / "agent").stat().st_size == size
        return
    with pytest.raises(SojournError) as refusal:
        placing.way_in.place("token")
    assert refusal.value.code == "SD-408" and not list(placing.there.iterdir())
