"""Diagnosis: what debug_connection tells of real targets, over both address families, without changing them; and the steps that -vvv shows."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Controller, secrets_of
from tests.integration.playing import Played, play

DIAGNOSE = {"name": "diagnose", "sojourn.deploy.debug_connection": {}}
SIGN_IN = {"name": "diagnose", "sojourn.deploy.debug_connection": {"sign_in": True}}
#: Where an agent's folder could be, and where systemd keeps a transient unit.
PLACES = {"linux": ["/tmp", "/var/tmp", "/root", "/run/systemd/transient"], "windows": ["/srv/windows/drive_c/windows"]}
_CREATED = 0x100 | 0x80  # IN_CREATE, IN_MOVED_TO


@contextmanager
def nothing_appears(target: Any) -> Iterator[None]:
    """Also not for a moment: the kernel tells what is made in the places of an agent."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0
    try:
        for place in PLACES[target.kind]:
            path = f"/proc/{target.leader.pid}/root{place}"
            assert not os.path.isdir(path) or libc.inotify_add_watch(descriptor, path.encode(), _CREATED) >= 0, path
        yield
        try:
            seen = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            seen = b""
        assert b"sojourn" not in seen, seen
    finally:
        os.close(descriptor)


def values(result: dict[str, Any], section: str) -> dict[str, Any]:
    """What was found in a section, by name."""
    return {finding["name"]: finding["value"] for finding in result["findings"] if finding["section"] == section}


def diagnose(controller: Controller, folder: Path, target: Any, *words: str, task: dict[str, Any] = DIAGNOSE, **more: Any) -> dict[str, Any]:
    """The result for a target; whatever came of it, nothing was changed, and the lines say the same as the findings."""
    with nothing_appears(target):
        played = play(controller, folder, [task], *words, hosts=target.name, **more)
    result = played[target.name, "diagnose"]
    assert result["changed"] is False
    assert isinstance(result["msg"], list) and result["findings"]
    assert (played.code == 0) == ("error" not in result), played.output
    names = [(finding["section"], finding["name"]) for finding in result["findings"]]
    assert len(set(names)) == len(names)
    return result


def test_what_is_told(controller: Controller, target: Any, family: str, tmp_path: Path) -> None:
    result = diagnose(controller, tmp_path, target, family=family)
    address = target.addresses.as_seen_from_the_lab(family)
    options = values(result, "options")
    way = "ssh" if target.kind == "linux" else "smb"
    assert options["connection"] == f"sojourn.deploy.{way}"
    assert (options["remote_addr"], options["remote_user"], options["password"]) == (address, target.user, "given")
    assert next(finding["origin"] for finding in result["findings"] if finding["name"] == "remote_addr") == "var: ansible_host"
    told = values(result, "controller")
    assert told["broker"].startswith("not at work") and told["broker's log"].endswith("/broker.log")
    assert re.match(r"3\.\d+", told["Python"]) and told["ansible-core"][0] == "2" and "sojourn.deploy 0." in told["collection"]
    libraries = values(result, "libraries")
    for name in ("zeep", "cryptography", *(("paramiko",) if way == "ssh" else ("smbprotocol", "pypsexec", "pyspnego"))):
        assert re.match(r"\d+\.", libraries[name]), name
    addresses = values(result, "address")
    port = 22 if way == "ssh" else 445
    assert addresses["order"] == [address] and addresses["taken"] == address
    assert addresses[address] == f"port {port} answers, from {addresses['controller address']}"
    sign_in = values(result, "sign-in")
    assert sign_in["tried"].startswith("no: ")
    if way == "ssh":
        ssh = values(result, "SSH")
        assert ssh["server"].startswith("SSH-2.0-OpenSSH") and re.search(r"^ssh-ed25519 SHA256:\S+, known$", ssh["host key"]) and "gcm" in ssh["encryption"]
        assert ssh["host key"].split(",")[0] in sign_in["known host keys"]
        assert sign_in["credentials"][0] == "the password" and sign_in["known_hosts"] == [str(controller.lab.known_hosts)]
        assert sign_in["host key policy"] == "a known one must be shown"
    else:
        smb = values(result, "SMB")
        assert smb["dialect"] == "SMB 3.1.1" and "AES" in smb["encryption"] and "always on" in smb["signing"] and "NTLM" in smb["sign-ins offered"]
        assert sign_in["user"] == target.user and sign_in["sign-in"].startswith("NTLM, with the password, since ")
    agent = values(result, "agent")
    assert agent["ports"] == "62286-62293" and agent["state"] == "not on the target by this run"
    assert f"sojourn-agent-{target.kind}-amd64" in agent[f"{target.kind}-amd64"]
    assert result["msg"][-1].startswith("Nothing speaks against it as far as the sign-in")


