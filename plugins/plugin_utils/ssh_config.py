# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a host is reached, and by what it is known: OpenSSH's settings (ssh_config(5)) of it and of each jump host, the inventory before all.

Where the controller has OpenSSH's client, it is asked (``ssh -G``): what it would do is then exactly what is done. Else paramiko reads the file,
and what it does not read as OpenSSH does is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.libraries import library
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target

paramiko = library('paramiko')

USER_FILE = '~/.ssh/config'
SYSTEM_FILE = '/etc/ssh/ssh_config'
USER_KNOWN_HOSTS = ('~/.ssh/known_hosts', '~/.ssh/known_hosts2')
SYSTEM_KNOWN_HOSTS = ('/etc/ssh/ssh_known_hosts', '/etc/ssh/ssh_known_hosts2')
#: Hosts that one way may lead over; more is a circle.
LONGEST_WAY = 8
#: Seconds that the client may take to tell; it may look up names (CanonicalizeHostname) and run commands (Match exec).
TELL_SECONDS = 30.0

Settings = dict[str, list[str]]

#: What ``ssh -G`` names where nobody set an IdentityFile.
_DEFAULT_IDENTITIES = {f'~/.ssh/id_{name}' for name in ('rsa', 'ecdsa', 'ecdsa_sk', 'ed25519', 'ed25519_sk', 'xmss', 'dsa', 'mldsa_eddsa')}
_FEWEST_DEFAULTS = 4

#: Settings that count, by their names in small letters, with their own spelling.
COUNTING = {name.lower(): name for name in (
    'HostName', 'Port', 'User', 'ProxyJump', 'ProxyCommand', 'AddressFamily', 'ConnectTimeout', 'IdentityFile', 'CertificateFile', 'IdentitiesOnly',
    'IdentityAgent', 'UserKnownHostsFile', 'GlobalKnownHostsFile', 'StrictHostKeyChecking', 'HostKeyAlias', 'HashKnownHosts', 'RevokedHostKeys',
    'PubkeyAuthentication', 'PasswordAuthentication', 'KbdInteractiveAuthentication', 'PreferredAuthentications')}
#: Those by which other settings are found.
_FINDING = {
    'canonicalizehostname', 'canonicaldomains', 'canonicalizemaxdots', 'canonicalizefallbacklocal', 'canonicalizepermittedcnames', 'ignoreunknown', 'tag'}
#: Those of which nothing depends here: what they are about is done in another way, or not at all, whatever they say.
_IDLE = {
    'addkeystoagent', 'batchmode', 'checkhostip', 'compression', 'connectionattempts', 'controlmaster', 'controlpath', 'controlpersist',
    'enableescapecommandline', 'escapechar', 'forkafterauthentication', 'loglevel', 'logverbose', 'numberofpasswordprompts', 'obscurekeystroketiming',
    'requesttty', 'serveralivecountmax', 'serveraliveinterval', 'sessiontype', 'stdinnull', 'syslogfacility', 'tcpkeepalive', 'updatehostkeys',
    'visualhostkey'}
#: Those by which old hosts are admitted.
_OF_OLD_HOSTS = {'hostkeyalgorithms', 'pubkeyacceptedalgorithms', 'pubkeyacceptedkeytypes'}
#: Other names of the same.
_ALIASES = {'challengeresponseauthentication': 'kbdinteractiveauthentication', 'skeyauthentication': 'kbdinteractiveauthentication',
            'dsaauthentication': 'pubkeyauthentication', 'globalknownhostsfile2': 'globalknownhostsfile', 'userknownhostsfile2': 'userknownhostsfile'}
#: Flags of ssh(1): those with a value, and what each comes to.
_WITH_VALUE = 'BbcDEeFIiJLlmOopPQRSWw'
_FLAGS_THAT_COUNT = 'FJilop46'
_IDLE_FLAGS = 'CMSTaeknqtvxy'
_FLAG_FOR = {'J': 'proxyjump', 'i': 'identityfile', 'l': 'user', 'p': 'port'}


