"""Diagnosis in the broker: what is told where things are missing, dead or wrong; and how steps are measured. The lab has the targets."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import diagnosis, network, ssh_client, steps, tickets, way_in_smb
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from tests.ports import closed_port

RUN = "0123456789ab"
SECRET = "Geheim1!-nowhere"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's keys and settings but the test's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir()
    return tmp_path


def diagnose(way_in: str, address: str = "::1", *, sign_in: bool = False, **options: Any) -> list[dict[str, Any]]:
    target = Target.make(
        way_in, address, host="web1", **{"user": "someone", "password": SECRET, "connection_timeout": 2, "config_file": "none", **options})
    findings = diagnosis.diagnose(target, RUN, None, sign_in=sign_in)
    assert SECRET not in json.dumps(findings)
    return findings


def value(findings: list[dict[str, Any]], section: str, name: str) -> Any:
    (found,) = [finding["value"] for finding in findings if (finding["section"], finding["name"]) == (section, name)]
    return found


def codes(findings: list[dict[str, Any]]) -> list[str]:
    return [finding["error"]["code"] for finding in findings if finding["error"]]


# Addresses


@pytest.mark.parametrize("way_in", ["ssh", "smb", "winrm"])
def test_a_closed_port(way_in: str) -> None:
    port = closed_port()
    findings = diagnose(way_in, port=port, sign_in=True)
    assert codes(findings) == ["SD-203"]
    assert value(findings, "address", "::1").startswith(f"Port {port} of ::1 refuses connections (SD-203)")
    assert value(findings, "sign-in", "tried") == "no, for what was found before"
    assert value(findings, "agent", "name") == f"sojourn-{RUN}"


@pytest.mark.parametrize(("way_in", "code"), [("ssh", "SD-205"), ("smb", "SD-404"), ("winrm", "SD-404")])
def test_another_service(way_in: str, code: str) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        def answer() -> None:
            connection = server.accept()[0]
            with connection:
                connection.sendall(b"220 mail\r\n" * 300)

        threading.Thread(target=answer, daemon=True).start()
        findings = diagnose(way_in, port=server.getsockname()[1])
    assert codes(findings) == [code]
    assert value(findings, "address", "taken") == "::1"


def test_a_name_service_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    ever = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *unused, **unused_more: ever.wait() or [])
    begin = time.monotonic()
    findings = diagnose("ssh", "web1.example", connection_timeout=0.3)
    ever.set()
    assert time.monotonic() - begin < 30
    assert codes(findings) == ["SD-201"] and value(findings, "address", "IPv6") == "no answer within 0.3 s"


def test_addresses_that_were_passed_over_are_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        peers = [network.resolve("::1", port)[0], network.resolve("127.0.0.1", port)[0]]

        def resolve(unused_address: str, unused_port: int, family: int = 0) -> list[network.Peer]:
            return [peer for peer in peers if family in (0, peer.family)]

        monkeypatch.setattr(network, "resolve", resolve)
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        findings = diagnose("ssh", "web1.example", port=port)
    assert value(findings, "address", "order") == ["::1", "127.0.0.1"]
    assert value(findings, "address", "IPv4") == ["127.0.0.1"]
    assert value(findings, "address", "taken") == "::1"
    other = value(findings, "address", "127.0.0.1")
    assert "SD-203" in other and other.endswith("; not needed, an address before it answers")


# Libraries, executables


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    real = importlib.import_module

    def load(name: str, *more: Any) -> Any:
        if name in names:
            raise ImportError(f"No module named '{name}'")
        return real(name, *more)

    monkeypatch.setattr(diagnosis.importlib, "import_module", load)


def test_a_missing_library_and_the_addresses_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "paramiko")
    findings = diagnose("ssh", port=closed_port())
    assert codes(findings) == ["SD-901"] and "'paramiko' is missing" in value(findings, "libraries", "paramiko")
    assert "SD-203" in value(findings, "address", "::1")


def test_kerberos_is_needed_without_a_password_only(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "gssapi", "krb5")
    port = closed_port()
    findings = diagnose("smb", port=port)
    assert codes(findings) == ["SD-203"] and value(findings, "libraries", "krb5").endswith("pip install pyspnego[kerberos]")
    assert codes(diagnose("smb", port=port, user=None, password=None))[:2] == ["SD-901", "SD-901"]


def test_executables_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(system: str, architecture: str, **unused: Any) -> str:
        raise SojournError("SD-405", platform=f"{system}-{architecture}")

    monkeypatch.setattr(diagnosis, "agent_executable", missing)
    assert codes(diagnose("ssh", port=closed_port())) == ["SD-203", "SD-405", "SD-405"]
    monkeypatch.setattr(diagnosis, "agent_executable", lambda system, kind, **unused: __file__ if kind == "amd64" else missing(system, kind))
    findings = diagnose("ssh", port=closed_port())
    assert codes(findings) == ["SD-203"] and "(SD-405)" in value(findings, "agent", "linux-arm64")


def test_what_should_not_happen_is_told_and_the_rest_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(way_in_smb.SmbWayIn, "credentials", lambda unused: 1 / 0)
    findings = diagnose("smb", port=closed_port())
    assert codes(findings) == ["SD-203", "SD-903"] and value(findings, "agent", "ports") == "62286-62293"


# Credentials over SSH


def test_keys_with_their_fingerprints(home: Path) -> None:
    for name, passphrase in (("id_ed25519", ""), ("id_rsa", "Geheim1!")):
        subprocess.run(["ssh-keygen", "-q", "-t", name[3:], "-N", passphrase, "-f", home / ".ssh" / name], check=True)
    shown = subprocess.run(["ssh-keygen", "-l", "-f", home / ".ssh/id_ed25519"], check=True, capture_output=True, text=True).stdout.split()[1]
    findings = diagnose("ssh", port=closed_port(), password=None)
    assert value(findings, "sign-in", "credentials") == [f"the key ~/.ssh/id_ed25519, ssh-ed25519 {shown}"]
    assert "passphrase" in value(findings, "sign-in", "not usable")[0]
    findings = diagnose("ssh", port=closed_port(), key_file=str(home / ".ssh/id_ed25519"))
    assert [what.partition(",")[0] for what in value(findings, "sign-in", "credentials")] == [
        f"the key {home}/.ssh/id_ed25519", "the password", "the password (keyboard-interactive)"]


def test_identities_of_the_ssh_agent(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me@here", "-f", home / "key"], check=True)
    shown = subprocess.run(["ssh-keygen", "-l", "-f", home / "key"], check=True, capture_output=True, text=True).stdout.split()[1]
    place = f"/tmp/sojourn-test-agent-{os.getpid()}"  # a socket's path is short
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", place], stdout=subprocess.PIPE)
    try:
        assert agent.stdout and agent.stdout.readline()  # it listens
        monkeypatch.setenv("SSH_AUTH_SOCK", place)
        subprocess.run(["ssh-add", "-q", home / "key"], check=True)
        (credential,) = value(diagnose("ssh", port=closed_port(), password=None), "sign-in", "credentials")
        assert credential.startswith(f"a key of the SSH agent, ssh-ed25519 {shown}")
    finally:
        agent.kill()
        agent.wait()
        Path(place).unlink(missing_ok=True)


@pytest.mark.parametrize("key_file", ["none", "no-key"])
def test_a_key_file_that_cannot_be_used(home: Path, key_file: str) -> None:
    (home / "no-key").write_text("no key at all")
    assert codes(diagnose("ssh", port=closed_port(), key_file=str(home / key_file))) == ["SD-203", "SD-302"]


def test_nothing_to_sign_in_with() -> None:
    findings = diagnose("ssh", port=closed_port(), password=None)
    assert codes(findings) == ["SD-203", "SD-302"] and "no default key" in value(findings, "sign-in", "credentials")


def test_what_the_settings_come_to(home: Path) -> None:
    file = home / "settings"
    file.write_text(
        f"Host web1\n  HostName ::1\n  Port 2222\n  User deploy\n  HostKeyAlias fleet\n  IdentityFile {home}/fleet\n  SendEnv X\n  Ciphers aes128-ctr\n"
        "  ProxyCommand connect --secret Geheim1! %h\n")
    findings = diagnose("ssh", address="web1", password=None, user=None, port=None, config_file=str(file))
    told = {finding["name"]: finding["value"] for finding in findings if finding["section"] == "sign-in"}
    assert told["leads to"] == "deploy@[::1]:2222" and told["user"] == "deploy" and told["HostKeyAlias"] == "fleet"
    assert told["IdentityFile"] == [f"{home}/fleet"] and told["not followed"] == ["ciphers"] and told["ProxyCommand"] == "one, for web1"
    assert value(findings, "address", "way") == ["ProxyCommand of web1", "deploy@[::1]:2222"]
    assert "Geheim1!" not in json.dumps(findings)


def test_settings_that_cannot_be_followed(home: Path) -> None:
    (home / "settings").write_text("Host web1\n  NoSuchThing yes\n")
    findings = diagnose("ssh", address="web1", config_file=str(home / "settings"))
    assert set(codes(findings)) == {"SD-108"} and "nosuchthing" in value(findings, "address", "way").lower()


def test_known_host_keys(home: Path) -> None:
    key = "AAAAC3NzaC1lZDI1NTE5AAAAIGRlc3Qta2V5LW9uZS1mb3ItdGhlLXVuaXQtdGVzdHMh"
    port = closed_port()
    (home / "known").write_text(f"[::1]:{port} ssh-ed25519 {key}\n")
    findings = diagnose("ssh", port=port, known_hosts=str(home / "known"))
    assert value(findings, "sign-in", "known host keys") == [f"ssh-ed25519 {ssh_client.fingerprint_of(key)}"]
    assert ssh_client.fingerprint_of("x") == "that is no key"


# Tickets


class Cache:
    """As the Kerberos library has one, of tickets with the seconds that each is still good for: from when it is looked at, not from when it was made,
    which for a parameter of a test is when the tests were collected."""

    cache_type, name = b"FILE", b"/tmp/krb5cc_0"

    def __init__(self, principal: str | None, *lifetimes: tuple[str, float]) -> None:
        self._principal, self._lifetimes = principal, lifetimes

    @property
    def principal(self) -> Any:
        if self._principal is None:
            raise Krb5Error("No credentials cache found")
        return SimpleNamespace(text=self._principal, realm=self._principal.partition("@")[2].encode())

    def __iter__(self) -> Any:
        for server, seconds in self._lifetimes:
            yield SimpleNamespace(server=SimpleNamespace(text=server), times=SimpleNamespace(endtime=time.time() + seconds))


class Krb5Error(Exception):
    """The library's own."""


