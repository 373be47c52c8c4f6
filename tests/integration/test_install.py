"""Packages of every kind on real targets: installed, found again, failed, timed out; and the targets as they were when they are gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Controller
from tests.integration.playing import PACKAGES_LEAVE, install, play
from tests.lab import Lab
from tests.lab.fixtures import fixtures
from tests.lab.waiting import wait_for

UNINSTALL_LINUX = """
if dpkg -s sojourn-demo >/dev/null 2>&1; then dpkg --purge sojourn-demo; fi
if rpm -q sojourn-demo >/dev/null 2>&1; then rpm -e sojourn-demo; fi
rm -rf /opt/sojourn-demo-sh /var/log/sojourn-behave.log
"""
# An uninstaller of NSIS goes on as a copy of itself, unless _?= keeps it from that; then it cannot remove itself.
UNINSTALL_WINDOWS = r"""
programs='/srv/windows/drive_c/Program Files (x86)'
if [ -d "$programs/Sojourn Demo" ]; then
    wine 'C:\Program Files (x86)\Sojourn Demo\uninstall.exe' /S '_?=C:\Program Files (x86)\Sojourn Demo'
    rm -r "$programs/Sojourn Demo"
fi
if [ -d "$programs/Sojourn Demo MSI" ]; then wine msiexec /x '{6D0A4E2C-7C5B-4E0B-9A53-5B7C6E3F1000}' /qn; fi
"""


@pytest.fixture(scope="session")
def packages() -> dict[str, Path]:
    """The lab's packages by their short names."""
    return fixtures()


@pytest.fixture
def uninstalled(lab: Lab, nothing_left: None) -> Iterator[None]:
    """Takes the packages off the targets afterwards, by the targets' own means."""
    yield
    linux, windows = lab.target("linux1"), lab.target("windows1")
    linux.exec(["sh", "-c", UNINSTALL_LINUX])
    windows.exec(["sh", "-c", UNINSTALL_WINDOWS])


@pytest.mark.leaves(*PACKAGES_LEAVE)
def test_every_kind_on_linux(controller: Controller, uninstalled: None, packages: dict[str, Path], tmp_path: Path, family: str) -> None:
    there = {"creates": "/opt/sojourn-demo-sh/version.txt"}
    remove = {"name": "remove", "ansible.builtin.raw": "rm -r /opt/sojourn-demo-sh"}
    tasks = [
        install("deb", src=packages["deb-1.0"]),
        install("deb again", src=packages["deb-1.0"]),
        install("rpm", src=packages["rpm-1.0"]),
        install("rpm again", src=packages["rpm-1.0"]),
        install("sh", src=packages["sh"], arguments="--silent", **there),
        install("sh again", src=packages["sh"], arguments="--silent", **there),
        remove,
        install("scexe", src=packages["scexe"], arguments=["-s"], detect="grep -q 1.0 /opt/sojourn-demo-sh/version.txt"),
        install("scexe again", src=packages["scexe"], arguments=["-s"], detect="grep -q 1.0 /opt/sojourn-demo-sh/version.txt"),
        remove | {"name": "remove again"},
        install("zip", src=packages["zip-linux"], entry="install.sh", **there),
        install("zip again", src=packages["zip-linux"], entry="install.sh", **there),
        {"name": "look", "ansible.builtin.raw": "ls -d /tmp/sojourn-*/install-*"},
    ]
    played = play(controller, tmp_path, tasks[:-1] + [tasks[-1] | {"failed_when": False}], family=family).well()
    for kind, package, version in (
        ("deb", "deb-1.0", "1.0"),
        ("rpm", "rpm-1.0", "1.0-1"),
        ("sh", "sh", None),
        ("scexe", "scexe", None),
        ("zip", "zip-linux", None),
    ):
        first, again = played["linux1", kind], played["linux1", f"{kind} again"]
        assert (first["state"], first["changed"], first["exit_code"], first["meaning"]) == ("installed", True, 0, "installed"), first
        assert first["bytes_sent"] == packages[package].stat().st_size
        assert (first["version_before"], first["version_after"]) == (None, version)
        assert first["seconds"]["total"] >= first["seconds"]["install"] > 0
        assert (again["state"], again["changed"], again["bytes_sent"], again["exit_code"]) == ("already_current", False, 0, None), again
        assert again["version_before"] == version
    assert "Setting up sojourn-demo (1.0)" in played["linux1", "deb"]["stdout"]
    assert played["linux1", "look"]["rc"] != 0, "no package stays on the target: " + played["linux1", "look"]["stdout"]


