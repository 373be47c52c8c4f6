"""Faults of Windows itself: a service that somebody has a handle to, a file that somebody has open, an ADMIN$ that can't be written."""

from __future__ import annotations

import contextlib
import re
import subprocess
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .commands import tool_environment
from .errors import LabError
from .namespaces import inside

if TYPE_CHECKING:
    from smbprotocol.tree import TreeConnect

    from .target import Target

_HOLD = r"Z:\opt\sojourn-lab\bin\hold.exe"
_SETTINGS = "/etc/samba/smb.conf"


@contextlib.contextmanager
def held(target: Target, kind: str, name: str) -> Iterator[None]:
    """Have a program of the target keep a service or a file open; it ends with its standard input, and so with this process."""
    holder = subprocess.Popen(
        target.inside(["wine", _HOLD, kind, name]),
        env=tool_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert holder.stdin and holder.stdout
    try:
        if (said := holder.stdout.readline().strip()) != "held":
            raise LabError(f"{kind} {name} of {target.name} can't be held: {said}")
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            holder.stdin.close()
        holder.stdout.close()
        holder.wait(120)


@contextlib.contextmanager
def share(target: Target, name: str) -> Iterator[TreeConnect]:
    """One of the target's shares, opened by the stranger as the target's administrator."""
    from smbprotocol.connection import Connection
    from smbprotocol.session import Session
    from smbprotocol.tree import TreeConnect

    host = target.addresses.ula
    connection = Connection(uuid.uuid4(), host, target.port)
    inside(target.lab.network.namespace("stranger"), connection.connect)
    try:
        session = Session(connection, target.user, target.password())
        session.connect()
        tree = TreeConnect(session, rf"\\{host}\{name}")
        tree.connect()
        yield tree
    finally:
        with contextlib.suppress(Exception):  # the target may have been restarted
            connection.disconnect(True)


@contextlib.contextmanager
def open_over_smb(target: Target, path: str) -> Iterator[None]:
    r"""Have the stranger keep a file of C:\ open over SMB without sharing it: smbd knows nothing of what Wine's programs have open."""
    from smbprotocol.open import CreateDisposition, CreateOptions, FilePipePrinterAccessMask, ImpersonationLevel, Open

    drive, _, rest = path.partition(":\\")
    if drive.upper() != "C" or not rest:
        raise LabError(rf"a file of a Windows target is written like C:\folder\file, not {path!r}")
    with share(target, "C$") as tree:
        access, whole = FilePipePrinterAccessMask.FILE_READ_DATA, CreateOptions.FILE_NON_DIRECTORY_FILE
        Open(tree, rest).create(ImpersonationLevel.Impersonation, access, 0, 0, CreateDisposition.FILE_OPEN, whole)
        yield


@contextlib.contextmanager
def read_only_admin(target: Target) -> Iterator[None]:
    """Have smbd refuse to write to ADMIN$, on connections to the share that are made from now on."""
    before = target.exec(["cat", _SETTINGS]).stdout
    admin = "[ADMIN$]\n"
    head, found, tail = before.partition(admin)
    if not found:
        raise LabError(f"{_SETTINGS} has no ADMIN$")
    _set(target, head + found + tail.replace("read only = no", "read only = yes", 1))
    try:
        yield
    finally:
        if target.leader:
            _set(target, before)


def _set(target: Target, settings: str) -> None:
    # smbd answers the second message once it has done what the first one says.
    script = f"cat > {_SETTINGS} && smbcontrol smbd reload-config && smbcontrol smbd ping > /dev/null"
    target.exec(["sh", "-c", script], input=settings)


def logged_events(lines: list[str]) -> list[str]:
    r"""The texts among what Wine says of its event log, as in 0158:err:eventlog:ReportEventW L"a \"text\"\n"."""
    said = re.compile(r':eventlog:ReportEventW L"((?:[^"\\]|\\.)*)"')
    plain = {"n": "\n", "r": "\r", "t": "\t"}

    def character(escaped: re.Match[str]) -> str:
        what = escaped[1]
        return chr(int(what, 16)) if len(what) == 4 else plain.get(what, what)

    return [re.sub(r"\\([0-9a-f]{4}|.)", character, found[1]) for line in lines if (found := said.search(line))]
