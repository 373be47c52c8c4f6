# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A share and the service control manager of a Windows host over one SMB 3.1.1 connection; not what is done with them (way_in_smb.py).

smbprotocol speaks SMB ([MS-SMB2]) and pypsexec.scmr the service control manager's protocol ([MS-SCMR]); this file adds what a long-lived
process that talks to many hosts needs: time limits, no limit on file descriptors, pipelined writes, encryption insisted on.
"""

from __future__ import annotations

import contextlib
import hashlib
import select
import socket
import struct
import threading
import time
import typing as t
import uuid

from ansible_collections.sojourn.deploy.plugins.plugin_utils import network
from ansible_collections.sojourn.deploy.plugins.plugin_utils.libraries import library, require

connection_module = library('smbprotocol.connection')
exceptions = library('smbprotocol.exceptions')
change_notify = library('smbprotocol.change_notify')
file_info = library('smbprotocol.file_info')
ioctl = library('smbprotocol.ioctl')
open_module = library('smbprotocol.open')
session_module = library('smbprotocol.session')
tree_module = library('smbprotocol.tree')
scmr = library('pypsexec.scmr')
spnego = library('spnego')
pypsexec_exceptions = library('pypsexec.exceptions')

#: Seconds that the other end may take for any one answer.
ANSWER_SECONDS = 30.0
#: Bytes in one write, and bytes under way at once; with a round trip of 50 ms the latter allows 160 MB/s.
WRITE_SIZE = 1 << 20
WRITE_WINDOW = 8 << 20
#: The same of reads.
READ_SIZE = 1 << 20
READ_WINDOW = 8 << 20
#: The share of the pipes; most bytes in one read from a pipe or write to one; seconds between two looks whether it has a free end, or
#: credits are there again; seconds for which the answers to what is given up are waited for.
PIPES = 'IPC$'
PIPE_SIZE = 1 << 20
PIPE_PAUSE = 0.01
PIPE_END_SECONDS = 2.0
#: Seconds that one message may take from its first byte to its last, either way (1 MiB at 9 kB/s); what takes several answers, such as a listing;
#: and to delete a folder with all in it.
MESSAGE_SECONDS = 120.0
WHOLE_SECONDS = 120.0
TREE_SECONDS = 900.0
#: Bytes of the longest message before the sign-in (a token has 64 KiB at most), and after it: nothing longer is asked for.
FIRST_SIZE = 1 << 17
LONGEST_SIZE = max(READ_SIZE, PIPE_SIZE) + (1 << 16)
#: Bytes that are asked for of a listing at once; bytes of a name ([MS-FSCC] 2.1.5: 255 characters); names that are held at once; folders in folders.
LIST_SIZE = 1 << 16
NAME_SIZE = 510
NAMES = 1 << 16
DEPTH = 128
#: [MS-SCMR] 3.1.4.11: the most that a list of services has, in bytes. A service's name has 256 characters at most (3.1.4.12).
SERVICES_SIZE = 1 << 18
SERVICE_NAME = 256
#: What pypsexec takes of an answer of the service control manager's at once, and of one fragment of a longer one.
_RPC_FIRST = 1024
_RPC_FRAGMENT = 4280
#: [MS-SCMR] 3.1.4, opnum of REnumServicesStatusW.
_ENUM_SERVICES = 14
#: [MS-SMB2] 2.2.3.1.2 and 2.2.3.1.7.
CIPHERS = {1: 'AES-128-CCM', 2: 'AES-128-GCM', 3: 'AES-256-CCM', 4: 'AES-256-GCM'}
SIGNING = {0: 'HMAC-SHA256', 1: 'AES-CMAC', 2: 'AES-GMAC'}
#: Object identifiers (DER, without their head) of the ways to sign in that a server offers in its first answer ([MS-SPNG], [RFC4178]).
MECHANISMS = {
    'Kerberos': (bytes.fromhex('2a864886f712010202'), bytes.fromhex('2a864882f712010202')), 'NTLM': (bytes.fromhex('2b06010401823702020a'),),
    'NEGOEX': (bytes.fromhex('2b06010401823702021e'),)}

#: [MS-SMB2] 3.2.4.1.5: a credit stands for 64 KiB under way. Windows grants up to 512 at once.
CREDITS = 256
CREDIT_BYTES = 65536
#: Credits that pipes leave for everything else.
SPARE_CREDITS = 4

SMB_3_1_1 = 0x0311
#: Seconds from 1601, where Windows' clock begins ([MS-DTYP] 2.3.3), to 1970.
FILETIME_BEGIN = 11644473600
_NEGOTIATE = 0
#: [MS-ERREF] STATUS_PENDING; the message id of an oplock break ([MS-SMB2] 2.2.23).
_PENDING = 0x00000103
_NOBODY_ASKED = 0xFFFFFFFFFFFFFFFF
#: Head of an NTLM challenge ([MS-NLMP] 2.2.1.2), and the flag that says that a version is in it.
_CHALLENGE = b'NTLMSSP\0\x02\0\0\0'
_HAS_VERSION = 0x02000000
#: MsvAvNbComputerName of its TargetInfo.
_COMPUTER_NAME = 1
#: What the older dialects tell about the host (https://learn.microsoft.com/windows-server/storage/file-server/file-server-smb-overview).
DIALECTS = {
    0x0202: 'Windows Vista or Server 2008', 0x0210: 'Windows 7 or Server 2008 R2', 0x0300: 'Windows 8 or Server 2012', 0x0302: 'Windows 8.1 or Server 2012 R2'}

STATUS_SHARING_VIOLATION = 0xC0000043
STATUS_DELETE_PENDING = 0xC0000056
STATUS_NO_SUCH_FILE = 0xC000000F
STATUS_OBJECT_NAME_NOT_FOUND = 0xC0000034
STATUS_OBJECT_PATH_NOT_FOUND = 0xC000003A
STATUS_CANNOT_DELETE = 0xC0000121
STATUS_ACCESS_DENIED = 0xC0000022
STATUS_DISK_FULL = 0xC000007F
STATUS_PIPE_NOT_AVAILABLE = 0xC00000AC
#: What a read from a pipe, or a write to it, is answered with once its other end is gone ([MS-ERREF] 2.3.1).
STATUS_PIPE_ENDED = (0xC000014B, 0xC00000B0, 0xC00000B1, 0xC0000011, 0xC0000128, 0xC0000120)
STATUS_PENDING = 0x00000103
STATUS_BUFFER_OVERFLOW = 0x80000005
STATUS_NOT_FOUND = (STATUS_NO_SUCH_FILE, STATUS_OBJECT_NAME_NOT_FOUND, STATUS_OBJECT_PATH_NOT_FOUND, STATUS_DELETE_PENDING)

#: FILE_DELETE_ON_CLOSE and others of [MS-SMB2] 2.2.13.
_DELETE = 0x00010000
_READ_ATTRIBUTES = 0x00000080
_LIST = 0x00000001
#: FILE_ADD_FILE, FILE_ADD_SUBDIRECTORY ([MS-SMB2] 2.2.13.1.2).
_ADD = 0x00000002 | 0x00000004
_SHARE_ALL = 0x7
#: FILE_READ_DATA, FILE_WRITE_DATA, FILE_READ_ATTRIBUTES, SYNCHRONIZE ([MS-SMB2] 2.2.13.1.1).
_PIPE_ACCESS = 0x00000001 | 0x00000002 | _READ_ATTRIBUTES | 0x00100000


class Timeout(Exception):
    """The other end did not answer in time."""


class NotEncrypted(Exception):
    """The other end does not offer encryption."""


class NotSigned(Exception):
    """An answer came without the signature, or the encryption, that was agreed upon."""


class TooMuch(ConnectionError):
    """The other end sends more than was asked for, or what has no end, or takes too long for the whole of it."""


class _Bounds:
    """What is taken of something whose end is the other end's to tell, and for how long. Raises TooMuch."""

    def __init__(self, what: str, seconds: float, most: int = 0) -> None:
        self._what = what
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._most = most
        self._held = 0

    def check(self) -> None:
        """Called between two answers."""
        if time.monotonic() > self._deadline:
            raise TooMuch(f'{self._what} took more than {self._seconds:.0f} s')

    def hold(self, count: int = 1) -> None:
        """Called before so many more are kept."""
        self._held += count
        if self._held > self._most:
            raise TooMuch(f'{self._what} has more than {self._most}')

    def let_go(self, count: int) -> None:
        """Called once so many are not kept any more."""
        self._held -= count


