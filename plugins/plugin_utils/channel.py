# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SOAP over TLS 1.3 to one agent, both ends pinned (agent/api/deploy.wsdl); not what an operation is used for (that is session.py).

zeep makes and reads every envelope; urllib3 carries them; mtom.py streams what is beside them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import re
import socket
import ssl
import threading
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils import mtom, network
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import API_FOLDER, SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.libraries import library, require

urllib3 = library('urllib3')
urllib3_connection = library('urllib3.connection')
urllib3_connectionpool = library('urllib3.connectionpool')
urllib3_exceptions = library('urllib3.exceptions')
zeep = library('zeep')
zeep_exceptions = library('zeep.exceptions')

NAMESPACE = 'urn:sojourn:deploy:1'
log = logging.getLogger('sojourn.channel')

#: Operations that may be sent again when an answer was lost.
IDEMPOTENT = frozenset((
    'GetInfo', 'RenewLease', 'ReadOutput', 'Signal', 'Release', 'Stat', 'Remove', 'QueryPackages', 'OpenPort', 'ClosePort', 'ListPorts',
    'ListExecutions', 'RemoveLeftovers', 'Shutdown'))
#: Binary data below this many bytes goes inside the envelope.
INLINE = 512
#: Seconds that the agent may need for an answer beyond the wait that it was asked for.
ANSWER_SECONDS = 60.0
#: Seconds after which a target that acknowledges nothing counts as gone; its agent may take longer for an answer.
SILENCE_SECONDS = 12
#: Seconds between tries of an operation whose answer was lost.
RETRY_SECONDS = (0.05, 0.2, 0.5, 1.0, 2.0)
#: Largest attachment kept in memory (output of a process): as the WSDL has it for ReadOutput.
MAXIMUM_ATTACHMENT = 17 << 20
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

    @property
    def port(self) -> int:
        """The agent's TCP port."""
        return self.peer.sockaddr[1]

    @property
    def address(self) -> str:
        """For errors."""
        return self.peer.address


_contract: Contract | None = None
_contract_lock = threading.Lock()


def contract() -> Contract:
    """The WSDL, parsed once for all sessions."""
    global _contract
    with _contract_lock:
        if _contract is None:
            _contract = Contract(os.path.join(API_FOLDER, 'deploy.wsdl'))
        return _contract


class Contract:
    """Envelopes by the WSDL: from arguments, and into results."""

    def __init__(self, path: str) -> None:
        require(zeep)
        # The file is local and refers to nothing, so zeep gets a transport that can fetch nothing.
        self._client = zeep.Client(path, transport=_NoTransport(), settings=zeep.Settings(strict=True, xml_huge_tree=True, forbid_dtd=True))
        self._service = self._client.create_service(f'{{{NAMESPACE}}}DeployBinding', 'https://agent/')
        self._binding = self._service._binding

    def request(self, operation: str, arguments: dict[str, t.Any]) -> tuple[t.Any, str]:
        """(envelope, SOAPAction)."""
        envelope = self._client.create_message(self._service, operation, **{name: value for name, value in arguments.items() if value is not None})
        return envelope, self._binding.get(operation).soapaction

    def answer(self, operation: str, status: int, envelope: bytes) -> t.Any:
        """What zeep makes of an answer. Raises zeep's exceptions, ValueError where it answers something else."""
        if status == 200 and f'{operation}Response'.encode('ascii') not in envelope:
            raise ValueError(f'it holds no {operation}Response')  # zeep would take anything
        return self._binding.process_reply(self._client, self._binding.get(operation), _Reply(status, envelope))


class _NoTransport:
    """Stands in for zeep's transport: reads the WSDL from the disk, and can send nothing."""

    session = None

    def load(self, url: str) -> bytes:
        with open(url, 'rb') as file:
            return file.read()


@dataclasses.dataclass
class _Reply:
    """As much of a requests.Response as zeep reads."""

    status_code: int
    content: bytes
    headers: dict[str, str] = dataclasses.field(default_factory=lambda: {'Content-Type': 'text/xml; charset=utf-8'})
    encoding: str = 'utf-8'


_WORD = re.compile(r'(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])')


@functools.lru_cache(maxsize=256)
def snake(name: str) -> str:
    """'LeaseRemainingSeconds' as 'lease_remaining_seconds', 'TLSVersion' as 'tls_version'."""
    return _WORD.sub('_', name).lower()


