"""Host keys as OpenSSH has them, and the scripts that run on targets."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import os
import re
import secrets
import select
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import ssh_client, way_in_ssh
from ansible_collections.sojourn.deploy.plugins.plugin_utils.ssh_client import (
    CertificateRefused,
    Client,
    HostKeyChanged,
    HostKeyUnknown,
    host_names,
    known_keys,
)

KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIGRlc3Qta2V5LW9uZS1mb3ItdGhlLXVuaXQtdGVzdHMh"
needs_openssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs OpenSSH")
OTHER = "AAAAC3NzaC1lZDI1NTE5AAAAIG90aGVyLWtleS1vbmUtZm9yLXRoZS11bml0LXRlc3Rz"


def check(folder: Path, lines: str, address: str = "fd73::1", port: int = 22, key: str = KEY) -> None:
    path = folder / "known_hosts"
    path.write_text(lines)
    known = known_keys([str(path), str(folder / "none")], host_names(address, port))
    Client.check_host_key(SimpleNamespace(get_base64=lambda: key), known, address)


@pytest.mark.parametrize(
    ("lines", "address", "port"),
    [
        (f"fd73::1 ssh-ed25519 {KEY}", "fd73::1", 22),
        (f"# comment\n\nother,fd73::1,web1 ssh-ed25519 {KEY} a comment", "fd73::1", 22),
        (f"WEB1 ssh-ed25519 {KEY}", "Web1", 22),
        (f"[fd73::1]:2222 ssh-ed25519 {KEY}", "fd73::1", 2222),
        (f"[web1]:2222 ssh-ed25519 {KEY}", "web1", 2222),
        (f"*.example,!bad.example ssh-ed25519 {KEY}", "web1.example", 22),
        (f"web? ssh-ed25519 {KEY}", "web1", 22),
        (f"web1 ssh-rsa AAAA\nweb1 ssh-ed25519 {KEY}", "web1", 22),
        (f"web1 ssh-ed25519 {OTHER}\nweb1 ssh-ed25519 {KEY}", "web1", 22),
    ],
)
def test_known(tmp_path: Path, lines: str, address: str, port: int) -> None:
    check(tmp_path, lines, address, port)


@pytest.mark.parametrize(
    ("lines", "address", "port"),
    [
        ("", "web1", 22),
        (f"web2 ssh-ed25519 {KEY}", "web1", 22),
        (f"web1 ssh-ed25519 {KEY}", "web1", 2222),
        (f"[web1]:2222 ssh-ed25519 {KEY}", "web1", 22),
        (f"*.example,!bad.example ssh-ed25519 {KEY}", "bad.example", 22),
        ("web1", "web1", 22),
        (f"@cert-authority web1 ssh-ed25519 {KEY}", "web1", 22),
        (f"|1|bad|hash ssh-ed25519 {KEY}", "web1", 22),
    ],
)
def test_unknown(tmp_path: Path, lines: str, address: str, port: int) -> None:
    with pytest.raises(HostKeyUnknown):
        check(tmp_path, lines, address, port)


@pytest.mark.parametrize("lines", [f"web1 ssh-ed25519 {OTHER}", "web1 ssh-rsa AAAA", f"web1 ssh-ed25519 {KEY}\n@revoked * ssh-ed25519 {KEY}"])
def test_changed_or_revoked(tmp_path: Path, lines: str) -> None:
    with pytest.raises(HostKeyChanged):
        check(tmp_path, lines, "web1")


@needs_openssh
def test_hashed_by_openssh_itself(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"fd73::1 ssh-ed25519 {KEY}\n[web1]:2222 ssh-ed25519 {KEY}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", path], check=True, capture_output=True)
    text = path.read_text()
    assert "fd73" not in text and text.count("|1|") == 2
    check(tmp_path, text, "fd73::1", 22)
    check(tmp_path, text, "web1", 2222)
    with pytest.raises(HostKeyUnknown):
        check(tmp_path, text, "web1", 22)


class Authority:
    """Who signs hosts' keys, by ssh-keygen itself."""

    def __init__(self, folder: Path, kind: str = "ed25519") -> None:
        self.folder = folder
        self.key = self.make("authority", kind)

    def make(self, name: str, kind: str) -> str:
        """A key; what its .pub has: type, key."""
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", self.folder / name], check=True)
        return (self.folder / f"{name}.pub").read_text().strip()

    def sign(self, kind: str, *options: str, host: bool = True) -> Any:
        """A new host key with a certificate, as a host shows it."""
        import paramiko

        for old in self.folder.glob("host*"):
            old.unlink()
        self.make("host", kind)
        words = ["ssh-keygen", "-q", "-s", self.folder / "authority", "-I", "test", *(["-h"] if host else []), *options, self.folder / "host.pub"]
        subprocess.run(words, check=True, capture_output=True)
        blob = base64.b64decode((self.folder / "host-cert.pub").read_text().split()[1])
        return {"ed25519": paramiko.Ed25519Key, "ecdsa": paramiko.ECDSAKey, "rsa": paramiko.RSAKey}[kind](paramiko.Message(blob))

    def check(self, shown: Any, lines: str, address: str = "web1.example", port: int = 22) -> None:
        """As a connection would."""
        path = self.folder / "known_hosts"
        path.write_text(lines)
        Client.check_host_key(shown, known_keys([str(path)], host_names(address, port)), address)


