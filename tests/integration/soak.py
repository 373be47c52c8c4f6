"""What the soak is made of: its plan, a caller that can be killed, the cheap look at a target, and the figures that must not grow."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.sojourn.deploy.plugins.plugin_utils.broker_client import Agent
from tests.integration.faults import BEGUN, FINISHED, mark
from tests.lab.fixtures import fixtures

STEPS = ("deploy", "put_file", "execute", "remove")
# Longest delay between a step's begin and its interruption, in seconds: about what the step takes.
LONGEST = {"deploy": 0.3, "put_file": 0.03, "execute": 0.3, "remove": 0.3}

# Interruptions and how often each comes, of a run that lasts, and of runs that do not outlive their cycle. Where an agent is killed, what
# takes most of the time is to find out that it is lost: so that is rare.
NONE = "none"
CALLER, AGENT, NETWORK, AGENT_AND_NETWORK = "caller", "agent", "network", "agent and network"
OWNER, BROKER_THEN_SAME, BROKER_THEN_OTHER, OWNER_AND_BROKER = (
    "owner", "broker; its run goes on", "broker; another run comes", "owner and broker; nobody comes")
LASTING = {NONE: 12, CALLER: 12, AGENT: 2, NETWORK: 5, AGENT_AND_NETWORK: 1}
PASSING = {OWNER: 5, BROKER_THEN_SAME: 3, BROKER_THEN_OTHER: 3, OWNER_AND_BROKER: 1}
# Every so many cycles one has a run of its own.
EVERY = 4

LOG_LINES = "lines of the agent in the system's log"

# What names a thing on a target as the product's.
OURS = re.compile(r"sojourn-[0-9a-f]{12}")

_LINUX_LOOK = r"""
part() { printf '@@ %s\n' "$1"; }
part process; ps -ww -eo args=
part folder; ls -d /tmp/sojourn-* /var/tmp/sojourn-* /root/sojourn-* /etc/tmpfiles.d/sojourn-* /run/systemd/transient/sojourn-* 2> /dev/null
part unit; systemctl list-units --all --plain --no-legend --full --no-pager 'sojourn-*'
part rule; nft list ruleset
"""
_WINDOWS_LOOK = r"""
part() { printf '@@ %s\n' "$1"; }
part process; ps -ww -eo args=
part folder; ls -d /srv/windows/drive_c/windows/sojourn-* 2> /dev/null
part service; python3 -c '
import json, socket
with socket.create_connection(("127.0.0.1", 47000), timeout=20) as wire:
    wire.sendall(b"services\n")
    print("\n".join(f"{name} {about}" for name, about in json.loads(wire.makefile().read()).items()))'