@dataclasses.dataclass(frozen=True)
class Host:
    """One host on the way: the target, or a jump host. All that counts of what is set for it."""

    #: As it is called by who leads here: known_hosts and messages go by ``address``.
    name: str
    address: str
    port: int
    user: str
    #: Files of keys that were named; None where it is the default ones.
    identity_files: tuple[str, ...] | None = None
    certificate_files: tuple[str, ...] = ()
    identities_only: bool = False
    #: Path of the SSH agent's socket; '' for none, None for the environment's.
    agent: str | None = None
    user_known_hosts: tuple[str, ...] = USER_KNOWN_HOSTS
    global_known_hosts: tuple[str, ...] = SYSTEM_KNOWN_HOSTS
    revoked_keys: str | None = None
    key_alias: str | None = None
    #: 'yes', 'accept-new' or 'no'.
    strict: str = 'yes'
    hash_known_hosts: bool = False
    connect_timeout: float | None = None
    family: int = socket.AF_UNSPEC
    proxy_command: str | None = None
    #: The ways to sign in that may be tried, by their names in SSH's protocol.
    methods: frozenset[str] = frozenset({'publickey', 'password', 'keyboard-interactive'})

    def __str__(self) -> str:
        """As in a ProxyJump."""
        shown = f'[{self.address}]' if ':' in self.address else self.address
        return f'{self.user}@{shown}{f":{self.port}" if self.port != 22 else ""}'

    @property
    def known_hosts_name(self) -> str:
        """Whom a certificate has to name."""
        return self.key_alias or self.address


def way(target: Target) -> list[Host]:
    """The hosts on the way to a target, whom to connect to first; the last is the target. Raises SD-108, SD-109."""
    before, after = arguments('ssh_args', target.ssh_args), arguments('ssh_common_args', target.ssh_common_args)
    after += arguments('ssh_extra_args', target.ssh_extra_args)
    file = next((value for flag, value in reversed((*before, *after)) if flag == 'F'), target.config_file)
    words = [word for flag, value in before if flag != 'F' for word in (f'-{flag}', *((value,) if value else ()))]
    for name, wanted in (('StrictHostKeyChecking', 'no' if not target.host_key_checking else 'accept-new' if target.host_key_auto_add else None),
                         ('Port', target.port if target.port_given else None), ('User', target.user)):
        if wanted is not None:
            words += ['-o', f'{name}={wanted}']
    words += [word for flag, value in after if flag != 'F' for word in (f'-{flag}', *((value,) if value else ()))]
    asker = _Asker(target.host, file, target.directory)
    *jumps, last = asker.hosts(target.address, words, LONGEST_WAY)
    if target.known_hosts:
        last = dataclasses.replace(last, user_known_hosts=(target.known_hosts,))
    # As with Ansible's own ssh, which names its timeout on the command line.
    return [*jumps, dataclasses.replace(last, connect_timeout=None)]


def arguments(option: str, text: str) -> list[tuple[str, str]]:
    """Arguments for ssh(1), as (flag, value). Raises SD-109 for those that are not followed: none is passed over in silence."""
    def bad(detail: str) -> SojournError:
        return SojournError('SD-109', step='reading the options', option=option, detail=detail)

    try:
        words = shlex.split(text)
    except ValueError as error:
        raise bad(str(error)) from None
    found: list[tuple[str, str]] = []
    while words:
        word = words.pop(0)
        if not word.startswith('-') or word == '-':
            raise bad(f"'{word}' is no option of ssh")
        letters = word[1:]
        while letters:
            flag, letters = letters[0], letters[1:]
            value = ''
            if flag in _WITH_VALUE:
                value, letters = letters or (words.pop(0) if words else ''), ''
                if not value:
                    raise bad(f'-{flag} has no value')
            if flag in _IDLE_FLAGS:
                continue
            if flag not in _FLAGS_THAT_COUNT:
                raise bad(f'this connection has nothing for -{flag}')
            if flag == 'o':
                _check_setting(value, bad)
            found.append((flag, value))
    return found


