"""TLS over a stream that is no socket of the kernel's, and the connection under it: kept, made anew, never signed in twice in vain."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import channel, network
from ansible_collections.sojourn.deploy.plugins.plugin_utils.credentials import RunCredentials
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from ansible_collections.sojourn.deploy.plugins.plugin_utils.tunnel import TlsSocket, Tunnel, Unreachable
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import NothingThere

CLIENT, AGENT = RunCredentials.make("0123456789ab"), RunCredentials.make("ba9876543210")


class SocketStream:
    """A stream over a socket pair, of which nothing is used that a stream has not."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.closed = False
        self.recv, self.sendall, self.settimeout = end.recv, end.sendall, end.settimeout

    def readable(self) -> bool:
        import select

        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        self.closed = True
        self._end.close()


def agents_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    from ansible_collections.sojourn.deploy.plugins.plugin_utils.credentials import _readable_path

    with _readable_path(AGENT.pem) as path:
        context.load_cert_chain(path)
    return context


@contextlib.contextmanager
def serving(answer: Callable[[ssl.SSLSocket], Any]) -> Iterator[SocketStream]:
    """An agent's end, and what leads to it."""
    near, far = socket.socketpair()

    def serve() -> None:
        with contextlib.suppress(OSError), agents_context().wrap_socket(far, server_side=True) as end:
            answer(end)

    thread = threading.Thread(target=serve)
    thread.start()
    stream = SocketStream(near)
    try:
        yield stream
    finally:
        stream.close()
        thread.join(10)
        assert not thread.is_alive()


def test_bytes_of_any_number_go_both_ways() -> None:
    data = os.urandom((3 << 20) + 17)

    def mirror(end: ssl.SSLSocket) -> None:
        while piece := end.recv(65536):
            end.sendall(piece)

    with serving(mirror) as stream:
        connection = TlsSocket(stream, CLIENT.context(), 10)
        assert connection.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(AGENT.pem.decode().partition("-----BEGIN PRIVATE")[0])
        back = bytearray()
        file = connection.makefile("rb")
        for start in range(0, len(data), 50_000):  # never more under way than the pair holds
            piece = data[start : start + 50_000]
            connection.sendall(piece)
            back += file.read(len(piece))
        assert bytes(back) == data
        assert not connection.readable()
        file.close()
        connection.close()


def test_the_end_is_the_end_whether_announced_or_not() -> None:
    for polite in (True, False):

        def answer(end: ssl.SSLSocket, polite: bool = polite) -> None:
            end.sendall(b"last words")
            if polite:
                with contextlib.suppress(OSError):
                    end.unwrap()

        with serving(answer) as stream:
            connection = TlsSocket(stream, CLIENT.context(), 10)
            assert connection.makefile("rb").read() == b"last words"
            assert connection.readable()  # which tells a pool that it is of no more use


def test_a_wait_ends_in_time_and_can_be_taken_up_again() -> None:
    go = threading.Event()

    def answer(end: ssl.SSLSocket) -> None:
        assert go.wait(10)
        end.sendall(b"late")

    with serving(answer) as stream:
        connection = TlsSocket(stream, CLIENT.context(), 10)
        connection.settimeout(0.05)
        buffer = bytearray(4)
        with pytest.raises(TimeoutError):
            # Two messages of TLS' own may come first.
            connection.recv_into(buffer)
        connection.settimeout(10)
        go.set()
        assert connection.recv_into(buffer) == 4 and bytes(buffer) == b"late"


def test_it_is_closed_with_the_last_of_its_files() -> None:
    with serving(lambda end: end.recv(1)) as stream:
        connection = TlsSocket(stream, CLIENT.context(), 10)
        file = connection.makefile("rb")
        descriptor = connection.fileno()
        connection.close()
        assert not stream.closed
        file.close()
        assert stream.closed
        with pytest.raises(OSError):
            os.fstat(descriptor)


# The connection under it


def target(**options: Any) -> Target:
    return Target.make("ssh", "::1", **options)


class FakeWayIn:
    """What a tunnel wants of a way in."""

    def __init__(self, log: list[str], target: Target) -> None:
        self.log, self.target, self.alive, self.failure = log, target, False, None
        self.streams: Callable[[], Any] = lambda: "stream"

    def connect(self) -> None:
        self.log.append(f"connect {self.target.user}")
        if self.target.user == "refused":
            raise SojournError("SD-301", step="signing in", user="refused", detail="no")
        if self.target.user == "away":
            raise SojournError("SD-202", step="connecting", address="::1", detail="no")
        self.alive = True

    def keep(self) -> None:
        self.log.append("keep")

    def open_stream(self, place: str, port: int, timeout: float) -> Any:
        self.log.append(f"open {place} {port}")
        return self.streams()

    def release(self) -> None:
        self.log.append("release")
        self.alive = False


