# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a package is installed, and whether it must be: reads the answers of QueryPackages; asks and installs nothing itself."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.package_version import compare

#: Architectures of packages that are for every machine.
_ANY_ARCHITECTURE = frozenset(('all', 'noarch'))


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a package is called in the package database. ``manager`` None: whichever the target has."""

    manager: str | None
    name: str | None = None
    version: str | None = None
    architecture: str | None = None
    product_id: str | None = None

    @property
    def known(self) -> bool:
        """Whether the database can be asked at all."""
        return bool(self.name or self.product_id)

    @property
    def pattern(self) -> bool:
        """Whether the name is a pattern, as Windows display names often carry the version ('7-Zip 24*')."""
        return bool(self.name) and self.manager == 'windows' and any(character in t.cast(str, self.name) for character in '*?')

    @property
    def queries(self) -> list[str | None]:
        """Names to ask the database for, in turn, until one has an answer; None: for everything."""
        names: list[str | None] = [self.product_id] if self.product_id else []
        if self.pattern:
            names.append(None)
        elif self.name:
            names.append(self.name)
        return names


@dataclasses.dataclass(frozen=True)
class Installed:
    """A package that the target's database lists."""

    manager: str
    name: str
    version: str | None
    product_id: str | None


@dataclasses.dataclass(frozen=True)
class Decision:
    """Whether an installation is needed, and why."""

    needed: bool
    reason: str


def _matches(identity: Identity, entry: t.Mapping[str, t.Any]) -> bool:
    name = str(entry.get('name') or '')
    if entry.get('manager') == 'windows':
        if identity.product_id and str(entry.get('id') or '').casefold() == identity.product_id.casefold():
            return True
        if not identity.name:
            return False
        if identity.pattern:
            # Brackets stand for themselves: names have them ('Tool [x64]').
            return fnmatch.fnmatchcase(name.casefold(), identity.name.casefold().replace('[', '[[]'))
        return name.casefold() == identity.name.casefold()
    if name != identity.name:
        return False
    architecture = entry.get('architecture')
    return (not identity.architecture or not architecture or identity.architecture == architecture
            or bool({identity.architecture, architecture} & _ANY_ARCHITECTURE))


def find(entries: t.Iterable[t.Mapping[str, t.Any]], identity: Identity) -> Installed | None:
    """The entry that is this package; of several versions side by side (kernels) the wanted one, else the newest."""
    found = [
        Installed(str(entry['manager']), str(entry['name']), entry.get('version') or None, entry.get('id') or None)
        for entry in entries if _matches(identity, entry)
    ]
    if not found:
        return None

    def order(left: Installed, right: Installed) -> int:
        if not left.version or not right.version:
            return bool(left.version) - bool(right.version)
        return compare(left.manager, left.version, right.version)

    if identity.version:
        for candidate in found:
            if candidate.version and compare(candidate.manager, candidate.version, identity.version) == 0:
                return candidate
    return max(found, key=functools.cmp_to_key(order))


def decide(installed: Installed | None, version: str | None, *, allow_downgrade: bool = False, reinstall: bool = False) -> Decision:
    """Whether a package of this version must be installed where ``installed`` is what the target has.

    ``version`` None: any version will do. A newer one is left alone unless ``allow_downgrade``.
    """
    if installed is None:
        return Decision(True, 'it is not installed')
    has = installed.version or 'a version that the database does not tell'
    if reinstall and not version:
        return Decision(True, f'it is to be reinstalled over {has}')
    if not version:
        return Decision(False, f'{has} is installed')
    if not installed.version:
        return Decision(True, f'{has} is installed')
    order = compare(installed.manager, installed.version, version)
    if order < 0:
        return Decision(True, f'{has} is installed, which is older')
    if order == 0:
        return Decision(True, f'it is to be reinstalled over {has}') if reinstall else Decision(False, f'{has} is installed')
    if allow_downgrade:
        return Decision(True, f'{has} is installed, which is newer, and a downgrade is allowed')
    return Decision(False, f'{has} is installed, which is newer')


def missing_after(installed: Installed | None, version: str | None, *, downgrade: bool = False) -> str | None:
    """What the database lacks after an installation that reported success, as the end of a sentence; None where all is well."""
    if installed is None:
        return 'the package database does not list it'
    if version and installed.version:
        order = compare(installed.manager, installed.version, version)
        if order < 0 or (order > 0 and downgrade):
            return f'the package database lists version {installed.version}, not {version}'
    return None
