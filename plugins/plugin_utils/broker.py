# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The broker: one process for each run, which holds all sessions, listens to the workers, and cleans every target when the run ends; no SOAP and no way in.

It is in a session and process group of its own, since a run is often cancelled by SIGKILL to the whole group (ansible-runner), and it
watches ``ansible-playbook``, whichever way that ends.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import json
import logging
import os
import queue
import resource
import secrets
import select
import signal
import socket
import struct
import sys
import threading
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils import broker_client, steps, wire
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.ledger import Ledger, leave
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target

log = logging.getLogger('sojourn.broker')

#: In the broker's folder, with its process id: locked by the broker. (A run has two where somebody deleted the first one's socket.)
ALIVE = 'alive-'
#: Longest log, in bytes.
MAXIMUM_LOG = 2 << 20
#: Seconds between two looks at the owner where the system has no pidfd.
POLL_OWNER = 0.25
#: Seconds after which a worker that could not be let in is tried again.
ACCEPT_AGAIN = 0.2
#: Seconds that whoever waits for the run's end may take to hear the last word.
LAST_WORD_SECONDS = 5.0
#: Targets of a run, up to which all are thought to be near their end when the last task begins.
MOST_EXPECTED = 32


class _BoundedHandler(logging.StreamHandler):
    """Stops writing when the log has become long."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._left = MAXIMUM_LOG

    def emit(self, record: logging.LogRecord) -> None:
        if self._left <= 0:
            return
        text = self.format(record)
        self._left -= len(text) + 1
        with contextlib.suppress(OSError):  # no room on the disk: nothing may fail of that
            self.stream.write(text + '\n' if self._left > 0 else 'the log is full\n')
            self.stream.flush()


def _peer_user(connection: socket.socket) -> int:
    """The user id at the other end of a Unix socket."""
    if hasattr(socket, 'SO_PEERCRED'):
        return struct.unpack('3i', connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize('3i')))[1]
    if hasattr(socket, 'LOCAL_PEERCRED'):  # macOS, FreeBSD: struct xucred
        return struct.unpack('=IIh16I', connection.getsockopt(0, socket.LOCAL_PEERCRED, struct.calcsize('=IIh16I')))[1]
    return -1


class Owner:
    """The run's ``ansible-playbook``."""

    def __init__(self, pid: int, expected_start: str) -> None:
        self._pid = pid
        self._start = expected_start
        self.descriptor: int | None = None
        with contextlib.suppress(OSError, AttributeError):
            self.descriptor = os.pidfd_open(pid)

    def ended(self) -> bool:
        """Whether it is gone; a zombie counts as gone."""
        if broker_client.start_time(self._pid) != self._start:
            return True
        if self.descriptor is not None:
            return bool(select.select([self.descriptor], [], [], 0)[0]) if self.descriptor < 1024 else False
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


