"""What the fault matrix is made of: a run that is caught in a chosen phase, and the wait until its target is as it was before.

A row of the matrix (test_faults.py) is: begin a run, catch it in a phase, do something bad, let it end, see that its result is true, and
see that nothing is left within the lease and half a minute. The figures are printed; no row passes or fails by how long it took within that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.integration.conftest import Controller, kill
from tests.integration.playing import CALLBACKS
from tests.lab.fixtures import fixtures
from tests.lab.processes import Process
from tests.lab.snapshot import AT_NEXT_START, Snapshot, compare, take
from tests.lab.waiting import wait_for

# Seconds. A lease that allows several renewals on a busy machine, and leaves the matrix quick.
LEASE = 8
# The promise: after a fault nothing is left within the lease and half a minute, or as soon as the installation that runs has finished.
WITHIN = LEASE + 30
# How long the installer of the matrix takes: longer than the lease, so that it is seen to be let finish.
INSTALLING = 12

# Runs a command that has no room for its private files.
_FULL_DISK = """
folder=$(mktemp -d)
mount -t tmpfs -o size=64k,mode=0700 none "$folder"
head -c 64k /dev/zero > "$folder/fill" 2> /dev/null || true
export XDG_RUNTIME_DIR="$folder" XDG_STATE_HOME="$folder/state"
mkdir "$folder/state"
exec "$@"
"""

PHASES = ("connecting", "uploading", "starting", "copying", "installing", "cleaning")

# A task that puts the agent there.
AGENT: dict[str, Any] = {"sojourn.deploy.agent": {}}

# Marks that the installer makes when it begins and when it has finished, as the target's disk has them.
BEGUN, FINISHED = "begun", "finished"
_MARKS = {"linux": "/var/tmp/sojourn-matrix-", "windows": "/srv/windows/drive_c/windows/temp/sojourn-matrix-"}


def mark(target: Any, name: str) -> str:
    """Where a mark of the installer is on the target's disk."""
    return f"{_MARKS[target.kind]}{name}"


def marked(target: Any, name: str) -> bool:
    """Whether the installer has made it."""
    return target.exec(["test", "-e", mark(target, name)], check=False).returncode == 0


def forget_marks(target: Any) -> None:
    """Takes the marks, which are the installer's and not the product's, off the target."""
    target.exec(["sh", "-c", f"rm -f {_MARKS[target.kind]}*"])


def package(target: Any, folder: Path, *, seconds: float = INSTALLING, megabytes: int = 0, marks: tuple[str, str] = (BEGUN, FINISHED)) -> dict[str, Any]:
    """An entry of `packages`: an installer that marks its begin, takes its time, and marks its end; as large as asked for."""
    begun, finished = marks
    windows = target.kind == "windows"

    def path(name: str) -> str:
        return rf"C:\windows\temp\sojourn-matrix-{name}" if windows else mark(target, name)

    source = fixtures()["zip-windows" if windows else "behave"]
    words = ["--line", "it begins", "--write", path(begun), "--sleep", str(seconds), "--write", path(finished), "--line", "it has finished"]
    entry: dict[str, Any] = {"arguments": words, "creates": path(finished), "timeout": 300}
    if windows:
        entry |= {"src": str(source), "entry": "setup.exe", "kind": "zip"}
        if megabytes:
            entry["src"] = str(_padded_zip(source, folder, megabytes))
    else:
        file = folder / "matrix.sh"
        file.write_bytes(source.read_bytes() + b"exit 0\n" + os.urandom(megabytes << 20))
        entry |= {"src": str(file), "kind": "sh"}
    return entry


