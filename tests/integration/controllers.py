"""Controllers of other versions: ansible-core, the collection's libraries and pytest, on a Python of their own.

Each is a folder of the lab's cache. It is used by putting its `bin` first in PATH, where `ansible-playbook` and `python` are then found.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import CHECKOUT, COLLECTIONS
from tests.lab import cache, rootfs
from tests.lab.commands import run
from tests.lab.model import STATE
from tests.lab.programs import windows_programs

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
PYTEST = "pytest>=8"
# What ansible-core's own integration targets want on a controller: hashes of passwords for the users that they make.
PASSLIB = "passlib>=1.7"
REQUIREMENTS = CHECKOUT / "requirements.txt"

# Not the script that pip writes: that one has the name of the folder in it where it was installed, and the cache renames the folder.
COMMAND = """\
#!/bin/sh
exec "${0%%/*}/python" -P -m ansible %s "$@"
"""
COMMANDS = {"ansible": "adhoc", "ansible-config": "config", "ansible-playbook": "playbook"}
IN_MOUNTS_OF_ITS_OWN = """\
#!/bin/sh
here=${0%/bin/*}
exec unshare --mount --propagation private sh -eu "$here/inside" "$here" "$PWD" "$@"
"""
# The mounts belong to the process and to what it starts: they vanish with the last of these, whatever ends it.
INSIDE = """\
here=$1 back=$2
shift 2
mount -t tmpfs tmpfs "$here/mount"
cd "$here/mount"
mkdir upper work root
mount -t overlay overlay -o lowerdir=ROOT,upperdir=upper,workdir=work root
for folder in /proc /dev /tmp; do mount --rbind "$folder" "root$folder"; done
IFS=:
for folder in $SOJOURN_TEST_FOLDERS; do
    mkdir -p "root$folder"
    mount --bind "$folder" "root$folder"
    mount -o remount,bind,ro "root$folder"
done
mkdir -p "root$here/lib"
mount --bind "$here/lib" "root$here/lib"
exec chroot root env --chdir="$back" PYTHONPATH="$here/lib" /usr/bin/python3 "$@"
"""


@dataclass(frozen=True)
class Other:
    """One such controller: the version of ansible-core, that of Python, and how the two are brought together in a folder."""

    name: str
    core: str
    python: str
    build: Callable[[Other, Path], None]

    def __str__(self) -> str:
        return self.name

    @property
    def key(self) -> str:
        """The hash of all that it depends on, but for new releases of libraries."""
        return cache.digest(f"{self.core} {self.python} {sys.base_prefix} {debian()}", REQUIREMENTS, Path(__file__))

    def ensure(self) -> Path:
        """Its folder; built when missing."""
        return cache.ensure(f"controller-{self.name}", self.key, lambda aside: self.build(self, aside))

    @property
    def packages(self) -> list[str]:
        """What pip installs."""
        return [f"ansible-core=={self.core}", PYTEST, PASSLIB, "--requirement", str(REQUIREMENTS)]

    def environment(self) -> dict[str, str]:
        """Variables that have it found before the one that runs the tests."""
        # The collection may lie in /tmp, which is there anyhow and has to stay writable.
        folders = dict.fromkeys(str(path) for path in (CHECKOUT, COLLECTIONS, cache.folder(), STATE) if not path.is_relative_to("/tmp"))
        return {
            "PATH": f"{self.ensure() / 'bin'}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": "",
            "SOJOURN_TEST_FOLDERS": ":".join(folders),
        }


def debian() -> str:
    """Debian trixie, as overlay's `lowerdir` wants it: what the lab's Windows target stands on, Python 3.13 in it, and Ansible's own way to Linux."""
    root = rootfs.controller(windows_programs())
    root.ensure()
    return ":".join(map(str, root.layers))


def virtual_environment(other: Other, folder: Path) -> None:
    """On the Python that runs the tests."""
    run([sys.executable, "-m", "venv", "--without-pip", folder])
    run([*PIP, "--python", folder / "bin/python", "install", *other.packages])
    commands(folder)


def on_debian(other: Other, folder: Path) -> None:
    """On the Python of `debian()`, of whose files everything else comes too: the machine needs no such Python."""
    for name in ("bin", "mount"):
        (folder / name).mkdir(parents=True)
    machine = platform.machine()
    target = [
        *("--python-version", other.python, "--implementation", "cp", "--only-binary", ":all:"),
        *("--platform", f"manylinux_2_28_{machine}", "--platform", f"manylinux2014_{machine}"),
    ]
    run([*PIP, "install", "--no-compile", "--target", folder / "lib", *target, *other.packages])
    commands(folder)
    executable(folder / "bin/python", IN_MOUNTS_OF_ITS_OWN)
    (folder / "inside").write_text(INSIDE.replace("ROOT", shlex.quote(debian())))
    # Beforehand: during a run nothing is written there. (Of olefile one module is for Python 2 alone, and fails.)
    run([folder / "bin/python", "-m", "compileall", "-q", folder / "lib"], env={"SOJOURN_TEST_FOLDERS": ""}, cwd=Path("/"), check=False)


def commands(folder: Path) -> None:
    """Ansible's commands, beside the Python that runs them."""
    for name, word in COMMANDS.items():
        executable(folder / "bin" / name, COMMAND % word)


def executable(path: Path, text: str) -> None:
    """Writes a script."""
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o755)


OLDEST = Other("oldest", "2.17.0", f"{sys.version_info.major}.{sys.version_info.minor}", virtual_environment)
# To be raised with each release of ansible-core.
NEWEST = Other("newest", "2.21.*", "3.13", on_debian)
