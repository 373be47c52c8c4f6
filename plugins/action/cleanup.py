# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removes what runs of this collection left on the target, whatever state they left it in."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.action_base import AgentAction
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError


class ActionModule(AgentAction):
    """``sojourn.deploy.cleanup``; documented in plugins/modules/cleanup.py."""

    ARGUMENTS = {
        'run': {'type': 'str'},
        'force': {'type': 'bool', 'default': False},
    }

    def blank(self) -> dict[str, t.Any]:
        """What every result has."""
        return {'changed': False, 'leftovers': []}

    def act(self, result: dict[str, t.Any], task_vars: dict[str, t.Any]) -> None:
        """Cleans up, or tells what it would remove. Raises SojournError, SD-801 for what could not be removed."""
        run = self.options['run'].removeprefix('sojourn-').lower() if self.options['run'] else None
        if run is not None and not re.fullmatch('[0-9a-f]{12}', run):
            raise SojournError('SD-102', step='reading the options', option='run', detail="a run's id has 12 hexadecimal digits")
        if self.options['force'] and run is None:
            raise SojournError('SD-102', step='reading the options', option='force', detail="it takes 'run' too: what is alive is removed by name only")
        answer = self.agent.cleanup(run=run, force=self.options['force'], check=self.check_mode)
        leftovers = answer['leftovers']
        result.update(changed=answer['changed'], leftovers=leftovers)
        if self.diff_mode:
            result['diff'] = {
                'before': ''.join(self._line(leftover) for leftover in leftovers),
                'after': ''.join(self._line(leftover) for leftover in leftovers if leftover['state'] != 'removed')}
        failed = [leftover for leftover in leftovers if leftover['state'] == 'failed']
        if failed:
            raise SojournError(
                'SD-801', step='cleaning up', what=', '.join(f"{leftover['kind']} {leftover['name']}" for leftover in failed),
                detail='; '.join(str(leftover.get('detail') or 'no reason given') for leftover in failed))

    @staticmethod
    def _line(leftover: dict[str, t.Any]) -> str:
        return f"{leftover['kind']} {leftover['name']}\n"
