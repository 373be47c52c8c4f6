"""MTOM: what is sent can be read, in bounded memory, however it is cut into pieces; what is malformed is refused."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import random
import tracemalloc
from collections.abc import Iterator

import pytest
from lxml import etree

from ansible_collections.sojourn.deploy.plugins.plugin_utils import mtom


def envelope(*texts: str) -> etree._Element:
    root = etree.Element("{urn:x}Envelope")
    for text in texts:
        etree.SubElement(root, "{urn:x}Data").text = text
    return root


def reader(data: bytes, boundary: str, chance: random.Random | None = None) -> mtom.Reader:
    stream = io.BytesIO(data)
    return mtom.Reader(lambda buffer: stream.readinto(buffer[: chance.randrange(1, 40)] if chance else buffer), boundary)


def parse(body: mtom.Body, chance: random.Random | None = None) -> tuple[mtom.Root, dict[str, bytes]]:
    data = b"".join(body)
    assert len(data) == body.length
    media_type, parameters = mtom.parse_content_type(body.content_type)
    assert media_type == "multipart/related" and parameters["type"] == "application/xop+xml" and parameters["start-info"] == "text/xml"
    parts = reader(data, parameters["boundary"], chance)
    headers = parts.next()
    assert headers is not None and f"<{mtom.content_id(headers)}>" == parameters["start"]
    root = mtom.Root(parts.all(1 << 20))
    found = {}
    while (headers := parts.next()) is not None:
        found[mtom.content_id(headers)] = parts.all(64 << 20)
    return root, found


@pytest.mark.parametrize("sizes", [(0,), (1,), (511, 0, 3), (65536, 65537), ((1 << 20) + 7, 32)])
def test_round_trip(sizes: tuple[int, ...]) -> None:
    contents = [os.urandom(size) for size in sizes]
    placeholders = [mtom.Placeholder(mtom.Bytes(content)) for content in contents]
    root, found = parse(mtom.Body(envelope(*(one.token for one in placeholders)), placeholders))
    values = [base64.b64decode(element.text) for element in etree.fromstring(root.envelope)]
    assert [found[root.reference(value)] for value in values] == contents


def test_any_pieces_and_contents_that_look_like_boundaries() -> None:
    seed = int(os.environ.get("SOJOURN_FUZZ_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"SOJOURN_FUZZ_SEED={seed}")
    chance = random.Random(seed)
    for unused in range(300):
        contents = []
        for unused_part in range(chance.randrange(1, 4)):
            odd = (b"\r\n", b"--", b"\r\n--sojourn-", b"\r", b"\n--", chance.randbytes(9))
            contents.append(b"".join(chance.choices(odd, k=chance.randrange(12))))
        placeholders = [mtom.Placeholder(mtom.Bytes(content)) for content in contents]
        unused_root, found = parse(mtom.Body(envelope(*(one.token for one in placeholders)), placeholders), chance)
        assert list(found.values()) == contents


def test_a_file_is_streamed_and_hashed_in_bounded_memory(tmp_path: os.PathLike[str]) -> None:
    size = 96 << 20
    path = os.path.join(tmp_path, "large")
    with open(path, "wb") as file:
        file.truncate(size)
    expected = hashlib.sha256(bytes(size)).digest()
    with open(path, "rb") as file:
        source = mtom.FileSource(file, size)
        data, checksum = mtom.Placeholder(source), mtom.Placeholder(mtom.Late(32, lambda: source.hash.digest()))
        body = mtom.Body(envelope(data.token, checksum.token), [data, checksum])
        tracemalloc.start()
        try:
            pieces = iter(body)
            rest = bytearray()

            def read_into(buffer: memoryview) -> int:
                while len(rest) < len(buffer):
                    piece = next(pieces, None)
                    if piece is None:
                        break
                    rest.extend(piece)
                taken = bytes(rest[: len(buffer)])
                del rest[: len(buffer)]
                buffer[: len(taken)] = taken
                return len(taken)

            parts = mtom.Reader(read_into, mtom.parse_content_type(body.content_type)[1]["boundary"])
            parts.next()
            parts.all(1 << 20)
            parts.next()
            digest, received = hashlib.sha256(), 0
            for piece in parts.data():
                digest.update(piece)
                received += len(piece)
            parts.next()
            assert parts.all(32) == digest.digest() == expected
            assert parts.next() is None
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert received == size
    assert peak < 12 << 20, f"{peak >> 20} MB for a file of {size >> 20} MB"


def test_a_file_that_shrinks_is_noticed(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "file")
    with open(path, "wb") as file:
        file.write(b"123")
    with open(path, "rb") as file, pytest.raises(mtom.SourceError, match="shorter by 2 bytes"):
        list(mtom.FileSource(file, 5))


def test_a_late_part_keeps_its_announced_length() -> None:
    with pytest.raises(mtom.MtomError):
        list(mtom.Late(32, lambda: b"short"))


def multipart(*parts: bytes, end: bytes = b"--") -> bytes:
    return b"".join(b"\r\n--b\r\nContent-ID: <x>\r\n\r\n" + part for part in parts) + b"\r\n--b" + end


def everything(data: bytes) -> list[bytes]:
    parts = reader(data, "b")
    found = []
    while parts.next() is not None:
        found.append(parts.all(1000))
    return found


def test_other_stacks_ways_of_writing() -> None:
    assert everything(multipart(b"one", b"")[2:]) == [b"one", b""]
    assert everything(b"preamble\r\nmore" + multipart(b"one") + b"\r\nepilogue") == [b"one"]
    assert everything(b"--b  \r\ncontent-id:<x>\r\n\r\none\r\n--b--") == [b"one"]


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"--b", b"--b\r\n", b"--b\r\nContent-ID: <x>", b"--b\r\nContent-ID: <x>\r\n\r\nda", b"--b\r\nContent-ID: <x>\r\n\r\ndata\r\n--"),
        *(b"no boundary at all", b"--bx\r\n\r\ndata\r\n--b--", b"--b\r\n" + b"A" * 20000, multipart(b"x" * 1001)),
    ],
)
def test_malformed_answers(data: bytes) -> None:
    with pytest.raises(mtom.MtomError):
        everything(data)


@pytest.mark.parametrize("boundary", ["", "x" * 300])
def test_malformed_boundaries(boundary: str) -> None:
    with pytest.raises(mtom.MtomError):
        reader(b"", boundary)


def test_references_to_elsewhere_and_entities_are_refused() -> None:
    include = '<e xmlns:x="http://www.w3.org/2004/08/xop/include"><d><x:Include href="{}"/></d></e>'
    with pytest.raises(mtom.MtomError):
        mtom.Root(include.format("file:///etc/passwd").encode())
    with pytest.raises(mtom.MtomError):
        mtom.Root(b"<e><Include></e>")
    bomb = b'<!DOCTYPE e [<!ENTITY a "aaaa"><!ENTITY b SYSTEM "file:///etc/passwd">]>' + include.format("cid:x").encode().replace(b"<d>", b"<c>&b;</c><d>")
    assert b"root:" not in mtom.Root(bomb).envelope


def test_inline_values_are_no_references() -> None:
    root = mtom.Root(b"<e>abc</e>")
    assert root.envelope == b"<e>abc</e>" and root.reference(b"abc") is None and root.reference(None) is None


def test_small_pieces_travel_together() -> None:
    placeholders = [mtom.Placeholder(mtom.Bytes(b"x" * 1000)), mtom.Placeholder(mtom.Bytes(b"y" * 32))]
    pieces: Iterator[bytes] = iter(mtom.Body(envelope(*(one.token for one in placeholders)), placeholders))
    assert len(list(pieces)) == 1
