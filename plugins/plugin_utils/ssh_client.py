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
import functools
import hashlib
import hmac
import os
import socket
import threading
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils import network
from ansible_collections.sojourn.deploy.plugins.plugin_utils.libraries import library, require

paramiko = library('paramiko')
serialization = library('cryptography.hazmat.primitives.serialization')
ssh_serialization = library('cryptography.hazmat.primitives.serialization.ssh')
cryptography_exceptions = library('cryptography.exceptions')
ssh_exception = library('paramiko.ssh_exception')

#: Seconds that a host may take for any one step of the protocol.
ANSWER_SECONDS = 30.0
#: Seconds that the other end may take to part.
PARTING_SECONDS = 5.0
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


class AuthorityRevoked(CertificateRefused):
    """A known_hosts file says of the authority's key itself that it was revoked."""


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


def revoked_keys(path: str) -> list[KnownKey]:
    """What a file of RevokedHostKeys has, which is one key a line. Raises OSError, ValueError: no file that cannot be read revokes nothing."""
    with open(path, 'rb') as file:
        data = file.read()
    if data.startswith(b'SSHKRL'):
        raise ValueError('it is a key revocation list (ssh-keygen -k), which is not read here')
    keys = []
    for line in data.decode('utf-8', 'replace').splitlines():
        fields = line.split()
        if len(fields) >= 2 and not fields[0].startswith('#'):
            keys.append(KnownKey(fields[0], fields[1], revoked=True))
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


def hashed(name: str) -> str:
    """A host's name as known_hosts has it where HashKnownHosts is on."""
    salt = os.urandom(20)
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return '|'.join(('', '1', base64.b64encode(salt).decode('ascii'), base64.b64encode(digest).decode('ascii')))


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
    """One thing to sign in with: ``kind`` is 'key', 'password' or 'interactive'; ``key`` is a key's own.

    ``spare``: offered only where the host takes no password, or wants a key as well.
    """

    what: str
    kind: str
    key: t.Any = None
    spare: bool = False

    @property
    def method(self) -> str:
        """As SSH calls it."""
        return {'key': 'publickey', 'password': 'password', 'interactive': 'keyboard-interactive'}[self.kind]


@dataclasses.dataclass(frozen=True)
class Identities:
    """What OpenSSH's settings say of keys; see ``ssh_config.Host``."""

    files: tuple[str, ...] | None = None
    certificates: tuple[str, ...] = ()
    only: bool = False
    agent: str | None = None


def credentials(password: str | None, key_file: str | None, passphrase: str | None, reasons: list[str],
                identities: Identities | None = None) -> t.Iterator[Credential]:
    """What there is to sign in with, in the order in which it is tried; ``reasons`` gets why something that is there cannot be used.

    With the key file, if given, then the password, if given; with neither, the keys that the settings name, the SSH agent's keys, and the default ones.
    Keys that the settings name come before a password too; others only where the host asks for one.
    Raises SSHException, OSError for a key file that cannot be used.
    """
    identities = identities or Identities()
    if key_file:
        yield Credential(f'the key {key_file}', 'key', load_key(key_file, passphrase or password, identities.certificates))
    elif identities.files is not None:
        yield from _named_keys(identities, passphrase, reasons)
    if password is not None:
        yield Credential('the password', 'password')
        yield Credential('the password (keyboard-interactive)', 'interactive')
    if not key_file and identities.files is None:
        yield from _found_keys(identities, passphrase, reasons, spare=password is not None)


def _agent_keys(socket_path: str | None) -> list[t.Any]:
    """The keys of the environment's SSH agent, or of the one at a socket ('': of none)."""
    with contextlib.suppress(ssh_exception.SSHException, OSError):
        if socket_path is None:
            return list(paramiko.Agent().get_keys())
        if socket_path:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(socket_path)
            agent = paramiko.agent.AgentSSH()
            agent._connect(connection)
            return list(agent.get_keys())
    return []


