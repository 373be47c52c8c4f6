# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way in to Linux: SSH, and root by sudo where the sign-in is not root's own; nothing after the agent's start.

Every script is one line for /bin/sh with no '!' in it: the login shell that hands it on may be csh.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shlex
import socket
import threading
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils import ssh_client, ssh_config, steps
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.libraries import library, require
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import (
    LEFT_FILE,
    NAME,
    REMOVE_SECONDS,
    SESSION_FILE,
    START_SECONDS,
    AlreadyPlaced,
    Config,
    Facts,
    Found,
    Ready,
    WayIn,
    agent_executable,
    digest,
    packed,
)

ssh_exception = library('paramiko.ssh_exception')

#: The candidates for the agent's folder; '' stands for the login user's home.
FOLDERS = ('/tmp', '/var/tmp', '')
ARCHITECTURES = {'x86_64': 'amd64', 'amd64': 'amd64', 'aarch64': 'arm64', 'arm64': 'arm64'}
OLDEST_KERNEL = (3, 2)
#: Seconds that the upload and the start may take on a slow line.
UPLOAD_SECONDS = 600.0 + START_SECONDS

#: Seconds to connect beyond which the executable travels packed; on a network that is nearer, packing and unpacking it take longer than what they save.
FAR_SECONDS = 0.005

#: The file by which systemd removes an agent's folder at boot.
_AT_BOOT = '/etc/tmpfiles.d/{}.conf'