def test_the_sign_in(controller: Controller, target: Any, family: str, tmp_path: Path) -> None:
    result = diagnose(controller, tmp_path, target, task=SIGN_IN, family=family)
    found = values(result, "sign-in")
    assert (found["outcome"], found["platform"]) == ("signed in", f"{target.kind}-amd64")
    assert found["rights"] == ("root" if target.kind == "linux" else "ADMIN$, and to make services")
    assert result["msg"][-1] == "A task would put the agent on this host: nothing speaks against it."
    result = diagnose(controller, tmp_path, target, "-e", "ansible_password=WrongGeheim1!", task=SIGN_IN, family=family)
    assert result["unreachable"] and result["error"]["code"] == "SD-301"
    assert "(SD-301)" in result["msg"][-1] and "WrongGeheim1!" not in json.dumps(result)


@pytest.mark.parametrize("user", ["deployer", "operator"])
def test_the_sign_in_of_who_needs_sudo(controller: Controller, linux_target: Any, tmp_path: Path, user: str) -> None:
    login = ["-e", json.dumps({"ansible_user": user, "ansible_password": linux_target.password(user)})]
    result = diagnose(controller, tmp_path, linux_target, *login, task=SIGN_IN)
    assert values(result, "sign-in")["rights"].startswith(f"{user}, root by sudo")
    result = diagnose(controller, tmp_path, linux_target, *login, "-e", "ansible_become_password=wrong-one", task=SIGN_IN)
    assert result.get("error", {}).get("code") == ("SD-305" if user == "deployer" else None)  # the operator's sudo asks for nothing


def test_check_mode_does_the_same(controller: Controller, target: Any, tmp_path: Path) -> None:
    result = diagnose(controller, tmp_path, target, "--check")
    assert values(result, "address")["taken"]


def test_a_dead_host(controller: Controller, target: Any, family: str, tmp_path: Path) -> None:
    nobody = controller.lab.network.addresses(250)
    address = nobody.ula if family == "ipv6" else nobody.ipv4
    begin = time.monotonic()
    result = diagnose(controller, tmp_path, target, "-e", f"ansible_host={address}", "-T", "3", family=family)
    assert time.monotonic() - begin < 55  # and not SMB's own minute
    assert result["unreachable"] and result["error"]["code"] in ("SD-202", "SD-204")
    assert address in values(result, "address") and values(result, "libraries") and values(result, "agent")["ports"]


def test_a_wrong_port(controller: Controller, target: Any, family: str, tmp_path: Path) -> None:
    other = {"linux": "445", "windows": "22"}[target.kind]
    result = diagnose(controller, tmp_path, target, "-e", f"ansible_port={other}", "-T", "3", family=family)
    assert result["error"]["code"] in ("SD-203", "SD-204") and f"Port {other} " in result["msg"][-1]


def test_a_port_of_something_else(controller: Controller, target: Any, lab: Any, tmp_path: Path) -> None:
    other = lab.target("windows1" if target.kind == "linux" else "linux1")
    port = 445 if target.kind == "linux" else 22
    result = diagnose(controller, tmp_path, target, "-e", f"ansible_host={other.addresses.ula} ansible_port={port}", "-T", "3")
    assert result["error"]["code"] == ("SD-205" if target.kind == "linux" else "SD-404"), result["msg"][-1]
    assert values(result, "address")["taken"] == other.addresses.ula


