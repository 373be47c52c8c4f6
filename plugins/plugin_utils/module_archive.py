# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a module an agent has not got yet.

Ansible packs a module and all that it imports into a zip, which its program has in base64. An agent keeps such archives. Of one that it has kept nothing
needs to be sent; of another most files are those of earlier ones, since modules import the same: then what is new is sent, and where the rest is.
"""

from __future__ import annotations

import base64
import binascii
import collections
import functools
import hashlib
import io
import struct
import threading
import time
import typing as t
import zipfile

from ansible_collections.sojourn.deploy.plugins.plugin_utils.broker_client import Likely

#: Begins a zip in base64, as Ansible writes it into a module's program; and how long it is where it is worth the trouble.
MARK = b"'UEsDB"
LEAST = 4096
#: Bytes that are sent rather than looked up: to say where they are takes as many.
LEAST_PART = 96
#: What the agent takes: characters of base64 (MaximumArchive in agent/internal/process/process.go), bytes before them, and parts
#: (agent/internal/deploy/archive.go).
MAXIMUM = 1 << 20
MAXIMUM_BEFORE = 1 << 20
MAXIMUM_PARTS = 4096
#: Archives of which is remembered where their files are, for all agents; some 20 kB each.
LAYOUTS = 64
#: Of these, how many of the last that one agent got are looked through. It keeps 32, those that were used last.
SOURCES = 16
#: Archives that an agent has at most ahead of their first use: of the 32 that it keeps, what is in use must not have to go for what may never be.
AHEAD = 16
#: Archives of a play that are remembered to be sent ahead.
COMING = 64
#: Of how many such archives is remembered what of them has to be sent where others have gone: it is the same for all targets of a play.
DIVIDED = 32
#: Seconds for which a module waits for its own archive, which is on its way ahead of it, before it brings it itself.
AHEAD_SECONDS = 10.0
#: Seconds between two looks whether anybody still wants it meanwhile.
LOOK_SECONDS = 0.1

#: The fixed part of a file's header within a zip, and where in it the lengths of name and extra field are: APPNOTE.TXT 6.3.10, 4.3.7.
_HEADER_BYTES = 30
_LENGTHS_AT = 26


class File(t.NamedTuple):
    """A file within a zip: where its header, its content and its end are, and the SHA-256 of header with content, and of the content."""

    start: int
    content: int
    end: int
    whole: bytes
    inner: bytes


def find(program: bytes) -> slice | None:
    """Where in a module's program its archive is; None: it has none, or not just one."""
    start = program.find(MARK) + 1
    stop = program.find(b"'", start)
    if not start or stop - start < LEAST or program.find(MARK, stop) >= 0:
        return None
    return slice(start, stop)


class _Layout(t.NamedTuple):
    """Files of an archive in their order, and where they are, by SHA-256 of header with content, and of the content."""

    files: list[File]
    places: dict[bytes, int]


class Order(t.NamedTuple):
    """What Execute gets for a module beside all else: Input, and of its archive what the agent has not kept."""

    checksum: str
    text: bytes
    arguments: dict[str, t.Any]

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return 'Archive' not in self.arguments


class Expected(t.NamedTuple):
    """By what modules are likely to be run, see ``Likely``, and what their programs begin with."""

    command_line: str
    interpreters: tuple[str, ...]
    beginning: bytes


class Coming:
    """Archives of modules that a play's tasks are going to need, in their order, for all agents. Thread-safe."""

    def __init__(self) -> None:
        self._play = 0
        self._all: dict[str, bytes] = {}
        self._by: Likely | None = None
        self._beginning = b''
        self._lock = threading.Lock()

    def add(self, program: bytes, play: int = 0, by: Likely | None = None) -> None:
        """A module's program, of which only the archive counts, and what is before it. What has none as Ansible makes it, or is one too many, is passed over.

        ``play`` counts the run's plays: those of an earlier one are forgotten, whatever comes. ``by``: see ``expected``.
        """
        archive = find(program)
        with self._lock:
            if play > self._play:
                self._play, self._all, self._by = play, {}, None
        if archive is None:
            return
        text = program[archive]
        checksum = hashlib.sha256(text).hexdigest()
        with self._lock:
            if play < self._play:
                return
            self._by, self._beginning = by, program[:archive.start]
            if checksum in self._all or len(self._all) >= COMING:
                return
        if _read(checksum, text)[1].files:
            with self._lock:
                if play == self._play:
                    self._all[checksum] = text

    @property
    def expected(self) -> Expected | None:
        """None: who knows."""
        with self._lock:
            return Expected(*self._by, self._beginning) if self._by is not None else None

    def all(self) -> list[tuple[str, bytes]]:
        """Their checksums and texts."""
        with self._lock:
            return list(self._all.items())


