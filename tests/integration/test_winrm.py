"""WinRM as the way in: file sharing's port is closed, and the agent comes, works and goes without a trace all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from tests.integration import conftest
from tests.integration.conftest import Controller, kill, secrets_of
from tests.integration.playing import PACKAGES_LEAVE, install, play
from tests.integration.test_bad_luck_ways_in import AGENT, create_another, remove_all, stepwise
from tests.integration.test_install import packages, uninstalled  # noqa: F401 - fixtures
from tests.integration.watching import left_alone, watched
from tests.lab import Lab
from tests.lab.namespaces import connect, inside
from tests.lab.waiting import wait_for

#: How to sign in: the port, and the options beside it.
SIGN_INS: dict[str, dict[str, Any]] = {
    "NTLM, sealed": {"port": 5985},
    "NTLM over HTTPS": {},
    "Basic over HTTPS": {"winrm_transport": "basic"},
}


@pytest.fixture(scope="module", autouse=True)
def _winrm_only(lab: Lab) -> Iterator[None]:
    """For all of these, and around the looks at what is left."""
    conftest._last_look.clear()
    with lab.target("windows1").winrm_only():
        yield
    conftest._last_look.clear()


@pytest.fixture(params=SIGN_INS)
def sign_in(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One after the other."""
    return SIGN_INS[request.param]


def over_winrm(controller: Controller, target: Any, family: str = "ipv6", **more: Any) -> Any:
    """An agent of the target, by WinRM."""
    return controller.agent(target, family, way_in="winrm", **{"winrm_ca_file": str(target.winrm_certificate), **more})


