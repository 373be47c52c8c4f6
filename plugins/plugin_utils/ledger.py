# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run is to install where, and what came of it, so that after a run that was cut off one can tell which packages went on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
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

    def to_dict(self) -> dict[str, str]:
        """For showing."""
        return {'host': self.host, 'package': self.package, 'state': self.state, 'msg': self.msg}


class Ledger:
    """All rows of a run, in the order of their announcement. Thread-safe."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._lock = threading.Lock()

    def note(self, host: str, number: int | None, **changes: t.Any) -> int:
        """Adds a row, or changes the one of this number; returns its number."""
        with self._lock:
            if number is None or not 0 <= number < len(self._rows):
                self._rows.append(Row(host=host, package='', state=PENDING))
                number = len(self._rows) - 1
            row = self._rows[number]
            for name in ('package', 'state', 'msg', 'codes'):
                if changes.get(name) is not None:
                    setattr(row, name, changes[name])
            return number

    def ended(self, number: int | None, end: dict[str, t.Any] | BaseException) -> Row | None:
        """An installation that nobody waited for any more has ended, or is lost: what that means. None for one that was not announced."""
        with self._lock:
            if number is None or not 0 <= number < len(self._rows):
                return None
            row = self._rows[number]
            if isinstance(end, BaseException):
                sentence = end.sentence if isinstance(end, SojournError) else str(end) or type(end).__name__
                row.state, row.msg = return_codes.FAILED, f'nobody knows how it ended: {sentence}'
            elif end.get('timed_out'):
                row.state, row.msg = return_codes.FAILED, 'it did not end in time, and was killed'
            else:
                table = {int(code): return_codes.Outcome(state, meaning) for code, (state, meaning) in row.codes.items()}
                code = end.get('exit_code')
                outcome = return_codes.outcome(table, code) if code is not None else return_codes.Outcome(return_codes.FAILED, 'it was killed')
                row.state, row.msg = outcome.state, f'exit code {code}: {outcome.meaning}' if code is not None else outcome.meaning
            return row

    def cut_off(self) -> list[Row]:
        """The run has ended: what had not begun is dropped. The rows, if there was anything unfinished when it ended; else none."""
        with self._lock:
            for row in self._rows:
                if row.state == PENDING:
                    row.state, row.msg = DROPPED, 'the run was cut off before it began'
            return list(self._rows)

    @property
    def unfinished(self) -> bool:
        """Whether something is announced that has not ended."""
        with self._lock:
            return any(row.state in (PENDING, INSTALLING) for row in self._rows)


# For the next run, where nobody could be told

def leave(run: str, rows: t.Sequence[Row]) -> None:
    """Writes down what became of a run that was cut off, for ``take``. Raises OSError, SojournError."""
    path = os.path.join(session_file.private_folder(), f'{_FILE}{run}.json')
    with open(path, 'w', encoding='utf-8', opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump({'time': time.time(), 'rows': [row.to_dict() for row in rows]}, file)


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
                found.append(json.load(file))
            with contextlib.suppress(OSError):
                os.unlink(path)
    return sorted(found, key=lambda entry: entry.get('time', 0))
