# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One target's session in the broker: the agent put there, its lease renewed, its operations, its end; neither the socket (broker.py) nor SOAP (channel.py)."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils import channel as channel_module
from ansible_collections.sojourn.deploy.plugins.plugin_utils.credentials import RunCredentials
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import AlreadyPlaced, Config, Found, WayIn

log = logging.getLogger('sojourn.session')

#: Most seconds that one long poll lasts.
LONG_POLL = 30.0
#: Seconds that Execute may keep its answer back for the process's end; a cancel comes through only after it.
FIRST_WAIT = 1.0
FIRST_WAIT_STREAMING = 0.2
#: Output asked for at a time.
OUTPUT_BYTES = 4 << 20


def make_way_in(target: Target, run: str) -> WayIn:
    """The way in for a target. The libraries behind it are imported here, at its first use."""
    if target.way_in == 'smb':
        from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in_smb import SmbWayIn

        return SmbWayIn(target, run)
    from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in_ssh import SshWayIn

    return SshWayIn(target, run)


class Job:
    """A process that runs for a caller, as far as somebody else than the caller's thread deals with it: to kill it, or to feed it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kill: t.Callable[[], None] | None = None
        self._write: t.Callable[[bytes, bool], None] | None = None
        self._early: list[tuple[bytes, bool]] = []
        #: Set once nobody waits for the result any more.
        self.cancelled = threading.Event()
        self.finished = False

    def started(self, kill: t.Callable[[], None], write: t.Callable[[bytes, bool], None]) -> None:
        """From now on it has a handle."""
        with self._lock:
            self._kill, self._write = kill, write
            early, self._early = self._early, []
        for data, close in early:
            write(data, close)
        if self.cancelled.is_set():
            kill()

    def cancel(self) -> None:
        """The caller is gone: kills the process's tree, now or as soon as there is one."""
        with self._lock:
            if self.finished:
                return
            self.cancelled.set()
            kill = self._kill
        if kill is not None:
            kill()

    def write(self, data: bytes, close: bool) -> None:
        """Bytes for its standard input."""
        with self._lock:
            if self._write is None:
                self._early.append((data, close))
                return
            write = self._write
        write(data, close)


