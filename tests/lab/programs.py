"""The lab's own Windows programs, written in Go and built into the cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from . import cache
from .commands import run
from .errors import LabError

SOURCE = Path(__file__).parent / "programs"


def go() -> str:
    """The Go tool: the one that the variable GO names, else the one on PATH."""
    found = os.environ.get("GO") or shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if not found:
        raise LabError("the Go toolchain is missing: put go on PATH or its path into the variable GO")
    return found


def windows_programs() -> Path:
    """A folder with every program of `programs/cmd` as a Windows executable."""

    def build(into: Path) -> None:
        into.mkdir()
        run(
            [go(), "build", "-trimpath", "-ldflags=-s -w", "-o", f"{into}/", "./cmd/..."],
            cwd=SOURCE,
            env={"GOOS": "windows", "GOARCH": "amd64", "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"},
        )

    return cache.ensure("programs", cache.digest(SOURCE), build)
