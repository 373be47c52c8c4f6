"""The SMB connection's own parts, without a server: reads under way at once, and answers that are not believed."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import smb_client

connection_module = pytest.importorskip("smbprotocol.connection")
exceptions = pytest.importorskip("smbprotocol.exceptions")
file_info = pytest.importorskip("smbprotocol.file_info")
ioctl = pytest.importorskip("smbprotocol.ioctl")
open_module = pytest.importorskip("smbprotocol.open")
scmr = pytest.importorskip("pypsexec.scmr")


class Server:
    """A file behind a connection: how many reads are under way is counted; ``short`` is the most that one gives."""

    def __init__(self, data: bytes, *, short: int = 1 << 30, credits: int = 1 << 20) -> None:
        self.data, self.short = data, short
        self.under_way = self.most = self.asked = 0
        self.closed = False
        self.end_of_file = len(data)
        self.tree_connect = SimpleNamespace(tree_connect_id=1)
        self.client = smb_client.Client()
        self.client.session = SimpleNamespace(session_id=1)
        self.client.connection = SimpleNamespace(max_read_size=8 << 20, send=self.send)
        self.client._credits = lambda: credits
        self.client.open = lambda *unused, **unused_too: self

    def send(self, message: Any, *unused: Any, **unused_too: Any) -> Any:
        self.under_way += 1
        self.asked += 1
        self.most = max(self.most, self.under_way)
        return message

    def read(self, offset: int, size: int, send: bool = True) -> Any:
        assert not send and size <= self.client.connection.max_read_size
        return (offset, size), self.answer

    def answer(self, request: Any) -> bytes:
        self.under_way -= 1
        offset, size = request
        if offset >= len(self.data):
            raise exceptions.EndOfFile.__new__(exceptions.EndOfFile)
        return self.data[offset:offset + min(size, self.short)]

    def close(self) -> None:
        self.closed = True

    def check(self, size: int) -> str:
        file, digest = self.client.hold_to_check("ADMIN$", "agent.exe", size)
        assert file is self and not self.closed and self.under_way == 0
        return digest


DATA = bytes(range(256)) * (20 << 12) + b"the end"  # 20 MB


def test_reads_are_under_way_at_once() -> None:
    server = Server(DATA)
    assert server.check(len(DATA)) == hashlib.sha256(DATA).hexdigest()
    # What a far way costs is a round trip for each eight of them, not for each.
    assert server.most == smb_client.READ_WINDOW // smb_client.READ_SIZE == 8
    assert server.asked == 21


def test_no_more_reads_than_there_are_credits_for() -> None:
    server = Server(DATA, credits=0)
    assert server.check(len(DATA)) == hashlib.sha256(DATA).hexdigest() and server.most == 1


@pytest.mark.parametrize("short", [1, 300_000])
def test_a_server_that_gives_less_than_was_asked_for(short: int) -> None:
    data = DATA[:1000] if short == 1 else DATA
    server = Server(data, short=short)
    assert server.check(len(data)) == hashlib.sha256(data).hexdigest()


def test_a_file_that_is_another() -> None:
    for size in (len(DATA) - 1, 0):
        assert Server(DATA).check(size) != hashlib.sha256(DATA[:size]).hexdigest()
    assert Server(DATA[:-1]).check(len(DATA)) != hashlib.sha256(DATA).hexdigest()
    longer = Server(DATA)
    assert longer.check(5) == hashlib.sha256(DATA[:6]).hexdigest() and longer.asked == 1, "no more is read than what tells"


def test_it_is_let_go_where_reading_fails() -> None:
    server = Server(DATA)

    def broken(unused: Any) -> bytes:
        server.under_way -= 1
        raise ConnectionError("gone")

    server.answer = broken  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        server.check(len(DATA))
    assert server.closed and server.under_way == 0


# Answers that are not believed


def judged(*, encrypted: bool, signed: bool, status: int = 0, message_id: int = 7, command: int = 8) -> None:
    connection = smb_client._Connection.__new__(smb_client._Connection)
    connection.session_table = {1: SimpleNamespace(encrypt_data=encrypted, signing_key=b"k" * 16)}
    connection._generate_signature = lambda *unused: b"right" + b"\0" * 11  # type: ignore[method-assign]
    header = connection_module.SMB2HeaderResponse()
    header["message_id"], header["status"], header["command"] = message_id, status, command
    if signed:
        header["flags"].set_flag(connection_module.Smb2Flags.SMB2_FLAGS_SIGNED)
        header["signature"] = b"right" + b"\0" * 11
    connection.verify_signature(header, 1)


def test_signed_answers_pass() -> None:
    judged(encrypted=False, signed=True)


@pytest.mark.parametrize("status", [0, 0xC0000022])
def test_an_answer_without_a_signature_is_not_believed(status: int) -> None:
    with pytest.raises(smb_client.NotSigned, match="without a signature"):
        judged(encrypted=False, signed=False, status=status)


def test_what_tells_nothing_needs_no_signature() -> None:
    judged(encrypted=False, signed=False, status=0x103)
    judged(encrypted=False, signed=False, message_id=0xFFFFFFFFFFFFFFFF)


@pytest.mark.parametrize("signed", [True, False])
def test_an_encrypted_session_takes_nothing_unencrypted(signed: bool) -> None:
    with pytest.raises(smb_client.NotSigned, match="unencrypted"):
        judged(encrypted=True, signed=signed)


def test_nobody_signs_in_without_encryption_unless_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class Session:
        def __init__(self, *unused: Any, **options: Any) -> None:
            made.append(options)

        def connect(self) -> None:
            pass

    monkeypatch.setattr(smb_client, "session_module", SimpleNamespace(Session=Session))
    client = smb_client.Client()
    transport = SimpleNamespace(longest=smb_client.FIRST_SIZE)
    client.connection = SimpleNamespace(supports_encryption=False, transport=transport)
    with pytest.raises(smb_client.NotEncrypted):
        client.sign_in("ann", "secret", principal_host="files1", protocol="ntlm")
    assert not made and transport.longest < smb_client.LONGEST_SIZE
    client.sign_in("ann", "secret", principal_host="files1", protocol="ntlm", encryption=False)
    assert transport.longest == smb_client.LONGEST_SIZE
    client.connection.supports_encryption = True
    for insisted in (True, False):  # it is used where it is offered
        client.sign_in("ann", "secret", principal_host="files1", protocol="ntlm", encryption=insisted)
    assert [options["require_encryption"] for options in made] == [False, True, True]


# The target's own name


def challenge(*pairs: tuple[int, bytes]) -> bytes:
    information = b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in pairs)
    head = b"NTLMSSP\0" + struct.pack("<I", 2) + bytes(8) + bytes(4) + bytes(16) + struct.pack("<HHI", len(information), len(information), 56) + bytes(8)
    return b"before it" + head + information


def test_the_targets_own_name() -> None:
    domain, name = (2, "LAB".encode("utf-16-le")), (1, "FILES1".encode("utf-16-le"))
    assert smb_client.name_told(challenge(domain, name, (0, b""))) == "FILES1"
    assert smb_client.name_told(challenge(domain, (0, b""), name)) == ""
    for answer in (b"", b"NTLMSSP\0\x02\0\0\0", challenge(), challenge(name)[:-3] + b""):
        assert isinstance(smb_client.name_told(answer), str)


# A target that never comes to an end


class Clock:
    """In the place of the module's ``time``; what a fake server does takes as long as it says."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.steps = 0
        self.time = time.time

    def monotonic(self) -> float:
        return self.now

    def step(self, seconds: float) -> None:
        self.now += seconds
        self.steps += 1
        assert self.steps < 3000, "it goes on without end"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(smb_client, "time", made)
    return made


