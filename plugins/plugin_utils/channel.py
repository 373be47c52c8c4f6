# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SOAP over TLS 1.3 to one agent, both ends pinned (agent/api/deploy.wsdl); not what an operation is used for (that is session.py).

contract.py makes and reads the envelopes; urllib3 carries them; mtom.py streams what is beside them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import http.client
import io
import logging
import os
import secrets
import shutil
import ssl
import sys
import tempfile
import threading
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils import mtom, network
from ansible_collections.sojourn.deploy.plugins.plugin_utils import tunnel as tunnel_module
from ansible_collections.sojourn.deploy.plugins.plugin_utils.contract import NAMESPACE, contract
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.file_identity import Identity
from ansible_collections.sojourn.deploy.plugins.plugin_utils.libraries import library, require
from ansible_collections.sojourn.deploy.plugins.plugin_utils.module_archive import Archives

urllib3 = library('urllib3')
urllib3_connection = library('urllib3.connection')
urllib3_connectionpool = library('urllib3.connectionpool')
urllib3_exceptions = library('urllib3.exceptions')
urllib3_ssl = library('urllib3.util.ssl_')
zeep = library('zeep')
zeep_exceptions = library('zeep.exceptions')

log = logging.getLogger('sojourn.channel')

#: Operations that may be sent again when an answer was lost.
IDEMPOTENT = frozenset((
    'GetInfo', 'RenewLease', 'ReadOutput', 'Signal', 'Release', 'Stat', 'Remove', 'QueryPackages', 'OpenPort', 'ClosePort', 'ListPorts',
    'ListExecutions', 'RemoveLeftovers', 'KeepArchive', 'PrepareInterpreter', 'Shutdown'))
#: Binary data below this many bytes goes inside the envelope.
INLINE = 512
#: Seconds that the agent may need for an answer beyond the wait that it was asked for.
ANSWER_SECONDS = 60.0
#: Seconds between tries of an operation whose answer was lost.
RETRY_SECONDS = (0.05, 0.2, 0.5, 1.0, 2.0)
#: Largest attachment kept in memory (output of a process): as the WSDL has it for ReadOutput.
MAXIMUM_ATTACHMENT = 17 << 20
#: Files whose digests are remembered.
REMEMBERED = 256
#: A lost transfer is taken up again this many times without a further byte having arrived.
TRANSFER_TRIES = 4


class ConnectionLost(Exception):
    """The request may or may not have arrived; ``unsent``: it certainly did not; ``refused``: nor does anything listen there."""

    def __init__(self, detail: str, *, refused: bool = False, unsent: bool = False) -> None:
        super().__init__(detail)
        self.refused = refused
        self.unsent = unsent


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where an agent is, and which one it is."""

    peer: network.Peer
    fingerprint: str
    ports: str
    host: str | None = None
    connection_timeout: float = 10.0
    #: What leads to the agent where its port, or pipe, cannot be connected to.
    tunnel: tunnel_module.Tunnel | None = None

    @property
    def where(self) -> str:
        """For people."""
        return f'{self.address} port {self.port}' if self.tunnel is None else f'{self.address} through the tunnel to {self.tunnel}'

    @property
    def port(self) -> int:
        """The agent's TCP port."""
        return self.peer.sockaddr[1]

    @property
    def address(self) -> str:
        """For errors."""
        return self.peer.address