class Named(Controller):
    """A controller that knows the lab's targets by name."""

    def run(self, *command: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """As the base class, with the lab's names in /etc/hosts for this command alone."""
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return super().run("unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(self.lab.names), *command, **more)


@pytest.fixture
def named(lab: Any, nothing_left: None) -> Iterator[Named]:
    """See Named."""
    controller = Named(lab)
    try:
        yield controller
    finally:
        controller.end()


def test_names_of_both_families(named: Named, target: Any, family: str, tmp_path: Path) -> None:
    """One address is dead: which is taken, and how the other does, is told all the same."""
    dead = "v4" if family == "ipv6" else "v6"
    words = ["-e", f"ansible_host={target.name}-dead-{dead}.lab ansible_host_key_checking=false", "-T", "2"]
    result = diagnose(named, tmp_path, target, *words, family=family)
    addresses = values(result, "address")
    taken = target.addresses.ula if family == "ipv6" else target.addresses.ipv4
    nobody = named.lab.network.addresses(250)
    other = nobody.ipv4 if family == "ipv6" else nobody.ula
    ipv6, ipv4 = (taken, other) if family == "ipv6" else (other, taken)
    assert (addresses["IPv6"], addresses["IPv4"], addresses["order"]) == ([ipv6], [ipv4], [ipv6, ipv4])
    assert addresses["taken"] == taken and "answers" in addresses[taken]
    assert re.search(r"SD-20[24]", addresses[other])


def test_a_name_that_nobody_knows(named: Named, target: Any, tmp_path: Path) -> None:
    result = diagnose(named, tmp_path, target, "-e", "ansible_host=nobody.lab")
    assert result["unreachable"] and result["error"]["code"] == "SD-201"
    assert values(result, "agent")


def test_wrong_options(controller: Controller, target: Any, tmp_path: Path) -> None:
    result = diagnose(controller, tmp_path, target, "-e", "ansible_host=[::1")
    assert result["error"]["code"] == "SD-101" and "unreachable" not in result
    assert values(result, "options")["remote_addr"] == "[::1" and values(result, "controller")


# Host keys, keys, tickets


def test_an_unknown_host_key(controller: Controller, linux_target: Any, family: str, tmp_path: Path) -> None:
    hosts = tmp_path / "known_hosts"
    words = ["-e", f"ansible_sojourn_known_hosts_file={hosts}"]
    result = diagnose(controller, tmp_path, linux_target, *words, task=SIGN_IN, family=family)
    assert result["unreachable"] and result["error"]["code"] == "SD-303"
    assert values(result, "SSH")["host key"].endswith(", not known")
    assert values(result, "sign-in")["tried"] == "no, for what was found before"
    # Where unknown ones are to be remembered, diagnosis does not.
    result = diagnose(controller, tmp_path, linux_target, *words, "-e", "ansible_sojourn_host_key_auto_add=true", task=SIGN_IN, family=family)
    assert "error" not in result and "remembered" in values(result, "sign-in")["host key policy"]
    assert not hosts.exists()
    hosts.write_text(re.sub(r"AAAA(.{30})", lambda match: "AAAA" + match[1][:-4] + "XXXX", controller.lab.known_hosts.read_text()))
    assert diagnose(controller, tmp_path, linux_target, *words, family=family)["error"]["code"] == "SD-304"


def test_the_keys_that_would_be_offered(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    key = home / ".ssh/id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    fingerprint = subprocess.run(["ssh-keygen", "-l", "-f", key], check=True, capture_output=True, text=True).stdout.split()[1]
    address = linux_target.addresses.ula
    (home / "settings").write_text(f"Host {address}\n  HostKeyAlias fleet\n  Ciphers aes128-ctr\n")
    inventory = {"all": {"hosts": {"linux1": {
        "ansible_connection": "sojourn.deploy.ssh", "ansible_host": address, "ansible_user": "root",
        "ansible_sojourn_known_hosts_file": str(home / "known_hosts"), "ansible_sojourn_config_file": str(home / "settings")}}}}
    (home / "known_hosts").write_text("".join(f"{line}\n" for line in linux_target.known_hosts("fleet")))
    path = tmp_path / "inventory.json"
    path.write_text(json.dumps(inventory))
    environment = {"HOME": str(home), "ANSIBLE_INVENTORY": str(path), "SSH_AUTH_SOCK": ""}
    found = values(diagnose(controller, tmp_path, linux_target, environment=environment), "sign-in")
    assert found["credentials"] == [f"the key ~/.ssh/id_ed25519, ssh-ed25519 {fingerprint}"]
    assert found["HostKeyAlias"] == "fleet" and found["not followed"] == ["ciphers"] and len(found["known host keys"]) == 2
    words = ["-e", json.dumps({"ansible_ssh_common_args": "-o ProxyCommand='false Geheim1!'"})]
    result = diagnose(controller, tmp_path, linux_target, *words, environment=environment)
    assert result["error"]["code"] == "SD-205" and "Geheim1!" not in json.dumps(result)
    assert values(result, "options")["ssh_common_args"] == "given, with a ProxyCommand"
    key.unlink()
    result = diagnose(controller, tmp_path, linux_target, environment=environment)
    assert result["error"]["code"] == "SD-302" and values(result, "SSH")["server"]


# What -vvv shows, and what nothing shows


def test_each_step_with_its_milliseconds(controller: Controller, target: Any, family: str, tmp_path: Path) -> None:
    module = [DIAGNOSE, {"name": "execute", "ansible.builtin.raw": "echo hello"}, {**DIAGNOSE, "name": "again"}]
    played = play(controller, tmp_path, module, "-vvv", hosts=target.name, family=family).well()
    shown = re.findall(rf"^<{target.name}> ([A-Z][A-Z ]*?) (\d+\.\d) ms(?:: (.*))?$", played.output, re.MULTILINE)
    names = [name for name, unused_milliseconds, unused_detail in shown]
    protocol = ["KEY EXCHANGE"] if target.kind == "linux" else ["NEGOTIATE"]
    share = [] if target.kind == "linux" else ["OPEN SHARE"]
    begin = ["RESOLVE", "CONNECT", *protocol]
    assert names == [*begin, *begin, "SIGN IN", *share, "LOOK", "UPLOAD", "START", "FIRST CALL", "EXEC", *begin], played.output
    details = dict(zip(names, (detail for unused_name, unused_milliseconds, detail in shown), strict=True))
    assert re.match(r"exit code 0 after \d+ ms there; bytes: 0 in, [67] out, 0 errors", details["EXEC"])
    assert re.match(r"\d{7} bytes (in \d{7} )?to ", details["UPLOAD"]) and "62286" in details["FIRST CALL"]
    again = values(played[target.name, "again"], "agent")
    assert again["state"] == "at work on port 62286" and values(played[target.name, "again"], "controller")["broker"] == "at work"
    quiet = play(controller, tmp_path, module, "-vv", hosts=target.name, family=family).well()
    assert " ms:" not in quiet.output


@pytest.mark.leaves("files: /root/.ansible*")  # Ansible's own remote_tmp
def test_files_and_failed_steps_at_vvv(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 54321)
    tasks = [
        {"name": "copy", "ansible.builtin.copy": {"src": str(source), "dest": "/var/tmp/sojourn-copy"}},
        {"name": "fetch", "ansible.builtin.fetch": {"src": "/var/tmp/sojourn-copy", "dest": f"{tmp_path}/back", "flat": True}},
        {"name": "file", "ansible.builtin.file": {"path": "/var/tmp/sojourn-copy", "state": "absent"}},
    ]
    output = play(controller, tmp_path, tasks, "-vvv").well().output
    assert re.search(r"<linux1> PUT \d+\.\d ms: 54321 bytes", output) and re.search(r"<linux1> FETCH \d+\.\d ms: 54321 bytes", output)
    output = play(controller, tmp_path, tasks[:1], "-vvv", "-e", "ansible_host=::1 ansible_port=1").output
    assert re.search(r"<linux1> RESOLVE \d", output) and re.search(r"<linux1> CONNECT FAILED AFTER \d+\.\d ms: port 1", output)


def test_no_secret_is_shown(controller: Controller, lab: Any, tmp_path: Path) -> None:
    secrets = secrets_of(lab)
    for words in ([], ["-e", "ansible_password=WrongGeheim1! ansible_become_password=WrongGeheim2! ansible_private_key_passphrase=WrongGeheim3!"]):
        played: Played = play(controller, tmp_path, [{**SIGN_IN, "ignore_unreachable": True}], "-vvvv", *words, hosts="targets")
        shown = played.output + json.dumps(played.results)
        assert "findings" in shown
        assert not [secret for secret in (*secrets, "WrongGeheim") if secret in shown.replace(words[1] if words else "\0", "")]


def test_on_the_command_line(controller: Controller) -> None:
    done = controller.run("ansible", "targets", "-m", "sojourn.deploy.debug_connection")
    assert done.returncode == 0 and done.stdout.count("Nothing speaks against it") == 2
    shown = done.stdout.splitlines()
    assert any(re.fullmatch(r'\s+"  taken\s+\S+ \[\d+\.\d ms\]",', line) for line in shown)


def test_of_another_host(controller: Controller, lab: Any, tmp_path: Path) -> None:
    """Delegated, it tells of the host that it is delegated to."""
    played = play(controller, tmp_path, [{**DIAGNOSE, "delegate_to": "windows1"}]).well()
    options = {finding["name"]: finding for finding in played["linux1", "diagnose"]["findings"] if finding["section"] == "options"}
    assert options["connection"]["value"] == "sojourn.deploy.smb" and options["remote_addr"]["value"] == lab.target("windows1").addresses.ula
    assert options["remote_addr"]["origin"] == "var: ansible_host"


def test_other_connections_are_told_off(controller: Controller, tmp_path: Path) -> None:
    played = play(controller, tmp_path, [DIAGNOSE], "-e", "ansible_connection=local")
    assert played["linux1", "diagnose"]["error"]["code"] == "SD-904"


def test_the_controller_itself_stays_as_it_was(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    """No session is written, and with the run its broker is gone."""
    play(controller, tmp_path, [SIGN_IN]).well()
    state = Path(os.environ["XDG_STATE_HOME"]) / "sojourn"
    assert not state.exists() or not list(state.iterdir())
