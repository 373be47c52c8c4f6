# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One target's session in the broker: the agent put there, its lease renewed, its operations, its end; neither the socket (broker.py) nor SOAP (channel.py)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import getpass
import logging
import threading
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils import leftovers, libraries, module_archive, session_file, steps
from ansible_collections.sojourn.deploy.plugins.plugin_utils.credentials import RunCredentials
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.job import Job
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import LOGIN_USER, Target
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_back import WayBack
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import REMOVE_SECONDS, AlreadyPlaced, Config, Ready, WayIn, name_of

if t.TYPE_CHECKING:
    from ansible_collections.sojourn.deploy.plugins.plugin_utils import channel as channel_module
    from ansible_collections.sojourn.deploy.plugins.plugin_utils import tunnel as tunnel_module
else:
    # zeep and urllib3 take as long to load as to sign in takes: who is about to sign in does not wait for them; see load_channel.
    channel_module = libraries.Later('ansible_collections.sojourn.deploy.plugins.plugin_utils.channel')
    tunnel_module = libraries.Later('ansible_collections.sojourn.deploy.plugins.plugin_utils.tunnel')

log = logging.getLogger('sojourn.session')

#: Most seconds that one long poll lasts.
LONG_POLL = 30.0
#: Seconds that Execute may keep its answer back for the process's end; a cancel comes through only after it.
FIRST_WAIT = 1.0
FIRST_WAIT_STREAMING = 0.2
#: Output asked for at a time.
OUTPUT_BYTES = 4 << 20
#: Bytes of standard output, and of standard error, that a task may get: they are held in memory, and a target could send them without end.
MAXIMUM_OUTPUT = 1 << 30
#: Seconds for which a lost agent is called again before the way in looks whether it is there at all.
CALL_AGAIN_SECONDS = 10.0
#: Seconds without a word from the agent after which it is asked whether it is there, before anything is asked of it.
ASK_AFTER_SECONDS = 5.0
#: How often an agent is put there anew for a task, where others take it away again before the task comes to it.
AGAIN_WHERE_REMOVED = 3
#: Seconds after which an agent that is on its way out, and cannot be connected to, may be gone.
GONE_SECONDS = 1.0
#: Seconds between two tries to reach a target that was there before: the first, and the longest.
RECONNECT_PAUSES = (0.5, 5.0)
#: Seconds within which the guard of an agent that was killed has done its work, if it waits for no installation.
GUARD_SECONDS = 10.0
#: Seconds beyond the lease for which a run's end waits for a target that is not there.
RECONNECT_MORE_SECONDS = 20.0
#: The agent does not answer, or another one does: it has ended, or has been started anew with the target.
LOST = ('SD-502', 'SD-503')
#: Nobody is there just now; a sign-in that is refused is another matter, and trying it again locks accounts.
NOT_THERE = ('SD-202', 'SD-203', 'SD-204', 'SD-205', 'SD-501', 'SD-507')

#: Seconds to connect to the agent's port after which the transport auto gives it up: a packet may be lost twice.
AUTO_SECONDS = 4.0
#: With the transport auto, what a tunnel helps against: the port is not let through, none is free, or the firewall takes no rule.
NOT_DIRECT = ('SD-501', 'SD-601', 'SD-602', 'SD-603')

#: An ended process that keeps more than so many bytes of output is released by itself, and so are processes of which there are more than this:
#: what one Execute may release.
RELEASE_AT_ONCE_BYTES = 64 << 10
RELEASE_WITH_NEXT = 64

#: Told what happens while a session ends: ('waiting', package=...).
Report = t.Callable[..., None]


def load_way_in(name: str) -> type[WayIn]:
    """A way in by its name. The libraries behind it are imported here, at its first use."""
    if name == 'smb':
        from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in_smb import SmbWayIn

        return SmbWayIn
    if name == 'winrm':
        from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in_winrm import WinrmWayIn

        return WinrmWayIn
    from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in_ssh import SshWayIn

    return SshWayIn


def make_way_in(target: Target, run: str) -> WayIn:
    """The way in for a target."""
    return load_way_in(target.way_in)(target, run)


@functools.cache
def load_channel() -> None:
    """Has what speaks with agents, and the WSDL, loaded beside what its caller does; once a process."""
    def load() -> None:
        with contextlib.suppress(SojournError):  # who needs it will say so
            channel_module.contract()

    threading.Thread(target=load, name='loading', daemon=True).start()


class Cancelled(Exception):
    """The caller is gone; nobody waits for the result."""


class _TooLate(Exception):
    """The run ended before it began. No error of the agent's: it is there, and has to be ended."""


