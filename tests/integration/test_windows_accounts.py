"""Signing in to a Windows target that is in no domain: forms of its accounts, their states, and what SMB's signing and encryption come to."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration.conftest import Controller
from tests.integration.signing_in import sign_in
from tests.lab.namespaces import connect, inside

SETTINGS = "/etc/samba/smb.conf"


def to(controller: Controller, target: Any, family: str, **options: Any) -> dict[str, Any]:
    """What a sign-in comes to; by default as the inventory has it."""
    return sign_in(controller.lab.inside("controller", []), {}, controller.options(target, family, **options))


@contextlib.contextmanager
def smbd(target: Any, change: Callable[[str], str]) -> Iterator[None]:
    """The target's SMB server with other settings."""

    def restart() -> None:
        # The service manager would take many restarts in a row for a failure.
        target.exec(["sh", "-c", "systemctl reset-failed smbd; systemctl restart smbd"])
        target.wait_until_up()

    target.exec(["cp", "-p", SETTINGS, "/run/smb.conf"])
    before = target.exec(["cat", SETTINGS]).stdout
    assert change(before) != before
    target.exec(["sh", "-c", f"cat > {SETTINGS}"], input=change(before))
    try:
        restart()
        yield
    finally:
        target.exec(["cp", "-p", "/run/smb.conf", SETTINGS])
        target.exec(["rm", "/run/smb.conf"])
        restart()


def with_global(line: str) -> Callable[[str], str]:
    return lambda text: text.replace("[global]\n", f"[global]\n    {line}\n", 1)


# Forms of an account, and its states


@pytest.mark.parametrize("user", ["Administrator", "administrator", ".\\Administrator", "WINDOWS1\\Administrator"])
def test_forms_of_a_local_account(controller: Controller, windows_target: Any, family: str, user: str) -> None:
    told = to(controller, windows_target, family, user=user, password=windows_target.password())
    assert (told["by"], told["encrypted"]) == ("NTLM", True), told
    told = to(controller, windows_target, family, user=user, password="Wrong1!x")
    assert told["code"] == "SD-301" and "wrong password" in told["text"], told


def test_a_domains_account_is_not_tried_by_ntlm(controller: Controller, windows_target: Any, family: str) -> None:
    told = to(controller, windows_target, family, user="Administrator@LAB.TEST", password=windows_target.password())
    assert told["code"] == "SD-337" and "ntlm_fallback" in told["text"], told


@pytest.mark.parametrize(
    ("change", "back", "code", "words"),
    [
        ("pdbedit -u operator -c [L]", "pdbedit -u operator -c []", "SD-331", "is locked out"),
        ("pdbedit -u operator -c [D]", "pdbedit -u operator -c []", "SD-332", "it is disabled"),
        ("pdbedit -u operator -K 86400", "pdbedit -u operator -K never", "SD-332", "it has expired"),
        ("net sam set pwdmustchangenow operator yes", "net sam set pwdmustchangenow operator no", "SD-333", "must be changed first"),
    ],
    ids=["locked", "disabled", "expired", "must change"],
)
def test_states_of_an_account(controller: Controller, windows_target: Any, family: str, change: str, back: str, code: str, words: str) -> None:
    def told() -> dict[str, Any]:
        return to(controller, windows_target, family, user="operator")

    assert told()["by"] == "NTLM"
    windows_target.exec(change.split())
    try:
        refused = told()
        assert refused["code"] == code and words in refused["text"] and "'operator'" in refused["text"], refused
        # A lock-out is told to whoever tries; anything else to nobody who has not the right password.
        wrong = to(controller, windows_target, family, user="operator", password="Wrong1!x")
        assert wrong["code"] == ("SD-331" if code == "SD-331" else "SD-301"), wrong
    finally:
        windows_target.exec(back.split())
    assert told()["by"] == "NTLM"


# The share


def test_the_share_has_been_removed(controller: Controller, windows_target: Any, family: str) -> None:
    with smbd(windows_target, lambda text: text.replace("[ADMIN$]", "[GONE$]")):
        told = to(controller, windows_target, family)
    assert told["code"] == "SD-411" and "no share ADMIN$" in told["text"] and "AutoShareServer" in told["text"], told


# Signing and encryption


def test_a_target_that_requires_encryption(controller: Controller, windows_target: Any, family: str) -> None:
    with smbd(windows_target, with_global("server smb encrypt = required")):
        for insisted in (True, False):
            assert to(controller, windows_target, family, smb_encryption=insisted)["encrypted"] is True
        agent = controller.agent(windows_target, family)
        agent.deploy()
        agent.remove()


