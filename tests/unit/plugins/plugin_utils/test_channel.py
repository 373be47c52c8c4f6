"""The channel against a real TLS server on loopback: pinning, what is sent and read, lost connections, hostile answers."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import channel as channel_module
from ansible_collections.sojourn.deploy.plugins.plugin_utils import mtom, network
from ansible_collections.sojourn.deploy.plugins.plugin_utils.channel import Channel, ConnectionLost, Endpoint
from ansible_collections.sojourn.deploy.plugins.plugin_utils.credentials import RunCredentials, _readable_path, fingerprint_of_pem
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

NAMESPACE = "urn:sojourn:deploy:1"
CONTROLLER = RunCredentials.make("0123456789ab")


def soap(body: str) -> bytes:
    return (
        f'<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body xmlns="{NAMESPACE}">{body}</s:Body></s:Envelope>'
    ).encode()


def fault(code: str, sentence: str) -> bytes:
    return soap(
        f'<s:Fault><faultcode>s:Server</faultcode><faultstring>{sentence}</faultstring>'
        f'<detail><Fault xmlns="{NAMESPACE}"><Code>{code}</Code><Sentence>{sentence}</Sentence><Remedy>Do it.</Remedy></Fault></detail></s:Fault>'
    ).replace(f' xmlns="{NAMESPACE}"><s:Fault'.encode(), b"><s:Fault")


RENEWED = soap("<RenewLeaseResponse><RemainingSeconds>119.5</RemainingSeconds></RenewLeaseResponse>")
Answer = Callable[["Handler", bytes], "tuple[int, str, bytes] | None"]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *unused: Any) -> None:
        pass

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.headers.append(dict(self.headers))
        if self.server.stream is not None:
            answer = self.server.stream(self, length)
        else:
            body = self.rfile.read(length)
            self.server.bodies.append(body)
            answer = self.server.answer(self, body)
        if answer is None:
            self.close_connection = True
            self.connection.close()
            return
        status, content_type, data = answer
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(http.server.ThreadingHTTPServer):
    """A throwaway agent; ``connections`` counts TLS connections that came to stand."""

    address_family = socket.AF_INET6
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.credentials = RunCredentials.make("agent")
        if context is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        with _readable_path(self.credentials.pem) as path:
            context.load_cert_chain(path)
        context.verify_mode = ssl.CERT_REQUIRED
        # OpenSSL wants a purpose; the agent pins by fingerprint instead.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        with _readable_path(CONTROLLER.pem) as path:
            context.load_verify_locations(path)
        self.context = context
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Answer = lambda unused, unused_body: (200, "text/xml; charset=utf-8", RENEWED)
        self.stream: Callable[[Handler, int], Any] | None = None
        self.connections = 0
        super().__init__(("::1", 0), Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.settimeout(20)
        wrapped = self.context.wrap_socket(connection, server_side=True)
        self.connections += 1
        return wrapped, address

    def handle_error(self, *unused: Any) -> None:
        pass

    def endpoint(self, fingerprint: str | None = None) -> Endpoint:
        return Endpoint(
            network.resolve("::1", self.server_address[1])[0], fingerprint or self.credentials.fingerprint, "62286-62293", "web1", connection_timeout=30
        )


@pytest.fixture
def server() -> Iterator[Server]:
    yield from serve(Server())


def serve(server: Server) -> Iterator[Server]:
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def channel(server: Server) -> Iterator[Channel]:
    channel = Channel(server.endpoint(), CONTROLLER.context())
    yield channel
    channel.close()


# Trust


def test_a_call(server: Server, channel: Channel) -> None:
    assert channel.call("RenewLease", Seconds=60.0) == 119.5
    assert channel.call("RenewLease") == 119.5
    assert server.connections == 1
    assert server.headers[0]["SOAPAction"] == '"urn:sojourn:deploy:1#RenewLease"'
    assert server.headers[0]["Content-Type"] == "text/xml; charset=utf-8"
    assert server.headers[0]["Host"].startswith("[::1]:")


def test_another_certificate_is_refused_before_anything_is_sent(server: Server) -> None:
    channel = Channel(server.endpoint("ab" * 32), CONTROLLER.context())
    with pytest.raises(SojournError, match=r"is not the agent that was started there. \(SD-502\)") as caught:
        channel.call("RenewLease")
    assert caught.value.kind == "unreachable"
    assert server.bodies == [] and server.headers == []


def test_tls_1_2_is_refused() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    for server in serve(Server(context)):
        with pytest.raises(SojournError, match="SD-50[12]"):
            Channel(server.endpoint(), CONTROLLER.context()).call("RenewLease", patience=0)
        assert server.bodies == [] and server.connections == 0


def test_a_server_that_refuses_our_certificate(server: Server) -> None:
    with pytest.raises(SojournError, match=r"refused the handshake|no longer answers|could not be reached"):
        Channel(server.endpoint(), RunCredentials.make("other").context()).call("RenewLease", patience=0)
    assert server.bodies == []


def test_what_is_no_tls_at_all() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as plain:
        def greet() -> None:
            connection = plain.accept()[0]
            connection.sendall(b"220 ftp ready\r\n")
            connection.recv(4096)
            connection.close()

        threading.Thread(target=greet, daemon=True).start()
        endpoint = Endpoint(network.resolve("::1", plain.getsockname()[1])[0], "ab" * 32, "1", "web1")
        with pytest.raises(SojournError, match="SD-502"):
            Channel(endpoint, CONTROLLER.context()).call("RenewLease", patience=0)


def test_the_controllers_environment_has_no_say(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("CURL_CA_BUNDLE", str(tmp_path / "none.pem"))
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine ::1 login somebody password Geheim1!\nmachine [::1] login somebody password Geheim1!\ndefault login somebody password Geheim1!\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    assert Channel(server.endpoint(), CONTROLLER.context()).call("RenewLease") == 119.5
    assert not [name for sent in server.headers for name in sent if "auth" in name.lower()] and server.headers


def test_the_key_is_on_no_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with _readable_path(b"secret") as path:
        assert Path(path).read_bytes() == b"secret"
        assert path.startswith("/proc") and list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_fingerprints() -> None:
    pem = CONTROLLER.pem.split(b"-----BEGIN PRIVATE")[0].decode()
    assert fingerprint_of_pem(pem) == CONTROLLER.fingerprint
    with pytest.raises(ValueError):
        fingerprint_of_pem("nothing")


# Faults and odd answers


def test_faults_carry_the_agents_words(server: Server, channel: Channel) -> None:
    server.answer = lambda *unused: (500, "text/xml; charset=utf-8", fault("SD-702", "The target has no user 'x'."))
    with pytest.raises(SojournError) as caught:
        channel.call("Stat", Path="/x")
    assert (caught.value.code, caught.value.host, caught.value.step) == ("SD-702", "web1", "calling Stat")
    assert str(caught.value) == "[web1] calling Stat: The target has no user 'x'. (SD-702) Remedy: Do it."


@pytest.mark.parametrize(
    "answer",
    [
        (200, "text/xml", b"not xml"),
        (200, "text/html", b"<html/>"),
        (404, "text/plain", b"not found"),
        (200, "text/xml", b""),
        (200, "text/xml", soap("<Other/>")),
        (200, "text/xml", soap("")),
        (200, "text/xml", b"<x/>"),
        (200, "text/xml", b'<!DOCTYPE a [<!ENTITY b "c">]>' + RENEWED[21:]),
        (200, "multipart/related", b"--b"),
        (200, 'multipart/related; boundary="b"', b"--b\r\n\r\nnot xml\r\n--b--"),
        (200, 'multipart/related; boundary="b"', b"--b\r\n\r\n" + RENEWED),
        (500, "text/xml", soap("<s:Fault><faultcode>s:Server</faultcode><faultstring>x</faultstring></s:Fault>")),
    ],
)
def test_answers_that_are_none(server: Server, channel: Channel, answer: tuple[int, str, bytes]) -> None:
    server.answer = lambda *unused: answer
    with pytest.raises(SojournError) as caught:
        channel.call("RenewLease", patience=0)
    assert caught.value.code == "SD-505", str(caught.value)


def test_an_answer_without_end_is_broken_off(server: Server, channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtom, "MAXIMUM_ROOT", 4 << 20)
    server.answer = lambda *unused: (200, "text/xml", b"<x>" + b" " * (9 << 20))
    with pytest.raises(SojournError, match="too long"):
        channel.call("RenewLease")


def test_too_many_parts_are_refused(server: Server, channel: Channel) -> None:
    parts = b"".join(b"\r\n--b\r\nContent-ID: <%d>\r\n\r\nx" % n for n in range(50))
    server.answer = lambda *unused: (200, 'multipart/related; boundary="b"', b"--b\r\n\r\n" + RENEWED + parts + b"\r\n--b--")
    with pytest.raises(SojournError, match="too many parts"):
        channel.call("RenewLease")


def test_requests_that_cannot_be_made(channel: Channel) -> None:
    with pytest.raises(SojournError, match="SD-504"):
        channel.call("RenewLease", NoSuch=1)
    with pytest.raises(SojournError, match="SD-504"):
        channel.call("Execute", CommandLine="\x1b[0m")


# Lost connections


def test_a_lost_answer_is_asked_for_again_where_that_is_safe(server: Server, channel: Channel) -> None:
    left = [2]

    def answer(*unused: Any) -> Any:
        left[0] -= 1
        return None if left[0] >= 0 else (200, "text/xml; charset=utf-8", RENEWED)

    server.answer = answer
    assert channel.call("RenewLease") == 119.5
    assert len(server.bodies) == 3


def test_execute_is_never_sent_twice(server: Server, channel: Channel) -> None:
    server.answer = lambda *unused: None
    with pytest.raises(SojournError, match=r"no longer answers.*\(SD-503\)|SD-501"):
        channel.call("Execute", CommandLine="x")
    assert len(server.bodies) == 1


def test_what_did_not_leave_is_sent_again(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is; but once it may have arrived, only what is safe."""
    def calls(*lost: ConnectionLost) -> int:
        left, count = list(lost), 0

        def once(*unused: Any) -> str:
            nonlocal count
            count += 1
            if left:
                raise left.pop(0)
            return "done"

        monkeypatch.setattr(channel, "_once", once)
        try:
            assert channel.call("WriteInput", Handle="x", Data=b"y") == "done"
        except SojournError:
            return -count
        return count

    assert calls(ConnectionLost("x", unsent=True), ConnectionLost("x", unsent=True)) == 3
    assert calls(ConnectionLost("x")) == -1
    assert calls(ConnectionLost("x", unsent=True), ConnectionLost("x"), ConnectionLost("x", unsent=True)) == -2


