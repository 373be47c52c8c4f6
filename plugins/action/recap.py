# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints what came of a deployment as one table of all hosts; it touches no target."""

from __future__ import annotations

import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.sojourn.deploy.plugins.plugin_utils.return_codes import FAILED

display = Display()

UNREACHABLE = 'unreachable'
#: States, beside failed and unreachable, that show that the deployment to a host is not complete.
_BAD = (FAILED, UNREACHABLE, 'dropped')
_COLUMNS = ('host', 'package', 'state', 'version', 'seconds')

Row = t.Mapping[str, t.Any]


def _version(row: Row) -> str:
    before, after = row.get('version_before'), row.get('version_after')
    if before == after:
        return str(after or '-')
    return f'{before or "-"} → {after or "-"}'


def _seconds(row: Row) -> str:
    seconds = row.get('seconds')
    if isinstance(seconds, t.Mapping):
        seconds = seconds.get('total')
    return f'{seconds:.1f}' if isinstance(seconds, (int, float)) else '-'


def count(results: t.Mapping[str, t.Sequence[Row]]) -> dict[str, int]:
    """How many packages ended in each state, over all hosts."""
    states: dict[str, int] = {}
    for rows in results.values():
        for row in rows:
            state = str(row.get('state') or FAILED)
            states[state] = states.get(state, 0) + 1
    return states


def failed_hosts(results: t.Mapping[str, t.Sequence[Row]]) -> list[str]:
    """Hosts on which something is not as it was to be."""
    return [host for host, rows in results.items() if any((row.get('state') or FAILED) in _BAD for row in rows)]


def table(results: t.Mapping[str, t.Sequence[Row]]) -> list[str]:
    """The lines of the table: a line for each host and package, and below a failed one why."""
    cells: list[tuple[str, ...] | str] = [_COLUMNS]
    for host, rows in results.items():
        if not rows:
            cells.append((host, '-', 'no packages', '-', '-'))
        for number, row in enumerate(rows):
            state = str(row.get('state') or FAILED)
            cells.append(('' if number else host, str(row.get('package') or '-'), state.replace('_', ' '), _version(row), _seconds(row)))
            if state in _BAD[:2] and row.get('msg'):
                cells.append('  ' + ' '.join(str(row['msg']).split()))
    widths = [max(len(line[column]) for line in cells if isinstance(line, tuple)) for column in range(len(_COLUMNS))]
    lines = []
    for line in cells:
        if isinstance(line, tuple):
            *left, right = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            line = '  '.join((*left, right.strip().rjust(widths[-1])))
        lines.append(line.rstrip())
    return lines


class ActionModule(ActionBase):
    """``sojourn.deploy.recap``; documented in plugins/modules/recap.py."""

    _requires_connection = False

    ARGUMENTS = {
        'results': {'type': 'dict', 'required': True},
        'title': {'type': 'str', 'default': 'DEPLOY RECAP'},
    }

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Prints the table and returns it, with what it counts."""
        result = super().run(tmp, task_vars)
        del tmp
        validated = ArgumentSpecValidator(self.ARGUMENTS).validate(dict(self._task.args))
        results = validated.validated_parameters.get('results')
        if validated.error_messages or not all(isinstance(rows, (list, tuple)) for rows in results.values()):
            detail = validated.error_messages[0] if validated.error_messages else "'results' maps each host to a list"
            return {**result, 'failed': True, 'msg': detail}
        lines = table(results)
        title = validated.validated_parameters['title']
        if self._task.check_mode:
            title += ' (check mode: nothing was changed)'
        display.banner(title)
        for line in lines:
            display.display(line)
        return {**result, 'changed': False, 'table': lines, 'states': count(results), 'failed_hosts': failed_hosts(results)}
