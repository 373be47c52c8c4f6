# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a way in is: puts the agent onto a target and starts it, and sees to it that nothing stays. There are three: way_in_*.py.

The contract with the agent (config, ready, names on the target) is in docs/architecture.md.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import socket
import threading
import time
import typing as t
import zlib

from ansible_collections.sojourn.deploy.plugins.plugin_utils import network, steps
from ansible_collections.sojourn.deploy.plugins.plugin_utils.credentials import fingerprint_of_pem
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target

#: ``sojourn-<run>``: the one form of name that this project gives to what is on a target, and the only form that it removes.
NAME = re.compile(r'sojourn-([0-9a-f]{12})')

#: Seconds that an agent may take from its start until it is ready: its firewall tool can be slow.
START_SECONDS = 60.0
#: Seconds that the target may take to let go of service, folder and executable once the agent has ended.
REMOVE_SECONDS = 30.0
#: Seconds that the clocks may differ by: Kerberos' own limit (RFC 4120, 1.6).
CLOCK_SECONDS = 300.0

#: In the agent's folder: which session of the broker it belongs to, so that two inventory names of one target find each other.
SESSION_FILE = 'session'
#: In the folder of an agent that could not close its firewall rules: the error, as in ready. Its folder stays for that.
LEFT_FILE = 'left.json'


def name_of(run: str) -> str:
    """The name on the target of everything that belongs to a run."""
    return f'sojourn-{run}'


def agent_executable(operating_system: str, architecture: str, *, host: str | None = None) -> str:
    """The path of the agent's executable for a target. Raises SD-405."""
    platform = f'{operating_system}-{architecture}'
    folder = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), 'agent', 'dist')
    path = os.path.join(folder, f'sojourn-agent-{platform}{".exe" if operating_system == "windows" else ""}')
    if not os.path.isfile(path):
        raise SojournError('SD-405', host=host, step='choosing the agent', platform=platform)
    return path


class Packed(t.NamedTuple):
    """An executable as it travels to a target that can unpack it."""

    #: Of the executable itself, in bytes.
    size: int
    #: RFC 1952.
    data: bytes


_packed: dict[str, Packed] = {}
_packing = threading.Lock()


@functools.cache
def digest(path: str) -> str:
    """SHA-256 of an executable, in hex. Raises OSError."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


@functools.cache
def size_of(path: str) -> int:
    """Of an executable, in bytes: as it was when its digest was taken. Raises OSError."""
    digest(path)
    return os.stat(path).st_size


def packed(path: str) -> Packed:
    """An executable, packed once for all targets. Not as small as can be: that takes longer than what it saves."""
    with _packing:
        if path not in _packed:
            with open(path, 'rb') as file:
                content = file.read()
            packer = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
            _packed[path] = Packed(len(content), packer.compress(content) + packer.flush())
        return _packed[path]


@dataclasses.dataclass(frozen=True)
class Config:
    """What the agent is told at its start; no secret in it."""

    run: str
    client_sha256: str
    controller_addresses: list[str]
    ports: dict[str, int]
    lease_seconds: float
    #: 'direct' or 'tunnel'.
    transport: str = 'direct'

    def to_json(self) -> bytes:
        """As the agent reads it."""
        return json.dumps(dataclasses.asdict(self)).encode('utf-8')


@dataclasses.dataclass(frozen=True)
class Ready:
    """What the agent answers at its start."""

    run: str
    process_id: int
    port: int
    fingerprint: str
    firewall_kind: str
    boot_id: str
    #: Of a tunnelled agent, where the way in is to lead: see ``WayIn.open_stream``.
    tunnel: str = ''

    @classmethod
    def from_json(cls, data: bytes, *, run: str, host: str | None) -> Ready:
        """Reads the agent's answer. Raises its error, or SD-406 where it is none of this run's."""
        step = 'starting the agent'
        try:
            answer = json.loads(data)
            if answer.get('error'):
                raise SojournError.from_ready(answer['error'], host=host, step=step)
            ready = cls(
                run=str(answer['run']), process_id=int(answer['process_id']), port=int(answer.get('port', 0)), tunnel=str(answer.get('tunnel', '')),
                fingerprint=fingerprint_of_pem(str(answer["certificate"])), firewall_kind=str(answer.get("firewall_kind", "")),
                boot_id=str(answer.get("boot_id", "")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            text = data[:200].decode('utf-8', 'replace')
            raise SojournError('SD-406', host=host, step=step, detail=f"its answer was not understood ({error!r}): '{text}'") from None
        if ready.run != run:
            raise SojournError('SD-406', host=host, step=step, detail=f'what answered belongs to run {ready.run}')
        return ready


class Stream(t.Protocol):
    """Bytes in both directions inside a way in's connection; one thread's. Raises OSError, of it TimeoutError, only."""

    def recv(self, size: int, /) -> bytes:
        """What has come, at least a byte and at most so many; empty at the end."""

    def sendall(self, data: bytes, /) -> None:
        """Sends all of it."""

    def settimeout(self, seconds: float | None, /) -> None:
        """Seconds that each wait may take from now on; None: for ever."""

    def readable(self) -> bool:
        """Whether ``recv`` would not wait."""

    def close(self) -> None:
        """Ends it; never raises."""


class NothingThere(Exception):
    """At the place that a stream was to lead to nobody listens."""


@dataclasses.dataclass(frozen=True)
class Found:
    """Something of this project that a way in found on a target: kind is 'service', 'folder', 'file' or 'firewall-rule'."""

    kind: str
    name: str
    run: str
    #: Whether its agent seems to be at work.
    live: bool
    #: Where it is, for folders.
    path: str = ''


#: Names and values, for people: a value is a text, texts in their order, or why there is none.
Facts = list[tuple[str, str | list[str] | SojournError]]


class AlreadyPlaced(Exception):
    """This run's agent is on the target already, put there by another session of the same broker, which ``session`` names."""

    def __init__(self, session: str) -> None:
        super().__init__(session)
        self.session = session


