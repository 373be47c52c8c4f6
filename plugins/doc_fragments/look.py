# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documentation of actions that look, and change nothing, has in common."""

from __future__ import annotations


class ModuleDocFragment:
    """Read by ``ansible-doc`` for ``extends_documentation_fragment: sojourn.deploy.look``."""

    DOCUMENTATION = r'''
options: {}
attributes:
  check_mode:
    description: Does the same in check mode.
    support: full
  diff_mode:
    description: Shows what it changes, or would change in check mode, in diff mode.
    support: none
  platform:
    description: Families of targets.
    platforms: windows, linux
    support: full
'''
