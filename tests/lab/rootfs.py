"""The root file systems that targets stand on, built from Debian's packages alone."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from . import cache
from .commands import run

HERE = Path(__file__).parent
MIRROR = os.environ.get("SOJOURN_LAB_MIRROR", "http://deb.debian.org/debian")

# Nobody reads manuals on a throwaway target: less to unpack.
LEFT_OUT = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/lintian/*")


@dataclass(frozen=True)
class RootFileSystem:
    """A recipe: a Debian suite, its packages, a folder of files laid over it, and a script run in it."""

    name: str
    suite: str
    packages: tuple[str, ...]
    architectures: tuple[str, ...] = ("amd64",)
    programs: Path | None = None
    """Built Windows programs to lay under /opt/sojourn-lab/bin."""

    @property
    def files(self) -> Path:
        """What is laid over the packages: `files/<name>/`, with `setup.sh` run last in the new root."""
        return HERE / "files" / self.name

    @property
    def key(self) -> str:
        """The hash of all that the result depends on, but for the mirror's own changes."""
        recipe = f"2 {self.suite} {self.packages} {self.architectures} {LEFT_OUT} {self.programs and self.programs.name}"
        return cache.digest(recipe, self.files, Path(__file__))

    @property
    def path(self) -> Path:
        """Where it is in the cache."""
        return cache.path_of(f"root-{self.name}", self.key)

    def ensure(self) -> Path:
        """Build it when it isn't there."""
        return cache.ensure(f"root-{self.name}", self.key, self._build)

    def _build(self, root: Path) -> None:
        debs = cache.folder() / "debs" / self.suite
        debs.mkdir(parents=True, exist_ok=True)
        archives = '"$1/var/cache/apt/archives"'
        into_cache = f"cp --link --no-clobber {archives}/*.deb {shlex.quote(str(debs))}/"
        command = [
            # mmdebstrap mounts /proc and the like into the new root; in mounts of its own these end with it.
            *("unshare", "--mount", "--propagation", "private"),
            *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"),
            f"--architectures={','.join(self.architectures)}",
            "--aptopt=Apt::Install-Recommends false",
            "--aptopt=Acquire::Languages none",
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
            "--skip=essential/unlink,cleanup/apt/cache",
            f"--setup-hook=mkdir -p {archives}; "
            f"find {shlex.quote(str(debs))} -name '*.deb' -exec cp --link -t {archives} {{}} +",
            f"--customize-hook={into_cache}; rm -f {archives}/*.deb",
            f"--include={','.join(self.packages)}",
            *(self.suite, str(root), MIRROR),
        ]
        run(command, timeout=1800)
        run(["cp", "-a", "--no-preserve=ownership", f"{self.files}/.", f"{root}/"])
        if self.programs:
            run(["cp", "-a", f"{self.programs}/.", f"{root}/opt/sojourn-lab/bin/"])
        run(
            [
                *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network"),
                *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe"),
                *("-D", str(root), "/bin/sh", "-eu", "/setup.sh"),
            ]
        )
        (root / "setup.sh").unlink()


LINUX_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd", "openssh-server", "sudo", "procps", "iproute2"),
    *("iptables", "nftables", "ufw", "firewalld", "python3", "rpm", "ca-certificates"),
)
WINDOWS_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "procps", "iproute2", "nftables", "python3-minimal", "samba"),
    # wine32: installers in the field are 32-bit programs.
    *("wine", "wine64", "wine32:i386"),
)


def linux() -> RootFileSystem:
    """The Linux target's root: Debian bookworm with every firewall service in it, none of them switched on."""
    return RootFileSystem("linux", "bookworm", LINUX_PACKAGES)


def windows(programs: Path) -> RootFileSystem:
    """The Windows target's root: Debian trixie with Samba and Wine. (Wine 8 of bookworm can't run Go programs.)"""
    return RootFileSystem("windows", "trixie", WINDOWS_PACKAGES, ("amd64", "i386"), programs)
