# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way in to Windows: ADMIN$ and the service control manager; nothing that needs more than port 445, and nothing after the agent's start."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils import network, smb_client, steps, tickets, windows_service
from ansible_collections.sojourn.deploy.plugins.plugin_utils.accounts import Account, parse_account, realm_of
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.libraries import library, require
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import parse_address
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import (
    CLOCK_SECONDS,
    LEFT_FILE,
    NAME,
    REMOVE_SECONDS,
    SESSION_FILE,
    START_SECONDS,
    AlreadyPlaced,
    Config,
    Facts,
    Found,
    NothingThere,
    Ready,
    Stream,
    WayIn,
    agent_executable,
    digest,
)

exceptions = library('smbprotocol.exceptions')
pypsexec_exceptions = library('pypsexec.exceptions')
spnego_exceptions = library('spnego.exceptions')
cryptography_exceptions = library('cryptography.exceptions')

SHARE = 'ADMIN$'
#: In SHARE while an update's files wait for a restart.
WAITING_UPDATES = r'WinSxS\pending.xml'

#: IMAGE_FILE_HEADER.Machine (https://learn.microsoft.com/windows/win32/debug/pe-format#machine-types).
MACHINES = {0x8664: 'amd64', 0xAA64: 'arm64', 0x014C: '386', 0x01C4: 'arm'}

#: [MS-ERREF] 2.3.1, what a sign-in is refused with: code and words.
SIGN_IN = {
    0xC000006D: ('SD-301', 'unknown user or wrong password'),
    0xC000006A: ('SD-301', 'wrong password'),
    0xC0000064: ('SD-301', 'unknown user'),
    0xC000006E: ('SD-332', 'it is restricted (an empty password, for one, is good at the console only)'),
    0xC000006F: ('SD-332', 'it may not sign in at this time'),
    0xC0000070: ('SD-332', 'it may not sign in from this controller'),
    0xC0000071: ('SD-333', 'it has expired'),
    0xC0000072: ('SD-332', 'it is disabled'),
    0xC0000193: ('SD-332', 'it has expired'),
    0xC0000224: ('SD-333', 'it must be changed first'),
    0xC0000234: ('SD-331', 'the target says so'),
    0xC000015B: ('SD-332', 'it has no right to sign in over the network'),
    0xC0000413: ('SD-332', 'an authentication policy of the domain forbids it'),
    0xC000005E: ('SD-338', 'the target finds no domain controller'),
    0xC0000133: ('SD-334', "the target's differs too much"),
    0xC000018D: ('SD-301', 'the trust between the target and its domain is broken'),
    0xC0000022: ('SD-301', 'access denied'),
    0xC0000418: ('SD-301', 'the target, or its domain, takes no NTLM'),
}

#: Kerberos' errors (RFC 4120 7.5.9, and MIT's own), as MIT's library numbers them from its base: code, and words where its own do not do.
_KERBEROS_BASE = -1765328384
KERBEROS = {
    1: ('SD-332', 'it has expired'),
    2: ('SD-332', "the target's account in the domain has expired"),
    6: ('SD-301', 'the domain knows no such user'),
    7: ('SD-336', ''),
    12: ('SD-332', 'a policy of the domain forbids it'),
    18: ('SD-332', 'it is disabled or locked out, or it has expired; the domain does not tell which'),
    23: ('SD-333', 'it has expired, or must be changed first'),
    24: ('SD-301', 'wrong password'),
    31: ('SD-301', 'wrong password'),
    32: ('SD-335', 'it has expired'),
    33: ('SD-334', 'the ticket is not good yet'),
    37: ('SD-334', "the controller's and the domain controller's, or the target's, differ too much"),
    148: ('SD-334', "the controller's and the domain controller's differ too much"),
    154: ('SD-338', ''),
    156: ('SD-338', ''),
    220: ('SD-338', ''),
}
#: GSSAPI's own for credentials that have expired ([RFC2744] 3.9.1).
_GSS_EXPIRED = 11 << 16


