"""A Windows target: Samba's real SMB server in front of Wine's real service control manager."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from .commands import run
from .programs import windows_programs
from .rootfs import HERE, RootFileSystem, windows
from .target import Target


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

    def root(self) -> RootFileSystem:
        return windows(windows_programs())

    def furnish(self, root: Path) -> None:
        (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (root / "etc/hostname").write_text(f"{self.name}\n")
        (root / "etc/samba/netbios.conf").write_text(f"netbios name = {self.name.upper()}\n")
        for user in self.accounts:
            # smbpasswd -s reads the password twice from its standard input.
            run(["chroot", root, "smbpasswd", "-s", "-a", user], input=f"{self.password(user)}\n" * 2)

    def answers(self) -> bool:
        # smbd is started only after the bridge has reached Wine's services.exe: see sojourn-lab-windows.service.
        return self.can_connect()

    def pretend_version(self, version: str) -> None:
        """Have the SMB server tell another Windows version, such as 5.1.2600, when someone logs on; until `reset`.

        Windows behind it stays what it is.
        """
        self.exec(["python3", "/opt/sojourn-lab/ntlm_version.py", version])
        self.exec(["systemctl", "restart", "smbd.service"])
        self.wait_until_up()
