# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A target as the user describes it, checked before anything is touched; not how it is reached.

Standard library only: every worker imports this.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.accounts import parse_account
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

WAYS_IN = ('smb', 'ssh', 'winrm')
#: The operating system that a way in leads to.
SYSTEMS = {'smb': 'windows', 'ssh': 'linux', 'winrm': 'windows'}
#: WinRM's with TLS.
DEFAULT_PORTS = {'smb': 445, 'ssh': 22, 'winrm': 5986}
WINRM_SCHEMES = {'http': 5985, 'https': 5986}
WINRM_TRANSPORTS = ('ntlm', 'basic')
DEFAULT_AGENT_PORTS = (62286, 62293)
#: Stands for the user whom the way in signed in as, in a call to the broker.
LOGIN_USER = ''
#: How the way in over SSH becomes root where the sign-in is not root's own.
ROOT_METHODS = ('sudo', 'su')
TRANSPORTS = ('direct', 'tunnel', 'auto')

#: What a host name may look like: RFC 1123 labels, with the underscore that Windows names have in the field.
_NAME = re.compile(r'(?=.{1,253}\.?$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?')
_ZONE = re.compile(r'[A-Za-z0-9_.:-]{1,63}')


@dataclasses.dataclass(frozen=True)
class Address:
    """A target's address: ``host`` without brackets, a zone kept in it; ``literal`` is None for a name."""

    host: str
    literal: ipaddress.IPv4Address | ipaddress.IPv6Address | None

    @property
    def zone(self) -> str | None:
        """The zone of a link-local IPv6 address."""
        return getattr(self.literal, 'scope_id', None)

    @property
    def bracketed(self) -> str:
        """As in a URL's authority, the zone left out (it has no meaning for the other end; RFC 6874)."""
        if self.literal is not None and self.literal.version == 6:
            return f'[{self.host.partition("%")[0]}]'
        return self.host


def parse_address(text: t.Any) -> Address:
    """Reads ``ansible_host``: a name, an IPv4 or an IPv6 address, bare or in brackets, short or full, with ``%zone``.

    Raises SD-101.
    """
    given = str(text).strip() if text is not None else ''

    def bad(detail: str) -> SojournError:
        return SojournError('SD-101', step='reading the options', address=given, detail=detail)

    if not given:
        raise bad('it is empty')
    host = given
    if host.startswith('[') or host.endswith(']'):
        if not (host.startswith('[') and host.endswith(']')):
            raise bad('brackets must enclose the whole address; the port belongs in ansible_port')
        host = host[1:-1]
        if ':' not in host:
            raise bad('only an IPv6 address may stand in brackets')
    if ':' in host or '%' in host:
        bare, percent, zone = host.partition('%')
        # In a URL a zone is written with '%25' (RFC 6874); people paste that.
        if percent and zone.startswith('25') and len(zone) > 2 and given.startswith('['):
            zone = zone[2:]
        try:
            literal = ipaddress.IPv6Address(bare)
        except ValueError as error:
            raise bad(str(error)) from None
        if percent and not _ZONE.fullmatch(zone):
            raise bad(f"the zone '{zone}' is not an interface's name or number")
        if literal.ipv4_mapped is not None:
            raise bad('write an IPv4 address as such')
        if literal.is_multicast or literal.is_unspecified:
            raise bad('it is not the address of one host')
        if literal.is_link_local and not percent:
            raise bad("a link-local address needs its zone, as in 'fe80::1%eth0'")
        if percent and not (literal.is_link_local or literal.is_site_local):
            raise bad('only a link-local or site-local address has a zone')
        canonical = ipaddress.IPv6Address(f'{literal}%{zone}' if percent else literal)
        return Address(str(canonical), canonical)
    if re.fullmatch(r'[0-9.]+', host):
        try:
            literal4 = ipaddress.IPv4Address(host)
        except ValueError as error:
            raise bad(str(error)) from None
        if literal4.is_multicast or literal4.is_unspecified or literal4 == ipaddress.IPv4Address('255.255.255.255'):
            raise bad('it is not the address of one host')
        return Address(str(literal4), literal4)
    try:
        ascii_host = host.encode('idna').decode('ascii') if not host.isascii() else host
    except UnicodeError as error:
        raise bad(str(error)) from None
    if not _NAME.fullmatch(ascii_host):
        raise bad('it is neither a host name nor an address')
    return Address(ascii_host, None)