def test_what_its_caller_was_handling_is_not_what_became_of_a_call(server: Server, channel: Channel) -> None:
    """Python has it behind every later error; it must not be taken for the reason, nor keep the call from being sent again."""
    server.answer = lambda *unused: None
    tried = 0
    try:
        raise SojournError("SD-503", step="calling WriteInput", detail="an earlier loss")
    except SojournError:
        with pytest.raises(SojournError) as caught:
            channel.call("Signal", Handle="x", Name="kill", patience=0.3)
        tried = len(server.bodies)
    assert "an earlier loss" not in str(caught.value) and tried >= 2


def test_an_agent_that_is_gone_is_told_soon(server: Server, channel: Channel) -> None:
    channel.call("RenewLease")
    server.shutdown()
    server.server_close()
    channel._pool._get_conn().close()  # the one that it has open
    with pytest.raises(SojournError, match="SD-503"):
        channel.call("RenewLease", patience=300)


def test_an_agent_that_was_never_reached() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        endpoint = Endpoint(network.resolve("::1", probe.getsockname()[1])[0], "ab" * 32, "62286-62293", "web1")
        with pytest.raises(SojournError, match=r"could not be reached: Port \d+ of ::1 refuses connections. \(SD-501\).*62286-62293"):
            Channel(endpoint, CONTROLLER.context()).call("GetInfo", patience=0)