class Session:
    """The agent of one run on one target. Thread-safe: operations run side by side, deploying and removing one at a time."""

    def __init__(self, target: Target, run: str, credentials: RunCredentials, token: str, find_other: t.Callable[[str], Session | None],
                 owner: str = '', coming: module_archive.Coming | None = None) -> None:
        self.target = target
        #: The run whose name the agent carries: this one's, or that of a run whose session was taken over.
        self.run = run
        #: In the agent's folder; see SESSION_FILE.
        self.token = token
        self._owner = owner
        #: What is sent to the agent before tasks come with it, once it has turned out to run modules.
        self._coming = coming or module_archive.Coming()
        self._credentials = credentials
        self._find_other = find_other
        self._lock = threading.RLock()
        self._channel: channel_module.Channel | None = None
        #: What the way in found the user to have on the target; see WayIn.rights.
        self._rights: t.Any = None
        #: What the channel goes through, where it does.
        self._tunnel: tunnel_module.Tunnel | None = None
        self._info: dict[str, t.Any] = {}
        self._seconds: dict[str, float] = {}
        #: See WayIn.environment.
        self._environment: dict[str, str] = {}
        self._login_user: str | None = self.target.user
        self._ready: Ready | None = None
        self._lost = False
        self._lost_since = 0.0
        self._ended = threading.Event()
        #: Whether the agent was an earlier broker's.
        self._taken_over = False
        self._file: session_file.SessionFile | None = None
        #: The target's options with which the agent was deployed.
        self._proven: Target | None = None
        #: Another session that turned out to have its agent on the same target; everything goes there.
        self._other: Session | None = None
        # The keeper: renews the lease, forgets ended processes
        self._wake = threading.Condition()
        self._released: list[str] = []
        self._release_now = False
        self._keeping = False
        self._keeper: threading.Thread | None = None
        self._kept: channel_module.Channel | None = None
        #: Whether the way in has refused us since: then it is not asked again and again, which would lock the account.
        self._refused = False
        #: Whether another run may take the session over, with what its processes have left to read.
        self._let_go = False
        #: Whether an agent is there that does not answer.
        self._living = False
        #: Whether there may be something on the target that could not be taken away, since the target was not there.
        self._debris = False
        #: Whether a firewall rule of an agent that was never established is among that.
        self._rule_left = False
        #: What the last removal came to.
        self._removal: dict[str, t.Any] = {}
        #: What was begun for that beforehand.
        self._way_back: WayBack | None = None
        #: Processes that are under way.
        self._jobs: set[Job] = set()
        #: Files that are on their way.
        self._transfers = 0

    # Deploying

    @property
    def live(self) -> bool:
        """Whether there is an agent, as far as is known without asking it."""
        other = self._other
        if other is not None:
            return other.live
        return self._channel is not None and not self._lost

    @property
    def known(self) -> dict[str, t.Any]:
        """What the agent said of itself when it was deployed."""
        return dict((self._other or self)._info)

    def deploy(self, target: Target | None = None, *, take_over: bool = True, gone: threading.Event | None = None) -> dict[str, t.Any]:
        """See ``Agent.deploy``. Many callers: one deploys, the others wait for it. ``take_over``: whether an earlier run's agent will do.

        Raises Cancelled where the caller is ``gone``: nobody would take an agent off again that is put there for nobody.
        """
        with self._lock:
            if gone is not None and gone.is_set():
                raise Cancelled
            if target is not None:
                self.target = target  # the newest secrets
            if self._other is not None and self._other.live:
                return {**self._other.deploy(), 'changed': False}
            self._other = None
            if self.live or self._lost and self._revive():
                return self._deployed(changed=False)
            if self._ended.is_set():
                raise self._error('SD-503', 'deploying the agent', detail='the run has ended')
            if self._channel is not None:
                self._deploy_again(gone)
            elif not (take_over and self._take_over()):
                self._deploy_once()
            if self._other is not None:
                return {**self._other.deploy(), 'changed': False}
            self._start_keeper()
            return self._deployed(changed=True)

    def _deployed(self, *, changed: bool) -> dict[str, t.Any]:
        return {'changed': changed, 'info': dict(self._info), 'seconds': dict(self._seconds), 'taken_over': self._taken_over}

    def _error(self, code: str, step: str, **fields: t.Any) -> SojournError:
        return SojournError(code, host=self.target.host, step=step, **fields)

    def _deploy_once(self) -> None:
        way_in = make_way_in(self.target, self.run)
        kept = False
        try:
            kept = self._place(way_in)
        finally:
            if not kept:
                way_in.release()

    def _deploy_again(self, gone: threading.Event | None) -> None:
        """After the agent was lost: the target may be restarting, so it is waited for."""
        deadline = self._lost_since + self.target.reconnect_timeout
        known = self._info.get('boot_id')
        pause, longest = RECONNECT_PAUSES
        while True:
            if gone is not None and gone.is_set():
                raise Cancelled  # who waits beside goes on
            try:
                if self._revive():
                    return
                self._deploy_once()
                break
            except SojournError as error:
                # A system that has just started refuses what it grants a moment later, but a sign-in is not tried again.
                if error.code.startswith('SD-30') and error.code != 'SD-306' or time.monotonic() + pause > deadline or self._ended.wait(pause):
                    raise
                pause = min(2 * pause, longest)
        if self._info.get('boot_id') != known:
            log.info('%s: the target has restarted', self.target.host)

    def _place(self, way_in: WayIn) -> bool:
        """Connects, and puts the agent there; whether the way in is the tunnel's from now on."""
        target = self.target
        begin = time.monotonic()
        laps: dict[str, float] = {}

        def lap(name: str) -> None:
            nonlocal begin
            now = time.monotonic()
            laps[name] = round(now - begin, 4)
            begin = now

        way_in.connect()
        load_channel()  # not before: what is loaded takes turns with what signs in
        if self._ended.is_set():  # while this target kept us waiting
            raise self._error('SD-503', 'deploying the agent', detail='the run has ended')
        lap('connect')
        record = session_file.Record(session_file.target_hash(target), self.run, self.token, self._owner, self._credentials.pem.decode('ascii'))
        file = session_file.keep(record)
        channel: channel_module.Channel | None = None
        tunnel: tunnel_module.Tunnel | None = None
        transports = self._transports(way_in)
        try:
            ready = self._there_already(way_in)
            self._environment, self._login_user = way_in.environment, way_in.login_user
            how = 'put there' if ready is None else 'there again'
            if self._other is not None:
                if file is not None:
                    file.remove()
                return False
            lap('upload')
            while True:
                transport = transports.pop(0)
                try:
                    if ready is None:
                        ready = way_in.start(self._config(way_in, transport))
                    lap('start')
                    peer = way_in.agent_peer().with_port(ready.port)
                    # Who has another way left is not patient with this one.
                    hurry = AUTO_SECONDS if transports and not ready.tunnel else None
                    if ready.tunnel:
                        tunnel = self._make_tunnel(ready.tunnel, ready.port, self.run)
                        tunnel.take(way_in)
                    channel = self._open_channel(peer, ready.fingerprint, min(hurry or target.connection_timeout, target.connection_timeout), tunnel=tunnel)
                    with steps.step('first call') as step:
                        info = channel.call('GetInfo', **({'patience': 0} if hurry else {}))
                        step.detail = f"{channel.endpoint.where}, {info.get('tls_version', '')}"
                    lap('first_call')
                    break
                except SojournError as error:
                    if not transports or error.code not in NOT_DIRECT or how == 'there again':  # that one is not ours to take back
                        raise
                    self._give_up_direct(way_in, channel, error)
                    channel = ready = None
                    how = 'put there again, for the tunnel'
        except BaseException as error:
            if channel is not None:
                channel.close()
            if tunnel is not None:
                tunnel.give_back()
            # Whatever went wrong: nothing stays. What cannot be taken back is said with the error.
            try:
                way_in.undo()
                self._put_back(file)
            except Exception as undone:
                if isinstance(undone, SojournError):
                    log.error('%s: after "%s": %s', target.host, error, undone)
                    self._rule_left = self._rule_left or self._is_rule(undone)
                else:
                    log.exception('%s: after "%s"', target.host, error)
                self._debris = True
                if self._file is not None and self._file.record.peer is not None:
                    self._put_back(file)
                else:
                    if self._file is not None:
                        self._file.forget()
                    self._file = file  # until the debris is cleared, or an agent is there whose file takes its place
                threading.Thread(target=self._clear_debris_soon, name=f'clearing {target.host}', daemon=True).start()
            if isinstance(error, AlreadyPlaced):
                raise self._error('SD-406', 'placing the agent', detail=f'{way_in.name} is in the way') from None
            raise
        if file is not None:
            with contextlib.suppress(OSError, SojournError):  # as it is it names the run, if not where its agent is
                file = file.rewrite(peer=peer, fingerprint=ready.fingerprint, tunnel=ready.tunnel, environment=self._environment, user=self._login_user)
        self._established(channel, info, ready, file, tunnel, way_in.rights())
        self._seconds = laps
        log.info('%s: agent %s %s, %s, seconds %s', target.host, way_in.name, how, channel.endpoint.where, laps)
        return tunnel is not None

    def _transports(self, way_in: WayIn) -> list[str]:
        """In the order to try them. Where one gets to the target over another host, its ports are out of reach, whatever the option says."""
        if way_in.led:
            return ['tunnel']
        if self.target.transport == 'auto':
            return ['direct', 'tunnel'] if way_in.tunnels else ['direct']
        return [self.target.transport]

    def _give_up_direct(self, way_in: WayIn, channel: channel_module.Channel | None, error: SojournError) -> None:
        """Transport auto: takes back the agent that is of no use, its port and its rule with it, and places it again. Raises SojournError."""
        log.info('%s: not directly, so by tunnel: %s', self.target.host, error)
        if channel is not None:
            channel.close()
        with steps.step(steps.NOT_DIRECTLY) as step:
            step.detail = f'{error.sentence} ({error.code}); by tunnel, then'
            way_in.undo()
        way_in.place(self.token)

    def _make_tunnel(self, place: str, port: int, run: str) -> tunnel_module.Tunnel:
        def targets() -> list[Target]:
            return [target for target in (self._proven, self.target) if target is not None]

        return tunnel_module.Tunnel(place, port, lambda target: make_way_in(target, run), targets)

    def _put_back(self, file: session_file.SessionFile | None) -> None:
        """After a deployment that failed: the file is gone, or again that of the agent which was lost, and may live."""
        before = self._file
        if before is not None and before.record.peer is not None:
            before.forget()
            self._file = session_file.keep(before.record)
            if file is not None:
                file.forget()
        elif file is not None:
            file.remove()

    def _there_already(self, way_in: WayIn) -> Ready | None:
        """Places the agent; where this run's own is there and has been started anew with the target, tells how to reach it."""
        try:
            way_in.place(self.token)
        except AlreadyPlaced as placed:
            if placed.session != self.token and self._join(placed.session):
                return None
            ready = way_in.find_restarted(self._ready) if placed.session == self.token and self._ready is not None else None
            if ready is not None:
                return ready
            self._spare_living(way_in)
            way_in.wait_removed(0)
            way_in.place(self.token)
        return None

    def _spare_living(self, way_in: WayIn, seconds: float = 0.0) -> None:
        """Raises where an agent of this session, or its guard, is there and does not answer, and does not go within so many seconds.

        It may be waiting for an installation, which must not be cut short, and ends by itself: when its lease is over, and that has finished.
        """
        pause = threading.Event()
        deadline = time.monotonic() + seconds
        while any(item.run == self.run and item.live for item in way_in.find()):
            if time.monotonic() > deadline:
                self._living = True
                raise self._error('SD-801', 'removing the agent', what='The agent', detail='it does not answer, and ends itself when its lease is over')
            pause.wait(0.25)
        self._living = False

    def _open_channel(self, peer: t.Any, fingerprint: str, connection_timeout: float | None = None,
                      tunnel: tunnel_module.Tunnel | None = None) -> channel_module.Channel:
        target = self.target
        ports = '-'.join(str(port) for port in dict.fromkeys(target.agent_ports))
        return channel_module.Channel(
            channel_module.Endpoint(
                peer=peer, fingerprint=fingerprint, ports=ports, host=target.host, connection_timeout=connection_timeout or target.connection_timeout,
                tunnel=tunnel),
            self._credentials.context())

    def _established(self, channel: channel_module.Channel, info: dict[str, t.Any], ready: Ready | None, file: session_file.SessionFile | None,
                     tunnel: tunnel_module.Tunnel | None = None, rights: t.Any = None) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._tunnel is not None:
            self._tunnel.close()
        self._tunnel = tunnel
        if self._file is not None and self._file is not file:
            self._file.forget()
        self._info, self._lost, self._ready, self._file = info, False, ready, file
        self._debris = self._rule_left = False
        self._channel, self._proven, self._rights = channel, self.target, rights

    def _config(self, way_in: WayIn, transport: str) -> Config:
        target = self.target
        # A tunnel's other end goes by the family of the way in's own connection.
        given = target.controller_address if transport == 'direct' else None
        return Config(
            run=self.run, client_sha256=self._credentials.fingerprint,
            controller_addresses=[given or way_in.controller_address or ''],
            ports={'first': target.agent_ports[0], 'last': target.agent_ports[1]}, lease_seconds=target.lease_seconds,
            transport=transport)

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

    # Sessions of brokers that died

    def _take_over(self) -> bool:
        """Whether an agent of this user's is there still whose broker has died; its session is this one's then."""
        dead: list[session_file.SessionFile] = []
        try:
            for file in session_file.abandoned(self.target):
                dead.append(file)
                if self._take_over_from(file) or self._take_over_living(file):
                    dead.remove(file)
                    log.info('%s: took over the session of run %s', self.target.host, self.run)
                    break
            else:
                if not dead:
                    return False
                self._deploy_once()
            if self._other is None:
                self._remove_dead(dead)
        finally:
            for file in dead:
                file.forget()  # those that are still held: the next deployment sees to them
        return True

    def _take_over_living(self, file: session_file.SessionFile) -> bool:
        """Whether an agent that is on the target, and did not answer at first, does so now; False once it has ended.

        While it, or the guard of one that was killed, is there, it may be installing: nothing must be begun beside it. Raises SojournError.
        """
        record = file.record
        deadline = time.monotonic() + self.target.reconnect_timeout
        pause, longest = RECONNECT_PAUSES
        while self._lives(record.run):
            if time.monotonic() > deadline:
                raise self._error('SD-409', 'taking over the agent', run=record.run)
            if self._ended.wait(pause):
                raise self._error('SD-503', 'taking over the agent', detail='the run has ended')
            if self._take_over_from(file):
                return True
            pause = min(2 * pause, longest)
        return False

    def _take_over_from(self, file: session_file.SessionFile) -> bool:
        record = file.record
        if record.peer is None or record.fingerprint is None:
            return False
        mine = self._credentials
        try:
            self._credentials = RunCredentials.of(record.credentials)
            port = int(record.peer.sockaddr[1])
            tunnel = self._make_tunnel(record.tunnel, port, record.run) if record.tunnel else None
            # What leads through a tunnel has to sign in first.
            channel = self._open_channel(record.peer, record.fingerprint, min(3.0, self.target.connection_timeout) if tunnel is None else None, tunnel)
            try:
                channel.call('RenewLease', Seconds=self.target.lease_seconds, patience=1)
                info = channel.call('GetInfo')
            except BaseException:
                channel.close()
                if tunnel is not None:
                    tunnel.close()
                raise
        except (SojournError, ValueError) as error:
            log.info('%s: the agent of run %s does not answer: %s', self.target.host, record.run, error)
            self._credentials = mine
            if isinstance(error, SojournError) and error.code.startswith('SD-3'):
                raise  # the tunnel's sign-in: another try would be one more towards a lock-out
            return False
        self.run, self.token, self._environment, self._login_user = record.run, record.token, record.environment, record.user or self.target.user
        with contextlib.suppress(OSError, SojournError):
            file = file.rewrite(owner=self._owner)
        self._taken_over = True
        # By this it is known again if it starts anew with the target.
        ready = Ready(record.run, int(info.get('process_id') or 0), port, record.fingerprint, '', str(info.get('boot_id') or ''), record.tunnel)
        self._established(channel, info, ready, file, tunnel)
        return True

    def _remove_dead(self, files: list[session_file.SessionFile]) -> None:
        """What those sessions left on the target goes now: the agent that is there sees to it. Raises SojournError as _take_over_living does."""
        for file in files:
            try:
                answer = self._remove_leftovers(file.record)
            except SojournError as error:
                if error.code == 'SD-409':
                    if not self._taken_over:  # one that was may have a result that waits
                        with contextlib.suppress(SojournError):
                            self.remove()
                    raise
                log.warning('%s: what run %s left: %s', self.target.host, file.record.run, error)
                file.forget()
                continue
            for item in answer:
                log.info('%s: %s %s of run %s: %s', self.target.host, item.get('kind'), item.get('name'), file.record.run, item.get('state'))
            if any(item.get('state') != 'removed' for item in answer):
                file.forget()  # it lives, though it did not answer: its lease will end it
            else:
                file.remove()

    def _remove_leftovers(self, record: session_file.Record) -> list[dict[str, t.Any]]:
        """Of an earlier run. A guard of its that waits for an installation is waited for; on Windows the way in does not show it."""
        deadline = time.monotonic() + self.target.reconnect_timeout
        pause, longest = RECONNECT_PAUSES
        while True:
            answer = t.cast(t.Any, self._channel).call('RemoveLeftovers', Run=record.run, wait=120) or []
            if not any(item.get('state') == 'live' for item in answer):
                return answer
            if time.monotonic() > deadline:
                raise self._error('SD-409', 'taking over the agent', run=record.run)
            if self._ended.wait(pause):
                raise self._error('SD-503', 'taking over the agent', detail='the run has ended')
            pause = min(2 * pause, longest)

    # Losing the agent

    def _revive(self) -> bool:
        """Whether the agent answers again: it was the network that was gone."""
        channel = self._channel
        try:
            t.cast(t.Any, channel).call('RenewLease', patience=0)
        except SojournError:
            return False
        self._lost = False
        self._start_keeper()
        return True

    def _start_keeper(self) -> None:
        """One that is at work goes on; but one that is just putting an agent in the lost one's place ends then."""
        if self._keeper is None or not self._keeper.is_alive() or self._keeper is threading.current_thread() or self._kept is not self._channel:
            self._kept = self._channel
            self._keeper = threading.Thread(target=self._keep, name=f'keeper {self.target.host}', daemon=True)
            self._keeper.start()

    def _lose(self, channel: t.Any) -> None:
        if self._channel is channel and not self._lost:
            begun = self._way_back
            if begun is not None:
                begun.give_up()
            self._lost_since = time.monotonic()
            self._lost = True  # the next call deploys anew, or the keeper does
            with self._wake:
                self._wake.notify_all()

    def _agent_is_gone(self) -> bool:
        """Whether the target can be reached and has no agent of this session; False also where that cannot be told."""
        if self._refused:
            return False
        try:
            return not self._lives(self.run)
        except SojournError as error:
            self._refused = error.code.startswith('SD-3')
            return False

    def _lives(self, run: str) -> bool:
        """Whether the way in shows a run's agent, or its guard, at work on the target. Raises SojournError where the target can't be asked."""
        way_in = make_way_in(self._proven or self.target, run)
        try:
            way_in.connect()
            return any(item.run == run and item.live for item in way_in.find())
        finally:
            way_in.release()

    def _persist(self, channel: channel_module.Channel, operation: str, seconds: float, **arguments: t.Any) -> t.Any:
        """An operation that is tried again for a lease's length, unless the way in shows that there is no agent to answer it."""
        deadline: float | None = None
        while True:
            try:
                return channel.call(operation, patience=min(CALL_AGAIN_SECONDS, seconds), **arguments)
            except SojournError as error:
                # From now on: before that, the answer may have been long in coming.
                deadline = deadline or time.monotonic() + seconds
                if error.code != 'SD-503' or time.monotonic() > deadline or self._channel is not channel:
                    raise
                if self._agent_is_gone():
                    raise self._error('SD-503', f'calling {operation}', detail='it was ended, or the target has restarted') from None

    def _drop(self) -> None:
        """Forgets an agent that is gone."""
        channel, self._channel = self._channel, None
        tunnel, self._tunnel = self._tunnel, None
        if channel is not None:
            channel.close()
        if tunnel is not None:
            tunnel.close()
        self._lost = False
        with self._wake:
            self._keeping = False
            self._released.clear()
            self._release_now = False
            self._wake.notify_all()

    # The lease

    def _keep(self) -> None:
        """Thread: renews the lease four times in its length, and then, or when there is reason to, sends Release for ended processes."""
        channel = self._channel
        every = self.target.lease_seconds / 4
        with self._wake:
            self._keeping = True
        next_renewal = time.monotonic() + every
        while True:
            with self._wake:
                while self._keeping and self._channel is channel and not (self._release_now or self._lost) and time.monotonic() < next_renewal:
                    self._wake.wait(next_renewal - time.monotonic())
                if not self._keeping or self._channel is not channel or channel is None:
                    return
                released, self._released, self._release_now = self._released, [], False
            if self._lost:
                self._recover(channel)
                return
            try:
                for handle in released:
                    try:
                        channel.call('Release', Handle=handle, patience=0)
                    except SojournError as error:
                        if error.code == 'SD-504':  # one that was killed has not ended yet
                            self._put_back_released([handle])
                if time.monotonic() >= next_renewal:
                    next_renewal = time.monotonic() + every
                    self._persist(channel, 'RenewLease', self.target.lease_seconds)
            except SojournError as error:
                log.warning('%s: the lease could not be renewed: %s', self.target.host, error)
                if error.code in LOST:
                    self._lose(channel)
            except Exception:  # a thread that ends here would end the lease
                log.exception('%s: keeper', self.target.host)

    def _recover(self, channel: channel_module.Channel) -> None:
        """Puts an agent in the place of the lost one without waiting for a task: what one that was killed has left goes with that."""
        with self._lock:
            if not self._lost or self._channel is not channel or self._ended.is_set():
                return
            try:
                self.deploy()
            except SojournError as error:
                log.warning('%s: the agent is lost: %s', self.target.host, error)
            except Exception:
                log.exception('%s: after the agent was lost', self.target.host)

    # Operations

    def call(self, operation: str, **arguments: t.Any) -> t.Any:
        """One operation of the agent, which is deployed first where there is none."""
        def ask(unused_session: Session, channel: channel_module.Channel) -> t.Any:
            with steps.step(operation):
                return channel.call(operation, **{**arguments, **({'User': self._user(arguments['User'])} if 'User' in arguments else {})})

        return self._by_agent(ask)

    def _user(self, user: str | None) -> str | None:
        """Whose rights are meant, once the way in has signed in."""
        return self._login_user or getpass.getuser() if user == LOGIN_USER else user

    def _by_agent(self, action: t.Callable[[Session, channel_module.Channel], t.Any], gone: threading.Event | None = None,
                  watch: t.Callable[[], None] | None = None) -> t.Any:
        """Something that the agent does; where it was lost before it did it, the one that takes its place does.

        ``gone``: see ``deploy``; ``watch`` is called where the agent is not at hand, and its caller may be gone before it is.
        """
        for last in (False, True):
            if watch is not None and not self._at_hand():
                watch()
            session, channel = self._agent(gone)
            try:
                return session._watch(channel, lambda session=session, channel=channel: action(session, channel))
            except SojournError as error:
                if last or error.code not in LOST or not error.again or self._ended.is_set():
                    raise
                log.info('%s: once more: %s', self.target.host, error)
        raise AssertionError  # not reached

    def _at_hand(self) -> bool:
        """Whether the agent can be asked at once."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._other is not None:
                return self._other._at_hand()
            channel = self._channel
            return self.live and channel is not None and time.monotonic() - channel.heard <= ASK_AFTER_SECONDS
        finally:
            self._lock.release()

    def _agent(self, gone: threading.Event | None) -> tuple[Session, channel_module.Channel]:
        """The session that has the agent, this one or the other name's, and its channel. An agent that was not heard of for a while is asked first:

        a target that lost its power says nothing, and what is sent then might or might not have been done.
        """
        for unused_try in range(AGAIN_WHERE_REMOVED):
            self.deploy(gone=gone)
            session = self._other or self
            channel = session._channel
            if channel is not None:  # it was not removed meanwhile, by another task's reset_connection
                break
        if channel is not None and time.monotonic() - channel.heard > ASK_AFTER_SECONDS:
            try:
                session._watch(channel, lambda: channel.call('RenewLease', patience=0))
            except SojournError as error:
                if error.code not in LOST:
                    raise
                self.deploy(gone=gone)
                session = self._other or self
                channel = session._channel
        if channel is None:
            raise self._error('SD-503', 'talking to the agent', detail='it was removed meanwhile')
        return session, channel

    def _watch(self, channel: t.Any, action: t.Callable[[], t.Any]) -> t.Any:
        try:
            return action()
        except SojournError as error:
            if error.code in LOST:
                self._lose(channel)
            error.at(host=self.target.host)
            raise

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

    @contextlib.contextmanager
    def _transfer(self) -> t.Iterator[None]:
        with self._wake:
            self._transfers += 1
        try:
            yield
        finally:
            with self._wake:
                self._transfers -= 1

    def put_file(self, local_path: str, remote_path: str, *, mode: str | None, user: str | None, checksum: str | None, digests: bool = False,
                 on_progress: t.Callable[[int, int], None] | None, cancelled: threading.Event) -> dict[str, t.Any]:
        """See ``Agent.put_file``."""
        begin = time.monotonic()

        def progress(done: int, total: int) -> None:
            if cancelled.is_set() or self._ended.is_set():
                raise Cancelled
            if on_progress is not None:
                on_progress(done, total)

        def put(session: Session, channel: channel_module.Channel) -> dict[str, t.Any]:
            with session._transfer(), steps.step('put') as step:
                result = channel.put_file(
                    local_path, remote_path, mode=mode, user=self._user(user), checksum=checksum, digests=digests, on_progress=progress,
                    patience=self.target.lease_seconds)
                step.detail = f"{result['size']} bytes"
            return {'path': session.absolute(remote_path), **result}

        return {**self._by_agent(put, cancelled), 'seconds': round(time.monotonic() - begin, 4)}

    def get_file(self, remote_path: str, local_path: str, *, user: str | None, digests: bool = False, cancelled: threading.Event) -> dict[str, t.Any]:
        """See ``Agent.get_file``."""
        begin = time.monotonic()

        def wanted() -> None:
            if cancelled.is_set() or self._ended.is_set():
                raise Cancelled

        def get(session: Session, channel: channel_module.Channel) -> dict[str, t.Any]:
            with session._transfer(), steps.step('fetch') as step:
                result = channel.get_file(
                    remote_path, local_path, user=self._user(user), digests=digests, on_progress=wanted, patience=self.target.lease_seconds)
                step.detail = f"{result['size']} bytes"
                return result

        result = self._by_agent(get, cancelled)
        return {'path': local_path, **result, 'seconds': round(time.monotonic() - begin, 4)}

    def execute(self, arguments: dict[str, t.Any], data: bytes | None, emit: t.Callable[[str, bytes], None], job: Job) -> dict[str, t.Any]:
        """See ``Agent.execute`` and ``Agent.follow``; output goes to ``emit`` as it comes."""
        def attend(session: Session, channel: channel_module.Channel) -> dict[str, t.Any]:
            return session._attend(channel, self._as_signed_in(arguments), data, emit, job)

        try:
            try:
                result = self._by_agent(attend, None if job.finish else job.left, job.watch)
            except _TooLate:
                raise self._error('SD-503', 'starting a process', detail='the run has ended') from None
            job.ended(result)
            return result
        except BaseException as error:
            job.ended(error)
            raise

    def _as_signed_in(self, arguments: dict[str, t.Any]) -> dict[str, t.Any]:
        """A login user's command with the variables of this session's own way in, wherever the agent is another session's."""
        if arguments.get('user') is None:
            return arguments
        return {**arguments, 'user': self._user(arguments['user']), 'environment': {**self._environment, **(arguments.get('environment') or {})}}

    def _attend(self, channel: channel_module.Channel, arguments: dict[str, t.Any], data: bytes | None, emit: t.Callable[[str, bytes], None],
                job: Job) -> dict[str, t.Any]:
        with self._wake:
            self._jobs.add(job)
        try:
            self._check_wanted(job)
            got = {'stdout': 0, 'stderr': 0}

            def count(stream: str, piece: bytes) -> None:
                got[stream] += len(piece)
                emit(stream, piece)

            with steps.step('exec') as step:
                result = self._execute(channel, arguments, data, count, job)
                step.detail = (f"exit code {result['exit_code']} after {result['seconds'] * 1000:.0f} ms there; bytes: {len(data or b'')} in, "
                               f"{got['stdout']} out, {got['stderr']} errors")
            return result
        finally:
            with self._wake:
                self._jobs.discard(job)
                self._wake.notify_all()

    def _check_wanted(self, job: Job) -> None:
        """Before something is begun: raises where nobody waits for it any more, or it is too late."""
        if self._ended.is_set():
            raise _TooLate
        if job.left.is_set() and not job.finish:
            raise Cancelled

    def _execute(self, channel: channel_module.Channel, arguments: dict[str, t.Any], data: bytes | None, emit: t.Callable[[str, bytes], None],
                 job: Job) -> dict[str, t.Any]:
        execution = self._read(channel, job, (0, 0), 0) if arguments.get('follow') else self._start(channel, arguments, data, job)
        offsets = {'stdout': 0, 'stderr': 0}
        unheard: list[SojournError] = []
        try:
            if execution['running']:
                job.started(lambda: self._kill(channel, job.handle), lambda *written: self._write(channel, job.handle, unheard, *written))
            while True:
                for stream, field in (('stdout', 'standard_output'), ('stderr', 'standard_error')):
                    # From a lost answer's repetition, or an agent that sends from further back, only what is new.
                    piece = bytes(execution[field] or b'')[offsets[stream] - int(execution[f'{field}_offset']):]
                    if piece:
                        offsets[stream] += len(piece)
                        if offsets[stream] > MAXIMUM_OUTPUT and not job.finish:
                            self._kill(channel, job.handle)
                            raise self._error('SD-714', 'reading output', stream=field.replace('_', ' '), limit=MAXIMUM_OUTPUT >> 20)
                        if not job.left.is_set() and offsets[stream] <= MAXIMUM_OUTPUT:  # an installation goes on, whatever it says
                            emit(stream, piece)
                if not execution['running']:
                    break
                execution = self._read(channel, job, (offsets['stdout'], offsets['stderr']), LONG_POLL)
            if unheard and execution['exit_code'] != 0:  # one that is done had its input
                raise unheard[0]
        except SojournError as error:
            error.again = False  # it has begun
            raise
        finally:
            self._release(job, sum(offsets.values()))
        code = execution['exit_code']
        return {'exit_code': None if code is None else int(code), 'timed_out': bool(execution['timed_out']), 'seconds': float(execution['seconds'])}

    def _release(self, job: Job, output: int) -> None:
        """Has the agent forget an ended process: with the next command, which costs nothing, or, where it keeps much, or others look for it, at once."""
        with self._wake:
            if self._let_go:
                return
            self._released.append(job.handle)
            if job.finish or output > RELEASE_AT_ONCE_BYTES or len(self._released) > RELEASE_WITH_NEXT:
                self._release_now = True
                self._wake.notify_all()

    def _put_back_released(self, handles: list[str]) -> None:
        with self._wake:
            self._released[:0] = handles

    def _take_released(self) -> list[str]:
        with self._wake:
            taken, self._released[:] = self._released[:RELEASE_WITH_NEXT], self._released[RELEASE_WITH_NEXT:]
            return taken

    def _start(self, channel: channel_module.Channel, arguments: dict[str, t.Any], data: bytes | None, job: Job) -> dict[str, t.Any]:
        open_input = bool(arguments.get('keep_input_open'))
        first_wait = 0.0 if open_input else FIRST_WAIT_STREAMING if arguments.get('streaming') else FIRST_WAIT
        environment = arguments.get('environment')
        released = self._take_released()
        execute = functools.partial(
            channel.call, 'Execute', wait=first_wait, Arguments=arguments.get('arguments'), CommandLine=arguments.get('command_line'),
            Directory=arguments.get('directory'),
            Environment=[{'Name': name, 'Value': value} for name, value in environment.items()] if environment else None,
            User=arguments.get('user'), KeepInputOpen=open_input or None, TimeoutSeconds=arguments.get('timeout'),
            WaitSeconds=first_wait, SafeToKill=arguments.get('safe_to_kill') or None, MayOutlive=arguments.get('may_outlive') or None,
            Warm=arguments.get('warm') or None, Handle=job.handle,
            Label=arguments.get('label'), Release=released or None,
            Terminal=arguments.get('terminal') or None)
        archive = module_archive.find(data) if data is not None and arguments.get('warm') else None
        try:
            result = self._start_module(channel, execute, data, archive, job) if data is not None and archive is not None else execute(Input=data)
        except BaseException:
            self._put_back_released(released)  # it may not have arrived; to release twice is no harm
            raise
        self._look_ahead(channel, archive is not None, bool(arguments.get('before_modules')))
        return result

    def _look_ahead(self, channel: channel_module.Channel, module: bool, before_modules: bool) -> None:
        """Has what modules to come will need sent: once one has come, or, after another command, where it is known by what they will be run."""
        if not channel.archives.wanting(self._coming):
            return
        expected = None
        if not module and not channel.archives.in_use:
            expected = self._coming.expected
            if expected is None or not before_modules or self._info.get('operating_system') != 'linux' or not channel.archives.ask_interpreter():
                return
        with contextlib.suppress(RuntimeError):  # no more threads: then modules bring their own
            threading.Thread(target=self._send_ahead, args=(channel, expected), name=f'ahead {self.target.host}', daemon=True).start()

    def _send_ahead(self, channel: channel_module.Channel, expected: module_archive.Expected | None) -> None:
        """Thread: sends what modules to come will need, by a connection of its own: the next task is to find the other one free.

        ``expected``: where none has come yet, what an interpreter is made ready by.
        """
        endpoint = channel.endpoint
        try:
            with contextlib.closing(self._open_channel(endpoint.peer, endpoint.fingerprint, tunnel=endpoint.tunnel)) as beside:
                if expected is not None and not self._prepare_interpreter(beside, expected):
                    return
                for order in channel.archives.ahead(self._coming):
                    if self._channel is not channel or self._ended.is_set():
                        break
                    try:
                        beside.call('KeepArchive', patience=0, **order.arguments)
                        channel.archives.sent(order)
                    except SojournError as error:
                        if error.code != 'SD-713' or not channel.archives.lost(order):
                            raise
        except SojournError as error:
            channel.archives.no_more_ahead()
            log.info('%s: nothing more is sent ahead: %s', self.target.host, error)
        except Exception:
            channel.archives.no_more_ahead()
            log.exception('%s: sending ahead', self.target.host)

    def _prepare_interpreter(self, channel: channel_module.Channel, expected: module_archive.Expected) -> bool:
        """Whether the agent has done what it could. Where it has not, what is known of modules goes with them, as without."""
        try:
            channel.call(
                'PrepareInterpreter', patience=0, CommandLine=expected.command_line, Interpreter=list(expected.interpreters),
                Environment=[{'Name': name, 'Value': value} for name, value in self._environment.items()] or None,
                User=self._user(LOGIN_USER), Beginning=expected.beginning)
            return True
        except SojournError as error:
            log.info('%s: no interpreter was made ready: %s', self.target.host, error)
            return False

    def _start_module(self, channel: channel_module.Channel, execute: t.Callable[..., t.Any], data: bytes, archive: slice, job: Job) -> t.Any:
        """Sends a module without what the agent has kept of earlier ones, which is most of it."""
        def given_up() -> bool:
            job.watch()
            return self._ended.is_set() or job.left.is_set()

        order = channel.archives.order(data, archive, given_up)
        self._check_wanted(job)
        try:
            result = execute(**order.arguments)
        except SojournError as error:
            if error.code != 'SD-713' or order.whole:
                raise
            channel.archives.lost(order)
            order = channel.archives.order(data, archive)
            result = execute(**order.arguments)
        channel.archives.sent(order)
        return result

    def _read(self, channel: channel_module.Channel, job: Job, offsets: tuple[int, int], wait: float) -> dict[str, t.Any]:
        return self._persist(
            channel, 'ReadOutput', self.target.lease_seconds, wait=wait, Handle=job.handle, StandardOutputOffset=offsets[0], StandardErrorOffset=offsets[1],
            WaitSeconds=wait, MaximumBytes=OUTPUT_BYTES)

    def _kill(self, channel: channel_module.Channel, handle: str) -> None:
        try:
            channel.call('Signal', Handle=handle, Name='kill', Tree=True, patience=self.target.lease_seconds)
        except SojournError as error:
            log.warning('%s: a process could not be killed: %s', self.target.host, error)

    def _write(self, channel: channel_module.Channel, handle: str, unheard: list[SojournError], data: bytes, close: bool, answer: bool) -> None:
        """Bytes for a process's input. Where they may not have come, why is added to ``unheard``, and the process killed: it would wait for them for ever."""
        try:
            channel.call(
                'WriteInput', Handle=handle, Data=data or None, Close=close or None, Answer=answer or None, patience=self.target.lease_seconds)
            return
        except SojournError as error:
            # A process that ended without reading is no error; its exit code tells.
            log.info('%s: input was not taken: %s', self.target.host, error)
            if error.code not in LOST:
                return
            unheard.append(error)
        self._kill(channel, handle)

    # The end

    def end(self, report: Report) -> dict[str, t.Any]:
        """The run has ended: nothing is deployed any more, installations finish, then the agent goes. Raises SojournError."""
        self._ended.set()  # whoever waits for the target to come back gives up
        if self._other is not None:
            return {'changed': False, 'removed': []}  # its own session ends it
        with self._wake:
            jobs = list(self._jobs)
        for job in jobs:
            job.leave()
        waited = bool(jobs)
        if waited and not self._await_jobs(report):
            return {'changed': False, 'removed': []}
        earlier = self._removal
        try:
            result = self.remove()
        except SojournError as error:
            if error.code not in NOT_THERE and not self._living:
                raise
        if self._debris:
            return self._clear_debris(report)
        # One that a task had begun, and whose caller did not live to hear of it, is this run's end as well.
        return self._removal if not result['changed'] and self._removal is not earlier else result

    def expect_end(self) -> None:
        """The run's last task has begun: by its end the way in has come as far as a sign-in, if what is there bears with that."""
        if not self.live or self._other is not None or self._tunnel is not None or self._ended.is_set():
            return  # a tunnel's way in may lead over others, where one signs in
        if self._way_back is None or not self._way_back.there:
            way_in = make_way_in(self._proven or self.target, self.run)
            if way_in.bears_waiting:
                self._way_back = begun = WayBack(way_in)
                if self._ended.is_set():
                    begun.give_up()

    def _await_jobs(self, report: Report) -> bool:
        """Waits for installations. Meanwhile a new run of this user may take the session over: False where it has."""
        told: set[str] = set()
        file = self._file
        if file is not None:
            self._let_go = True
            file.let_go()
        while True:
            with self._wake:
                packages = {job.package for job in self._jobs if job.finish and job.package}
                if not self._jobs:
                    break
                if packages <= told:
                    self._wake.wait()
                    continue
            for package in sorted(packages - told):
                report('waiting', package=package)
            told |= packages
        if file is None or file.take_back():
            return True
        log.info('%s: another run has taken the session over', self.target.host)
        file.forget()
        self._file = None
        self._drop()
        return False

    def remove(self, *, unless_used: bool = False) -> dict[str, t.Any]:
        """See ``Agent.remove``."""
        with self._lock:
            if self._other is not None:
                result = self._other.remove(unless_used=unless_used)
                if result['changed'] or not self._other.live:
                    self._other = None
                return result
            if self._channel is None or unless_used and (self._jobs or self._transfers):
                return {'changed': False, 'removed': []}
            try:
                with steps.step('remove') as step:
                    result = self._remove_once()
                    step.detail = ', '.join(result['removed'])
                return result
            except SojournError:
                self._debris = True
                raise
            finally:
                self._drop()

    def _clear_debris(self, report: Report) -> dict[str, t.Any]:
        """Waits for a target that was not there when it was to be cleaned: for as long as its agent, if it has one, would wait for us."""
        deadline = time.monotonic() + self.target.lease_seconds + RECONNECT_MORE_SECONDS
        pause, longest = RECONNECT_PAUSES
        never = threading.Event()
        told = False
        while True:
            try:
                with self._lock:
                    return self._clear_debris_once()
            except SojournError as error:
                if error.code not in (*NOT_THERE, 'SD-801') or self._is_rule(error) or time.monotonic() + pause > deadline:
                    raise
            if not told:
                report('reconnecting')
                told = True
            never.wait(pause)
            pause = min(2 * pause, longest)

    def _clear_debris_soon(self) -> None:
        """Thread: what a broken-off deployment left does not wait for the run's end, which may be hours away."""
        pause, longest = RECONNECT_PAUSES
        while not self._ended.wait(pause):
            with self._lock:
                if not self._debris or self._channel is not None:
                    return
                try:
                    self._clear_debris_once()
                    return
                except SojournError as error:
                    log.info('%s: clearing away: %s', self.target.host, error)
                    if self._is_rule(error):
                        return
                except Exception:
                    log.exception('%s: clearing away', self.target.host)
                    return
            pause = min(2 * pause, longest)

    def _clear_debris_once(self) -> dict[str, t.Any]:
        target = self._proven or self.target
        way_in = make_way_in(target, self.run)
        try:
            way_in.connect()
            self._spare_living(way_in)
            removed = way_in.wait_removed(0)
        finally:
            way_in.release()
        if self._info.get('firewall_rule') or self._rule_left or self._is_rule(way_in.left()):
            self._rule_left = True  # the folder that said so is gone
            self._take_back_rules(target)
            removed.append(f'firewall rule {name_of(self.run)}')
        if self._file is not None:
            self._file.remove()
            self._file = None
        self._debris = self._rule_left = False
        log.info('%s: cleared away what was left', target.host)
        return {'changed': True, 'removed': removed}

    def _remove_once(self) -> dict[str, t.Any]:
        """Ends the agent and sees that nothing is left of it; only then the session is forgotten. The caller holds the lock."""
        reached: list[WayIn] = []
        try:
            result = self._remove(reached)
        finally:
            for way_in in reached:
                way_in.release()
        self._drop()
        if self._file is not None:
            self._file.remove()
            self._file = None
        self._removal = result
        return result

    def _remove(self, reached: list[WayIn]) -> dict[str, t.Any]:
        channel = t.cast(channel_module.Channel, self._channel)
        failure: list[SojournError] = []

        def connect() -> None:
            # What got the agent in gets in again; unless the run itself has changed the password since.
            for target in dict.fromkeys((self._proven or self.target, self.target)):
                try:
                    self._return(target, reached)
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
            if self._lost:
                patience = 2.0
            elif int(channel.call('Shutdown')):
                self._wait_gone(channel)
                patience = REMOVE_SECONDS  # unless it was only out of reach, and waits still
        except SojournError as error:
            if error.code not in LOST:
                log.warning('%s: %s', self.target.host, error)
            patience = 2.0  # it is gone already, or does not listen: not much to wait for
        connecting.join()
        if failure:
            raise failure[0]
        way_in = reached[-1]
        if patience is not None:
            self._spare_living(way_in, GUARD_SECONDS)
        removed = way_in.wait_removed(patience) if patience is not None else way_in.wait_removed()
        # An agent that was killed, or could not close its rules, has left its folder.
        left = way_in.left()
        if left is not None:
            log.warning('%s: %s', self.target.host, left)
            self._rule_left = self._is_rule(left)
            self._take_back_rules(way_in.target)
            self._rule_left = False
        if self._info.get('firewall_rule'):
            removed.append(f"firewall rule {self._info['firewall_rule']}")
        log.info('%s: removed', self.target.host)
        return {'changed': True, 'removed': removed}

    def _return(self, target: Target, reached: list[WayIn]) -> None:
        """Signs in once more; by what was begun for that, where there is such. What is to be released is added to ``reached``. Raises SojournError."""
        def known(way_in: WayIn) -> WayIn:
            reached.append(way_in)
            if target is self._proven:
                way_in.remind(self._rights)
            return way_in

        begun, self._way_back = self._way_back, None
        way_in = begun.take() if begun is not None else None
        if way_in is not None and way_in.target is target:
            try:
                known(way_in).admit()
                way_in.notice_silence(soon=True)
                way_in.sign_in()
                way_in.notice_silence(soon=False)
                return
            except SojournError as error:
                # It may have ended unnoticed, by whoever is on the way. Where it is there still, a sign-in is not begun twice.
                if error.code not in NOT_THERE or way_in.alive:
                    raise
                log.info('%s: what was begun beforehand has ended: %s', self.target.host, error)
                reached.remove(way_in)
                way_in.release()  # a service may let in only so many
        elif way_in is not None:
            reached.append(way_in)
        known(make_way_in(target, self.run)).connect()

    def _is_rule(self, error: SojournError | None) -> bool:
        """Whether it says that the run's firewall rule could not be removed."""
        return error is not None and error.code == 'SD-801' and error.fields.get('what') == f'The firewall rule {name_of(self.run)}'

    def _take_back_rules(self, target: Target) -> None:
        """Of an agent that could not do it itself: only an agent can, and one that begins takes back what its run has left."""
        way_in = make_way_in(target, self.run)
        try:
            way_in.connect()
            try:
                way_in.place(self.token)
                # It admits nobody: what it opened it would have to close.
                way_in.start(dataclasses.replace(self._config(way_in, 'direct'), controller_addresses=[]))
            finally:
                way_in.undo()
        except (SojournError, AlreadyPlaced) as error:
            what, detail = f'The firewall rule {name_of(self.run)}', 'another agent is there'
            if isinstance(error, SojournError):
                if error.code in NOT_THERE:
                    raise
                tool = error.code == 'SD-603' or self._is_rule(error)
                detail = error.fields.get('detail', '') if tool else error.sentence
            raise self._error('SD-801', 'removing the agent', what=what, detail=detail) from None
        finally:
            way_in.release()

    def _wait_gone(self, channel: channel_module.Channel) -> None:
        """Waits while the agent waits for processes that must not be interrupted, however long they take."""
        pause = threading.Event()
        # A firewall says nothing of a port that is closed again: whether the agent is gone is soon asked of the way in.
        endpoint = channel.endpoint
        asking = self._open_channel(endpoint.peer, endpoint.fingerprint, min(GONE_SECONDS, endpoint.connection_timeout), endpoint.tunnel)
        silent: float | None = None
        try:
            while True:
                try:
                    asking.call('GetInfo', patience=0)
                    silent = None
                except SojournError:
                    silent = silent or time.monotonic()
                    if self._agent_is_gone() or time.monotonic() - silent > CALL_AGAIN_SECONDS:
                        return
                pause.wait(0.25)
        finally:
            asking.close()

    # Leftovers of other runs

    def cleanup(self, run: str | None, force: bool, check: bool) -> dict[str, t.Any]:
        """See ``Agent.cleanup``."""
        with self._lock:
            return leftovers.clean(self, lambda: make_way_in(self.target, self.run), run, force, check)


def end_orphan(file: session_file.SessionFile) -> None:
    """Ends the agent of a session that an earlier broker of this run had, over the channel alone: nobody knows how to sign in there.

    The agent waits for its installation and removes itself. Raises SojournError where it does not answer.
    """
    record = file.record
    if record.peer is None or record.fingerprint is None:
        return
    if record.tunnel:
        raise SojournError('SD-503', step='ending the agent', detail='it is reached by a tunnel, for which there are no credentials')
    channel = channel_module.Channel(
        channel_module.Endpoint(peer=record.peer, fingerprint=record.fingerprint, ports=str(record.peer.sockaddr[1])),
        RunCredentials.of(record.credentials).context())
    try:
        channel.call('Shutdown')
        file.remove()
    finally:
        channel.close()
