# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Opens or closes a further port in the target's firewall, whichever firewall that is."""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.action_base import AgentAction
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Rule = dict[str, t.Any]


def read_source(text: str | None) -> Network | None:
    """An address or prefix, as tools write it in many ways; None is any, and so is a prefix of no bits. Raises ValueError."""
    if not text:
        return None
    network = ipaddress.ip_network(text.strip().strip('[]'), strict=False)
    return network if network.prefixlen else None


class ActionModule(AgentAction):
    """``sojourn.deploy.firewall``; documented in plugins/modules/firewall.py."""

    ARGUMENTS = {
        'port': {'type': 'int', 'required': True},
        'protocol': {'type': 'str', 'choices': ['tcp', 'udp'], 'default': 'tcp'},
        'source': {'type': 'str'},
        'family': {'type': 'str', 'choices': ['ipv6', 'ipv4']},
        'state': {'type': 'str', 'choices': ['open', 'closed'], 'default': 'open'},
        'keep': {'type': 'bool', 'default': False},
    }

    def blank(self) -> dict[str, t.Any]:
        """What every result has."""
        return {'changed': False, 'rules': []}

    def act(self, result: dict[str, t.Any], task_vars: dict[str, t.Any]) -> None:
        """Brings the port into the state asked for. Raises SojournError."""
        options = self.options
        self._check_options()
        where = {'port': options['port'], 'protocol': options['protocol'], 'source': options['source'], 'family': options['family']}
        before = self._rules() if self.check_mode or self.diff_mode else []
        if self.check_mode:
            result.update(changed=self._would_change(before), rules=before)
        elif options['state'] == 'open':
            answer = self.agent.open_port(**where, keep=options['keep'])
            result.update(changed=answer['changed'], rules=answer['rules'])
        else:
            result['changed'] = self.agent.close_port(**where)['changed']
        if self.diff_mode:
            state = options['state']
            after = self._rules() if not self.check_mode else [] if state == 'closed' else before or [{**where, 'name': 'a new rule'}]
            result['diff'] = {'before': ''.join(map(self._line, before)), 'after': ''.join(map(self._line, after))}

    def _check_options(self) -> None:
        options = self.options
        if not 1 <= options['port'] <= 65535:
            raise SojournError('SD-102', step='reading the options', option='port', detail='a port is a number from 1 to 65535')
        try:
            self.source = read_source(options['source'])
        except ValueError as error:
            raise SojournError('SD-102', step='reading the options', option='source', detail=error) from None
        if self.source and options['family'] and options['family'] != f'ipv{self.source.version}':
            raise SojournError('SD-102', step='reading the options', option='family', detail=f"the source {options['source']} is not of this family")

    def _rules(self) -> list[Rule]:
        """The rules of this project that the options speak of."""
        return [rule for rule in self.agent.list_ports() if self._matches(rule)]

    def _matches(self, rule: Rule) -> bool:
        options = self.options
        if (rule['port'], rule['protocol']) != (options['port'], options['protocol']):
            return False
        if options['family'] and rule.get('family') not in (None, options['family']):
            return False
        # To close without a source is to close for every source.
        return (options['state'] == 'closed' and self.source is None) or read_source(rule.get('source')) == self.source

    def _would_change(self, rules: list[Rule]) -> bool:
        if self.options['state'] == 'closed':
            return bool(rules)
        if self.agent.info()['firewall_kind'] == 'none':
            return False
        wanted = {self.options['family'] or (f'ipv{self.source.version}' if self.source else None)}
        if wanted == {None}:
            wanted = {'ipv6', 'ipv4'}
        admitted = {family for rule in rules if self.options['keep'] == (not rule.get('run'))
                    for family in ([rule['family']] if rule.get('family') else ['ipv6', 'ipv4'])}
        return not wanted <= admitted

    @staticmethod
    def _line(rule: Rule) -> str:
        return f"{rule['protocol']} {rule['port']} {rule.get('family') or 'ipv6 and ipv4'} from {rule.get('source') or 'anywhere'} ({rule['name']})\n"
