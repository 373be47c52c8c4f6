"""What the tests take of other collections: of the package `ansible` those parts."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

from . import cache
from .commands import run

# The last release for ansible-core 2.19; its collections take 2.16 and newer. The wheel has 52 MB, these parts 2.
VERSION = "12.1.0"
PARTS = (
    "ansible_collections/ansible/windows/",  # win_reboot and others are played against the Windows target
    *(f"ansible_collections/community/general/{name}" for name in ("MANIFEST.json", "meta/runtime.yml", "plugins/become/doas.py")),
)


def other_collections() -> Path:
    """A folder for ANSIBLE_COLLECTIONS_PATH; fetched by pip when missing."""
    return cache.ensure("other-collections", cache.digest(VERSION, *PARTS), _fetch)


def _fetch(folder: Path) -> None:
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--dest", scratch, f"ansible=={VERSION}"])
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(PARTS)])
    shutil.rmtree(scratch)