def set_cache(monkeypatch: pytest.MonkeyPatch, cache: Cache, realm: str = "") -> None:
    def get_default_realm(unused: Any) -> bytes:
        if not realm:
            raise Krb5Error("no realm")
        return realm.encode()

    library = SimpleNamespace(
        Krb5Error=Krb5Error, init_context=lambda: None, cc_default=lambda unused: cache, cccol_iter=lambda unused: iter([cache]),
        unparse_name_flags=lambda unused, principal: principal.text.encode(), get_default_realm=get_default_realm)
    monkeypatch.setattr(tickets, "krb5", library)


GOOD = ("krbtgt/EXAMPLE@EXAMPLE", 86400)


def test_a_ticket(monkeypatch: pytest.MonkeyPatch) -> None:
    set_cache(monkeypatch, Cache("me@EXAMPLE", GOOD, ("cifs/files1.example@EXAMPLE", GOOD[1]), ("krb5_ccache_conf_data/x@X-CACHECONF:", 0)))
    for user in (None, "me", "ME@example"):
        found = tickets.find(user)
        assert (found.principal, found.cache, found.services) == ("me@EXAMPLE", "FILE:/tmp/krb5cc_0", ("cifs/files1.example@EXAMPLE",))
        assert found.expiry.endswith(", in 24.0 h")


