# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A command prompt of a Windows host over one WinRM connection; not what is done with it (way_in_winrm.py).

pywinrm speaks WS-Management ([MS-WSMV]) and seals its messages; this file adds what it lacks for us: the connection is one that is there already, the
controller's environment has no say (proxies, CA bundles, .netrc), the sign-in is done once and by pyspnego, nobody waits for ever,
and an answer has an end.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import email.utils
import hashlib
import http.client
import socket
import ssl
import threading
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.libraries import library, require

winrm_protocol = library('winrm.protocol')
winrm_encryption = library('winrm.encryption')
winrm_exceptions = library('winrm.exceptions')
requests = library('requests')
adapters = library('requests.adapters')
auth = library('requests.auth')
urllib3_connection = library('urllib3.connection')
urllib3_pool = library('urllib3.connectionpool')
urllib3_exceptions = library('urllib3.exceptions')
spnego = library('spnego')
spnego_bindings = library('spnego.channel_bindings')
x509 = library('cryptography.x509')

#: Seconds that the other end may be silent, and within which it is to answer what waits for something ([MS-WSMV] OperationTimeout).
ANSWER_SECONDS = 30.0
OPERATION_SECONDS = 20
#: Seconds from a message's first byte to its answer's last.
EXCHANGE_SECONDS = 60.0
#: Seconds after which a shell that nobody uses any more ends, and all that runs in it: the target's own end of a connection that broke.
IDLE_SECONDS = 120
#: Bytes of standard input in one message. As base64 in its envelope it is a third longer, and MaxEnvelopeSizekb is 500 where nobody has changed it.
INPUT_SIZE = 256 << 10
#: Bytes that a command may say: none of ours comes near.
MAXIMUM_OUTPUT = 4 << 20
#: Bytes of an answer's body before the sign-in is done, when anybody may be answering, and after it. MaxEnvelopeSizekb holds for answers, too.
MAXIMUM_GREETING = 64 << 10
MAXIMUM_ANSWER = 8 << 20
#: Bytes of a body in one go.
PIECE = 64 << 10
#: Characters that the command prompt takes.
LINE_LENGTH = 8191
PATH = '/wsman'

#: Codes of WSManFault that people meet (wsmerror.h, winerror.h).
ACCESS_DENIED = 5
#: Ways to sign in as WinRM offers them, and as they are called here.
OFFERS = {'negotiate': 'ntlm', 'basic': 'basic'}


class Timeout(Exception):
    """The other end did not answer in time."""


class NotWinRM(Exception):
    """What answers is not WinRM; says why."""


class Refused(Exception):
    """The sign-in was refused."""


class CertificateRefused(Exception):
    """The other end's certificate is not one that counts; says why."""


@dataclasses.dataclass(frozen=True)
class Done:
    """What a command came to."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Its standard output."""
        return self.stdout.decode('utf-8', 'replace').removeprefix('\ufeff')


class _Given:
    """Where a connection pool gets its one socket from."""

    def __init__(self) -> None:
        self.socket: socket.socket | None = None

    def take(self, seconds: float | None = None) -> socket.socket:
        """The socket, once: the sign-in is the connection's, and another one would have none. Each answer on it may take so many seconds."""
        connection, self.socket = self.socket, None
        if connection is None:
            raise ConnectionError('the target closed the connection')
        connection.settimeout(seconds)
        return connection


def _pools(given: _Given, seen: t.Callable[[ssl.SSLSocket], None]) -> dict[str, t.Any]:
    """urllib3's pools for both schemes, whose connection is the given one. ``seen`` is told of TLS once it is there."""

    class Plain(urllib3_connection.HTTPConnection):
        """Over the given socket."""

        def _new_conn(self) -> socket.socket:
            return given.take(self.timeout)

    class Secure(urllib3_connection.HTTPSConnection):
        """TLS over the given socket."""

        def _new_conn(self) -> socket.socket:
            return given.take(self.timeout)

        def connect(self) -> None:
            super().connect()
            self.is_verified = True  # or the user has decided that it need not be: no warning with each request
            seen(self.sock)

    class PlainPool(urllib3_pool.HTTPConnectionPool):
        """See ``Plain``."""

        ConnectionCls = Plain

    class SecurePool(urllib3_pool.HTTPSConnectionPool):
        """See ``Secure``."""

        ConnectionCls = Secure

    return {'http': PlainPool, 'https': SecurePool}


