"""Options are checked before anything is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target, parse_address, parse_ports


@pytest.mark.parametrize(
    ("given", "host", "bracketed"),
    [
        ("fd73::1", "fd73::1", "[fd73::1]"),
        ("[fd73::1]", "fd73::1", "[fd73::1]"),
        ("2001:0db8:0000:0000:0000:0000:0000:0001", "2001:db8::1", "[2001:db8::1]"),
        ("2001:DB8::A", "2001:db8::a", "[2001:db8::a]"),
        ("fe80::1%eth0", "fe80::1%eth0", "[fe80::1]"),
        ("fe80::1%3", "fe80::1%3", "[fe80::1]"),
        ("[fe80::1%eth0.10]", "fe80::1%eth0.10", "[fe80::1]"),
        ("[fe80::1%25eth0]", "fe80::1%eth0", "[fe80::1]"),
        ("fec0::1%eth0", "fec0::1%eth0", "[fec0::1]"),
        ("::1", "::1", "[::1]"),
        ("192.0.2.7", "192.0.2.7", "192.0.2.7"),
        (" web1.example ", "web1.example", "web1.example"),
        ("WEB_1", "WEB_1", "WEB_1"),
        ("web1.example.", "web1.example.", "web1.example."),
        ("bücher.example", "xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_addresses(given: str, host: str, bracketed: str) -> None:
    address = parse_address(given)
    assert (address.host, address.bracketed) == (host, bracketed)


@pytest.mark.parametrize(
    "given",
    [
        *("", None, "   ", "fd73::1::2", "fd73:::1", "2001:db8::g", "12345::1", "[fd73::1", "fd73::1]", "[web1]", "[192.0.2.7]", "[::1]:445"),
        *("192.0.2", "192.0.2.256", "1.2.3.4.5", "0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "ff02::1", "::ffff:192.0.2.7"),
        *("fe80::1", "fe80::1%", "fe80::1%a b", "fe80::1%eth0%eth1", "fd73::1%eth0", "web 1", "web1;id", "-web1", "web1-", "web..1", "a" * 64, "web1/x"),
    ],
)
def test_malformed_addresses(given: Any) -> None:
    with pytest.raises(SojournError) as caught:
        parse_address(given)
    assert caught.value.code == "SD-101"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "ports"), [("62286-62293", (62286, 62293)), ("5000", (5000, 5000)), (5000, (5000, 5000)), ((1, 2), (1, 2)), ([7, 9], (7, 9)), (" 1 - 2 ", (1, 2))]
)
def test_port_ranges(given: Any, ports: tuple[int, int]) -> None:
    assert parse_ports(given) == ports


@pytest.mark.parametrize("given", ["", "a-b", "1-2-3", "0-5", "5-1", "1-65536", "-5", "1-2000", (), (1, 2, 3), True])
def test_wrong_port_ranges(given: Any) -> None:
    with pytest.raises(SojournError, match=r"agent_ports.*\(SD-102\)"):
        parse_ports(given)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("port", 0), ("port", 65536), ("port", "ssh"), ("port", True), ("port", 22.5)),
        *(("connection_timeout", 0), ("connection_timeout", "soon"), ("connection_timeout", float("nan")), ("connection_timeout", -1)),
        *(("lease_seconds", 1), ("lease_seconds", 86401)),
        *(("controller_address", "web1"), ("remote_folders", ["tmp"]), ("user", "a\0b"), ("password", "a\nb"), ("no_such", 1)),
        *(("transport", "tunel"), ("transport", True)),
    ],
)
def test_wrong_options_are_named(option: str, value: Any) -> None:
    with pytest.raises(SojournError) as caught:
        Target.make("ssh", "fd73::1", host="web1", **{option: value})
    assert caught.value.code == "SD-102" and caught.value.host == "web1"
    assert {"user": "remote_user"}.get(option, option) in str(caught.value)


def test_a_secret_is_never_in_a_message_or_a_repr() -> None:
    with pytest.raises(SojournError) as caught:
        Target.make("ssh", "fd73::1", password="Geheim1!\n")
    assert "Geheim1!" not in str(caught.value)
    target = Target.make("ssh", "fd73::1", user="root", password="Geheim1!", become_password="Geheim2!", key_passphrase="Geheim3!")
    assert "Geheim" not in repr(target)
    assert target.secrets == ("Geheim1!", "Geheim2!", "Geheim3!")
    assert "Geheim" not in target.key


def test_a_windows_password_needs_a_user() -> None:
    with pytest.raises(SojournError, match="remote_user"):
        Target.make("smb", "fd73::1", password="x")
    assert Target.make("smb", "fd73::1").port == 445


def test_over_the_wire_and_defaults() -> None:
    target = Target.make("ssh", "[2001:DB8::1]", user="root", remote_folders=["/opt"], agent_ports="1-2")
    assert target.transport == "direct" and Target.make("smb", "::1", transport="auto").transport == "auto"
    assert target.port == 22 and target.host == "[2001:DB8::1]" and target.address == "2001:db8::1"
    assert Target.from_dict(json.loads(json.dumps(target.to_dict()))) == target


def test_relative_paths_lead_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    target = Target.make("ssh", "fd73::1", key_file="id", known_hosts="./known", config_file="~/ssh.cfg")
    assert (target.directory, target.key_file, target.known_hosts, target.config_file) == (str(tmp_path), f"{tmp_path}/id", f"{tmp_path}/./known", "~/ssh.cfg")
    assert Target.make("ssh", "fd73::1", config_file="none").config_file == "none"
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert Target.make("ssh", "fd73::1").directory == "/"


def test_one_session_for_one_address_user_and_port() -> None:
    first = Target.make("ssh", "2001:db8::1", user="root", password="a", host="web1")
    assert first.key == Target.make("ssh", "[2001:0db8::1]", user="root", password="b", host="web2").key
    assert first.key != Target.make("ssh", "2001:db8::1", user="other").key
    assert first.key != Target.make("ssh", "2001:db8::1", user="root", port=2222).key


def test_tags_are_dropped() -> None:
    class Tagged(str):
        pass

    target = Target.make("ssh", Tagged("fd73::1"), user=Tagged("root"), password=Tagged("x"))
    assert type(target.user) is type(target.password) is str


@pytest.mark.parametrize(("given", "method"), [
    (None, "sudo"), ("", "sudo"), ("sudo", "sudo"), ("su", "su"), ("ansible.builtin.su", "su"), ("community.general.doas", "sudo"), ("runas", "sudo")])
def test_how_to_become_root(given: str | None, method: str) -> None:
    assert Target.make("ssh", "web1", root_method=given).root_method == method


def test_a_port_that_is_the_users() -> None:
    assert [Target.make("ssh", "web1", port=port).port_given for port in (None, "", 22, "22")] == [False, False, True, True]


def test_winrm() -> None:
    def made(**options: object) -> tuple[int, str, str]:
        target = Target.make("winrm", "fd73::1", **options)
        return target.port, target.winrm_scheme, target.winrm_transport

    assert made() == (5986, "https", "ntlm")
    assert made(port=5985) == (5985, "http", "ntlm")
    assert made(winrm_scheme="http") == (5985, "http", "ntlm")
    assert made(port=8443, winrm_transport="basic") == (8443, "https", "basic")
    for options, said in (
        ({"winrm_transport": "basic", "port": 5985}, "would show the password"), ({"winrm_transport": "kerberos"}, "none of ntlm, basic"),
        ({"winrm_scheme": "ftp"}, "none of http, https"), ({"transport": "tunnel"}, "no tunnel"), ({"password": "x"}, "without a user"),
    ):
        with pytest.raises(SojournError, match=rf"{said}.*\(SD-102\)"):
            Target.make("winrm", "fd73::1", **options)
