"""The way from SMB to the named pipes of Windows, and the service control manager's access check.

Stands in for the part of Windows' SMB server that serves named pipes: smbd connects to a Unix socket for each pipe; what
arrives there is forwarded to the real pipe in Wine by resident.exe. Any pipe that exists in Wine is found.

Stands in, too, for the check that Wine's services.exe lacks: whoever is no administrator is answered "access denied"
(5) when opening the SCM, as Windows answers a remote user. It can't show security descriptors of single services or
UAC's filtered tokens. And pipes other than svcctl carry a stream of bytes, whatever their type in Windows.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import struct
import time
from pathlib import Path

RESIDENT_PORT = 47000
SOCKETS = Path("/run/sojourn-lab/pipes")

# The pipes that carry DCE/RPC: Samba speaks in messages there.
MESSAGES = {"svcctl"}
ACCOUNTS = {"administrator", "operator", "reader", "root", "nobody"}
ADMINISTRATORS = {"administrator"}

# Of a socket: the bytes that its other end has not read yet (linux/sockios.h).
SIOCOUTQ = 0x5411
# How long smbd may take to read what a pipe that has ended still holds, and between two looks whether it has.
READ_SECONDS, LOOK_SECONDS = 30, 0.02

RPC_REQUEST, RPC_RESPONSE = 0, 2
# The calls that hand out a first handle: ROpenSCManagerW and ROpenSCManagerA ([MS-SCMR] 3.1.4).
OPEN_MANAGER = {15, 27}
ERROR_ACCESS_DENIED = 5
STATUS_OBJECT_NAME_NOT_FOUND = 0xC0000034
STATUS_PIPE_NOT_AVAILABLE = 0xC00000AC


def account_of(greeting: bytes) -> str:
    """The account in Samba's greeting, a named_pipe_auth_req (named_pipe_auth.idl): NDR, deep and version-dependent.

    Only one thing is wanted of it: the first string in it that is one of the target's accounts. The session's own is
    there; another's can't be.
    """
    position = 12
    while position + 12 <= len(greeting):
        most, offset, count = struct.unpack_from("<III", greeting, position)
        if offset == 0 and most == count and 1 < count <= 64 and position + 12 + count <= len(greeting):
            name = greeting[position + 12 : position + 12 + count].rstrip(b"\0").decode("ascii", "replace").lower()
            if name in ACCOUNTS:
                return name
        position += 4
    return ""


def greeting_reply(level: int, messages: bool, status: int = 0) -> bytes:
    """What smbd wants to hear: the level again, the kind of pipe that it now has, and whether it has one."""
    body = b"NPAM" + struct.pack("<IIHHIQI", level, level, 2 if messages else 1, 0x05FF, 0, 4096, status)
    return struct.pack(">I", len(body)) + body


def denial(request: bytes) -> bytes:
    """The answer to an ROpenSCManager request: no handle, and error 5."""
    call, context = struct.unpack_from("<I", request, 12)[0], struct.unpack_from("<H", request, 20)[0]
    stub = bytes(20) + struct.pack("<I", ERROR_ACCESS_DENIED)
    head = struct.pack("<BBBB4sHHI", 5, 0, RPC_RESPONSE, 3, b"\x10\0\0\0", 24 + len(stub), 0, call)
    return head + struct.pack("<IHBB", len(stub), context, 0, 0) + stub


async def ask_resident(request: str) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request to resident.exe; its first line, and the connection for what follows."""
    reader, writer = await asyncio.open_connection("127.0.0.1", RESIDENT_PORT)
    writer.write(f"{request}\n".encode())
    return (await reader.readline()).decode().strip(), reader, writer


class Pipe:
    """One pipe name, as smbd sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.messages = name in MESSAGES
        self.socket = SOCKETS / name

    async def serve(self) -> None:
        """Listen on the pipe's socket."""
        SOCKETS.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.socket.unlink(missing_ok=True)
        await asyncio.start_unix_server(self._client, self.socket)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._talk(reader, writer)
        writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = struct.unpack(">I", await reader.readexactly(4))[0]
        greeting = await reader.readexactly(length)
        level = struct.unpack_from("<I", greeting, 4)[0]
        account = account_of(greeting)
        answer, far_reader, far_writer = await ask_resident(f"pipe {self.name}")
        print(f"pipe {self.name}: {account or 'an unknown account'}: {answer}", flush=True)
        if answer != "ok":
            far_writer.close()
            status = STATUS_PIPE_NOT_AVAILABLE if "busy" in answer else STATUS_OBJECT_NAME_NOT_FOUND
            writer.write(greeting_reply(level, self.messages, status))
            await writer.drain()
            return
        writer.write(greeting_reply(level, self.messages))
        up = asyncio.create_task(self._up(reader, writer, far_writer, account in ADMINISTRATORS))
        try:
            await self._down(far_reader, writer)
            await self._read_to_the_end(writer)
        finally:
            up.cancel()
            far_writer.close()

    async def _up(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter, far: asyncio.StreamWriter, trusted: bool) -> None:
        """From smbd to Wine."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while data := await self._from_samba(reader):
                opnum = struct.unpack_from("<H", data, 22)[0] if self.messages and len(data) >= 24 else -1
                if not trusted and opnum in OPEN_MANAGER and data[2] == RPC_REQUEST:
                    near.write(self._to_samba(denial(data)))
                else:
                    far.write(data)
                    await far.drain()
        far.close()

    async def _down(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        """From Wine to smbd; a DCE/RPC fragment tells its length in its own header."""
        while True:
            if self.messages:
                head = await reader.readexactly(16)
                data = head + await reader.readexactly(struct.unpack_from("<H", head, 8)[0] - 16)
            elif not (data := await reader.read(65536)):
                return
            near.write(self._to_samba(data))
            await near.drain()

    async def _read_to_the_end(self, near: asyncio.StreamWriter) -> None:
        """Wait until smbd has what was written before the pipe's end, as Windows has it read still.

        smbd throws away what it is reading when it sees the end of the socket in the same moment.
        """
        await near.drain()
        queue = near.get_extra_info("socket").fileno()
        deadline = time.monotonic() + READ_SECONDS
        while not near.is_closing() and time.monotonic() < deadline:
            unread = bool(near.transport.get_write_buffer_size()) or any(fcntl.ioctl(queue, SIOCOUTQ, bytes(4)))
            await asyncio.sleep(LOOK_SECONDS)  # nothing tells of a queue that is empty; and smbd may be about to look once more
            if not unread:
                return

    async def _from_samba(self, reader: asyncio.StreamReader) -> bytes:
        if not self.messages:
            return await reader.read(65536)
        return await reader.readexactly(struct.unpack("<H", await reader.readexactly(2))[0])

    def _to_samba(self, data: bytes) -> bytes:
        return struct.pack("<H", len(data)) + data if self.messages else data


class Pipes:
    """Every pipe that smbd has asked for and Wine has."""

    def __init__(self) -> None:
        self._served: dict[str, Pipe] = {}

    async def find(self, name: str) -> Path | None:
        """The socket for a pipe, if there is such a pipe in Wine now."""
        try:
            answer, _, writer = await ask_resident(f"exists {name}")
        except OSError:
            return None
        writer.close()
        if answer != "yes":
            return None
        if name not in self._served:
            self._served[name] = Pipe(name)
            await self._served[name].serve()
        return self._served[name].socket
