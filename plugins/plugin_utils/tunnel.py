# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The channel's connections where the agent has no port of its own: streams inside the way in's connection, which is kept for that, and TLS over them.

How a stream is opened is the way in's business (way_in.py); what is said over it the channel's (channel.py).
"""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import ssl
import threading
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import NothingThere, Stream, WayIn

log = logging.getLogger('sojourn.channel')

#: Most bytes taken from a stream at once.
RECEIVE = 1 << 20
#: Streams that could not be opened, one after the other, after which the connection under them counts as lost, though nothing has said so.
LOST_AFTER = 2


class TlsSocket:
    """TLS over a stream, as much of a socket as http.client and urllib3 want of one.

    Python's own TLS sockets want a descriptor of the kernel's, which neither an SSH channel nor a pipe of SMB is. What is written at once is
    encrypted as a whole before it is sent: each message to a pipe costs a round trip.
    """

    def __init__(self, stream: Stream, context: ssl.SSLContext, timeout: float | None) -> None:
        self._stream = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)
        #: Files on it that are open: it is closed when the last of them is.
        self._readers = 0
        self._closed = False
        self._ended = False
        self._never: tuple[socket.socket, socket.socket] | None = None
        stream.settimeout(timeout)
        self._do(self._tls.do_handshake)

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self._stream.sendall(data)

    def _do(self, action: t.Callable[..., t.Any], *arguments: t.Any) -> t.Any:
        """One of TLS' actions, with what it wants to have sent and received."""
        while True:
            try:
                result = action(*arguments)
            except ssl.SSLWantReadError:
                self._flush()
                data = self._stream.recv(RECEIVE)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
                continue
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._flush()  # TLS' own word on why it ends
                raise
            return result

    def sendall(self, data: t.Any) -> None:
        """Sends all of it. Raises OSError."""
        view = memoryview(data).cast('B')
        while view:
            view = view[self._do(self._tls.write, view):]
        self._flush()

    def recv_into(self, buffer: t.Any) -> int:
        """As of a socket; the stream's end, however it comes, is 0. Raises OSError."""
        if not len(buffer):
            return 0
        try:
            count = self._do(self._tls.read, len(buffer), buffer)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            count = 0
        else:
            self._flush()
        self._ended = not count
        return count

    def getpeercert(self, binary_form: bool = False) -> t.Any:
        """As of ssl.SSLSocket."""
        return self._tls.getpeercert(binary_form)

    def settimeout(self, seconds: float | None) -> None:
        """Seconds for each wait from now on."""
        self._stream.settimeout(seconds)

    def readable(self) -> bool:
        """Whether there is something to read, or it has ended."""
        return self._ended or bool(self._tls.pending() or self._incoming.pending) or self._stream.readable()

    def fileno(self) -> int:
        """A descriptor that never is ready: urllib3 before 2 wants to look whether one is."""
        if self._never is None:
            self._never = socket.socketpair()
        return self._never[0].fileno()

    def makefile(self, mode: str, buffering: int | None = None) -> io.BufferedReader:
        """A file to read from."""
        if mode != 'rb':
            raise ValueError(f'a file {mode} is not to be had')
        self._readers += 1
        return io.BufferedReader(_Reader(self), buffering or io.DEFAULT_BUFFER_SIZE)

    def close(self) -> None:
        """Ends it once the last of its files is closed too."""
        self._closed = True
        if self._readers <= 0:
            self._end()

    def _reader_closed(self) -> None:
        self._readers -= 1
        if self._closed:
            self.close()

    def _end(self) -> None:
        never, self._never = self._never, None
        for end in never or ():
            end.close()
        self._stream.close()


class _Reader(io.RawIOBase):
    """What ``TlsSocket.makefile`` reads from."""

    def __init__(self, connection: TlsSocket) -> None:
        super().__init__()
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int:
        return self._connection.recv_into(buffer)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._connection._reader_closed()


class Unreachable(Exception):
    """No stream could be opened; ``refused``: nobody is at its other end."""

    def __init__(self, detail: str, *, refused: bool = False) -> None:
        super().__init__(detail)
        self.refused = refused


class Tunnel:
    """A session's way in, kept signed in for as long as its agent is there, and opened anew where it was lost. Thread-safe."""

    def __init__(self, place: str, port: int, make: t.Callable[[Target], WayIn], targets: t.Callable[[], t.Iterable[Target]]) -> None:
        """``place`` and ``port``: see ``WayIn.open_stream``. ``targets``: with whose credentials to sign in, the best first."""
        self.place = place
        self.port = port
        self._make = make
        self._targets = targets
        self._way_in: WayIn | None = None
        self._given: WayIn | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._failures = 0
        #: A sign-in that was refused is not tried again, which would lock the account, until there are other credentials.
        self._refused: dict[Target, SojournError] = {}

    def take(self, way_in: WayIn) -> None:
        """This one is connected already, and the tunnel's from now on."""
        way_in.keep()
        self._way_in = self._given = way_in

    def __str__(self) -> str:
        if self.port:
            return f'[{self.place}]:{self.port}' if ':' in self.place else f'{self.place}:{self.port}'
        return rf'\\.\pipe\{self.place}'

    def open(self, timeout: float) -> Stream:
        """One more stream to the agent. Raises Unreachable, and SojournError where it is vain to try again."""
        way_in: WayIn | None = None
        try:
            way_in = self._connected()
            stream = way_in.open_stream(self.place, self.port, timeout)
        except NothingThere as error:
            self._failures = 0
            raise Unreachable(str(error), refused=True) from None
        except SojournError as error:
            if not error.code.startswith('SD-2'):
                raise
            if way_in is not None:
                self._suspect(way_in)
            raise Unreachable(error.sentence) from None
        self._failures = 0
        return stream

    def _suspect(self, way_in: WayIn) -> None:
        """No stream could be opened over it. Behind a jump host a connection can be dead without anybody being told."""
        with self._lock:
            self._failures += 1
            if self._way_in is not way_in or self._failures < LOST_AFTER and way_in.alive:
                return
            self._way_in, self._failures = None, 0
        log.info('%s: the connection under the tunnel says nothing any more', way_in.target.host)
        way_in.release()

    def _connected(self) -> WayIn:
        with self._lock:
            if self._closed:
                raise Unreachable('the channel was closed')
            if self._way_in is not None and self._way_in.alive:
                return self._way_in
            if self._way_in is not None:
                log.info('%s: the connection under the tunnel was lost', self._way_in.target.host)
                self._way_in.release()
                self._way_in = None
            self._way_in = self._connect()
            return self._way_in

    def _connect(self) -> WayIn:
        refused: SojournError | None = None
        for target in dict.fromkeys(self._targets()):
            if target in self._refused:
                refused = refused or self._refused[target]
                continue
            way_in = self._make(target)
            try:
                way_in.connect()
                way_in.keep()
                return way_in
            except BaseException as error:
                way_in.release()
                if not isinstance(error, SojournError) or not error.code.startswith('SD-3'):
                    raise
                self._refused[target] = refused = error
        raise refused or Unreachable('nobody to sign in as')

    def give_back(self) -> None:
        """Closes it, but for the way in that it was given, which is the giver's again. Never raises."""
        if self._way_in is self._given:
            self._way_in = None
        self.close()

    def close(self) -> None:
        """Signs out; whoever still uses a stream finds it ended. Never raises."""
        with self._lock:
            self._closed = True
            way_in, self._way_in = self._way_in, None
        if way_in is not None:
            way_in.release()