class Broker:
    """All sessions of a run."""

    def __init__(self, folder: str, owner: Owner) -> None:
        self.folder = folder
        #: Names everything on the targets.
        self.run = secrets.token_hex(6)
        self._owner = owner
        self._sessions: dict[str, t.Any] = {}
        self._lock = threading.Lock()
        #: Connections by which nothing is asked for now.
        self._idle: set[socket.socket] = set()
        self._credentials: t.Any = None
        self._coming: t.Any = None
        self.ledger = Ledger()
        self._ending = threading.Event()
        #: Whether somebody has listened to the run's end until it was over.
        self._heard = False
        #: Who waits for that, and hears what happens.
        self._waiting: dict[threading.Thread, queue.SimpleQueue[dict[str, t.Any] | None]] = {}
        self._alive: int | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)

    # Listening

    def listen(self) -> None:
        """Takes the signals, then opens the socket: whoever is told that the broker is ready may signal it at once."""
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)  # Ctrl-C is the run's; the broker goes by the run's end
        signal.signal(signal.SIGTERM, lambda unused_number, unused_frame: self._ending.set())
        # Held as long as this process is there: tells whether the folder is anybody's.
        self._alive = os.open(os.path.join(self.folder, f'{ALIVE}{os.getpid()}'), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        before = os.umask(0o177)
        try:
            self._listener.bind(broker_client.socket_path(self.folder))
        finally:
            os.umask(before)
        self._listener.listen(128)

    def load(self, way_in: str) -> None:
        """Has loaded, beside all else, what a session that goes this way in will need."""
        def load() -> None:
            from ansible_collections.sojourn.deploy.plugins.plugin_utils import session

            session.load_way_in(way_in)
            with self._lock:
                credentials = self._run_credentials()
            with contextlib.suppress(SojournError):  # who needs them will say so
                credentials.prepare()

        threading.Thread(target=load, name='loading', daemon=True).start()

    def serve(self) -> None:
        """Until the owner ends or a signal comes."""
        threading.Thread(target=self._look_after, name='looking after', daemon=True).start()
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_reader, select.POLLIN)
        if self._owner.descriptor is not None:
            poll.register(self._owner.descriptor, select.POLLIN)
        while not self._ending.is_set():
            events = dict(poll.poll(None if self._owner.descriptor is not None else POLL_OWNER * 1000))
            if self._owner.descriptor in events or self._owner.descriptor is None and self._owner.ended():
                log.info('the run has ended')
                break
            if self._wake_reader in events:
                os.read(self._wake_reader, 4096)
            if self._listener.fileno() in events:
                self._accept()
        self._ending.set()
        self._listener.close()
        with contextlib.suppress(OSError):
            os.unlink(broker_client.socket_path(self.folder))
        with self._lock:
            idle = list(self._idle)
        for connection in idle:  # whoever has left it for a next call finds that out before he has sent that
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def request_end(self) -> None:
        """Ends the run as if its owner had ended."""
        self._ending.set()
        with contextlib.suppress(OSError):
            os.write(self._wake_writer, b'\0')

    def _accept(self) -> None:
        """Takes a worker's connection. Whatever keeps it from doing so (no descriptors left, no threads) must not end the broker: it has targets to clean."""
        try:
            connection = self._listener.accept()[0]
        except OSError as error:
            log.warning('a worker could not be let in: %s', error)
            self._ending.wait(ACCEPT_AGAIN)  # it goes on knocking: not at once again
            return
        try:
            threading.Thread(target=self._client, args=(connection,), name='client', daemon=True).start()
        except RuntimeError as error:
            log.warning('a worker could not be served: %s', error)
            connection.close()

    @staticmethod
    def _look_after() -> None:
        """Looks after what dead brokers left on this machine."""
        from ansible_collections.sojourn.deploy.plugins.plugin_utils import session_file

        session_file.forget_old()
        sweep()

    # Clients

    def _client(self, connection: socket.socket) -> None:
        with connection:
            try:
                if _peer_user(connection) != os.geteuid():
                    log.error('a connection of user %d was refused', _peer_user(connection))
                    return
                frame = wire.receive_frame(connection)
                while frame is not None and self._answer(connection, frame[0]):
                    frame = self._next(connection)
            except (OSError, wire.WireError) as error:
                log.info('a client went away: %s', error)
            except Exception:
                log.exception('a client')

    def _next(self, connection: socket.socket) -> tuple[dict[str, t.Any], bytes | bytearray] | None:
        """What another call begins with, by a connection that was left for it; None: there is none, or there are to be no more."""
        with self._lock:
            if self._ending.is_set():
                return None
            self._idle.add(connection)
        try:
            return wire.receive_frame(connection)
        finally:
            with self._lock:
                self._idle.discard(connection)

    def _answer(self, connection: socket.socket, request: dict[str, t.Any]) -> bool:
        """Does what is asked for; whether another call may come by the same connection."""
        name = str(request.get('call'))
        target: Target | None = None
        call: Call | None = None
        try:
            if request.get('version') != wire.PROTOCOL_VERSION:
                raise SojournError(
                    'SD-902', step=name, detail='the collection was replaced while the run goes on', log=broker_client.log_path(self.folder))
            target = Target.from_dict(request['target']) if request.get('target') else None
            handler = HANDLERS.get(name)
            if handler is None:
                raise SojournError('SD-903', step=name, detail='the broker knows no such call')
            call = Call(self, connection, t.cast(Target, target), request)  # None: the call 'end', which has none
            with steps.told(call.tell_step if request.get('steps') else None):
                result = handler(call)
            answer: dict[str, t.Any] = {'result': result}
        except SojournError as error:
            answer = {'error': error.at(host=target.host if target else None).redacted(target.secrets if target else ()).to_dict()}
            log.info('%s: %s', name, error)
        except (OSError, wire.WireError):
            raise
        except Exception as error:
            from ansible_collections.sojourn.deploy.plugins.plugin_utils.session import Cancelled

            if isinstance(error, Cancelled):
                return False
            log.exception('%s', name)
            internal = SojournError('SD-903', host=target.host if target else None, step=name, detail=f'{type(error).__name__}: {error}')
            answer = {'error': internal.redacted(target.secrets if target else ()).to_dict()}
        if name in UNANSWERED:
            return False
        # Else somebody reads there already, or what belongs to this call may be on its way still.
        more = call is not None and not call.watched and 'result' in answer
        wire.send_frame(connection, {**answer, 'more': True} if more else answer)
        return more

    # Sessions

    def existing(self, target: Target) -> t.Any:
        """The target's session, if there is one."""
        with self._lock:
            return self._sessions.get(target.key)

    def session(self, target: Target) -> t.Any:
        """The target's session, new if need be; it takes over the newest secrets."""
        from ansible_collections.sojourn.deploy.plugins.plugin_utils.session import Session

        with self._lock:
            if self._ending.is_set():
                raise SojournError('SD-902', step='finding the session', detail='the run has ended', log=broker_client.log_path(self.folder))
            session = self._sessions.get(target.key)
            if session is None:
                session = Session(
                    target, self.run, self._run_credentials(), secrets.token_hex(8), self._by_token, os.path.basename(self.folder), self._to_come())
                self._sessions[target.key] = session
            else:
                session.target = target
            return session

    def announce(self, program: bytes, play: int, by: broker_client.Likely | None = None) -> None:
        """A module of this program is going to be needed by the run's play of this number, and is likely to be run by that. An empty one: the play begins."""
        with self._lock:
            coming = self._to_come()
        coming.add(program, play, by)

    def _run_credentials(self) -> t.Any:
        """The lock is held."""
        from ansible_collections.sojourn.deploy.plugins.plugin_utils.credentials import RunCredentials

        if self._credentials is None:
            self._credentials = RunCredentials.make(self.run)
        return self._credentials

    def _to_come(self) -> t.Any:
        """The lock is held."""
        from ansible_collections.sojourn.deploy.plugins.plugin_utils.module_archive import Coming

        if self._coming is None:
            self._coming = Coming()
        return self._coming

    def _by_token(self, token: str) -> t.Any:
        with self._lock:
            return next((session for session in self._sessions.values() if session.token == token), None)

    # The end

    def follow_end(self) -> t.Iterator[dict[str, t.Any]]:
        """What happens until all targets are clean: ``event`` is 'waiting' (host, package), 'finished' and 'dropped' (a row of the ledger),

        'reconnecting' (host), 'removed' (host, removed, seconds), 'failed' (host, message).
        """
        events: queue.SimpleQueue[dict[str, t.Any] | None] = queue.SimpleQueue()
        with self._lock:
            self._waiting[threading.current_thread()] = events
        self.request_end()
        try:
            yield from iter(events.get, None)
            self._heard = True
        finally:  # also where who listens has gone
            with self._lock:
                del self._waiting[threading.current_thread()]

    def _tell(self, event: str, **fields: t.Any) -> None:
        log.info('%s %s', event, fields)
        with self._lock:
            for events in self._waiting.values():
                events.put({'event': event, **fields})

    def expect_end(self) -> None:
        """The run's last task has begun. Of a run with many targets most are not near their end then."""
        with self._lock:
            sessions = list(self._sessions.values())
        if len(sessions) <= MOST_EXPECTED:
            for session in sessions:
                with contextlib.suppress(RuntimeError):  # no more threads: then it is done at the end
                    session.expect_end()

    def installation_ended(self, key: str | None, end: t.Any, heard: bool) -> None:
        """An installation's process has ended; ``heard``: its caller is there, and will say what it makes of that, if it comes to it."""
        row = self.ledger.ended(key, end, final=not heard)
        if row is not None and not heard:
            self._tell('finished', **row.to_dict())

    def end(self) -> bool:
        """Cleans all targets at once; whether all went well."""
        cut_off = self.ledger.unfinished
        with self._lock:
            sessions = list(self._sessions.values())
        failed: list[str] = []

        def remove(session: t.Any) -> None:
            host = session.target.host
            begin = time.monotonic()
            try:
                result = session.end(lambda event, **fields: self._tell(event, host=host, **fields))
                if result['changed']:
                    self._tell('removed', host=host, removed=result['removed'], seconds=round(time.monotonic() - begin, 3))
            except SojournError as error:
                failed.append(str(error))
                log.error('%s', error)
                self._tell('failed', host=host, message=str(error))
            except Exception as error:
                failed.append(str(error))
                log.exception('%s: cleaning', host)
                self._tell('failed', host=host, message=f'{type(error).__name__}: {error}')

        threads = []
        for session in sessions:
            thread = threading.Thread(target=remove, args=(session,), name='cleaning')
            try:
                thread.start()
            except RuntimeError:  # there can't be so many: then one after the other
                remove(session)
            else:
                threads.append(thread)
        for thread in threads:
            thread.join()
        self._end_orphans()
        if cut_off:
            for row in self.ledger.cut_off():
                self._tell('dropped', **row.to_dict())
        with self._lock:
            waiting = dict(self._waiting)
        for events in waiting.values():
            events.put(None)
        for thread in waiting:
            thread.join(LAST_WORD_SECONDS)
        if cut_off and not self._heard:
            self._leave_word()
        return not failed

    def _end_orphans(self) -> None:
        """An earlier broker of this run may have died and left agents that no task asked for since."""
        from ansible_collections.sojourn.deploy.plugins.plugin_utils import session, session_file

        for file in session_file.abandoned_by(os.path.basename(self.folder)):
            try:
                session.end_orphan(file)
            except (SojournError, ValueError) as error:
                log.warning('the agent of run %s: %s; its lease ends it', file.record.run, error)

    def _leave_word(self) -> None:
        """Nobody has listened to the end: the next run tells."""
        try:
            leave(self.run, self.ledger.rows)
        except (OSError, SojournError) as error:
            log.warning('what became of the packages could not be written down: %s', error)


