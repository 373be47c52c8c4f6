# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a deployment to a target would succeed, judged check by check before anything is copied; how the facts are got is the ways' in (``survey``).

As far as the sign-in it goes diagnosis.py's way, which is the deployment's own. A check that cannot be made, since an earlier one failed, is left out;
none is good for want of knowledge.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import socket
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils import diagnosis, network
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError, catalogue
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import SYSTEMS, Target, parse_address
from ansible_collections.sojourn.deploy.plugins.plugin_utils.session import Session, make_way_in
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import CLOCK_SECONDS, Found, agent_executable

log = logging.getLogger('sojourn.preflight')

OK, WARNING, FAILED = 'ok', 'warning', 'failed'

#: Bytes that have to be free beside the agent's executable: what it writes itself.
AGENT_ROOM = 1 << 20
#: Bytes below which it is doubtful that a package finds room as well.
PACKAGE_ROOM = 100 << 20
#: States of a Windows service ([MS-SCMR] 2.2.47).
SERVICE_RUNNING = 4
#: What Windows calls its builds, each from that one on (https://learn.microsoft.com/windows/release-health/).
OLDEST_BUILD = 10240
BUILDS = ((26100, 'Windows 11 24H2 or Server 2025'), (22000, 'Windows 11'), (20348, 'Windows Server 2022'), (18362, 'Windows 10'),
          (17763, 'Windows 10 1809 or Server 2019'), (15063, 'Windows 10'), (14393, 'Windows 10 1607 or Server 2016'), (OLDEST_BUILD, 'Windows 10'))
#: What was before them, by major and minor version.
OLD_WINDOWS = {
    (5, 0): 'Windows 2000', (5, 1): 'Windows XP', (5, 2): 'Windows XP x64 or Server 2003', (6, 0): 'Windows Vista or Server 2008',
    (6, 1): 'Windows 7 or Server 2008 R2', (6, 2): 'Windows 8 or Server 2012', (6, 3): 'Windows 8.1 or Server 2012 R2'}
#: What every Samba says that it is (libcli/auth, ntlmssp_version_blob).
SAMBA = (6, 1, 0)
#: Firewalls as the agent names them, in the order in which it asks.
FIREWALLS = ('firewalld', 'ufw', 'nftables', 'iptables', 'iptables-legacy')
#: Of the firewall, where the transport is the tunnel.
NO_RULE = 'it takes no part: the agent is reached by tunnel'

_FAMILIES = {socket.AF_INET6: 'IPv6', socket.AF_INET: 'IPv4'}
#: No error of the catalogue is about these, since a deployment goes on all the same.
_WAIT_FOR_RUN = "Wait until that run has ended: two installers at once may get into each other's way."
_CLEAN_UP = 'Run the playbook sojourn.deploy.cleanup, which removes what no living run owns.'
_RESTART = 'Restart the target before the deployment: many an installer refuses, or does not take effect, until then.'


@dataclasses.dataclass(frozen=True)
class Check:
    """What came of one check; ``error`` is the catalogue's where a deployment would fail with it."""

    check: str
    state: str
    detail: str
    remedy: str | None = None
    error: SojournError | None = None

    def to_dict(self) -> dict[str, t.Any]:
        """Form for the broker's socket."""
        error = self.error
        return {
            'check': self.check, 'state': self.state, 'detail': self.detail, 'remedy': self.remedy, 'code': error.code if error else None,
            'error': error.to_dict() if error else None}


def ok(check: str, detail: str) -> Check:
    """Nothing is in the way."""
    return Check(check, OK, detail)


def warning(check: str, detail: str, remedy: str) -> Check:
    """A deployment can succeed all the same, or that cannot be told."""
    return Check(check, WARNING, detail, remedy)


def failed(check: str, error: SojournError) -> Check:
    """A deployment would fail with this error."""
    return Check(check, FAILED, error.sentence, error.remedy, error)


def passed_over(check: str, error: SojournError) -> Check:
    """An error that another address makes up for."""
    return Check(check, WARNING, error.sentence, error.remedy, error)


def _mib(size: int) -> str:
    return f'{size / (1 << 20):.0f} MiB' if size >= 10 << 20 else f'{size / (1 << 20):.1f} MiB'


# What is the same for both families

