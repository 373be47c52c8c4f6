# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has the packed modules of a play ready before its tasks come to them.

Ansible packs a Python module and all that it imports when a task first needs it, in that task's worker, into the run's own cache. That takes longer than
to run most modules, and each worker reads and parses the same files anew. Here one process does it for a whole play, by Ansible's own code, beside the
first tasks. Whatever it does not come to, or does not know of, the workers do as ever. Where the run has a broker, it is told of each, so that
targets have them before their tasks come to them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import types
import typing as t

import ansible.modules
from ansible import constants as C
from ansible import context
from ansible.executor import module_common
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import connection_loader, get_shell_plugin, module_loader
from ansible.template import Templar

from ansible_collections.sojourn.deploy.plugins.plugin_utils import broker_client
from ansible_collections.sojourn.deploy.plugins.plugin_utils.broker_client import Likely
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

#: What actions run that are no modules of their own, or not alone.
MODULES: t.Mapping[str, tuple[str, ...]] = {
    'assemble': ('stat', 'assemble', 'copy', 'file'), 'copy': ('stat', 'copy', 'file'), 'fetch': ('stat',), 'gather_facts': ('setup',),
    'shell': ('command',), 'template': ('stat', 'copy', 'file'), 'unarchive': ('stat', 'unarchive'),
}
#: What copies where it is this collection's action that does.
COPYING = ('ansible.legacy.stat', 'sojourn.deploy.copy', 'ansible.legacy.file', 'ansible.legacy.copy')
#: Core's actions by which that copies too, if it is to.
COPIED = frozenset(('copy', 'template'))
#: Actions without a module on the target.
NONE = frozenset((
    'add_host', 'assert', 'debug', 'fail', 'group_by', 'import_role', 'import_tasks', 'include_role', 'include_tasks', 'include_vars', 'meta', 'pause',
    'raw', 'reboot', 'script', 'set_fact', 'set_stats', 'validate_argument_spec', 'wait_for_connection'))
_BUILTIN = ('ansible.builtin.', 'ansible.legacy.')
#: Where modules are of which is known that what they import does nothing but to define things: it may be imported on a target before they come.
WELL_KNOWN = (os.path.join(next(iter(ansible.modules.__path__)), ''), os.path.join(os.path.dirname(os.path.dirname(__file__)), 'modules', ''))
SSH = 'sojourn.deploy.ssh'
#: Stands for the interpreter in a command line, for the agent.
INTERPRETER = '@interpreter@'
#: An interpreter that is no template, needs no quoting, and is not to be found out.
PATH = re.compile(r'/[\w./+-]+', re.ASCII)
#: Variables by which a host's commands are not those that its play says.
OTHERWISE = frozenset(('ansible_become', 'ansible_become_user', 'ansible_shell_executable', 'ansible_shell_type'))
#: The connection's options without which no interpreter is kept warm.
NEEDED = ('warm_interpreter', 'pipelining')
#: Hosts of a play that are looked at: their variables cost time, and most plays have one kind of connection.
LOOKED_AT = 3
#: Seconds after which it gives up, whatever holds it.
LONGEST = 60


def prepare() -> None:
    """Has this process find, once, what each worker that it forks would find anew: where modules are, and how arguments and results are written."""
    with contextlib.suppress(Exception):  # whatever it is, a worker will tell
        module_loader.find_plugin_with_context('ansible.legacy.command', '.py')
    with contextlib.suppress(Exception):  # ansible-core before 2.19 has none of it
        from ansible.module_utils.common import json

        json.get_module_encoder('legacy', json.Direction.CONTROLLER_TO_MODULE)
        json.get_module_decoder('legacy', json.Direction.MODULE_TO_CONTROLLER)


def fill(play: t.Any, bundle_copies: bool, nth: int, *, ahead: bool) -> int | None:
    """Starts the process, a child of this one, for a play; its id, for ``stop``. None where it cannot be. ``bundle_copies``: as the option of lifecycle.

    ``nth``: which of the run's plays it is, of which the run's broker is told; ``ahead``: and of its modules that are ansible-core's, or this collection's own.
    """
    try:
        pid = os.fork()
    except OSError:
        return None
    if not pid:
        try:
            _child(play, bundle_copies, os.getppid(), nth, ahead)
        except BaseException:  # the workers do it, and tell what is wrong
            pass
        finally:
            os._exit(0)
    return pid


