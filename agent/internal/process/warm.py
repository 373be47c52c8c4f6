# Keeps a Python warm for the modules of Ansible: imports once what they all import, and forks for each of them.
# The agent starts it by the very command line of a module, on whose standard input it comes in the module's place, after a line
# that sets RENDEZVOUS. See warm_linux.go for who says what. Python 3.7 and newer.
_pristine = {name: value for name, value in globals().items() if name != 'RENDEZVOUS'}  # what is in a program's namespace when it begins

import sys

_path = list(sys.path)
# A program's own folder, here the working directory, comes first in the path: nothing may be imported from there.
sys.path = [entry for entry in sys.path if entry not in ('', '.')]

import __future__

import _imp
import array
import ast
import base64
import copy
import functools
import gc
import importlib
import importlib.machinery
import io
import itertools
import json
import mmap
import operator
import os
import re
import select
import shutil  # noqa: F401 - a module's wrapper imports it, as some of the others; pylint: disable=unused-import
import signal
import socket
import struct
import tempfile
import types
import warnings
import zipfile
import zipimport

#: Where the code of a template's modules says that it comes from, until a module's own archive is there.
PLACE = '<archive>'
#: How results are written and arguments read; a zip has those that its module needs.
PROFILES = 'ansible/module_utils/_internal/_json/_profiles/_module_'
#: In a module's program, begins the statement that has the zip; what is before is the same in all programs of one ansible-core.
BEGINNING = b'\nif __name__ == '
#: A program may say that it is not in UTF-8; see PEP 263.
CODING = re.compile(br'^[^\n]*\n?[^\n]*coding[=:](?!\s*utf-8)')
#: The flags of code objects that come from what it has imported from __future__.
FUTURE = functools.reduce(operator.or_, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names))
#: Of madvise(2), Linux 5.14 and newer: have a process write to pages without a change.
POPULATE_WRITE = 23
#: Bytes between two looks whether there is something to do.
AT_ONCE = 1 << 19
#: Areas of memory that cannot be had, after which no other is tried.
FAILURES = 4
#: Of a target's memory, what a process that waits takes at most is this part of what is available.
SPARE_MEMORY = 64
#: Bytes of memory that have to be available for a template of a module that may never come; each has some 7 MB of its own.
ROOMY = 1 << 30
#: Seconds after which a process that has been told nothing is one that waits.
UNHURRIED = 0.002
#: Further templates of one command line; the one that was used longest ago goes.
TEMPLATES = 12
#: Of the standard library, what has no effect beside being there (Python 3.10 and newer know the names).
STANDARD = frozenset(getattr(sys, 'stdlib_module_names', ())) - {'__future__', 'antigravity', 'idlelib', 'this', 'tkinter', 'turtle', 'turtledemo'}
#: What has an effect on what an interpreter finds when it starts, beside what is in its path; and on what the process of another user
#: gets from who makes it one: groups, limits, environment, or nothing, since it may no longer.
SYSTEM = (
    '/etc/ld.so.cache', '/etc/localtime', '/etc/nsswitch.conf', '/usr/lib/locale', '/usr/lib/locale/locale-archive',
    '/etc/passwd', '/etc/group', '/etc/environment', '/etc/default/locale', '/etc/locale.conf', '/etc/login.defs', '/etc/pam.d',
    '/etc/security', '/etc/security/limits.conf', '/etc/security/limits.d', '/etc/security/pam_env.conf',
    '/etc/sudoers', '/etc/sudoers.d', '/etc/doas.conf')


def look(paths):
    """How files and folders are now: an interpreter that was started before one changed might not find what one started now would."""
    found = []
    for path in paths:
        try:
            status = os.stat(path)
            found.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            found.append(None)
    return found


def watched():
    paths = [sys.executable, *SYSTEM]
    for entry in {*_path, os.path.dirname(os.__file__)}:
        paths += [entry, os.path.join(entry, 'site-packages')] if entry not in ('', '.') else []
    try:
        import site

        # Also those that are not there yet.
        paths += [*site.getsitepackages(), site.getusersitepackages()]
    except (ImportError, AttributeError):
        pass
    return paths