#: Tells what the host is and what the user may.
_LOOK = '; '.join((
    'LC_ALL=C', 'export LC_ALL', 'u=`id -u`',
    'echo "system `uname -s`"', 'echo "machine `uname -m`"', 'echo "release `uname -r`"', 'echo "user $u"', 'echo "ssh $SSH_CONNECTION"',
    'if [ "$u" = 0 ]; then :; elif command -v sudo >/dev/null 2>&1; then if sudo -n true >/dev/null 2>&1; then echo "sudo free"; else echo "sudo asks"; fi; '
    'else echo "sudo missing"; fi', 'echo "gzip `command -v gzip`"',
))
#: Makes the folder and takes the executable on standard input. $1 is the folder's name, $2 the session, $3 the executable's size, $4 how many
#: bytes of it come where gzip is to unpack it, or 0, $5 its SHA-256 (looked at where there is sha256sum), the rest are the candidates. Where the
#: input ends too early, because the controller or the network is gone, nothing stays: the folder goes too.
#: Root goes on as `agent launch`, which takes the config on the same input and removes the folder likewise where none comes.
_PLACE = '; '.join((
    'umask 077', 'LC_ALL=C', 'export LC_ALL', 'n=$1', 's=$2', 'z=$3', 'k=$4', 'x=$5', 'shift 5', 'g=',
    # The connection's end must not end the script, which is to clean up then.
    "trap '' HUP PIPE",
    'for d in "$@"; do d=${d:-$HOME}; f=$d/$n',
    'if mkdir "$f" 2>/dev/null; then '
    'if printf "%s" "$s" > "$f/' + SESSION_FILE + '" && printf "#\\041/bin/sh\\nexit 0\\n" > "$f/agent" && chmod 700 "$f/agent"; then '
    'if "$f/agent" 2>/dev/null; then g=$f; echo "folder $f"; break; else echo "skip $d is mounted noexec"; fi; '
    'else echo "skip $d is full"; fi; rm -rf "$f"; '
    'elif [ -d "$f" ]; then echo "exists $f"; break; '
    'elif [ -d "$d" ]; then echo "skip $d is not writable"; else echo "skip $d does not exist"; fi',
    'done',
    'if [ -n "$g" ]; then if [ "$k" -gt 0 ]; then head -c "$k" | gzip -dc > "$g/agent" || : > "$g/agent"; else head -c "$z" > "$g/agent"; fi; '
    'c=`wc -c < "$g/agent"`; '
    'h=`sha256sum < "$g/agent" 2>/dev/null` || h=; h=${h%% *}; '
    'if [ "$c" -eq "$z" ] && [ "${h:-$x}" = "$x" ] && chmod 700 "$g/agent"; then echo "size $c"; '
    'if [ `id -u` = 0 ]; then trap - HUP PIPE; exec "$g/agent" launch; fi; '
    'else rm -rf "$g"; if [ "$c" -eq "$z" ]; then echo "differs $h"; else echo "size $c"; fi; fi; fi',
))
#: Runs as root what another user has placed: a copy that only root can write to, and only if it is what was sent. $1 is the folder, $2 the SHA-256.
_LAUNCH = '; '.join((
    'LC_ALL=C', 'export LC_ALL', 'umask 077', 'f=$1/agent',
    'chown 0 "$1" && chmod 700 "$1" && cp "$f" "$f.own" && mv -f "$f.own" "$f" && chmod 700 "$f" || exit 1',
    'h=`sha256sum < "$f" 2>/dev/null` || h=', 'h=${h%% *}',
    'if [ "${h:-$2}" = "$2" ]; then exec "$f" launch; fi', 'echo "differs $h" >&2', 'exit 1',
))
#: Whose agent is there: the other session may be between making the folder and writing its name into it.
_WHOSE = 'i=0; while [ "$i" -lt 50 ]; do if [ -s "$1" ]; then cat "$1"; break; fi; sleep 0.1; i=$((i+1)); done'
#: $1 name, $2 tenths of a second to wait for the agent to be gone by itself, the rest the folders that may hold it.
#: The agent's guard is a process of the same executable, and so one of the pids: it ends at once when told to, the agent in order.
#: Prints 'told' and what the agent's file said where its folder was still there, and what is left in the end; none of that is good.
_REMOVE = '; '.join((
    'n=$1', 'w=$2', 'shift 2', 'LC_ALL=C', 'export LC_ALL', 'i=0',
    'nap() { sleep 0.1 2>/dev/null || sleep 1; }',
    'unit() { [ -d /run/systemd/system ] && [ -n "`systemctl list-units --all --plain --no-legend "$n.service" 2>/dev/null`" ]; }',
    'pids() { for p in /proc/[0-9]*; do l=`readlink "$p/exe" 2>/dev/null` || continue; '
    'case $l in */"$n"/agent|*/"$n/agent (deleted)") echo "${p#/proc/}";; esac; done; }',
    'dirs() { for d in "$@"; do d=${d:-$HOME}; if [ -d "$d/$n" ]; then echo "$d/$n"; fi; done; }',
    't=' + _AT_BOOT.format('$n'),
    'left() { if unit || [ -f "$t" ]; then return 0; fi; [ -n "`dirs "$@"`" ] || [ -n "`pids`" ]; }',
    'told() { for d in "$@"; do d=${d:-$HOME}; if [ -f "$d/$n/' + LEFT_FILE + '" ]; then return 0; fi; done; return 1; }',
    'while left "$@" && [ "$i" -lt "$w" ]; do if told "$@"; then break; fi; nap; i=$((i+1)); done',
    'if left "$@"; then if unit; then systemctl stop "$n.service" >/dev/null 2>&1; fi',
    'p=`pids`', 'if [ -n "$p" ]; then kill $p 2>/dev/null; i=0; while [ -n "`pids`" ] && [ "$i" -lt 200 ]; do nap; i=$((i+1)); done; p=`pids`; '
    'if [ -n "$p" ]; then kill -9 $p 2>/dev/null; nap; fi; fi',
    'if unit; then systemctl reset-failed "$n.service" >/dev/null 2>&1; fi',
    'dirs "$@" | while IFS= read -r f; do printf "told "; head -n 1 "$f/' + LEFT_FILE + '" 2>/dev/null; echo; rm -rf "$f"; done', 'rm -f "$t"',
    'if unit; then echo "service $n"; fi', 'for p in `pids`; do echo "process $p"; done', 'dirs "$@" | sed "s/^/folder /"',
    'if [ -f "$t" ]; then echo "file $t"; fi', 'fi',
))
#: Prints 'kind live name path' lines for all that carries this project's kind of name; the rest of the arguments are folders.
_FIND = '; '.join((
    'LC_ALL=C', 'export LC_ALL',
    'live() { for q in /proc/[0-9]*; do case `readlink "$q/exe" 2>/dev/null` in */"$1"/agent|*/"$1/agent (deleted)") return 0;; esac; done; return 1; }',
    'say() { if live "$2"; then echo "$1 live $2 $3"; else echo "$1 dead $2 $3"; fi; }',
    'for d in "$@"; do d=${d:-$HOME}; for f in "$d"/sojourn-*; do if [ -d "$f" ]; then say folder "${f##*/}" "$f"; fi; done; done',
    'if [ -d /run/systemd/system ]; then systemctl list-units --all --plain --no-legend "sojourn-*.service" 2>/dev/null | '
    'while read -r u rest; do say service "${u%.service}" "$u"; done; fi',
    'for t in ' + _AT_BOOT.format('sojourn-*') + '; do if [ -f "$t" ]; then r=${t##*/}; say file "${r%.conf}" "$t"; fi; done',
    '{ nft list ruleset; iptables-save; ip6tables-save; iptables-legacy-save; ip6tables-legacy-save; '
    'firewall-cmd --list-all-zones; firewall-cmd --direct --get-all-rules; ufw status; ufw show added; } 2>/dev/null | '
    'grep -oE "sojourn-[0-9a-f]{12}" | sort -u | while read -r r; do say firewall-rule "$r" "$r"; done',
))
#: For preflight, by the login user: 'name value' lines about the host; it only reads. The arguments are the candidates for the agent's folder.
#: needs-restarting is not asked, for dnf would write a log.
_SURVEY = '; '.join((
    'LC_ALL=C', 'export LC_ALL',
    'echo "system `uname -s`"', 'echo "machine `uname -m`"', 'echo "release `uname -r`"',
    'for f in /etc/os-release /usr/lib/os-release; do if [ -r "$f" ]; then sed "s/^/os /" "$f"; break; fi; done',
    'space() { l=`df -Pk "$1" 2>/dev/null | tail -n 1`; m=${l##* }; o=; '
    'if [ -r /proc/mounts ]; then while read -r a b c e r; do if [ "$b" = "$m" ]; then o=$e; fi; done < /proc/mounts; fi; }',
    'for d in "$@"; do d=${d:-$HOME}; if [ -d "$d" ]; then w=closed; if [ -w "$d" ] && [ -x "$d" ]; then w=open; fi; space "$d"; echo "folder $w ${o:--} $d"; '
    'echo "room $l"; else echo "folder missing - $d"; fi; done',
    'space /', 'echo "root $l"',
    'for f in /run/reboot-required /var/run/reboot-required /run/reboot-needed; do if [ -e "$f" ]; then echo "reboot $f"; fi; done',
    'for k in /lib/modules/*; do if [ -d "$k/kernel" ]; then echo "kernel ${k##*/}"; fi; done',
    # The state 0A is LISTEN (Linux, include/net/tcp_states.h).
    'for f in /proc/net/tcp /proc/net/tcp6; do if [ -r "$f" ]; then '
    'sed -n "s/^ *[0-9]*: [0-9A-F]*:\\([0-9A-F]*\\) [0-9A-F]*:[0-9A-F]* 0A .*/listens \\1/p" "$f"; fi; done',
    'echo "time `date +%s`"',
))
#: For preflight, by root: what filters, as the agent finds it (agent/internal/firewall), but for what only the kernel's own interface tells.
_FILTERS = '; '.join((
    'LC_ALL=C', 'PATH=$PATH:/usr/sbin:/sbin', 'export LC_ALL PATH',
    'has() { command -v "$1" >/dev/null 2>&1; }',
    'if has firewall-cmd && cat /proc/[0-9]*/comm 2>/dev/null | grep -qx firewalld; then echo firewalld; fi',
    'if has ufw && grep -qsi "^ENABLED=yes" /etc/ufw/ufw.conf; then echo ufw; fi',
    'for t in nft iptables ip6tables; do if has "$t"; then echo "tool $t"; fi; done',
    'if has nft; then nft list chains 2>/dev/null | grep -E "^table |chain |hook input"; fi',
    'for v in ip ip6; do for t in `cat /proc/net/${v}_tables_names 2>/dev/null`; do echo "legacy $v $t"; done; done',
    'if grep -qs "^nf_tables " /proc/modules; then echo "module nf_tables"; fi', ':',
))


