# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Installs a list of packages on the target, in order, each by the action install; it decides only whether to go on."""

from __future__ import annotations

import os
import typing as t

from ansible import constants as C
from ansible.module_utils.parsing.convert_bool import boolean

from ansible_collections.sojourn.deploy.plugins.action.install import ActionModule as Install
from ansible_collections.sojourn.deploy.plugins.plugin_utils import return_codes
from ansible_collections.sojourn.deploy.plugins.plugin_utils.action_base import AgentAction, display
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.ledger import DROPPED

#: Beside the states of a package and DROPPED (an earlier package failed): the host did not answer.
UNREACHABLE = 'unreachable'
#: Of a package's result, what only its own log file has room for; a failed one keeps this many characters of each.
_LONG = ('log', 'stdout', 'stderr')
_KEPT = 2000


def _name(package: dict[str, t.Any]) -> str:
    return os.path.basename(str(package['src']).rstrip('/'))


class ActionModule(AgentAction):
    """``sojourn.deploy.packages``; documented in plugins/modules/packages.py."""

    ARGUMENTS = {
        'packages': {'type': 'list', 'elements': 'dict', 'required': True},
        'stop_on_failure': {'type': 'bool', 'default': True},
        'log_dest': {'type': 'path'},
    }

    def blank(self) -> dict[str, t.Any]:
        """What every result has."""
        return {'changed': False, 'results': []}

    def act(self, result: dict[str, t.Any], task_vars: dict[str, t.Any]) -> None:
        """Installs the packages; the result has failed if one of them did. Raises SojournError for a list that cannot be read."""
        self._check_packages()
        stopped = False
        packages = [package for package in self.options['packages'] if boolean(package.get('when', True))]
        for package, key in zip(packages, self._announce(packages), strict=True):
            row: dict[str, t.Any] = {'package': _name(package)}
            if stopped:
                row.update(state=DROPPED, msg='An earlier package failed.')
                self.agent.note(key, package=row['package'], state=DROPPED, msg=row['msg'])
            else:
                row.update(self._install(package, key, task_vars))
                stopped = row['state'] == UNREACHABLE or (row['state'] == return_codes.FAILED and self.options['stop_on_failure'])
            if 'diff' in row:
                result.setdefault('diff', []).append(row.pop('diff'))
            result['results'].append(row)
            self._show_row(row)
        self._conclude(result)

    def _announce(self, packages: list[dict[str, t.Any]]) -> list[str | None]:
        """Tells the broker what is to come, for the case that the run is cut off; gives each package's key in its ledger."""
        if self.check_mode:
            return [None] * len(packages)
        return [self.agent.note(package=_name(package)) for package in packages]

    def _check_packages(self) -> None:
        for number, package in enumerate(self.options['packages'], start=1):
            if 'src' not in package:
                raise self._bad(f"package {number} has no 'src'")
            unknown = sorted(set(package) - set(Install.ARGUMENTS) - {'when'})
            if unknown:
                raise self._bad(f"package {number} ({package['src']}) has '{unknown[0]}', which is not an option of sojourn.deploy.install")

    @staticmethod
    def _bad(detail: str) -> SojournError:
        return SojournError('SD-102', step='reading the options', option='packages', detail=detail)

    def _install(self, package: dict[str, t.Any], key: str | None, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """One package's result, as a row."""
        task = self._task.copy()
        task.args = {'skip_wrong_family': True, 'log_dest': self.options['log_dest'], **{name: value for name, value in package.items() if name != 'when'}}
        action = Install(task, self._connection, self._play_context, self._loader, self._templar, self._shared_loader_obj)
        action.key = key
        answer = action.run(task_vars=task_vars)
        row = {name: value for name, value in answer.items() if not name.startswith('_') and name not in ('failed', 'unreachable', 'package', *_LONG)}
        # The host is named beside it wherever a row is shown.
        row['msg'] = str(row['msg']).removeprefix(f'[{self.host}] ')
        row.update(name=answer['package']['name'], kind=answer['package']['kind'], version=answer['package']['version'])
        if answer.get('unreachable'):
            row['state'] = UNREACHABLE
        if answer.get('failed'):
            row.update({name: answer[name][-_KEPT:] for name in _LONG})
        return row

    def _show_row(self, row: dict[str, t.Any]) -> None:
        """A line as each package ends, since the list may take hours."""
        if self._task.no_log:
            return
        if row['state'] in (return_codes.FAILED, UNREACHABLE):
            color = C.COLOR_ERROR
        else:
            color = C.COLOR_CHANGED if row.get('changed') else C.COLOR_SKIP if row['state'] == DROPPED else C.COLOR_OK
        display.display(f"{row['state'].replace('_', ' ')}: [{self.host}] => {row['package']}: {row['msg']}", color=color)

    def _conclude(self, result: dict[str, t.Any]) -> None:
        rows = result['results']
        result['changed'] = any(row.get('changed') for row in rows)
        bad = [row for row in rows if row['state'] in (return_codes.FAILED, UNREACHABLE)]
        if bad:
            result['unreachable' if bad[-1]['state'] == UNREACHABLE else 'failed'] = True
            result.update(msg=f'[{self.host}] ' + ' '.join(row['msg'] for row in bad), error=bad[0].get('error'))
        else:
            result['msg'] = f'{len(rows)} packages are as they should be.' if len(rows) != 1 else 'The package is as it should be.'
