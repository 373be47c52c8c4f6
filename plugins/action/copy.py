# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``copy`` of ansible-core, whose plan is made as ever and then carried out in fewer exchanges, for all files of a folder at once.

Core's action asks what is at a file's place, sends it, and runs a module for it: for each file, one after the other. Here it is core's action too that
decides all of that, by its own code, with three of its exchanges replaced:

1. Its plan is gone through once for the names alone, and one run of our module looks at all of them.
2. It is gone through again. What it asks about a file is answered from that, a file that it sends is appended to one bundle, and what it would run
   on the target is noted down.
3. The bundle is sent, and one run of our module does what was noted, by core's own modules: see plugins/modules/copy.py. A small one comes with that
   module's arguments.

A single small file is looked at by core's own ``stat``, and comes with our module likewise: two exchanges in the place of six, since there is no
temporary folder to be made, to be written to, to be given away and to be removed.

A single larger one goes by all six, but by a connection of ours it is hashed while it is sent, and neither before that nor after it.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import inspect
import json
import os
import re
import shutil
import tempfile
import typing as t
import zlib

import ansible.modules
from ansible import constants as C
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.text.converters import to_bytes
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.loader import action_loader

from ansible_collections.sojourn.deploy.plugins.plugin_utils import core_action
from ansible_collections.sojourn.deploy.plugins.plugin_utils.core_action import HASHED_IF_ASKED, NOT_YET
from ansible_collections.sojourn.deploy.plugins.plugin_utils.file_identity import Identity

core_copy = core_action.load('copy')
CoreCopy: type[t.Any] = core_copy.ActionModule
MODULE = 'sojourn.deploy.copy'
#: Core's modules that its action runs for a file, a folder or a link.
CORE = ('copy', 'file')
#: What they may import from ansible-core: what our module brings along.
THERE = frozenset(f'ansible.module_utils.{name}' for name in ('basic', 'common.sentinel', 'common.text.converters'))
#: Bytes. A file as large as this goes by itself: to append it to a bundle first would cost more than it saves.
LARGE = 32 << 20
#: Bytes after which a bundle is sent: what there has to be room for on both ends, beside the files.
BUNDLE = 128 << 20
#: Bytes that go with the module that places them: what may well be held in memory on both ends.
INLINE = 64 << 10
#: What core's code takes for the folder on the target where there is none, to put names together.
NO_FOLDER = '/nonexistent'
_OURS = '_sojourn_number'


class PlacementFailed(Exception):
    """Something that was noted down has failed on the target; core's plan ends there."""

    def __init__(self, result: dict[str, t.Any]) -> None:
        super().__init__()
        self.result = result


class Request(t.NamedTuple):
    """A run of a module, to be done on the target."""

    module: str
    arguments: dict[str, t.Any]
    size: int | None
    """Of the file that goes with it, the next one of the bundle."""
    seen: str | None
    """Whose content is to be kept until this is done, for a diff."""


class Arrived(t.NamedTuple):
    """A large file in core's temporary folder on the target."""

    path: str
    sha1: str
    md5: str | None
    sent: bool
    """Whether both are of what was sent."""


class Bundle:
    """The files that are to be sent, one after the other in a file that only this user can read."""

    def __init__(self) -> None:
        descriptor, self.path = tempfile.mkstemp(dir=C.DEFAULT_LOCAL_TMP, prefix='sojourn-copy-')
        self._file = os.fdopen(descriptor, 'wb')
        self.size = 0

    def add(self, path: str) -> tuple[int, str]:
        """Appends a file; its bytes and their SHA-1. Raises OSError."""
        size, sha1 = 0, hashlib.sha1(usedforsecurity=False)
        with open(to_bytes(path, errors='surrogate_or_strict'), 'rb') as source:
            while data := source.read(1 << 20):
                self._file.write(data)
                sha1.update(data)
                size += len(data)
        self.size += size
        return size, sha1.hexdigest()

    def whole(self) -> str:
        """Its path, when all of it is in the file."""
        self._file.flush()
        return self.path

    def read(self) -> bytes:
        """All of it."""
        with open(self.whole(), 'rb') as file:
            return file.read()

    def clear(self) -> None:
        """Empties it."""
        self._file.seek(0)
        self._file.truncate()
        self.size = 0

    def close(self) -> None:
        """Removes it."""
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


