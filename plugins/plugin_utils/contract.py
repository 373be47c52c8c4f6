# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Envelopes by the WSDL (agent/api/deploy.wsdl), out of arguments and into results; not how they travel (that is channel.py).

zeep knows the WSDL, and makes and reads every envelope of a kind for the first time. It does so anew for each, which takes most of the time of a short
call; so what it made is kept as a pattern for the next of the same shape, and an answer that is just as the schema has it is read along the schema.
Whatever is out of the ordinary is zeep's.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import re
import secrets
import threading
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import API_FOLDER
from ansible_collections.sojourn.deploy.plugins.plugin_utils.libraries import library, require

zeep = library('zeep')
zeep_loader = library('zeep.loader')

NAMESPACE = 'urn:sojourn:deploy:1'
ENVELOPE = 'http://schemas.xmlsoap.org/soap/envelope/'
#: Shapes of arguments of which a pattern is kept.
PATTERNS = 256

_contract: Contract | None = None
_contract_lock = threading.Lock()


def contract() -> Contract:
    """The WSDL, parsed once for all sessions."""
    global _contract
    with _contract_lock:
        if _contract is None:
            _contract = Contract(os.path.join(API_FOLDER, 'deploy.wsdl'))
        return _contract


class Contract:
    """Envelopes by the WSDL: from arguments, and into results."""

    def __init__(self, path: str) -> None:
        require(zeep)
        # The file is local and refers to nothing, so zeep gets a transport that can fetch nothing.
        self._client = zeep.Client(path, transport=_NoTransport(), settings=zeep.Settings(strict=True, xml_huge_tree=True, forbid_dtd=True))
        self._service = self._client.create_service(f'{{{NAMESPACE}}}DeployBinding', 'https://agent/')
        self._binding = self._service._binding
        self._patterns: dict[t.Any, _Pattern | None] = {}
        self._readers: dict[str, _Reader | None] = {}

    def request(self, operation: str, arguments: dict[str, t.Any]) -> tuple[t.Any, str]:
        """(envelope, SOAPAction). None among the arguments is one that is not given. Raises zeep's exceptions, TypeError, ValueError."""
        given = {name: value for name, value in arguments.items() if value is not None}
        try:
            shape = operation, _shape(given)
        except _Unusual:
            return self._made(operation, given), self.action(operation)
        if shape not in self._patterns:
            if len(self._patterns) >= PATTERNS:
                self._patterns.clear()
            self._patterns[shape] = self._pattern(operation, given)
        pattern = self._patterns.get(shape)
        return self._made(operation, given) if pattern is None else pattern.filled(_texts(given)), self.action(operation)

    def action(self, operation: str) -> str:
        """The SOAPAction of an operation."""
        return self._binding.get(operation).soapaction

    def _made(self, operation: str, given: dict[str, t.Any]) -> t.Any:
        return self._client.create_message(self._service, operation, **given)

    def _pattern(self, operation: str, given: dict[str, t.Any]) -> _Pattern | None:
        """An envelope of this shape, by zeep; None where a text does not come out as it went in."""
        stand_ins: list[str] = []

        def stand_in(unused: str) -> str:
            stand_ins.append(f'text-{secrets.token_hex(16)}')
            return stand_ins[-1]

        envelope = self._made(operation, _mapped(given, stand_in))
        at = {element.text: number for number, element in enumerate(envelope.iter())}
        if any(text not in at for text in stand_ins):
            return None
        return _Pattern(envelope, [at[text] for text in stand_ins])

    def answer(self, operation: str, status: int, envelope: bytes) -> t.Any:
        """What an answer says, as ``plain`` has it. Raises zeep's exceptions, ValueError where it answers something else."""
        if status == 200:
            if f'{operation}Response'.encode('ascii') not in envelope:
                raise ValueError(f'it holds no {operation}Response')  # zeep would take anything
            try:
                return self._read(operation, envelope)
            except (_Unusual, zeep.exceptions.Error):
                pass
        return plain(self._binding.process_reply(self._client, self._binding.get(operation), _Reply(status, envelope)))

    def _read(self, operation: str, envelope: bytes) -> t.Any:
        """The answer of an operation, read along the schema. Raises _Unusual."""
        if operation not in self._readers:
            self._readers[operation] = self._reader(operation)
        reader = self._readers[operation]
        if reader is None:
            raise _Unusual
        root = zeep_loader.parse_xml(envelope, self._client.transport, settings=self._client.settings)
        body = _only(root, f'{{{ENVELOPE}}}Envelope', f'{{{ENVELOPE}}}Body')
        answer = _only(body, body.tag, f'{{{NAMESPACE}}}{operation}Response')
        values = reader(answer)
        return next(iter(values.values())) if len(values) == 1 else values  # as zeep does it

    def _reader(self, operation: str) -> _Reader | None:
        try:
            return _reader_of(self._client.get_element(f'{{{NAMESPACE}}}{operation}Response').type)
        except (_Unusual, AttributeError, zeep.exceptions.Error):
            return None