def plain(value: t.Any) -> t.Any:
    """A zeep object as dictionaries and lists with names in snake case; times as ISO 8601, binary as it is."""
    values = getattr(value, '__values__', None)
    if values is not None:
        return {snake(name): plain(item) for name, item in values.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if hasattr(value, 'isoformat'):
        return value.isoformat()
    return value


def _notice_silence(connection: socket.socket) -> None:
    """Has the kernel end a connection whose other end is gone without a word, as after a power cut, whether something is sent or waited for."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        'TCP_KEEPIDLE': SILENCE_SECONDS // 2, 'TCP_KEEPINTVL': SILENCE_SECONDS // 6, 'TCP_KEEPCNT': 3, 'TCP_USER_TIMEOUT': SILENCE_SECONDS * 1000}
    for name, value in options.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


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
            _notice_silence(connection)
            return connection

    class Pool(urllib3_connectionpool.HTTPSConnectionPool):
        ConnectionCls = Connection

    host = endpoint.address.partition('%')[0]
    return Pool(
        f'[{host}]' if ':' in host else host, endpoint.port, maxsize=16, block=False, ssl_context=context, cert_reqs='CERT_NONE',
        assert_fingerprint=endpoint.fingerprint, assert_hostname=False)


def _chain(error: BaseException) -> t.Iterator[BaseException]:
    """An exception with all that is behind it, and inside its arguments: urllib3 wraps them."""
    waiting: list[BaseException] = [error]
    seen: set[int] = set()
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
        #: Archives of modules, by SHA-256: whether the agent has kept them.
        self.archives: dict[str, bool] = {}
        #: When the agent last answered.
        self.heard = time.monotonic()

    def close(self) -> None:
        """Closes idle connections; waits between tries end."""
        self._closed.set()
        self._pool.close()

    def _not_pinned(self, step: str) -> SojournError:
        error = self._error('SD-502', step, port=self.endpoint.port, address=self.endpoint.address)
        error.again = True  # nothing was sent
        return error

    def _error(self, code: str, step: str, **fields: t.Any) -> SojournError:
        return SojournError(code, host=self.endpoint.host, step=step, **fields)

    def _post(self, operation: str, body: t.Any, headers: dict[str, str], read_timeout: float) -> t.Any:
        """One HTTP exchange, the answer's body unread. Raises ConnectionLost, or SD-502 where the other end is another."""
        try:
            response = self._pool.request(
                'POST', '/', body=body, headers=headers, retries=False, redirect=False, assert_same_host=False, preload_content=False, decode_content=False,
                enforce_content_length=True,  # not so by itself before urllib3 2
                timeout=urllib3.Timeout(connect=self.endpoint.connection_timeout, read=read_timeout))
            self._reached = True
            self.heard = time.monotonic()
            return response
        except (urllib3_exceptions.HTTPError, OSError) as error:
            self._translate(error, operation)

    def _translate(self, error: BaseException, operation: str) -> t.NoReturn:
        step = f'calling {operation}'
        for part in _chain(error):
            if isinstance(part, SojournError):
                raise part from None
            if isinstance(part, ConnectionLost):
                raise ConnectionLost(str(part), refused=part.refused, unsent=part.unsent) from None
            if isinstance(part, urllib3_exceptions.ClosedPoolError):
                raise ConnectionLost('the channel was closed', unsent=True) from None
        for part in _chain(error):
            text = str(part)
            if isinstance(part, urllib3_exceptions.SSLError) and 'ingerprint' in text:
                raise self._not_pinned(step) from None
            if isinstance(part, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
                raise ConnectionLost('the connection was closed') from None
            if isinstance(part, ssl.SSLError):
                reason = part.reason or text
                if 'ALERT' in reason.upper() and 'PROTOCOL_VERSION' not in reason.upper():
                    raise self._error(
                        'SD-501', step, port=self.endpoint.port, address=self.endpoint.address, ports=self.endpoint.ports,
                        detail=f'the other end refused the handshake ({reason})') from None
                raise self._not_pinned(step) from None
        for part in _chain(error):
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
        reader = mtom.Reader(read, parameters.get('boundary', ''))
        if reader.next() is None:
            raise mtom.MtomError('the answer has no root part')
        return mtom.Root(reader.all(mtom.MAXIMUM_ROOT)), reader

    def _read(self, response: t.Any, operation: str, count: int) -> bytes:
        try:
            return response.read(count)
        except (urllib3_exceptions.HTTPError, OSError) as error:
            self._translate(error, operation)

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
        answer = plain(result)
        return self._fill(operation, answer, root, attachments) if attachments else answer

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
            return self._error(
                'SD-501', 'reaching the agent', port=self.endpoint.port, address=self.endpoint.address, ports=self.endpoint.ports, detail=lost)
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
                # What is refused was not carried out, so it may be sent again whatever it is; but nothing listens there any more.
                # Execute, too, may be sent again where it names the process: the agent starts one of a name only once.
                again = (operation in IDEMPOTENT or operation == 'Execute' and arguments.get('Handle')) and not (lost.refused and tries >= 3)
                pause = RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)]
                tries += 1
                if not again or time.monotonic() + pause > deadline or self._closed.wait(pause):
                    raise self.gone(operation, lost) from None

    # Files

    def put_file(self, local_path: str, remote_path: str, *, mode: str | None = None, user: str | None = None, checksum: str | None = None,
                 on_progress: t.Callable[[int, int], None] | None = None, patience: float = 30.0) -> dict[str, t.Any]:
        """Streams a file to the target; see ``Agent.put_file``. Returns size and checksum (hex)."""
        step = 'sending a file'
        try:
            file = open(local_path, 'rb')  # noqa: SIM115
        except OSError as error:
            raise self._error('SD-709', step, path=local_path, detail=error.strerror or error) from None
        with file:
            total = os.fstat(file.fileno()).st_size
            return self._put(file, total, local_path, remote_path, mode, user, checksum, on_progress, patience)

    def _put(self, file: t.BinaryIO, total: int, local_path: str, remote_path: str, mode: str | None, user: str | None, checksum: str | None,
             on_progress: t.Callable[[int, int], None] | None, patience: float) -> dict[str, t.Any]:
        step = 'sending a file'
        part = f'{remote_path}.sojourn-part'
        offset = 0
        best = -1
        tries = 0
        deadline = time.monotonic() + patience
        while True:
            digest = hashlib.sha256()
            file.seek(0)
            left = offset
            while left:
                data = file.read(min(mtom.CHUNK, left))
                if not data:
                    break
                digest.update(data)
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

            source = mtom.FileSource(file, total - offset, hash=digest, on_chunk=count)
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
                answer = plain(self._result('PutFile', response, root))
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

    def get_file(self, remote_path: str, local_path: str, *, user: str | None = None, patience: float = 30.0) -> dict[str, t.Any]:
        """Streams a file from the target; see ``Agent.get_file``. Returns size and checksum (hex)."""
        step = 'fetching a file'
        part = f'{local_path}.sojourn-part-{os.getpid()}-{threading.get_ident()}'
        tries = 0
        try:
            # 'x': a name that somebody else put there is not written to.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
            with open(part, 'xb') as file:
                whole = hashlib.sha256()
                deadline = time.monotonic() + patience
                while True:
                    before = file.tell()
                    try:
                        size = self._get_once(remote_path, file, whole, user)
                        break
                    except ConnectionLost as lost:
                        tries = 0 if file.tell() > before else tries + 1
                        pause = RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)]
                        if tries >= TRANSFER_TRIES or time.monotonic() + pause > deadline and tries or self._closed.wait(pause):
                            raise self.gone('GetFile', lost) from None
                if file.tell() != size:
                    raise self._error('SD-505', step, detail=f'{file.tell()} bytes came of a file of {size}')
            os.replace(part, local_path)
            return {'size': size, 'checksum': whole.hexdigest()}
        except OSError as error:
            raise self._error('SD-709', step, path=local_path, detail=error.strerror or error) from None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(part)

    def _get_once(self, remote_path: str, file: t.BinaryIO, whole: t.Any, user: str | None) -> int:
        offset = file.tell()
        arguments = {'Path': remote_path, 'Offset': offset, 'User': user}
        with contextlib.closing(self._exchange('GetFile', arguments, 0)) as response:
            try:
                root, reader = self._root('GetFile', response)
                answer = plain(self._result('GetFile', response, root))
                size = int(answer['size'])
                data, checksum = answer['data'], answer['checksum']
                data_reference, checksum_reference = root.reference(data), root.reference(checksum)
                # The agent tells the checksum of what it sends. Where that is all of the file, it is hashed once.
                digests = [whole] if offset == 0 else [whole, hashlib.sha256()]

                def take(piece: bytes) -> None:
                    if file.tell() + len(piece) > size:
                        raise mtom.MtomError(f'more than the {size} bytes announced')
                    file.write(piece)
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


class _Mismatch(Exception):
    """The file's checksum is not the one that was expected; the transfer is broken off before the agent could take it."""
