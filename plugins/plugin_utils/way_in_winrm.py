# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way in to a Windows whose port 445 is closed: a command prompt of WinRM's, which places the agent and starts it; nothing after the agent's start."""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import socket
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils import steps, winrm_client, winrm_scripts
from ansible_collections.sojourn.deploy.plugins.plugin_utils import windows_service as service
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.libraries import library, require
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import parse_address
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import (
    LEFT_FILE,
    NAME,
    REMOVE_SECONDS,
    SESSION_FILE,
    START_SECONDS,
    AlreadyPlaced,
    Config,
    Facts,
    Found,
    Ready,
    WayIn,
    agent_executable,
    digest,
    packed,
)

log = logging.getLogger('sojourn.session')

winrm_exceptions = library('winrm.exceptions')
spnego_exceptions = library('spnego.exceptions')

#: PROCESSOR_ARCHITECTURE of a program of the system's own kind.
ARCHITECTURES = {'AMD64': 'amd64', 'ARM64': 'arm64'}
#: The first build of Windows 10.
OLDEST = (10, 0, 10240)
#: Base64 characters in one line of PLACE's standard input: lines are short beside what there is in memory, and few.
LINE_BYTES = 48 << 10
#: Looks at ready.json in one command. Each asks the service control manager as well, which on a Windows takes some 20 ms.
LOOKS = 50
#: What PowerShell tells of a file that cannot be used: HRESULTs of Win32 errors.
NOT_FOUND, DENIED, SHARING, FULL = ('80070002', '80070003'), '80070005', '80070020', '80070070'

#: A line of `sc query`: its label is in the language of the system, its place is not.
_STATUS = re.compile(r'(?m)^\s+[^:\r\n]+:\s*(?:0x)?([0-9A-Fa-f]+)\b')


