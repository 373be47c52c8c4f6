"""With no user and password in the inventory, the Kerberos ticket that kinit got is used: in a real AD domain, over IPv6 alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from tests.integration.conftest import Controller
from tests.integration.playing import install, play
from tests.integration.signing_in import sign_in
from tests.integration.test_preflight import CHECKS, DOUBTS, PREFLIGHT
from tests.lab import Lab
from tests.lab.clock import jumped
from tests.lab.domain_controller import REALM
from tests.lab.fixtures import fixtures
from tests.lab.snapshot import compare, take
from tests.lab.waiting import wait_for

pytestmark = pytest.mark.xdist_group("domain")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab of its own, with a domain. SOJOURN_TEST_DOMAIN_LAB names one that is up already, for quick repetition."""
    given = os.environ.get("SOJOURN_TEST_DOMAIN_LAB")
    if given:
        yield Lab(given)
        return
    lab = Lab("testsdomain")
    lab.down()  # what an interrupted run left
    lab.up(linux=0, windows=1, domain=True)
    try:
        yield lab
    finally:
        lab.down()


@pytest.fixture
def nothing_left(lab: Lab) -> Iterator[None]:
    """The target is as it was. (The domain controller's databases go on changing by themselves.)"""
    target = lab.target("windows1")
    before = take(target)
    yield
    deadline, looks = time.monotonic() + 30, 0
    while (differences := [str(difference) for difference in compare(before, take(target))]) and (looks < 2 or time.monotonic() < deadline):
        looks += 1  # its own services come and go
    assert not differences, "\n".join(differences)


class Member(Controller):
    """A controller that knows the domain: its KDC, its hosts by name; with an inventory that holds no credentials."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        super().__init__(lab)
        assert lab.domain_controller
        target, kdc = lab.target("windows1"), lab.domain_controller
        domain = REALM.lower()
        self.host = f"{target.name}.{domain}"
        self.cache = folder / "ticket"
        self.names = folder / "hosts"
        self.names.write_text(f"::1 localhost\n{target.addresses.ula} {self.host}\n")
        settings = folder / "krb5.conf"
        settings.write_text(
            f"[libdefaults]\ndefault_realm = {REALM}\ndns_lookup_kdc = false\nrdns = false\n"
            f"[realms]\n{REALM} = {{\nkdc = [{kdc.addresses.ula}]\n}}\n"
            f"[domain_realm]\n.{domain} = {REALM}\n"
        )
        self.inventory = folder / "inventory.yml"
        self.address(self.host)
        self.environment = {"KRB5_CONFIG": str(settings), "KRB5CCNAME": f"FILE:{self.cache}", "ANSIBLE_INVENTORY": str(self.inventory)}

    def address(self, address: str, **more: str) -> None:
        """Under which the inventory has the target, and with what else."""
        # Wine has no PowerShell.
        target = {"ansible_connection": "sojourn.deploy.smb", "ansible_host": address, "ansible_shell_type": "cmd", **more}
        self.inventory.write_text(json.dumps({"all": {"hosts": {"windows1": target}}}))

    def kinit(self, *words: str) -> None:
        """Get a ticket as a user does; the password goes in by standard input."""
        kdc = self.lab.domain_controller
        assert kdc
        environment = {**os.environ, **self.environment}
        self.lab.run(["kinit", *words, f"{kdc.user}@{REALM}"], env=environment, input=f"{kdc.password()}\n", check=True)

    def tickets(self) -> str:
        """What is in the cache."""
        return subprocess.run(["klist"], env={**os.environ, **self.environment}, capture_output=True, text=True).stdout

    def run(self, *command: str, environment: dict[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
        """As the base class, with the domain's names in /etc/hosts for this command alone."""
        return super().run(*self.knowing_names(), *command, environment={**(environment or {}), **self.environment}, **more)

    def knowing_names(self) -> list[str]:
        """What is put before a command so that it finds the domain's names."""
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(self.names)]

    def sign_in(self, user: str | None = None, password: str | None = None, *, address: str | None = None, clock: float = 0, **options: Any) -> dict[str, Any]:
        """What a sign-in comes to."""
        target = Target.make("smb", address or self.host, user=user, password=password, host="windows1", **options)
        return sign_in(self.lab.inside("controller", self.knowing_names()), self.environment, target, clock=clock)

    def settings(self, old: str, new: str) -> None:
        """Changes krb5.conf."""
        path = Path(self.environment["KRB5_CONFIG"])
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


