# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session on the controller's disk, so that the user's next broker can take it over when this one has died; not what is done with it (session.py).

There is one file for each session, in a folder that only its user can enter. It holds the session's private key, and so is as good as
the session: it is deleted with it. Whoever holds the file's lock has the session, and the kernel lets go of a lock when its process ends,
however that ends. Hence a file without a lock is a session whose broker is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils import broker_client, network
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target

log = logging.getLogger('sojourn.session')

#: Days after which a session that nobody took over is forgotten: its agent has ended long since, unless its installation runs still.
FORGET_DAYS = 7
_NAME = re.compile(r'[0-9a-f]{32}-[0-9a-f]{12}\.json')


def folder() -> str:
    """Where the files are: ``$XDG_STATE_HOME/sojourn``, by default ``~/.local/state/sojourn``."""
    state = os.environ.get('XDG_STATE_HOME')
    if not state or not os.path.isabs(state):
        state = os.path.join(os.path.expanduser('~'), '.local', 'state')
    return os.path.join(state, 'sojourn')


def private_folder() -> str:
    """The same, made where it is missing, checked to be this user's alone. Raises SD-902."""
    path = folder()
    with contextlib.suppress(OSError):  # what cannot be made is told by the next line
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    broker_client.make_private_folder(path)
    return path


@dataclasses.dataclass(frozen=True)
class Record:
    """What it takes to talk to a session's agent again. ``peer`` and ``fingerprint`` are None while there is no agent yet."""

    #: Target.key, hashed: tells whether it is the target that is looked for, and shows nobody which one it is.
    target: str
    run: str
    #: In the agent's folder; see SESSION_FILE.
    token: str
    #: The broker's folder: which ansible-playbook it was.
    owner: str
    #: Certificate and private key.
    credentials: str = dataclasses.field(repr=False)
    peer: network.Peer | None = None
    fingerprint: str | None = None
    #: See Ready.tunnel; empty: its port is open.
    tunnel: str = ''
    #: See WayIn.environment.
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    #: Who signed in; None where that is not known.
    user: str | None = None

    def to_json(self) -> bytes:
        """As the file has it."""
        return json.dumps(dataclasses.asdict(self)).encode('utf-8')

    @classmethod
    def from_json(cls, data: bytes) -> Record:
        """What ``to_json`` made. Raises ValueError, TypeError, KeyError, AttributeError for anything else."""
        values = json.loads(data)
        peer = values.pop('peer')
        return cls(peer=network.Peer(peer['family'], tuple(peer['sockaddr'])) if peer else None, **values)


def target_hash(target: Target) -> str:
    """``Record.target`` of a target."""
    return hashlib.sha256(target.key.encode('utf-8', 'surrogateescape')).hexdigest()[:32]


class SessionFile:
    """One session's file, locked as long as this object holds it."""

    def __init__(self, path: str, descriptor: int, record: Record) -> None:
        self.path = path
        self.record = record
        self._descriptor: int | None = descriptor

    @classmethod
    def create(cls, record: Record) -> SessionFile:
        """Writes the file, or writes it anew. Raises OSError, SojournError."""
        path = os.path.join(private_folder(), f'{record.target}-{record.run}.json')
        # Written and locked under another name: whoever sees it sees all of it, and that it is held.
        aside = f'{path}.{secrets.token_hex(4)}'
        descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            data = record.to_json()
            if os.write(descriptor, data) != len(data):
                raise OSError('the file could not be written as a whole')
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            os.close(descriptor)
            raise
        return cls(path, descriptor, record)

    @classmethod
    def take(cls, path: str) -> SessionFile | None:
        """Takes a file that nobody holds; None where somebody does, or it is none."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise OSError('it is not this user\'s alone')  # somebody may have put it there
            # Between open and lock its holder may have deleted it, or written it anew.
            if os.fstat(descriptor).st_nlink and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return cls(path, descriptor, Record.from_json(os.read(descriptor, 1 << 20)))
        except OSError:
            pass
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning('%s is no session: %r', path, error)
        os.close(descriptor)
        return None

    def rewrite(self, **changes: t.Any) -> SessionFile:
        """The file with other content; this object is let go. Raises OSError, SojournError, and then this object holds the old file still."""
        new = SessionFile.create(dataclasses.replace(self.record, **changes))
        self._close()
        return new

    def let_go(self) -> None:
        """Gives up the lock and leaves the file: from now on another broker may take the session over."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def take_back(self) -> bool:
        """After ``let_go``: takes the lock again; False where another broker has, or has had, the session."""
        if self._descriptor is None:
            return False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(self._descriptor).st_nlink > 0
        except OSError:
            return False

    def forget(self) -> None:
        """After ``take_back`` has failed: closes the file that is another's now."""
        self._close()

    def remove(self) -> None:
        """Deletes the file; never raises."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _names() -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder()) if _NAME.fullmatch(name))
    except OSError:
        return []


def abandoned(target: Target) -> t.Iterator[SessionFile]:
    """Takes the sessions with this target whose broker is gone, one after the other. Each is the caller's to keep or to remove."""
    for name in _names():
        if name.startswith(target_hash(target)) and (found := SessionFile.take(os.path.join(folder(), name))):
            yield found


def abandoned_by(owner: str) -> t.Iterator[SessionFile]:
    """Takes the sessions of an earlier broker of the same run."""
    for name in _names():
        path = os.path.join(folder(), name)
        # Not by taking it: who comes for another's in that moment must not find it taken.
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError), open(path, 'rb') as file:
            if Record.from_json(file.read(1 << 20)).owner == owner and (found := SessionFile.take(path)):
                yield found


def remove_run(target: Target, run: str) -> None:
    """Removes the session of a run of which nothing is left on the target; not one that somebody holds."""
    found = SessionFile.take(os.path.join(folder(), f'{target_hash(target)}-{run}.json'))
    if found is not None:
        found.remove()


def forget_old() -> None:
    """Removes what nobody came back for."""
    for name in _names():
        path = os.path.join(folder(), name)
        with contextlib.suppress(OSError):
            if time.time() - os.stat(path).st_mtime > FORGET_DAYS * 86400 and (found := SessionFile.take(path)):
                found.remove()
    # What a broker that was killed while it wrote has left, and word that nobody came for.
    with contextlib.suppress(OSError):
        for name in os.listdir(folder()):
            path = os.path.join(folder(), name)
            with contextlib.suppress(OSError):
                if not _NAME.fullmatch(name) and time.time() - os.stat(path).st_mtime > FORGET_DAYS * 86400:
                    os.unlink(path)


def keep(record: Record) -> SessionFile | None:
    """``create``, where it can be done: a session works without its file, only nobody can take it over."""
    try:
        return SessionFile.create(record)
    except (OSError, SojournError) as error:
        log.warning('the session cannot be kept on the disk, so that no later run can take it over: %s', error)
        return None