def judge_room(check: str, free: int, needed: int, where: str) -> Check:
    """Of ``needed`` bytes for the agent's executable, the folder's disk has ``free``."""
    if free < needed + AGENT_ROOM:
        detail = f'{_mib(free)} are free on {where}, and the agent takes {_mib(needed + AGENT_ROOM)}'
        return failed(check, SojournError('SD-402', step='asking for the free space', what='the agent', detail=detail))
    if free < PACKAGE_ROOM:
        return warning(check, f'{_mib(free)} are free on {where}: enough for the agent, hardly for a package', catalogue()['SD-402']['remedy'])
    return ok(check, f'{_mib(free)} on {where}')


def judge_clock(ahead: float) -> Check:
    """By how many seconds the target's clock is ahead of the controller's."""
    how = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the controller's"
    if abs(ahead) <= CLOCK_SECONDS:
        return ok('clock', how if abs(ahead) >= 2 else "as the controller's")
    return warning('clock', f'it is {how}', 'Set the clocks (a time service on both ends): Kerberos takes no more than 5 minutes, and logs cannot be compared.')


def judge_found(found: t.Sequence[Found], own_run: str) -> Check:
    """What there is of other runs of this project."""
    others = sorted({item.run for item in found} - {own_run})
    live = [run for run in others if any(item.live for item in found if item.run == run)]
    if live:
        return warning('other run', f"at work on the target: run {', '.join(live)}", _WAIT_FOR_RUN)
    if others:
        return warning('other run', f"left on the target by a run that was cut off: {', '.join(others)}", _CLEAN_UP)
    return ok('other run', 'none is at work there')


# Linux

@dataclasses.dataclass
class Folder:
    """A candidate for the agent's folder, as ``df`` and ``/proc/mounts`` tell of it."""

    path: str
    state: str
    options: tuple[str, ...]
    #: None where df told nothing.
    free: int | None = None
    mounted: str = ''

    @property
    def fault(self) -> str:
        """Why the agent cannot be placed there, in the words of the deployment; '' where it can."""
        if self.state == 'missing':
            return f'{self.path} does not exist'
        if self.state != 'open':
            return f'{self.path} is not writable'
        if 'noexec' in self.options:
            return f'{self.path} is mounted noexec'
        return f'{self.path} is full' if self.free == 0 else ''


@dataclasses.dataclass
class Shell:
    """What the login user's script says, read."""

    uname: dict[str, str] = dataclasses.field(default_factory=dict)
    distribution: str = ''
    folders: list[Folder] = dataclasses.field(default_factory=list)
    root_free: int | None = None
    reboot: list[str] = dataclasses.field(default_factory=list)
    kernels: list[str] = dataclasses.field(default_factory=list)
    listening: set[int] = dataclasses.field(default_factory=set)
    time: float | None = None


def _free_of(line: str) -> tuple[int | None, str]:
    """Bytes that are available, and where it is mounted, from a line of ``df -Pk``. Names may hold blanks; the numbers stand before a percentage."""
    found = re.search(r'(-?\d+)\s+(-?\d+)\s+(-?\d+)\s+(?:\d+%|-)\s+(/.*)$', line)
    return (max(0, int(found[3])) * 1024, found[4]) if found else (None, '')


def read_shell(text: str) -> Shell:
    """Reads what way_in_ssh's survey script wrote. Of what is missing or unreadable, nothing is known."""
    shell = Shell()
    distribution: dict[str, str] = {}
    for line in text.splitlines():
        name, unused_space, value = line.partition(' ')
        value = value.strip()
        if name in ('system', 'machine', 'release'):
            shell.uname[name] = value
        elif name == 'os':
            key, unused_equal, content = value.partition('=')
            distribution[key] = content.strip().strip('"\'')
        elif name == 'folder':
            state, options, path = (value.split(' ', 2) + ['', ''])[:3]
            shell.folders.append(Folder(path, state, tuple(options.split(','))))
        elif name == 'room' and shell.folders:
            shell.folders[-1].free, shell.folders[-1].mounted = _free_of(value)
        elif name == 'root':
            shell.root_free = _free_of(value)[0]
        elif name == 'reboot':
            shell.reboot.append(value)
        elif name == 'kernel':
            shell.kernels.append(value)
        elif name == 'listens' and re.fullmatch('[0-9A-Fa-f]{1,4}', value):
            shell.listening.add(int(value, 16))
        elif name == 'time' and value.isdigit():
            shell.time = float(value)
    shell.distribution = distribution.get('PRETTY_NAME') or ' '.join(filter(None, (distribution.get('NAME'), distribution.get('VERSION'))))
    return shell


