# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way in once more, begun before the end of a session that needs it, where there is reason to think that the end is near."""

from __future__ import annotations

import logging
import threading

from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import WayIn

log = logging.getLogger('sojourn.way_back')

#: Seconds for which what was begun waits for the end; a task that is the last may take hours.
WAIT_SECONDS = 5.0


class WayBack:
    """A way in that goes on by itself up to its sign-in, and ends where nobody takes it in time.

    No further: a connection without a sign-in ends by itself, as the target sees it (sshd's LoginGraceTime), even where the network is cut for good.
    One with a sign-in would stay there for hours. Thread-safe.
    """

    def __init__(self, way_in: WayIn) -> None:
        self._way_in = way_in
        self._lock = threading.Lock()
        #: Set once it has come as far as it goes, or has failed.
        self._come = threading.Event()
        #: Set once it is known what becomes of it.
        self._decided = threading.Event()
        self._taken = False
        self._there = True
        threading.Thread(target=self._go, name=f'way back {way_in.target.host}', daemon=True).start()

    @property
    def there(self) -> bool:
        """Whether it is on its way, or waits."""
        return self._there

    def _go(self) -> None:
        try:
            self._way_in.resolve()
            self._way_in.reach()
            self._come.set()
            self._decided.wait(WAIT_SECONDS)
        except SojournError as error:
            log.info('%s: not begun beforehand: %s', self._way_in.target.host, error)
        except Exception:
            log.exception('%s: connecting for the end', self._way_in.target.host)
        finally:
            with self._lock:
                self._there = False
            self._come.set()
            if not self._taken:
                self._way_in.release()

    def take(self) -> WayIn | None:
        """What can sign in; from now on it is the caller's. None: there is none. It waits for one that is on its way."""
        self._come.wait()
        with self._lock:
            if not self._there:
                return None
            self._taken = True
            self._decided.set()
            return self._way_in

    def give_up(self) -> None:
        """It keeps others from the target's service for no good: nobody will take it."""
        self._decided.set()
