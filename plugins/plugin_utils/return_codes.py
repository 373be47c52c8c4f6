# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an installer's exit code means: the vendors' tables and the user's own; not what is done about it."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

INSTALLED = 'installed'
ALREADY_CURRENT = 'already_current'
REBOOT_REQUIRED = 'reboot_required'
FAILED = 'failed'
NOT_APPLICABLE = 'not_applicable'

#: Every state that a package can end in, as results and the recap show it.
STATES = (INSTALLED, ALREADY_CURRENT, REBOOT_REQUIRED, FAILED, NOT_APPLICABLE)
#: The states in which the target was changed.
CHANGED_STATES = frozenset((INSTALLED, REBOOT_REQUIRED))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one exit code means. ``busy``: another installation was running and this one never began, so it may be tried again."""

    state: str
    meaning: str
    busy: bool = False

    @property
    def changed(self) -> bool:
        """Whether the target was changed."""
        return self.state in CHANGED_STATES


Table = t.Mapping[int, Outcome]

_SUCCESS = Outcome(INSTALLED, 'installed')
_REBOOT = Outcome(REBOOT_REQUIRED, 'installed, reboot required')
_REBOOTING = Outcome(REBOOT_REQUIRED, 'installed, reboot started')

#: Codes of Windows Installer, which bundles of other makers (.exe around an .msi) hand through.
#: https://learn.microsoft.com/en-us/windows/win32/msi/error-codes
_WINDOWS_INSTALLER: dict[int, Outcome] = {
    0: _SUCCESS,
    1602: Outcome(FAILED, 'cancelled'),
    1603: Outcome(FAILED, 'fatal error during the installation'),
    1618: Outcome(FAILED, 'another installation is running', busy=True),
    1619: Outcome(FAILED, 'the package could not be opened'),
    1620: Outcome(FAILED, 'the package is not valid'),
    1625: Outcome(FAILED, 'a policy of the target forbids this installation'),
    1633: Outcome(FAILED, "the package is not for this target's processor"),
    1638: Outcome(FAILED, 'another version of this product is installed'),
    1639: Outcome(FAILED, 'invalid argument'),
    1641: _REBOOTING,
    3010: _REBOOT,
}

#: The tables by the names that ``return_codes`` takes.
TABLES: dict[str, Table] = {
    # Zero is success, the rest is not: the rule of programs on both families.
    'generic': {0: _SUCCESS},
    'exe': _WINDOWS_INSTALLER,
    'msi': _WINDOWS_INSTALLER,
    # Windows Update codes of wusa.exe: https://learn.microsoft.com/en-us/windows/win32/wua_sdk/wua-success-and-error-codes-
    'msu': {
        **_WINDOWS_INSTALLER,
        0x00240005: _REBOOT,
        0x00240006: Outcome(ALREADY_CURRENT, 'this update is installed already'),
        0x80240017: Outcome(NOT_APPLICABLE, 'this update does not apply to the target'),
    },
    # HP Smart Components; the two families disagree, and 0 is a failure on Windows (HP SUM user guide, return codes).
    'hp_windows': {
        0: Outcome(FAILED, "the component failed to install"),
        1: _SUCCESS,
        2: _REBOOT,
        3: Outcome(NOT_APPLICABLE, 'not needed: the software is current, or there is no hardware for it'),
    },
    'hp_linux': {
        0: _SUCCESS,
        1: _REBOOT,
        2: Outcome(NOT_APPLICABLE, 'not needed: the software is current, or there is no hardware for it'),
        3: Outcome(FAILED, "the component failed to install"),
    },
    # The same for components that update several devices at once.
    'hp_linux_devices': {
        0: _SUCCESS,
        1: _REBOOT,
        2: Outcome(ALREADY_CURRENT, 'the same version is installed'),
        3: Outcome(NOT_APPLICABLE, 'nothing to do, or not supported here'),
        4: Outcome(FAILED, 'the device was not found'),
        5: Outcome(FAILED, 'cancelled by the user'),
    },
    # HP SUM itself, run as an installer. Linux shows its negative codes as 256 less.
    'hp_sum': {
        0: _SUCCESS,
        1: _REBOOT,
        3: Outcome(NOT_APPLICABLE, 'nothing required'),
        253: Outcome(FAILED, 'a package failed'),
        254: Outcome(FAILED, 'bad parameter'),
        255: Outcome(FAILED, 'general failure'),
        -1 & 0xFFFFFFFF: Outcome(FAILED, 'general failure'),
        -2 & 0xFFFFFFFF: Outcome(FAILED, 'bad parameter'),
        -3 & 0xFFFFFFFF: Outcome(FAILED, 'a package failed'),
    },
    # Dell Update Packages (user's guide, exit codes for CLI). The soft dependency is the version that is there already.
    'dell': {
        0: _SUCCESS,
        1: Outcome(FAILED, 'the update failed'),
        2: _REBOOT,
        3: Outcome(ALREADY_CURRENT, 'soft dependency: the same or a newer version is installed'),
        4: Outcome(FAILED, 'hard dependency: something that the update needs is missing'),
        5: Outcome(NOT_APPLICABLE, 'not qualified: the update is not for this target'),
        6: _REBOOTING,
        9: Outcome(FAILED, "the check of the update's signature failed"),
    },
}

#: Table of a kind of package when the user names none.
DEFAULT_TABLES = {
    'msi': 'msi',
    'exe': 'exe',
    'msu': 'msu',
    'rpm': 'generic',
    'deb': 'generic',
    'sh': 'generic',
    'scexe': 'hp_linux',
}


def normal_code(code: int) -> int:
    """An exit code as it is looked up: Windows codes are unsigned 32-bit numbers, but people and tools write some as negative ones."""
    return code & 0xFFFFFFFF


def _bad(detail: str) -> SojournError:
    return SojournError('SD-102', step='reading the options', option='return_codes', detail=detail)


def _read_code(text: t.Any) -> int:
    """A code of the user's map: 3010, '3010', '0x80240017' or -2145124329. Raises SD-102."""
    try:
        if isinstance(text, (bool, float)):
            raise ValueError
        code = int(str(text).strip(), 0)
    except ValueError:
        raise _bad(f"'{text}' is not a number") from None
    if not -0x80000000 <= code <= 0xFFFFFFFF:
        raise _bad(f'{text} is not a 32-bit number')
    return normal_code(code)