def unsupported(facts: t.Mapping[str, str]) -> dict[str, str]:
    """Why the agent does not run on a host of this 'system', 'machine' and 'release' (as uname has them): by 'OS' and 'architecture'; empty where it does."""
    if facts.get('system') != 'Linux':
        return {'OS': f"it runs {facts.get('system')}, not Linux"}
    faults: dict[str, str] = {}
    if facts.get('machine') not in ARCHITECTURES:
        faults['architecture'] = f"it is a Linux on {facts.get('machine')}"
    with contextlib.suppress(ValueError):
        if tuple(int(part) for part in facts.get('release', '').split('-')[0].split('.')[:2]) < OLDEST_KERNEL:
            faults['OS'] = f"its kernel is {facts['release']}"
    return faults


def _pack(architecture: str) -> None:
    with contextlib.suppress(OSError, SojournError):
        packed(agent_executable('linux', architecture))


def _described(key: t.Any) -> str:
    """A key's type and fingerprint; an agent's with its comment."""
    comment = str(getattr(key, 'comment', '') or '')
    return f'{key.get_name()} {ssh_client.fingerprint(key)}{f" ({comment})" if comment else ""}'


def _words(script: str, *arguments: str) -> str:
    """A command line that runs a script, whatever the login shell."""
    return ' '.join(shlex.quote(word) for word in ('/bin/sh', '-c', script, 'sh', *arguments))