def effects():
    """What a module that is imported may do to its process beside being there; a template's must not."""
    return (sorted(os.listdir('/proc/self/fd')), len(os.listdir('/proc/self/task')), dict(os.environ), os.getcwd(), list(sys.path), list(sys.path_hooks),
            [signal.getsignal(number) for number in range(1, signal.NSIG)], sys.excepthook, sys.stdout, sys.stderr, sys.displayhook)


class Archive:
    """A module's zip: what of it was imported, and what was looked for in vain."""

    def __init__(self, data):
        self.data = data
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            self.files = {name: archive.read(name) for name in archive.namelist()}
        self.loaded = {}  # name: (module, code, file, content)
        self.missed = set()
        self.ends = False  # whether something of it does something when it is taken apart
        self.code = {}  # of what is left to be imported by each module's own process: file and source, code
        self.text, self.raw = '', b''  # how it is written in a program
        self.beginning = None  # of that program: what comes before the statement that has it, and the code of that
        self.own = Pages()
        self.places = Places()

    def file(self, name):
        base = name.replace('.', '/')
        for path, package in ((base + '/__init__.py', True), (base + '.py', False)):
            if path in self.files:
                return path, package
        return None

    # As a finder and loader of modules

    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] != 'ansible':
            return None
        found = self.file(name)
        if found is None:
            self.missed.add(name)
            return None
        spec = importlib.machinery.ModuleSpec(name, self, origin=PLACE + '/' + found[0], is_package=found[1])
        spec.has_location = True
        if found[1]:
            spec.submodule_search_locations = [os.path.dirname(spec.origin)]
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        path = self.file(module.__name__)[0]
        code = compile(self.files[path], module.__spec__.origin, 'exec', dont_inherit=True)
        self.loaded[module.__name__] = module, code, path, self.files[path]
        exec(code, module.__dict__)

    # The template

    def fits(self, base):
        """Whether what another archive's template has imported is just what this one would have."""
        for unused_module, unused_code, path, content in base.loaded.values():
            if self.files.get(path) != content:
                return False
        return not any(self.file(name) for name in base.missed)

    def prepare(self, base):
        """Imports what every module does; on top of such a base, what this one certainly will. False: something in it does more than to define things."""
        if base is None:
            # What the wrapper imports whatever module it runs.
            names = ['ansible.module_utils.basic', 'ansible.module_utils._internal._ansiballz._loader']
            names += [name[:-3].replace('/', '.') for name in sorted(self.files) if name.startswith(PROFILES) and name.endswith('.py')]
        else:
            self.loaded, self.missed = dict(base.loaded), set(base.missed)
            sys.modules.update((name, found[0]) for name, found in base.loaded.items())
            names = self.module()
        before = effects()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        kept = [os.dup(1), os.dup(2)]
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        finders = sys.meta_path[:]
        good = True
        try:
            sys.meta_path.insert(0, self)
            for name in names:
                if self.file(name) or name.partition('.')[0] in STANDARD:
                    importlib.import_module(name)
        except BaseException:
            good = False
        finally:
            sys.meta_path[:] = finders
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for number, descriptor in enumerate(kept, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.close(writer)
            good = good and not os.read(reader, 1)
            os.close(reader)
        return good and effects() == before

    def module(self):
        """Compiles what is not imported yet; gives the names of modules that the module itself imports whatever happens, first thing."""
        own = [name for name in self.files if name.endswith('.py') and not name.endswith('__init__.py') and (
            name.startswith('ansible/modules/') or name.startswith('ansible_collections/') and '/plugins/modules/' in name)]
        known = {path for unused_module, unused_code, path, unused_content in self.loaded.values()}
        trees = {}
        for path, source in self.files.items():
            if path in known or not path.endswith('.py'):
                continue
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter('always')
                try:
                    if path in own:
                        trees[path] = ast.parse(source)
                    code = compile(source, PLACE + '/' + path, 'exec', dont_inherit=True)
                except (SyntaxError, ValueError):
                    continue
            if not caught:  # else it is to say so each time
                self.code[path, source] = code
        if len(own) != 1 or own[0] not in trees:
            return []
        names = ['ansible.modules'] if own[0].startswith('ansible/modules/') else []  # it comes before the module itself
        for statement in trees[own[0]].body:
            if isinstance(statement, ast.ImportFrom) and not statement.level:
                found = statement.module or ''
                names += [found, *(found + '.' + alias.name for alias in statement.names)] if found.startswith('ansible.module_utils') else [found]
            elif isinstance(statement, ast.Import):
                names += [alias.name for alias in statement.names]
        return [name for name in names if name.partition('.')[0] in STANDARD or name.startswith('ansible.module_utils') or name == 'ansible.modules']

    # The program

    def learn(self, text, before):
        """Of a program that has it: how it is written there, and what is before that."""
        self.text, self.raw = text.decode(), text
        at = before.rfind(BEGINNING) + 1
        if not at or CODING.search(before[:at]):
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            try:
                code = compile(before[:at], '<stdin>', 'exec', dont_inherit=True)
            except (SyntaxError, ValueError):  # that was no end of a statement
                return
        if not caught:
            self.beginning = before[:at], code

    def compiled(self, before, after):
        """A program, of what is before this zip in it and after it, as code objects, which are to be run one after the other.

        Only what differs from the one that was learnt is compiled.
        """
        codes, flags, lines = [], 0, 0
        if self.beginning is not None and before.startswith(self.beginning[0]):
            known, code = self.beginning
            codes, flags, lines = [code], code.co_flags & FUTURE, known.count(b'\n')
            before = before[len(known):]
        if hasattr(types.CodeType, 'replace'):  # Python 3.8 and newer
            stand_in = os.urandom(16).hex()
            code = compile(b''.join([b'\n' * lines, before, stand_in.encode(), after]), '<stdin>', 'exec', flags, dont_inherit=True)
            code, count = exchanged(code, stand_in, self.text)
            if count == 1:
                return [*codes, code]
        return [*codes, compile(b''.join([b'\n' * lines, before, self.raw, after]), '<stdin>', 'exec', flags, dont_inherit=True)]

    def make_ready(self, told):
        """In a process that waits to be told what to run: does now what it will do anyway; gives it its finder.

        ``told``: where it will be told. Where that takes a while, it has by then pages of its own.
        """
        if not comes(told, UNHURRIED):
            self.own.take(told)
        self.remember()
        return Handover(self)

    def remember(self):
        """Has the first to decode the text that this zip is in its program be given the zip."""
        decode = base64.b64decode

        def remembered(text, *more, **others):
            base64.b64decode = decode
            return self.data if text is self.text and not more and not others else decode(text, *more, **others)

        base64.b64decode = remembered

    def settle(self):
        """For the time between two modules: all that was imported is out of sight."""
        for name in self.loaded:
            sys.modules.pop(name, None)
        gc.collect()
        self.places.share()
        self.own.find()
        self.ends = any(type(found).__module__.startswith('ansible') and ends(found) for found in gc.get_objects())
        gc.freeze()


class Places:
    """Where the programs of an archive put it: in folders whose names differ in what is random alone, and which the first one tells of."""

    LENGTH = struct.Struct('=H')
    ROOM = 4096

    def __init__(self):
        self._told = None

    def share(self):
        """In the template: has memory in common with all that it will fork."""
        try:
            self._told = mmap.mmap(-1, self.ROOM)
        except OSError:
            pass

    def tell(self, place):
        """In the process of a module: where its archive is."""
        if self._told is None or any(self._told[:self.LENGTH.size]):
            return
        text = os.fsencode(place)
        if len(text) <= self.ROOM - self.LENGTH.size:
            self._told[self.LENGTH.size:self.LENGTH.size + len(text)] = text
            self.LENGTH.pack_into(self._told, 0, len(text))

    def foresee(self):
        """In a process that waits: chooses now what will be random; gives where the archive is going to be, if nothing else comes to choose before."""
        if self._told is None:
            return None
        length, = self.LENGTH.unpack_from(self._told)
        folder, name = os.path.split(os.fsdecode(self._told[self.LENGTH.size:self.LENGTH.size + length]))
        names = tempfile._RandomNameSequence()
        chosen = next(names)
        if not length or len(os.path.basename(folder)) <= len(chosen):
            return None
        tempfile._name_sequence = itertools.chain((chosen,), names)
        return os.path.join(folder[:-len(chosen)] + chosen, name)


class Pages:
    """What a forked process has in common with its template until either writes to it, and what of that modules do write to.

    To copy page by page, as each comes to be written, takes longer than most modules do; to copy all takes more of the target than the module
    itself. So the first ones that end tell of their pages, by memory that they have in common with their template.
    """

    #: Of an area: where it begins, and its bytes. Of what is told: its bytes, and by how many modules.
    AREA = struct.Struct('=QQ')
    ROOM = 1 << 16
    #: Modules that tell: the first may have others of its own, with whom it shares what it has written to.
    TELL = 2
    #: Bits of pagemap(5), Linux 4.2 and newer: a page is there; nobody else has it.
    MINE = 1 << 63 | 1 << 56
    #: Pages in between that are copied as well: to ask once more takes as long.
    GAP = 2
    #: A module may put something else in their place.
    _open, _read, _close = os.open, os.pread, os.close

    def __init__(self):
        self._areas = []  # all that there is
        self._told = None  # the areas that were written to
        self._advise = None

    def find(self):
        """In the template: finds where they are."""
        try:
            import ctypes

            self._advise = ctypes.CDLL(None).madvise
            self._advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
            self._told = mmap.mmap(-1, self.ROOM)
            start = size = 0
            with open('/proc/self/smaps') as file:
                for line in file:
                    words = line.split()
                    if words[0] == 'Rss:':
                        if int(words[1]) * 1024 * 2 >= size > 0:  # else most of it was never touched
                            self._areas.append((start, size))
                    elif not words[0].endswith(':'):
                        start, stop = (int(word, 16) for word in words[0].split('-'))
                        size = stop - start if words[1].startswith('rw-p') and '[stack]' not in words else 0
        except Exception:  # where ctypes cannot be had, or cannot work, it is done without
            self._areas = []

    def tell(self):
        """In the process of a module, at its end: which pages it has written to. Whatever goes wrong here must not be the module's end."""
        try:
            length, tellers = self.AREA.unpack_from(self._told)
            if not self._areas or tellers >= self.TELL:
                return
            self.AREA.pack_into(self._told, 0, length, tellers + 1)
            found = []
            descriptor = self._open('/proc/self/pagemap', os.O_RDONLY | os.O_CLOEXEC)
            for start, size in self._areas:
                pages = array.array('Q', self._read(descriptor, size // mmap.PAGESIZE * 8, start // mmap.PAGESIZE * 8))
                first = last = None
                for number, page in enumerate(pages):
                    if page & self.MINE != self.MINE:
                        continue
                    if first is None or number - last > self.GAP:
                        if first is not None:
                            found.append(self._area(start, first, last))
                        first = number
                    last = number
                if first is not None:
                    found.append(self._area(start, first, last))
            self._close(descriptor)
            told = b''.join(found)
            if self._size(self._areas_told()) < self._size(self.AREA.iter_unpack(told)) and len(told) <= self.ROOM - self.AREA.size:
                self._told[self.AREA.size:self.AREA.size + len(told)] = told
                self.AREA.pack_into(self._told, 0, len(told), tellers + 1)
        except Exception:
            pass

    def _areas_told(self):
        return list(self.AREA.iter_unpack(self._told[self.AREA.size:self.AREA.size + self.AREA.unpack_from(self._told)[0]]))

    @staticmethod
    def _size(areas):
        return sum(size for unused_start, size in areas)

    def _area(self, start, first, last):
        return self.AREA.pack(start + first * mmap.PAGESIZE, (last - first + 1) * mmap.PAGESIZE)

    def take(self, order):
        """In a forked process: makes its own what it will write to, until it is told what to do. Where memory is short it leaves that."""
        try:
            areas = self._areas_told()
            if not areas or available() < self._size(areas) * SPARE_MEMORY:
                return
        except (OSError, StopIteration, ValueError, IndexError, TypeError, struct.error):
            return
        taken = failed = 0
        for start, size in areas:
            for offset in range(0, size, AT_ONCE):
                part = min(AT_ONCE, size - offset)
                taken += part
                if taken >= AT_ONCE:
                    taken = 0
                    if comes(order, 0):
                        return
                # Kernels before 5.14 do not know it. An area may have gone since.
                if self._advise(start + offset, part, POPULATE_WRITE):
                    failed += 1
                    if failed == FAILURES:
                        return


def available():
    """Bytes of memory that this process and others may still have: the target's, and what its control groups (of version 2) leave."""
    with open('/proc/meminfo') as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith('MemAvailable:'))
    with open('/proc/self/cgroup') as file:
        group = next((line[3:].strip() for line in file if line.startswith('0::/')), '/')
    while group != '/':
        try:
            with open('/sys/fs/cgroup' + group + '/memory.max') as most, open('/sys/fs/cgroup' + group + '/memory.current') as now:
                limit, taken = most.read().strip(), int(now.read())
            free = free if limit == 'max' else min(free, int(limit) - taken)
        except OSError:
            pass
        group = os.path.dirname(group)
    return free


def roomy():
    """Whether there is memory for what may never be needed."""
    try:
        return available() >= ROOMY
    except (OSError, StopIteration, ValueError, IndexError):
        return False


def comes(descriptor, seconds):
    """Whether there is something to be read, or will be within that time."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def exchanged(code, old, new):
    """A code object with another text among its constants, and how often it was there."""
    constants, count = [], 0
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            constant, more = exchanged(constant, old, new)
            count += more
        elif isinstance(constant, str) and constant == old:
            constant, count = new, count + 1
        constants.append(constant)
    return (code.replace(co_consts=tuple(constants)), count) if count else (code, 0)


class Handover:
    """In the module's process: when it first imports something of its archive, what the template has of it is put there at once."""

    def __init__(self, archive):
        """Where it can be foreseen what is to be written into each module, that is done now."""
        self._archive = archive
        self._loaders = {}
        self._expected = archive.places.foresee() if hasattr(zipimport, '_compile_source') else None  # Python 3.8 and newer
        if self._expected is not None:
            self._place_all(self._expected, zipimport.zipimporter.__new__(zipimport.zipimporter))

    def find_spec(self, name, path=None, target=None):
        if name != 'ansible' or path is not None:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name)
        place = getattr(getattr(spec, 'loader', None), 'archive', None)
        if place is None or place != sys.path[0] or spec.origin != place + '/ansible/__init__.py':
            return spec  # it is from elsewhere
        if place == self._expected:
            for parent, loader in self._loaders.items():
                loader.__dict__.update(spec.loader.__dict__)
                loader.prefix = parent + '/' if parent else ''
        else:
            self._place_all(place, spec.loader)
        if self._expected is not None:
            tempfile._name_sequence = None  # the next one to need names has others made, as ever
        self._archive.places.tell(place)
        sys.modules.update((name, found[0]) for name, found in self._archive.loaded.items())
        if hasattr(zipimport, '_compile_source'):
            self._remember(place)
        return importlib.machinery.ModuleSpec('ansible', self, origin=spec.origin, is_package=True)

    def _place_all(self, place, loader):
        self._loaders = {'': loader}
        for module, code, file, unused_content in self._archive.loaded.values():
            self._place(module, code, place, file, self._loaders)

    @staticmethod
    def _place(module, code, place, file, loaders):
        """As if it had been imported from the archive."""
        path = place + '/' + file
        parent = '/'.join(module.__name__.split('.')[:-1])
        loader = loaders.get(parent)
        if loader is None:
            # Many of them, one as the other but for the folder: to make one looks for the archive on the disk.
            loader = loaders[parent] = copy.copy(loaders['']) if hasattr(loaders[''], '__dict__') else zipimport.zipimporter(place + '/' + parent)
            if hasattr(loader, '__dict__'):
                loader.prefix = parent + '/'
        spec = importlib.machinery.ModuleSpec(module.__name__, loader, origin=path, is_package=module.__spec__.submodule_search_locations is not None)
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations = [os.path.dirname(path)]
            module.__path__ = spec.submodule_search_locations
        if module.__spec__.cached is not None and module.__spec__.cached.startswith(PLACE):
            spec.cached = place + module.__spec__.cached[len(PLACE):]
        module.__spec__, module.__loader__, module.__file__ = spec, loader, path
        module.__cached__ = spec.cached if hasattr(loader, 'exec_module') else None  # before Python 3.10 it has none
        _imp._fix_co_filename(code, path)

    def _remember(self, place):
        known, compile_source = self._archive.code, zipimport._compile_source

        def remembered(path, source):
            code = known.get((path[len(place) + 1:], source))  # asked for its file's name alone, zipimport has a module compiled for that
            if code is None:
                return compile_source(path, source)
            _imp._fix_co_filename(code, path)
            return code

        zipimport._compile_source = remembered

    def create_module(self, spec):
        return sys.modules[spec.name]

    def exec_module(self, module):
        module.__spec__ = importlib.machinery.ModuleSpec('ansible', module.__loader__, origin=module.__file__, is_package=True)
        module.__spec__.has_location = True
        module.__spec__.submodule_search_locations = module.__path__


class Forked(Exception):
    """This process has become another template while it did what the first one was told."""


class Template:
    """A process that forks: for modules, or for further templates. It ends after the connection that it hears by, and after all that it has forked."""

    def __init__(self, connection):
        self.connection = connection
        self.archive = None  # the first one has none, and passes on to those that have
        self.templates = {}  # of the first one: hash of the zip: its connection, or None where it can have none; the last used is the last
        self.bases = []  # of the first one: archive and connection of templates to make others from
        self.children = {}  # process id: where to report its end; None: nowhere
        self.ended, self.end = os.pipe()
        os.set_blocking(self.end, False)
        os.set_blocking(self.ended, False)
        self.handler = signal.signal(signal.SIGCHLD, lambda *unused: None)
        signal.set_wakeup_fd(self.end, warn_on_full_buffer=False)

    def close(self):
        """In a process that is forked off: nothing of the template's own goes with it."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, self.handler)
        self.connection.close()
        for descriptor in (self.ended, self.end, *self.children.values()):
            if descriptor is not None:
                os.close(descriptor)
        for connection in (*self.templates.values(), *(connection for unused, connection in self.bases)):
            if connection is not None:
                connection.close()
        self.children, self.templates, self.bases = {}, {}, []

    def serve(self):
        """Comes back in the process of a module: the descriptor by which it hears what to run, the archive."""
        while True:
            ready = select.select([self.connection, self.ended], [], [])[0]
            if self.ended in ready:
                self.reap()
            if self.connection in ready:
                try:
                    message, descriptors = receive(self.connection)
                except OSError:
                    message = None
                if not message:
                    self.leave()
                order = json.loads(message)
                try:
                    job = getattr(self, order.pop('order'))(descriptors, **order)
                except Forked:
                    continue
                if job is not None:
                    return job

    def reap(self):
        try:
            os.read(self.ended, 4096)
        except BlockingIOError:
            pass
        while self.children:
            try:
                child, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.children.clear()
                return
            if not child:
                return
            report = self.children.pop(child, None)
            if report is not None:
                try:
                    os.write(report, b'e' + struct.pack('=i', status))
                except OSError:
                    pass
                os.close(report)

    def leave(self):
        """Nobody gives orders any more. What was begun has nobody else to report its end: it is waited for."""
        for connection in (self.connection, *self.templates.values(), *(connection for unused, connection in self.bases)):
            if connection is not None:
                connection.close()
        self.reap()
        while self.children:
            select.select([self.ended], [], [])
            self.reap()
        os._exit(0)

    # Orders

    def learn(self, descriptors, what, ahead=False):
        """The agent gives a zip, in base64, and what was before it in its program; a template is made for it.

        Ahead: nothing has been run of it, and may never be. So no other template goes for it, and it is the first to go.
        """
        if not ahead:
            while len(self.templates) >= TEMPLATES:
                self.forget(next(iter(self.templates)))
            self.templates[what] = self.learnt(descriptors)
        elif what not in self.templates and len(self.templates) < TEMPLATES and roomy():
            self.templates = {what: self.learnt(descriptors), **self.templates}
        for descriptor in descriptors:
            os.close(descriptor)

    def learnt(self, descriptors):
        content = opened(read(descriptors[0]))
        if content is None:
            return None
        base = next((connection for known, connection in self.bases if content.fits(known)), None) or self.base(content, descriptors)
        return self.template(base, descriptors[:2]) if base is not None else None

    def base(self, content, descriptors):
        """Makes the template of templates for all zips in which what every module imports is the same."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = forked()
        if child is None:
            ours.close()
            theirs.close()
            return None
        if not child:
            ours.close()
            for descriptor in descriptors:
                os.close(descriptor)
            self.close()
            self.__init__(theirs)
            self.become(content, None)
            raise Forked
        self.children[child] = None
        theirs.close()
        answer = ours.recv(1 << 17)
        if not answer:
            ours.close()
            return None
        loaded, missed = json.loads(answer)
        content.loaded = {name: (None, None, path, content.files[path]) for name, path in loaded.items()}
        content.missed = set(missed)
        self.bases.append((content, ours))
        return ours

    @staticmethod
    def template(base, descriptors):
        """Has a base make the template of one zip."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            send(base, {'order': 'branch', 'what': None}, [theirs.fileno(), *descriptors])
        if ours.recv(1 << 17):
            return ours
        ours.close()
        return None

    def branch(self, descriptors, what):
        """The first template has this base make the template of one zip."""
        connection, *files = descriptors
        text, before = map(read, files)
        content = opened(text)
        for file in files:
            os.close(file)
        child = forked()
        if child is None:
            os.close(connection)
            return
        if not child:
            base = self.archive
            self.close()
            self.__init__(socket.socket(fileno=connection))
            content.learn(text, before)
            self.become(content, base)
            return
        os.close(connection)
        self.children[child] = None

    def become(self, archive, base):
        """A template for an archive."""
        if not archive.prepare(base):
            os._exit(0)
        archive.settle()
        self.archive = archive
        self.connection.send(json.dumps([{name: found[2] for name, found in archive.loaded.items()}, sorted(archive.missed)]).encode())

    def forget(self, archive):
        connection = self.templates.pop(archive)
        if connection is not None:
            connection.close()

    def run(self, descriptors, what):
        """Forks for a module of a zip; with the descriptor its end is reported, or that no such zip is known."""
        report, = descriptors
        if self.archive is None:
            connection = self.templates.pop(what, self)
            if connection is self:
                os.write(report, b'u')
                os.close(report)
                return None
            self.templates[what] = connection
            if connection is not None:
                try:
                    send(connection, {'order': 'run', 'what': what}, descriptors)
                except OSError:  # somebody has killed it
                    self.forget(what)
                    os.write(report, b'u')
                os.close(report)
                return None
        child = forked()
        if child is None:
            os.close(report)
            return None
        if child:
            self.children[child] = report
            return None
        self.close()
        return report, self.archive


def forked():
    """As os.fork; None where the target is short of memory or processes: no reason for the template to go, which others wait for."""
    try:
        return os.fork()
    except OSError:
        return None


def read(descriptor):
    with open(descriptor, 'rb', closefd=False) as file:
        file.seek(0)
        return file.read()


def read_all(descriptor):
    """What comes, until its end."""
    pieces = []
    while not pieces or pieces[-1]:
        pieces.append(os.read(descriptor, 1 << 20))
    return b''.join(pieces)


def opened(text):
    try:
        return Archive(base64.b64decode(text))
    except (zipfile.BadZipFile, ValueError, EOFError, RuntimeError, NotImplementedError):
        return None


def receive(connection):
    message, ancillary, unused_flags, unused_address = connection.recvmsg(65536, socket.CMSG_SPACE(4 * 8))
    descriptors = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors += [number for number, in struct.iter_unpack('=i', data[:len(data) - len(data) % 4])]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return message, descriptors


def send(connection, order, descriptors):
    connection.sendmsg([json.dumps(order).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f'={len(descriptors)}i', *descriptors))])


def begin(report, archive):
    """Makes this the process that a cold one would have been, once it is told what to run.

    Gives the program in two parts, or in one where nothing of it is known, its namespace, the archive, the socket that its end may be said to.
    """
    os.setsid()
    # The agent learns the process id from the message's credentials, and puts the process where its tree is kept together.
    os.write(report, b'f' if archive is not None else b'w')
    handover = archive.make_ready(report) if archive is not None else None
    with socket.socket(fileno=report) as connection:
        message, descriptors = receive(connection)
        if not message:
            os._exit(255)
        if look(_state[0]) != _state[1]:
            connection.send(b's')
            os._exit(255)
        connection.send(b'b')
        if connection.recv(1) != b'g':
            os._exit(255)
    order, unused_newline, program = message.partition(b'\n')
    order = json.loads(order)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    try:
        os.chdir(order['what'])
    except OSError:
        pass  # where another user's process is begun there as well
    before = order['before']
    if before is not None:
        program, after = program[:before], program[before:]
    else:  # it is too long for a message, or there is no template with its zip
        program, after = read_all(0), None
        if archive is not None:
            program, unused_zip, after = program.partition(archive.raw)
    sys.path[:] = _path
    tempfile.tempdir = None
    importlib.invalidate_caches()
    if handover is not None:
        sys.meta_path.insert(0, handover)
    main = types.ModuleType('__main__')
    main.__dict__.clear()
    main.__dict__.update(_pristine)
    sys.modules['__main__'] = main
    return program, after, main.__dict__, archive, order['end']


_standard = os.path.dirname(os.__file__) + '/'


def finish(program, before, archive):
    """Ends a program as an interpreter does, but for taking apart what the template has imported, which takes longest and which nobody could notice.

    ``program``: its namespace; ``before``: the modules that were there when it began. False: somebody could notice something, and Python is to go on
    with an end of its own; all that has been done would come first there as well.
    """
    if archive is not None:
        archive.own.tell()
    threading = sys.modules.get('threading')
    if threading is not None and (threading.active_count() > 1 or getattr(threading, '_threading_atexits', None)):
        return False
    if archive is None or archive.ends or sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__ or sys.warnoptions or sys.flags.dev_mode:
        return False
    import atexit

    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return False
    program.clear()
    mine = {name: module for name, module in sys.modules.items() if name not in before}
    if any(foreign(module) for name, module in mine.items() if name not in archive.loaded):
        return False
    kept = {name: module for name, module in mine.items() if name in archive.loaded}
    for name in mine:
        del sys.modules[name]
    del mine
    gc.collect()
    objects = gc.get_objects()  # what is older than the program is frozen, and not among them
    try:
        # There are few types; by their addresses, since they may compare themselves by code of their own.
        noticed = any(hasattr(kind, '__del__') for kind in {id(kind): kind for kind in map(type, objects)}.values()) and any(map(ends, objects))
    except Exception:  # that code of the module's own
        noticed = True
    if noticed:
        sys.modules.update(kept)
    return not noticed


def say_end(code, name, listed=os.listdir, close=os.close, change=os.chdir, connection=socket.socket):
    """Tells the agent with what exit code this process is about to end: it takes a while until all that it has in memory is taken apart.

    Whatever keeps it from that: its parent reports its end as well. The last four, since a module may have put something else in their place.
    """
    try:
        # Whoever reads them is to come to the end, and what the module has locked, listens at, or is in, is not to be found so by the next one.
        change('/')
        for descriptor in map(int, listed('/proc/self/fd')):
            try:
                close(descriptor)
            except OSError:
                pass  # that by which they were listed
        with connection(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
            agent.setblocking(False)
            agent.sendto(struct.pack('=i', code), '\0' + name)
    except Exception:
        pass


def foreign(module):
    """Whether it is machine code that is not of the standard library: who knows what it does at the end."""
    origin = getattr(getattr(module, '__spec__', None), 'origin', None) or ''
    return origin.endswith('.so') and not origin.startswith(_standard)


def ends(found):
    """Whether an object may do something when it is taken apart."""
    if isinstance(found, io.IOBase):
        return not found.closed and found.writable()
    return hasattr(type(found), '__del__')


os.chdir('/')  # nobody is to be kept from unmounting or removing another
_connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
_name, _token = globals().pop('RENDEZVOUS')
_connection.connect('\0' + _name)
_connection.send(_token.encode())
del _name, _token
_state = watched(), look(watched())
_program, _after, _main, _archive, _end_name = begin(*Template(_connection).serve())
_before = frozenset(sys.modules)
_code, _runs = None, False
try:
    for _part in _archive.compiled(_program, _after) if _archive is not None else [compile(_program, '<stdin>', 'exec', dont_inherit=True)]:
        _runs = True
        exec(_part, _main)
except SystemExit as _end:
    _code = _end.code
except KeyboardInterrupt:
    raise
except BaseException:
    _error = sys.exc_info()
    _error = _error[0], _error[1].with_traceback(_error[2].tb_next if _runs else None)  # this program's own frames are not the module's
    sys.excepthook(*_error, _error[1].__traceback__)
    del _error
    raise SystemExit(1) from None
if (_code is None or isinstance(_code, int)) and finish(_main, _before, _archive):
    _code = (_code or 0) & 0xff
    say_end(_code, _end_name)
    os._exit(_code)
raise SystemExit(_code)
