# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A process that runs on a target for somebody on the controller: how it is fed, cancelled and outlived; not how it is started (session.py)."""

from __future__ import annotations

import secrets
import threading
import typing as t

#: What a job came to: the answer of ``Agent.execute`` without the output, or the exception.
End = dict[str, t.Any] | BaseException


class Job:
    """A process that runs for a caller, as far as somebody else than the caller's thread deals with it: to kill it, or to feed it.

    With ``finish`` it is an installation: when the caller goes away it is let finish. ``on_watch`` is to have somebody look whether the caller is there
    still, from when that matters on; ``on_start`` is called once the agent has started the process; ``on_end`` is told what it came to, and whether
    the caller still was there to hear it.
    """

    def __init__(self, *, handle: str | None = None, finish: bool = False, package: str | None = None, on_watch: t.Callable[[], None] | None = None,
                 on_start: t.Callable[[], None] | None = None, on_end: t.Callable[[End, bool], None] | None = None) -> None:
        #: The agent's name for it, chosen here so that the order to start it can be sent again.
        self.handle = handle or secrets.token_hex(16)
        self.finish = finish
        #: For people; None: it installs nothing.
        self.package = package
        self._on_watch = on_watch
        self._on_start = on_start
        self._on_end = on_end
        self._lock = threading.Lock()
        self._kill: t.Callable[[], None] | None = None
        self._write: t.Callable[[bytes, bool, bool], None] | None = None
        self._early: list[tuple[bytes, bool, bool]] = []
        #: Set once nobody waits for the result any more, and the process is to be killed.
        self.cancelled = threading.Event()
        #: Set once nobody waits for the result any more.
        self.left = threading.Event()
        self.finished = False

    def watch(self) -> None:
        """Something begins that may take long; called by the caller's own thread. Most commands are over before that."""
        on_watch, self._on_watch = self._on_watch, None
        if on_watch is not None:
            on_watch()

    def started(self, kill: t.Callable[[], None], write: t.Callable[[bytes, bool, bool], None]) -> None:
        """From now on the agent has it."""
        with self._lock:
            self._kill, self._write = kill, write
            early, self._early = self._early, []
        self.watch()
        if self._on_start is not None:
            self._on_start()
        for data, close, answer in early:
            write(data, close, answer)
        if self.cancelled.is_set():
            kill()

    def leave(self) -> None:
        """The caller is gone, without a word: an installation goes on, anything else is killed."""
        if self.finish:
            self.left.set()
        else:
            self.cancel()

    def cancel(self) -> None:
        """Kills the process's tree, now or as soon as there is one."""
        with self._lock:
            self.left.set()
            if self.finished:
                return
            self.cancelled.set()
            kill = self._kill
        if kill is not None:
            kill()

    def write(self, data: bytes, close: bool, answer: bool = False) -> None:
        """Bytes for its standard input; see ``broker_client.Input``."""
        with self._lock:
            if self._write is None:
                self._early.append((data, close, answer))
                return
            write = self._write
        write(data, close, answer)

    def ended(self, end: End) -> None:
        """It has ended, or is lost."""
        with self._lock:
            self.finished = True
        if self._on_end is not None:
            self._on_end(end, not self.left.is_set())
