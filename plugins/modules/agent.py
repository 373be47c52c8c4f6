#!/usr/bin/python
# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Documentation of the action of this name; it runs on the controller, from plugins/action/agent.py."""

from __future__ import annotations

DOCUMENTATION = r'''
module: agent
short_description: Put the agent on a target, or take it off
version_added: 0.1.0
description:
  - The agent is the small service that does the work on the target. Every task over the connections of this collection puts it there by
    itself, and it is taken off when the run ends; this module does either at a time of your choice.
  - Taken off are its service, its folder, its executable, its firewall rule, and the connection over which it was brought.
  - A task after O(state=absent) puts it there again.
extends_documentation_fragment:
  - sojourn.deploy.action
options:
  state:
    description: Whether the agent is to be on the target.
    type: str
    choices: [present, absent]
    default: present
author:
  - The sojourn.deploy authors (@sojourn)
seealso:
  - module: sojourn.deploy.cleanup
'''

EXAMPLES = r'''
- name: Put the agent on the target
  sojourn.deploy.agent:
  register: agent

- name: Show what it found
  ansible.builtin.debug:
    msg: "{{ agent.info.operating_system_name }}, {{ agent.info.firewall_kind }}"

- name: Take it off before the long part that does not need it
  sojourn.deploy.agent:
    state: absent
'''

RETURN = r'''
info:
  description: What the agent is and where it runs; empty for O(state=absent).
  returned: success
  type: dict
  contains:
    operating_system:
      description: The target's family, V(windows) or V(linux).
      type: str
    operating_system_name:
      description: The operating system's name for people.
      type: str
      sample: Debian GNU/Linux 12 (bookworm)
    operating_system_version:
      description: Version on Windows, kernel release on Linux.
      type: str
    architecture:
      description: V(amd64) or V(arm64).
      type: str
    host_name:
      description: The target's own name.
      type: str
    boot_id:
      description: Changes with each boot of the target.
      type: str
    account:
      description: Account that the agent runs as.
      type: str
    service_name:
      description: Name of its service.
      type: str
    folder:
      description: Its folder on the target.
      type: str
    transport:
      description: How it is reached, V(direct) or V(tunnel). With V(auto) for the option, which of them it came to.
      type: str
    port:
      description: TCP port that it listens on; 0 where it is a pipe.
      type: int
    firewall_kind:
      description: What filters the target's input.
      type: str
      sample: nftables
    package_managers:
      description: Package databases found on the target.
      type: list
      elements: str
seconds:
  description: Seconds that the steps took when the agent was put there.
  returned: when O(state=present), not in check mode
  type: dict
  sample: {"connect": 0.2, "upload": 0.1, "start": 0.1, "first_call": 0.01}
removed:
  description: What was taken off.
  returned: success
  type: list
  elements: str
error:
  description: Code, sentence and remedy of the error.
  returned: failure
  type: dict
'''