class _Few(list):
    """A list that answers are added to as they come, be they asked for or not; a few of them mean something."""

    def append(self, item: t.Any) -> None:
        """As a list's, a few times."""
        if len(self) >= 8:
            raise TooMuch('it answers what was not asked')
        super().append(item)


class _Transport:
    """The TCP connection under an SMB connection ([MS-SMB2] 2.1), in the place of smbprotocol's own.

    Theirs resolves and connects by itself, one address after the other, and waits with select(), which fails past 1023 descriptors.
    """

    MAX_SIZE = 0xFFFFFF

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._send_lock = threading.Lock()
        self._receive_lock = threading.Lock()
        self.connected = True
        #: Bytes of the longest message that is taken.
        self.longest = FIRST_SIZE
        #: When the message that has begun to come has to be there whole; None between two.
        self._deadline: float | None = None

    def connect(self) -> None:
        """It is connected already."""

    def send(self, message: t.Any) -> None:
        data = message if isinstance(message, (bytes, bytearray)) else message.pack()
        if len(data) > self.MAX_SIZE:
            raise ValueError(f'a message of {len(data)} bytes is too long')
        view = memoryview(struct.pack('>I', len(data)) + data)
        with self._send_lock:
            deadline = time.monotonic() + MESSAGE_SECONDS
            while view:
                try:
                    view = view[self._socket.send(view, socket.MSG_DONTWAIT):]
                except BlockingIOError:
                    self._wait_to_send(deadline)

    def _wait_to_send(self, deadline: float) -> None:
        """The kernel's own limit (TCP_USER_TIMEOUT) is for who takes nothing; one that takes a byte now and then would have us wait for ever."""
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            self.close()  # half a message is sent
            raise TooMuch(f'it did not take a message within {MESSAGE_SECONDS:.0f} s')

    def recv(self, timeout: float) -> bytes | None:
        """One message, None at the connection's end. Raises TimeoutError where none begins in time; TooMuch where it is too long or does not end."""
        self._deadline = None
        head = self._receive(4, timeout)
        if head is None:
            return None
        size = struct.unpack('>I', head)[0]
        # smbprotocol takes an empty one for the connection's end, though it is not.
        if not 0 < size <= self.longest:
            raise TooMuch(f'it sent a message of {size} bytes')
        return self._receive(size, timeout)

    def _receive(self, count: int, timeout: float) -> bytes | None:
        data = bytearray(count)
        view = memoryview(data)
        received = 0
        while received < count:
            with self._receive_lock:
                if not self.connected:
                    return None
                poll = select.poll()
                poll.register(self._socket, select.POLLIN)
                left = timeout if self._deadline is None else self._deadline - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):
                    if self._deadline is None:
                        raise TimeoutError(f'nothing came for {timeout:.0f} s')
                    # No TimeoutError: after that smbprotocol would go on in the middle of the message.
                    raise TooMuch(f'a message took more than {MESSAGE_SECONDS:.0f} s')
                try:
                    got = self._socket.recv_into(view[received:])
                except OSError:
                    got = 0
            if not got:
                self.close()
                return None
            if self._deadline is None:
                self._deadline = time.monotonic() + MESSAGE_SECONDS
            received += got
        return bytes(data)

    def notice_silence(self) -> None:
        """See ``network.notice_silence``."""
        with contextlib.suppress(OSError):
            network.notice_silence(self._socket)

    def close(self) -> None:
        if not self.connected:
            return
        self.connected = False
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in _receive
        with self._receive_lock:
            self._socket.close()