def stop(pid: int, *, wait: bool = True) -> bool:
    """Whether such a process has ended; with ``wait`` it is ended."""
    if wait:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    try:
        return os.waitpid(pid, 0 if wait else os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _child(play: t.Any, bundle_copies: bool, parent: int, nth: int, ahead: bool) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.alarm(LONGEST)  # a lock may have been another thread's when this process was forked
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)  # the run's output is not its
    compile_ast = getattr(module_common, '_compile_module_ast', None)
    if compile_ast is not None:
        module_common._compile_module_ast = functools.lru_cache(maxsize=None)(compile_ast)
    templar = Templar(loader=DataLoader(), variables={})
    by = likely(play) if ahead else None
    announced = [b'']  # an earlier play's modules do not come any more

    def announce() -> None:
        while announced:
            with contextlib.suppress(SojournError):
                if not broker_client.announce_module(parent, announced[0], nth, by):
                    break  # it is starting still
            del announced[0]

    with contextlib.suppress(Exception):
        announce()
    for name, collections in modules(play, bundle_copies):
        if os.getppid() != parent:
            return
        with contextlib.suppress(Exception):
            path, program = _pack(name, collections, templar)
            if ahead and path.startswith(WELL_KNOWN):
                announced.append(program)
            announce()
    with contextlib.suppress(Exception):
        if announced and broker_client.await_start(parent):
            announce()


def modules(play: t.Any, bundle_copies: bool = False) -> t.Iterator[tuple[str, list[str] | None]]:
    """Names of the Python modules that a play's tasks run, as far as can be told beforehand, each once, with its task's ``collections``."""
    seen = set()
    for action, collections in _actions(play):
        for name in _names(action, bundle_copies):
            if name not in seen:
                seen.add(name)
                yield name, collections


def _names(action: str, bundle_copies: bool) -> t.Iterable[str]:
    leaf = action.rpartition('.')[2]
    builtin = '.' not in action or action.startswith(_BUILTIN)
    if action == 'sojourn.deploy.copy' or (builtin and bundle_copies and leaf in COPIED):
        return COPYING
    if action == 'sojourn.deploy.fetch':
        builtin = True  # it runs what core's does
    if builtin and leaf in NONE:
        return ()
    if builtin and leaf in MODULES:
        return (f'ansible.legacy.{module}' for module in MODULES[leaf])
    return (action,)


def likely(play: t.Any) -> Likely | None:
    """By what the first of a play's first hosts that are reached by SSH of ours will run the play's first module; None: who knows.

    Never what makes another user of the login user: where it is refused, it is written down, or locks an account, and it may want a password.
    """
    with contextlib.suppress(Exception):  # a guess: what it is not, the first module tells
        task, plugin = _first_with_module(play), connection_loader.get(SSH, class_only=True)
        variables = play.get_variable_manager()
        for host in variables._inventory.get_hosts(play.hosts)[:LOOKED_AT] if task is not None and not C.DEFAULT_KEEP_REMOTE_FILES else ():
            found = variables.get_vars(play=play, host=host)
            if str(found.get('ansible_connection') or play.connection) != SSH:
                continue
            interpreters = _interpreters(found)
            if interpreters and not OTHERWISE & set(found) and not task.environment and not _becomes(task, found) and all(
                    C.config.get_config_value(option, plugin_type='connection', plugin_name=plugin._load_name, variables=found) for option in NEEDED):
                return Likely(_Asked(task).command_line(), interpreters)
            break
    return None


def _first_with_module(play: t.Any) -> t.Any:
    """What says as whom the first module of a play is run: its task, or the play itself, which gathers facts. None: it has none on its hosts."""
    if play.gather_facts or play.gather_facts is None:
        return play
    for item in _tasks(play, rescue=False):
        if any(_names(item.action, False)) and item.delegate_to is None and item.connection in (None, play.connection):
            return item if not {*OTHERWISE, 'ansible_python_interpreter'} & set(item.get_vars()) and not item.async_val else None
    return None


