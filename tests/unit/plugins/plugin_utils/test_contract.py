"""Envelopes: what is made by a pattern, or read along the schema, is what zeep makes and reads; seeds are printed."""

from __future__ import annotations

import base64
import copy
import random
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import contract as contract_module
from ansible_collections.sojourn.deploy.plugins.plugin_utils import mtom
from ansible_collections.sojourn.deploy.plugins.plugin_utils.contract import ENVELOPE, NAMESPACE, Contract, contract

zeep = pytest.importorskip("zeep")
etree = pytest.importorskip("lxml.etree")
OPERATIONS = sorted(contract()._binding.all()) if hasattr(contract()._binding, "all") else []
EXECUTE = {
    "CommandLine": "true", "User": "root", "WaitSeconds": 1.5, "Handle": "a" * 32, "Release": ["b", "c"], "Warm": True, "Label": None,
    "Environment": [{"Name": "A", "Value": "x"}, {"Name": "B", "Value": ""}],
}  # fmt: skip
TEXTS = ["", " ", "x", "<&>\"'", "a\r\nb\tc\n", "é\N{SNOWMAN}\N{GRINNING FACE}", "]]>", "text-0", "x" * 5000]


@pytest.fixture
def fresh() -> Contract:
    return Contract(contract_module.os.path.join(contract_module.API_FOLDER, "deploy.wsdl"))


def canonical(envelope: Any) -> bytes:
    return etree.tostring(envelope, method="c14n")


# Out of arguments


def test_a_pattern_is_what_zeep_makes(fresh: Contract) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    choose = random.Random(seed)
    for _round in range(60):
        given = copy.deepcopy(EXECUTE)
        for name in ("CommandLine", "User", "Handle", "Label"):
            given[name] = choose.choice([*TEXTS, None])
        given["Release"] = choose.choices(TEXTS, k=choose.randrange(3)) or None
        given["Environment"] = [{"Name": choose.choice(TEXTS), "Value": choose.choice(TEXTS)} for _ in range(choose.randrange(3))] or None
        envelope, action = fresh.request("Execute", given)
        assert canonical(envelope) == canonical(fresh._made("Execute", {name: value for name, value in given.items() if value is not None}))
        assert action == "urn:sojourn:deploy:1#Execute"
    assert len(fresh._patterns) > 3 and None not in fresh._patterns.values()


