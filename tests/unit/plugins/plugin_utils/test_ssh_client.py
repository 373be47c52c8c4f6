"""Host keys as OpenSSH has them, and the scripts that run on targets."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import re
import shutil
import subprocess
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


# The scripts

SCRIPTS = {name: value for name, value in vars(way_in_ssh).items() if re.fullmatch(r"_[A-Z]+", name) and isinstance(value, str)}
SHELLS = [shell for shell in ("dash", "bash", "busybox", "ksh", "zsh") if shutil.which(shell)]


def sh(script: str, *arguments: str, shell: str = "sh", **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["busybox", "sh"] if shell == "busybox" else [shell]
    return subprocess.run([*command, "-c", script, "sh", *arguments], capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_scripts_survive_any_login_shell() -> None:
    assert len(SCRIPTS) >= 5
    for name, script in SCRIPTS.items():
        assert "\n" not in script and "!" not in script, name
        assert subprocess.run(["sh", "-n", "-c", script], check=False).returncode == 0, name


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
        command = [*words, str(size), digest, *map(str, candidates)]
        done = subprocess.run(command, input=data, capture_output=True, env={**os.environ, **environment}, check=False)
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
        [shell, "-c", way_in_ssh._PLACE, "sh", "sojourn-1", "token", "1000", "0", "", str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    assert process.stdout.readline() == f"folder {tmp_path}/sojourn-1\n".encode()
    process.stdout.close()
    process.stdin.write(b"half of it")
    process.stdin.close()
    process.wait(10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shell", SHELLS)
def test_the_removing_script(tmp_path: Path, shell: str) -> None:
    place = tmp_path / "with blank"
    (place / "sojourn-000000000000" / "inner").mkdir(parents=True)
    (place / "sojourn-000000000001").mkdir()
    (place / "sojourn-000000000000" / "link").symlink_to(place / "sojourn-000000000001")

    def remove(tenths: int) -> str:
        done = sh(way_in_ssh._REMOVE, "sojourn-000000000000", str(tenths), str(place), str(tmp_path / "none"), shell=shell)
        assert (done.returncode, done.stderr) == (0, "")
        assert [path.name for path in place.iterdir()] == ["sojourn-000000000001"]
        return done.stdout

    assert remove(0) == "told \n", "the folder was there, and nothing in it that tells more"
    assert remove(0) == ""
    (place / "sojourn-000000000000").mkdir()
    (place / "sojourn-000000000000/left.json").write_text(r'{"error": "a \u003c and a \\"}')
    begin = time.monotonic()
    assert remove(6000) == 'told {"error": "a \\u003c and a \\\\"}\n'
    assert time.monotonic() - begin < 60, "who says that something is left has ended"


@pytest.mark.parametrize("shell", SHELLS)
def test_the_finding_script(tmp_path: Path, shell: str) -> None:
    (tmp_path / "sojourn-000000000000").mkdir()
    (tmp_path / "sojourn-000000000001").touch()
    done = sh(way_in_ssh._FIND, str(tmp_path), str(tmp_path / "none"), shell=shell)
    lines = [line for line in done.stdout.splitlines() if line.startswith("folder")]
    assert lines == [f"folder dead sojourn-000000000000 {tmp_path}/sojourn-000000000000"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_looking_script(shell: str) -> None:
    done = sh(way_in_ssh._LOOK, shell=shell, SSH_CONNECTION="fd73::2 50000 fd73::1 22")
    facts = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    assert facts["system"] == os.uname().sysname and facts["machine"] == os.uname().machine and facts["user"] == str(os.geteuid())
    assert facts["ssh"] == "fd73::2 50000 fd73::1 22"