class _Unusual(Exception):
    """zeep is to do it."""


# Out of arguments

class _Pattern:
    """An envelope in which only texts are to be changed: the elements that have them, counted from the first."""

    def __init__(self, envelope: t.Any, places: list[int]) -> None:
        self._envelope = envelope
        self._places = places

    def filled(self, texts: list[str]) -> t.Any:
        """A copy with these texts. Raises ValueError where XML cannot have one."""
        envelope = copy.deepcopy(self._envelope)
        elements = list(envelope.iter())
        for number, text in enumerate(texts):
            elements[self._places[number]].text = text
        return envelope


def _shape(value: t.Any) -> t.Any:
    """What arguments have in common that differ in their texts only. Raises _Unusual where there is more to them than names, texts, numbers and truth."""
    if isinstance(value, str):
        return str
    if isinstance(value, (int, float)):
        return type(value), value  # True is no 1
    if isinstance(value, dict):
        return tuple((name, _shape(item)) for name, item in value.items())
    if isinstance(value, list):
        return list, *map(_shape, value)
    raise _Unusual


def _mapped(value: t.Any, change: t.Callable[[str], str]) -> t.Any:
    """The same with other texts."""
    if isinstance(value, dict):
        return {name: _mapped(item, change) for name, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def _texts(value: t.Any) -> list[str]:
    """All texts, in order."""
    found: list[str] = []
    _mapped(value, lambda text: found.append(text) or text)
    return found


# Into results

_Reader = t.Callable[[t.Any], t.Any]


def _only(parent: t.Any, tag: str, child: str) -> t.Any:
    """The one child of an element of this name."""
    if parent.tag != tag or len(parent) != 1 or parent[0].tag != child:
        raise _Unusual
    return parent[0]


def _reader_of(kind: t.Any) -> _Reader:
    """What reads an element of a type of zeep's: a sequence of elements, each of a type with a text or of another such sequence."""
    if isinstance(kind, zeep.xsd.AnySimpleType):
        return functools.partial(_read_text, kind.pythonvalue)
    sequences = [element for unused_name, element in kind.elements_nested]
    if kind.attributes or len(sequences) != 1 or not isinstance(sequences[0], zeep.xsd.Sequence) or sequences[0].accepts_multiple:
        raise _Unusual
    parts = []
    for element in sequences[0]:
        if not isinstance(element, zeep.xsd.Element):
            raise _Unusual
        parts.append((str(element.qname), snake(element.name), _reader_of(element.type), element.min_occurs > 0, element.accepts_multiple))
    return functools.partial(_read_sequence, parts)


def _read_text(value_of: t.Callable[[str], t.Any], element: t.Any) -> t.Any:
    if len(element) or element.attrib:
        raise _Unusual
    if element.text is None:
        return None
    try:
        return plain(value_of(element.text))
    except (TypeError, ValueError):
        raise _Unusual from None


def _read_sequence(parts: list[tuple[str, str, _Reader, bool, bool]], element: t.Any) -> dict[str, t.Any]:
    children = list(element)
    if element.attrib or not children:
        raise _Unusual
    values: dict[str, t.Any] = {}
    at = 0
    for tag, name, read, required, many in parts:
        found = []
        while at < len(children) and children[at].tag == tag and (many or not found):
            found.append(read(children[at]))
            at += 1
        if required and not found:
            raise _Unusual
        values[name] = found if many else found[0] if found else None
    if at < len(children):
        raise _Unusual
    return values


class _NoTransport:
    """Stands in for zeep's transport: reads the WSDL from the disk, and can send nothing."""

    session = None

    def load(self, url: str) -> bytes:
        with open(url, 'rb') as file:
            return file.read()


@dataclasses.dataclass
class _Reply:
    """As much of a requests.Response as zeep reads."""

    status_code: int
    content: bytes
    headers: dict[str, str] = dataclasses.field(default_factory=lambda: {'Content-Type': 'text/xml; charset=utf-8'})
    encoding: str = 'utf-8'


_WORD = re.compile(r'(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])')


@functools.lru_cache(maxsize=256)
def snake(name: str) -> str:
    """'LeaseRemainingSeconds' as 'lease_remaining_seconds', 'TLSVersion' as 'tls_version'."""
    return _WORD.sub('_', name).lower()


def plain(value: t.Any) -> t.Any:
    """A zeep object as dictionaries and lists with names in snake case; times as ISO 8601, binary as it is."""
    values = getattr(value, '__values__', None)
    if values is not None:
        return {snake(name): plain(item) for name, item in values.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if hasattr(value, 'isoformat'):
        return value.isoformat()
    return value
