#!/usr/bin/python
# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The target's side of the action of this name, plugins/action/copy.py: looks at many files, or places them, in one run.

Everything that is done to a file is done by ansible-core's own modules ``copy`` and ``file``. Their source comes along, and their ``main`` is called for one
file after the other, with the parameters that the action has for it: what is right about them stays right, in whichever version.
"""

from __future__ import annotations

DOCUMENTATION = r'''
module: copy
short_description: Copy files to a Linux target, in a few exchanges
version_added: 0.1.0
description:
  - Does what M(ansible.builtin.copy) does, with the same options and the same results. It needs a few exchanges with the target for a whole folder, and two
    for a single file or O(content) of at most 64 kB, where M(ansible.builtin.copy) needs six for each file.
  - A larger single file is hashed while it is sent, over a connection of this collection that has pipelining.
  - Everything else (larger single files by other connections, single files with O(validate) or by a connection without pipelining, O(remote_src=true), a
    Windows target) goes as by ansible-core's own action.
  - Works over any connection.
options:
  src:
    description:
      - The file or folder to be copied. It is on the controller, unless O(remote_src=true).
      - Of a folder whose name ends with C(/) only what is in it is copied, else the folder itself.
    type: path
  content:
    description: Text to be written into the file O(dest), in the place of O(src).
    type: str
  dest:
    description:
      - Where to on the target. For a folder in O(src) it is a folder, and made where it is missing.
    type: path
    required: true
  backup:
    description: Whether a file that is replaced is kept beside the new one, under a name with the time in it.
    type: bool
    default: false
  force:
    description: Whether a file on the target that is different is replaced. With V(false) only files that are missing are copied.
    type: bool
    default: true
  mode:
    description:
      - Permissions of the files, in octal as a string (V('0644')) or symbolic (V(u=rw,g=r)), or V(preserve) for those that the file has at O(src).
      - Where it is not given a new file gets what the target's umask says, and a file that is there keeps its own.
    type: raw
  directory_mode:
    description: Permissions of folders that are made, in the form of O(mode).
    type: raw
  remote_src:
    description: Whether O(src) is on the target.
    type: bool
    default: false
  follow:
    description: Whether symbolic links at O(dest) are followed.
    type: bool
    default: false
  local_follow:
    description: Whether symbolic links in O(src) are followed; they are, unless it is V(false).
    type: bool
  checksum:
    description: SHA-1 that the file has to have.
    type: str
extends_documentation_fragment:
  - decrypt
  - files
  - validate
  - action_common_attributes
  - action_common_attributes.files
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  platform:
    platforms: posix
  safe_file_operations:
    description: A file takes its place at once, when all of it is there.
    support: full
  vault:
    description: Files that are encrypted with Ansible Vault are decrypted.
    support: full
notes:
  - The option C(bundle_copies) of the callback P(sojourn.deploy.lifecycle#callback) has M(ansible.builtin.copy) be this one, for all of a run.
  - In a play or block with C(collections) of which V(sojourn.deploy) is one, plain C(copy) is this one. A role has to name it in C(collections) of its
    own C(meta/main.yml).
  - Files whose names are no UTF-8, which M(ansible.builtin.copy) refuses, are copied. One with a variable of the environment in its name (C($HOME)) fails with
    both.
  - A failure comes with the first file that fails, one that changes or vanishes on the controller meanwhile too. The files before it are in place then, as with
    M(ansible.builtin.copy).
  - In a folder, a file of 32 MB or more goes in exchanges of its own; the others go in bundles of 128 MB. What is at most 64 kB in all comes with the
    module that places it, and no temporary folder is made on the target.
  - A single file of more than 64 kB, and one of 32 MB or more in a folder, is read only once by a connection of this collection, when it is sent, unless
    one of the same size is at its place, or the same file is on its way to another host.
  - Where another C(copy) or C(file) takes the place of ansible-core's (in a folder C(library)), or with mitogen's strategy, all is left to ansible-core's
    action.
author:
  - The sojourn.deploy authors (@sojourn)
seealso:
  - module: ansible.builtin.copy
  - module: ansible.builtin.unarchive
  - module: ansible.windows.win_copy
'''

EXAMPLES = r'''
- name: Copy a folder
  sojourn.deploy.copy:
    src: site/
    dest: /srv/site/
    owner: www-data
    mode: "0644"
    directory_mode: "0755"

- name: Copy in the plays of one file without naming the collection each time
  hosts: web
  collections: [sojourn.deploy]
  tasks:
    - name: Copy a folder
      copy:
        src: site/
        dest: /srv/site/
'''

RETURN = r'''
dest:
  description: The folder or file on the target.
  returned: success
  type: str
  sample: /srv/site/
src:
  description: The folder on the controller; of a single file, where it was on the target before it was placed.
  returned: changed
  type: str
  sample: /home/me/site/
checksum:
  description: SHA-1 of a single file.
  returned: success, a single file
  type: str
  sample: 6e642bb8dd5c2e027bf21dd923337cbb4214f827
'''

import base64
import contextlib
import errno
import io
import json
import os
import shutil
import stat
import sys
import tempfile
import zlib

from ansible.module_utils import basic
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.module_utils.common.validation import check_type_path

try:
    # Core's `file` imports it: what is named here is brought along.
    from ansible.module_utils.common import sentinel  # noqa: F401  # pylint: disable=unused-import
except ImportError:
    pass  # up to ansible-core 2.17


class Ended(SystemExit):
    """What core's module for one file ends with, in the place of a line of output; its own ``except Exception`` must not stop it."""

    def __init__(self, result):
        super().__init__()
        self.result = result


