"""What a refused sign-in comes to: each NT status and each Kerberos error its own code, words and remedy. What a lab can show of it has tests there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import smb_client, way_in_smb
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target

exceptions = pytest.importorskip("smbprotocol.exceptions")
KERBEROS_BASE = -1765328384


def refused(
    monkeypatch: pytest.MonkeyPatch, problem: BaseException, password: str | None = "secret", *, ntlm: bool = False, clock_ahead: float | None = None
) -> SojournError:
    way_in = way_in_smb.SmbWayIn(Target.make("smb", "files1.lab.test", user="ann@LAB.TEST", password=password, host="files1"), "0123456789ab")
    way_in._client.connection = SimpleNamespace(ntlm=ntlm, clock_ahead=clock_ahead)
    monkeypatch.setattr(way_in_smb, "library", lambda unused: None)

    def sign_in(*unused: Any, **unused_too: Any) -> None:
        raise problem

    monkeypatch.setattr(way_in._client, "sign_in", sign_in)
    with pytest.raises(SojournError) as caught:
        way_in._sign_in()
    assert caught.value.step == "signing in"
    return caught.value


def status(number: int) -> Any:
    error = exceptions.SMBResponseException.__new__(exceptions.SMBResponseException)
    error.header = {"status": SimpleNamespace(get_value=lambda: number)}
    return error


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (0xC000006D, "SD-301", "unknown user or wrong password"),
        (0xC0000234, "SD-331", "is locked out"),
        (0xC0000072, "SD-332", "it is disabled"),
        (0xC0000193, "SD-332", "it has expired"),
        (0xC000006E, "SD-332", "restricted"),
        (0xC000006F, "SD-332", "at this time"),
        (0xC0000070, "SD-332", "from this controller"),
        (0xC000015B, "SD-332", "over the network"),
        (0xC0000071, "SD-333", "it has expired"),
        (0xC0000224, "SD-333", "must be changed"),
        (0xC0000133, "SD-334", "the clocks"),
        (0xC000005E, "SD-338", "finds no domain controller"),
        (0xC0000418, "SD-301", "takes no NTLM"),
        (0xC00000BB, "SD-301", "0xC00000BB"),
    ],
)
def test_what_the_target_refuses_with(monkeypatch: pytest.MonkeyPatch, number: int, code: str, words: str) -> None:
    error = refused(monkeypatch, status(number))
    assert error.code == code and words in str(error) and error.kind == "unreachable"


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (1, "SD-332", "it has expired"),
        (6, "SD-301", "no such user"),
        (7, "SD-336", "cifs/files1.lab.test"),
        (12, "SD-332", "policy"),
        (18, "SD-332", "disabled or locked out"),
        (23, "SD-333", "must be changed"),
        (24, "SD-301", "wrong password"),
        (31, "SD-301", "wrong password"),
        (32, "SD-335", "ticket"),
        (37, "SD-334", "the clocks"),
        (154, "SD-338", "the library's words"),
        (156, "SD-338", "the library's words"),
        (220, "SD-338", "the library's words"),
        (99, "SD-301", "the library's words"),
    ],
)
@pytest.mark.parametrize("by", ["krb5", "gssapi"])
def test_what_kerberos_refuses_with(monkeypatch: pytest.MonkeyPatch, number: int, code: str, words: str, by: str) -> None:
    """The number comes as krb5 has it where a ticket is got with the password, as GSSAPI has it (without its sign) where one is used."""
    cause: Any = Exception("the library's words")
    if by == "krb5":
        cause.base_error = SimpleNamespace(err_code=KERBEROS_BASE + number)
    else:
        cause.base_error = SimpleNamespace(min_code=(KERBEROS_BASE + number) & 0xFFFFFFFF, get_all_statuses=lambda *unused: ["the library's words"])
    problem = exceptions.SMBAuthenticationError("around it")
    problem.__cause__ = cause
    error = refused(monkeypatch, problem)
    assert error.code == code and words in str(error), str(error)


@pytest.mark.parametrize(
    ("ntlm", "ahead", "code", "words"),
    [
        (False, 1200.0, "SD-334", "the target's is 20 minutes ahead of the controller's"),
        (False, -1200.0, "SD-334", "20 minutes behind the controller's"),
        (False, 299.0, "SD-301", "wrong password"),
        (False, None, "SD-301", "wrong password"),
        (True, 1200.0, "SD-301", "wrong password"),  # NTLM does not mind
    ],
)
def test_a_ticket_that_is_refused_for_the_targets_clock(monkeypatch: pytest.MonkeyPatch, ntlm: bool, ahead: float | None, code: str, words: str) -> None:
    error = refused(monkeypatch, status(0xC000006D), ntlm=ntlm, clock_ahead=ahead)
    assert error.code == code and words in str(error), str(error)


def test_no_ticket_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = exceptions.SMBAuthenticationError("around it")
    problem.__cause__ = Exception("no cache")
    assert refused(monkeypatch, problem, None).code == "SD-302"


def test_what_is_not_encrypted_or_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused(monkeypatch, smb_client.NotEncrypted())
    assert error.code == "SD-341" and "smb_encryption" in error.remedy
    error = refused(monkeypatch, smb_client.NotSigned("it came without a signature"))
    assert error.code == "SD-342" and "cannot be turned off" in error.remedy


def test_each_refusal_has_a_remedy_of_its_own() -> None:
    remedies = {code: SojournError(code).remedy for code, unused in [*way_in_smb.SIGN_IN.values(), *way_in_smb.KERBEROS.values()]}
    assert len(set(remedies.values())) == len(remedies) > 7


def test_a_target_that_sends_without_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is noticed: as a connection that broke, with what it did."""
    way_in = way_in_smb.SmbWayIn(Target.make("smb", "files1.lab.test", user="ann@LAB.TEST", password="secret", host="files1"), "0123456789ab")
    manager = SimpleNamespace(list=lambda: [("sojourn-0123456789ab", 4)], STOPPED=1)
    monkeypatch.setattr(way_in, "_open_manager", lambda: manager)

    def endless(*arguments: Any) -> Any:
        raise smb_client.TooMuch("listing a folder has more than 65536")

    monkeypatch.setattr(way_in._client, "list", endless)
    with pytest.raises(SojournError, match="has more than 65536") as caught:
        way_in.find()
    assert caught.value.code == "SD-205" and caught.value.kind == "unreachable"
    manager.list = endless
    with pytest.raises(SojournError) as caught:
        way_in.find()
    assert caught.value.code == "SD-205" and caught.value.step == "looking for leftovers"
    error = refused(monkeypatch, smb_client.TooMuch("a message took more than 120 s"))
    assert error.code == "SD-205" and "a message took more than 120 s" in str(error)