def _check_setting(setting: str, bad: t.Callable[[str], SojournError]) -> None:
    name, value = _setting(setting)
    if name in COUNTING or name in _FINDING or name in _IDLE or value.lower() in ('no', 'none', 'false'):
        return
    if name in _OF_OLD_HOSTS and value.lower() == '+ssh-rsa':  # it is taken in any case
        return
    raise bad(f'this connection has nothing for {setting.strip()!r}')


def _setting(text: str) -> tuple[str, str]:
    """Name and value of a setting as -o has it."""
    name, value = (re.split(r'\s*=\s*|\s+', text.strip(), maxsplit=1) + [''])[:2]
    name = name.lower()
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]
    return _ALIASES.get(name, name), value


class _Asker:
    """Finds out what is set for hosts; ``file`` in the place of the usual ones, 'none' for no file. Relative paths lead from ``directory``."""

    def __init__(self, host: str | None, file: str | None, directory: str) -> None:
        self._host = host
        self._directory = directory
        self._file = os.path.join(directory, os.path.expanduser(file)) if file and file != 'none' else file
        self._client = shutil.which('ssh')

    def error(self, name: str, detail: t.Any) -> SojournError:
        """What keeps the settings of a host from being followed."""
        return SojournError('SD-108', host=self._host, step='reading the SSH settings', name=name, detail=detail)

    def hosts(self, name: str, words: list[str], most: int) -> list[Host]:
        """A host and those before it, as OpenSSH would go: it starts itself anew for the last jump host, with the others before that one."""
        if not most:
            raise self.error(name, 'its jump hosts lead in a circle')
        found = self.ask(name, words)
        host = self._host_of(name, found)
        jumps = _only(found, 'proxyjump')
        if not jumps or jumps == 'none':
            return [host]
        *earlier, last = jumps.split(',')
        user, unused_at, place = last.rpartition('@')
        if place.startswith('['):
            address, unused_bracket, rest = place[1:].partition(']')
            port = rest.removeprefix(':')
        else:
            address, unused_colon, port = place.partition(':')
        more = [*(('-l', user) if user else ()), *(('-p', port) if port else ()), *(('-J', ','.join(earlier)) if earlier else ())]
        return [*self.hosts(address, more, most - 1), host]

    def ask(self, name: str, words: list[str]) -> Settings:
        """What is set for a host: values by their names in small letters. Raises SD-108."""
        if self._client is None:
            return _read(name, words, self._file, self.error)
        file = ['-F', self._file] if self._file else []
        try:
            if self._file and self._file != 'none':
                open(self._file, 'rb').close()  # OpenSSH's own sentence has the first hundred letters of the path only
            done = subprocess.run(
                [self._client, '-T', '-G', *file, *words, '--', name], stdin=subprocess.DEVNULL, capture_output=True, timeout=TELL_SECONDS, check=False,
                cwd=self._directory)
        except OSError as error:
            raise self.error(name, f'{error.filename}: {error.strerror}') from None
        except subprocess.TimeoutExpired as error:
            raise self.error(name, error) from None
        if done.returncode != 0:
            said = done.stderr.decode('utf-8', 'replace').strip().splitlines()
            raise self.error(name, said[0] if said else f'{self._client} ended with {done.returncode}')
        found: Settings = {}
        for line in done.stdout.decode('utf-8', 'replace').splitlines():
            key, unused_blank, value = line.partition(' ')
            found.setdefault(key.lower(), []).append(value)
        return found

    def _host_of(self, name: str, found: Settings) -> Host:
        def yes(key: str, default: bool = False) -> bool:
            return (_only(found, key) or ('yes' if default else 'no')) in ('yes', 'true')

        address = _only(found, 'hostname') or name
        port, user = int(_only(found, 'port') or 22), _only(found, 'user') or getpass.getuser()
        alias = _only(found, 'hostkeyalias')
        local, home = socket.gethostname(), _home()
        tokens = {'%': '%', 'd': home, 'h': address, 'i': str(os.getuid()), 'j': _only(found, 'proxyjump') or '', 'k': alias or name,
                  'L': local.partition('.')[0], 'l': local, 'n': name, 'p': str(port), 'r': user, 'u': getpass.getuser()}

        def expand(text: str) -> str:
            def token(match: re.Match[str]) -> str:
                if match[1] not in tokens:
                    raise self.error(name, f"the token '{match[0]}' in '{text}' is not known here")
                return tokens[match[1]]

            return re.sub('%(.?)', token, text)

        def path(text: str) -> str:
            return os.path.join(self._directory, os.path.expandvars(expand(home + text[1:] if text.startswith('~/') else os.path.expanduser(text))))

        def files(key: str) -> tuple[str, ...]:
            return tuple(path(word) for word in (_only(found, key) or '').split() if word != 'none')

        identities = found.get('identityfile', [])
        default = not identities or len(identities) >= _FEWEST_DEFAULTS and set(identities) <= _DEFAULT_IDENTITIES
        timeout = _only(found, 'connecttimeout') or 'none'
        agent = _agent(_only(found, 'identityagent'), path)
        command = _only(found, 'proxycommand')
        if command and command != 'none' and yes('proxyusefdpass'):
            raise self.error(name, 'it has a ProxyUseFdpass, which this connection has nothing for')
        return Host(
            name=name, address=address, port=port, user=user,
            identity_files=None if default else tuple(path(one) for one in identities if one != 'none'),
            certificate_files=tuple(path(one) for one in found.get('certificatefile', []) if one != 'none'),
            identities_only=yes('identitiesonly'), agent=agent and os.path.join(self._directory, agent),
            user_known_hosts=files('userknownhostsfile'), global_known_hosts=files('globalknownhostsfile'),
            revoked_keys=next(iter(files('revokedhostkeys')), None), key_alias=alias,
            strict={'no': 'no', 'off': 'no', 'false': 'no', 'accept-new': 'accept-new'}.get(_only(found, 'stricthostkeychecking') or '', 'yes'),
            hash_known_hosts=yes('hashknownhosts'), connect_timeout=float(timeout) if re.fullmatch(r'[0-9]+', timeout) and timeout != '0' else None,
            family={'inet': socket.AF_INET, 'inet6': socket.AF_INET6}.get(_only(found, 'addressfamily') or '', socket.AF_UNSPEC),
            proxy_command=expand(command) if command and command != 'none' else None,
            methods=frozenset(method for method, key in (
                ('publickey', 'pubkeyauthentication'), ('password', 'passwordauthentication'), ('keyboard-interactive', 'kbdinteractiveauthentication'),
            ) if (_only(found, key) or 'yes') not in ('no', 'false') and (
                not found.get('preferredauthentications') or method in (_only(found, 'preferredauthentications') or '').split(','))))