class SmbWayIn(WayIn):
    """See ``WayIn``. One SMB connection, which is nobody else's."""

    service = 'TCP 445, file sharing'

    def __init__(self, target: t.Any, run: str) -> None:
        super().__init__(target, run)
        require(exceptions, pypsexec_exceptions)
        self._client = smb_client.Client()
        self._folder_made = False
        #: What is open until the executable is there.
        self._placing: list[t.Any] = []
        self._service_made = False
        self._executable = ''
        #: What the agent's file said when its folder was removed; empty: nothing; None: there was no folder.
        self._found: bytes | None = None
        self._manager: smb_client.ServiceManager | None = None

    # Errors

    @property
    def _user(self) -> str:
        return self.target.user or 'the owner of the Kerberos ticket'

    @contextlib.contextmanager
    def _errors(self, step: str, refused: str = 'SD-401', removing: str | None = None, **fields: t.Any) -> t.Iterator[None]:
        """Turns the libraries' exceptions into the catalogue's.

        ``refused`` is the code where rights are missing; ``removing`` says what cannot be removed, for where nothing is being made.
        """
        self.step = step
        try:
            yield
        except SojournError:
            raise
        except exceptions.SMBResponseException as error:
            raise self._status_error(error, refused, fields) from None
        except pypsexec_exceptions.SCMRException as error:
            if error.return_code == smb_client.ServiceManager.ACCESS_DENIED:
                raise self.error('SD-306', user=self._user, detail='the service control manager refuses access') from None
            detail = f'{error.function} failed with error {error.return_code} ({error.error_msg})'
            raise self.error('SD-801', what=removing, detail=detail) if removing else self.error('SD-407', detail=detail) from None
        except smb_client.Timeout:
            raise self.error('SD-205', address=self._address, detail=f'no answer within {smb_client.ANSWER_SECONDS:.0f} s') from None
        except smb_client.NotSigned as error:
            raise self.error('SD-342', address=self._address, detail=error) from None
        except (exceptions.SMBConnectionClosed, ConnectionError, EOFError) as error:
            raise self.error('SD-205', address=self._address, detail=str(error) or 'the target closed the connection') from None
        except (exceptions.SMBException, pypsexec_exceptions.PypsexecException, OSError, ValueError, LookupError, struct.error) as error:
            raise self.error('SD-205', address=self._address, detail=f'{type(error).__name__}: {error}') from None

    @property
    def _address(self) -> str:
        return self.peer.address if self.peer else self.target.address

    def _status_error(self, error: t.Any, refused: str, fields: dict[str, t.Any]) -> SojournError:
        status = error.status
        detail = f'{_status_name(error)} (0x{status:08X})'
        if status == smb_client.STATUS_DISK_FULL:
            return self.error('SD-402', what=fields.get('what', 'the agent'), detail=detail)
        if status in (0xC0000203, 0xC00000C9):  # the session, the share are gone
            return self.error('SD-205', address=self._address, detail=detail)
        if refused == 'SD-306':
            return self.error(refused, user=self._user, detail=detail)
        if status == smb_client.STATUS_ACCESS_DENIED:
            detail = 'access denied'
        return self.error('SD-401', user=self._user, share=SHARE, detail=detail)

    # Connecting

    def _begin(self, connection: socket.socket) -> None:
        """SMB's negotiation."""
        with steps.step('negotiate') as step:
            self._negotiate(connection)
            terms = self._client.terms(encryption=self.target.smb_encryption)
            step.detail = f"{terms['dialect']}, {terms['encryption']}"

    def _negotiate(self, connection: socket.socket) -> None:
        self.step = 'connecting'
        name = network.ipv6_literal_name(self.target.address)
        try:
            dialect = self._client.negotiate(connection, name, self.target.connection_timeout)
        except smb_client.Timeout:
            fields = {'port': self.target.port, 'seconds': f'{self.target.connection_timeout:g}', 'service': self.service}
            raise self.error('SD-204', address=self._address, **fields) from None
        except Exception as error:  # whatever is not SMB 2 ends in one of many exceptions of the library's
            detail = f'port {self.target.port} does not speak SMB 3 (nor do Windows XP, Server 2003 and others with SMB 1 only; {type(error).__name__})'
            raise self.error('SD-404', detail=detail) from None
        if dialect != smb_client.SMB_3_1_1:
            raise self.error('SD-404', detail=f'it does not speak SMB 3.1.1; it is as old as {smb_client.DIALECTS.get(dialect, "Windows 8")}')

    def sign_in(self) -> None:
        """With user and password, or with the Kerberos ticket; then ADMIN$."""
        with steps.step('sign in', self._user) as step:
            self._sign_in()
            step.detail = f'{self._user}, by {self._client.sign_in_kind}'
        with steps.step('open share', SHARE), self._errors('opening the share'):
            try:
                self._client.tree(SHARE)
            except exceptions.BadNetworkName:
                raise self.error('SD-411', share=SHARE, detail='somebody has removed it, or has Windows not make it') from None
            except exceptions.AccessDenied:
                detail = "access denied; Windows refuses this share also to local administrators other than 'Administrator' (remote UAC, see docs/windows.md)"
                raise self.error('SD-401', user=self._user, share=SHARE, detail=detail) from None

    def _sign_in(self) -> None:
        self.step = 'signing in'
        target = self.target
        protocol, user = self._plan()
        if protocol != 'ntlm':
            require(library('gssapi'))
        try:
            if user is not None and user.startswith('.\\'):
                user = self._client.name_told() + user[1:]
            self._client.sign_in(user, target.password, principal_host=target.address, protocol=protocol, encryption=target.smb_encryption)
        except smb_client.NotEncrypted:
            raise self._not_encrypted() from None
        except smb_client.NotSigned as error:
            raise self.error('SD-342', address=self._address, detail=error) from None
        except exceptions.SMBResponseException as error:
            code, detail = self._clocks() or SIGN_IN.get(error.status) or ('SD-301', f'{_status_name(error)} (0x{error.status:08X})')
            raise self.error(code, user=self._user, detail=detail) from None
        except exceptions.SMBAuthenticationError as error:
            raise self._no_token(error.__cause__ or error) from None
        except tickets.krb5.Krb5Error as error:  # pyspnego lets it through where it gets a ticket with the password
            raise self._no_token(error) from None
        except smb_client.Timeout:
            raise self.error('SD-205', address=self._address, detail=f'no answer within {smb_client.ANSWER_SECONDS:.0f} s') from None
        except (exceptions.SMBConnectionClosed, ConnectionError) as error:
            raise self.error('SD-205', address=self._address, detail=error) from None
        except exceptions.SMBException as error:
            # a guest session in the place of the user's own, for one
            raise self.error('SD-301', user=self._user, detail=error) from None
        except (ValueError, ImportError, cryptography_exceptions.InvalidTag) as error:
            raise self.error('SD-301', user=self._user, detail=_first_line(error)) from None

    def _clocks(self) -> tuple[str, str] | None:
        """Why a target refuses a ticket, where its clock tells: what it answers is the same as for a wrong password."""
        ahead = self._client.clock_ahead
        if self._client.sign_in_kind != 'Kerberos' or ahead is None or abs(ahead) <= CLOCK_SECONDS:
            return None
        return 'SD-334', f"the target's is {abs(ahead) / 60:.0f} minutes {'ahead of' if ahead > 0 else 'behind'} the controller's"

    def _not_encrypted(self) -> SojournError:
        return self.error('SD-341', detail='it is turned off there, or somebody in between has taken the offer away')

    def _no_token(self, error: t.Any) -> SojournError:
        """For a sign-in that failed on the controller's side: Kerberos has its own reasons."""
        number = kerberos_number(error)
        known = KERBEROS.get(number - _KERBEROS_BASE) if number is not None else None
        if known is None and _chained(error, 'maj_code') == _GSS_EXPIRED:
            known = KERBEROS[32]
        reason = self._kerberos_reason(error)
        if known is not None:
            code, words = known
            return self.error(code, user=self._user, address=self.target.address, detail=words or reason)
        if self.target.password is None:
            return self.error('SD-302', detail=f'no Kerberos ticket could be used: {reason}')
        return self.error('SD-301', user=self._user, detail=reason)

    def _plan(self) -> tuple[str, str | None]:
        """The protocol of the sign-in (kerberos, ntlm, negotiate), and the user as it is sent. See the table in docs/windows.md.

        An account of a domain goes by Kerberos, and by NTLM only where the user allows it; nothing that is seen on the network changes that.
        """
        target = self.target
        account = parse_account(target.user) if target.user is not None else None
        if target.password is None:
            return 'kerberos', self._principal(account)
        account = t.cast(Account, account)
        if account.form in ('plain', 'local'):
            return 'ntlm', target.user
        principal = account.principal
        if account.form == 'domain':
            realm = realm_of(account.domain, self._default_realm())
            if not realm:
                return 'ntlm', target.user
            principal = f'{account.user}@{realm}'
        obstacle = self._no_kerberos()
        if not obstacle:
            return 'negotiate' if target.ntlm_fallback else 'kerberos', principal
        if target.ntlm_fallback:
            return 'ntlm', target.user
        raise self.error('SD-337', user=self._user, detail=obstacle)

    def _principal(self, account: Account | None) -> str | None:
        """Whose ticket is meant."""
        if account is None:
            return None
        if account.form == 'local':
            raise self.error('SD-302', detail=f"there are no Kerberos tickets of accounts of the target's own, such as {self.target.user}")
        if account.form == 'domain':
            realm = realm_of(account.domain, self._default_realm())
            if not realm:
                raise self.error('SD-302', detail=f'which realm {account.domain} is, krb5.conf does not tell; write {account.user}@REALM')
            return f'{account.user}@{realm}'
        return account.principal

    @staticmethod
    def _default_realm() -> str:
        try:
            return tickets.default_realm()
        except SojournError:
            return ''

    def _no_kerberos(self) -> str:
        """What is in Kerberos' way that can be told beforehand."""
        try:
            require(library('gssapi'), library('krb5'))
        except SojournError:
            return "Python's Kerberos is not installed on the controller (pip install 'pyspnego[kerberos]')"
        if parse_address(self.target.address).literal is not None:
            return "Kerberos wants the target's name in ansible_host, not an address"
        return ''

    def _kerberos_reason(self, error: t.Any) -> str:
        """What Kerberos itself says; GSSAPI's words around it tell nothing."""
        reason = _first_line(error)
        with contextlib.suppress(AttributeError):  # an error that is not the GSSAPI library's
            reason = ' '.join(error.base_error.get_all_statuses(error.base_error.min_code, False))
        if parse_address(self.target.address).literal is not None:
            reason += "; Kerberos wants the target's name in ansible_host, not an address"
        return reason

    # Diagnosis

    def credentials(self) -> Facts:
        """The user and how the sign-in would be done, or the ticket."""
        target = self.target
        if target.password is not None:
            self.step = 'reading the credentials'
            try:
                return [('user', t.cast(str, target.user)), ('sign-in', self._with_password())]
            except SojournError as error:
                return [('user', t.cast(str, target.user)), ('sign-in', error)]
        facts: Facts = [
            ('user', target.user or 'whose ticket it is, since none is given'),
            ('sign-in', 'Kerberos, with the ticket in the cache, since no password is given')]
        try:
            require(library('gssapi'))
            found = tickets.find(self._principal(parse_account(target.user) if target.user is not None else None))
        except tickets.NoTicket as error:
            self.step = 'reading the credentials'
            return [*facts, ('ticket', self.error('SD-302', detail=f'no Kerberos ticket could be used: {error}'))]
        except SojournError as error:
            return [*facts, ('ticket', error.at(host=target.host))]
        facts += [('ticket', f'of {found.principal}, in the cache {found.cache}'), ('ticket expires', found.expiry)]
        facts.append(('tickets for services', list(found.services) or 'none yet; one for the target is fetched at the sign-in'))
        if parse_address(target.address).literal is None:
            facts.append(('ticket needed', f'cifs/{target.address}'))
        else:
            # No error: a reverse look-up (rdns in krb5.conf) may still find the name.
            facts.append(('ticket needed', f"cifs/{target.address}, and Kerberos wants the target's name in ansible_host, not an address"))
        return facts

    def _with_password(self) -> str:
        """What a sign-in with the password comes to, and why."""
        protocol, user = self._plan()
        form = parse_account(t.cast(str, self.target.user)).form
        if protocol == 'ntlm':
            reasons = {
                'plain': "it is taken for an account of the target's own", 'local': "it is an account of the target's own",
                'domain': "krb5.conf's default realm is not that of this domain"}
            return f'NTLM, with the password, since {reasons.get(form) if not self._asks_kerberos(form) else self._no_kerberos()}'
        return f"Kerberos, as {user}{', else NTLM with the same password, since ntlm_fallback allows it' if protocol == 'negotiate' else ' and nothing else'}"

    def _asks_kerberos(self, form: str) -> bool:
        """Whether an account is one of a domain, as far as the controller can tell."""
        return form == 'principal' or form == 'domain' and bool(
            realm_of(parse_account(t.cast(str, self.target.user)).domain, self._default_realm()))

    def other_end(self) -> Facts:
        """What was negotiated; encryption is insisted on at the sign-in, unless the user turned it off."""
        facts: Facts = list(self._client.terms(encryption=self.target.smb_encryption).items())
        if facts and self.target.smb_encryption and not self._client.connection.supports_encryption:
            self.step = 'connecting'
            facts.append(('outcome', self._not_encrypted()))
        return facts

    def look(self) -> Facts:
        """The architecture, and the right to make services: the manager is opened with it, and nothing made."""
        architecture = self._architecture()
        self._ask_for_services()
        return [('signed in by', self._client.sign_in_kind), ('platform', f'windows-{architecture}'), ('rights', f'{SHARE}, and to make services')]

    def survey(self) -> t.Iterator[tuple[str, t.Any]]:
        """ADMIN$ where the sign-in has got it, the service control manager, and what the target told of itself on the way.

        Rights are asked for as those that a deployment needs, and not used. No service is started, so the registry is out of reach.
        """
        with steps.step('survey'):
            share = SHARE in self._client.trees
            if share:
                yield 'share write', self.fact(self._ask_to_write)
            services = self.fact(self._ask_for_services)
            yield 'services', services
            yield 'version', self._client.version
            if share:
                yield 'architecture', self.fact(self._architecture)
                yield 'free', self.fact(self._free)
                yield 'waiting updates', self.fact(self._updates_wait)
            if not isinstance(services, SojournError):
                yield 'firewall', self.fact(self._firewall_state)
            yield 'clock', self._client.clock_ahead
            if share and not isinstance(services, SojournError):
                yield 'found', self.fact(self.find)

    def _ask_to_write(self) -> bool:
        with self._errors('asking for the right to write'):
            self._client.ask_to_add(SHARE)
            return True

    def _ask_for_services(self) -> bool:
        with self._errors('opening the service control manager', refused='SD-306'):
            self._open_manager(create=True)
            return True

    def _free(self) -> int:
        with self._errors('asking for the free space'):
            return self._client.free_bytes(SHARE)

    def _updates_wait(self) -> bool:
        with self._errors('looking for updates that wait'):
            return self._client.exists(SHARE, WAITING_UPDATES)

    def _firewall_state(self) -> int | None:
        with self._errors('asking for the firewall', refused='SD-306'):
            return self._open_manager().state(windows_service.FIREWALL)

    # Placing and starting

    def _architecture(self) -> str:
        """Machine of the target's own ntdll.dll, which every Windows has in its native architecture."""
        with steps.step('look') as step, self._errors('telling the architecture'):
            head = b''
            for file in (r'System32\ntdll.dll', r'System32\kernel32.dll'):
                with contextlib.suppress(exceptions.ObjectNameNotFound, exceptions.ObjectPathNotFound):
                    head = self._client.read_file(SHARE, file, limit=4096)
                    break
            if head[:2] != b'MZ' or len(head) < 64:
                raise self.error('SD-404', detail=f'{SHARE} holds no Windows (System32\\ntdll.dll is not there)')
            at = struct.unpack_from('<I', head, 0x3C)[0]
            if head[at:at + 4] != b'PE\0\0' or at + 6 > len(head):
                raise self.error('SD-404', detail='its ntdll.dll is not a program for Windows NT')
            machine = struct.unpack_from('<H', head, at + 4)[0]
            step.detail = f'windows-{MACHINES.get(machine, machine)}'
        architecture = MACHINES.get(machine, f'machine 0x{machine:04x}')
        if architecture not in ('amd64', 'arm64'):
            raise self.error('SD-404', detail=f'it is a Windows for {architecture}')
        return architecture

    def place(self, session: str) -> None:
        """Uploads the executable to ``ADMIN$\\sojourn-<run>``."""
        self._executable = executable = agent_executable('windows', self._architecture(), host=self.target.host)
        with steps.step('upload', rf'to %SystemRoot%\{self.name}') as step:
            size = self._upload(executable, session)
            step.detail = rf'{size} bytes to %SystemRoot%\{self.name}'

    def _upload(self, executable: str, session: str) -> int:
        with self._errors('placing the agent'):
            # Until the executable is there whole, the connection's end, however it comes, takes all of it away again: files are deleted
            # when the server closes them, and then the folder.
            try:
                folder = self._client.make_folder(SHARE, self.name)
            except exceptions.ObjectNameCollision:
                raise AlreadyPlaced(self._session_there()) from None
            self._folder_made = True
            self._placing.append(folder)
            held = self._client.hold_file(SHARE, rf'{self.name}\{SESSION_FILE}', session.encode('ascii'))
            self._placing.append(held)
        self.step = 'uploading the agent'
        sent = 0

        def chunks() -> t.Iterator[bytes]:
            nonlocal sent
            with open(executable, 'rb') as file:
                while True:
                    data = file.read(smb_client.WRITE_SIZE)
                    if not data:
                        return
                    sent += len(data)
                    yield data

        with self._errors('uploading the agent'):
            size = self._client.write_file(SHARE, rf'{self.name}\agent.exe', chunks())
            held.close()
            self._client.write_file(SHARE, rf'{self.name}\{SESSION_FILE}', [session.encode('ascii')])
            with contextlib.suppress(exceptions.SMBResponseException):  # "not empty", from some servers
                folder.close()
            if size != sent:
                raise self.error('SD-408', detail=f'{size} of {sent} bytes are there')
        return size

    def _session_there(self) -> str:
        """Who placed the agent: the other session may be between making the folder and writing its name into it."""
        pauses = windows_service.Pauses(5)
        while True:
            with contextlib.suppress(exceptions.SMBResponseException):
                text = self._client.read_file(SHARE, rf'{self.name}\{SESSION_FILE}', limit=64)
                if text:
                    return text.decode('ascii', 'replace')
            if not pauses.again():
                return ''

    def _open_manager(self, *, create: bool = False) -> smb_client.ServiceManager:
        if self._manager is None:
            manager = smb_client.ServiceManager(self._client)
            try:
                manager.open(create=create)
            except exceptions.SMBResponseException as error:
                if error.status in smb_client.STATUS_NOT_FOUND:
                    raise self.error('SD-407', detail='the target offers no service control manager (pipe svcctl)') from None
                raise
            self._manager = manager
        return self._manager

    def start(self, config: Config) -> Ready:
        """Creates and starts the service; its answer is the file ready.json."""
        with steps.step('start') as step:
            ready = self._start(config)
            step.detail = f'port {ready.port}'
            return ready

    def _start(self, config: Config) -> Ready:
        with self._errors('placing the agent'):
            self._client.write_file(SHARE, rf'{self.name}\config.json', [config.to_json()])
        with contextlib.ExitStack() as held:
            self._check_executable(held)
            return self._serve(config)

    def _check_executable(self, held: contextlib.ExitStack) -> None:
        """What is started with the system's own rights is what was sent, and stays so until it has started."""
        with self._errors('checking the agent'):
            sent = digest(self._executable)
            pauses = windows_service.Pauses(windows_service.HELD_SECONDS)
            while True:
                try:
                    file, there = self._client.hold_to_check(SHARE, rf'{self.name}\agent.exe', os.path.getsize(self._executable))
                    break
                except exceptions.SMBResponseException as error:
                    if error.status in smb_client.STATUS_NOT_FOUND:
                        raise self.error('SD-406', detail=f'it was not begun{self._executable_gone()}') from None
                    if error.status != smb_client.STATUS_SHARING_VIOLATION:
                        raise
                    if not pauses.again():
                        raise self.error('SD-408', detail='somebody has it open, and may write to it') from None
        held.callback(self._let_go, file)
        if there != sent:
            raise self.error('SD-408', detail=f'its SHA-256 is {there}')

    @staticmethod
    def _let_go(file: t.Any) -> None:
        with contextlib.suppress(Exception):
            file.close()

    def _serve(self, config: Config) -> Ready:
        folder = rf'%SystemRoot%\{self.name}'
        with self._errors('creating the service', refused='SD-306'):
            manager = self._open_manager(create=True)
            self._service_made = True  # it may be, even where the answer does not come
            created = manager.create(
                self.name, windows_service.display_name(self.run), rf'"{folder}\agent.exe" serve', windows_service.DESCRIPTION)
            with self._client.watch(SHARE, self.name) as watch, self._errors('starting the agent'):
                with created as service:
                    self._start_service(manager, service)
                return Ready.from_json(self._wait_ready(manager, watch), run=self.run, host=self.target.host)

    def _start_service(self, manager: smb_client.ServiceManager, service: t.Any) -> None:
        try:
            manager.start(service)
        except pypsexec_exceptions.SCMRException as error:
            ready = self._ready()
            if ready is not None:  # it has said itself why it cannot serve
                Ready.from_json(ready, run=self.run, host=self.target.host)
            detail = windows_service.START.get(error.return_code) or f'the service control manager gave error {error.return_code} ({error.error_msg})'
            raise self.error('SD-406', detail=f'{detail}{self._executable_gone()}') from None

    def _ready(self) -> bytes | None:
        try:
            return self._client.read_file(SHARE, rf'{self.name}\ready.json')
        except exceptions.SMBResponseException as error:
            if error.status in smb_client.STATUS_NOT_FOUND or error.status == smb_client.STATUS_SHARING_VIOLATION:
                return None
            raise

    def _executable_gone(self) -> str:
        with contextlib.suppress(Exception):
            if not self._client.exists(SHARE, rf'{self.name}\agent.exe'):
                return "; the agent's executable has vanished: an antivirus may have removed it"
        return ''

    def _wait_ready(self, manager: smb_client.ServiceManager, watch: smb_client.Watch) -> bytes:
        deadline = time.monotonic() + START_SECONDS
        next_look = time.monotonic() + 1
        while True:
            ready = self._ready()
            if ready:
                return ready
            now = time.monotonic()
            if now >= deadline:
                raise self.error('SD-406', detail=f'it was not ready within {START_SECONDS:.0f} s{self._executable_gone()}')
            if now >= next_look:
                next_look = now + 1
                self._check_service(manager)
            watch.wait(min(next_look, deadline) - now)

    def _check_service(self, manager: smb_client.ServiceManager) -> None:
        """Raises SD-406 where the service has ended without an answer."""
        try:
            with manager.service(self.name) as service:
                state, code, own_code = manager.status(service)
        except pypsexec_exceptions.SCMRException as error:
            if error.return_code not in (manager.NOT_THERE, manager.MARKED_FOR_DELETE):
                raise
            state, code, own_code = None, 0, 0
        if state in (manager.START_PENDING, manager.RUNNING):
            return
        ready = self._ready()
        if ready is not None:
            Ready.from_json(ready, run=self.run, host=self.target.host)
            return
        what = 'the service has vanished' if state is None else f'the service has stopped (code {own_code if code == 1066 else code})'
        raise self.error('SD-406', detail=f'{what}{self._executable_gone()}')

    def find_restarted(self, known: Ready) -> Ready | None:
        """The service starts with the system, makes new keys, and then writes ready.json anew."""
        with self._errors('waiting for the restarted agent'):
            manager = self._open_manager()
            pauses = windows_service.Pauses(START_SECONDS)
            while True:
                if not self._works(manager):
                    return None
                ready = self._ready()
                if ready:
                    found = Ready.from_json(ready, run=self.run, host=self.target.host)
                    if found.fingerprint != known.fingerprint:
                        return found
                # Not a watch: ready.json may have been written between the boot and our connection.
                if not pauses.again():
                    return None

    def _works(self, manager: smb_client.ServiceManager) -> bool:
        """Whether the service runs, or is about to."""
        return self._state(manager) in (manager.START_PENDING, manager.RUNNING)

    def _state(self, manager: smb_client.ServiceManager) -> int | None:
        """The service's; None where there is none, or it is about to go."""
        try:
            with manager.service(self.name) as service:
                return manager.status(service)[0]
        except pypsexec_exceptions.SCMRException as error:
            if error.return_code in (manager.NOT_THERE, manager.MARKED_FOR_DELETE):
                return None
            raise

    # Removing

    def undo(self) -> None:
        """Stops and deletes the service, deletes the folder: whatever of it this way in made."""
        for file in reversed(self._placing):  # what we have open ourselves would stay
            with contextlib.suppress(Exception):
                file.close()
        self._placing.clear()
        if self._folder_made or self._service_made:
            self._remove(self.name, service=self._service_made, folder=True)
            self._folder_made = self._service_made = False
            if self._found:
                raise t.cast(SojournError, self._left_of(self._found))

    def wait_removed(self, patience: float = REMOVE_SECONDS) -> list[str]:
        """Waits for what the agent removes itself, then helps."""
        with self._errors('removing the agent', refused='SD-306', removing='The agent'):
            manager = self._open_manager()
            removed = []
            pauses = windows_service.Pauses(patience)
            # A service that has stopped and is there still is held open by somebody, whom the agent can't wait for.
            while self._state(manager) not in (None, manager.STOPPED):
                if not pauses.again():
                    break
            # The agent's last is its folder, and its service goes as its process does: only then there can be what it left.
            pauses = windows_service.Pauses(min(patience, windows_service.FOLDER_SECONDS))
            while self._client.exists(SHARE, self.name) and not self._told():
                if not pauses.again():
                    break
            removed += [f'service {self.name}', rf'folder %SystemRoot%\{self.name}']
        self._remove(self.name)
        self._left = self._left_of(self._found)
        return removed

    def _remove(self, name: str, *, service: bool = True, folder: bool = True) -> None:
        if not NAME.fullmatch(name):
            raise self.error('SD-801', what=name, detail='the name is not one of this project')
        try:
            if service:
                self._remove_service(name)
        finally:
            if folder:
                self._remove_folder(name)

    def _remove_service(self, name: str) -> None:
        with self._errors('removing the service', refused='SD-306', removing=f'The service {name}'):
            manager = self._open_manager()
            pauses = windows_service.Pauses(REMOVE_SECONDS)
            state = 0
            while True:
                try:
                    with manager.service(name) as service:
                        state = manager.status(service)[0]
                        if state == manager.RUNNING:
                            manager.stop(service)
                        elif state == manager.STOPPED or state == manager.START_PENDING and pauses.seconds > windows_service.HANGS_SECONDS:
                            # Straight after a stop the manager refuses; so the state is awaited, and the handle then closed.
                            # One that never gets beyond its start is marked at least, so that it does not start again with the target.
                            manager.delete(service)
                except pypsexec_exceptions.SCMRException as error:
                    if error.return_code == manager.NOT_THERE:
                        return
                    if error.return_code not in (manager.MARKED_FOR_DELETE, manager.CANNOT_ACCEPT):
                        raise
                if not pauses.again():
                    raise self.error('SD-801', what=f'The service {name}', detail=f'it is still there after {REMOVE_SECONDS:.0f} s (state {state})')

    def _told(self) -> bytes:
        """What the agent could not remove, in its own form; empty where it says nothing."""
        with contextlib.suppress(exceptions.SMBResponseException):
            return self._client.read_file(SHARE, rf'{self.name}\{LEFT_FILE}', limit=1 << 16)
        return b''

    def _remove_folder(self, name: str) -> None:
        with self._errors('removing the folder'):
            if name == self.name:
                self._found = self._told() if self._client.exists(SHARE, name) else None
            pauses = windows_service.Pauses(REMOVE_SECONDS)
            while True:
                try:
                    self._client.delete_tree(SHARE, name)
                    if not self._client.exists(SHARE, name):
                        return
                    last = 'it is still there'
                except exceptions.SMBResponseException as error:
                    # the executable is held until its process is gone, an open file until it is closed
                    last = _status_name(error)
                if not pauses.again():
                    raise self.error('SD-801', what=rf'The folder %SystemRoot%\{name}', detail=last)

    def find(self) -> list[Found]:
        """Folders in ADMIN$ and services by their names."""
        found: list[Found] = []
        with self._errors('looking for leftovers', refused='SD-306'):
            manager = self._open_manager()
            services = {name: state for name, state in manager.list() if NAME.fullmatch(name)}
            for name, state in services.items():
                found.append(Found('service', name, name.partition('-')[2], live=state != manager.STOPPED))
            for name, is_folder, unused_time in self._client.list(SHARE, '', 'sojourn-*'):
                if is_folder and NAME.fullmatch(name):
                    live = services.get(name, manager.STOPPED) != manager.STOPPED
                    found.append(Found('folder', name, name.partition('-')[2], live=live, path=rf'%SystemRoot%\{name}'))
        return found

    def remove_found(self, found: Found) -> None:
        """Without the agent: firewall rules are out of reach."""
        if found.kind == 'service':
            self._remove(found.name, folder=False)
        elif found.kind == 'folder':
            self._remove(found.name, service=False)
        else:
            raise self.error('SD-801', what=f'The {found.kind} {found.name}', detail='only an agent on the target can')

    def release(self) -> None:
        """Signs out of the shares and disconnects."""
        self._close_manager()
        self._client.close()

    def _close_manager(self) -> None:
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    # The tunnel

    def keep(self) -> None:
        """The service control manager is let go of."""
        self._close_manager()
        self._client.notice_silence()
        self.step = 'opening the tunnel'

    @property
    def alive(self) -> bool:
        """By what is known of the connection."""
        return self._client.alive

    def open_stream(self, place: str, port: int, timeout: float) -> Stream:
        """A named pipe, through IPC$."""
        try:
            return self._client.open_pipe(place, timeout)
        except exceptions.SMBResponseException as error:
            if error.status in smb_client.STATUS_NOT_FOUND:
                raise NothingThere(rf'there is no pipe {place}') from None
            detail = 'access denied' if error.status == smb_client.STATUS_ACCESS_DENIED else f'{_status_name(error)} (0x{error.status:08X})'
            raise self.error('SD-506', detail=rf'the target does not let {self._user} open the pipe {place}: {detail}') from None
        except (exceptions.SMBException, smb_client.Timeout, OSError, ValueError, LookupError, struct.error) as error:
            raise self.error('SD-205', address=self._address, detail=str(error) or 'the target closed the connection') from None


def _status_name(error: t.Any) -> str:
    return type(error).__name__ if error.__class__ is not exceptions.SMBResponseException else f'status 0x{error.status:08X}'


def _first_line(error: t.Any) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _chained(error: t.Any, attribute: str) -> int | None:
    """A number that an error, or one that it came from, has."""
    seen = 0
    while error is not None and seen < 8:
        for one in (error, getattr(error, 'base_error', None)):
            value = getattr(one, attribute, None)
            if isinstance(value, int):
                return value
        error = error.__cause__ or error.__context__
        seen += 1
    return None


def kerberos_number(error: t.Any) -> int | None:
    """The Kerberos library's number of what went wrong, from an error of pyspnego's, GSSAPI's or krb5's own; None where there is none."""
    for attribute in ('err_code', 'min_code'):
        number = _chained(error, attribute)
        if number:
            return (number & 0xFFFFFFFF) - (1 << 32) if number & 0x80000000 else number
    return None
