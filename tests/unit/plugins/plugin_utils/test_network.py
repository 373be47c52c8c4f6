"""Connecting: both families, several addresses, and errors that tell the cause."""

from __future__ import annotations

import socket
import time

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import network
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from tests.ports import closed_port


def peer(address: str, port: int) -> network.Peer:
    return network.resolve(address, port)[0]


def deaf(address: str) -> tuple[socket.socket, int]:
    """A port that neither takes nor refuses: its queue is full."""
    server = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET, backlog=0)
    port = server.getsockname()[1]
    held = []
    for unused in range(4):
        filler = socket.socket(server.family)
        filler.setblocking(False)
        filler.connect_ex((address, port))
        held.append(filler)
    _HELD.extend(held)
    return server, port


_HELD: list[socket.socket] = []


def connect(peers: list[network.Peer], timeout: float = 5.0) -> network.Peer:
    connection, reached = network.connect_any(peers, timeout=timeout, service="SSH", step="connecting")
    connection.close()
    return reached


@pytest.mark.parametrize("address", ["::1", "127.0.0.1"])
def test_connects_over_both_families(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        connection, reached = network.connect(address, server.getsockname()[1], timeout=5, service="SSH", step="connecting")
        with connection:
            assert reached.address == network.local_address(connection) == address
            assert connection.getblocking()


@pytest.mark.alone
def test_refused_in_no_time() -> None:
    begin = time.monotonic()
    with pytest.raises(SojournError, match=r"refuses connections. \(SD-203\)"):
        connect([peer("::1", closed_port(socket.AF_INET6))], timeout=30)
    assert time.monotonic() - begin < 10


@pytest.mark.alone
def test_no_answer_within_the_timeout() -> None:
    server, port = deaf("::1")
    with server:
        begin = time.monotonic()
        with pytest.raises(SojournError, match=r"did not answer within 0.5 s. \(SD-204\)"):
            connect([peer("::1", port)], timeout=0.5)
        assert 0.4 < time.monotonic() - begin < 10


@pytest.mark.alone
@pytest.mark.parametrize("dead_first", [True, False])
def test_dual_stack_with_one_side_dead(dead_first: bool) -> None:
    # As with a name that has an AAAA and an A record, one of which leads nowhere
    with socket.create_server(("127.0.0.1", 0)) as living:
        server, port = deaf("::1")
        with server:
            dead, alive = peer("::1", port), peer("127.0.0.1", living.getsockname()[1])
            begin = time.monotonic()
            assert connect([dead, alive] if dead_first else [alive, dead]) == alive
            assert time.monotonic() - begin < 4
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as living:
        refused, alive = peer("127.0.0.1", closed_port(socket.AF_INET)), peer("::1", living.getsockname()[1])
        assert connect([refused, alive]) == alive


def test_of_several_failures_the_most_telling_is_shown() -> None:
    server, port = deaf("::1")
    with server, pytest.raises(SojournError) as caught:
        connect([peer("::1", port), peer("127.0.0.1", closed_port(socket.AF_INET))], timeout=0.7)
    assert caught.value.code == "SD-203"


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(SojournError, match=r"was not found.*\(SD-201\)"):
        network.resolve("no-such-name.invalid", 22)


def test_no_route(monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    monkeypatch.setattr(socket.socket, "connect_ex", lambda *unused: errno.ENETUNREACH)
    with pytest.raises(SojournError, match=r"There is no route to ::1: Network is unreachable. \(SD-202\)"):
        connect([peer("::1", 1)])


def test_unc_names() -> None:
    assert network.ipv6_literal_name("fd73::1") == "fd73--1.ipv6-literal.net"
    assert network.ipv6_literal_name("fe80::1%eth0") == "fe80--1seth0.ipv6-literal.net"
    assert network.ipv6_literal_name("192.0.2.7") == "192.0.2.7"
    assert network.ipv6_literal_name("web1") == "web1"


def test_how_far_an_address_is() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server, socket.create_connection(server.getsockname()[:2]) as connection:
        far = network.round_trip(connection)
        assert far is not None and 0 < far < 1
    with socket.socketpair()[0] as neither:
        assert network.round_trip(neither) is None


def test_what_has_come_by_a_connection() -> None:
    """Also when it has ended: that is when somebody wants to know."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener, socket.create_connection(listener.getsockname()[:2]) as ours:
        theirs = listener.accept()[0]
        assert network.received(ours) == 0
        theirs.sendall(b"x" * 1000)
        assert len(ours.recv(1000, socket.MSG_WAITALL)) == 1000 and network.received(ours) == 1000
        theirs.close()
        assert ours.recv(2000) == b"" and network.received(ours) == 1001 and network.received(None) is None
    for end in socket.socketpair():
        assert network.received(end) is None
        end.close()
