# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP connections to targets over either address family, with errors that tell the cause; knows no protocol above TCP.

Addresses are tried in getaddrinfo's order (RFC 6724), the next one starting when one has failed or not answered for a moment, as
RFC 8305 (Happy Eyeballs) has it: a name with a dead AAAA and a living A connects in a fraction of a second, and the other way round.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import select
import socket
import struct
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

#: Seconds after which a target that acknowledges nothing counts as gone; its agent may take longer for an answer.
SILENCE_SECONDS = 12

#: Seconds that an address has for itself before the next one is tried beside it (RFC 8305, section 5).
STAGGER_SECONDS = 0.25

#: Of struct tcp_info (linux/tcp.h): after eight bytes and fifteen other figures tcpi_rtt in microseconds; after 24 of them and three longer ones
#: tcpi_bytes_received.
_RTT = struct.Struct('=68xI')
_RECEIVED = struct.Struct('=128xQ')

_NO_ROUTE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETDOWN, errno.EHOSTDOWN, errno.ENODEV, errno.EINVAL)


@dataclasses.dataclass(frozen=True)
class Peer:
    """One address of a target, as ``connect`` takes it."""

    family: int
    sockaddr: tuple

    @property
    def address(self) -> str:
        """The numeric address; a link-local one with its zone."""
        host = self.sockaddr[0]
        if self.family == socket.AF_INET6 and self.sockaddr[3] and '%' not in host:
            try:
                return f'{host}%{socket.if_indextoname(self.sockaddr[3])}'
            except OSError:
                return f'{host}%{self.sockaddr[3]}'
        return host

    def with_port(self, port: int) -> Peer:
        """The same address, another port."""
        return Peer(self.family, (self.sockaddr[0], port, *self.sockaddr[2:]))


