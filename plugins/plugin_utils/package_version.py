# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of two package versions is the newer, by the rules of the database that they come from; standard library only.

python-debian has dpkg's rules too, but a missing or old version must be comparable where that library is not installed, and the
package's own version may come from the playbook. The other two families' rules are as short as this.
"""

from __future__ import annotations

import itertools
import re

_RPM_PARTS = re.compile(r'\d+|[a-zA-Z]+|~|\^')
_WINDOWS_PARTS = re.compile(r'\d+|[a-zA-Z]+')


def _sign(left: object, right: object) -> int:
    return (left > right) - (left < right)  # type: ignore[operator]


def _split_epoch(version: str) -> tuple[int, str]:
    epoch, colon, rest = version.partition(':')
    if colon and epoch.isdigit():
        return int(epoch), rest
    return 0, version


def _dpkg_order(character: str) -> int:
    """deb-version(7): the tilde before everything, even the end; letters before the rest."""
    if character == '~':
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256


def _dpkg_part(left: str, right: str) -> int:
    """Compares upstream versions, or revisions: by turns a part without digits and a number."""
    while left or right:
        left_text, right_text = re.match(r'\D*', left).group(), re.match(r'\D*', right).group()  # type: ignore[union-attr]
        left, right = left[len(left_text):], right[len(right_text):]
        for ours, theirs in itertools.zip_longest(left_text, right_text):
            order = _sign(_dpkg_order(ours) if ours else 0, _dpkg_order(theirs) if theirs else 0)
            if order:
                return order
        left_number, right_number = re.match(r'\d*', left).group(), re.match(r'\d*', right).group()  # type: ignore[union-attr]
        left, right = left[len(left_number):], right[len(right_number):]
        order = _sign(int(left_number or 0), int(right_number or 0))
        if order:
            return order
    return 0


def compare_dpkg(left: str, right: str) -> int:
    """-1, 0 or 1 by deb-version(7): [epoch:]upstream[-revision]."""
    (left_epoch, left), (right_epoch, right) = _split_epoch(left), _split_epoch(right)
    if left_epoch != right_epoch:
        return _sign(left_epoch, right_epoch)
    left_upstream, unused_dash, left_revision = left.rpartition('-') if '-' in left else (left, '', '')
    right_upstream, unused_dash, right_revision = right.rpartition('-') if '-' in right else (right, '', '')
    return _dpkg_part(left_upstream, right_upstream) or _dpkg_part(left_revision, right_revision)


def compare_rpm_part(left: str, right: str) -> int:
    """rpmvercmp: -1, 0 or 1 for two versions, or two releases (rpm's lib/rpmvercmp.c and its tests/rpmvercmp.at)."""
    for ours, theirs in itertools.zip_longest(_RPM_PARTS.findall(left), _RPM_PARTS.findall(right)):
        if ours == theirs:
            continue
        # A tilde comes before everything, even the end; a caret after the end, but before anything else.
        for mark, before in (('~', -1), ('^', 1)):
            if mark in (ours, theirs):
                if mark == '^' and None not in (ours, theirs):
                    before = -1
                return before if ours == mark else -before
        if ours is None or theirs is None:
            return -1 if ours is None else 1
        if ours.isdigit() != theirs.isdigit():
            return 1 if ours.isdigit() else -1
        order = _sign(int(ours), int(theirs)) if ours.isdigit() else _sign(ours, theirs)
        if order:
            return order
    return 0


def compare_rpm(left: str, right: str) -> int:
    """-1, 0 or 1 for [epoch:]version[-release]. A release that only one of the two has is not compared, as rpm's dependencies do it."""
    (left_epoch, left), (right_epoch, right) = _split_epoch(left), _split_epoch(right)
    if left_epoch != right_epoch:
        return _sign(left_epoch, right_epoch)
    left_version, unused_dash, left_release = left.partition('-')
    right_version, unused_dash, right_release = right.partition('-')
    order = compare_rpm_part(left_version, right_version)
    if order or not (left_release and right_release):
        return order
    return compare_rpm_part(left_release, right_release)


def compare_windows(left: str, right: str) -> int:
    """-1, 0 or 1 for dotted numbers of any length: '1.2' is '1.2.0'. Words, which vendors add, come before numbers."""
    for ours, theirs in itertools.zip_longest(_WINDOWS_PARTS.findall(left), _WINDOWS_PARTS.findall(right), fillvalue='0'):
        if ours.isdigit() != theirs.isdigit():
            return 1 if ours.isdigit() else -1
        order = _sign(int(ours), int(theirs)) if ours.isdigit() else _sign(ours.lower(), theirs.lower())
        if order:
            return order
    return 0


_COMPARERS = {'dpkg': compare_dpkg, 'rpm': compare_rpm, 'windows': compare_windows}


def compare(manager: str, left: str, right: str) -> int:
    """-1, 0 or 1: whether ``left`` is older than, the same as, or newer than ``right`` in the database ``manager`` (dpkg, rpm, windows)."""
    return _COMPARERS[manager](left.strip(), right.strip())
