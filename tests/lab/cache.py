"""The lab's cache: things that take minutes to build, kept under the hash of how they are built."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import LabError

# How many versions of a thing are kept: enough to go back and forth between two branches.
KEPT = 2

_began = time.monotonic()


def say(text: str) -> None:
    """A line of progress, with the seconds since the program began."""
    print(f"[{time.monotonic() - _began:6.1f} s] {text}", flush=True)


def folder() -> Path:
    """Where everything is kept; made when missing, for its owner alone."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base) / "sojourn-lab"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel releases it when the holder ends, however it ends."""
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def digest(*parts: str | bytes | Path) -> str:
    """One hash over texts and the contents of files and folders."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            files = sorted(part.rglob("*")) if part.is_dir() else [part]
            for file in files:
                if file.is_file():
                    total.update(f"{file.relative_to(part.parent)}\0{file.stat().st_mode & 0o111}\0".encode())
                    total.update(hashlib.sha256(file.read_bytes()).digest())
        else:
            data = part.encode() if isinstance(part, str) else part
            total.update(hashlib.sha256(data).digest())
    return total.hexdigest()[:16]


def path_of(name: str, key: str) -> Path:
    """Where the thing of this name and key is, or will be."""
    return folder() / f"{name}-{key}"


def ensure(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The built thing: taken from the cache, or built aside and renamed into place, so that it is whole or absent."""
    done = path_of(name, key)
    with lock(folder() / f"{name}.lock"):
        if done.exists():
            os.utime(done)
            return done
        for broken in folder().glob(f".{name}-*"):
            remove_tree(broken)
        aside = folder() / f".{name}-{key}"
        began = time.monotonic()
        say(f"{name}: building")
        build(aside)
        aside.rename(done)
        say(f"{name}: built in {time.monotonic() - began:.1f} s")
        _prune(name)
    return done


def _prune(name: str) -> None:
    """Remove all but the last used of what was built under this name; what a running lab stands on stays."""
    others = sorted(folder().glob(f"{name}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    in_use = Path("/proc/self/mountinfo").read_text() + "".join(file.read_text() for file in Path("/run/sojourn-lab").glob("*/targets/*/layers"))
    for old in others[KEPT:]:
        if str(old) not in in_use:
            remove_tree(old)


def remove_tree(path: Path) -> None:
    """Remove a folder tree, but never through something mounted in it."""
    within = f"{path.resolve()}/"
    with open("/proc/self/mountinfo") as table:
        for line in table:
            if f"{line.split()[4]}/".startswith(within):
                raise LabError(f"{path} is not removed: {line.split()[4]} is mounted in it")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
