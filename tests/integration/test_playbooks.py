"""The playbooks as a user runs them: packages onto a Windows and a Linux target, the table at the end, and nothing left."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import Controller
from tests.integration.playing import PACKAGES_LEAVE, Played, run
from tests.integration.test_install import packages, uninstalled  # noqa: F401 - fixtures
from tests.integration.test_roles import only_folder


def deploy(controller: Controller, folder: Path, listed: Any, *words: str, family: str = "ipv6", **variables: Any) -> Played:
    """Runs sojourn.deploy.deploy with this list of packages."""
    path = folder / "packages.yml"
    path.write_text(yaml.safe_dump({"packages": listed, **variables}))
    return run(controller, folder, "sojourn.deploy.deploy", "-e", f"@{path}", *words, family=family)


def table(played: Played) -> list[list[str]]:
    """The lines of the table, in columns."""
    lines = played.output[played.output.index("DEPLOY RECAP") :].splitlines()[1:]
    lines = lines[: next(number for number, line in enumerate(lines) if line.startswith(("ok: ", "changed: ")))]
    return [re.split(r" {2,}", line.strip()) for line in lines]


def listed(made: dict[str, Path]) -> list[dict[str, Any]]:
    """One list for both families."""
    return [
        {"src": str(made["nsis-1.0.0"]), "arguments": "/S", "name": "Sojourn Demo", "version": "1.0.0"},
        {"src": str(made["deb-1.0"])},
        {"src": str(made["msi-1.0.0"])},
        {"src": str(made["rpm-1.0"])},
        {"src": str(made["behave"]), "arguments": "--exit 1", "when": "{{ inventory_hostname == 'nobody' }}"},
    ]


@pytest.mark.leaves(*PACKAGES_LEAVE)
def test_deploy_and_again(controller: Controller, uninstalled: None, packages: dict[str, Path], tmp_path: Path, family: str) -> None:  # noqa: F811
    first = deploy(controller, tmp_path, listed(packages), family=family, deploy_log_dest=f"{tmp_path}/logs/").well()
    versions = {"nsis-1.0.0": "1.0.0", "msi-1.0.0": "1.0.0", "deb-1.0": "1.0", "rpm-1.0": "1.0-1"}
    rows = table(first)
    assert rows[0] == ["host", "package", "state", "version", "seconds"]
    found = {(place, *row[-4:-1]) for place, row in zip(hosts(rows[1:]), rows[1:], strict=True)}
    own = {"linux1": ("deb-1.0", "rpm-1.0"), "windows1": ("nsis-1.0.0", "msi-1.0.0")}
    for host, names in own.items():
        for name, version in versions.items():
            state = ("installed", f"- → {version}") if name in names else ("not applicable", "-")
            assert (host, packages[name].name, *state) in found, "\n".join(map(str, sorted(found)))
        assert first.recap(host)["changed"] == 1 and first.recap(host)["failed"] == 0
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {f"{host}-{packages[name].name}.log" for host, names in own.items() for name in names}

    again = deploy(controller, tmp_path, listed(packages), family=family).well()
    for host in own:
        assert again.recap(host)["changed"] == 0
        (result,) = [result for result in again.of(host) if "results" in result and "failed_hosts" not in result]
        states = [row["state"] for row in result["results"]]
        assert sorted(states) == ["already_current", "already_current", "not_applicable", "not_applicable"]
        assert sum(row["bytes_sent"] for row in result["results"]) == 0


def hosts(rows: list[list[str]]) -> list[str]:
    """The host of each row; a host is named in its first row only."""
    found: list[str] = []
    for row in rows:
        found.append(row[0] if len(row) == 5 else found[-1])
    return found


@pytest.mark.leaves(*PACKAGES_LEAVE)
def test_one_fails(controller: Controller, uninstalled: None, packages: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    """On one host a package fails: its rest is dropped, the other host is done, and the run has failed."""
    some = [
        {"src": str(packages["deb-1.0"])},
        {"src": str(packages["behave"]), "arguments": ["--error", "no room", "--exit", "4"]},
        {"src": str(packages["rpm-1.0"])},
        {"src": str(packages["msi-1.0.0"])},
    ]
    played = deploy(controller, tmp_path, some)
    assert played.code == 2
    states = [(row[-4], row[-3]) for row in table(played)[1:] if len(row) > 1]
    assert (packages["behave"].name, "failed") in states
    assert (packages["rpm-1.0"].name, "dropped") in states
    assert (packages["msi-1.0.0"].name, "installed") in states
    assert "The installer of 'sojourn-behave.sh' ended with 4: no room. (SD-703)" in played.output
    assert (played.recap("linux1")["failed"], played.recap("windows1")["failed"]) == (1, 0)

    going_on = deploy(controller, tmp_path, some, deploy_stop_on_failure=False)
    assert going_on.code == 2
    assert (packages["rpm-1.0"].name, "installed") in [(row[-4], row[-3]) for row in table(going_on)[1:] if len(row) > 1]


@pytest.mark.leaves(*PACKAGES_LEAVE)
def test_one_is_unreachable(controller: Controller, uninstalled: None, packages: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    inventory = tmp_path / "more.yml"
    inventory.write_text(
        yaml.safe_dump(
            {
                "all": {
                    "hosts": {
                        "away": {
                            "ansible_host": "fd73:6a6f:7572:ffff::99",
                            "ansible_connection": "sojourn.deploy.ssh",
                            "ansible_user": "root",
                            "ansible_password": "x",
                        }
                    }
                }
            }
        )
    )
    controller.run("true")
    words = ["-i", f"{controller.lab.folder}/inventory-ipv6.yml", "-i", str(inventory), "--limit", "linux1,away"]
    played = deploy(controller, tmp_path, [{"src": str(packages["deb-1.0"])}], *words)
    assert played.code == 2
    rows = {tuple(row[:3]) for row in table(played)}
    assert ("away", packages["deb-1.0"].name, "unreachable") in rows
    assert ("linux1", packages["deb-1.0"].name, "installed") in rows


def test_check_mode(controller: Controller, packages: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    played = deploy(controller, tmp_path, listed(packages), "--check").well()
    assert "DEPLOY RECAP (check mode: nothing was changed)" in played.output
    assert ["linux1", packages["nsis-1.0.0"].name, "not applicable"] in [row[:3] for row in table(played)]
    assert ["windows1", packages["nsis-1.0.0"].name, "installed", "- → 1.0.0"] in [row[:4] for row in table(played)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("x", "'packages'"),
        ([{"arguments": "x"}], "package 1 has no 'src'"),
        ([{"src": "x", "argumens": "y"}], "has 'argumens', which is not an option of sojourn.deploy.install"),
    ],
)
def test_bad_list(controller: Controller, tmp_path: Path, wrong: Any, words: str) -> None:
    played = deploy(controller, tmp_path, wrong)
    assert played.code == 2
    assert words in played.output and "(SD-102)" in played.output


def test_packages_of_a_group(controller: Controller, packages: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    """The list as a group's variable, with paths beside the inventory; each host in the order of its own list."""
    controller.run("true")
    folder = tmp_path / "inventory"
    (folder / "group_vars").mkdir(parents=True)
    (folder / "packages").mkdir()
    (folder / "hosts.yml").write_text((controller.lab.folder / "inventory-ipv6.yml").read_text())
    for kind, name in (("linux", "behave"), ("windows", "exe")):
        package = folder / "packages" / packages[name].name
        package.write_bytes(packages[name].read_bytes())
        entries = [{"src": f"packages/{package.name}", "arguments": ["--line", f"{kind} {number}"]} for number in (1, 2)]
        (folder / f"group_vars/{kind}.yml").write_text(yaml.safe_dump({"packages": entries}))
    played = run(controller, tmp_path, "-i", str(folder / "hosts.yml"), "sojourn.deploy.deploy", "-v").well()
    for host, kind in (("linux1", "linux"), ("windows1", "windows")):
        lines = re.findall(rf"<{host}> {kind} (\d)", played.output)
        assert lines == ["1", "2"]


def test_cleanup(controller: Controller, tmp_path: Path, linux_target: Any, windows_target: Any) -> None:
    for target in (linux_target, windows_target):
        only_folder(controller, target)
    check = run(controller, tmp_path, "sojourn.deploy.cleanup", "--check").well()
    assert check.recap("linux1")["changed"] == check.recap("windows1")["changed"] == 1
    first = run(controller, tmp_path, "sojourn.deploy.cleanup").well()
    assert "removed folder /tmp/sojourn-0badc0ffee00" in first.output
    assert first.recap("linux1")["changed"] == first.recap("windows1")["changed"] == 1
    again = run(controller, tmp_path, "sojourn.deploy.cleanup").well()
    assert again.recap("linux1")["changed"] == again.recap("windows1")["changed"] == 0
    assert again.output.count("nothing is left here") == 2