class Call:
    """One request of a client."""

    def __init__(self, broker: Broker, connection: socket.socket, target: Target, request: dict[str, t.Any]) -> None:
        self.broker = broker
        self.target = target
        self.arguments: dict[str, t.Any] = request.get('arguments') or {}
        self._connection = connection
        self._payload_length = int(request.get('payload') or 0)
        self._send_lock = threading.Lock()
        #: Whether a thread reads what the client sends.
        self.watched = False

    @property
    def session(self) -> t.Any:
        """The target's session."""
        return self.broker.session(self.target)

    def payload(self) -> bytes:
        """The bytes that came with the request."""
        data = io.BytesIO()  # of which getvalue() makes no copy
        while data.tell() < self._payload_length:
            frame = wire.receive_frame(self._connection)
            if frame is None:
                raise wire.WireError('the payload did not come to its end')
            data.write(frame[1])
        return data.getvalue()

    def event(self, header: dict[str, t.Any], data: bytes = b'') -> None:
        """Tells the client something before the result."""
        with self._send_lock:
            for chunk in wire.chunks(data) if data else (b'',):
                wire.send_frame(self._connection, header, chunk)

    def tell_step(self, name: str, seconds: float, detail: str, failed: bool) -> None:
        """See ``steps.Listener``. A client that is gone is no reason to give up the step that comes next."""
        with contextlib.suppress(OSError, wire.WireError):
            self.event({'event': 'step', 'name': name, 'seconds': round(seconds, 6), 'detail': detail, 'failed': failed})

    def watch(self, gone: t.Callable[[], None], write: t.Callable[[bytes, bool, bool], None] | None = None, cancel: t.Callable[[], None] | None = None) -> None:
        """From now on a thread reads what the client sends; calls ``gone`` when the client is no longer there, ``cancel`` before it where it said so."""
        def read() -> None:
            try:
                while True:
                    frame = wire.receive_frame(self._connection)
                    if frame is None:
                        break
                    if frame[0].get('cancel'):
                        if cancel is not None:
                            cancel()
                    elif write is not None and frame[0].get('write'):
                        write(bytes(frame[1]), bool(frame[0].get('close')), bool(frame[0].get('answer')))
            except (OSError, wire.WireError):
                pass
            except Exception:
                log.exception('reading from a client')
            gone()

        self.watched = True
        threading.Thread(target=read, name='client reader', daemon=True).start()


