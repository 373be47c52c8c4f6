# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long each step towards a target takes, and who is told; not what is shown of it (connection_base.py, at -vvv).

A step is measured in the broker, in the thread that serves the call for whose sake it is done. A caller that asked for it hears of each step
as it ends, so that one that hangs shows by what is missing. What the broker does by itself is nobody's call, and is told to nobody.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
import typing as t

#: The step in which ``transport: auto`` takes the tunnel: users hear of it sooner than of others.
NOT_DIRECTLY = 'not directly'
#: Called with a step's name, its seconds, what came of it, and whether it failed. It must not raise.
Listener = t.Callable[[str, float, str, bool], None]

_listener: contextvars.ContextVar[Listener | None] = contextvars.ContextVar('listener', default=None)


class Step:
    """A step that is being done; who does it sets ``detail``, which holds no secret."""

    __slots__ = ('detail',)

    def __init__(self, detail: str) -> None:
        self.detail = detail


@contextlib.contextmanager
def step(name: str, detail: str = '') -> t.Iterator[Step]:
    """Measures what is done in the context."""
    current = Step(detail)
    begin = time.monotonic()
    good = False
    try:
        yield current
        good = True
    finally:
        listener = _listener.get()
        if listener is not None:
            listener(name, time.monotonic() - begin, current.detail, not good)


@contextlib.contextmanager
def told(listener: Listener | None) -> t.Iterator[None]:
    """The steps of this thread are told to ``listener`` while the context lasts."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