class PlainNames:
    """Links to files whose names core's code cannot handle, since they are no UTF-8."""

    def __init__(self) -> None:
        self._folder: str | None = None
        self._meant: dict[str, str] = {}

    def plain(self, path: str) -> str:
        """The path, or one that leads there."""
        try:
            path.encode()
            return path
        except UnicodeEncodeError:
            pass
        if self._folder is None:
            self._folder = tempfile.mkdtemp(dir=C.DEFAULT_LOCAL_TMP, prefix='sojourn-copy-')
        link = os.path.join(self._folder, str(len(self._meant)))
        os.symlink(to_bytes(os.path.abspath(path), errors='surrogate_or_strict'), link)
        self._meant[link] = path
        return link

    def meant(self, path: str) -> str:
        """What such a path stands for, to be shown."""
        return self._meant.get(path, path).encode('utf-8', 'replace').decode()

    def close(self) -> None:
        """Removes the links."""
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


class Unshown(str):
    """For the module alone: Ansible's debug output has the arguments of every module, and a plan may have a file in it."""

    def __repr__(self) -> str:
        return "'...'"


def pack(value: t.Any) -> str:
    """For the module: short, and in no letter for Ansible to look at."""
    return base64.b64encode(zlib.compress(json.dumps(value, default=str).encode('ascii'), 1)).decode('ascii')


def unpack(text: str) -> t.Any:
    """What the module packed."""
    return json.loads(zlib.decompress(base64.b64decode(text)).decode('ascii'))


def in_common(requests: list[Request]) -> tuple[dict[str, dict[str, t.Any]], list[tuple[str, dict[str, t.Any], int | None, str | None]]]:
    """The parameters that all runs of a module have, by the module's name, and each run with what it has beside them."""
    common: dict[str, dict[str, t.Any]] = {}
    for request in requests:
        known = common.setdefault(request.module, dict(request.arguments))
        for name in [name for name, value in known.items() if name not in request.arguments or request.arguments[name] != value]:
            del known[name]
    return common, [
        (request.module, {name: value for name, value in request.arguments.items() if name not in common[request.module]}, request.size, request.seen)
        for request in requests]