class Part(AnsibleModule):
    """What core's modules get in the place of AnsibleModule: parameters come from here and results go here; all else is as it is."""

    given = {}
    #: The digests of the file at a path, where they are known; the action that has sent it to a folder of this user's alone has them.
    digests = {}

    def sha1(self, filename):
        return self._known(filename, 'sha1') or super().sha1(filename)

    def md5(self, filename):
        return self._known(filename, 'md5') or super().md5(filename)

    def _known(self, filename, algorithm):
        """What would be computed, unless that would fail: a target may have no MD5."""
        known = filename == self.digests.get('path') and algorithm in getattr(basic, 'AVAILABLE_HASH_ALGORITHMS', ())
        return self.digests.get(algorithm) if known else None

    def _load_params(self):
        self.params = dict(self.given)

    def _log_invocation(self):
        try:
            super()._log_invocation()
        except UnicodeEncodeError:
            self.log('Invoked for a file whose name is no UTF-8')

    def jsonify(self, data):
        """The last step but one of a module, up to ansible-core 2.18."""
        raise Ended(data)

    def _record_module_result(self, o):
        """The last step of a module, since ansible-core 2.19."""
        raise Ended(o)


class Core:
    """Core's modules, from their source."""

    def __init__(self, sources, internals):
        self.internals = internals
        self.mains = {}
        for name, source in sources.items():
            namespace = {'__name__': 'ansible_core_' + name}
            exec(compile(source, '<ansible.builtin.' + name + '>', 'exec'), namespace)
            namespace['AnsibleModule'] = Part
            self.mains[name] = namespace['main']

    def run(self, name, arguments):
        """Runs one of them once; its result, also of a failure that it tells. Others are raised."""
        Part.given = dict(self.internals, **arguments)
        Part.given['_ansible_module_name'] = 'ansible.legacy.' + name
        hook = sys.excepthook
        try:
            self.mains[name]()
        except Ended as ended:
            return ended.result
        except Exception:
            # Up to ansible-core 2.18 `file` tells its failures in a hook of its own.
            if sys.excepthook is hook:
                raise
            try:
                sys.excepthook(*sys.exc_info())
            except Ended as ended:
                return ended.result
            raise
        finally:
            sys.excepthook = hook
        raise RuntimeError(f'{name} ended without a result')


def look(module, plan):
    """What is at each path: None where that is for core's own `stat` to say, 0 for nothing, else [is it a folder, where its link leads or None, SHA-1].

    With it, whether two of the names are one file, by way of links: one that is written changes the other then.
    """
    base = check_type_path(plan['dest'])  # `~` and variables, as core's modules have it; the files' names mean themselves
    folders, places, entries = {}, set(), []
    for name in plan['names']:
        path = to_bytes(os.path.join(base, name), errors='surrogate_or_strict')
        folder, leaf = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        try:
            entry, link = _entry(module, path, plan)
        except OSError as error:
            entry, link = (0 if error.errno == errno.ENOENT else None), None
        entries.append(entry)
        places.add(link if link and plan['follow'] else os.path.join(folders[folder], leaf))
    return {'entries': entries, 'one_file_twice': len(places) < len(entries)}


def _entry(module, path, plan):
    found, link = os.lstat(path), None
    if stat.S_ISLNK(found.st_mode):
        link = os.path.realpath(path)
        if plan['follow']:
            try:
                found = os.stat(path)
            except OSError as error:
                return (0 if error.errno == errno.ENOENT else None), link
    sha1 = ''
    if plan['checksum'] and stat.S_ISREG(found.st_mode) and os.access(path, os.R_OK):
        sha1 = module.sha1(path)
    return [stat.S_ISDIR(found.st_mode), link and to_text(link, errors='surrogate_or_strict'), sha1], link