@pytest.mark.leaves(*PACKAGES_LEAVE)
def test_every_kind_on_windows(controller: Controller, uninstalled: None, packages: dict[str, Path], tmp_path: Path, family: str, windows_target: Any) -> None:
    nsis = {"src": packages["nsis-1.0.0"], "arguments": "/S", "name": "Sojourn Demo", "version": "1.0.0"}
    creates = {"src": packages["zip-windows"], "entry": "setup.exe", "creates": "C:\\windows\\temp\\sojourn-demo.txt"}
    tasks = [
        install("exe", **nsis),
        install("exe again", **nsis),
        install("msi", src=packages["msi-1.0.0"], log_dest=f"{tmp_path}/logs/"),
        install("msi again", src=packages["msi-1.0.0"]),
        install("zip", arguments=["--line", "a b", "--write", "C:\\windows\\temp\\sojourn-demo.txt"], **creates),
        install("zip again", **creates),
    ]
    try:
        played = play(controller, tmp_path, tasks, hosts="windows1", family=family).well()
    finally:
        windows_target.exec(["rm", "-f", "/srv/windows/drive_c/windows/temp/sojourn-demo.txt"])
    for kind, package, version in (("exe", "nsis-1.0.0", "1.0.0"), ("msi", "msi-1.0.0", "1.0.0"), ("zip", "zip-windows", None)):
        first, again = played["windows1", kind], played["windows1", f"{kind} again"]
        assert (first["state"], first["changed"], first["exit_code"]) == ("installed", True, 0), first
        assert first["bytes_sent"] == packages[package].stat().st_size
        assert (first["version_before"], first["version_after"]) == (None, version)
        assert (again["state"], again["changed"], again["bytes_sent"]) == ("already_current", False, 0), again
    assert played["windows1", "msi"]["package"]["name"] == "Sojourn Demo MSI"
    assert played["windows1", "zip"]["stdout"] == "a b\n"
    # Windows Installer's own log, fetched before it goes with the package.
    log = Path(played["windows1", "msi"]["log_file"])
    assert log.parent == tmp_path / "logs" and log.stat().st_size > 0
    assert played["windows1", "msi"]["log"]


@pytest.mark.leaves(*PACKAGES_LEAVE)
def test_versions(controller: Controller, uninstalled: None, packages: dict[str, Path], tmp_path: Path) -> None:
    old, new = packages["deb-1.0"], packages["deb-1.1"]
    played = play(
        controller,
        tmp_path,
        [
            install("old", src=old),
            install("new", src=new),
            install("old over new", src=old),
            install("downgrade", src=old, allow_downgrade=True),
            install("reinstall", src=old, reinstall=True),
            install("rpm", src=packages["rpm-1.0"]),
            install("reinstall rpm", src=packages["rpm-1.0"], reinstall=True),
        ],
    ).well()
    found = {entry["task"]: (entry["result"]["state"], entry["result"]["version_before"], entry["result"]["version_after"]) for entry in played.results}
    assert found == {
        "old": ("installed", None, "1.0"),
        "new": ("installed", "1.0", "1.1"),
        "old over new": ("already_current", "1.1", "1.1"),
        "downgrade": ("installed", "1.1", "1.0"),
        "reinstall": ("installed", "1.0", "1.0"),
        "rpm": ("installed", None, "1.0-1"),
        "reinstall rpm": ("installed", "1.0-1", "1.0-1"),
    }