@needs_openssh
@pytest.mark.parametrize(("kind", "by"), [("ed25519", "ed25519"), ("ecdsa", "ed25519"), ("rsa", "ecdsa"), ("ed25519", "rsa")])
def test_a_host_that_an_authority_knows(tmp_path: Path, kind: str, by: str) -> None:
    authority = Authority(tmp_path, by)
    shown = authority.sign(kind, "-n", "web1.example,fd73::1", "-V", "-1h:+1h")
    authority.check(shown, f"@cert-authority *.example {authority.key}")
    authority.check(shown, f"@cert-authority *.example {authority.key}", address="WEB1.example")
    authority.check(shown, f"@cert-authority [web1.example]:2222 {authority.key}", port=2222)
    authority.check(shown, f"@cert-authority * {authority.key}", address="fd73::1")
    authority.check(authority.sign(kind, "-n", "web1.example"), f"@cert-authority * {authority.key}")  # for ever


@needs_openssh
@pytest.mark.parametrize(
    ("options", "host", "why"),
    [
        (["-n", "web2.example"], True, "it is for web2.example"),
        (["-n", "example,web1.example.org"], True, "it is for example, web1.example.org"),
        ([], True, "it names no host"),
        (["-n", "*.example"], True, "it is for *.example"),
        (["-n", "WEB1.example"], True, "it is for WEB1.example"),
        (["-n", "web1.example", "-V", "-2h:-1h"], True, "expired"),
        (["-n", "web1.example", "-V", "+1h:+2h"], True, "not valid yet"),
        (["-n", "web1.example"], False, "of a user"),
        (["-n", "web1.example", "-O", "critical:unheard-of@example=x"], True, "unheard-of@example"),
    ],
)
def test_a_certificate_that_does_not_count(tmp_path: Path, options: list[str], host: bool, why: str) -> None:
    authority = Authority(tmp_path)
    with pytest.raises(CertificateRefused, match=re.escape(why)):
        authority.check(authority.sign("ed25519", *options, host=host), f"@cert-authority *.example {authority.key}")


@needs_openssh
def test_a_certificate_by_way_of_sha_1(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "rsa")
    with pytest.raises(CertificateRefused, match="SHA-1"):
        authority.check(authority.sign("ed25519", "-t", "ssh-rsa"), f"@cert-authority * {authority.key}")


@needs_openssh
def test_a_certificate_of_another_authority_or_forged(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "other")
    shown = other.sign("ed25519")
    plain = (other.folder / "host.pub").read_text()
    with pytest.raises(HostKeyUnknown):
        authority.check(shown, f"@cert-authority * {authority.key}")
    authority.check(shown, f"@cert-authority * {authority.key}\nweb1.example {plain}")  # the key itself is known
    with pytest.raises(HostKeyChanged):
        authority.check(shown, f"@cert-authority * {authority.key}\nweb1.example {authority.key}")
    # Signed by another, who says that it was the authority.
    theirs, ours = (base64.b64decode(key.split()[1]) for key in (other.key, authority.key))
    shown.public_blob.key_blob = shown.public_blob.key_blob.replace(theirs, ours)
    with pytest.raises(CertificateRefused, match="signature"):
        authority.check(shown, f"@cert-authority * {authority.key}")
    # A signature that is none, and what cannot be read: the key itself may be known all the same.
    damaged = authority.sign("ed25519", "-n", "web1.example")
    blob = damaged.public_blob.key_blob
    damaged.public_blob.key_blob = blob[:-1] + bytes([blob[-1] ^ 1])
    with pytest.raises(CertificateRefused, match="signature"):
        authority.check(damaged, f"@cert-authority * {authority.key}")
    damaged.public_blob.key_blob = blob[:40]
    authority.check(damaged, f"@cert-authority * {authority.key}\nweb1.example {(tmp_path / 'host.pub').read_text()}")
    for length in (0, 40, 150, len(shown.public_blob.key_blob) - 1):
        shown.public_blob.key_blob = shown.public_blob.key_blob[:length]
        with pytest.raises((CertificateRefused, HostKeyUnknown)):
            authority.check(shown, f"@cert-authority * {authority.key}")


