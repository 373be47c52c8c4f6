"""OpenSSH's settings, as its own client tells them and as paramiko reads them: what counts, what wins, and what is refused."""

from __future__ import annotations

import dataclasses
import getpass
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import ssh_config
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target

pytestmark = pytest.mark.skipif(not shutil.which("ssh"), reason="asks OpenSSH's client")


def way(folder: Path, text: str, address: str = "web1", **options: Any) -> list[ssh_config.Host]:
    """The way to a target by a file of settings."""
    file = folder / "settings"
    file.write_text(text)
    return ssh_config.way(Target.make("ssh", address, host="web1", config_file=str(file), **options))


def code(folder: Path, text: str, **options: Any) -> tuple[str, str]:
    with pytest.raises(SojournError) as caught:
        way(folder, text, **options)
    return caught.value.code, str(caught.value)


@pytest.fixture(params=["OpenSSH's client", "paramiko"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both readers come to the same, where both read."""
    if request.param == "paramiko":
        monkeypatch.setattr(ssh_config.shutil, "which", lambda unused: None)
    return request.param


@pytest.mark.usefixtures("reader")
def test_what_counts(tmp_path: Path) -> None:
    (host,) = way(tmp_path, """
Host web*
  HostName fd73::7
  Port 2222
  User deploy
  IdentityFile /keys/%h-%r
  IdentityFile /keys/second
  CertificateFile /keys/cert.pub
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile /keys/known /keys/known2
  GlobalKnownHostsFile none
  StrictHostKeyChecking accept-new
  HostKeyAlias fleet
  HashKnownHosts yes
  RevokedHostKeys /keys/revoked
  AddressFamily inet6
  PasswordAuthentication no
""")
    assert host == ssh_config.Host(
        "web1", "fd73::7", 2222, "deploy", identity_files=("/keys/fd73::7-deploy", "/keys/second"), certificate_files=("/keys/cert.pub",),
        identities_only=True, agent="", user_known_hosts=("/keys/known", "/keys/known2"), global_known_hosts=(), revoked_keys="/keys/revoked",
        key_alias="fleet", strict="accept-new", hash_known_hosts=True, family=socket.AF_INET6, methods=frozenset({"publickey", "keyboard-interactive"}))


@pytest.mark.usefixtures("reader")
def test_what_nobody_set(tmp_path: Path) -> None:
    (host,) = way(tmp_path, "Host other\n  User x\n", address="fe80::1%eth0")
    assert (host.address, host.port, host.user, host.identity_files, host.strict) == ("fe80::1%eth0", 22, getpass.getuser(), None, "yes")
    assert host.family == socket.AF_UNSPEC and host.proxy_command is None and len(host.methods) == 3
    assert [Path(path).name for path in host.user_known_hosts] == ["known_hosts", "known_hosts2"]
    assert host.global_known_hosts == ssh_config.SYSTEM_KNOWN_HOSTS


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(("options", "port", "user", "strict"), [
    ({}, 2222, "file", "accept-new"),
    ({"port": 22, "user": "inventory"}, 22, "inventory", "accept-new"),
    ({"ssh_common_args": "-o Port=23 -l common -o StrictHostKeyChecking=yes"}, 23, "common", "yes"),
    ({"port": 24, "user": "inventory", "ssh_extra_args": "-p 23 -o User=extra"}, 24, "inventory", "accept-new"),
    ({"port": 24, "user": "inventory", "ssh_args": "-p 23 -o 'User first' -C -o ControlPersist=60s"}, 23, "first", "accept-new"),
    ({"host_key_checking": False}, 2222, "file", "no"),
    ({"host_key_auto_add": True}, 2222, "file", "accept-new"),
])  # fmt: skip
def test_what_wins(tmp_path: Path, options: dict[str, Any], port: int, user: str, strict: str) -> None:
    """As on the command line that Ansible's own ssh builds."""
    (host,) = way(tmp_path, "Host *\n  Port 2222\n  User file\n  StrictHostKeyChecking accept-new\n", **options)
    assert (host.port, host.user, host.strict) == (port, user, strict)


@pytest.mark.usefixtures("reader")
def test_the_inventorys_known_hosts_win(tmp_path: Path) -> None:
    (host,) = way(tmp_path, "Host *\n  UserKnownHostsFile /file\n", known_hosts="/inventory")
    assert host.user_known_hosts == ("/inventory",)


JUMPS = """
Host last
  HostName fd73::3
  User three
  UserKnownHostsFile /known3
Host first
  HostName fd73::1
  Port 2201
  StrictHostKeyChecking no
Host web1
  ProxyJump first,two@[fd73::2]:2202,last
Host alone
  ProxyJump last
Host last-of-all
  ProxyJump alone
"""


@pytest.mark.usefixtures("reader")
def test_jump_hosts_each_with_its_own_settings(tmp_path: Path) -> None:
    me = getpass.getuser()
    assert list(map(str, way(tmp_path, JUMPS))) == [f"{me}@[fd73::1]:2201", "two@[fd73::2]:2202", "three@[fd73::3]", f"{me}@web1"]
    first, *unused, last, target = way(tmp_path, JUMPS, user="inventory", host_key_checking=False, port=2299)
    assert (first.strict, last.strict, target.strict) == ("no", "yes", "no") and last.user_known_hosts == ("/known3",)
    assert (first.user, last.user, target.user) == (me, "three", "inventory")
    assert list(map(str, way(tmp_path, JUMPS, address="last-of-all"))) == ["three@[fd73::3]", f"{me}@alone", f"{me}@last-of-all"]
    for words in ("-J last", "-Jlast", "-o ProxyJump=last", "-oProxyJump=last", "-o 'ProxyJump last'"):
        assert list(map(str, way(tmp_path, JUMPS, address="other", ssh_common_args=words))) == ["three@[fd73::3]", f"{me}@other"]
    assert list(map(str, way(tmp_path, JUMPS, ssh_args="-o ProxyJump=none"))) == [f"{me}@web1"]


@pytest.mark.usefixtures("reader")
def test_a_proxy_command(tmp_path: Path) -> None:
    text = "Host web1\n  HostName fd73::7\n  Port 23\n  ProxyCommand nc -X %n '%%' %h %p\n"
    assert way(tmp_path, text, user="me")[0].proxy_command == "nc -X web1 '%' fd73::7 23"
    assert way(tmp_path, text, ssh_common_args="-o ProxyCommand='connect %r'", user="me")[0].proxy_command == "connect me"
    assert way(tmp_path, text, ssh_common_args="-J jump")[-1].proxy_command is None


@pytest.mark.usefixtures("reader")
def test_a_proxy_commands_port_and_user_are_the_inventorys(tmp_path: Path) -> None:
    text = "Host web1\n  HostName fd73::7\n  Port 23\n  User file\n  IdentityFile /keys/%r\n  ProxyCommand connect %r@%h:%p ~\n"
    (host,) = way(tmp_path, text, user="inventory", port=2299)
    assert (host.proxy_command, host.identity_files) == ("connect inventory@fd73::7:2299 ~", ("/keys/inventory",))
    assert way(tmp_path, text)[0].proxy_command == "connect file@fd73::7:23 ~"


RELATIVE = """
Host *
  IdentityFile keys/one
  IdentityFile ./two
  CertificateFile one-cert.pub
  IdentityAgent agent.sock
  UserKnownHostsFile ./known_hosts ~/known
  GlobalKnownHostsFile all
  RevokedHostKeys revoked
"""


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("options", [{"config_file": "ssh.cfg"}, {"ssh_args": "-F ./ssh.cfg"}, {"ssh_extra_args": "-F ssh.cfg"}])
def test_relative_paths_lead_from_the_users_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """Which is the worker's, and not that of the broker, where the way is looked for."""
    (tmp_path / "ssh.cfg").write_text(RELATIVE)
    monkeypatch.chdir(tmp_path)
    target = Target.make("ssh", "web1", **options)
    monkeypatch.chdir("/")
    (host,) = ssh_config.way(Target.from_dict(target.to_dict()))
    assert host.identity_files and [os.path.normpath(path) for path in host.identity_files] == [f"{tmp_path}/keys/one", f"{tmp_path}/two"]
    assert host.certificate_files == (f"{tmp_path}/one-cert.pub",) and host.agent == f"{tmp_path}/agent.sock"
    assert [os.path.normpath(path) for path in host.user_known_hosts] == [f"{tmp_path}/known_hosts", f"{ssh_config._home()}/known"]
    assert host.global_known_hosts == (f"{tmp_path}/all",) and host.revoked_keys == f"{tmp_path}/revoked"


@pytest.mark.usefixtures("reader")
def test_relative_paths_of_arguments_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "id").touch()
    monkeypatch.chdir(tmp_path)
    words = "-i id -o UserKnownHostsFile=./known_hosts -o StrictHostKeyChecking=accept-new"
    target = Target.make("ssh", "web1", config_file="none", ssh_common_args=words)
    named = Target.make("ssh", "web1", config_file="none", known_hosts="known", key_file="~/id")
    monkeypatch.chdir("/")
    (host,) = ssh_config.way(target)
    assert host.identity_files == (f"{tmp_path}/id",) and [os.path.normpath(path) for path in host.user_known_hosts] == [f"{tmp_path}/known_hosts"]
    assert ssh_config.way(named)[0].user_known_hosts == (f"{tmp_path}/known",) and named.key_file == "~/id"


def test_what_a_match_runs_is_run_in_the_users_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ssh.cfg").write_text('Match exec "touch ran"\n  User run\n')
    monkeypatch.chdir(tmp_path)
    target = Target.make("ssh", "web1", config_file="ssh.cfg")
    monkeypatch.chdir("/")
    assert ssh_config.way(target)[0].user == "run" and (tmp_path / "ran").exists()


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("text", ["Host *\n  ProxyJump web1\n", "Host web1\n  ProxyJump web2\nHost web2\n  ProxyJump web1\n"])
def test_jump_hosts_in_a_circle(tmp_path: Path, text: str) -> None:
    assert code(tmp_path, text)[0] == "SD-108"


def test_include_and_match_as_openssh_has_them(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Host web1\n  User included\n")
    ran = tmp_path / "ran"
    text = f'Include {tmp_path}/more\nMatch host fd73::* user included\n  Port 2200\nMatch exec "touch {ran}"\n  HostKeyAlias run\n'
    (host,) = way(tmp_path, text + "Host web1\n  HostName fd73::7\n", address="fd73::7")
    assert (host.port, host.key_alias) == (22, "run") and ran.exists()
    (host,) = way(tmp_path, text, address="fd73::7", user="included")
    assert host.port == 2200


@pytest.mark.parametrize("line", ["Include more", "Match host web1", 'Match exec "touch ran"', "CanonicalizeHostname yes"])
def test_what_only_openssh_follows_is_refused_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setattr(ssh_config.shutil, "which", lambda unused: None)
    number, text = code(tmp_path, f"Host other\n  User x\n{line}\n")
    shown = line.partition(' "')[0]  # what a command holds is nobody's business
    assert number == "SD-108" and f"'{shown}'" in text and "install it" in text
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("reader")
def test_no_file_at_all_and_one_that_is_not_there(tmp_path: Path) -> None:
    assert ssh_config.way(Target.make("ssh", "web1", config_file="none", user="me"))[0].address == "web1"
    deep = tmp_path / ("long" * 40)
    deep.mkdir()
    for missing in (tmp_path / "missing", deep / "missing"):
        with pytest.raises(SojournError) as caught:
            ssh_config.way(Target.make("ssh", "web1", config_file=str(missing)))
        assert caught.value.code == "SD-108" and str(missing) in str(caught.value)
    (host,) = way(tmp_path, "Host *\n  User x\n", ssh_args="-F none", user=None)
    assert host.user == getpass.getuser()


@pytest.mark.parametrize("text", ["Host *\n  NoSuchThing yes\n", "Host *\n  Port many\n", "Host *\n  IdentityFile /%Q\n", "Host *\n  RevokedHostKeys\n"])
def test_a_file_that_is_wrong(tmp_path: Path, text: str) -> None:
    number, shown = code(tmp_path, text)
    assert number == "SD-108" and "web1" in shown and "\n" not in shown


@pytest.mark.parametrize(("words", "named"), [
    ("-L 80:localhost:80", "-L"), ("-b ::1", "-b"), ("-A", "-A"), ("-N", "-N"), ("-vvN", "-N"), ("-J", "-J has no value"), ("web1", "'web1'"),
    ("'", "quotation"), ("-oBindAddress=::1", "BindAddress"),
    ("-o ForwardAgent=yes", "ForwardAgent"), ("-o Ciphers=aes128-ctr", "Ciphers"), ("-o KexAlgorithms=+x", "KexAlgorithms"),
    ("-o NoSuchThing=yes", "NoSuchThing"), ("-o HostKeyAlgorithms=ssh-rsa", "HostKeyAlgorithms"), ("-o GSSAPIAuthentication=yes", "GSSAPIAuthentication"),
])  # fmt: skip
@pytest.mark.parametrize("option", ["ssh_args", "ssh_common_args", "ssh_extra_args"])
def test_arguments_that_are_not_followed_are_refused_by_name(words: str, named: str, option: str) -> None:
    with pytest.raises(SojournError) as caught:
        ssh_config.way(Target.make("ssh", "web1", **{option: words}))
    assert (caught.value.code, caught.value.kind) == ("SD-109", "unreachable") and option in str(caught.value) and named.lower() in str(caught.value).lower()


@pytest.mark.parametrize("words", [
    "-C -o ControlMaster=auto -o ControlPersist=60s", "-o ForwardAgent=no -vvv -tt -T", "-o ServerAliveInterval=30 -o LogLevel=ERROR -q",
    "-o ControlPath='~/.ssh/cp/%r@%h' -e none", "-o GSSAPIAuthentication=no -o BatchMode=yes -o ConnectionAttempts=3", "-a -x -n",
    "-o HostKeyAlgorithms=+ssh-rsa -o PubkeyAcceptedKeyTypes=+ssh-rsa",
])  # fmt: skip
def test_arguments_that_make_no_difference_here(words: str) -> None:
    plain = ssh_config.way(Target.make("ssh", "web1", config_file="none"))
    assert ssh_config.way(Target.make("ssh", "web1", config_file="none", ssh_args=words)) == plain


def test_a_timeout_of_the_target_is_the_inventorys_and_of_a_jump_host_its_own(tmp_path: Path) -> None:
    jump, target = way(tmp_path, "Host web1\n  ProxyJump jump\nHost *\n  ConnectTimeout 3\n")
    assert (jump.connect_timeout, target.connect_timeout) == (3.0, None)


def test_the_file_of_the_arguments_is_the_jump_hosts_too(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("Host web1\n  ProxyJump jump\nHost jump\n  User other\n")
    jump, unused_target = way(tmp_path, "", ssh_common_args=f"-F {tmp_path}/other")
    assert jump.user == "other"


def test_one_address_behind_two_jump_hosts_is_two_targets() -> None:
    keys = {Target.make("ssh", "10.0.0.5", ssh_common_args=f"-J {jump}").key for jump in ("one", "two")} | {Target.make("ssh", "10.0.0.5").key}
    assert len(keys) == 3


def test_each_setting_that_counts_is_one_of_openssh() -> None:
    """By the client's own list, as far as it tells defaults."""
    shown = subprocess.run(["ssh", "-T", "-G", "-F", "none", "web1"], capture_output=True, text=True, check=True).stdout
    names = {line.split()[0].lower() for line in shown.splitlines()}
    silent = {"proxyjump", "proxycommand", "certificatefile", "identityagent", "hostkeyalias", "revokedhostkeys", "preferredauthentications", "connecttimeout"}
    assert set(ssh_config.COUNTING) <= names | silent | {"identitiesonly"}


def test_a_host_is_shown_as_in_a_jump() -> None:
    host = ssh_config.Host("x", "fd73::1", 22, "me")
    assert str(host) == "me@[fd73::1]" and str(dataclasses.replace(host, address="web1", port=23)) == "me@web1:23"
    assert os.path.expanduser(ssh_config.USER_FILE).endswith(".ssh/config")