def _named_keys(identities: Identities, passphrase: str | None, reasons: list[str]) -> t.Iterator[Credential]:
    """The files' keys, from the SSH agent where it has them; then the agent's others, unless only those named are to be offered."""
    agent_keys = _agent_keys(identities.agent)
    for path in identities.files or ():
        public = _public_key(path)
        of_agent = next((key for key in agent_keys if key.asbytes() == public), None)
        if of_agent is not None:
            agent_keys.remove(of_agent)
            yield Credential(f'the key {path} (SSH agent)', 'key', of_agent)
            continue
        try:
            key = load_key(path, passphrase, identities.certificates)
        except (ssh_exception.SSHException, OSError, ValueError) as error:
            reasons.append(f'{path} cannot be used ({getattr(error, "strerror", None) or error})')
            continue
        yield Credential(f'the key {path}', 'key', key)
    if not identities.only:
        for key in agent_keys:
            yield Credential('a key of the SSH agent', 'key', key)


def _public_key(path: str) -> bytes | None:
    """The public key of an IdentityFile, which may be that itself (the private one is the SSH agent's then)."""
    for candidate in (f'{path}.pub', path):
        with contextlib.suppress(OSError, ValueError, IndexError), open(os.path.expanduser(candidate), encoding='ascii') as file:
            return base64.b64decode(file.read().split()[1], validate=True)
    return None


def _found_keys(identities: Identities, passphrase: str | None, reasons: list[str], *, spare: bool) -> t.Iterator[Credential]:
    files = [path for path in DEFAULT_KEYS if os.path.exists(os.path.expanduser(path))]
    agent_keys = _agent_keys(identities.agent)
    if identities.only:
        publics = {_public_key(path) for path in DEFAULT_KEYS}
        agent_keys = [key for key in agent_keys if key.asbytes() in publics]
    for agent_key in agent_keys:
        yield Credential('a key of the SSH agent', 'key', agent_key, spare)
    for path in files:
        try:
            key = load_key(path, passphrase, identities.certificates)
        except (ssh_exception.SSHException, OSError, ValueError) as error:
            reasons.append(f'{path} cannot be used ({error})')
            continue
        yield Credential(f'the key {path}', 'key', key, spare)


# The connection

def _drain(connection: socket.socket) -> None:
    """Reads what still comes. A socket with something unread is closed by a reset, which is sent only once: where the network loses it,

    the target keeps the session for hours. The end of a stream is sent until it has arrived. A target that goes on sending is left all the same.
    """
    deadline = time.monotonic() + PARTING_SECONDS
    with connection, contextlib.suppress(OSError):
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(65536):
                break


#: Bytes that the other end of a channel may send before we have taken them.
WINDOW = 4 << 20
#: Bytes that may be on their way to a near sshd, or wait there for who is to take them. It has room for 2 MB, but as what waits grows it makes a
#: little more room for each packet, and copies all of it (sshbuf.c): with 2 MB waiting it takes four times as long as with these.
_AHEAD = 512 << 10
#: How it says what it is.
_SSHD = 'SSH-2.0-OpenSSH_'


def bounded(channel: t.Any) -> t.Any:
    """A channel on which the window counts: paramiko keeps whatever comes. Who sends more than twice as much loses the whole connection."""
    for buffer in (channel.in_buffer, channel.in_stderr_buffer):
        buffer.feed = functools.partial(_feed, buffer, buffer.feed)
    return channel


def _hold_back(channel: t.Any) -> bool:
    """Takes what the other end has room for, beyond _AHEAD, for none: what it gives room for later is what it has passed on, and comes on top.

    False: it has not given room yet, as sshd does for a command only once that has begun.
    """
    with channel.lock:
        given = channel.out_window_size > 0
        channel.out_window_size = min(channel.out_window_size, _AHEAD)
    return given


def _feed(buffer: t.Any, feed: t.Callable[[bytes], None], data: bytes) -> None:
    if len(buffer) + len(data) > _MAXIMUM_WAITING:
        raise ssh_exception.SSHException('the server sends more than was asked for')  # in the connection's own thread, which that ends
    feed(data)


