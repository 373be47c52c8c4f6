# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection to a Windows whose port 445 is closed: the way in is WinRM; all else is as over SMB (smb.py)."""

from __future__ import annotations

DOCUMENTATION = r"""
name: winrm
author:
  - The sojourn.deploy authors (@sojourn)
short_description: Run tasks on Windows through an agent that is put there over WinRM and stays for the run only
version_added: 0.1.0
description:
  - Puts a small agent onto a Windows host over Windows Remote Management at the first task, runs all tasks through it, and removes it when the run
    ends, however the run ends.
  - For hosts whose port 445 is closed and whose port 5986 or 5985 is open. Where 445 is open, use P(sojourn.deploy.smb#connection), which is faster.
  - WinRM is used to put the agent there, to start it, and to see at the end that it is gone. All else goes to the agent itself.
  - The agent is a service of LocalSystem, and B(tasks run as LocalSystem), not as O(remote_user). Use C(become) with C(runas) for another account.
  - O(remote_user) has to be an administrator of the host, and O(password) has to be given. Kerberos tickets are for P(sojourn.deploy.smb#connection).
extends_documentation_fragment:
  - sojourn.deploy.connection
options:
  port:
    description:
      - Port of Windows Remote Management. Without it, 5986, or 5985 where O(scheme) is V(http).
    type: integer
    vars:
      - name: ansible_port
      - name: ansible_winrm_port
      - name: ansible_sojourn_port
    keyword:
      - name: port
  scheme:
    description:
      - V(https), or V(http) where every message is sealed by the sign-in.
      - Without it, V(http) where O(port) is 5985, else V(https).
    type: string
    choices: [http, https]
    vars:
      - name: ansible_winrm_scheme
  winrm_transport:
    description:
      - How to sign in. (O(transport) is how the agent is reached.)
      - V(basic) is taken with O(scheme=https) only, and has to be switched on at the host.
    type: string
    choices: [ntlm, basic]
    default: ntlm
    vars:
      - name: ansible_winrm_transport
  server_cert_validation:
    description:
      - With O(scheme=https), whether the host's certificate has to be signed by an authority that the controller trusts, and to name O(remote_addr).
      - With V(ignore) whoever is in between may be taken for the host.
    type: string
    choices: [validate, ignore]
    default: validate
    vars:
      - name: ansible_winrm_server_cert_validation
  ca_trust_path:
    description:
      - A file with the certificates (PEM) of the authorities that count, or the host's own where it has signed it itself.
      - Without it, those that the controller's system trusts. Variables such as E(REQUESTS_CA_BUNDLE) have no say.
    type: path
    vars:
      - name: ansible_winrm_ca_trust_path
notes:
  - The shell is PowerShell. With C(ansible_shell_type=cmd) it is the command prompt; modules need PowerShell all the same.
  - Proxies are not used, whatever the controller's environment says.
"""

EXAMPLES = r"""
# An inventory
# all:
#   hosts:
#     files1:
#       ansible_connection: sojourn.deploy.winrm
#       ansible_host: files1.example.com
#       ansible_user: Administrator
#       ansible_password: "{{ vault_files1_password }}"
#       ansible_winrm_ca_trust_path: /etc/pki/our-authority.pem
#     # Without a certificate: messages are sealed by NTLM
#     files2:
#       ansible_connection: sojourn.deploy.winrm
#       ansible_host: 2001:db8::24
#       ansible_port: 5985
#       ansible_user: Administrator
#       ansible_password: "{{ vault_files2_password }}"
"""

import typing as t

from ansible_collections.sojourn.deploy.plugins.connection.smb import Connection as WindowsConnection


class Connection(WindowsConnection):
    """See DOCUMENTATION."""

    transport = 'sojourn.deploy.winrm'
    way_in = 'winrm'

    def extra_options(self) -> dict[str, t.Any]:
        """Those of WinRM."""
        return {
            'winrm_scheme': self.get_option('scheme'), 'winrm_transport': self.get_option('winrm_transport'),
            'winrm_validate': self.get_option('server_cert_validation') == 'validate', 'winrm_ca_file': self.get_option('ca_trust_path')}
