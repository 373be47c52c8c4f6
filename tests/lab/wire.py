"""Faults of the network: a wire that is cut, one that is slow, connections that are reset, connections that say nothing.

Cutting and slowing happen in the controller's namespace, at its interface: neither side's own packet filter is touched, and
what is cut off is lost on the way, as far as either side can tell, not refused. Neighbour discovery and ARP go on, as
they do where a router stands between the two: otherwise the controller would soon be told "no route to host".
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .commands import run
from .errors import LabError
from .namespaces import connect
from .network import HOST_INTERFACE

if TYPE_CHECKING:
    from .model import Lab
    from .target import Target

# `tbf` would slow the whole interface; classes of `htb` slow one target. A packet's class is its priority, which nft sets.
_SHAPED = "1:"
_WHOLE = f"{_SHAPED}fff"


def _in_controller(lab: Lab, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return run(lab.inside("controller", command), **options)  # type: ignore[arg-type]


def _table(target: Target, purpose: str) -> str:
    return f"sojourn_lab_{purpose}_{target.name}"


@contextlib.contextmanager
def _rules(target: Target, purpose: str, chains: str) -> Iterator[None]:
    """Have these chains in a table of the controller's own while the context lasts."""
    table = _table(target, purpose)
    _in_controller(target.lab, ["nft", "-f", "-"], input=f"create table netdev {table}\ntable netdev {table} {{\n{chains}\n}}\n")
    try:
        yield
    finally:
        # Its namespace has gone already when the lab was taken down meanwhile.
        _in_controller(target.lab, ["nft", "delete", "table", "netdev", table], check=False)


@contextlib.contextmanager
def cut_off(target: Target, port: int | None = None) -> Iterator[None]:
    """Lose whatever is sent between the controller and a target, or one TCP port of it."""
    mac = target.addresses.mac
    chains = ""
    for hook, end, port_end in (("ingress", "saddr", "sport"), ("egress", "daddr", "dport")):
        what = "meta protocol { ip, ip6 }" if port is None else f"tcp {port_end} {port}"
        chains += f"""chain {hook} {{
            type filter hook {hook} device {HOST_INTERFACE} priority 0;
            ether {end} {mac} icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
            ether {end} {mac} {what} drop
        }}\n"""
    with _rules(target, "cut", chains):
        yield


@contextlib.contextmanager
def _shaped(lab: Lab, rate: str, minor: str, default: str) -> Iterator[None]:
    """One class of a rate at the controller's interface; the first one to come makes the queue, the last to go removes it."""
    if not re.fullmatch(r"[0-9.]+[kmg]?(bit|bps)", rate):
        raise LabError(f"a rate is written like 2mbit or 500kbps, not {rate!r}")
    device = ["dev", HOST_INTERFACE]
    made = "htb" not in _in_controller(lab, ["tc", "qdisc", "show", *device]).stdout
    if made:
        _in_controller(lab, ["tc", "qdisc", "add", *device, "root", "handle", _SHAPED, "htb", "default", default])
    elif default != "0":
        raise LabError(f"lab {lab.name} is slowed already")
    try:
        _in_controller(lab, ["tc", "class", "add", *device, "parent", _SHAPED, "classid", minor, "htb", "rate", rate])
        yield
    finally:
        _in_controller(lab, ["tc", "class", "del", *device, "classid", minor], check=False)
        if "class htb" not in _in_controller(lab, ["tc", "class", "show", *device], check=False).stdout:
            _in_controller(lab, ["tc", "qdisc", "del", *device, "root"], check=False)


@contextlib.contextmanager
def slow_lab(lab: Lab, rate: str) -> Iterator[None]:
    """Have the controller send at most so much in all; what it receives is not slowed."""
    with _shaped(lab, rate, _WHOLE, _WHOLE.removeprefix(_SHAPED)):
        yield


@contextlib.contextmanager
def slow_target(target: Target, rate: str) -> Iterator[None]:
    """Have the controller send at most so much to one target."""
    minor = f"{_SHAPED}{target.number:x}"
    chain = f"""chain egress {{
        type filter hook egress device {HOST_INTERFACE} priority 0;
        ether daddr {target.addresses.mac} meta priority set {minor}
    }}"""
    with _shaped(target.lab, rate, minor, "0"), _rules(target, "slow", chain):
        yield


def reset_connections(target: Target, port: int) -> int:
    """Reset every established TCP connection to a port of a target, at both its ends; how many there were."""
    # The kernel aborts the target's socket, and tells the other end by a RST: `ss --kill` lists what it ended.
    command = ["ss", "--no-header", "--numeric", "--tcp", "--kill", "state", "established", f"( sport = :{port} )"]
    done = run(["nsenter", f"--net=/run/netns/{target.namespace}", "--", *command])
    return len(done.stdout.splitlines())


@contextlib.contextmanager
def half_open(lab: Lab, target: Target, port: int, count: int, family: str) -> Iterator[list[socket.socket]]:
    """Have so many connections from the controller to a port of a target on which nothing is ever said."""
    with contextlib.ExitStack() as stack:
        host = target.addresses.as_seen_from_the_lab(family)
        yield [stack.enter_context(connect(lab.network.namespace("controller"), host, port)) for _ in range(count)]