def place(module, plan, internals):
    """Does all that is to be done, in order, up to the first failure; the result of the last, and what is to be known of all."""
    # Who becomes a user without rights cannot write where the action's files are; then core's modules have no such folder either.
    folder = internals.get('_ansible_tmpdir')
    all_of_it = {'changed': False, 'failed_at': None, 'before': None}
    result = {}
    Part.digests = plan.get('digests') or {}
    with contextlib.ExitStack() as stack:
        contents = None
        if plan['contents']:
            contents = stack.enter_context(open(to_bytes(plan['contents'], errors='surrogate_or_strict'), 'rb'))
        elif plan['inline'] is not None:
            contents = io.BytesIO(base64.b64decode(plan['inline']))
        if contents and not folder:
            folder = own_folder(None if plan['contents'] else internals.get('_ansible_remote_tmp'))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        core = Core(plan['sources'], internals)
        for number, (name, own, size, seen) in enumerate(plan['requests']):
            arguments = dict(plan['common'][name], **own)
            if outside(arguments.get('_original_basename') or ''):
                module.fail_json(msg=f"{arguments['_original_basename']!r} is outside of the folder.")
            source = None
            if size is not None:
                source = arguments['src'] = os.path.join(folder, os.path.basename(arguments['src']))
                receive(module, contents, size, source)
            before = before_it(core, seen, plan['diff_limit']) if seen is not None else None
            result = core.run(name, arguments)
            if source is not None and os.path.lexists(to_bytes(source, errors='surrogate_or_strict')):
                os.unlink(to_bytes(source, errors='surrogate_or_strict'))
            all_of_it['changed'] = all_of_it['changed'] or bool(result.get('changed'))
            if result.get('failed'):
                all_of_it.update(failed_at=number, before=before)
                break
    if not (plan['last'] or result.get('failed')):
        result = {'changed': all_of_it['changed'], 'invocation': {}}  # of many files core returns no file's result
    for said in ('warnings', 'deprecations'):
        result.pop(said, None)  # kept by AnsibleModule for all of this process, and said at its end
    result['all_of_it'] = all_of_it
    return result


def own_folder(remote_tmp):
    """A new folder where core's is to be made, or above it: on the same file system, so that a file is moved from there as from core's."""
    place = check_type_path(remote_tmp) if remote_tmp else None
    while place and not os.path.isdir(place):
        place = os.path.dirname(place)
    try:
        return tempfile.mkdtemp(prefix='ansible-moduletmp-', dir=place)
    except OSError:
        return tempfile.mkdtemp(prefix='ansible-moduletmp-')


def outside(name):
    """Whether a name leads out of the folder that it is to be in."""
    return name.startswith('/') or '..' in name.split('/')


def receive(module, contents, size, path):
    """The next bytes of the bundle as a file of their own, beside it."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(to_bytes(path, errors='surrogate_or_strict'))  # left by an earlier one that failed
    # Executable by its owner, as core's is: a validation may run it.
    descriptor = os.open(to_bytes(path, errors='surrogate_or_strict'), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o700)
    with os.fdopen(descriptor, 'wb') as file:
        while size:
            data = contents.read(min(size, 1 << 20))
            if not data:
                module.fail_json(msg='The bundle of files ends too early.')
            file.write(data)
            size -= len(data)


def before_it(core, path, limit):
    """What core's action asks for a diff: about a file, and its content, unless it is too large or not text."""
    peeked = core.run('file', {'path': path, '_diff_peek': True})
    content = None
    size = peeked.get('size') or 0
    if peeked.get('state') not in (None, 'absent') and not peeked.get('appears_binary') and not (limit > 0 and size > limit):
        try:
            with open(to_bytes(path, errors='surrogate_or_strict'), 'rb') as file:
                content = base64.b64encode(file.read()).decode('ascii')
        except OSError:
            pass  # the diff goes without
    return {'peeked': peeked, 'content': content}


def unpack(text):
    """What the action packed."""
    return json.loads(zlib.decompress(base64.b64decode(text)).decode('ascii'))


def pack(value):
    """For the action."""
    return base64.b64encode(zlib.compress(json.dumps(value).encode('ascii'), 1)).decode('ascii')


def main():
    """Entry."""
    given = basic._load_params() or {}
    if '_plan' not in given:
        AnsibleModule(
            argument_spec={
                'src': {'type': 'path'},
                'content': {'type': 'str', 'no_log': True},
                'dest': {'type': 'path', 'required': True},
                'backup': {'type': 'bool', 'default': False},
                'decrypt': {'type': 'bool', 'default': True},
                'force': {'type': 'bool', 'default': True},
                'validate': {'type': 'str'},
                'directory_mode': {'type': 'raw'},
                'remote_src': {'type': 'bool', 'default': False},
                'local_follow': {'type': 'bool'},
                'checksum': {'type': 'str'},
                'follow': {'type': 'bool', 'default': False},
            },
            add_file_common_args=True,
            supports_check_mode=True,
        ).fail_json(msg='This module is called by the action of its name, and by nothing else.')
    # The plan is nothing secret, but long: no log is to have it.
    module = AnsibleModule(argument_spec={'dest': {'type': 'path'}, '_plan': {'type': 'str', 'no_log': True}}, supports_check_mode=True)
    plan = unpack(module.params['_plan'])
    if 'names' in plan:
        module.exit_json(changed=False, seen=pack(look(module, plan)), invocation={})
    # What Ansible tells every module beside its parameters is for core's modules as well.
    module.exit_json(**place(module, plan, {name: value for name, value in given.items() if name.startswith('_ansible_')}))


if __name__ == '__main__':
    main()
