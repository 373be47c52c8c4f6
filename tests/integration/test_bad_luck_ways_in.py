"""What goes wrong on the way in, on real targets: one clear line that names host, step and remedy; nothing left; no traceback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from tests.conftest import COLLECTIONS
from tests.integration.conftest import Controller, secrets_of
from tests.lab.namespaces import inside


def refused(controller: Controller, target: Any, family: str = "ipv6", **options: Any) -> SojournError:
    """The error of a deployment that must not work; it takes seconds, not minutes."""
    begin = time.monotonic()
    with pytest.raises(SojournError) as caught:
        controller.agent(target, family, **options).deploy()
    assert time.monotonic() - begin < 30
    error = caught.value
    text = str(error)
    assert text.startswith(f"[{target.name}] {error.step}: ") and f"({error.code}) Remedy: " in text and "\n" not in text, text
    assert not [secret for secret in secrets_of(controller.lab) if secret in text]
    return error


def test_wrong_password(controller: Controller, target: Any, family: str) -> None:
    error = refused(controller, target, family, password="Wrong1!x")
    assert (error.code, error.kind, error.step) == ("SD-301", "unreachable", "signing in")
    assert target.user in str(error) and "Wrong1!x" not in str(error)


def test_wrong_password_through_ansible(controller: Controller, target: Any, family: str) -> None:
    result = controller.run("ansible", target.kind, "-e", "ansible_password=Wrong1!x", "-m", "raw", "-a", "id", family=family)
    shown = result.stdout + result.stderr
    assert result.returncode == 4 and "UNREACHABLE" in shown, shown
    assert f"[{target.name}] signing in: " in shown and "(SD-301) Remedy: " in shown
    assert "Traceback" not in shown and "Wrong1!x" not in shown


def test_unknown_user(controller: Controller, target: Any, family: str) -> None:
    assert refused(controller, target, family, user="nobody-here", password="x").code == "SD-301"


def test_no_credentials(controller: Controller, linux_target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    error = refused(controller, linux_target, password=None)
    assert error.code == "SD-302" and "no password" in str(error)


def test_no_kerberos(controller: Controller, windows_target: Any) -> None:
    assert refused(controller, windows_target, user=None, password=None).code == "SD-302"


@pytest.mark.parametrize("address", ["2001:db8::1", "203.0.113.9"])
def test_no_route(controller: Controller, target: Any, address: str) -> None:
    error = refused(controller, target, address=address)
    assert error.code == "SD-202" and address in str(error)


def test_nobody_at_the_address(controller: Controller, target: Any, family: str) -> None:
    address = target.addresses.as_seen_from_the_lab(family)
    separator = ":" if family == "ipv6" else "."
    error = refused(controller, target, address=f"{address.rpartition(separator)[0]}{separator}99", connection_timeout=2)
    assert error.code in ("SD-202", "SD-204")


def test_port_closed(controller: Controller, target: Any, family: str) -> None:
    # The stranger has no firewall and no server.
    stranger = controller.lab.network.addresses(3).as_seen_from_the_lab(family)
    begin = time.monotonic()
    error = refused(controller, target, address=stranger, connection_timeout=60)
    assert error.code == "SD-203" and str(target.port) in str(error)
    assert time.monotonic() - begin < 30


def test_port_filtered(controller: Controller, target: Any, family: str) -> None:
    error = refused(controller, target, family, port=4444, connection_timeout=1.5)
    assert error.code == "SD-204" and "within 1.5 s" in str(error)


def test_a_name_that_is_not_there(controller: Controller, target: Any) -> None:
    assert refused(controller, target, address="no-such-name.invalid").code == "SD-201"


@pytest.mark.parametrize("address", ["fd73::1::2", "fe80::1", "[fd73::1", "300.1.1.1"])
def test_malformed_address_through_ansible(controller: Controller, target: Any, address: str) -> None:
    result = controller.run("ansible", target.kind, "-e", f"ansible_host={address}", "-m", "raw", "-a", "id")
    shown = result.stdout + result.stderr
    assert result.returncode == 2 and "FAILED" in shown, shown
    assert re.search(rf"\[{target.name}\] reading the options: The target address '.*' is malformed: .*\(SD-101\) Remedy: ", shown)
    assert "Traceback" not in shown


def test_another_service_on_the_port(controller: Controller, linux_target: Any, windows_target: Any, family: str) -> None:
    error = refused(controller, windows_target, port=22, address=linux_target.addresses.as_seen_from_the_lab(family))
    assert error.code == "SD-404" and "does not speak SMB 3" in str(error) and "Windows XP" in str(error)
    error = refused(controller, linux_target, port=445, address=windows_target.addresses.as_seen_from_the_lab(family))
    assert error.code in ("SD-205", "SD-204") and "SSH" in str(error)


PLACED = """
import json, sys
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from ansible_collections.sojourn.deploy.plugins.plugin_utils.session import make_way_in
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import Config

