"""The root file systems that targets stand on, built from Debian's packages alone."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from . import cache
from .commands import run
from .errors import LabError

HERE = Path(__file__).parent

# nspawn keeps a lock and a folder for each container here, and leaves them when it is killed.
NSPAWN_NOTES = "/run/systemd/nspawn"

# What else the mirror calls a suite.
OTHER_NAMES = {"trixie": "stable", "bookworm": "oldstable"}

# Nobody reads manuals on a throwaway target: less to unpack.
LEFT_OUT = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/lintian/*")


def mirror() -> str:
    """Where Debian's packages come from: SOJOURN_LAB_MIRROR, else this machine's own mirror."""
    if given := os.environ.get("SOJOURN_LAB_MIRROR"):
        return given
    for line in run(["apt-get", "indextargets", "--format", "$(ORIGIN) $(RELEASE) $(REPO_URI)", "Created-By: Packages"]).stdout.splitlines():
        origin, release, address = line.split(maxsplit=2)
        if origin == "Debian" and "-" not in release:  # not its security or updates
            return address
    raise LabError("this machine's apt knows no mirror of Debian; name one in SOJOURN_LAB_MIRROR")


@dataclass(frozen=True)
class RootFileSystem:
    """A recipe in two layers: a Debian suite's packages; over them a folder of files and what a script makes of them.

    Two, so that a changed file costs seconds and not the minute that the packages take.
    """

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
    def base_key(self) -> str:
        """The hash of all that the packages' layer depends on, but for the mirror's own changes."""
        return cache.digest(f"1 {self.suite} {self.packages} {self.architectures} {LEFT_OUT}")

    @property
    def key(self) -> str:
        """The hash of all that the upper layer depends on."""
        return cache.digest(f"1 {self.base_key} {self.programs and self.programs.name}", self.files)

    @property
    def layers(self) -> list[Path]:
        """The layers in the cache, top first, as overlay's `lowerdir` wants them."""
        return [
            cache.path_of(f"root-{self.name}", self.key) / "layer",
            cache.path_of(f"packages-{self.name}", self.base_key),
        ]

    def ensure(self) -> None:
        """Build what isn't there."""
        base = cache.ensure(f"packages-{self.name}", self.base_key, self._install)
        cache.ensure(f"root-{self.name}", self.key, lambda folder: self._furnish(base, folder))

    def _install(self, root: Path) -> None:
        try:
            self._bootstrap(root, self.suite)
        except LabError as error:
            # A mirror that is being brought up to date has a release file and indexes of different days, for hours sometimes,
            # under one of the suite's names but not the other.
            if not any(sign in str(error) for sign in ("unexpected size", "Hash Sum mismatch")) or not (name := OTHER_NAMES.get(self.suite)):
                raise
            cache.say(f"the mirror's {self.suite} does not fit together: trying it as {name}")
            cache.remove_tree(root)
            self._bootstrap(root, name)
            release = (root / "etc/os-release").read_text()
            if f"VERSION_CODENAME={self.suite}\n" not in release:
                raise

    def _bootstrap(self, root: Path, suite: str) -> None:
        debs = cache.folder() / "debs" / self.suite
        debs.mkdir(parents=True, exist_ok=True)
        archives = '"$1/var/cache/apt/archives"'
        kept = shlex.quote(str(debs))
        from_cache = f"mkdir -p {archives}; find {kept} -name '*.deb' -exec cp --link -t {archives} {{}} +"
        into_cache = f"cp --link --no-clobber {archives}/*.deb {kept}/; rm -f {archives}/*.deb"
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
            f"--setup-hook={from_cache}",
            f"--customize-hook={into_cache}",
            f"--include={','.join(self.packages)}",
            *(suite, str(root), mirror()),
        ]
        run(command, timeout=1800)

    def _furnish(self, base: Path, folder: Path) -> None:
        layer, work, root = folder / "layer", folder / "work", folder / "root"
        for path in (layer, work, root):
            path.mkdir(parents=True)
        run(["cp", "-a", "--no-preserve=ownership", f"{self.files}/.", f"{layer}/"])
        if self.programs:
            (layer / "opt/sojourn-lab/bin").mkdir(parents=True)
            run(["cp", "-a", f"{self.programs}/.", f"{layer}/opt/sojourn-lab/bin/"])
        nspawn = [
            *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network", "--console=pipe"),
            *("--resolv-conf=off", "--timezone=off", "--link-journal=no", f"--directory={root}"),
            *("/bin/sh", "-eu", "/setup.sh"),
        ]
        # In mounts of its own, with nspawn's notes on a tmpfs: whatever happens, nothing stays mounted or noted.
        script = (
            f"mkdir -p {NSPAWN_NOTES}; mount -t tmpfs tmpfs {NSPAWN_NOTES}; "
            f"mount -t overlay overlay -o lowerdir={base},upperdir={layer},workdir={work} {root}; "
            f"exec {shlex.join(nspawn)}"
        )
        run(["unshare", "--mount", "--propagation", "private", "sh", "-euc", script])
        (layer / "setup.sh").unlink()
        cache.remove_tree(work)
        root.rmdir()