def _padded_zip(source: Path, folder: Path, megabytes: int) -> Path:
    """The same archive with ballast in it that does not compress."""
    padded = folder / "matrix.zip"
    shutil.copy(source, padded)
    with zipfile.ZipFile(padded, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr("ballast", os.urandom(megabytes << 20))
    return padded


AGENT_FOLDERS = {"linux": "/tmp/sojourn-????????????", "windows": "/srv/windows/drive_c/windows/sojourn-????????????"}


def list_agent_folders(target: Any) -> list[str]:
    """The folders of agents on the target's disk."""
    return target.exec(["sh", "-c", f"ls -d {AGENT_FOLDERS[target.kind]} 2>/dev/null"], check=False).stdout.split()


class Gate:
    """A task at which a run waits until the test lets it go on; it touches no target."""

    def __init__(self, path: Path) -> None:
        self._path = path
        os.mkfifo(path)
        self.task = {"name": "gate", "ansible.builtin.command": {"argv": ["cat", str(path)]}, "delegate_to": "localhost", "connection": "local"}
        self.task["vars"] = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}

    def open(self) -> None:
        """Lets it go on, once it has come here."""
        self._path.write_bytes(b"")


class Attempt:
    """A run of ansible-playbook against one target, and what is seen of it from outside."""

    def __init__(self, controller: Controller, target: Any, folder: Path) -> None:
        self.controller = controller
        self.target = target
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self._wrapped = False
        self._runs_playbook = 0
        self._record = folder / "results.jsonl"
        self._output = folder / "output"

    def begin(self, tasks: list[dict[str, Any]], *words: str, environment: dict[str, str] | None = None, runner: bool = False, full_disk: bool = False,
              container: bool = False, **keywords: Any) -> Attempt:
        """Starts ansible-playbook with these tasks; by ansible-runner, with no room for its private files, or as the first process of a

        container's processes, which end with it, if asked for.
        """
        play = self.folder / "play.yml"
        play.write_text(yaml.safe_dump([{"hosts": self.target.name, "gather_facts": False, "tasks": tasks, **keywords}], sort_keys=False))
        command = ["ansible-playbook", str(play), *words]
        if full_disk:
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", _FULL_DISK, "sh", *command]
        if container:
            command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *command]
        if runner:
            command = [sys.executable, str(Path(__file__).with_name("run_by_runner.py")), str(self.folder / "runner"), str(play)]
        return self._start(command, environment, wrapped=runner or container)

    def play(self, playbook: str, *words: str, environment: dict[str, str] | None = None) -> Attempt:
        """Starts one of the collection's playbooks."""
        return self._start(["ansible-playbook", playbook, "--limit", self.target.name, *words], environment)

    def _start(self, command: list[str], environment: dict[str, str] | None, *, wrapped: bool = False) -> Attempt:
        self._wrapped = wrapped
        self._record.unlink(missing_ok=True)
        self.process = self.controller.start(*command, output=self._output, environment=self.environment | (environment or {}))
        return self

    def gate(self, name: str = "gate") -> Gate:
        """See there."""
        return Gate(self.folder / name)

    def pause(self, seconds: float) -> None:
        """Lets time pass, where time itself is the fault; a run that ends meanwhile is left to its end."""
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    @property
    def environment(self) -> dict[str, str]:
        """What a run of the matrix has in its environment."""
        return {
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
            "ANSIBLE_CALLBACKS_ENABLED": "recorded,sojourn.deploy.lifecycle",
            "SOJOURN_TEST_RESULTS": str(self._record),
            "SOJOURN_LEASE_SECONDS": str(LEASE),
            "SOJOURN_RECONNECT_TIMEOUT": str(WITHIN),
            "SOJOURN_CONNECTION_TIMEOUT": "5",
        }

    @property
    def pid(self) -> int:
        """Of ansible-playbook."""
        assert self.process is not None
        if not self._wrapped:
            return self.process.pid
        for child in Process(self.process.pid, 0).children():
            with contextlib.suppress(OSError):
                if b"ansible-playbook" in Path(f"/proc/{child}/cmdline").read_bytes():
                    self._runs_playbook = child
        return self._runs_playbook

    def cancel(self) -> None:
        """Has ansible-runner cancel the run, as a user of AWX does."""
        (self.folder / "runner/cancel").touch()

    @property
    def runner_status(self) -> str:
        """What ansible-runner says in the end."""
        return (self.folder / "runner/status").read_text()

    @property
    def broker_folder(self) -> Path:
        """Of its broker."""
        from ansible_collections.sojourn.deploy.plugins.plugin_utils import broker_client

        return Path(broker_client.run_folder(self.pid))

    # The agent

    def agents(self) -> set[int]:
        """The processes of agents on the target: not their guards."""
        return {process.pid for process in self.target.processes() if re.search(r"sojourn-[0-9a-f]{12}[/\\\\]agent(\.exe)?\W+serve", process.command)}

    def kill_agent(self) -> set[int]:
        """As the kernel does when memory runs out; which they were."""
        found = self.agents()
        assert found, "no agent runs"
        for pid in found:
            kill(pid)
        return found

    def runs(self) -> set[str]:
        """The runs whose folders are on the target."""
        return {line.rpartition("sojourn-")[2] for line in list_agent_folders(self.target)}

    @property
    def run(self) -> str:
        """The run whose agent is on the target."""
        (run,) = self.runs()
        return run

    def wait_for_run_gone(self, run: str) -> None:
        """Until a run's folder is no longer there."""
        wait_for(f"the end of run {run}", lambda: run not in self.runs(), WITHIN)

    @property
    def _package(self) -> Path:
        return self.folder / ("matrix.zip" if self.target.kind == "windows" else "matrix.sh")

    @property
    def package_size(self) -> int:
        """Of the large package that was made last."""
        return self._package.stat().st_size

    def arrived_whole(self) -> bool:
        """Whether what the target has of it is what was sent, to the byte."""
        name, sent = self._package.name, self._package.read_bytes()
        if self.target.kind == "windows":  # an archive is unpacked there, and removed
            name, sent = "unpacked/ballast", zipfile.ZipFile(self._package).read("ballast")
        there = self.target.exec(["sh", "-c", f"sha256sum {self.agent_folder}/install-*/{name}"]).stdout
        return there.split()[0] == hashlib.sha256(sent).hexdigest()

    @property
    def broker_pid(self) -> int:
        """Of its broker."""
        pid = self._find_broker()
        assert pid is not None, f"no broker runs:\n{self.output}"
        return pid

    def _find_broker(self) -> int | None:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if b"--owner" in words and words[words.index(b"--owner") + 1] == str(self.pid).encode():
                        return int(entry.name)
        return None

    def wait_over(self, deadline: float) -> None:
        """Until the broker has ended, after which nothing can come to the target any more."""
        wait_for("the broker's end", lambda: self._find_broker() is None, max(1.0, deadline - time.monotonic()))

    def end(self, timeout: float = 120) -> int:
        """Waits for ansible-playbook; its exit code, negative for a signal. It must never show a traceback."""
        assert self.process is not None
        code = self.process.wait(timeout)
        assert "Traceback" not in self.output, self.output
        return code

    def kill(self) -> None:
        """Nothing of the run goes on: not itself, nor the workers of one that was killed, which go on with their task."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        mark = f"SOJOURN_TEST_RESULTS={self._record}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        os.kill(int(entry.name), signal.SIGKILL)

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    @property
    def results(self) -> list[dict[str, Any]]:
        """The results of its tasks so far."""
        return [json.loads(line) for line in self._record.read_text().splitlines()] if self._record.exists() else []

    # Phases

    @property
    def agent_folder(self) -> str:
        """The agent's folder on the target's disk, as a shell pattern."""
        return AGENT_FOLDERS[self.target.kind]

    def has(self, pattern: str, size: int = 0) -> bool:
        """Whether something in the agent's folder is there and larger than so many bytes."""
        script = f'for f in {self.agent_folder}/{pattern}; do s=$(stat -c %s "$f" 2>/dev/null) && [ "$s" -gt {size} ] && exit 0; done; exit 1'
        return self.target.exec(["sh", "-c", script], check=False).returncode == 0

    def wait(self, what: str, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Waits for something to be seen on the target; a run that ended before says how."""
        def seen() -> bool:
            ended = self.process is not None and self.process.poll() is not None
            if condition():
                return True
            assert not ended, f"the run ended before {what}:\n{self.output}"
            return False

        wait_for(what, seen, seconds, first=0.02)

    def wait_task(self, count: int = 1, seconds: float = 60) -> None:
        """Until so many tasks have ended, the one that puts the agent there first."""
        self.wait(f"the end of task {count}", lambda: len(self.results) >= count, seconds)

    @property
    def broker_log(self) -> str:
        """What its broker has written so far."""
        log = self.broker_folder / "broker.log"
        return log.read_text() if log.exists() else ""

    def deployments(self) -> int:
        """How often the broker has put an agent on the target."""
        return self.broker_log.count(" put there, ")

    def wait_installing(self) -> None:
        """Until the installer has begun."""
        self.wait("the installer's begin", lambda: marked(self.target, BEGUN))

    @contextlib.contextmanager
    def caught(self, phase: str, tasks: list[dict[str, Any]] | None = None, *, settled: bool = False, **keywords: Any) -> Iterator[None]:
        """Begins a run that installs the matrix's package, and gives control when it is in the phase; the phase is held until the context ends.

        ``settled``: the agent has been there for so long that its service is on the disk (under Wine half a minute, see the lab).
        """
        copying = phase == "copying"
        install = {"sojourn.deploy.packages": {"packages": [package(self.target, self.folder, megabytes=40 if copying else 0)]}}
        after = {"sojourn.deploy.agent": {"state": "absent"}}
        with contextlib.ExitStack() as stack:
            if phase == "connecting":
                stack.enter_context(self.target.cut_off())
            elif phase == "uploading":
                stack.enter_context(self.target.slow("12mbit"))
            elif phase in ("starting", "cleaning"):
                tool = stack.enter_context(self.target.firewall_tool(holds="open" if phase == "starting" else "close"))
            gate = self.gate() if copying or settled else None
            self.begin([*([AGENT, gate.task] if gate else []), *(tasks or [install, after])], **keywords)
            if phase == "connecting":
                self.wait("a connection that gets no answer", self._is_connecting)
            elif phase == "uploading":
                self.wait("a part of the agent", lambda: self.has("agent*", 100_000))
            elif phase in ("starting", "cleaning"):
                tool.wait_held(60)
            elif gate is not None:
                self.wait_task()
                if settled and self.target.kind == "windows":
                    self.target.write_registry()
                if copying:
                    stack.enter_context(self.target.slow("40mbit"))
                gate.open()
            if copying:
                self.wait("a part of the package", lambda: self.has("install-*/*-part", 100_000))
            elif phase == "installing":
                self.wait_installing()
            yield

    def _is_connecting(self) -> bool:
        wanted = self.target.addresses.as_seen_from_the_lab("ipv6")
        return wanted in self.controller.lab.run(["ss", "-Htn", "state", "syn-sent"]).stdout


class Watch:
    """How a target was before; and how long it takes until it is so again."""

    def __init__(self, target: Any, patterns: tuple[str, ...] = ()) -> None:
        self.target = target
        if any(re.search("sojourn-[0-9a-f]{12}", process.command) for process in target.processes()) or list_agent_folders(target):
            target.reset()  # a row before this one has failed, and says so itself
        self._patterns = (*patterns, *AT_NEXT_START, f"files: {mark(target, '*')}")
        self.before: Snapshot = take(target)

    def differences(self) -> list[str]:
        """What is not as it was."""
        return [str(difference) for difference in compare(self.before, take(self.target, settle=2), self._patterns)]

    def wait_clean(self, since: float, within: float = WITHIN) -> float:
        """Waits until nothing is left; seconds since then. Fails with what is left when the promised time is over."""
        while True:
            left = self.differences()
            now = time.monotonic()
            assert left or now - since < within, f"clean, but only {now - since:.0f} s after the fault"
            if not left:
                return now - since
            assert now - since < within, f"{within:.0f} s after the fault there is still:\n" + "\n".join(left)
            # Nothing announces that the last trace of another system's service is gone.
            time.sleep(0.25)
