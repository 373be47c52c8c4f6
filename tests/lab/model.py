"""A lab: some targets on a link, a controller, a stranger, and what is known of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from . import cache, machine, rootfs, wire
from .commands import tool_environment
from .domain_controller import DomainController
from .errors import LabError
from .linux_target import FIREWALLS, LinuxTarget
from .network import FIRST_TARGET, FIXED_HOSTS, Network, every_namespace
from .processes import Process, ancestors, cgroups, in_networks, remove_cgroups, with_arguments
from .programs import windows_programs
from .snapshot import Snapshot, take
from .target import Target
from .windows_target import WindowsTarget

STATE = Path("/run/sojourn-lab")


class Lab:
    """One lab by its name. Nothing is kept in the object that isn't in `/run/sojourn-lab/NAME`."""

    def __init__(self, name: str = "default") -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]{0,15}", name):
            raise LabError(f"a lab's name is up to 16 small letters and digits, not {name!r}")
        self.name = name
        self.folder = STATE / name
        self.network = Network(name)

    @classmethod
    def all(cls) -> list[Lab]:
        """Every lab of which anything is there."""
        names = {path.name for path in STATE.iterdir()} if STATE.is_dir() else set()
        names |= {name.split("-")[1] for name in every_namespace()}
        names |= {path.name for root in cgroups() if root.is_dir() for path in root.iterdir() if path.is_dir()}
        return [cls(name) for name in sorted(names) if re.fullmatch(r"[a-z][a-z0-9]{0,15}", name)]

    # What is known of it

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What it was brought up with."""
        try:
            return json.loads((self.folder / "lab.json").read_text())
        except FileNotFoundError:
            raise LabError(f"there is no lab {self.name!r}; `lab.py up --name {self.name}` makes it") from None

    @cached_property
    def credentials(self) -> dict[str, dict[str, str]]:
        """Passwords by target and account."""
        return json.loads((self.folder / "credentials.json").read_text())

    @cached_property
    def targets(self) -> dict[str, Target]:
        """Its targets by name: linux1, linux2, windows1 ..."""
        kinds = [LinuxTarget] * self.settings["linux"] + [WindowsTarget] * self.settings["windows"]
        found: dict[str, Target] = {}
        for index, kind in enumerate(kinds):
            number = 1 + sum(target.kind == kind.kind for target in found.values())
            found[f"{kind.kind}{number}"] = kind(self, f"{kind.kind}{number}", FIRST_TARGET + index)
        if self.settings.get("domain"):
            found[DomainController.host_name] = DomainController(self, DomainController.host_name, FIRST_TARGET + len(kinds))
        return found

    @property
    def domain_controller(self) -> DomainController | None:
        """The domain controller of a lab that has a domain."""
        found = self.targets.get(DomainController.host_name)
        return found if isinstance(found, DomainController) else None

    def target(self, name: str) -> Target:
        """One target, or an error that names those there are."""
        try:
            return self.targets[name]
        except KeyError:
            raise LabError(f"no target {name!r}; this lab has {', '.join(self.targets)}") from None

    @property
    def known_hosts(self) -> Path:
        """The SSH host keys of its Linux targets, as OpenSSH and paramiko read them."""
        return self.folder / "known_hosts"

    @property
    def names(self) -> Path:
        """The targets' names, as /etc/hosts has them."""
        return self.folder / "hosts"

    # Up and down

    def up(self, linux: int = 1, windows: int = 1, firewall: str = "nftables", domain: bool = False) -> Lab:
        """Bring it up; returns when every target answers. What was half up after an error is taken down again.

        With `domain` there is a domain controller too, and the Windows targets are members of its domain.
        """
        machine.require()
        if domain:
            machine.install_missing(machine.DOMAIN_TOOLS)
        if firewall not in FIREWALLS:
            raise LabError(f"no such firewall: {firewall} (one of {', '.join(FIREWALLS)})")
        if linux + windows > 180:
            raise LabError("at most 180 targets fit on the lab's link")
        if self.folder.exists() or self.network.existing():
            raise LabError(f"lab {self.name!r} is there already; `lab.py down --name {self.name}` removes it")
        prepare(linux=linux > 0, windows=windows > 0, domain=domain)
        try:
            with cache.lock(machine.lock_file()):  # another lab's `down` may be removing the folder of all
                self.folder.mkdir(parents=True, mode=0o700)
            (self.folder / "lab.json").write_text(json.dumps({"linux": linux, "windows": windows, "firewall": firewall, "domain": domain}))
            secret = self.folder / "credentials.json"
            secret.touch(mode=0o600)
            secret.write_text(json.dumps({name: target.new_passwords() for name, target in self.targets.items()}))
            with cache.lock(machine.lock_file()):
                self.network.up({name: target.number for name, target in self.targets.items()})
            if controller := self.domain_controller:  # the others join its domain before they boot
                controller.start()
                controller.wait_until_up()
            for target in self.targets.values():
                if target is not controller:
                    target.start()
            with ThreadPoolExecutor(max_workers=16) as pool:
                list(pool.map(lambda target: target.wait_until_up(), self.targets.values()))
            self.write_known_hosts()
            self._write_names()
        except BaseException:
            if not os.environ.get("SOJOURN_LAB_KEEP_FAILED"):
                self.down()
            raise
        return self

    def write_known_hosts(self) -> None:
        """Gather the host keys that the Linux targets were given."""
        lines = [line for target in self.targets.values() if isinstance(target, LinuxTarget) for line in target.known_hosts()]
        self.known_hosts.write_text("".join(f"{line}\n" for line in lines))

    def _write_names(self) -> None:
        """A hosts file for `enter --names`: each target under names of one family, of both, and with one family dead."""
        nobody = self.network.addresses(250)
        lines = ["127.0.0.1 localhost", "::1 localhost"]
        for name, target in self.targets.items():
            here = target.addresses
            lines += [
                f"{here.ula} {name}.lab {name}-v6.lab {name}-dead-v4.lab",
                f"{here.ipv4} {name}.lab {name}-v4.lab {name}-dead-v6.lab",
                f"{nobody.ula} {name}-dead-v6.lab",
                f"{nobody.ipv4} {name}-dead-v4.lab",
            ]
        self.names.write_text("\n".join(lines) + "\n")

    def down(self) -> None:
        """Take everything of it away, from whatever state it is in."""
        spared = ancestors()
        supervisors = [process for path in (self.folder / "targets").glob("*/supervisor.pid") if (process := Process.remembered(path))]
        # One that was started a moment ago has not noted itself yet.
        supervisors += [p for p in with_arguments("-m", "tests.lab.supervisor", self.name) if p not in supervisors]
        for process in supervisors:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        for process in supervisors:
            process.end()
        for process in in_networks(self.network.existing()):
            if process.pid not in spared:
                process.end()
        with cache.lock(machine.lock_file()):
            remove_cgroups(self.name)
            self.network.down()
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                STATE.rmdir()  # only when it is empty: this was the last lab
                for path in (Path(rootfs.NSPAWN_NOTES), Path(rootfs.NSPAWN_NOTES).parent):
                    path.rmdir()
        for cached in ("settings", "credentials", "targets"):
            self.__dict__.pop(cached, None)

    # Using it

    def inside(self, host: str, command: Sequence[str], names: bool = False) -> list[str]:
        """The command line that runs a command on this machine's files, but in a host's network.

        With `names`, /etc/hosts is the lab's for the command alone; that takes mounts of its own, so such a command
        can't bring up a lab itself.
        """
        if host not in FIXED_HOSTS:
            raise LabError(f"no such host: {host} (one of {', '.join(FIXED_HOSTS)}); for a target use exec")
        enter = ["nsenter", f"--net=/run/netns/{self.network.namespace(host)}", "--"]
        if names:
            script = f'mount --bind {self.names} /etc/hosts && exec "$@"'
            enter += ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
        return [*enter, *command]

    def run(self, command: Sequence[str], *, host: str = "controller", **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the controller's (or the stranger's) network and give back its output as text."""
        options = {"text": True, "capture_output": True, "env": tool_environment(), **options}
        return subprocess.run(self.inside(host, command), check=options.pop("check", False), **options)

    def exec(self, target: str, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command as root inside a target."""
        return self.target(target).exec(command, **options)

    def slow(self, rate: str) -> contextlib.AbstractContextManager[None]:
        """Have the controller send at most so much in all: "2mbit", "500kbps" (bytes)."""
        return wire.slow_lab(self, rate)

    def half_open(self, target: str, port: int, count: int = 1, family: str = "ipv6") -> contextlib.AbstractContextManager[list[socket.socket]]:
        """Hold so many connections from the controller to a port of a target, on which nothing is ever said."""
        return self.target(target).half_open(port, count, family)

    def snapshot(self, target: str, settle: float = 8.0) -> Snapshot:
        """What is on a target, for `compare`."""
        return take(self.target(target), settle)