class Case:
    def __init__(self, *users: str) -> None:
        self.log: list[str] = []
        self.made: list[FakeWayIn] = []
        self.targets = [target(user=user) for user in users]
        self.tunnel = Tunnel("::1", 62286, self.make, lambda: self.targets)

    def make(self, target: Target) -> Any:
        self.made.append(FakeWayIn(self.log, target))
        return self.made[-1]


def test_one_connection_serves_many_streams_and_is_made_anew_when_it_is_lost() -> None:
    case = Case("root")
    assert str(case.tunnel) == "[::1]:62286"
    case.tunnel.open(1)
    case.tunnel.open(1)
    assert case.log == ["connect root", "keep", "open ::1 62286", "open ::1 62286"]
    case.made[0].alive = False
    case.log.clear()
    case.tunnel.open(1)
    assert case.log == ["release", "connect root", "keep", "open ::1 62286"]
    case.log.clear()
    case.tunnel.close()
    case.tunnel.close()
    assert case.log == ["release"]
    with pytest.raises(Unreachable):
        case.tunnel.open(1)
    assert case.log == ["release"]


def test_a_connection_that_was_given_stays_the_givers_when_it_comes_to_nothing() -> None:
    case = Case("root")
    given = FakeWayIn(case.log, case.targets[0])
    given.alive = True
    case.tunnel.take(given)
    case.tunnel.open(1)
    case.tunnel.give_back()
    assert case.log == ["keep", "open ::1 62286"] and given.alive


def test_a_refused_sign_in_is_not_tried_twice_but_other_credentials_are() -> None:
    case = Case("refused", "root")
    case.tunnel.open(1)
    assert case.log[:3] == ["connect refused", "release", "connect root"]
    case.targets = case.targets[:1]
    case.made[-1].alive = False
    for unused in range(3):
        with pytest.raises(SojournError, match="SD-301"):
            case.tunnel.open(1)
    assert case.log.count("connect refused") == 1
    case.targets = [target(user="root")]
    case.tunnel.open(1)


def test_what_is_away_may_come_back_and_who_does_not_listen_is_gone() -> None:
    case = Case("away")
    for unused in range(2):
        with pytest.raises(Unreachable) as caught:
            case.tunnel.open(1)
        assert not caught.value.refused
    assert case.log.count("connect away") == 2 == case.log.count("release")
    case = Case("root")
    case.tunnel.open(1)

    def nobody() -> Any:
        raise NothingThere("no")

    case.made[-1].streams = nobody
    with pytest.raises(Unreachable) as caught:
        case.tunnel.open(1)
    assert caught.value.refused


def test_a_connection_that_says_nothing_any_more_is_made_anew() -> None:
    """Behind a jump host nobody is told that it is dead. One stream that cannot be opened is no sign of that: the host may be busy."""
    case = Case("root")
    case.tunnel.open(1)
    streams = case.made[0].streams

    def silent() -> Any:
        raise SojournError("SD-205", step="opening the tunnel", address="::1", detail="no answer in time")

    for works in (False, True, False):
        case.made[0].streams = streams if works else silent
        with contextlib.nullcontext() if works else pytest.raises(Unreachable):
            case.tunnel.open(1)
        assert case.log.count("release") == 0
    with pytest.raises(Unreachable):
        case.tunnel.open(1)
    assert case.log.count("release") == 1
    case.tunnel.open(1)
    assert len(case.made) == 2 and case.made[1].alive


def test_the_channel_tells_a_stranger_behind_the_tunnel() -> None:
    """No byte is sent to whoever has another certificate."""
    got: list[bytes] = []

    def stranger(end: ssl.SSLSocket) -> None:
        got.append(end.recv(1))

    with serving(stranger) as stream:
        case = Case("root")
        case.tunnel.open(1)
        case.made[-1].streams = lambda: stream
        endpoint = channel.Endpoint(network.Peer(socket.AF_INET6, ("::1", 62286, 0, 0)), hashlib.sha256(b"x").hexdigest(), "1", "h", 5.0, case.tunnel)
        assert endpoint.where == "::1 through the tunnel to [::1]:62286"
        client = channel.Channel(endpoint, CLIENT.context())
        with pytest.raises(SojournError, match=r"\[::1\]:62286 of ::1 is not the agent.*SD-502"):
            client.call("GetInfo", patience=0)
        assert stream.closed
    assert got in ([], [b""])

    def nobody() -> Any:
        raise NothingThere("nobody listens")

    case.made[-1].streams = nobody
    with pytest.raises(SojournError, match=r"through the tunnel to \[::1\]:62286 on ::1: nobody listens.*SD-507"):
        client.call("GetInfo", patience=0)
    client.close()
