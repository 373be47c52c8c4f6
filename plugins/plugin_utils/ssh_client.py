# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One SSH connection to a host: host key, sign-in, commands with input; not what the commands do (way_in_ssh.py). paramiko speaks SSH."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fcntl
import fnmatch
import getpass
import hashlib
import hmac
import os
import select
import socket
import threading
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.libraries import library, require

paramiko = library('paramiko')
ssh_serialization = library('cryptography.hazmat.primitives.serialization.ssh')
cryptography_exceptions = library('cryptography.exceptions')
ssh_exception = library('paramiko.ssh_exception')

#: Seconds that a host may take for any one step of the protocol.
ANSWER_SECONDS = 30.0
#: Seconds that the other end may take to part.
PARTING_SECONDS = 5.0
SYSTEM_KNOWN_HOSTS = ('/etc/ssh/ssh_known_hosts', '/etc/ssh/ssh_known_hosts2')
USER_KNOWN_HOSTS = ('~/.ssh/known_hosts', '~/.ssh/known_hosts2')
DEFAULT_KEYS = ('~/.ssh/id_ed25519', '~/.ssh/id_ecdsa', '~/.ssh/id_rsa')

#: Algorithms that one type of host key can sign with.
_ALGORITHMS = {'ssh-rsa': ('rsa-sha2-512', 'rsa-sha2-256', 'ssh-rsa')}
#: Of a host that shows its key with a certificate.
_CERTIFICATE = '-cert-v01@openssh.com'
_CERTIFICATE_ALGORITHMS = tuple(name + _CERTIFICATE for name in (
    'ssh-ed25519', 'ecdsa-sha2-nistp256', 'ecdsa-sha2-nistp384', 'ecdsa-sha2-nistp521', 'rsa-sha2-512', 'rsa-sha2-256'))


class HostKeyUnknown(Exception):
    """No known_hosts file has this host."""


class HostKeyChanged(Exception):
    """A known_hosts file has another key for this host, or says that this one was revoked."""


class CertificateRefused(Exception):
    """An authority that a known_hosts file has for this host signed the host's key, but not so that it counts."""


class SignInRefused(Exception):
    """The host took none of the credentials; ``tried`` says which there were."""

    def __init__(self, detail: str, tried: list[str]) -> None:
        super().__init__(detail)
        self.tried = tried


class CommandTimeout(Exception):
    """A command did not end in time."""


# Host keys

@dataclasses.dataclass(frozen=True)
class KnownKey:
    """A line of a known_hosts file that is about the host. ``authority``: who shows a certificate by this key is the host."""

    type: str
    key: str
    revoked: bool
    authority: bool = False