def _kernel_key(release: str) -> tuple[list[int], str]:
    """A kernel's numbers, and what is left without them: its flavour."""
    return [int(number) for number in re.findall(r'\d+', release)], re.sub(r'[\d._+-]+', ' ', release)


def newer_kernel(running: str, there: t.Sequence[str]) -> str | None:
    """The newest kernel of the running one's flavour that is there, where it is newer; None where nothing is known of the running one (a container)."""
    if running not in there:
        return None
    numbers, flavour = _kernel_key(running)
    newer = [release for release in there if _kernel_key(release)[1] == flavour and _kernel_key(release)[0] > numbers]
    return max(newer, key=lambda release: _kernel_key(release)[0], default=None)


def judge_linux(shell: Shell, faults: dict[str, str], architectures: t.Mapping[str, str], host: str | None) -> list[Check]:
    """Operating system and architecture; ``faults`` is what the way in has against them."""
    checks = []
    release, machine = shell.uname.get('release', ''), shell.uname.get('machine', '')
    fault = faults.get('OS')
    if fault:
        detail = f'{fault} ({shell.distribution})' if shell.distribution else fault
        checks.append(failed('OS', SojournError('SD-404', step='looking at the target', detail=detail)))
    else:
        checks.append(ok('OS', f"{shell.distribution or 'Linux'}, kernel {release}"))
    fault = faults.get('architecture')
    if fault:
        checks.append(failed('architecture', SojournError('SD-404', step='looking at the target', detail=fault)))
    elif machine in architectures and shell.uname.get('system') == 'Linux':
        checks.append(judge_architecture('linux', architectures[machine], host))
    return checks


def judge_architecture(system: str, architecture: str, host: str | None) -> Check:
    """Whether there is an agent for it."""
    try:
        agent_executable(system, architecture, host=host)
    except SojournError as error:
        return failed('architecture', error)
    return ok('architecture', f'{system}-{architecture}')


def judge_folders(shell: Shell, needed: int | None) -> list[Check]:
    """The folder that the agent would take, and the room there; ``needed`` is the size of its executable, where one is known."""
    faults = [folder.fault for folder in shell.folders if folder.fault]
    taken = next((folder for folder in shell.folders if not folder.fault), None)
    if taken is None:
        detail = '; '.join(faults) or 'no candidate was given'
        if any(folder.fault.endswith(' is full') for folder in shell.folders):
            return [failed('free space', SojournError('SD-402', step='looking at the target', what='the agent', detail=detail))]
        return [failed('folder', SojournError('SD-403', step='looking at the target', detail=detail))]
    before = '; '.join(folder.fault for folder in shell.folders[:shell.folders.index(taken)])
    checks = [ok('folder', f'{taken.path} ({before})' if before else taken.path)]
    if taken.free is None:
        checks.append(warning('free space', f'df tells nothing of {taken.path}', catalogue()['SD-402']['remedy']))
        return checks
    check = judge_room('free space', taken.free, needed or 0, taken.path)
    if check.state == OK and shell.root_free is not None and shell.root_free < PACKAGE_ROOM:
        # The agent's folder may be on a disk of its own; most of what is installed comes below /.
        check = warning('free space', f'{check.detail}, but only {_mib(shell.root_free)} on /', catalogue()['SD-402']['remedy'])
    checks.append(check)
    return checks


def judge_reboot(shell: Shell) -> Check:
    """Whether the target waits for a restart."""
    if shell.reboot:
        return warning('pending reboot', f'the target waits for one ({shell.reboot[0]})', _RESTART)
    running = shell.uname.get('release', '')
    newer = newer_kernel(running, shell.kernels)
    if newer:
        return warning('pending reboot', f'the kernel {newer} is installed, {running} runs', _RESTART)
    return ok('pending reboot', 'nothing says so')