# What a client may call: the methods of broker_client.Agent.

def _deploy(call: Call) -> t.Any:
    return call.session.deploy(call.target)


def _present(call: Call) -> bool:
    session = call.broker.existing(call.target)
    return session is not None and session.live


def _info(call: Call) -> t.Any:
    return call.session.info()


def _remove(call: Call) -> t.Any:
    session = call.broker.existing(call.target)
    return session.remove(unless_used=bool(call.arguments.get('unless_used'))) if session is not None else None


def _cleanup(call: Call) -> t.Any:
    return call.session.cleanup(call.arguments.get('run'), bool(call.arguments.get('force')), bool(call.arguments.get('check')))


def _diagnose(call: Call) -> t.Any:
    from ansible_collections.sojourn.deploy.plugins.plugin_utils import diagnosis

    return diagnosis.diagnose(call.target, call.broker.run, call.broker.existing(call.target), sign_in=bool(call.arguments.get('sign_in')))


def _preflight(call: Call) -> t.Any:
    from ansible_collections.sojourn.deploy.plugins.plugin_utils import preflight

    arguments = call.arguments
    return preflight.look(
        call.target, call.broker.run, call.broker.existing(call.target), timeout=float(arguments['timeout']), sign_in=bool(arguments.get('sign_in')))