def _home() -> str:
    """The user's home as OpenSSH has it, which does not go by $HOME."""
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return os.path.expanduser('~')


def _only(found: Settings, key: str) -> str | None:
    values = found.get(key)
    return values[0] if values and values[0] != '' else None


def _agent(value: str | None, path: t.Callable[[str], str]) -> str | None:
    if value is None or value == 'SSH_AUTH_SOCK':
        return None
    if value == 'none':
        return ''
    return os.environ.get(value[1:].strip('{}'), '') if value.startswith('$') else path(value)


# Without OpenSSH's client

#: What paramiko does not read, or not as OpenSSH does.
_SPECIAL = re.compile(
    r'^[ \t]*(include\b|match\b(?![ \t]*=?[ \t]*all[ \t]*$)|canonicalizehostname\b(?![ \t]*=?[ \t]*(?:no|false)[ \t]*$)).*', re.IGNORECASE | re.MULTILINE)


def _read(name: str, words: list[str], file: str | None, error: t.Callable[[str, t.Any], SojournError]) -> Settings:
    """What paramiko reads in the files, for Host blocks alone; the words of the command line before them."""
    found: Settings = {}
    pending = list(words)
    while pending:
        flag = pending.pop(0)[1]
        if flag in '46':
            key, value = 'addressfamily', 'inet' if flag == '4' else 'inet6'
        else:
            value = pending.pop(0)
            key, value = (_FLAG_FOR[flag], value) if flag in _FLAG_FOR else _setting(value)
        if key in ('identityfile', 'certificatefile'):
            found.setdefault(key, []).append(value)
        else:
            found.setdefault(key, [value])
    for path in (file,) if file else (USER_FILE, SYSTEM_FILE):
        if path == 'none':
            continue
        try:
            with open(os.path.expanduser(path), encoding='utf-8', errors='replace') as opened:
                text = opened.read()
        except OSError as problem:
            if file:
                raise error(name, f'{path}: {problem.strerror}') from None
            continue
        special = _SPECIAL.search(text)
        if special:
            shown = re.sub(r'(?i)(\bexec\b).*', r'\1', special[0].strip())  # a command may hold anything
            raise error(name, f"{path} has '{shown}', which only OpenSSH's client can follow: install it on the controller")
        try:
            config = paramiko.SSHConfig.from_text(text)
            # Tokens are put in where all is known: paramiko knows of the file alone, and nothing of the inventory's port and user.
            config.TOKENS_BY_CONFIG_KEY = {key: tokens for key, tokens in config.TOKENS_BY_CONFIG_KEY.items() if key in ('hostname', 'proxyjump')}
            there = config.lookup(name)
        except Exception as problem:  # of a file that people write by hand, anything may come
            raise error(name, f'{path} was not understood ({problem})') from None
        for key, value in there.items():
            key = _ALIASES.get(key, key)
            if key == 'hostname' and value == name:
                continue
            if isinstance(value, list):
                found.setdefault(key, []).extend(value)
            else:
                found.setdefault(key, [value])
    both = [key for key in found if key in ('proxycommand', 'proxyjump')]
    for later in both[1:]:  # of the two the first one counts
        del found[later]
    found.setdefault('userknownhostsfile', [' '.join(USER_KNOWN_HOSTS)])
    found.setdefault('globalknownhostsfile', [' '.join(SYSTEM_KNOWN_HOSTS)])
    return found