def judge_ports(ports: tuple[int, int], listening: t.Container[int]) -> Check:
    """Whether one of the agent's ports is free."""
    first, last = ports
    named = str(first) if first == last else f'{first}-{last}'
    free = next((port for port in range(first, last + 1) if port not in listening), None)
    if free is None:
        return failed('agent ports', SojournError('SD-601', step='looking at the target', ports=named))
    return ok('agent ports', f'{free} is free there' if first == last else f'of {named}, {free} is free there')


def judge_filters(text: str) -> Check:
    """The kind of firewall, from what the script of root wrote: see way_in_ssh's _FILTERS. The agent copes with each kind whose tool is there."""
    kinds: list[str] = []
    tools: set[str] = set()
    details: list[str] = []
    missing: list[SojournError] = []
    table = chain = ''
    module = False
    lines = [line.strip() for line in text.splitlines()]
    tools = {line.partition(' ')[2] for line in lines if line.startswith('tool ')}
    for line in lines:
        words = line.split()
        if line in ('firewalld', 'ufw'):
            kinds.append(line)
        elif line == 'module nf_tables':
            module = True
        elif words[:1] == ['legacy'] and len(words) == 3 and words[2] == 'filter':
            tool = {'ip': 'iptables', 'ip6': 'ip6tables'}.get(words[1], 'iptables')
            kinds.append('iptables-legacy')
            if tool not in tools:
                family = 'IPv6' if words[1] == 'ip6' else 'IPv4'
                missing.append(SojournError('SD-602', step='looking for the firewall', firewall='iptables-legacy', family=family, tool=tool))
        elif words[:1] == ['table']:
            table = ' '.join(words[1:]).rstrip(' {')
        elif words[:1] == ['chain'] and len(words) > 1:
            chain = words[1]
        elif 'hook input' in line:
            if table.endswith(' firewalld') and 'firewalld' in kinds:
                continue
            family, unused_space, name = table.partition(' ')
            own = {'ip': 'iptables', 'ip6': 'ip6tables'}.get(family)
            kinds.append('iptables' if own in tools and name == 'filter' and chain == 'INPUT' else 'nftables')
            policy = re.search(r'policy (\w+)', line)
            details.append(f"{table} {chain}{f' (policy {policy[1]})' if policy else ''}")
    kind = next((name for name in FIREWALLS if name in kinds), None)
    if missing:
        return passed_over('firewall', missing[0])
    if kind is None:
        if module and 'nft' not in tools:
            return warning('firewall', 'the kernel has nftables, and there is no nft to ask whether it filters', 'Install nft (nftables) on the target.')
        return ok('firewall', 'none filters its input')
    shown = f": {'; '.join(dict.fromkeys(details))}" if details and kind in ('nftables', 'iptables') else ''
    return ok('firewall', f'{kind}{shown}')


# Windows

def windows_name(version: tuple[int, int, int]) -> str:
    """What people call a version: major, minor, build."""
    major, minor, build = version
    name = OLD_WINDOWS.get((major, minor))
    if name is None and major >= 10:
        name = next((name for oldest, name in BUILDS if build >= oldest), 'a Windows 10 that was never released')
    return f"{name or 'Windows'} ({major}.{minor} build {build})"


def judge_windows(version: tuple[int, int, int] | None) -> Check:
    """The version that the target told at a sign-in by NTLM. Without it there is its dialect, which was seen to before: only newer ones speak SMB 3.1.1."""
    if version is None:
        return ok('OS', 'Windows 10 / Server 2016 or newer, as it speaks SMB 3.1.1; which, it tells at a sign-in by NTLM only')
    if version == SAMBA:
        return warning('OS', 'its version is not known: it is a Samba server, which says of itself what every Samba does (6.1 build 0)',
                       'Check ansible_host, unless a Samba is meant: the target has to be a Windows.')
    if version[0] < 10 or version[2] < OLDEST_BUILD:
        return failed('OS', SojournError('SD-404', step='looking at the target', detail=f'it is {windows_name(version)}'))
    return ok('OS', windows_name(version))


def judge_updates(waiting: bool | SojournError) -> Check:
    """Whether servicing waits for a restart: the one sign of several that is a file."""
    if isinstance(waiting, SojournError):
        return warning('pending reboot', f'it cannot be told: {waiting.sentence}', _RESTART)
    if waiting:
        return warning('pending reboot', r'updates wait for one (%SystemRoot%\WinSxS\pending.xml)', _RESTART)
    return ok('pending reboot', 'no update waits for one; what waits in the registry cannot be seen from outside')