def _note(call: Call) -> str:
    return call.broker.ledger.note(str(call.target.host), call.arguments.pop('key', None), **call.arguments)


def _module(call: Call) -> None:
    by = call.arguments.get('by')
    call.broker.announce(call.payload(), int(call.arguments['play']), broker_client.Likely(str(by[0]), tuple(by[1])) if by else None)


def _expect_end(call: Call) -> None:
    call.broker.expect_end()


def _end(call: Call) -> None:
    for event in call.broker.follow_end():
        call.event(event)


def _executions(call: Call) -> t.Any:
    return call.session.call('ListExecutions') or []


def _query_packages(call: Call) -> t.Any:
    return call.session.call('QueryPackages', wait=120, Manager=call.arguments.get('manager'), Name=call.arguments.get('name')) or []


def _put_file(call: Call) -> t.Any:
    cancelled = threading.Event()
    call.watch(cancelled.set)
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 0.25 or done == total:
            last = now
            call.event({'event': 'progress', 'done': done, 'total': total})

    arguments = call.arguments
    return call.session.put_file(
        arguments['local_path'], arguments['remote_path'], mode=arguments.get('mode'), user=arguments.get('user'), checksum=arguments.get('checksum'),
        digests=bool(arguments.get('digests')), on_progress=progress if arguments.get('progress') else None, cancelled=cancelled)


