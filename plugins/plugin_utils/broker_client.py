# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The worker's side of the broker: finds or starts it, and is what plugins call (class ``Agent``); it talks to no target itself.

Ansible forks a worker for each task and host and imports this file in each, so it may import nothing but the standard library,
and of that nothing slow (a unit test measures it).
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import socket
import stat
import sys
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils import wire
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target

#: Seconds that a new broker may take until it listens.
START_SECONDS = 30.0
#: Of SD-902: the broker was killed in the middle of a call.
BROKE_OFF = 'it ended while it worked'
#: Longest path that a Unix socket may have on every system (Linux has 108, macOS 104, both with the final zero).
_LONGEST_SOCKET_PATH = 103
#: Variables that the broker needs; it outlives its worker, so it gets no others of the user's.
_ENVIRONMENT = ('HOME', 'PATH', 'USER', 'LOGNAME', 'LANG', 'LANGUAGE', 'TZ', 'TMPDIR', 'SSH_AUTH_SOCK', 'VIRTUAL_ENV', 'LD_LIBRARY_PATH', 'OPENSSL_CONF')
_ENVIRONMENT_PREFIXES = ('LC_', 'KRB5', 'XDG_', 'PYTHON', 'SOJOURN_', 'COVERAGE_')


def start_time(pid: int) -> str:
    """When a process began, in clock ticks since boot; '0' where that cannot be told. Tells a reused process id apart."""
    try:
        with open(f'/proc/{pid}/stat', 'rb') as file:
            # Field 22; the second field is a name in parentheses that may itself hold blanks and parentheses.
            return file.read().rpartition(b')')[2].split()[19].decode('ascii')
    except (OSError, IndexError, UnicodeDecodeError):
        return '0'


def private_base() -> str:
    """The folder of this user's brokers' folders."""
    runtime = os.environ.get('XDG_RUNTIME_DIR')
    if runtime and os.path.isabs(runtime) and len(runtime) < 40:
        try:
            status = os.stat(runtime)
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077:
                return os.path.join(runtime, 'sojourn')
        except OSError:
            pass
    return f'/tmp/sojourn-{os.geteuid()}'


def run_folder(owner_pid: int) -> str:
    """The broker's private folder for a run: a pure function of the process id and start of its ``ansible-playbook``."""
    return os.path.join(private_base(), f'{owner_pid}-{start_time(owner_pid)}')


def socket_path(folder: str) -> str:
    """The broker's socket in its folder."""
    return os.path.join(folder, 'socket')


def log_path(folder: str) -> str:
    """The broker's log in its folder."""
    return os.path.join(folder, 'broker.log')


def _unavailable(folder: str, detail: t.Any) -> SojournError:
    return SojournError('SD-902', step='starting the broker', detail=detail, log=log_path(folder))


def make_private_folder(path: str) -> None:
    """Makes a folder that only this user can enter, or checks that it is one. Raises SD-902."""
    try:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        try:
            status = os.lstat(path)
        except FileNotFoundError:  # a broker that ends has just removed it
            os.mkdir(path, 0o700)
            status = os.lstat(path)
    except OSError as error:
        raise _unavailable(path, error) from None
    if not stat.S_ISDIR(status.st_mode):
        raise _unavailable(path, f'{path} is not a folder')
    if status.st_uid != os.geteuid():
        raise _unavailable(path, f'{path} belongs to another user (id {status.st_uid})')
    if status.st_mode & 0o077:
        raise _unavailable(path, f'{path} is open to other users (mode {stat.S_IMODE(status.st_mode):04o})')


