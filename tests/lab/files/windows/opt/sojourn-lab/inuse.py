"""Keeps running programs from being deleted over SMB, as Windows does.

Stands in for the image section that Windows holds on a running program's file. smbd knows nothing of Wine's processes;
but it runs in mounts of its own, and there a running program's file is mounted onto itself, and a mount point can't be
unlinked: smbd answers STATUS_ACCESS_DENIED. (Windows says STATUS_CANNOT_DELETE.) Wine's own processes, outside those
mounts, may rename it as they may on Windows. It can't show that opening such a file for writing is refused with a
sharing violation: here it is not refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
from pathlib import Path

DRIVE = "/srv/windows/drive_c/"
# Wine's own programs are nobody's to delete.
OWN = (f"{DRIVE}windows/system32/", f"{DRIVE}windows/syswow64/")

FAN_CLOEXEC, FAN_NONBLOCK = 0x1, 0x2
FAN_MARK_ADD, FAN_MARK_MOUNT = 0x1, 0x10
FAN_CLOSE_WRITE, FAN_CLOSE_NOWRITE, FAN_OPEN = 0x08, 0x10, 0x20
AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)


class InUse:
    """Watches which programs run: the wineserver holds each one's file open for as long as a process has it mapped."""

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._change = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._events = -1
        self._pending: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Have the kernel tell of every program file that is opened or closed (fanotify)."""
        self._events = _libc.fanotify_init(FAN_CLOEXEC | FAN_NONBLOCK, os.O_RDONLY | os.O_CLOEXEC)
        mask = ctypes.c_uint64(FAN_OPEN | FAN_CLOSE_WRITE | FAN_CLOSE_NOWRITE)
        flags = FAN_MARK_ADD | FAN_MARK_MOUNT
        if self._events < 0 or _libc.fanotify_mark(self._events, flags, mask, AT_FDCWD, DRIVE.encode()):
            number = ctypes.get_errno()
            raise OSError(number, f"fanotify: {os.strerror(number)}")
        asyncio.get_running_loop().add_reader(self._events, self._readable)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            events = os.read(self._events, 1 << 16)
            concerned = False
            while events:
                size, _, _, _, _, descriptor, _ = struct.unpack_from("<IBBHQii", events)
                events = events[size:]
                if descriptor >= 0:
                    with contextlib.suppress(OSError):
                        concerned |= self._is_program(os.readlink(f"/proc/self/fd/{descriptor}"))
                    os.close(descriptor)
            if concerned and not self._pending:
                # The file is opened a moment before it is mapped, and closed a moment before it is free.
                self._pending = asyncio.get_running_loop().call_later(0.005, self._look)

    @staticmethod
    def _is_program(path: str) -> bool:
        low = path.lower()
        return low.startswith(DRIVE) and low.endswith((".exe", ".dll")) and not low.startswith(OWN)

    def _look(self) -> None:
        self._pending = None
        task = asyncio.create_task(self._follow())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self) -> None:
        """Hold what runs now, and let go of what doesn't any more."""
        async with self._change:
            running = set()
            for server in self._processes("wineserver"):
                with contextlib.suppress(OSError):
                    for entry in os.scandir(server / "fd"):
                        with contextlib.suppress(OSError):
                            path = os.readlink(entry.path)
                            if self._is_program(path):
                                running.add(path)
            for path in running - self._held:
                if await self._among_smbd("mount", "--bind", path, path):
                    self._held.add(path)
            for path in self._held - running:
                await self._among_smbd("umount", "--lazy", path)
                self._held.discard(path)

    async def _among_smbd(self, *command: str) -> bool:
        """Run a command in smbd's mounts, which every client's smbd shares."""
        for process in self._processes("smbd"):
            done = await asyncio.create_subprocess_exec("nsenter", f"--target={process.name}", "--mount", *command, stderr=asyncio.subprocess.DEVNULL)
            return await done.wait() == 0
        return False

    @staticmethod
    def _processes(name: str) -> list[Path]:
        found = []
        for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
            with contextlib.suppress(OSError):
                if (process / "comm").read_text().startswith(name):
                    found.append(process)
        return found
