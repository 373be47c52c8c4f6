# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``fetch`` of ansible-core, whose plan is carried out with the file hashed while it comes, and neither before that nor after it.

Core's action has the target hash the file, and reads what has come twice more. Here it is core's action too that decides everything, by its own code; but
the target is only looked at, and what core's code then asks for is answered from what the connection has hashed on the way.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import typing as t

from ansible.module_utils.common.text.converters import to_bytes

from ansible_collections.sojourn.deploy.plugins.plugin_utils import core_action
from ansible_collections.sojourn.deploy.plugins.plugin_utils.core_action import HASHED_IF_ASKED, NOT_YET
from ansible_collections.sojourn.deploy.plugins.plugin_utils.file_identity import Identity

core_fetch = core_action.load('fetch')
CoreFetch: type[t.Any] = core_fetch.ActionModule
#: What core's code has to call by these names for ours to answer.
CALLED = frozenset(('_execute_remote_stat', 'checksum', 'fetch_file', 'secure_hash', 'md5'))
#: What core's code takes for the SHA-1 of a file that is another than the target's, whichever it has.
ANOTHER = 'another'


class Place(Exception):
    """Where core's code has the file go: as far as its plan is gone through to find that out."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path


class ActionModule(CoreFetch):
    """See this file's top. ``_stage`` says what is done with what core's code asks for: '' as ever; 'place', 'fetch' as below."""

    _stage = ''

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Ansible's entry."""
        if not self._hashes_on_the_way():
            return super().run(tmp, task_vars)
        self._vars = task_vars or {}
        self._expanded: dict[str, str] = {}
        #: Asks the target once more; None: core's code has the checksum.
        self._look_closer: t.Callable[[], dict[str, t.Any]] | None = None
        self._size = 0
        self._asked: str | None = None
        self._received: dict[str, t.Any] = {}
        with self._answering():
            result = super().run(tmp, task_vars)
        for name in ('checksum', 'remote_checksum'):
            if result.get(name) == NOT_YET:
                result[name] = self._remote_sha1()
        return result

    def _hashes_on_the_way(self) -> bool:
        """Whether the connection can tell the digests of what it fetches, and core's code fetches by it, and asks for them where ours can answer."""
        connection = self._connection
        if not hasattr(connection, 'fetch_file_and_hash') or connection.become or getattr(connection._shell, '_IS_WINDOWS', False):
            return False
        # mitogen puts its own methods before these
        return type(self)._execute_module is ActionModule._execute_module and CALLED.issubset(CoreFetch.run.__code__.co_names)

    @contextlib.contextmanager
    def _answering(self) -> t.Iterator[None]:
        # Its module is nobody else's, and a task has a process of its own.
        answers = {'checksum': self._checksum_before, 'secure_hash': self._sha1_after, 'md5': self._md5_after}
        self._core = {name: getattr(core_fetch, name) for name in answers}
        vars(core_fetch).update(answers)
        self._connection.fetch_file = self._fetch
        self._stage = 'fetch'
        try:
            yield
        finally:
            self._stage = ''
            del self._connection.fetch_file
            vars(core_fetch).update(self._core)

    def _remote_sha1(self) -> str | None:
        """That of the file on the target: as it was asked for, else of what came, since both ends have found the same SHA-256 of that."""
        return self._asked if self._asked is not None else self._received.get('sha1')

    # What core's code calls, in this order

    def _remote_expand_user(self, path: str, *args: t.Any, **kwargs: t.Any) -> str:
        if not self._stage:
            return super()._remote_expand_user(path, *args, **kwargs)
        if path not in self._expanded:
            self._expanded[path] = super()._remote_expand_user(path, *args, **kwargs)
        return self._expanded[path]

    def _execute_remote_stat(self, path: str, *args: t.Any, **kwargs: t.Any) -> dict[str, t.Any]:
        if self._stage == 'place':
            return {'exists': True, 'isdir': False, 'checksum': NOT_YET}
        look = functools.partial(super()._execute_remote_stat, path, *args, **kwargs)
        if self._stage != 'fetch' or 0 <= self._size_here() < HASHED_IF_ASKED:
            return look()
        there = look(checksum=False)
        if not (there.get('isreg') and there.get('readable')) or there.get('checksum'):
            return there  # core's code handles those that have none
        if not there.get('size'):
            return look()  # the kernel's files have no size, whatever is in them
        self._size, self._look_closer = there['size'], look
        return {**there, 'checksum': NOT_YET}

    def _size_here(self) -> int:
        """Of what is at the file's place on the controller; -1: nothing. Where that is core's code knows, but asks the target first."""
        self._stage = 'place'
        try:
            super().run(None, self._vars)
        except Place as place:
            with contextlib.suppress(OSError):
                return os.path.getsize(to_bytes(place.path, errors='surrogate_or_strict'))
        except Exception:  # core's code says what is wrong, if it comes to that
            pass
        finally:
            self._stage = 'fetch'
        return -1

    def _checksum_before(self, path: str) -> str | None:
        """In the place of ``checksum``, by which core finds out whether the local file is another than the target's: of another size it is."""
        if self._stage == 'place':
            raise Place(path)
        if self._look_closer is None:
            return self._core['checksum'](path)
        try:
            with open(to_bytes(path, errors='surrogate_or_strict'), 'rb') as file:
                found = os.fstat(file.fileno())
        except OSError:
            return self._core['checksum'](path)  # there is none, or it says what is wrong with it
        if stat.S_ISREG(found.st_mode) and found.st_size != self._size:
            return ANOTHER
        here = core_action.beside(self._core['checksum'], path)
        self._asked = self._look_closer()['checksum']
        sha1 = here()
        return NOT_YET if sha1 == self._asked else sha1

    def _fetch(self, in_path: str, out_path: str) -> None:
        self._received = self._connection.fetch_file_and_hash(in_path, out_path) or {}
        # What came in pieces may be of two files. Core would have the SHA-1 of one.
        if self._received.get('resumed') and self._look_closer is not None and self._asked is None:
            self._asked = self._look_closer()['checksum']

    def _sha1_after(self, path: str) -> str | None:
        """In the place of ``secure_hash``."""
        sha1 = self._received['sha1'] if self._is_what_came(path) else self._core['secure_hash'](path)
        return NOT_YET if self._look_closer is not None and sha1 is not None and sha1 == self._remote_sha1() else sha1

    def _md5_after(self, path: str) -> str | None:
        """In the place of ``md5``, which fails where FIPS 140 forbids it, whatever it is of."""
        md5 = self._received['md5'] if self._is_what_came(path) else None
        of_core = self._core['md5'](path if md5 is None else os.devnull)
        return of_core if md5 is None else md5

    def _is_what_came(self, path: str) -> bool:
        """Whether at the place there is still what was written; another host's may have been fetched to it."""
        try:
            return bool(self._received) and Identity.of(os.stat(to_bytes(path, errors='surrogate_or_strict'))) == tuple(self._received['identity'])
        except OSError:
            return False


def replace_core() -> None:
    """Has ``ansible.builtin.fetch`` be this one."""
    core_action.replace('fetch', core_fetch, ActionModule)
