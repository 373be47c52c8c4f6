# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has the end of a run wait for the clean-up, and prints it; the clean-up itself is the broker's."""

from __future__ import annotations

DOCUMENTATION = r"""
name: lifecycle
type: aggregate
author:
  - The sojourn.deploy authors (@sojourn)
short_description: Wait for the clean-up at the end of a run, and print it
version_added: 0.1.0
description:
  - Takes the agents off all targets as the last thing of a run, waits until nothing of them is left, and prints what was removed from which host.
  - It does so at the regular end, when the run is interrupted (Ctrl-C), and when C(ansible-playbook) is terminated (SIGTERM).
    Installations that run then are let finish first; the packages that had not begun are dropped. Both are printed.
  - A second Ctrl-C ends the waiting. The clean-up goes on by itself.
  - Without this plugin the clean-up is the same, but it goes on after C(ansible-playbook) has ended. In a container whose first process is
    C(ansible-playbook), as in an execution environment, that is too late - everything there ends with that process, and the agents
    remove themselves only when their lease is over. Enable this plugin there.
  - It makes runs faster as well. The broker is started, and loads its libraries, while Ansible prepares the first task. The connection
    plugins are loaded once, and not again by the worker of each task on each host, as Ansible does with its own; and modules are packed for
    the target beside the first tasks. By SSH, a target gets the play's modules, and has the interpreter for them ready, before their tasks
    come to it; and when the last task begins, the connection that the end will need is begun beside it.
  - At the start of a run it tells what became of the packages of earlier runs that were cut off and could tell nobody.
options:
  bundle_copies:
    description:
      - Whether M(ansible.builtin.copy) is carried out as M(sojourn.deploy.copy) is, also where M(ansible.builtin.template) uses it. A folder takes
        a few exchanges with the target and, by a connection with pipelining, a single small file two, where ansible-core's plan has six for each file.
      - Likewise M(ansible.builtin.fetch) is carried out as M(sojourn.deploy.fetch) is. By a connection of this collection a file is hashed while it comes,
        and not three times more.
      - It is for all Linux hosts of the run, whichever their connection. What is copied, and what is returned, is the same. An action C(copy) or C(fetch)
        of your own stays what it is.
    type: bool
    default: false
    ini:
      - section: sojourn
        key: bundle_copies
    env:
      - name: SOJOURN_BUNDLE_COPIES
requirements:
  - enable it in the configuration, C(callbacks_enabled) in section C([defaults]), or C(ANSIBLE_CALLBACKS_ENABLED=sojourn.deploy.lifecycle)
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import time
import typing as t

from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import connection_loader

from ansible_collections.sojourn.deploy.plugins.plugin_utils import broker_client, ledger, module_cache
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import WAYS_IN

_CONNECTION = 'sojourn.deploy.'
#: Strategies by which all hosts come to a task before any comes to the next.
TOGETHER = ('linear', 'debug')


class CallbackModule(CallbackBase):
    """See DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = 'aggregate'
    CALLBACK_NAME = 'sojourn.deploy.lifecycle'
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        super().__init__(*args, **kwargs)
        self._run = os.getpid()
        self._ended = False
        self._began = False
        #: That have begun.
        self._plays = 0
        #: The play that comes last, and the task; None: who knows.
        self._last_play: str | None = None
        self._last_task: str | None = None
        #: Processes that pack modules.
        self._packing: list[int] = []
        # Ctrl-C ends a run without any further callback; what is left then is Python's own end.
        atexit.register(self._at_exit)

    def v2_playbook_on_start(self, playbook: t.Any) -> None:
        """Tells of earlier runs, and looks out for SIGTERM. There may be several playbooks, each with an end of its own."""
        self._ended = self._began = False
        plays = playbook.get_plays() if playbook else []
        self._last_play, self._last_task = (plays[-1]._uuid if plays else None), None
        for play in plays[:1]:
            self._start_broker(play)
        for name in ('sojourn.deploy.ssh', 'sojourn.deploy.smb', 'sojourn.deploy.winrm'):
            connection_loader.get(name, class_only=True)
        self._tell_earlier()
        before = signal.getsignal(signal.SIGTERM)

        def terminated(number: int, frame: t.Any) -> None:
            if os.getpid() == self._run:
                self._end_workers()
                self._end()
            # ansible-core's own handler ends the workers, where it has one; a worker that inherited this one just ends.
            if callable(before) and os.getpid() == self._run:
                before(number, frame)
                return
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGTERM, terminated)
        if self.get_option('bundle_copies'):
            from ansible_collections.sojourn.deploy.plugins.action import copy, fetch

            copy.replace_core()
            fetch.replace_core()

    def v2_playbook_on_play_start(self, play: t.Any) -> None:
        """Has the broker started, if the play will need it, and the play's modules packed."""
        self._plays += 1
        together = not play.serial and str(play.strategy).rpartition('.')[2] in TOGETHER  # else hosts do not come to their last task at the same time
        self._last_task = module_cache.last_task(play) if together and play._uuid == self._last_play else None
        way_in = self._start_broker(play)
        module_cache.prepare()
        self._packing = [pid for pid in self._packing if not module_cache.stop(pid, wait=False)]
        pid = module_cache.fill(play, self.get_option('bundle_copies'), self._plays, ahead=way_in == 'ssh')
        if pid is not None:
            self._packing.append(pid)

    def v2_playbook_on_task_start(self, task: t.Any, is_conditional: bool) -> None:
        """When it is the last, the broker prepares for the end beside it."""
        if self._last_task is not None and task._uuid == self._last_task:
            self._last_task = None
            broker_client.expect_end(self._run)

    def _start_broker(self, play: t.Any) -> str | None:
        """Has the broker started, if the play will need it: the sooner, the less its first task waits. Which way in it will need, as far as is known."""
        way_in = _way_in(play)
        if way_in is not None:
            broker_client.start_early(self._run, way_in)
        return way_in

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        """The regular end."""
        self._end()

    def _at_exit(self) -> None:
        """Any other end; not that of a worker, which has this handler too."""
        if os.getpid() == self._run and not self._ended:
            self._end_workers()
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGINT, signal.default_int_handler)
            with contextlib.suppress(KeyboardInterrupt):
                self._end()

    def _end_workers(self) -> None:
        """Before the run's own end: one that goes on would take the end of the broker for its death, and start another."""
        for worker in multiprocessing.active_children():
            with contextlib.suppress(OSError):
                os.kill(worker.pid or 0, signal.SIGTERM)

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        while self._packing:
            module_cache.stop(self._packing.pop())
        try:
            broker_client.end_run(self._run, self._tell)
        except KeyboardInterrupt:
            self._say('Not waited for any longer; the clean-up goes on by itself.')
            raise
        except SojournError as error:
            self._say(f'The clean-up cannot be waited for; the agents remove themselves when their lease is over. {error}', 'red')

    # Printing

    def _tell(self, event: dict[str, t.Any]) -> None:
        if not self._began:
            self._began = True
            self._banner('CLEAN-UP')
        host = event['host']
        kind = event['event']
        if kind == 'waiting':
            self._say(f"{host}: waiting until the installation of {event['package']} has finished", 'yellow')
        elif kind == 'reconnecting':
            self._say(f'{host}: waiting for the target, which does not answer', 'yellow')
        elif kind == 'removed':
            self._say(f"{host}: removed {', '.join(event['removed'])} ({event['seconds']:.1f} s)", 'green')
        elif kind == 'failed':
            self._say(f"{host}: NOT REMOVED: {event['message'].removeprefix(f'[{host}] ')}", 'red')
        else:
            self._say(_line(event), 'green' if event['state'] in ('installed', 'reboot_required', 'already_current') else 'red')

    def _tell_earlier(self) -> None:
        for earlier in ledger.take():
            when = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(earlier.get('time', 0)))
            self._banner(f'AN EARLIER RUN WAS CUT OFF, {when}')
            for row in earlier.get('rows') or ():
                self._say(_line(row))

    def _banner(self, text: str) -> None:
        with contextlib.suppress(RuntimeError, OSError):
            self._display.banner(text)

    def _say(self, text: str, color: str | None = None) -> None:
        try:
            self._display.display(text, color=color)
        except (RuntimeError, OSError):
            # A signal came in the middle of another line, or nobody reads any more: the clean-up must not fail of that.
            with contextlib.suppress(OSError):
                os.write(1, f'{text}\n'.encode())


def _way_in(play: t.Any) -> str | None:
    """The way in of the first of a play's first hosts that has a connection of ours, as far as is known before the tasks. None: there is none, or who knows."""
    with contextlib.suppress(Exception):  # a guess: whatever is wrong with a play, or its variables, Ansible tells
        variables = play.get_variable_manager()
        for host in variables._inventory.get_hosts(play.hosts)[:module_cache.LOOKED_AT]:
            connection = variables.get_vars(play=play, host=host).get('ansible_connection') or play.connection
            way_in = str(connection).removeprefix(_CONNECTION)
            if way_in in WAYS_IN and str(connection) != way_in:
                return way_in
    return None


def _line(row: t.Mapping[str, t.Any]) -> str:
    return f"{row['host']}: {row['package']}: {str(row['state']).replace('_', ' ')}{' (' + str(row['msg']) + ')' if row.get('msg') else ''}"