# Diagnosis

def told(target: Target) -> list[tuple[str, str | list[str]]]:
    """What the settings come to, for people: names and values. A proxy's command may hold anything, so it is named only. Raises SD-108, SD-109."""
    *jumps, host = way(target)
    reader = 'ssh -G' if shutil.which('ssh') else "paramiko, for want of OpenSSH's client"
    source = target.config_file or f'{USER_FILE}, {SYSTEM_FILE}'
    facts: list[tuple[str, str | list[str]]] = [('settings', f'{source}, as {reader} tells')]
    if target.config_file == 'none':
        facts = [('settings', 'none but the inventory: config_file is none')]
    if host.address != target.address or host.port != target.port:
        facts.append(('leads to', str(host)))
    if jumps:
        facts.append(('jump hosts', [str(jump) for jump in jumps]))
    for hop in (*jumps, host):
        if hop.proxy_command:
            facts.append(('ProxyCommand', f'one, for {hop.name}'))
    if host.identity_files is not None:
        facts.append(('IdentityFile', list(host.identity_files)))
    if host.key_alias:
        facts.append(('HostKeyAlias', host.key_alias))
    if passed_over := _passed_over(target):
        facts.append(('not followed', passed_over))
    return facts


def _passed_over(target: Target) -> list[str]:
    """Settings that differ from OpenSSH's own and do not count here, by their names."""
    client = shutil.which('ssh')
    if client is None or target.config_file == 'none':
        return []
    with contextlib.suppress(SojournError):
        ours = _Asker(target.host, target.config_file, target.directory).ask(target.address, [])
        plain = _Asker(target.host, 'none', target.directory).ask(target.address, [])
        return sorted(name for name, values in ours.items() if values != plain.get(name)
                      and name not in COUNTING and name not in _IDLE and name not in _FINDING and name not in ('host', 'sendenv'))
    return []
