# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the user's Kerberos ticket cache holds, for diagnosis alone: nothing is asked of a KDC, and nothing is written. pyspnego signs in with it."""

from __future__ import annotations

import dataclasses
import datetime
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.libraries import library, require

krb5 = library('krb5')


class NoTicket(Exception):
    """There is none that could be used; the message says why."""


@dataclasses.dataclass(frozen=True)
class Tickets:
    """A cache: whose it is, until when its ticket-granting ticket is good (seconds since 1970), and which services it has tickets for."""

    cache: str
    principal: str
    expires: float
    services: tuple[str, ...]

    @property
    def expiry(self) -> str:
        """In the controller's time, and how long that is from now."""
        left = self.expires - time.time()
        at = datetime.datetime.fromtimestamp(self.expires).astimezone().isoformat(sep=' ', timespec='seconds')
        return f'{at}, {"in" if left > 0 else "expired since"} {abs(left) / 3600:.1f} h'


def _text(value: bytes | None) -> str:
    return (value or b'').decode('utf-8', 'replace')


def _name(context: t.Any, principal: t.Any) -> str:
    return _text(krb5.unparse_name_flags(context, principal))


def _read(context: t.Any, cache: t.Any) -> Tickets:
    principal = cache.principal
    realm = _text(principal.realm)
    expires, services = 0.0, []
    for ticket in cache:
        server = _name(context, ticket.server)
        if server == f'krbtgt/{realm}@{realm}':
            expires = max(expires, float(ticket.times.endtime))
        elif not server.startswith('krb5_ccache_conf_data/'):
            services.append(server)
    return Tickets(f'{_text(cache.cache_type)}:{_text(cache.name)}', _name(context, principal), expires, tuple(services))


def find(user: str | None) -> Tickets:
    """The tickets of a user, or without one those of the cache that is the default. Raises NoTicket, SD-901."""
    require(krb5)
    try:
        context = krb5.init_context()
        default = krb5.cc_default(context)
        name = f'{_text(default.cache_type)}:{_text(default.name)}'
    except krb5.Krb5Error as error:
        raise NoTicket(f'Kerberos is not set up on the controller ({error})') from None
    found: list[Tickets] = []
    reason = ''
    for cache in _caches(context, default):
        try:
            found.append(_read(context, cache))
        except (krb5.Krb5Error, AttributeError) as error:  # AttributeError: it is empty, and belongs to nobody
            reason = reason or (str(error) if isinstance(error, krb5.Krb5Error) else 'it is empty')
    if not found:
        raise NoTicket(f'no ticket in the cache {name} ({reason or "there is no such cache"})')
    if user:
        found = [tickets for tickets in found if _is(tickets.principal, user)]
        if not found:
            raise NoTicket(f"no ticket of '{user}' in the cache {name}")
    tickets = found[0]
    if not tickets.expires:
        raise NoTicket(f'the cache {tickets.cache} of {tickets.principal} has no ticket-granting ticket')
    if tickets.expires <= time.time():
        raise NoTicket(f'the ticket of {tickets.principal} in the cache {tickets.cache} has expired ({tickets.expiry})')
    return tickets


def _caches(context: t.Any, default: t.Any) -> t.Iterator[t.Any]:
    yield default
    name = (default.cache_type, default.name)
    try:
        for cache in krb5.cccol_iter(context):
            if (cache.cache_type, cache.name) != name:
                yield cache
    except krb5.Krb5Error:
        return


def _is(principal: str, user: str) -> bool:
    """A user without a realm is of the default one."""
    return principal.casefold() == user.casefold() or '@' not in user and principal.partition('@')[0].casefold() == user.casefold()


def default_realm() -> str:
    """The realm of users that name none; empty where none is set."""
    require(krb5)
    try:
        return _text(krb5.get_default_realm(krb5.init_context()))
    except krb5.Krb5Error:
        return ''
