# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one place where libraries from outside ansible-core are imported; not a place that uses them.

A module of the broker writes ``smb = library('smbprotocol.connection')``. Where the library is missing, the module can still be
imported (documentation builds and sanity tests do so), and the first use raises SD-901, which names the library and the interpreter.
"""

from __future__ import annotations

import importlib
import sys
import types
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

#: Import name's first part: name on PyPI and the oldest version that will do (kept equal with requirements.txt by a unit test).
DISTRIBUTIONS = {
    'cryptography': 'cryptography',
    'debian': 'python-debian',
    'lxml': 'lxml',
    'olefile': 'olefile',
    'paramiko': 'paramiko',
    'requests': 'requests',
    'winrm': 'pywinrm',
    'pypsexec': 'pypsexec',
    'rpmfile': 'rpmfile',
    'smbprotocol': 'smbprotocol',
    'spnego': 'pyspnego',
    'gssapi': 'pyspnego[kerberos]',
    'krb5': 'pyspnego[kerberos]',
    'urllib3': 'urllib3',
    'zeep': 'zeep',
}


#: What a library imports for a part of it that is not used here, and does without.
UNWANTED = {'paramiko': ('invoke',)}  # a third of the time that it takes to load; for `Match exec` in ssh_config


def missing(name: str, error: BaseException) -> SojournError:
    """SD-901 for the library behind an import name."""
    distribution = DISTRIBUTIONS.get(name.partition('.')[0], name)
    return SojournError('SD-901', step='loading libraries', library=distribution, detail=error, python=sys.executable)


class _Missing:
    """Stands for a library that is not there. Its attributes are classes that can be derived from and caught, but not made."""

    def __init__(self, name: str, error: ImportError) -> None:
        self._name = name
        self._error = error

    def __getattr__(self, attribute: str) -> t.Any:
        if attribute.startswith('__'):
            raise AttributeError(attribute)
        name, error = self._name, self._error

        def refuse(cls: type, *unused_args: t.Any, **unused_kwargs: t.Any) -> t.Any:
            raise missing(name, error)

        return type(attribute, (Exception,), {'__new__': refuse})


def library(name: str) -> t.Any:
    """The module of this name, or what stands for it."""
    unwanted = [other for other in UNWANTED.get(name.partition('.')[0], ()) if other not in sys.modules]
    sys.modules.update(dict.fromkeys(unwanted))  # type: ignore[arg-type] # with None it cannot be imported
    try:
        return importlib.import_module(name)
    except ImportError as error:
        return _Missing(name, error)
    finally:
        for other in unwanted:
            sys.modules.pop(other, None)


class Later(types.ModuleType):
    """Stands for a module of ours that takes long to load, until something of it is wanted."""

    def __getattr__(self, attribute: str) -> t.Any:
        return getattr(importlib.import_module(self.__name__), attribute)


def require(*modules: t.Any) -> None:
    """Raises SD-901 for the first of these (results of ``library``) that is missing."""
    for module in modules:
        if isinstance(module, _Missing):
            raise missing(module._name, module._error)


def version(module: t.Any) -> str:
    """A library's version, for diagnosis; '' where it tells none."""
    if isinstance(module, types.ModuleType):
        return str(getattr(module, '__version__', ''))
    return ''
