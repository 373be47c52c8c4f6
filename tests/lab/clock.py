"""A wall clock that jumps, for chosen processes alone: containers share the machine's clock, which nobody may touch.

A program asks for the time in the vDSO, a page of code that the kernel maps into every process. Writing to it through
/proc/PID/mem gives the process a copy of its own. There, each function that tells the wall clock is led to a few
instructions that ask the kernel and add the jump. CLOCK_REALTIME (and its coarse twin) jumps; the monotonic clock and all
others go on as they were.

It can't show a program that calls the kernel by itself instead, timers set to a time of day, the times of files and log
lines, or what a jumped process starts: the new program has a fresh vDSO.
"""

from __future__ import annotations

import contextlib
import platform
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import LabError
from .processes import Process

_JUMP = 0xE9  # jmp, with a distance of 32 bits
_SYMBOL_TABLE = 11  # the type of a section, SHT_DYNSYM


def _code(seconds: int) -> dict[str, bytes]:
    """Machine code (amd64, System V) for each function; all but the answer and rcx, r11 are left as they were, as a call may."""
    jump = f"48b9 {struct.pack('<q', seconds).hex()}"  # mov rcx, seconds
    words = {
        "__vdso_clock_gettime": (
            "b8e4000000 0f05",  # mov eax, 228 (clock_gettime); syscall
            "85c0 7516",  # test eax, eax; jnz done
            "83ff05 7404",  # cmp edi, CLOCK_REALTIME_COARSE; je add
            "85ff 750d",  # test edi, edi (CLOCK_REALTIME); jnz done
            jump,  # add:
            "48010e c3",  # add [rsi], rcx; done: ret
        ),
        "__vdso_gettimeofday": (
            "b860000000 0f05",  # mov eax, 96 (gettimeofday); syscall
            "4885ff 740d",  # test rdi, rdi; jz done
            jump,
            "48010f c3",  # add [rdi], rcx; done: ret
        ),
        "__vdso_time": (
            "b8c9000000 0f05",  # mov eax, 201 (time); syscall
            jump,
            "4801c8",  # add rax, rcx
            "4885ff 7403 488907 c3",  # test rdi, rdi; jz done; mov [rdi], rax; done: ret
        ),
    }
    return {name: bytes.fromhex("".join(code)) for name, code in words.items()}


@dataclass(frozen=True)
class _Image:
    """The vDSO of one process, as it is mapped."""

    start: int
    content: bytes

    @classmethod
    def of(cls, process: Process) -> _Image:
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
            if line.endswith("[vdso]"):
                start, end = (int(word, 16) for word in line.split()[0].split("-"))
                with open(f"/proc/{process.pid}/mem", "rb", buffering=0) as memory:
                    memory.seek(start)
                    return cls(start, memory.read(end - start))
        raise LabError(f"process {process.pid} has no vDSO: {process.command}")

    def symbols(self) -> dict[str, int]:
        """The offset of each function by its name, from the sections of a 64-bit ELF file."""
        if self.content[:6] != b"\x7fELF\x02\x01":
            raise LabError("only the clock of 64-bit programs can jump")
        table, size, count = struct.unpack_from("<Q", self.content, 40)[0], *struct.unpack_from("<HH", self.content, 58)
        sections = [struct.unpack_from("<IIQQQQIIQQ", self.content, table + index * size) for index in range(count)]
        (symbols,) = (section for section in sections if section[1] == _SYMBOL_TABLE)
        names = sections[symbols[6]]
        found = {}
        for place in range(symbols[4], symbols[4] + symbols[5], symbols[9]):
            name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", self.content, place)
            begin = names[4] + name
            found[self.content[begin : self.content.index(b"\0", begin)].decode()] = value
        return found

    def room(self) -> int:
        """The offset of the zeros that fill the last page: the table of sections comes last in the file."""
        table, size, count = struct.unpack_from("<Q", self.content, 40)[0], *struct.unpack_from("<HH", self.content, 58)
        return (table + size * count + 15) & ~15


def _write(process: Process, place: int, data: bytes) -> None:
    with open(f"/proc/{process.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(place)
        memory.write(data)


def _shift(process: Process, seconds: int, undo: list[tuple[Process, int, bytes]]) -> None:
    """Have the clock jump in one process; adds to `undo` what to write where."""
    image = _Image.of(process)
    symbols, room = image.symbols(), image.room()
    for name, code in _code(seconds).items():
        entry = symbols[name]
        if image.content[entry] == _JUMP:
            raise LabError(f"the clock of process {process.pid} has jumped already")
        if room + len(code) > len(image.content):
            raise LabError("there is no room in the vDSO")
        _write(process, image.start + room, code)
        # A jump takes five bytes. Eight at an aligned place are written at once; who is inside the function finishes the old code.
        before = image.content[entry : entry + 8]
        undo.append((process, image.start + entry, before))
        _write(process, image.start + entry, struct.pack("<Bi", _JUMP, room - entry - 5) + before[5:])
        room += (len(code) + 15) & ~15


@contextlib.contextmanager
def jumped(processes: Iterable[Process], seconds: float) -> Iterator[None]:
    """Have the wall clock of these processes, and of what they fork, differ by so much while the context lasts."""
    if platform.machine() != "x86_64":
        raise LabError("a clock can be made to jump on amd64 only")
    undo: list[tuple[Process, int, bytes]] = []
    try:
        for process in processes:
            try:
                _shift(process, int(seconds), undo)
            except (OSError, LabError):
                if process.alive:
                    raise
        yield
    finally:
        for process, place, before in undo:
            with contextlib.suppress(OSError):
                if process.alive:
                    _write(process, place, before)
