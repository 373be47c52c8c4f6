"""What Ansible's own ``ssh`` leaves on the controller, and its end."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from tests.lab.waiting import wait_for


def command_line(pid: int) -> bytes:
    """Of a process, a zero after each word; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def end_shared_connections(sockets: Path) -> None:
    """Ends what shares a connection among the runs of ``ssh``, by the folder of its sockets: it has written its name over its environment."""
    name = f"ssh: {sockets}/".encode()

    def masters() -> list[int]:
        return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if command_line(int(entry.name)).startswith(name)]

    for pid in masters():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_for("ssh's connections to end", lambda: not masters(), timeout=60)
