"""The collection ansible.windows, whose win_reboot is played against the Windows target: of the package `ansible` that one part."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

from . import cache
from .commands import run

# The last release for ansible-core 2.19; its ansible.windows takes 2.16 and newer. The wheel has 52 MB, the part of it 2.
VERSION = "12.1.0"
PART = "ansible_collections/ansible/windows/"


def ansible_windows() -> Path:
    """A folder for ANSIBLE_COLLECTIONS_PATH; fetched by pip when missing."""
    return cache.ensure("ansible-windows", cache.digest(VERSION, PART), _fetch)


def _fetch(folder: Path) -> None:
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--dest", scratch, f"ansible=={VERSION}"])
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(PART)])
    shutil.rmtree(scratch)
