# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection to Windows: the way in is ADMIN$ and the service control manager, all else goes to the agent; only what is Windows' own is here."""

from __future__ import annotations

DOCUMENTATION = r"""
name: smb
author:
  - The sojourn.deploy authors (@sojourn)
short_description: Run tasks on Windows through an agent that stays for the run only
version_added: 0.1.0
description:
  - Puts a small agent onto a Windows host over the C(ADMIN$) share and the service control manager at the first task, runs all tasks through it,
    and removes it when the run ends, however the run ends.
  - The host needs port 445 open and nothing else. Neither WinRM, nor OpenSSH, nor Python has to be there.
  - The agent is a service of LocalSystem, and B(tasks run as LocalSystem), not as O(remote_user). Use C(become) with C(runas) for another account.
  - Without O(password), the Kerberos ticket in the controller's cache is used (C(kinit)); this needs C(pyspnego[kerberos]).
  - SMB 3.1.1 is required, and encryption with it (see O(smb_encryption)), which every supported Windows has.
  - O(remote_user) is C(user) or C(.\user) for an account of the target's own, C(user@REALM) or C(DOMAIN\user) for one of a domain. docs/windows.md says what
    is sent for each.
extends_documentation_fragment:
  - sojourn.deploy.connection
options:
  port:
    description:
      - Port of the file sharing service.
    type: integer
    default: 445
    vars:
      - name: ansible_port
      - name: ansible_sojourn_port
    keyword:
      - name: port
  ntlm_fallback:
    description:
      - Whether an account of a domain (C(user@REALM), or C(DOMAIN\user) where C(krb5.conf) knows the domain) that has a password may sign in by NTLM
        where Kerberos fails. Without it, nothing but Kerberos is tried for it.
      - Accounts of the target's own (C(user), C(.\user), C(HOST\user)) have no Kerberos, and go by NTLM in any case.
    type: boolean
    default: false
    ini:
      - section: sojourn
        key: ntlm_fallback
    env:
      - name: SOJOURN_NTLM_FALLBACK
    vars:
      - name: ansible_sojourn_ntlm_fallback
  smb_encryption:
    description:
      - Whether a target that offers no SMB encryption is refused. With V(false), what goes over the way in to such a target, the agent's executable and its
        certificate, is signed and can be read on the wire. No password is part of that. Where encryption is offered, it is used in any case.
      - Signing cannot be turned off.
    type: boolean
    default: true
    ini:
      - section: sojourn
        key: smb_encryption
    env:
      - name: SOJOURN_SMB_ENCRYPTION
    vars:
      - name: ansible_sojourn_smb_encryption
notes:
  - The shell is PowerShell. With C(ansible_shell_type=cmd) it is the command prompt; modules need PowerShell all the same.
"""

EXAMPLES = r"""
# An inventory: nothing else is needed
# all:
#   hosts:
#     files1:
#       ansible_connection: sojourn.deploy.smb
#       ansible_host: 2001:db8::23
#       ansible_user: Administrator
#       ansible_password: "{{ vault_files1_password }}"
"""

import base64
import re
import subprocess
import typing as t

from ansible.utils.display import Display

from ansible_collections.sojourn.deploy.plugins.plugin_utils.connection_base import AgentConnection, plain

display = Display()