def _get_file(call: Call) -> t.Any:
    cancelled = threading.Event()
    call.watch(cancelled.set)
    arguments = call.arguments
    return call.session.get_file(
        arguments['remote_path'], arguments['local_path'], user=arguments.get('user'), digests=bool(arguments.get('digests')), cancelled=cancelled)


def _stat(call: Call) -> t.Any:
    checksum = bool(call.arguments.get('checksum'))
    status = call.session.call('Stat', wait=600 if checksum else 0, Path=call.arguments['path'], Checksum=checksum or None, User=call.arguments.get('user'))
    value = status.get('checksum')
    status['checksum'] = (value.hex() if isinstance(value, bytes) else str(value).lower()) if value is not None else None
    return status


def _remove_path(call: Call) -> t.Any:
    return call.session.call(
        'Remove', wait=60, Path=call.arguments['path'], Recursive=call.arguments.get('recursive') or None, User=call.arguments.get('user'))


def _extract(call: Call) -> t.Any:
    return int(call.session.call('Extract', wait=3600, Path=call.arguments['path'], Folder=call.arguments['folder']))


def _execute(call: Call) -> t.Any:
    from ansible_collections.sojourn.deploy.plugins.plugin_utils.job import Job

    payload = call.payload()
    arguments = call.arguments
    key = arguments.get('key')

    job = Job(handle=arguments.get('handle'), finish=bool(arguments.get('finish')), package=arguments.get('package'),
              on_watch=lambda: call.watch(job.leave, job.write, job.cancel), on_start=lambda: tell({'event': 'started'}),
              on_end=lambda end, heard: call.broker.installation_ended(key, end, heard))
    if job.finish:
        job.watch()

    def tell(event: dict[str, t.Any], data: bytes = b'') -> None:
        try:
            call.event(event, data)
        except OSError:
            job.leave()  # and go on reading until the process has ended

    def emit(stream: str, data: bytes) -> None:
        tell({'event': 'output', 'stream': stream}, data)

    return call.session.execute(arguments, payload if arguments.get('has_input') else None, emit, job)


def _open_port(call: Call) -> t.Any:
    arguments = call.arguments
    answer = call.session.call(
        'OpenPort', wait=30, Port=arguments['port'], Protocol=arguments.get('protocol'), Source=arguments.get('source'), Family=arguments.get('family'),
        Keep=arguments.get('keep') or None)
    return {'changed': bool(answer['changed']), 'rules': answer.get('rule') or []}


def _close_port(call: Call) -> t.Any:
    arguments = call.arguments
    return {'changed': bool(call.session.call(
        'ClosePort', wait=30, Port=arguments['port'], Protocol=arguments.get('protocol'), Source=arguments.get('source'), Family=arguments.get('family')))}


def _list_ports(call: Call) -> t.Any:
    return call.session.call('ListPorts', wait=30) or []


HANDLERS: dict[str, t.Callable[[Call], t.Any]] = {
    'deploy': _deploy, 'present': _present, 'info': _info, 'remove': _remove, 'cleanup': _cleanup, 'query_packages': _query_packages,
    'put_file': _put_file, 'get_file': _get_file, 'stat': _stat, 'remove_path': _remove_path, 'extract': _extract, 'execute': _execute,
    'executions': _executions, 'diagnose': _diagnose, 'preflight': _preflight, 'note': _note, 'module': _module, 'expect_end': _expect_end, 'end': _end,
    'open_port': _open_port, 'close_port': _close_port, 'list_ports': _list_ports,
}


#: Calls whose callers do not wait.
UNANSWERED = frozenset(('expect_end',))


def _alive_names(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.startswith(ALIVE)]
    except OSError:
        return []