class ActionModule(CoreCopy):
    """See this file's top. ``_stage`` says what is done with what core's code asks for: '' as ever; 'file', 'large', 'names', 'plan', 'diff' as below."""

    _stage = ''
    _vars: dict[str, t.Any]

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Ansible's entry."""
        kind = self._kind()
        sources = self._sources() if kind else None
        self._vars = task_vars or {}
        if sources is None or kind == 'large':
            try:
                with self._hashing_on_the_way(sources) if sources is not None else contextlib.nullcontext():
                    return super().run(tmp, task_vars)
            finally:
                self.cleanup()  # of what this action has made; `template`, which may have called it, would not
        self._core_sources = sources
        try:
            if kind == 'folder':
                return self._copy_folder()
            self._content: bytes | None = None
            with self._in('file'):
                return super().run(None, task_vars)
        finally:
            if self._connection._shell.tmpdir == NO_FOLDER:
                self._connection._shell.tmpdir = None

    def _copy_folder(self) -> dict[str, t.Any]:
        self._expanded: dict[str, str] = {}
        self._names: list[tuple[str, str]] = []
        with self._in('names'):
            result = super().run(None, self._vars)
        if result.get('failed'):
            return result
        if not self._look():
            self._need_folder()
            return super().run(None, self._vars)
        self._requests: list[Request] = []
        self._returned: dict[int, tuple[dict[str, t.Any], str | None, str | None]] = {}
        self._placed, self._changed, self._last = 0, False, {}
        self._sent: tuple[int, str, str] | None = None
        self._seen: str | None = None
        self._bundle, self._plain_names = Bundle(), PlainNames()
        try:
            try:
                with self._in('plan'):
                    result = super().run(None, self._vars)
            except AnsibleError:
                self._place()  # as core has it: what comes before what is wrong is done
                raise
            self._place()
            if not result.get('failed'):
                self._complete(result)
                self._remove_tmp_path(self._connection._shell.tmpdir)
        except PlacementFailed as failure:
            # As core has it, with nothing of the folder in it; whether it has an invocation differs from version to version.
            more = {'task_vars': self._vars} if 'task_vars' in inspect.signature(self._ensure_invocation).parameters else {}
            result = self._ensure_invocation(failure.result, **more)
        finally:
            self._bundle.close()
            self._plain_names.close()
        return result

    # Whether

    def _kind(self) -> str:
        """'folder', 'file' or 'large' (a file), if this is one of the controller, for a target with Python; '': core's action does it, as ever."""
        arguments = self._task.args
        source, content = arguments.get('src'), arguments.get('content')
        if not isinstance(arguments.get('dest'), str) or any(boolean(arguments.get(name, False), strict=False) for name in ('remote_src', 'raw')):
            return ''
        if getattr(self._connection._shell, '_IS_WINDOWS', False) or type(self)._execute_module is not ActionModule._execute_module:
            return ''  # mitogen puts its own methods before these
        try:
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                return 'file' if not source and self._inline(len(to_bytes(text))) else ''
            if not source or not isinstance(source, str):
                return ''
            path = to_bytes(self._find_needle('files', source), errors='surrogate_or_strict')
            if os.path.isdir(path):
                return 'folder'
            if not self._at_once():
                return ''
            self._size = os.path.getsize(path)
            return 'file' if self._size <= INLINE else 'large' if self._hashes_on_the_way() else ''
        except (AnsibleError, OSError, TypeError, ValueError):
            return ''  # core's code says what is wrong with it

    def _inline(self, size: int) -> bool:
        """Whether so many bytes go with the module."""
        return size <= INLINE and self._at_once()

    def _at_once(self) -> bool:
        """Whether our module is of use for a single file: it has to come without files itself. What validates a file may want it where core has it."""
        return not self._task.args.get('validate') and self._is_pipelining_enabled('new')

    def _hashes_on_the_way(self) -> bool:
        """Whether the connection can tell the digests of what it sends, and core's code asks for a file's where ours can answer."""
        return hasattr(self._connection, 'put_file_and_hash') and 'checksum' in CoreCopy._copy_file.__code__.co_names

    def _sources(self) -> dict[str, str] | None:
        """The source of core's modules; None where something else has taken the place of one, or it needs what our module has not brought."""
        sources = {}
        for name in CORE:
            found = self._shared_loader_obj.module_loader.find_plugin_with_context(f'ansible.legacy.{name}', collection_list=self._task.collections)
            if found.plugin_resolved_path != os.path.join(next(iter(ansible.modules.__path__)), f'{name}.py'):
                return None
            with open(found.plugin_resolved_path, encoding='utf-8') as file:
                source = file.read()
            if not THERE.issuperset(re.findall(r'^ *(?:from|import) +(ansible[\w.]*)', source, re.MULTILINE)):
                return None
            sources[name] = source
        return sources

    @contextlib.contextmanager
    def _in(self, stage: str) -> t.Iterator[None]:
        before, self._stage = self._stage, stage
        try:
            yield
        finally:
            self._stage = before

    # What core's code calls

    def _remote_expand_user(self, path: str, *args: t.Any, **kwargs: t.Any) -> str:
        if self._stage not in ('names', 'plan'):
            return super()._remote_expand_user(path, *args, **kwargs)
        if path not in self._expanded:
            self._expanded[path] = super()._remote_expand_user(path, *args, **kwargs)
        return self._expanded[path]

    def _copy_file(
        self, source_full: str, source_rel: str, content: t.Any, content_tempfile: t.Any, dest: str, task_vars: t.Any, follow: bool,
    ) -> dict[str, t.Any] | None:
        if self._stage == 'names':
            self._names.append((dest, source_rel))
            self._follow = follow
            return None
        if self._stage == 'plan':
            source_full = self._plain_names.plain(source_full)
        ask = (source_full, source_rel, content, content_tempfile, dest, task_vars, follow)
        if self._stage != 'plan':
            return super()._copy_file(*ask)
        self._size = 0
        with contextlib.suppress(OSError):  # core's code says what is wrong with it
            self._size = os.path.getsize(to_bytes(source_full, errors='surrogate_or_strict'))
        if self._size >= LARGE:
            self._place()
            self._need_folder()
            with self._hashing_on_the_way(self._core_sources) if self._at_once() and self._hashes_on_the_way() else self._in(''):
                return super()._copy_file(*ask)
        result = super()._copy_file(*ask)
        self._sent = self._seen = None
        if result and _OURS in result:
            self._returned[result[_OURS]] = (result, source_full, self._connection._shell.join_path(dest, source_rel))
        if self._bundle.size >= BUNDLE:
            self._place()
        return result

    def _execute_remote_stat(self, path: str, all_vars: t.Any, follow: bool, *args: t.Any, **kwargs: t.Any) -> dict[str, t.Any]:
        entry = self._entries.get(path) if self._stage == 'plan' else None
        if entry is None:
            if self._stage == 'large' and 'checksum' in kwargs:  # what decides whether it is sent
                return self._stat_large(path, all_vars, follow, *args, **kwargs)
            with self._in(''):
                return super()._execute_remote_stat(path, all_vars, follow, *args, **kwargs)
        if entry == 0:
            return {'exists': False, 'checksum': '1'}
        is_folder, link, sha1 = entry
        # The link itself is asked about only where links are followed, to find out where it leads.
        if link is None or follow:
            return {'exists': True, 'isdir': is_folder, 'islnk': False, 'checksum': sha1}
        return {'exists': True, 'isdir': False, 'islnk': True, 'lnk_source': link, 'checksum': ''}

    def _get_diff_data(self, destination: str, source: str, *args: t.Any, **kwargs: t.Any) -> dict[str, t.Any]:
        # Core returns the diff of a folder's only file, and of one that fails.
        if self._stage == 'plan' and len(self._names) > 1:
            self._seen = destination
            return {}
        with self._in(''):
            return super()._get_diff_data(destination, source, *args, **kwargs)

    def _transfer_file(self, local_path: str, remote_path: str) -> t.Any:
        if self._stage == 'file':
            with open(to_bytes(local_path, errors='surrogate_or_strict'), 'rb') as source:
                self._content = source.read()
            return remote_path
        if self._stage == 'large':
            return self._send_large(local_path, remote_path)
        if self._stage != 'plan':
            return super()._transfer_file(local_path, remote_path)
        try:
            self._sent = (*self._bundle.add(local_path), local_path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise AnsibleActionFail(f'The controller has no room for the files on their way: {os.path.dirname(self._bundle.path)}') from error
            raise AnsibleActionFail(f'{self._plain_names.meant(local_path)} cannot be read any more: {error.strerror}') from error
        return remote_path

    def _fixup_perms2(self, remote_paths: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        return remote_paths if self._stage in ('file', 'plan') else super()._fixup_perms2(remote_paths, *args, **kwargs)

    def _make_tmp_path(self, *args: t.Any, **kwargs: t.Any) -> str:
        """Core makes one before it knows whether it needs any."""
        shell = self._connection._shell
        # A module that comes as a file needs one, and so does what is sent as one.
        if self._stage in ('', 'large') or shell.tmpdir is not None or not self._is_pipelining_enabled('new'):
            return super()._make_tmp_path(*args, **kwargs)
        shell.tmpdir = NO_FOLDER
        return NO_FOLDER

    def _need_folder(self) -> None:
        """Has a temporary folder made on the target, unless there is one."""
        shell = self._connection._shell
        if shell.tmpdir in (None, NO_FOLDER):
            shell.tmpdir = None
            with self._in(''):
                self._make_tmp_path()

    def _remove_tmp_path(self, tmp_path: str | None, *args: t.Any, **kwargs: t.Any) -> None:
        if self._stage not in ('names', 'plan') and NO_FOLDER not in (tmp_path, self._connection._shell.tmpdir):
            super()._remove_tmp_path(tmp_path, *args, **kwargs)

    def _execute_module(self, module_name: t.Any = None, module_args: t.Any = None, *args: t.Any, **kwargs: t.Any) -> dict[str, t.Any]:
        if self._stage == 'diff':
            return self._answers[module_name]
        name = str(module_name or '').removeprefix('ansible.legacy.')
        if self._stage == 'file' and name == 'copy' and self._content is not None:
            return self._place_file(module_args)
        if self._stage == 'large' and name == 'copy' and self._arrived and self._arrived.path == module_args.get('src'):
            return self._place_large(module_args)
        if self._stage not in ('names', 'plan') or name not in CORE:
            return self._execute_on_target(module_name, module_args, *args, **kwargs)
        if self._stage == 'names':
            return {'changed': False}
        size = None
        if name == 'copy' and self._sent:
            size, sha1, path = self._sent
            if not self._task.args.get('checksum') and module_args['checksum'] != sha1:
                raise AnsibleActionFail(f'{self._plain_names.meant(path)} changed while it was being copied.')
        number = self._placed + len(self._requests)
        result = {'changed': False, _OURS: number}
        self._requests.append(Request(name, dict(module_args), size, self._seen if name == 'copy' else None))
        self._returned[number] = (result, None, None)
        return result

    def _execute_on_target(self, *args: t.Any, **kwargs: t.Any) -> dict[str, t.Any]:
        """A module, which must not take for its folder what is none."""
        shell = self._connection._shell
        if shell.tmpdir != NO_FOLDER:
            return super()._execute_module(*args, **kwargs)
        shell.tmpdir = None
        try:
            return super()._execute_module(*args, **kwargs)
        finally:
            if shell.tmpdir is None:
                shell.tmpdir = NO_FOLDER

    # A single large file

    @contextlib.contextmanager
    def _hashing_on_the_way(self, sources: dict[str, str]) -> t.Iterator[None]:
        self._core_sources = sources
        self._there: dict[str, t.Any] | None = None
        self._look_closer: t.Callable[[], dict[str, t.Any]] | None = None
        self._arrived: Arrived | None = None
        self._found: t.Any = None
        # Its module is nobody else's, and a task has a process of its own.
        self._core_checksum = core_copy.checksum
        core_copy.checksum = self._checksum_of_large
        try:
            with self._in('large'):
                yield
        finally:
            core_copy.checksum = self._core_checksum

    def _stat_large(self, *args: t.Any, **kwargs: t.Any) -> dict[str, t.Any]:
        """What is at the file's place, that of a very large one without its SHA-1 until it is asked for: it takes as long as to send it."""
        def look(checksum: bool) -> dict[str, t.Any]:
            with self._in(''):
                return super(ActionModule, self)._execute_remote_stat(*args, **{**kwargs, 'checksum': checksum})

        at_once = bool(kwargs['checksum']) and self._size < HASHED_IF_ASKED  # without `force` core does not ask for it
        self._look_closer = None if at_once else functools.partial(look, True)
        self._there = dict(look(at_once))
        return self._there

    def _checksum_of_large(self, path: str) -> str | None:
        """In the place of core's, which asks for the local file's SHA-1 to find out whether it is another than the target's: of another size it is."""
        try:
            with open(to_bytes(path, errors='surrogate_or_strict'), 'rb') as file:
                self._found = Identity.of(os.fstat(file.fileno()))
                size = self._found.size
        except OSError:
            return self._core_checksum(path)  # says what is wrong with it
        there = self._there
        if there is None:
            return self._core_checksum(path)
        if not there['exists'] or there.get('isreg') is False or there.get('readable') is False or there.get('size') not in (None, size):
            return NOT_YET
        if self._look_closer is None:
            return self._core_checksum(path)
        here = core_action.beside(self._core_checksum, path)
        there.update(self._look_closer())  # what core's code has as well, and compares with next
        return here()

    def _send_large(self, local_path: str, remote_path: str) -> str:
        sent = self._connection.put_file_and_hash(local_path, remote_path)
        sha1, md5 = sent['sha1'], sent['md5']
        known = sha1 is not None
        if not known:  # another host's transfer of the same file makes them, and has not ended yet: both ends hash it, as ever
            sha1, md5 = self._core_checksum(local_path), None
        # Core would have another SHA-1 of it from before.
        try:
            changed = self._found is not None and Identity.of(os.stat(to_bytes(local_path, errors='surrogate_or_strict'))) != self._found
        except OSError:
            changed = True
        if changed or sha1 is None:
            raise AnsibleActionFail(f'{local_path} changed while it was being copied.')
        self._arrived = Arrived(remote_path, sha1, md5, known)
        return remote_path

    def _place_large(self, arguments: dict[str, t.Any]) -> dict[str, t.Any]:
        """Core's ``copy``, with the digests of what was sent. Who becomes a user without rights may get there by a group, of which others are members:

        there the module makes them of what it places, and compares, as core's does.
        """
        arrived = t.cast(Arrived, self._arrived)
        if arguments.get('checksum') == NOT_YET and not self._task.args.get('checksum'):
            arguments['checksum'] = arrived.sha1
        trusted = arrived.sent and not self._is_become_unprivileged()
        digests = {'path': arrived.path, 'sha1': arrived.sha1, 'md5': arrived.md5} if trusted else None
        answer = self._core_module('copy', arguments, digests=digests)
        if not answer.get('checksum'):
            answer['checksum'] = arrived.sha1  # as core has it, in the place of what it takes for it
        return answer

    # What is done at once

    def _place_file(self, arguments: dict[str, t.Any]) -> dict[str, t.Any]:
        """Core's ``copy``, with what it copies."""
        content = t.cast(bytes, self._content)
        return self._core_module('copy', arguments, len(content), inline=base64.b64encode(content).decode('ascii'))

    def _core_module(self, name: str, arguments: dict[str, t.Any], size: int | None = None, **more: t.Any) -> dict[str, t.Any]:
        """One of core's modules, by ours."""
        answer = self._ours({
            'sources': {name: self._core_sources[name]}, 'common': {name: {}}, 'requests': [(name, arguments, size, None)],
            'contents': None, 'inline': None, 'diff_limit': 0, 'last': True, **more})
        answer.pop('all_of_it', None)
        return answer

    def _look(self) -> bool:
        """Looks at all files on the target. Whether it could: what is wrong there, core's own action says."""
        self._entries: dict[str, t.Any] = {}
        if not self._names:
            return True
        dest = self._names[0][0]
        plan = {
            'dest': dest, 'names': [name for _dest, name in self._names], 'follow': self._follow,
            'checksum': boolean(self._task.args.get('force', 'yes'), strict=False)}
        answer = self._ours(plan)
        if answer.get('failed') or 'seen' not in answer:
            return False
        seen = unpack(answer['seen'])
        if seen['one_file_twice']:
            return False
        join = self._connection._shell.join_path
        self._entries = {join(dest, name): entry for (_dest, name), entry in zip(self._names, seen['entries'], strict=True)}
        return True

    def _place(self) -> None:
        """Sends what is in the bundle, and has done what was noted. Raises PlacementFailed."""
        if not self._requests:
            return
        remote = inline = None
        with self._in(''):
            if any(request.size is not None for request in self._requests):
                if self._inline(self._bundle.size):
                    inline = base64.b64encode(self._bundle.read()).decode('ascii')
                else:
                    self._need_folder()
                    remote = self._connection._shell.join_path(self._connection._shell.tmpdir, 'contents')
                    self._transfer_file(self._bundle.whole(), remote)
                    self._fixup_perms2((self._connection._shell.tmpdir, remote), execute=False)
            common, requests = in_common(self._requests)
            answer = self._ours({
                'sources': self._core_sources, 'common': common, 'requests': requests, 'contents': remote, 'inline': inline,
                'diff_limit': C.MAX_FILE_SIZE_FOR_DIFF, 'last': len(self._names) == 1})
        all_of_it = answer.pop('all_of_it', None)
        if all_of_it is None:
            raise PlacementFailed(dict(answer, failed=True))
        self._last = answer
        self._changed = self._changed or all_of_it['changed']
        if all_of_it['failed_at'] is not None:
            raise PlacementFailed(self._failed(self._placed + all_of_it['failed_at'], all_of_it['before']))
        self._placed += len(self._requests)
        self._requests = []
        self._bundle.clear()

    def _ours(self, plan: dict[str, t.Any]) -> dict[str, t.Any]:
        with self._in(''):
            return self._execute_module(module_name=MODULE, module_args={'dest': self._task.args['dest'], '_plan': Unshown(pack(plan))}, task_vars=self._vars)

    def _complete(self, result: dict[str, t.Any]) -> None:
        """Puts into the result what came of it."""
        number = result.pop(_OURS, None)
        if number is None:
            result['changed'] = bool(result.get('changed')) or self._changed
            return
        # A folder with a single file: core returns what the last module returned.
        result.update(self._with_checksum(result))
        if 'path' in result and 'dest' not in result:
            result['dest'] = result['path']

    def _with_checksum(self, planned: dict[str, t.Any]) -> dict[str, t.Any]:
        last = dict(self._last)
        if planned.get('checksum') and not last.get('checksum'):
            last['checksum'] = planned['checksum']
        return last

    def _failed(self, number: int, before: dict[str, t.Any] | None) -> dict[str, t.Any]:
        """The result of the one that failed, as core has it."""
        planned, source, dest = self._returned[number]
        result = {**planned, **self._with_checksum(planned)}
        del result[_OURS]
        if before and source and dest and self._task.diff and result.get('diff') == [{}]:
            result['diff'] = [self._diff_of(source, dest, before)]
        return result

    def _diff_of(self, source: str, dest: str, before: dict[str, t.Any]) -> dict[str, t.Any]:
        """Core's diff for a file, from what the module had kept."""
        self._answers = {
            'ansible.legacy.file': before['peeked'],
            'ansible.legacy.slurp': {'content': before['content'], 'encoding': 'base64'} if before['content'] is not None else {'failed': True}}
        real = self._loader.get_real_file(source, decrypt=boolean(self._task.args.get('decrypt', True), strict=False))
        with self._in('diff'):
            diff = super()._get_diff_data(dest, real, self._vars)
        self._loader.cleanup_tmp_file(real)
        return diff


def replace_core() -> None:
    """Has ``ansible.builtin.copy`` be this one, also for ``template``."""
    core_action.replace('copy', core_copy, ActionModule)
    # It makes a temporary folder for `copy`, which makes one itself if it needs it, and removes that.
    template = action_loader.get('ansible.builtin.template', class_only=True)
    template._early_needs_tmp_path = lambda self: action_loader.get('ansible.legacy.copy', class_only=True) is not ActionModule
