"""Waiting, in one place: events where the kernel signals, bounded back-off where nothing does."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import TypeVar

from .errors import LabError

Answer = TypeVar("Answer")


def wait_for(
    what: str,
    probe: Callable[[], Answer | None],
    timeout: float,
    first: float = 0.005,
    most: float = 0.2,
) -> Answer:
    """Ask `probe` until it answers something true; the pause doubles from `first` up to `most` seconds.

    For things that nothing announces (a port that begins to answer, a mount that becomes free).
    """
    deadline = time.monotonic() + timeout
    pause = first
    while True:
        answer = probe()
        if answer:
            return answer
        left = deadline - time.monotonic()
        if left <= 0:
            raise LabError(f"gave up after {timeout:.0f} s waiting for {what}")
        time.sleep(min(pause, left))
        pause = min(pause * 2, most)


def wait_for_exit(pid: int, timeout: float) -> bool:
    """True once the process is gone; a pidfd becomes readable when its process ends."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], timeout)[0])
    finally:
        os.close(fd)