# Data


def received(body: bytes, content_type: str) -> tuple[bytes, dict[str, bytes]]:
    parts = mtom.Reader(io.BytesIO(body).readinto, mtom.parse_content_type(content_type)[1]["boundary"])
    parts.next()
    root = parts.all(1 << 20)
    found = {}
    while (headers := parts.next()) is not None:
        found[mtom.content_id(headers)] = parts.all(1 << 30)
    return root, found


def execution(**fields: Any) -> str:
    values = {
        "Handle": "1", "Running": "false", "ExitCode": "0", "TimedOut": "false", "StandardOutputOffset": "0", "StandardOutput": "",
        "StandardErrorOffset": "0", "StandardError": "", "Seconds": "0.5", **fields,
    }  # fmt: skip
    return "<Execution>" + "".join(f"<{name}>{value}</{name}>" for name, value in values.items()) + "</Execution>"


def test_input_goes_beside_the_envelope_unless_it_is_short(server: Server, channel: Channel) -> None:
    server.answer = lambda *unused: (200, "text/xml; charset=utf-8", soap(f"<ExecuteResponse>{execution()}</ExecuteResponse>"))
    channel.call("Execute", CommandLine="cat", Input=b"short")
    assert base64.b64encode(b"short") in server.bodies[0]
    data = os.urandom(300_000)
    answer = channel.call("Execute", CommandLine="cat", Input=data, Environment=[{"Name": "A", "Value": "ü"}])
    root, found = received(server.bodies[1], server.headers[1]["Content-Type"])
    assert list(found.values()) == [data] and b"Include" in root and "ü".encode() in root
    assert server.headers[1]["Content-Length"] == str(len(server.bodies[1])) and "Transfer-Encoding" not in server.headers[1]
    assert answer["exit_code"] == 0 and answer["handle"] == "1" and not answer["running"]


