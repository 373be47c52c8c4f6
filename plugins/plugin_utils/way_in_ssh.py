# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way in to Linux: SSH, over jump hosts if need be, and root by sudo or su where the sign-in is not root's own; nothing after the agent's start.

Every script is one line for /bin/sh with no '!' in it: the login shell that hands it on may be csh.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
import time
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils import network, ssh_client, ssh_config, steps
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
    Entry,
    Facts,
    Found,
    NothingThere,
    Ready,
    Stream,
    WayIn,
    agent_executable,
    digest,
    packed,
    size_of,
)

ssh_exception = library('paramiko.ssh_exception')

#: The candidates for the agent's folder; '' stands for the login user's home.
FOLDERS = ('/tmp', '/var/tmp', '')
ARCHITECTURES = {'x86_64': 'amd64', 'amd64': 'amd64', 'aarch64': 'arm64', 'arm64': 'arm64'}
OLDEST_KERNEL = (3, 2)
#: Seconds that the upload and the start may take on a slow line.
UPLOAD_SECONDS = 600.0 + START_SECONDS

#: Seconds after which a command that has not begun gets the end of its input.
BEGIN_SECONDS = 5.0

#: Seconds there and back beyond which a target is far: to it the executable travels packed, which takes longer than it saves on a network that is
#: nearer, and as much may be on its way as the target has room for.
FAR_SECONDS = 0.005
#: Seconds within which a connection that has ended unnoticed is known to have, once something is sent.
SOON_SECONDS = 6

#: Why a password that is there is not sent.
WITHHELD = 'its host key is not the one that is known, so no password is sent'

#: The file by which systemd removes an agent's folder at boot.
_AT_BOOT = '/etc/tmpfiles.d/{}.conf'

