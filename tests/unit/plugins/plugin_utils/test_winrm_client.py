"""The client of WinRM against the lab's own endpoint, in this process: real HTTP, TLS and NTLM, without a Windows behind it."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import way_in_winrm, winrm_client
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from tests.lab.rootfs import HERE

SECRET = "Geheim1!"
ENDPOINT = HERE / "files/windows/opt/sojourn-lab/winrm.py"


def frame(kind: bytes, data: bytes) -> bytes:
    """As resident.exe sends it."""
    return kind + struct.pack("<I", len(data)) + data


class Resident:
    """In the place of Wine: `sum` tells the SHA-256 of its input, `wait` says nothing until `go_on`, all else its own line and exit code 3."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.ended = threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client = self.socket.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._run, args=(client,), daemon=True).start()

    def _run(self, client: socket.socket) -> None:
        reader = client.makefile("rb")
        line = json.loads(reader.readline().removeprefix(b"run "))["Line"].partition(" /C ")[2]
        code = 0
        if line == "sum":
            digest = hashlib.sha256()
            while size := struct.unpack("<I", reader.read(5)[1:])[0]:
                digest.update(reader.read(size))
            client.sendall(frame(b"o", digest.hexdigest().encode()))
        elif line == "wait":
            self.go_on.wait(20)
            client.sendall(frame(b"o", b"at last"))
        elif line == "for ever":
            reader.read(1)  # until the other end closes
            self.ended.set()
            return
        else:
            client.sendall(frame(b"o", line.encode()) + frame(b"e", b"and errors"))
            code = 3
        client.sendall(frame(b"x", struct.pack("<I", code)))


