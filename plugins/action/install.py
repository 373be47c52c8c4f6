# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Installs one package on the target: looks whether it is needed, sends it, runs it, reads what came of it, checks that it is there."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import tempfile
import time
import typing as t

from ansible import constants as C
from ansible.errors import AnsibleError

from ansible_collections.sojourn.deploy.plugins.plugin_utils import installers, package_database, package_file, return_codes
from ansible_collections.sojourn.deploy.plugins.plugin_utils.action_base import AgentAction
from ansible_collections.sojourn.deploy.plugins.plugin_utils.broker_client import BROKE_OFF, Installation
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.installer_output import Lines, decode_tail, read_tail
from ansible_collections.sojourn.deploy.plugins.plugin_utils.ledger import INSTALLING

#: Seconds between two tries while another installation runs on the target: the first, and the longest.
BUSY_PAUSES = (2.0, 30.0)
#: Seconds that a ``detect`` command may take.
DETECT_SECONDS = 300


@dataclasses.dataclass
class _Look:
    """What is on the target: whether the package is needed there, and the version that its database lists."""

    needed: bool
    reason: str
    installed: package_database.Installed | None = None

    @property
    def version(self) -> str | None:
        """The installed version."""
        return self.installed.version if self.installed else None


class ActionModule(AgentAction):
    """``sojourn.deploy.install``; its options and results are documented in plugins/modules/install.py."""

    ARGUMENTS = {
        'src': {'type': 'path', 'required': True},
        'kind': {'type': 'str', 'choices': list(package_file.KINDS)},
        'entry': {'type': 'str'},
        'arguments': {'type': 'raw'},
        'environment': {'type': 'dict', 'default': {}},
        'timeout': {'type': 'int', 'default': 3600},
        'busy_timeout': {'type': 'int', 'default': 300},
        'return_codes': {'type': 'raw'},
        'name': {'type': 'str'},
        'version': {'type': 'str'},
        'product_id': {'type': 'str'},
        'creates': {'type': 'str'},
        'detect': {'type': 'raw'},
        'checksum': {'type': 'str'},
        'log': {'type': 'str'},
        'log_dest': {'type': 'path'},
        'allow_downgrade': {'type': 'bool', 'default': False},
        'reinstall': {'type': 'bool', 'default': False},
        'skip_wrong_family': {'type': 'bool', 'default': False},
    }

    #: The package's key in the broker's ledger; None: it is not announced yet.
    key: str | None = None

    label = ''
    #: Whether its installer may still be running, so that nothing may be taken from under it.
    may_run = False

    def blank(self) -> dict[str, t.Any]:
        """A package that nothing was done for yet has failed, until the end says otherwise."""
        return {
            'changed': False, 'state': return_codes.FAILED, 'exit_code': None, 'meaning': None, 'version_before': None, 'version_after': None,
            'seconds': {'transfer': 0.0, 'install': 0.0, 'total': 0.0}, 'bytes_sent': 0, 'log': '', 'stdout': '', 'stderr': '',
            'package': {'name': None, 'version': None, 'kind': None, 'checksum': None}}

    def act(self, result: dict[str, t.Any], task_vars: dict[str, t.Any]) -> None:
        """Installs the package if it is needed. Raises SojournError where it could not be, or not as it should be."""
        begin = time.monotonic()
        self.result = result
        self.seconds = result['seconds']
        try:
            self._act(task_vars)
        except SojournError as error:
            self._note(state=return_codes.FAILED, msg=error.sentence)
            raise
        else:
            self._note(state=result['state'], msg=result.get('msg'))
        finally:
            self.seconds['total'] = round(time.monotonic() - begin, 3)

    def _note(self, **changes: t.Any) -> None:
        """Keeps the broker's ledger up to date, which tells what became of the packages where the run is cut off. It never fails a package."""
        if self.key is not None:
            with contextlib.suppress(SojournError):
                self.agent.note(self.key, package=self.label, **changes)

    def _act(self, task_vars: dict[str, t.Any]) -> None:
        self._check_options()
        self._read_package(task_vars)
        if self.key is None and not self.check_mode:
            self.key = self.agent.note(package=self.label)
        deployed = self.agent.deploy()
        self.info = deployed['info']
        mismatch = self._family_mismatch()
        if mismatch:
            error = SojournError('SD-105', step='comparing package and target', kind=self.package.runs, family=mismatch)
            if not self.options['skip_wrong_family']:
                raise error
            self._conclude(return_codes.NOT_APPLICABLE, error.sentence)
            return
        # Asked first: one that ends in between is then followed, and not looked for in vain.
        earlier = self._earlier() if deployed['taken_over'] and not self.check_mode else None
        before = self._look()
        self.result.update(version_before=before.version, version_after=before.version)
        if earlier is not None:
            self._take_up(earlier, before)
        elif not before.needed:
            self._conclude(return_codes.ALREADY_CURRENT, f'{self.label}: {before.reason}.')
        elif self.check_mode:
            self._conclude(return_codes.INSTALLED, f'{self.label} would be installed: {before.reason}.')
            self.result['version_after'] = self.identity.version
            self._note_diff(before.version, self.identity.version)
        else:
            self.log_file = self._prepare_log_file()
            self.show(f'{self.label}: {before.reason}; sending {self.package.size} bytes', verbosity=2)
            self._install(before)

    # Before

    def _check_options(self) -> None:
        options = self.options
        for name in ('timeout', 'busy_timeout'):
            if options[name] < 0:
                raise self._bad_option(name, 'it is a number of seconds, 0 or more')
        for name in ('arguments', 'detect'):
            value = options[name]
            if value is None or isinstance(value, str):
                continue
            if not isinstance(value, (list, tuple)) or not all(isinstance(word, (str, int, float)) for word in value):
                raise self._bad_option(name, 'it takes a string or a list of strings')
        self.expected_checksum = package_file.read_checksum(options['checksum'])

    def _bad_option(self, name: str, detail: str) -> SojournError:
        return SojournError('SD-102', step='reading the options', option=name, detail=detail)

    def _read_package(self, task_vars: dict[str, t.Any]) -> None:
        """Everything that can be told on the controller alone."""
        options = self.options
        path = self._find_source(options['src'], task_vars)
        self.package = package_file.identify(path, options['kind'], options['entry'])
        self.label = self.package.name
        self.result['package'].update(kind=self.package.kind, name=options['name'], version=options['version'])
        self.table = return_codes.read_table(options['return_codes'], self.package.runs)
        package_file.verify_checksum(path, self.expected_checksum)
        self.result['package']['checksum'] = self.expected_checksum
        facts = self._read_facts()
        self.identity = package_database.Identity(
            manager=self.package.manager,
            name=options['name'] or facts.name,
            version=options['version'] or facts.version,
            architecture=facts.architecture,
            product_id=options['product_id'] or facts.product_id)
        if self.identity.version and not self.identity.known:
            raise self._bad_option('version', f"a {self.package.runs} package does not tell its name: give 'name' or 'product_id' too")
        if self.identity.name and not self.identity.pattern:
            self.label = ' '.join(filter(None, (self.identity.name, self.identity.version)))
        self.result['package'].update(name=self.identity.name, version=self.identity.version)

    def _find_source(self, source: str, task_vars: dict[str, t.Any]) -> str:
        """The package's path: where ``copy`` looks, then beside the inventory and in the current folder, since the playbook is often the collection's own."""
        try:
            return str(self._find_needle('files', source))
        except AnsibleError:
            folders = (task_vars.get('inventory_dir'), os.getcwd())
        for path in (os.path.join(str(folder), source) for folder in folders if folder):
            if os.path.exists(path):
                return path
        raise SojournError('SD-103', step='looking for the package', path=source)

    def _read_facts(self) -> package_file.Facts:
        try:
            return package_file.read_facts(self.package)
        except SojournError:
            # The playbook's own words are enough: neither the library nor a file that it understands is needed then.
            if (self.options['name'] and self.options['version']) or self.options['creates'] or self.options['detect']:
                return package_file.Facts()
            raise

    def _family_mismatch(self) -> str | None:
        """Where the package does not run, as the end of a sentence."""
        family = str(self.info['operating_system'])
        if family != self.package.family:
            return family
        managers = self.info.get('package_managers') or []
        if family == package_file.LINUX and self.package.manager and self.package.manager not in managers:
            return f'{family} without {self.package.manager}'
        return None

    # What is there

    def _look(self) -> _Look:
        installed = self._installed()
        if self.options['reinstall']:
            newer = package_database.decide(installed, self.identity.version, allow_downgrade=self.options['allow_downgrade'], reinstall=True)
            return _Look(newer.needed, newer.reason, installed)
        if self.options['creates'] and self._exists(self.options['creates']):
            return _Look(False, f"'{self.options['creates']}' is there", installed)
        if self.options['detect'] and self._detected():
            return _Look(False, 'its detect command found it', installed)
        if self.options['creates'] or self.options['detect']:
            return _Look(True, f"'{self.options['creates']}' is not there" if self.options['creates'] else 'its detect command did not find it', installed)
        if not self.identity.known:
            return _Look(True, 'nothing tells whether it is installed')
        decision = package_database.decide(installed, self.identity.version, allow_downgrade=self.options['allow_downgrade'])
        return _Look(decision.needed, decision.reason, installed)

    def _installed(self) -> package_database.Installed | None:
        if not self.identity.known:
            return None
        try:
            for name in self.identity.queries:
                found = package_database.find(self.agent.query_packages(manager=self.identity.manager, name=name), self.identity)
                if found:
                    return found
        except SojournError as error:
            # A database that cannot be read decides nothing where the playbook names something else that does.
            if error.code != 'SD-711' or not (self.options['creates'] or self.options['detect']):
                raise
        return None

    def _exists(self, path: str) -> bool:
        return self.agent.stat(path)['kind'] != 'absent'

    def _detected(self) -> bool:
        command = self.options['detect']
        words: dict[str, t.Any] = {'command_line': command} if isinstance(command, str) else {'arguments': [str(word) for word in command]}
        try:
            answer = self.agent.execute(environment=self._environment(), timeout=DETECT_SECONDS, safe_to_kill=True, **words)
        except SojournError as error:
            if error.code == 'SD-701':
                return False
            raise
        return answer['exit_code'] == 0 and not answer['timed_out']

    def _environment(self) -> dict[str, str]:
        return {str(name): str(value) for name, value in self.options['environment'].items()}

    # The installation

    def _install(self, before: _Look) -> None:
        free, room = int(self.agent.info()['free_bytes']), self.package.room
        if room > free:
            # The agent would find it out too, with the bytes of a large package already under way.
            raise SojournError('SD-402', step='sending the package', what=f"'{self.label}'", detail=f'{room} bytes are needed, {free} are free')
        folder = f'install-{secrets.token_hex(4)}'
        reachable = True
        try:
            self._run(before, self._send(folder))
        except SojournError as error:
            reachable = error.kind != 'unreachable'
            raise
        finally:
            if reachable and not self.may_run:
                self._remove(folder)

    def _send(self, folder: str) -> str:
        """Sends the package into a folder of its own below the agent's; returns the path of what is to be run."""
        family = self.package.family
        sent = self.agent.put_file(self.package.path, f'{folder}/{self.package.name}', mode='0700', checksum=self.expected_checksum)
        self.seconds['transfer'] = round(sent['seconds'], 3)
        self.result['bytes_sent'] = sent['size']
        self.result['package']['checksum'] = sent['checksum']
        if self.package.entry is None:
            return sent['path']
        unpacked = installers.join(family, installers.parent(family, sent['path']), 'unpacked')
        self.agent.extract(sent['path'], unpacked)
        # The archive is not needed any more, and its room may be.
        self.agent.remove_path(sent['path'])
        path = installers.join(family, unpacked, *self.package.entry.replace('\\', '/').split('/'))
        if family == package_file.LINUX:
            self.agent.execute(arguments=['chmod', 'u+rx', path], timeout=60, safe_to_kill=True)
        return path

    def _run(self, before: _Look, path: str) -> None:
        family = self.package.family
        directory = installers.parent(family, path)
        log = self._log_path(directory)
        command = installers.command(installers.Request(
            kind=self.package.runs, path=path, arguments=self.options['arguments'], log=log,
            reinstall=self.options['reinstall'],
            downgrade=self.options['allow_downgrade'],
            same_product=self._same_product(before.installed),
            has_apt=self.package.runs == 'deb' and self._exists('/usr/bin/apt-get'),
            executable=self.package.beginning.startswith((b'#!', b'\x7fELF')),
            busy_timeout=self.options['busy_timeout']))
        label = f'{self._fingerprint(self.result["package"]["checksum"])} in {directory}'
        self._follow(before, log, lambda lines: self._execute(command, directory, label, lines))

    def _log_path(self, directory: str) -> str | None:
        family = self.package.family
        log = self.options['log'] or (installers.MSI_LOG if self.package.runs == 'msi' else None)
        return installers.join(family, directory, log) if log and not installers.is_absolute(family, log) else log

    def _follow(self, before: _Look, log: str | None, work: t.Callable[[Lines], tuple[dict[str, t.Any], return_codes.Outcome]]) -> None:
        """What the installer writes, its log, and what came of it."""
        lines = Lines(self.show)
        try:
            answer, outcome = work(lines)
        finally:
            lines.end()
        self.result.update(exit_code=answer['exit_code'], meaning=outcome.meaning, stdout=decode_tail(answer['stdout']), stderr=decode_tail(answer['stderr']))
        self._fetch_log(log, lines)
        self._judge(before, outcome, timed_out=answer['timed_out'])

    # An earlier run's installation

    def _fingerprint(self, checksum: str) -> str:
        """Names this very installation to whoever finds it running on the target. No environment: it may hold secrets."""
        what = json.dumps([checksum, self.package.runs, self.package.entry, self.options['arguments']], default=str)
        return f'{self.package.name} {hashlib.sha256(what.encode()).hexdigest()[:16]}'

    def _earlier(self) -> dict[str, t.Any] | None:
        """The process of this very installation, which a run that was cut off had begun."""
        executions = [execution for execution in self.agent.executions() if execution.get('label')]
        if not executions:
            return None
        checksum = self.expected_checksum or package_file.checksum(self.package.path)
        fingerprint = self._fingerprint(checksum)
        found = next((execution for execution in executions if execution['label'].startswith(f'{fingerprint} in ')), None)
        if found is not None:
            self.result['package']['checksum'] = checksum
        return found

    def _take_up(self, execution: dict[str, t.Any], before: _Look) -> None:
        """Waits for it, or takes the result that waits there; nothing is sent, and nothing installed twice."""
        directory = execution['label'].partition(' in ')[2]
        self.show(f'{self.label}: taking up its installation, which a run that was cut off had begun')
        self.result['taken_up'] = True
        self.log_file = self._prepare_log_file()
        self._note(state=INSTALLING, codes=self._codes())

        def work(lines: Lines) -> tuple[dict[str, t.Any], return_codes.Outcome]:
            installation = Installation(execution['handle'], execution['label'], self.label, t.cast(str, self.key))
            return self._outcome(self._attend(lambda: self.agent.follow(installation, on_output=lines.feed), installation, lines))

        reachable = True
        try:
            self._follow(before, self._log_path(directory), work)
        except SojournError as error:
            reachable = error.kind != 'unreachable'
            raise
        finally:
            if reachable and not self.may_run:
                self._remove(directory)

    def _same_product(self, installed: package_database.Installed | None) -> bool:
        """Whether Windows knows the very ProductCode: another build of the same product, or the same one again."""
        return bool(self.package.runs == 'msi' and installed and installed.product_id and self.identity.product_id
                    and installed.product_id.casefold() == self.identity.product_id.casefold())

    def _execute(self, command: installers.Command, directory: str, label: str, lines: Lines) -> tuple[dict[str, t.Any], return_codes.Outcome]:
        """Runs the installer, again while another installation keeps it from beginning."""
        pause, longest = BUSY_PAUSES
        deadline = time.monotonic() + self.options['busy_timeout']
        self._note(state=INSTALLING, codes=self._codes())
        while True:
            installation = Installation(secrets.token_hex(16), label, self.label, t.cast(str, self.key))

            def start(installation: Installation = installation) -> dict[str, t.Any]:
                return self.agent.execute(
                    arguments=list(command.arguments) if command.arguments else None, command_line=command.command_line, directory=directory,
                    environment={**command.environment, **self._environment()}, timeout=self.options['timeout'] or None, on_output=lines.feed,
                    installation=installation)

            answer, outcome = self._outcome(self._attend(start, installation, lines))
            left = deadline - time.monotonic()
            if answer['timed_out'] or not outcome.busy or left <= 0:
                return answer, outcome
            self.show(f'{self.label}: {outcome.meaning}, trying again for {left:.0f} s')
            # Windows tells nobody when its installer is free again.
            time.sleep(min(pause, left))
            pause = min(2 * pause, longest)

    def _outcome(self, answer: dict[str, t.Any]) -> tuple[dict[str, t.Any], return_codes.Outcome]:
        self.seconds['install'] = round(self.seconds['install'] + answer['seconds'], 3)
        if answer['timed_out']:
            return answer, return_codes.Outcome(return_codes.FAILED, f'killed after {self.options["timeout"]} s')
        return answer, return_codes.outcome(self.table, answer['exit_code'])

    def _codes(self) -> dict[str, list[str]]:
        return {str(code): [outcome.state, outcome.meaning] for code, outcome in self.table.items()}

    def _attend(self, action: t.Callable[[], dict[str, t.Any]], installation: Installation, lines: Lines) -> dict[str, t.Any]:
        """Runs the installer, whatever becomes of the broker meanwhile; and tells, where the agent was lost, what is known."""
        begin = action

        def follow() -> dict[str, t.Any]:
            return self.agent.follow(installation, on_output=lines.feed)

        for last in (False, False, True):
            try:
                return action()
            except SojournError as error:
                if error.code in ('SD-502', 'SD-503', 'SD-705'):
                    there = None if last else self._there_still(installation)
                    if there is None:
                        raise self._lost(error, 'the agent on the target was ended meanwhile') from None
                    action = follow if there else begin
                    continue
                if last or error.code != 'SD-902' or not error.fields.get('detail', '').startswith(BROKE_OFF):
                    raise
                # The broker was killed. A new one takes its session over; the installer is named, so that its agent does not begin it again.
                if not self._taken_over():
                    raise self._lost(error, 'the broker on the controller was ended meanwhile, and its session was lost') from None
        raise AssertionError  # not reached

    def _there_still(self, installation: Installation) -> bool | None:
        """Whether the agent has the installation, where it answers again and is the same: only the network was gone. None where it is not."""
        try:
            there = any(execution['handle'] == installation.handle for execution in self.agent.executions())
            now = self.agent.deploy()['info']
        except SojournError:
            return None
        same = all(now.get(name) == self.info.get(name) for name in ('run', 'boot_id', 'process_id'))
        return there if same else None

    def _taken_over(self) -> bool:
        """Whether the new broker has the session of the one that was killed; a busy target, or network, is asked again."""
        for last in (False, False, True):
            try:
                return bool(self.agent.deploy()['taken_over'])
            except SojournError:
                if last:
                    break
        return False

    def _lost(self, error: SojournError, how: str) -> SojournError:
        """The agent went away while the installer ran: where the target is there again, that is a failed package, not an unreachable host."""
        try:
            now = self.agent.deploy()['info']
        except SojournError:
            return error
        with contextlib.suppress(SojournError):
            after = self._installed()
            self.result['version_after'] = after.version if after else None
        self.may_run = now.get('boot_id') == self.info.get('boot_id')
        detail = 'the target restarted meanwhile' if now.get('boot_id') != self.info.get('boot_id') else how
        return SojournError('SD-712', step='installing', package=self.label, detail=detail)

    def _judge(self, before: _Look, outcome: return_codes.Outcome, timed_out: bool) -> None:
        """Turns the installer's word into the state, and checks it against the target."""
        after = self._installed()
        self.result['version_after'] = after.version if after else None
        if timed_out:
            raise SojournError('SD-704', step='installing', package=self.label, seconds=self.options['timeout'])
        if outcome.state == return_codes.FAILED:
            raise SojournError('SD-703', step='installing', package=self.label, exit_code=self.result['exit_code'], meaning=self._explain(outcome))
        if outcome.state == return_codes.INSTALLED:
            lack = self._lacking(after)
            if lack:
                # It ran and reported success: whatever it did, the target is no longer as it was.
                self.result['changed'] = True
                raise SojournError('SD-710', step='verifying', package=self.label, detail=lack)
        self._conclude(outcome.state, f'{self.label}: {outcome.meaning}.')
        if outcome.changed:
            self._note_diff(before.version, after.version if after else self.identity.version)

    def _explain(self, outcome: return_codes.Outcome) -> str:
        """The code's meaning; where the table has none, the last line that the installer wrote to its standard error.

        That is output, which a task with no_log keeps to itself: this sentence also goes into the ledger, and so perhaps into the next run's.
        """
        known = return_codes.normal_code(self.result['exit_code']) in self.table
        last = [line for line in self.result['stderr'].splitlines() if line.strip()][-1:]
        return outcome.meaning if known or not last or self._task.no_log else last[0].strip()[:300]

    def _lacking(self, after: package_database.Installed | None) -> str | None:
        """What shows that the package is not there, although its installer reported success."""
        if self.options['creates'] and not self._exists(self.options['creates']):
            return f"'{self.options['creates']}' is not there"
        if self.options['detect'] and not self._detected():
            return 'its detect command does not find it'
        if self.identity.known and not (self.options['creates'] or self.options['detect']):
            return package_database.missing_after(after, self.identity.version, downgrade=self.options['allow_downgrade'])
        return None

    # After

    def _fetch_log(self, log: str | None, lines: Lines) -> None:
        """Brings the installer's log into the result, and as a whole to log_dest. An installer without one has its output as log.

        The installation's own end counts: a log that could not be had is a warning beside it.
        """
        try:
            if log and self._exists(log):
                with self._local_log() as local:
                    self.agent.get_file(log, local)
                    self.result['log'] = read_tail(local)
            elif self.log_file:
                with open(self.log_file, 'wb') as file:
                    lines.write(file)
                self.result['log'] = read_tail(self.log_file)
            if self.log_file:
                self.result['log_file'] = self.log_file
        except OSError as error:
            self._warn(SojournError('SD-709', step='fetching the log', path=error.filename or self.log_file, detail=error.strerror or error))
        except SojournError as error:
            self._warn(error.at(step='fetching the log'))

    def _prepare_log_file(self) -> str | None:
        """The file on the controller that takes the log: log_dest, or one named after host and package in that folder. Raises SD-709."""
        if not self.options['log_dest']:
            return None
        destination = os.path.abspath(self.options['log_dest'])
        if self.options['log_dest'].endswith('/') or os.path.isdir(destination):
            host = ''.join(character if character.isalnum() or character in '.-_' else '_' for character in self.host)
            destination = os.path.join(destination, f'{host}-{self.package.name}.log')
        try:
            os.makedirs(os.path.dirname(destination), exist_ok=True)
        except OSError as error:
            raise SojournError('SD-709', step='preparing the log', path=error.filename, detail=error.strerror) from None
        return destination

    @contextlib.contextmanager
    def _local_log(self) -> t.Iterator[str]:
        if self.log_file:
            yield self.log_file
            return
        with tempfile.TemporaryDirectory(dir=C.DEFAULT_LOCAL_TMP) as folder:
            yield os.path.join(folder, 'log')

    def _remove(self, folder: str) -> None:
        """Takes the package off the target; the agent's end would do it too, but its room need not wait for that."""
        try:
            self.agent.remove_path(folder, recursive=True)
        except SojournError as error:
            self._warn(error.at(step='removing the package from the target'))

    def _warn(self, error: SojournError) -> None:
        self.result.setdefault('warnings', []).append(str(error.at(host=self.host)))

    def _conclude(self, state: str, message: str) -> None:
        self.result.update(state=state, changed=state in return_codes.CHANGED_STATES, msg=message)

    def _note_diff(self, before: str | None, after: str | None) -> None:
        if self.diff_mode:
            name = self.identity.name or self.package.name
            self.result['diff'] = {
                'before': f'{name} {before}\n' if before else '',
                'after': f'{name} {after}\n' if after else f'{name}\n',
                'before_header': 'installed before', 'after_header': 'installed after'}
