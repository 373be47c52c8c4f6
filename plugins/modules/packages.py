#!/usr/bin/python
# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Documentation of the action of this name; it runs on the controller, from plugins/action/packages.py."""

from __future__ import annotations

DOCUMENTATION = r'''
module: packages
short_description: Install a list of packages on a Windows or Linux target
version_added: 0.1.0
description:
  - Installs packages in their order, each as M(sojourn.deploy.install) does it, and shows a line as each one ends.
  - One list can serve both families of targets; packages of the other one are V(not_applicable).
  - The task has failed if one of the packages has.
extends_documentation_fragment:
  - sojourn.deploy.action
attributes:
  check_mode:
    details: As M(sojourn.deploy.install).
options:
  packages:
    description:
      - The packages. Each takes the options of M(sojourn.deploy.install), of which C(src) is required; C(skip_wrong_family) is V(true) here
        unless a package says otherwise.
      - A package may also have C(when), V(true) or V(false), most useful as a template.
    type: list
    elements: dict
    required: true
  stop_on_failure:
    description: Whether the packages after a failed one are dropped. After one that lost the target they always are.
    type: bool
    default: true
  log_dest:
    description: For packages that do not say it themselves, C(log_dest) of M(sojourn.deploy.install).
    type: path
author:
  - The sojourn.deploy authors (@sojourn)
seealso:
  - module: sojourn.deploy.install
  - module: sojourn.deploy.recap
'''

EXAMPLES = r'''
- name: Install the packages
  sojourn.deploy.packages:
    packages:
      - src: tool-4.2.msi
      - src: tool_4.2-1_amd64.deb
      - src: firmware.scexe
        arguments: -s
        when: "{{ 'blades' in group_names }}"
    log_dest: logs/
'''

RETURN = r'''
results:
  description:
    - For each package that was not left out by C(when), what M(sojourn.deploy.install) returned, and C(package), the file's name.
    - C(state) may also be V(unreachable), or V(dropped) after a failure.
    - C(log), C(stdout) and C(stderr) are there for a failed package only, their last 2000 characters.
  returned: always
  type: list
  elements: dict
  sample:
    - package: tool_4.2-1_amd64.deb
      state: installed
      changed: true
      version_before: null
      version_after: 4.2-1
      msg: "tool 4.2-1: installed."
error:
  description: Code, sentence and remedy of the first error.
  returned: failure
  type: dict
'''
