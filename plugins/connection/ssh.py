# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection to Linux: the way in is SSH, all else goes to the agent; only what is Linux's own is here."""

from __future__ import annotations

DOCUMENTATION = r"""
name: ssh
author:
  - The sojourn.deploy authors (@sojourn)
short_description: Run tasks on Linux through an agent that stays for the run only
version_added: 0.1.0
description:
  - Puts a small agent onto a Linux host over SSH at the first task, runs all tasks through it, and removes it when the run ends, however the run ends.
  - The host needs an SSH server and nothing else. The agent runs as root, by C(sudo) where O(remote_user) is not root.
  - Commands run as O(remote_user), and files are read and written with that user's rights, unless a task has C(become).
  - With neither O(password) nor O(private_key_file), the keys of the SSH agent and the default keys in C(~/.ssh) are tried.
  - Host keys are checked against the C(known_hosts) files as OpenSSH has them, with hashed names, ports, C(@cert-authority) and C(@revoked).
  - OpenSSH's own settings (C(~/.ssh/config), C(/etc/ssh/ssh_config)) count, jump hosts included, and the inventory before them.
    Where the controller has OpenSSH's client, it is asked for them. Which settings that are is in C(docs/ssh.md).
extends_documentation_fragment:
  - sojourn.deploy.connection
options:
  port:
    description:
      - Port of the SSH server.
      - Without it, what OpenSSH's settings say; else 22.
    type: integer
    ini:
      - section: defaults
        key: remote_port
    env:
      - name: ANSIBLE_REMOTE_PORT
    vars:
      - name: ansible_port
      - name: ansible_ssh_port
      - name: ansible_sojourn_port
    keyword:
      - name: port
  become_password:
    description:
      - Password for C(sudo) on the way to the agent's start; without it, O(password).
      - With O(root_method=su), root's own password.
      - C(ansible_sojourn_root_password) says it where C(ansible_become_password) is that of tasks, which become another user by another password.
    type: string
    env:
      - name: ANSIBLE_BECOME_PASS
      - name: ANSIBLE_SUDO_PASS
      - name: ANSIBLE_SU_PASS
    vars:
      - name: ansible_become_password
      - name: ansible_become_pass
      - name: ansible_sudo_pass
      - name: ansible_su_pass
      - name: ansible_sojourn_root_password
  root_method:
    description:
      - How O(remote_user) becomes root on the way to the agent's start. Where C(sudo) asks for no password, it is taken in any case.
      - Any other value than V(su), such as C(ansible_become_method) may have for tasks, stands for V(sudo).
      - Where C(sudo) is not installed and there is a O(become_password), V(su) is taken.
    type: string
    default: sudo
    ini:
      - section: sojourn
        key: root_method
    env:
      - name: SOJOURN_ROOT_METHOD
    vars:
      - name: ansible_become_method
      - name: ansible_sojourn_root_method
  private_key_file:
    description:
      - File with the private key to sign in with. A certificate beside it (C(-cert.pub)) is used too.
    type: path
    ini:
      - section: defaults
        key: private_key_file
    env:
      - name: ANSIBLE_PRIVATE_KEY_FILE
    vars:
      - name: ansible_private_key_file
      - name: ansible_ssh_private_key_file
      - name: ansible_sojourn_private_key_file
    cli:
      - name: private_key_file
        option: --private-key
  private_key_passphrase:
    description:
      - Passphrase of O(private_key_file).
    type: string
    vars:
      - name: ansible_private_key_passphrase
      - name: ansible_ssh_private_key_passphrase
      - name: ansible_sojourn_private_key_passphrase
  known_hosts_file:
    description:
      - File with known host keys, in the place of C(~/.ssh/known_hosts). The system's files count in any case.
    type: path
    ini:
      - section: sojourn
        key: known_hosts_file
    env:
      - name: SOJOURN_KNOWN_HOSTS_FILE
    vars:
      - name: ansible_sojourn_known_hosts_file
  host_key_checking:
    description:
      - Whether the target has to show a known host key. Without, anybody in between can read and change everything.
    type: boolean
    default: true
    ini:
      - section: defaults
        key: host_key_checking
    env:
      - name: ANSIBLE_HOST_KEY_CHECKING
      - name: ANSIBLE_SSH_HOST_KEY_CHECKING
    vars:
      - name: ansible_host_key_checking
      - name: ansible_ssh_host_key_checking
      - name: ansible_sojourn_host_key_checking
  host_key_auto_add:
    description:
      - Whether an unknown host key is accepted and remembered. A changed one is refused all the same.
    type: boolean
    default: false
    ini:
      - section: sojourn
        key: host_key_auto_add
    env:
      - name: SOJOURN_HOST_KEY_AUTO_ADD
    vars:
      - name: ansible_sojourn_host_key_auto_add
  config_file:
    description:
      - File with OpenSSH's settings, in the place of C(~/.ssh/config) and C(/etc/ssh/ssh_config). V(none) for no file at all.
    type: string
    ini:
      - section: sojourn
        key: config_file
    env:
      - name: SOJOURN_CONFIG_FILE
    vars:
      - name: ansible_sojourn_config_file
  ssh_args:
    description:
      - Arguments as for C(ssh), which count before all else; C(-F), C(-J), C(-o), C(-i), C(-l), C(-p), C(-4) and C(-6) are followed.
      - What makes no difference here (C(-C), C(ControlPersist) and the like) is taken as well. Any other argument is refused by its name.
    type: string
    default: ''
    ini:
      - section: ssh_connection
        key: ssh_args
    env:
      - name: ANSIBLE_SSH_ARGS
    vars:
      - name: ansible_ssh_args
  ssh_common_args:
    description:
      - The same, after what the inventory says and before the files, such as C(-J bastion) or C(-o ProxyJump=bastion).
    type: string
    default: ''
    ini:
      - section: ssh_connection
        key: ssh_common_args
    env:
      - name: ANSIBLE_SSH_COMMON_ARGS
    vars:
      - name: ansible_ssh_common_args
    cli:
      - name: ssh_common_args
  ssh_extra_args:
    description:
      - The same, after O(ssh_common_args).
    type: string
    default: ''
    ini:
      - section: ssh_connection
        key: ssh_extra_args
    env:
      - name: ANSIBLE_SSH_EXTRA_ARGS
    vars:
      - name: ansible_ssh_extra_args
    cli:
      - name: ssh_extra_args
  remote_folders:
    description:
      - Absolute paths of folders on the target, of which the first that is writable and not mounted C(noexec) holds the agent's folder.
      - Without it, C(/tmp), C(/var/tmp), and the user's home.
    type: list
    elements: string
    default: []
    ini:
      - section: sojourn
        key: remote_folders
    env:
      - name: SOJOURN_REMOTE_FOLDERS
    vars:
      - name: ansible_sojourn_remote_folders
  warm_interpreter:
    description:
      - Whether the agent keeps a Python warm on the target that forks for each module, in the place of starting Python and importing the same again.
      - Modules come to the same results either way, only sooner. Where one does not, this is the switch.
      - Only modules that come by O(pipelining) are concerned, and not those whose C(become) needs a password.
    type: boolean
    default: true
    ini:
      - section: sojourn
        key: warm_interpreter
    env:
      - name: SOJOURN_WARM_INTERPRETER
    vars:
      - name: ansible_sojourn_warm_interpreter
  pipelining:
    description:
      - Whether modules are given to the target's Python on its standard input rather than as files.
    type: boolean
    default: true
    ini:
      - section: sojourn
        key: pipelining
    env:
      - name: SOJOURN_PIPELINING
    vars:
      - name: ansible_pipelining
      - name: ansible_ssh_pipelining
      - name: ansible_sojourn_pipelining
"""