def host_names(address: str, port: int, *others: str) -> list[str]:
    """The names of a host as known_hosts files have them (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
    names = []
    for name in (address, *others):
        name = name.lower()
        name = name if port == 22 else f'[{name}]:{port}'
        if name not in names:
            names.append(name)
    return names


def _matches(field: str, names: t.Sequence[str]) -> bool:
    if field.startswith('|1|'):
        try:
            salt, digest = (base64.b64decode(part) for part in field.split('|')[2:4])
        except ValueError:
            return False
        return any(hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest) for name in names)
    found = False
    for pattern in field.lower().split(','):
        negated = pattern.startswith('!')
        pattern = pattern.removeprefix('!')
        # Brackets are no character class here: '[host]:port'.
        if any(fnmatch.fnmatchcase(name, pattern.replace('[', '[[]')) for name in names):
            if negated:
                return False
            found = True
    return found


def known_keys(files: t.Iterable[str], names: t.Sequence[str]) -> list[KnownKey]:
    """All lines about a host in these files; files that cannot be read are left out."""
    keys = []
    for path in files:
        try:
            with open(os.path.expanduser(path), encoding='utf-8', errors='replace') as file:
                lines = file.readlines()
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if not fields or fields[0].startswith('#'):
                continue
            marker = fields.pop(0) if fields[0].startswith('@') else ''
            if marker not in ('', '@revoked', '@cert-authority') or len(fields) < 3:
                continue
            if _matches(fields[0], names):
                keys.append(KnownKey(fields[1], fields[2], marker == '@revoked', marker == '@cert-authority'))
    return keys


def fingerprint(key: t.Any) -> str:
    """As ssh-keygen -l shows it."""
    return _fingerprint(key.asbytes())


def fingerprint_of(text: str) -> str:
    """The same, of a key as a known_hosts file has it."""
    try:
        return _fingerprint(base64.b64decode(text))
    except ValueError:
        return 'that is no key'


def _fingerprint(data: bytes) -> str:
    return 'SHA256:' + base64.b64encode(hashlib.sha256(data).digest()).decode('ascii').rstrip('=')


class Certificate:
    """A host's key as an authority signed it: https://github.com/openssh/openssh-portable/blob/master/PROTOCOL.certkeys."""

    def __init__(self, blob: bytes) -> None:
        """Raises CertificateRefused where it cannot be read."""
        message = paramiko.Message(blob)
        kind = message.get_text()
        try:
            self._certificate = ssh_serialization.load_ssh_public_identity(f'{kind} {base64.b64encode(blob).decode("ascii")}'.encode('ascii'))
            message.get_string()  # nonce
            for unused_field in range({'ssh-ed25519': 1, 'ssh-rsa': 2}.get(kind.removesuffix(_CERTIFICATE), 2)):
                message.get_string()
            message.get_int64()  # serial
            message.get_int()  # kind
            for unused_field in ('key id', 'principals'):
                message.get_string()
            for unused_field in ('after', 'before'):
                message.get_int64()
            for unused_field in ('critical options', 'extensions', 'reserved'):
                message.get_string()
            #: The authority's key, as a known_hosts file has it.
            self.authority = base64.b64encode(message.get_string()).decode('ascii')
            self._signature_type = paramiko.Message(message.get_string()).get_text()
        except (ValueError, TypeError, UnicodeDecodeError, cryptography_exceptions.UnsupportedAlgorithm) as error:
            raise CertificateRefused(f'it cannot be read ({error})') from None

    def check(self, host: str, now: float) -> None:
        """Whether it is for this host, and counts now (PROTOCOL.certkeys; ssh-keygen(1), CERTIFICATES). Raises CertificateRefused.

        Where versions of OpenSSH differ, as the stricter one: a certificate for any name counts for none, and one for a pattern for no name.
        """
        certificate = self._certificate
        if self._signature_type == 'ssh-rsa':  # by SHA-1, which OpenSSH takes from no authority since 8.2
            raise CertificateRefused('it was signed by way of SHA-1')
        try:
            certificate.verify_cert_signature()
        except (cryptography_exceptions.InvalidSignature, cryptography_exceptions.UnsupportedAlgorithm, ValueError, TypeError):
            raise CertificateRefused('its signature is wrong') from None
        if certificate.type != ssh_serialization.SSHCertificateType.HOST:
            raise CertificateRefused('it is a certificate of a user, not of a host')
        principals = [name.decode('utf-8', 'replace') for name in certificate.valid_principals]
        if host.lower() not in principals:
            raise CertificateRefused(f'it is for {", ".join(principals)}' if principals else 'it names no host')
        if now < certificate.valid_after:
            raise CertificateRefused('it is not valid yet')
        if now >= certificate.valid_before:
            raise CertificateRefused('it has expired')
        if certificate.critical_options:
            names = ', '.join(name.decode('utf-8', 'replace') for name in certificate.critical_options)
            raise CertificateRefused(f'it demands what is not understood ({names})')


def remember(path: str, name: str, key: t.Any) -> None:
    """Appends a host's key to a known_hosts file. Raises OSError."""
    path = os.path.expanduser(path)
    os.makedirs(os.path.dirname(path) or '.', mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, 'rb+') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0, os.SEEK_END)
        lead = ''
        if file.tell():
            file.seek(-1, os.SEEK_END)
            lead = '' if file.read(1) == b'\n' else '\n'
        file.write(f'{lead}{name} {key.get_name()} {key.get_base64()}\n'.encode())


# Credentials

@dataclasses.dataclass(frozen=True)
class Credential:
    """One thing to sign in with: ``kind`` is 'key', 'password' or 'interactive'; ``key`` is a key's own."""

    what: str
    kind: str
    key: t.Any = None


def credentials(password: str | None, key_file: str | None, passphrase: str | None, reasons: list[str]) -> t.Iterator[Credential]:
    """What there is to sign in with, in the order in which it is tried; ``reasons`` gets why something that is there cannot be used.

    With the key file, if given, then the password, if given; with neither, the SSH agent's keys and the default ones.
    Raises SSHException, OSError for a key file that cannot be used.
    """
    if key_file:
        yield Credential(f'the key {key_file}', 'key', load_key(key_file, passphrase or password))
    if password is not None:
        yield Credential('the password', 'password')
        yield Credential('the password (keyboard-interactive)', 'interactive')
    if key_file or password is not None:
        return
    with contextlib.suppress(ssh_exception.SSHException, OSError):
        for agent_key in paramiko.Agent().get_keys():
            yield Credential('a key of the SSH agent', 'key', agent_key)
    for path in DEFAULT_KEYS:
        if os.path.exists(os.path.expanduser(path)):
            try:
                key = load_key(path, passphrase)
            except (ssh_exception.SSHException, OSError, ValueError) as error:
                reasons.append(f'{path} cannot be used ({error})')
                continue
            yield Credential(f'the key {path}', 'key', key)


