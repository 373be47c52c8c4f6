# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The forms in which people write a Windows account, checked before anything is sent; not the sign-in.

Standard library only: every worker imports this.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

#: What a user's name (sAMAccountName) never holds: https://learn.microsoft.com/windows/win32/adschema/a-samaccountname. One of a principal may hold some.
_NO_USER = frozenset('"/\\[]:;|=,+*?<>@')
_NO_PRINCIPAL = frozenset('"/\\[]:;|,*?<>@')
_REALM = re.compile(r'[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*')
#: NetBIOS names of domains take more than DNS names do.
_DOMAIN = re.compile(r"[A-Za-z0-9_.!#$%^&()'{}~-]+")


@dataclasses.dataclass(frozen=True)
class Account:
    """A user as given: ``plain`` (user), ``local`` (.\\user), ``domain`` (DOMAIN\\user or HOST\\user) or ``principal`` (user@REALM)."""

    form: str
    user: str
    #: As given, or a principal's realm as Active Directory has it: in capitals.
    domain: str = ''

    @property
    def principal(self) -> str:
        """The name by which Kerberos knows the account; a plain one is of the default realm. Not for the other forms."""
        return f'{self.user}@{self.domain}' if self.domain else self.user


def realm_of(domain: str, default_realm: str) -> str:
    """The realm of a domain's short or full name, as far as the controller's Kerberos is set up for it; empty where it is not."""
    realm = default_realm.upper()
    return default_realm if realm and domain.upper() in (realm, realm.partition('.')[0]) else ''


def parse_account(text: str) -> Account:
    """Reads ``remote_user`` of a Windows target. Raises SD-102."""

    def bad(detail: str) -> SojournError:
        return SojournError('SD-102', step='reading the options', option='remote_user', detail=f"'{text}': {detail}")

    if text != text.strip() or not text.isprintable():
        raise bad('blanks around it, or characters that cannot be seen, are part of no account')
    if '/' in text:
        raise bad(r'a slash is part of no account; DOMAIN\user is written with a backslash')
    domain, backslash, user = text.partition('\\')
    if not backslash:
        user, at, realm = text.rpartition('@')
        if not at:
            return Account('plain', _user(text, _NO_USER, bad))
        if '@' in user:
            raise bad("there is more than one '@'")
        if not _REALM.fullmatch(realm):
            raise bad("behind the '@' there is no realm, such as EXAMPLE.COM")
        return Account('principal', _user(user, _NO_PRINCIPAL, bad), realm.upper())
    if '\\' in user:
        raise bad('there is more than one backslash (YAML takes two for one between double quotation marks only)')
    if '@' in text:
        raise bad(r"it is DOMAIN\user or user@REALM, never both")
    if domain == '.':
        return Account('local', _user(user, _NO_USER, bad))
    if not _DOMAIN.fullmatch(domain):
        raise bad(r"before the backslash there is no domain; .\user is an account of the target's own")
    return Account('domain', _user(user, _NO_USER, bad), domain)


def _user(name: str, never: frozenset[str], bad: t.Callable[[str], SojournError]) -> str:
    if not name or not name.strip('. '):
        raise bad('there is no user in it')
    found = sorted(never.intersection(name))
    if found:
        raise bad(f"no user's name holds '{found[0]}'")
    return name
