"""Network namespaces from Python: threads that step into one, sockets that stay in it."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_REC, MS_PRIVATE, MS_BIND = 0x4000, 0x40000, 0x1000
NETNS = Path("/run/netns")

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def enter_network(name: str) -> None:
    """Move the calling thread (a whole process, when it has one thread) into the named network namespace."""
    with open(NETNS / name) as namespace:
        _checked(_libc.setns(namespace.fileno(), CLONE_NEWNET), f"setns {name}")


def own_mounts() -> None:
    """Give the calling process mounts of its own: what it mounts vanishes with it, whatever ends it."""
    _checked(_libc.unshare(CLONE_NEWNS), "unshare")
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def mount(source: str | Path, at: str | Path, kind: str | None, flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    _checked(
        _libc.mount(str(source).encode(), str(at).encode(), kind.encode() if kind else None, flags, options.encode() or None),
        f"mount {at}",
    )


def unmount(at: str | Path) -> None:
    """umount2(2), lazily: used only inside mounts of one's own."""
    _checked(_libc.umount2(str(at).encode(), 2), f"umount {at}")


def inside(name: str, work: Callable[[], Result]) -> Result:
    """Run `work` in the named network namespace, in a thread of its own: the caller stays where it is."""
    outcome: list[Result] = []
    trouble: list[BaseException] = []

    def body() -> None:
        try:
            enter_network(name)
            outcome.append(work())
        except BaseException as error:  # raised again in the caller's thread
            trouble.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join()
    if trouble:
        raise trouble[0]
    return outcome[0]


def connect(name: str, host: str, port: int, timeout: float = 2.0) -> socket.socket:
    """A TCP connection made from the named network namespace; the socket may be used from anywhere."""
    return inside(name, lambda: socket.create_connection((host, port), timeout=timeout))
