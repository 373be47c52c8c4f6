# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""MTOM/XOP: binary data beside a SOAP envelope, streamed both ways in bounded memory; knows no operation and no connection.

https://www.w3.org/TR/soap12-mtom/, https://www.w3.org/TR/xop10/, RFC 2387 (multipart/related), SOAP 1.1 binding: WS-I BP 1.1 and
https://www.w3.org/Submission/soap11mtom10/.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import io
import queue
import secrets
import threading
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.libraries import library

etree = library('lxml.etree')

XOP = 'http://www.w3.org/2004/08/xop/include'
#: Bytes of an answer that is no file that are asked for at a time, and of a file for which pieces are dear.
CHUNK = 1 << 20
#: Bytes of a file that are there at a time: what was read or decrypted is hashed and handed on while it is in the processor's cache.
BUFFER = 256 << 10
#: Pieces of a file that may wait to be hashed while others are sent, or come: where both ends share processors, half as many cost a tenth of the time.
UNHASHED = 8
#: Longest root part that an answer may have: a target must not be able to exhaust the controller's memory.
MAXIMUM_ROOT = 64 << 20
_MAXIMUM_PART_HEADERS = 16 << 10


class MtomError(Exception):
    """What came is not multipart/related as XOP has it, or is larger than it may be."""


class SourceError(Exception):
    """What is to be sent cannot be read."""


# Sending

class Source(t.Protocol):
    """Binary data of known length that can be read once, in order."""

    size: int

    def __iter__(self) -> t.Iterator[bytes | memoryview]:
        """Chunks, ``size`` bytes in all, each to be used before the next is asked for."""


@dataclasses.dataclass
class Bytes:
    """Data in memory."""

    data: bytes

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.data)

    def __iter__(self) -> t.Iterator[bytes]:
        yield self.data


class Late:
    """A few bytes that are known only when they are sent, such as the checksum of the part before."""

    def __init__(self, size: int, make: t.Callable[[], bytes]) -> None:
        self.size = size
        self._make = make

    def __iter__(self) -> t.Iterator[bytes]:
        data = self._make()
        if len(data) != self.size:
            raise MtomError(f'{len(data)} bytes where {self.size} were announced')
        yield data


class Digests:
    """SHA-1 and MD5 of what is sent, or comes, made by a thread beside the one that does it: hashlib lets others run meanwhile, and both take about as long.

    That thread reads the very buffers that are sent, so there are several of them, in a circle; of what comes, copies in such buffers. To be closed.
    """

    def __init__(self) -> None:
        self._full: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._hashed: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._waiting = 0
        self._hashes: dict[str, t.Any] = {}
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name='digests', daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (data := self._full.get()) is not None:
            try:
                self.update(data)
            except Exception as error:  # who sends must not wait for ever
                self._failure = error
            self._hashed.put(data)

    def _wait(self) -> memoryview:
        self._waiting -= 1
        return self._hashed.get()

    def _wait_for_all(self) -> None:
        while self._waiting:
            self._wait()

    def restart(self) -> None:
        """Forgets what was hashed."""
        self._wait_for_all()
        self._hashes = {'sha1': hashlib.sha1(usedforsecurity=False)}
        try:
            self._hashes['md5'] = hashlib.md5(usedforsecurity=False)
        except ValueError:
            pass  # by FIPS 140 there is none

    def update(self, data: bytes | memoryview) -> None:
        """Hashes something at once."""
        for digest in self._hashes.values():
            digest.update(data)

    def buffer(self, size: int) -> memoryview:
        """One that nobody reads any more."""
        if self._waiting < UNHASHED:
            return memoryview(bytearray(size))
        return memoryview(self._wait().obj)

    def hand_over(self, data: memoryview) -> None:
        """Has the beginning of a buffer hashed; who sends it may only read it from now on."""
        self._waiting += 1
        self._full.put(data)

    def add(self, data: bytes | memoryview) -> None:
        """Has a copy of something hashed, which may be changed at once."""
        for start in range(0, len(data), BUFFER):
            piece = data[start:start + BUFFER]
            buffer = self.buffer(BUFFER)[:len(piece)]
            buffer[:] = piece
            self.hand_over(buffer)

    def finish(self) -> dict[str, str | None]:
        """Both in hex; None for what there is not. Raises what went wrong with them."""
        self._wait_for_all()
        if self._failure is not None:
            raise self._failure
        return {name: self._hashes[name].hexdigest() if name in self._hashes else None for name in ('sha1', 'md5')}

    def close(self) -> None:
        """Ends the thread."""
        self._full.put(None)
        self._thread.join()