@needs_openssh
def test_a_key_that_is_known_though_its_certificate_does_not_count(tmp_path: Path) -> None:
    """As OpenSSH: it goes on with the key alone."""
    authority = Authority(tmp_path)
    shown = authority.sign("ed25519", "-n", "web2.example")
    plain = f"web1.example {(tmp_path / 'host.pub').read_text()}"
    authority.check(shown, f"@cert-authority * {authority.key}\n{plain}")
    with pytest.raises(HostKeyChanged):
        authority.check(shown, f"@cert-authority * {authority.key}\nweb1.example {authority.key}")
    with pytest.raises(ssh_client.AuthorityRevoked):
        authority.check(shown, f"@cert-authority * {authority.key}\n@revoked * {authority.key}\n{plain}")


@needs_openssh
def test_a_file_of_revoked_keys(tmp_path: Path) -> None:
    for name in ("one", "two"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    (tmp_path / "revoked").write_text("# those\n" + (tmp_path / "one.pub").read_text())
    key = (tmp_path / "one.pub").read_text().split()[1]
    assert ssh_client.revoked_keys(str(tmp_path / "revoked")) == [ssh_client.KnownKey("ssh-ed25519", key, revoked=True)]
    subprocess.run(["ssh-keygen", "-q", "-k", "-f", tmp_path / "list", tmp_path / "one.pub"], check=True)
    with pytest.raises(ValueError, match="revocation list"):
        ssh_client.revoked_keys(str(tmp_path / "list"))
    with pytest.raises(OSError):
        ssh_client.revoked_keys(str(tmp_path / "none"))


@needs_openssh
def test_a_name_that_is_remembered_hashed(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    key = SimpleNamespace(get_name=lambda: "ssh-ed25519", get_base64=lambda: KEY)
    ssh_client.remember(str(path), ssh_client.hashed("[fd73::1]:2222"), key)
    assert "fd73" not in path.read_text() and len(known_keys([str(path)], ["[fd73::1]:2222"])) == 1
    assert "found" in subprocess.run(["ssh-keygen", "-F", "[fd73::1]:2222", "-f", path], check=True, capture_output=True, text=True).stdout


@needs_openssh
def test_keys_that_settings_name(tmp_path: Path) -> None:
    """Before a password; with certificates, of which each goes with its own key; the SSH agent is none here."""
    authority = Authority(tmp_path)
    reasons: list[str] = []
    for name in ("one", "two"):
        authority.make(name, "ed25519")
    subprocess.run(["ssh-keygen", "-q", "-s", tmp_path / "authority", "-I", "me", tmp_path / "two.pub"], check=True, capture_output=True)
    certificate = (tmp_path / "two-cert.pub").rename(tmp_path / "elsewhere")
    files = tuple(str(tmp_path / name) for name in ("one", "missing", "two"))
    identities = ssh_client.Identities(files, (str(certificate),), agent="")
    found = list(ssh_client.credentials("x", None, None, reasons, identities))
    assert [credential.method for credential in found] == ["publickey", "publickey", "password", "keyboard-interactive"]
    assert [credential.key.public_blob is not None for credential in found[:2]] == [False, True]
    assert len(reasons) == 1 and "missing" in reasons[0]
    (named, *unused) = ssh_client.credentials(None, files[0], None, [], identities)
    assert named.what == f"the key {files[0]}" and not unused


@needs_openssh
def test_revoked_authorities_and_keys(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    shown = authority.sign("ed25519")
    with pytest.raises(CertificateRefused, match="revoked"):
        authority.check(shown, f"@cert-authority * {authority.key}\n@revoked * {authority.key}")
    with pytest.raises(HostKeyChanged, match="revoked"):
        authority.check(shown, f"@cert-authority * {authority.key}\n@revoked * {(tmp_path / 'host.pub').read_text()}")


def test_remembering(tmp_path: Path) -> None:
    path = tmp_path / "new" / "known_hosts"
    key = SimpleNamespace(get_name=lambda: "ssh-ed25519", get_base64=lambda: KEY)
    ssh_client.remember(str(path), "fd73::1", key)
    path.write_text(path.read_text().rstrip("\n"))  # as an editor may leave it
    ssh_client.remember(str(path), "[fd73::1]:2222", key)
    assert path.read_text() == f"fd73::1 ssh-ed25519 {KEY}\n[fd73::1]:2222 ssh-ed25519 {KEY}\n"
    assert path.stat().st_mode & 0o077 == 0


@needs_openssh
@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_keys_of_every_kind(tmp_path: Path, kind: str) -> None:
    import paramiko

    for name, passphrase in (("open", ""), ("closed", "Geheim1!")):
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", tmp_path / name], check=True)
        fingerprint = subprocess.run(["ssh-keygen", "-l", "-f", tmp_path / name], check=True, capture_output=True, text=True).stdout.split()[1]
        assert ssh_client.fingerprint(ssh_client.load_key(str(tmp_path / name), passphrase or None)) == fingerprint
    with pytest.raises(paramiko.SSHException, match="passphrase"):
        ssh_client.load_key(str(tmp_path / "closed"), None)
    with pytest.raises(OSError):
        ssh_client.load_key(str(tmp_path / "none"), None)


# Parting


def test_a_target_that_goes_on_sending_is_left_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_client, "PARTING_SECONDS", 0.3)
    ours, theirs = socket.socketpair()

    def talk() -> None:
        with contextlib.suppress(OSError):
            while True:
                theirs.sendall(b"x")

    talker, drainer = threading.Thread(target=talk, daemon=True), threading.Thread(target=ssh_client._drain, args=(ours,), daemon=True)
    talker.start()
    drainer.start()
    try:
        drainer.join(20)
        assert not drainer.is_alive() and ours.fileno() == -1
    finally:
        theirs.close()


# Commands


@pytest.mark.parametrize("stream", ["output", "errors", "forwarded"])
def test_a_server_that_does_not_mind_the_window(stream: str) -> None:
    """A real one, that sends on without being asked: what it may have us hold has an end, and so has the connection."""
    import paramiko

    class Willing(paramiko.ServerInterface):
        def check_auth_none(self, username: str) -> int:
            return paramiko.AUTH_SUCCESSFUL

        def get_allowed_auths(self, username: str) -> str:
            return "none"

        def check_channel_request(self, kind: str, chanid: int) -> int:
            return paramiko.OPEN_SUCCEEDED

        def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
            return True

        def check_channel_direct_tcpip_request(self, chanid: int, origin: Any, destination: Any) -> int:
            return paramiko.OPEN_SUCCEEDED

    ours, theirs = socket.socketpair()
    server, client = paramiko.Transport(theirs), paramiko.Transport(ours)
    try:
        server.add_server_key(paramiko.ECDSAKey.generate())
        server.start_server(event=threading.Event(), server=Willing())
        client.connect()
        client.auth_none("me")
        made = ssh_client.Client()
        made._transport = client
        command = made.command("x")  # nobody takes anything of it
        channel = made.open_channel("::1", 22, 20) if stream == "forwarded" else command.__enter__()._channel
        far = server.accept(20)
        far.out_window_size = 1 << 40
        with pytest.raises((OSError, EOFError)):
            for _megabyte in range(64):
                (far.sendall_stderr if stream == "errors" else far.sendall)(bytes(1 << 20))
        client.join(20)
        assert not client.is_active()
        assert 1 << 20 < len(channel.in_stderr_buffer if stream == "errors" else channel.in_buffer) <= 2 * ssh_client.WINDOW
    finally:
        client.close()
        server.close()


def test_a_stream_whose_connection_is_reset_while_it_is_written_to_says_so() -> None:
    """As any other: an OSError is what is tried again."""
    class Reset:
        recv = settimeout = None

        def sendall(self, data: bytes) -> None:
            raise EOFError

    with pytest.raises(ConnectionResetError, match="has ended"):
        ssh_client.Forwarded(Reset()).sendall(b"x")


class Channel:
    """As much of paramiko's as a command looks at, with its real buffers."""

    def __init__(self) -> None:
        from paramiko.buffered_pipe import BufferedPipe

        self.in_buffer, self.in_stderr_buffer = BufferedPipe(), BufferedPipe()
        self.closed = self.eof_received = False
        self.recv_ready, self.recv_stderr_ready = self.in_buffer.read_ready, self.in_stderr_buffer.read_ready
        self.recv, self.recv_stderr = self.in_buffer.read, self.in_stderr_buffer.read
        self.settimeout = self.close = lambda *unused: None
        self.lock = threading.Lock()
        self.out_window_size = 0
        self.send: Any = None
        self.exec_command: Any = None

    def exit_status_ready(self) -> bool:
        return self.closed


@pytest.mark.parametrize(("near", "server", "most"), [(True, "OpenSSH_9.2p1", 512 << 10), (False, "OpenSSH_9.2p1", 2 << 20), (True, "dropbear", 2 << 20)])
def test_little_waits_at_a_near_sshd(near: bool, server: str, most: int) -> None:
    """What may be on its way and is not taken yet; where others than sshd give room only late, all that they gave is used."""
    channel, waiting, most_waiting = Channel(), 0, 0
    channel.out_window_size = 0

    def send(data: bytes) -> int:
        nonlocal waiting, most_waiting
        if not channel.out_window_size:  # paramiko would wait until it is taken
            channel.out_window_size, waiting = waiting, 0
        sent = min(len(data), channel.out_window_size)
        channel.out_window_size -= sent
        waiting += sent
        most_waiting = max(most_waiting, waiting)
        return sent

    channel.send = send
    channel.exec_command = lambda unused: setattr(channel, "out_window_size", 2 << 20)  # as sshd does once the command has begun
    client = ssh_client.Client()
    client.near = near
    client._transport = SimpleNamespace(open_session=lambda **unused: channel, remote_version=f"SSH-2.0-{server}")
    with client.command("true") as command:
        command.write(bytes(8 << 20))
    assert most_waiting == most


def test_what_a_login_shell_says_is_no_output() -> None:
    channel = Channel()
    command = ssh_client.Command(channel, time.monotonic() + 60, 60)
    for piece in (b"WELCOME\nhalf a line sojourn", b" beg", b"ins\nsystem ", b"Linux\n"):
        channel.in_buffer.feed(piece)
    channel.in_stderr_buffer.feed(b"a warning\nsojourn begins\n")
    assert command.wait_for(lambda: command.output.endswith(b"Linux\n"))
    assert bytes(command.output) == b"system Linux\n" and command.begun and bytes(command.errors) == b""
    nothing = Channel()
    refused = ssh_client.Command(nothing, time.monotonic() + 60, 60)
    nothing.in_buffer.feed(b"\n\x1b[1mThis account is currently not available.\n\n")
    nothing.closed = True
    assert not refused.wait_for(lambda: False) and not refused.begun
    assert refused.refusal() == "[1mThis account is currently not available."


def test_nothing_that_comes_on_two_streams_at_once_goes_unnoticed() -> None:
    """While one is being emptied something comes on the other: with paramiko's descriptor for both, what came next was not noticed."""
    channel = Channel()
    command = ssh_client.Command(channel, time.monotonic() + 60, 60)
    rounds = 2000
    turn = threading.Semaphore(0)

    def talk() -> None:
        for unused in range(rounds):
            channel.in_buffer.feed(b"o")
            channel.in_stderr_buffer.feed(b"e")
            turn.acquire(timeout=60)

    command._begun = [True, True]
    talker = threading.Thread(target=talk)
    talker.start()
    for number in range(1, rounds + 1):
        assert command.wait_for(lambda number=number: len(command.output) >= number and len(command.errors) >= number)
        turn.release()
    talker.join()


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("begun", [True, False])
def test_output_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch, stream: int, begun: bool) -> None:
    """What it prints, on either stream; and what a login shell says before it begins, of which the end counts."""
    monkeypatch.setattr(ssh_client, "_MAXIMUM_OUTPUT", 1000)
    channel = Channel()
    command = ssh_client.Command(channel, time.monotonic() + 60, 60, begun=begun)
    held: list[int] = []
    keep = command._keep

    def kept(stream: int, data: bytes) -> None:
        keep(stream, data)
        held.append(max(map(len, (command.output, command.errors, *command.preamble))))

    command._keep = kept  # type: ignore[method-assign]
    for number in range(50):
        (channel.in_stderr_buffer if stream else channel.in_buffer).feed(b"%04d" % number * 100)
        assert command.wait_for(lambda: True)
    assert len(held) == 50 and max(held) == 1000, "nothing is held in between either"
    expected = b"".join(b"%04d" % number * 100 for number in range(50))
    if begun:
        assert bytes((command.output, command.errors)[stream]) == expected[:1000]
    else:
        assert bytes(command.preamble[stream]) == expected[-1000:] and not command.output and not command.errors
        (channel.in_stderr_buffer if stream else channel.in_buffer).feed(b"sojourn begins\n" + expected)
        command._take()
        assert bytes((command.output, command.errors)[stream]) == expected[:1000] and len(command.preamble[stream]) <= 1000


@pytest.mark.parametrize("stream", [0, 1])
def test_output_that_never_stops_coming(monkeypatch: pytest.MonkeyPatch, stream: int) -> None:
    """There is always something more to read: the time is up all the same, and what had come in time counts."""
    monkeypatch.setattr(ssh_client, "_MAXIMUM_WAITING", 1 << 20)
    channel = Channel()
    asked = 0

    def more(size: int) -> bytes:
        nonlocal asked
        asked += 1
        assert asked < 1000, "it goes on without end"
        return b"x" * size

    ready, take = ("recv_stderr_ready", "recv_stderr") if stream else ("recv_ready", "recv")
    setattr(channel, ready, lambda: True)
    setattr(channel, take, more)
    command = ssh_client.Command(channel, time.monotonic() - 1, 60, begun=True)
    with pytest.raises(ssh_client.CommandTimeout):
        command.wait_for(lambda: False)
    assert asked == 17
    late = Channel()
    late.in_buffer.feed(b"x" * (1 << 20))
    late.closed = True
    assert not ssh_client.Command(late, time.monotonic() - 1, 60, begun=True).wait_for(lambda: False)


def test_a_host_that_takes_a_byte_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time; all of them together have no more than the command has."""
    channel = Channel()
    now, limits = 1000.0, []

    def send(data: bytes) -> int:
        nonlocal now
        now += 9
        assert len(limits) < 100, "it goes on without end"
        return 1

    channel.send, channel.settimeout = send, limits.append  # type: ignore[attr-defined]
    monkeypatch.setattr(ssh_client.time, "monotonic", lambda: now)
    command = ssh_client.Command(channel, now + 60, 60)
    with pytest.raises(ssh_client.CommandTimeout, match="took no input"):
        command.write(bytes(1000))
    assert limits == [60, 51, 42, 33, 24, 15, 6]
    command = ssh_client.Command(channel, now + 60, 60)
    channel.send = lambda data: min(len(data), 3)  # type: ignore[attr-defined]
    command.write(bytes(1000))


# The scripts

SCRIPTS = {name: value for name, value in vars(way_in_ssh).items() if re.fullmatch(r"_[A-Z_]+", name) and isinstance(value, str) and "; " in value}
SHELLS = [shell for shell in ("dash", "bash", "busybox", "ksh", "zsh") if shutil.which(shell)]


def sh(script: str, *arguments: str, shell: str = "sh", given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    words = [*(["busybox", "sh"] if shell == "busybox" else [shell]), "-c", script, "sh", *arguments]
    return subprocess.run(words, input=given, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_scripts_survive_any_login_shell() -> None:
    assert len(SCRIPTS) >= 5
    for name, script in SCRIPTS.items():
        assert "\n" not in script and "!" not in script, name
        assert subprocess.run(["sh", "-n", "-c", script], check=False).returncode == 0, name


@pytest.mark.parametrize("shell", SHELLS)
def test_a_terminal_that_is_as_none(shell: str) -> None:
    """Bytes that a terminal would act upon go through as they are, the input has an end, and the streams are told apart."""
    import pty

    assert subprocess.run(["sh", "-n", "-c", way_in_ssh._AT_TERMINAL], check=False).returncode == 0 and "!" not in way_in_ssh._AT_TERMINAL
    data = bytes(range(256)) * 40
    ours, theirs = pty.openpty()
    words = [*(["busybox", "sh"] if shell == "busybox" else [shell]), "-c", way_in_ssh._AT_TERMINAL, "sh", "token", str(len(data))]
    process = subprocess.Popen([*words, "sh", "-c", "cat; echo broken >&2; exit 7"], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    said = b""
    while b"token begins\n" not in said:
        said += os.read(ours, 65536)
    written = 0
    os.set_blocking(ours, False)
    while b"\ntoken ended 7\nbroken" not in said:
        readable, writable, unused = select.select([ours], [ours] if written < len(data) else [], [], 60)
        assert readable or writable
        if writable:
            written += os.write(ours, data[written:written + 512])
        if readable:
            said += os.read(ours, 65536)
    assert process.wait(60) == 0
    os.close(ours)
    assert said == b"token begins\n" + data + b"\ntoken ended 7\nbroken"


@pytest.mark.parametrize("shell", SHELLS)
def test_the_placing_script(tmp_path: Path, shell: str) -> None:
    full, writable, missing = tmp_path / "not a folder", tmp_path / "with blank", tmp_path / "missing"
    full.touch()
    writable.mkdir()
    executable = b"#!/bin/sh\necho \"$1 with `cat`\"\n"
    words = [shutil.which(shell) or shell, "-c", way_in_ssh._PLACE, "sh", "sojourn-1", "token", str(len(executable))]
    packed = gzip.compress(executable)
    digest = hashlib.sha256(executable).hexdigest()

    def place(*candidates: Path | str, data: bytes = executable, size: int = 0, digest: str = digest, **environment: str) -> list[str]:
        command = [*words, digest, *map(str, candidates)]
        done = subprocess.run(command, input=f"{size}\n".encode() + data, capture_output=True, env={**os.environ, **environment}, check=False)
        return done.stdout.decode().splitlines()

    said = place(missing, full, writable, data=executable + b"the config")
    launched = ["launch with the config"] if os.geteuid() == 0 else []
    assert said == [
        f"skip {missing} does not exist", f"skip {full} does not exist", f"folder {writable}/sojourn-1", f"size {len(executable)}", *launched,
    ]  # fmt: skip
    folder = writable / "sojourn-1"
    assert (folder / "session").read_text() == "token" and (folder / "agent").read_bytes() == executable
    assert folder.stat().st_mode & 0o777 == 0o700 and (folder / "agent").stat().st_mode & 0o777 == 0o700
    assert place(writable) == [f"exists {writable}/sojourn-1"]
    assert sh(way_in_ssh._WHOSE, f"{writable}/sojourn-1/session", shell=shell).stdout == "token"
    shutil.rmtree(folder)
    assert place(writable, data=packed + b"the config", size=len(packed))[1:] == [f"size {len(executable)}", *launched]
    assert (folder / "agent").read_bytes() == executable
    shutil.rmtree(folder)
    damaged = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]  # its checksum
    assert place(writable, data=damaged, size=len(damaged))[1:] == ["size 0"]
    assert not folder.exists()
    other = executable.replace(b"with", b"WITH")
    assert place(writable, data=other + b"the config")[1:] == [f"differs {hashlib.sha256(other).hexdigest()}"]  # and it has not run
    assert not folder.exists()
    no_tools = tmp_path / "tools"  # a target without sha256sum is none the worse for it
    no_tools.mkdir()
    for tool in ("mkdir", "chmod", "rm", "head", "gzip", "wc", "id", "cat"):
        (no_tools / tool).symlink_to(shutil.which(tool) or tool)
    assert place(writable, data=executable + b"the config", PATH=str(no_tools))[1:] == [f"size {len(executable)}", *launched]
    shutil.rmtree(folder)
    assert place("", HOME=str(tmp_path))[0] == f"folder {tmp_path}/sojourn-1"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives the file to root")
@pytest.mark.parametrize("shell", SHELLS)
def test_the_launching_script(tmp_path: Path, shell: str) -> None:
    """What another user has placed is run by root as a copy, which that user, having it open, cannot write to."""
    executable = b"#!/bin/sh\necho \"$1 with `cat`\"\n"
    file = tmp_path / "agent"
    digest = hashlib.sha256(executable).hexdigest()

    def launch(content: bytes) -> tuple[str, str]:
        tmp_path.chmod(0o755)
        file.write_bytes(content)
        for path in (tmp_path, file):
            os.chown(path, 65534, 65534)
        with file.open("r+b") as held:
            command = [*(["busybox", "sh"] if shell == "busybox" else [shell]), "-c", way_in_ssh._LAUNCH, "sh", str(tmp_path), digest]
            done = subprocess.run(command, input="the config", capture_output=True, text=True, check=False)
            assert os.fstat(held.fileno()).st_ino != file.stat().st_ino
        assert [(path.stat().st_uid, path.stat().st_mode & 0o777) for path in (tmp_path, file)] == [(0, 0o700)] * 2
        return done.stdout, done.stderr

    assert launch(executable) == ("launch with the config\n", "")
    other = executable.replace(b"with", b"WITH")
    assert launch(other) == ("", f"differs {hashlib.sha256(other).hexdigest()}\n")


@pytest.mark.parametrize("shell", SHELLS)
def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path, shell: str) -> None:
    """As when the controller is killed: the input ends early, and nobody listens any more."""
    process = subprocess.Popen(
        [shell, "-c", way_in_ssh._PLACE, "sh", "sojourn-1", "token", "1000", "", str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    assert process.stdout.readline() == f"folder {tmp_path}/sojourn-1\n".encode()
    process.stdout.close()
    process.stdin.write(b"0\nhalf of it")
    process.stdin.close()
    process.wait(10)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def agent() -> str:
    """An agent's name that nobody else has: the scripts look at every process of the machine, and other tests run beside."""
    return f"sojourn-{secrets.token_hex(6)}"


@pytest.mark.parametrize("shell", SHELLS)
def test_the_removing_script(tmp_path: Path, agent: str, shell: str) -> None:
    place = tmp_path / "with blank"
    (place / agent / "inner").mkdir(parents=True)
    (place / "sojourn-000000000001").mkdir()
    (place / agent / "link").symlink_to(place / "sojourn-000000000001")

    def remove(tenths: int) -> str:
        done = sh(way_in_ssh._REMOVE, agent, str(tenths), str(place), str(tmp_path / "none"), shell=shell)
        assert (done.returncode, done.stderr) == (0, "")
        assert [path.name for path in place.iterdir()] == ["sojourn-000000000001"]
        return done.stdout

    assert remove(0) == "told \n", "the folder was there, and nothing in it that tells more"
    assert remove(0) == ""
    (place / agent).mkdir()
    (place / agent / "left.json").write_text(r'{"error": "a \u003c and a \\"}')
    begin = time.monotonic()
    assert remove(6000) == 'told {"error": "a \\u003c and a \\\\"}\n'
    assert time.monotonic() - begin < 60, "who says that something is left has ended"


@pytest.mark.parametrize("lists", [True, False], ids=["listed", "too many to be listed"])
@pytest.mark.parametrize("shell", SHELLS)
def test_the_removing_script_ends_the_agents_processes(tmp_path: Path, agent: str, shell: str, lists: bool) -> None:
    """And nobody else's, whatever the name of its executable has in it."""
    programs = tmp_path / "programs"
    programs.mkdir()
    if not lists:  # as a shell has it where the arguments are more than the kernel takes
        (programs / "ls").write_text("#!/bin/sh\nexit 126\n")
        (programs / "ls").chmod(0o755)
    places = [tmp_path / agent, tmp_path / f"other\n/proc/1/exe -> {agent}", tmp_path / f"{agent}1"]
    sleeper, processes = shutil.which("sleep"), []
    assert sleeper
    for place in places:
        place.mkdir(parents=True)
        shutil.copy(sleeper, place / "agent")
        processes.append(subprocess.Popen([place / "agent", "600"]))
    try:
        done = sh(way_in_ssh._REMOVE, agent, "0", str(tmp_path), shell=shell, PATH=f"{programs}:{os.environ['PATH']}")
        assert (done.returncode, done.stdout, done.stderr) == (0, "told \n", "")
        assert processes[0].wait(20) == -15 and not places[0].exists()
        assert [process.poll() for process in processes[1:]] == [None, None]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_finding_script(tmp_path: Path, agent: str, shell: str) -> None:
    (tmp_path / agent).mkdir()
    (tmp_path / "sojourn-000000000001").touch()
    done = sh(way_in_ssh._FIND, str(tmp_path), str(tmp_path / "none"), shell=shell)
    lines = [line for line in done.stdout.splitlines() if line.startswith("folder")]
    assert lines == [f"folder dead {agent} {tmp_path}/{agent}"]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("at", ["", "0", "0\n", "7\n"])
def test_an_upload_that_never_began_leaves_nothing(tmp_path: Path, shell: str, at: str) -> None:
    done = sh(way_in_ssh._PLACE, "sojourn-1", "token", "1000", "", str(tmp_path), shell=shell, given=at)
    assert done.stdout.splitlines() == [f"folder {tmp_path}/sojourn-1", "size 0"] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("system", "machine", "release", "user", "sudo", "on"),
    [
        ("Linux", "x86_64", "6.1.0-13-amd64", 0, "exit 1", True), ("Linux", "x86_64", "3.2.0", 0, "exit 1", True), ("Linux", "x86_64", "10.0", 0, "", True),
        ("Linux", "x86_64", "3.10.0-1160.el7.x86_64", 1000, "exit 0", True), ("Linux", "x86_64", "6.1", 1000, "echo a password is required; exit 1", False),
        ("Linux", "aarch64", "6.1.0", 0, "", False), ("Linux", "x86_64", "3.1.99", 0, "", False), ("Linux", "x86_64", "2.6.32-754", 0, "", False),
        ("Linux", "x86_64", "6.1", 1000, "echo sorry, you must have a tty to run sudo; exit 1", False), ("Linux", "x86_64", "3", 0, "", False),
        ("Linux", "x86_64", "3.2rc1", 0, "", False), ("Linux", "x86_64", "6.1", 1000, "cat > /dev/null", True),
        ("Linux", "x86_64", "nonsense", 0, "", False), ("Linux", "x86_64", "", 0, "", False), ("Darwin", "x86_64", "23.1.0", 0, "", False),
    ],
)  # fmt: skip
def test_looking_and_placing_at_once(
    tmp_path: Path, shell: str, system: str, machine: str, release: str, user: int, sudo: str, on: bool,
) -> None:  # fmt: skip
    """It goes on where nothing is to be asked or refused, and where it does not nothing has been made."""
    programs, place = tmp_path / "programs", tmp_path / "place"
    for folder in (programs, place):
        folder.mkdir()
    uname = f"case $1 in -s) echo '{system}';; -m) echo '{machine}';; -r) echo '{release}';; esac"
    for name, script in {"uname": uname, "id": f"echo {user}", "sudo": sudo or "exit 1"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    done = sh(way_in_ssh._LOOK_AND_PLACE, "x86_64", "sojourn-1", "token", "1000", "", str(place), shell=shell, given="0\nhalf",
              PATH=f"{programs}:{os.environ['PATH']}")  # fmt: skip
    lines = done.stdout.splitlines()
    facts = dict(line.partition(" ")[::2] for line in lines)
    assert (facts["system"], facts["machine"], facts["release"], facts["user"]) == (system, machine, release, str(user))
    assert lines[lines.index(f"gzip {shutil.which('gzip') or ''}") + 1:] == (
        ["goes on", f"folder {place}/sojourn-1", "size 4"] if on else ["goes no further"])
    assert not done.stderr and not list(place.iterdir())
    assert not (on and way_in_ssh.unsupported(facts)), "the way in would refuse it by these facts"


@pytest.mark.parametrize("shell", SHELLS)
def test_the_looking_script(shell: str) -> None:
    done = sh(way_in_ssh._LOOK, shell=shell, SSH_CONNECTION="fd73::2 50000 fd73::1 22")
    facts = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    assert facts["system"] == os.uname().sysname and facts["machine"] == os.uname().machine and facts["user"] == str(os.geteuid())
    assert facts["ssh"] == "fd73::2 50000 fd73::1 22"
