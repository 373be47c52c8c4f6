"""A Windows target: Samba's real SMB server in front of Wine's real service control manager."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

import spnego

from . import clock, windows_faults
from .commands import run
from .domain_controller import DOMAIN, REALM
from .errors import LabError
from .processes import Process
from .programs import windows_programs
from .rootfs import HERE, Addition, RootFileSystem, domain, windows
from .target import Target
from .waiting import wait_for

# What makes the recipe's SMB server a member of the domain.
_MEMBER = f"""security = ads
realm = {REALM}
idmap config * : backend = tdb
idmap config * : range = 100000-199999
"""

WINRM_PORTS = (5985, 5986)


class WindowsTarget(Target):
    """ADMIN$ and C$ of a Wine prefix over SMB 3.1.1, and its SCM behind the pipe svcctl."""

    kind = "windows"
    connection = "sojourn.deploy.smb"
    user = "Administrator"
    port = 445
    accounts = ("Administrator", "operator", "reader")
    # To notice which programs run: see inuse.py in its files.
    container_options = ("--system-call-filter=fanotify_init fanotify_mark",)
    environment: ClassVar[Mapping[str, str]] = dict(
        line.split("=", 1) for line in (HERE / "files/windows/etc/sojourn-lab/environment").read_text().splitlines()
    )

    def root(self) -> RootFileSystem | Addition:
        return (domain if self.lab.domain_controller else windows)(windows_programs())

    def furnish(self, root: Path) -> None:
        (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (root / "etc/hostname").write_text(f"{self.name}\n")
        (root / "etc/samba/netbios.conf").write_text(f"netbios name = {self.name.upper()}\n")
        for user in self.accounts:
            # smbpasswd -s reads the password twice from its standard input.
            run(["chroot", root, "smbpasswd", "-s", "-a", user], input=f"{self.password(user)}\n" * 2)
        self._furnish_winrm(root)
        if controller := self.lab.domain_controller:
            self._make_member(root)
            controller.join(root, self)

    def _furnish_winrm(self, root: Path) -> None:
        """Accounts and a certificate of its own for WinRM, and pyspnego, which Debian has not."""
        shutil.copytree(Path(spnego.__file__).parent, root / "opt/sojourn-lab/python/spnego", ignore=shutil.ignore_patterns("__pycache__"))
        # Now: else the first sign-in leaves compiled files, which a look at what is left takes for somebody's.
        run(["chroot", root, "python3", "-m", "compileall", "-q", "/opt/sojourn-lab"])
        settings = root / "etc/sojourn-lab/winrm"
        settings.mkdir(mode=0o700)
        accounts = settings / "accounts"
        accounts.touch(mode=0o600)
        accounts.write_text("".join(f"{name}:{user}:{self.password(user)}\n" for user in self.accounts for name in ("", self.name.upper())))
        here = self.addresses
        names = f"subjectAltName=DNS:{self.name}.lab,IP:{here.ula},IP:{here.ipv4}"
        key = ["-newkey", "rsa:2048", "-noenc", "-sha256", "-days", "3650", "-keyout", settings / "key.pem", "-out", settings / "certificate.pem"]
        run(["openssl", "req", "-x509", *key, "-subj", f"/CN={self.name}", "-addext", names])
        shutil.copy(settings / "certificate.pem", self.winrm_certificate)

    @property
    def winrm_certificate(self) -> Path:
        """What WinRM over HTTPS shows; signed by nobody but itself, as on most hosts that have one."""
        return self.folder / "winrm.pem"

    def _make_member(self, root: Path) -> None:
        """Settings of a member server. The domain's Administrator is an administrator of it, beside its own."""
        with open(root / "etc/samba/netbios.conf", "a") as included:
            included.write(_MEMBER)
        settings = root / "etc/samba/smb.conf"
        text = settings.read_text().replace("standalone server", "member server").replace("WORKGROUP", DOMAIN)
        valid = " ".join([rf"{DOMAIN}\Administrator", *(rf"{self.name.upper()}\{user}" for user in ("Administrator", "operator"))])
        settings.write_text(text.replace("valid users = Administrator operator", f"valid users = {valid}"))
        names = root / "etc/nsswitch.conf"
        names.write_text(re.sub(r"(?m)^(passwd|group):.*", r"\1: files winbind", names.read_text()))
        run(["chroot", root, "systemctl", "--quiet", "disable", "samba-ad-dc.service"])
        run(["chroot", root, "systemctl", "--quiet", "enable", "winbind.service"])

    def answers(self) -> bool:
        # smbd is started only after the bridge has reached Wine's services.exe: see sojourn-lab-windows.service.
        return self.can_connect() or self.can_connect(WINRM_PORTS[0])

    @contextlib.contextmanager
    def winrm_only(self) -> Iterator[None]:
        """Have WinRM (5985, 5986) answer in the place of file sharing, whose port is closed; a restart changes nothing about that."""
        ports = ", ".join(map(str, WINRM_PORTS))
        self._let_in(f"{{ {ports} }}")
        self.exec(["systemctl", "--quiet", "enable", "--now", "sojourn-lab-winrm.service"])
        try:
            yield
        finally:
            self.exec(["systemctl", "--quiet", "disable", "--now", "sojourn-lab-winrm.service"])
            self._let_in(str(self.port))

    def _let_in(self, ports: str) -> None:
        """Have the firewall let in these beside the rules that are stored; those are gone until they change, or the target restarts."""
        self.exec(["sed", "-i", f"s/tcp dport .* accept/tcp dport {ports} accept/", "/etc/nftables.conf"])
        self.exec(["nft", "-f", "/etc/nftables.conf"])

    def jump_clock(self, seconds: float, *processes: Process) -> AbstractContextManager[None]:
        """Have the wall clock of Windows differ by so much: for each program that reads it where the wineserver writes it, as Go's do.

        Programs that ask Wine instead see it if they are among these processes; none named: if they run by now.
        """
        found = list(self.processes())
        server = [process for process in found if process.name.startswith("wineserver")]
        if not server:
            raise LabError(f"no wineserver runs on {self.name}")
        return clock.jumped([*server, *(processes or (process for process in found if process.is_windows))], seconds)

    def write_registry(self, timeout: float = 180) -> None:
        """Return once Wine has written to the disk what is in its registry, as it does every 30 s; Windows does it sooner, or when told to.

        Before `cut`, which otherwise takes back what was registered, or deregistered, shortly before.
        """
        mark = secrets.token_hex(8)
        self.exec(["wine", "reg", "add", r"HKLM\Software\sojourn-lab", "/v", "Written", "/d", mark, "/f"])
        wait_for("Wine to write its registry", lambda: self.exec(["grep", "-q", mark, "/srv/windows/system.reg"], check=False).returncode == 0, timeout)

    def hold_service(self, name: str) -> AbstractContextManager[None]:
        """Have a Windows program keep a handle to a service: deleted, it stays, marked for deletion, until the context ends."""
        return windows_faults.held(self, "service", name)

    @contextlib.contextmanager
    def lock_file(self, path: str, over_smb: bool = True) -> Iterator[None]:
        r"""Have a file, C:\folder\file, open without sharing it, so that no Windows program can delete it, nor anyone over SMB."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(windows_faults.held(self, "file", path))
            if over_smb:
                stack.enter_context(windows_faults.open_over_smb(self, path))
            yield

    def read_only(self) -> AbstractContextManager[None]:
        """Have ADMIN$ take no writing, for who connects to it from now on."""
        return windows_faults.read_only_admin(self)

    def event_log(self) -> list[str]:
        """Every event that a program of the session (a service, and what it starts) has reported since the boot, in order."""
        lines = self.exec(["journalctl", "--no-pager", "--quiet", "--boot", "--unit=sojourn-lab-windows.service", "--output=cat"])
        return windows_faults.logged_events(lines.stdout.splitlines())

    def pretend_version(self, version: str) -> None:
        """Have the SMB server tell another Windows version, such as 5.1.2600, when someone logs on; until `reset`.

        Windows behind it stays what it is.
        """
        self.exec(["python3", "/opt/sojourn-lab/ntlm_version.py", version])
        self.exec(["systemctl", "restart", "smbd.service"])
        self.wait_until_up()
