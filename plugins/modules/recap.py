#!/usr/bin/python
# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Documentation of the action of this name; it runs on the controller, from plugins/action/recap.py."""

from __future__ import annotations

DOCUMENTATION = r'''
module: recap
short_description: Print what came of a deployment as one table
version_added: 0.1.0
description:
  - Prints a table of all hosts and packages - state, version before and after, seconds - and below each failed one why.
  - The playbook C(sojourn.deploy.deploy) ends with it. Use it with C(run_once) at the end of a playbook of your own.
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  platform:
    platforms: all
options:
  results:
    description:
      - For each host, the registered result of M(sojourn.deploy.packages), or a list of results in the order in which they are shown.
      - Such a result has the keys C(package), C(state), C(version_before), C(version_after), C(seconds) and C(msg), as
        M(sojourn.deploy.packages) returns them.
      - The states V(failed) and V(unreachable) count as failures; any other text is shown as it is.
    type: dict
    required: true
  removals:
    description: For each host, the registered result of M(sojourn.deploy.agent) with C(state=absent); a failed one is shown.
    type: dict
    default: {}
  title:
    description: Heading of the table.
    type: str
    default: DEPLOY RECAP
author:
  - The sojourn.deploy authors (@sojourn)
seealso:
  - module: sojourn.deploy.packages
'''

EXAMPLES = r'''
- name: Install the packages
  sojourn.deploy.packages:
    packages: "{{ packages }}"
  register: deploy_result
  ignore_errors: true
  ignore_unreachable: true

- name: Show what came of it on all hosts
  sojourn.deploy.recap:
    results: "{{ dict(ansible_play_hosts_all | zip(ansible_play_hosts_all | map('extract', hostvars, 'deploy_result'))) }}"
  run_once: true
'''

RETURN = r'''
table:
  description: The lines of the table.
  returned: success
  type: list
  elements: str
  sample: ["host  package    state      version      seconds", "web1  hello.deb  installed  - → 2.10-3      1.4"]
states:
  description: How many packages ended in each state, over all hosts.
  returned: success
  type: dict
  sample: {"installed": 3, "already_current": 1}
failed_hosts:
  description: Hosts with a package that failed, and those that could not be reached.
  returned: success
  type: list
  elements: str
errors:
  description: For each of these hosts why, in one line.
  returned: success
  type: dict
'''