def _pool(endpoint: Endpoint, context: ssl.SSLContext) -> t.Any:
    """urllib3's pool of connections to one agent: TLS 1.3 with the run's certificate, and no other certificate than the agent's at the other end.

    urllib3 compares the certificate's SHA-256 right after the handshake, before a byte is sent. No name and no proxy decides anything: connections
    go to the address that the way in reached.
    """
    class Connection(urllib3_connection.HTTPSConnection):
        def _new_conn(self) -> t.Any:
            try:
                connection = network.connect_any([endpoint.peer], timeout=endpoint.connection_timeout, service="the agent's port", step='connecting')[0]
            except SojournError as error:
                refused = ConnectionLost(error.sentence, refused=error.code == 'SD-203', unsent=True)
                raise urllib3_exceptions.NewConnectionError(self, error.sentence) from refused
            network.notice_silence(connection)
            return connection

    class TunnelConnection(urllib3_connection.HTTPSConnection):
        def connect(self) -> None:
            stream = _stream(self, endpoint)
            try:
                self.sock = tunnel_module.TlsSocket(stream, context, endpoint.connection_timeout)
                urllib3_ssl.assert_fingerprint(self.sock.getpeercert(binary_form=True), endpoint.fingerprint)
                self.is_verified = True
            except BaseException:
                self.sock = None
                stream.close()
                raise

        @property
        def is_connected(self) -> bool:
            return self.sock is not None and not self.sock.readable()

    class Pool(urllib3_connectionpool.HTTPSConnectionPool):
        ConnectionCls = Connection if endpoint.tunnel is None else TunnelConnection

    host = endpoint.address.partition('%')[0]
    return Pool(
        f'[{host}]' if ':' in host else host, endpoint.port, maxsize=16, block=False, ssl_context=context, cert_reqs='CERT_NONE',
        assert_fingerprint=endpoint.fingerprint, assert_hostname=False)


def _stream(connection: t.Any, endpoint: Endpoint) -> tunnel_module.Stream:
    try:
        return t.cast(tunnel_module.Tunnel, endpoint.tunnel).open(endpoint.connection_timeout)
    except tunnel_module.Unreachable as error:
        lost = ConnectionLost(str(error), refused=error.refused, unsent=True)
        raise urllib3_exceptions.NewConnectionError(connection, str(error)) from lost


def _chain(error: BaseException, before: BaseException | None = None) -> t.Iterator[BaseException]:
    """An exception with all that is behind it, and inside its arguments: urllib3 wraps them. Not ``before``, which the caller was handling already."""
    waiting: list[BaseException] = [error]
    seen: set[int] = {id(before)}
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inside = (*current.args, getattr(current, 'reason', None), current.__cause__, current.__context__)
        waiting += [other for other in inside if isinstance(other, BaseException)]


