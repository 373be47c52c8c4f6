# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all connection plugins are made of: options into a Target, the agent, errors into Ansible's; what differs is in plugins/connection."""

from __future__ import annotations

import functools
import os
import re
import typing as t

from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.plugins.connection import ConnectionBase
from ansible.utils.display import Display

from ansible_collections.sojourn.deploy.plugins.plugin_utils import steps
from ansible_collections.sojourn.deploy.plugins.plugin_utils.broker_client import Agent
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target

display = Display()


@functools.cache
def _not_xml() -> re.Pattern[str]:
    """What XML 1.0 cannot carry, however it is written (https://www.w3.org/TR/xml/#charsets); surrogates stand for bytes that are no UTF-8.

    Made when it is needed: that takes as long as all else that a worker does here.
    """
    return re.compile('[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]')


def fits_xml(text: str) -> bool:
    """Whether XML can carry all of it."""
    return text.isprintable() or not _not_xml().search(text)


def ansible_error(error: SojournError) -> AnsibleError:
    """Ansible's exception for ours: its kind decides whether the host counts as unreachable or as failed."""
    return (AnsibleConnectionFailure if error.kind == 'unreachable' else AnsibleError)(str(error))


class AgentConnection(ConnectionBase):
    """A connection whose commands and files go through the target's agent.

    The agent is put there by the first of them, kept by the broker, and removed when the run ends or the connection is reset.
    Subclasses give ``way_in``, ``extra_options``, ``_run`` and ``_path``.
    """

    has_pipelining = True
    has_tty = False

    #: One of WAYS_IN.
    way_in: t.ClassVar[str]

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        super().__init__(*args, **kwargs)
        # In a worker, the process that forked it; for meta: reset_connection the plugin is made in that process itself.
        self._owner_pid = int(kwargs.get('ansible_playbook_pid') or os.getpid())
        self._agent: Agent | None = None

    # The agent

    def extra_options(self) -> dict[str, t.Any]:
        """The subclass's own options, as Target has them."""
        return {}

    def set_options(self, *args: t.Any, **kwargs: t.Any) -> None:
        """See AnsiblePlugin. A loop's items have one connection in common where the address is the same, each with options of its own."""
        super().set_options(*args, **kwargs)
        self._agent = None

    def set_option(self, *args: t.Any, **kwargs: t.Any) -> None:
        """See AnsiblePlugin."""
        super().set_option(*args, **kwargs)
        self._agent = None

    @property
    def host_name(self) -> str:
        """The host's name in messages."""
        return str(self.get_option('host_name'))

    @property
    def agent(self) -> Agent:
        """The target's agent, for action plugins. Making it touches nothing. Raises SojournError for wrong options."""
        if self._agent is None:
            target = Target.make(
                self.way_in, self.get_option('remote_addr'), host=self.host_name, port=self.get_option('port'), user=self.get_option('remote_user'),
                password=self.get_option('password'), connection_timeout=self.get_option('connection_timeout'), lease_seconds=self.get_option('lease_seconds'),
                reconnect_timeout=self.get_option('reconnect_timeout'),
                agent_ports=self.get_option('agent_ports'), controller_address=self.get_option('controller_address'),
                transport=self.get_option('transport'), **self.extra_options())
            self._agent = Agent(target, self._owner_pid)
            if display.verbosity >= 1:
                self._agent.on_step = self._show_step
        return self._agent

    def _show_step(self, step: dict[str, t.Any]) -> None:
        """-vvv: what the broker did for a call, each step with its milliseconds; -v: that ``transport: auto`` had to take the tunnel, and why."""
        took = f"{'FAILED AFTER ' if step['failed'] else ''}{step['seconds'] * 1000:.1f} ms"
        show = display.v if step['name'] == steps.NOT_DIRECTLY else display.vvv
        show(f"{step['name'].upper()} {took}{': ' + step['detail'] if step['detail'] else ''}", host=self.host_name)

    # Ansible's interface

    def _connect(self) -> AgentConnection:
        """Nothing yet: the broker deploys the agent where a call needs one. To ask it for that alone would cost each task a call. (-vvv does, and tells.)"""
        if not self._connected:
            if display.verbosity >= 3:
                self._show_deployed()
            self._connected = True
        return self

    def _show_deployed(self) -> None:
        """Deploys the agent, unless it is there; says what that took."""
        try:
            deployed = self.agent.deploy()
        except SojournError as error:
            raise ansible_error(error) from None
        if deployed['changed']:
            laps = ', '.join(f'{name} {seconds * 1000:.0f} ms' for name, seconds in deployed['seconds'].items())
            info = deployed['info']
            where = 'BY TUNNEL' if info['transport'] == 'tunnel' else f"ON PORT {info['port']}"
            display.vvv(f"AGENT {info['service_name']} {where} ({info['tls_version']}): {laps}", host=self.host_name)

    def close(self) -> None:
        """Nothing to end: the broker keeps the session for the next task."""
        self._connected = False

    def reset(self) -> None:
        """Removes the agent, and the next task puts it there anew; but not while other tasks of this run have commands there."""
        try:
            self.agent.remove(unless_used=True)
        except SojournError as error:
            # The target may be rebooting; what is left is removed by its agent, or by the next one.
            display.vvv(f'RESET: {error}', host=self.host_name)
        self._connected = False

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """See ConnectionBase. A task's timeout, or any other interruption, kills the command's process tree on the target."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        try:
            return self._run(to_text(cmd, errors='surrogate_or_strict'), to_bytes(in_data) if in_data is not None else None, sudoable)
        except SojournError as error:
            raise ansible_error(error) from None

    def put_file(self, in_path: str, out_path: str) -> None:
        """See ConnectionBase. The broker reads the file; both ends check its SHA-256."""
        self._put(in_path, out_path)

    def put_file_and_hash(self, in_path: str, out_path: str) -> dict[str, t.Any]:
        """The same, for our ``copy``; returns what ``Agent.put_file`` does with ``digests``."""
        return self._put(in_path, out_path, digests=True)

    def _put(self, in_path: str, out_path: str, **options: t.Any) -> dict[str, t.Any]:
        super().put_file(in_path, out_path)
        local = to_text(in_path, errors='surrogate_or_strict')
        remote = self._path(to_text(out_path, errors='surrogate_or_strict'))
        display.vvv(f'PUT {local} TO {remote}', host=self.host_name)
        if not os.path.exists(to_bytes(local, errors='surrogate_or_strict')):
            raise AnsibleFileNotFound(f'file or module does not exist: {local}')
        try:
            return self.agent.put_file(plain(local), plain(remote), user=self._file_user(), **options)
        except SojournError as error:
            raise ansible_error(error) from None

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """See ConnectionBase. A folder is passed over in silence, as the other Windows connections do."""
        self._fetch(in_path, out_path)

    def fetch_file_and_hash(self, in_path: str, out_path: str) -> dict[str, t.Any] | None:
        """The same, for our ``fetch``; returns what ``Agent.get_file`` does with ``digests``, None for a folder."""
        return self._fetch(in_path, out_path, digests=True)

    def _fetch(self, in_path: str, out_path: str, **options: t.Any) -> dict[str, t.Any] | None:
        super().fetch_file(in_path, out_path)
        remote = self._path(to_text(in_path, errors='surrogate_or_strict'))
        local = to_text(out_path, errors='surrogate_or_strict')
        display.vvv(f'FETCH {remote} TO {local}', host=self.host_name)
        try:
            try:
                return self.agent.get_file(plain(remote), plain(local), user=self._file_user(), **options)
            except SojournError as error:
                if error.code == 'SD-706' and self.agent.stat(plain(remote), user=self._file_user())['kind'] == 'directory':
                    return None
                raise
        except SojournError as error:
            raise ansible_error(error) from None

    # What subclasses give

    def _run(self, command: str, data: bytes | None, sudoable: bool) -> tuple[int, bytes, bytes]:
        """Runs a command. Raises SojournError."""
        raise NotImplementedError

    def _path(self, path: str) -> str:
        """A path on the target as the agent takes it."""
        return path

    def _file_user(self) -> str | None:
        """Whose rights files are read and written with; None: the agent's."""
        return None

    @staticmethod
    def _finish(result: dict[str, t.Any]) -> tuple[int, bytes, bytes]:
        code = result['exit_code']
        return (-1 if code is None else int(code)), result['stdout'], result['stderr']


def plain(text: str) -> str:
    """A copy that is nothing but a str: ansible-core 2.19 tags its strings, and tags must not cross a process border."""
    return ''.join(str(text))