def _becomes(task: t.Any, variables: t.Mapping[str, t.Any]) -> bool:
    """Whether it may become another than who signs in; ``root`` does not become ``root``."""
    wanted = task.become or C.DEFAULT_BECOME or context.CLIARGS.get('become')
    user = variables.get('ansible_user') or task.remote_user or C.DEFAULT_REMOTE_USER
    return bool(wanted) and (C.BECOME_ALLOW_SAME_USER or user is None or user != (task.become_user or C.DEFAULT_BECOME_USER))


def _interpreters(variables: t.Mapping[str, t.Any]) -> tuple[str, ...]:
    """As interpreter_discovery.py of ansible-core looks for them. None of them: it is a template, or a list of systems decides (2.17)."""
    wanted = str(variables.get('ansible_python_interpreter') or C.config.get_config_value('INTERPRETER_PYTHON', variables=variables))
    if PATH.fullmatch(wanted):
        return (wanted,)
    if wanted not in ('auto', 'auto_silent') or '_INTERPRETER_PYTHON_DISTRO_MAP' in C.config.get_configuration_definitions():
        return ()
    return tuple(map(str, C.config.get_config_value('INTERPRETER_PYTHON_FALLBACK', variables=variables)))


class _Asked(ActionBase):
    """Tells what Ansible makes of a module's command, by its own code: that is not the same in all its versions."""

    def __init__(self, task: t.Any) -> None:
        connection = types.SimpleNamespace(
            become=None, _shell=get_shell_plugin(executable=C.DEFAULT_EXECUTABLE), transport=SSH, allow_executable=True, get_option=lambda unused_name: None)
        play_context = types.SimpleNamespace(executable=C.DEFAULT_EXECUTABLE, remote_user=None)
        super().__init__(task, connection, play_context, None, None, None)

    def command_line(self) -> str:
        """What a connection gets."""
        said: list[str] = []

        def execute(line: str, **unused: t.Any) -> t.NoReturn:
            said.append(line)
            raise InterruptedError

        self._connection.exec_command = execute
        command = self._connection._shell.build_module_command('', f'#!{INTERPRETER}', '').strip()  # as _execute_module has it
        with contextlib.suppress(InterruptedError):
            self._low_level_execute_command(command, in_data=b'\n')
        return said[0]

    def run(self, tmp: t.Any = None, task_vars: t.Any = None) -> t.NoReturn:
        """Of no use here."""
        raise NotImplementedError


def last_task(play: t.Any) -> str | None:
    """The id of the task that a play ends with where nothing fails, as far as can be told beforehand; handlers, which may come after it, aside."""
    last = None
    with contextlib.suppress(Exception):  # a guess: whatever is wrong with a play, Ansible tells
        for item in _tasks(play, rescue=False):
            if item.action.rpartition('.')[2] != 'meta':
                last = item._uuid
    return last


def _tasks(play: t.Any, *, rescue: bool = True) -> t.Iterator[t.Any]:
    """Those that are written in a play and its roles, in their order; ``rescue``: whether those also that are for when something fails."""
    waiting = list(play.compile())
    while waiting:
        item = waiting.pop(0)
        if hasattr(item, 'block'):
            waiting[:0] = [*item.block, *(item.rescue if rescue else ()), *item.always]
        else:
            yield item


def _actions(play: t.Any) -> t.Iterator[tuple[str, list[str] | None]]:
    if play.gather_facts or play.gather_facts is None:
        yield 'gather_facts', None
    for item in _tasks(play):
        yield item.action, item.collections


def _pack(name: str, collections: list[str] | None, templar: Templar) -> tuple[str, bytes]:
    """A module's file, and its program; '' and nothing: there is no such Python module."""
    found = module_loader.find_plugin_with_context(name, '.py', collection_list=collections)
    if found.plugin_resolved_path and found.plugin_resolved_path.endswith('.py'):
        built = module_common.modify_module(
            module_name=name, module_path=found.plugin_resolved_path, module_args={}, templar=templar,
            task_vars={'ansible_python_interpreter': '/usr/bin/python3'},
            module_compression=C.config.get_config_value('DEFAULT_MODULE_COMPRESSION', variables={}))
        return found.plugin_resolved_path, built[0] if isinstance(built, tuple) else built.b_module_data  # a tuple up to ansible-core 2.18
    return '', b''