EXAMPLES = r"""
# An inventory: nothing else is needed
# all:
#   hosts:
#     web1:
#       ansible_connection: sojourn.deploy.ssh
#       ansible_host: 2001:db8::17
#       ansible_user: root
#       ansible_password: "{{ vault_web1_password }}"
#     db1:  # behind a jump host
#       ansible_connection: sojourn.deploy.ssh
#       ansible_ssh_common_args: -J bastion.example.com
"""

import typing as t

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.common.text.converters import to_bytes
from ansible.utils.display import Display

from ansible_collections.sojourn.deploy.plugins.plugin_utils.broker_client import Input, Overdue
from ansible_collections.sojourn.deploy.plugins.plugin_utils.connection_base import AgentConnection, fits_xml, plain
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import LOGIN_USER

display = Display()

#: Seconds beyond connection_timeout for sudo, or its like, to ask for the password or to begin the command; Ansible's own ssh waits as long.
MORE_FOR_BECOME = 2.0
#: Become methods that ask and listen by the standard streams where there is no terminal; any other is given one.
ASKS_BY_STREAMS = ('sudo', 'su')
#: In what Ansible makes of a module in Python.
_MODULE = b'_ANSIBALLZ_WRAPPER = True'


class Connection(AgentConnection):
    """See DOCUMENTATION."""

    transport = 'sojourn.deploy.ssh'
    way_in = 'ssh'
    has_tty = True  # for the become methods that say that they need it, such as machinectl

    def extra_options(self) -> dict[str, t.Any]:
        """Options that only SSH has."""
        become_password = self.get_option('become_password')
        if become_password is None:
            become_password = getattr(self._play_context, 'become_pass', None)  # --ask-become-pass
        return {
            'become_password': become_password, 'key_file': self.get_option('private_key_file'), 'key_passphrase': self.get_option('private_key_passphrase'),
            'known_hosts': self.get_option('known_hosts_file'), 'host_key_checking': self.get_option('host_key_checking'),
            'host_key_auto_add': self.get_option('host_key_auto_add'), 'root_method': self.get_option('root_method'),
            'config_file': self.get_option('config_file'), 'ssh_args': self.get_option('ssh_args'),
            'ssh_common_args': self.get_option('ssh_common_args'), 'ssh_extra_args': self.get_option('ssh_extra_args'),
            'remote_folders': tuple(self.get_option('remote_folders') or ())}

    def _file_user(self) -> str | None:
        # Where OpenSSH's settings may name another one, only the broker knows who signed in.
        target = self.agent.target
        return target.user if target.user and not target.ssh_args else LOGIN_USER

    def _run(self, command: str, data: bytes | None, sudoable: bool) -> tuple[int, bytes, bytes]:
        display.vvv(f'EXEC {command}', host=self.host_name)
        command = _carriable(plain(command))
        become = self.become if sudoable and self.become is not None and self.become._id else None
        if become is None:
            # As whom the tasks to come run is known of those alone that become nobody.
            warms = self.become is None and bool(self.get_option('warm_interpreter') and self.get_option('pipelining'))
            return self._finish(self.agent.execute(
                command_line=command, user=self._file_user(), input_data=data, may_outlive=True, warm=self._warm(data),
                before_modules=data is None and warms))
        prompts = become.expect_prompt()
        if become.require_tty or prompts and become.name not in ASKS_BY_STREAMS:
            return self._as_another(become, command, data, prompts, terminal=True)
        try:
            return self._as_another(become, command, data, prompts, terminal=False)
        except TerminalWanted:
            return self._as_another(become, command, data, prompts, terminal=True)

    def _as_another(self, become: t.Any, command: str, data: bytes | None, prompts: bool, *, terminal: bool) -> tuple[int, bytes, bytes]:
        """A command as another user. Raises TerminalWanted where sudo has refused for want of one, and nothing was run."""
        if not prompts:
            code, output, errors = self._finish(self.agent.execute(
                command_line=command, user=self._file_user(), input_data=data, may_outlive=True, warm=not terminal and self._warm(data),
                terminal=terminal))
            if code != 0 and to_bytes(become.success) not in output:
                if not terminal and _wants_terminal(errors):
                    raise TerminalWanted
                if become.check_missing_password(output + errors):
                    raise AnsibleError(f'[{self.host_name}] Missing {become.name} password')
            return code, _after(become.success, output), errors
        talk = BecomeTalk(become, data, self.host_name, float(self.get_option('connection_timeout')) + MORE_FOR_BECOME, terminal=terminal)
        try:
            result = self.agent.execute(
                command_line=command, user=self._file_user(), converse=talk, patience=talk.patience, may_outlive=True, terminal=terminal)
        except Overdue:
            raise talk.overdue() from None
        code, output, errors = self._finish(result)
        if not terminal and not talk.succeeded and _wants_terminal(errors):
            raise TerminalWanted
        talk.check_end()
        return code, talk.strip(output), talk.strip_prompt(errors)

    def _warm(self, data: bytes | None) -> bool:
        """Whether a warm interpreter may run a command with this input. The agent looks closer."""
        return data is not None and _MODULE in data[:65536] and bool(self.get_option('warm_interpreter'))


