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
      - For each host, a list of results, in the order in which they are shown.
      - A result has the keys C(package), C(state), C(version_before), C(version_after), C(seconds) and C(msg), as M(sojourn.deploy.install)
        returns them; RV(sojourn.deploy.install#module:seconds) is a dictionary there, of which C(total) is shown.
      - States beside those of M(sojourn.deploy.install) are shown as they are; V(unreachable) and V(dropped) count as failures.
    type: dict
    required: true
  title:
    description: Heading of the table.
    type: str
    default: DEPLOY RECAP
author:
  - The sojourn.deploy authors (@sojourn)
seealso:
  - module: sojourn.deploy.install
'''

EXAMPLES = r'''
- name: Show what came of it
  sojourn.deploy.recap:
    results:
      web1:
        - package: hello.deb
          state: installed
          version_before:
          version_after: "2.10-3"
          seconds: 1.4
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
  description: Hosts with a package that failed, was dropped, or could not be reached.
  returned: success
  type: list
  elements: str
'''
