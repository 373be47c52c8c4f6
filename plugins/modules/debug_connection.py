#!/usr/bin/python
# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Documentation of the action of this name; it runs on the controller, from plugins/action/debug_connection.py."""

from __future__ import annotations

DOCUMENTATION = r'''
module: debug_connection
short_description: Tell how a target would be reached, and what keeps it from being
version_added: 0.1.0
description:
  - Tells what a connection of this collection would do to get its agent onto a target, and with what - options and where they come from, libraries
    and their versions, addresses in the order in which they are tried, ports, keys, tickets, host keys, and what the target itself says.
  - B(Nothing is changed on the target, and no agent is put there.) The target is connected to, as a service's log may note.
  - It goes the way that a task goes, by the same code, and stops before the sign-in. With O(sign_in=true) it signs in as well, and looks what the target
    is and whether the rights suffice.
  - Of passwords and passphrases nothing is told but whether they are given.
  - Where something keeps the agent from getting there, the host has failed or is unreachable, with the error that a task would have, and all
    that was found is in the result all the same.
  - A host that does not answer takes about as long as C(ansible_connection_timeout) says, however many addresses it has.
extends_documentation_fragment:
  - sojourn.deploy.look
options:
  sign_in:
    description:
      - Whether to sign in, which shows whether the credentials are good, and then to look at the target - its architecture, and the right to
        become C(root) or to make services.
      - Off by default, since a sign-in that is refused counts towards the lock-out of an account, and one that succeeds is in the target's log.
      - It is not tried where something else was found that speaks against it.
    type: bool
    default: false
author:
  - The sojourn.deploy authors (@sojourn)
seealso:
  - module: sojourn.deploy.agent
notes:
  - Works over the connections P(sojourn.deploy.ssh#connection), P(sojourn.deploy.smb#connection) and P(sojourn.deploy.winrm#connection)
    only, and needs neither Python nor PowerShell on the target.
  - With C(-vvv), each step is shown with its milliseconds as it ends, as it is for every other task.
'''

EXAMPLES = r'''
# On the command line: ansible web1 -m sojourn.deploy.debug_connection
# With the sign-in:    ansible web1 -m sojourn.deploy.debug_connection -a sign_in=true

- name: Tell how each host would be reached
  sojourn.deploy.debug_connection:
  register: diagnosis
  ignore_unreachable: true
  ignore_errors: true

- name: Show which address is taken
  ansible.builtin.debug:
    msg: "{{ diagnosis.findings | selectattr('section', 'equalto', 'address') | selectattr('name', 'equalto', 'taken') | map(attribute='value') }}"
'''

RETURN = r'''
msg:
  description:
    - All of RV(findings) as lines for people, by section.
    - The last line says what it comes to, or is the error.
  returned: success or failure
  type: list
  elements: str
  sample:
    - "address:"
    - "  order         2001:db8::17, 192.0.2.17 [1.3 ms]"
    - "  2001:db8::17  port 22 answers, from 2001:db8::1 [0.8 ms]"
    - "Nothing speaks against it as far as the sign-in, which was not tried; sign_in: true tries it."
findings:
  description: What was found, in the order in which it was looked for.
  returned: success or failure
  type: list
  elements: dict
  contains:
    section:
      description:
        - What it is about.
        - V(options), the connection's; V(controller); V(libraries); V(address), how the target's name and addresses lead to it; V(SSH) or V(SMB), what the
          target said before the sign-in; V(sign-in), with what and how; V(agent).
      type: str
    name:
      description: What it is, unique in its section.
      type: str
    value:
      description: What was found, as text or as a list of texts in their order.
      type: raw
    origin:
      description: Of an option, where Ansible has it from.
      returned: where it is known
      type: str
      sample: "var: ansible_host"
    seconds:
      description: How long it took to find out.
      returned: where it took the network or the name resolution
      type: float
    error:
      description: That this keeps the agent from getting there - code, sentence and remedy.
      returned: where it does
      type: dict
  sample:
    - {"section": "address", "name": "taken", "value": "2001:db8::17", "seconds": 0.0008}
    - {"section": "SSH", "name": "host key", "value": "ssh-ed25519 SHA256:oVEvkmEAyPIBUiH9Xr0YxQbaRS0sWDPiYbtpCPSPCns, known"}
error:
  description: Code, sentence and remedy of the first error.
  returned: failure
  type: dict
'''