def test_output_may_come_inline_or_beside_the_envelope(server: Server, channel: Channel) -> None:
    out, err = os.urandom(100_000), b"error"
    body = execution(
        StandardOutput='<x:Include xmlns:x="http://www.w3.org/2004/08/xop/include" href="cid:out%40agent"/>', StandardError=base64.b64encode(err).decode(),
        ExitCode="4294967295",
    )
    data = b"--b\r\nContent-ID: <root>\r\n\r\n" + soap(f"<ReadOutputResponse>{body}</ReadOutputResponse>")
    data += b"\r\n--b\r\nContent-ID: <out@agent>\r\n\r\n" + out + b"\r\n--b--\r\n"
    server.answer = lambda *unused: (200, 'multipart/related; type="application/xop+xml"; boundary=b', data)
    answer = channel.call("ReadOutput", Handle="1", StandardOutputOffset=0, StandardErrorOffset=0)
    assert (answer["standard_output"], answer["standard_error"], answer["exit_code"]) == (out, err, 4294967295)


def test_a_reference_to_a_part_that_is_not_there(server: Server, channel: Channel) -> None:
    body = execution(StandardOutput='<x:Include xmlns:x="http://www.w3.org/2004/08/xop/include" href="cid:none"/>')
    data = b"--b\r\n\r\n" + soap(f"<ReadOutputResponse>{body}</ReadOutputResponse>") + b"\r\n--b\r\nContent-ID: <other>\r\n\r\nx\r\n--b--\r\n"
    server.answer = lambda *unused: (200, "multipart/related; boundary=b", data)
    with pytest.raises(SojournError, match="SD-505"):
        channel.call("ReadOutput", Handle="1", StandardOutputOffset=0, StandardErrorOffset=0)


def take_file(server: Server, store: dict[str, Any], cut_at: int | None = None) -> Callable[[Handler, int], Any]:
    """PutFile and Stat of an agent that keeps what it gets; cuts the first connection after some bytes, if told so."""

    def stream(handler: Handler, length: int) -> Any:
        content_type = handler.headers["Content-Type"]
        if handler.headers["SOAPAction"].endswith('#Stat"'):
            handler.rfile.read(length)
            kind = f"<Kind>file</Kind><Size>{len(store['data'])}</Size>" if store["data"] else "<Kind>absent</Kind>"
            return 200, "text/xml", soap(f"<StatResponse><Status><Path>p</Path>{kind}</Status></StatResponse>")
        if handler.headers["SOAPAction"].endswith('#Remove"'):
            handler.rfile.read(length)
            store["removed"] = True
            return 200, "text/xml", soap("<RemoveResponse><Removed>true</Removed></RemoveResponse>")
        left = length

        def read_into(buffer: memoryview) -> int:
            nonlocal left
            data = handler.rfile.read1(min(len(buffer), left, 65536))
            left -= len(data)
            buffer[: len(data)] = data
            return len(data)

        parts = mtom.Reader(read_into, mtom.parse_content_type(content_type)[1]["boundary"])
        parts.next()
        root = parts.all(1 << 20)
        offset = int(re.search(rb"Offset>(\d+)<", root)[1])
        store["offsets"].append(offset)
        parts.next()
        digest = hashlib.sha256(bytes(store["data"][:offset]))
        del store["data"][offset:]
        try:
            for piece in parts.data():
                digest.update(piece)
                if store["keep"]:
                    store["data"] += piece
                store["size"] = store.get("size", 0) + len(piece)
                if cut_at is not None and store["size"] > cut_at and len(store["offsets"]) == 1:
                    return None
            parts.next()
            given = parts.all(64)
        except (mtom.MtomError, OSError):
            return None
        assert given == digest.digest()
        answer = base64.b64encode(digest.digest()).decode()
        return 200, "text/xml", soap(f"<PutFileResponse><Size>{offset + store['size']}</Size><Checksum>{answer}</Checksum></PutFileResponse>")

    return stream


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(5 << 20) + b"end")
    return path


