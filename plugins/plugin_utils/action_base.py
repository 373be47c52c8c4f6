# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection's actions have in common: options, the agent, errors as results; each action adds ``ARGUMENTS`` and ``act``."""

from __future__ import annotations

import re
import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

display = Display()


class AgentAction(ActionBase):
    """An action that works through the target's agent, without a module on the target.

    A ``SojournError`` becomes the result: ``msg`` is its one line, ``error`` its parts, and the host is failed or unreachable as the
    catalogue says. What ``act`` had put into the result before stays in it.
    """

    #: Argument spec as modules have it; the documentation beside it in plugins/modules says the same.
    ARGUMENTS: t.ClassVar[dict[str, dict[str, t.Any]]] = {}

    options: dict[str, t.Any]
    agent: t.Any
    #: The target's inventory name.
    host: str

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Ansible's entry; see ``act``."""
        result = super().run(tmp, task_vars)
        del tmp
        self.host = str((task_vars or {}).get('inventory_hostname') or '')
        result.update(self.blank())
        try:
            self.options = self._read_options()
            self.agent = self._find_agent()
            self.act(result, task_vars or {})
        except SojournError as error:
            self.note_error(result, error)
        return result

    def blank(self) -> dict[str, t.Any]:
        """What the result has from the beginning, and keeps where an error comes first."""
        return {'changed': False}

    def act(self, result: dict[str, t.Any], task_vars: dict[str, t.Any]) -> None:
        """Does the work and fills in the result. Raises SojournError."""
        raise NotImplementedError

    @property
    def check_mode(self) -> bool:
        """Whether nothing may be changed."""
        return bool(self._task.check_mode)

    @property
    def diff_mode(self) -> bool:
        """Whether a diff is asked for."""
        return bool(self._task.diff)

    def note_error(self, result: dict[str, t.Any], error: SojournError) -> None:
        """Makes an error the result; the first one is the cause and stays."""
        if result.get('failed') or result.get('unreachable'):
            return
        error.at(host=self.host)
        result['unreachable' if error.kind == 'unreachable' else 'failed'] = True
        result['msg'] = str(error)
        result['error'] = {'code': error.code, 'sentence': error.sentence, 'remedy': error.remedy}

    def show(self, line: str, *, verbosity: int = 1) -> None:
        """Shows a line, with the host before it, at -v or more; never where the task hides its output."""
        if not self._task.no_log:
            display.verbose(line, host=self.host, caplevel=verbosity - 1)

    def _read_options(self) -> dict[str, t.Any]:
        given = dict(self._task.args)
        for name in given:
            if name not in self.ARGUMENTS:
                raise SojournError('SD-102', step='reading the options', option=name, detail=f"there is no such option; there are {', '.join(self.ARGUMENTS)}")
        validated = ArgumentSpecValidator(self.ARGUMENTS).validate(given)
        if validated.error_messages:
            message = validated.error_messages[0]
            named = [name for name in (*given, *self.ARGUMENTS) if re.search(rf'\b{name}\b', message)]
            raise SojournError('SD-102', step='reading the options', option=named[0] if named else ', '.join(given), detail=message.rstrip('.'))
        return validated.validated_parameters

    def _find_agent(self) -> t.Any:
        agent = getattr(self._connection, 'agent', None)
        if agent is None:
            connection = getattr(self._connection, 'ansible_name', None) or getattr(self._connection, 'transport', '')
            raise SojournError('SD-904', step='reading the options', action=self._task.action, connection=connection)
        return agent