class _Connection(connection_module.Connection):
    """An SMB connection over a given socket that never waits for ever and takes no plain-text answer in an encrypted session."""

    def __init__(self, connection: socket.socket, server_name: str) -> None:
        self._given = _Transport(connection)
        #: Whether NTLM was spoken at the sign-in.
        self.ntlm = False
        #: What the other end said of itself by the way: its version (major, minor, build), and the seconds by which its clock is ahead of this one.
        self.version: tuple[int, int, int] | None = None
        self.clock_ahead: float | None = None
        super().__init__(uuid.uuid4(), server_name, require_signing=True)
        # Whatever says that it answers the negotiation is added to it, at any time.
        self.preauth_integrity_hash_value = _Few()

    @property
    def transport(self) -> t.Any:
        """What smbprotocol sends through. It makes one of its own in connect(), which is left aside here."""
        return self._given

    @transport.setter
    def transport(self, value: t.Any) -> None:
        pass

    def send(self, message: t.Any, *arguments: t.Any, **options: t.Any) -> t.Any:
        """As in the base class; of a sign-in, its kind is kept."""
        if isinstance(message, session_module.SMB2SessionSetupRequest) and b'NTLMSSP\0' in message['buffer'].get_value():
            self.ntlm = True
        return super().send(message, *arguments, **options)

    def receive(self, request: t.Any, wait: bool = True, timeout: float | None = None, resolve_symlinks: bool = True) -> t.Any:
        """As in the base class, with a time limit in any case."""
        seconds = timeout if timeout is not None else ANSWER_SECONDS
        try:
            if wait:
                self._wait_final(request, seconds)
            # A target's symbolic link could lead anywhere; nothing here needs one.
            response = super().receive(request, wait=wait, timeout=seconds, resolve_symlinks=False)
            if self.clock_ahead is None and response['command'].get_value() == _NEGOTIATE:
                self.clock_ahead = clock_ahead(response['data'].get_value(), time.time())
            return response
        except exceptions.MoreProcessingRequired as error:
            self.version = version_told(error.header['data'].get_value()) or self.version
            raise
        except exceptions.SMBException as error:
            if error.__class__ is exceptions.SMBException and 'timeout' in str(error):  # not one of its subclasses, which are the server's answers
                raise Timeout(str(error)) from None
            raise

    def _wait_final(self, request: t.Any, seconds: float) -> None:
        """Waits for another answer than an interim one: with each of those the base class waits for a second more, and there may be any number."""
        deadline = time.monotonic() + seconds
        while request.response_event.wait(max(0.0, deadline - time.monotonic())):
            with request.response_event_lock:
                if request.response is None or request.response['status'].get_value() != _PENDING:
                    return
                request.response_event.clear()
            if not self.transport.connected:  # at its end every event fires, this one perhaps just before it was cleared
                return
            if time.monotonic() > deadline:
                break
        raise Timeout(f'no answer within {seconds:.0f} s')

    def verify_signature(self, header: t.Any, session_id: int, force: bool = False) -> None:
        """Called for each answer that came unencrypted. [MS-SMB2] 3.2.5.1.1 wants those of an encrypted session dropped; those of another are to be
        signed, but for what 3.2.5.1.3 leaves out, and the base class lets an answer pass that does not say that it is signed.
        """
        session = self.session_table.get(session_id)
        if session is not None and not force:
            if session.encrypt_data:
                raise NotSigned('it came unencrypted in an encrypted session')
            unsigned = not header['flags'].has_flag(connection_module.Smb2Flags.SMB2_FLAGS_SIGNED)
            # An interim answer, and one that nobody asked for, tell nothing that anything is done with.
            if unsigned and header['status'].get_value() != _PENDING and header['message_id'].get_value() != _NOBODY_ASKED:
                raise NotSigned('it came without a signature')
        try:
            super().verify_signature(header, session_id, force=force)
        except exceptions.SMBException as error:
            raise NotSigned(str(error)) from None


def clock_ahead(answer: bytes, now: float) -> float | None:
    """By how many seconds the clock behind an answer to NEGOTIATE ([MS-SMB2] 2.2.4, SystemTime) is ahead of ours; None where it tells none."""
    if len(answer) < 48:
        return None
    there = struct.unpack_from('<Q', answer, 40)[0]
    return there / 1e7 - FILETIME_BEGIN - now if there else None


def version_told(answer: bytes) -> tuple[int, int, int] | None:
    """The version in the NTLM challenge ([MS-NLMP] 2.2.1.2) that an answer to a sign-in holds: major, minor, build. None where there is none."""
    at = answer.find(_CHALLENGE)
    if at < 0 or len(answer) < at + 56 or not struct.unpack_from('<I', answer, at + 20)[0] & _HAS_VERSION:
        return None
    return struct.unpack_from('<BBH', answer, at + 48)


def name_told(answer: bytes) -> str:
    """The computer's short name in the NTLM challenge ([MS-NLMP] 2.2.1.2, TargetInfo) that an answer to a sign-in holds; empty where there is none."""
    at = answer.find(_CHALLENGE)
    if at < 0 or len(answer) < at + 48:
        return ''
    length, start = struct.unpack_from('<H2xI', answer, at + 40)
    pairs = answer[at + start:at + start + length]
    while len(pairs) >= 4:
        kind, size = struct.unpack_from('<HH', pairs)
        if kind == _COMPUTER_NAME:
            return pairs[4:4 + size].decode('utf-16-le', 'replace')
        if kind == 0:
            break
        pairs = pairs[4 + size:]
    return ''


def entries_told(buffer: bytes) -> t.Iterator[tuple[str, bool, float]]:
    """What a listing's answer holds ([MS-FSCC] 2.4.10): (name, whether it is a folder, last change in seconds since 1970). Raises ValueError, struct.error.

    smbprotocol's own takes entries that overlap, of which a few kilobytes can hold thousands, and as many copies of all that follows.
    """
    at = 0
    while True:
        following, written, attributes, length = struct.unpack_from('<I20xQ24xII', buffer, at)
        begin = at + 64
        if length > NAME_SIZE or begin + length > len(buffer) or following and following < 64 + length:
            raise ValueError('a listing that is none')
        yield buffer[begin:begin + length].decode('utf-16-le'), bool(attributes & 0x10), written / 1e7 - FILETIME_BEGIN
        if not following:
            return
        at += following


def services_told(answer: bytes) -> list[tuple[str, int]]:
    """What the answer to REnumServicesStatusW ([MS-SCMR] 3.1.4.11) holds: (name, state). Raises ValueError, struct.error.

    The array's length; ENUM_SERVICE_STATUSW (2.2.10) each, whose offsets are from the array's begin; names; at the end how many, and two more.
    pypsexec's own copies all that follows for each, and names may be as long as that.
    """
    (count,) = struct.unpack_from('<I', answer, len(answer) - 12)
    services = []
    for at in range(4, 4 + 36 * min(count, len(answer)), 36):
        start, state = struct.unpack_from('<I8xI', answer, at)
        start += 4
        name, end, unused = answer[start:start + 2 * SERVICE_NAME + 2].decode('utf-16-le', 'replace').partition('\0')
        if not end:
            raise ValueError("a service's name that does not end")
        services.append((name, state))
    return services