class Client:
    """One SSH connection. Raises this file's exceptions, paramiko's SSHException, EOFError, OSError."""

    def __init__(self) -> None:
        require(paramiko)
        self._transport: t.Any = None
        self._socket: socket.socket | None = None
        #: Whether a round trip is short: then little needs to be on its way.
        self.near = False

    def begin(self, connection: t.Any, timeout: float, known: t.Sequence[KnownKey]) -> t.Any:
        """Exchanges keys; returns the host's key, which the caller has to judge by ``check_host_key`` before it goes on.

        ``connection`` is a socket, or what ``open_channel`` of another client gave.
        """
        self._socket = connection.dup() if isinstance(connection, socket.socket) else None
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
        certificate: Certificate | None = None
        refused: CertificateRefused | None = None
        if shown is not None:
            # One that cannot be read is by nobody that is known here; the key itself may be.
            with contextlib.suppress(CertificateRefused):
                certificate = Certificate(shown.key_blob)
        if certificate is not None:
            by = [entry for entry in known if entry.key == certificate.authority]
            if any(entry.revoked for entry in by):
                raise AuthorityRevoked('the key of who signed it was revoked')
            if any(entry.authority for entry in by):
                try:
                    certificate.check(host, time.time())
                    return
                except CertificateRefused as error:
                    refused = error  # the key itself may be known all the same
        if same:
            return
        if any(not entry.revoked and not entry.authority for entry in known):
            raise HostKeyChanged
        raise refused or HostKeyUnknown

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

    def sign_in(self, user: str, source: t.Iterator[Credential], password: str | None, reasons: list[str],
                methods: t.Container[str] = ('publickey', 'password', 'keyboard-interactive')) -> str:
        """Signs in with what ``credentials`` gives, as many steps as the host wants; returns with what. Raises SignInRefused.

        ``methods``: those that may be used at all. Raises EOFError where the connection ended before any answer: nobody has refused anything.
        """
        come = network.received(self._socket)
        tried: list[str] = []
        used: list[str] = []
        held: list[Credential] = []  # what the host does not take now may be what it wants next
        takes: list[str] | None = None

        def following() -> Credential | None:
            for credential in tuple(held):
                if takes is not None and credential.method in takes and (not credential.spare or spare()):
                    held.remove(credential)
                    return credential
            for credential in source:
                if credential.method not in methods:
                    continue
                if takes is not None and credential.method not in takes or credential.spare and not spare():
                    held.append(credential)
                    continue
                return credential
            return None

        def spare() -> bool:
            return takes is not None and 'publickey' in takes and (bool(used) or not {'password', 'keyboard-interactive'} & set(takes))

        while (credential := following()) is not None:
            tried.append(credential.what)
            try:
                further = self._try(user, credential, password, reasons)
            except ssh_exception.BadAuthenticationType as error:
                takes = list(error.allowed_types)
                tried.remove(credential.what)
                held.append(credential)
                continue
            except ssh_exception.AuthenticationException:
                if not self._transport.is_active() and come is not None and (network.received(self._socket) or 0) <= come + 1:  # the end is one
                    raise EOFError('the connection ended before an answer to the sign-in') from None
                if not self._transport.is_active():  # sshd's MaxAuthTries: an SSH agent with many keys uses it up
                    reasons.append('the target ended the connection after these')
                    break
                continue
            used.append(credential.what)
            if self._transport.is_authenticated():
                return ' and '.join(used)
            # A further step is wanted.
            takes = list(further)
        if used:
            reasons.append(f'it took {" and ".join(used)}, and wants {" or ".join(takes or ()) or "more"} as well')
        elif takes is not None:
            reasons.append(f'the target takes {", ".join(takes) or "nothing"} only')
        raise SignInRefused('; '.join(dict.fromkeys(reasons)), tried or [credential.what for credential in held if not credential.spare])

    def _try(self, user: str, credential: Credential, password: str | None, reasons: list[str]) -> list[str]:
        """Returns what the host wants besides."""
        asked: list[str] = []

        def answer(unused_title: str, unused_instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
            # One hidden question is the password's, once; anything else is not ours to answer.
            for prompt, echo in prompts:
                if echo or len(prompts) > 1 or asked:
                    reasons.append(f"it asks for what cannot be answered here ('{prompt.strip()[:80]}')")
            if len(prompts) == 1 and not prompts[0][1] and not asked:
                asked.append(prompts[0][0])
                return [password or '']
            return ['' for unused_prompt in prompts]

        if credential.kind == 'key':
            return self._transport.auth_publickey(user, credential.key)
        if credential.kind == 'password':
            return self._transport.auth_password(user, password, fallback=False)
        return self._transport.auth_interactive(user, answer)

    @property
    def _holds_back(self) -> bool:
        """Others than sshd may give room for more only when half of it is taken; that one does so after three packets (channels.c, channel_check_window)."""
        return self.near and self.server.startswith(_SSHD)

    def open_channel(self, address: str, port: int, timeout: float) -> t.Any:
        """A connection from the host to somewhere else (direct-tcpip), after the sign-in. Raises ChannelException, SSHException."""
        return bounded(self._transport.open_channel('direct-tcpip', (address, port), ('::1', 0), window_size=WINDOW, timeout=timeout))

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

    # The tunnel

    def notice_silence(self, seconds: int = network.SILENCE_SECONDS) -> None:
        """See ``network.notice_silence``."""
        with contextlib.suppress(OSError, AttributeError):
            network.notice_silence(t.cast(socket.socket, self._socket), seconds)

    def bear_silence(self) -> None:
        """Takes that back."""
        with contextlib.suppress(OSError, AttributeError):
            network.bear_silence(t.cast(socket.socket, self._socket))

    @property
    def alive(self) -> bool:
        """Whether the connection is there still, as far as is known without asking."""
        return self._transport is not None and self._transport.is_active()

    def forward(self, address: str, port: int, timeout: float) -> Forwarded:
        """A TCP connection that the target makes to an address of its own (RFC 4254, 7.2). Raises ForwardingRefused, NobodyThere."""
        try:
            channel = bounded(self._transport.open_channel('direct-tcpip', (address, port), (address, 0), window_size=WINDOW, timeout=timeout))
        except ssh_exception.ChannelException as error:
            if error.code == _CONNECT_FAILED:
                raise NobodyThere(error.text) from None
            raise ForwardingRefused(error.text) from None
        channel.settimeout(timeout)
        return Forwarded(channel)

    # Commands

    @contextlib.contextmanager
    def command(self, line: str, *, timeout: float = ANSWER_SECONDS, terminal: bool = False) -> t.Iterator[Command]:
        """Starts a command line in the user's login shell; with a terminal, all that it says is in ``output``.

        What comes before it says BEGUN is the login shell's own, and not kept.
        """
        channel = bounded(self._transport.open_session(timeout=ANSWER_SECONDS, window_size=WINDOW))
        try:
            channel.settimeout(timeout)
            if terminal:
                channel.get_pty(term='dumb', width=4096)
            channel.exec_command(line)
            yield Command(channel, time.monotonic() + timeout, timeout, begun=terminal, hold_back=self._holds_back)
        finally:
            with contextlib.suppress(Exception):
                channel.close()


#: What each script says first, on either stream: files that a login shell reads may say something before (.bashrc, .cshrc, config.fish).
BEGUN = 'sojourn begins'
_BEGUN = BEGUN.encode() + b'\n'
#: More output than this of a command is cut off: none of ours writes nearly as much.
_MAXIMUM_OUTPUT = 1 << 20
#: More than what can have come while nobody looked: twice a channel's window.
_MAXIMUM_WAITING = 2 * WINDOW
#: What OpenSSH takes in one packet (channels.h, CHAN_SES_PACKET_DEFAULT), less what paramiko keeps for headers.
_PACKET = 32704


class _News(threading.Event):
    """Something has come on one of several streams; that one of them is empty is no reason to forget it."""

    def clear(self) -> None:
        """Called by a stream that is empty now."""

    def taken(self) -> None:
        """Called before all streams are looked at."""
        super().clear()


#: SSH_OPEN_CONNECT_FAILED (RFC 4254, 5.1).
_CONNECT_FAILED = 2


class ForwardingRefused(Exception):
    """The server makes no connection on a client's behalf, or not to there."""


class NobodyThere(Exception):
    """Where the server was to connect to, nobody listens."""


class Forwarded:
    """A connection that the host has made on our behalf (``way_in.Stream``)."""

    def __init__(self, channel: t.Any) -> None:
        self._channel = channel
        self.recv = channel.recv
        self.settimeout = channel.settimeout

    def sendall(self, data: bytes) -> None:
        """Sends all of it; a packet at a time, as ``Command.write`` does."""
        view = memoryview(data)
        try:
            for start in range(0, len(view), _PACKET):
                self._channel.sendall(bytes(view[start:start + _PACKET]))
        except EOFError:  # paramiko's, where its socket has just been reset
            raise ConnectionResetError('the SSH connection has ended') from None

    def readable(self) -> bool:
        """Whether ``recv`` would not wait."""
        return self._channel.recv_ready() or self._channel.eof_received or self._channel.closed

    def close(self) -> None:
        """Ends it; never raises."""
        with contextlib.suppress(Exception):
            self._channel.close()


class Command:
    """A command that runs on the host; ``output`` and ``errors`` grow while it does."""

    def __init__(self, channel: t.Any, deadline: float, seconds: float, *, begun: bool = False, hold_back: bool = False) -> None:
        self._channel = channel
        self._hold_back = hold_back
        self._deadline = deadline
        self._seconds = seconds
        # Not paramiko's descriptor for both streams: where one is emptied just as something comes on the other, that one stays silent for good.
        self._news = _News()
        channel.in_buffer.set_event(self._news)
        channel.in_stderr_buffer.set_event(self._news)
        self.output = bytearray()
        self.errors = bytearray()
        #: What came on each stream before it began: the login shell's words, or whose words they are that there is none.
        self.preamble = [bytearray(), bytearray()]
        self._begun = [begun, begun]

    @property
    def begun(self) -> bool:
        """Whether the command has begun at all."""
        return self._begun[0]

    def refusal(self) -> str:
        """What was said in the place of the command, in one line."""
        lines = [line.strip() for part in self.preamble for line in part.decode('utf-8', 'replace').splitlines() if line.strip()]
        return ''.join(letter for letter in (lines[-1] if lines else '') if letter.isprintable())[-200:]

    def extend(self, seconds: float) -> None:
        """It may take so long from now on."""
        self._deadline, self._seconds = time.monotonic() + seconds, seconds

    def _keep(self, stream: int, data: bytes) -> None:
        kept = self.errors if stream else self.output
        if not self._begun[stream]:
            before = self.preamble[stream]
            before += data
            at = before.find(_BEGUN)
            if at < 0:
                del before[:-_MAXIMUM_OUTPUT]
                return
            self._begun[stream] = True
            data = bytes(before[at + len(_BEGUN):])
            del before[at:]
        kept += data
        del kept[_MAXIMUM_OUTPUT:]

    def _take(self) -> bool:
        """Takes what has come; False once nothing more will."""
        channel = self._channel
        taken = 0
        for stream, ready, take in ((0, channel.recv_ready, channel.recv), (1, channel.recv_stderr_ready, channel.recv_stderr)):
            while ready():
                data = take(65536)
                self._keep(stream, data)
                taken += len(data)
                # What had come in time is less; who goes on sending would keep us here.
                if taken > _MAXIMUM_WAITING and time.monotonic() > self._deadline:
                    raise CommandTimeout(f'a command did not end within {self._seconds:.0f} s')
        return not (channel.closed or channel.eof_received and channel.exit_status_ready())

    def wait_for(self, done: t.Callable[[], bool]) -> bool:
        """Reads until ``done()``; False when the command ended before. Raises CommandTimeout."""
        while True:
            self._news.taken()  # before it is: what comes meanwhile is news
            more = self._take()
            if done():
                return True
            if not more:
                self._take()
                return done()
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise CommandTimeout(f'a command did not end within {self._seconds:.0f} s')
            # At end of file there is no news any more, while the exit status is still under way.
            if self._channel.eof_received:
                self._channel.status_event.wait(min(left, 1))
            else:
                self._news.wait(left)

    def write(self, data: bytes | memoryview) -> None:
        """Writes to its input. A command that reads no more is no error here; its exit code tells."""
        view = memoryview(data)
        try:
            while view:
                left = self._deadline - time.monotonic()
                if left <= 0:  # who takes a byte now and then would have us wait for ever
                    raise TimeoutError
                self._channel.settimeout(left)
                if self._hold_back and _hold_back(self._channel):
                    self._hold_back = False
                # A packet at a time: paramiko copies what it is given.
                view = view[self._channel.send(bytes(view[:_PACKET])):]
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


def load_key(path: str, passphrase: str | None, certificates: t.Sequence[str] = ()) -> t.Any:
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
        for certificate in (*certificates, f'{path}-cert.pub'):
            if os.path.exists(certificate) and _is_of(certificate, key):
                key.load_certificate(certificate)
                break
        return key
    raise ssh_exception.SSHException(str(error))


def _is_of(certificate: str, key: t.Any) -> bool:
    """Whether a certificate is for this key."""
    with open(certificate, 'rb') as file:
        data = file.read()
    try:
        public = ssh_serialization.load_ssh_public_identity(data).public_key()
        return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).split()[1].decode('ascii') == key.get_base64()
    except (ValueError, AttributeError, IndexError, cryptography_exceptions.UnsupportedAlgorithm):
        return False
