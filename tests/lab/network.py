"""The lab's network: one bridge in a namespace of its own, one namespace for each host on it.

The machine's own interfaces are never touched: even the bridge lives in a namespace (`sj-NAME-link`), and every
cable (veth) is made there with its other end put straight into the host's namespace.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from .commands import run
from .errors import LabError
from .namespaces import NETNS, inside

PREFIX = "sj-"
HOST_INTERFACE = "eth0"
BRIDGE = "br0"

# Controller and stranger come first on the link, targets after them.
FIXED_HOSTS = {"controller": 2, "stranger": 3}
FIRST_TARGET = 16


@dataclass(frozen=True)
class Addresses:
    """Where a host of the lab is found on its link."""

    ula: str
    ipv4: str
    link_local: str
    mac: str

    def as_seen_from_the_lab(self, family: str) -> str:
        """The address to put into an inventory; a link-local one carries the controller's interface as its zone."""
        if family == "ipv6":
            return self.ula
        if family == "ipv4":
            return self.ipv4
        if family == "link-local":
            return f"{self.link_local}%{HOST_INTERFACE}"
        raise LabError(f"no such address family: {family} (ipv6, ipv4 or link-local)")


class Network:
    """Names and addresses of one lab's network, and the commands that make and remove it."""

    def __init__(self, lab: str) -> None:
        self.lab = lab
        # Addresses never leave the namespaces, so two labs may share them without harm; they differ all the same,
        # so that a log line tells which lab it came from.
        digest = hashlib.sha256(lab.encode()).digest()
        self.ula_prefix = f"fd73:6a6f:7572:{digest[0]:02x}{digest[1]:02x}"
        self.ipv4_prefix = f"198.{18 + digest[2] % 2}.{digest[3]}"
        self.mac_prefix = f"02:5a:{digest[0]:02x}:{digest[1]:02x}"

    def namespace(self, host: str) -> str:
        """The name of a host's network namespace, as `ip netns` knows it."""
        return f"{PREFIX}{self.lab}-{host}"

    def addresses(self, number: int) -> Addresses:
        """The addresses of the host with this number on the link."""
        mac = f"{self.mac_prefix}:{number >> 8:02x}:{number & 255:02x}"
        octets = [int(part, 16) for part in mac.split(":")]
        octets[0] ^= 2  # the modified EUI-64 that the kernel derives a link-local address from
        words = octets[:3] + [0xFF, 0xFE] + octets[3:]
        link_local = ipaddress.IPv6Address(bytes([0xFE, 0x80, *[0] * 6, *words]))
        ula = ipaddress.IPv6Address(f"{self.ula_prefix}::{number:x}")
        return Addresses(str(ula), f"{self.ipv4_prefix}.{number}", str(link_local), mac)

    def up(self, targets: dict[str, int]) -> None:
        """Make the bridge, then a namespace with one interface for controller, stranger and every target."""
        hosts = {**FIXED_HOSTS, **targets}
        link = self.namespace("link")
        run(["ip", "netns", "add", link])
        inside(link, _settle_new_namespace)
        run(
            ["ip", "-n", link, "-batch", "-"],
            # Snooping would drop neighbour solicitations until the bridge has learnt its multicast groups.
            input=f"link add {BRIDGE} type bridge mcast_snooping 0 stp_state 0 forward_delay 0\nlink set lo up\nlink set {BRIDGE} up\n",
        )
        for host, number in hosts.items():
            self._plug_in(host, self.addresses(number), link)

    def _plug_in(self, host: str, addresses: Addresses, link: str) -> None:
        """A namespace for the host and a cable from it to the bridge."""
        namespace = self.namespace(host)
        run(["ip", "netns", "add", namespace])
        inside(namespace, _settle_new_namespace)
        cable = host[:15]
        run(
            ["ip", "-n", link, "-batch", "-"],
            input=f"link add {cable} type veth peer name {HOST_INTERFACE} address {addresses.mac} netns {namespace}\nlink set {cable} master {BRIDGE} up\n",
        )
        run(
            ["ip", "-n", namespace, "-batch", "-"],
            input=f"link set lo up\nlink set {HOST_INTERFACE} up\n"
            f"address add {addresses.ula}/64 dev {HOST_INTERFACE} nodad\n"
            f"address add {addresses.ipv4}/24 dev {HOST_INTERFACE}\n",
        )

    def down(self) -> None:
        """Remove every namespace of this lab; interfaces and rules inside go with them."""
        for namespace in self.existing():
            run(["ip", "netns", "del", namespace], check=False)
            # A namespace whose bind mount is gone, but whose file stayed, is left by a crash in between.
            (NETNS / namespace).unlink(missing_ok=True)

        if NETNS.is_dir() and not os.listdir(NETNS):
            # `ip netns add` mounts this folder onto itself; without it the machine is as it was before.
            run(["umount", NETNS], check=False)
            with contextlib.suppress(OSError):
                NETNS.rmdir()

    def existing(self) -> list[str]:
        """This lab's namespaces that are there now."""
        known = [self.namespace(host) for host in ("link", *FIXED_HOSTS)]
        try:
            names = os.listdir(NETNS)
        except FileNotFoundError:
            return []
        mine = f"{PREFIX}{self.lab}-"
        # "a" must not claim the namespaces of "a-b": what follows our prefix is one word without a dash.
        return sorted(n for n in names if n in known or (n.startswith(mine) and "-" not in n[len(mine) :]))

    def flush_filters(self, host: str) -> None:
        """Forget the host's packet filter, as switching a machine off does; a namespace outlives its container."""
        namespace = self.namespace(host)
        run(["ip", "netns", "exec", namespace, "nft", "flush", "ruleset"], check=False)
        for tool, known in (("iptables-legacy", "ip_tables_names"), ("ip6tables-legacy", "ip6_tables_names")):
            # To look at the legacy tables is to make them: a host that had none is to have none.
            if run(["ip", "netns", "exec", namespace, "grep", "-q", ".", f"/proc/net/{known}"], check=False).returncode:
                continue
            for words in (["-P", "INPUT", "ACCEPT"], ["-P", "FORWARD", "ACCEPT"], ["-F"], ["-X"]):
                run(["ip", "netns", "exec", namespace, tool, *words], check=False)


def _settle_new_namespace() -> None:
    """No duplicate address detection (a second's wait for each address) and no router discovery."""
    base = Path("/proc/sys/net/ipv6/conf")
    for scope in ("all", "default"):
        for knob, value in (("accept_dad", "0"), ("accept_ra", "0"), ("router_solicitations", "0")):
            (base / scope / knob).write_text(value)


def every_namespace() -> list[str]:
    """The namespaces of all labs on this machine."""
    try:
        return sorted(name for name in os.listdir(NETNS) if name.startswith(PREFIX))
    except FileNotFoundError:
        return []