class Archives:
    """What one agent has kept, as far as is known. Thread-safe."""

    def __init__(self) -> None:
        #: Those that are on their way ahead of their modules, by SHA-256: set once that is over, whatever came of it.
        self._ahead: dict[str, threading.Event] = {}
        self._sending = False
        self._takes_ahead = True
        self._asked = False
        #: Those that went ahead, and have not been used yet.
        self._unused: set[str] = set()
        #: By SHA-256 of their text: whether they are there. One that was not, although the agent had taken it, is not left out again.
        self._kept: dict[str, bool] = {}
        #: The last that it got.
        self._sources: collections.deque[str] = collections.deque(maxlen=SOURCES)
        self._lock = threading.Lock()

    def order(self, program: bytes, archive: slice, given_up: t.Callable[[], bool] = lambda: False) -> Order:
        """For a module's program, with its archive as ``find`` has found it. Where that is on its way, this waits for it, until it is ``given_up``."""
        text = program[archive]
        checksum = hashlib.sha256(text).hexdigest()
        with self._lock:
            ahead = None if checksum in self._kept else self._ahead.get(checksum)
        deadline = time.monotonic() + AHEAD_SECONDS
        while ahead is not None and not ahead.wait(LOOK_SECONDS) and time.monotonic() < deadline and not given_up():
            pass
        with self._lock:
            kept, sources = self._kept.get(checksum), tuple(self._sources)
            self._unused.discard(checksum)
        made = ('', b'') if kept else None if kept is False or archive.start > MAXIMUM_BEFORE else _parts(checksum, text, sources)
        if made is None:
            return Order(checksum, text, {'Input': program})
        parts, new = made
        return Order(checksum, text, {
            'Input': b''.join((program[:archive.start], new, program[archive.stop:])), 'Archive': checksum, 'ArchiveOffset': archive.start,
            'ArchiveParts': parts or None})

    @property
    def in_use(self) -> bool:
        """Whether the agent has got any."""
        with self._lock:
            return bool(self._kept)

    def ask_interpreter(self) -> bool:
        """Whether the agent is to be asked for an interpreter before any module has come: once."""
        with self._lock:
            asked, self._asked = self._asked, True
            return not asked

    def wanting(self, coming: Coming) -> bool:
        """Whether there is one to be sent ahead, and nobody is at it."""
        with self._lock:
            return not self._sending and self._next(coming) is not None

    def ahead(self, coming: Coming) -> t.Generator[Order, None, None]:
        """What is to be sent ahead, one after the other, as what KeepArchive gets; nothing where somebody is at it.

        Until the next is asked for, the module of this one waits for it. What came of it is for ``sent`` or ``lost`` to know, as with others.
        """
        with self._lock:
            if self._sending:
                return
            self._sending = True
        try:
            while True:
                with self._lock:
                    following = self._next(coming)
                    if following is None:
                        return
                    checksum, text = following
                    over = self._ahead[checksum] = threading.Event()
                    sources = tuple(self._sources)
                try:
                    # With nothing to refer to it is in one part.
                    parts, new = t.cast('tuple[str, bytes]', _divided(checksum, text, sources) or _divided(checksum, text, ()))
                    with self._lock:
                        self._unused.add(checksum)
                    yield Order(checksum, text, {'Archive': checksum, 'ArchiveParts': parts, 'Data': new or None})
                finally:
                    with self._lock:
                        del self._ahead[checksum]
                        if checksum not in self._kept:
                            self._unused.discard(checksum)
                    over.set()
        finally:
            with self._lock:
                self._sending = False

    def no_more_ahead(self) -> None:
        """The agent does not take them."""
        with self._lock:
            self._takes_ahead = False

    def _next(self, coming: Coming) -> tuple[str, bytes] | None:
        """The lock is held."""
        if not self._takes_ahead or len(self._unused) >= AHEAD:
            return None
        return next(((checksum, text) for checksum, text in coming.all() if checksum not in self._kept), None)

    def sent(self, order: Order) -> None:
        """The agent has taken it, and keeps its archive from now on."""
        with self._lock:
            if order.checksum not in self._kept:
                self._kept[order.checksum] = True
                self._sources.append(order.checksum)

    def lost(self, order: Order) -> bool:
        """The agent has not kept what it was thought to have: this archive, which is not left out again then, or one that parts of it are in.

        Whether there was any such.
        """
        with self._lock:
            known = bool(self._sources) or order.checksum in self._kept
            self._sources.clear()
            if order.checksum in self._kept:
                self._kept[order.checksum] = False
            return known


