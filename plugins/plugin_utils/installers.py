# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command that installs a package of each kind, silently and without a restart; it runs nothing itself."""

from __future__ import annotations

import dataclasses
import ntpath
import posixpath
import re
import shlex
import subprocess
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.package_file import WINDOWS

#: Log that Windows Installer is told to write, beside the package.
MSI_LOG = 'msi.log'

_MSI_PROPERTY = re.compile(r'([A-Za-z_][A-Za-z0-9_.]*)=(.*)', re.DOTALL)

Arguments = str | t.Sequence[str] | None


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be installed, once its file is on the target."""

    kind: str
    #: Absolute path of the file on the target.
    path: str
    #: The user's own arguments: a list, or a string in the family's manner.
    arguments: Arguments = None
    #: Absolute path that the installer's log is to have; Windows Installer only.
    log: str | None = None
    reinstall: bool = False
    downgrade: bool = False
    #: Windows: the database lists another build of the same product, which Windows Installer replaces only when told so.
    same_product: bool = False
    #: Linux: apt-get is there.
    has_apt: bool = False
    #: Linux: the file begins with '#!' or is an executable, so that it can be started as it is.
    executable: bool = True
    #: Seconds to wait while another installation runs; apt waits by itself.
    busy_timeout: int = 0


@dataclasses.dataclass(frozen=True)
class Command:
    """A command as ``Agent.execute`` takes it: ``arguments``, or ``command_line`` where the quoting is Windows' own affair."""

    arguments: tuple[str, ...] | None = None
    command_line: str | None = None
    environment: t.Mapping[str, str] = dataclasses.field(default_factory=dict)


def join(family: str, *parts: str) -> str:
    """Joins a path as the target's family writes it."""
    return ntpath.join(*parts) if family == WINDOWS else posixpath.join(*parts)


def parent(family: str, path: str) -> str:
    """The folder that a path of the target is in."""
    return ntpath.dirname(path) if family == WINDOWS else posixpath.dirname(path)


def is_absolute(family: str, path: str) -> bool:
    """Whether a path of the target is absolute."""
    if family == WINDOWS:
        drive, rest = ntpath.splitdrive(path)
        return bool(drive) and rest[:1] in ('\\', '/')
    return posixpath.isabs(path)


def split_arguments(arguments: Arguments) -> list[str]:
    """The user's arguments for a Linux program: a string is split as a shell does it, without one running. Raises SD-102."""
    if not arguments:
        return []
    if isinstance(arguments, str):
        try:
            return shlex.split(arguments)
        except ValueError as error:
            raise SojournError('SD-102', step='reading the options', option='arguments', detail=error) from None
    return [str(argument) for argument in arguments]


def _msi_quote(argument: str) -> str:
    """Windows Installer reads its own command line: NAME="a value", where a quote within is doubled.

    https://learn.microsoft.com/en-us/windows/win32/msi/command-line-options
    """
    found = _MSI_PROPERTY.fullmatch(argument)
    if not found:
        return subprocess.list2cmdline([argument])
    name, value = found.groups()
    if value and not re.search(r'[\s"]', value):
        return argument
    return f'{name}="{value.replace(chr(34), chr(34) * 2)}"'


def _msi(request: Request) -> Command:
    words = ['msiexec.exe', '/i', f'"{request.path}"', '/qn', '/norestart']
    if request.log:
        words += ['/l*v', f'"{request.log}"']
    if request.same_product:
        # v: from this package, not the one that Windows kept; o, m, u, s: files, both registry hives, shortcuts.
        words += ['REINSTALL=ALL', 'REINSTALLMODE=vomus']
    if isinstance(request.arguments, str):
        words.append(request.arguments)
    else:
        words += [_msi_quote(str(argument)) for argument in request.arguments or ()]
    return Command(command_line=' '.join(word for word in words if word))


def _windows_program(program: tuple[str, ...], arguments: Arguments) -> Command:
    if isinstance(arguments, str):
        # As it stands: some installers (NSIS' /D=) have rules of their own.
        return Command(command_line=f'{subprocess.list2cmdline(program)} {arguments}'.rstrip())
    return Command(arguments=(*program, *(str(argument) for argument in arguments or ())))


def _exe(request: Request) -> Command:
    return _windows_program((request.path,), request.arguments)


def _msu(request: Request) -> Command:
    return _windows_program(('wusa.exe', request.path, '/quiet', '/norestart'), request.arguments)


def _rpm(request: Request) -> Command:
    flags = ['--replacepkgs'] * request.reinstall + ['--oldpackage'] * request.downgrade
    return Command(arguments=('rpm', '-U', '-v', *flags, *split_arguments(request.arguments), request.path))


def _deb(request: Request) -> Command:
    """apt-get where it is there, since dpkg leaves a package half installed when something that it needs is missing.

    A package's changed configuration files are kept, as Ansible's own apt module does it. Nor does apt keep what it fetched, nor its
    index in a form of its own.
    """
    environment = {'DEBIAN_FRONTEND': 'noninteractive'}
    own = split_arguments(request.arguments)
    if not request.has_apt:
        return Command(arguments=('dpkg', '--force-confdef', '--force-confold', '-i', *own, request.path), environment=environment)
    flags = ['--reinstall'] * request.reinstall + ['--allow-downgrades'] * request.downgrade
    options = (
        'Dpkg::Use-Pty=0', 'Dpkg::Options::=--force-confdef', 'Dpkg::Options::=--force-confold', f'DPkg::Lock::Timeout={request.busy_timeout}',
        'APT::Keep-Downloaded-Packages=false', 'Dir::Cache::pkgcache=', 'Dir::Cache::srcpkgcache=')
    return Command(
        arguments=('apt-get', '-q', '-y', *(word for option in options for word in ('-o', option)), 'install', *flags, *own, request.path),
        environment=environment)


def _script(request: Request) -> Command:
    program = (request.path,) if request.executable else ('/bin/sh', request.path)
    return Command(arguments=(*program, *split_arguments(request.arguments)))


_COMMANDS: dict[str, t.Callable[[Request], Command]] = {
    'msi': _msi,
    'exe': _exe,
    'msu': _msu,
    'rpm': _rpm,
    'deb': _deb,
    'sh': _script,
    'scexe': _script,
}


def command(request: Request) -> Command:
    """The command for a request. Raises SD-102 for arguments that cannot be read."""
    return _COMMANDS[request.kind](request)
