"""Bad packages and options, through ansible-playbook: each one clear line that names host, step and remedy; nothing left on the target."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Controller
from tests.integration.playing import Played, install, play
from tests.lab.fixtures import fixtures

LINE = re.compile(r"\[(?P<host>\w+)\] (?P<step>[A-Za-z ]+): .+\. \((?P<code>SD-\d{3})\) Remedy: .+\.")


def check_line(played: Played, host: str, task: str, code: str, *words: str) -> None:
    """The task failed with this error, told in one line."""
    result = played[host, task]
    assert played.status(host, task) == "failed" and result["error"]["code"] == code, result
    found = LINE.fullmatch(result["msg"])
    assert found and found["host"] == host and found["code"] == code, result["msg"]
    for word in words:
        assert word in result["msg"]
    assert result["msg"] in played.output.replace("\\'", "'").replace('\\"', '"'), "it is shown"


def test_what_the_controller_can_tell_touches_no_target(controller: Controller, tmp_path: Path, target: Any) -> None:
    package = fixtures()["behave" if target.kind == "linux" else "exe"]
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.4")
    (tmp_path / "page.deb").write_text("<!DOCTYPE html>")
    (tmp_path / "cut.msi").write_bytes(fixtures()["msi-1.0.0"].read_bytes()[:700])
    (tmp_path / "empty.exe").touch()
    (tmp_path / "folder.rpm").mkdir()
    tasks = [
        install("missing", src="no-such-package.deb"),
        install("checksum", src=package, checksum="sha256:" + "0" * 64),
        install("unknown kind", src=tmp_path / "report.pdf"),
        install("web page", src=tmp_path / "page.deb"),
        install("cut off", src=tmp_path / "cut.msi"),
        install("empty", src=tmp_path / "empty.exe"),
        install("folder", src=tmp_path / "folder.rpm"),
        install("no such kind", src=package, kind="pkg"),
        install("zip without entry", src=fixtures()["zip-linux"]),
        install("zip with a wrong entry", src=fixtures()["zip-linux"], entry="setup.sh"),
        install("bad codes", src=package, return_codes={"7": "fine"}),
        install("bad timeout", src=package, timeout=-5),
        install("misspelt", src=package, argumens="x"),
        {"name": "agent", "sojourn.deploy.agent": {"state": "present"}, "check_mode": True},
    ]
    played = play(controller, tmp_path, tasks, hosts=target.name).well()
    for task, code, *words in (
        ("missing", "SD-103", "no-such-package.deb"),
        ("checksum", "SD-106", "0" * 64),
        ("unknown kind", "SD-104", "report.pdf", "msi, exe, msu, rpm, deb, sh, scexe, zip"),
        ("web page", "SD-107", "page.deb"),
        ("cut off", "SD-107", "cut.msi"),
        ("empty", "SD-107", "it is empty"),
        ("folder", "SD-107", "directory"),
        ("no such kind", "SD-102", "'kind'"),
        ("zip without entry", "SD-102", "'entry'"),
        ("zip with a wrong entry", "SD-102", "install.sh"),
        ("bad codes", "SD-102", "'return_codes'"),
        ("bad timeout", "SD-102", "'timeout'"),
        ("misspelt", "SD-102", "'argumens'"),
    ):
        check_line(played, target.name, task, code, *words)
    assert played[target.name, "agent"]["changed"] is True, "no agent was put on the target for any of these"


def test_wrong_family(controller: Controller, tmp_path: Path, target: Any) -> None:
    other = fixtures()["exe" if target.kind == "linux" else "deb-1.0"]
    played = play(controller, tmp_path, [install("fails", src=other), install("skipped", src=other, skip_wrong_family=True)], hosts=target.name).well()
    check_line(played, target.name, "fails", "SD-105", f"does not run on {target.kind}")
    assert played[target.name, "fails"]["bytes_sent"] == 0
    assert played[target.name, "skipped"]["state"] == "not_applicable"


def test_no_room_for_the_package(controller: Controller, tmp_path: Path, target: Any) -> None:
    package = tmp_path / ("huge.run" if target.kind == "linux" else "huge.exe")
    with package.open("wb") as file:
        file.write(b"#!/bin/sh\n" if target.kind == "linux" else b"MZ")
        os.truncate(file.fileno(), 1 << 40)
    played = play(controller, tmp_path, [install("huge", src=package)], hosts=target.name).well()
    check_line(played, target.name, "huge", "SD-402")
    assert played[target.name, "huge"]["bytes_sent"] == 0


def test_program_that_the_target_cannot_start(controller: Controller, tmp_path: Path) -> None:
    # Wine starts any file by some means; Windows itself would say that it is no program.
    package = tmp_path / "odd.run"
    package.write_bytes(b"#!/no/such/interpreter\n")
    played = play(controller, tmp_path, [install("odd", src=package)]).well()
    check_line(played, "linux1", "odd", "SD-701", "no such file or directory")


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        ("firewall", {"port": 70000}, "'port'"),
        ("firewall", {"port": 80, "source": "here"}, "'source'"),
        ("firewall", {"port": 80, "source": "10.0.0.1", "family": "ipv6"}, "'family'"),
        ("cleanup", {"run": "../../etc"}, "'run'"),
        ("agent", {"state": "gone"}, "'state'"),
    ],
)
def test_bad_options_of_the_other_modules(controller: Controller, tmp_path: Path, module: str, options: dict[str, Any], words: str) -> None:
    task = {"name": "bad", f"sojourn.deploy.{module}": options, "ignore_errors": True}
    check_line(play(controller, tmp_path, [task]).well(), "linux1", "bad", "SD-102", words)


def test_other_connections(controller: Controller, tmp_path: Path) -> None:
    task = install("local", src=fixtures()["behave"])
    played = play(controller, tmp_path, [task], hosts="localhost", connection="local").well()
    check_line(played, "localhost", "local", "SD-904", "sojourn.deploy.install works over the connections", "local'")