class FileSource:
    """A stretch of a file, hashed on its way; ``hash`` may have been fed with what is before the stretch, and so ``digests``."""

    def __init__(self, file: io.BufferedReader, size: int, *, hash: t.Any = None, digests: Digests | None = None,
                 on_chunk: t.Callable[[int], None] | None = None, chunk: int = BUFFER) -> None:
        self.size = size
        self._chunk = chunk
        self.hash = hash if hash is not None else hashlib.sha256()
        self._digests = digests
        self._file = file
        self._on_chunk = on_chunk

    def __iter__(self) -> t.Iterator[memoryview]:
        left = self.size
        size = min(self._chunk, left)
        buffer = memoryview(bytearray(size))
        while left:
            if self._digests is not None:
                buffer = self._digests.buffer(size)
            try:
                count = self._file.readinto(buffer[:left])
            except OSError as error:  # as such it would be taken for the connection's
                raise SourceError(error.strerror or str(error)) from None
            if not count:
                raise SourceError(f'it became shorter by {left} bytes while it was read')
            left -= count
            if self._digests is not None:
                self._digests.hand_over(buffer[:count])
            self.hash.update(buffer[:count])
            yield buffer[:count]
            if self._on_chunk is not None:
                self._on_chunk(count)


class Placeholder:
    """Stands for binary data in the arguments from which the envelope is made."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.token = f'xop-{secrets.token_hex(16)}'


class Body:
    """A request's body, multipart/related: it has a length (so no chunked coding), and can be iterated once."""

    def __init__(self, envelope: t.Any, placeholders: t.Sequence[Placeholder]) -> None:
        self._boundary = f'sojourn-{secrets.token_hex(12)}'
        parts = {placeholder.token: placeholder for placeholder in placeholders}
        order: list[Placeholder] = []
        for element in list(envelope.iter()):
            placeholder = parts.get(element.text) if isinstance(element.text, str) else None
            if placeholder is not None:
                element.text = None
                etree.SubElement(element, f'{{{XOP}}}Include', href=f'cid:{placeholder.token}@sojourn', nsmap={'xop': XOP})
                order.append(placeholder)
        root = etree.tostring(envelope, xml_declaration=True, encoding='utf-8')
        head = self._head('root@sojourn', 'application/xop+xml; charset=UTF-8; type="text/xml"', first=True)
        self._pieces: list[tuple[bytes, Source]] = [(head, Bytes(root))]
        for placeholder in order:
            self._pieces.append((self._head(f'{placeholder.token}@sojourn', 'application/octet-stream'), placeholder.source))
        self._end = f'\r\n--{self._boundary}--\r\n'.encode('ascii')
        #: In bytes.
        self.length = sum(len(head) + source.size for head, source in self._pieces) + len(self._end)

    def _head(self, content_id: str, content_type: str, first: bool = False) -> bytes:
        return ('' if first else '\r\n').encode('ascii') + (
            f'--{self._boundary}\r\nContent-Type: {content_type}\r\nContent-Transfer-Encoding: binary\r\nContent-ID: <{content_id}>\r\n\r\n').encode('ascii')

    @property
    def content_type(self) -> str:
        """Value of the header Content-Type."""
        return f'multipart/related; type="application/xop+xml"; start="<root@sojourn>"; start-info="text/xml"; boundary="{self._boundary}"'

    def __iter__(self) -> t.Iterator[bytes | memoryview]:
        # Small pieces travel together: each yield is one TLS record or more.
        pending = b''
        for head, source in self._pieces:
            pending += head
            for chunk in source:
                if len(pending) + len(chunk) <= 65536:
                    pending += chunk
                    continue
                if pending:
                    yield pending
                    pending = b''
                yield chunk
        yield pending + self._end


# Receiving

@functools.lru_cache(maxsize=64)
def parse_content_type(value: str) -> tuple[str, dict[str, str]]:
    """A Content-Type header: (media type, parameters), both in lower case but for the parameters' values."""
    import email.message

    message = email.message.Message()
    message['Content-Type'] = value
    parameters = {name.lower(): text for name, text in (message.get_params(failobj=[], header='Content-Type') or [])[1:]}
    return message.get_content_type(), parameters