def test_the_agent_comes_and_goes(
    controller: Controller, windows_target: Any, family: str, sign_in: dict[str, Any], say: Callable[[str], None]
) -> None:
    assert not windows_target.can_connect(445, family)
    agent = over_winrm(controller, windows_target, family, **sign_in)
    deployed = agent.deploy()
    assert deployed["changed"] is True
    info = deployed["info"]
    assert info["operating_system"] == "windows" and info["service_name"] == f"sojourn-{info['run']}"
    assert agent.deploy()["changed"] is False
    assert agent.execute(command_line="cmd /c echo there")["stdout"].strip() == b"there"
    removed = agent.remove()
    assert removed["changed"] is True and any("service" in item for item in removed["removed"])
    assert agent.present() is False
    say("  ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in deployed["seconds"].items()))


def words(target: Any, **variables: Any) -> list[str]:
    """What an inventory of this way in has."""
    values = {"ansible_connection": "sojourn.deploy.winrm", "ansible_winrm_ca_trust_path": str(target.winrm_certificate), **variables}
    return ["-e", json.dumps(values)]


SEALED = {"ansible_port": 5985}
BASIC = {"ansible_winrm_transport": "basic"}


@pytest.mark.parametrize("how", [SEALED, {}, BASIC], ids=SIGN_INS)
def test_secrets_are_shown_nowhere(controller: Controller, lab: Lab, windows_target: Any, how: dict[str, Any]) -> None:
    raw = ("-m", "raw", "-a", "echo hello", "-vvvvv")
    with watched(lab) as watch:
        done = controller.run("ansible", "windows", *words(windows_target, **how), *raw)
        wrong = controller.run("ansible", "windows", *words(windows_target, **how, ansible_password="WrongGeheim1!"), *raw)
    shown = done.stdout + done.stderr + wrong.stdout + wrong.stderr
    assert done.returncode == 0 and wrong.returncode == 4 and "SD-301" in shown, shown
    secrets = (*secrets_of(lab), "WrongGeheim1!")
    assert not [secret for secret in secrets if secret in shown]
    assert not watch.found, watch.found[:5]
    assert {"config.json", "broker.log"} <= watch.seen, watch.seen
    agent = over_winrm(controller, windows_target, lease_seconds=5, **({"port": how["ansible_port"]} if "ansible_port" in how else {}))
    said = left_alone(controller, windows_target, agent)
    assert not [line for line in said for secret in secrets if secret in line]


def test_link_local_with_zone(controller: Controller, windows_target: Any) -> None:
    agent = over_winrm(controller, windows_target, "link-local", port=5985)
    assert agent.deploy()["changed"] is True
    agent.remove()


def test_by_its_name(controller: Controller, windows_target: Any, family: str, tmp_path: Path) -> None:
    """Which is in its certificate; and neither proxies nor authorities of the controller's environment have a say."""
    inventory = tmp_path / "inventory.yml"
    secret = {"ansible_user": "Administrator", "ansible_password": windows_target.password(), "ansible_shell_type": "cmd"}
    certificate = {"ansible_winrm_ca_trust_path": str(windows_target.winrm_certificate), "ansible_connection": "sojourn.deploy.winrm"}
    inventory.write_text(json.dumps({"all": {"hosts": {"w": {"ansible_host": "windows1.lab", **secret, **certificate}}}}))
    inventory.chmod(0o600)
    environment = controller.variables(family, {"HTTPS_PROXY": "http://[::1]:9", "HTTP_PROXY": "http://[::1]:9", "REQUESTS_CA_BUNDLE": "/nowhere"})
    command = controller.lab.inside("controller", ["ansible", "-i", str(inventory), "w", "-m", "raw", "-a", "echo hello"], names=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "hello" in done.stdout, done.stdout + done.stderr


@pytest.mark.leaves(*PACKAGES_LEAVE)
@pytest.mark.parametrize("how", [SEALED, BASIC], ids=["NTLM, sealed", "Basic over HTTPS"])
def test_packages(
    controller: Controller,
    uninstalled: None,  # noqa: F811
    packages: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    family: str,
    windows_target: Any,
    how: dict[str, Any],
) -> None:
    tasks = [
        {"name": "raw", "ansible.builtin.raw": "echo hello"},
        install("exe", src=packages["nsis-1.0.0"], arguments="/S", name="Sojourn Demo", version="1.0.0"),
        install("msi", src=packages["msi-1.0.0"]),
        install("msi again", src=packages["msi-1.0.0"]),
    ]
    played = play(controller, tmp_path, tasks, *words(windows_target, **how), hosts="windows1", family=family).well()
    assert played["windows1", "raw"]["stdout"].strip() == "hello"
    for kind in ("exe", "msi"):
        found = played["windows1", kind]
        assert (found["state"], found["version_after"]) == ("installed", "1.0.0"), found
    assert played["windows1", "msi again"]["state"] == "already_current"


# The end, however it comes


@pytest.mark.parametrize("way", ["run killed", "broker told to end"])
def test_the_broker_cleans_up(controller: Controller, windows_target: Any, family: str, way: str) -> None:
    over_winrm(controller, windows_target, family, port=5985).deploy()
    if way == "run killed":
        controller.owner.kill()
        controller.owner.wait()
    else:
        os.kill(controller.broker_pid, 15)
    controller.end()


def test_the_lease_cleans_up_after_a_killed_broker(controller: Controller, windows_target: Any, family: str) -> None:
    over_winrm(controller, windows_target, family, lease_seconds=8).deploy()
    kill(controller.broker_pid)
    controller.forget()
    wait_for("the agent's folder to go", lambda: not _folders(windows_target), 60)


def test_a_controller_that_is_killed_in_the_upload_leaves_nothing(controller: Controller, windows_target: Any) -> None:
    """Not even a folder: what comes is written when all of it is there."""
    target = over_winrm(controller, windows_target, port=5985).wrapped.target
    with windows_target.slow("200kbps"), stepwise(controller, target, killed=True) as steps:
        wait_for("PowerShell", lambda: _powershell(windows_target), 60)
        steps.kill()
    assert not _folders(windows_target)
    # The shell's end is Windows' own: it ends when nobody has used it for two minutes. Nobody waits for that here.
    windows_target.exec(["systemctl", "restart", "sojourn-lab-winrm.service"])
    wait_for("PowerShell to end", lambda: not _powershell(windows_target), 60)
    assert not _folders(windows_target)


def _powershell(target: Any) -> bool:
    return any("powershell" in process.command and "EncodedCommand" in process.command for process in target.processes())


def _folders(target: Any) -> str:
    return target.exec(["sh", "-c", "ls -d /srv/windows/drive_c/windows/sojourn-*"], check=False).stdout


def _kill_agent(target: Any, run: str) -> None:
    for word in ("guard", "serve"):
        target.exec(["pkill", "-9", "-f", f"sojourn-{run}.agent.exe['\"]? {word}$"])


def test_an_agent_that_was_killed_is_cleaned_up_after(controller: Controller, windows_target: Any, family: str) -> None:
    info = over_winrm(controller, windows_target, family, port=5985).deploy()["info"]
    _kill_agent(windows_target, info["run"])
    controller.end()


def test_cleanup_removes_the_dead_and_spares_the_living(controller: Controller, windows_target: Any, family: str) -> None:
    living_agent = over_winrm(controller, windows_target, family, port=5985)
    living = living_agent.deploy()["info"]
    controller.new_run()
    dead = over_winrm(controller, windows_target, family, port=5985, lease_seconds=3600).deploy()["info"]
    kill(controller.broker_pid)
    controller.forget(controller.folders[-1])
    _kill_agent(windows_target, dead["run"])
    controller.new_run()
    agent = over_winrm(controller, windows_target, family, port=5985)
    done = agent.cleanup()
    states = {(item["run"], item["state"]) for item in done["leftovers"]}
    assert (dead["run"], "removed") in states and living_agent.info()["process_id"] == living["process_id"]
    assert all(state == "live" for run, state in states if run == living["run"]), states
    living_agent.remove()


def test_a_shell_that_ended_while_an_installation_was_waited_for(controller: Controller, windows_target: Any) -> None:
    """The way in connects before the agent ends; what it looks at then, it looks at after that."""
    from ansible_collections.sojourn.deploy.plugins.plugin_utils import session

    target = over_winrm(controller, windows_target, port=5985).wrapped.target
    way_in = session.make_way_in(target, "0123456789ab")

    def look() -> list[str]:
        way_in.connect()
        windows_target.exec(["systemctl", "restart", "sojourn-lab-winrm.service"])
        try:
            return way_in.wait_removed(0)
        finally:
            way_in.release()

    assert inside(controller.namespace, look) == ["service sojourn-0123456789ab", r"folder %SystemRoot%\sojourn-0123456789ab"]


@pytest.mark.leaves("firewall rules: legacy*", "mounts: *")  # the lab's boot does
def test_a_target_that_restarts_meanwhile(controller: Controller, windows_target: Any) -> None:
    """The agent starts again with it, and is found again."""
    agent = over_winrm(controller, windows_target, port=5985)
    before = agent.deploy()["info"]
    windows_target.reboot()
    after = agent.info()
    assert after["run"] == before["run"] and after["boot_id"] != before["boot_id"]
    agent.remove()


# Bad luck


def refused(controller: Controller, target: Any, family: str = "ipv6", **options: Any) -> SojournError:
    """The error of a deployment that must not work."""
    with pytest.raises(SojournError) as caught:
        over_winrm(controller, target, family, **options).deploy()
    text = str(caught.value)
    assert f"({caught.value.code}) Remedy: " in text and "\n" not in text, text
    assert not [secret for secret in secrets_of(controller.lab) if secret in text]
    return caught.value


def test_wrong_password(controller: Controller, windows_target: Any, family: str, sign_in: dict[str, Any]) -> None:
    error = refused(controller, windows_target, family, password="Wrong1!x", **sign_in)
    assert (error.code, error.kind, error.step) == ("SD-301", "unreachable", "signing in")
    assert refused(controller, windows_target, family, user="nobody", password="Wrong1!x", **sign_in).code == "SD-301"


def test_no_password(controller: Controller, windows_target: Any) -> None:
    assert refused(controller, windows_target, password=None).code == "SD-302"


def test_a_certificate_that_nobody_vouches_for(controller: Controller, windows_target: Any, family: str) -> None:
    error = refused(controller, windows_target, family, winrm_ca_file=None)
    assert (error.code, error.kind) == ("SD-321", "unreachable") and "self-signed certificate" in str(error)
    agent = over_winrm(controller, windows_target, family, winrm_ca_file=None, winrm_validate=False)
    assert agent.deploy()["changed"] is True
    agent.remove()


def test_a_certificate_of_another_host(controller: Controller, windows_target: Any) -> None:
    """It is trusted, but has not the address that was asked for."""
    error = refused(controller, windows_target, "link-local")
    assert error.code == "SD-321" and "IP address mismatch" in str(error)


def test_no_administrator(controller: Controller, windows_target: Any, family: str, sign_in: dict[str, Any]) -> None:
    error = refused(controller, windows_target, family, user="operator", **sign_in)
    assert (error.code, error.kind, error.step) == ("SD-323", "failed", "opening a shell") and "LocalAccountTokenFilterPolicy" in str(error)


def test_basic_is_switched_off(controller: Controller, windows_target: Any) -> None:
    def restart() -> None:
        windows_target.exec(["systemctl", "restart", "sojourn-lab-winrm.service"])

    windows_target.exec(["touch", "/etc/sojourn-lab/winrm/no-basic"])
    try:
        restart()
        error = refused(controller, windows_target, winrm_transport="basic")
        assert error.code == "SD-322" and "it offers: ntlm" in str(error)
    finally:
        windows_target.exec(["rm", "/etc/sojourn-lab/winrm/no-basic"])
        restart()


@pytest.mark.parametrize(("port", "scheme"), [(5985, "https"), (5986, "http")])
def test_the_other_scheme(controller: Controller, windows_target: Any, port: int, scheme: str) -> None:
    error = refused(controller, windows_target, port=port, winrm_scheme=scheme)
    assert error.code in ("SD-404", "SD-205"), error


def test_something_else_on_the_port(controller: Controller, windows_target: Any, lab: Lab) -> None:
    """A web server, and one that speaks first."""
    command = ["nsenter", f"--net=/run/netns/{lab.network.namespace('stranger')}", "--", sys.executable, "-m", "http.server", "--bind", "::", "8000"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        stranger = lab.network.addresses(3).ula

        def serves() -> bool:
            try:
                connect(lab.network.namespace("controller"), stranger, 8000, timeout=1).close()
            except OSError:
                return False
            return True

        try:
            wait_for("the web server", serves, 60)
            error = refused(controller, windows_target, address=stranger, port=8000, winrm_scheme="http")
            assert error.code == "SD-404" and "HTTP 501" in str(error)
        finally:
            process.kill()
    error = refused(controller, windows_target, address=lab.target("linux1").addresses.ula, port=22, winrm_scheme="http")
    assert error.code == "SD-404"


def test_a_closed_port(controller: Controller, windows_target: Any, family: str) -> None:
    own = controller.lab.network.addresses(2)
    error = refused(controller, windows_target, address=own.ula if family == "ipv6" else own.ipv4, port=5985)
    assert error.code == "SD-203" and "Windows Remote Management" in str(error)
    assert refused(controller, windows_target, family, port=4444, winrm_scheme="http", connection_timeout=1).code == "SD-204"


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
    target = over_winrm(controller, windows_target, port=5985).wrapped.target
    with stepwise(controller, target) as steps:
        steps.reach("placed")
        windows_target.exec(["sh", "-c", meanwhile], check=True)
        said = steps.error()
    assert said.startswith(f"{expected} "), said
    assert ("its SHA-256 is" in said) if expected == "SD-408" else ("has vanished" in said)


def test_a_service_that_cannot_be_created_or_vanishes(controller: Controller, windows_target: Any) -> None:
    target = over_winrm(controller, windows_target, port=5985).wrapped.target
    with stepwise(controller, target) as steps:
        steps.reach("placed")
        create_another(windows_target)
        said = steps.error()
    assert said.startswith("SD-407 ") and "sc create failed with error 1073" in said, said
    with stepwise(controller, target) as steps:
        steps.reach("started")
        remove_all(windows_target)
        said = steps.error()
    assert said.startswith("SD-406 ") and "the service has vanished; the agent's executable has vanished" in said, said


# What is told beforehand


def test_preflight(controller: Controller, windows_target: Any, family: str, tmp_path: Path) -> None:
    task = {"name": "preflight", "sojourn.deploy.preflight": {}}
    played = play(controller, tmp_path, [task], *words(windows_target), hosts="windows1", family=family).well()
    checks = {check["check"]: check for check in played["windows1", "preflight"]["checks"]}
    assert list(checks) == [
        *("name", "route IPv6" if family == "ipv6" else "route IPv4", "port 5986", "sign-in", "admin rights", "OS", "architecture", "free space"),
        *("pending reboot", "firewall", "clock", "other run"),
    ]
    assert {name for name, check in checks.items() if check["state"] != "ok"} == {"firewall"}  # of which Wine has no service
    assert checks["OS"]["detail"] == "Windows 10 (10.0 build 19043)" and checks["architecture"]["detail"] == "windows-amd64"
    assert "MiB" in checks["free space"]["detail"]


def test_preflight_of_what_would_fail(controller: Controller, windows_target: Any, tmp_path: Path) -> None:
    task = {"name": "preflight", "sojourn.deploy.preflight": {}}
    for variables, check, code in (
        ({"ansible_user": "operator", "ansible_password": windows_target.password("operator")}, "sign-in", "SD-323"),
        ({"ansible_winrm_ca_trust_path": None}, "certificate", "SD-321"),
        ({"ansible_password": "WrongGeheim1!"}, "sign-in", "SD-301"),
    ):
        played = play(controller, tmp_path, [task], *words(windows_target, **variables), hosts="windows1")
        found = [(item["check"], item["code"]) for item in played["windows1", "preflight"]["checks"] if item["state"] == "failed"]
        assert found == [(check, code)], played.output


def test_debug_connection(controller: Controller, windows_target: Any, family: str, tmp_path: Path) -> None:
    task = {"name": "diagnose", "sojourn.deploy.debug_connection": {"sign_in": True}}
    for how, kind in ((SEALED, "NTLM"), ({}, "NTLM"), (BASIC, "BASIC")):
        played = play(controller, tmp_path, [task], *words(windows_target, **how), hosts="windows1", family=family).well()
        findings = {(finding["section"], finding["name"]): finding["value"] for finding in played["windows1", "diagnose"]["findings"]}
        assert findings["sign-in", "signed in by"] == kind and findings["sign-in", "platform"] == "windows-amd64"
        assert findings["WINRM", "terms"].startswith("HTTP, every message sealed" if how == SEALED else "HTTPS, TLSv1.")
        assert findings["WINRM", "sign-ins offered"] == (["ntlm"] if how == SEALED else ["ntlm", "basic"])
        assert findings["options", "connection"] == "sojourn.deploy.winrm"