way_in = make_way_in(Target.from_dict(json.loads(sys.stdin.readline())), "0123456789ab")
way_in.connect()
way_in.place("token")
try:
    print("placed", flush=True)
    sys.stdin.readline()
    way_in.start(Config("0123456789ab", "0" * 64, [], {"first": 62286, "last": 62286}, 120))
    print("started")
except SojournError as error:
    print(error.code, error)
finally:
    way_in.undo()
    way_in.release()
"""
AGENT = "/srv/windows/drive_c/windows/sojourn-0123456789ab/agent.exe"


@pytest.mark.parametrize(
    ("meanwhile", "expected"),
    [
        (f"printf x | dd of={AGENT} bs=1 seek=4096 conv=notrunc", "SD-408"),
        (f"cp {AGENT} {AGENT}.new && printf x >>{AGENT}.new && mv {AGENT}.new {AGENT}", "SD-408"),
        (f"rm {AGENT}", "SD-406"),
    ],
    ids=["written to", "replaced", "removed by an antivirus"],
)
def test_an_executable_that_is_not_what_was_sent_does_not_run(controller: Controller, windows_target: Any, meanwhile: str, expected: str) -> None:
    """Somebody on the target, or a thing such as an antivirus, changes it before it is started with the system's own rights."""
    target = controller.agent(windows_target).wrapped.target
    command = controller.lab.inside("controller", [sys.executable, "-P", "-c", PLACED])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(COLLECTIONS)}) as process:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(target.to_dict()) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "placed\n"
        windows_target.exec(["sh", "-c", meanwhile], check=True)
        said = process.communicate("\n", timeout=60)[0]
    assert said.startswith(f"{expected} "), said
    assert ("its SHA-256 is" in said) if expected == "SD-408" else ("has vanished" in said)


# SSH


def test_host_key_unknown(controller: Controller, linux_target: Any, family: str, tmp_path: Path) -> None:
    empty = tmp_path / "known_hosts"
    empty.touch()
    error = refused(controller, linux_target, family, known_hosts=str(empty))
    assert error.code == "SD-303" and "SHA256:" in str(error) and str(empty) in str(error)
    assert empty.read_text() == ""