class TerminalWanted(Exception):
    """Whoever was to make another user of this one refuses to without a terminal."""


def _wants_terminal(errors: bytes) -> bool:
    """Whether it is sudo's refusal by ``requiretty``: the one word that all its translations have in common."""
    return b'tty' in errors.lower()


class BecomeTalk:
    """The talk with sudo, or its like, before the command: waits for the prompt, gives the password, then the command's input.

    Called with output as it comes; what it returns is written (see ``Agent.execute``). Raises AnsibleError, which ends the command.
    """

    def __init__(self, become: t.Any, data: bytes | None, host_name: str, seconds: float, *, terminal: bool = False) -> None:
        self._become = become
        self._terminal = terminal
        self._seconds = seconds
        self._data = data
        self._host_name = host_name
        self._output = {'stdout': b'', 'stderr': b''}
        self._password_sent = False
        #: What came until the password was sent.
        self._asked = {'stdout': b'', 'stderr': b''}
        #: Whether the other user's command has begun.
        self.succeeded = False

    def __call__(self, stream: str, data: bytes) -> Input | None:
        """See the class."""
        if self.succeeded:
            return None
        become = self._become
        self._output[stream] += data
        seen = self._output[stream]
        if become.check_success(self._output['stdout']):
            self.succeeded = True
            return Input(self._data or b'', close=True)
        if self._password_sent:
            if become.check_incorrect_password(seen) or self._prompts(seen):
                raise AnsibleError(f'[{self._host_name}] Incorrect {become.name} password')
        elif self._prompts(seen):
            self._password_sent = True
            self._asked[stream] = seen
            self._output[stream] = b''
            return Input(to_bytes(become.get_option('become_pass')) + b'\n', answer=True)
        return None

    def _prompts(self, seen: bytes) -> bool:
        """Line by line too, as Ansible's own ssh has it looked for: doas begins its prompt with a carriage return."""
        return any(self._become.check_password_prompt(text) for text in (seen, *seen.splitlines(keepends=True)))

    def patience(self) -> float | None:
        """See ``Patience``: it ends where a prompt comes that is not the expected one; the command itself may take as long as it wants."""
        return None if self.succeeded else self._seconds

    def overdue(self) -> AnsibleError:
        """The error where patience has ended: of the same kind, and in the same words, as that of Ansible's own ssh."""
        text = self._said()
        return AnsibleConnectionFailure(
            f"[{self._host_name}] Timeout ({self._seconds:.0f}s) waiting for privilege escalation prompt{': ' + text if text else ''}")

    def _said(self) -> str:
        return (self._output['stdout'] + self._output['stderr']).decode('utf-8', 'replace').strip()

    def check_end(self) -> None:
        """Raises where the command ended without having become the other user."""
        if self.succeeded:
            return
        both = self._output['stdout'] + self._output['stderr']
        if self._become.check_incorrect_password(both):
            raise AnsibleError(f'[{self._host_name}] Incorrect {self._become.name} password')
        text = self._said()
        raise AnsibleError(f"[{self._host_name}] {self._become.name} ended before the command began{': ' + text if text else ''}")

    def strip(self, output: bytes) -> bytes:
        """Standard output without the talk."""
        return _after(self._become.success, output) if self.succeeded else output

    def strip_prompt(self, errors: bytes) -> bytes:
        """Standard error without the talk. Some plugins have no text of the prompt, only a way to know it."""
        asked = self._asked['stderr']
        if not asked or not errors.startswith(asked):
            return _after(self._become.prompt, errors)
        # Who reads the password at a terminal, which shows nothing of it, ends the line.
        return _without_line_end(errors, len(asked)) if self._terminal else errors[len(asked):]


def _after(marker: t.Any, output: bytes) -> bytes:
    """What follows a become plugin's marker and its line's end; all, where it is not there or is no text. (Plugins of ansible-core 2.17 cannot tell.)"""
    word = to_bytes(marker) if marker and isinstance(marker, (str, bytes)) else b''
    at = output.find(word) if word else -1
    return output if at < 0 else _without_line_end(output, at + len(word))


def _without_line_end(output: bytes, at: int) -> bytes:
    """What comes from there on, but for the end of a line that it begins with. One copy: the output may be large."""
    if output.startswith(b'\r\n', at):
        at += 2
    elif output.startswith(b'\n', at):
        at += 1
    return output[at:]


#: What stands for itself in the argument of printf's %b, in single quotes: a command line may be as long as an argument, and is not to become longer.
_PLAIN = frozenset(range(0x20, 0x7f)) - frozenset(b"'\\")


def _carriable(command: str) -> str:
    """A command line with characters that XML cannot carry, in a form that it can; any other stays as it is."""
    if fits_xml(command):
        return command
    text = ''.join(chr(byte) if byte in _PLAIN else f'\\0{byte:03o}' for byte in to_bytes(command, errors='surrogateescape'))
    return f'eval "$(printf %b \'{text}\')"'
