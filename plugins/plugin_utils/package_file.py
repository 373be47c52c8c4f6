# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A package file on the controller: its kind, and the name and version that it carries; it says nothing about the target.

A .deb is read with python-debian, an .rpm with rpmfile. For .msi there is no kept library that works outside Windows, so olefile
opens the compound file and the few lines at the end read the one table that is needed.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import hashlib
import os
import re
import struct
import typing as t
import zipfile

from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.libraries import library, require

WINDOWS = 'windows'
LINUX = 'linux'

_STEP = 'reading the package'
_COMPOUND_FILE = b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1'


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of package: where it runs, what database knows it, and how its files are told."""

    name: str
    family: str | None
    manager: str | None = None
    suffixes: tuple[str, ...] = ()
    #: What its files begin with; empty: anything.
    beginnings: tuple[bytes, ...] = ()


KINDS = {kind.name: kind for kind in (
    Kind('msi', WINDOWS, WINDOWS, ('.msi',), (_COMPOUND_FILE,)),
    Kind('exe', WINDOWS, WINDOWS, ('.exe',), (b'MZ',)),
    # A cabinet; since Windows 11 22H2 also a WIM image.
    Kind('msu', WINDOWS, None, ('.msu',), (b'MSCF', b'MSWIM')),
    Kind('rpm', LINUX, 'rpm', ('.rpm',), (b'\xed\xab\xee\xdb',)),
    Kind('deb', LINUX, 'dpkg', ('.deb',), (b'!<arch>\ndebian',)),
    # Self-extracting packages go by .run and .bin (Dell: .BIN).
    Kind('sh', LINUX, None, ('.sh', '.run', '.bin'), ()),
    Kind('scexe', LINUX, None, ('.scexe',), ()),
    Kind('zip', None, None, ('.zip',), (b'PK\x03\x04', b'PK\x05\x06')),
)}

#: A file without a suffix that tells is known by its beginning, where that belongs to one kind only.
_BY_BEGINNING = (*((beginning, kind.name) for kind in KINDS.values() for beginning in kind.beginnings if kind.name != 'msi'), (b'#!', 'sh'), (b'\x7fELF', 'sh'))
_LONGEST_BEGINNING = 16


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a package says of itself; None where it says nothing."""

    name: str | None = None
    version: str | None = None
    architecture: str | None = None
    #: An .msi's ProductCode, under which Windows lists it.
    product_id: str | None = None


@dataclasses.dataclass(frozen=True)
class PackageFile:
    """A package file on the controller. ``kind`` is the file's, ``runs`` the kind of what is run: the same, but for a zip's entry."""

    path: str
    #: Bytes.
    size: int
    kind: str
    runs: str
    entry: str | None
    #: What the file that is run begins with.
    beginning: bytes

    @property
    def name(self) -> str:
        """The file's name, for people."""
        return os.path.basename(self.path)

    @property
    def family(self) -> str:
        """The family of targets that it runs on."""
        return t.cast(str, KINDS[self.runs].family)

    @property
    def manager(self) -> str | None:
        """The package database that its kind is listed in, if there is one."""
        return KINDS[self.runs].manager

    @property
    def room(self) -> int:
        """Bytes that it takes on the target while it is installed, not counting what it installs."""
        if self.entry is None:
            return self.size
        with zipfile.ZipFile(self.path) as archive:
            return self.size + sum(entry.file_size for entry in archive.infolist())

    @contextlib.contextmanager
    def open(self) -> t.Iterator[t.IO[bytes]]:
        """The file that is run, for reading and seeking."""
        if self.entry is None:
            with open(self.path, 'rb') as file:
                yield file
        else:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.entry) as file:
                yield file


def _unreadable(path: str, detail: t.Any) -> SojournError:
    return SojournError('SD-107', step=_STEP, path=path, detail=detail)


def _kind_of(path: str, name: str, beginning: bytes) -> str:
    """Finds a file's kind by its name, else by its beginning. Raises SD-104."""
    suffix = os.path.splitext(name)[1].lower()
    for kind in KINDS.values():
        if suffix in kind.suffixes:
            return kind.name
    for known, kind_name in _BY_BEGINNING:
        if beginning.startswith(known):
            return kind_name
    raise SojournError('SD-104', step=_STEP, path=path, kinds=', '.join(KINDS))