def _parts(checksum: str, text: bytes, sources: t.Sequence[str]) -> tuple[str, bytes] | None:
    """An archive as Execute's ArchiveParts, and the bytes of it that have to be sent; None: it has to go as it is."""
    data, layout = _read(checksum, text)
    if not layout.files:
        return None
    with _layouts_lock:
        known = [(source, _layouts[source].places) for source in reversed(sources) if source in _layouts]
    parts, new, at = _Parts(), [], 0
    for file in layout.files:
        for digest, begin in ((file.whole, file.start), (file.inner, file.content)):
            place = next(((source, places[digest]) for source, places in known if digest in places), None) if file.end - begin >= LEAST_PART else None
            if place is not None:
                new.append(data[at:begin])
                parts.add(begin - at)
                parts.add(file.end - begin, *place)
                at = file.end
                break
    new.append(data[at:])
    parts.add(len(data) - at)
    return (parts.text(), b''.join(new)) if len(parts) <= MAXIMUM_PARTS else None


_divided = functools.lru_cache(maxsize=DIVIDED)(_parts)


class _Parts:
    """The parts of an archive, one after the other; neighbours that are neighbours where they come from become one."""

    def __init__(self) -> None:
        self._all: list[tuple[int, str, int]] = []

    def __len__(self) -> int:
        return len(self._all)

    def add(self, size: int, archive: str = '', offset: int = 0) -> None:
        if not size:
            return
        if self._all:
            before, of, at = self._all[-1]
            if of == archive and (not archive or at + before == offset):
                self._all[-1] = before + size, of, at
                return
        self._all.append((size, archive, offset))

    def text(self) -> str:
        return ' '.join(f'{size}:{archive}:{offset}' if archive else str(size) for size, archive, offset in self._all)


_layouts: collections.OrderedDict[str, _Layout] = collections.OrderedDict()
_layouts_lock = threading.Lock()
_NONE = _Layout([], {})


def _read(checksum: str, text: bytes) -> tuple[bytes, _Layout]:
    """An archive's bytes and its layout; without files: it is not laid out as zips of Ansible are."""
    if len(text) > MAXIMUM:
        return b'', _NONE
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        return b'', _NONE
    if base64.b64encode(data) != text:  # the agent makes the text from the bytes
        return b'', _NONE
    with _layouts_lock:
        layout = _layouts.get(checksum)
        if layout is not None:
            _layouts.move_to_end(checksum)
            return data, layout
    try:
        files = list(_files(data))
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError):
        files = []
    layout = _Layout(files, {digest: at for file in files for digest, at in ((file.whole, file.start), (file.inner, file.content))})
    with _layouts_lock:
        _layouts[checksum] = layout
        while len(_layouts) > LAYOUTS:
            _layouts.popitem(last=False)
    return data, layout


def _files(data: bytes) -> t.Iterator[File]:
    """Raises BadZipFile, struct.error, ValueError where it is none, or its files overlap."""
    view, at = memoryview(data), 0
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    for entry in entries:
        start = entry.header_offset
        name, extra = struct.unpack_from('<HH', data, start + _LENGTHS_AT)
        content = start + _HEADER_BYTES + name + extra
        end = content + entry.compress_size
        if start < at or end > len(data):
            raise ValueError('not one after the other')
        yield File(start, content, end, hashlib.sha256(view[start:end]).digest(), hashlib.sha256(view[content:end]).digest())
        at = end