def judge_windows_firewall(state: int | None | SojournError) -> Check:
    """Of Windows' firewall, whether its service runs."""
    remedy = "Start the service MpsSvc: while it does not run, Windows takes no firewall rule."
    if isinstance(state, SojournError):
        return warning('firewall', f'it cannot be told: {state.sentence}', remedy)
    if state is None:
        return warning('firewall', "there is no service MpsSvc, which is Windows' firewall", remedy)
    if state != SERVICE_RUNNING:
        return warning('firewall', "Windows' own, whose service (MpsSvc) does not run", remedy)
    return ok('firewall', "Windows' own, and it runs")


# One target

class Preflight:
    """One target's; ``checks`` grows."""

    def __init__(self, target: Target, run: str, session: Session | None) -> None:
        self.target = target
        #: Whose things on the target are not another run's.
        self.run = session.run if session is not None else run
        self.checks: list[Check] = []
        self._diagnosis = diagnosis.Diagnosis(target, run, session)

    def add(self, *checks: Check) -> None:
        """Checks in their order. Secrets that an error carries are taken out of it."""
        for check in checks:
            if check.error is not None:
                check.error.at(host=self.target.host).redacted(self.target.secrets)
                if check.state == FAILED:
                    check = failed(check.check, check.error)
            self.checks.append(check)

    @property
    def failed(self) -> bool:
        """Whether a deployment would fail."""
        return any(check.state == FAILED for check in self.checks)

    def _errors(self, *places: tuple[str, str]) -> list[SojournError]:
        """The errors among the diagnosis' findings: all, or those of these sections and names."""
        return [SojournError.from_dict(finding['error']) for finding in self._diagnosis.findings
                if finding['error'] and (not places or (finding['section'], finding['name']) in places)]

    def look(self, sign_in: bool) -> None:
        """All checks, as far as they can be made."""
        inner = self._diagnosis
        inner.look_at_libraries()
        with inner.telling('libraries', 'way in'):
            if not inner.failed:
                inner.way_in = make_way_in(self.target, self.run)
        for error in self._errors()[:1]:
            self.add(failed('libraries', error))
        try:
            inner.look_up()
            self._judge_names()
            if inner.may_reach:
                with inner.telling('address', 'taken'):
                    inner.reach()
                self._judge_routes()
                self._judge_ports()
            if inner.way_in is None or self.failed:
                return
            if not sign_in:
                self.add(warning('sign-in', 'not tried, and nothing that comes after it: sign_in is off', 'Run it with sign_in: true for the rest.'))
                return
            self._sign_in_and_survey()
        finally:
            if inner.way_in is not None:
                inner.way_in.release()

    # As far as the sign-in

    def _judge_names(self) -> None:
        target, findings = self.target, self._diagnosis.findings
        way_in = self._diagnosis.way_in
        if not self._errors(('address', 'way')) and way_in is not None and way_in.led:
            for error in self._errors(('address', 'order')):
                self.add(failed('name', error))
                return
            self.add(ok('name', f"over {', '.join(way_in.described_way())}"))
            return
        if parse_address(target.address).literal is not None and not self._errors(('address', 'way')):
            self.add(ok('name', f'{target.address} is an address'))
            return
        for error in self._errors(('address', 'order'), ('address', 'way')):
            self.add(failed('name', error))
            return
        told = {finding['name']: finding['value'] for finding in findings if finding['section'] == 'address'}
        for family in diagnosis.FAMILIES:
            value = told.get(family, '')
            if isinstance(value, list):
                self.add(ok(f'name {family}', f"{target.address} is {', '.join(value)}"))
            elif value.startswith('none'):
                self.add(ok(f'name {family}', f'{target.address} has no address of this family, the other one is used'))
            else:
                self.add(warning(f'name {family}', value, catalogue()['SD-201']['remedy']))

    def _attempts(self) -> list[network.Attempt]:
        """In the order of the addresses."""
        return [self._diagnosis.attempts[peer] for peer in self._diagnosis.peers if peer in self._diagnosis.attempts]

    def _judge_routes(self) -> None:
        errors: list[tuple[str, SojournError]] = []
        good: list[tuple[str, str]] = []
        for peer in self._diagnosis.peers:
            check = f'route {_FAMILIES[peer.family]}'
            attempt = self._diagnosis.attempts.get(peer)
            error = attempt.error if attempt is not None and attempt.error is not None and attempt.error.code == 'SD-202' else None
            own = ''
            try:
                own = network.own_address(peer)
            except SojournError as missing:
                error = missing
            if error is not None:
                errors.append((check, error))
            else:
                good.append((check, f'{peer.address}, from {own}'))
        self.add(*(ok(check, detail) for check, detail in good))
        self.add(*((passed_over if good else failed)(check, error) for check, error in errors))

    def _judge_ports(self) -> None:
        """The way in's port, and what answers there."""
        check = f'port {self._diagnosis.entry.port}'
        attempts = self._attempts()
        open_at = [attempt.peer.address for attempt in attempts if attempt.error is None]
        for attempt in attempts:
            if attempt.error is None or attempt.error.code == 'SD-202':
                continue
            found = passed_over(check, attempt.error) if open_at else failed(check, attempt.error)
            if self.target.way_in == 'smb' and attempt.peer.family == socket.AF_INET6:
                detail = f'{found.detail} Windows XP and Server 2003 never answer there over IPv6, and are not supported.'
                found = dataclasses.replace(found, detail=detail)
            self.checks.append(found)
        errors = self._errors(('address', 'taken'), ('SSH', 'outcome'), ('SMB', 'outcome'), ('WINRM', 'outcome'))
        # What answers may not speak the protocol.
        if open_at and not any(error.code.startswith('SD-2') for error in errors):
            self.add(ok(check, f"answers at {', '.join(open_at)}"))
        for error in errors:
            if error.code in ('SD-303', 'SD-304'):
                self.add(failed('host key', error))
            elif error.code == 'SD-321':
                self.add(failed('certificate', error))
            elif error.code == 'SD-404':
                self.add(failed('OS', error))
            elif error.code.startswith('SD-3'):
                self.add(failed('sign-in', error))
            elif not self.failed:
                self.add(failed(check, error))

    # From the sign-in on

    def _sign_in_and_survey(self) -> None:
        way_in = self._diagnosis.way_in
        check = 'sign-in'
        rights: SojournError | None = None
        try:
            try:
                way_in.sign_in()
            except SojournError as error:
                # ADMIN$ comes after the sign-in itself, and only administrators get there.
                if error.code not in ('SD-401', 'SD-411'):
                    raise
                rights = error
            facts = {}
            self.add(ok(check, f'as {self.target.user}' if self.target.user else 'with what there is on the controller'))
            check = 'connection'
            try:
                for name, value in way_in.survey():
                    facts[name] = value
            finally:
                if SYSTEMS[self.target.way_in] == 'windows':
                    self._judge_windows(facts, rights)
                else:
                    self._judge_linux(facts)
        except SojournError as error:
            self.add(failed('OS' if error.code == 'SD-404' else check, error))

    def _judge_linux(self, facts: dict[str, t.Any]) -> None:
        from ansible_collections.sojourn.deploy.plugins.plugin_utils import way_in_ssh

        if 'shell' not in facts:
            return
        shell = read_shell(facts['shell'])
        rights = facts.get('rights')
        denied = isinstance(rights, SojournError) and rights.code != 'SD-404'
        if denied:
            self.add(failed('admin rights', rights))
        elif isinstance(rights, list):
            self.add(ok('admin rights', str(dict(rights)['rights'])))
        faults = way_in_ssh.unsupported(shell.uname)
        needed = None
        machine = way_in_ssh.ARCHITECTURES.get(shell.uname.get('machine', ''))
        if machine and not faults:
            try:
                needed = os.path.getsize(agent_executable('linux', machine))
            except (SojournError, OSError):
                pass  # told with the architecture
        folders = judge_folders(shell, needed)
        self.add(*(check for check in folders if check.check == 'folder'))
        self.add(*judge_linux(shell, faults, way_in_ssh.ARCHITECTURES, self.target.host))
        self.add(*(check for check in folders if check.check != 'folder'))
        self.add(judge_reboot(shell))
        filters = facts.get('filters')
        if self.target.transport == 'tunnel' or self._diagnosis.led:
            self.add(ok('firewall', NO_RULE))
        elif isinstance(filters, SojournError):
            self.add(failed('firewall', filters))
        elif filters is not None:
            self.add(judge_filters(filters))
        self.add(judge_ports(self.target.agent_ports, shell.listening))
        self._judge_sudo(facts, rights if denied else None)
        if shell.time is not None and 'times' in facts:
            begin, end = facts['times']
            # A whole second of the target's lies somewhere between the two.
            self.add(judge_clock(min(0.0, shell.time + 1 - begin) or max(0.0, shell.time - end)))
        self._judge_found(facts)

    def _judge_sudo(self, facts: dict[str, t.Any], denied: SojournError | None) -> None:
        if 'root' not in facts:
            return
        if facts['root']:
            self.add(ok('sudo', 'not needed: the sign-in is root'))
        elif denied is not None:
            self.add(failed('sudo', denied))
        elif isinstance(facts.get('rights'), list):
            by_su = str(dict(facts['rights'])['rights']).endswith('by su')
            self.add(ok('sudo', 'not needed: root by su' if by_su else 'asks for no password' if facts.get('sudo') == 'free' else 'takes the password'))

    def _judge_windows(self, facts: dict[str, t.Any], rights: SojournError | None) -> None:
        services = facts.get('services')
        if self.target.way_in == 'winrm':
            if 'services' in facts:
                self.add(failed('admin rights', services) if isinstance(services, SojournError) else ok('admin rights', 'those of an administrator'))
                services = None
        else:
            self.add(failed('admin rights', rights) if rights is not None else ok('admin rights', 'ADMIN$ is open to it'))
        written = facts.get('share write')
        if isinstance(written, SojournError):
            self.add(failed('share write', written))
        elif written:
            self.add(ok('share write', 'ADMIN$'))
        if isinstance(services, SojournError):
            self.add(failed('SCM rights', services))
        elif services:
            self.add(ok('SCM rights', 'to make services'))
        if 'version' in facts:
            self.add(judge_windows(facts['version']))
        architecture = facts.get('architecture')
        if isinstance(architecture, SojournError):
            self.add(failed('architecture', architecture))
        elif architecture:
            self.add(judge_architecture('windows', architecture, self.target.host))
        self._judge_windows_room(facts.get('free'), architecture)
        if 'waiting updates' in facts:
            self.add(judge_updates(facts['waiting updates']))
        if self.target.transport == 'tunnel':
            self.add(ok('firewall', NO_RULE))
        elif 'firewall' in facts:
            self.add(judge_windows_firewall(facts['firewall']))
        if facts.get('clock') is not None:
            self.add(judge_clock(facts['clock']))
        self._judge_found(facts)

    def _judge_windows_room(self, free: int | None | SojournError, architecture: str | None | SojournError) -> None:
        if isinstance(free, SojournError):
            self.add(warning('free space', f'it cannot be told: {free.sentence}', catalogue()['SD-402']['remedy']))
        elif free is not None:
            needed = 0
            if isinstance(architecture, str):
                try:
                    needed = os.path.getsize(agent_executable('windows', architecture))
                except (SojournError, OSError):
                    pass  # told with the architecture
            self.add(judge_room('free space', free, needed, "the system's disk"))

    def _judge_found(self, facts: dict[str, t.Any]) -> None:
        found = facts.get('found')
        if isinstance(found, SojournError):
            self.add(warning('other run', f'it cannot be told: {found.sentence}', found.remedy))
        elif found is not None:
            self.add(judge_found(found, self.run))


def look(target: Target, run: str, session: Session | None, *, timeout: float, sign_in: bool) -> list[dict[str, t.Any]]:
    """See ``Agent.preflight``."""
    preflight = Preflight(dataclasses.replace(target, connection_timeout=timeout), run, session)
    try:
        preflight.look(sign_in)
    except Exception as error:  # what was found before is told all the same
        log.exception('%s: preflight', target.host)
        internal = error if isinstance(error, SojournError) else SojournError('SD-903', step='preflight', detail=f'{type(error).__name__}: {error}')
        preflight.add(failed('preflight', internal))
    return [check.to_dict() for check in preflight.checks]
