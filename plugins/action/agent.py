# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts the agent on the target, or takes it off again; every other action does the first by itself."""

from __future__ import annotations

import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.action_base import AgentAction


class ActionModule(AgentAction):
    """``sojourn.deploy.agent``; documented in plugins/modules/agent.py."""

    ARGUMENTS = {
        'state': {'type': 'str', 'choices': ['present', 'absent'], 'default': 'present'},
    }

    def blank(self) -> dict[str, t.Any]:
        """What every result has."""
        return {'changed': False, 'info': {}, 'removed': []}

    def act(self, result: dict[str, t.Any], task_vars: dict[str, t.Any]) -> None:
        """Brings the agent into the state asked for. Raises SojournError."""
        wanted = self.options['state'] == 'present'
        if self.check_mode:
            there = self.agent.present()
            result['changed'] = there != wanted
            if there and wanted:
                result['info'] = self.agent.info()
        elif wanted:
            answer = self.agent.deploy()
            result.update(changed=answer['changed'], info=answer['info'], seconds=answer.get('seconds') or {})
        else:
            answer = self.agent.remove()
            result.update(changed=answer['changed'], removed=answer['removed'])
