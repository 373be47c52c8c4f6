"""The broker as a process: started once, private, told of its run's end; and its client, which must be quick to import."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import broker, broker_client, ledger, wire
from ansible_collections.sojourn.deploy.plugins.plugin_utils.broker_client import Agent
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from tests.ports import closed_port

SECRET = "Geheim1!-nowhere"


class Run:
    """Stands for an ansible-playbook."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self.folder = Path(broker_client.run_folder(self.process.pid))

    def connect(self) -> socket.socket:
        connection = broker_client.connect(self.process.pid)
        assert connection is not None
        return connection

    def brokers(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            except OSError:
                continue
            if str(self.folder).encode() in words and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(entry.name))
        return found

    def wait_gone(self, seconds: float = 10) -> None:
        for pid in self.brokers():
            wait_end(pid, seconds)
        assert not self.folder.exists()


def wait_end(pid: int, seconds: float) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], seconds)[0], f"{pid} did not end"
    finally:
        os.close(descriptor)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    base = tmp_path / "r"
    base.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    if len(str(base)) >= 40:  # as the client has it: a socket's path is short
        monkeypatch.setattr(broker_client, "private_base", lambda: f"/tmp/sojourn-test-{os.getpid()}")
    run = Run()
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()
        for pid in run.brokers():
            wait_end(pid, 20)


def target(**options: Any) -> Target:
    return Target.make(options.pop("way_in", "ssh"), "::1", port=closed_port(), user="root", password=SECRET, host="web1", **options)


def test_without_a_broker_nothing_is_started(run: Run) -> None:
    agent = Agent(target(), run.process.pid)
    assert agent.present() is False
    assert agent.remove() == {"changed": False, "removed": []}
    assert not run.folder.exists() and run.brokers() == []


