"""Processes and control groups, told apart by more than a number that the kernel may give out again."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import LabError
from .namespaces import NETNS
from .waiting import wait_for, wait_for_exit

PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """One process: its id and the moment it began, which together are never used twice."""

    pid: int
    began: int

    @classmethod
    def find(cls, pid: int) -> Process | None:
        """The process with this id now."""
        try:
            stat = (PROC / str(pid) / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = stat[stat.rindex(")") + 2 :].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @classmethod
    def remembered(cls, file: Path) -> Process | None:
        """The process noted in a file, if it is still that one."""
        try:
            pid, began = map(int, file.read_text().split())
        except (FileNotFoundError, ValueError):
            return None
        found = cls.find(pid)
        return found if found and found.began == began else None

    def remember(self, file: Path) -> None:
        """Note it in a file, whole or not at all."""
        aside = file.with_suffix(".new")
        aside.write_text(f"{self.pid} {self.began}\n")
        aside.rename(file)

    @property
    def alive(self) -> bool:
        """Still running."""
        return Process.find(self.pid) == self

    @property
    def command(self) -> str:
        """Its command line, shortened."""
        with contextlib.suppress(OSError):
            return (PROC / str(self.pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
        return ""

    @property
    def name(self) -> str:
        """The kernel's name for it."""
        with contextlib.suppress(OSError):
            return (PROC / str(self.pid) / "comm").read_text().rstrip("\n")
        return ""

    @property
    def is_windows(self) -> bool:
        """Whether it is a 64-bit Windows program under Wine."""
        with contextlib.suppress(OSError):
            return os.readlink(PROC / str(self.pid) / "exe").endswith(("/wine64", "/wine64-preloader"))
        return False

    def children(self) -> list[int]:
        """The ids of its children."""
        with contextlib.suppress(OSError):
            return [int(pid) for pid in (PROC / f"{self.pid}/task/{self.pid}/children").read_text().split()]
        return []

    def end(self, number: int = signal.SIGKILL, timeout: float = 10) -> None:
        """Send it a signal and wait until it is gone."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            wait_for_exit(self.pid, timeout)


def ancestors() -> set[int]:
    """This process and all it descends from: never to be ended by its own lab."""
    pid, found = os.getpid(), set()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            status = (PROC / str(pid) / "status").read_text()
        except OSError:
            break
        pid = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))
    return found


def in_networks(names: list[str]) -> list[Process]:
    """Every process whose network is one of these namespaces."""
    wanted = set()
    for name in names:
        with contextlib.suppress(OSError):
            wanted.add((NETNS / name).stat().st_ino)
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "ns/net").stat().st_ino in wanted and (process := Process.find(int(entry.name))):
                    found.append(process)
    return found


def with_arguments(*words: str) -> list[Process]:
    """Every process with these words side by side in its command line."""
    wanted = b"\0" + b"\0".join(word.encode() for word in words) + b"\0"
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (entry / "cmdline").read_bytes() and (process := Process.find(int(entry.name))):
                    found.append(process)
    return found


def of_leader(pid: int) -> Iterator[Process]:
    """Every process that has the same numbering as this one: all of a container, when it is its first."""
    wanted = (PROC / str(pid) / "ns/pid").stat().st_ino
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "ns/pid").stat().st_ino == wanted and (process := Process.find(int(entry.name))):
                    yield process


def cgroup_roots() -> list[Path]:
    """The hierarchies that systemd in a container uses: version 2, and beside it `name=systemd` on older set-ups."""
    roots = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(",")):
            roots.append(Path(left.split()[4]))
    return roots


def cgroups(*names: str) -> list[Path]:
    """The lab's control groups of this name in every hierarchy."""
    return [root.joinpath("sojourn-lab", *names) for root in cgroup_roots()]


def join_cgroups(*names: str) -> None:
    """Make control groups of this name and move this process into them.

    nspawn makes its `payload` and `supervisor` groups inside its own; two containers in one group would share them.
    """
    for group in cgroups(*names):
        group.mkdir(parents=True, exist_ok=True)
        (group / "cgroup.procs").write_text(str(os.getpid()))


def _members(group: Path) -> Iterator[int]:
    for file in [group / "cgroup.procs", *group.rglob("cgroup.procs")]:
        with contextlib.suppress(OSError):
            yield from map(int, file.read_text().split())


@contextlib.contextmanager
def frozen(lab: str, target: str) -> Iterator[list[int]]:
    """A target whose processes all stand still; their ids, as this machine has them."""
    for group in cgroups(lab, target, "payload"):
        freeze, events = group / "cgroup.freeze", group / "cgroup.events"
        if freeze.exists():
            break
    else:
        raise LabError("there is no control group of version 2 by which a target could be frozen")
    try:
        freeze.write_text("1")
        wait_for(f"{target} to stand still", lambda: "frozen 1" in events.read_text(), 30)
        yield list(_members(group))
    finally:
        freeze.write_text("0")


def remove_cgroups(*names: str) -> None:
    """End what still runs in the lab's control groups and remove them."""
    for group in cgroups(*names):

        def gone(group: Path = group) -> bool:
            for pid in _members(group):
                if pid != os.getpid():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            # A process on its way out is listed no more, while its group can't be removed yet: so it is the group that tells.
            try:
                folders = sorted((p for p in group.rglob("*") if p.is_dir()), key=lambda p: -len(p.parts))
            except FileNotFoundError:  # one went while it was looked at
                return False
            for path in [*folders, group]:
                with contextlib.suppress(OSError):
                    path.rmdir()
            return not group.exists()

        wait_for(f"the processes in {group} to end and the group to be removed", gone, 60)
    for root in cgroups():
        with contextlib.suppress(OSError):
            root.rmdir()  # only when no other lab is in it
