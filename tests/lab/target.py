"""What Linux and Windows targets have in common: a root, a boot, a way to run something inside."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from . import clock, disk, wire
from .commands import run, tool_environment
from .errors import LabError
from .firewall_tool import FirewallTool, firewall_tool
from .namespaces import connect
from .network import Addresses
from .processes import Process, of_leader
from .rootfs import Addition, RootFileSystem
from .waiting import wait_for, wait_for_exit

if TYPE_CHECKING:
    from .model import Lab

CHECKOUT = Path(__file__).parents[2]


class Target(ABC):
    """One target of a lab. The object holds nothing that is not in the lab's state folder."""

    kind: str
    connection: str
    user: str
    port: int
    accounts: tuple[str, ...]
    container_options: tuple[str, ...] = ()
    """What its container needs beyond nspawn's defaults."""
    disk = "1536m"
    """How much a target may write; small enough that a test can fill it."""

    def __init__(self, lab: Lab, name: str, number: int) -> None:
        self.lab = lab
        self.name = name
        self.number = number
        self.folder = lab.folder / "targets" / name

    # What a kind of target says about itself

    @abstractmethod
    def root(self) -> RootFileSystem | Addition:
        """The root file system it stands on."""

    @abstractmethod
    def furnish(self, root: Path) -> None:
        """Put into its fresh root what is this target's own: names, keys, passwords. Runs in the supervisor."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether its way in answers now."""

    # Names and secrets

    @cached_property
    def addresses(self) -> Addresses:
        """Where it is on the lab's link."""
        return self.lab.network.addresses(self.number)

    @property
    def namespace(self) -> str:
        """Its network namespace."""
        return self.lab.network.namespace(self.name)

    def password(self, user: str | None = None) -> str:
        """The password of an account, by default the one in the inventory."""
        return self.lab.credentials[self.name][user or self.user]

    def new_passwords(self) -> dict[str, str]:
        """Fresh passwords for every account."""
        # The lead satisfies any complexity rule; a colon would end chpasswd's user name.
        return {user: f"Lab1-{secrets.token_urlsafe(12)}" for user in self.accounts}

    # Running

    def start(self) -> None:
        """Start its supervisor, which outlives this process."""
        self.folder.mkdir(parents=True)
        (self.folder / "layers").write_text("".join(f"{layer}\n" for layer in self.root().layers))
        with open(self.folder / "supervisor.log", "ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "tests.lab.supervisor", self.lab.name, self.name],
                cwd=CHECKOUT,
                env=tool_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def layers(self) -> list[Path]:
        """What its disk stands on, top first: as it was at its start, even if the recipe has changed since."""
        return [Path(line) for line in (self.folder / "layers").read_text().splitlines()]

    @property
    def supervisor(self) -> Process | None:
        """The process that runs it."""
        return Process.remembered(self.folder / "supervisor.pid")

    @property
    def leader(self) -> Process | None:
        """Process 1 of the running container."""
        machine = Process.remembered(self.folder / "machine.pid")
        for pid in machine.children() if machine else []:
            status = Path(f"/proc/{pid}/status")
            try:
                inner = next(line for line in status.read_text().splitlines() if line.startswith("NSpid:"))
            except (OSError, StopIteration):
                continue
            if inner.split()[-1] == "1":
                return Process.find(pid)
        return None

    def wait_until_up(self, timeout: float = 180) -> None:
        """Return once the way in answers; a target that ended instead says why."""

        def up() -> bool:
            if (self.folder / "failed").exists():
                raise LabError(f"{self.name}: {(self.folder / 'failed').read_text().strip()}")
            return self.leader is not None and self.answers()

        try:
            wait_for(f"{self.name} to answer on port {self.port}", up, timeout, first=0.02)
        except LabError as error:
            raise LabError(f"{error} (see {self.folder}/console.log)") from None
        # Before it has finished booting, accounts other than root may not log in.
        self.exec(["systemctl", "is-system-running", "--wait"], check=False)

    def reboot(self, timeout: float = 180) -> None:
        """Have its own system restart it; returns when it answers again."""
        self._new_boot(lambda: self.exec(["systemctl", "reboot"], check=False), timeout)

    def cut(self, timeout: float = 180) -> None:
        """Cut its power, give it back; the disk stays as it is."""
        self._new_boot(lambda: self._tell_supervisor(signal.SIGUSR1), timeout)

    def reset(self, timeout: float = 180) -> None:
        """Cut its power and start it with a fresh disk: as after `up`, but with new SSH host keys."""
        self._new_boot(lambda: self._tell_supervisor(signal.SIGUSR2), timeout)
        self.lab.write_known_hosts()

    def _tell_supervisor(self, number: int) -> None:
        if not (supervisor := self.supervisor):
            raise LabError(f"{self.name} has no supervisor any more; take the lab down and up again")
        os.kill(supervisor.pid, number)

    def _new_boot(self, begin: Callable[[], object], timeout: float) -> None:
        leader = self.leader
        begin()
        if leader and not wait_for_exit(leader.pid, timeout):
            raise LabError(f"{self.name} did not go down within {timeout:.0f} s")
        self.wait_until_up(timeout)

    def can_connect(self, port: int | None = None, family: str = "ipv6", source: str = "controller") -> bool:
        """Whether a TCP connection from another host of the lab is accepted."""
        host = self.addresses.as_seen_from_the_lab(family)
        try:
            connect(self.lab.network.namespace(source), host, port or self.port, timeout=1).close()
        except OSError:
            return False
        return True

    def greeting(self, port: int, size: int = 16) -> bytes:
        """The first bytes that a service on it says by itself."""
        try:
            with connect(self.lab.network.namespace("controller"), self.addresses.ula, port, timeout=2) as wire:
                return wire.recv(size)
        except OSError:
            return b""

    # Faults. Each context manager undoes what it did, however it ends; on a target that was restarted meanwhile there may be nothing left to undo

    def cut_off(self, port: int | None = None) -> AbstractContextManager[None]:
        """Lose whatever is sent between the controller and this target, or one TCP port of it."""
        return wire.cut_off(self, port)

    def slow(self, rate: str) -> AbstractContextManager[None]:
        """Have the controller send at most so much to this target: "2mbit", "500kbps" (bytes)."""
        return wire.slow_target(self, rate)

    def reset_connections(self, port: int) -> int:
        """Reset every established TCP connection to a port of this target, now; how many there were."""
        return wire.reset_connections(self, port)

    def half_open(self, port: int, count: int = 1, family: str = "ipv6") -> AbstractContextManager[list[socket.socket]]:
        """Hold so many connections from the controller to a port, on which nothing is ever said."""
        return wire.half_open(self.lab, self, port, count, family)

    def firewall_tool(self, *, fails: str | None = None, holds: str | None = None) -> AbstractContextManager[FirewallTool]:
        """Have its own firewall tool fail, or not return until the context ends, when a rule is to be added ("open") or deleted ("close").

        `wait_held()` of what it gives returns once a call is being held.
        """
        return firewall_tool(self, fails, holds)

    def fill_disk(self, leave_bytes: int = 0, at: str | None = None) -> AbstractContextManager[None]:
        """Leave so many bytes free on its disk; `at` is the place of another file system, such as a Linux target's /tmp."""
        return disk.filled(self, leave_bytes, at)

    def jump_clock(self, seconds: float, *processes: Process) -> AbstractContextManager[None]:
        """Have the wall clock of these processes of the target differ by so much."""
        if not processes:
            raise LabError("whose clock is to jump? processes_of(run) are an agent's")
        return clock.jumped(processes, seconds)

    @abstractmethod
    def event_log(self) -> list[str]:
        """What the agent wrote to the system's log, in order."""

    def processes(self) -> Iterator[Process]:
        """Every process of the target."""
        leader = self.leader
        return of_leader(leader.pid) if leader else iter(())

    def processes_of(self, run: str) -> list[Process]:
        """The processes of a run's agent: those whose command line has the run's id in it."""
        return [process for process in self.processes() if f"sojourn-{run}" in process.command]

    # Inside

    environment: ClassVar[Mapping[str, str]] = {}

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a command as root inside the running target."""
        leader = self.leader
        if not leader:
            raise LabError(f"{self.name} is not running")
        variables = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            **self.environment,
        }
        return [
            *("nsenter", f"--target={leader.pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"),
            *("env", "-i", *(f"{key}={value}" for key, value in variables.items()), *command),
        ]

    def exec(
        self,
        command: Sequence[str],
        *,
        input: str | bytes | None = None,
        check: bool = True,
        timeout: float | None = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root inside the target, not by way of the product: for arranging and checking tests."""
        return run(self.inside(command), input=input, check=check, timeout=timeout)

    def host_vars(self, family: str) -> dict[str, Any]:
        """Its inventory entry."""
        return {
            "ansible_connection": self.connection,
            "ansible_host": self.addresses.as_seen_from_the_lab(family),
            "ansible_user": self.user,
            "ansible_password": self.password(),
        }

    def as_json(self) -> str:
        """What it is, for people and scripts."""
        leader = self.leader
        return json.dumps({"name": self.name, "kind": self.kind, "pid": leader.pid if leader else None})
