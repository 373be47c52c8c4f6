# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints what came of a deployment as one table of all hosts; it touches no target."""

from __future__ import annotations

import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.sojourn.deploy.plugins.action.packages import UNREACHABLE
from ansible_collections.sojourn.deploy.plugins.plugin_utils.return_codes import FAILED

display = Display()

_COLUMNS = ('host', 'package', 'state', 'version', 'seconds')

Row = t.Mapping[str, t.Any]


def _is_bad(row: Row) -> bool:
    """Whether something went wrong here; a dropped package comes after one that did."""
    return (row.get('state') or FAILED) in (FAILED, UNREACHABLE)


def _one_line(text: t.Any) -> str:
    return ' '.join(str(text).split())


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


def rows_of(result: t.Any) -> list[Row]:
    """The rows of a host: a list of them, or the registered result of ``sojourn.deploy.packages``, which may have failed before it had any.

    Raises ValueError for anything else.
    """
    if isinstance(result, (list, tuple)):
        return list(result)
    if not isinstance(result, t.Mapping):
        raise ValueError("'results' maps each host to a list, or to a result of sojourn.deploy.packages")
    rows = list(result.get('results') or ())
    if not rows and (result.get('failed') or result.get('unreachable') or result.get('error')):
        rows.append({'package': '-', 'state': UNREACHABLE if result.get('unreachable') else FAILED, 'msg': result.get('msg')})
    return rows


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
    return [host for host, rows in results.items() if any(map(_is_bad, rows))]


def errors(results: t.Mapping[str, t.Sequence[Row]]) -> dict[str, str]:
    """For each of these hosts why, in one line."""
    bad = failed_hosts(results)
    return {host: ' '.join(_one_line(row['msg']) for row in results[host] if _is_bad(row) and row.get('msg')) for host in bad}


def table(results: t.Mapping[str, t.Sequence[Row]]) -> list[str]:
    """The lines of the table: a line for each host and package, and below a failed one why."""
    cells: list[tuple[str, ...] | str] = [_COLUMNS]
    for host, rows in results.items():
        if not rows:
            cells.append((host, '-', 'no packages', '-', '-'))
        for number, row in enumerate(rows):
            state = str(row.get('state') or FAILED)
            cells.append(('' if number else host, str(row.get('package') or '-'), state.replace('_', ' '), _version(row), _seconds(row)))
            if _is_bad(row) and row.get('msg'):
                cells.append(f"  {_one_line(row['msg'])}")
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
        'removals': {'type': 'dict', 'default': {}},
        'title': {'type': 'str', 'default': 'DEPLOY RECAP'},
    }

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Prints the table and returns it, with what it counts."""
        result = super().run(tmp, task_vars)
        del tmp
        validated = ArgumentSpecValidator(self.ARGUMENTS).validate(dict(self._task.args))
        options = validated.validated_parameters
        try:
            if validated.error_messages:
                raise ValueError(validated.error_messages[0])
            results = {host: rows_of(value) for host, value in options['results'].items()}
        except ValueError as error:
            return {**result, 'failed': True, 'msg': str(error)}
        for host, removal in options['removals'].items():
            if isinstance(removal, t.Mapping) and (removal.get('failed') or removal.get('unreachable')):
                results.setdefault(host, []).append({'package': '(agent)', 'state': FAILED, 'msg': removal.get('msg')})
        lines = table(results)
        display.banner(options['title'] + (' (check mode: nothing was changed)' if self._task.check_mode else ''))
        for line in lines:
            display.display(line)
        return {**result, 'changed': False, 'table': lines, 'states': count(results), 'failed_hosts': failed_hosts(results), 'errors': errors(results)}