class Windows:
    """The endpoint's module, and its two ports."""

    def __init__(self, folder: Path, certificate: Path) -> None:
        sys.path.insert(0, str(ENDPOINT.parent))
        try:
            spec = importlib.util.spec_from_file_location("lab_winrm", ENDPOINT)
            self.module: Any = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(self.module)
        finally:
            sys.path.remove(str(ENDPOINT.parent))
        (folder / "accounts").write_text(f":Administrator:{SECRET}\n:reader:{SECRET}\n")
        for name in ("certificate.pem", "key.pem"):
            (folder / name).symlink_to(certificate / name)
        self.resident = Resident()
        self.certificate = certificate / "certificate.pem"
        self.module.SETTINGS = folder
        self.module.RESIDENT = self.resident.socket.getsockname()
        os.environ["NTLM_USER_FILE"] = str(folder / "accounts")
        tls = self.module.ssl.SSLContext(self.module.ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        shells = self.module.Shells()
        self.servers = {"http": self.module.Server(0, shells, None), "https": self.module.Server(0, shells, tls)}
        for server in self.servers.values():
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def close(self) -> None:
        for server in self.servers.values():
            server.shutdown()
            server.server_close()
        self.resident.socket.close()

    def begin(self, scheme: str) -> winrm_client.Client:
        """A client that has asked what there is."""
        port = self.servers[scheme].server_address[1]
        context = winrm_client.context_of(True, str(self.certificate)) if scheme == "https" else None
        client = winrm_client.Client(f"{scheme}://[::1]:{port}/wsman", context)
        client.transport.begin(socket.create_connection(("::1", port)), 10)
        return client


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    key = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", folder / "key.pem", "-out", folder / "certificate.pem"]
    subprocess.run(["openssl", "req", "-x509", *key, "-subj", "/CN=w", "-addext", "subjectAltName=IP:::1"], check=True, capture_output=True)
    return folder


@pytest.fixture
def windows(tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Windows]:
    """See Windows."""
    monkeypatch.setenv("NTLM_USER_FILE", "")  # taken back afterwards
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://[::1]:9")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
    windows = Windows(tmp_path, certificate)
    yield windows
    windows.close()


Open = Callable[..., winrm_client.Client]


@pytest.fixture
def opened(windows: Windows) -> Iterator[Open]:
    """Makes clients with a shell."""
    clients = []

    def make(scheme: str = "http", kind: str = "ntlm", user: str = "Administrator", password: str = SECRET) -> winrm_client.Client:
        client = windows.begin(scheme)
        clients.append(client)
        client.transport.sign_in(kind, user, password, "::1")
        client.open_shell()
        return client

    yield make
    for client in clients:
        client.close()


@pytest.mark.parametrize(("scheme", "kind"), [("http", "ntlm"), ("https", "ntlm"), ("https", "basic")])
def test_commands(opened: Open, scheme: str, kind: str) -> None:
    client = opened(scheme, kind)
    assert client.transport.offered == (["ntlm"] if scheme == "http" else ["ntlm", "basic"])
    assert -60 < client.transport.clock_ahead <= 0  # a busy machine may take a second and more
    assert client.run('some line "quoted" & <more>') == winrm_client.Done(3, b'some line "quoted" & <more>', b"and errors")
    data = [os.urandom(winrm_client.INPUT_SIZE) for unused_time in range(3)] + [b"end"]
    assert client.run("sum", iter(data)).text == hashlib.sha256(b"".join(data)).hexdigest()
    assert client.transport.terms().startswith("HTTP, every message sealed" if scheme == "http" else "HTTPS, TLSv1.3, certificate SHA-256 ")


def test_what_takes_longer_than_an_operation_is_asked_for_again(opened: Open, windows: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    receive = windows.module.Command.receive
    asked: list[float] = []

    def impatient(command: Any, seconds: float) -> Any:
        asked.append(seconds)
        if len(asked) == 3:
            windows.resident.go_on.set()
        return receive(command, 0.01 if len(asked) < 3 else seconds)

    monkeypatch.setattr(windows.module.Command, "receive", impatient)
    assert opened().run("wait").text == "at last"
    assert len(asked) >= 3 and set(asked) == {float(winrm_client.OPERATION_SECONDS)}


def test_a_command_that_does_not_end_is_ended(opened: Open, windows: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    receive = windows.module.Command.receive
    monkeypatch.setattr(windows.module.Command, "receive", lambda command, unused_seconds: receive(command, 0.05))
    with pytest.raises(winrm_client.Timeout):
        opened().run("for ever", seconds=0.2)
    assert windows.resident.ended.wait(10)


@pytest.mark.parametrize(("scheme", "kind"), [("http", "ntlm"), ("https", "ntlm"), ("https", "basic")])
@pytest.mark.parametrize("user", ["Administrator", "nobody"])
def test_wrong_passwords(opened: Open, scheme: str, kind: str, user: str) -> None:
    with pytest.raises(winrm_client.Refused):
        opened(scheme, kind, user, "wrong")


def test_who_is_no_administrator_gets_no_shell(opened: Open) -> None:
    from winrm.exceptions import WSManFaultError

    with pytest.raises(WSManFaultError) as caught:
        opened(user="reader")
    assert caught.value.wsman_fault_code == winrm_client.ACCESS_DENIED


def test_a_sign_in_that_is_relayed_over_another_tls_connection_is_refused(opened: Open, windows: Windows) -> None:
    """The channel binding: somebody in between has another certificate."""
    windows.servers["https"].certificate = b"another"
    with pytest.raises(winrm_client.Refused):
        opened("https")


def test_basic_goes_over_tls_only(windows: Windows) -> None:
    client = windows.begin("http")
    with pytest.raises(ValueError, match="would show the password"):
        client.transport.sign_in("basic", "Administrator", SECRET, "::1")
    client.close()


def test_nothing_goes_unsealed(windows: Windows) -> None:
    client = windows.begin("http")
    with pytest.raises(ConnectionError, match="unencrypted"):
        client.open_shell()
    client.close()


def test_an_answer_that_is_not_sealed_is_dropped(opened: Open, windows: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    client = opened()
    monkeypatch.setattr(windows.module.Connection, "_encrypt", lambda unused_self, answer: (answer, "application/soap+xml;charset=UTF-8"))
    with pytest.raises(ConnectionError, match="unencrypted"):
        client.run("line")


def test_a_certificate_has_to_be_trusted_and_to_name_the_host(windows: Windows) -> None:
    port = windows.servers["https"].server_address[1]
    for host, ca_file, said in (("[::1]", None, "self-signed"), ("localhost", str(windows.certificate), "Hostname mismatch")):
        client = winrm_client.Client(f"https://{host}:{port}/wsman", winrm_client.context_of(True, ca_file))
        with pytest.raises(winrm_client.CertificateRefused, match=said):
            client.transport.begin(socket.create_connection(("::1", port)), 10)
        client.close()
    client = winrm_client.Client(f"https://localhost:{port}/wsman", winrm_client.context_of(False, None))
    client.transport.begin(socket.create_connection(("::1", port)), 10)
    client.close()


@pytest.mark.parametrize(
    "said",
    [b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"],
)
def test_what_is_no_winrm(said: bytes) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:

        def answer() -> None:
            connection = server.accept()[0]
            with connection:
                connection.recv(4096)
                connection.sendall(said)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        port = server.getsockname()[1]
        client = winrm_client.Client(f"http://[::1]:{port}/wsman", None)
        with pytest.raises(winrm_client.NotWinRM):
            client.transport.begin(socket.create_connection(("::1", port)), 10)
        client.close()
        thread.join(10)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_who_says_nothing_is_not_waited_for_for_ever(scheme: str) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        client = winrm_client.Client(f"{scheme}://[::1]:{port}/wsman", winrm_client.context_of(False, None) if scheme == "https" else None)
        with pytest.raises(winrm_client.Timeout):
            client.transport.begin(socket.create_connection(("::1", port)), 0.2)
        client.close()


class Says:
    """Somebody who says what a test has him say, to whoever connects, for as long as he is listened to."""

    def __init__(self, said: Iterable[bytes]) -> None:
        self.sent = 0
        self.asked = b""
        self.ended = threading.Event()
        self.server = socket.create_server(("::1", 0), family=socket.AF_INET6)
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self._serve, args=(said,), daemon=True).start()

    def _serve(self, said: Iterable[bytes]) -> None:
        try:
            with self.server.accept()[0] as connection:
                self.asked = connection.recv(4096)
                for piece in said:
                    connection.sendall(piece)
                    self.sent += len(piece)
        except OSError:
            pass
        finally:
            self.ended.set()

    def begin(self, seconds: float) -> None:
        """Asks him what sign-ins there are, and leaves. Raises what Transport.begin does."""
        client = winrm_client.Client(f"http://[::1]:{self.port}/wsman", None)
        try:
            client.transport.begin(socket.create_connection(("::1", self.port)), seconds)
        finally:
            client.close()


@pytest.fixture
def says() -> Iterator[Callable[[Iterable[bytes]], Says]]:
    """Makes them."""
    made: list[Says] = []

    def make(said: Iterable[bytes]) -> Says:
        made.append(Says(said))
        return made[-1]

    yield make
    for one in made:
        one.server.close()


GREETING = b"HTTP/1.1 401 No\r\nWWW-Authenticate: Negotiate\r\n"
SENT_AWAY = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n"


LONG = GREETING + b"Content-Length: 99999999999\r\n"


@pytest.mark.parametrize("head", [GREETING + b"\r\n", LONG + b"\r\n", SENT_AWAY + b"\r\n"], ids=["to its end", "long", "elsewhere"])
def test_a_greeting_without_an_end_is_not_read_to_its_end(says: Callable[..., Says], head: bytes) -> None:
    # 256 MiB and not more: who reads all of it fails, and does not take the machine with it.
    one = says(itertools.chain([head], itertools.repeat(bytes(1 << 16), 4096)))
    with pytest.raises(winrm_client.NotWinRM, match="more than 64 KiB"):
        one.begin(10)
    assert one.ended.wait(10) and one.sent < 64 << 20


def test_a_greeting_is_asked_for_as_it_is_and_not_unpacked(says: Callable[..., Says]) -> None:
    one = says([GREETING + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde"])
    with pytest.raises(winrm_client.NotWinRM, match="packs its answer"):
        one.begin(10)
    assert re.search(rb"(?mi)^accept-encoding: identity\r$", one.asked), one.asked


def dripping(piece: bytes) -> Iterator[bytes]:
    """A piece each hundredth of a second: always before a socket's timeout."""
    pause = threading.Event()
    for unused_time in range(1000):
        yield piece
        pause.wait(0.01)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 401 No\r\nX: ", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (GREETING + b"Content-Length: 60000\r\n\r\n", b"x"),
        (GREETING + b"\r\n", b"x"),
        (GREETING + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["headers", "continue", "body", "body to its end", "chunks"],
)
def test_who_drips_is_not_listened_to_for_ever(says: Callable[..., Says], head: bytes, piece: bytes) -> None:
    one = says(itertools.chain([head], dripping(piece)))
    with pytest.raises(winrm_client.Timeout):
        one.begin(0.3)
    assert one.ended.wait(10)


@pytest.mark.parametrize(("scheme", "kind"), [("http", "ntlm"), ("https", "basic")])
def test_an_answer_to_a_message_has_an_end(opened: Open, windows: Windows, monkeypatch: pytest.MonkeyPatch, scheme: str, kind: str) -> None:
    client = opened(scheme, kind)

    def answer(connection: Any, unused_status: int, *unused: Any) -> None:
        connection.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 99999999\r\n\r\n")
        for unused_time in range(1024):
            connection.wfile.write(bytes(1 << 15))

    monkeypatch.setattr(windows.module.Connection, "_answer", answer)
    with pytest.raises(ConnectionError, match="more than 8192 KiB"):
        client.run("line")


@pytest.mark.parametrize(("scheme", "kind"), [("http", "ntlm"), ("https", "ntlm")])
def test_an_answer_to_a_message_comes_in_time(opened: Open, windows: Windows, monkeypatch: pytest.MonkeyPatch, scheme: str, kind: str) -> None:
    client = opened(scheme, kind)

    def answer(connection: Any, unused_status: int, *unused: Any) -> None:
        connection.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 99999\r\n\r\n")
        for piece in dripping(b"x"):
            connection.wfile.write(piece)

    monkeypatch.setattr(windows.module.Connection, "_answer", answer)
    monkeypatch.setattr(winrm_client, "EXCHANGE_SECONDS", 0.3)
    with pytest.raises(winrm_client.Timeout):
        client.run("line")


def test_nothing_is_left_open(windows: Windows) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for scheme in ("http", "https"):
        windows.begin(scheme).close()
    # The server's ends are closed by threads of its own.
    deadline = time.monotonic() + 10
    while (now := len(os.listdir("/proc/self/fd"))) > before and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert now <= before


def test_how_long_sending_takes_is_not_the_commands(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def slow() -> Iterator[bytes]:
        for unused_time in range(3):
            now[0] += 1000
            yield b"x"

    client = opened()
    monkeypatch.setattr(winrm_client, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    assert client.run("sum", slow(), seconds=120).text == hashlib.sha256(b"xxx").hexdigest()


SEALED_HEAD = b"--Encrypted Boundary\r\n\tContent-Type: application/HTTP-SPNEGO-session-encrypted\r\n\tOriginalContent: Length=9\r\n--Encrypted Boundary\r\n"
SEALED = 'multipart/encrypted;protocol="application/HTTP-SPNEGO-session-encrypted";boundary="Encrypted Boundary"'


@pytest.mark.parametrize(
    ("scheme", "body", "kind"),
    [
        ("http", SEALED_HEAD + b"\tContent-Type: application/octet-stream\r\nab--Encrypted Boundary--\r\n", SEALED),
        ("http", SEALED_HEAD, SEALED),
        ("http", b"--Encrypted Boundary\r\n--Encrypted Boundary\r\n", SEALED),
        ("http", SEALED_HEAD + b"\tContent-Type: application/octet-stream\r\n\x10\0\0\0" + bytes(40), SEALED),
        ("https", b"<a/>", "application/soap+xml"),
        ("https", b"\xff", "application/soap+xml"),
        ("https", b"<a><CommandId>x</CommandId><CommandState State='http://x/CommandState/Done'/><ExitCode>x</ExitCode></a>", "application/soap+xml"),
    ],
    ids=["short", "no part", "no length", "not ours", "another message", "no XML", "no number"],
)
def test_a_garbled_answer_is_a_broken_connection(opened: Open, windows: Windows, monkeypatch: pytest.MonkeyPatch, scheme: str, body: bytes, kind: str) -> None:
    """Whatever the libraries make of it: what has been done is to be undone."""
    way_in = way_in_winrm.WinrmWayIn(Target.make("winrm", "::1", host="w", user="me", password=SECRET), "0123456789ab")
    way_in._client = opened(scheme)
    answer = windows.module.Connection._answer
    monkeypatch.setattr(windows.module.Connection, "_answer", lambda connection, *unused: answer(connection, 200, body, kind))
    with pytest.raises(SojournError) as caught:
        way_in._read("ready.json", "starting the agent")
    assert caught.value.code == "SD-205" and re.fullmatch(r"[a-zA-Z]+(: .+)?", caught.value.fields["detail"]), caught.value


@pytest.mark.parametrize("line", ['"quoted" first', "x" * 8192])
def test_lines_that_the_prompt_would_not_take_as_they_are(opened: Open, line: str) -> None:
    with pytest.raises(ValueError, match="no line for the command prompt"):
        opened().run(line)