def test_the_next_of_a_shape_is_made_without_zeep(fresh: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    first = canonical(fresh.request("Execute", EXECUTE)[0])
    monkeypatch.setattr(Contract, "_made", None)
    again = canonical(fresh.request("Execute", {**EXECUTE, "CommandLine": "false", "Label": None})[0])
    assert again == first.replace(b">true</", b">false</", 1)
    assert canonical(fresh.request("Execute", EXECUTE)[0]) == first, "a pattern does not change"


@pytest.mark.parametrize("change", [{"WaitSeconds": 2.5}, {"Warm": False}, {"Release": ["b"]}, {"Environment": None}, {"Input": b"x"}])
def test_another_shape_is_another_envelope(fresh: Contract, change: dict[str, Any]) -> None:
    fresh.request("Execute", EXECUTE)
    given = {**EXECUTE, **change}
    expected = canonical(fresh._made("Execute", {name: value for name, value in given.items() if value is not None}))
    assert canonical(fresh.request("Execute", given)[0]) == canonical(fresh.request("Execute", given)[0]) == expected


def test_numbers_and_truth_are_told_apart(fresh: Contract) -> None:
    for value in (True, 1, 1.0):
        fresh.request("Execute", {"CommandLine": "x", "TimeoutSeconds": value, "WaitSeconds": 1.0})
    assert len(fresh._patterns) == 3


@pytest.mark.parametrize(
    "arguments", [{"NoSuchThing": "y"}, {"CommandLine": "a\0b"}, {"CommandLine": "\x1b[0m"}, {"CommandLine": "\ud800"}, {"Environment": [{"Name": "A"}]}]
)
def test_what_cannot_be_said_is_refused_every_time(fresh: Contract, arguments: dict[str, Any]) -> None:
    for _time in range(2):
        with pytest.raises((TypeError, ValueError, zeep.exceptions.Error)):
            fresh.request("Execute", {"WaitSeconds": 1.0, **arguments})
        fresh.request("Execute", {"WaitSeconds": 1.0, "CommandLine": "x"})


def test_attachments_find_their_place(fresh: Contract) -> None:
    for data in (b"first", b"second" * 1000):
        placeholder = mtom.Placeholder(mtom.Bytes(data))
        envelope = fresh.request("WriteInput", {"Handle": "h", "Data": placeholder.token, "Close": True})[0]
        body = b"".join(mtom.Body(envelope, [placeholder]))
        assert body.count(b"xop:Include") == 1 and data in body and f"cid:{placeholder.token}@sojourn".encode() in body


def test_patterns_do_not_pile_up(fresh: Contract) -> None:
    for number in range(2 * contract_module.PATTERNS):
        fresh.request("ReadOutput", {"Handle": "h", "StandardOutputOffset": number, "StandardErrorOffset": 0, "WaitSeconds": 0.0})
    assert len(fresh._patterns) <= contract_module.PATTERNS


# Into results


def value_of(kind: Any, choose: random.Random) -> str:
    return {
        "Boolean": lambda: choose.choice(["true", "false", "1", "0"]),
        "Base64Binary": lambda: base64.b64encode(choose.randbytes(choose.randrange(40))).decode(),
        "Double": lambda: str(choose.uniform(-10, 10)),
        "HexBinary": lambda: choose.randbytes(4).hex(),
        "DateTime": lambda: "2026-11-28T18:00:00Z",
        "String": lambda: choose.choice(TEXTS).replace("\r", "\n"),
    }.get(next(name for name in (base.__name__ for base in type(kind).__mro__) if name in
               ("Boolean", "Base64Binary", "HexBinary", "Double", "DateTime", "String", "Long", "Int", "Integer", "UnsignedInt", "UnsignedLong")),
          lambda: str(choose.randrange(1 << 31)))()  # fmt: skip


def fill(element: Any, kind: Any, choose: random.Random) -> None:
    """Gives an element what its type has: each optional part or not, each repeated one up to three times."""
    if isinstance(kind, zeep.xsd.AnySimpleType):
        element.text = value_of(kind, choose)
        return
    for _name, part in kind.elements:
        for _time in range(choose.randrange(4) if part.accepts_multiple else choose.randrange(2) if part.min_occurs == 0 else 1):
            fill(etree.SubElement(element, part.qname), part.type, choose)


def answer_of(operation: str, choose: random.Random) -> Any:
    envelope = etree.Element(f"{{{ENVELOPE}}}Envelope")
    answer = etree.SubElement(etree.SubElement(envelope, f"{{{ENVELOPE}}}Body"), f"{{{NAMESPACE}}}{operation}Response")
    fill(answer, contract()._client.get_element(answer.tag).type, choose)
    return envelope


def by_zeep(operation: str, envelope: bytes) -> Any:
    found = contract()
    return contract_module.plain(found._binding.process_reply(found._client, found._binding.get(operation), contract_module._Reply(200, envelope)))


def come_to(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_answer_is_read_as_zeep_reads_it(operation: str) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    choose = random.Random(seed)
    for _round in range(20):
        envelope = etree.tostring(answer_of(operation, choose))
        assert contract().answer(operation, 200, envelope) == by_zeep(operation, envelope), envelope


def add_attribute(element: Any) -> None:
    element.set("{http://www.w3.org/2001/XMLSchema-instance}nil", "true")


def add_child(element: Any) -> None:
    etree.SubElement(element, f"{{{NAMESPACE}}}Other").text = "x"


def swap_children(element: Any) -> None:
    element[:] = reversed(element)


def repeat(element: Any) -> None:
    element.addnext(copy.deepcopy(element))


def change_text(element: Any) -> None:
    element.text = "no number"


def drop(element: Any) -> None:
    element.getparent().remove(element)


@pytest.mark.parametrize("fault", [add_attribute, add_child, swap_children, repeat, change_text, drop])
@pytest.mark.parametrize("operation", ["Execute", "GetInfo", "ListExecutions", "Stat"])
def test_what_is_out_of_the_ordinary_is_zeeps(operation: str, fault: Callable[[Any], None]) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    choose = random.Random(seed)
    for _round in range(15):
        envelope = answer_of(operation, choose)
        inside = list(envelope[0].iterdescendants())
        fault(choose.choice(inside))
        text = etree.tostring(envelope)
        if f"{operation}Response".encode() not in text:
            continue
        assert come_to(lambda text=text: contract().answer(operation, 200, text)) == come_to(lambda text=text: by_zeep(operation, text)), text


def test_most_answers_are_read_without_zeep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a change of zeep's insides would go unnoticed but for the time that it costs."""
    found = contract()
    known = {operation for operation in OPERATIONS if found._reader(operation) is not None}
    assert {"Execute", "ReadOutput", "GetInfo", "Stat", "PutFile", "GetFile", "QueryPackages", "RenewLease"} <= known
    monkeypatch.setattr(found, "_binding", None)
    answer = answer_of("Execute", random.Random(1))
    assert found.answer("Execute", 200, etree.tostring(answer))["handle"] == answer.findtext(f".//{{{NAMESPACE}}}Handle")


@pytest.mark.parametrize(
    "text", [b"<x>ExecuteResponse</x>", b"ExecuteResponse", b'<!DOCTYPE x [<!ENTITY a "b">]><x>ExecuteResponse</x>', b"<GetInfoResponse/>"]
)
def test_what_is_no_answer(text: bytes) -> None:
    with pytest.raises((zeep.exceptions.Error, ValueError, AttributeError)):
        contract().answer("Execute", 200, text)


@pytest.mark.parametrize(
    ("name", "snake"),
    [("TLSVersion", "tls_version"), ("LeaseRemainingSeconds", "lease_remaining_seconds"), ("Id", "id"), ("BootId", "boot_id")],
)
def test_snake_case(name: str, snake: str) -> None:
    assert contract_module.snake(name) == snake