class Client:
    """One signed-in SMB connection. Raises smbprotocol's and pypsexec's exceptions, and ``Timeout``."""

    def __init__(self) -> None:
        require(connection_module, scmr)
        self.connection: t.Any = None
        self.session: t.Any = None
        self._trees: dict[str, t.Any] = {}
        #: Pipes are opened and used by several threads.
        self._pipes = threading.Lock()

    def negotiate(self, connection: socket.socket, server_name: str, timeout: float) -> int:
        """Begins to speak SMB; returns the dialect that the other end chose. ``server_name`` is for UNC paths."""
        self.connection = _Connection(connection, server_name)
        # Python's threads cannot be made to give up a send; the kernel can.
        if hasattr(socket, 'TCP_USER_TIMEOUT'):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(ANSWER_SECONDS * 1000))
        self.connection.connect(timeout=timeout)
        return self.connection.dialect

    def sign_in(self, user: str | None, password: str | None, *, principal_host: str, protocol: str, encryption: bool = True) -> None:
        """Signs in by ``protocol`` (kerberos, ntlm, negotiate: Kerberos, and NTLM where that fails), without a password with the Kerberos ticket there is.

        Raises NotEncrypted before anything of the user's is sent. Without ``encryption`` it is used where the target offers it; where not, each message is
        signed, and so has each answer to be.
        """
        if encryption and not self.connection.supports_encryption:
            raise NotEncrypted
        self.session = session_module.Session(
            self.connection, user, password, require_encryption=self.connection.supports_encryption, hostname_override=principal_host, auth_protocol=protocol)
        self.session.connect()
        self.connection.transport.longest = LONGEST_SIZE

    def name_told(self) -> str:
        """The target's own short name ([MS-NLMP] 2.2.2.1, MsvAvNbComputerName), which it tells to who begins to sign in by NTLM; empty where it does not.

        What is begun for that is not ended, and goes with the connection. Nothing of the user's is sent.
        """
        context = spnego.client('nobody', 'none', service='cifs', protocol='ntlm')  # neither is in its first message
        message = session_module.SMB2SessionSetupRequest()
        message['security_mode'] = self.connection.client_security_mode
        message['buffer'] = context.step()
        request = self.connection.send(message, credit_request=64)
        try:
            self.connection.receive(request)
        except exceptions.MoreProcessingRequired as error:
            return name_told(error.header['data'].get_value())
        finally:
            self.connection.preauth_integrity_session_hash_value.pop(request.message['message_id'].get_value(), None)
        return ''

    @property
    def sign_in_kind(self) -> str:
        """After ``sign_in``: how it was done."""
        return 'NTLM' if self.connection.ntlm else 'Kerberos'

    def terms(self, *, encryption: bool = True) -> dict[str, str | list[str]]:
        """What the two ends have agreed on, as far as they came; ``encryption``: whether it is insisted on here."""
        connection = self.connection
        if connection is None or connection.dialect is None:
            return {}
        dialect = connection.dialect
        name = 'SMB 3.1.1' if dialect == SMB_3_1_1 else f'0x{dialect:04X}, as old as {DIALECTS.get(dialect, "Windows 8")}'
        required = bool(int(connection.server_security_mode or 0) & 2)
        # Since SMB 3.0 it is AES-CMAC where nothing is negotiated ([MS-SMB2] 3.1.4.1).
        signing = SIGNING.get(1 if connection.signing_algorithm_id is None else connection.signing_algorithm_id, '')
        on = 'always on here' if encryption else 'not insisted on here'
        offer = f'{CIPHERS.get(connection.cipher_id, "")}, {on}' if connection.supports_encryption else 'the target does not offer it'
        token = bytes(connection.gss_negotiate_token or b'')
        offered = [mechanism for mechanism, codes in MECHANISMS.items() if any(code in token for code in codes)]
        return {
            'dialect': name, 'signing': f'{signing}, always on here; the target {"requires" if required else "does not require"} it',
            'encryption': offer, 'sign-ins offered': offered or 'the target does not say'}

    @property
    def version(self) -> tuple[int, int, int] | None:
        """The other end's version (major, minor, build), as it tells it to who signs in by NTLM, be it in vain."""
        return self.connection.version if self.connection is not None else None

    @property
    def clock_ahead(self) -> float | None:
        """By how many seconds the other end's clock is ahead of this one; None where it does not tell."""
        return self.connection.clock_ahead if self.connection is not None else None

    def tree(self, share: str) -> t.Any:
        """The connection to a share, made at its first use."""
        tree = self._trees.get(share)
        if tree is None:
            tree = tree_module.TreeConnect(self.session, rf'\\{self.connection.server_name}\{share}')
            tree.connect()
            self._trees[share] = tree
        return tree

    @property
    def trees(self) -> tuple[str, ...]:
        """The shares that are connected to."""
        return tuple(self._trees)

    def close(self) -> None:
        """Signs out and disconnects; never raises."""
        if self.connection is None:
            return
        with contextlib.suppress(Exception):
            if self.session is not None and self.connection.transport.connected:
                self.session.disconnect(True, timeout=5)
        with contextlib.suppress(Exception):
            self.connection.disconnect(False)

    def notice_silence(self) -> None:
        """See ``network.notice_silence``."""
        self.connection.transport.notice_silence()

    @property
    def alive(self) -> bool:
        """Whether the connection is there still, as far as is known without asking."""
        return self.connection is not None and self.connection.transport.connected

    def open_pipe(self, name: str, timeout: float) -> Pipe:
        """A named pipe of the host, through IPC$. One that serves others just now is waited for. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        pause = threading.Event()
        while True:
            try:
                with self._pipes:
                    self.tree(PIPES)
                file = self.open(
                    PIPES, name, access=_PIPE_ACCESS, disposition=open_module.CreateDisposition.FILE_OPEN, sharing=0,
                    options=open_module.CreateOptions.FILE_NON_DIRECTORY_FILE, credits=CREDITS)
                try:
                    return Pipe(self, file, timeout)
                except BaseException:
                    with contextlib.suppress(Exception):
                        file.close()
                    raise
            except exceptions.SMBResponseException as error:
                if error.status != STATUS_PIPE_NOT_AVAILABLE:
                    raise
                if time.monotonic() > deadline:
                    raise TimeoutError('all of its ends are taken') from None
            pause.wait(PIPE_PAUSE)

    # Files

    def open(self, share: str, path: str, *, access: int, disposition: int, options: int = 0, sharing: int = _SHARE_ALL, credits: int | None = None) -> t.Any:
        """Opens a file or folder ([MS-SMB2] 2.2.13)."""
        file = open_module.Open(self.tree(share), path)
        message, receive = file.create(
            open_module.ImpersonationLevel.Impersonation, access, 0, sharing, disposition, options, send=False)
        request = self.connection.send(message, self.session.session_id, self.tree(share).tree_connect_id, credit_request=credits)
        receive(request)
        return file

    def _open_folder(self, share: str, path: str) -> t.Any:
        options = open_module.CreateOptions.FILE_DIRECTORY_FILE
        return self.open(share, path, access=_LIST | _READ_ATTRIBUTES, disposition=open_module.CreateDisposition.FILE_OPEN, options=options)

    def make_folder(self, share: str, path: str) -> t.Any:
        """Makes a folder and keeps it open. Raises ObjectNameCollision where something of that name is there.

        When it is closed, by us or by the server at the connection's end, the folder goes if it is empty then (FILE_DELETE_ON_CLOSE).
        """
        return self.open(
            share, path, access=_READ_ATTRIBUTES | _LIST | _DELETE, disposition=open_module.CreateDisposition.FILE_CREATE,
            options=open_module.CreateOptions.FILE_DIRECTORY_FILE | open_module.CreateOptions.FILE_DELETE_ON_CLOSE)

    def hold_file(self, share: str, path: str, data: bytes) -> t.Any:
        """Writes a new small file and keeps it open; others may read it. When it is closed, by whomever, it is gone."""
        file = self.open(
            share, path, access=open_module.FilePipePrinterAccessMask.GENERIC_WRITE | _DELETE, disposition=open_module.CreateDisposition.FILE_CREATE,
            options=open_module.CreateOptions.FILE_NON_DIRECTORY_FILE | open_module.CreateOptions.FILE_DELETE_ON_CLOSE)
        file.write(data, 0)
        return file

    def _mark_for_delete(self, file: t.Any, pending: bool) -> None:
        """FileDispositionInformation ([MS-FSCC] 2.4.11): whether the file goes when this handle is closed, by whomever."""
        information = file_info.FileDispositionInformation()
        information['delete_pending'] = pending
        message = open_module.SMB2SetInfoRequest()
        message['info_type'] = information.INFO_TYPE
        message['file_info_class'] = information.INFO_CLASS
        message['file_id'] = file.file_id
        message['buffer'] = information
        request = self.connection.send(message, self.session.session_id, file.tree_connect.tree_connect_id)
        self.connection.receive(request)

    def write_file(self, share: str, path: str, chunks: t.Iterable[bytes], on_chunk: t.Callable[[int], None] | None = None) -> int:
        """Writes a new file with several writes under way at once; returns its size by the server's own account.

        Should the connection end before all is written, the server deletes what there is of it.
        """
        file = self.open(
            share, path, access=open_module.FilePipePrinterAccessMask.GENERIC_WRITE | _READ_ATTRIBUTES | _DELETE,
            disposition=open_module.CreateDisposition.FILE_CREATE,
            options=open_module.CreateOptions.FILE_NON_DIRECTORY_FILE | open_module.CreateOptions.FILE_SEQUENTIAL_ONLY, sharing=0, credits=CREDITS)
        try:
            self._mark_for_delete(file, True)
            under_way: list[tuple[t.Any, t.Any, int]] = []
            pending = 0
            offset = 0

            def settle() -> None:
                nonlocal pending
                request, receive, size = under_way.pop(0)
                pending -= size
                written = receive(request)
                if written != size:
                    raise exceptions.SMBException(f'{written} of {size} bytes were written')

            try:
                for chunk in chunks:
                    view = memoryview(chunk)
                    size_limit = min(WRITE_SIZE, self.connection.max_write_size)
                    for start in range(0, len(view), size_limit):
                        data = bytes(view[start:start + size_limit])
                        charge = (len(data) - 1) // 65536 + 1
                        while under_way and (pending + len(data) > WRITE_WINDOW or self._credits() < charge):
                            settle()
                        message, receive = file.write(data, offset, send=False)
                        request = self.connection.send(message, self.session.session_id, file.tree_connect.tree_connect_id, credit_request=max(charge, 32))
                        under_way.append((request, receive, len(data)))
                        pending += len(data)
                        offset += len(data)
                        if on_chunk is not None:
                            on_chunk(len(data))
                while under_way:
                    settle()
            finally:
                while under_way:  # after a failure; their answers must not be taken for others'
                    with contextlib.suppress(Exception):
                        settle()
            self._mark_for_delete(file, False)
        except BaseException:
            with contextlib.suppress(Exception):
                file.close()
            raise
        file.close(get_attributes=True)
        return file.end_of_file

    def _credits(self) -> int:
        with self.connection.sequence_lock:
            window = self.connection.sequence_window
            return window['high'] - window['low']

    def read_file(self, share: str, path: str, *, limit: int = 1 << 20, offset: int = 0) -> bytes:
        """Reads a small file, or the first ``limit`` bytes from an offset."""
        file = self.open(
            share, path, access=open_module.FilePipePrinterAccessMask.GENERIC_READ, disposition=open_module.CreateDisposition.FILE_OPEN,
            options=open_module.CreateOptions.FILE_NON_DIRECTORY_FILE)
        try:
            data = bytearray()
            bounds = _Bounds('reading a file', WHOLE_SECONDS)
            while len(data) < limit:
                bounds.check()
                size = min(limit - len(data), 65536)
                try:
                    piece = file.read(offset + len(data), size)
                except exceptions.EndOfFile:
                    break
                if not piece:
                    break
                if len(piece) > size:
                    raise TooMuch(f'it sent {len(piece)} bytes of a file where {size} were asked for')
                data += piece
            return bytes(data)
        finally:
            file.close()

    def hold_to_check(self, share: str, path: str, size: int) -> tuple[t.Any, str]:
        """A file of this size held open, and its SHA-256 in hex; of a longer one, that of as much as tells that it is another.

        Until it is closed nobody can write to it, put another in its place or remove it; to run it is possible.
        """
        file = self.open(
            share, path, access=open_module.FilePipePrinterAccessMask.GENERIC_READ, disposition=open_module.CreateDisposition.FILE_OPEN,
            options=open_module.CreateOptions.FILE_NON_DIRECTORY_FILE | open_module.CreateOptions.FILE_SEQUENTIAL_ONLY,
            sharing=open_module.ShareAccess.FILE_SHARE_READ, credits=CREDITS)
        try:
            digest = hashlib.sha256()
            # One byte more than it should have tells a longer one; its size is good for as long as it is held.
            for piece in self._pieces(file, min(file.end_of_file, size + 1)):
                digest.update(piece)
            return file, digest.hexdigest()
        except BaseException:
            with contextlib.suppress(Exception):
                file.close()
            raise

    def _pieces(self, file: t.Any, count: int) -> t.Iterator[bytes]:
        """The first ``count`` bytes of a file, or as many as come; several reads are under way at once."""
        under_way: list[tuple[t.Any, t.Any, int]] = []
        pending = 0
        asked = came = 0
        # As long as so many whole answers may take, however small the pieces are.
        bounds = _Bounds('reading a file', ANSWER_SECONDS * (2 + count // READ_SIZE))

        def settle() -> bytes:
            nonlocal pending
            request, receive, size = under_way.pop(0)
            pending -= size
            return receive(request)

        def drop() -> None:
            """Their answers must not be taken for others'."""
            while under_way:
                with contextlib.suppress(Exception):
                    settle()

        try:
            while came < count:
                bounds.check()
                while asked < count:
                    size = min(READ_SIZE, self.connection.max_read_size, count - asked)
                    charge = (size - 1) // 65536 + 1
                    if under_way and (pending + size > READ_WINDOW or self._credits() < charge):
                        break
                    message, receive = file.read(asked, size, send=False)
                    request = self.connection.send(message, self.session.session_id, file.tree_connect.tree_connect_id, credit_request=max(charge, 32))
                    under_way.append((request, receive, size))
                    pending += size
                    asked += size
                size = under_way[0][2]
                try:
                    piece = settle()
                except exceptions.EndOfFile:
                    return
                if not piece:
                    return
                came += len(piece)
                yield piece
                if len(piece) < size:  # a server may do so; what was asked for beyond is not what comes next
                    drop()
                    asked = came
        finally:
            drop()

    def ask_to_add(self, share: str) -> None:
        """Raises AccessDenied where nothing may be made in a share: its folder is opened with that right, and nothing made."""
        self.open(
            share, '', access=_ADD | _READ_ATTRIBUTES, disposition=open_module.CreateDisposition.FILE_OPEN,
            options=open_module.CreateOptions.FILE_DIRECTORY_FILE).close()

    def free_bytes(self, share: str) -> int:
        """How much this user may still write to a share's disk ([MS-FSCC] 2.5.4)."""
        folder = self._open_folder(share, '')
        try:
            information = file_info.FileFsFullSizeInformation()
            message = open_module.SMB2QueryInfoRequest()
            message['info_type'] = information.INFO_TYPE
            message['file_info_class'] = information.INFO_CLASS
            message['file_id'] = folder.file_id
            message['output_buffer_length'] = len(information)
            request = self.connection.send(message, self.session.session_id, folder.tree_connect.tree_connect_id)
            answer = open_module.SMB2QueryInfoResponse()
            answer.unpack(self.connection.receive(request)['data'].get_value())
            information.unpack(answer['buffer'].get_value())
            return information['caller_available_units'].get_value() * information['sectors_per_unit'].get_value() * information['bytes_per_sector'].get_value()
        finally:
            folder.close()

    def exists(self, share: str, path: str) -> bool:
        """Whether a file or folder is there; one that is being deleted is not."""
        try:
            self.open(share, path, access=_READ_ATTRIBUTES, disposition=open_module.CreateDisposition.FILE_OPEN).close()
        except exceptions.SMBResponseException as error:
            if error.status in STATUS_NOT_FOUND:
                return False
            raise
        return True

    def list(self, share: str, folder: str, pattern: str = '*', bounds: _Bounds | None = None) -> list[tuple[str, bool, float]]:
        """Entries of a folder: (name, whether it is a folder, last change in seconds since 1970). Raises TooMuch where there is no end of them."""
        directory = self._open_folder(share, folder)
        bounds = bounds or _Bounds('listing a folder', WHOLE_SECONDS, NAMES)
        found: list[tuple[str, bool, float]] = []
        try:
            while True:
                bounds.check()
                try:
                    entries = self._ask_entries(directory, pattern)
                except (exceptions.NoMoreFiles, exceptions.NoSuchFile):
                    return found
                for entry in entries:
                    if entry[0] not in ('.', '..'):
                        bounds.hold()
                        found.append(entry)
        finally:
            directory.close()

    def _ask_entries(self, directory: t.Any, pattern: str) -> t.Iterator[tuple[str, bool, float]]:
        message = directory.query_directory(pattern, file_info.FileInformationClass.FILE_DIRECTORY_INFORMATION, max_output=LIST_SIZE, send=False)[0]
        request = self.connection.send(message, self.session.session_id, directory.tree_connect.tree_connect_id)
        answer = open_module.SMB2QueryDirectoryResponse()
        answer.unpack(self.connection.receive(request)['data'].get_value())
        return entries_told(answer['buffer'].get_value())

    def delete(self, share: str, path: str, *, folder: bool = False) -> bool:
        """Deletes a file or an empty folder; False where nothing was there."""
        options = open_module.CreateOptions.FILE_DELETE_ON_CLOSE | 0x00200000  # FILE_OPEN_REPARSE_POINT: a link itself, not what it leads to
        options |= open_module.CreateOptions.FILE_DIRECTORY_FILE if folder else open_module.CreateOptions.FILE_NON_DIRECTORY_FILE
        try:
            self.open(share, path, access=_DELETE, disposition=open_module.CreateDisposition.FILE_OPEN, options=options).close()
        except exceptions.SMBResponseException as error:
            if error.status in STATUS_NOT_FOUND:
                return False
            raise
        return True

    def delete_tree(self, share: str, path: str) -> bool:
        """Deletes a folder with all in it; False where nothing was there. Raises TooMuch where there is no end of it."""
        return self._delete_tree(share, path, _Bounds('deleting a folder', TREE_SECONDS, NAMES), 0)

    def _delete_tree(self, share: str, path: str, bounds: _Bounds, depth: int) -> bool:
        if depth > DEPTH:
            raise TooMuch(f'it has more than {DEPTH} folders in one another')
        try:
            entries = self.list(share, path, bounds=bounds)
        except exceptions.SMBResponseException as error:
            if error.status in STATUS_NOT_FOUND:
                return False
            raise
        for name, is_folder, unused_time in entries:
            bounds.check()
            inner = rf'{path}\{name}'
            # A junction is listed as a folder; deleted as what it is, never entered.
            if is_folder and not self._is_link(share, inner):
                self._delete_tree(share, inner, bounds, depth + 1)
            else:
                self.delete(share, inner, folder=is_folder)
        bounds.let_go(len(entries))
        return self.delete(share, path, folder=True)

    def _is_link(self, share: str, path: str) -> bool:
        file = self.open(share, path, access=_READ_ATTRIBUTES, disposition=open_module.CreateDisposition.FILE_OPEN, options=0x00200000)
        file.close()
        return bool(file.file_attributes & 0x400)  # FILE_ATTRIBUTE_REPARSE_POINT

    # Waiting for files

    @contextlib.contextmanager
    def watch(self, share: str, folder: str) -> t.Iterator[Watch]:
        """Watches a folder for new names; the watch is on once the context begins."""
        directory = self._open_folder(share, folder)
        try:
            yield Watch(self, directory)
        finally:
            with contextlib.suppress(Exception):
                directory.close()