def _whole_number(option: str, value: t.Any, least: int, most: int) -> int:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = int(str(value).strip())
    except ValueError:
        raise SojournError('SD-102', step='reading the options', option=option, detail=f"'{value}' is not a whole number") from None
    if not least <= number <= most:
        raise SojournError('SD-102', step='reading the options', option=option, detail=f'{number} is not between {least} and {most}')
    return number


def _seconds(option: str, value: t.Any, least: float, most: float) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(str(value).strip())
    except ValueError:
        raise SojournError('SD-102', step='reading the options', option=option, detail=f"'{value}' is not a number of seconds") from None
    if not least <= number <= most:  # also catches NaN
        raise SojournError('SD-102', step='reading the options', option=option, detail=f'{number} is not between {least} and {most} seconds')
    return number


def parse_ports(value: t.Any) -> tuple[int, int]:
    """Reads ``agent_ports``: '62286-62293', one port, or two numbers. Raises SD-102."""
    parts = [str(part) for part in value] if isinstance(value, (tuple, list)) else str(value).strip().split('-')
    if not 1 <= len(parts) <= 2:
        raise SojournError('SD-102', step='reading the options', option='agent_ports', detail=f"'{value}' is not a range such as 62286-62293")
    ports = [_whole_number('agent_ports', part, 1, 65535) for part in parts]
    first, last = ports[0], ports[-1]
    if first > last:
        raise SojournError('SD-102', step='reading the options', option='agent_ports', detail=f'{first} is greater than {last}')
    if last - first > 1023:
        raise SojournError('SD-102', step='reading the options', option='agent_ports', detail='a range holds at most 1024 ports')
    return first, last


def _text(option: str, value: t.Any, *, secret: bool = False) -> str | None:
    """An option's text, or None. A secret's value never gets into the message."""
    if value is None:
        return None
    text = str.__str__(value) if isinstance(value, str) else str(value)
    text = ''.join(text)  # drops Ansible's data tags, which need ansible-core at the other end of the socket
    if '\0' in text:
        raise SojournError('SD-102', step='reading the options', option=option, detail='it holds a zero character')
    if secret and ('\n' in text or '\r' in text):
        raise SojournError('SD-102', step='reading the options', option=option, detail='it holds a line break')
    return text


def _directory() -> str:
    """This process's; the root where that is gone."""
    try:
        return os.getcwd()
    except OSError:
        return '/'


def _path(option: str, value: t.Any, directory: str) -> str | None:
    """An option's path from the root, or from a home ('~'), or None. Raises SD-102."""
    path = _text(option, value) or None
    return path if path is None or path.startswith('~') else os.path.join(directory, path)


def _winrm(options: dict[str, t.Any], port: int | None) -> dict[str, t.Any]:
    """The options of the way in WinRM. Raises SD-102."""
    scheme = _text('scheme', options.get('winrm_scheme')) or ('http' if port == WINRM_SCHEMES['http'] else 'https')
    transport = _text('winrm_transport', options.get('winrm_transport')) or 'ntlm'
    for option, value, known in (('scheme', scheme, WINRM_SCHEMES), ('winrm_transport', transport, WINRM_TRANSPORTS)):
        if value not in known:
            raise SojournError('SD-102', step='reading the options', option=option, detail=f"'{value}' is none of {', '.join(known)}")
    if transport == 'basic' and scheme == 'http':
        detail = 'basic over http would show the password to everybody on the way'
        raise SojournError('SD-102', step='reading the options', option='winrm_transport', detail=detail)
    return {
        'winrm_scheme': scheme, 'winrm_transport': transport, 'winrm_validate': bool(options.get('winrm_validate', True)),
        'winrm_ca_file': _text('ca_trust_path', options.get('winrm_ca_file')) or None}