def test_a_target_that_requires_signing(controller: Controller, windows_target: Any, family: str) -> None:
    """Without encryption, so that it is the signatures that count."""
    assert re.search(r"(?m)^\s*server signing = mandatory$", windows_target.exec(["cat", SETTINGS]).stdout)
    with smbd(windows_target, with_global("server smb encrypt = off")):
        told = to(controller, windows_target, family, smb_encryption=False)
        assert (told["by"], told["encrypted"]) == ("NTLM", False), told


def test_a_target_without_encryption(controller: Controller, windows_target: Any, family: str) -> None:
    with smbd(windows_target, with_global("server smb encrypt = off")):
        told = to(controller, windows_target, family)
        assert told["code"] == "SD-341" and "smb_encryption" in told["text"], told
        result = controller.run("ansible", "windows", "-m", "raw", "-a", "echo %OS%", family=family)
        assert result.returncode == 4 and "(SD-341) Remedy: " in result.stdout + result.stderr
        result = controller.run(
            "ansible", "windows", "-m", "raw", "-a", "echo %OS%", "-e", "ansible_sojourn_smb_encryption=false", family=family)
        assert result.returncode == 0 and "Windows_NT" in result.stdout, result.stdout + result.stderr


class Between:
    """Somebody between controller and target who changes what the target says, message by message."""

    def __init__(self, controller: Controller, target: Any, family: str, change: Callable[[bytearray], None]) -> None:
        self._upstream = lambda: connect(controller.namespace, target.addresses.as_seen_from_the_lab(family), target.port)
        self._change = change
        self._server = inside(controller.namespace, lambda: socket.create_server(("::1", 0), family=socket.AF_INET6))
        self.port = self._server.getsockname()[1]
        self._open: list[socket.socket] = [self._server]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Between:
        self._begin(self._serve)
        return self

    def __exit__(self, *unused: Any) -> None:
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(10)

    def _begin(self, what: Callable[..., None], *words: Any) -> None:
        thread = threading.Thread(target=what, args=words, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            client = self._server.accept()[0]
            target = self._upstream()
            target.settimeout(None)
            self._open += [client, target]
            self._begin(self._there, client, target)
            self._begin(self._back, target, client)

    def _there(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _back(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError), source.makefile("rb") as file:
            while head := file.read(4):
                message = bytearray(file.read(struct.unpack(">I", head)[0]))
                if message[:4] == b"\xfeSMB":
                    self._change(message)
                sink.sendall(head + message)
            sink.shutdown(socket.SHUT_WR)


def command_of(message: bytearray) -> int:
    """[MS-SMB2] 2.2.1.2; 0 NEGOTIATE, 1 SESSION_SETUP, 3 TREE_CONNECT."""
    return struct.unpack_from("<H", message, 12)[0]


def takes_signatures_away(message: bytearray) -> None:
    if command_of(message) > 1:
        message[16] &= ~0x08 & 0xFF
        message[48:64] = bytes(16)


def changes_an_answer(message: bytearray) -> None:
    if command_of(message) == 3:
        message[-1] ^= 1  # which rights there are to the share


def takes_the_offer_of_encryption_away(message: bytearray) -> None:
    """Of the negotiate contexts ([MS-SMB2] 2.2.4.1), the one for encryption tells no cipher."""
    if command_of(message) != 0:
        return
    count, at = struct.unpack_from("<H", message, 64 + 6)[0], struct.unpack_from("<I", message, 64 + 60)[0]
    for unused in range(count):
        kind, length = struct.unpack_from("<HH", message, at)
        if kind == 2:
            struct.pack_into("<H", message, at + 8 + 2, 0)
        at += (8 + length + 7) & ~7


@pytest.mark.parametrize(
    ("change", "words"), [(takes_signatures_away, "without a signature"), (changes_an_answer, "could not be verified")], ids=["taken away", "wrong"]
)
def test_missing_signing_is_refused(controller: Controller, windows_target: Any, family: str, change: Callable[[bytearray], None], words: str) -> None:
    with smbd(windows_target, with_global("server smb encrypt = off")), Between(controller, windows_target, family, change) as between:
        told = to(controller, windows_target, address="::1", port=between.port, family=family, smb_encryption=False)
    assert told["code"] == "SD-342" and words in told["text"] and "Somebody may be in between" in told["text"], told


def test_nobody_in_between_can_turn_encryption_off(controller: Controller, windows_target: Any, family: str) -> None:
    change = takes_the_offer_of_encryption_away
    with Between(controller, windows_target, family, change) as between:
        told = to(controller, windows_target, address="::1", port=between.port, family=family)
    assert told["code"] == "SD-341" and "somebody in between" in told["text"], told
    # Where the user does without it, it is noticed all the same: the sign-in's last answer is signed over all that was said before.
    with Between(controller, windows_target, family, change) as between:
        told = to(controller, windows_target, address="::1", port=between.port, family=family, smb_encryption=False)
    assert told["code"] == "SD-342", told