def _adapter(given: _Given, context: ssl.SSLContext | None, seen: t.Callable[[ssl.SSLSocket], None]) -> t.Any:
    """requests' way to the connection, with all about trust in ``context``."""

    class Adapter(adapters.HTTPAdapter):
        """One connection, one context."""

        def init_poolmanager(self, *args: t.Any, **kwargs: t.Any) -> None:
            super().init_poolmanager(*args, **kwargs, ssl_context=context)
            self.poolmanager.pool_classes_by_scheme = _pools(given, seen)

        def cert_verify(self, *unused_args: t.Any, **unused_kwargs: t.Any) -> None:
            """The context knows."""

        def build_connection_pool_key_attributes(self, request: t.Any, verify: t.Any, cert: t.Any = None) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
            host, unused_tls = super().build_connection_pool_key_attributes(request, verify, cert)
            return host, {'ssl_context': context}

    return Adapter(pool_connections=1, pool_maxsize=1, max_retries=0)


def context_of(validate: bool, ca_file: str | None) -> ssl.SSLContext:
    """TLS 1.2 or newer, as WinRM of Windows Server 2016 has; whom it trusts. Raises OSError for a file that is not there, or holds no certificate."""
    context = ssl.create_default_context(cafile=ca_file) if validate else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not validate:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def binding_of(certificate: bytes) -> bytes:
    """tls-server-end-point of a certificate (RFC 5929, 4.1)."""
    algorithm = x509.load_der_x509_certificate(certificate).signature_hash_algorithm
    name = algorithm.name if algorithm is not None and algorithm.name not in ('md5', 'sha1') else 'sha256'
    return b'tls-server-end-point:' + hashlib.new(name, certificate).digest()


class _Signed:
    """What pywinrm's Encryption wants of a sign-in."""

    def __init__(self, context: t.Any) -> None:
        self._context = context

    def __call__(self, request: t.Any) -> t.Any:
        """The connection is signed in; a request needs nothing."""
        return request

    def wrap_winrm(self, unused_host: t.Any, message: bytes) -> tuple[bytes, bytes]:
        """Data and header of a sealed message."""
        sealed = self._context.wrap_winrm(message)
        return sealed.data, sealed.header

    def unwrap_winrm(self, unused_host: t.Any, data: bytes, header: bytes) -> bytes:
        """The message of sealed data."""
        return self._context.unwrap_winrm(header, data)


class _Deadline:
    """For one exchange, whatever of it takes its time: when it has passed, the connection ends. A socket's timeout begins again with every byte."""

    def __init__(self, connection: socket.socket | None, seconds: float) -> None:
        self.passed = False
        self._connection = connection
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *unused: t.Any) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        self.passed = True
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)