def test_host_key_changed(controller: Controller, linux_target: Any, family: str, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    other = tmp_path / "known_hosts"
    other.write_text(f"{linux_target.addresses.as_seen_from_the_lab(family)} {(tmp_path / 'key.pub').read_text()}")
    error = refused(controller, linux_target, family, known_hosts=str(other))
    assert error.code == "SD-304" and "somebody may be in between" in str(error)
    error = refused(controller, linux_target, family, known_hosts=str(other), host_key_auto_add=True)
    assert error.code == "SD-304"


def test_host_known_by_an_authority(controller: Controller, linux_target: Any, family: str, tmp_path: Path) -> None:
    """known_hosts has nothing of the target but who signs for it (@cert-authority), as in fleets whose hosts come and go."""
    address = linux_target.addresses.as_seen_from_the_lab(family)
    authority, known = tmp_path / "authority", tmp_path / "known_hosts"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", authority], check=True)
    known.write_text(f"@cert-authority * {authority.with_suffix('.pub').read_text()}")
    setting, certificate = "/etc/ssh/sshd_config.d/certificate.conf", "/etc/ssh/ssh_host_ed25519_key-cert.pub"

    def sign(name: str) -> None:
        key = tmp_path / "host.pub"
        key.write_text(linux_target.exec(["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).stdout)
        subprocess.run(["ssh-keygen", "-q", "-s", authority, "-h", "-I", "lab", "-n", name, "-V", "-5m:+1h", key], check=True, capture_output=True)
        linux_target.exec(["sh", "-c", f"cat >{certificate}"], input=(tmp_path / "host-cert.pub").read_text())

    def restart() -> None:
        linux_target.exec(["sh", "-c", "systemctl reset-failed ssh && systemctl restart ssh"])  # systemd counts starts

    assert refused(controller, linux_target, family, known_hosts=str(known)).code == "SD-303"  # it shows no certificate yet
    try:
        sign(address)
        linux_target.exec(["sh", "-c", f"echo HostCertificate {certificate} >{setting}"])
        restart()
        for file in (known, controller.lab.known_hosts):  # who has the key itself in known_hosts is none the worse for it
            controller.new_run()
            agent = controller.agent(linux_target, family, known_hosts=str(file))
            agent.deploy()
            agent.remove()  # which signs in again
        sign("another.example")
        restart()
        controller.new_run()
        error = refused(controller, linux_target, family, known_hosts=str(known))
        assert error.code == "SD-307" and "another.example" in str(error) and "do not go on" in str(error)
    finally:
        linux_target.exec(["rm", "-f", setting, certificate])
        restart()


def test_host_key_accepted_on_demand(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    controller.agent(linux_target, known_hosts=str(known), host_key_auto_add=True).deploy()
    assert linux_target.addresses.as_seen_from_the_lab("ipv6") in known.read_text()
    controller.new_run()
    controller.agent(linux_target, known_hosts=str(known)).deploy()
    controller.new_run()
    controller.agent(linux_target, known_hosts=str(tmp_path / "none"), host_key_checking=False).deploy()
    assert not (tmp_path / "none").exists()


def test_no_right_to_become_root(controller: Controller, linux_target: Any, family: str) -> None:
    error = refused(controller, linux_target, family, user="visitor")
    assert (error.code, error.kind) == ("SD-305", "failed") and "visitor is not in the sudoers file" in str(error)


def test_wrong_sudo_password(controller: Controller, linux_target: Any, family: str) -> None:
    error = refused(controller, linux_target, family, user="deployer", become_password="Wrong1!x")
    assert error.code == "SD-305" and "sudo refused the password" in str(error)


def test_key_file_that_is_none(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    assert refused(controller, linux_target, password=None, key_file=str(tmp_path / "none")).code == "SD-302"
    (tmp_path / "bad").write_text("no key\n")
    assert refused(controller, linux_target, password=None, key_file=str(tmp_path / "bad")).code == "SD-302"


@contextlib.contextmanager
def mounted(target: Any, place: str, options: str) -> Iterator[None]:
    target.exec(["sh", "-c", f"mkdir -p {place} && mount -t tmpfs -o {options} none {place}"])
    try:
        yield
    finally:
        target.exec(["sh", "-c", f"umount {place} && rmdir {place}"])


def test_noexec_folders_are_passed_over(controller: Controller, linux_target: Any, family: str) -> None:
    with mounted(linux_target, "/mnt/noexec", "noexec,size=64m"):
        error = refused(controller, linux_target, family, remote_folders=("/mnt/noexec", "/no/such/folder"))
        assert error.code == "SD-403" and "/mnt/noexec is mounted noexec" in str(error) and "/no/such/folder does not exist" in str(error)
        agent = controller.agent(linux_target, family, remote_folders=("/mnt/noexec", "/var/tmp"))
        assert agent.deploy()["info"]["folder"].startswith("/var/tmp/sojourn-")
        agent.remove()


def test_disk_full_during_upload_on_linux(controller: Controller, linux_target: Any, family: str) -> None:
    with mounted(linux_target, "/mnt/small", "size=2m"):
        error = refused(controller, linux_target, family, remote_folders=("/mnt/small",))
        assert error.code == "SD-402" and error.step == "uploading the agent" and "No space left" in str(error)
        assert linux_target.exec(["ls", "-A", "/mnt/small"]).stdout == ""


def test_disk_full_from_the_start_on_linux(controller: Controller, linux_target: Any) -> None:
    with mounted(linux_target, "/mnt/full", "size=64k"):
        linux_target.exec(["sh", "-c", "cat /dev/zero > /mnt/full/fill || true"])
        error = refused(controller, linux_target, remote_folders=("/mnt/full",))
        assert error.code == "SD-402"
        linux_target.exec(["rm", "/mnt/full/fill"])


# SMB


def test_share_not_writable(controller: Controller, windows_target: Any, family: str) -> None:
    error = refused(controller, windows_target, family, user="reader")
    assert (error.code, error.kind) == ("SD-401", "failed") and "'reader' may not write to ADMIN$" in str(error)


def test_no_right_to_create_services(controller: Controller, windows_target: Any, family: str) -> None:
    error = refused(controller, windows_target, family, user="operator")
    assert (error.code, error.kind) == ("SD-306", "failed") and "LocalAccountTokenFilterPolicy" in str(error)


@pytest.mark.parametrize(
    ("newest", "words"),
    [("SMB3_02", "as old as Windows 8.1 or Server 2012 R2"), ("SMB2_10", "as old as Windows 7 or Server 2008 R2"), ("NT1", "Windows XP, Server 2003")],
)
def test_old_windows(controller: Controller, windows_target: Any, family: str, newest: str, words: str) -> None:
    """The server speaks no newer dialect than such a Windows does."""
    settings = "/etc/samba/smb.conf"

    def restart() -> None:
        # The service manager would take many restarts in a row for a failure.
        windows_target.exec(["sh", "-c", "systemctl reset-failed smbd; systemctl restart smbd"])
        windows_target.wait_until_up()

    windows_target.exec(["cp", "-p", settings, "/run/smb.conf"])
    windows_target.exec(["sed", "-i", f"s/server min protocol.*/server min protocol = NT1\\nserver max protocol = {newest}/", settings])
    try:
        restart()
        error = refused(controller, windows_target, family)
        assert (error.code, error.kind, error.step) == ("SD-404", "failed", "connecting") and words in str(error), str(error)
    finally:
        windows_target.exec(["cp", "-p", "/run/smb.conf", settings])
        restart()


def test_disk_full_during_upload_on_windows(controller: Controller, windows_target: Any, family: str) -> None:
    fill = "/srv/windows/drive_c/windows/temp/fill"
    free = windows_target.exec(["sh", "-c", f"df --output=avail -B1 {Path(fill).parent} | tail -n1"]).stdout
    windows_target.exec(["sh", "-c", f"head -c {int(free) - (3 << 20)} /dev/zero > {fill}"])
    try:
        error = refused(controller, windows_target, family)
        assert error.code == "SD-402" and error.step == "uploading the agent", str(error)
    finally:
        windows_target.exec(["rm", fill])


# The agent


def test_the_port_range_is_used_up(controller: Controller, target: Any, family: str) -> None:
    with inside(target.namespace, lambda: socket.create_server(("::", 62300), family=socket.AF_INET6, dualstack_ipv6=True)):
        error = refused(controller, target, family, agent_ports=(62300, 62300))
    assert (error.code, error.kind) == ("SD-601", "failed") and "62300" in str(error) and "agent_ports" in str(error)


@pytest.mark.parametrize(
    ("kind", "executable", "words"),
    [
        ("linux", b"this is no program", "this: not found"),
        ("linux", b"#!/bin/sh\necho it broke >&2\nexit 3\n", "it broke"),
        ("windows", b"this is no program", "not one for this Windows"),
    ],
)
def test_an_agent_that_does_not_start(
    controller: Controller, lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, executable: bytes, words: str
) -> None:
    from ansible_collections.sojourn.deploy.plugins.plugin_utils import session, way_in, way_in_smb, way_in_ssh

    fake = tmp_path / "agent"
    fake.write_bytes(executable)
    for module in (way_in_smb, way_in_ssh):
        monkeypatch.setattr(module, "agent_executable", lambda *unused, **unused_more: str(fake))
    attempt = session.make_way_in(controller.options(lab.target(f"{kind}1")), "0" * 12)

    def deploy() -> None:
        attempt.connect()
        try:
            attempt.place("0")
            attempt.start(way_in.Config("0" * 12, "0" * 64, ["::1"], {"first": 62286, "last": 62293}, 60))
        except SojournError:
            attempt.undo()
            raise
        finally:
            attempt.release()

    with pytest.raises(SojournError) as caught:
        inside(controller.namespace, deploy)
    assert caught.value.code == "SD-406" and words in str(caught.value), str(caught.value)


def test_the_agents_port_is_blocked_on_the_way(controller: Controller, target: Any, family: str) -> None:
    # Some firewall in between, which the agent cannot open
    rule = "table inet between { chain output { type filter hook output priority 0; tcp dport 62286-62293 drop; }; }"
    controller.lab.run(["nft", "-f", "-"], input=rule, check=True)
    try:
        error = refused(controller, target, family, connection_timeout=1)
        assert error.code == "SD-501" and error.kind == "unreachable" and "62286-62293" in str(error)
    finally:
        controller.lab.run(["nft", "delete", "table", "inet", "between"], check=True)