@pytest.mark.parametrize(
    ("cache", "user", "reason"),
    [
        (Cache(None), None, "no ticket in the cache FILE:/tmp/krb5cc_0 (No credentials cache found)"),
        (Cache("me@EXAMPLE"), None, "has no ticket-granting ticket"),
        (Cache("me@EXAMPLE", (GOOD[0], -7200)), None, "has expired"),
        (Cache("me@EXAMPLE", GOOD), "you", "no ticket of 'you'"),
        (Cache("me@EXAMPLE", GOOD), "me@OTHER", "no ticket of 'me@OTHER'"),
    ],
)
def test_no_ticket(monkeypatch: pytest.MonkeyPatch, cache: Cache, user: str | None, reason: str) -> None:
    set_cache(monkeypatch, cache)
    with pytest.raises(tickets.NoTicket) as raised:
        tickets.find(user)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("user", "address", "realm", "fallback", "how"),
    [
        ("me", "files1.example", "EXAMPLE", False, "NTLM, with the password, since it is taken for an account of the target's own"),
        (".\\me", "files1.example", "EXAMPLE", False, "NTLM, with the password, since it is an account of the target's own"),
        ("DOM\\me", "files1.example", "EXAMPLE", False, "NTLM, with the password, since krb5.conf's default realm is not that of this domain"),
        ("DOM\\me", "files1.example", "DOM.EXAMPLE", False, "Kerberos, as me@DOM.EXAMPLE and nothing else"),
        ("me@example", "files1.example", "", False, "Kerberos, as me@EXAMPLE and nothing else"),
        ("me@EXAMPLE", "files1.example", "", True, "Kerberos, as me@EXAMPLE, else NTLM with the same password, since ntlm_fallback allows it"),
        ("me@EXAMPLE", "2001:db8::1", "", True, "NTLM, with the password, since Kerberos wants the target's name"),
        ("me@EXAMPLE", "2001:db8::1", "", False, "[2001:db8::1] reading the credentials: 'me@EXAMPLE' could be signed in by NTLM only, which is not allowed"),
    ],
)
def test_how_a_password_is_used(monkeypatch: pytest.MonkeyPatch, user: str, address: str, realm: str, fallback: bool, how: str) -> None:
    set_cache(monkeypatch, Cache(None), realm)
    monkeypatch.setattr(way_in_smb, "library", lambda unused: None)
    way_in = way_in_smb.SmbWayIn(Target.make("smb", address, user=user, password=SECRET, ntlm_fallback=fallback), RUN)
    assert str(dict(way_in.credentials())["sign-in"]).startswith(how)


