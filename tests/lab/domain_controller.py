"""A domain controller: Samba's real one, with the Kerberos KDC, LDAP and DNS of an Active Directory domain, over IPv6 alone."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from .commands import run
from .programs import windows_programs
from .rootfs import Addition, domain
from .target import Target

REALM = "LAB.TEST"
DOMAIN = "LAB"

# samba-tool takes the password as an argument only: here its arguments stay inside one process, where `ps` doesn't see them.
_PROVISION = """
import sys
from samba.netcmd.main import samba_tool
sys.exit(samba_tool("domain", "provision", *sys.argv[1:], "--adminpass=" + sys.stdin.readline().strip()))
"""


class DomainController(Target):
    """The one of the domain LAB, whose realm is LAB.TEST."""

    kind = "domain"
    connection = ""
    user = "Administrator"
    port = 88
    accounts = ("Administrator",)
    host_name = "dc1"

    def root(self) -> Addition:
        return domain(windows_programs())

    def furnish(self, root: Path) -> None:
        (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (root / "etc/hostname").write_text(f"{self.name}\n")
        self._point_to_this(root, self)
        settings = root / "etc/samba/smb.conf"
        settings.unlink()  # the Windows target's, as is most of this root; provisioning writes another
        words = [
            *(f"--realm={REALM}", f"--domain={DOMAIN}", f"--host-name={self.name}", "--server-role=dc", "--dns-backend=SAMBA_INTERNAL"),
            # 127.0.0.1 is how to say that it has no IPv4 address.
            *(f"--host-ip6={self.addresses.ula}", "--host-ip=127.0.0.1"),
        ]
        run(["chroot", root, "python3", "-c", _PROVISION, *words], input=f"{self.password()}\n")
        only_ipv6 = f"[global]\n\tinterfaces = ::1 {self.addresses.ula}\n\tbind interfaces only = yes\n"
        # Provisioning has taken the name server to forward to from resolv.conf: itself.
        text = re.sub(r"(?m)^\s*dns forwarder = .*\n", "", settings.read_text())
        settings.write_text(text.replace("[global]\n", only_ipv6, 1))
        systemctl = ["chroot", root, "systemctl", "--quiet"]
        run([*systemctl, "disable", "smbd.service", "winbind.service", "nftables.service", "sojourn-lab-windows.service"])
        run([*systemctl, "enable", "samba-ad-dc.service"])

    def _point_to_this(self, root: Path, host: Target) -> None:
        """Tell a host of the domain its own full name, and where to ask for others'."""
        realm = REALM.lower()
        (root / "etc/hosts").write_text(f"::1 localhost\n{host.addresses.ula} {host.name}.{realm} {host.name}\n")
        (root / "etc/resolv.conf").write_text(f"search {realm}\nnameserver {self.addresses.ula}\n")
        (root / "run/samba").mkdir(exist_ok=True)  # otherwise made at boot

    def join(self, root: Path, host: Target) -> None:
        """Make a host that has yet to boot a member of the domain."""
        self._point_to_this(root, host)
        command = ["chroot", root, "env", "PASSWD_FD=0", "net", "ads", "join", f"--user={self.user}", "--no-dns-updates"]
        run(["nsenter", f"--net=/run/netns/{host.namespace}", *command], input=f"{self.password()}\n")

    def event_log(self) -> list[str]:
        return []  # no agent is ever put on it

    def answers(self) -> bool:
        # Kerberos, and LDAP, which `net ads join` asks.
        return self.can_connect(88) and self.can_connect(389)
