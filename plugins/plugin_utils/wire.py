# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames on the broker's Unix socket, both ends; not what the frames say (that is broker_client.py and broker.py).

A frame is two unsigned big-endian 32-bit numbers (length of the header, length of the payload), the header (a JSON object in
UTF-8), then the payload (bytes). Longer payloads travel as several frames. Standard library only: every worker imports this.
"""

from __future__ import annotations

import json
import socket
import struct
import typing as t

#: Goes up when an older end could not understand the newer one.
PROTOCOL_VERSION = 2

_LENGTHS = struct.Struct('>II')
MAXIMUM_HEADER = 4 << 20
MAXIMUM_PAYLOAD = 16 << 20
#: Payload bytes that a sender puts into one frame when it has many.
CHUNK = 1 << 20


class WireError(Exception):
    """The other end does not speak this protocol, or stopped in the middle of a frame."""


def _receive_exactly(connection: socket.socket, count: int) -> bytes | bytearray:
    data = bytearray(count)
    view = memoryview(data)
    received = 0
    while received < count:
        got = connection.recv_into(view[received:])
        if not got:
            if received == 0:
                return b''
            raise WireError(f'the connection ended after {received} of {count} bytes')
        received += got
    return data


def send_frame(connection: socket.socket, header: dict[str, t.Any], payload: bytes | bytearray | memoryview = b'') -> None:
    """Sends one frame. Raises OSError when the other end is gone, WireError when the frame is too large."""
    encoded = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode('utf-8', 'surrogateescape')
    if len(encoded) > MAXIMUM_HEADER:
        raise WireError(f'a header of {len(encoded)} bytes is too long')
    if len(payload) > MAXIMUM_PAYLOAD:
        raise WireError(f'a payload of {len(payload)} bytes is too long')
    head = _LENGTHS.pack(len(encoded), len(payload)) + encoded
    if len(payload) < 65536:
        connection.sendall(head + bytes(payload))
    else:
        connection.sendall(head)
        connection.sendall(payload)


def receive_frame(connection: socket.socket) -> tuple[dict[str, t.Any], bytes | bytearray] | None:
    """Receives one frame: (header, payload); None when the other end closed between two frames.

    Raises WireError for anything that is not a frame, OSError from the socket.
    """
    lengths = _receive_exactly(connection, _LENGTHS.size)
    if not lengths:
        return None
    header_length, payload_length = _LENGTHS.unpack(lengths)
    if not 0 < header_length <= MAXIMUM_HEADER or payload_length > MAXIMUM_PAYLOAD:
        raise WireError(f'lengths of {header_length} and {payload_length} bytes are not of this protocol')
    encoded = _receive_exactly(connection, header_length)
    if not encoded:
        raise WireError('the connection ended before the header')
    try:
        header = json.loads(encoded.decode('utf-8', 'surrogateescape'))
    except (ValueError, RecursionError) as error:
        raise WireError(f'the header is not JSON: {error}') from None
    if not isinstance(header, dict):
        raise WireError('the header is not a JSON object')
    payload = _receive_exactly(connection, payload_length) if payload_length else b''
    if payload_length and not payload:
        raise WireError('the connection ended before the payload')
    return header, payload


def chunks(data: bytes | bytearray | memoryview) -> t.Iterator[memoryview]:
    """Slices of at most CHUNK bytes, without copying."""
    view = memoryview(data)
    for start in range(0, len(view), CHUNK):
        yield view[start:start + CHUNK]
