"""Ports at which nobody answers."""

from __future__ import annotations

import socket

# Bound, so that nobody else gets them while they are to be closed, and not listening.
_kept: list[socket.socket] = []


def closed_port(family: socket.AddressFamily = socket.AF_INET6) -> int:
    """A TCP port of this machine's loopback address that refuses connections."""
    probe = socket.socket(family)
    _kept.append(probe)
    probe.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    return probe.getsockname()[1]