def _held(path: str) -> bool | None:
    """Whether somebody has locked a file; None where that cannot be told, as where there is none."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _has_broker(folder: str, besides: str = '') -> bool:
    """Whether a broker is at work there, besides the one whose file of this name there is."""
    return any(_held(os.path.join(folder, name)) for name in _alive_names(folder) if name != besides)


def _remove_folder(folder: str) -> None:
    names = ['socket', 'lock', 'broker.log', *_alive_names(folder)]
    for name in names:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(folder, name))
    for path in (folder, os.path.dirname(folder)):
        with contextlib.suppress(OSError):
            os.rmdir(path)  # the outer one stays while other runs have theirs in it


def sweep() -> None:
    """Removes the folders of brokers that were killed together with their runs."""
    base = broker_client.private_base()
    with contextlib.suppress(OSError):
        for name in os.listdir(base):
            folder = os.path.join(base, name)
            pid, unused_dash, start = name.partition('-')
            if not pid.isdigit() or broker_client.start_time(int(pid)) == start:
                continue  # a broker may be about to start for it
            # One that was killed while it started has nothing but the lock of who started it; one that failed has left its log to be read.
            # Who holds the lock is starting one, for a run that we may not see: another container's, with which we have the folder in common.
            starting = _held(os.path.join(folder, 'lock'))
            if not starting and not _has_broker(folder) and (_alive_names(folder) or starting is False):
                _remove_folder(folder)


def main(words: list[str]) -> int:
    """The broker's whole life. ``words`` are as broker_client gives them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--folder', required=True, help='private folder for the socket and the log')
    parser.add_argument('--owner', required=True, type=int, help='process id of the run')
    waiting = parser.add_mutually_exclusive_group(required=True)
    waiting.add_argument('--ready', type=int, help='descriptor to say on that it listens')
    waiting.add_argument('--lock', type=int, help='descriptor of the lock to hold until it listens')
    parser.add_argument('--load', help='way in whose libraries to load beforehand')
    options = parser.parse_args(words)
    if options.lock is not None:
        signal.alarm(int(broker_client.START_SECONDS))  # who waits for the lock cannot give it up
    debug = bool(os.environ.get('SOJOURN_DEBUG'))
    handler = _BoundedHandler()
    handler.setFormatter(logging.Formatter('%(asctime)s %(threadName)s %(name)s %(levelname)s %(message)s'))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger('sojourn').setLevel(logging.INFO)
    for name in ('paramiko', 'smbprotocol', 'pypsexec', 'zeep', 'spnego'):
        # What goes wrong there is raised too; below errors they write down messages, which may hold more than they should.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Every target takes a few descriptors; 1024, the usual limit, would end at some hundred targets.
    with contextlib.suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # The folder's name carries when the owner began: a process that got its number since is not the owner.
    owner = Owner(options.owner, os.path.basename(options.folder).partition('-')[2])
    broker = Broker(options.folder, owner)
    try:
        if owner.ended():
            raise SojournError('SD-902', step='starting the broker', detail='the run has ended', log=broker_client.log_path(options.folder))
        broker.listen()
        message: dict[str, t.Any] = {}
    except (SojournError, OSError) as error:
        problem = error if isinstance(error, SojournError) else SojournError(
            'SD-902', step='starting the broker', detail=error, log=broker_client.log_path(options.folder))
        message = {'error': problem.to_dict()}
    if message:
        _remove_folder(options.folder)
    signal.alarm(0)
    if options.ready is not None:
        with contextlib.suppress(OSError):
            os.write(options.ready, json.dumps(message).encode() + b'\n')
    os.close(options.lock if options.ready is None else options.ready)
    if message:
        return 1
    log.info('run %s, owner %d', broker.run, options.owner)
    try:
        if options.load:
            broker.load(options.load)
        broker.serve()
    except Exception:
        log.exception('listening to the workers broke off')
    finally:
        good = broker.end()  # whatever happened, the targets are cleaned
    if good and not debug and not _has_broker(options.folder, f'{ALIVE}{os.getpid()}'):
        _remove_folder(options.folder)
    else:
        for name in ('lock', f'{ALIVE}{os.getpid()}'):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(options.folder, name))
    log.info('end')
    return 0 if good else 1
