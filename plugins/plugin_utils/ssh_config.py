# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What OpenSSH's own settings say of a host, for diagnosis alone: the connection goes by the inventory, and does nothing of it."""

from __future__ import annotations

import os
import re

from ansible_collections.sojourn.deploy.plugins.plugin_utils.libraries import library

paramiko = library('paramiko')

PATH = '~/.ssh/config'
#: What makes ``ssh`` reach a host, or sign in, in another way; a proxy's command may hold anything, so it is named only.
_TELLING = {'hostname': 'HostName', 'port': 'Port', 'user': 'User', 'identityfile': 'IdentityFile', 'proxyjump': 'ProxyJump', 'proxycommand': 'ProxyCommand'}


def passed_over(address: str) -> str | list[str]:
    """What is set there for an address, none of which counts here: a host behind a jump host is not reached."""
    try:
        with open(os.path.expanduser(PATH), encoding='utf-8', errors='replace') as file:
            text = file.read()
    except OSError as error:
        return f'not there, and not needed ({error.strerror})' if isinstance(error, FileNotFoundError) else f'cannot be read ({error.strerror})'
    if re.search(r'^\s*match\b.*\bexec\b', text, re.IGNORECASE | re.MULTILINE):
        return 'not looked into, since it has commands to run (Match exec); the connection does not go by it'
    try:
        found = paramiko.SSHConfig.from_text(text).lookup(address)
    except Exception as error:  # of a file that people write by hand, anything may come
        return f'not understood ({type(error).__name__}); the connection does not go by it'
    set_there = []
    for name, spelt in _TELLING.items():
        value = found.get(name)
        if value is None or name == 'hostname' and value == address:
            continue
        shown = '' if name == 'proxycommand' else f' {", ".join(value) if isinstance(value, list) else value}'
        set_there.append(f'{spelt}{shown}, which the connection does not go by')
    return set_there or 'sets nothing for this host'