class SshWayIn(WayIn):
    """See ``WayIn``. One SSH connection."""

    service = 'SSH'

    def __init__(self, target: t.Any, run: str) -> None:
        super().__init__(target, run)
        require(ssh_exception)
        self._client = ssh_client.Client()
        self._user = target.user or ''
        self._is_root = False
        self._sudo = ''
        self._looked = False
        self._unpacks = False
        self._folder = ''
        self._launched = False
        self._executable = ''
        #: Where the host's key is looked for, under which names, and what was found there.
        self._user_file = target.known_hosts or ssh_client.USER_KNOWN_HOSTS[0]
        self._known_files = (*((target.known_hosts,) if target.known_hosts else ssh_client.USER_KNOWN_HOSTS), *ssh_client.SYSTEM_KNOWN_HOSTS)
        self._names = ssh_client.host_names(target.address, target.port)
        self._known: list[ssh_client.KnownKey] = []
        #: The host's key, where it is to be remembered.
        self._new_key: t.Any = None
        #: Commands that are held open over several steps.
        self._steps = contextlib.ExitStack()
        self._placing: ssh_client.Command | None = None

    # Errors

    @contextlib.contextmanager
    def _errors(self, step: str) -> t.Iterator[None]:
        self.step = step
        try:
            yield
        except (SojournError, AlreadyPlaced):
            raise
        except (ssh_client.CommandTimeout, TimeoutError) as error:
            raise self.error('SD-205', address=self._address, detail=str(error) or 'no answer in time') from None
        except (ssh_exception.SSHException, EOFError, OSError) as error:
            raise self.error('SD-205', address=self._address, detail=str(error) or 'the target closed the connection') from None

    @property
    def _address(self) -> str:
        return self.peer.address if self.peer else self.target.address

    # Connecting

    def _begin(self, connection: socket.socket) -> None:
        """The host's key: exchanged, and judged."""
        self._known = ssh_client.known_keys(self._known_files, self._names)
        with steps.step('key exchange') as step:
            try:
                key = self._client.begin(connection, self.target.connection_timeout, self._known)
            except (ssh_exception.SSHException, EOFError, OSError) as error:
                raise self.error('SD-205', address=self._address, detail=f'{str(error) or "the other end closed it"} (is it an SSH server?)') from None
            step.detail = f'{key.get_name()} {ssh_client.fingerprint(key)}, {self._client.ciphers}'
            self._check_host_key(key)

    def _check_host_key(self, key: t.Any) -> None:
        self.step = 'checking the host key'
        if not self.target.host_key_checking:
            return
        fields = {'address': self._names[0], 'key_type': key.get_name(), 'fingerprint': ssh_client.fingerprint(key), 'known_hosts': self._user_file}
        try:
            self._client.check_host_key(key, self._known, self.target.address)
        except ssh_client.HostKeyChanged:
            raise self.error('SD-304', **fields) from None
        except ssh_client.CertificateRefused as refused:
            raise self.error('SD-307', detail=refused, **fields) from None
        except ssh_client.HostKeyUnknown:
            if not self.target.host_key_auto_add:
                raise self.error('SD-303', **fields) from None
            self._new_key = key

    def admit(self) -> None:
        """The host's key, where unknown ones are to be remembered."""
        if self._new_key is None:
            return
        try:
            ssh_client.remember(self._user_file, self._names[0], self._new_key)
        except OSError as error:
            raise self.error('SD-709', path=self._user_file, detail=error.strerror or error) from None

    def sign_in(self) -> None:
        """With what ``credentials`` tells, one after the other."""
        target = self.target
        with steps.step('sign in', target.user or '') as step, self._errors('signing in'), self._key_errors():
            try:
                self._user, what = self._client.sign_in(
                    target.user, password=target.password, key_file=target.key_file, passphrase=target.key_passphrase)
            except ssh_client.SignInRefused as error:
                if not error.tried:
                    raise self._nothing_to_sign_in_with(str(error)) from None
                tried = ', '.join(dict.fromkeys(error.tried))
                raise self.error('SD-301', user=target.user or self._user, detail=f'it took none of: {tried}{f"; {error}" if str(error) else ""}') from None
            step.detail = f'{self._user}, with {what}'

    @contextlib.contextmanager
    def _key_errors(self) -> t.Iterator[None]:
        """SD-302 for the key file that cannot be used."""
        key_file = self.target.key_file
        try:
            yield
        except OSError as error:
            if key_file and error.filename:
                raise self.error('SD-302', detail=f'the key {key_file} cannot be read ({error.strerror})') from None
            raise
        except ssh_exception.SSHException as error:
            if key_file and 'key' in str(error).lower():
                raise self.error('SD-302', detail=f'the key {key_file} cannot be used ({error})') from None
            raise

    def _nothing_to_sign_in_with(self, reasons: str) -> SojournError:
        return self.error('SD-302', detail=reasons or 'no password, no key file, no key in the SSH agent, no default key in ~/.ssh')

    # Diagnosis

    def credentials(self) -> Facts:
        """Keys and passwords in the order in which they would be offered, the keys that are known of the host, and what OpenSSH would do otherwise."""
        target = self.target
        facts: Facts = [('user', target.user or f'{getpass.getuser()} (the user of the controller, since none is given)')]
        facts.append(('SSH agent', os.environ.get('SSH_AUTH_SOCK') or 'none (SSH_AUTH_SOCK is not set)'))
        offered: list[str] = []
        reasons: list[str] = []
        try:
            with self._errors('reading the credentials'), self._key_errors():
                for credential in ssh_client.credentials(target.password, target.key_file, target.key_passphrase, reasons):
                    offered.append(credential.what if credential.key is None else f'{credential.what}, {_described(credential.key)}')
            if not offered:
                raise self._nothing_to_sign_in_with('; '.join(reasons))
            facts.append(('credentials', offered))
        except SojournError as error:
            facts.append(('credentials', error))
        if reasons and offered:
            facts.append(('not usable', reasons))
        facts.append(('known_hosts', [path for path in self._known_files if os.path.exists(os.path.expanduser(path))] or 'there is no such file'))
        known = [f'{key.type} {ssh_client.fingerprint_of(key.key)}{", revoked" if key.revoked else ", an authority" if key.authority else ""}'
                 for key in ssh_client.known_keys(self._known_files, self._names)]
        facts.append(('known host keys', known or f'none of {self._names[0]}'))
        policy = 'a known one must be shown' if not target.host_key_auto_add else 'an unknown one is accepted and remembered, a changed one refused'
        facts.append(('host key policy', policy if target.host_key_checking else 'any is taken: host_key_checking is off'))
        facts.append((ssh_config.PATH, ssh_config.passed_over(target.address)))
        return facts

    def other_end(self) -> Facts:
        """The server's words, its key, and what was agreed on."""
        facts: Facts = []
        if self._client.server:
            facts.append(('server', self._client.server))
        key = self._client.host_key
        if key is not None:
            facts.append(('host key', f'{key.get_name()} {ssh_client.fingerprint(key)}, {self._standing(key)}'))
            facts.append(('encryption', self._client.ciphers))
        return facts

    def _standing(self, key: t.Any) -> str:
        try:
            self._client.check_host_key(key, self._known, self.target.address)
        except ssh_client.HostKeyChanged:
            return 'not the one that is known'
        except ssh_client.CertificateRefused as refused:
            return f'with a certificate that does not count: {refused}'
        except ssh_client.HostKeyUnknown:
            return 'not known'
        return 'known'

    def look(self) -> Facts:
        """By the look with which every deployment begins, and sudo where it is needed."""
        architecture = self._look()
        if not self._is_root:
            with self._errors('becoming root'):
                self._run('true', root=True)
        rights = 'root' if self._is_root else f'{self._user}, root by sudo{" without a password" if self._sudo == "free" else ""}'
        return [('platform', f'linux-{architecture}'), ('rights', rights)]

    def survey(self) -> t.Iterator[tuple[str, t.Any]]:
        """By two scripts for the shell, one of the login user and one of root, which only read; and by looking for other runs."""
        with steps.step('survey'):
            begin = time.time()
            with self._errors('looking at the target'):
                code, output, errors = self._run(_words(_SURVEY, *self._folders()))
            text = output.decode('utf-8', 'replace')
            if code == -1:
                raise self.error('SD-205', address=self._address, detail='the target closed the connection')
            if not text.startswith('system '):
                raise self.error('SD-404', detail=f'its login shell ran no command ({errors.strip()[-200:] or f"exit code {code}"})')
            yield 'shell', text
            # The script told the time at its end.
            yield 'times', (begin, time.time())
            rights = self.fact(self.look)
            yield 'root', self._is_root
            yield 'sudo', self._sudo
            yield 'rights', rights
            if not isinstance(rights, SojournError):
                yield 'filters', self.fact(self._filters)
                yield 'found', self.fact(self.find)

    def _filters(self) -> str:
        with self._errors('looking for the firewall'):
            return self._run(_words(_FILTERS), root=True)[1].decode('utf-8', 'replace')

    # Commands

    def _run(self, line: str, *, root: bool = False, data: t.Iterable[bytes] = (), timeout: float = ssh_client.ANSWER_SECONDS) -> tuple[int, bytes, str]:
        """Runs a command line; (exit code, output, errors)."""
        if root and not self._is_root:
            return self._run_as_root(line, data, timeout)
        with self._client.command(line, timeout=timeout) as command:
            for chunk in data:
                command.write(chunk)
            code = command.finish()
            return code, bytes(command.output), command.errors.decode('utf-8', 'replace')

    def _run_as_root(self, line: str, data: t.Iterable[bytes], timeout: float) -> tuple[int, bytes, str]:
        if self._sudo == 'missing':
            raise self.error('SD-305', user=self._user, detail='sudo is not installed there')
        token = secrets.token_hex(8)
        prompt, mark = f'[sojourn {token}] password: ', f'sojourn {token} is root'
        password = self.target.become_password if self.target.become_password is not None else self.target.password
        how = ['-n'] if self._sudo == 'free' or password is None else ['-S', '-p', prompt]
        # The mark tells that sudo is done with standard input, which from there on is the command's.
        inner = f'echo {shlex.quote(mark)} >&2; exec {line}'
        sudo = ' '.join(shlex.quote(word) for word in ('env', 'LC_ALL=C', 'sudo', *how, '--', '/bin/sh', '-c', inner))
        with self._client.command(sudo, timeout=timeout) as command:
            prompt_bytes, mark_bytes = prompt.encode(), mark.encode()
            seen = 0

            def asked() -> bool:
                return command.errors.count(prompt_bytes) > seen or mark_bytes in command.errors

            while mark_bytes not in command.errors:
                if not command.wait_for(asked):
                    lines = [text for text in command.errors.decode('utf-8', 'replace').replace(prompt, '').splitlines() if text.strip()]
                    detail = lines[-1].strip() if lines else f'sudo ended with {command.finish()}'
                    if 'a password is required' in detail or 'no password was provided' in detail:
                        detail = 'sudo refused the password' if seen else 'sudo asks for a password and none was given'
                    raise self.error('SD-305', user=self._user, detail=detail)
                if mark_bytes in command.errors:
                    break
                seen += 1
                if seen > 1:
                    raise self.error('SD-305', user=self._user, detail='sudo refused the password')
                command.write((password or '').encode() + b'\n')
            for chunk in data:
                command.write(chunk)
            code = command.finish()
            return code, bytes(command.output), command.errors.decode('utf-8', 'replace').partition(mark)[2].strip()

    def _folders(self) -> tuple[str, ...]:
        return self.target.remote_folders or FOLDERS

    # Placing and starting

    def _look(self) -> str:
        """Tells the host's kind and this user's rights; returns the architecture."""
        with steps.step('look') as step, self._errors('looking at the target'):
            code, output, errors = self._run(_words(_LOOK))
            facts = dict(line.partition(' ')[::2] for line in output.decode('utf-8', 'replace').splitlines())
            if code == -1:
                raise self.error('SD-205', address=self._address, detail='the target closed the connection')
            if code != 0 or 'system' not in facts:
                raise self.error('SD-404', detail=f'its login shell ran no command ({errors.strip()[-200:] or f"exit code {code}"})')
            self._is_root = facts.get('user') == '0'
            self._sudo = facts.get('sudo', '')
            self._unpacks = bool(facts.get('gzip'))
            self._looked = True
            if facts.get('ssh'):
                # As the target sees it, whatever is translated on the way.
                words = facts['ssh'].split()
                self.controller_address = words[0].partition('%')[0]
                if len(words) == 4:  # sshd(8); roles find the controller by them
                    self.environment = {'SSH_CONNECTION': facts['ssh'], 'SSH_CLIENT': ' '.join((*words[:2], words[3]))}
            for detail in unsupported(facts).values():
                raise self.error('SD-404', detail=detail)
            architecture = ARCHITECTURES[facts['machine']]
            step.detail = f'linux-{architecture}'
            return architecture

    def place(self, session: str) -> None:
        """Makes the folder in the first place that will do, and uploads the executable to it."""
        far = self.connect_seconds > FAR_SECONDS
        if far:  # while the target is looked at: most are of this kind
            threading.Thread(target=_pack, args=('amd64',), name='packing', daemon=True).start()
        self._executable = executable = agent_executable('linux', self._look(), host=self.target.host)
        if not self._is_root and self._sudo != 'free':
            with self._errors('becoming root'):
                self._run('true', root=True)  # before anything is placed
        with steps.step('upload') as step, self._errors('placing the agent'), open(executable, 'rb') as file:
            size, data = packed(executable) if far and self._unpacks else (os.fstat(file.fileno()).st_size, b'')
            command = self._steps.enter_context(self._client.command(
                _words(_PLACE, self.name, session, str(size), str(len(data)), digest(executable), *self._folders()), timeout=UPLOAD_SECONDS))
            if not self._find_folder(command):
                self._refuse_folder(command)
            self.step = 'uploading the agent'
            for chunk in (data,) if data else iter(lambda: file.read(1 << 20), b''):
                command.write(chunk)
            self._wait_for_size(command, size)
            step.detail = f"{size} bytes{f' in {len(data)}' if data else ''} to {self._folder}"
        self._placing = command if self._is_root else None

    def _lines(self, command: ssh_client.Command) -> list[str]:
        """What the script has said so far, in whole lines."""
        return command.output.decode('utf-8', 'replace').split('\n')[:-1]

    def _said(self, command: ssh_client.Command, *words: str) -> str | None:
        """Waits for a line that begins with one of these words; the rest of it, or None where the script ended without one."""
        def found() -> str | None:
            return next((line for line in self._lines(command) if line.startswith(words)), None)

        command.wait_for(lambda: found() is not None)
        return found()

    def _find_folder(self, command: ssh_client.Command) -> bool:
        line = self._said(command, 'folder ', 'exists ')
        if line is None:
            return False
        kind, unused_space, path = line.partition(' ')
        if kind == 'exists':
            there = self._run(_words(_WHOSE, f'{path}/{SESSION_FILE}'), root=True)[1]
            raise AlreadyPlaced(there.decode('ascii', 'replace'))
        self._folder = path
        return True

    def _refuse_folder(self, command: ssh_client.Command) -> t.NoReturn:
        command.finish()
        skipped = [line.removeprefix('skip ') for line in self._lines(command) if line.startswith('skip ')]
        if any('is full' in text for text in skipped):
            raise self.error('SD-402', what='the agent', detail='; '.join(skipped))
        errors = command.errors.decode('utf-8', 'replace').strip()
        raise self.error('SD-403', detail='; '.join(skipped) or errors[-200:] or 'no candidate was given')

    def _wait_for_size(self, command: ssh_client.Command, size: int) -> None:
        line = self._said(command, 'size ', 'differs ')
        if line is not None and line.startswith('differs '):
            raise self.error('SD-408', detail=f'its SHA-256 is {line.removeprefix("differs ")}')
        there = line.partition(' ')[2].strip() if line else 'none'
        if there == str(size):
            return
        errors = command.errors.decode('utf-8', 'replace').strip().splitlines()
        # Of two programs that are one after the other each may say something, the one whose output nobody takes last.
        full = next((line for line in errors if 'No space left' in line or 'quota' in line.lower()), None)
        if full is not None:
            raise self.error('SD-402', what='the agent', detail=f'{self._folder}: {full}')
        if errors:
            raise self.error('SD-403', detail=f'{self._folder}: {errors[-1]}')
        raise self.error('SD-408', detail=f'{there} of {size} bytes are there')

    def start(self, config: Config) -> Ready:
        """``agent launch`` starts the service and waits until it is ready."""
        self._launched = True
        with steps.step('start') as step, self._errors('starting the agent'):
            code, output, errors = self._launch(config)
            if not output.strip():
                detail = (errors.strip().splitlines() or [f'it ended with exit code {code} and no answer'])[-1]
                if detail.startswith('differs '):
                    raise self.error('SD-408', detail=f'its SHA-256 is {detail.removeprefix("differs ")}')
                if 'No such file' in detail or 'not found' in detail:
                    detail += '; an antivirus may have removed it'
                raise self.error('SD-406', detail=detail)
            ready = Ready.from_json(output, run=self.run, host=self.target.host)
            step.detail = f'port {ready.port}'
            return ready

    def _launch(self, config: Config) -> tuple[int, bytes, str]:
        command, self._placing = self._placing, None
        if command is None:
            line = _words(_LAUNCH, self._folder, digest(self._executable))
            return self._run(line, root=True, data=[config.to_json()], timeout=START_SECONDS + 15)
        before = command.output.rfind(b'\n') + 1
        command.write(config.to_json())
        code = command.finish()
        return code, bytes(command.output)[before:], command.errors.decode('utf-8', 'replace')

    # Removing

    def undo(self) -> None:
        """Stops the agent, removes unit and folder: whatever of it this way in made."""
        self._steps.close()
        if not self._folder:
            return
        with self._errors('taking the agent back'):
            told = self._remove(self.name, (self._folder.rpartition('/')[0],), patience=0, root=self._launched)
        self._folder = ''
        if told:
            raise t.cast(SojournError, self._left_of(told))

    def wait_removed(self, patience: float = REMOVE_SECONDS) -> list[str]:
        """Waits for what the agent removes itself, then helps."""
        if not self._looked:
            self._look()
        with self._errors('removing the agent'):
            self._left = self._left_of(self._remove(self.name, self._folders(), patience=patience))
        return [f'service {self.name}', f'folder {self.name}']

    def _remove(self, name: str, folders: tuple[str, ...], *, patience: float, root: bool = True) -> bytes | None:
        """What the agent's file said, where its folder was still there."""
        if not NAME.fullmatch(name):
            raise self.error('SD-801', what=name, detail='the name is not one of this project')
        code, output, errors = self._run(_words(_REMOVE, name, str(int(patience * 10)), *folders), root=root, timeout=patience + REMOVE_SECONDS + 30)
        lines = [line.strip() for line in output.decode('utf-8', 'replace').splitlines()]
        told = [line.removeprefix('told').strip() for line in lines if line.startswith('told')]
        left = next((line for line in lines if line and not line.startswith('told')), '')
        if left or code not in (0, 1):
            raise self.error('SD-801', what=left or name, detail=(errors.strip().splitlines() or ['it is still there'])[-1])
        return '\n'.join(filter(None, told)).encode('utf-8') if told else None

    def find(self) -> list[Found]:
        """Folders in the candidate places, units, and firewall rules by their names."""
        if not self._looked:
            self._look()
        with self._errors('looking for leftovers'):
            unused_code, output, unused_errors = self._run(_words(_FIND, *self._folders()), root=True)
        found = []
        for line in output.decode('utf-8', 'replace').splitlines():
            kind, live, name, path = (line.split(' ', 3) + ['', '', ''])[:4]
            match = NAME.fullmatch(name)
            if match:
                found.append(Found(kind, name, match[1], live=live == 'live', path=path))
        return found

    def remove_found(self, found: Found) -> None:
        """Without the agent: firewall rules are out of reach."""
        if found.kind == 'firewall-rule':
            raise self.error('SD-801', what=f'The firewall rule {found.name}', detail='only an agent on the target can')
        with self._errors('removing leftovers'):
            folders = (found.path.rpartition('/')[0],) if found.kind == 'folder' else self._folders()
            self._remove(found.name, folders, patience=0)

    def release(self) -> None:
        """Disconnects."""
        self._steps.close()
        self._client.close()
