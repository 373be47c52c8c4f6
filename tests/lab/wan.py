"""A long way to a target, beside the short one: a wire of its own with a round-trip time and losses, as between continents.

Two interfaces (TUN), one in the controller's network and one in the target's, and a thread that carries each packet from one to the other a while
later, or loses it. `tc netem` would do the same; not every kernel has it.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .commands import run
from .namespaces import inside

if TYPE_CHECKING:
    from .target import Target

INTERFACE = "wan0"
PREFIX = "fd73:6a6f:7572:ffff"
CONTROLLER, TARGET = f"{PREFIX}::1", f"{PREFIX}::2"
MTU = 1500
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
# What a router on the way would hold before it drops what comes.
_QUEUE = 10_000


def _interface(namespace: str, address: str) -> int:
    """Makes one end; its descriptor. It is gone when that is closed."""

    def make() -> int:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI))
        return descriptor

    descriptor = inside(namespace, make)
    net = ["nsenter", f"--net=/run/netns/{namespace}", "--", "ip"]
    run([*net, "address", "add", f"{address}/64", "dev", INTERFACE, "nodad"])
    run([*net, "link", "set", INTERFACE, "up", "mtu", str(MTU)])
    return descriptor


class _Wire:
    """Carries packets between two descriptors."""

    def __init__(self, ends: tuple[int, int], delay: float, loss: float, seed: int) -> None:
        self._ends = ends
        self._delay = delay
        self._loss = loss
        self._random = random.Random(seed)
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._number = 0
        self._stop_reader, self._stop_writer = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="wan", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """What is under way is lost."""
        os.close(self._stop_writer)
        self._thread.join()
        os.close(self._stop_reader)

    def _carry(self) -> None:
        poll = select.poll()
        for descriptor in (*self._ends, self._stop_reader):
            poll.register(descriptor, select.POLLIN)
        while True:
            wait = max(self._under_way[0][0] - time.monotonic(), 0) * 1000 if self._under_way else None
            ready = [descriptor for descriptor, _what in poll.poll(wait)]
            if self._stop_reader in ready:
                return
            for near, far in (self._ends, self._ends[::-1]):
                if near in ready:
                    self._take(near, far)
            while self._under_way and self._under_way[0][0] <= time.monotonic():
                _when, _number, far, packet = heapq.heappop(self._under_way)
                with contextlib.suppress(OSError):  # its queue is full: lost
                    os.write(far, packet)

    def _take(self, near: int, far: int) -> None:
        while True:
            try:
                packet = os.read(near, 65536)
            except OSError:
                return
            if self._random.random() >= self._loss and len(self._under_way) < _QUEUE:
                self._number += 1
                heapq.heappush(self._under_way, (time.monotonic() + self._delay, self._number, far, packet))


def _forget(namespace: str, other: str) -> None:
    """Has the kernel abort every TCP connection with an address."""
    run(["nsenter", f"--net=/run/netns/{namespace}", "--", "ss", "--no-header", "--numeric", "--tcp", "--kill", "dst", f"[{other}]"], check=False)


@contextlib.contextmanager
def long_way(target: Target, round_trip: float, loss: float, seed: int = 1) -> Iterator[str]:
    """Gives an IPv6 address by which the controller reaches a target over such a wire, `round_trip` in seconds, `loss` of every packet either way."""
    with contextlib.ExitStack() as stack:
        ends = []
        for namespace, address in ((target.lab.network.namespace("controller"), CONTROLLER), (target.namespace, TARGET)):
            ends.append(_interface(namespace, address))
            stack.callback(os.close, ends[-1])
        wire = _Wire((ends[0], ends[1]), round_trip / 2, loss, seed)
        stack.callback(wire.stop)
        # Whoever is at its end would not hear that the other has gone.
        stack.callback(_forget, target.namespace, CONTROLLER)
        stack.callback(_forget, target.lab.network.namespace("controller"), TARGET)
        yield TARGET
