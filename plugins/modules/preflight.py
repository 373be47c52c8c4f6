#!/usr/bin/python
# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Documentation of the action of this name; it runs on the controller, from plugins/action/preflight.py."""

from __future__ import annotations

DOCUMENTATION = r'''
module: preflight
short_description: Tell whether a deployment to a target would succeed, before anything is copied
version_added: 0.1.0
description:
  - Checks, before anything is copied, what a deployment needs of the target - name resolution and route for each address family, ports, sign-in,
    admin rights, the right to write to the share and to make services, operating system and version, architecture, free space, a pending
    reboot, the kind of firewall, sudo, the clock, and whether another run is at work there.
  - Each check is V(ok), V(warning) or V(failed), and what is not V(ok) comes with its remedy.
  - B(Nothing is changed on the target, and no agent is put there.) It is connected to, signed in to, and read, as a service's log may note.
  - As far as the sign-in it goes the way that a task goes, by the same code.
  - A check that cannot be made since an earlier one failed is left out.
  - The host has failed, or is unreachable, with the error of the first check that failed (see O(fail)); all checks are in the result all the same.
  - A host that does not answer takes as many seconds as O(timeout) says, whatever C(ansible_connection_timeout) is.
extends_documentation_fragment:
  - sojourn.deploy.look
options:
  timeout:
    description:
      - Seconds that the name resolution, and then the target, may take to answer.
      - It is small, so that a dead host is told in seconds. Raise it for targets behind a slow line.
    type: float
    default: 3.0
  sign_in:
    description:
      - Whether to sign in, which most checks need.
      - Turn it off where the credentials are in doubt, since a sign-in that is refused counts towards the lock-out of an account.
      - It is not tried where an earlier check failed.
    type: bool
    default: true
  fail:
    description:
      - Whether the task fails where a check failed.
      - With O(fail=false) it succeeds whatever was found, and RV(error) says whether a check failed; so a play goes on to show it.
    type: bool
    default: true
author:
  - The sojourn.deploy authors (@sojourn)
seealso:
  - module: sojourn.deploy.debug_connection
  - module: sojourn.deploy.cleanup
notes:
  - Works over the connections P(sojourn.deploy.ssh#connection), P(sojourn.deploy.smb#connection) and P(sojourn.deploy.winrm#connection)
    only, and needs neither Python nor PowerShell on the target.
  - A warning does not keep a deployment from succeeding, or it cannot be told from outside whether it does.
'''

EXAMPLES = r'''
# On the command line: ansible-playbook -i inventory.yml sojourn.deploy.preflight
# Of one host:         ansible web1 -m sojourn.deploy.preflight

- name: See whether the deployment would succeed on each host
  sojourn.deploy.preflight:
  register: preflight

- name: Stop also where another run is at work
  ansible.builtin.assert:
    that: "'other run' not in preflight.checks | selectattr('state', 'equalto', 'warning') | map(attribute='check')"

- name: Without signing in
  sojourn.deploy.preflight:
    sign_in: false
    timeout: 10
'''

RETURN = r'''
msg:
  description: What it comes to, or the error of the first check that failed, with its remedy.
  returned: always
  type: str
  sample: "[win1] preflight, free space: The target has no room for the agent: 2.0 MiB are free. (SD-402) Remedy: Free space on the target's system disk."
checks:
  description: The checks that were made, in their order.
  returned: success or failure
  type: list
  elements: dict
  contains:
    check:
      description: Its name. A host with several addresses has some of them more than once.
      type: str
      sample: free space
    state:
      description: V(ok), V(warning) or V(failed).
      type: str
    detail:
      description: What was found.
      type: str
    remedy:
      description: What to do about it, where it is not V(ok).
      type: str
    code:
      description: Code of the error that a deployment would have. See docs/errors.md of the collection.
      type: str
  sample:
    - {"check": "port 445", "state": "ok", "detail": "answers at 2001:db8::10", "remedy": null, "code": null}
    - {"check": "clock", "state": "warning", "detail": "it is 2711 s behind the controller's", "remedy": "Set the clocks (a time service on both ends).",
       "code": null}
table:
  description: The same as lines for people.
  returned: success or failure
  type: list
  elements: str
  sample: ["ok  port 445  answers at 2001:db8::10"]
error:
  description: Code, sentence and remedy of the first error.
  returned: where a check failed
  type: dict
'''