class Entry(t.NamedTuple):
    """Where a way in connects to: name or address, port, the seconds that it may take, and which family of addresses."""

    address: str
    port: int
    timeout: float
    family: int = socket.AF_UNSPEC


class WayIn(abc.ABC):
    """One connection to one target, from ``connect`` to ``release``. Not thread-safe. Every method raises SojournError only.

    The order: connect, place, start; if one fails, undo; in the end release. Or, for the end of a session: connect, wait_removed, release.
    The steps of ``connect`` can be gone one by one, as far as one wants: resolve, reach, admit, sign_in.
    """

    #: What is behind the port, in messages.
    service: t.ClassVar[str] = ''
    #: Whether its connection can carry the channel: see ``open_stream``.
    tunnels: t.ClassVar[bool] = True
    #: Whether what is behind the port bears with who has reached it and signs in only later, and ends it by itself where that does not come.
    bears_waiting: t.ClassVar[bool] = False

    def __init__(self, target: Target, run: str) -> None:
        self.target = target
        self.run = run
        self.name = name_of(run)
        #: The target's addresses in the order to try them, and what came of those that were tried.
        self.peers: list[network.Peer] = []
        self.attempts: list[network.Attempt] = []
        #: The address that was reached, and this end's address on that connection.
        self.peer: network.Peer | None = None
        self.controller_address: str | None = None
        #: How far that is, there and back.
        self.round_trip_seconds = 0.0
        #: Who signed in, once somebody has; None: whom the options name.
        self.login_user: str | None = target.user
        #: Variables that the target set for whoever came in this way; a login user's commands have them too.
        self.environment: dict[str, str] = {}
        self.step = 'connecting'
        self._left: SojournError | None = None

    @staticmethod
    def fact(find_out: t.Callable[[], t.Any]) -> t.Any:
        """What ``find_out`` returns, or the error that it raises. Raises SD-205: whom is one to ask further?"""
        try:
            return find_out()
        except SojournError as error:
            if error.code == 'SD-205':
                raise
            return error

    def error(self, code: str, **fields: t.Any) -> SojournError:
        """An error of this host, at the present step."""
        return SojournError(code, host=self.target.host, step=self.step, **fields)

    # Connecting

    def connect(self) -> None:
        """Reaches the target and signs in. Raises 2xx and 3xx."""
        self.resolve()
        self.reach()
        self.admit()
        self.sign_in()

    def entry(self) -> Entry:
        """Where to connect to: the target itself, unless one gets there over another host. Raises SD-108, SD-109."""
        return Entry(self.target.address, self.target.port, self.target.connection_timeout)

    @property
    def led(self) -> bool:
        """Whether it is over another host, or another program, that one gets to the target: then ``peer`` is not the target's."""
        return False

    @property
    def looks_up(self) -> bool:
        """Whether it is an address that is connected to."""
        return True

    def described_way(self) -> list[str]:
        """Over whom one gets to the target, where ``led``."""
        return []

    def agent_peer(self) -> network.Peer:
        """The target's address for a connection from here to the agent; where ``led``, what it is called by."""
        return t.cast(network.Peer, self.peer)

    def resolve(self) -> None:
        """Finds ``peers``. Raises SD-108, SD-109, SD-201."""
        with steps.step('resolve', self.target.address) as step, self._at_host():
            entry = self.entry()
            self.peers = network.resolve(entry.address, entry.port, entry.family)
            step.detail = ', '.join(peer.address for peer in self.peers)

    def reach(self) -> None:
        """Connects to the first of ``peers`` that answers, and begins to speak its protocol; nothing of the user is sent.

        Raises SD-202 to SD-205, SD-303, SD-304, SD-404.
        """
        entry = self.entry()
        self.step = 'connecting'
        with steps.step('connect', f'port {entry.port}') as step, self._at_host():
            began = time.monotonic()
            connection, self.peer = network.connect_any(
                self.peers, timeout=entry.timeout, service=self.service, step=self.step, on_attempt=self.attempts.append)
            self.round_trip_seconds = network.round_trip(connection) or time.monotonic() - began
            self.controller_address = network.local_address(connection)
            step.detail = f'{self.peer.address} port {entry.port}, from {self.controller_address}'
        self._begin(connection)

    @contextlib.contextmanager
    def _at_host(self) -> t.Iterator[None]:
        try:
            yield
        except SojournError as error:
            error.at(host=self.target.host)
            raise

    def _begin(self, connection: socket.socket) -> None:
        """Begins to speak the way in's protocol on a connection."""
        raise NotImplementedError

    def admit(self) -> None:  # noqa: B027  only SSH has something to remember
        """Remembers on the controller what ``reach`` has learnt of the target, where the options want that. Raises SD-709."""

    def sign_in(self) -> None:
        """Signs in. Raises SD-205, 3xx, SD-401."""
        raise NotImplementedError

    def notice_silence(self, *, soon: bool) -> None:  # noqa: B027  only a connection that was begun long before its use can have ended unnoticed
        """Has the connection end soon where the other end does not so much as take what is sent; or takes that back. A slow answer is another matter."""

    # Diagnosis

    def credentials(self) -> Facts:
        """What it would sign in with, and why, without doing so: nothing goes over the network. The last may be an error: there is nothing."""
        raise NotImplementedError

    def other_end(self) -> Facts:
        """What is known of the other end after ``reach``, be it that it failed."""
        raise NotImplementedError

    def look(self) -> Facts:
        """After ``connect``: what the target is, and what the user may do there. Changes nothing. Raises SD-305, SD-306, SD-404."""
        raise NotImplementedError

    def survey(self) -> t.Iterator[tuple[str, t.Any]]:
        """After ``reach`` and a sign-in: facts by their names, as far as they can be had with nothing changed, each as it is found (see preflight.py).

        A fact is an error where the target refuses to tell it. Raises SD-205, and what else makes it vain to go on.
        """
        raise NotImplementedError

    # The agent

    @abc.abstractmethod
    def place(self, session: str) -> None:
        """Puts the executable into the agent's folder. Raises 4xx, ``AlreadyPlaced``."""

    @abc.abstractmethod
    def start(self, config: Config) -> Ready:
        """Starts the agent as a service and waits until it is ready. Raises 3xx (rights), 4xx, 6xx."""

    def find_restarted(self, known: Ready) -> Ready | None:
        """Where the agent that once was ``known`` has started by itself with the target: what it answers now. None where none does so."""
        return None

    @abc.abstractmethod
    def undo(self) -> None:
        """Takes back all that place and start did, as far as they came, whether an agent runs or not. Raises SD-801.

        That is also the error of an agent that could not close its firewall rules.
        """

    def rights(self) -> t.Any:
        """What it has found out of the user's rights, for ``remind``; None: nothing, or it is of no use there."""
        return None

    def remind(self, rights: t.Any) -> None:  # noqa: B027  most find them out at no cost
        """Before ``connect``: what another way in has found for the same target, so that it need not be looked for again. It may have changed since."""

    @abc.abstractmethod
    def wait_removed(self, patience: float = REMOVE_SECONDS) -> list[str]:
        """Waits at most ``patience`` seconds for an agent to remove itself, then removes what is left, but for firewall rules: see ``left``.

        Returns what is gone. Raises SD-801.
        """

    def left(self) -> SojournError | None:
        """Why firewall rules of the run may still be there after ``wait_removed``: what its agent said, or that it did not remove itself."""
        return self._left

    def _left_of(self, told: bytes | None) -> SojournError | None:
        """The error for ``left`` of what was in the file of a folder that was still there; empty: there was no such file; None: nor a folder."""
        if told is None:
            return None
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            return SojournError.from_ready(json.loads(told)['error'], host=self.target.host, step=self.step)
        return self.error('SD-801', what='The agent', detail='it did not remove itself')

    @abc.abstractmethod
    def find(self) -> list[Found]:
        """What runs of this project, dead or live, have on the target. Changes nothing."""

    @abc.abstractmethod
    def remove_found(self, found: Found) -> None:
        """Removes one of them without an agent's help. Raises SD-801."""

    @abc.abstractmethod
    def release(self) -> None:
        """Ends the connection. Never raises."""

    # The tunnel. These are thread-safe, unlike the rest, once ``keep`` has been called; nothing but them and ``release`` is called then.

    def keep(self) -> None:  # noqa: B027  one that leads to no tunnel has nothing to keep
        """The connection stays for streams: lets go of what else it holds, and notices from now on when the other end is gone. Never raises."""

    @property
    def alive(self) -> bool:
        """Whether the connection is there still, as far as is known without asking."""
        return False

    def open_stream(self, place: str, port: int, timeout: float) -> Stream:
        """A stream to what listens on the target: on this port of an address of its loopback, or, where the port is 0, behind a pipe of this name.

        ``timeout``: seconds to open it, and until ``settimeout`` for each wait. Raises NothingThere, SD-205, SD-506.
        """
        raise self.error('SD-506', detail=f'the way in {self.target.way_in} leads to none')
