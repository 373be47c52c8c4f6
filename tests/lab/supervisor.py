"""The process behind one running target: it holds the target's disk and starts its container.

    python -m tests.lab.supervisor LAB TARGET

The disk (a size-limited tmpfs, and the overlay on it) is mounted in mounts of this process alone. Whatever ends
the process, the kernel then unmounts the disk and ends the container: nothing can be left mounted.

Signals: TERM ends the target; USR1 cuts its power and starts it again with the same disk; USR2 does that with a
fresh disk. A reboot from inside keeps the disk; switched off from inside, it waits for one of the signals.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import traceback
from pathlib import Path

from . import cache, machine
from .commands import tool_environment
from .errors import LabError
from .model import Lab
from .namespaces import mount, own_mounts, unmount
from .processes import Process, join_cgroups
from .rootfs import NSPAWN_NOTES
from .target import Target

# What nspawn answers under --keep-unit when the container asked for a reboot (EXIT_FORCE_RESTART).
WANTS_REBOOT = 133


class Supervisor:
    """Runs one target until told to end."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.disk = target.folder / "disk"
        self.root = self.disk / "root"
        self.wake, wake_end = os.pipe()
        os.set_blocking(wake_end, False)
        signal.set_wakeup_fd(wake_end)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda *_: None)  # its number arrives through the wake-up pipe

    def run(self) -> None:
        """Until TERM."""
        with cache.lock(machine.lock_file()):  # another lab's `down` may be removing the group of all
            if not self.target.folder.is_dir():  # or this lab's own `down` was first: then nothing may be made any more
                raise LabError(f"lab {self.target.lab.name} was taken down meanwhile")
            join_cgroups(self.target.lab.name, self.target.name)
        own_mounts()
        Path(NSPAWN_NOTES).mkdir(parents=True, exist_ok=True)
        mount("tmpfs", NSPAWN_NOTES, "tmpfs")
        self.make_disk()
        Process.find(os.getpid()).remember(self.target.folder / "supervisor.pid")
        while True:
            event = self.one_boot()
            if event == 0:  # switched off from inside: stays so until it is given power again
                event = os.read(self.wake, 1)[0]
            self.target.lab.network.flush_filters(self.target.name)
            if event == signal.SIGUSR2:
                unmount(self.root)
                unmount(self.disk)
                self.make_disk()
            elif event not in (signal.SIGUSR1, WANTS_REBOOT):
                return

    def make_disk(self) -> None:
        """A fresh, size-limited disk on top of the cached root."""
        self.disk.mkdir(exist_ok=True)
        mount("tmpfs", self.disk, "tmpfs", options=f"size={self.target.disk},mode=0755")
        upper, work = self.disk / "upper", self.disk / "work"
        for path in (upper, work, self.root):
            path.mkdir()
        lower = ":".join(map(str, self.target.layers))
        mount("overlay", self.root, "overlay", options=f"lowerdir={lower},upperdir={upper},workdir={work}")
        self.target.furnish(self.root)

    def one_boot(self) -> int:
        """Start the container; the signal that ended it, or nspawn's exit code."""
        target = self.target
        with open(target.folder / "console.log", "ab") as log:
            machine = subprocess.Popen(
                [
                    # The container ends with this process, whatever ends it.
                    *("setpriv", "--pdeathsig", "KILL", "--"),
                    *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--link-journal=no"),
                    *("--resolv-conf=off", "--timezone=off", "--capability=CAP_NET_ADMIN,CAP_NET_RAW"),
                    *target.container_options,
                    f"--directory={self.root}",
                    f"--machine={target.lab.name}-{target.name}",
                    f"--hostname={target.name}",
                    f"--network-namespace-path=/run/netns/{target.namespace}",
                ],
                env=tool_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        known = Process.find(machine.pid)
        if known:
            known.remember(target.folder / "machine.pid")
        ended = os.pidfd_open(machine.pid)
        try:
            while True:
                ready, _, _ = select.select([ended, self.wake], [], [])
                if self.wake in ready:
                    number = os.read(self.wake, 1)[0]
                    self.cut_power(machine)
                    return number
                if ended in ready:
                    return machine.wait()
        finally:
            os.close(ended)

    def cut_power(self, machine: subprocess.Popen[bytes]) -> None:
        """End process 1 of the container, and with it, by the kernel, everything inside."""
        leader = self.target.leader
        if leader:
            leader.end()
        machine.kill()
        machine.wait()


def main() -> int:
    """Run the target named on the command line."""
    lab, name = sys.argv[1:]
    target = Lab(lab).targets[name]
    try:
        Supervisor(target).run()
    except Exception as error:  # whatever it is, `up` is to say it
        traceback.print_exc()
        said = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(FileNotFoundError):  # the lab was taken down meanwhile
            (target.folder / "failed").write_text(f"its supervisor failed: {said}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
