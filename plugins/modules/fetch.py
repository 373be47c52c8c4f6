#!/usr/bin/python
# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Documentation of the action of this name; it runs on the controller, from plugins/action/fetch.py."""

from __future__ import annotations

DOCUMENTATION = r'''
module: fetch
short_description: Fetch a file from a target, hashed on its way
version_added: 0.1.0
description:
  - Does what M(ansible.builtin.fetch) does, with the same options and the same results. Over a connection of this collection to a Linux target the file is
    hashed while it comes, where M(ansible.builtin.fetch) has the target read it once more, and reads it twice more on the controller.
  - Everything else (other connections, a task with C(become), a Windows target) goes as by ansible-core's own action.
options:
  src:
    description: The file on the target. It must not be a folder.
    type: str
    required: true
  dest:
    description:
      - The folder on the controller in which the file is put, under the host's name and its path on the target.
      - With O(flat=true) the file itself, or the folder that it is put in, if this ends with C(/).
    type: str
    required: true
  flat:
    description: Whether neither the host's name nor the path on the target is added to O(dest).
    type: bool
    default: false
  fail_on_missing:
    description: Whether it is a failure that the file is not there, or cannot be read.
    type: bool
    default: true
  validate_checksum:
    description: Whether it is a failure that what is at O(dest) in the end has another SHA-1 than the file on the target.
    type: bool
    default: true
extends_documentation_fragment:
  - action_common_attributes
  - action_common_attributes.files
  - action_common_attributes.flow
attributes:
  action:
    support: full
  async:
    support: none
  bypass_host_loop:
    support: none
  check_mode:
    description: It is skipped, as M(ansible.builtin.fetch) is.
    support: none
  diff_mode:
    support: none
  platform:
    platforms: posix, windows
  safe_file_operations:
    description: By a connection of this collection the file takes its place at once, when all of it is there.
    support: partial
  vault:
    support: none
notes:
  - The option C(bundle_copies) of the callback P(sojourn.deploy.lifecycle#callback) has M(ansible.builtin.fetch) be this one, for all of a run.
  - In a play or block with C(collections) of which V(sojourn.deploy) is one, plain C(fetch) is this one. A role has to name it in C(collections) of its
    own C(meta/main.yml).
  - What was hashed on the way is compared by its SHA-256 with what the target has sent. Its SHA-1 is O(validate_checksum)'s of both ends then, unless the
    connection was lost meanwhile, or the local file was there before and has the same size, or is smaller than 8 MB - then the target is asked for it.
  - With C(become), the whole file is held in memory on both ends, as by M(ansible.builtin.fetch).
author:
  - The sojourn.deploy authors (@sojourn)
seealso:
  - module: ansible.builtin.fetch
  - module: ansible.builtin.slurp
  - module: sojourn.deploy.copy
'''

EXAMPLES = r'''
- name: Fetch a database's dump into dumps/<host>/var/backups/site.dump
  sojourn.deploy.fetch:
    src: /var/backups/site.dump
    dest: dumps

- name: Fetch it to a place of its own
  sojourn.deploy.fetch:
    src: /var/backups/site.dump
    dest: "dumps/{{ inventory_hostname }}.dump"
    flat: true
'''

RETURN = r'''
dest:
  description: The file on the controller.
  returned: success
  type: str
  sample: /home/me/dumps/web1/var/backups/site.dump
file:
  description: The file on the target.
  returned: success, by most versions of ansible-core
  type: str
  sample: /var/backups/site.dump
checksum:
  description: SHA-1 of the file on the controller.
  returned: success
  type: str
  sample: 2aae6c35c94fcfb415dbe95f408b9ce91ee846ed
md5sum:
  description: MD5 of the file on the controller, null where FIPS 140 forbids it.
  returned: success
  type: str
  sample: 5eb63bbbe01eeed093cb22bb8f5acdc3
remote_checksum:
  description: SHA-1 of the file on the target.
  returned: when the file was fetched
  type: str
  sample: 2aae6c35c94fcfb415dbe95f408b9ce91ee846ed
remote_md5sum:
  description: Always null, as with M(ansible.builtin.fetch).
  returned: when the file was fetched
  type: str
'''
