"""Whether this machine can run the lab, and what it lacks."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from . import cache
from .commands import SEARCH, run
from .errors import LabError

# The program that must be there, and the Debian package that brings it.
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "arch-test": "arch-test",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "nft": "nftables",
    "iptables-legacy": "iptables",
    "nsenter": "util-linux",
    "chroot": "coreutils",
    "ssh-keygen": "openssh-client",
    "makensis": "nsis",
    "wixl": "wixl",
    "rpmbuild": "rpm",
    "dpkg-deb": "dpkg",
    "openssl": "openssl",
    "osslsigncode": "osslsigncode",
}
# What only a lab with a domain needs.
DOMAIN_TOOLS = {"kinit": "krb5-user"}


def lock_file() -> Path:
    """Held while a lab changes what all labs share."""
    return cache.folder() / "machine.lock"


def _missing_tools(tools: dict[str, str] = TOOLS) -> dict[str, str]:
    path = f"{os.environ.get('PATH', '')}:{SEARCH}"
    return {tool: package for tool, package in tools.items() if not shutil.which(tool, path=path)}


def install_missing(tools: dict[str, str] = TOOLS) -> None:
    """Install by apt what the lab needs; does nothing, not even look, on a machine that has it all."""
    missing = _missing_tools(tools)
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise LabError(f"this machine can't run the lab: no apt-get to install {', '.join(sorted(missing.values()))}")
    packages = sorted(set(missing.values()))
    cache.say(f"installing {' '.join(packages)}")
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with cache.lock(lock_file()):
        run([*apt, "update"], env=quiet)
        run([*apt, "install", "--no-install-recommends", *packages], env=quiet, timeout=900)
    if still := _missing_tools(tools):
        raise LabError(f"this machine can't run the lab: apt did not bring {', '.join(still)}")


def problems() -> list[str]:
    """Why this machine can't run the lab, one line each; empty when it can."""
    if sys.platform != "linux":
        return ["it isn't Linux"]
    if os.geteuid() != 0:
        return ["root is needed (namespaces, overlay mounts)"]
    missing = _missing_tools()
    # What apt brings is no reason why not: `prepare` and `up` install it.
    found = [] if shutil.which("apt-get") else [f"{tool} is missing (Debian package {package})" for tool, package in missing.items()]
    kinds = Path("/proc/filesystems").read_text().split()
    found += [f"the kernel has no {kind}" for kind in ("overlay", "tmpfs") if kind not in kinds]
    if not any(kind in kinds for kind in ("cgroup", "cgroup2")):
        found.append("the kernel has no control groups")
    if not found and not missing:  # it takes the tools to try; on a machine without them `require` does, once it has installed them
        found += _trial()
    return found


def _trial() -> list[str]:
    """Make one of everything in namespaces that end with the command."""
    script = (
        "set -e; ip link add br0 type bridge; ip link add v0 type veth peer name v1; "
        "ip -6 address add fd73::1/64 dev v0 nodad; "
        "nft add table inet t; nft 'add chain inet t c { type filter hook input priority 0; policy drop; }'; "
        "nft 'add rule inet t c ct state established accept'"
    )
    with tempfile.TemporaryDirectory(prefix="sojourn-lab-") as scratch:
        overlay = f"cd {scratch} && mount -t tmpfs tmpfs . && cd {scratch} && mkdir l u w m && mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w m"
        trials = {
            "network namespaces with a bridge, IPv6 and nftables": ["unshare", "--net", "sh", "-c", script],
            "overlay mounts on tmpfs": ["unshare", "--mount", "--propagation", "private", "sh", "-c", overlay],
            "process namespaces": ["unshare", "--pid", "--fork", "--mount-proc", "true"],
        }
        return [
            f"{what} don't work: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no reason given'}"
            for what, command in trials.items()
            if (done := run(command, check=False)).returncode
        ]


def require() -> None:
    """Raise the first reason why the lab can't run here."""
    if os.geteuid() == 0:
        install_missing()
    if found := problems():
        raise LabError(f"this machine can't run the lab: {'; '.join(found)}")