def _check_beginning(path: str, kind: str, beginning: bytes) -> None:
    """A download that failed often leaves a web page under the package's name. Raises SD-107."""
    beginnings = KINDS[kind].beginnings
    if not beginning:
        raise _unreadable(path, 'it is empty')
    if beginnings and not beginning.startswith(beginnings):
        raise _unreadable(path, f'it is not a package of the kind {kind}: it begins with {beginning[:8]!r}')


def _open_entry(path: str, entry: str) -> tuple[str, bytes]:
    """The beginning of a zip's entry, and the entry as the archive writes it. Raises SD-102, 107."""
    wanted = entry.replace('\\', '/').removeprefix('./')
    try:
        with zipfile.ZipFile(path) as archive:
            # Archives made on Windows may hold backslashes; zipfile shows them as slashes only there.
            names = {name.replace('\\', '/').removeprefix('./'): name for name in archive.namelist() if not name.endswith('/')}
            if wanted not in names:
                some = ', '.join(sorted(names)[:5]) + (', ...' if len(names) > 5 else '')
                detail = f"'{entry}' is not in {os.path.basename(path)}, which holds {some or 'nothing'}"
                raise SojournError('SD-102', step=_STEP, option='entry', detail=detail)
            with archive.open(names[wanted]) as file:
                return names[wanted], file.read(_LONGEST_BEGINNING)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise _unreadable(path, error) from None


def identify(path: str, kind: str | None = None, entry: str | None = None) -> PackageFile:
    """Looks at a package file: its kind is found from its name or its first bytes unless it is given, and its first bytes must suit it.

    ``entry``: which file of a .zip is run; its kind is found likewise. Raises SD-102, 103, 104, 107.
    """
    try:
        with open(path, 'rb') as file:
            size = os.fstat(file.fileno()).st_size
            beginning = file.read(_LONGEST_BEGINNING)
    except FileNotFoundError:
        raise SojournError('SD-103', step=_STEP, path=path) from None
    except OSError as error:
        raise _unreadable(path, error.strerror or error) from None
    found = kind or _kind_of(path, os.path.basename(path), beginning)
    if found not in KINDS:
        raise SojournError('SD-102', step=_STEP, option='kind', detail=f"'{found}' is none of {', '.join(KINDS)}")
    _check_beginning(path, found, beginning)
    if found != 'zip':
        if entry:
            raise SojournError('SD-102', step=_STEP, option='entry', detail=f'it is for zip packages only, and {os.path.basename(path)} is of the kind {found}')
        return PackageFile(path, size, found, found, None, beginning)
    if not entry:
        raise SojournError('SD-102', step=_STEP, option='entry', detail='a zip package needs the name of the file in it that is to be run')
    inside, beginning = _open_entry(path, entry)
    runs = _kind_of(f'{path}:{entry}', inside, beginning)
    if runs == 'zip':
        raise SojournError('SD-102', step=_STEP, option='entry', detail='it is a zip itself')
    _check_beginning(f'{path}:{entry}', runs, beginning)
    return PackageFile(path, size, 'zip', runs, inside, beginning)


