# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run is to install where, and what came of it, so that after a run that was cut off one can tell which packages went on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import threading
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils import return_codes, session_file
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

#: States of a package that is not done yet; the others are those of return_codes and of the action ``packages``.
PENDING, INSTALLING = 'pending', 'installing'
DROPPED = 'dropped'

_FILE = 'cut-off-'


@dataclasses.dataclass
class Row:
    """One package on one host."""

    host: str
    package: str
    state: str
    msg: str = ''
    #: The meaning of exit codes: {code: [state, meaning]}, as JSON has it.
    codes: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    #: State and message that follow from how its process ended, as long as who asked for it has not said what it makes of that.
    outcome: tuple[str, str] | None = None

    def to_dict(self) -> dict[str, str]:
        """For showing."""
        return {'host': self.host, 'package': self.package, 'state': self.state, 'msg': self.msg}


def _outcome(row: Row, end: dict[str, t.Any] | BaseException) -> tuple[str, str]:
    if isinstance(end, BaseException):
        sentence = end.sentence if isinstance(end, SojournError) else str(end) or type(end).__name__
        return return_codes.FAILED, f'nobody knows how it ended: {sentence}'
    if end.get('timed_out'):
        return return_codes.FAILED, 'it did not end in time, and was killed'
    code = end.get('exit_code')
    if code is None:
        return return_codes.FAILED, 'it was killed'
    outcome = return_codes.outcome({int(code): return_codes.Outcome(state, meaning) for code, (state, meaning) in row.codes.items()}, code)
    return outcome.state, f'exit code {code}: {outcome.meaning}'


class Ledger:
    """All rows of a run by their keys, in the order of their announcement. Thread-safe."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._lock = threading.Lock()

    def note(self, host: str, key: str | None, **changes: t.Any) -> str:
        """Adds a row, or changes the one of this key, which an earlier broker of the run may have given; returns its key."""
        with self._lock:
            key = key or secrets.token_hex(8)
            row = self._rows.setdefault(key, Row(host=host, package='', state=PENDING))
            for name in ('package', 'state', 'msg', 'codes'):
                if changes.get(name) is not None:
                    setattr(row, name, changes[name])
            return key

    def ended(self, key: str | None, end: dict[str, t.Any] | BaseException, *, final: bool = True) -> Row | None:
        """An installation's process has ended, or is lost: what that means. None for one that was not announced.

        Where that is not ``final``, somebody waited for it, and will note what came of it unless the run is cut off before.
        """
        with self._lock:
            row = self._rows.get(key or '')
            if row is None:
                return None
            outcome = _outcome(row, end)
            if final:
                row.state, row.msg = outcome
            else:
                row.outcome = outcome
            return row

    def cut_off(self) -> list[Row]:
        """The run has ended: what had not begun is dropped, and of what had begun and nobody has followed nobody knows. The rows that this changes."""
        changed = []
        with self._lock:
            for row in self._rows.values():
                if row.state == PENDING:
                    row.state, row.msg = DROPPED, 'the run was cut off before it began'
                    changed.append(row)
                elif row.state == INSTALLING:
                    row.state, row.msg = row.outcome or (return_codes.FAILED, 'the run was cut off, and nobody knows whether it began, or how it ended')
                    changed.append(row)
        return changed

    @property
    def rows(self) -> list[Row]:
        """All of them."""
        with self._lock:
            return list(self._rows.values())

    @property
    def unfinished(self) -> bool:
        """Whether something is announced that has not ended."""
        with self._lock:
            return any(row.state in (PENDING, INSTALLING) for row in self._rows.values())


# For the next run, where nobody could be told

def leave(run: str, rows: t.Sequence[Row]) -> None:
    """Writes down what became of a run that was cut off, for ``take``. Raises OSError, SojournError."""
    path = os.path.join(session_file.private_folder(), f'{_FILE}{run}.json')
    aside = os.path.join(os.path.dirname(path), f'.{os.path.basename(path)}')  # whoever sees it sees all of it
    with open(aside, 'w', encoding='utf-8', opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump({'time': time.time(), 'rows': [row.to_dict() for row in rows]}, file)
    os.replace(aside, path)


def take() -> list[dict[str, t.Any]]:
    """What earlier runs left word of: ``{'time' (seconds since 1970), 'rows': [...]}``, the oldest first. Each is given once."""
    folder = session_file.folder()
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if not name.startswith(_FILE):
                continue
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError, ValueError), open(path, encoding='utf-8') as file:
                if os.fstat(file.fileno()).st_uid == os.geteuid():
                    found.append(json.load(file))
                    os.unlink(path)
    return sorted(found, key=lambda entry: entry.get('time', 0))