def _read_outcome(code: t.Any, value: t.Any) -> Outcome:
    """A value of the user's map: a state, or a map of state and meaning. Raises SD-102."""
    if isinstance(value, t.Mapping):
        unknown = sorted(str(name) for name in set(value) - {'state', 'meaning'})
        if unknown:
            raise _bad(f"{code} has '{unknown[0]}'; it takes state and meaning")
        state, meaning = value.get('state'), value.get('meaning')
    else:
        state, meaning = value, None
    if state not in STATES:
        raise _bad(f"{code} has the state '{state}'; the states are {', '.join(STATES)}")
    return Outcome(str(state), str(meaning) if meaning else str(state).replace('_', ' '))


def read_table(option: t.Any, kind: str) -> Table:
    """The table that the option ``return_codes`` stands for, for a package of this kind.

    ``option`` is None (the kind's own table), a table's name, or a map of the user's, which is laid over the kind's own table:
    a code that it does not name keeps its meaning. Raises SD-102.
    """
    own = TABLES[DEFAULT_TABLES.get(kind, 'generic')]
    if option is None:
        return own
    if isinstance(option, str):
        if option not in TABLES:
            raise _bad(f"'{option}' is not a table; the tables are {', '.join(sorted(TABLES))}")
        return TABLES[option]
    if isinstance(option, t.Mapping):
        return {**own, **{_read_code(code): _read_outcome(code, value) for code, value in option.items()}}
    raise _bad('it takes the name of a table or a map of codes to states')


def outcome(table: Table, code: int) -> Outcome:
    """What an exit code means; a code that the table lacks is a failure."""
    known = table.get(normal_code(code))
    if known is not None:
        return known
    if code > 0xFFFF:
        return Outcome(FAILED, f'code 0x{code:08X}, which the table of return codes does not name')
    return Outcome(FAILED, 'a code that the table of return codes does not name')