class Reader:
    """Reads multipart/related part by part, without holding a part in memory; ``read_into`` fills a buffer as ``io.RawIOBase.readinto`` does."""

    def __init__(self, read_into: t.Callable[[memoryview], int], boundary: str) -> None:
        if not boundary or len(boundary) > 200:
            raise MtomError('the boundary is missing')
        self._read_into = read_into
        self._delimiter = b'\r\n--' + boundary.encode('latin-1')
        # One buffer for all, since to get memory for each piece takes as long as to decrypt it; what is in it, and was not taken, is from start to end.
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        # The first delimiter has no line break before it; with one put there, all are alike.
        self._buffer[:2] = b'\r\n'
        self._start, self._end = 0, 2
        self._ended = False
        self._in_part = False
        self._last = False

    def _fill(self) -> bool:
        """False: nothing more comes."""
        if self._ended:
            return False
        if self._start:
            left = self._end - self._start
            self._buffer[:left] = self._buffer[self._start:self._end]
            self._start, self._end = 0, left
        count = self._read_into(self._view[self._end:])
        self._end += count
        self._ended = not count
        return not self._ended

    def _begins_with(self, text: bytes, start: int = 0) -> bool:
        return self._buffer.startswith(text, self._start + start, self._end)

    def data(self) -> t.Iterator[memoryview]:
        """The present part's data, in pieces, each to be used before the next is asked for."""
        while self._in_part:
            at = self._buffer.find(self._delimiter, self._start, self._end)
            if at >= 0:
                piece = self._view[self._start:at]
                self._start = at
                self._in_part = False
                if piece:
                    yield piece
                return
            # What could be the delimiter's beginning stays.
            sure = self._end - self._start - len(self._delimiter) + 1
            if sure > 0:
                piece = self._view[self._start:self._start + sure]
                self._start += sure
                yield piece
            if not self._fill():
                raise MtomError('the answer ended inside a part')

    def all(self, limit: int) -> bytes:
        """The present part's data in one piece. Raises MtomError past ``limit`` bytes."""
        pieces: list[bytes] = []
        size = 0
        for piece in self.data():
            size += len(piece)
            if size > limit:
                raise MtomError(f'a part is longer than {limit} bytes')
            pieces.append(bytes(piece))
        return b''.join(pieces)

    def next(self) -> dict[str, str] | None:
        """Goes to the next part, skipping the rest of this one; its headers (names in lower case), or None after the last."""
        if self._last:
            return None
        for unused_piece in self.data():
            pass
        if not self._begins_with(self._delimiter):
            # A preamble, before the first part only.
            self._in_part = True
            for unused_piece in self.data():
                pass
        length = len(self._delimiter)
        while self._end - self._start < length + 2:
            if not self._fill():
                raise MtomError('the answer ended at a boundary')
        if self._begins_with(b'--', length):
            self._last = True
            self._start = self._end
            while self._fill():  # to the end, so that the connection can be used again
                self._start = self._end
            return None
        while True:
            begin = self._start + length
            line_end = self._buffer.find(b'\r\n', begin, self._end)
            end = self._buffer.find(b'\r\n\r\n', begin, self._end)
            if end >= 0:
                break
            if self._end - begin > _MAXIMUM_PART_HEADERS:
                raise MtomError("a part's headers are too long")
            if not self._fill():
                raise MtomError("the answer ended inside a part's headers")
        if self._buffer[begin:line_end].strip():
            raise MtomError('a boundary has something after it')
        headers: dict[str, str] = {}
        for line in bytes(self._buffer[line_end + 2:end]).split(b'\r\n'):
            name, colon, value = line.decode('latin-1').partition(':')
            if colon:
                headers[name.strip().lower()] = value.strip()
        # The line break after the headers also counts as the one before a delimiter, for a part without data.
        self._start = end + 2
        while self._end - self._start < len(self._delimiter) and self._fill():
            pass
        self._in_part = not self._begins_with(self._delimiter)
        if self._in_part:
            self._start = min(self._start + 2, self._end)
        return headers


def content_id(headers: dict[str, str]) -> str:
    """A part's Content-ID without its angle brackets."""
    return headers.get('content-id', '').strip().removeprefix('<').removesuffix('>')


class Root:
    """An answer's root part with each xop:Include replaced by a text that any SOAP library can read as base64."""

    def __init__(self, data: bytes) -> None:
        if b'Include' not in data:
            #: The envelope, as it is to be parsed.
            self.envelope = data
            self._tokens: dict[bytes, str] = {}
            return
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
        try:
            root = etree.fromstring(data, parser)
        except etree.XMLSyntaxError as error:
            raise MtomError(f'the root part is not XML: {error}') from None
        self._tokens = {}
        for include in list(root.iter(f'{{{XOP}}}Include')):
            from urllib.parse import unquote

            href = include.get('href', '')
            parent = include.getparent()
            if not href.startswith('cid:') or parent is None:
                raise MtomError(f"the reference '{href[:100]}' is not to a part")
            token = secrets.token_bytes(16)
            self._tokens[token] = unquote(href[4:])
            parent.remove(include)
            parent.text = base64.b64encode(token).decode('ascii')
        self.envelope = etree.tostring(root, encoding='utf-8', xml_declaration=True)

    def reference(self, value: t.Any) -> str | None:
        """The Content-ID that a binary value stands for, None for a value that came inline."""
        return self._tokens.get(value) if isinstance(value, bytes) else None