class Session:
    """The agent of one run on one target. Thread-safe: operations run side by side, deploying and removing one at a time."""

    def __init__(self, target: Target, run: str, credentials: RunCredentials, token: str, find_other: t.Callable[[str], Session | None]) -> None:
        self.target = target
        self.run = run
        #: In the agent's folder; see SESSION_FILE.
        self.token = token
        self._credentials = credentials
        self._find_other = find_other
        self._lock = threading.RLock()
        self._channel: channel_module.Channel | None = None
        self._info: dict[str, t.Any] = {}
        self._seconds: dict[str, float] = {}
        self._lost = False
        self._ended = False
        #: The target's options with which the agent was deployed.
        self._proven: Target | None = None
        #: Another session that turned out to have its agent on the same target; everything goes there.
        self._other: Session | None = None
        # The keeper: renews the lease, forgets ended processes
        self._wake = threading.Condition()
        self._released: list[str] = []
        self._keeping = False

    # Deploying

    @property
    def live(self) -> bool:
        """Whether there is an agent, as far as is known without asking it."""
        other = self._other
        if other is not None:
            return other.live
        return self._channel is not None and not self._lost

    def deploy(self, target: Target | None = None) -> dict[str, t.Any]:
        """See ``Agent.deploy``. Many callers: one deploys, the others wait for it."""
        with self._lock:
            if target is not None:
                self.target = target  # the newest secrets
            if self._other is not None and self._other.live:
                return {**self._other.deploy(), 'changed': False}
            self._other = None
            if self.live:
                return {'changed': False, 'info': dict(self._info), 'seconds': dict(self._seconds)}
            if self._ended:
                raise SojournError('SD-503', host=self.target.host, step='deploying the agent', detail='the run has ended')
            if self._channel is not None:
                self._drop()
            way_in = make_way_in(self.target, self.run)
            try:
                self._place(way_in)
            finally:
                way_in.release()
            if self._other is not None:
                return {**self._other.deploy(), 'changed': False}
            threading.Thread(target=self._keep, name=f'keeper {self.target.host}', daemon=True).start()
            return {'changed': True, 'info': dict(self._info), 'seconds': dict(self._seconds)}

    def _place(self, way_in: WayIn) -> None:
        target = self.target
        begin = time.monotonic()
        laps: dict[str, float] = {}

        def lap(name: str) -> None:
            nonlocal begin
            now = time.monotonic()
            laps[name] = round(now - begin, 4)
            begin = now

        way_in.connect()
        lap('connect')
        try:
            try:
                way_in.place(self.token)
            except AlreadyPlaced as placed:
                if self._join(placed.session):
                    return
                way_in.wait_removed(0)
                way_in.place(self.token)
            lap('upload')
            ready = way_in.start(self._config(way_in))
            lap('start')
            ports = '-'.join(str(port) for port in dict.fromkeys(target.agent_ports))
            channel = channel_module.Channel(
                channel_module.Endpoint(
                    peer=t.cast(t.Any, way_in.peer).with_port(ready.port), fingerprint=ready.fingerprint, ports=ports, host=target.host,
                    connection_timeout=target.connection_timeout),
                self._credentials.context())
            try:
                info = channel.call('GetInfo')
            except BaseException:
                channel.close()
                raise
            lap('first_call')
        except AlreadyPlaced:
            raise SojournError('SD-406', host=target.host, step='placing the agent', detail=f'{way_in.name} is in the way') from None
        except BaseException as error:
            # Whatever went wrong: nothing stays. What cannot be taken back is said with the error.
            try:
                way_in.undo()
            except SojournError as undone:
                log.error('%s: after "%s": %s', target.host, error, undone)
            raise
        self._info, self._seconds, self._lost = info, laps, False
        self._channel, self._proven = channel, target
        log.info('%s: agent %s on port %d, seconds %s', target.host, way_in.name, ready.port, laps)

    def _config(self, way_in: WayIn) -> Config:
        target = self.target
        return Config(
            run=self.run, client_sha256=self._credentials.fingerprint,
            controller_addresses=[target.controller_address or way_in.controller_address or ''],
            ports={'first': target.agent_ports[0], 'last': target.agent_ports[1]}, lease_seconds=target.lease_seconds)

    def _join(self, token: str) -> bool:
        """Whether the agent that is on the target already belongs to a living session of another inventory name."""
        other = self._find_other(token)
        if other is None or other is self:
            return False
        with other._lock:  # it may be deploying
            if not other.live:
                return False
        self._other = other
        log.info('%s: the same target as %s', self.target.host, other.target.host)
        return True

    def _drop(self) -> None:
        """Forgets an agent that is gone."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        with self._wake:
            self._keeping = False
            self._released.clear()
            self._wake.notify_all()

    # The lease

    def _keep(self) -> None:
        """Thread: renews the lease four times in its length, and sends Release for ended processes in between."""
        channel = self._channel
        every = self.target.lease_seconds / 4
        with self._wake:
            self._keeping = True
        next_renewal = time.monotonic() + every
        while True:
            with self._wake:
                while self._keeping and self._channel is channel and not self._released and time.monotonic() < next_renewal:
                    self._wake.wait(next_renewal - time.monotonic())
                if not self._keeping or self._channel is not channel or channel is None:
                    return
                released, self._released = self._released, []
            try:
                for handle in released:
                    with contextlib.suppress(SojournError):
                        channel.call('Release', Handle=handle, patience=0)
                if time.monotonic() >= next_renewal:
                    next_renewal = time.monotonic() + every
                    channel.call('RenewLease', patience=self.target.lease_seconds)
            except SojournError as error:
                log.warning('%s: the lease could not be renewed: %s', self.target.host, error)
                if error.code in ('SD-503', 'SD-502'):
                    self._lost = self._channel is channel
                    return
            except Exception:  # a thread that ends here would end the lease
                log.exception('%s: keeper', self.target.host)

    # Operations

    def call(self, operation: str, **arguments: t.Any) -> t.Any:
        """One operation of the agent, which is deployed first where there is none."""
        if self._other is not None and self._other.live:
            return self._other.call(operation, **arguments)
        channel = self._channel
        if channel is None or self._lost:
            self.deploy()
            if self._other is not None:
                return self._other.call(operation, **arguments)
            channel = self._channel
        return self._watch(channel, lambda: t.cast(t.Any, channel).call(operation, **arguments))

    def _watch(self, channel: t.Any, action: t.Callable[[], t.Any]) -> t.Any:
        try:
            return action()
        except SojournError as error:
            if error.code == 'SD-503' and self._channel is channel:
                self._lost = True  # the next call deploys anew
            error.at(host=self.target.host)
            raise

    def _streaming(self) -> tuple[Session, channel_module.Channel]:
        """The session and channel that transfers go through."""
        self.deploy()
        session = self._other or self
        channel = session._channel
        if channel is None:
            raise SojournError('SD-503', host=self.target.host, step='talking to the agent', detail='it was removed meanwhile')
        return session, channel

    def info(self) -> dict[str, t.Any]:
        """GetInfo."""
        return self.call('GetInfo')

    def absolute(self, path: str) -> str:
        """A path on the target; a relative one is in the agent's folder."""
        folder = str((self._other or self)._info.get('folder', ''))
        if (self._other or self)._info.get('operating_system') == 'windows':
            if path[1:3] in (':\\', ':/') or path.startswith(('\\', '/')):
                return path
            return f'{folder}\\{path}'.replace('/', '\\')
        return path if path.startswith('/') else f'{folder}/{path}'

    def put_file(self, local_path: str, remote_path: str, *, mode: str | None, user: str | None, checksum: str | None,
                 on_progress: t.Callable[[int, int], None] | None, cancelled: threading.Event) -> dict[str, t.Any]:
        """See ``Agent.put_file``."""
        begin = time.monotonic()
        session, channel = self._streaming()

        def progress(done: int, total: int) -> None:
            if cancelled.is_set():
                raise Cancelled
            if on_progress is not None:
                on_progress(done, total)

        result = session._watch(channel, lambda: channel.put_file(
            local_path, remote_path, mode=mode, user=user, checksum=checksum, on_progress=progress, patience=self.target.lease_seconds))
        return {'path': session.absolute(remote_path), **result, 'seconds': round(time.monotonic() - begin, 4)}

    def get_file(self, remote_path: str, local_path: str, *, user: str | None) -> dict[str, t.Any]:
        """See ``Agent.get_file``."""
        begin = time.monotonic()
        session, channel = self._streaming()
        result = session._watch(channel, lambda: channel.get_file(remote_path, local_path, user=user, patience=self.target.lease_seconds))
        return {'path': local_path, **result, 'seconds': round(time.monotonic() - begin, 4)}

    def execute(self, arguments: dict[str, t.Any], data: bytes | None, emit: t.Callable[[str, bytes], None], job: Job) -> dict[str, t.Any]:
        """See ``Agent.execute``; output goes to ``emit`` as it comes."""
        session, channel = self._streaming()
        return session._watch(channel, lambda: session._execute(channel, arguments, data, emit, job))

    def _execute(self, channel: channel_module.Channel, arguments: dict[str, t.Any], data: bytes | None, emit: t.Callable[[str, bytes], None],
                 job: Job) -> dict[str, t.Any]:
        open_input = bool(arguments.get('keep_input_open'))
        first_wait = 0.0 if open_input else FIRST_WAIT_STREAMING if arguments.get('streaming') else FIRST_WAIT
        environment = arguments.get('environment')
        execution = channel.call(
            'Execute', wait=first_wait, Arguments=arguments.get('arguments'), CommandLine=arguments.get('command_line'), Directory=arguments.get('directory'),
            Environment=[{'Name': name, 'Value': value} for name, value in environment.items()] if environment else None,
            User=arguments.get('user'), Input=data, KeepInputOpen=open_input or None, TimeoutSeconds=arguments.get('timeout'),
            WaitSeconds=first_wait, SafeToKill=arguments.get('safe_to_kill') or None)
        handle = execution['handle']
        offsets = {'stdout': 0, 'stderr': 0}
        try:
            if execution['running']:
                job.started(lambda: self._kill(channel, handle), lambda piece, close: self._write(channel, handle, piece, close))
            while True:
                for stream, field in (('stdout', 'standard_output'), ('stderr', 'standard_error')):
                    # From a lost answer's repetition, or an agent that sends from further back, only what is new.
                    piece = bytes(execution[field] or b'')[offsets[stream] - int(execution[f'{field}_offset']):]
                    if piece:
                        offsets[stream] += len(piece)
                        if not job.cancelled.is_set():
                            emit(stream, piece)
                if not execution['running']:
                    break
                execution = channel.call(
                    'ReadOutput', wait=LONG_POLL, patience=self.target.lease_seconds, Handle=handle, StandardOutputOffset=offsets['stdout'],
                    StandardErrorOffset=offsets['stderr'], WaitSeconds=LONG_POLL, MaximumBytes=OUTPUT_BYTES)
        finally:
            job.finished = True
            with self._wake:
                self._released.append(handle)
                self._wake.notify_all()
        code = execution['exit_code']
        return {'exit_code': None if code is None else int(code), 'timed_out': bool(execution['timed_out']), 'seconds': float(execution['seconds'])}

    def _kill(self, channel: channel_module.Channel, handle: str) -> None:
        try:
            channel.call('Signal', Handle=handle, Name='kill', Tree=True, patience=self.target.lease_seconds)
        except SojournError as error:
            log.warning('%s: a process could not be killed: %s', self.target.host, error)

    def _write(self, channel: channel_module.Channel, handle: str, data: bytes, close: bool) -> None:
        try:
            channel.call('WriteInput', Handle=handle, Data=data or None, Close=close or None)
        except SojournError as error:
            # A process that ended without reading is no error; its exit code tells.
            log.info('%s: input was not taken: %s', self.target.host, error)

    # The end

    def remove(self, *, for_good: bool = False) -> dict[str, t.Any]:
        """See ``Agent.remove``. ``for_good``: the run has ended, nothing is deployed any more."""
        with self._lock:
            self._ended = self._ended or for_good
            if self._other is not None:
                other, self._other = self._other, None
                return other.remove()
            if self._channel is None:
                return {'changed': False, 'removed': []}
            reached: list[WayIn] = []
            try:
                return self._remove(reached)
            finally:
                for way_in in reached:
                    way_in.release()
                self._drop()

    def _remove(self, reached: list[WayIn]) -> dict[str, t.Any]:
        channel = t.cast(channel_module.Channel, self._channel)
        failure: list[SojournError] = []

        def connect() -> None:
            # What got the agent in gets in again; unless the run itself has changed the password since.
            for target in dict.fromkeys((self._proven or self.target, self.target)):
                way_in = make_way_in(target, self.run)
                reached.append(way_in)
                try:
                    way_in.connect()
                    failure.clear()
                    return
                except SojournError as error:
                    failure.append(error)
                    if not error.code.startswith('SD-3'):
                        return
                except Exception as error:
                    log.exception('%s: connecting to see that nothing is left', self.target.host)
                    failure.append(SojournError('SD-903', host=self.target.host, step='connecting', detail=repr(error)))
                    return

        # While the agent packs up, the way in connects again to look that nothing is left.
        connecting = threading.Thread(target=connect, name=f'connect {self.target.host}', daemon=True)
        connecting.start()
        patience = None
        try:
            if int(channel.call('Shutdown')):
                self._wait_gone(channel)
        except SojournError as error:
            if error.code != 'SD-503':
                log.warning('%s: %s', self.target.host, error)
            patience = 2.0  # it is gone already, or does not listen: not much to wait for
        connecting.join()
        if failure:
            raise failure[0]
        way_in = reached[-1]
        # An agent that was killed has left its folder, and its rules.
        killed = patience is not None and any(item.run == self.run for item in way_in.find())
        removed = way_in.wait_removed(patience) if patience is not None else way_in.wait_removed()
        if self._info.get('firewall_rule'):
            if killed:
                self._take_back_rules(way_in.target)
            removed.append(f"firewall rule {self._info['firewall_rule']}")
        log.info('%s: removed', self.target.host)
        return {'changed': True, 'removed': removed}

    def _take_back_rules(self, target: Target) -> None:
        """Of an agent that could not do it itself: only an agent can, and one that begins takes back what its run has left."""
        way_in = make_way_in(target, self.run)
        try:
            way_in.connect()
            try:
                way_in.place(self.token)
                way_in.start(self._config(way_in))
            finally:
                way_in.undo()
        except (SojournError, AlreadyPlaced) as error:
            detail = error.sentence if isinstance(error, SojournError) else 'another agent is there'
            raise SojournError(
                'SD-801', host=self.target.host, step='removing the agent', what=f"The firewall rule {self._info['firewall_rule']}", detail=detail) from None
        finally:
            way_in.release()

    def _wait_gone(self, channel: channel_module.Channel) -> None:
        """Waits while the agent waits for processes that must not be interrupted, however long they take."""
        pause = threading.Event()
        while True:
            try:
                channel.call('GetInfo', patience=2)
            except SojournError:
                return
            pause.wait(0.25)

    # Leftovers of other runs

    def cleanup(self, run: str | None, check: bool) -> dict[str, t.Any]:
        """See ``Agent.cleanup``."""
        with self._lock:
            changed = False
            if self.live:
                if not check:
                    self.remove()
                changed = True
            found = self._find(run, check)
            # Over SMB firewall rules do not show: only an agent on the target finds one that is all that is left.
            if not found and self.target.way_in != 'smb':
                return {'changed': changed, 'leftovers': []}
            would = [_leftover(item, 'live' if item.live and not run else 'removed', None) for item in found]
            leftovers = would if check and found else self._remove_found(found, run, check)
            return {'changed': changed or any(item['state'] == 'removed' for item in leftovers), 'leftovers': leftovers}

    def _find(self, run: str | None, check: bool) -> list[Found]:
        way_in = make_way_in(self.target, self.run)
        try:
            way_in.connect()
            found = way_in.find()
            own = [item for item in found if item.run == self.run]
            if own and not check and not self.live:
                way_in.wait_removed(0)  # of an agent of ours that died
            return [item for item in found if item.run != self.run and (run is None or item.run == run)]
        finally:
            way_in.release()

    def _remove_found(self, found: list[Found], run: str | None, check: bool) -> list[dict[str, t.Any]]:
        """By an agent, which sees more than the way in does; with ``check`` it only tells."""
        if found and run is None and all(item.live for item in found):
            return [_leftover(item, 'live', None) for item in found]
        there = self.live
        try:
            self.deploy()
            try:
                answer = self.call('RemoveLeftovers', Run=run, DryRun=check or None, wait=120)
                return [{name: item.get(name) for name in ('kind', 'name', 'run', 'state', 'detail')} for item in answer or []]
            finally:
                if not there:
                    self.remove()
        except SojournError as error:
            log.warning('%s: no agent for the clean-up, the way in does what it can: %s', self.target.host, error)
            return self._remove_by_way_in(found, run, error)

    def _remove_by_way_in(self, found: list[Found], run: str | None, cause: SojournError) -> list[dict[str, t.Any]]:
        leftovers = []
        way_in = make_way_in(self.target, self.run)
        try:
            way_in.connect()
            for item in found:
                if item.live and run is None:
                    leftovers.append(_leftover(item, 'live', None))
                    continue
                try:
                    way_in.remove_found(item)
                    leftovers.append(_leftover(item, 'removed', None))
                except SojournError as error:
                    leftovers.append(_leftover(item, 'failed', f'{error.sentence} No agent could be deployed: {cause.sentence}'))
        finally:
            way_in.release()
        return leftovers


class Cancelled(Exception):
    """The caller is gone; nobody waits for the result."""


def _leftover(found: Found, state: str, detail: str | None) -> dict[str, t.Any]:
    return {'kind': found.kind, 'name': found.name, 'run': found.run, 'state': state, 'detail': detail}