@pytest.fixture
def member(lab: Lab, nothing_left: None, tmp_path: Path) -> Iterator[Member]:
    """The controller; when the test is over, nothing may be left on the target."""
    controller = Member(lab, tmp_path)
    try:
        yield controller
    finally:
        controller.end()


WRITTEN = "C:\\windows\\temp\\sojourn-demo.txt"
DEPLOY = {"name": "deploy", "sojourn.deploy.agent": {}}


def test_an_existing_ticket_is_used(member: Member, tmp_path: Path) -> None:
    member.kinit()
    assert "cifs/" not in member.tickets()
    tasks = [
        DEPLOY,
        install("install", src=fixtures()["zip-windows"], entry="setup.exe", arguments=["--write", WRITTEN], creates=WRITTEN),
        {"name": "execute", "ansible.builtin.raw": f"echo %USERNAME%& del {WRITTEN}"},
        {"name": "remove", "sojourn.deploy.agent": {"state": "absent"}},
    ]
    played = play(member, tmp_path, tasks, hosts="windows1").well()
    info = played["windows1", "deploy"]["info"]
    assert (info["operating_system"], info["service_name"]) == ("windows", f"sojourn-{info['run']}")
    assert played["windows1", "install"]["state"] == "installed"
    assert played["windows1", "remove"]["changed"] is True
    # What the target was shown is a ticket for its name, and no password was at hand to do otherwise.
    assert f"cifs/{member.host}@{REALM}" in member.tickets()


# What debug_connection tells of tickets


DIAGNOSE = {"name": "diagnose", "sojourn.deploy.debug_connection": {"sign_in": True}}