class Pipe:
    """One end of a named pipe of the host, as bytes in both directions (``way_in.Stream``).

    A read is under way at all times, so that an answer needs no question and the end shows at once; and at most one write, since nothing says
    in which order a server carries out several. Its answer is taken only when the next one is to go.
    """

    def __init__(self, client: Client, file: t.Any, timeout: float | None) -> None:
        self._client = client
        self._file = file
        self._timeout = timeout
        self._come = memoryview(b'')
        self._ended = False
        self._writing: t.Any = None
        self._reading: t.Any = None
        self._read()

    def settimeout(self, seconds: float | None) -> None:
        """Seconds for each wait from now on."""
        self._timeout = seconds

    def recv(self, size: int) -> bytes:
        """At least a byte of what has come; empty at the end."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while not self._come and not self._ended:
            self._take(None if deadline is None else max(0.0, deadline - time.monotonic()))
            # An answer may be empty, and the next one as well.
            if not self._come and not self._ended and deadline is not None and time.monotonic() > deadline:
                raise TimeoutError('the other end of the pipe says nothing')
        piece, self._come = self._come[:size], self._come[size:]
        return bytes(piece)

    def readable(self) -> bool:
        """Whether ``recv`` would not wait."""
        try:
            if not self._come and not self._ended:
                self._take(0)
        except TimeoutError:
            pass
        except OSError:
            return True  # ``recv`` says what is wrong
        return bool(self._come) or self._ended

    def sendall(self, data: bytes) -> None:
        """Sends all of it."""
        view = memoryview(data)
        while view:
            if self._writing is not None:
                request, self._writing = self._writing, None
                if self._answer(request, self._timeout) is None:
                    raise BrokenPipeError('the other end of the pipe is closed')
            size = self._room(min(len(view), PIPE_SIZE, self._client.connection.max_write_size))
            message = self._file.write(bytes(view[:size]), 0, send=False)[0]
            self._writing = self._send(message, size)
            view = view[size:]

    def close(self) -> None:
        """Closes it; never raises. What is under way is given up first: no answer is to come to nobody."""
        reading, self._reading, self._ended = self._reading, None, True
        with contextlib.suppress(Exception):
            if reading is not None:
                reading.cancel()
        for request in (self._writing, reading):
            with contextlib.suppress(Exception):
                if request is not None:
                    self._answer(request, PIPE_END_SECONDS)
        with contextlib.suppress(Exception):
            if self._client.alive:
                self._file.close()

    def _read(self) -> None:
        size = self._room(min(PIPE_SIZE, self._client.connection.max_read_size))
        self._reading = self._send(self._file.read(0, size, send=False)[0], size)

    def _take(self, timeout: float | None) -> None:
        """Takes the answer to the read that is under way, and sends the next. Raises TimeoutError."""
        if self._reading is None:
            self._read()  # there was no room for it before
        answer = self._answer(self._reading, timeout)
        self._reading = None
        if answer is None:
            self._ended = True
            return
        message = open_module.SMB2ReadResponse()
        message.unpack(answer['data'].get_value())
        self._come = memoryview(message['buffer'].get_value())
        self._read()

    def _room(self, size: int) -> int:
        """As much of so many bytes as there are credits for; others' answers bring some."""
        pause = threading.Event()
        deadline = time.monotonic() + ANSWER_SECONDS
        while (credits := self._client._credits() - SPARE_CREDITS) < 1:
            if time.monotonic() > deadline:
                raise TimeoutError('the target takes no more requests')
            pause.wait(PIPE_PAUSE)
        return min(size, credits * CREDIT_BYTES)

    def _send(self, message: t.Any, size: int) -> t.Any:
        charge = (size - 1) // CREDIT_BYTES + 1
        try:
            return self._client.connection.send(
                message, self._client.session.session_id, self._file.tree_connect.tree_connect_id, credit_request=max(charge, 32))
        except (exceptions.SMBException, ValueError, LookupError, struct.error, NotSigned) as error:
            raise ConnectionError(str(error) or 'the connection was closed') from None

    def _answer(self, request: t.Any, timeout: float | None) -> t.Any:
        """The final answer to a request; None where the pipe's other end is gone. Raises TimeoutError, ConnectionError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        connection = self._client.connection
        while True:
            if not request.response_event.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
                raise TimeoutError('the other end of the pipe says nothing')
            with request.response_event_lock:
                if request.response is None or request.response['status'].get_value() != STATUS_PENDING:
                    break
                request.response_event.clear()
            if not connection.transport.connected:  # at its end every event fires, this one perhaps just before it was cleared
                break
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError('the other end of the pipe says nothing')
        try:
            return connection.receive(request, timeout=1)
        except exceptions.SMBResponseException as error:
            if error.status in STATUS_PIPE_ENDED:
                return None
            raise ConnectionError(f'the pipe gave status 0x{error.status:08X}') from None
        except (exceptions.SMBException, Timeout, ValueError, OSError, LookupError, struct.error, NotSigned) as error:
            raise ConnectionError(str(error) or 'the connection was closed') from None


class Watch:
    """[MS-SMB2] 3.2.4.18, CHANGE_NOTIFY on one folder."""

    def __init__(self, client: Client, directory: t.Any) -> None:
        self._client = client
        self._directory = directory
        self._request: t.Any = None
        #: False once the server has turned out not to notify; then there is only looking.
        self.works = True
        self._ask()

    def _ask(self) -> None:
        message = change_notify.SMB2ChangeNotifyRequest()
        message['output_buffer_length'] = 4096
        message['file_id'] = self._directory.file_id
        message['completion_filter'] = 0x1 | 0x2 | 0x8 | 0x10  # file name, directory name, size, last write
        self._request = self._client.connection.send(
            message, self._client.session.session_id, self._directory.tree_connect.tree_connect_id)

    def wait(self, seconds: float) -> bool:
        """Waits for a change, at most so long; whether there was one. Changes between two calls are not missed."""
        deadline = time.monotonic() + seconds
        while self.works:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            # receive() rounds up to whole seconds, so wait on the event itself; it also fires for the interim answer.
            if not self._request.response_event.wait(left):
                return False
            with self._request.response_event_lock:
                response = self._request.response
                if response is not None and response['status'].get_value() == 0x00000103:  # STATUS_PENDING: the watch is on
                    self._request.response_event.clear()
                    continue
            try:
                self._client.connection.receive(self._request, timeout=1)
            except exceptions.SMBResponseException as error:
                if error.status != 0x0000010C:  # STATUS_NOTIFY_ENUM_DIR: too many changes to tell
                    self.works = False
                    break
            self._ask()
            return True
        left = deadline - time.monotonic()
        if left > 0:
            threading.Event().wait(min(left, 0.25))
        return True


class ServiceManager:
    """The service control manager over the pipe svcctl ([MS-SCMR]). Raises pypsexec's SCMRException and smbprotocol's exceptions."""

    STOPPED, START_PENDING, STOP_PENDING, RUNNING = 1, 2, 3, 4
    NOT_THERE, NOT_ACTIVE, MARKED_FOR_DELETE, CANNOT_ACCEPT, ACCESS_DENIED, EXISTS = 1060, 1062, 1072, 1061, 5, 1073

    def __init__(self, client: Client) -> None:
        self._api = scmr.SCMRApi(client.session)
        self._manager: t.Any = None
        self._enumerate = False

    def open(self, *, create: bool = False) -> None:
        """Connects to the manager; with ``create`` with the right to make services."""
        self._api.open()
        access = scmr.DesiredAccess.SC_MANAGER_CONNECT | scmr.DesiredAccess.SC_MANAGER_ENUMERATE_SERVICE
        if create:
            access |= scmr.DesiredAccess.SC_MANAGER_CREATE_SERVICE
        self._manager = self._api.open_sc_manager_w(self._api.tree.session.connection.server_name, None, access)

    def close(self) -> None:
        """Never raises."""
        with contextlib.suppress(Exception):
            if self._manager is not None:
                self._api.close_service_handle_w(self._manager)
        with contextlib.suppress(Exception):
            self._api.close()

    @contextlib.contextmanager
    def service(self, name: str) -> t.Iterator[t.Any]:
        """A service's handle; an open handle keeps a deleted service from going away, so hold it shortly."""
        handle = self._api.open_service_w(
            self._manager, name,
            scmr.DesiredAccess.SERVICE_QUERY_STATUS | scmr.DesiredAccess.SERVICE_START | scmr.DesiredAccess.SERVICE_STOP | scmr.DesiredAccess.DELETE)
        try:
            yield handle
        finally:
            with contextlib.suppress(Exception):
                self._api.close_service_handle_w(handle)

    @contextlib.contextmanager
    def create(self, name: str, display_name: str, command_line: str, description: str) -> t.Iterator[t.Any]:
        """Makes an automatic own-process service of LocalSystem; yields its handle."""
        access = scmr.DesiredAccess
        handle = self._api.create_service_w(
            self._manager, name, display_name,
            access.SERVICE_QUERY_STATUS | access.SERVICE_START | access.SERVICE_STOP | access.DELETE | access.SERVICE_CHANGE_CONFIG,
            scmr.ServiceType.SERVICE_WIN32_OWN_PROCESS, scmr.StartType.SERVICE_AUTO_START, scmr.ErrorControl.SERVICE_ERROR_NORMAL,
            command_line, None, 0, None, None, None)[1]
        try:
            with contextlib.suppress(Exception):  # for people only
                self._describe(handle, description)
            yield handle
        finally:
            with contextlib.suppress(Exception):
                self._api.close_service_handle_w(handle)

    def _describe(self, handle: bytes, description: str) -> None:
        """RChangeServiceConfig2W with SERVICE_CONFIG_DESCRIPTION ([MS-SCMR] 3.1.4.36, 2.2.34), which pypsexec lacks."""
        text = self._api._marshal_string(description)
        # info level, union's discriminant, pointer to the structure, the structure's pointer to the text, the text
        stub = handle + struct.pack('<IIII', 1, 1, 0x20000, 0x20004) + text
        self._api._invoke('RChangeServiceConfig2W', 37, stub)

    def start(self, handle: bytes) -> None:
        """Returns when the service's process has reported to the manager (or not: error 1053 after 30 s)."""
        self._api.start_service_w(handle)

    def stop(self, handle: bytes) -> None:
        """Asks it to stop. One that is stopped already is no error."""
        try:
            self._api.control_service(handle, scmr.ControlCode.SERVICE_CONTROL_STOP)
        except pypsexec_exceptions.SCMRException as error:
            if error.return_code not in (self.NOT_ACTIVE, self.CANNOT_ACCEPT):
                raise

    def delete(self, handle: bytes) -> None:
        """Deletes it; it vanishes when it is stopped and all handles are closed."""
        try:
            self._api.delete_service(handle)
        except pypsexec_exceptions.SCMRException as error:
            if error.return_code not in (self.MARKED_FOR_DELETE, self.NOT_THERE):
                raise

    def status(self, handle: bytes) -> tuple[int, int, int]:
        """(state, Win32 exit code, service's own exit code).

        RQueryServiceStatusEx ([MS-SCMR] 3.1.4.42) with SC_STATUS_PROCESS_INFO: pypsexec has only the older call, which Wine lacks.
        """
        answer = self._api._invoke('RQueryServiceStatusEx', 40, handle + struct.pack('<II', 0, 36))
        self._api._parse_error(struct.unpack('<i', answer[-4:])[0], 'RQueryServiceStatusEx')
        # The array's length, then SERVICE_STATUS_PROCESS (2.2.49): type, state, controls, exit code, own exit code, ...
        unused_type, state, unused_controls, code, own_code = struct.unpack_from('<4xIIIII', answer)
        return state, code, own_code

    def state(self, name: str) -> int | None:
        """A service's state, with no more right than to ask for it; None where there is none."""
        try:
            handle = self._api.open_service_w(self._manager, name, scmr.DesiredAccess.SERVICE_QUERY_STATUS)
        except pypsexec_exceptions.SCMRException as error:
            if error.return_code == self.NOT_THERE:
                return None
            raise
        try:
            return self.status(handle)[0]
        finally:
            with contextlib.suppress(Exception):
                self._api.close_service_handle_w(handle)

    def list(self) -> list[tuple[str, int]]:
        """All own-process services: (name, state). Raises TooMuch where there is no end of them."""
        size = struct.unpack_from('<I', self._ask_services(0), 4)[0]
        if size > SERVICES_SIZE:
            raise TooMuch(f'its list of services has {size} bytes')
        answer = self._ask_services(size)
        self._api._parse_error(struct.unpack('<i', answer[-4:])[0], 'REnumServicesStatusW')
        return services_told(answer)

    def _ask_services(self, size: int) -> bytes:
        """REnumServicesStatusW with room for so many bytes, as pypsexec asks it, which reads on until there are as many as the other end says."""
        asked = self._manager + struct.pack('<IIII', scmr.ServiceType.SERVICE_WIN32_OWN_PROCESS, scmr.EnumServiceState.SERVICE_STATE_ALL, size, 0)
        bounds = _Bounds('listing the services', WHOLE_SECONDS)
        try:
            answer = bytearray(self._api._invoke('REnumServicesStatusW', _ENUM_SERVICES, asked))
        except exceptions.SMBResponseException as error:
            if error.status != STATUS_BUFFER_OVERFLOW:
                raise
            first = ioctl.SMB2IOCTLResponse()
            first.unpack(error.header['data'].get_value())
            answer = bytearray(self._api._parse_pdu(first['buffer'].get_value(), _ENUM_SERVICES))
            answer += self._api.handle.read(0, _RPC_FRAGMENT - _RPC_FIRST)
        while len(answer) < size:
            bounds.check()
            piece = self._api._parse_pdu(self._api.handle.read(0, _RPC_FRAGMENT), _ENUM_SERVICES)
            if not piece:
                raise TooMuch('its list of services does not go on')
            answer += piece
        if len(answer) > size + _RPC_FRAGMENT:
            raise TooMuch(f'its list of services has {len(answer)} bytes where it was to have {size}')
        return bytes(answer)
