"""A target's firewall tool that fails, or hangs, when a rule is to be added or taken back; whatever else it is asked, it does.

On Linux a script is mounted over each tool. On Windows the stand-in netsh.exe asks session.py first, which goes by the
same folder. Both tell of a call that they hold through a FIFO, and hold it by waiting for a lock that the lab's own
process has: it is freed when the context ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .disk import unmount
from .errors import LabError
from .processes import frozen
from .waiting import wait_for

if TYPE_CHECKING:
    from .target import Target

PLACE = "/run/sojourn-lab/firewall"
_SENTENCE = "Operation not permitted: the lab has it fail"

_TOOLS = ("/usr/sbin/nft", "/usr/sbin/ufw", "/usr/bin/firewall-cmd", "/usr/sbin/xtables-nft-multi", "/usr/sbin/xtables-legacy-multi")
# By which names and paths they are called.
_CALLED = re.compile(r"/(usr/)?s?bin/(nft|ufw|firewall-cmd|ip6?tables\S*|xtables\S*)")

# Over every file that is a firewall tool; a tool of several names goes by the one it is called by.
_WRAPPER = f"""#!/bin/sh
# Stands before a firewall tool while a test has it fail or hang: firewall_tool.py of the lab.
place={PLACE}
name=${{0##*/}}
words=" $* "
case $name:$words in
    nft:*" -f "* | nft:*" --file "*)
        while [ $# -gt 0 ]; do file=$1; shift; case $file in -f | --file) file=$1; break ;; esac; done
        [ "$file" = - ] && file=/dev/stdin
        script=$(cat "$file")
        words=" $(printf %s "$script" | tr '\\n;' '  ') "
        set -- -f -
        ;;
esac
forward() {{
    if [ "${{script+set}}" ]; then printf '%s\\n' "$script" | "$@"; exit; fi
    exec "$@"
}}
what=
case $name in
    nft) case $words in
        *" insert rule "* | *" add rule "* | *" add element "*) what=open ;;
        *" delete rule "* | *" delete element "*) what=close ;;
    esac ;;
    ip*tables*) case $words in
        *" -I "* | *" -A "* | *" --insert "* | *" --append "*) what=open ;;
        *" -D "* | *" --delete "*) what=close ;;
    esac ;;
    ufw) case $words in *" delete "*) what=close ;; *" allow "*) what=open ;; esac ;;
    firewall-cmd) case $words in *" --add-"*) what=open ;; *" --remove-"*) what=close ;; esac ;;
esac
case "$(cat $place/mode 2> /dev/null)" in
    "fails $what")
        echo "$name: {_SENTENCE}" >&2
        exit 1
        ;;
    "holds $what")
        echo "$name$words" > $place/calls
        flock --shared $place/gate true
        forward "$0" "$@" # by now the tool itself is there again
        ;;
esac
forward $place/real/$name "$@"
"""
# The tools are copied, not mounted elsewhere: a copy needs no undoing in an order of its own.
_PUT_BEFORE = f"""
set -eu
mkdir {PLACE}/real
cat > {PLACE}/wrapper
chmod 755 {PLACE}/wrapper
for tool in {" ".join(_TOOLS)}; do
    cp $tool {PLACE}/real/
    mount --bind {PLACE}/wrapper $tool
done
for name in /usr/sbin/ip*tables*; do
    file=$(readlink -f $name)
    case $file in */xtables-*-multi) ln -sf ${{file##*/}} {PLACE}/real/${{name##*/}} ;; esac
done
"""


@dataclass(frozen=True)
class FirewallTool:
    """The lever while it is laid."""

    calls: int

    def wait_held(self, timeout: float = 120) -> str:
        """Return once a call is being held (one that no earlier wait told of); its words."""
        if not select.select([self.calls], [], [], timeout)[0]:
            raise LabError(f"gave up after {timeout:.0f} s waiting for the firewall tool to be called")
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(self.calls, 1)
        return line.decode(errors="replace").strip()


@contextlib.contextmanager
def firewall_tool(target: Target, fails: str | None, holds: str | None) -> Iterator[FirewallTool]:
    """Have it fail or hang at "open" or "close" while the context lasts. Held calls go on when it ends."""
    if (fails is None) == (holds is None) or (fails or holds) not in ("open", "close"):
        raise LabError('one of fails and holds is "open" or "close"')
    leader = target.leader
    if not leader:
        raise LabError(f"{target.name} is not running")
    folder = Path(f"/proc/{leader.pid}/root{PLACE}")
    if folder.exists():
        raise LabError(f"{target.name}'s firewall tool is in other hands already")
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        stack.callback(_remove, folder)
        os.mkfifo(folder / "calls")
        # For both: what writes to it needs no reader that comes and goes.
        calls = os.open(folder / "calls", os.O_RDWR | os.O_NONBLOCK)
        stack.callback(os.close, calls)
        gate = stack.enter_context(open(folder / "gate", "w"))
        fcntl.flock(gate, fcntl.LOCK_EX)
        (folder / "mode").write_text(f"fails {fails}\n" if fails else f"holds {holds}\n")
        if target.kind == "linux":
            stack.callback(unmount, target, *_TOOLS)  # and waits for systemd to see it
            stack.callback(_uncover, target)
            target.exec(["sh", "-c", _PUT_BEFORE], input=_WRAPPER)
        yield FirewallTool(calls)
        (folder / "mode").unlink(missing_ok=True)


def _uncover(target: Target) -> None:
    """Unmounts the script from over the tools, in a moment in which no shell is about to read it.

    Between the kernel's exec of a script and the shell's own open of it, by the same path, there would be the tool itself:
    the shell would take an executable for a script, and make a file of what follows the ">" in it (62, x86-64 in ELF).
    """
    def uncovered() -> bool:
        with frozen(target.lab.name, target.name) as ids:
            if any(map(_is_about_to_read, ids)):
                return False
            target.exec(["sh", "-c", 'for tool; do umount --lazy "$tool"; done', "sh", *_TOOLS], check=False)
            return True

    if target.leader:
        wait_for("a moment in which nobody calls the firewall tool", uncovered, 60)


def _is_about_to_read(pid: int) -> bool:
    """Whether a process is a shell that has a tool's path for its script, and has not opened it."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if words[0] == b"/bin/sh" and _CALLED.fullmatch(words[1].decode(errors="replace")):
            wrapper = os.stat(f"/proc/{pid}/root{PLACE}/wrapper")
            return not any(os.path.samestat(wrapper, os.stat(file)) for file in Path(f"/proc/{pid}/fd").iterdir() if os.path.exists(file))
    return False


def _remove(folder: Path) -> None:
    def gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)  # gone with the container that it was in
        return not folder.exists()

    # A call that had seen that it is to be held makes the gate anew if it comes to it just now: then the folder is not empty.
    wait_for("the firewall tool to be let go", gone, 60)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()  # on Windows the session has more in it