def resolve(address: str, port: int, family: int = socket.AF_UNSPEC) -> list[Peer]:
    """A name's or literal's addresses in the order to try them, of both families or of one. Raises SD-201."""
    try:
        found = socket.getaddrinfo(address, port, family=family, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        raise SojournError('SD-201', step='looking up the name', address=address, detail=getattr(error, 'strerror', None) or error) from None
    peers: list[Peer] = []
    for family, unused_type, unused_protocol, unused_name, sockaddr in found:
        peer = Peer(family, sockaddr)
        if family in (socket.AF_INET, socket.AF_INET6) and peer not in peers:
            peers.append(peer)
    if not peers:
        raise SojournError('SD-201', step='looking up the name', address=address, detail='it has neither an AAAA nor an A record')
    return peers


def _failure(peer: Peer, error: OSError | None, port: int, service: str, seconds: float, step: str) -> SojournError:
    if error is None or isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return SojournError('SD-204', step=step, port=port, address=peer.address, seconds=f'{seconds:g}', service=service)
    if error.errno == errno.ECONNREFUSED:
        return SojournError('SD-203', step=step, port=port, address=peer.address, service=service)
    if error.errno in _NO_ROUTE:
        return SojournError('SD-202', step=step, address=peer.address, detail=error.strerror or error)
    return SojournError('SD-205', step=step, address=peer.address, detail=error.strerror or error)


#: Of several addresses' failures, the one that tells most is shown.
_TELLING = {'SD-203': 0, 'SD-205': 1, 'SD-204': 2, 'SD-202': 3}


def connect(address: str, port: int, *, timeout: float, service: str, step: str) -> tuple[socket.socket, Peer]:
    """Connects to the first address that answers, within ``timeout`` seconds in all; returns a blocking socket.

    ``service`` and ``step`` are for the error's text. Raises SD-201 to SD-205.
    """
    return connect_any(resolve(address, port), timeout=timeout, service=service, step=step)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What came of one address: ``error`` is None for the one that is connected to."""

    peer: Peer
    seconds: float
    error: SojournError | None


def connect_any(peers: list[Peer], *, timeout: float, service: str, step: str,
                on_attempt: t.Callable[[Attempt], None] = lambda unused_attempt: None) -> tuple[socket.socket, Peer]:
    """As ``connect``, to addresses that are known already; ``on_attempt`` is told of each that has answered or failed."""
    deadline = time.monotonic() + timeout
    begun: dict[Peer, float] = {}
    waiting = list(peers)
    running: dict[int, tuple[socket.socket, Peer]] = {}
    failures: list[SojournError] = []
    poll = select.poll()
    next_start = time.monotonic()

    def fail(peer: Peer, error: OSError | None) -> None:
        failures.append(_failure(peer, error, peer.sockaddr[1], service, timeout, step))
        on_attempt(Attempt(peer, time.monotonic() - begun[peer], failures[-1]))

    try:
        while True:
            now = time.monotonic()
            if waiting and (not running or now >= next_start):
                peer = waiting.pop(0)
                next_start = now + STAGGER_SECONDS
                begun[peer] = now
                try:
                    connection = socket.socket(peer.family, socket.SOCK_STREAM)
                except OSError as error:
                    fail(peer, error)
                    continue
                connection.setblocking(False)
                result = connection.connect_ex(peer.sockaddr)
                if result not in (0, errno.EINPROGRESS):
                    connection.close()
                    fail(peer, OSError(result, os.strerror(result)))
                    continue
                running[connection.fileno()] = connection, peer
                poll.register(connection, select.POLLOUT)
            if not running:
                if waiting:
                    continue
                break
            if now >= deadline:
                for unused_connection, peer in running.values():
                    fail(peer, None)
                break
            until = min(deadline, next_start) if waiting else deadline
            for descriptor, unused_event in poll.poll(max(0.0, until - now) * 1000 + 1):
                connection, peer = running[descriptor]
                result = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                poll.unregister(descriptor)
                del running[descriptor]
                if result == 0:
                    connection.setblocking(True)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    on_attempt(Attempt(peer, time.monotonic() - begun[peer], None))
                    return connection, peer
                connection.close()
                fail(peer, OSError(result, os.strerror(result)))
    finally:
        for connection, unused_peer in running.values():
            connection.close()
    raise min(failures, key=lambda failure: _TELLING.get(failure.code, 9))


def notice_silence(connection: socket.socket, seconds: int = SILENCE_SECONDS) -> None:
    """Has the kernel end a connection whose other end is gone without a word, as after a power cut, whether something is sent or waited for.

    ``seconds``: after how many of silence, at least 6.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        'TCP_KEEPIDLE': seconds // 2, 'TCP_KEEPINTVL': seconds // 6, 'TCP_KEEPCNT': 3, 'TCP_USER_TIMEOUT': seconds * 1000}
    for name, value in options.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def bear_silence(connection: socket.socket) -> None:
    """Takes ``notice_silence`` back: how long that lasts is the kernel's again."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
    if hasattr(socket, 'TCP_USER_TIMEOUT'):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)


def round_trip(connection: socket.socket) -> float | None:
    """Seconds there and back, as the kernel has measured it while it connected (tcp(7), TCP_INFO); None: it does not tell.

    What this process was doing meanwhile does not count.
    """
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT.size)
        return _RTT.unpack(info)[0] / 1e6
    except (OSError, AttributeError, struct.error):
        return None


def received(connection: socket.socket | None) -> int | None:
    """Bytes that have come by a connection so far, its end counting as one (tcp(7), TCP_INFO; Linux 4.1 and newer); None: nobody tells."""
    try:
        info = t.cast(socket.socket, connection).getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.size)
        return int(_RECEIVED.unpack(info)[0])
    except (OSError, AttributeError, struct.error):
        return None


def local_address(connection: socket.socket) -> str:
    """This end's address of a connection, without a zone."""
    return connection.getsockname()[0].partition('%')[0]


def own_address(peer: Peer) -> str:
    """This end's address of a connection to there, without connecting: no packet is sent. Raises SD-202."""
    try:
        with socket.socket(peer.family, socket.SOCK_DGRAM) as probe:
            probe.connect(peer.sockaddr)
            return local_address(probe)
    except OSError as error:
        raise SojournError('SD-202', step='looking for a route', address=peer.address, detail=error.strerror or error) from None


def ipv6_literal_name(address: str) -> str:
    """An IPv6 address as a name that fits into a UNC path: ``fe80--1s4.ipv6-literal.net``; anything else unchanged.

    Windows' own convention, since a colon has another meaning in a path
    (https://learn.microsoft.com/windows/win32/api/ws2tcpip, "IPv6 literal names").
    """
    if ':' not in address:
        return address
    return address.replace(':', '-').replace('%', 's') + '.ipv6-literal.net'
