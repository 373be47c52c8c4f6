"""The main job, and a few plain tasks, by the oldest and the newest ansible-core that the collection supports."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from tests.integration.conftest import Controller
from tests.integration.controllers import NEWEST, OLDEST, Other
from tests.integration.playing import PACKAGES_LEAVE, Played, play, run
from tests.integration.test_install import UNINSTALL_LINUX, UNINSTALL_WINDOWS
from tests.integration.test_preflight import CHECKS, PREFLIGHT
from tests.lab import Lab
from tests.lab.fixtures import fixtures
from tests.lab.waiting import wait_for

# Whichever comes first builds what the others use as well.
pytestmark = pytest.mark.xdist_group("controllers")


@pytest.fixture(params=[OLDEST, NEWEST], ids=str)
def other(request: pytest.FixtureRequest) -> Other:
    """One after the other, built into the cache when missing."""
    request.param.ensure()
    return request.param


@pytest.fixture
def uninstalled(lab: Lab, nothing_left: None) -> Iterator[None]:
    """Takes the packages off the targets afterwards, by the targets' own means."""
    yield
    lab.exec("linux1", ["sh", "-c", UNINSTALL_LINUX])
    lab.exec("windows1", ["sh", "-c", UNINSTALL_WINDOWS])


@pytest.fixture
def variables(other: Other, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables for Ansible's commands, in which it says all that it may say; in the end none of their processes runs any more."""
    mark = str(tmp_path / "home")
    yield {
        **other.environment(),
        "ANSIBLE_HOME": mark,
        "ANSIBLE_DEPRECATION_WARNINGS": "1",
        "PYTHONWARNINGS": "default::DeprecationWarning",
        "SOJOURN_TEST_MARK": mark,
    }
    wait_for("the controller's processes to end", lambda: not marked(mark), timeout=60)


def marked(mark: str) -> list[str]:
    """The processes with this mark among their variables; of everything that begins with SOJOURN_ the broker gets its share too."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"SOJOURN_TEST_MARK={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def quiet(played: Played) -> Played:
    """Itself, if it succeeded and neither Ansible nor Python complained about this collection. (play() looks for tracebacks and passwords.)"""
    complaints = [line for line in played.well().output.splitlines() if re.search(r"\[(WARNING|DEPRECATION WARNING|ERROR)\]|sojourn/deploy.*Warning:", line)]
    assert not complaints, played.output
    return played


@pytest.mark.leaves(*PACKAGES_LEAVE)
def test_main_job(controller: Controller, uninstalled: None, other: Other, variables: dict[str, str], tmp_path: Path) -> None:
    packages = fixtures()
    wanted = [
        {"src": str(packages["nsis-1.0.0"]), "arguments": "/S", "name": "Sojourn Demo", "version": "1.0.0"},
        {"src": str(packages["deb-1.0"])},
    ]
    (tmp_path / "packages.json").write_text(json.dumps({"packages": wanted}))
    for state, changed in (("installed", True), ("already_current", False)):
        played = quiet(run(controller, tmp_path, "sojourn.deploy.deploy", "-e", f"@{tmp_path}/packages.json", environment=variables))
        for host, version in (("linux1", "1.0"), ("windows1", "1.0.0")):
            result = played[host, "Install the packages"]
            (row,) = [row for row in result["results"] if row["state"] != "not_applicable"]
            assert (row["state"], row["changed"], row["version_after"], result["changed"]) == (state, changed, version, changed), row
            assert played.recap(host)["failed"] == played.recap(host)["unreachable"] == 0


# Ansible's own folder for its modules; it makes it over any connection, and keeps it.
@pytest.mark.leaves("files: /root/.ansible", "files: /root/.ansible/tmp")
def test_plain_tasks(controller: Controller, lab: Lab, other: Other, variables: dict[str, str], tmp_path: Path) -> None:
    version = subprocess.run(["ansible-playbook", "--version"], env={**os.environ, **variables}, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert f"[core {other.core.removesuffix('*')}" in version.stdout
    assert f"python version = {other.python}." in version.stdout

    content = "größer\n" * 1000
    (tmp_path / "sent").write_text(content)
    file = "/root/sojourn-core-versions"
    login = {name: lab.target("linux1").password("deployer") for name in ("ansible_password", "ansible_become_password")} | {"ansible_user": "deployer"}
    on_linux = [
        {"name": "raw", "ansible.builtin.raw": "echo hello; exit 3", "failed_when": "raw.rc != 3", "register": "raw"},
        {"name": "copy", "ansible.builtin.copy": {"src": f"{tmp_path}/sent", "dest": file, "mode": "0600"}},
        {"name": "copy again", "ansible.builtin.copy": {"src": f"{tmp_path}/sent", "dest": file, "mode": "0600"}},
        {"name": "fetch", "ansible.builtin.fetch": {"src": file, "dest": f"{tmp_path}/fetched", "flat": True}},
        {"name": "remove", "ansible.builtin.file": {"path": file, "state": "absent"}},
        # What sudo says is taken off the output, and the command's input goes in after the password.
        {"name": "become", "ansible.builtin.command": {"cmd": "cat", "stdin": "größer"}, "become": True, "vars": login},
        {"name": "become, raw", "ansible.builtin.raw": "id -un; echo wrong >&2", "become": True, "vars": login},
    ]
    on_windows = [{"name": "raw on Windows", "ansible.builtin.raw": "echo hello & exit 3", "failed_when": "raw.rc != 3", "register": "raw"}]
    tasks = [task | {"when": f"inventory_hostname in groups.{group}"} for group, some in (("linux", on_linux), ("windows", on_windows)) for task in some]
    tasks.append({"name": "diagnose", "sojourn.deploy.debug_connection": {"sign_in": True}})
    played = quiet(play(controller, tmp_path, tasks, "-vvv", hosts="all", environment=variables))
    for host in ("linux1", "windows1"):
        origins = {finding["name"]: finding.get("origin") for finding in played[host, "diagnose"]["findings"] if finding["section"] == "options"}
        assert (origins["password"], origins["lease_seconds"]) == ("var: ansible_password", "default")
        assert re.search(rf"<{host}> SIGN IN \d+\.\d ms: ", played.output)
    assert played["linux1", "raw"]["stdout"] == "hello\n"
    assert [played["linux1", name]["changed"] for name in ("copy", "copy again", "fetch", "remove")] == [True, False, True, True]
    assert (tmp_path / "fetched").read_text() == content
    assert played["linux1", "become"]["stdout"] == "größer"
    assert (played["linux1", "become, raw"]["stdout"], played["linux1", "become, raw"]["stderr"].strip()) == ("root\n", "wrong")
    assert played["windows1", "raw on Windows"]["stdout"].split() == ["hello"]


def test_preflight(controller: Controller, other: Other, variables: dict[str, str], tmp_path: Path) -> None:
    played = quiet(play(controller, tmp_path, [PREFLIGHT], hosts="all", environment=variables))
    for host in ("linux1", "windows1"):
        result = played[host, "preflight"]
        checks = {check["check"]: check["state"] for check in result["checks"]}
        assert list(checks)[-len(CHECKS[host[:-1]]):] == CHECKS[host[:-1]] and "failed" not in checks.values(), result["table"]


@pytest.mark.parametrize("which", [pytest.param("alone", marks=pytest.mark.alone), "not alone"])
def test_unit_tests(tmp_path: Path, which: str) -> None:
    """With the oldest only: the newest one's root has not all the tools that these tests compare with. Those that measure run alone here too."""
    command = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/unit", "-m", which, "tests/unit"]
    variables = {**os.environ, **OLDEST.environment(), "ANSIBLE_HOME": f"{tmp_path}/home"}
    done = subprocess.run(command, env=variables, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