# The connection

def _drain(connection: socket.socket) -> None:
    """Reads what still comes. A socket with something unread is closed by a reset, which is sent only once: where the network loses it,

    the target keeps the session for hours. The end of a stream is sent until it has arrived.
    """
    with connection, contextlib.suppress(OSError):
        connection.settimeout(PARTING_SECONDS)
        while connection.recv(65536):
            pass


class Client:
    """One SSH connection. Raises this file's exceptions, paramiko's SSHException, EOFError, OSError."""

    def __init__(self) -> None:
        require(paramiko)
        self._transport: t.Any = None
        self._socket: socket.socket | None = None

    def begin(self, connection: socket.socket, timeout: float, known: t.Sequence[KnownKey]) -> t.Any:
        """Exchanges keys; returns the host's key, which the caller has to judge by ``check_host_key`` before it goes on."""
        self._socket = connection.dup()
        transport = paramiko.Transport(connection)
        self._transport = transport
        transport.banner_timeout = timeout
        transport.handshake_timeout = max(timeout, ANSWER_SECONDS)
        transport.auth_timeout = ANSWER_SECONDS
        options = transport.get_security_options()
        # AES-GCM is several times as fast as the counter mode and its separate MAC.
        options.ciphers = sorted(options.ciphers, key=lambda name: 'gcm' not in name)
        wanted = {algorithm for key in known for algorithm in _ALGORITHMS.get(key.type, (key.type,)) if not key.revoked and not key.authority}
        # As OpenSSH does: ask for a key of a type that is known, or a known host would look unknown; before all for one with a certificate.
        certificates = sorted(_CERTIFICATE_ALGORITHMS, key=lambda name: name.removesuffix(_CERTIFICATE) not in wanted)
        options.key_types = [*(certificates if any(key.authority for key in known) else ()), *sorted(options.key_types, key=lambda name: name not in wanted)]
        transport.start_client(timeout=max(timeout, ANSWER_SECONDS))
        return transport.get_remote_server_key()

    @staticmethod
    def check_host_key(key: t.Any, known: t.Sequence[KnownKey], host: str) -> None:
        """Judges as OpenSSH does. ``host``: as the user calls it, without a port. Raises HostKeyUnknown, HostKeyChanged, CertificateRefused."""
        same = [entry for entry in known if entry.key == key.get_base64() and not entry.authority]
        if any(entry.revoked for entry in same):
            raise HostKeyChanged('the key was revoked')
        shown = getattr(key, 'public_blob', None)
        certificate = None
        if shown is not None:
            # One that cannot be read is by nobody that is known here; the key itself may be.
            with contextlib.suppress(CertificateRefused):
                certificate = Certificate(shown.key_blob)
        if certificate is not None:
            by = [entry for entry in known if entry.key == certificate.authority]
            if any(entry.revoked for entry in by):
                raise CertificateRefused('the key of who signed it was revoked')
            if any(entry.authority for entry in by):
                certificate.check(host, time.time())
                return
        if same:
            return
        if any(not entry.revoked and not entry.authority for entry in known):
            raise HostKeyChanged
        raise HostKeyUnknown

    @property
    def server(self) -> str:
        """What the other end says that it is; empty where it has not said yet."""
        return self._transport.remote_version if self._transport is not None else ''

    @property
    def host_key(self) -> t.Any:
        """The host's key; None where keys were not exchanged."""
        with contextlib.suppress(ssh_exception.SSHException, AttributeError):
            return self._transport.get_remote_server_key()
        return None

    @property
    def ciphers(self) -> str:
        """What was agreed on for what is sent; empty where keys were not exchanged."""
        return self._transport.local_cipher if self._transport is not None else ''

    def sign_in(self, user: str | None, *, password: str | None, key_file: str | None, passphrase: str | None) -> tuple[str, str]:
        """Signs in; returns the user's name, and with what: see ``credentials``. Raises SignInRefused."""
        user = user or getpass.getuser()
        tried: list[str] = []
        reasons: list[str] = []
        for credential in credentials(password, key_file, passphrase, reasons):
            tried.append(credential.what)
            try:
                self._try(user, credential, password)
            except ssh_exception.BadAuthenticationType as error:
                reasons.append(f'the target takes {", ".join(error.allowed_types) or "nothing"} only')
                continue
            except ssh_exception.AuthenticationException:
                if not self._transport.is_active():  # sshd's MaxAuthTries: an SSH agent with many keys uses it up
                    reasons.append('the target ended the connection after these')
                    break
                continue
            if self._transport.is_authenticated():
                return user, credential.what
            # A further factor is wanted: go on with what is left.
        raise SignInRefused('; '.join(dict.fromkeys(reasons)), tried)

    def _try(self, user: str, credential: Credential, password: str | None) -> None:
        def answer(unused_title: str, unused_instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
            # One hidden question is the password's; anything else is not ours to answer.
            return [password or '' if not echo and len(prompts) == 1 else '' for unused_prompt, echo in prompts]

        if credential.kind == 'key':
            self._transport.auth_publickey(user, credential.key)
        elif credential.kind == 'password':
            self._transport.auth_password(user, password, fallback=False)
        else:
            self._transport.auth_interactive(user, answer)

    def close(self) -> None:
        """Disconnects; never raises. That the other end hears of it is seen to by a thread of its own."""
        connection, self._socket = self._socket, None
        if self._transport is not None:
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(Exception):
                self._transport.close()
        if connection is not None:
            try:
                threading.Thread(target=_drain, args=(connection,), name='parting').start()
            except RuntimeError:  # there are too many
                connection.close()

    # Commands

    @contextlib.contextmanager
    def command(self, line: str, *, timeout: float = ANSWER_SECONDS) -> t.Iterator[Command]:
        """Starts a command line in the user's login shell."""
        channel = self._transport.open_session(timeout=ANSWER_SECONDS, window_size=4 << 20)
        try:
            channel.settimeout(timeout)
            channel.exec_command(line)
            yield Command(channel, time.monotonic() + timeout, timeout)
        finally:
            with contextlib.suppress(Exception):
                channel.close()


#: More output than this of a command is cut off: none of ours writes nearly as much.
_MAXIMUM_OUTPUT = 1 << 20
#: What OpenSSH takes in one packet (channels.h, CHAN_SES_PACKET_DEFAULT), less what paramiko keeps for headers.
_PACKET = 32704


class Command:
    """A command that runs on the host; ``output`` and ``errors`` grow while it does."""

    def __init__(self, channel: t.Any, deadline: float, seconds: float) -> None:
        self._channel = channel
        self._deadline = deadline
        self._seconds = seconds
        self._poll = select.poll()
        self._poll.register(channel.fileno(), select.POLLIN)
        self.output = bytearray()
        self.errors = bytearray()

    def _take(self) -> bool:
        """Takes what has come; False once nothing more will."""
        channel = self._channel
        while channel.recv_ready():
            self.output += channel.recv(65536)
        while channel.recv_stderr_ready():
            self.errors += channel.recv_stderr(65536)
        del self.output[_MAXIMUM_OUTPUT:], self.errors[_MAXIMUM_OUTPUT:]
        return not (channel.closed or channel.eof_received and channel.exit_status_ready())

    def wait_for(self, done: t.Callable[[], bool]) -> bool:
        """Reads until ``done()``; False when the command ended before. Raises CommandTimeout."""
        while True:
            more = self._take()
            if done():
                return True
            if not more:
                self._take()
                return done()
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise CommandTimeout(f'a command did not end within {self._seconds:.0f} s')
            # At end of file the descriptor stays readable while the exit status is still under way.
            if self._channel.eof_received:
                self._channel.status_event.wait(min(left, 1))
            else:
                self._poll.poll(left * 1000)

    def write(self, data: bytes | memoryview) -> None:
        """Writes to its input. A command that reads no more is no error here; its exit code tells."""
        view = memoryview(data)
        try:
            for start in range(0, len(view), _PACKET):
                # A packet at a time: paramiko copies all that is left after each.
                self._channel.sendall(bytes(view[start:start + _PACKET]))
        except TimeoutError:
            raise CommandTimeout('a command took no input') from None
        except OSError:
            if not self._channel.closed and not self._channel.eof_received:
                raise

    def finish(self) -> int:
        """Ends its input, reads to its end; its exit code (-1: ended by a signal or with the connection)."""
        with contextlib.suppress(OSError):
            self._channel.shutdown_write()
        self.wait_for(lambda: False)
        return self._channel.exit_status if self._channel.exit_status_ready() else -1


def load_key(path: str, passphrase: str | None) -> t.Any:
    """A private key of whatever type, with its certificate if there is one. Raises SSHException, OSError."""
    path = os.path.expanduser(path)
    with open(path, 'rb'):
        pass
    error: Exception = ssh_exception.SSHException('not a private key')
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            key = kind.from_private_key_file(path, password=passphrase)
        except ssh_exception.PasswordRequiredException as problem:
            raise ssh_exception.SSHException('it has a passphrase; load it into the SSH agent, or set private_key_passphrase') from problem
        except (ssh_exception.SSHException, ValueError) as problem:
            error = problem
            continue
        if os.path.exists(f'{path}-cert.pub'):
            key.load_certificate(f'{path}-cert.pub')
        return key
    raise ssh_exception.SSHException(str(error))
