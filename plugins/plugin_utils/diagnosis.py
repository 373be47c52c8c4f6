# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What it would take to put the agent onto a target, told without doing so: libraries, addresses, way in, credentials; nothing is changed there.

It goes the way that a deployment goes, by the same code, and stops before the sign-in unless it is told to go on: a sign-in that is refused
counts towards the lock-out of an account. What the worker knows itself is added by the action (plugins/action/debug_connection.py).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import os
import queue
import socket
import ssl
import threading
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils import libraries, network, steps
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import SYSTEMS, Target, parse_address
from ansible_collections.sojourn.deploy.plugins.plugin_utils.session import Session, make_way_in
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import Entry, WayIn, agent_executable, name_of

log = logging.getLogger('sojourn.diagnosis')

#: What is imported for a session over each way in, by import name.
LIBRARIES = {'smb': ('smbprotocol', 'pypsexec', 'spnego', 'cryptography', 'zeep', 'lxml', 'urllib3'),
             'winrm': ('winrm', 'requests', 'spnego', 'cryptography', 'zeep', 'lxml', 'urllib3'),
             'ssh': ('paramiko', 'cryptography', 'zeep', 'lxml', 'urllib3')}
#: What a sign-in over SMB without a password needs besides.
KERBEROS = ('gssapi', 'krb5')
ARCHITECTURES = ('amd64', 'arm64')
#: The option, for people.
TRANSPORTS = {
    'direct': 'direct: by a port that the agent opens', 'tunnel': "tunnel: inside the way in's connection; no port is opened",
    'auto': 'auto: direct, and by tunnel where that is not possible'}
#: Over jump hosts.
LED = 'tunnel: inside the connection that brings it there, since that goes over other hosts'
FAMILIES = {'IPv6': socket.AF_INET6, 'IPv4': socket.AF_INET}

Value = str | list[str] | SojournError


class _Later:
    """An action in a thread of its own, for whose end one waits as long as one likes: nothing can interrupt a name service."""

    def __init__(self, action: t.Callable[[], t.Any]) -> None:
        self._ends: queue.SimpleQueue[tuple[t.Any, BaseException | None]] = queue.SimpleQueue()
        self._begin = time.monotonic()
        self.seconds = 0.0
        threading.Thread(target=self._run, args=(action,), name='diagnosis', daemon=True).start()

    def _run(self, action: t.Callable[[], t.Any]) -> None:
        try:
            self._ends.put((action(), None))
        except BaseException as error:
            self._ends.put((None, error))

    def result(self, deadline: float) -> t.Any:
        """What the action returned, or raises what it raised; TimeoutError at the deadline."""
        try:
            result, error = self._ends.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise TimeoutError from None
        finally:
            self.seconds = time.monotonic() - self._begin
        if error is not None:
            raise error
        return result