def answer_of(status: int) -> Any:
    error = exceptions.SMBResponseException.__new__(exceptions.SMBResponseException)
    error.header = {"status": SimpleNamespace(get_value=lambda: status)}
    return error


def listing(*entries: tuple[str, bool]) -> bytes:
    """An answer as smbprotocol packs it."""
    packed = b""
    for number, (name, is_folder) in enumerate(entries):
        entry = file_info.FileDirectoryInformation()
        entry["last_write_time"] = 116444736000000000 + 12345 * 10**7
        entry["file_attributes"] = 0x10 if is_folder else 0x80
        entry["file_name"] = name.encode("utf-16-le")
        size = -(-len(entry) // 8) * 8
        if number < len(entries) - 1:
            entry["next_entry_offset"] = size
        packed += entry.pack().ljust(size, b"\0")
    return packed


class Folder:
    """A folder behind a connection, of which ``answers`` are the listing; each takes some seconds."""

    def __init__(self, clock: Clock, answers: Any, *, seconds: float = 0.0) -> None:
        self.clock, self.answers, self.seconds = clock, answers, seconds
        self.opened = self.closed = 0
        self.removed: list[str] = []
        self.tree_connect = SimpleNamespace(tree_connect_id=1)
        self.client = smb_client.Client()
        self.client.session = SimpleNamespace(session_id=1)
        self.client.connection = SimpleNamespace(send=lambda *unused, **unused_too: self.asked, receive=self.receive)
        self.client._is_link = lambda *unused: False
        self.client.delete = lambda share, path, *, folder=False: self.removed.append(path) or True
        self.client.open = self.open

    def open(self, *unused: Any, **unused_too: Any) -> Any:
        self.opened += 1
        self.asked = iter(self.answers())
        return self

    def query_directory(self, pattern: str, kind: int, max_output: int, send: bool) -> Any:
        assert not send and max_output == smb_client.LIST_SIZE and kind == 1
        return pattern, None

    def receive(self, asked: Any) -> Any:
        self.clock.step(self.seconds)
        buffer = next(asked, None)
        if buffer is None:
            raise exceptions.NoMoreFiles.__new__(exceptions.NoMoreFiles)
        message = open_module.SMB2QueryDirectoryResponse()
        message["buffer"] = buffer
        return {"data": SimpleNamespace(get_value=message.pack)}

    def close(self) -> None:
        self.closed += 1


def for_ever(*buffers: bytes) -> Any:
    while True:
        yield from buffers


def test_a_listing(clock: Clock) -> None:
    folder = Folder(clock, lambda: [listing((".", True), ("..", True), ("sojourn-1", True)), listing(("a file.txt", False), ("\u00fc", False))])
    assert folder.client.list("ADMIN$", "") == [("sojourn-1", True, 12345.0), ("a file.txt", False, 12345.0), ("\u00fc", False, 12345.0)]
    assert folder.closed == 1
    assert Folder(clock, lambda: []).client.list("ADMIN$", "") == []
    longest = "x" * 255
    assert [entry[0] for entry in smb_client.entries_told(listing((longest, False), ("y", False)))] == [longest, "y"]


def test_a_listing_without_end(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smb_client, "NAMES", 10)
    folder = Folder(clock, lambda: for_ever(listing(("a", False), ("b", False), ("c", False))))
    with pytest.raises(smb_client.TooMuch, match="more than 10"):
        folder.client.list("ADMIN$", "")
    assert clock.steps == 4 and folder.closed == 1
    exact = Folder(clock, lambda: [listing(*[(str(number), False) for number in range(10)])])
    assert len(exact.client.list("ADMIN$", "")) == 10


def test_a_listing_that_takes_for_ever(clock: Clock) -> None:
    """Names that are not kept, each just in time."""
    folder = Folder(clock, lambda: for_ever(listing((".", True))), seconds=smb_client.ANSWER_SECONDS - 1)
    with pytest.raises(smb_client.TooMuch, match="more than 120 s"):
        folder.client.list("ADMIN$", "")
    assert folder.closed == 1


def test_a_listing_that_is_none() -> None:
    overlapping = struct.pack("<I", 4) * 4096  # each four bytes an entry of its own
    good = listing(("abcd", False), ("y", False))
    before = struct.pack("<I", 64) + good[4:]
    too_long = bytes(60) + struct.pack("<I", 1024) + bytes(1024)
    cut_off = bytes(60) + struct.pack("<I", 8) + bytes(6)
    for buffer in (overlapping, before, too_long, cut_off):
        with pytest.raises(ValueError, match="a listing that is none"):
            list(smb_client.entries_told(buffer))
    for buffer in (b"", bytes(63), good[:-1][:80]):
        with pytest.raises((ValueError, struct.error)):
            list(smb_client.entries_told(buffer))


def test_a_folder_is_deleted_with_all_in_it(clock: Clock) -> None:
    folder = Folder(clock, lambda: [listing((".", True), ("inner", folder.opened == 1), ("file", False))])
    assert folder.client.delete_tree("ADMIN$", "sojourn-1")
    assert folder.removed == [r"sojourn-1\inner\inner", r"sojourn-1\inner\file", r"sojourn-1\inner", r"sojourn-1\file", "sojourn-1"]


def test_folders_in_folders_without_end(clock: Clock) -> None:
    folder = Folder(clock, lambda: [listing(("inner", True))])
    with pytest.raises(smb_client.TooMuch, match="in one another"):
        folder.client.delete_tree("ADMIN$", "sojourn-1")
    assert folder.opened <= smb_client.DEPTH + 2


def test_a_tree_of_more_than_is_held_at_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many folders one after the other are none too many; those that are open at once are."""
    monkeypatch.setattr(smb_client, "NAMES", 30)
    files = [(str(number), False) for number in range(20)]
    wide = Folder(clock, lambda: [listing(*([(str(number), True) for number in range(10)] if wide.opened == 1 else files))])
    assert wide.client.delete_tree("ADMIN$", "sojourn-1") and len(wide.removed) == 211
    deep = Folder(clock, lambda: [listing(("inner", True), *files)])
    with pytest.raises(smb_client.TooMuch, match="more than 30"):
        deep.client.delete_tree("ADMIN$", "sojourn-1")


def test_a_tree_that_takes_for_ever(clock: Clock) -> None:
    deep = Folder(clock, lambda: [listing(("inner", True))], seconds=20)
    with pytest.raises(smb_client.TooMuch, match="more than 900 s"):
        deep.client.delete_tree("ADMIN$", "sojourn-1")
    wide = Folder(clock, lambda: [listing(*[(str(number), False) for number in range(100)])])
    wide.client.delete = lambda *unused, **unused_too: clock.step(20)  # type: ignore[assignment, return-value]
    with pytest.raises(smb_client.TooMuch, match="more than 900 s"):
        wide.client.delete_tree("ADMIN$", "sojourn-1")


# Files that do not come


class Small:
    """A file that gives so many bytes at a time, each after some seconds."""

    def __init__(self, clock: Clock, piece: int, seconds: float = 0.0) -> None:
        self.clock, self.piece, self.seconds = clock, piece, seconds
        self.closed = False
        self.client = smb_client.Client()
        self.client.open = lambda *unused, **unused_too: self

    def read(self, offset: int, size: int) -> bytes:
        self.clock.step(self.seconds)
        return bytes(self.piece)

    def close(self) -> None:
        self.closed = True


def test_a_small_file_that_takes_for_ever(clock: Clock) -> None:
    assert Small(clock, 100).client.read_file("ADMIN$", "ready.json", limit=200) == bytes(200)
    file = Small(clock, 1, smb_client.ANSWER_SECONDS - 1)
    with pytest.raises(smb_client.TooMuch, match="more than 120 s"):
        file.client.read_file("ADMIN$", "ready.json")
    assert file.closed


def test_more_of_a_file_than_was_asked_for(clock: Clock) -> None:
    with pytest.raises(smb_client.TooMuch, match="65536 bytes of a file where 64"):
        Small(clock, 65536).client.read_file("ADMIN$", "session", limit=64)


def test_a_large_file_that_takes_for_ever(clock: Clock) -> None:
    """The executable, a byte at a time, each just in time."""
    server = Server(DATA, short=1, credits=0)
    usual = server.answer

    def late(request: Any) -> bytes:
        clock.step(smb_client.ANSWER_SECONDS - 1)
        return usual(request)

    server.answer = late  # type: ignore[method-assign]
    with pytest.raises(smb_client.TooMuch, match="more than"):
        server.check(len(DATA))
    assert server.closed and clock.now - 1000 < 1000


# Messages


@pytest.fixture
def ends() -> Any:
    ours, theirs = socket.socketpair()
    yield smb_client._Transport(ours), theirs
    ours.close()
    theirs.close()


def test_messages_both_ways(ends: Any) -> None:
    transport, theirs = ends
    transport.longest = smb_client.LONGEST_SIZE
    sent = [b"x", bytes(range(256)) * 4096, b"the end"]
    come: list[bytes] = []

    def echo() -> None:
        with theirs.makefile("rb") as reader:
            for unused in sent:
                head = reader.read(4)
                come.append(reader.read(struct.unpack(">I", head)[0]))
                theirs.sendall(head + come[-1])

    other = threading.Thread(target=echo)
    other.start()
    assert [transport.send(message) or transport.recv(60) for message in sent] == sent
    other.join()
    assert come == sent
    with pytest.raises(TimeoutError):
        transport.recv(0.01)
    theirs.close()
    assert transport.recv(60) is None and not transport.connected


class Dripping:
    """A socket that gives or takes a byte at a time; it is always ready, and each takes some seconds."""

    def __init__(self, clock: Clock, seconds: float, data: bytes = b"") -> None:
        self.clock, self.seconds, self.data = clock, seconds, data
        self.ours, self.theirs = socket.socketpair()
        self.theirs.sendall(b"always readable")
        self.full = False

    def fileno(self) -> int:
        return self.ours.fileno()

    def recv_into(self, view: memoryview) -> int:
        self.clock.step(self.seconds)
        view[:1], self.data = self.data[:1], self.data[1:]
        return 1

    def send(self, view: memoryview, flags: int) -> int:
        assert flags == socket.MSG_DONTWAIT
        self.full = not self.full
        if self.full:
            raise BlockingIOError
        self.clock.step(self.seconds)
        return 1

    def shutdown(self, unused: int) -> None:
        pass

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


def test_a_message_that_comes_byte_by_byte(clock: Clock) -> None:
    slow = Dripping(clock, 29, struct.pack(">I", 1000) + bytes(1000))
    with contextlib.closing(slow), pytest.raises(smb_client.TooMuch, match="a message took more than 120 s"):
        smb_client._Transport(slow).recv(600)  # type: ignore[arg-type]
    assert clock.steps < 10
    quick = Dripping(clock, 0.1, (struct.pack(">I", 1000) + bytes(1000)) * 2)
    with contextlib.closing(quick):
        transport = smb_client._Transport(quick)  # type: ignore[arg-type]
        assert transport.recv(600) == transport.recv(600) == bytes(1000), "each has its own time"


def test_a_message_that_is_taken_byte_by_byte(clock: Clock) -> None:
    transport = smb_client._Transport(Dripping(clock, 29))  # type: ignore[arg-type]
    with pytest.raises(smb_client.TooMuch, match="did not take a message"):
        transport.send(bytes(1000))
    assert not transport.connected, "half of one is sent"


def test_a_message_that_breaks_off(ends: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a TimeoutError smbprotocol goes on reading, which would be in the middle of it."""
    monkeypatch.setattr(smb_client, "MESSAGE_SECONDS", 0.01)
    transport, theirs = ends
    theirs.sendall(b"\0\0\0\x09half")
    with pytest.raises(smb_client.TooMuch):
        transport.recv(600)


@pytest.mark.parametrize("size", [0, smb_client.FIRST_SIZE + 1, 0xFFFFFF, 0x01000001])
def test_a_message_that_is_too_long(ends: Any, size: int) -> None:
    transport, theirs = ends
    theirs.sendall(struct.pack(">I", size) + b"x")
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(smb_client.TooMuch, match=f"a message of {size} bytes"):
        transport.recv(60)


def test_what_is_asked_for_fits_into_a_message() -> None:
    largest = max(smb_client.READ_SIZE, smb_client.PIPE_SIZE, smb_client.LIST_SIZE)
    assert largest + 4096 < smb_client.LONGEST_SIZE < 1 << 21 and 65536 + 4096 < smb_client.FIRST_SIZE < smb_client.LONGEST_SIZE


class Again(threading.Event):
    """An interim answer comes as soon as the one before is taken."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.set()

    def clear(self) -> None:
        self.clock.step(0.5)


def test_interim_answers_without_end(clock: Clock) -> None:
    connection = smb_client._Connection.__new__(smb_client._Connection)
    connection._given = SimpleNamespace(connected=True)  # type: ignore[assignment]
    connection._t_worker = connection._t_exc = None
    header = connection_module.SMB2HeaderResponse()
    header["status"] = 0x103
    request = SimpleNamespace(response=header, response_event=Again(clock), response_event_lock=threading.Lock())
    with pytest.raises(smb_client.Timeout, match="30 s"):
        connection.receive(request)
    pipe = smb_client.Pipe.__new__(smb_client.Pipe)
    pipe._client = SimpleNamespace(connection=connection)  # type: ignore[assignment]
    with pytest.raises(TimeoutError):
        pipe._answer(request, 10)


def test_answers_to_the_negotiation_without_end() -> None:
    """smbprotocol keeps whatever says that it is one, whatever was asked."""
    ours, theirs = socket.socketpair()
    connection = smb_client._Connection(ours, "files1")
    connection.outstanding_requests[7] = SimpleNamespace(
        session_id=0, response_event=threading.Event(), response_event_lock=threading.Lock(), message={"reserved": SimpleNamespace(get_value=lambda: 0)})
    header = connection_module.SMB2HeaderResponse()
    header["message_id"], header["status"], header["command"] = 7, 0x103, 0
    with contextlib.closing(theirs):
        theirs.sendall((struct.pack(">I", 64) + header.pack()) * 100)
        theirs.shutdown(socket.SHUT_WR)
        connection._process_message_thread()
    assert len(connection.preauth_integrity_hash_value) <= 8 and isinstance(connection._t_exc, smb_client.TooMuch)
    assert not connection.transport.connected


def test_empty_answers_of_a_pipe_without_end(clock: Clock) -> None:
    pipe = smb_client.Pipe.__new__(smb_client.Pipe)
    pipe._come, pipe._ended, pipe._timeout = memoryview(b""), False, 60
    waits: list[float] = []

    def take(timeout: float) -> None:
        waits.append(timeout)
        clock.step(25)

    pipe._take = take  # type: ignore[assignment, method-assign]
    with pytest.raises(TimeoutError):
        pipe.recv(10)
    assert waits == [60, 35, 10]


# The list of services


def services(*found: tuple[str, int], room: int | None = None) -> bytes:
    """The answer to REnumServicesStatusW as Windows makes it: names from the end of the array, in front of them the entries."""
    texts, entries = b"", []
    for name, state in found:
        begin = 36 * len(found) + len(texts)
        text = f"{name}\0".encode("utf-16-le")
        entries.append(struct.pack("<IIIIIIIII", begin, begin, 0x10, state, 1, 0, 0, 0, 0))
        texts += text
    array = b"".join(entries) + texts
    array = array.ljust(len(array) + -len(array) % 4, b"\0")
    return struct.pack("<I", len(array)) + array + struct.pack("<IIIi", 0, len(found), 0, 0)


class Manager:
    """A service control manager: what it says that its list has, and what comes, at once or in fragments."""

    def __init__(self, clock: Clock, says: int, first: bytes, fragments: Any = (), *, whole: bool = True, seconds: float = 0.0) -> None:
        self.clock, self.says, self.first, self.fragments, self.whole, self.seconds = clock, says, first, iter(fragments), whole, seconds
        self.sizes: list[int] = []
        self.read_sizes: list[int] = []
        self.manager = smb_client.ServiceManager.__new__(smb_client.ServiceManager)
        self.manager._manager = b"h" * 20
        self.api = self.manager._api = scmr.SCMRApi.__new__(scmr.SCMRApi)
        self.api._invoke, self.api._parse_pdu, self.api.handle = self.invoke, lambda data, opnum: bytes(data), self

    def invoke(self, name: str, opnum: int, asked: bytes) -> bytes:
        kind, state, size, resume = struct.unpack("<IIII", asked[20:])
        assert (name, opnum, kind, state, resume, asked[:20]) == ("REnumServicesStatusW", 14, 0x10, 3, 0, b"h" * 20)
        self.sizes.append(size)
        if size == 0:
            return struct.pack("<IIIIi", 0, self.says, 0, 0, 234)
        if self.whole:
            return self.first
        message = ioctl.SMB2IOCTLResponse()
        message["ctl_code"] = 0x11C017
        message["file_id"] = bytes(16)
        message["output_count"] = len(self.first)
        message["buffer"] = self.first
        error = answer_of(0x80000005)
        error.header["data"] = SimpleNamespace(get_value=message.pack)
        raise error

    def read(self, offset: int, size: int) -> bytes:
        self.clock.step(self.seconds)
        self.read_sizes.append(size)
        return next(self.fragments)


FOUND = [(f"service{number}", 4 if number % 3 else 1) for number in range(300)]


def test_services(clock: Clock) -> None:
    answer = services(*FOUND)
    for made in (
        lambda: Manager(clock, len(answer) - 20, answer),
        lambda: Manager(clock, len(answer) - 20, answer[:1000], [answer[1000:4256], answer[4256:8000], answer[8000:]], whole=False),
    ):
        server = made()
        assert server.manager.list() == FOUND and server.sizes == [0, len(answer) - 20]
        # and pypsexec reads it so
        assert [(each["service_name"], each["service_status"]["current_state"].get_value()) for each in made().api.enum_services_status_w(
            b"h" * 20, 0x10, 3)] == FOUND
    assert server.read_sizes == [3256, 4280, 4280]
    assert Manager(clock, 0, services()).manager._ask_services(1) == services()
    assert smb_client.services_told(services()) == []


def test_a_list_of_services_that_is_too_long(clock: Clock) -> None:
    server = Manager(clock, smb_client.SERVICES_SIZE + 1, b"", iter(lambda: bytes(4280), None))
    with pytest.raises(smb_client.TooMuch, match="262145 bytes"):
        server.manager.list()
    assert server.sizes == [0]
    flood = Manager(clock, 1000, services(*FOUND))
    with pytest.raises(smb_client.TooMuch, match="was to have 1000"):
        flood.manager.list()


@pytest.mark.parametrize("piece", [b"", b"x"])
def test_a_list_of_services_that_takes_for_ever(clock: Clock, piece: bytes) -> None:
    server = Manager(clock, smb_client.SERVICES_SIZE, bytes(1000), iter(lambda: piece, None), whole=False, seconds=29)
    with pytest.raises(smb_client.TooMuch, match="does not go on" if not piece else "more than 120 s"):
        server.manager.list()


def test_names_of_services_that_do_not_end() -> None:
    """All of them the same, as long as the whole: pypsexec makes as many copies."""
    count = 1000
    entries = struct.pack("<IIIIIIIII", 36 * count, 36 * count, 0x10, 4, 1, 0, 0, 0, 0) * count
    for names in (b"x\0" * 4096 + b"\0\0", b"x\0" * 257 + b"\0\0"):
        with pytest.raises(ValueError, match="does not end"):
            smb_client.services_told(struct.pack("<I", 0) + entries + names + struct.pack("<IIIi", 0, count, 0, 0))
    longest = "x" * 256
    assert smb_client.services_told(services((longest, 4))) == [(longest, 4)]
    for answer in (b"", bytes(11), struct.pack("<IIIi", 0, 1 << 31, 0, 0)):
        with pytest.raises((ValueError, struct.error)):
            smb_client.services_told(answer)
