"""The broker's frames: what goes in comes out, and nothing else is taken for a frame."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import wire


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    left.settimeout(10)
    right.settimeout(10)
    return left, right


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, wire.CHUNK, wire.MAXIMUM_PAYLOAD])
def test_round_trip(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    left, right = pair
    header, payload = {"call": "execute", "text": "汉语 \U0001f4a9 \udcff", "number": 1.5, "none": None}, os.urandom(size)
    thread = threading.Thread(target=wire.send_frame, args=(left, header, payload))
    thread.start()
    assert wire.receive_frame(right) == (header, payload)
    thread.join()


def test_frames_in_a_row_and_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    for number in range(3):
        wire.send_frame(left, {"number": number}, bytes([number]))
    left.close()
    assert [wire.receive_frame(right) for unused in range(4)] == [({"number": n}, bytes([n])) for n in range(3)] + [None]


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        struct.pack(">II", 0, 0),
        struct.pack(">II", wire.MAXIMUM_HEADER + 1, 0),
        struct.pack(">II", 2, wire.MAXIMUM_PAYLOAD + 1) + b"{}",
        struct.pack(">II", 2, 0) + b"[]",
        struct.pack(">II", 2, 0) + b"{",
        struct.pack(">II", 2, 0) + b"{]",
        struct.pack(">II", 2, 5) + b"{}abc",
        struct.pack(">II", 2, 5) + b"{}",
        struct.pack(">II", 200000, 0) + b"[" * 200000,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_frame(pair: tuple[socket.socket, socket.socket], data: bytes) -> None:
    left, right = pair
    threading.Thread(target=lambda: (left.sendall(data), left.close())).start()
    with pytest.raises(wire.WireError):
        wire.receive_frame(right)


def test_what_is_too_large_is_not_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(wire.WireError):
        wire.send_frame(pair[0], {}, bytes(wire.MAXIMUM_PAYLOAD + 1))
    with pytest.raises(wire.WireError):
        wire.send_frame(pair[0], {"x": "y" * wire.MAXIMUM_HEADER})


def test_fuzz() -> None:
    seed = int(os.environ.get("SOJOURN_FUZZ_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"SOJOURN_FUZZ_SEED={seed}")
    chance = random.Random(seed)
    whole = struct.pack(">II", 17, 9) + b'{"call": "info"} ' + b"some data"
    for unused in range(3000):
        data = bytearray(whole)
        for unused_change in range(chance.randrange(1, 5)):
            where = chance.randrange(len(data))
            change = chance.randrange(3)
            if change == 0:
                data[where] = chance.randrange(256)
            elif change == 1:
                del data[where : where + chance.randrange(1, 6)]
            else:
                data[where:where] = chance.randbytes(chance.randrange(1, 6))
            if not data:
                break
        # Long announced lengths would only make the test slow
        if len(data) >= 8 and (data[0] or data[1] > 0x0F or data[4] or data[5] > 0x0F):
            continue
        left, right = socket.socketpair()
        with left, right:
            left.sendall(data)
            left.shutdown(socket.SHUT_WR)
            try:
                while (frame := wire.receive_frame(right)) is not None:
                    assert isinstance(frame[0], dict)
            except wire.WireError:
                pass


def test_chunks() -> None:
    data = os.urandom(2 * wire.CHUNK + 5)
    pieces = list(wire.chunks(data))
    assert b"".join(pieces) == data and [len(piece) for piece in pieces] == [wire.CHUNK, wire.CHUNK, 5]
    assert list(wire.chunks(b"")) == []