class Diagnosis:
    """One target's; ``findings`` grows."""

    def __init__(self, target: Target, run: str, session: Session | None) -> None:
        self.target = target
        self.run = run
        self.session = session
        self.findings: list[dict[str, t.Any]] = []
        self.way_in: WayIn | None = None
        #: Whether one gets to the target over other hosts.
        self.led = False
        self.entry = Entry(target.address, target.port, target.connection_timeout)
        #: The target's addresses, and what came of those that were tried.
        self.peers: list[network.Peer] = []
        self.attempts: dict[network.Peer, network.Attempt] = {}
        #: As the target itself turns out to be.
        self._platform = ''

    def add(self, section: str, name: str, value: Value, seconds: float | None = None) -> None:
        """A finding. A SojournError is what keeps the agent from getting there."""
        error: dict[str, t.Any] | None = None
        if isinstance(value, SojournError):
            value.at(host=self.target.host).redacted(self.target.secrets)
            error, value = value.to_dict(), f'{value.sentence} ({value.code})'
        self.findings.append({
            'section': section, 'name': name, 'value': value, 'seconds': None if seconds is None else round(seconds, 4), 'error': error})

    @contextlib.contextmanager
    def telling(self, section: str, name: str) -> t.Iterator[None]:
        """What goes wrong becomes a finding, and the rest is told all the same."""
        begin = time.monotonic()
        try:
            yield
        except SojournError as error:
            self.add(section, name, error, time.monotonic() - begin)
        except Exception as error:
            log.exception('%s: %s', self.target.host, name)
            self.add(section, name, SojournError('SD-903', step=name, detail=f'{type(error).__name__}: {error}'))

    # Libraries

    def look_at_libraries(self) -> None:
        """Of the broker's own process, which is the one that uses them."""
        self.add('libraries', 'OpenSSL', ssl.OPENSSL_VERSION)
        needed = LIBRARIES[self.target.way_in]
        kerberos = KERBEROS if self.target.way_in == 'smb' else ()
        for name in (*needed, *kerberos):
            distribution = libraries.DISTRIBUTIONS[name]
            own_name = name if '[' in distribution else distribution
            try:
                module = importlib.import_module(name)
            except Exception as error:  # also what is there and does not work
                if name in needed or self.target.password is None:
                    self.add('libraries', own_name, libraries.missing(name, error))
                else:
                    self.add('libraries', own_name, f'missing, and needed only for Kerberos: pip install {distribution}')
                continue
            version = libraries.version(module)
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                version = importlib.metadata.version(own_name)
            self.add('libraries', own_name, version or 'there')

    # Addresses

    def _find_entry(self) -> bool:
        """Finds where to connect to; False where there is no address to be looked up."""
        way_in = self.way_in
        if way_in is None:
            return True
        found = False
        with self.telling('address', 'way'):
            self.entry = way_in.entry()
            found = True
            self.led = way_in.led
            if self.led:
                self.add('address', 'way', way_in.described_way())
        return found and way_in.looks_up

    def look_up(self) -> None:
        """The name's addresses by family, and the order of all."""
        target = self.target
        deadline = time.monotonic() + target.connection_timeout
        if not self._find_entry():
            return
        entry = self.entry
        everything = _Later(lambda: network.resolve(entry.address, entry.port, entry.family))
        if parse_address(entry.address).literal is None:
            by_family = {name: _Later(lambda family=family: network.resolve(entry.address, entry.port, family)) for name, family in FAMILIES.items()}
            for name, later in by_family.items():
                try:
                    found: Value = [peer.address for peer in later.result(deadline)]
                except SojournError as error:
                    found = f"none ({error.fields.get('detail', '')})"
                except TimeoutError:
                    found = f'no answer within {target.connection_timeout:g} s'
                self.add('address', name, found, later.seconds)
        with self.telling('address', 'order'), steps.step('resolve', entry.address) as step:
            try:
                self.peers = everything.result(deadline)
            except TimeoutError:
                detail = f'no answer from the name resolution within {target.connection_timeout:g} s'
                raise SojournError('SD-201', step='looking up the name', address=entry.address, detail=detail) from None
            step.detail = ', '.join(peer.address for peer in self.peers)
            self.add('address', 'order', [peer.address for peer in self.peers], everything.seconds)

    def reach(self) -> None:
        """Connects as a deployment does, as far as the sign-in; then tries the addresses that this passed over."""
        way_in, reached = self.way_in, None
        begin = time.monotonic()
        if way_in is not None:
            way_in.peers = self.peers
            try:
                way_in.reach()
            except SojournError as error:
                reached = error
        spoken = time.monotonic() - begin
        attempts = self.attempts = {attempt.peer: attempt for attempt in way_in.attempts} if way_in is not None else {}
        tried = list(attempts)
        attempts.update(self._try([peer for peer in self.peers if peer not in attempts]))
        for peer in self.peers:
            if peer in attempts:
                self._tell_attempt(peer, attempts[peer], peer in tried)
        if way_in is None:
            return
        if way_in.peer is None and (way_in.looks_up or reached is not None):
            if reached is not None:
                self.add('address', 'taken', reached)
            return
        if way_in.peer is not None:
            self.add('address', 'taken', way_in.peer.address, attempts[way_in.peer].seconds)
            spoken -= attempts[way_in.peer].seconds
        if not way_in.led:
            self.add('address', 'controller address', self.target.controller_address or way_in.controller_address or '')
        section = self._section
        facts = way_in.other_end()
        for number, (name, value) in enumerate(facts):
            self.add(section, name, value, spoken if number == 0 else None)
        if reached is not None:
            self.add(section, 'outcome', reached)

    @property
    def may_reach(self) -> bool:
        """Whether there is somewhere to connect to, as far as that is known."""
        return bool(self.peers) or not self.failed and self.way_in is not None and not self.way_in.looks_up

    def _try(self, peers: list[network.Peer]) -> dict[network.Peer, network.Attempt]:
        """All at once, each for itself."""
        target = self.target
        attempts: dict[network.Peer, network.Attempt] = {}

        def knock(peer: network.Peer) -> None:
            network.connect_any(
                [peer], timeout=target.connection_timeout, service=self.way_in.service if self.way_in else target.way_in, step='connecting',
                on_attempt=lambda attempt: attempts.__setitem__(peer, attempt))[0].close()

        knocking = [_Later(lambda peer=peer: knock(peer)) for peer in peers]
        for later in knocking:
            with contextlib.suppress(SojournError):
                later.result(time.monotonic() + target.connection_timeout + 5)
        return attempts

    def _tell_attempt(self, peer: network.Peer, attempt: network.Attempt, tried: bool) -> None:
        own = ''
        with contextlib.suppress(SojournError):
            own = f', from {network.own_address(peer)}'
        error = attempt.error
        outcome = f'port {self.entry.port} answers{own}' if error is None else f'{error.sentence.rstrip(".")} ({error.code}){own}'
        self.add('address', peer.address, outcome if tried else f'{outcome}; not needed, an address before it answers', attempt.seconds)

    @property
    def _section(self) -> str:
        return self.target.way_in.upper()

    # Signing in

    def look_at_credentials(self) -> None:
        """What there is, and why it would be used."""
        if self.way_in is not None:
            with self.telling('sign-in', 'credentials'):
                for name, value in self.way_in.credentials():
                    self.add('sign-in', name, value)

    def sign_in(self, wanted: bool) -> None:
        """Signs in, where that is wanted and nothing speaks against it."""
        if not wanted:
            self.add('sign-in', 'tried', 'no: sign_in is off, since a refused one counts towards the lock-out of an account')
            return
        if self.failed or self.way_in is None:
            self.add('sign-in', 'tried', 'no, for what was found before')
            return
        begin = time.monotonic()
        with self.telling('sign-in', 'outcome'):
            self.way_in.sign_in()
            self.add('sign-in', 'outcome', 'signed in', time.monotonic() - begin)
        if self.failed:
            return
        begin = time.monotonic()
        with self.telling('sign-in', 'rights'):
            for number, (name, value) in enumerate(self.way_in.look()):
                self.add('sign-in', name, value, None if number else time.monotonic() - begin)
                self._platform = str(value) if name == 'platform' else self._platform

    @property
    def failed(self) -> bool:
        """Whether something keeps the agent from getting there."""
        return any(finding['error'] for finding in self.findings)

    # The agent

    def look_at_agent(self) -> None:
        """Its executables, the port that it would listen on, and whether it is there."""
        target = self.target
        system = SYSTEMS[target.way_in]
        found: dict[str, Value] = {}
        for architecture in ARCHITECTURES:
            platform = f'{system}-{architecture}'
            try:
                path = agent_executable(system, architecture, host=target.host)
                found[platform] = f'{path}, {os.path.getsize(path)} bytes'
            except SojournError as error:
                found[platform] = error
        for platform, value in found.items():
            needed = platform == self._platform or not self._platform and all(isinstance(other, SojournError) for other in found.values())
            self.add('agent', platform, f'{value.sentence} ({value.code})' if isinstance(value, SojournError) and not needed else value)
        self.add('agent', 'name', name_of(self.session.run if self.session is not None else self.run))
        self.add('agent', 'transport', LED if self.led else TRANSPORTS[target.transport])
        self.add('agent', 'ports', '-'.join(str(port) for port in dict.fromkeys(target.agent_ports)))
        there = 'not on the target by this run'
        if self.session is not None and self.session.live:
            known = self.session.known
            there = 'at work, reached by tunnel' if known.get('transport') == 'tunnel' else f'at work on port {known.get("port")}'
        self.add('agent', 'state', there)


def diagnose(target: Target, run: str, session: Session | None, *, sign_in: bool) -> list[dict[str, t.Any]]:
    """See ``Agent.diagnose``."""
    diagnosis = Diagnosis(target, run, session)
    diagnosis.look_at_libraries()
    try:
        with diagnosis.telling('libraries', 'way in'):
            if not diagnosis.failed:
                diagnosis.way_in = make_way_in(target, run)
        diagnosis.look_up()
        with diagnosis.telling('address', 'taken'):
            if diagnosis.may_reach:
                diagnosis.reach()
        diagnosis.look_at_credentials()
        diagnosis.sign_in(sign_in)
    finally:
        if diagnosis.way_in is not None:
            diagnosis.way_in.release()
    with diagnosis.telling('agent', 'executables'):
        diagnosis.look_at_agent()
    return diagnosis.findings
