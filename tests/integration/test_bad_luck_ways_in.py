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
from tests.lab.windows_faults import share


def refused(controller: Controller, target: Any, family: str = "ipv6", **options: Any) -> SojournError:
    """The error of a deployment that must not work; it takes seconds, not minutes."""
    begin = time.monotonic()
    with pytest.raises(SojournError) as caught:
        controller.agent(target, family, **options).deploy()
    assert time.monotonic() - begin < 55
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
    assert time.monotonic() - begin < 55


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


STEPS = """
import json, sys
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from ansible_collections.sojourn.deploy.plugins.plugin_utils.session import make_way_in
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import Config

def reached(what):
    print(what, flush=True)
    sys.stdin.readline()

def after(what, act):
    def acts(*arguments):
        reached(what)
        return act(*arguments)
    return acts

way_in = make_way_in(Target.from_dict(json.loads(sys.stdin.readline())), "0123456789ab")
if way_in.target.way_in == "smb":  # over WinRM one command checks and starts
    way_in._serve = after("checked", way_in._serve)
way_in._wait_ready = after("started", way_in._wait_ready)
way_in.connect()
try:
    way_in.place("token")
    reached("placed")
    way_in.start(Config("0123456789ab", "0" * 64, [], {"first": 62286, "last": 62286}, 120))
    reached("ready")
except SojournError as error:
    print(error.code, error, flush=True)
finally:
    way_in.undo()
    way_in.release()
"""
FOLDER = "/srv/windows/drive_c/windows/sojourn-0123456789ab"
AGENT = f"{FOLDER}/agent.exe"


class Steps:
    """A deployment by the way in alone, that waits after each of its steps: placed, checked, started, ready."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._waits = False

    def reach(self, wanted: str) -> None:
        """Goes on until this step, at which it waits."""
        while (said := self._next()) != wanted:
            assert said in ("placed", "checked", "started"), said

    def error(self) -> str:
        """Goes on to the end, which is an error: its code and text."""
        while not (said := self._next()).startswith("SD-"):
            assert said in ("placed", "checked", "started"), said
        return said

    def kill(self) -> None:
        self._process.kill()

    def _next(self) -> str:
        assert self._process.stdin and self._process.stdout
        if self._waits:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        self._waits = True
        return self._process.stdout.readline().rstrip("\n")


@contextlib.contextmanager
def stepwise(controller: Controller, target: Any, *, killed: bool = False) -> Iterator[Steps]:
    """Begins one to a target, as its options have it; it goes on to its end, unless it is to be ``killed``."""
    command = controller.lab.inside("controller", [sys.executable, "-P", "-c", STEPS])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(COLLECTIONS)}) as process:
        assert process.stdin
        process.stdin.write(json.dumps(target.to_dict()) + "\n")
        process.stdin.flush()
        yield Steps(process)
        process.communicate("\n" * 8, timeout=60)
    assert (process.returncode == 0) is not killed


@pytest.fixture
def steps(controller: Controller, windows_target: Any) -> Iterator[Steps]:
    with stepwise(controller, controller.agent(windows_target).wrapped.target) as steps:
        yield steps


@pytest.mark.parametrize(
    ("meanwhile", "code", "words"),
    [
        (f"printf x | dd of={AGENT} bs=1 seek=4096 conv=notrunc", "SD-408", "its SHA-256 is"),
        (f"cp {AGENT} {AGENT}.new && printf x >>{AGENT}.new && mv {AGENT}.new {AGENT}", "SD-408", "its SHA-256 is"),
        (f"rm {AGENT}", "SD-406", "has vanished"),
    ],
    ids=["written to", "replaced", "removed by an antivirus"],
)
def test_an_executable_that_is_not_what_was_sent_does_not_run(steps: Steps, windows_target: Any, meanwhile: str, code: str, words: str) -> None:
    """Somebody on the target, or a thing such as an antivirus, changes it before it is started with the system's own rights."""
    steps.reach("placed")
    windows_target.exec(["sh", "-c", meanwhile], check=True)
    said = steps.error()
    assert said.startswith(f"{code} ") and words in said, said