def test_put_file(server: Server, channel: Channel, file: Path) -> None:
    store: dict[str, Any] = {"data": bytearray(), "offsets": [], "keep": True}
    server.stream = take_file(server, store)
    steps: list[tuple[int, int]] = []
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    result = channel.put_file(str(file), "p", checksum=checksum, on_progress=lambda done, total: steps.append((done, total)))
    assert result["checksum"] == checksum and store["data"] == file.read_bytes()
    assert steps[-1] == (file.stat().st_size,) * 2


def test_put_file_goes_on_where_it_broke_off(server: Server, channel: Channel, file: Path) -> None:
    store: dict[str, Any] = {"data": bytearray(), "offsets": [], "keep": True}
    server.stream = take_file(server, store, cut_at=2 << 20)
    result = channel.put_file(str(file), "p")
    assert sorted(result) == ["checksum", "size"]
    assert store["data"] == file.read_bytes() and result["checksum"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert store["offsets"][0] == 0 and store["offsets"][1] > 2 << 20


def both_of(data: bytes) -> dict[str, str]:
    return {"sha1": hashlib.sha1(data).hexdigest(), "md5": hashlib.md5(data).hexdigest()}


@pytest.mark.parametrize("cut_at", [None, 2 << 20])
@pytest.mark.parametrize("slow", [False, True])
def test_put_file_hashes_on_the_way(server: Server, channel: Channel, file: Path, cut_at: int | None, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what had arrived before it broke off, and where it is sent faster than it is hashed: no buffer is filled anew before that."""
    store: dict[str, Any] = {"data": bytearray(), "offsets": [], "keep": True}
    server.stream = take_file(server, store, cut_at=cut_at)
    update = mtom.Digests.update
    if slow:  # the hashing: what is sent has to wait for a buffer then
        monkeypatch.setattr(mtom.Digests, "update", lambda self, data: (time.sleep(0.02), update(self, data))[1])
    result = channel.put_file(str(file), "p", digests=True)
    assert len(store["offsets"]) == (2 if cut_at else 1) and store["data"] == file.read_bytes()
    assert {name: result[name] for name in ("sha1", "md5")} == both_of(file.read_bytes())
    assert result["checksum"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "digests" not in [thread.name for thread in threading.enumerate()]


def test_put_file_makes_the_digests_of_a_file_once(server: Server, channel: Channel, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends it meanwhile does without; who sends it later has them; nobody has another file's, though it looks the same."""
    data = file.read_bytes()
    hashed: list[int] = []
    update = mtom.Digests.update
    monkeypatch.setattr(mtom.Digests, "update", lambda self, data: hashed.append(len(data)) or update(self, data))

    def put(on_progress: Any = None) -> dict[str, Any]:
        server.stream = take_file(server, {"data": bytearray(), "offsets": [], "keep": True})
        result = channel.put_file(str(file), "p", digests=True, on_progress=on_progress)
        return {name: result[name] for name in ("sha1", "md5")}

    meanwhile: list[dict[str, Any]] = []

    def once(done: int, total: int) -> None:
        if done == total and not meanwhile:
            meanwhile.append({})
            meanwhile.append(put())

    assert put(once) == both_of(data) and meanwhile[1] == {"sha1": None, "md5": None}
    assert sum(hashed) == len(data)
    again = [put(), put()]
    assert again == [both_of(data)] * 2 and sum(hashed) == len(data)
    found = file.stat()
    with file.open("r+b") as stream:
        stream.write(b"other")
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert put() == {"sha1": None, "md5": None} and put() == both_of(file.read_bytes())


def test_put_file_that_fails_makes_way_for_the_next(server: Server, channel: Channel, file: Path) -> None:
    server.stream = take_file(server, {"data": bytearray(), "offsets": [], "keep": True})
    with pytest.raises(SojournError, match="SD-106"):
        channel.put_file(str(file), "p", checksum="0" * 64, digests=True)
    server.stream = take_file(server, {"data": bytearray(), "offsets": [], "keep": True})
    assert channel.put_file(str(file), "p", digests=True)["sha1"] == hashlib.sha1(file.read_bytes()).hexdigest()


def test_digests_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "REMEMBERED", 2)
    sent = channel_module._Sent()
    for key in "abc":
        assert sent.begin(key)
        sent.tell(key, "sum", {"sha1": key, "md5": None})
        sent.end(key)
    assert [sent.digests(key, "sum")["sha1"] for key in "abc"] == [None, "b", "c"]


def test_put_file_hashes_nothing_in_no_bytes(server: Server, channel: Channel, tmp_path: Path) -> None:
    store: dict[str, Any] = {"data": bytearray(), "offsets": [], "keep": True, "size": 0}
    server.stream = take_file(server, store)
    (tmp_path / "file").touch()
    result = channel.put_file(str(tmp_path / "file"), "p", digests=True)
    assert {name: result[name] for name in ("sha1", "md5")} == both_of(b"")


def test_put_file_where_there_is_no_md5(server: Server, channel: Channel, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*unused: Any, **unused_more: Any) -> Any:
        raise ValueError("disabled for FIPS")

    monkeypatch.setattr(mtom.hashlib, "md5", none)
    store: dict[str, Any] = {"data": bytearray(), "offsets": [], "keep": True}
    server.stream = take_file(server, store)
    result = channel.put_file(str(file), "p", digests=True)
    assert (result["sha1"], result["md5"]) == (hashlib.sha1(file.read_bytes()).hexdigest(), None)


def test_put_file_whose_digests_go_wrong_waits_for_nothing(server: Server, channel: Channel, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*unused: Any) -> None:
        raise OverflowError("not foreseen")

    monkeypatch.setattr(mtom.Digests, "update", wrong)
    server.stream = take_file(server, {"data": bytearray(), "offsets": [], "keep": True})
    with pytest.raises(OverflowError):
        channel.put_file(str(file), "p", digests=True)
    assert "digests" not in [thread.name for thread in threading.enumerate()]


def test_put_file_that_fails_leaves_no_thread(server: Server, channel: Channel, file: Path) -> None:
    store: dict[str, Any] = {"data": bytearray(), "offsets": [], "keep": True}
    server.stream = take_file(server, store)
    with pytest.raises(SojournError, match="SD-106"):
        channel.put_file(str(file), "p", checksum="0" * 64, digests=True)
    assert "digests" not in [thread.name for thread in threading.enumerate()]


def test_put_file_whose_answer_was_lost_is_sent_anew(server: Server, channel: Channel, file: Path) -> None:
    """The agent had it as a whole, and put it in its place between the look at the part and its resumption."""
    store: dict[str, Any] = {"data": bytearray(), "offsets": [], "keep": True}
    take = take_file(server, store, cut_at=5 << 20)

    def stream(handler: Handler, length: int) -> Any:
        if len(store["offsets"]) == 1 and handler.headers["SOAPAction"].endswith('#PutFile"'):
            handler.rfile.read(length)
            store["offsets"].append(-1)
            store["size"] = 0
            return 500, "text/xml", fault("SD-706", "The path 'p' on the target cannot be used: no such file or directory.")
        return take(handler, length)

    server.stream = stream
    result = channel.put_file(str(file), "p", digests=True)
    assert result["size"] == file.stat().st_size and {name: result[name] for name in ("sha1", "md5")} == both_of(file.read_bytes())
    assert store["offsets"] == [0, -1, 0] and store["data"] == file.read_bytes()


def test_put_file_with_the_wrong_checksum_leaves_nothing(server: Server, channel: Channel, file: Path) -> None:
    store: dict[str, Any] = {"data": bytearray(), "offsets": [], "keep": True}
    server.stream = take_file(server, store)
    with pytest.raises(SojournError, match="SD-106"):
        channel.put_file(str(file), "p", checksum="0" * 64)
    assert store["removed"]


def test_put_file_that_is_not_there(channel: Channel, tmp_path: Path) -> None:
    with pytest.raises(SojournError, match=r"/none' on the controller cannot be used: No such file or directory. \(SD-709\)"):
        channel.put_file(str(tmp_path / "none"), "p")


def give_file(data: bytes, *, checksum: bytes | None = None, size: int | None = None, cut: list[int] | None = None) -> Answer:
    def answer(handler: Handler, body: bytes) -> Any:
        match = re.search(rb"Offset>(\d+)<", body)
        offset = int(match[1]) if match else 0
        rest = data[offset:]
        include = '<x:Include xmlns:x="http://www.w3.org/2004/08/xop/include" href="cid:{}"/>'
        root = soap(
            f"<GetFileResponse><Size>{len(data) if size is None else size}</Size><Data>{include.format('d')}</Data>"
            f"<Checksum>{include.format('c')}</Checksum></GetFileResponse>"
        )
        whole = b"--b\r\n\r\n" + root + b"\r\n--b\r\nContent-ID: <d>\r\n\r\n" + rest + b"\r\n--b\r\nContent-ID: <c>\r\n\r\n"
        whole += (checksum or hashlib.sha256(rest).digest()) + b"\r\n--b--\r\n"
        if cut:
            handler.send_response(200)
            handler.send_header("Content-Type", "multipart/related; boundary=b")
            handler.send_header("Content-Length", str(len(whole)))
            handler.end_headers()
            at = cut.pop()
            handler.wfile.write(whole[: at if at >= 0 else whole.index(b"\r\n--b\r\nContent-ID: <c>") - at])
            return None
        return 200, "multipart/related; boundary=b", whole

    return answer


def test_get_file(server: Server, channel: Channel, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    server.answer = give_file(data)
    result = channel.get_file("p", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == data and result == {"size": len(data), "checksum": hashlib.sha256(data).hexdigest()}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("cut", [[], [1 << 20, 2 << 20], [-1], [0]], ids=str)
@pytest.mark.parametrize("slow", [False, True])
def test_get_file_hashes_on_the_way(
    server: Server, channel: Channel, tmp_path: Path, cut: list[int], slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it once, wherever it broke off, and where it comes faster than it is hashed; whether it is of one piece is told."""
    data, lost = os.urandom(3 << 20), bool(cut) and cut != [0]
    server.answer = give_file(data, cut=cut)
    if slow:
        update = mtom.Digests.update
        monkeypatch.setattr(mtom.Digests, "update", lambda self, data: (time.sleep(0.02), update(self, data))[1])
    result = channel.get_file("p", str(tmp_path / "out"), digests=True)
    assert not cut and (tmp_path / "out").read_bytes() == data
    found = (tmp_path / "out").stat()
    assert result == {
        "size": len(data), "checksum": hashlib.sha256(data).hexdigest(), **both_of(data), "resumed": lost,
        "identity": [found.st_dev, found.st_ino, len(data), found.st_mtime_ns]}  # fmt: skip
    assert "digests" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("data", [b"", b"data"])
def test_get_file_hashes_what_comes_inside_the_envelope(server: Server, channel: Channel, tmp_path: Path, data: bytes) -> None:
    coded = [base64.b64encode(value).decode() for value in (data, hashlib.sha256(data).digest())]
    answer = soap(f"<GetFileResponse><Size>{len(data)}</Size><Data>{coded[0]}</Data><Checksum>{coded[1]}</Checksum></GetFileResponse>")
    server.answer = lambda handler, body: (200, "text/xml", answer)
    result = channel.get_file("p", str(tmp_path / "out"), digests=True)
    assert (tmp_path / "out").read_bytes() == data and {name: result[name] for name in ("sha1", "md5")} == both_of(data)


def test_get_file_whose_digests_go_wrong_leaves_nothing(server: Server, channel: Channel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*unused: Any) -> None:
        raise OverflowError("not foreseen")

    monkeypatch.setattr(mtom.Digests, "update", wrong)
    server.answer = give_file(os.urandom(3 << 20))
    with pytest.raises(OverflowError):
        channel.get_file("p", str(tmp_path / "out"), digests=True)
    assert list(tmp_path.iterdir()) == [] and "digests" not in [thread.name for thread in threading.enumerate()]


def test_get_file_that_fails_leaves_no_thread(server: Server, channel: Channel, tmp_path: Path) -> None:
    server.answer = give_file(b"data", checksum=b"x" * 32)
    with pytest.raises(SojournError, match="SD-707"):
        channel.get_file("p", str(tmp_path / "out"), digests=True)
    assert list(tmp_path.iterdir()) == [] and "digests" not in [thread.name for thread in threading.enumerate()]


def test_get_file_goes_where_open_would(server: Server, channel: Channel, tmp_path: Path) -> None:
    """Through a link, and to a name as long as they can be."""
    server.answer = give_file(b"data")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to("elsewhere/file")
    channel.get_file("p", str(tmp_path / "out"))
    assert (tmp_path / "out").is_symlink() and (tmp_path / "elsewhere/file").read_bytes() == b"data"
    name = "\u6587" * 85
    channel.get_file("p", str(tmp_path / name))
    assert (tmp_path / name).read_bytes() == b"data"
    assert sorted(path.name for path in (*tmp_path.iterdir(), *tmp_path.glob("*/*"))) == sorted(["elsewhere", "file", "out", name])


def test_get_file_writes_into_what_is_no_file(server: Server, channel: Channel, tmp_path: Path) -> None:
    """A device would have to stay; here it is a pipe."""
    server.answer = give_file(b"data")
    os.mkfifo(tmp_path / "out")
    heard: list[bytes] = []
    listener = threading.Thread(target=lambda: heard.append((tmp_path / "out").read_bytes()), daemon=True)
    listener.start()
    channel.get_file("p", str(tmp_path / "out"))
    listener.join(60)
    assert heard == [b"data"] and [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out").is_fifo()


def test_get_file_that_nobody_waits_for_leaves_what_was_there(server: Server, channel: Channel, tmp_path: Path) -> None:
    server.answer = give_file(os.urandom(3 << 20))
    (tmp_path / "out").write_bytes(b"before")
    left = [3]

    def wanted() -> None:
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("nobody waits")

    with pytest.raises(RuntimeError, match="nobody waits"):
        channel.get_file("p", str(tmp_path / "out"), on_progress=wanted)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out", b"before")]


def test_get_file_goes_on_where_it_broke_off(server: Server, channel: Channel, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    server.answer = give_file(data, cut=[1 << 20, 2 << 20])
    assert channel.get_file("p", str(tmp_path / "out"))["checksum"] == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("behind", [1, 5, 20, 27, 30])
def test_get_file_goes_on_where_it_broke_off_behind_the_data(server: Server, channel: Channel, tmp_path: Path, behind: int) -> None:
    """In the boundary, in what follows it, in the checksum."""
    server.answer = give_file(b"data", cut=[-behind])
    assert channel.get_file("p", str(tmp_path / "out"))["size"] == 4
    assert (tmp_path / "out").read_bytes() == b"data"


def test_answers_of_another_http_library_are_read_by_its_own_read(channel: Channel) -> None:
    response, buffer = SimpleNamespace(read=io.BytesIO(b"123456").read), memoryview(bytearray(4))
    assert [(channel._read_into(response, "GetFile", buffer), bytes(buffer)) for _piece in range(3)] == [(4, b"1234"), (2, b"5634"), (0, b"5634")]


@pytest.mark.parametrize(
    ("answer", "code"), [(give_file(b"data", checksum=b"x" * 32), "SD-707"), (give_file(b"data", size=3), "SD-505"), (give_file(b"data", size=5), "SD-505")]
)
def test_get_file_that_lies_leaves_nothing(server: Server, channel: Channel, tmp_path: Path, answer: Answer, code: str) -> None:
    server.answer = answer
    with pytest.raises(SojournError) as caught:
        channel.get_file("p", str(tmp_path / "out"))
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []
