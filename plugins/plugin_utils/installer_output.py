# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What installers print and log, as text: lines while it comes, the last part for a result; it fetches nothing."""

from __future__ import annotations

import codecs
import os
import re
import typing as t

#: Characters of an output or a log that a result carries; the whole is kept by the option log_dest.
TAIL = 64 * 1024
#: Bytes of a line that are shown: the last ones, as with a progress bar that redraws its line.
LONGEST_LINE = 64 * 1024

#: Escape sequences and control characters, which would act on the terminal that shows them.
_CONTROL = re.compile(r'\x1b\[[0-?]*[ -/]*[@-~]|\x1b.|[\x00-\x08\x0b-\x1f\x7f]')


def _encoding(data: bytes) -> str:
    """The encoding of text that begins so: Windows writes UTF-16 with and without a mark, and its code page."""
    if data.startswith(codecs.BOM_UTF8):
        return 'utf-8-sig'
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return 'utf-16'
    sample = data[:4096]
    if sample.count(0) > len(sample) // 4:
        return 'utf-16-le'
    try:
        # The sample may end within a character.
        codecs.getincrementaldecoder('utf-8')().decode(data)
    except UnicodeDecodeError:
        return 'cp1252'
    return 'utf-8'


def decode(data: bytes) -> str:
    """An installer's output as text, line ends as '\\n'; never fails."""
    return data.decode(_encoding(data), 'replace').replace('\r\n', '\n').replace('\r', '\n')


def tail(text: str) -> str:
    """The last ``TAIL`` characters, from the beginning of a line."""
    if len(text) <= TAIL:
        return text
    text = text[-TAIL:]
    return text.partition('\n')[2] or text


def read_tail(path: str) -> str:
    """The last part of a log on the controller; a long one is not read whole. Raises OSError."""
    with open(path, 'rb') as file:
        offset = _tail_offset(os.fstat(file.fileno()).st_size)
        head = file.read(4096)
        file.seek(offset)
        return _last_part(head, offset, file.read())


def decode_tail(data: bytes) -> str:
    """The last part of an output as text; a long one is not decoded whole."""
    offset = _tail_offset(len(data))
    return _last_part(data[:4096], offset, data[offset:])


def _tail_offset(size: int) -> int:
    """Up to four bytes a character; an even offset, as UTF-16 needs it."""
    return max(0, size - 4 * TAIL) & ~3


def _last_part(head: bytes, offset: int, data: bytes) -> str:
    """The text of what follows an offset, in the encoding that the head shows."""
    if offset == 0:
        return tail(decode(data))
    encoding = _encoding(head)
    if encoding.startswith('utf-16') and not head.startswith(codecs.BOM_UTF16_BE):
        encoding = 'utf-16-le'
    elif encoding == 'utf-16':
        encoding = 'utf-16-be'
    return tail(data.decode(encoding, 'replace').replace('\r\n', '\n').replace('\r', '\n'))


class Lines:
    """Shows output line by line while it comes; each stream's lines stay whole, but for very long ones. ``show`` gets a line without its end."""

    def __init__(self, show: t.Callable[[str], None]) -> None:
        self._show = show
        self._rest: dict[str, bytes] = {}
        self._transcript: list[bytes] = []

    def feed(self, stream: str, data: bytes) -> None:
        """Bytes of 'stdout' or 'stderr', as ``Agent.execute`` gives them."""
        self._transcript.append(data)
        *lines, rest = (self._rest.get(stream, b'') + data).split(b'\n')
        self._rest[stream] = rest[-LONGEST_LINE:]
        for line in lines:
            self._line(line)

    def end(self) -> None:
        """Shows what came without a line end."""
        for rest in self._rest.values():
            if rest.strip(b'\0\r'):
                self._line(rest)
        self._rest.clear()

    def write(self, file: t.BinaryIO) -> None:
        """Writes both streams in the order in which they came."""
        file.writelines(self._transcript)

    def _line(self, line: bytes) -> None:
        # UTF-16 splits in the middle of a line end; what shows then is its letters. A progress bar redraws its line: its last state counts.
        text = line.replace(b'\0', b'').rstrip(b'\r').rpartition(b'\r')[2].decode('utf-8', 'replace')
        self._show(_CONTROL.sub('', text))