class WinrmWayIn(WayIn):
    """See ``WayIn``. One connection and one shell, which are nobody else's."""

    service = 'TCP 5985 or 5986, Windows Remote Management'
    tunnels = False

    def __init__(self, target: t.Any, run: str) -> None:
        super().__init__(target, run)
        require(winrm_exceptions, spnego_exceptions)
        self._client: winrm_client.Client | None = None
        self._folder_made = False
        self._service_made = False
        self._executable = ''
        #: What the agent's file said when its folder was removed; empty: nothing; None: there was no folder.
        self._found: bytes | None = None

    # Errors

    @property
    def _user(self) -> str:
        return self.target.user or ''

    @property
    def _address(self) -> str:
        return self.peer.address if self.peer else self.target.address

    @contextlib.contextmanager
    def _errors(self, step: str) -> t.Iterator[None]:
        """Turns the libraries' exceptions into the catalogue's."""
        self.step = step
        try:
            yield
        except SojournError:
            raise
        except winrm_client.CertificateRefused as error:
            raise self.error('SD-321', address=self._address, port=self.target.port, detail=error) from None
        except winrm_client.NotWinRM as error:
            raise self.error('SD-404', detail=f'port {self.target.port} does not speak WinRM: {error}') from None
        except winrm_exceptions.WSManFaultError as error:
            if error.wsman_fault_code == winrm_client.ACCESS_DENIED:
                detail = 'access denied; Windows refuses it also to local administrators other than the built-in one (remote UAC)'
                raise self.error('SD-323', user=self._user, detail=detail) from None
            code = f' (fault {error.wsman_fault_code})' if error.wsman_fault_code else ''
            raise self.error('SD-421', detail=f'{_one_line(error.reason)}{code}') from None
        except winrm_exceptions.WinRMTransportError as error:
            raise self.error('SD-421', detail=f'it answers HTTP {error.code}') from None
        except (winrm_client.Timeout, ConnectionError, EOFError, OSError) as error:
            raise self.error('SD-205', address=self._address, detail=str(error) or 'the target closed the connection') from None
        except Exception as error:
            # The libraries take an answer apart without looking, so that a garbled one may raise whatever it likes. Nothing of that may keep the agent there.
            log.info('%s: %s', self.target.host, step, exc_info=True)
            raise self.error('SD-205', address=self._address, detail=': '.join(filter(None, (type(error).__name__, _one_line(error))))) from None

    # Connecting

    @property
    def _tls(self) -> bool:
        return self.target.winrm_scheme == 'https'

    @property
    def client(self) -> winrm_client.Client:
        """After ``reach``."""
        return t.cast(winrm_client.Client, self._client)

    def _begin(self, connection: socket.socket) -> None:
        """TLS, and the question which sign-ins there are."""
        target = self.target
        self.step = 'connecting'
        with steps.step('negotiate') as step:
            try:
                context = winrm_client.context_of(target.winrm_validate, target.winrm_ca_file) if self._tls else None
            except OSError as error:
                connection.close()
                detail = f"{target.winrm_ca_file}: {error.strerror or 'it holds no certificates'}"
                raise self.error('SD-102', option='ca_trust_path', detail=detail) from None
            host = parse_address(target.address).bracketed
            self._client = winrm_client.Client(f'{target.winrm_scheme}://{host}:{target.port}{winrm_client.PATH}', context)
            with self._errors('connecting'):
                try:
                    self._client.transport.begin(connection, target.connection_timeout)
                except winrm_client.Timeout:
                    fields = {'port': target.port, 'seconds': f'{target.connection_timeout:g}', 'service': self.service}
                    raise self.error('SD-204', address=self._address, **fields) from None
            step.detail = self._client.transport.terms()

    def sign_in(self) -> None:
        """With user and password; then a shell, which only administrators get."""
        with steps.step('sign in', self._user) as step:
            self._sign_in()
            step.detail = f'{self._user}, by {self._kind.upper()}'
        with steps.step('open shell'), self._errors('opening a shell'):
            self.client.open_shell()

    @property
    def _kind(self) -> str:
        return self.target.winrm_transport

    def _sign_in(self) -> None:
        self.step = 'signing in'
        missing = self._not_offered()
        if missing is not None:
            raise missing
        target = self.target
        with self._errors('signing in'):
            try:
                self.client.transport.sign_in(self._kind, target.user, target.password, target.address)
            except winrm_client.Refused:
                detail = 'unknown user or wrong password, or the account is locked, disabled or expired: WinRM does not tell which'
                raise self.error('SD-301', user=self._user, detail=detail) from None
            except spnego_exceptions.SpnegoError as error:
                raise self.error('SD-301', user=self._user, detail=_one_line(error)) from None

    def _not_offered(self) -> SojournError | None:
        if self.target.password is None:
            return self.error('SD-302', detail='over WinRM a user and a password are needed; existing Kerberos tickets are for SMB')
        offered = self.client.transport.offered
        if self._kind in offered:
            return None
        return self.error('SD-322', kind=self._kind, offered=', '.join(offered) or 'none')

    # Diagnosis

    def credentials(self) -> Facts:
        """The user and how the sign-in would be done."""
        if self.target.password is None:
            self.step = 'reading the credentials'
            return [('sign-in', self.error('SD-302', detail='over WinRM a user and a password are needed; existing Kerberos tickets are for SMB'))]
        how = 'NTLM, with the password' if self._kind == 'ntlm' else 'Basic, with the password, over TLS'
        return [('user', self._user), ('sign-in', how)]

    def other_end(self) -> Facts:
        """What it says before anybody signs in."""
        transport = self._client.transport if self._client is not None else None
        if transport is None or not transport.server:
            return []
        facts: Facts = [('terms', transport.terms()), ('server', transport.server), ('sign-ins offered', transport.offered or 'none')]
        self.step = 'connecting'
        missing = self._not_offered() if self.target.password is not None else None
        return facts if missing is None else [*facts, ('outcome', missing)]

    def look(self) -> Facts:
        """The platform, and the rights of an administrator."""
        architecture, unused_version = self._platform()
        self._ask_for_rights()
        return [('signed in by', self._kind.upper()), ('platform', f'windows-{architecture}'), ('rights', 'those of an administrator')]

    def survey(self) -> t.Iterator[tuple[str, t.Any]]:
        """What the command prompt tells; nothing is changed. (``clock``: HTTP's own header.)"""
        with steps.step('survey'):
            free = self.fact(self._ask_for_rights)
            yield 'services', free if isinstance(free, SojournError) else True
            platform = self.fact(self._platform)
            if isinstance(platform, SojournError):
                yield 'architecture', platform
            else:
                architecture, version = platform
                yield 'version', version
                yield 'architecture', architecture
            yield 'free', free
            yield 'waiting updates', self.fact(lambda: self._exists(service.WAITING_UPDATES, 'looking for updates that wait'))
            yield 'firewall', self.fact(lambda: self._state(service.FIREWALL))
            yield 'clock', self.client.transport.clock_ahead
            yield 'found', self.fact(self.find)

    def _ask_for_rights(self) -> int | None:
        r"""Bytes that are free on the system's disk. Raises SD-306 where the user may not look into a folder that is the administrators'."""
        with self._errors('asking for the rights'):
            done = self.client.run(r'dir /-c /a "%SystemRoot%\System32\config"')
        if done.code:
            raise self.error('SD-306', user=self._user, detail=r'only administrators may look into %SystemRoot%\System32\config')
        numbers = re.findall(r'\d+', done.text.strip().splitlines()[-1]) if done.text.strip() else []
        return int(numbers[-1]) if numbers else None

    def _platform(self) -> tuple[str, tuple[int, int, int] | None]:
        """Architecture and version. Raises SD-404 for what is not supported."""
        with steps.step('look') as step, self._errors('telling the architecture'):
            done = self.client.run('ver & echo %PROCESSOR_ARCHITECTURE%/%PROCESSOR_ARCHITEW6432%')
            told = re.search(r'(?m)^(\w+)/(\w*)', done.text)
            own = told[2] or told[1] if told else ''
            numbers = re.search(r'(\d+)\.(\d+)\.(\d+)', done.text)
            version = tuple(int(number) for number in numbers.groups()) if numbers else None
            step.detail = f'windows-{ARCHITECTURES.get(own, own)}'
            if version is not None and version < OLDEST:
                raise self.error('SD-404', detail=f"it is Windows {'.'.join(map(str, version))}")
            if own not in ARCHITECTURES:
                raise self.error('SD-404', detail=f"it is a Windows for {own.lower() or 'an architecture that it does not tell'}")
            return ARCHITECTURES[own], version

    # Placing and starting

    def place(self, session: str) -> None:
        r"""Sends the executable to PowerShell, which writes it to ``%SystemRoot%\sojourn-<run>``."""
        self._executable = executable = agent_executable('windows', self._platform()[0], host=self.target.host)
        # Before the upload; whoever comes in between is noticed after it.
        if self._folder_there():
            raise AlreadyPlaced(self._session_there())
        with steps.step('upload', rf'to %SystemRoot%\{self.name}') as step:
            sent = packed(executable)
            self._upload(executable, sent.data, session)
            step.detail = rf'{sent.size} bytes in {len(sent.data)} to %SystemRoot%\{self.name}'

    def _upload(self, executable: str, data: bytes, session: str) -> None:
        expected = digest(executable)
        script = winrm_scripts.fill(winrm_scripts.PLACE, sum=expected, name=self.name, session=session)
        self._folder_made = True  # it may be, even where the answer does not come
        with self._errors('uploading the agent'):
            done = self.client.run(winrm_scripts.command_line(script), _input(data))
        said = done.text.strip().splitlines()[-1:] or ['']
        word, unused_space, rest = said[0].partition(' ')
        if word == 'placed':
            return
        self._folder_made = False
        if word == 'there':
            raise AlreadyPlaced(self._session_there())
        if word == 'damaged':
            raise self.error('SD-408', detail=f'its SHA-256 is {rest}')
        if word == 'refused':
            raise self._refused(rest)
        raise self._powershell_failed(done)

    def _refused(self, told: str) -> SojournError:
        """The error of a file that could not be written; ``told`` is HRESULT and text."""
        result, unused_space, text = told.partition(' ')
        if result == FULL:
            return self.error('SD-402', what='the agent', detail=text)
        return self.error('SD-401', user=self._user, share='%SystemRoot%', detail='access denied' if result == DENIED else f'{text} (0x{result})')

    def _powershell_failed(self, done: winrm_client.Done) -> SojournError:
        errors = _one_line(done.stderr.decode('utf-8', 'replace')) or _one_line(done.text) or 'it says nothing'
        return self.error('SD-421', detail=f'PowerShell ended with {done.code}: {errors}')

    def _session_there(self) -> str:
        """Who placed the agent: the other session may be between making the folder and writing its name into it."""
        pauses = service.Pauses(5)
        while True:
            text = self._read(SESSION_FILE, 'looking whose agent is there')
            if text:
                return text.strip().decode('ascii', 'replace')[:64]
            if not pauses.again():
                return ''

    def start(self, config: Config) -> Ready:
        """Creates and starts the service; its answer is the file ready.json."""
        with steps.step('start') as step:
            self._serve(config)
            ready = Ready.from_json(self._wait_ready(), run=self.run, host=self.target.host)
            step.detail = f'port {ready.port}'
            return ready

    def _serve(self, config: Config) -> None:
        """What is started with the system's own rights is what was sent, and stays so until it has started."""
        path = rf'%SystemRoot%\{self.name}\agent.exe'
        calls = {
            'create': rf'create {self.name} binPath= "\"{path}\" serve" start= auto DisplayName= "{service.display_name(self.run)}"',
            'description': f'description {self.name} "{service.DESCRIPTION}"', 'start': f'start {self.name}'}
        expected = digest(self._executable)
        script = winrm_scripts.fill(
            winrm_scripts.START, name=self.name, config=base64.b64encode(config.to_json()).decode('ascii'), sum=expected, calls=tuple(calls.values()))
        pauses = service.Pauses(service.HELD_SECONDS)
        while True:
            self._service_made = True  # it may be, even where the answer does not come
            with self._errors('starting the agent'):
                done = self.client.run(winrm_scripts.command_line(script))
            told = re.search(r'(?m)^refused (\w{8})(.*)$', done.text)
            if told is None:
                break
            if told[1] in NOT_FOUND:
                raise self.error('SD-406', detail=f'it was not begun{self._executable_gone()}')
            if told[1] != SHARING:
                raise self._refused(told[0].partition(' ')[2])
            if not pauses.again():
                raise self.error('SD-408', detail='somebody has it open, and may write to it')
        there = re.search(r'(?m)^sum (\w+)', done.text)
        if there is None:
            raise self._powershell_failed(done)
        if there[1] != expected:
            raise self.error('SD-408', detail=f'its SHA-256 is {there[1]}')
        codes = [int(code) for code in re.findall(r'(?m)^exit (-?\d+)', done.text)]
        if len(codes) == len(calls) and not any(codes):
            return
        if not codes or codes[-1] == 0:
            raise self._powershell_failed(done)
        self._not_started(tuple(calls)[len(codes) - 1], codes[-1])

    def _not_started(self, call: str, code: int) -> None:
        """Raises the error of a call of sc.exe that failed, or what the agent has said itself."""
        if call == 'start':
            ready = self._read('ready.json', 'starting the agent')
            if ready:
                Ready.from_json(ready, run=self.run, host=self.target.host)
            detail = service.START.get(code) or f'the service control manager gave error {code}'
            raise self.error('SD-406', detail=f'{detail}{self._executable_gone()}')
        self.step = 'creating the service'
        if code == service.ACCESS_DENIED:
            raise self.error('SD-306', user=self._user, detail='the service control manager refuses access')
        raise self.error('SD-407', detail=f'sc {call} failed with error {code}')

    def _executable_gone(self) -> str:
        with contextlib.suppress(SojournError):
            if not self._exists(rf'{self.name}\agent.exe', self.step):
                return "; the agent's executable has vanished: an antivirus may have removed it"
        return ''

    def _wait_ready(self) -> bytes:
        """Looks for ready.json on the target itself, many times in one command."""
        path = rf'{self.name}\ready.json'
        # Not the whole path: the lab's command prompt (Wine's) expands no variable in what a loop repeats.
        look = f'cd /d "%SystemRoot%" & for /l %i in (1,1,{LOOKS}) do @if exist {path} (type {path} & exit 0) else (sc.exe query {self.name} >nul || exit 1)'
        deadline = time.monotonic() + START_SECONDS
        while True:
            with self._errors('starting the agent'):
                done = self.client.run(look, seconds=START_SECONDS)
            if done.stdout.strip():
                return done.stdout
            state, code = self._status(self.name)
            if state not in (service.START_PENDING, service.RUNNING):
                ready = self._read('ready.json', 'starting the agent')
                if ready:
                    return ready
                what = 'the service has vanished' if state is None else f'the service has stopped (code {code})'
                raise self.error('SD-406', detail=f'{what}{self._executable_gone()}')
            if time.monotonic() >= deadline:
                raise self.error('SD-406', detail=f'it was not ready within {START_SECONDS:.0f} s{self._executable_gone()}')

    def find_restarted(self, known: Ready) -> Ready | None:
        """The service starts with the system, makes new keys, and then writes ready.json anew."""
        pauses = service.Pauses(START_SECONDS)
        while True:
            if self._state(self.name) not in (service.START_PENDING, service.RUNNING):
                return None
            ready = self._read('ready.json', 'waiting for the restarted agent')
            if ready:
                found = Ready.from_json(ready, run=self.run, host=self.target.host)
                if found.fingerprint != known.fingerprint:
                    return found
            if not pauses.again():
                return None

    # Looking

    def _exists(self, path: str, step: str) -> bool:
        """Whether a file or folder below %SystemRoot% is there."""
        with self._errors(step):
            return 'there' in self.client.run(rf'if exist "%SystemRoot%\{path}" echo there').text

    def _folder_there(self) -> bool:
        return self._exists(self.name, 'looking for the folder')

    def _read(self, file: str, step: str) -> bytes:
        """A file of the agent's folder; empty where there is none."""
        with self._errors(step):
            return self.client.run(rf'type "%SystemRoot%\{self.name}\{file}" 2>nul').stdout

    def _status(self, name: str) -> tuple[int | None, int]:
        """A service's state and exit code; None where there is none, or it is about to go."""
        with self._errors('asking for the service'):
            done = self.client.run(f'sc.exe query {name}')
        if done.code in (service.NOT_THERE, service.MARKED_FOR_DELETE):
            return None, 0
        numbers = [int(number, 16) if index == 0 else int(number) for index, number in enumerate(_STATUS.findall(done.text)[:4])]
        if done.code or len(numbers) < 4:
            if done.code == service.ACCESS_DENIED:
                raise self.error('SD-306', user=self._user, detail='the service control manager refuses access')
            raise self.error('SD-421', detail=f'sc query ended with {done.code}: {_one_line(done.text)}')
        return numbers[1], numbers[3] if numbers[2] == 1066 else numbers[2]

    def _state(self, name: str) -> int | None:
        return self._status(name)[0]

    # Removing

    def undo(self) -> None:
        """Stops and deletes the service, deletes the folder: whatever of it this way in made."""
        if self._folder_made or self._service_made:
            self._remove(self.name, with_service=self._service_made)
            self._folder_made = self._service_made = False
            if self._found:
                raise t.cast(SojournError, self._left_of(self._found))

    def wait_removed(self, patience: float = REMOVE_SECONDS) -> list[str]:
        """Waits for what the agent removes itself, then helps."""
        self._wake()
        pauses = service.Pauses(patience)
        # A service that has stopped and is there still is held open by somebody, whom the agent can't wait for.
        while self._state(self.name) not in (None, service.STOPPED):
            if not pauses.again():
                break
        # The agent's last is its folder, and its service goes as its process does: only then there can be what it left.
        pauses = service.Pauses(min(patience, service.FOLDER_SECONDS))
        while self._folder_there() and not self._read(LEFT_FILE, 'removing the agent'):
            if not pauses.again():
                break
        self._remove(self.name)
        self._left = self._left_of(self._found)
        return [f'service {self.name}', rf'folder %SystemRoot%\{self.name}']

    def _wake(self) -> None:
        """Signs in again where the shell has ended: it was opened before the agent ended, and an installation that was waited for may take hours."""
        try:
            self._state(self.name)
        except SojournError as error:
            if error.code not in ('SD-205', 'SD-421'):
                raise
            self.release()
            self.connect()

    def _remove(self, name: str, *, with_service: bool = True, with_folder: bool = True) -> None:
        if not NAME.fullmatch(name):
            raise self.error('SD-801', what=name, detail='the name is not one of this project')
        try:
            if with_service:
                self._remove_service(name)
        finally:
            if with_folder:
                self._remove_folder(name)

    def _remove_service(self, name: str) -> None:
        pauses = service.Pauses(REMOVE_SECONDS)
        while True:
            state = self._state_to_remove(name)
            if state == service.NOT_THERE:
                return
            code = 0
            if state == service.RUNNING:
                code = self._sc('stop', name)
            elif state == service.STOPPED or state == service.START_PENDING and pauses.seconds > service.HANGS_SECONDS:
                code = self._sc('delete', name)
            if code not in (0, service.NOT_THERE, service.MARKED_FOR_DELETE, service.CANNOT_ACCEPT, service.NOT_ACTIVE):
                if code == service.ACCESS_DENIED:
                    raise self.error('SD-306', user=self._user, detail='the service control manager refuses access')
                raise self.error('SD-801', what=f'The service {name}', detail=f'the service control manager gave error {code}')
            if not pauses.again():
                raise self.error('SD-801', what=f'The service {name}', detail=f'it is still there after {REMOVE_SECONDS:.0f} s (state {state})')

    def _state_to_remove(self, name: str) -> int:
        """As ``_state``, but NOT_THERE once it is really gone; 0: it is marked for deletion."""
        with self._errors('removing the service'):
            done = self.client.run(f'sc.exe query {name}')
        if done.code == service.NOT_THERE:
            return service.NOT_THERE
        numbers = _STATUS.findall(done.text)
        return int(numbers[1]) if done.code == 0 and len(numbers) > 1 else 0

    def _sc(self, verb: str, name: str) -> int:
        with self._errors('removing the service'):
            return self.client.run(f'sc.exe {verb} {name} >nul').code

    def _remove_folder(self, name: str) -> None:
        if name == self.name:
            there = self._folder_there()
            self._found = self._read(LEFT_FILE, 'removing the folder') if there else None
            if not there:
                return
        path = rf'"%SystemRoot%\{name}"'
        pauses = service.Pauses(REMOVE_SECONDS)
        while True:
            with self._errors('removing the folder'):
                done = self.client.run(f'rmdir /s /q {path} & if exist {path} echo there')
            if 'there' not in done.text:
                return
            if not pauses.again():
                # the executable is held until its process is gone, an open file until it is closed
                said = _one_line(done.stderr.decode('utf-8', 'replace')) or 'it is still there'
                raise self.error('SD-801', what=rf'The folder %SystemRoot%\{name}', detail=said)

    def find(self) -> list[Found]:
        """Services and folders by their names."""
        found: list[Found] = []
        with self._errors('looking for leftovers'):
            # All of them: a pipe to `findstr` may be a temporary file on the target.
            keys = self.client.run(r'reg query HKLM\SYSTEM\CurrentControlSet\Services').text
            folders = self.client.run(r'dir /b /ad "%SystemRoot%\sojourn-*" 2>nul').text
        services: dict[str, int | None] = {}
        for line in keys.splitlines():
            name = line.strip().rpartition('\\')[2]
            if NAME.fullmatch(name):
                services[name] = self._state(name)
                if services[name] is not None:
                    found.append(Found('service', name, name.partition('-')[2], live=services[name] != service.STOPPED))
        for name in folders.split():
            if NAME.fullmatch(name):
                live = services.get(name) not in (None, service.STOPPED)
                found.append(Found('folder', name, name.partition('-')[2], live=live, path=rf'%SystemRoot%\{name}'))
        return found

    def remove_found(self, found: Found) -> None:
        """Without the agent: firewall rules are out of reach."""
        if found.kind == 'service':
            self._remove(found.name, with_folder=False)
        elif found.kind == 'folder':
            self._remove(found.name, with_service=False)
        else:
            raise self.error('SD-801', what=f'The {found.kind} {found.name}', detail='only an agent on the target can')

    def release(self) -> None:
        """Ends the shell and disconnects."""
        if self._client is not None:
            self._client.close()
            self._client = None


def _input(data: bytes) -> t.Iterator[bytes]:
    """PLACE's standard input: lines of base64, as many at once as a message takes."""
    chunk = bytearray()
    for at in range(0, len(data), LINE_BYTES):
        line = base64.b64encode(data[at:at + LINE_BYTES]) + b'\r\n'
        if chunk and len(chunk) + len(line) > winrm_client.INPUT_SIZE:
            yield bytes(chunk)
            chunk.clear()
        chunk += line
    yield bytes(chunk)


def _one_line(text: t.Any) -> str:
    """A text's words in one line, not too many of them."""
    return ' '.join(str(text).split())[:400]