class Connection(AgentConnection):
    """See DOCUMENTATION."""

    transport = 'sojourn.deploy.smb'
    way_in = 'smb'
    module_implementation_preferences = ('.ps1', '.exe', '')
    allow_executable = False
    has_native_async = True
    always_pipeline_modules = True

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        self._shell_type = 'powershell'
        super().__init__(*args, **kwargs)

    def extra_options(self) -> dict[str, t.Any]:
        """Options that only SMB has."""
        return {'ntlm_fallback': self.get_option('ntlm_fallback'), 'smb_encryption': self.get_option('smb_encryption')}

    def is_pipelining_enabled(self, wrap_async: bool = False) -> bool:
        """Always: a Windows module is one command with all it needs on its standard input, asynchronous ones too."""
        return True

    def _path(self, path: str) -> str:
        return unquoted(path)

    def _run(self, command: str, data: bytes | None, sudoable: bool) -> tuple[int, bytes, bytes]:
        display.vvv(f'EXEC {command if len(command) < 200 else command[:200] + "..."}', host=self.host_name)
        code, output, errors = self._finish(self.agent.execute(command_line=self._command_line(plain(command)), input_data=data, may_outlive=True))
        return code, output, without_clixml(errors)

    def _command_line(self, command: str) -> str:
        """For CreateProcess."""
        family = self._shell.SHELL_FAMILY
        words = started_powershell(command, family)
        if words:
            return subprocess.list2cmdline(words)
        if family == 'cmd' or _PIPED.match(command):
            # /s: all between the first and the last quotation mark is the command, whatever quotation marks are in it
            return f'cmd.exe /d /s /c "{command}"'
        # Not by Ansible's own shell plugin: that takes indentation and empty lines away, which a here-string has a right to, and is to lose the method for it.
        return ' '.join((*_POWERSHELL, base64.b64encode(command.encode('utf-16-le', 'surrogatepass')).decode('ascii')))


_POWERSHELL = ('powershell', '-NoProfile', '-NonInteractive', '-ExecutionPolicy', 'Unrestricted', '-EncodedCommand')
_QUOTES = "'\u2018\u2019\u201a\u201b"
#: A word that a shell takes as it is, or in PowerShell's quotation marks, any of which is doubled in between.
_WORDS = {'powershell': rf"""'(?:[^{_QUOTES}]|([{_QUOTES}])\1)*'|[^\s"`&|;<>(){{}}$@#,{_QUOTES}]+""", 'cmd': r'[^\s"()%!^<>&|]+'}
_INTERPRETER = re.compile(r'(?i)(?:.*[\\/])?[^\\/]*(?:powershell|pwsh)[^\\/]*')
#: A module that waits in a file (ANSIBLE_KEEP_REMOTE_FILES, before ansible-core 2.21).
_PIPED = re.compile(r'(?i)type "[^"]+" \| powershell [^"&|<>]+ -EncodedCommand [^\s"&|<>]+$')


def started_powershell(command: str, family: str) -> list[str]:
    """The words of a command that does nothing but start PowerShell with an encoded script, as Ansible makes them for modules; none where it does more.

    These need no shell in between: each module is one process, and what it reads is the module's own standard input.
    """
    if ' -EncodedCommand ' not in command:
        return []
    if family == 'powershell':
        command = command.removeprefix('& ')
    words: list[str] = []
    at = 0
    one = re.compile(_WORDS.get(family, _WORDS['powershell']))
    while at < len(command):
        found = one.match(command, at)
        if found is None or command[found.end():found.end() + 1] not in ('', ' '):
            return []
        word = found[0]
        words.append(re.sub(rf'([{_QUOTES}])\1', r'\1', word[1:-1]) if word.startswith("'") and family != 'cmd' else word)
        at = found.end() + 1
    return words if '-EncodedCommand' in words and _INTERPRETER.fullmatch(words[0]) else []


def unquoted(path: str) -> str:
    """A path without the quotation marks that Ansible's shell plugins put around it."""
    path = path.strip()
    return path[1:-1] if len(path) >= 2 and path[0] == path[-1] and path[0] in '\'"' else path


_CLIXML = re.compile(rb'(?:#< CLIXML\r?\n)+((?:<Objs\b.*?</Objs>)+)', re.DOTALL)
_ERROR = re.compile(rb'<S S="Error">(.*?)</S>', re.DOTALL)
_ESCAPE = re.compile(r'_x([0-9A-Fa-f]{4})_')


def without_clixml(errors: bytes) -> bytes:
    """Standard error as text where PowerShell wrote it as CLIXML ([MS-PSRP] 2.2.3.31; _x000D__x000A_ is a line break); what is around that stays."""
    return _CLIXML.sub(lambda match: _said(match[1]), errors) if b'#< CLIXML' in errors else errors


def _said(objects: bytes) -> bytes:
    import html

    text = b''.join(_ERROR.findall(objects)).decode('utf-8', 'replace')
    text = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), html.unescape(text))
    # Characters outside the BMP come as two escapes
    return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace').encode('utf-8')
