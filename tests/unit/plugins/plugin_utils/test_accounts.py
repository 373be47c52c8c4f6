"""The forms of a Windows account: what is sent for each (the table in docs/windows.md), and which are refused before anything is sent."""

from __future__ import annotations

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import tickets, way_in_smb
from ansible_collections.sojourn.deploy.plugins.plugin_utils.accounts import parse_account, realm_of
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target

ADDRESS = "files1.lab.test"


def made(user: str | None, password: str | None = "secret", address: str = ADDRESS, **more: object) -> way_in_smb.SmbWayIn:
    return way_in_smb.SmbWayIn(Target.make("smb", address, user=user, password=password, **more), "0123456789ab")


@pytest.fixture(autouse=True)
def kerberos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kerberos is installed, and set up for LAB.TEST."""
    monkeypatch.setattr(way_in_smb, "library", lambda unused: None)
    monkeypatch.setattr(tickets, "default_realm", lambda: "LAB.TEST")


@pytest.mark.parametrize(
    ("user", "sent"),
    [
        ("ann", ("ntlm", "ann")),
        ("Ann Lee", ("ntlm", "Ann Lee")),
        (".\\ann", ("ntlm", ".\\ann")),  # the dot is replaced by the target's own name: test_smb_client
        ("FILES1\\ann", ("ntlm", "FILES1\\ann")),
        ("OTHER\\ann", ("ntlm", "OTHER\\ann")),
        ("LAB\\ann", ("kerberos", "ann@LAB.TEST")),
        ("lab\\ann", ("kerberos", "ann@LAB.TEST")),
        ("LAB.TEST\\ann", ("kerberos", "ann@LAB.TEST")),
        ("ann@LAB.TEST", ("kerberos", "ann@LAB.TEST")),
        ("ann@lab.test", ("kerberos", "ann@LAB.TEST")),
        ("ann.lee@other.example", ("kerberos", "ann.lee@OTHER.EXAMPLE")),
    ],
)
def test_what_is_sent_with_a_password(user: str, sent: tuple[str, str]) -> None:
    assert made(user)._plan() == sent
    allowed = made(user, ntlm_fallback=True)._plan()
    assert allowed == (sent if sent[0] == "ntlm" else ("negotiate", sent[1]))


@pytest.mark.parametrize(
    ("user", "sent"), [(None, None), ("ann", "ann"), ("LAB\\ann", "ann@LAB.TEST"), ("ann@lab.test", "ann@LAB.TEST"), ("ann@OTHER", "ann@OTHER")]
)
def test_whose_ticket_is_used_without_a_password(user: str | None, sent: str | None) -> None:
    assert made(user, None)._plan() == ("kerberos", sent)
    assert made(user, None, ntlm_fallback=True)._plan() == ("kerberos", sent), "without a password there is no other way"


@pytest.mark.parametrize(("user", "words"), [(".\\ann", "accounts of the target's own"), ("OTHER\\ann", "write ann@REALM")])
def test_accounts_that_have_no_ticket(user: str, words: str) -> None:
    with pytest.raises(SojournError) as caught:
        made(user, None)._plan()
    assert caught.value.code == "SD-302" and words in str(caught.value)


@pytest.mark.parametrize("user", ["LAB\\ann", "ann@LAB.TEST"])
def test_a_domains_account_does_not_get_to_ntlm_by_itself(monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    with pytest.raises(SojournError) as caught:
        made(user, address="fd73::2")._plan()
    assert caught.value.code == "SD-337" and "wants the target's name" in str(caught.value) and "ntlm_fallback" in caught.value.remedy
    assert made(user, address="fd73::2", ntlm_fallback=True)._plan() == ("ntlm", user)

    def none(unused: object) -> None:
        raise SojournError("SD-901", library="pyspnego[kerberos]", detail="none", python="python")

    monkeypatch.setattr(way_in_smb, "require", lambda *unused: none(None))
    with pytest.raises(SojournError) as caught:
        made_without = object.__new__(way_in_smb.SmbWayIn)
        made_without.target, made_without.step = Target.make("smb", ADDRESS, user=user, password="secret"), ""
        made_without._plan()
    assert caught.value.code == "SD-337" and "not installed" in str(caught.value)


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("LAB\\\\ann", "more than one backslash"),
        ("LAB\\ann\\x", "more than one backslash"),
        ("LAB/ann", "a slash"),
        ("\\ann", "before the backslash there is no domain"),
        ("LAB\\", "there is no user"),
        (".\\", "there is no user"),
        ("@LAB.TEST", "there is no user"),
        ("ann@", "there is no realm"),
        ("ann@LAB..TEST", "there is no realm"),
        ("ann@lee@LAB.TEST", "more than one '@'"),
        ("LAB\\ann@LAB.TEST", "never both"),
        ("LA B\\ann", "there is no domain"),
        (" ann", "blanks around it"),
        ("ann\n", "blanks around it"),
        ("an\tn", "cannot be seen"),
        ("ann:secret", "no user's name holds ':'"),
        ("LAB\\a*n", "no user's name holds '*'"),
    ],
)
def test_wrong_forms_are_told_before_anything_is_sent(user: str, words: str) -> None:
    for password in ("secret", None):
        with pytest.raises(SojournError) as caught:
            Target.make("smb", ADDRESS, user=user, password=password)
        error = caught.value
        assert (error.code, error.step) == ("SD-102", "reading the options") and words in str(error), str(error)
        assert "secret" not in str(error).replace(user, "")
    Target.make("ssh", ADDRESS, user=user)  # another system's users


def test_forms() -> None:
    forms = {text: parse_account(text) for text in ("ann", ".\\ann", "LAB\\ann", "ann@lab.test")}
    assert {text: (account.form, account.domain, account.user) for text, account in forms.items()} == {
        "ann": ("plain", "", "ann"), ".\\ann": ("local", "", "ann"), "LAB\\ann": ("domain", "LAB", "ann"), "ann@lab.test": ("principal", "LAB.TEST", "ann")}


@pytest.mark.parametrize(
    ("domain", "default", "realm"), [("LAB", "LAB.TEST", "LAB.TEST"), ("LA", "LAB.TEST", ""), ("TEST", "LAB.TEST", ""), ("LAB", "", ""), ("", "LAB", "")]
)
def test_the_realm_of_a_domain(domain: str, default: str, realm: str) -> None:
    assert realm_of(domain, default) == realm
