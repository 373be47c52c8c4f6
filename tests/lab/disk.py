"""Faults of a target's disk: one that is full, one that can't be written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import LabError
from .waiting import wait_for

if TYPE_CHECKING:
    from .target import Target

_FILLER = ".sojourn-lab-filler"


@contextlib.contextmanager
def filled(target: Target, leave_bytes: int, at: str | None) -> Iterator[None]:
    """Leave so many bytes free on the disk, or on the file system that is mounted at a place of its own."""
    supervisor, leader = target.supervisor, target.leader
    if not supervisor or not leader:
        raise LabError(f"{target.name} is not running")
    # Beside the overlay, not in it: what fills the disk is no file of the target's.
    folder = Path(f"/proc/{leader.pid}/root{at}") if at else Path(f"/proc/{supervisor.pid}/root{target.folder}/disk")
    if at and not folder.is_mount():
        raise LabError(f"nothing is mounted at {at} in {target.name}; what is not is on the disk")
    filler = folder / _FILLER
    with open(filler, "xb") as file:
        try:
            info = os.fstatvfs(file.fileno())
            # A page is the least that tmpfs gives and takes.
            size = info.f_bavail * info.f_frsize - -(-leave_bytes // info.f_frsize) * info.f_frsize
            if size < 0:
                raise LabError(f"less than {leave_bytes} bytes are free on {target.name}")
            if size:
                os.posix_fallocate(file.fileno(), 0, size)
            yield
        finally:
            os.ftruncate(file.fileno(), 0)  # by what is open: the way to it is gone when the target was restarted
            filler.unlink(missing_ok=True)


@contextlib.contextmanager
def read_only_place(target: Target, path: str) -> Iterator[None]:
    """Have an empty file system that takes no writing at a place of a Linux target."""
    made = target.exec(["test", "-d", path], check=False).returncode != 0
    if made:
        target.exec(["mkdir", path])
    try:
        target.exec(["mount", "-t", "tmpfs", "-o", "ro,mode=1777", "tmpfs", path])
        try:
            yield
        finally:
            unmount(target, path)
    finally:
        if made and target.leader:
            target.exec(["rmdir", path], check=False)


def unmount(target: Target, *places: str) -> None:
    """Unmount what a lever mounted; a target that was restarted meanwhile has it no more."""
    if not target.leader:
        return
    target.exec(["sh", "-c", 'for place; do umount --lazy "$place"; done', "sh", *places], check=False)
    # systemd makes a unit of every mount, and takes some time to see that it has gone. It tells nobody.
    script = 'systemctl is-active --quiet $(systemd-escape --path --suffix=mount -- "$@")'
    ask = ["sh", "-c", script, "sh", *places]
    wait_for("systemd to see that something was unmounted", lambda: target.exec(ask, check=False).returncode != 0, 60)
