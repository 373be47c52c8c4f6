#!/usr/bin/python
# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Documentation of the action of this name; it runs on the controller, from plugins/action/cleanup.py."""

from __future__ import annotations

DOCUMENTATION = r'''
module: cleanup
short_description: Remove what earlier runs left on a target
version_added: 0.1.0
description:
  - Finds what runs of this collection left on the target - services, processes, folders, files and firewall rules named C(sojourn-<run>) - and
    removes what no living run owns, whatever state it is in and also where no agent answers.
  - A run is alive as long as the lease of its agent on the target lasts, or an installation that its agent waits for.
  - What belongs to another run that is alive is left alone and reported, and so is everything that this collection did not make.
  - The agent of the present run is taken off as well.
extends_documentation_fragment:
  - sojourn.deploy.action
attributes:
  diff_mode:
    support: full
options:
  run:
    description:
      - Only what belongs to the run with this id.
      - Twelve hexadecimal digits, as in the names on the target.
    type: str
  force:
    description:
      - Remove what belongs to O(run) also where that run is alive, or its agent still waits for an installation.
      - An installation that runs is not ended by this, but what it needs may be taken from it.
    type: bool
    default: false
author:
  - The sojourn.deploy authors (@sojourn)
seealso:
  - module: sojourn.deploy.agent
'''

EXAMPLES = r'''
- name: Remove what earlier runs left
  sojourn.deploy.cleanup:
  register: cleanup

- name: Show it
  ansible.builtin.debug:
    var: cleanup.leftovers

- name: Remove what one run left, even if it seems alive
  sojourn.deploy.cleanup:
    run: 0123456789ab
    force: true
'''

RETURN = r'''
leftovers:
  description: What was found.
  returned: success or failure
  type: list
  elements: dict
  contains:
    kind:
      description: V(service), V(process), V(folder), V(file) or V(firewall-rule).
      type: str
    name:
      description: Its name on the target.
      type: str
    run:
      description: Id of the run that left it.
      type: str
    state:
      description:
        - V(removed) - it is gone now (in check mode - it would be).
        - V(live) - its run is alive, so it was left alone.
        - V(failed) - it could not be removed.
      type: str
    detail:
      description: Why it counts as alive or dead, and why it could not be removed.
      type: str
error:
  description: Code, sentence and remedy of the error.
  returned: failure
  type: dict
'''