part rule; nft list ruleset
"""


@dataclass(frozen=True)
class Cycle:
    """One cycle as it was drawn."""

    number: int
    kind: str
    #: In which step it is interrupted, and how long after that has begun.
    step: str
    delay: float
    #: How long its installer takes.
    installing: float

    def __str__(self) -> str:
        when = "" if self.kind == NONE else f" in {self.step} after {self.delay * 1000:.0f} ms"
        return f"cycle {self.number}: {self.kind}{when}"


def plan(seed: str, count: int) -> list[Cycle]:
    """All cycles of a seed. A longer plan begins with the shorter one."""
    generator = random.Random(seed)
    cycles = []
    for number in range(1, count + 1):
        kinds = LASTING if number % EVERY else PASSING
        kind = generator.choices(list(kinds), list(kinds.values()))[0]
        step = generator.choice(STEPS)
        cycles.append(Cycle(number, kind, step, generator.uniform(0, LONGEST[step]), generator.uniform(0, 0.3)))
    return cycles


class Caller(Agent):
    """An ``Agent`` whose process can be killed. The end of its connection is all that a broker sees of that."""

    def __init__(self, target: Any, owner_pid: int) -> None:
        super().__init__(target, owner_pid)
        self._dead = threading.Event()
        self._connection: socket.socket | None = None

    def _order(self, *words: Any) -> socket.socket | None:
        self._connection = super()._order(*words)
        if self._dead.is_set():
            self.die()
        return self._connection

    def die(self) -> None:
        """Now, and whatever is called later is not heard of any more."""
        self._dead.set()
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)


class Package:
    """An installer of some megabytes that marks its begin and its end."""

    def __init__(self, target: Any, folder: Path) -> None:
        self._target = target
        self._windows = target.kind == "windows"
        self.path = folder / ("setup.exe" if self._windows else "setup.sh")
        source = fixtures()["exe" if self._windows else "behave"].read_bytes()
        self.path.write_bytes(source + b"\nexit 0\n" + os.urandom(8 << 20))

    def command(self, cycle: Cycle, path: str) -> list[str]:
        """What installs it, once it is on the target."""
        def written(name: str) -> str:
            name = f"{cycle.number}-{name}"
            return rf"C:\windows\temp\sojourn-matrix-{name}" if self._windows else mark(self._target, name)

        return [path, "--write", written(BEGUN), "--sleep", f"{cycle.installing:.2f}", "--write", written(FINISHED)]


class Look:
    """What a cheap look at a target shows of the product."""

    def __init__(self, target: Any, cycle: Cycle) -> None:
        script = _WINDOWS_LOOK if target.kind == "windows" else _LINUX_LOOK
        marks = mark(target, f"{cycle.number}-")
        done = target.exec(["sh", "-c", f"{script}\npart mark; ls -d {marks}* 2> /dev/null; part end"])
        self.left: list[str] = []
        self.marks: set[str] = set()
        part = ""
        for line in done.stdout.splitlines():
            if line.startswith("@@ "):
                part = line[3:]
            elif part == "mark":
                self.marks.add(line.removeprefix(marks))
            elif OURS.search(line):
                self.left.append(f"{part}: {line.strip()}")
        assert part == "end", done.stdout


@dataclass(frozen=True)
class Process:
    """What a process has at a moment."""

    memory: int
    descriptors: int
    threads: int = 1

    @classmethod
    def of(cls, pid: int) -> Process:
        """Memory in bytes. It is what is its own: pages of files come and go with the machine's load."""
        status = Path(f"/proc/{pid}/status").read_text()
        (memory,) = re.findall(r"RssAnon:\s+(\d+) kB", status)
        return cls(int(memory) << 10, len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")))

    def __str__(self) -> str:
        return f"{self.memory / 1048576:.1f} MB, {self.descriptors} descriptors, {self.threads} threads"


#: Of a console, under Wine; and how the command of what has not become a Windows program yet begins.
CONSOLE = "conhost.exe"
LOADER = "/usr/lib/wine/wine64 "


def end_stillborn(target: Any) -> int:
    """Ends what the agent was about to start and that was never let run; how many there were.

    A Windows program creates a process that stands still, and then lets it go. Who is killed in between leaves it so for ever. What
    takes microseconds on Windows takes milliseconds under Wine, so that a soak meets it: with the firewall's tool, with the one who
    deletes the agent's folder, and with the process of the console (which on Windows the system makes). What has run has loaded
    Windows' base library. An installation's process is born in a job that ends with the agent; but Wine has its loader run before that counts, so
    what is still a loader, of a program in the agent's folder, is ended too: 32 of 1267 that were killed in those milliseconds were such.
    """
    count = 0
    for process in target.processes():
        with contextlib.suppress(OSError):
            loader = process.command.startswith(LOADER) and OURS.search(process.command)
            if (loader or process.name in ("netsh.exe", "cmd.exe", CONSOLE)) and "kernelbase.dll" not in Path(f"/proc/{process.pid}/maps").read_text():
                process.end()
                count += 1
    return count


def open_files(pid: int) -> list[str]:
    """What a process has open; of a connection, where it leads."""
    sockets = {}
    for table in ("tcp", "tcp6", "unix"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if table == "unix":
                sockets[words[6]] = " ".join(["unix", *words[7:]])
            else:
                local, remote = (int(address.rpartition(":")[2], 16) for address in words[1:3])
                sockets[words[9]] = f"{table} from port {local} to {remote}, state {words[3]}"
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            link = os.readlink(entry)
            found.append(sockets.get(link[8:-1], link) if link.startswith("socket:[") else link)
    return sorted(found)


_MORE = r"""
echo "files in /run" $(find /run -xdev | wc -l)
echo "bytes in /var/log and /run/log" $(du -scb /var/log /run/log 2> /dev/null | tail -n 1)
echo "failed units, the system's own too" $(systemctl list-units --failed --plain --no-legend | wc -l)
"""


@dataclass
class TargetFigures:
    """What a target has at a moment: its processes by name, added up, and what can be counted besides."""

    processes: dict[str, Process]
    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, target: Any) -> TargetFigures:
        """Once it is clean. The names are the kernel's."""
        sums: dict[str, Process] = {}
        counts: Counter[str] = Counter()
        for process in target.processes():
            with contextlib.suppress(OSError, ValueError):
                one, so_far = Process.of(process.pid), sums.get(process.name, Process(0, 0, 0))
                sums[process.name] = Process(so_far.memory + one.memory, so_far.descriptors + one.descriptors, so_far.threads + one.threads)
                counts["processes"] += 1
        for line in target.exec(["sh", "-c", _MORE]).stdout.splitlines():
            name, value = re.fullmatch(r"(.*?) (\d+).*", line).groups()  # type: ignore[union-attr]
            counts[name] = int(value)
        counts[LOG_LINES] = len(target.event_log())
        return cls(sums, counts)

    def since(self, before: TargetFigures) -> list[str]:
        """What is not as it was, for people."""
        grown = [f"{name} {before.counts[name]} -> {value}" for name, value in self.counts.items() if value != before.counts[name]]
        for name, now in sorted(self.processes.items()):
            then = before.processes.get(name, Process(0, 0, 0))
            if abs(now.memory - then.memory) >= 1 << 17 or (now.descriptors, now.threads) != (then.descriptors, then.threads):
                grown.append(f"{name}: {then} -> {now}")
        return grown


class Stopwatch:
    """How long since."""

    def __init__(self) -> None:
        self.begin = time.monotonic()

    @property
    def seconds(self) -> float:
        """Until now."""
        return time.monotonic() - self.begin
