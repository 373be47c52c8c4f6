"""The folder in which smbd looks for pipes, as a file system that answers each look with what Wine has at that moment.

smbd finds a pipe by the name of a Unix socket in `ncalrpc/np`. Pipes of Windows come and go without notice to anyone,
so no folder of real sockets could be right; here each name that exists in Wine is a link to the socket that serves it.
This is as much of the FUSE protocol (linux/fuse.h) as looking up a name in one folder takes.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import stat
import struct
from pathlib import Path

from named_pipes import Pipes

DEVICE = "/dev/fuse"
ROOT = 1
LOOKUP, FORGET, GETATTR, READLINK, STATFS, INIT = 1, 2, 3, 5, 17, 26
OPENDIR, READDIR, RELEASEDIR, ACCESS, INTERRUPT, BATCH_FORGET = 27, 28, 29, 34, 36, 42
SILENT = {FORGET, BATCH_FORGET, INTERRUPT}
MS_NOSUID, MS_NODEV = 2, 4

_libc = ctypes.CDLL(None, use_errno=True)


class PipeFolder:
    """One folder, mounted; its names are pipes."""

    def __init__(self, folder: Path, pipes: Pipes) -> None:
        self.folder = folder
        self.pipes = pipes
        self._device = -1
        self._names = {ROOT: ""}
        self._targets: dict[int, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def mount(self) -> None:
        """Mount it, and answer from now on."""
        if not os.path.exists(DEVICE):
            os.mknod(DEVICE, 0o600 | stat.S_IFCHR, os.makedev(10, 229))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        options = f"fd={self._device},rootmode=40700,user_id=0,group_id=0,allow_other"
        if _libc.mount(b"pipes", str(self.folder).encode(), b"fuse", MS_NOSUID | MS_NODEV, options.encode()):
            number = ctypes.get_errno()
            raise OSError(number, f"mount {self.folder}: {os.strerror(number)}")
        asyncio.get_running_loop().add_reader(self._device, self._readable)

    def unmount(self) -> None:
        """Take it away, even while smbd looks."""
        asyncio.get_running_loop().remove_reader(self._device)
        _libc.umount2(str(self.folder).encode(), 2)
        os.close(self._device)

    def _readable(self) -> None:
        try:
            request = os.read(self._device, 1 << 17)
        except (BlockingIOError, FileNotFoundError):
            return  # answered by another wake-up, or the asker has gone
        task = asyncio.create_task(self._answer(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: bytes) -> None:
        _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
        if opcode in SILENT:
            return
        try:
            error, body = 0, await self._reply(opcode, node, request[40:])
        except OSError as trouble:
            error, body = -(trouble.errno or errno.EIO), b""
        os.write(self._device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)

    async def _reply(self, opcode: int, node: int, body: bytes) -> bytes:
        if opcode == INIT:
            readahead = struct.unpack_from("<III", body)[2]
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, readahead, 0, 16, 12, 65536, 1, 0, 0, 0)
        if opcode == LOOKUP:
            return await self._lookup(body.rstrip(b"\0").decode(errors="replace"))
        if opcode == GETATTR:
            return struct.pack("<QII", 0, 0, 0) + self._attributes(node)
        if opcode == READLINK:
            return self._targets[node]
        if opcode == OPENDIR:
            return bytes(16)
        if opcode == STATFS:
            return bytes(80)
        if opcode in (READDIR, RELEASEDIR, ACCESS):
            return b""  # its names can't be listed, as on Windows' side they can't
        raise OSError(errno.ENOSYS, "not needed")

    async def _lookup(self, name: str) -> bytes:
        socket = await self.pipes.find(name)
        if socket is None:
            raise FileNotFoundError(errno.ENOENT, name)
        node = next((node for node, known in self._names.items() if known == name), len(self._names) + 1)
        self._names[node], self._targets[node] = name, str(socket).encode()
        # Valid for no time at all: the next look asks again.
        return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + self._attributes(node)

    def _attributes(self, node: int) -> bytes:
        mode = stat.S_IFDIR | 0o700 if node == ROOT else stat.S_IFLNK | 0o777
        size = len(self._targets.get(node, b""))
        return struct.pack("<QQQQQQIIIIIIIIII", node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