def checksum(path: str) -> str:
    """SHA-256 of a file on the controller, in hex. Raises SD-107."""
    try:
        with open(path, 'rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest()
    except OSError as error:
        raise _unreadable(path, error.strerror or error) from None


def read_checksum(option: str | None) -> str | None:
    """The option ``checksum``, 'sha256:<hex>' or '<hex>', as lower-case hex; None where it is not given. Raises SD-102."""
    if not option:
        return None
    algorithm, colon, digits = option.strip().lower().rpartition(':')
    if colon and algorithm != 'sha256':
        raise SojournError('SD-102', step='reading the options', option='checksum', detail=f"'{algorithm}' is not supported, sha256 is")
    if not re.fullmatch('[0-9a-f]{64}', digits):
        raise SojournError('SD-102', step='reading the options', option='checksum', detail='a SHA-256 has 64 hexadecimal digits')
    return digits


def verify_checksum(path: str, expected: str | None) -> None:
    """Compares a file with the checksum that the user expects (``read_checksum``). Raises SD-106, 107."""
    if expected is None:
        return
    actual = checksum(path)
    if actual != expected:
        raise SojournError('SD-106', step=_STEP, path=path, actual=actual, expected=expected)


def read_facts(package: PackageFile) -> Facts:
    """Reads name and version from a .deb, .rpm or .msi; other kinds do not say them in a form that the package database repeats.

    Raises SD-107 for a damaged file, SD-901 where the library that reads this kind is missing.
    """
    reader = _READERS.get(package.runs)
    if reader is None:
        return Facts()
    try:
        with package.open() as file:
            return reader(file)
    except SojournError:
        raise
    except Exception as error:  # a damaged file shows as whatever the library happens to trip over
        raise _unreadable(package.path, error or type(error).__name__) from None


def _text(value: t.Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode('utf-8', 'replace')
    return str(value).strip() or None if value is not None else None


def _read_deb(file: t.IO[bytes]) -> Facts:
    debfile = library('debian.debfile')
    require(debfile)
    control = debfile.DebFile(fileobj=file).debcontrol()
    return Facts(_text(control.get('Package')), _text(control.get('Version')), _text(control.get('Architecture')))


def _read_rpm(file: t.IO[bytes]) -> Facts:
    rpmfile = library('rpmfile')
    require(rpmfile)
    headers = rpmfile.open(fileobj=file).headers
    # rpmfile calls the epoch by the name that it had long ago.
    version, release, epoch = (_text(headers.get(name)) for name in ('version', 'release', 'serial'))
    full = '-'.join(part for part in (version, release) if part)
    # As the database writes it: an epoch of 0 is left out.
    return Facts(_text(headers.get('name')), f'{epoch}:{full}' if epoch and epoch != '0' else full or None, _text(headers.get('arch')))


def _read_msi(file: t.IO[bytes]) -> Facts:
    olefile = library('olefile')
    require(olefile)
    with olefile.OleFileIO(file) as compound:
        properties = read_msi_properties(lambda table: compound.openstream([msi_stream_name(table)]).read())
    return Facts(properties.get('ProductName'), properties.get('ProductVersion'), None, properties.get('ProductCode'))


_READERS: dict[str, t.Callable[[t.IO[bytes]], Facts]] = {'deb': _read_deb, 'rpm': _read_rpm, 'msi': _read_msi}


# Windows Installer databases. Microsoft describes their tables but not their bytes; these are as Wine's dlls/msi
# (table.c: encode_streamname; string.c: msi_load_string_table) reads and writes them.

_MSI_LETTERS = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._'


def msi_stream_name(table: str) -> str:
    """Name of the stream that holds a table: two letters to a character of the private range, behind a mark."""
    digits = [_MSI_LETTERS.index(letter) for letter in table]
    pairs = [digits[at:at + 2] for at in range(0, len(digits), 2)]
    return '\u4840' + ''.join(chr(0x3800 + pair[0] + (pair[1] << 6)) if len(pair) == 2 else chr(0x4800 + pair[0]) for pair in pairs)


def _msi_strings(pool: bytes, data: bytes) -> tuple[list[str], int]:
    """The database's strings by their number, and the bytes that a reference to one takes (2 or 3)."""
    (header,) = struct.unpack_from('<I', pool)
    code_page = header & 0x7FFFFFFF
    encoding = {0: 'latin-1', 65001: 'utf-8'}.get(code_page, f'cp{code_page}')
    try:
        codecs.lookup(encoding)
    except LookupError:
        encoding = 'latin-1'
    strings = ['']
    at, position = 4, 0
    while at < len(pool):
        length, references = struct.unpack_from('<HH', pool, at)
        at += 4
        if length == 0 and references:
            # Longer than 64 KiB: the next entry is the length.
            (length,) = struct.unpack_from('<I', pool, at)
            at += 4
        strings.append(data[position:position + length].decode(encoding, 'replace'))
        position += length
    return strings, 3 if header & 0x80000000 else 2


def read_msi_properties(read_stream: t.Callable[[str], bytes]) -> dict[str, str]:
    """The Property table, two columns of strings that are stored one after the other. ``read_stream`` gives a table's bytes."""
    strings, width = _msi_strings(read_stream('_StringPool'), read_stream('_StringData'))
    table = read_stream('Property')
    references = [int.from_bytes(table[at:at + width], 'little') for at in range(0, len(table), width)]
    rows = len(references) // 2
    return {strings[name]: strings[value] for name, value in zip(references[:rows], references[rows:], strict=True)}
