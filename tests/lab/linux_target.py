"""A Linux target: a booted Debian whose input is dropped except SSH, by the firewall that the lab chose."""

from __future__ import annotations

import shutil
import uuid
from contextlib import AbstractContextManager
from pathlib import Path

from . import disk
from .commands import run
from .errors import LabError
from .rootfs import RootFileSystem, linux
from .target import Target
from .waiting import wait_for

FIREWALLS = ("nftables", "iptables", "iptables-legacy", "ufw", "firewalld", "none")
_UNITS = {
    "nftables": "nftables.service",
    "iptables": "sojourn-lab-iptables.service",
    "iptables-legacy": "sojourn-lab-iptables.service",
    "ufw": "ufw.service",
    "firewalld": "firewalld.service",
}


class LinuxTarget(Target):
    """Debian bookworm with systemd and sshd."""

    kind = "linux"
    connection = "sojourn.deploy.ssh"
    user = "root"
    port = 22
    accounts = ("root", "deployer", "operator", "visitor")

    def root(self) -> RootFileSystem:
        return linux()

    def furnish(self, root: Path) -> None:
        (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (root / "etc/hostname").write_text(f"{self.name}\n")
        keys = []
        for kind in ("ed25519", "ecdsa"):
            key = root / f"etc/ssh/ssh_host_{kind}_key"
            run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", self.name, "-f", key])
            keys.append(" ".join(key.with_suffix(".pub").read_text().split()[:2]))
        (self.folder / "host_keys").write_text("\n".join(keys) + "\n")
        passwords = "".join(f"{user}:{self.password(user)}\n" for user in self.accounts)
        run(["chroot", root, "chpasswd", "--crypt-method", "SHA512"], input=passwords)
        self._choose_firewall(root, self.lab.settings["firewall"])

    def _choose_firewall(self, root: Path, firewall: str) -> None:
        if firewall not in FIREWALLS:
            raise LabError(f"no such firewall: {firewall} (one of {', '.join(FIREWALLS)})")
        if firewall.startswith("iptables"):
            variant = "legacy" if firewall == "iptables-legacy" else "nft"
            for tool in ("iptables", "ip6tables"):
                for suffix in ("", "-save", "-restore"):
                    link = root / f"etc/alternatives/{tool}{suffix}"
                    link.unlink(missing_ok=True)
                    link.symlink_to(f"/usr/sbin/{tool}-{variant}{suffix}")
        if firewall == "nftables":
            shutil.copy(root / "etc/sojourn-lab/nftables.conf", root / "etc/nftables.conf")
        if firewall == "ufw":
            conf = root / "etc/ufw/ufw.conf"
            conf.write_text(conf.read_text().replace("ENABLED=no", "ENABLED=yes"))
        if firewall in _UNITS:
            run(["chroot", root, "systemctl", "--quiet", "enable", _UNITS[firewall]])

    def known_hosts(self, *addresses: str) -> list[str]:
        """Its host keys under every address it has, or under others that lead to it."""
        names = addresses or [self.addresses.as_seen_from_the_lab(family) for family in ("ipv6", "ipv4", "link-local")]
        keys = (self.folder / "host_keys").read_text().split("\n")
        return [f"{','.join(names)} {key}" for key in keys if key]

    def read_only(self, path: str) -> AbstractContextManager[None]:
        """Have an empty file system that takes no writing at a path; what was there is out of sight."""
        return disk.read_only_place(self, path)

    def event_log(self) -> list[str]:
        return self.exec(["journalctl", "--no-pager", "--quiet", "--identifier=sojourn-agent", "--output=cat"]).stdout.splitlines()

    def answers(self) -> bool:
        return self.greeting(22).startswith(b"SSH-")

    def wait_until_up(self, timeout: float = 180) -> None:
        super().wait_until_up(timeout)
        if self.lab.settings["firewall"] == "firewalld":
            # It is "started" for systemd once it is on the bus, some tenths of a second before its rules are there.
            wait_for(
                "firewalld to have loaded its rules",
                lambda: self.exec(["firewall-cmd", "--state"], check=False).returncode == 0,
                timeout,
            )
