"""With no user and password in the inventory, the Kerberos ticket that kinit got is used: in a real AD domain, over IPv6 alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Controller
from tests.integration.playing import install, play
from tests.lab import Lab
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
    assert not [str(difference) for difference in compare(before, take(target))]


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

    def address(self, address: str) -> None:
        """Under which the inventory has the target."""
        # Wine has no PowerShell.
        target = {"ansible_connection": "sojourn.deploy.smb", "ansible_host": address, "ansible_shell_type": "cmd"}
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
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(self.names)]
        return super().run(*words, *command, environment={**(environment or {}), **self.environment}, **more)


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
    wait_for("the ticket to expire", lambda: subprocess.run(["klist", "-s"], env={**os.environ, **member.environment}, check=False).returncode, 10)
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
    assert "(SD-302)" in line and "wants the target's name" in line