def prepare(linux: bool = True, windows: bool = True, domain: bool = False) -> None:
    """Have every root file system that is asked for in the cache."""
    jobs = []
    with ThreadPoolExecutor() as pool:
        if linux:
            jobs.append(pool.submit(rootfs.linux().ensure))
        if domain:
            jobs.append(pool.submit(lambda: rootfs.domain(windows_programs()).ensure()))
        elif windows:
            jobs.append(pool.submit(lambda: rootfs.windows(windows_programs()).ensure()))
        for job in jobs:
            job.result()


def leftovers() -> list[str]:
    """What labs left on this machine: nothing, once each has been taken down. The cache doesn't count."""
    found = [f"network namespace {name}" for name in every_namespace()]
    found += [f"process {p.pid} in a lab's network: {p.command}" for p in in_networks(every_namespace())]
    found += [f"supervisor {p.pid}: {p.command}" for p in with_arguments("-m", "tests.lab.supervisor")]
    with open("/proc/self/mountinfo") as table:
        places = [line.split()[4] for line in table]
    found += [f"mount {place}" for place in places if place.startswith((f"{STATE}/", str(cache.folder())))]
    interfaces = [path.name for path in Path("/sys/class/net").iterdir()]
    found += [f"interface {name}" for name in interfaces if re.fullmatch(r"(linux|windows|dc)\d+|controller|stranger", name)]
    found += [f"control group {path}" for group in cgroups() for path in [group, *group.glob("*")] if path.is_dir()]
    found += [f"folder {STATE}"] if STATE.exists() else []
    return found