def test_nobody_writes_to_the_executable_between_check_and_start(steps: Steps, windows_target: Any) -> None:
    """From its SHA-256 on until it runs, whoever comes over the network can neither change, replace nor remove it."""
    steps.reach("checked")
    from smbprotocol.exceptions import SharingViolation
    from smbprotocol.open import CreateDisposition, CreateOptions, FilePipePrinterAccessMask, ImpersonationLevel, Open, ShareAccess

    access, disposition = FilePipePrinterAccessMask, CreateDisposition
    sharing = ShareAccess.FILE_SHARE_READ | ShareAccess.FILE_SHARE_WRITE | ShareAccess.FILE_SHARE_DELETE
    with share(windows_target, "ADMIN$") as tree:

        def opened(how: int, then: int = disposition.FILE_OPEN) -> Any:
            file = Open(tree, r"sojourn-0123456789ab\agent.exe")
            file.create(ImpersonationLevel.Impersonation, how, 0, sharing, then, CreateOptions.FILE_NON_DIRECTORY_FILE)
            return file

        for how, then in (
            (access.FILE_WRITE_DATA, disposition.FILE_OPEN),
            (access.FILE_APPEND_DATA, disposition.FILE_OPEN),
            (access.FILE_READ_DATA, disposition.FILE_OVERWRITE),
            (access.FILE_WRITE_DATA, disposition.FILE_SUPERSEDE),
            (access.DELETE, disposition.FILE_OPEN),  # to remove or rename it, or put another in its place
        ):
            with pytest.raises(SharingViolation):
                opened(how, then)
        opened(access.FILE_READ_DATA).close()
        steps.reach("ready")
        opened(access.FILE_WRITE_DATA).close()  # what was refused was so for that reason alone


SERVICE = "sojourn-0123456789ab"


def create_another(target: Any) -> None:
    """A service of the same name."""
    target.exec(["wine", "sc", "create", SERVICE, "binPath=", r"C:\windows\other.exe"])


def remove_all(target: Any) -> None:
    """As an antivirus might, or a person."""
    target.exec(["sh", "-c", f"wine sc stop {SERVICE}; wine sc delete {SERVICE}; rm -rf {FOLDER}"], check=False)


def test_a_service_that_cannot_be_created(steps: Steps, windows_target: Any) -> None:
    """The service control manager's own refusal, with its number."""
    steps.reach("checked")
    create_another(windows_target)
    said = steps.error()
    assert said.startswith("SD-407 ") and "RCreateServiceW failed with error 1073" in said and "a policy forbids new services" in said, said


def test_a_service_that_vanishes(steps: Steps, windows_target: Any) -> None:
    """It is stopped and removed before it has said that it is ready."""
    steps.reach("started")
    remove_all(windows_target)
    said = steps.error()
    assert said.startswith("SD-406 ") and "the service has vanished; the agent's executable has vanished: an antivirus" in said, said


def test_no_service_control_manager(controller: Controller, windows_target: Any, family: str) -> None:
    """A thing that has SMB and an ADMIN$, but no pipe svcctl."""
    pipes = "/run/samba/ncalrpc/np"
    windows_target.exec(["mount", "-t", "tmpfs", "none", pipes])
    try:
        error = refused(controller, windows_target, family)
    finally:
        windows_target.exec(["umount", pipes])
    assert (error.code, error.kind) == ("SD-407", "failed") and "no service control manager" in str(error), str(error)


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
    # Hashed, where the controller's ssh_config says so.
    subprocess.run(["ssh-keygen", "-F", linux_target.addresses.as_seen_from_the_lab("ipv6"), "-f", known], check=True, capture_output=True)
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


def test_a_tmp_that_is_noexec(controller: Controller, linux_target: Any, family: str) -> None:
    """As on hosts that follow a hardening guide: /tmp itself, and nothing said about folders."""
    linux_target.exec(["mount", "-t", "tmpfs", "-o", "noexec,nosuid,nodev,mode=1777", "none", "/tmp"])
    try:
        agent = controller.agent(linux_target, family)
        assert agent.deploy()["info"]["folder"].startswith("/var/tmp/sojourn-")
        agent.remove()
        assert linux_target.exec(["ls", "-A", "/tmp"]).stdout == ""
    finally:
        linux_target.exec(["umount", "/tmp"])


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
        error = refused(controller, target, family, connection_timeout=5)
        assert error.code == "SD-501" and error.kind == "unreachable" and "62286-62293" in str(error)
    finally:
        controller.lab.run(["nft", "delete", "table", "inet", "between"], check=True)
