# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells whether a deployment to the target would succeed, check by check, without changing it; the checks are the broker's (preflight.py)."""

from __future__ import annotations

import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.action_base import AgentAction
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

Check = dict[str, t.Any]

STATES = ('ok', 'warning', 'failed')


def table(checks: t.Sequence[Check]) -> list[str]:
    """The checks for people: state, check and detail, and below what is not good the remedy."""
    if not checks:
        return []
    states, names = (max(len(check[key]) for check in checks) for key in ('state', 'check'))
    lines = []
    for check in checks:
        lines.append(f"{check['state'].ljust(states)}  {check['check'].ljust(names)}  {check['detail']}{f' ({code})' if (code := check['code']) else ''}")
        if check['remedy']:
            lines.append(f"{' ' * (states + names + 4)}Remedy: {check['remedy']}")
    return lines


def verdict(checks: t.Sequence[Check]) -> str:
    """What checks of which none failed come to."""
    warnings = [check['check'] for check in checks if check['state'] == 'warning']
    told = f"{len(checks)} checks, {len(warnings)} of them with a warning: {', '.join(dict.fromkeys(warnings))}." if warnings else f'{len(checks)} checks.'
    return f'Nothing speaks against a deployment to this host: {told}'


class ActionModule(AgentAction):
    """``sojourn.deploy.preflight``; documented in plugins/modules/preflight.py."""

    ARGUMENTS = {
        'timeout': {'type': 'float', 'default': 3.0},
        'sign_in': {'type': 'bool', 'default': True},
        'fail': {'type': 'bool', 'default': True},
    }

    def blank(self) -> dict[str, t.Any]:
        """What every result has."""
        return {'changed': False, 'checks': [], 'table': []}

    def act(self, result: dict[str, t.Any], task_vars: dict[str, t.Any]) -> None:
        """Fills in the checks. Raises SojournError, which is the first of theirs."""
        timeout = self.options['timeout']
        if not 0.1 <= timeout <= 3600:
            raise SojournError('SD-102', step='reading the options', option='timeout', detail=f'{timeout:g} is not between 0.1 and 3600 seconds')
        checks = self.agent.preflight(timeout=timeout, sign_in=self.options['sign_in'])
        errors = [(check['check'], check['error']) for check in checks if check['state'] == 'failed']
        result['checks'] = [{key: value for key, value in check.items() if key != 'error'} for check in checks]
        result['table'] = table(result['checks'])
        if not errors:
            result['msg'] = verdict(checks)
            return
        name, error = errors[0]
        first = SojournError.from_dict(error).at(host=self.host)
        first.step = f'preflight, {name}'
        if self.options['fail']:
            raise first
        result['msg'] = str(first)
        result['error'] = {'code': first.code, 'sentence': first.sentence, 'remedy': first.remedy}
