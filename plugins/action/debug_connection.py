# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells what the connection would do to reach a target, and with what, without changing the target; the network is the broker's (diagnosis.py)."""

from __future__ import annotations

import json
import os
import re
import sys
import typing as t

from ansible import constants
from ansible.errors import AnsibleError
from ansible.release import __version__ as ansible_version

from ansible_collections.sojourn.deploy.plugins.plugin_utils import broker_client
from ansible_collections.sojourn.deploy.plugins.plugin_utils.action_base import AgentAction
from ansible_collections.sojourn.deploy.plugins.plugin_utils.connection_base import AgentConnection, plain
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

#: Options of which nothing is shown but whether they are given.
SECRET = re.compile('password|passphrase')

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

Finding = dict[str, t.Any]


def collection_version() -> str:
    """The collection's version, from what Galaxy puts beside it; a checkout has its galaxy.yml instead."""
    try:
        with open(os.path.join(_ROOT, 'MANIFEST.json'), encoding='utf-8') as file:
            return str(json.load(file)['collection_info']['version'])
    except (OSError, ValueError, KeyError):
        pass
    try:
        with open(os.path.join(_ROOT, 'galaxy.yml'), encoding='utf-8') as file:
            found = re.search(r'^version:\s*(\S+)', file.read(), re.MULTILINE)
            return f'{found[1]}, from a checkout' if found else 'unknown'
    except OSError:
        return 'unknown'


def lines(findings: t.Sequence[Finding]) -> list[str]:
    """The findings for people: a heading for each section, and below it name, value and milliseconds."""
    shown: list[str] = []
    section = None
    for finding in findings:
        if finding['section'] != section:
            section = finding['section']
            width = max(len(other['name']) for other in findings if other['section'] == section)
            shown.append(f'{section}:')
        value = finding['value']
        text = (', '.join(value) if isinstance(value, list) else value) or '-'
        took = f" [{finding['seconds'] * 1000:.1f} ms]" if finding.get('seconds') is not None else ''
        origin = f" ({finding['origin']})" if finding.get('origin') else ''
        shown.append(f"  {finding['name'].ljust(width)}  {'ERROR ' if finding.get('error') else ''}{text}{origin}{took}")
    return shown


class ActionModule(AgentAction):
    """``sojourn.deploy.debug_connection``; documented in plugins/modules/debug_connection.py."""

    ARGUMENTS = {
        'sign_in': {'type': 'bool', 'default': False},
    }

    def blank(self) -> dict[str, t.Any]:
        """What every result has."""
        return {'changed': False, 'findings': []}

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """As the base class; whatever came of it, all that was found is told, and the last line says what it comes to."""
        result = super().run(tmp, task_vars)
        if result['findings']:
            result['msg'] = [*lines(result['findings']), result.get('msg') or self._verdict()]
            result['_ansible_verbose_always'] = True  # it is there to be read, also without -v
        return result

    def act(self, result: dict[str, t.Any], task_vars: dict[str, t.Any]) -> None:
        """Fills in the findings. Raises SojournError, which is the first of theirs."""
        findings: list[Finding] = result['findings']
        findings += self._options_as_they_resolve(task_vars)
        findings += self._controller()
        self.agent = super()._find_agent()  # here wrong options show
        found = self.agent.diagnose(sign_in=self.options['sign_in'])
        errors: list[SojournError] = []
        for finding in found:
            if finding['error']:
                error = SojournError.from_dict(finding['error'])
                errors.append(error)
                finding['error'] = {'code': error.code, 'sentence': error.sentence, 'remedy': error.remedy}
            findings.append({key: value for key, value in finding.items() if value is not None})
        if errors:
            raise errors[0]

    def _find_agent(self) -> t.Any:
        """Not yet: wrong options are found on the way, and what is right is told as well."""
        if not isinstance(self._connection, AgentConnection):
            super()._find_agent()
        return None

    def _verdict(self) -> str:
        if self.options['sign_in']:
            return 'A task would put the agent on this host: nothing speaks against it.'
        return 'Nothing speaks against it as far as the sign-in, which was not tried; sign_in: true tries it.'

    def _options_as_they_resolve(self, task_vars: dict[str, t.Any]) -> list[Finding]:
        connection = self._connection
        if self._task.delegate_to:
            task_vars = (task_vars.get('ansible_delegated_vars') or {}).get(self._task.delegate_to) or task_vars
        findings = [{'section': 'options', 'name': 'connection', 'value': connection.transport}]
        keys = self._task.dump_attrs()
        for name in sorted(connection.option_definitions):
            value = connection.get_option(name)
            if SECRET.search(name):
                text = 'not given' if value is None else 'given'
            elif name.endswith('_args') and 'proxycommand' in str(value).lower():  # which may hold anything
                text = 'given, with a ProxyCommand'
            elif isinstance(value, (list, tuple)):
                text = ', '.join(plain(element) for element in value)
            else:
                text = '' if value is None else plain(value)
            finding = {'section': 'options', 'name': name, 'value': text}
            origin = self._origin(name, keys, task_vars)
            findings.append({**finding, 'origin': origin} if origin else finding)
        return findings

    def _origin(self, name: str, keys: dict[str, t.Any], task_vars: dict[str, t.Any]) -> str:
        """Where Ansible has an option from, as the executor asks for it."""
        try:
            origin = constants.config.get_config_value_and_origin(
                name, plugin_type='connection', plugin_name=self._connection._load_name, keys=keys, variables=task_vars)[1]
        except (AnsibleError, ValueError, KeyError, TypeError):
            return ''
        return plain(origin or '')

    def _controller(self) -> list[Finding]:
        owner = self._connection._owner_pid
        folder = broker_client.run_folder(owner)
        try:
            connection = broker_client.connect(owner, start=False)
            state = 'at work' if connection is not None else 'not at work before this task'
            if connection is not None:
                connection.close()
        except SojournError as error:
            state = f'{error.sentence} ({error.code})'
        values = {
            'Python': f"{sys.version.split()[0]}, {sys.executable}", 'ansible-core': ansible_version,
            'collection': f'sojourn.deploy {collection_version()}, {_ROOT}', 'broker': state, "broker's log": broker_client.log_path(folder)}
        return [{'section': 'controller', 'name': name, 'value': value} for name, value in values.items()]