@pytest.mark.leaves(*PACKAGES_LEAVE)
def test_versions_on_windows(controller: Controller, uninstalled: None, packages: dict[str, Path], tmp_path: Path) -> None:
    def nsis(name: str, version: str, **more: Any) -> dict[str, Any]:
        return install(name, src=packages[f"nsis-{version}"], arguments="/S", name="Sojourn Demo", version=version, **more)

    tasks = [
        nsis("old", "1.0.0"),
        nsis("new", "1.1.0"),
        nsis("old over new", "1.0.0"),
        nsis("by a pattern", "1.1.0") | {"sojourn.deploy.install": {"src": str(packages["nsis-1.1.0"]), "name": "sojourn d*"}},
        nsis("by its key", "1.1.0") | {"sojourn.deploy.install": {"src": str(packages["nsis-1.1.0"]), "product_id": "SojournDemo", "version": "1.1"}},
        install("msi", src=packages["msi-1.0.0"]),
        install("reinstall msi", src=packages["msi-1.0.0"], reinstall=True),
    ]
    played = play(controller, tmp_path, tasks, hosts="windows1").well()
    found = {entry["task"]: (entry["result"]["state"], entry["result"]["version_before"], entry["result"]["version_after"]) for entry in played.results}
    assert found == {
        "old": ("installed", None, "1.0.0"),
        "new": ("installed", "1.0.0", "1.1.0"),
        "old over new": ("already_current", "1.1.0", "1.1.0"),
        "by a pattern": ("already_current", "1.1.0", "1.1.0"),
        "by its key": ("already_current", "1.1.0", "1.1.0"),
        "msi": ("installed", None, "1.0.0"),
        "reinstall msi": ("installed", "1.0.0", "1.0.0"),
    }


@pytest.mark.leaves(*PACKAGES_LEAVE)
def test_check_mode_changes_nothing(controller: Controller, packages: dict[str, Path], tmp_path: Path) -> None:
    tasks = [
        install("deb", src=packages["deb-1.0"]) | {"when": "inventory_hostname == 'linux1'"},
        install("msi", src=packages["msi-1.0.0"]) | {"when": "inventory_hostname == 'windows1'"},
        install("sh", src=packages["sh"], creates="/bin/sh") | {"when": "inventory_hostname == 'linux1'"},
    ]
    played = play(controller, tmp_path, tasks, "--check", "--diff", hosts="all").well()
    for host, task in (("linux1", "deb"), ("windows1", "msi")):
        result = played[host, task]
        assert (result["state"], result["changed"], result["bytes_sent"], result["version_before"]) == ("installed", True, 0, None)
        assert "would be installed" in result["msg"]
    assert played["linux1", "sh"]["state"] == "already_current"
    assert "+sojourn-demo 1.0" in played.output