@dataclass(frozen=True)
class Addition:
    """More packages over a whole root file system, as one further layer: what only few labs need."""

    name: str
    under: RootFileSystem
    packages: tuple[str, ...]

    @property
    def key(self) -> str:
        """The hash of all that this layer depends on, but for the mirror's own changes."""
        return cache.digest(f"1 {self.under.key} {self.packages}")

    @property
    def layers(self) -> list[Path]:
        """The layers in the cache, top first."""
        return [cache.path_of(f"root-{self.name}", self.key) / "layer", *self.under.layers]

    def ensure(self) -> None:
        """Build what isn't there."""
        self.under.ensure()
        cache.ensure(f"root-{self.name}", self.key, self._install)

    def _install(self, folder: Path) -> None:
        layer, work, root = folder / "layer", folder / "work", folder / "root"
        debs = cache.folder() / "debs" / self.under.suite
        for path in (layer, work, root, debs / "partial"):
            path.mkdir(parents=True, exist_ok=True)
        lower = ":".join(map(str, self.under.layers))
        # What apt fetches, and what is this machine's own, is mounted over the root: none of it stays in the layer.
        script = f"""
            mount -t overlay overlay -o lowerdir={lower},upperdir={layer},workdir={work} {root}
            cd {root}
            mount -t proc proc proc
            for place in run tmp var/lib/apt/lists var/cache/apt; do mount -t tmpfs tmpfs $place; done
            mkdir -p var/cache/apt/archives var/lib/apt/lists/partial
            mount --bind {debs} var/cache/apt/archives
            mount --bind /etc/resolv.conf etc/resolv.conf
            printf '#!/bin/sh\\nexit 101\\n' > usr/sbin/policy-rc.d
            chmod 755 usr/sbin/policy-rc.d
            chroot . apt-get -q -o Acquire::Languages=none update
            chroot . apt-get -q -y --no-install-recommends -o Dpkg::Options::=--force-unsafe-io \
                install {shlex.join(self.packages)}
            rm usr/sbin/policy-rc.d
        """
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run(["unshare", "--mount", "--propagation", "private", "sh", "-euc", script], env=quiet, timeout=1800)
        cache.remove_tree(work)
        root.rmdir()


LINUX_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd", "openssh-server", "sudo", "opendoas", "procps", "iproute2"),
    *("iptables", "nftables", "ufw", "firewalld", "python3", "rpm", "ca-certificates"),
    # What ansible-core's own integration targets (tests/integration/conformance.py) find on any server, or would install.
    *("tcsh", "fish"),  # login shells that are no Bourne shell
    *("acl", "bsdextrautils", "bzip2", "file", "python3-apt", "unzip", "xz-utils", "zip", "zstd"),
)
WINDOWS_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "procps", "iproute2", "nftables", "python3", "samba"),
    # For pyspnego, which Debian has not: see winrm.py in its files.
    "python3-cryptography",
    # wine32: installers in the field are 32-bit programs.
    *("wine", "wine64", "wine32:i386"),
)
CONTROLLER_PACKAGES = ("openssh-client", "zip", "unzip", "zstd")
DOMAIN_PACKAGES = ("samba-ad-dc", "samba-ad-provision", "winbind", "libnss-winbind")


def linux() -> RootFileSystem:
    """The Linux target's root: Debian bookworm with every firewall service in it, none of them switched on."""
    return RootFileSystem("linux", "bookworm", LINUX_PACKAGES)


def windows(programs: Path) -> RootFileSystem:
    """The Windows target's root: Debian trixie with Samba and Wine. (Wine 8 of bookworm can't run Go programs.)"""
    return RootFileSystem("windows", "trixie", WINDOWS_PACKAGES, ("amd64", "i386"), programs)


def domain(programs: Path) -> Addition:
    """What a domain controller stands on, and a Windows target that is a member of its domain."""
    return Addition("domain", windows(programs), DOMAIN_PACKAGES)


def controller(programs: Path) -> Addition:
    """What a controller with the newest ansible-core stands on: the Windows target's Debian for its Python, and what Ansible's own ssh calls."""
    return Addition("controller", windows(programs), CONTROLLER_PACKAGES)