# SMB's terms


def terms(**more: Any) -> Any:
    way_in = way_in_smb.SmbWayIn(Target.make("smb", "files1", user="me", password=SECRET), RUN)
    values = {"dialect": 0x0311, "server_security_mode": 3, "signing_algorithm_id": 2, "cipher_id": 2, "supports_encryption": True,
              "gss_negotiate_token": bytes.fromhex("2b06010401823702020a") + bytes.fromhex("2a864882f712010202")}
    way_in._client.connection = SimpleNamespace(**{**values, **more})
    return dict(way_in.other_end())


def test_what_was_negotiated() -> None:
    assert terms() == {
        "dialect": "SMB 3.1.1", "signing": "AES-GMAC, always on here; the target requires it", "encryption": "AES-128-GCM, always on here",
        "sign-ins offered": ["Kerberos", "NTLM"]}
    assert terms(dialect=None) == {}
    assert "as old as Windows 8.1" in terms(dialect=0x0302)["dialect"]
    assert terms(supports_encryption=False)["outcome"].code == "SD-341"


# Steps


def test_steps_are_told_to_who_asked_and_to_nobody_else() -> None:
    told: list[tuple[Any, ...]] = []
    with steps.step("before"):
        pass
    with steps.told(lambda *what: told.append(what)):
        with steps.step("connect", "to there") as step:
            step.detail = "there"
        with pytest.raises(ZeroDivisionError), steps.step("sign in"):
            1 / 0  # noqa: B018
        with steps.told(None), steps.step("silent"):
            pass
        other = threading.Thread(target=lambda: steps.step("another's").__enter__())
        other.start()
        other.join()
    with steps.step("after"):
        pass
    assert [(name, detail, failed) for name, unused_seconds, detail, failed in told] == [("connect", "there", False), ("sign in", "", True)]
    assert all(0 <= seconds < 10 for unused_name, seconds, *unused in told)