#: Tells what the host is and what the user may.
_LOOK = '; '.join((
    'LC_ALL=C', 'export LC_ALL', 'u=`id -u`', 'o=`uname -s`', 'm=`uname -m`', 'v=`uname -r`', 'w=',
    'echo "system $o"', 'echo "machine $m"', 'echo "release $v"', 'echo "user $u"', 'echo "ssh $SSH_CONNECTION"',
    'if [ "$u" = 0 ]; then :; elif command -v sudo >/dev/null 2>&1; then if s=`sudo -n true </dev/null 2>&1`; then w=free; else '
    'case $s in *"must have a tty"*) w=terminal;; *) w=asks;; esac; fi; else w=missing; fi',
    'if [ -n "$w" ]; then echo "sudo $w"; fi', 'echo "gzip `command -v gzip`"',
))
#: Makes the folder and takes the executable on standard input. $1 is the folder's name, $2 the session, $3 the executable's size, $4 its SHA-256
#: (looked at where there is sha256sum), the rest are the candidates. The input's first line is how many bytes of it come where gzip is to unpack it,
#: or 0. Where the input ends too early, because the controller or the network is gone, nothing stays: the folder goes too.
#: Root goes on as `agent launch`, which takes the config on the same input and removes the folder likewise where none comes.
_PLACE = '; '.join((
    'umask 077', 'LC_ALL=C', 'export LC_ALL', 'n=$1', 's=$2', 'z=$3', 'x=$4', 'shift 4', 'g=', 'k=',
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
    'if [ -n "$g" ]; then IFS= read -r k; '
    'if [ "${k:-0}" -gt 0 ]; then head -c "$k" | gzip -dc > "$g/agent" || : > "$g/agent"; else head -c "$z" > "$g/agent"; fi; '
    'c=`wc -c < "$g/agent"`; '
    'h=`sha256sum < "$g/agent" 2>/dev/null` || h=; h=${h%% *}; '
    'if [ "$c" -eq "$z" ] && [ "${h:-$x}" = "$x" ] && chmod 700 "$g/agent"; then echo "size $c"; '
    'if [ `id -u` = 0 ]; then trap - HUP PIPE; exec "$g/agent" launch; fi; '
    'else rm -rf "$g"; if [ "$c" -eq "$z" ]; then echo "differs $h"; else echo "size $c"; fi; fi; fi',
))
#: Both, where there is nothing to be asked or told in between: on Linux, on the machine $1, for who is root or needs no password for that. The rest
#: are _PLACE's.
_LOOK_AND_PLACE = '; '.join((
    'p=$1', 'shift', _LOOK, 'a=', 'case $v in [0-9]*.[0-9]*) a=${v%%.*};; esac', 'b=${v#*.}', 'b=${b%%.*}', 'b=${b%%-*}',
    'if [ "$o" = Linux ] && [ "$m" = "$p" ] && { [ "$u" = 0 ] || [ "$w" = free ]; } && '
    '{ [ "$a" -gt OLD ] || { [ "$a" -eq OLD ] && [ "$b" -ge OLDER ]; }; } 2>/dev/null; then echo "goes on"; else echo "goes no further"; exit 0; fi'
    .replace('OLDER', str(OLDEST_KERNEL[1])).replace('OLD', str(OLDEST_KERNEL[0])),
    _PLACE,
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
#: What costs the target least is looked at first, as it is looked at again and again: files, then systemd, then processes. A process's executable
#: is a link of its own, which one listing shows for all (a listing fails where there are too many for one command); who is named by it is looked up
#: one by one, for a path may hold a line's end.
_REMOVE = '; '.join((
    'n=$1', 'w=$2', 'shift 2', 'LC_ALL=C', 'export LC_ALL', 'i=0',
    'nap() { sleep 0.1 2>/dev/null || sleep 1; }',
    'unit() { [ -d /run/systemd/system ] && [ -n "`systemctl list-units --all --plain --no-legend "$n.service" 2>/dev/null`" ]; }',
    'pids() { { ls -ln /proc/[0-9]*/exe 2>/dev/null; if [ "$?" -gt 2 ]; then echo "/$n/agent"; fi; } | grep "/$n/agent" >/dev/null || return 0; '
    'for p in /proc/[0-9]*; do l=`readlink "$p/exe" 2>/dev/null` || continue; '
    'case $l in */"$n"/agent|*/"$n/agent (deleted)") echo "${p#/proc/}";; esac; done; }',
    'dirs() { for d in "$@"; do d=${d:-$HOME}; if [ -d "$d/$n" ]; then echo "$d/$n"; fi; done; }',
    't=' + _AT_BOOT.format('$n'),
    'left() { l=1; if [ -f "$t" ] || [ -f "/run/systemd/transient/$n.service" ] || [ -n "`dirs "$@"`" ] || unit || [ -n "`pids`" ]; then return 0; fi; '
    'l=; return 1; }',
    'told() { for d in "$@"; do d=${d:-$HOME}; if [ -f "$d/$n/' + LEFT_FILE + '" ]; then return 0; fi; done; return 1; }',
    'while left "$@" && [ "$i" -lt "$w" ]; do if told "$@"; then break; fi; nap; i=$((i+1)); done',
    'if [ -n "$l" ]; then if unit; then systemctl stop "$n.service" >/dev/null 2>&1; fi',
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


#: What each command line begins with, on both streams, to be told from what the login shell's own files may say.
_BEGIN = f'echo "{ssh_client.BEGUN}"; echo "{ssh_client.BEGUN}" >&2; exec "$@"'
#: Has a program ask for a password at a terminal, which does not show it. $1 is a token: what comes before it the login shell has said.
_ASKING = 'stty -echo 2>/dev/null; LC_ALL=C; export LC_ALL; echo "$1 asks"; shift; exec "$@"'
#: Runs a command on a terminal as if there was none: bytes go through as they are, the input has an end, and the streams are told apart.
#: $1 is a token, $2 the bytes of input, the rest the command. Standard error, and the exit code, come behind all of standard output.
_AT_TERMINAL = '; '.join((
    't=$1', 'n=$2', 'shift 2', 'stty raw -echo 2>/dev/null', 'echo "$t begins"', 'exec 3>&1',
    'e=`head -c "$n" | "$@" 2>&1 >&3 3>&-`', 'c=$?', 'echo', 'echo "$t ended $c"', 'printf "%s" "$e"',
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


def _end(proxy: subprocess.Popen[bytes]) -> None:
    """Has a ProxyCommand end: by itself, since its input has ended; else by force."""
    try:
        proxy.wait(ssh_client.PARTING_SECONDS)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(proxy.pid, signal.SIGKILL)
        proxy.wait()


def _described(key: t.Any) -> str:
    """A key's type and fingerprint; an agent's with its comment."""
    comment = str(getattr(key, 'comment', '') or '')
    return f'{key.get_name()} {ssh_client.fingerprint(key)}{f" ({comment})" if comment else ""}'


def _words(script: str, *arguments: str) -> list[str]:
    """A command that runs a script."""
    return ['/bin/sh', '-c', script, 'sh', *arguments]


def _line(words: t.Sequence[str], before: str = _BEGIN) -> str:
    """A command line for it, whatever the login shell."""
    return shlex.join(_words(before, *words))


def _last_line(text: bytes | bytearray) -> str:
    """The last line of what a program said that is not empty."""
    lines = [line.strip() for line in text.decode('utf-8', 'replace').splitlines() if line.strip()]
    return lines[-1] if lines else ''


class SshWayIn(WayIn):
    """See ``WayIn``. One SSH connection to the target, and one to each jump host on the way."""

    service = 'SSH'
    bears_waiting = True  # for sshd's LoginGraceTime
    #: What the next target is taken for until it has said otherwise: as the last one, by whichever thread. As uname has it.
    likely = 'x86_64'

    def __init__(self, target: t.Any, run: str) -> None:
        super().__init__(target, run)
        require(ssh_exception)
        self._client = ssh_client.Client()
        #: To the jump hosts, in their order.
        self._jumps: list[ssh_client.Client] = []
        self._proxy: subprocess.Popen[bytes] | None = None
        self._proxy_errors: t.IO[bytes] | None = None
        self._user = target.user or ''
        self._is_root = False
        self._sudo = ''
        self._looked = False
        #: Whether what is known of the rights is another way in's finding.
        self._reminded = False
        self._unpacks = False
        self._folder = ''
        self._launched = False
        self._executable = ''
        #: Keys that are known of the target.
        self._known: list[ssh_client.KnownKey] = []
        #: Whether the target is sent passwords: not where it has shown another host key than the known one.
        self._trusted = False
        #: Keys of hosts that are to be remembered.
        self._new_keys: list[tuple[ssh_config.Host, t.Any]] = []
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
        return self.peer.address if self.peer and not self.led else self.target.address

    # The way

    @functools.cached_property
    def way(self) -> list[ssh_config.Host]:
        """Whom one gets to the target over; the last is the target. Raises SD-108, SD-109."""
        return ssh_config.way(self.target)

    @property
    def _host(self) -> ssh_config.Host:
        return self.way[-1]

    def entry(self) -> Entry:
        """See ``WayIn``."""
        first = self.way[0]
        return Entry(first.address, first.port, first.connect_timeout or self.target.connection_timeout, first.family)

    @property
    def led(self) -> bool:
        """See ``WayIn``."""
        return len(self.way) > 1 or self.way[0].proxy_command is not None

    @property
    def looks_up(self) -> bool:
        """See ``WayIn``."""
        return self.way[0].proxy_command is None

    def described_way(self) -> list[str]:
        """See ``WayIn``."""
        return [*(() if self.looks_up else (f'ProxyCommand of {self.way[0].name}',)), *(str(host) for host in self.way)]

    def agent_peer(self) -> network.Peer:
        """Whether it can be reached from here, when SSH goes over a jump host, is another question."""
        if not self.led:
            return super().agent_peer()
        try:
            return network.resolve(self._host.address, self._host.port, self._host.family)[0]
        except SojournError:  # a name that only the jump host knows: nobody connects to it from here
            return network.Peer(socket.AF_UNSPEC, (self._host.address, self._host.port))

    # Connecting

    def resolve(self) -> None:
        """See ``WayIn``. A program that leads there does so itself."""
        with self._at_host():
            looks_up = self.looks_up
        if looks_up:
            super().resolve()

    def reach(self) -> None:
        """See ``WayIn``. At jump hosts it signs in: nobody is let through otherwise."""
        command = self.way[0].proxy_command
        if command is None:
            super().reach()
            return
        self.step = 'connecting'
        with steps.step('connect', 'by ProxyCommand'), self._errors('connecting'):
            connection, theirs = socket.socketpair()
            with theirs:
                self._proxy_errors = tempfile.TemporaryFile()  # noqa: SIM115  it is read when the program has ended
                self._proxy = subprocess.Popen(
                    ['/bin/sh', '-c', f'exec {command}'], stdin=theirs, stdout=theirs, stderr=self._proxy_errors, start_new_session=True,
                    cwd=self.target.directory)
        self._begin(connection)

    def _begin(self, connection: t.Any) -> None:
        """From host to host: keys are exchanged, and each host's judged."""
        *jumps, last = self.way
        for jump, following in zip(jumps, self.way[1:], strict=True):
            client = ssh_client.Client()
            self._jumps.append(client)
            trusted = self._exchange(client, jump, connection)
            self._sign_in_at(client, jump, trusted)
            connection = self._onward(client, jump, following)
        if self.led:
            self.controller_address = None  # whom the target sees, it tells itself
        else:
            self._client.near = not self._is_far
        self._trusted = self._exchange(self._client, last, connection)

    @property
    def _is_far(self) -> bool:
        return self.round_trip_seconds > FAR_SECONDS

    def _onward(self, client: ssh_client.Client, jump: ssh_config.Host, following: ssh_config.Host) -> t.Any:
        self.step = 'connecting'
        seconds = following.connect_timeout or self.target.connection_timeout
        with steps.step('jump', f'from {jump} to {following}'):
            try:
                return client.open_channel(following.address, following.port, seconds)
            except ssh_exception.ChannelException as error:
                detail = {1: 'it forwards nothing there', 2: f'it cannot connect ({error.text or "no reason is given"})'}.get(error.code, error.text)
            except (ssh_exception.SSHException, EOFError, OSError) as error:
                detail = 'no answer in time' if isinstance(error, TimeoutError) or 'imeout' in str(error) else str(error)
            raise self.error('SD-206', jump=jump.name, address=following.address, port=following.port, detail=detail)

    def _exchange(self, client: ssh_client.Client, host: ssh_config.Host, connection: t.Any) -> bool:
        """Exchanges keys with a host and judges its; returns whether passwords may be sent there."""
        self.step = 'checking the host key'
        known = self._known_keys(host)
        if host is self._host:
            self._known = known
        self.step = 'connecting'
        with steps.step('key exchange') as step:
            try:
                # A host under another port may be known without it.
                key = client.begin(connection, host.connect_timeout or self.target.connection_timeout, known or self._known_keys(host, port=22))
            except (ssh_exception.SSHException, EOFError, OSError) as error:
                detail = self._words_of_proxy() or f'{str(error) or "the other end closed it"} (is it an SSH server?)'
                raise self.error('SD-205', address=self._shown(host), detail=detail) from None
            step.detail = f'{key.get_name()} {ssh_client.fingerprint(key)}, {client.ciphers}'
            return self._check_host_key(client, host, key, known)

    def _shown(self, host: ssh_config.Host) -> str:
        return self._address if host is self._host else f'the jump host {host.name}'

    def _words_of_proxy(self) -> str:
        """Why a ProxyCommand came to nothing."""
        if self._proxy is None or self._proxy_errors is None:
            return ''
        with contextlib.suppress(subprocess.TimeoutExpired):  # it has closed its end already
            self._proxy.wait(ssh_client.PARTING_SECONDS)
        self._proxy_errors.seek(0)
        said = _last_line(self._proxy_errors.read(65536))
        return f'its ProxyCommand says: {said}' if said else 'its ProxyCommand has ended'

    def _known_files(self, host: ssh_config.Host) -> tuple[str, ...]:
        return (*host.user_known_hosts, *host.global_known_hosts)

    def _names(self, host: ssh_config.Host, port: int | None = None) -> list[str]:
        return [host.key_alias.lower()] if host.key_alias else ssh_client.host_names(host.address, host.port if port is None else port)

    def _known_keys(self, host: ssh_config.Host, port: int | None = None) -> list[ssh_client.KnownKey]:
        return ssh_client.known_keys(self._known_files(host), self._names(host, port))

    def _revoked_keys(self, host: ssh_config.Host) -> list[ssh_client.KnownKey]:
        """Those that no policy admits."""
        if host.revoked_keys is None:
            return []
        try:
            return ssh_client.revoked_keys(host.revoked_keys)
        except (OSError, ValueError) as error:
            detail = f'RevokedHostKeys {host.revoked_keys}: {getattr(error, "strerror", None) or error}'
            raise self.error('SD-108', name=host.name, detail=detail) from None

    def _check_host_key(self, client: ssh_client.Client, host: ssh_config.Host, key: t.Any, known: t.Sequence[ssh_client.KnownKey]) -> bool:
        """Judges it as OpenSSH does by this host's settings; returns whether passwords may be sent."""
        self.step = 'checking the host key'
        fields = {'address': self._names(host)[0], 'key_type': key.get_name(), 'fingerprint': ssh_client.fingerprint(key),
                  'known_hosts': next(iter(host.user_known_hosts), 'known_hosts')}
        error: SojournError | None = None
        revoked_keys = self._revoked_keys(host)
        try:
            client.check_host_key(key, [*known, *revoked_keys], host.known_hosts_name)
        except ssh_client.HostKeyChanged:
            error = self.error('SD-304', **fields)
            if any(entry.key == key.get_base64() for entry in revoked_keys):
                raise error from None
        except ssh_client.AuthorityRevoked as revoked:
            error = self.error('SD-307', detail=revoked, **fields)
        except (ssh_client.CertificateRefused, ssh_client.HostKeyUnknown) as unknown:
            if self._is_known_without_port(client, host, key):
                return True
            if host.strict == 'accept-new':
                self._new_keys.append((host, key))
            elif host.strict == 'yes':
                refused = isinstance(unknown, ssh_client.CertificateRefused)
                error = self.error('SD-307', detail=unknown, **fields) if refused else self.error('SD-303', **fields)
        if error is None:
            return True
        if host.strict != 'no':
            raise error
        # Who may be in between gets no password: there OpenSSH, told not to check, goes on by key alone.
        return False

    def _is_known_without_port(self, client: ssh_client.Client, host: ssh_config.Host, key: t.Any) -> bool:
        if host.port == 22 or host.key_alias:
            return False
        try:
            client.check_host_key(key, self._known_keys(host, port=22), host.known_hosts_name)
        except (ssh_client.HostKeyChanged, ssh_client.CertificateRefused, ssh_client.HostKeyUnknown):
            return False
        return True

    def admit(self) -> None:
        """The hosts' keys, where unknown ones are to be remembered."""
        self.step = 'remembering the host key'
        for host, key in self._new_keys:
            path, name = next(iter(host.user_known_hosts), None), self._names(host)[0]
            if path is None:
                continue
            try:
                ssh_client.remember(path, ssh_client.hashed(name) if host.hash_known_hosts else name, key)
            except OSError as error:
                raise self.error('SD-709', path=path, detail=error.strerror or error) from None
        self._new_keys = []

    def notice_silence(self, *, soon: bool) -> None:
        """See ``WayIn``."""
        if soon:
            self._client.notice_silence(SOON_SECONDS)
        else:
            self._client.bear_silence()

    def sign_in(self) -> None:
        """With what ``credentials`` tells, one after the other."""
        target = self.target
        with steps.step('sign in', self._host.user) as step:
            step.detail = f'{self._host.user}, with {self._sign_in_at(self._client, self._host, self._trusted, target)}'
        self._user = self.login_user = self._host.user

    def _sign_in_at(self, client: ssh_client.Client, host: ssh_config.Host, trusted: bool, target: t.Any = None) -> str:
        """Signs in at the target with its options; or at a jump host, with what its settings have. Returns with what."""
        where = '' if target is not None else f'the jump host {host.name}: '
        password, key_file, passphrase = (target.password, target.key_file, target.key_passphrase) if target is not None else (None, None, None)
        reasons: list[str] = []
        methods = host.methods if trusted else host.methods & {'publickey'}
        if not trusted and 'password' in host.methods and password is not None:
            reasons.append(WITHHELD)
        source = ssh_client.credentials(password, key_file, passphrase, reasons, self._identities(host))
        with self._errors('signing in' if target is not None else f'signing in at the jump host {host.name}'), self._key_errors():
            try:
                return client.sign_in(host.user, source, password, reasons, methods)
            except ssh_client.SignInRefused as error:
                if not error.tried:
                    raise self._nothing_to_sign_in_with(str(error), where) from None
                tried = ', '.join(dict.fromkeys(error.tried))
                raise self.error('SD-301', user=host.user, detail=f'{where}it took none of: {tried}{f"; {error}" if str(error) else ""}') from None

    @staticmethod
    def _identities(host: ssh_config.Host) -> ssh_client.Identities:
        return ssh_client.Identities(host.identity_files, host.certificate_files, host.identities_only, host.agent)

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

    def _nothing_to_sign_in_with(self, reasons: str, where: str = '') -> SojournError:
        return self.error('SD-302', detail=where + (reasons or 'no password, no key file, no key in the SSH agent, no default key in ~/.ssh'))

    # Diagnosis

    def credentials(self) -> Facts:
        """What OpenSSH's settings come to, keys and passwords in the order in which they would be offered, and the keys that are known of the host."""
        target = self.target
        facts: Facts = []
        try:
            host = self._host
            facts += ssh_config.told(target)
        except SojournError as error:
            return [('settings', error)]
        given = target.user or host.user != getpass.getuser()
        facts.insert(0, ('user', host.user if given else f'{host.user} (the user of the controller, since none is given)'))
        facts.append(('SSH agent', self._described_agent(host)))
        offered: list[str] = []
        reasons: list[str] = []
        try:
            with self._errors('reading the credentials'), self._key_errors():
                for credential in ssh_client.credentials(target.password, target.key_file, target.key_passphrase, reasons, self._identities(host)):
                    if credential.method in host.methods and not credential.spare:
                        offered.append(credential.what if credential.key is None else f'{credential.what}, {_described(credential.key)}')
            if not offered:
                raise self._nothing_to_sign_in_with('; '.join(reasons))
            facts.append(('credentials', offered))
        except SojournError as error:
            facts.append(('credentials', error))
        if reasons and offered:
            facts.append(('not usable', reasons))
        files = self._known_files(host)
        facts.append(('known_hosts', [path for path in files if os.path.exists(os.path.expanduser(path))] or 'there is no such file'))
        known = [f'{key.type} {ssh_client.fingerprint_of(key.key)}{", revoked" if key.revoked else ", an authority" if key.authority else ""}'
                 for key in ssh_client.known_keys(files, self._names(host))]
        facts.append(('known host keys', known or f'none of {self._names(host)[0]}'))
        facts.append(('host key policy', {
            'yes': 'a known one must be shown', 'accept-new': 'an unknown one is accepted and remembered, a changed one refused',
            'no': 'any is taken, and with one that has changed no password is sent: host_key_checking is off'}[host.strict]))
        return facts

    @staticmethod
    def _described_agent(host: ssh_config.Host) -> str:
        if host.agent is None:
            return os.environ.get('SSH_AUTH_SOCK') or 'none (SSH_AUTH_SOCK is not set)'
        return f'{host.agent} (IdentityAgent)' if host.agent else 'none (IdentityAgent)'

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
            self._client.check_host_key(key, self._known, self._host.known_hosts_name)
        except ssh_client.HostKeyChanged:
            return 'not the one that is known'
        except ssh_client.CertificateRefused as refused:
            return f'with a certificate that does not count: {refused}'
        except ssh_client.HostKeyUnknown:
            return 'known without the port' if self._is_known_without_port(self._client, self._host, key) else 'not known'
        return 'known'

    def look(self) -> Facts:
        """By the look with which every deployment begins, and sudo where it is needed."""
        architecture = self._look()
        if not self._is_root:
            with self._errors('becoming root'):
                self._run(['true'], root=True)
        rights = 'root' if self._is_root else f'{self._user}, root by {self._root_by}{" without a password" if self._sudo == "free" else ""}'
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
                raise self.error('SD-308', user=self._user, detail=errors.strip()[-200:] or f'exit code {code}')
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

    def _run(self, words: t.Sequence[str], *, root: bool = False, data: t.Sequence[bytes] = (),
             timeout: float = ssh_client.ANSWER_SECONDS) -> tuple[int, bytes, str]:
        """Runs a command; (exit code, output, errors)."""
        if root and not self._is_root:
            if self._root_by == 'su' or self._sudo == 'terminal':
                return self._run_at_terminal(words, b''.join(data), timeout)
            return self._run_by_sudo(words, data, timeout)
        with self._client.command(_line(words), timeout=timeout) as command:
            for chunk in data:
                command.write(chunk)
            code = command.finish()
            self._check_begun(command, code)
            return code, bytes(command.output), command.errors.decode('utf-8', 'replace')

    def _check_begun(self, command: ssh_client.Command, code: int) -> None:
        """Whether the login shell ran anything at all."""
        if not command.begun and code != -1:
            raise self.error('SD-308', user=self._user, detail=command.refusal() or f'exit code {code} and no word')

    @property
    def _root_by(self) -> str:
        """'sudo' or 'su'."""
        target = self.target
        by_su = target.root_method == 'su' and self._sudo != 'free' or self._sudo == 'missing' and target.become_password is not None
        return 'su' if by_su else 'sudo'

    def _not_root(self, detail: str) -> SojournError:
        return self.error('SD-305', user=self._user, detail=detail)

    def _root_password(self, method: str) -> str | None:
        """What the target is given when it asks on the way to root; None where there is nothing, or nothing may be sent."""
        target = self.target
        if not self._trusted:
            return None
        return target.become_password if method == 'su' or target.become_password is not None else target.password

    def _no_password(self, method: str) -> SojournError:
        if not self._trusted:
            return self._not_root(f'{method} asks for a password; {WITHHELD}')
        return self._not_root(f'''{method} asks for {"root's password" if method == 'su' else 'a password'} and none was given''')

    def _run_by_sudo(self, words: t.Sequence[str], data: t.Iterable[bytes], timeout: float) -> tuple[int, bytes, str]:
        if self._sudo == 'missing':
            raise self._not_root('sudo is not installed there')
        token = secrets.token_hex(8)
        prompt, mark = f'[sojourn {token}] password: ', f'sojourn {token} is root'
        password = self._root_password('sudo')
        how = ['-n'] if self._sudo == 'free' or password is None else ['-S', '-p', prompt]
        # The mark tells that sudo is done with standard input, which from there on is the command's.
        inner = _words('echo "$1" >&2; shift; exec "$@"', mark, *words)
        with self._client.command(_line(['env', 'LC_ALL=C', 'sudo', *how, '--', *inner]), timeout=timeout) as command:
            prompt_bytes, mark_bytes = prompt.encode(), mark.encode()
            seen = 0

            def asked() -> bool:
                return command.errors.count(prompt_bytes) > seen or mark_bytes in command.errors

            while mark_bytes not in command.errors:
                if not command.wait_for(asked):
                    detail = _last_line(command.errors.replace(prompt_bytes, b'')) or f'sudo ended with {command.finish()}'
                    if 'a password is required' in detail or 'no password was provided' in detail:
                        raise self._not_root('sudo refused the password') if seen else self._no_password('sudo')
                    raise self._not_root(detail)
                if mark_bytes in command.errors:
                    break
                seen += 1
                if seen > 1:
                    raise self._not_root('sudo refused the password')
                if password is None:
                    raise self._no_password('sudo')
                command.write(password.encode() + b'\n')
            for chunk in data:
                command.write(chunk)
            code = command.finish()
            return code, bytes(command.output), command.errors.decode('utf-8', 'replace').partition(mark)[2].strip()

    def _run_at_terminal(self, words: t.Sequence[str], data: bytes, timeout: float) -> tuple[int, bytes, str]:
        """By su, which asks for the password at a terminal only; or by sudo where it demands one (requiretty)."""
        method, token = self._root_by, f'sojourn {secrets.token_hex(8)}'
        inner = _words(_AT_TERMINAL, token, str(len(data)), *words)
        prompt, password = f'[{token}] password: ', self._root_password(method)
        if method == 'su':
            # By root's own shell only where su insists: it may be any.
            become, asks = ['su', '-s', '/bin/sh', '-c', shlex.join(inner), 'root'], rb'[Pp]assword[^\r\n]*: ?\Z'
        else:
            become, asks = ['sudo', '-p', prompt, '--', *inner], re.escape(prompt.encode()) + rb'\Z'
        asking, begins = (re.compile(re.escape(token.encode()) + rb' ' + word + rb'\r?\n') for word in (b'asks', b'begins'))
        with self._client.command(_line([token, *become], _ASKING), timeout=timeout, terminal=True) as command:
            answered = 0  # bytes that were there when the password was sent

            def moved() -> bool:
                if begins.search(command.output):
                    return True
                mark = asking.search(command.output)
                # What the login shell's own files say before it may look like a prompt.
                return mark is not None and re.search(asks, command.output[max(answered, mark.end()):]) is not None

            while (begin := begins.search(command.output)) is None:
                if not command.wait_for(moved):
                    said = _last_line(asking.split(bytes(command.output), 1)[-1].replace(prompt.encode(), b''))
                    if answered:
                        raise self._not_root(f'{method} refused the password{f" ({said})" if said else ""}')
                    raise self._not_root(said or f'{method} ended with {command.finish()}')
                if begins.search(command.output):
                    continue
                if answered:
                    raise self._not_root(f'{method} refused the password')
                if password is None:
                    raise self._no_password(method)
                answered = len(command.output)
                command.write(password.encode() + b'\n')
            command.write(data)
            code = command.finish()
            output, unused_mark, rest = bytes(command.output[begin.end():]).rpartition(b'\n' + token.encode() + b' ended ')
            if unused_mark:
                told, unused_end, errors = rest.partition(b'\n')
                return int(told), output, errors.decode('utf-8', 'replace')
            return code if code else -1, bytes(command.output[begin.end():]), ''

    def _folders(self) -> tuple[str, ...]:
        return self.target.remote_folders or FOLDERS

    # Placing and starting

    def _look(self) -> str:
        """Tells the host's kind and this user's rights; returns the architecture."""
        with steps.step('look') as step, self._errors('looking at the target'):
            code, output, errors = self._run(_words(_LOOK))
            return self._learn(step, code, output.decode('utf-8', 'replace').splitlines(), errors)

    def _learn(self, step: t.Any, code: int, lines: list[str], errors: str) -> str:
        """What _LOOK has told, in lines."""
        facts = dict(line.partition(' ')[::2] for line in lines)
        if code == -1:
            raise self.error('SD-205', address=self._address, detail='the target closed the connection')
        if code != 0 or 'system' not in facts:
            raise self.error('SD-308', user=self._user, detail=errors.strip()[-200:] or f'exit code {code}')
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
        SshWayIn.likely = facts['machine']
        step.detail = f'linux-{architecture}'
        return architecture

    def _look_and_place(self, session: str, held: contextlib.ExitStack) -> tuple[str, ssh_client.Command | None]:
        """Looks; gives the architecture, and the command that has gone on to take the executable. None: there is something to be done before."""
        machine = SshWayIn.likely
        try:
            words = self._placing_words(session, agent_executable('linux', ARCHITECTURES[machine]))
        except (SojournError, OSError):  # the target may be another
            return self._look(), None
        with steps.step('look') as step, self._errors('looking at the target'):
            command = held.enter_context(self._client.command(_line(_words(_LOOK_AND_PLACE, machine, *words)), timeout=BEGIN_SECONDS))
            try:
                begun = command.wait_for(lambda: command.begun)
            except ssh_client.CommandTimeout:
                begun = False
            command.extend(ssh_client.ANSWER_SECONDS)
            goes = self._said(command, 'goes ') if begun else None
            # What waits for the input's end, as programs in a login shell's place may, gets it: then nothing can be sent any more.
            code = 0 if goes == 'goes on' else command.finish()
            self._check_begun(command, code)
            architecture = self._learn(step, code, self._lines(command), command.errors.decode('utf-8', 'replace'))
            if goes != 'goes on':
                return architecture, None
            command.extend(UPLOAD_SECONDS)
            return architecture, command

    def _placing_words(self, session: str, executable: str) -> list[str]:
        return [self.name, session, str(size_of(executable)), digest(executable), *self._folders()]

    def place(self, session: str) -> None:
        """Makes the folder in the first place that will do, and uploads the executable to it."""
        far = self._is_far
        if far:  # while the target is looked at
            threading.Thread(target=_pack, args=(ARCHITECTURES[SshWayIn.likely],), name='packing', daemon=True).start()
        with contextlib.ExitStack() as held:
            architecture, command = self._look_and_place(session, held)
            if command is not None:
                self._steps.enter_context(held.pop_all())
        self._executable = executable = agent_executable('linux', architecture, host=self.target.host)
        if command is None and not self._is_root and self._sudo != 'free':
            with self._errors('becoming root'):
                self._run(['true'], root=True)  # before anything is placed
        with steps.step('upload') as step, self._errors('placing the agent'), open(executable, 'rb') as file:
            if command is None:
                line = _line(_words(_PLACE, *self._placing_words(session, executable)))
                command = self._steps.enter_context(self._client.command(line, timeout=UPLOAD_SECONDS))
            if not self._find_folder(command):
                self._refuse_folder(command)
            self.step = 'uploading the agent'
            size, data = packed(executable) if far and self._unpacks else (size_of(executable), b'')
            first, left = f'{len(data)}\n'.encode('ascii'), len(data) or size
            for chunk in (data,) if data else iter(lambda: file.read(1 << 20), b''):
                command.write(first + chunk[:left])
                first, left = b'', max(left - len(chunk), 0)
            if left:  # somebody has exchanged it meanwhile: the target is not to wait for more
                command.finish()
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
        if line is None and command.finish() == -1:
            raise EOFError  # the connection has ended, or somebody the script: who counts the bytes has not
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
            words = _words(_LAUNCH, self._folder, digest(self._executable))
            return self._run(words, root=True, data=[config.to_json()], timeout=START_SECONDS + 15)
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

    def rights(self) -> t.Any:
        """Whether the user is root, and what sudo grants; None: not looked at."""
        return (self._is_root, self._sudo) if self._looked else None

    def remind(self, rights: t.Any) -> None:
        """See WayIn."""
        if rights is not None:
            (self._is_root, self._sudo), self._looked, self._reminded = rights, True, True

    def _by_rights(self, action: t.Callable[[], t.Any]) -> t.Any:
        """Does something for which root may be needed. What another way in has found out of that need not be so any more: the run may have changed it."""
        step = self.step
        if not self._looked:
            self._look()
        self.step = step
        try:
            return action()
        except SojournError:
            before = self.rights()
            if not self._reminded:
                raise
            self._reminded = False
            self._look()
            self.step = step
            if self.rights() == before:
                raise
        return action()

    def wait_removed(self, patience: float = REMOVE_SECONDS) -> list[str]:
        """Waits for what the agent removes itself, then helps."""
        with self._errors('removing the agent'):
            self._left = self._left_of(self._by_rights(lambda: self._remove(self.name, self._folders(), patience=patience)))
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
        with self._errors('looking for leftovers'):
            unused_code, output, unused_errors = self._by_rights(lambda: self._run(_words(_FIND, *self._folders()), root=True))
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
        """Disconnects, from the target first."""
        self._steps.close()
        for client in (self._client, *reversed(self._jumps)):
            client.close()
        self._jumps = []
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            threading.Thread(target=_end, args=(proxy,), name='parting').start()
        if self._proxy_errors is not None:
            self._proxy_errors.close()
            self._proxy_errors = None

    # The tunnel

    def keep(self) -> None:
        """The commands that are held open end."""
        self._steps.close()
        # Behind jump hosts or a ProxyCommand only the first one's connection is the kernel's own; at its end the others end too.
        for client in (*self._jumps, self._client):
            client.notice_silence()
        self.step = 'opening the tunnel'

    @property
    def alive(self) -> bool:
        """By what is known of the connection."""
        return self._client.alive

    def open_stream(self, place: str, port: int, timeout: float) -> Stream:
        """sshd connects to the loopback."""
        try:
            return self._client.forward(place, port, timeout)
        except ssh_client.NobodyThere as error:
            raise NothingThere(str(error)) from None
        except ssh_client.ForwardingRefused as error:
            raise self.error('SD-506', detail=f"the target's SSH server refuses to connect to {place} port {port} for {self._user} ({error})") from None
        except (ssh_exception.SSHException, EOFError, OSError) as error:
            raise self.error('SD-205', address=self._address, detail=str(error) or 'the target closed the connection') from None