class Channel:
    """Operations on one agent. Thread-safe: each call takes a connection of its own from the pool."""

    def __init__(self, endpoint: Endpoint, context: ssl.SSLContext) -> None:
        require(urllib3, zeep)
        self.endpoint = endpoint
        self._pool = _pool(endpoint, context)
        self._closed = threading.Event()
        self._reached = False
        #: What the agent has kept of modules.
        self.archives = Archives()
        #: When the agent last answered.
        self.heard = time.monotonic()

    def close(self) -> None:
        """Closes idle connections; waits between tries end."""
        self._closed.set()
        self._pool.close()

    def _not_pinned(self, step: str) -> SojournError:
        error = self._error('SD-502', step, port=self.endpoint.tunnel or self.endpoint.port, address=self.endpoint.address)
        error.again = True  # nothing was sent
        return error

    def _unreached(self, step: str, detail: t.Any) -> SojournError:
        endpoint = self.endpoint
        if endpoint.tunnel is not None:
            return self._error('SD-507', step, place=endpoint.tunnel, address=endpoint.address, detail=detail)
        return self._error('SD-501', step, port=endpoint.port, address=endpoint.address, ports=endpoint.ports, detail=detail)

    def _error(self, code: str, step: str, **fields: t.Any) -> SojournError:
        return SojournError(code, host=self.endpoint.host, step=step, **fields)

    def _post(self, operation: str, body: t.Any, headers: dict[str, str], read_timeout: float) -> t.Any:
        """One HTTP exchange, the answer's body unread. Raises ConnectionLost, or SD-502 where the other end is another."""
        before = sys.exc_info()[1]
        try:
            response = self._pool.request(
                'POST', '/', body=body, headers=headers, retries=False, redirect=False, assert_same_host=False, preload_content=False, decode_content=False,
                enforce_content_length=True,  # not so by itself before urllib3 2
                timeout=urllib3.Timeout(connect=self.endpoint.connection_timeout, read=read_timeout))
            self._reached = True
            self.heard = time.monotonic()
            return response
        except (urllib3_exceptions.HTTPError, OSError) as error:
            self._translate(error, operation, before)

    def _translate(self, error: BaseException, operation: str, before: BaseException | None = None) -> t.NoReturn:
        step = f'calling {operation}'
        for part in _chain(error, before):
            if isinstance(part, SojournError):
                raise part from None
            if isinstance(part, ConnectionLost):
                raise ConnectionLost(str(part), refused=part.refused, unsent=part.unsent) from None
            if isinstance(part, urllib3_exceptions.ClosedPoolError):
                raise ConnectionLost('the channel was closed', unsent=True) from None
        for part in _chain(error, before):
            text = str(part)
            if isinstance(part, urllib3_exceptions.SSLError) and 'ingerprint' in text:
                raise self._not_pinned(step) from None
            if isinstance(part, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
                raise ConnectionLost('the connection was closed') from None
            if isinstance(part, ssl.SSLError):
                reason = part.reason or text
                if 'ALERT' in reason.upper() and 'PROTOCOL_VERSION' not in reason.upper():
                    raise self._unreached(step, f'the other end refused the handshake ({reason})') from None
                raise self._not_pinned(step) from None
        for part in _chain(error, before):
            if isinstance(part, (ConnectionError, TimeoutError)):
                raise ConnectionLost(getattr(part, 'strerror', None) or str(part)) from None
        raise ConnectionLost(type(error).__name__ if not str(error) else str(error)) from None

    def _exchange(self, operation: str, arguments: dict[str, t.Any], wait: float, deadline_sources: t.Sequence[mtom.Placeholder] = ()) -> t.Any:
        """One request and its answer, read as a stream. Returns urllib3's response."""
        placeholders = list(deadline_sources)
        for name, value in list(arguments.items()):
            if isinstance(value, (bytes, bytearray)) and len(value) >= INLINE:
                placeholder = mtom.Placeholder(mtom.Bytes(bytes(value)))
                placeholders.append(placeholder)
                arguments[name] = placeholder.token
        try:
            envelope, action = contract().request(operation, arguments)
        except (zeep_exceptions.Error, TypeError, ValueError) as error:
            raise self._error('SD-504', f'calling {operation}', detail=error) from None
        headers = {'SOAPAction': f'"{action}"', 'Accept': 'multipart/related, text/xml'}
        body: t.Any
        if placeholders:
            body = mtom.Body(envelope, placeholders)
            headers['Content-Type'] = body.content_type
            headers['Content-Length'] = str(body.length)
        else:
            body = mtom.etree.tostring(envelope, xml_declaration=True, encoding='utf-8')
            headers['Content-Type'] = 'text/xml; charset=utf-8'
        return self._post(operation, body, headers, wait + ANSWER_SECONDS)

    def _root(self, operation: str, response: t.Any) -> tuple[mtom.Root, mtom.Reader | None]:
        """The answer's envelope, and a reader that stands before the first attachment."""
        read = functools.partial(self._read, response, operation)
        media_type, parameters = mtom.parse_content_type(response.headers.get('Content-Type', ''))
        if media_type != 'multipart/related':
            if media_type != 'text/xml':
                raise mtom.MtomError(f'HTTP status {response.status}, content type {media_type}')
            pieces: list[bytes] = []
            size = 0
            while True:
                piece = read(mtom.CHUNK)
                if not piece:
                    break
                size += len(piece)
                if size > mtom.MAXIMUM_ROOT:
                    raise mtom.MtomError('the answer is too long')
                pieces.append(piece)
            return mtom.Root(b''.join(pieces)), None
        reader = mtom.Reader(functools.partial(self._read_into, response, operation), parameters.get('boundary', ''))
        if reader.next() is None:
            raise mtom.MtomError('the answer has no root part')
        return mtom.Root(reader.all(mtom.MAXIMUM_ROOT)), reader

    def _read(self, response: t.Any, operation: str, count: int) -> bytes:
        try:
            return response.read(count)
        except (urllib3_exceptions.HTTPError, OSError) as error:
            self._translate(error, operation)

    def _read_into(self, response: t.Any, operation: str, buffer: memoryview) -> int:
        """As ``io.RawIOBase.readinto``. urllib3's own gets new memory for each piece, and copies it twice, which takes longer than to decrypt it."""
        raw = getattr(response, '_fp', None)
        if not isinstance(raw, http.client.HTTPResponse):
            data = self._read(response, operation, len(buffer))
            buffer[:len(data)] = data
            return len(data)
        try:
            count = raw.readinto(buffer)
        except (http.client.HTTPException, OSError) as error:
            self._translate(error, operation)
        if not count:
            if raw.length:  # of a Content-Length; readinto does not mind
                raise ConnectionLost('the answer ended too early')
            response.release_conn()  # whole: the connection can be used again
        return count

    def _result(self, operation: str, response: t.Any, root: mtom.Root) -> t.Any:
        step = f'calling {operation}'
        try:
            return contract().answer(operation, response.status, root.envelope)
        except zeep_exceptions.Fault as fault:
            detail = fault.detail.find(f'{{{NAMESPACE}}}Fault') if fault.detail is not None and hasattr(fault.detail, 'find') else None
            if detail is None:
                code = 'SD-504' if 'Client' in (fault.code or '') else 'SD-505'
                raise self._error(code, step, detail=fault.message) from None
            error = SojournError.from_fault(
                detail.findtext(f'{{{NAMESPACE}}}Code'), detail.findtext(f'{{{NAMESPACE}}}Sentence'), detail.findtext(f'{{{NAMESPACE}}}Remedy'),
                host=self.endpoint.host, step=step)
            error.again = error.code == 'SD-503'  # it is ending, and has not begun it
            raise error from None
        except (zeep_exceptions.Error, ValueError, TypeError, AttributeError, LookupError) as error:
            raise self._error('SD-505', step, detail=error) from None

    def _once(self, operation: str, arguments: dict[str, t.Any], wait: float) -> t.Any:
        with contextlib.closing(self._exchange(operation, arguments, wait)) as response:
            try:
                root, reader = self._root(operation, response)
                result = self._result(operation, response, root)
                attachments: dict[str, bytes] = {}
                if reader is not None:
                    while True:
                        headers = reader.next()
                        if headers is None:
                            break
                        if len(attachments) >= 4:
                            raise mtom.MtomError('the answer has too many parts')
                        attachments[mtom.content_id(headers)] = reader.all(MAXIMUM_ATTACHMENT)
            except mtom.MtomError as error:
                raise self._error('SD-505', f'calling {operation}', detail=error) from None
        return self._fill(operation, result, root, attachments) if attachments else result

    def _fill(self, operation: str, answer: t.Any, root: mtom.Root, attachments: dict[str, bytes]) -> t.Any:
        """Puts attachments where the answer refers to them."""
        if isinstance(answer, dict):
            return {name: self._fill(operation, value, root, attachments) for name, value in answer.items()}
        reference = root.reference(answer)
        if reference is None:
            return answer
        if reference not in attachments:
            raise self._error('SD-505', f'calling {operation}', detail=f"the part '{reference}' is missing")
        return attachments[reference]

    def gone(self, operation: str, lost: ConnectionLost) -> SojournError:
        """The error for a connection that is lost for good."""
        if not self._reached:
            return self._unreached('reaching the agent', lost)
        error = self._error('SD-503', f'calling {operation}', detail=lost)
        error.again = operation != 'Execute' or lost.unsent
        return error

    def call(self, operation: str, *, wait: float = 0.0, patience: float = 5.0, **arguments: t.Any) -> t.Any:
        """One operation. ``wait``: seconds that the agent was asked to wait; ``patience``: seconds to try again when the connection is lost.

        Arguments and results are named as in the WSDL, results in snake case. An operation of one result gives just that, as zeep does.
        Raises the agent's own faults, SD-501 to SD-505.
        """
        deadline = time.monotonic() + patience
        tries = 0
        unsent = True
        while True:
            try:
                return self._once(operation, dict(arguments), wait)
            except SojournError as error:
                # Another agent is there now; the one before it may have carried out what was sent at first.
                error.again = error.again and (operation != 'Execute' or unsent)
                raise
            except ConnectionLost as lost:
                unsent = lost.unsent = unsent and lost.unsent
                # What did not leave, or was refused, was not carried out, so it may be sent again whatever it is; but what refuses does not listen any more.
                # Execute, too, may be sent again where it names the process: the agent starts one of a name only once.
                again = (unsent or operation in IDEMPOTENT or operation == 'Execute' and arguments.get('Handle')) and not (lost.refused and tries >= 3)
                pause = RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)]
                tries += 1
                if not again or time.monotonic() + pause > deadline or self._closed.wait(pause):
                    raise self.gone(operation, lost) from None

    # Files

    def put_file(self, local_path: str, remote_path: str, *, mode: str | None = None, user: str | None = None, checksum: str | None = None,
                 digests: bool = False, on_progress: t.Callable[[int, int], None] | None = None, patience: float = 30.0) -> dict[str, t.Any]:
        """Streams a file to the target; see ``Agent.put_file``. Returns size and checksum (hex), with ``digests`` sha1 and md5 as well."""
        step = 'sending a file'
        try:
            file = open(local_path, 'rb')  # noqa: SIM115
        except OSError as error:
            raise self._error('SD-709', step, path=local_path, detail=error.strerror or error) from None
        with file:
            found = os.fstat(file.fileno())
            arguments = (file, found.st_size, local_path, remote_path, mode, user, checksum, on_progress, patience)
            if not digests:
                return self._put(*arguments)
            key = (local_path, *Identity.of(found))
            if not _sent.begin(key):
                result = self._put(*arguments)
                return {**result, **_sent.digests(key, result['checksum'])}
            try:
                with contextlib.closing(mtom.Digests()) as more:
                    result = self._put(*arguments, more)
                    made = more.finish()
                _sent.tell(key, result['checksum'], made)
                return {**result, **made}
            finally:
                _sent.end(key)

    def _put(self, file: io.BufferedReader, total: int, local_path: str, remote_path: str, mode: str | None, user: str | None, checksum: str | None,
             on_progress: t.Callable[[int, int], None] | None, patience: float, more: mtom.Digests | None = None) -> dict[str, t.Any]:
        step = 'sending a file'
        part = f'{remote_path}.sojourn-part'
        offset = 0
        best = -1
        tries = 0
        deadline = time.monotonic() + patience
        while True:
            digest = hashlib.sha256()
            if more is not None:
                more.restart()
            file.seek(0)
            left = offset
            while left:
                data = file.read(min(mtom.CHUNK, left))
                if not data:
                    break
                digest.update(data)
                if more is not None:
                    more.update(data)
                left -= len(data)
            done = offset

            def count(size: int) -> None:
                nonlocal done
                done += size
                if on_progress is not None:
                    on_progress(done, total)

            def finish(digest: t.Any = digest) -> bytes:
                if checksum is not None and digest.hexdigest() != checksum:
                    raise _Mismatch(digest.hexdigest())
                return digest.digest()

            # A pipe has a round trip for each piece.
            size = mtom.BUFFER if self.endpoint.tunnel is None else mtom.CHUNK
            source = mtom.FileSource(file, total - offset, hash=digest, digests=more, on_chunk=count, chunk=size)
            try:
                answer = self._put_once(source, mtom.Late(32, finish), remote_path, offset, total, mode, user)
            except _Mismatch as mismatch:
                self._forget_part(part, user)
                raise self._error('SD-106', step, path=local_path, actual=mismatch, expected=checksum) from None
            except mtom.SourceError as error:
                self._forget_part(part, user)
                raise self._error('SD-709', step, path=local_path, detail=error) from None
            except SojournError as error:
                if error.code != 'SD-706' or not offset:
                    raise
                # The transfer that was lost has come to its end after all, or to another: there is no such part any more.
                offset = 0
                continue
            except ConnectionLost as lost:
                log.info('%s: sending %s broke off: %s', self.endpoint.host, remote_path, lost)
                status = self.call('Stat', Path=part, User=user, patience=patience)
                offset = min(int(status['size'] or 0), total) if status['kind'] == 'file' else 0
                tries = tries + 1 if offset <= best else 0
                best = max(best, offset)
                if tries >= TRANSFER_TRIES or time.monotonic() > deadline and tries:
                    raise self.gone('PutFile', lost) from None
                log.info('%s: sending goes on at %d of %d bytes', self.endpoint.host, offset, total)
                continue
            actual = bytes(answer['checksum'] or b'').hex()
            if actual != digest.hexdigest():
                raise self._error('SD-707', step, path=remote_path, actual=actual, expected=digest.hexdigest())
            return {'size': int(answer['size']), 'checksum': actual}

    def _put_once(self, source: mtom.Source, checksum: mtom.Source, remote_path: str, offset: int, total: int, mode: str | None, user: str | None) -> t.Any:
        data_placeholder, checksum_placeholder = mtom.Placeholder(source), mtom.Placeholder(checksum)
        arguments = {'Path': remote_path, 'Offset': offset, 'TotalSize': total, 'Mode': mode, 'User': user,
                     'Data': data_placeholder.token, 'Checksum': checksum_placeholder.token}
        with contextlib.closing(self._exchange('PutFile', arguments, 0, (data_placeholder, checksum_placeholder))) as response:
            try:
                root, reader = self._root('PutFile', response)
                answer = self._result('PutFile', response, root)
                if reader is not None:
                    attachments = {}
                    while True:
                        headers = reader.next()
                        if headers is None:
                            break
                        if len(attachments) >= 4:
                            raise mtom.MtomError('the answer has too many parts')
                        attachments[mtom.content_id(headers)] = reader.all(1024)
                    answer = self._fill('PutFile', answer, root, attachments)
                return answer
            except mtom.MtomError as error:
                raise self._error('SD-505', 'calling PutFile', detail=error) from None

    def _forget_part(self, part: str, user: str | None) -> None:
        """Removes what a broken-off transfer left; the agent would do so only at its end."""
        # The agent may hold the file open until it has noticed that the connection is gone, and Windows deletes no open file.
        for pause in (0.0, *RETRY_SECONDS):
            if pause and self._closed.wait(pause):
                return
            try:
                self.call('Remove', Path=part, User=user)
                return
            except SojournError as error:
                if error.code != 'SD-706':
                    return

    def get_file(self, remote_path: str, local_path: str, *, user: str | None = None, digests: bool = False,
                 on_progress: t.Callable[[], None] | None = None, patience: float = 30.0) -> dict[str, t.Any]:
        """Streams a file from the target; see ``Agent.get_file``. Returns size and checksum (hex), with ``digests`` sha1, md5, identity and resumed as well.

        ``on_progress`` is called now and then; may raise.
        """
        if not digests:
            return self._get(remote_path, local_path, user, on_progress, patience)
        with contextlib.closing(mtom.Digests()) as more:
            more.restart()
            return self._get(remote_path, local_path, user, on_progress, patience, more)

    def _get(self, remote_path: str, local_path: str, user: str | None, on_progress: t.Callable[[], None] | None, patience: float,
             more: mtom.Digests | None = None) -> dict[str, t.Any]:
        step = 'fetching a file'
        whole_path = os.path.realpath(local_path)  # what a link leads to is written, as open() would
        device = os.path.exists(whole_path) and not os.path.isfile(whole_path) and not os.path.isdir(whole_path)  # such as /dev/null: it has to stay
        # Not the file's own name with something added: that may be as long as names can be.
        part = os.path.join(tempfile.gettempdir() if device else os.path.dirname(whole_path), f'.sojourn-part-{secrets.token_hex(8)}')
        tries = 0
        resumed = False
        try:
            with open(part, 'xb', opener=_for_this_user if device else None) as file:
                whole = hashlib.sha256()
                deadline = time.monotonic() + patience
                while True:
                    before = file.tell()
                    try:
                        size = self._get_once(remote_path, file, whole, user, on_progress, more)
                        break
                    except ConnectionLost as lost:
                        resumed = file.tell() > 0
                        tries = 0 if file.tell() > before else tries + 1
                        pause = RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)]
                        if tries >= TRANSFER_TRIES or time.monotonic() + pause > deadline and tries or self._closed.wait(pause):
                            raise self.gone('GetFile', lost) from None
                if file.tell() != size:
                    raise self._error('SD-505', step, detail=f'{file.tell()} bytes came of a file of {size}')
                result: dict[str, t.Any] = {'size': size, 'checksum': whole.hexdigest()}
                if more is not None:
                    file.flush()
                    result.update(more.finish(), identity=[*Identity.of(os.fstat(file.fileno()))], resumed=resumed)
            if device:
                with open(part, 'rb') as whole_file, open(whole_path, 'wb') as there:
                    shutil.copyfileobj(whole_file, there)
            else:
                os.replace(part, whole_path)
            return result
        except OSError as error:
            raise self._error('SD-709', step, path=local_path, detail=error.strerror or error) from None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(part)

    def _get_once(self, remote_path: str, file: t.BinaryIO, whole: t.Any, user: str | None, on_progress: t.Callable[[], None] | None,
                  more: mtom.Digests | None) -> int:
        offset = file.tell()
        arguments = {'Path': remote_path, 'Offset': offset, 'User': user}
        with contextlib.closing(self._exchange('GetFile', arguments, 0)) as response:
            try:
                root, reader = self._root('GetFile', response)
                answer = self._result('GetFile', response, root)
                size = int(answer['size'])
                data, checksum = answer['data'], answer['checksum']
                data_reference, checksum_reference = root.reference(data), root.reference(checksum)
                # The agent tells the checksum of what it sends. Where that is all of the file, it is hashed once.
                digests = [whole] if offset == 0 else [whole, hashlib.sha256()]

                def take(piece: bytes | memoryview) -> None:
                    if on_progress is not None:
                        on_progress()
                    if file.tell() + len(piece) > size:
                        raise mtom.MtomError(f'more than the {size} bytes announced')
                    file.write(piece)
                    if more is not None:
                        more.add(piece)
                    for digest in digests:
                        digest.update(piece)

                if data_reference is None and data:
                    take(data)
                while reader is not None:
                    headers = reader.next()
                    if headers is None:
                        break
                    name = mtom.content_id(headers)
                    if name == data_reference:
                        for piece in reader.data():
                            take(piece)
                    elif name == checksum_reference:
                        checksum = reader.all(1024)
            except mtom.MtomError as error:
                if 'ended inside' in str(error):
                    raise ConnectionLost(str(error)) from None
                raise self._error('SD-505', 'calling GetFile', detail=error) from None
        if bytes(checksum or b'') != digests[-1].digest():
            raise self._error('SD-707', 'fetching a file', path=remote_path, actual=digests[-1].hexdigest(), expected=bytes(checksum or b'').hex())
        return size