@pytest.mark.leaves(*PACKAGES_LEAVE)
def test_return_codes_linux(controller: Controller, uninstalled: None, packages: dict[str, Path], tmp_path: Path) -> None:
    def scexe(code: int, **more: Any) -> dict[str, Any]:
        return install(f"scexe {code}", src=packages["scexe"], arguments=f"--exit={code}", **more)

    tasks = [
        scexe(1),
        scexe(2),
        scexe(3),
        install("sh", src=packages["behave"], arguments="--line out --error 'the reason' --exit 9"),
        install("own map", src=packages["behave"], arguments="--exit 9", return_codes={9: {"state": "reboot_required", "meaning": "nine"}}),
        install("dell", src=packages["behave"], arguments="--exit 5", return_codes="dell"),
        install("environment", src=packages["sh"], environment={"SOJOURN_DEMO_EXIT": 1}, return_codes="hp_linux"),
        install("success without a package", src=packages["behave"], name="sojourn-nothing", version="1"),
        install("not made", src=packages["behave"], creates="/opt/sojourn-nothing"),
    ]
    played = play(controller, tmp_path, tasks).well()
    states = {entry["task"]: entry["result"]["state"] for entry in played.results}
    assert states == {
        "scexe 1": "reboot_required",
        "scexe 2": "not_applicable",
        "scexe 3": "failed",
        "sh": "failed",
        "own map": "reboot_required",
        "dell": "not_applicable",
        "environment": "reboot_required",
        "success without a package": "failed",
        "not made": "failed",
    }
    failed = played["linux1", "sh"]
    assert (failed["exit_code"], failed["stdout"], failed["stderr"], failed["error"]["code"]) == (9, "out\n", "the reason\n", "SD-703")
    assert "[linux1] installing: The installer of 'sojourn-behave.sh' ended with 9: the reason. (SD-703) Remedy:" in failed["msg"]
    assert played["linux1", "own map"]["meaning"] == "nine"
    assert played["linux1", "success without a package"]["error"]["code"] == "SD-710"
    assert played["linux1", "not made"]["error"]["code"] == "SD-710"


@pytest.mark.leaves(*PACKAGES_LEAVE)
def test_return_codes_windows(controller: Controller, uninstalled: None, packages: dict[str, Path], tmp_path: Path) -> None:
    def demo(code: int, **more: Any) -> dict[str, Any]:
        return install(f"exe {code}", src=packages["exe"], arguments=["--line", "grün", "--exit", str(code)], **more)

    tasks = [
        demo(0, return_codes="hp_windows"),
        demo(1, return_codes="hp_windows"),
        demo(3010),
        demo(1603),
        demo(0xC0000005),
        demo(1618, busy_timeout=3),
        install("nsis", src=packages["nsis-1.0.0"], arguments="/S /EXIT=3010", name="Sojourn Demo", version="1.0.0"),
    ]
    played = play(controller, tmp_path, tasks, hosts="windows1").well()
    results = {entry["task"]: entry["result"] for entry in played.results}
    assert {task: result["state"] for task, result in results.items()} == {
        "exe 0": "failed",
        "exe 1": "installed",
        "exe 3010": "reboot_required",
        "exe 1603": "failed",
        f"exe {0xC0000005}": "failed",
        "exe 1618": "failed",
        "nsis": "reboot_required",
    }
    assert results["exe 1"]["stdout"] == "grün\n"
    assert "0xC0000005" in results[f"exe {0xC0000005}"]["msg"]
    # Tried at once, after 2 s, and at the end of the 3 s; each try's output is kept from the last only.
    assert results["exe 1618"]["seconds"]["total"] >= 3
    assert "another installation is running" in results["exe 1618"]["msg"]
    assert results["nsis"]["version_after"] == "1.0.0"


def test_an_installer_that_waits(controller: Controller, packages: dict[str, Path], tmp_path: Path, target: Any) -> None:
    """Its standard input is empty; if it waits for something else, the time-out ends it with all its processes."""
    package = packages["behave" if target.kind == "linux" else "exe"]
    tasks = [
        install("asks", src=package, arguments=["--input"], timeout=20),
        install("waits", src=package, arguments=["--line", "begun", "--tree", "3", "613"], timeout=10),
    ]
    played = play(controller, tmp_path, tasks, hosts=target.name).well()
    assert (played[target.name, "asks"]["state"], played[target.name, "asks"]["stdout"]) == ("installed", "got \n")
    waits = played[target.name, "waits"]
    assert (waits["state"], waits["error"]["code"], waits["stdout"]) == ("failed", "SD-704", "begun\n")
    assert "did not end within 10 s; its whole process tree was killed" in waits["msg"]
    assert 10 <= waits["seconds"]["install"] < 60
    wait_for("its children to be gone", lambda: not [line for line in _commands(target) if line.endswith(" 613")], 60)


