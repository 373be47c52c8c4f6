# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that a worker starts as the broker: makes the collection importable without Ansible, then hands over to broker.py."""

from __future__ import annotations

import os
import sys
import types


def make_importable() -> None:
    """Puts the packages ``ansible_collections.sojourn.deploy`` in place, wherever the collection lies (Ansible's own loader is not here)."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    name = ''
    for part in ('ansible_collections', 'sojourn', 'deploy'):
        name = f'{name}.{part}' if name else part
        package = types.ModuleType(name)
        package.__path__ = [root] if part == 'deploy' else []
        sys.modules[name] = package


if __name__ == '__main__':
    make_importable()
    from ansible_collections.sojourn.deploy.plugins.plugin_utils.broker import main

    sys.exit(main(sys.argv[1:]))