def told(member: Member, folder: Path, *, sign_in: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is told of the sign-in, and the whole result."""
    task = DIAGNOSE if sign_in else {**DIAGNOSE, "sojourn.deploy.debug_connection": {}}
    result = play(member, folder, [task], "-vvv", hosts="windows1")["windows1", "diagnose"]
    return {finding["name"]: finding["value"] for finding in result["findings"] if finding["section"] == "sign-in"}, result


def test_diagnosis_tells_whose_ticket_it_is(member: Member, tmp_path: Path) -> None:
    member.kinit()
    found, result = told(member, tmp_path)
    kdc = member.lab.domain_controller
    assert kdc and found["ticket"] == f"of {kdc.user}@{REALM}, in the cache FILE:{member.cache}"
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S+, in \d+\.\d h", found["ticket expires"])
    assert found["ticket needed"] == f"cifs/{member.host}" and found["sign-in"].startswith("Kerberos, with the ticket")
    assert "error" not in result and "cifs/" not in member.tickets(), "the KDC was asked for nothing"
    offered = [finding["value"] for finding in result["findings"] if finding["name"] == "sign-ins offered"]
    assert offered and "Kerberos" in offered[0]
    found, result = told(member, tmp_path, sign_in=True)
    assert "error" not in result, result["msg"][-1]
    assert (found["outcome"], found["signed in by"], found["platform"]) == ("signed in", "Kerberos", "windows-amd64")


def test_diagnosis_without_a_ticket(member: Member, tmp_path: Path) -> None:
    found, result = told(member, tmp_path, sign_in=True)
    assert result["unreachable"] and result["error"]["code"] == "SD-302" and str(member.cache) in found["ticket"]
    assert found["tried"] == "no, for what was found before"
    assert any(finding["name"] == "dialect" for finding in result["findings"])


def test_diagnosis_of_a_ticket_that_has_expired(member: Member, tmp_path: Path) -> None:
    member.kinit("-l", "1s")
    wait_for("the ticket to expire", lambda: subprocess.run(["klist", "-s"], env={**os.environ, **member.environment}, check=False).returncode, 60)
    found, result = told(member, tmp_path)
    assert result["error"]["code"] == "SD-302" and "has expired (" in found["ticket"]


def refusal(member: Member, folder: Path) -> str:
    """The one line that says why the target could not be reached."""
    played = play(member, folder, [DEPLOY], hosts="windows1")
    assert played.recap("windows1")["unreachable"] == 1, played.output
    (line,) = played.errors
    return line


def test_without_a_ticket_it_says_so(member: Member, tmp_path: Path) -> None:
    line = refusal(member, tmp_path)
    assert "(SD-302)" in line and "No Kerberos credentials available" in line and str(member.cache) in line and "kinit" in line
    assert "Major" not in line


def test_an_address_has_no_ticket(member: Member, tmp_path: Path) -> None:
    member.kinit()
    member.address(member.lab.target("windows1").addresses.ula)
    line = refusal(member, tmp_path)
    assert "(SD-336)" in line and "wants the target's name" in line


# With a password: the forms of an account, and what is sent for each (the table in docs/windows.md)


@pytest.mark.parametrize(
    ("user", "whose", "by"),
    [
        ("Administrator@LAB.TEST", "domain", "Kerberos"),
        ("Administrator@lab.test", "domain", "Kerberos"),
        ("LAB\\Administrator", "domain", "Kerberos"),
        ("lab\\administrator", "domain", "Kerberos"),
        ("LAB.TEST\\Administrator", "domain", "Kerberos"),
        ("WINDOWS1\\Administrator", "local", "NTLM"),
        (".\\Administrator", "local", "NTLM"),
        ("Administrator", "local", "NTLM"),
    ],
)
def test_forms_of_an_account(member: Member, user: str, whose: str, by: str) -> None:
    """The domain's Administrator and the target's own have different passwords."""
    kdc, target = member.lab.domain_controller, member.lab.target("windows1")
    assert kdc
    password, other = kdc.password(), target.password()
    if whose == "local":
        password, other = other, password
    told = member.sign_in(user, password)
    assert (told["by"], told["encrypted"]) == (by, True), told
    told = member.sign_in(user, other)
    assert told["code"] == "SD-301" and "wrong password" in told["text"], told


@pytest.mark.parametrize("user", ["Administrator", "Administrator@LAB.TEST", "Administrator@lab.test", r"LAB\Administrator"])
def test_the_ticket_of_a_user(member: Member, user: str) -> None:
    member.kinit()
    assert member.sign_in(user)["by"] == "Kerberos"
    told = member.sign_in(user.replace("Administrator", "ann"))
    assert told["code"] == "SD-302" and "no Kerberos ticket could be used" in told["text"], told


def domain_password(member: Member) -> str:
    assert member.lab.domain_controller
    return member.lab.domain_controller.password()


@pytest.mark.parametrize("user", ["Administrator@LAB.TEST", "LAB\\Administrator"])
def test_ntlm_only_where_the_user_allows_it(member: Member, user: str) -> None:
    password, address = domain_password(member), member.lab.target("windows1").addresses.ula
    told = member.sign_in(user, password, address=address)
    assert told["code"] == "SD-337" and "wants the target's name" in told["text"], told
    assert member.sign_in(user, password, address=address, ntlm_fallback=True)["by"] == "NTLM"
    assert member.sign_in(user, password, ntlm_fallback=True)["by"] == "Kerberos"


def test_ntlm_is_not_what_is_left_where_kerberos_is_cut_off(member: Member) -> None:
    """Nobody on the network can bring the controller to NTLM by keeping it from the KDC."""
    password = domain_password(member)
    member.settings(f"kdc = [{member.lab.domain_controller.addresses.ula}]", "kdc = [::1]:1")
    told = member.sign_in("Administrator@LAB.TEST", password)
    assert told["code"] == "SD-338" and "LAB.TEST" in told["text"], told
    assert member.sign_in("Administrator@LAB.TEST", password, ntlm_fallback=True)["by"] == "NTLM"


# What goes wrong in a domain, each told apart. By NTLM it is the target that says it, as the domain told it; by Kerberos the KDC does.


@pytest.fixture
def ann(member: Member) -> Iterator[tuple[str, str]]:
    """A user of the domain who is an administrator of nothing, and the password."""
    name, password = "ann", domain_password(member) + "x"
    samba_tool(member, "user", "create", name, "--random-password")
    set_password(member, name, password)
    try:
        yield name, password
    finally:
        samba_tool(member, "user", "delete", name)


def samba_tool(member: Member, *words: str) -> None:
    assert member.lab.domain_controller
    member.lab.domain_controller.exec(["samba-tool", *words])


def set_password(member: Member, name: str, password: str, *words: str) -> None:
    """By standard input."""
    script = "import sys; from samba.netcmd.main import samba_tool; sys.exit(samba_tool('user', 'setpassword', *sys.argv[1:], '--newpassword=' + input()))"
    assert member.lab.domain_controller
    member.lab.domain_controller.exec(["python3", "-c", script, name, *words], input=f"{password}\n")


def both_ways(member: Member, name: str, password: str) -> list[dict[str, Any]]:
    """What a sign-in comes to by Kerberos, and by NTLM."""
    address = member.lab.target("windows1").addresses.ula
    return [member.sign_in(f"{name}@LAB.TEST", password), member.sign_in(f"LAB\\{name}", password, address=address, ntlm_fallback=True)]


def test_a_user_without_rights_and_a_wrong_password(member: Member, ann: tuple[str, str]) -> None:
    name, password = ann
    assert [told["code"] for told in both_ways(member, name, password)] == ["SD-401"] * 2
    for told in both_ways(member, name, "Wrong1!x"):
        assert told["code"] == "SD-301" and "wrong password" in told["text"], told
    told = member.sign_in("nobody-here@LAB.TEST", "Wrong1!x")
    assert told["code"] == "SD-301" and "no such user" in told["text"], told


def test_an_account_that_is_locked_out(member: Member, ann: tuple[str, str]) -> None:
    name, password = ann
    samba_tool(member, "domain", "passwordsettings", "set", "--account-lockout-threshold=2")
    try:
        for unused in range(2):
            assert member.sign_in(f"{name}@LAB.TEST", "Wrong1!x")["code"] in ("SD-301", "SD-332")
        by_kerberos, by_ntlm = both_ways(member, name, password)
    finally:
        samba_tool(member, "domain", "passwordsettings", "set", "--account-lockout-threshold=0")
    assert by_kerberos["code"] == "SD-332" and "disabled or locked out" in by_kerberos["text"], by_kerberos
    assert by_ntlm["code"] == "SD-331" and "locked out" in by_ntlm["text"], by_ntlm


def test_an_account_that_is_disabled(member: Member, ann: tuple[str, str]) -> None:
    name, password = ann
    samba_tool(member, "user", "disable", name)
    by_kerberos, by_ntlm = both_ways(member, name, password)
    assert by_kerberos["code"] == "SD-332" and "disabled or locked out" in by_kerberos["text"], by_kerberos
    assert by_ntlm["code"] == "SD-332" and "it is disabled" in by_ntlm["text"], by_ntlm


def test_an_account_that_has_expired(member: Member, ann: tuple[str, str]) -> None:
    name, password = ann
    samba_tool(member, "user", "setexpiry", name, "--days=-1")
    by_kerberos, by_ntlm = both_ways(member, name, password)
    assert by_kerberos["code"] == "SD-332" and "expired" in by_kerberos["text"], by_kerberos
    assert by_ntlm["code"] == "SD-332" and "it has expired" in by_ntlm["text"], by_ntlm


def test_a_password_that_must_be_changed(member: Member, ann: tuple[str, str]) -> None:
    name, password = ann
    set_password(member, name, password, "--must-change-at-next-login")
    for told in both_ways(member, name, password):
        assert told["code"] == "SD-333" and "must be changed" in told["text"], told


def set_attribute(member: Member, name: str, attribute: str, value: bytes) -> None:
    """Written past the domain's own rules, into the part of its database that holds the user."""
    script = (
        "import ldb, sys; db = ldb.Ldb('/var/lib/samba/private/sam.ldb.d/DC=LAB,DC=TEST.ldb'); message = ldb.Message(); "
        "message.dn = ldb.Dn(db, 'CN=' + sys.argv[1] + ',CN=Users,DC=lab,DC=test'); "
        "message['value'] = ldb.MessageElement(bytes.fromhex(sys.argv[3]), ldb.FLAG_MOD_REPLACE, sys.argv[2]); db.modify(message)"
    )
    assert member.lab.domain_controller
    member.lab.domain_controller.exec(["python3", "-c", script, name, attribute, value.hex()])


def test_a_password_that_has_expired(member: Member, ann: tuple[str, str]) -> None:
    """The domain's passwords are good for 42 days; this one is from 2001."""
    name, password = ann
    set_attribute(member, name, "pwdLastSet", b"126227808000000000")
    by_kerberos, by_ntlm = both_ways(member, name, password)
    assert by_kerberos["code"] == "SD-333" and "expired" in by_kerberos["text"], by_kerberos
    assert by_ntlm["code"] == "SD-333" and "it has expired" in by_ntlm["text"], by_ntlm


def test_an_account_that_may_not_sign_in_now(member: Member, ann: tuple[str, str]) -> None:
    """It has 168 hours in the week, and none in which it may."""
    name, password = ann
    set_attribute(member, name, "logonHours", bytes(21))
    by_kerberos, by_ntlm = both_ways(member, name, password)
    assert by_kerberos["code"] == "SD-332", by_kerberos
    assert by_ntlm["code"] == "SD-332" and "at this time" in by_ntlm["text"], by_ntlm


# Clocks, tickets, names


def test_clocks_that_differ(member: Member) -> None:
    """The controller's is 20 minutes ahead, in the process that signs in alone; its ticket is from before."""
    member.kinit()
    told = member.sign_in(clock=1200)
    assert told["code"] == "SD-334" and "five minutes" in told["text"], told
    assert member.sign_in()["by"] == "Kerberos"


def test_a_targets_clock_that_differs(member: Member) -> None:
    target = member.lab.target("windows1")
    member.kinit()
    with jumped([process for process in target.processes() if process.name.startswith("smbd")], 1200):
        told = member.sign_in()
    assert told["code"] == "SD-334" and "target" in told["text"], told
    assert member.sign_in()["by"] == "Kerberos"


def test_a_ticket_that_has_expired(member: Member) -> None:
    member.kinit("-l", "1h")
    told = member.sign_in(clock=7200)
    assert told["code"] == "SD-335" and "kinit" in told["text"], told


def test_a_name_that_kerberos_does_not_know(member: Member) -> None:
    """The target has it in DNS, but the domain has no service of that name."""
    member.kinit()
    member.names.write_text(f"{member.names.read_text()}{member.lab.target('windows1').addresses.ula} files.lab.test\n")
    for told in (member.sign_in(address="files.lab.test"), member.sign_in("Administrator@LAB.TEST", domain_password(member), address="files.lab.test")):
        assert told["code"] == "SD-336" and "cifs/files.lab.test" in told["text"] and "setspn" in told["text"], told


def test_a_kdc_that_is_out_of_reach(member: Member) -> None:
    member.kinit()
    member.settings(f"kdc = [{member.lab.domain_controller.addresses.ula}]", "kdc = [::1]:1")
    told = member.sign_in()
    assert told["code"] == "SD-338" and "port 88" in told["text"], told


def test_what_an_account_is_refused_for_is_told_by_ansible_in_one_line(member: Member, tmp_path: Path) -> None:
    member.settings(f"kdc = [{member.lab.domain_controller.addresses.ula}]", "kdc = [::1]:1")
    user = {"ansible_user": r"LAB\Administrator", "ansible_password": "x"}
    member.address(member.host, **user)
    line = refusal(member, tmp_path)
    assert "(SD-338) Remedy: " in line and "signing in: No domain controller could be asked" in line
    member.address(member.host, **{**user, "ansible_user": "LAB/Administrator"})
    played = play(member, tmp_path, [DEPLOY], hosts="windows1")
    assert played.recap("windows1")["failed"] == 1 and "a slash is part of no account" in played.errors[0] and "(SD-102)" in played.errors[0]


# Preflight


@pytest.mark.parametrize("user", [None, r"LAB\Administrator"], ids=["ticket", "password"])
def test_preflight(member: Member, tmp_path: Path, user: str | None) -> None:
    """By Kerberos the target tells no version: only the dialect speaks for Windows 10 or newer."""
    if user:
        member.address(member.host, ansible_user=user, ansible_password=domain_password(member))
    else:
        member.kinit()
    played = play(member, tmp_path, [PREFLIGHT], hosts="windows1").well()
    result = played["windows1", "preflight"]
    checks = {check["check"]: check for check in result["checks"]}
    assert list(checks) == ["name IPv6", "name IPv4", "route IPv6", "port 445", "sign-in", *CHECKS["windows"]], result["table"]
    assert {name for name, check in checks.items() if check["state"] != "ok"} <= DOUBTS["windows"], "\n".join(result["table"])
    assert "SMB 3.1.1" in checks["OS"]["detail"] and "build" not in checks["OS"]["detail"]
    assert result["changed"] is False


def test_preflight_tells_what_kerberos_says(member: Member, tmp_path: Path) -> None:
    result = play(member, tmp_path, [PREFLIGHT], hosts="windows1")["windows1", "preflight"]
    assert result["unreachable"] and result["error"]["code"] == "SD-302" and "kinit" in result["error"]["remedy"]
    assert [check["state"] for check in result["checks"] if check["check"] == "sign-in"] == ["failed"]