def _connect_socket(folder: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(socket_path(folder))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise _unavailable(folder, error) from None
    return connection


def _spawn(folder: str, owner_pid: int) -> None:
    """Starts the broker and waits until it listens. The caller holds the lock."""
    import json

    reader, writer = os.pipe()
    try:
        _popen(folder, owner_pid, '--ready', writer)
    except OSError as error:
        os.close(reader)
        raise _unavailable(folder, error) from None
    finally:
        os.close(writer)
    answer = b''
    deadline = time.monotonic() + START_SECONDS
    try:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        while not answer.endswith(b'\n'):
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise _unavailable(folder, f'it was not ready within {START_SECONDS:.0f} s')
            data = os.read(reader, 65536)
            if not data:
                raise _unavailable(folder, 'it ended while starting')
            answer += data
    finally:
        os.close(reader)
    message = json.loads(answer)
    if message.get('error'):
        raise SojournError.from_dict(message['error'])


def _popen(folder: str, owner_pid: int, option: str, descriptor: int, *more: str) -> None:
    """Starts the broker's process, which inherits a descriptor. Raises OSError."""
    import subprocess

    environment = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)}
    # Threads come and go in it, one for each call: with an arena for each (glibc's way) its memory only grows, though nothing is lost.
    environment['MALLOC_ARENA_MAX'] = '2'
    # Blocks of this size and more are the system's again once they are free (mallopt(3), M_MMAP_THRESHOLD). Left alone, glibc raises the bound to that of
    # the largest block ever freed: then they lie in the heap, and it grows by what is in between.
    environment['MALLOC_MMAP_THRESHOLD_'] = str(128 << 10)
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'broker_start.py')
    # -P: the folder of plugin_utils must not come first in sys.path, its modules have common names.
    # A session of its own: a worker that ends kills its process group (ansible-core's WorkerProcess).
    with open(os.devnull, 'r+b') as null, open(log_path(folder), 'ab', opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
        process = subprocess.Popen(
            [sys.executable, '-P', program, '--folder', folder, '--owner', str(owner_pid), option, str(descriptor), *more],
            stdin=null, stdout=null, stderr=log, pass_fds=(descriptor,), start_new_session=True, cwd='/', env=environment)
    process.returncode = 0  # it is not ours to wait for: it outlives this worker


def connect(owner_pid: int, *, start: bool = True) -> socket.socket | None:
    """A connection to the run's broker, which is started where it does not run yet.

    With ``start`` false: None where it does not run. Raises SD-902.
    """
    folder = run_folder(owner_pid)
    if len(socket_path(folder)) > _LONGEST_SOCKET_PATH:
        raise _unavailable(folder, f'the path {socket_path(folder)} is too long for a socket')
    connection = _connect_socket(folder)
    if connection is not None or not start:
        return connection
    # Many workers may come at once (delegate_to, forks): one starts the broker, the others wait for the lock.
    lock = _lock(folder)
    try:
        connection = _connect_socket(folder)
        if connection is not None:
            return connection
        _remove_socket(folder)
        _spawn(folder, owner_pid)
        connection = _connect_socket(folder)
        if connection is None:
            raise _unavailable(folder, 'it ended right after its start')
        return connection
    finally:
        os.close(lock)


def start_early(owner_pid: int, way_in: str) -> bool:
    """Starts the run's broker for who will need it soon, and does not wait; it loads what this way in needs. False where that is vain, or cannot be.

    The broker holds the lock until it listens, so that workers wait for it. What is wrong, the first of them finds out, and tells.
    """
    folder = run_folder(owner_pid)
    try:
        if len(socket_path(folder)) > _LONGEST_SOCKET_PATH:
            return False
        connection = _connect_socket(folder)
        if connection is not None:
            connection.close()
            return False
        lock = _lock(folder, wait=False)
        try:
            _remove_socket(folder)
            _popen(folder, owner_pid, '--lock', lock, '--load', way_in)
        finally:
            os.close(lock)
        return True
    except (SojournError, OSError):
        return False


def await_start(owner_pid: int) -> bool:
    """Waits until a broker that is being started listens, or will not; False: none is. Starts none."""
    try:
        lock = os.open(os.path.join(run_folder(owner_pid), 'lock'), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)  # who starts one holds it until then
    finally:
        os.close(lock)
    return True


def _remove_socket(folder: str) -> None:
    try:
        os.unlink(socket_path(folder))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unavailable(folder, error) from None


def _lock(folder: str, *, wait: bool = True) -> int:
    """The lock of whoever starts a broker, in its folder, which is made. Raises SD-902, and BlockingIOError where another has it and one is not to wait."""
    base = os.path.dirname(folder)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        make_private_folder(base)
        try:
            make_private_folder(folder)
        except SojournError:
            if not os.path.lexists(base):
                continue  # another run's broker, the last one there, has just removed it
            raise
        try:
            lock = os.open(os.path.join(folder, 'lock'), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue  # a broker that ends has just removed the folder
        except OSError as error:
            raise _unavailable(folder, error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(lock)
            raise
        if os.fstat(lock).st_nlink:
            return lock
        os.close(lock)  # as above
    raise _unavailable(folder, 'its folder vanishes again and again')


class Input(t.NamedTuple):
    """What ``Agent.execute``'s ``converse`` returns."""

    #: For the process's standard input.
    data: bytes
    #: Whether end of file follows.
    close: bool = False
    #: Whether it goes to the terminal instead, if the process has one and spoke there last.
    answer: bool = False


class _Idle:
    """A connection to the broker that a call of this process has left, for the next one: a loop's items are many calls."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, int, socket.socket]] = []

    def take(self, owner_pid: int) -> socket.socket | None:
        """None: there is none."""
        with contextlib.suppress(IndexError):  # another thread may have been faster
            pid, owner, connection = self._kept.pop()
            if (pid, owner) == (os.getpid(), owner_pid):
                return connection
            connection.close()  # of the process that forked this one, which has it still
        return None

    def give(self, owner_pid: int, connection: socket.socket) -> None:
        """Takes care of it from now on."""
        if self._kept:
            connection.close()
        else:
            self._kept.append((os.getpid(), owner_pid, connection))


_idle = _Idle()

#: Called with an event's name, its fields and its bytes.
OnEvent = t.Callable[[str, dict[str, t.Any], bytes], Input | None]
#: Asked before each wait for what comes next: the seconds that it may take; None: for ever.
Patience = t.Callable[[], float | None]


class Overdue(Exception):
    """Nothing came for as long as the caller of ``Agent.execute`` was willing to wait."""


def _result(connection: socket.socket, call: str, owner_pid: int, on_event: OnEvent | None,
            on_step: t.Callable[[dict[str, t.Any]], None] | None = None, patience: Patience | None = None,
            on_more: t.Callable[[], None] | None = None) -> t.Any:
    """Receives what the broker answers to a call, the events before it too. ``on_more``: called where it takes another call there. Raises Overdue."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    while True:
        seconds = patience() if patience is not None else None
        if seconds is not None and not poll.poll(seconds * 1000):
            raise Overdue
        frame = wire.receive_frame(connection)
        if frame is None:
            raise SojournError('SD-902', step=call, detail=BROKE_OFF, log=log_path(run_folder(owner_pid)))
        header, data = frame
        if header.get('event') == 'step':
            if on_step is not None:
                on_step(header)
            continue
        if 'event' in header:
            reply = on_event(header['event'], header, bytes(data)) if on_event else None
            if reply is not None:
                on_more = None  # it may still be on its way
                _reply(connection, reply)
            continue
        if on_more is not None and header.get('more'):
            on_more()
        if header.get('error'):
            raise SojournError.from_dict(header['error'])
        return header['result']


def _reply(connection: socket.socket, reply: Input) -> None:
    pieces = list(wire.chunks(reply.data)) or [memoryview(b'')]
    for number, piece in enumerate(pieces, 1):
        wire.send_frame(connection, {'write': True, 'close': reply.close and number == len(pieces), 'answer': reply.answer}, piece)


def end_run(owner_pid: int, on_event: t.Callable[[dict[str, t.Any]], None]) -> bool:
    """Ends a run as its process's end would, and waits until all its targets are clean; False where it has no broker.

    ``on_event`` is told what happens: see ``Broker.follow_end``. Raises SD-902.
    """
    def tell(unused_event: str, header: dict[str, t.Any], unused_data: bytes) -> None:
        on_event(header)

    try:
        connection = connect(owner_pid, start=False)
        if connection is None:
            return False
        with connection:
            wire.send_frame(connection, {'version': wire.PROTOCOL_VERSION, 'call': 'end', 'arguments': {}, 'payload': 0})
            _result(connection, 'end', owner_pid, tell)
            return True
    except (OSError, wire.WireError) as error:
        raise SojournError('SD-902', step='cleaning up', detail=error, log=log_path(run_folder(owner_pid))) from None


def expect_end(owner_pid: int) -> None:
    """Tells a run's broker that the last task has begun: what its end will need takes time. Whatever comes of it, nobody waits for that."""
    with contextlib.suppress(SojournError, OSError, wire.WireError):
        connection = connect(owner_pid, start=False)
        if connection is not None:
            with connection:
                wire.send_frame(connection, {'version': wire.PROTOCOL_VERSION, 'call': 'expect_end', 'arguments': {}, 'payload': 0})


class Likely(t.NamedTuple):
    """By what targets are likely to be told to run modules."""

    #: In which ``@interpreter@`` stands for the first of the interpreters that a target has.
    command_line: str
    #: Paths, or names.
    interpreters: tuple[str, ...]


def announce_module(owner_pid: int, program: bytes, play: int, by: Likely | None = None) -> bool:
    """Gives a module's program, with nothing of any task in it, to a run's broker: agents get it before tasks come with it. False: there is no broker yet.

    ``play`` counts the run's plays. Raises SD-902, SD-903.
    """
    try:
        connection = connect(owner_pid, start=False)
        if connection is None:
            return False
        with connection:
            wire.send_frame(connection, {'version': wire.PROTOCOL_VERSION, 'call': 'module', 'payload': len(program),
                                         'arguments': {'play': play, 'by': by}})
            for chunk in wire.chunks(program):
                wire.send_frame(connection, {}, chunk)
            _result(connection, 'module', owner_pid, None)
            return True
    except (OSError, wire.WireError) as error:
        raise SojournError('SD-902', step='announcing a module', detail=error, log=log_path(run_folder(owner_pid))) from None


class Installation(t.NamedTuple):
    """What makes a process an installation: it is let finish when the run is cancelled, and can be taken up by another run."""

    #: The agent's name for the process, 32 hexadecimal digits, new for each try.
    handle: str
    #: What it installs, so that another run knows it again.
    label: str
    #: The package's name for people, and its key in the broker's ledger.
    package: str
    key: str


class Agent:
    """One target's agent as plugins see it. Every method raises ``SojournError`` only.

    Methods work on the target through the broker, and deploy the agent first where it is not there yet, but for ``present``,
    ``remove``, ``diagnose``, ``preflight`` and ``note`` (which need none) and ``cleanup`` (which decides itself). A call has a connection to the
    broker for itself, and leaves it to the next: when the caller is interrupted (a task's timeout), its end tells the broker to stop what it does.
    """

    def __init__(self, target: Target, owner_pid: int) -> None:
        self.target = target
        self.owner_pid = owner_pid
        #: Told of each step towards the target as it ends: its name, 'seconds', 'detail', whether it 'failed'. None: the broker does not tell.
        self.on_step: t.Callable[[dict[str, t.Any]], None] | None = None

    def _call(self, call: str, arguments: dict[str, t.Any] | None = None, *, start: bool = True, payload: bytes = b'',
              on_event: OnEvent | None = None, patience: Patience | None = None) -> t.Any:
        host = self.target.host
        try:
            connection = self._order(call, arguments or {}, start, len(payload))
            if connection is None:
                return None
            with contextlib.ExitStack() as left:
                left.enter_context(connection)
                over = False

                def keep() -> None:
                    nonlocal over
                    over = True
                    left.pop_all()
                    _idle.give(self.owner_pid, t.cast(socket.socket, connection))

                for chunk in wire.chunks(payload):
                    wire.send_frame(connection, {'input': True}, chunk)
                try:
                    return _result(connection, call, self.owner_pid, on_event, self.on_step, patience, keep)
                except (Exception, KeyboardInterrupt, SystemExit):
                    raise
                except BaseException:
                    # A task's timeout: what it began is to be killed, an installation too. A run that is cancelled says nothing.
                    if not over:
                        with contextlib.suppress(OSError, wire.WireError):
                            wire.send_frame(connection, {'cancel': True})
                    raise
        except SojournError as error:
            error.at(host=host)
            raise
        except (OSError, wire.WireError) as error:
            detail = f'{BROKE_OFF} ({error})'
            raise SojournError('SD-902', host=host, step=call, detail=detail, log=log_path(run_folder(self.owner_pid))) from None

    def _order(self, call: str, arguments: dict[str, t.Any], start: bool, payload: int) -> socket.socket | None:
        """A connection on which the broker has been told what to do; None where none runs and none is to be started."""
        request = {'version': wire.PROTOCOL_VERSION, 'call': call, 'target': self.target.to_dict(), 'arguments': arguments, 'payload': payload,
                   'steps': self.on_step is not None}
        for last in (False, False, True):
            connection = _idle.take(self.owner_pid) or connect(self.owner_pid, start=start)
            if connection is None:
                return None
            try:
                wire.send_frame(connection, request)
                return connection
            except ConnectionError:  # a broker that is being killed still has its socket for a moment
                connection.close()
                if last:
                    raise
            except BaseException:
                connection.close()
                raise
        return None

    # The agent itself

    def deploy(self) -> dict[str, t.Any]:
        """Puts the agent on the target, if it is not there.

        Returns ``{'changed': bool, 'info': {...}, 'seconds': {'connect', 'upload', 'start', 'first_call'}, 'taken_over': bool}``; ``info`` has
        the fields of the WSDL's type Info in snake case; ``taken_over``: the agent was an earlier broker's, whose run was cut off. Raises 1xx to 6xx.
        """
        return self._call('deploy')

    def present(self) -> bool:
        """Whether the broker has a live session with the target's agent. Connects to nothing."""
        return bool(self._call('present', start=False))

    def info(self) -> dict[str, t.Any]:
        """GetInfo, in snake case."""
        return self._call('info')

    def remove(self, *, unless_used: bool = False) -> dict[str, t.Any]:
        """Ends the agent and waits until service, folder and rule are gone and the way in is released.

        ``unless_used``: not where processes run by it, or files are on their way.

        Returns ``{'changed': bool, 'removed': [...]}``. Without a session: changed False, and nothing is connected to. Raises SD-801.
        """
        return self._call('remove', {'unless_used': unless_used}, start=False) or {'changed': False, 'removed': []}

    def cleanup(self, run: str | None = None, force: bool = False, check: bool = False) -> dict[str, t.Any]:
        """Removes what dead runs of this project left on the target, whatever state it is in; ends the own session first.

        ``run``: only this run's, and with ``force`` whether it is dead or alive. ``check``: only tells.
        Returns ``{'changed': bool, 'leftovers': [{'kind', 'name', 'run', 'state', 'detail'}]}``.
        """
        return self._call('cleanup', {'run': run, 'force': bool(force), 'check': bool(check)})

    def diagnose(self, sign_in: bool = False) -> list[dict[str, t.Any]]:
        """What it would take to put the agent there, as far as that can be told without doing so; changes nothing.

        Returns findings: section, name, value (a text, or a list of texts), seconds (or None), error (as SojournError.to_dict has it, or None).
        """
        return self._call('diagnose', {'sign_in': bool(sign_in)})

    def preflight(self, timeout: float = 3.0, sign_in: bool = True) -> list[dict[str, t.Any]]:
        """Whether a deployment to this target would succeed, check by check; changes nothing.

        ``timeout``: seconds for the name resolution, and then for the connection. Returns checks: check (its name), state ('ok', 'warning', 'failed'),
        detail, remedy (or None), code (of the catalogue, or None), error (as SojournError.to_dict has it, where it failed).
        """
        return self._call('preflight', {'timeout': float(timeout), 'sign_in': bool(sign_in)})

    def note(self, key: str | None = None, **changes: t.Any) -> str:
        """Tells the broker of a package: ``package`` (its name), ``state``, ``msg``, ``codes`` ({exit code: [state, meaning]}).

        If the run is cut off, this is what is known of it. Without ``key`` it is a further package; returns its key.
        """
        return str(self._call('note', {'key': key, **changes}))

    # Packages and files

    def query_packages(self, manager: str | None = None, name: str | None = None) -> list[dict[str, t.Any]]:
        """The package databases' entries: manager, name, version, architecture, id, publisher (None where the database has none)."""
        return self._call('query_packages', {'manager': manager, 'name': name})

    def put_file(self, local_path: str, remote_path: str, *, mode: str = '0600', user: str | None = None, checksum: str | None = None,
                 digests: bool = False, on_progress: t.Callable[[int, int], None] | None = None) -> dict[str, t.Any]:
        """Sends a file; the broker reads it. ``remote_path`` may be relative to the agent's folder, with ``user`` to that user's home.

        ``checksum``: the expected SHA-256 in hex; where it differs nothing is left (SD-106). ``on_progress(bytes sent, bytes in all)``.
        Returns ``{'path' (absolute), 'size' (bytes), 'checksum' (hex), 'seconds'}``, with ``digests`` also ``'sha1'`` and ``'md5'`` of what was sent (hex;
        None where the controller has no MD5, and where another transfer of the same file is about to make them). Raises SD-106, 402, 706, 707, 709, 5xx.
        """
        def on_event(event: str, header: dict[str, t.Any], unused_data: bytes) -> None:
            if event == 'progress' and on_progress is not None:
                on_progress(header['done'], header['total'])

        return self._call('put_file', {
            'local_path': os.path.abspath(str(local_path)), 'remote_path': str(remote_path), 'mode': mode, 'user': user,
            'checksum': checksum.lower() if checksum else None, 'digests': bool(digests), 'progress': on_progress is not None}, on_event=on_event)

    def get_file(self, remote_path: str, local_path: str, *, user: str | None = None, digests: bool = False) -> dict[str, t.Any]:
        """Fetches a file; the broker writes it, under another name until it is whole.

        Returns ``{'path', 'size' (bytes), 'checksum' (hex), 'seconds'}``, with ``digests`` also ``'sha1'`` and ``'md5'`` of what came (hex; None where the
        controller has no MD5), ``'identity'`` of what was written, as ``file_identity.Identity`` has it, and ``'resumed'``: the connection was lost meanwhile,
        so that it came in pieces, which may be of different files. Raises SD-706, 707, 709, 5xx.
        """
        return self._call('get_file', {
            'remote_path': str(remote_path), 'local_path': os.path.abspath(str(local_path)), 'user': user, 'digests': bool(digests)})

    def stat(self, path: str, checksum: bool = False, user: str | None = None) -> dict[str, t.Any]:
        """What is at a path: path, kind ('absent', 'file', 'directory', 'link', 'other'), size, mode, owner, modified (ISO 8601), checksum (hex)."""
        return self._call('stat', {'path': str(path), 'checksum': bool(checksum), 'user': user})

    def remove_path(self, path: str, recursive: bool = False, user: str | None = None) -> bool:
        """Removes a file or folder on the target; False where nothing was there. Raises SD-706."""
        return bool(self._call('remove_path', {'path': str(path), 'recursive': bool(recursive), 'user': user}))

    def extract(self, path: str, folder: str) -> int:
        """Unpacks a .zip on the target into a new folder; returns the number of files. Raises SD-706, 708."""
        return int(self._call('extract', {'path': str(path), 'folder': str(folder)}))

    # Processes

    def execute(self, arguments: t.Sequence[str] | None = None, *, command_line: str | None = None, directory: str | None = None,
                environment: t.Mapping[str, str] | None = None, user: str | None = None, input_data: bytes | None = None,
                timeout: float | None = None, safe_to_kill: bool = False, may_outlive: bool = False, warm: bool = False, terminal: bool = False,
                before_modules: bool = False, on_output: t.Callable[[str, bytes], None] | None = None,
                converse: t.Callable[[str, bytes], Input | None] | None = None, patience: Patience | None = None,
                installation: Installation | None = None) -> dict[str, t.Any]:
        """Runs a program, or with ``command_line`` a command line (Linux: by /bin/sh; Windows: as CreateProcess takes it).

        ``timeout``: seconds until the whole process tree is killed. ``on_output(stream, data)`` is called while it runs, with
        'stdout' or 'stderr'. ``converse`` likewise, and what it returns is written to the process's input, which
        stays open until it says close; ``input_data`` then comes before. ``patience``: see ``Patience``; asked from the process's start on, and only
        beside ``converse``; who has run out of it gets ``Overdue``, and the process's tree is killed. ``safe_to_kill``: may be killed when the lease ends;
        ``may_outlive``: goes on by itself then, its streams closed; else the agent waits for its end.
        ``warm``: the input may be a module, which an interpreter that the agent keeps warm may run.
        ``before_modules``: modules may come after it by which the agent may keep an interpreter warm.
        ``terminal``: on Linux a command line finds one at /dev/tty, beside its standard streams; what it shows there comes with 'stderr'.
        If the caller is interrupted, the process's whole tree is killed; with ``installation`` only by a task's timeout: where the run is
        cancelled it finishes. Should the broker be killed meanwhile, the same call once more takes up the process that is there.

        Returns ``{'exit_code' (None if there is none), 'stdout' (bytes), 'stderr' (bytes), 'timed_out', 'seconds'}``.
        Raises SD-504, 701, 702, 5xx.
        """
        return self._execute({
            'arguments': [str(argument) for argument in arguments] if arguments is not None else None,
            'command_line': command_line, 'directory': directory,
            'environment': {str(name): str(value) for name, value in environment.items()} if environment else None,
            'user': user, 'has_input': input_data is not None, 'timeout': timeout, 'safe_to_kill': bool(safe_to_kill),
            'may_outlive': bool(may_outlive), 'warm': bool(warm), 'terminal': bool(terminal), 'before_modules': bool(before_modules),
            'keep_input_open': converse is not None,
        }, installation, input_data, on_output, converse, patience)

    def follow(self, installation: Installation, on_output: t.Callable[[str, bytes], None] | None = None) -> dict[str, t.Any]:
        """Takes up an installation that is on the target already; see ``execute``. Raises SD-705 where there is none of its handle, 5xx."""
        return self._execute({'follow': True}, installation, None, on_output, None)

    def executions(self) -> list[dict[str, t.Any]]:
        """The agent's processes, running or ended, that nobody has taken the result of: handle, label, running, exit_code, seconds."""
        return self._call('executions')

    def _execute(self, arguments: dict[str, t.Any], installation: Installation | None, input_data: bytes | None,
                 on_output: t.Callable[[str, bytes], None] | None, converse: t.Callable[[str, bytes], Input | None] | None,
                 patience: Patience | None = None) -> dict[str, t.Any]:
        # Its getvalue() hands out the buffer itself: what comes is held once, where pieces that are joined in the end would be there twice.
        output = {'stdout': io.BytesIO(), 'stderr': io.BytesIO()}
        started = False

        def on_event(event: str, header: dict[str, t.Any], data: bytes) -> Input | None:
            nonlocal started
            started = started or event == 'started'
            if event != 'output':
                return None
            stream = header['stream']
            output[stream].write(data)
            if on_output is not None:
                on_output(stream, data)
            return converse(stream, data) if converse is not None else None

        if installation is not None:
            arguments.update(finish=True, **installation._asdict())
        result = self._call(
            'execute', {**arguments, 'streaming': on_output is not None or converse is not None}, payload=input_data or b'', on_event=on_event,
            # Before that the agent may have to be put there again, on a target that restarts.
            patience=(lambda: patience() if started else None) if patience is not None else None)
        return {**result, **{stream: whole.getvalue() for stream, whole in output.items()}}

    # Firewall

    def open_port(self, port: int, protocol: str = 'tcp', source: str | None = None, family: str | None = None, keep: bool = False) -> dict[str, t.Any]:
        """Admits a port through the target's firewall; idempotent. Returns ``{'changed', 'rules': [...]}``. Raises 6xx."""
        return self._call('open_port', {'port': int(port), 'protocol': protocol, 'source': source, 'family': family, 'keep': bool(keep)})

    def close_port(self, port: int, protocol: str = 'tcp', source: str | None = None, family: str | None = None) -> dict[str, t.Any]:
        """Takes back what ``open_port`` made; idempotent. Returns ``{'changed'}``. Raises 6xx."""
        return self._call('close_port', {'port': int(port), 'protocol': protocol, 'source': source, 'family': family})

    def list_ports(self) -> list[dict[str, t.Any]]:
        """This project's firewall rules on the target: name, run, port, protocol, family, source, firewall_kind."""
        return self._call('list_ports')