def _commands(target: Any) -> list[str]:
    return [line.rstrip() for line in target.exec(["ps", "-eo", "args"]).stdout.splitlines()]


def test_output_is_shown_while_it_runs(controller: Controller, packages: dict[str, Path], tmp_path: Path, target: Any) -> None:
    (tmp_path / "play.yml").write_text(
        f"""
- hosts: {target.name}
  gather_facts: false
  tasks:
    - name: slow
      sojourn.deploy.install:
        src: {packages["behave" if target.kind == "linux" else "exe"]}
        arguments: --lines 3 3
"""
    )
    controller.run("true")  # writes the inventory
    command = controller.lab.inside(
        "controller",
        [str(Path(sys.executable).parent / "ansible-playbook"), "-v", "-i", f"{controller.lab.folder}/inventory-ipv6.yml", str(tmp_path / "play.yml")],
    )
    seen: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "ANSIBLE_NOCOLOR": "1"}) as process:
        for line in process.stdout:
            seen[line.strip()] = time.monotonic()
    lines = [f"<{target.name}> line {number}" for number in (1, 2, 3)]
    assert all(line in seen for line in lines), seen
    (end,) = [moment for line, moment in seen.items() if line.startswith(f"changed: [{target.name}]")]
    assert seen[lines[1]] - seen[lines[0]] > 0.5
    assert end - seen[lines[0]] > 4, "the first line was shown long before the installer's end"


@pytest.mark.leaves("files: /var/log/sojourn-behave.log")
def test_logs(controller: Controller, uninstalled: None, packages: dict[str, Path], tmp_path: Path) -> None:
    one = tmp_path / "one.log"
    tasks = [
        install("own log", src=packages["behave"], arguments="--write setup.log --exit 3", log="setup.log", log_dest=str(one)),
        install("absolute", src=packages["behave"], arguments="--write /var/log/sojourn-behave.log", log="/var/log/sojourn-behave.log"),
        install("output", src=packages["behave"], arguments="--line out --error bad", log_dest=f"{tmp_path}/logs/"),
    ]
    played = play(controller, tmp_path, tasks).well()
    assert played["linux1", "own log"]["state"] == "failed", "the log of a failed installer counts most"
    assert played["linux1", "own log"]["log"] == "written\n" == one.read_text()
    assert played["linux1", "absolute"]["log"] == "written\n"
    assert (tmp_path / "logs/linux1-sojourn-behave.sh.log").read_text() == "out\nbad\n" == played["linux1", "output"]["log"]


def test_hidden_with_no_log(controller: Controller, packages: dict[str, Path], tmp_path: Path) -> None:
    task = install("secret", src=packages["behave"], arguments="--line hunter2 --exit 1") | {"no_log": True}
    assert "hunter2" not in play(controller, tmp_path, [task], "-vvv").output


def test_a_name_with_blanks_and_letters(controller: Controller, packages: dict[str, Path], tmp_path: Path, target: Any) -> None:
    source = packages["behave" if target.kind == "linux" else "exe"]
    package = tmp_path / f"größe & $(x) {source.name}"
    package.write_bytes(source.read_bytes())
    played = play(controller, tmp_path, [install("odd", src=package, arguments=["--line", "a  b", "--line", "c"])], hosts=target.name).well()
    assert (played[target.name, "odd"]["state"], played[target.name, "odd"]["stdout"]) == ("installed", "a  b\nc\n")


def test_a_timeout_of_the_task_ends_the_installer(controller: Controller, packages: dict[str, Path], tmp_path: Path, linux_target: Any) -> None:
    task = install("slow", src=packages["behave"], arguments="--tree 2 617") | {"timeout": 3}
    played = play(controller, tmp_path, [task])
    assert played.recap("linux1")["ignored"] == 1
    wait_for("the installer's processes to end", lambda: "617" not in linux_target.exec(["ps", "-eo", "args"]).stdout, timeout=60)