class Transport:
    """What pywinrm's Protocol sends through, in the place of its own; ``begin`` first, then ``sign_in``."""

    def __init__(self, endpoint: str, context: ssl.SSLContext | None) -> None:
        self.endpoint = endpoint
        self.tls = context is not None
        self._given = _Given()
        #: Another handle of the connection, to end it whatever is being done with it.
        self._handle: socket.socket | None = None
        self._encryption: t.Any = None
        self._signed: t.Any = None
        #: What the other end said of itself.
        self.offered: list[str] = []
        self.server = ''
        self.clock_ahead: float | None = None
        self.tls_version = ''
        self.certificate = b''
        self.session = requests.Session()
        self.session.trust_env = False
        # Nothing is to become greater than what was sent.
        self.session.headers.update({'User-Agent': 'sojourn.deploy', 'Accept-Encoding': 'identity'})
        self.session.mount(f'{endpoint.partition(":")[0]}://', _adapter(self._given, context, self._saw))

    def _saw(self, connection: ssl.SSLSocket) -> None:
        self.certificate = connection.getpeercert(True) or b''
        self.tls_version = connection.version() or ''

    def begin(self, connection: socket.socket, seconds: float) -> None:
        """Asks what sign-ins there are; nothing of the user is sent. Raises NotWinRM, CertificateRefused, Timeout, ConnectionError."""
        self._given.socket = connection
        self._handle = connection.dup()
        # Python's threads cannot be made to give up a send; the kernel can.
        if hasattr(socket, 'TCP_USER_TIMEOUT'):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(ANSWER_SECONDS * 1000))
        answer = self._post(None, {}, seconds)
        self.server = answer.headers.get('Server', '')
        self._look_at_clock(answer)
        self.offered = _offered(answer)
        if answer.status_code != 401 or not self.offered:
            raise NotWinRM(f'it answers HTTP {answer.status_code} to WS-Management ({PATH})')

    def terms(self) -> str:
        """What the two ends have agreed on."""
        if not self.tls:
            return 'HTTP, every message sealed by the sign-in (NTLM)'
        return f"HTTPS, {self.tls_version}, certificate SHA-256 {hashlib.sha256(self.certificate).hexdigest()}"

    def _look_at_clock(self, answer: t.Any) -> None:
        with contextlib.suppress(ValueError, TypeError):
            self.clock_ahead = email.utils.parsedate_to_datetime(answer.headers.get('Date')).timestamp() - time.time()
            if -1 < self.clock_ahead < 1:  # the header knows whole seconds only
                self.clock_ahead = 0.0

    def sign_in(self, kind: str, user: str, password: str, host: str) -> None:
        """Signs the connection in: 'ntlm', or 'basic', which is for HTTPS alone. Raises Refused."""
        if kind == 'basic':
            if not self.tls:
                raise ValueError('Basic without TLS would show the password')
            self._signed = auth.HTTPBasicAuth(user.encode('utf-8'), password.encode('utf-8'))
            if self._post(None, {}, ANSWER_SECONDS, signed=True).status_code == 401:
                raise Refused
            return
        bindings = spnego_bindings.GssChannelBindings(application_data=binding_of(self.certificate)) if self.certificate else None
        context = spnego.client(
            user, password, hostname=host, service='http', protocol='ntlm', channel_bindings=bindings,
            options=spnego.NegotiateOptions.use_ntlm | spnego.NegotiateOptions.wrapping_winrm)
        token = context.step()
        while True:
            answer = self._post(None, {'Authorization': f'Negotiate {_base64(token)}'}, ANSWER_SECONDS)
            token = _token(answer)
            if answer.status_code != 401:
                break
            if token is None or context.complete:
                raise Refused
            token = context.step(token)
        if answer.status_code >= 300:
            raise NotWinRM(f'it answers HTTP {answer.status_code} to a sign-in')
        self._signed = _Signed(context)
        if not self.tls:
            self.session.auth = self._signed
            self._encryption = winrm_encryption.Encryption(self.session, 'kerberos')  # of its kinds that which asks pyspnego, whatever the mechanism

    def send_message(self, message: str | bytes) -> bytes:
        """For Protocol: a request's answer."""
        data = message.encode('utf-8') if isinstance(message, str) else message
        if not self.tls and self._encryption is None:
            raise ConnectionError('nothing goes unencrypted')
        if self._encryption is not None:
            request = self._encryption.prepare_encrypted_request(self.session, self.endpoint, data)
            answer = self._send(request, EXCHANGE_SECONDS, MAXIMUM_ANSWER)
            text = self._encryption.parse_encrypted_response(answer) if answer.headers.get('Content-Type') else answer.content
            if answer.content and text is answer.content:
                raise ConnectionError('an answer came unencrypted')
        else:
            answer = self._post(data, {'Content-Type': 'application/soap+xml;charset=UTF-8'}, EXCHANGE_SECONDS, MAXIMUM_ANSWER, signed=True)
            text = answer.content
        if answer.status_code == 401:
            raise ConnectionError('the target does not know the connection any more')
        if answer.status_code >= 300:
            raise winrm_exceptions.WinRMTransportError('http', answer.status_code, text.decode('utf-8', 'replace'))
        return text

    def close_session(self) -> None:
        """Ends the connection."""
        self.session.close()
        if self._given.socket is not None:
            self._given.take().close()
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _post(self, data: bytes | None, headers: dict[str, str], seconds: float, limit: int = MAXIMUM_GREETING, *, signed: bool = False) -> t.Any:
        request = requests.Request('POST', self.endpoint, data=data, headers=headers, auth=self._signed if signed else None)
        return self._send(self.session.prepare_request(request), seconds, limit)

    def _send(self, request: t.Any, seconds: float, limit: int) -> t.Any:
        """A request's answer, of at most ``limit`` bytes, all of it within so many seconds."""
        answer: t.Any = None
        with _Deadline(self._handle, seconds) as deadline:
            try:
                answer = self._exchange(request, seconds, limit)
            except Exception:
                if not deadline.passed:
                    raise
        if deadline.passed:  # also where an answer came: it may have been cut off
            raise Timeout(f'no answer within {seconds:g} s')
        return answer

    def _exchange(self, request: t.Any, seconds: float, limit: int) -> t.Any:
        answer = self._head(request, seconds if limit == MAXIMUM_GREETING else ANSWER_SECONDS)
        try:
            answer._content = self._body(answer, limit)  # as requests has it when it has read it itself
            answer._content_consumed = True
        finally:
            answer.close()  # which ends the connection where something of the answer is left
        return answer

    def _head(self, request: t.Any, seconds: float) -> t.Any:
        """Sends a request; its answer but for the body. Silence is waited for so many seconds."""
        try:
            # Not by Session.send, which reads the body of what sends one elsewhere.
            return self.session.get_adapter(request.url).send(request, stream=True, timeout=seconds)
        except requests.Timeout:
            raise Timeout(f'no answer within {seconds:g} s') from None
        except requests.RequestException as error:
            reason = _reason(error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise CertificateRefused(reason.verify_message) from None
            if isinstance(reason, urllib3_exceptions.SSLError):
                raise NotWinRM(f'it does not speak TLS 1.2 or newer ({reason})') from None
            if isinstance(reason, ssl.SSLError):
                raise NotWinRM(f'it does not speak TLS 1.2 or newer ({reason.reason or reason})') from None
            if isinstance(reason, http.client.HTTPException) and not isinstance(reason, ConnectionError):
                raise NotWinRM('it does not speak HTTP') from None
            raise ConnectionError(str(reason)) from None

    def _body(self, answer: t.Any, limit: int) -> bytes:
        kind = NotWinRM if limit == MAXIMUM_GREETING else ConnectionError
        if answer.headers.get('Content-Encoding', 'identity').strip().lower() != 'identity':
            raise kind('it packs its answer, which it was not asked for')
        body = bytearray()
        try:
            while piece := answer.raw.read(PIECE, decode_content=False):
                body += piece
                if len(body) > limit:
                    raise kind(f'it answers with more than {limit >> 10} KiB')
        except urllib3_exceptions.ReadTimeoutError:
            raise Timeout('the target has fallen silent') from None
        except urllib3_exceptions.HTTPError as error:
            raise ConnectionError(f'an answer broke off ({_reason(error)})') from None
        return bytes(body)


def _reason(error: BaseException) -> BaseException:
    """What is behind an error of requests, which has it in an error of urllib3, which has it in another."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, 'reason', None)
        if not isinstance(inner, BaseException):
            inner = next((argument for argument in error.args if isinstance(argument, BaseException)), None)
        if inner is None:
            return error
        error = inner
    return error


def _offered(answer: t.Any) -> list[str]:
    """The kinds of sign-in that an answer offers."""
    words = answer.headers.get('WWW-Authenticate', '').lower().split(',')
    return list(dict.fromkeys(OFFERS[name] for name in (word.split()[0] for word in words if word.split()) if name in OFFERS))


def _token(answer: t.Any) -> bytes | None:
    for word in answer.headers.get('WWW-Authenticate', '').split(','):
        scheme, unused_space, token = word.strip().partition(' ')
        if scheme.lower() == 'negotiate' and token:
            with contextlib.suppress(ValueError):
                return base64.b64decode(token, validate=True)
    return None


def _base64(data: bytes | None) -> str:
    return base64.b64encode(data or b'').decode('ascii')


class Client:
    """One shell on one host. Raises pywinrm's exceptions, those above, and ConnectionError."""

    def __init__(self, endpoint: str, context: ssl.SSLContext | None) -> None:
        require(winrm_protocol, requests, spnego, x509)
        self.transport = Transport(endpoint, context)
        # Its own transport asks nobody until it is used, and it never is.
        self._protocol = winrm_protocol.Protocol(
            endpoint, transport='basic', username='-', password='-', operation_timeout_sec=OPERATION_SECONDS, read_timeout_sec=int(ANSWER_SECONDS))
        self._protocol.transport = self.transport
        self._shell = ''

    def open_shell(self) -> None:
        """A command prompt, in UTF-8."""
        self._shell = self._protocol.open_shell(codepage=65001, noprofile=True, idle_timeout=f'PT{IDLE_SECONDS}S')

    def run(self, line: str, chunks_in: t.Iterable[bytes] = (), *, seconds: float = 120.0) -> Done:
        """Runs a line of the command prompt to its end, with that on standard input. Raises Timeout so many seconds after all of that is sent.

        A line must not begin with a quotation mark: how many of them are taken away before the prompt sees it, differs.
        """
        if len(line) > LINE_LENGTH or line.startswith('"'):
            raise ValueError(f'no line for the command prompt: {line[:80]}')
        chunks = iter(chunks_in)
        following = next(chunks, None)
        command = self._protocol.run_command(self._shell, line, console_mode_stdin=following is None)
        try:
            with contextlib.suppress(winrm_exceptions.WSManFaultError):  # it has ended meanwhile, and says why
                while following is not None:
                    chunk, following = following, next(chunks, None)
                    self._protocol.send_command_input(self._shell, command, chunk, end=following is None)
            # From now on: how long the sending takes is the line's matter, and each message has a deadline of its own.
            deadline = time.monotonic() + seconds
            stdout, stderr = bytearray(), bytearray()
            while True:
                if time.monotonic() > deadline:
                    raise Timeout(f'the command did not end within {seconds:g} s')
                try:
                    said, errors, code, ended = self._protocol.get_command_output_raw(self._shell, command)
                except winrm_exceptions.WinRMOperationTimeoutError:
                    continue
                stdout += said
                stderr += errors
                if ended:
                    return Done(code, bytes(stdout), bytes(stderr))
                if len(stdout) + len(stderr) > MAXIMUM_OUTPUT:
                    raise ConnectionError('the target says more than any command of ours would')
        finally:
            with contextlib.suppress(Exception):
                self._protocol.cleanup_command(self._shell, command)

    def close(self) -> None:
        """Ends the shell and disconnects; never raises."""
        if self._shell:
            with contextlib.suppress(Exception):
                self._protocol.close_shell(self._shell, close_session=False)
            self._shell = ''
        with contextlib.suppress(Exception):
            self.transport.close_session()
