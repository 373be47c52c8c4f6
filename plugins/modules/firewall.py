#!/usr/bin/python
# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Documentation of the action of this name; it runs on the controller, from plugins/action/firewall.py."""

from __future__ import annotations

DOCUMENTATION = r'''
module: firewall
short_description: Open or close a port in a target's firewall
version_added: 0.1.0
description:
  - Admits a port through whatever filters the target's input - Windows' firewall, firewalld, ufw, nftables or iptables - or takes back
    what this module admitted before. Rules of others are never touched.
  - Where nothing filters the input, nothing is changed.
  - The agent's own port needs no task; it is opened and closed with the agent.
extends_documentation_fragment:
  - sojourn.deploy.action
attributes:
  diff_mode:
    support: full
options:
  port:
    description: The port, 1 to 65535.
    type: int
    required: true
  protocol:
    description: Its transport protocol.
    type: str
    choices: [tcp, udp]
    default: tcp
  source:
    description:
      - Address or prefix that is admitted. Without it, every address is.
      - With O(state=closed), only the rule with this source is taken back; without it, all are.
    type: str
  family:
    description: Address family. Without it, that of O(source), or both.
    type: str
    choices: [ipv6, ipv4]
  state:
    description: Whether the port is to be open.
    type: str
    choices: [open, closed]
    default: open
  keep:
    description:
      - Whether the port stays open after the run. Otherwise it is closed with the agent, as all is that the run did to the target's firewall.
      - Where the target loads its rules from a file at boot, a rule in nftables or iptables lasts until then.
    type: bool
    default: false
author:
  - The sojourn.deploy authors (@sojourn)
'''

EXAMPLES = r'''
- name: Open a port for as long as the run lasts
  sojourn.deploy.firewall:
    port: 8080

- name: Open a port to one network, to stay
  sojourn.deploy.firewall:
    port: 5432
    source: 2001:db8:17::/48
    keep: true

- name: Close it again
  sojourn.deploy.firewall:
    port: 5432
    state: closed
'''

RETURN = r'''
rules:
  description: The rules that admit the port. In check mode, those that are there now.
  returned: success
  type: list
  elements: dict
  sample:
    - name: sojourn-kept-tcp-5432
      run: null
      port: 5432
      protocol: tcp
      family: ipv6
      source: 2001:db8:17::/48
      firewall_kind: nftables
error:
  description: Code, sentence and remedy of the error.
  returned: failure
  type: dict
'''
