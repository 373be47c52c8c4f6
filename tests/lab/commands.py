"""Running other programs, with errors that say what failed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import LabError

# Many minimal shells of root lack the sbin folders; nft, ip and chroot live there.
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def tool_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for system tools: ours, a complete PATH, and messages in English, which is parsed."""
    path = os.environ.get("PATH", "")
    return {**os.environ, "PATH": f"{path}:{SEARCH}", "LC_ALL": "C.UTF-8", **(more or {})}


def run(
    command: Sequence[str | Path],
    *,
    input: str | bytes | None = None,
    timeout: float | None = 600,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and give back its output; a LabError carries what it said when it fails."""
    words = [str(word) for word in command]
    data = input.encode() if isinstance(input, str) else input
    try:
        done = subprocess.run(
            words,
            input=data if data is not None else b"",
            capture_output=True,
            timeout=timeout,
            env=tool_environment(env),
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError:
        raise LabError(f"{words[0]} is not installed; run `lab.py prepare`") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"{' '.join(words[:6])} did not end within {timeout:.0f} s") from None
    text = subprocess.CompletedProcess(words, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
    if check and text.returncode:
        said = (text.stderr.strip() or text.stdout.strip())[-2000:]
        raise LabError(f"{' '.join(words[:8])} failed ({text.returncode}): {said}")
    return text