def _for_this_user(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _Sent:
    """The digests of files that were sent, for who sends the same file again: to many targets at once, one of the transfers makes them.

    The others do not wait for it, which may be to a slow target: they do without where it has not ended before them. A file is the same by what the file
    system says of it, and by the SHA-256 of what was sent of it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: None: they are being made.
        self._files: dict[t.Hashable, tuple[str, dict[str, str | None]] | None] = {}

    def begin(self, key: t.Hashable) -> bool:
        """Whether the caller is to make them; then it calls ``end``, whatever happens."""
        with self._lock:
            if key in self._files:
                return False
            self._files[key] = None
            if len(self._files) > REMEMBERED:
                del self._files[next(iter(self._files))]
            return True

    def tell(self, key: t.Hashable, checksum: str, digests: dict[str, str | None]) -> None:
        """What they are; ``checksum`` is the SHA-256."""
        with self._lock:
            self._files[key] = (checksum, digests)

    def end(self, key: t.Hashable) -> None:
        """They are told, or will not be."""
        with self._lock:
            if self._files.get(key) is None:
                self._files.pop(key, None)

    def digests(self, key: t.Hashable, checksum: str) -> dict[str, str | None]:
        """Those of a file with that SHA-256; None for what is not known."""
        with self._lock:
            known = self._files.get(key)
            if known is not None and known[0] == checksum:
                return known[1]
            if known is not None:  # it has changed, and looks as before
                del self._files[key]
            return {'sha1': None, 'md5': None}


_sent = _Sent()


class _Mismatch(Exception):
    """The file's checksum is not the one that was expected; the transfer is broken off before the agent could take it."""