@dataclasses.dataclass(frozen=True)
class Target:
    """One target as the options describe it. Make it with ``Target.make``, which checks.

    Secrets are left out of ``repr``. Times are in seconds.
    """

    way_in: str
    address: str
    port: int
    user: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    become_password: str | None = dataclasses.field(default=None, repr=False)
    host: str | None = None
    connection_timeout: float = 10.0
    lease_seconds: float = 120.0
    reconnect_timeout: float = 300.0
    agent_ports: tuple[int, int] = DEFAULT_AGENT_PORTS
    controller_address: str | None = None
    transport: str = 'direct'
    key_file: str | None = None
    key_passphrase: str | None = dataclasses.field(default=None, repr=False)
    known_hosts: str | None = None
    host_key_checking: bool = True
    host_key_auto_add: bool = False
    remote_folders: tuple[str, ...] = ()
    ntlm_fallback: bool = False
    smb_encryption: bool = True
    #: The user's working directory, from which relative paths lead: the broker has another one.
    directory: str = '/'
    #: Whether the port is the user's, so that no file of settings has another one.
    port_given: bool = False
    #: OpenSSH's settings: a file in the place of the usual ones, 'none' for none; arguments as for ssh(1).
    config_file: str | None = None
    ssh_args: str = ''
    ssh_common_args: str = ''
    ssh_extra_args: str = ''
    root_method: str = 'sudo'
    winrm_scheme: str = 'https'
    winrm_transport: str = 'ntlm'
    winrm_validate: bool = True
    winrm_ca_file: str | None = None

    @classmethod
    def make(cls, way_in: str, address: t.Any, **options: t.Any) -> Target:
        """Checks and normalizes. Raises SD-101 and SD-102 only; touches nothing."""
        host = _text('inventory_hostname', options.pop('host', None)) or _text('remote_addr', address)
        try:
            return cls._make(way_in, address, host, **options)
        except SojournError as error:
            error.at(host=host)
            raise

    @classmethod
    def _make(cls, way_in: str, address: t.Any, host: str | None, **options: t.Any) -> Target:
        if way_in not in WAYS_IN:
            raise SojournError('SD-102', step='reading the options', option='way_in', detail=f"'{way_in}' is none of {', '.join(WAYS_IN)}")
        unknown = set(options) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise SojournError('SD-102', step='reading the options', option=sorted(unknown)[0], detail='there is no such option')
        controller_address = _text('controller_address', options.get('controller_address')) or None
        if controller_address is not None:
            parsed = parse_address(controller_address)
            if parsed.literal is None:
                raise SojournError('SD-102', step='reading the options', option='controller_address', detail='it must be an address, not a name')
            controller_address = parsed.host.partition('%')[0]
        transport = _text('transport', options.get('transport')) or 'direct'
        if transport not in TRANSPORTS:
            raise SojournError('SD-102', step='reading the options', option='transport', detail=f"'{transport}' is none of {', '.join(TRANSPORTS)}")
        if way_in == 'winrm' and transport == 'tunnel':
            raise SojournError('SD-102', step='reading the options', option='transport', detail='WinRM leads to no tunnel; direct and auto are left')
        port = options.get('port')
        user = _text('remote_user', options.get('user')) or None
        password = _text('password', options.get('password'), secret=True)
        directory = _text('directory', options.get('directory')) or _directory()
        config_file = _text('config_file', options.get('config_file')) or None
        if SYSTEMS[way_in] == 'windows' and password is not None and user is None:
            raise SojournError('SD-102', step='reading the options', option='remote_user', detail='a password was given without a user')
        if SYSTEMS[way_in] == 'windows' and user is not None:
            parse_account(user)
        root_method = (_text('root_method', options.get('root_method')) or 'sudo').removeprefix('ansible.builtin.').removeprefix('ansible.legacy.')
        folders = options.get('remote_folders') or ()
        if isinstance(folders, str):
            folders = [folders]
        remote_folders = tuple(_text('remote_folders', folder) or '' for folder in folders)
        for folder in remote_folders:
            if not folder.startswith('/'):
                raise SojournError('SD-102', step='reading the options', option='remote_folders', detail=f"'{folder}' is not an absolute path")
        number = None if port in (None, '') else _whole_number('port', port, 1, 65535)
        winrm = _winrm(options, number) if way_in == 'winrm' else {}
        return cls(
            way_in=way_in,
            address=parse_address(_text('remote_addr', address)).host,
            port=number or (WINRM_SCHEMES[winrm['winrm_scheme']] if winrm else DEFAULT_PORTS[way_in]),
            user=user,
            password=password,
            become_password=_text('become_password', options.get('become_password'), secret=True),
            host=host,
            connection_timeout=_seconds('connection_timeout', options.get('connection_timeout', 10), 0.1, 3600),
            lease_seconds=_seconds('lease_seconds', options.get('lease_seconds', 120), 2, 86400),
            reconnect_timeout=_seconds('reconnect_timeout', options.get('reconnect_timeout', 300), 0, 86400),
            agent_ports=parse_ports(options.get('agent_ports') or DEFAULT_AGENT_PORTS),
            controller_address=controller_address,
            transport=transport,
            key_file=_path('private_key_file', options.get('key_file'), directory),
            key_passphrase=_text('private_key_passphrase', options.get('key_passphrase'), secret=True),
            known_hosts=_path('known_hosts_file', options.get('known_hosts'), directory),
            host_key_checking=bool(options.get('host_key_checking', True)),
            host_key_auto_add=bool(options.get('host_key_auto_add', False)),
            remote_folders=remote_folders,
            ntlm_fallback=bool(options.get('ntlm_fallback', False)),
            smb_encryption=bool(options.get('smb_encryption', True)),
            directory=directory,
            port_given=port not in (None, ''),
            config_file=config_file if config_file == 'none' else _path('config_file', config_file, directory),
            ssh_args=_text('ssh_args', options.get('ssh_args')) or '',
            ssh_common_args=_text('ssh_common_args', options.get('ssh_common_args')) or '',
            ssh_extra_args=_text('ssh_extra_args', options.get('ssh_extra_args')) or '',
            # Of a task's become, what else there may be (community.general.doas ...) says nothing of the way in.
            root_method=root_method if root_method in ROOT_METHODS else 'sudo',
            **winrm)

    @property
    def key(self) -> str:
        """Names the session of this target in the broker. Secrets are not part of it: a new password is no new target."""
        # Behind another jump host the same address is another host.
        route = '|'.join((self.config_file or '', self.ssh_args, self.ssh_common_args, self.ssh_extra_args))
        return f'{self.way_in}://{self.user or ""}@{self.address}|{self.port}{"|" + route if route.strip("|") else ""}'

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown."""
        return tuple(secret for secret in (self.password, self.become_password, self.key_passphrase) if secret)

    def to_dict(self) -> dict[str, t.Any]:
        """Form for the broker's socket. Holds the secrets."""
        return dict(vars(self))  # there is nothing in it to be copied any deeper

    @classmethod
    def from_dict(cls, data: dict[str, t.Any]) -> Target:
        """What ``to_dict`` made. The borders checked it, so this does not."""
        data = dict(data)
        data['agent_ports'] = tuple(data['agent_ports'])
        data['remote_folders'] = tuple(data['remote_folders'])
        return cls(**data)