def test_many_workers_start_one_broker(run: Run) -> None:
    barrier = threading.Barrier(20)
    connections = []

    def come() -> None:
        barrier.wait()
        connections.append(run.connect())

    threads = [threading.Thread(target=come) for unused in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(connections) == 20 and len(run.brokers()) == 1
    for connection in connections:
        connection.close()


@pytest.mark.alone
def test_its_folder_is_private_and_goes_with_it(run: Run) -> None:
    run.connect().close()
    for path in (run.folder, run.folder.parent, *run.folder.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path
    assert stat.S_ISSOCK((run.folder / "socket").stat().st_mode)
    pids = run.brokers()
    run.process.kill()
    run.process.wait()
    wait_end(pids[0], 10)
    assert not run.folder.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_told_to_end(run: Run, number: int) -> None:
    run.connect().close()
    pid = run.brokers()[0]
    os.kill(pid, number)
    wait_end(pid, 10)
    assert not run.folder.exists()


def test_the_runs_signals_do_not_reach_it(run: Run) -> None:
    run.connect().close()
    pid = run.brokers()[0]
    assert os.getsid(pid) == pid and os.getpgid(pid) == pid
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    assert Agent(target(), run.process.pid).present() is False
    assert run.brokers() == [pid]


def test_a_killed_broker_is_replaced(run: Run) -> None:
    run.connect().close()
    pid = run.brokers()[0]
    os.kill(pid, signal.SIGKILL)
    wait_end(pid, 10)
    assert (run.folder / "socket").exists()
    run.connect().close()
    assert run.brokers() and run.brokers() != [pid]


def test_started_early_it_is_the_one_that_workers_find(run: Run) -> None:
    """They wait for the lock that it holds until it listens."""
    assert broker_client.start_early(run.process.pid, "ssh")
    run.connect().close()
    assert len(run.brokers()) == 1
    assert not broker_client.start_early(run.process.pid, "ssh"), "there is one"
    run.process.kill()
    run.process.wait()
    run.wait_gone()


def test_a_module_is_announced_where_there_is_a_broker(run: Run) -> None:
    assert not broker_client.announce_module(run.process.pid, b"x" * 5000, 1) and not run.brokers()
    with run.connect():
        assert broker_client.announce_module(run.process.pid, b"x" * (2 * wire.CHUNK + 1), 1)


def test_a_broker_is_told_that_the_end_is_near(run: Run) -> None:
    """With nothing else to do it stays there, and says that it is well."""
    with run.connect() as connection:
        wire.send_frame(connection, {"version": wire.PROTOCOL_VERSION, "call": "expect_end", "arguments": {}, "payload": 0})
        assert wire.receive_frame(connection) is None, "nobody waits for an answer"
    (pid,) = run.brokers()
    broker_client.expect_end(run.process.pid)
    assert Agent(target(), run.process.pid).present() is False and run.brokers() == [pid]


@pytest.mark.parametrize("there_was", ["none", "one that was killed", "the run's"])
def test_where_no_broker_is_nobody_is_told(run: Run, there_was: str) -> None:
    """Nothing is started for it, and nothing is wrong."""
    if there_was == "one that was killed":
        run.connect().close()
        (pid,) = run.brokers()
        os.kill(pid, signal.SIGKILL)
        wait_end(pid, 10)
        assert (run.folder / "socket").exists()
    elif there_was == "the run's":
        run.process.kill()
        run.process.wait()
    broker_client.expect_end(run.process.pid)
    assert run.brokers() == [] and run.folder.exists() == (there_was == "one that was killed")


def test_not_started_early_where_another_starts_one(run: Run) -> None:
    lock = broker_client._lock(str(run.folder))
    try:
        assert not broker_client.start_early(run.process.pid, "ssh")
    finally:
        os.close(lock)
    assert not run.brokers()


def test_what_keeps_an_early_one_from_starting_is_told_to_the_first_worker(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    base = run.folder.parent
    base.mkdir(mode=0o700, exist_ok=True)
    run.folder.mkdir(mode=0o755)
    run.folder.chmod(0o755)
    assert not broker_client.start_early(run.process.pid, "ssh")
    with pytest.raises(SojournError, match="open to other users") as caught:
        run.connect()
    assert caught.value.code == "SD-902"
    run.folder.rmdir()


def test_an_early_one_that_fails_lets_go(run: Run) -> None:
    """Its run is over before it listens: nobody waits for its lock, and nothing stays."""
    run.process.kill()
    run.process.wait()
    broker_client.start_early(run.process.pid, "ssh")
    os.close(broker_client._lock(str(run.folder)))
    broker._remove_folder(str(run.folder))


def test_no_broker_for_a_run_that_has_ended(run: Run) -> None:
    run.process.kill()
    run.process.wait()
    gone = run.process.pid
    with pytest.raises(SojournError, match=r"has ended.*\(SD-902\)"):
        broker_client.connect(gone)
    assert not Path(broker_client.run_folder(gone)).exists()


@pytest.mark.parametrize("way_in", ["smb", "ssh", "winrm"])
def test_errors_come_through_and_secrets_go_nowhere(run: Run, way_in: str) -> None:
    agent = Agent(target(way_in=way_in), run.process.pid)
    with pytest.raises(SojournError, match=r"^\[web1\] connecting: Port \d+ of ::1 refuses connections. \(SD-203\) Remedy: ") as caught:
        agent.deploy()
    assert agent.present() is False
    broker = Path(f"/proc/{run.brokers()[0]}")
    data = (broker / "cmdline").read_bytes() + (broker / "environ").read_bytes() + (run.folder / "broker.log").read_bytes()
    assert SECRET.encode() not in data and SECRET not in str(caught.value)


def test_its_environment_is_only_what_it_needs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD", SECRET)
    monkeypatch.setenv("MY_TOKEN", SECRET)
    run.connect().close()
    assert SECRET.encode() not in Path(f"/proc/{run.brokers()[0]}/environ").read_bytes()


@pytest.mark.parametrize(
    "request_",
    [
        {"version": 99, "call": "info"},
        {"version": wire.PROTOCOL_VERSION, "call": "no_such"},
        {"version": wire.PROTOCOL_VERSION, "call": "info", "target": {}},
        {"version": wire.PROTOCOL_VERSION},
        {},
    ],
)
def test_odd_requests_get_an_error_and_do_no_harm(run: Run, request_: dict[str, Any]) -> None:
    with run.connect() as connection:
        if request_.get("call") == "no_such":
            request_["target"] = target().to_dict()
        wire.send_frame(connection, request_)
        frame = wire.receive_frame(connection)
        assert frame is not None and frame[0]["error"]["code"] in ("SD-902", "SD-903")
    with run.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        try:
            assert connection.recv(1) == b""
        except ConnectionResetError:
            pass
    assert Agent(target(), run.process.pid).present() is False


def test_without_descriptors_it_goes_on(run: Run) -> None:
    run.connect().close()
    (broker,) = run.brokers()
    limits = resource.prlimit(broker, resource.RLIMIT_NOFILE)
    used = len(list(Path(f"/proc/{broker}/fd").iterdir()))
    resource.prlimit(broker, resource.RLIMIT_NOFILE, (used, limits[1]))
    waiting = [run.connect() for _number in range(3)]  # the kernel takes them, the broker can't
    with waiting[0] as connection:
        connection.settimeout(1.0)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    resource.prlimit(broker, resource.RLIMIT_NOFILE, limits)
    for connection in waiting[1:]:
        connection.close()
    assert Agent(target(), run.process.pid).present() is False
    assert run.brokers() == [broker]


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(SojournError, match=r"open to other users \(mode 0755\)"):
        broker_client.make_private_folder(str(folder))
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(SojournError, match="is not a folder"):
        broker_client.make_private_folder(str(link))
    if os.geteuid() == 0:
        folder.chmod(0o700)
        os.chown(folder, 65534, 65534)
        with pytest.raises(SojournError, match="belongs to another user"):
            broker_client.make_private_folder(str(folder))


@pytest.mark.parametrize("when", ["before the run's folder", "after it was found"])
def test_another_runs_broker_removes_the_common_folder_meanwhile(run: Run, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    base, removed = Path(f"/tmp/sojourn-alone-{os.getpid()}"), []
    monkeypatch.setattr(broker_client, "private_base", lambda: str(base))
    run.folder = Path(broker_client.run_folder(run.process.pid))
    real_mkdir, real_lstat = os.mkdir, os.lstat

    def remove() -> None:
        if not removed:
            removed.append(True)
            base.rmdir()

    def mkdir(path: Any, mode: int = 0o777) -> None:
        if when == "before the run's folder" and path == str(run.folder):
            remove()
        real_mkdir(path, mode)

    def lstat(path: Any) -> Any:
        if when == "after it was found" and path == str(base):
            remove()
        return real_lstat(path)

    with monkeypatch.context() as patched:
        patched.setattr(broker_client.os, "mkdir", mkdir)
        patched.setattr(broker_client.os, "lstat", lstat)
        connection = run.connect()
    connection.close()
    assert removed


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_other_users_are_turned_away(run: Run) -> None:
    run.connect().close()
    code = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); os.chdir(os.path.dirname(sys.argv[1]))\n"
        "s.connect('socket') if len(sys.argv) > 2 else None\n"
        "os.setuid(65534)\n"
        "try:\n    s.connect('socket')\nexcept OSError: sys.exit(7)\n"
        "print(s.recv(1))"
    )
    # The folder keeps them out; opened by mistake, the broker itself still asks the kernel who is there.
    assert subprocess.run([sys.executable, "-c", code, str(run.folder / "socket")], check=False).returncode == 7
    (run.folder / "socket").chmod(0o777)
    run.folder.chmod(0o711)
    run.folder.parent.chmod(0o711)
    done = subprocess.run([sys.executable, "-c", code, str(run.folder / "socket")], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "b''\n", done
    assert "was refused" in (run.folder / "broker.log").read_text()


class AtTheEnd:
    """A session whose end waits for those of all the others."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self.target = Target.make("ssh", "::1", host="web1")
        self._barrier = barrier

    def end(self, unused_report: Any) -> dict[str, Any]:
        self._barrier.wait(10)
        return {"changed": True, "removed": ["it"]}


def broker_in(folder: Path) -> broker.Broker:
    folder.mkdir()
    return broker.Broker(str(folder), broker.Owner(os.getpid(), broker_client.start_time(os.getpid())))


def test_all_targets_are_cleaned_at_once(tmp_path: Path, state_home: Path) -> None:
    made = broker_in(tmp_path / "b")
    barrier = threading.Barrier(20)
    made._sessions = {str(number): AtTheEnd(barrier) for number in range(20)}
    assert made.end()


def test_modules_are_announced_to_all_sessions(tmp_path: Path) -> None:
    made = broker_in(tmp_path / "b")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("ansible/modules/large.py", b"#" * (wire.CHUNK // 2))
    text = base64.b64encode(stream.getvalue())
    before = made.session(target())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        listener = threading.Thread(target=made._client, args=(theirs,), daemon=True)
        listener.start()
        wire.send_frame(ours, {"version": wire.PROTOCOL_VERSION, "call": "module", "arguments": {"play": 1}, "payload": len(text) + 2})
        for chunk in wire.chunks(b"'%s'" % text):
            wire.send_frame(ours, {}, chunk)
        assert wire.receive_frame(ours) == ({"result": None, "more": True}, b"")
        ours.shutdown(socket.SHUT_RDWR)
        listener.join(60)
        assert not listener.is_alive()
    after = made.session(target(way_in="winrm"))
    assert [content for unused, content in before._coming.all()] == [content for unused, content in after._coming.all()] == [text]


class NearTheEnd:
    """A session that is told so."""

    def __init__(self) -> None:
        self.told = 0

    def expect_end(self) -> None:
        self.told += 1


@pytest.mark.parametrize(("count", "told"), [(0, 0), (1, 1), (broker.MOST_EXPECTED, 1), (broker.MOST_EXPECTED + 1, 0)])
def test_the_end_is_expected_of_all_targets_or_of_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, told: int) -> None:
    """Nobody waits for the answer."""
    made = broker_in(tmp_path / "b")
    sessions = [NearTheEnd() for unused in range(count)]
    made._sessions = {str(number): session for number, session in enumerate(sessions)}
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(broker_client, "connect", lambda *unused, **unused_more: ours)
    broker_client.expect_end(os.getpid())
    assert ours.fileno() == -1
    made._client(theirs)
    assert [session.told for session in sessions] == [told] * count


@pytest.mark.parametrize("gone", [True, False])
def test_word_is_left_where_nobody_has_listened_to_the_end(tmp_path: Path, state_home: Path, gone: bool) -> None:
    """Who has gone since, by a second Ctrl-C for one, has not."""
    made = broker_in(tmp_path / "b")
    made.ledger.note("web1", None, package="a")
    events: list[str] = []

    def listen() -> None:
        for event in made.follow_end():
            events.append(event["event"])
            if gone:
                return

    listener = threading.Thread(target=listen)
    listener.start()
    while not made._waiting:
        assert listener.is_alive()
    if gone:
        made._tell("waiting", host="web1", package="a")
        listener.join(60)
    made.end()
    listener.join(60)
    assert bool(ledger.take()) == gone and events == (["waiting"] if gone else ["dropped"])


@pytest.mark.parametrize(("files", "stays"), [(["lock", "broker.log"], False), (["alive-1", "lock", "socket", "broker.log"], False),
                                              ([f"alive-{os.getpid()}", "lock"], False), (["broker.log"], True)])
def test_what_killed_brokers_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], stays: bool) -> None:
    """Also of one that was killed while it started; not the log that one that failed left to be read. Another container's has our process id."""
    monkeypatch.setattr(broker_client, "private_base", lambda: str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    folder = tmp_path / f"{ended.pid}-12345"
    folder.mkdir()
    for name in files:
        (folder / name).touch()
    for name in (name for name in files if name == "lock" or name.startswith("alive-")):
        with open(folder / name) as somebody:
            fcntl.flock(somebody, fcntl.LOCK_EX)
            broker.sweep()
            assert folder.exists(), "one that is at work, or starts, is left alone"
    broker.sweep()
    assert folder.exists() == stays


def test_paths_are_a_function_of_the_run() -> None:
    assert broker_client.run_folder(os.getpid()) == broker_client.run_folder(os.getpid())
    assert broker_client.run_folder(os.getpid()) != broker_client.run_folder(os.getppid())
    assert broker_client.start_time(os.getpid()).isdigit() and broker_client.start_time(2**22 + 1) == "0"


def test_the_client_is_quick_to_import() -> None:
    # Inside a worker: ansible-core is loaded already, and paid for.
    code = (
        "import json, sys, time\n"
        "import ansible.plugins.connection, ansible.utils.display\n"
        "before = set(sys.modules)\n"
        "begin = time.perf_counter()\n"
        "import ansible_collections.sojourn.deploy.plugins.plugin_utils.broker_client\n"
        "print(json.dumps([time.perf_counter() - begin, sorted(set(sys.modules) - before)]))"
    )
    times = []
    for unused in range(5):
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ":".join(sys.path)})
        seconds, modules = json.loads(done.stdout)
        times.append(seconds)
        foreign = [name for name in modules if name.partition(".")[0] not in (*sys.stdlib_module_names, "ansible_collections")]
        assert not foreign, foreign
    # The time is printed, not judged: machines differ. What is judged is that nothing slow comes along.
    print(f"broker_client: {min(times) * 1000:.1f} ms")
    slow = {"ssl", "subprocess", "asyncio", "http", "email", "xml", "logging", "argparse", "concurrent", "multiprocessing", "hashlib", "tempfile"}
    assert not slow & {name.partition(".")[0] for name in modules}


def test_a_caller_waits_as_long_as_it_has_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins when the process has been started, and what comes renews it."""
    here, there = socket.socketpair()
    monkeypatch.setattr(broker_client, "connect", lambda *unused, **unused_more: here)
    answered = threading.Event()

    def answer() -> None:
        wire.receive_frame(there)
        assert not answered.wait(0.3), "it may take longer until there is a process"
        wire.send_frame(there, {"event": "started"})
        wire.send_frame(there, {"event": "output", "stream": "stderr"}, b"Kennwort: ")

    thread = threading.Thread(target=answer)
    thread.start()
    seen: list[tuple[str, bytes]] = []
    asked: list[float] = []

    def patience() -> float:
        asked.append(time.monotonic())
        return 20 if len(asked) == 1 else 0.2

    def converse(stream: str, data: bytes) -> None:
        seen.append((stream, data))

    with there, pytest.raises(broker_client.Overdue):
        Agent(Target.make("ssh", "::1"), os.getpid()).execute(command_line="x", converse=converse, patience=patience)
    thread.join()
    assert seen == [("stderr", b"Kennwort: ")] and len(asked) == 2
    assert here.fileno() == -1, "by which the broker knows that the process is to be killed"
