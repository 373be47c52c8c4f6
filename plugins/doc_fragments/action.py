# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documentation of every action that works through the agent has in common."""

from __future__ import annotations


class ModuleDocFragment:
    """Read by ``ansible-doc`` for ``extends_documentation_fragment: sojourn.deploy.action``."""

    DOCUMENTATION = r'''
options: {}
attributes:
  check_mode:
    description: Can run in check mode and tell what it would change, without changing it.
    support: full
  diff_mode:
    description: Shows what it changes, or would change in check mode, in diff mode.
    support: none
  platform:
    description: Families of targets.
    platforms: windows, linux
    support: full
notes:
  - Works over the connections P(sojourn.deploy.ssh#connection), P(sojourn.deploy.smb#connection) and P(sojourn.deploy.winrm#connection)
    only, and needs neither Python nor PowerShell on the target.
  - The agent is put on the target when it is first needed, also in check mode, and taken off when the run ends. It is not counted as
    a change of the target.
  - What it does on the target is done as the agent's account, which is C(root) or C(NT AUTHORITY\SYSTEM), whatever
    C(become) says.
'''
