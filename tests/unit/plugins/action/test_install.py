"""Every way that an installation can end, against a target in memory."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.sojourn.deploy.plugins.action import install
from ansible_collections.sojourn.deploy.plugins.modules import install as documentation
from ansible_collections.sojourn.deploy.plugins.plugin_utils import broker_client
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A package that tells nothing of itself."""
    path = tmp_path / "files/setup.sh"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\nexit 0\n")
    return path


@pytest.fixture
def exe(tmp_path: Path) -> Path:
    path = tmp_path / "setup.exe"
    path.write_bytes(b"MZ" + b"x" * 100)
    return path


@pytest.fixture
def deb(tmp_path: Path) -> Path:
    """hello 2.10-3, as dpkg-deb would make it."""

    def tar(name: str, data: bytes) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        return buffer.getvalue()

    path = tmp_path / "hello_2.10-3_amd64.deb"
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        control = b"Package: hello\nVersion: 2.10-3\nArchitecture: amd64\nMaintainer: x\nDescription: x\n"
        for name, data in (("debian-binary", b"2.0\n"), ("control.tar.gz", tar("./control", control)), ("data.tar.gz", tar("./x", b"x"))):
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2))
    return path


def installs(name: str, version: str, **result: Any) -> Callable[..., dict[str, Any]]:
    """An installer that puts a package into the database."""

    def installer(agent: Any, call: dict[str, Any]) -> dict[str, Any]:
        agent.packages = [entry for entry in agent.packages if entry["name"] != name]
        agent.add_package(name, version)
        return result

    return installer


def check_shape(result: dict[str, Any]) -> None:
    """What every result has, however it ended; and that it can be handed on."""
    assert result["state"] in ("installed", "already_current", "reboot_required", "failed", "not_applicable")
    for key in ("changed", "exit_code", "meaning", "version_before", "version_after", "bytes_sent", "log", "stdout", "stderr", "msg"):
        assert key in result, key
    assert set(result["seconds"]) == {"transfer", "install", "total"}
    assert {"name", "version", "kind", "checksum"} <= set(result["package"])
    assert "\n" not in result["msg"]
    assert bool(result.get("failed") or result.get("unreachable")) == (result["state"] == "failed")
    json.dumps(result)


class TestStates:
    def test_installed(self, run, make_agent, deb) -> None:
        agent = make_agent("linux", installs("hello", "2.10-3", stdout=b"Setting up hello\n"))
        agent.add_package("hello", "2.9-1")
        result = run("install", agent, src=str(deb), diff=True)
        check_shape(result)
        assert (result["state"], result["changed"], result["exit_code"]) == ("installed", True, 0)
        assert (result["version_before"], result["version_after"]) == ("2.9-1", "2.10-3")
        assert result["bytes_sent"] == deb.stat().st_size
        assert result["seconds"]["transfer"] == 0.25 and result["seconds"]["install"] == 1.5
        assert result["stdout"] == "Setting up hello\n"
        assert result["package"] == {"name": "hello", "version": "2.10-3", "kind": "deb", "checksum": hashlib.sha256(deb.read_bytes()).hexdigest()}
        assert (result["diff"]["before"], result["diff"]["after"]) == ("hello 2.9-1\n", "hello 2.10-3\n")
        assert agent.files == {}, "the package is taken off the target"

    def test_already_current_sends_nothing(self, run, make_agent, deb) -> None:
        agent = make_agent("linux")
        agent.add_package("hello", "2.10-3")
        result = run("install", agent, src=str(deb))
        check_shape(result)
        assert (result["state"], result["changed"], result["bytes_sent"]) == ("already_current", False, 0)
        assert result["msg"] == "hello 2.10-3: 2.10-3 is installed."
        assert agent.calls == ["deploy", "query_packages"]

    def test_newer_is_left_alone(self, run, make_agent, deb) -> None:
        agent = make_agent("linux")
        agent.add_package("hello", "1:1.0-1")
        result = run("install", agent, src=str(deb))
        assert (result["state"], result["changed"]) == ("already_current", False)
        assert "1:1.0-1 is installed, which is newer" in result["msg"]

    def test_downgrade(self, run, make_agent, deb) -> None:
        agent = make_agent("linux", installs("hello", "2.10-3"))
        agent.add_package("hello", "3.0-1")
        result = run("install", agent, src=str(deb), allow_downgrade=True)
        assert (result["state"], result["version_before"], result["version_after"]) == ("installed", "3.0-1", "2.10-3")

    def test_reinstall(self, run, make_agent, deb) -> None:
        agent = make_agent("linux", installs("hello", "2.10-3"))
        agent.add_package("hello", "2.10-3")
        assert run("install", agent, src=str(deb), reinstall=True)["state"] == "installed"

    def test_reboot_required(self, run, make_agent, exe) -> None:
        result = run("install", make_agent("windows", lambda *_: 3010), src=str(exe), name="Tool", version="2")
        check_shape(result)
        assert (result["state"], result["changed"], result["meaning"]) == ("reboot_required", True, "installed, reboot required")

    @pytest.mark.parametrize(
        ("table", "code", "state", "changed"),
        [
            ("hp_windows", 0, "failed", False),
            ("hp_windows", 1, "installed", True),
            ("hp_windows", 3, "not_applicable", False),
            ("dell", 3, "already_current", False),
        ],
    )
    def test_vendors_codes(self, run, make_agent, exe, table: str, code: int, state: str, changed: bool) -> None:
        result = run("install", make_agent("windows", lambda *_: code), src=str(exe), return_codes=table)
        check_shape(result)
        assert (result["state"], result["changed"], result["exit_code"]) == (state, changed, code)

    def test_failed(self, run, make_agent, exe) -> None:
        agent = make_agent("windows", lambda *_: {"exit_code": 1603, "stderr": b"boom\r\n"})
        result = run("install", agent, src=str(exe), name="Tool", version="2")
        check_shape(result)
        assert (result["state"], result["changed"], result["exit_code"]) == ("failed", False, 1603)
        assert result["error"]["code"] == "SD-703"
        assert "The installer of 'Tool 2' ended with 1603: fatal error during the installation." in result["msg"]
        assert "web1" in result["msg"] and "Remedy:" in result["msg"]
        assert result["stderr"] == "boom\n"
        assert agent.files == {}, "the package is taken off the target after a failure too"

    def test_failure_without_a_meaning_quotes_the_installer(self, run, make_agent, deb) -> None:
        result = run("install", make_agent("linux", lambda *_: {"exit_code": 100, "stderr": b"W: x\nE: Unmet dependencies.\n"}), src=str(deb))
        assert "ended with 100: E: Unmet dependencies." in result["msg"]

    def test_timed_out(self, run, make_agent, script) -> None:
        agent = make_agent("linux", lambda *_: {"exit_code": None, "timed_out": True, "stdout": b"Continue? "})
        result = run("install", agent, src="setup.sh", timeout=7)
        check_shape(result)
        assert (result["state"], result["error"]["code"]) == ("failed", "SD-704")
        assert "did not end within 7 s" in result["msg"]
        assert result["stdout"] == "Continue? "
        assert agent.executed[-1]["timeout"] == 7
        assert agent.files == {}

    def test_no_timeout(self, run, make_agent, script) -> None:
        agent = make_agent("linux")
        run("install", agent, src="setup.sh", timeout=0)
        assert agent.executed[-1]["timeout"] is None

    def test_not_there_afterwards(self, run, make_agent, deb) -> None:
        result = run("install", make_agent("linux"), src=str(deb))
        check_shape(result)
        assert result["error"]["code"] == "SD-710"
        assert "the package database does not list it" in result["msg"]
        assert result["changed"], "the installer ran and reported success"

    def test_old_version_afterwards(self, run, make_agent, deb) -> None:
        result = run("install", make_agent("linux", installs("hello", "2.9")), src=str(deb))
        assert result["error"]["code"] == "SD-710"
        assert "lists version 2.9, not 2.10-3" in result["msg"]


class TestWhatDecides:
    def test_name_without_version(self, run, make_agent, exe) -> None:
        agent = make_agent("windows")
        agent.add_package("Tool", "1")
        assert run("install", agent, src=str(exe), name="tool")["state"] == "already_current"

    def test_product_id(self, run, make_agent, exe) -> None:
        agent = make_agent("windows")
        agent.add_package("Renamed by the vendor", "2", id="{AAAA}")
        result = run("install", agent, src=str(exe), product_id="{aaaa}", name="Tool", version="2")
        assert result["state"] == "already_current"

    def test_nothing_tells(self, run, make_agent, exe) -> None:
        result = run("install", make_agent("windows"), src=str(exe))
        assert result["state"] == "installed"
        assert (result["version_before"], result["version_after"]) == (None, None)

    def test_creates(self, run, make_agent, script) -> None:
        agent = make_agent("linux", lambda agent, call: agent.files.update({"/opt/x": b""}) or 0)
        assert run("install", agent, src="setup.sh", creates="/opt/x")["state"] == "installed"
        again = run("install", agent, src="setup.sh", creates="/opt/x")
        assert (again["state"], again["bytes_sent"]) == ("already_current", 0)

    def test_creates_that_was_not_made(self, run, make_agent, script) -> None:
        result = run("install", make_agent("linux"), src="setup.sh", creates="/opt/x")
        assert (result["error"]["code"], result["state"]) == ("SD-710", "failed")
        assert "'/opt/x' is not there" in result["msg"]

    @pytest.mark.parametrize("command", ["tool --version", ["tool", "--version"]])
    def test_detect(self, run, make_agent, script, command: Any) -> None:
        there = False

        def installer(agent: Any, call: dict[str, Any]) -> int:
            nonlocal there
            if call["command_line"] == "tool --version" or call["arguments"] == ["tool", "--version"]:
                return 0 if there else 127
            there = True
            return 0

        agent = make_agent("linux", installer)
        assert run("install", agent, src="setup.sh", detect=command)["state"] == "installed"
        assert agent.executed[0]["safe_to_kill"] is True
        assert run("install", agent, src="setup.sh", detect=command)["state"] == "already_current"
        there = False
        agent.installer = lambda agent, call: 1 if "--version" in str(call["command_line"] or call["arguments"]) else 0
        assert run("install", agent, src="setup.sh", detect=command)["error"]["code"] == "SD-710"

    def test_database_that_cannot_be_read(self, run, make_agent, deb) -> None:
        agent = make_agent("linux", lambda agent, call: agent.files.update({"/opt/x": b""}) or 0)
        agent.errors["query_packages"] = SojournError("SD-711", manager="dpkg", detail="status database area is locked")
        assert run("install", agent, src=str(deb))["error"]["code"] == "SD-711"
        assert run("install", agent, src=str(deb), creates="/opt/x")["state"] == "installed"

    def test_detect_program_that_is_not_there(self, run, make_agent, exe) -> None:
        def installer(agent: Any, call: dict[str, Any]) -> int:
            if call["command_line"] == "tool.exe":
                raise SojournError("SD-701", program="tool.exe", detail="no such file")
            return 7

        assert run("install", make_agent("windows", installer), src=str(exe), detect="tool.exe")["exit_code"] == 7


class TestCheckMode:
    def test_needed(self, run, make_agent, deb) -> None:
        agent = make_agent("linux")
        agent.add_package("hello", "2.9-1")
        result = run("install", agent, src=str(deb), check=True, diff=True)
        check_shape(result)
        assert (result["state"], result["changed"], result["bytes_sent"]) == ("installed", True, 0)
        assert "would be installed: 2.9-1 is installed, which is older" in result["msg"]
        assert result["diff"]["after"] == "hello 2.10-3\n"
        assert agent.calls == ["deploy", "query_packages"]

    def test_not_needed(self, run, make_agent, deb) -> None:
        agent = make_agent("linux")
        agent.add_package("hello", "2.10-3")
        result = run("install", agent, src=str(deb), check=True)
        assert (result["state"], result["changed"]) == ("already_current", False)

    def test_log_folder_is_not_made(self, run, make_agent, deb, tmp_path) -> None:
        run("install", make_agent("linux"), src=str(deb), check=True, log_dest=f"{tmp_path}/logs/")
        assert not (tmp_path / "logs").exists()


class TestFamilies:
    def test_wrong_family(self, run, make_agent, deb) -> None:
        agent = make_agent("windows")
        result = run("install", agent, src=str(deb))
        check_shape(result)
        assert result["error"]["code"] == "SD-105"
        assert "A package of the kind deb does not run on windows." in result["msg"]
        assert "put_file" not in agent.calls

    def test_without_the_packages_database(self, run, make_agent, deb) -> None:
        agent = make_agent("linux")
        agent.managers = ["rpm"]
        assert "A package of the kind deb does not run on linux without dpkg." in run("install", agent, src=str(deb))["msg"]

    def test_skipped(self, run, make_agent, exe) -> None:
        result = run("install", make_agent("linux"), src=str(exe), skip_wrong_family=True)
        check_shape(result)
        assert (result["state"], result["changed"]) == ("not_applicable", False)
        assert result["msg"] == "A package of the kind exe does not run on linux."


class TestCommands:
    def test_msi(self, run, make_agent, tmp_path) -> None:
        path = tmp_path / "tool.msi"
        path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")

        def installer(agent: Any, call: dict[str, Any]) -> int:
            log = call["command_line"].split('"')[3]
            agent.files[log] = "=== Verbose logging ===\r\ngrün\r\n".encode("utf-16")
            agent.add_package("Tool", "4.2", id="{A}")
            return 0

        agent = make_agent("windows", installer)
        agent.add_package("Tool", "4.1", id="{A}")
        result = run("install", agent, src=str(path), name="Tool", version="4.2", arguments=["DIR=C:\\a b"], log_dest=f"{tmp_path}/logs/", host="win[1]")
        assert result["state"] == "installed", result
        assert result["log"] == "=== Verbose logging ===\ngrün\n"
        assert result["log_file"] == f"{tmp_path}/logs/win_1_-tool.msi.log"
        assert Path(result["log_file"]).read_bytes().decode("utf-16") == "=== Verbose logging ===\r\ngrün\r\n"
        assert 'DIR="C:\\a b"' in agent.executed[0]["command_line"]
        assert agent.files == {}, "the log is fetched and then removed with the package"

    def test_msi_of_the_same_product(self, run, make_agent, tmp_path) -> None:
        path = tmp_path / "tool.msi"
        path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
        agent = make_agent("windows", installs("Tool", "4.2"))
        agent.add_package("Tool", "4.1", id="{A}")
        run("install", agent, src=str(path), name="Tool", version="4.2", product_id="{A}")
        assert "REINSTALLMODE=vomus" in agent.executed[0]["command_line"]

    def test_deb_with_and_without_apt(self, run, make_agent, deb) -> None:
        agent = make_agent("linux", installs("hello", "2.10-3"))
        run("install", agent, src=str(deb))
        assert agent.executed[0]["arguments"][0] == "dpkg"
        agent = make_agent("linux", installs("hello", "2.10-3"))
        agent.files["/usr/bin/apt-get"] = b""
        run("install", agent, src=str(deb), environment={"http_proxy": "x", "N": 1})
        assert agent.executed[0]["arguments"][0] == "apt-get"
        assert agent.executed[0]["environment"] == {"DEBIAN_FRONTEND": "noninteractive", "http_proxy": "x", "N": "1"}
        assert agent.executed[0]["directory"].startswith("/tmp/sojourn-0123456789ab/install-")

    @pytest.mark.parametrize(("name", "system"), [("win/setup.exe", "windows"), ("linux/setup.sh", "linux")])
    def test_zip(self, run, make_agent, tmp_path, name: str, system: str) -> None:
        path = tmp_path / "bundle.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("win/setup.exe", b"MZ")
            archive.writestr("linux/setup.sh", b"#!/bin/sh")
        agent = make_agent(system)
        result = run("install", agent, src=str(path), entry=name)
        assert result["state"] == "installed"
        assert result["package"]["kind"] == "zip"
        separator = "\\" if system == "windows" else "/"
        archive_path, folder = agent.extracted
        assert folder == archive_path.rpartition(separator)[0] + separator + "unpacked"
        program = folder + separator + name.replace("/", separator)
        assert agent.executed[-1]["arguments"] == [program]
        assert agent.executed[-1]["directory"] == program.rpartition(separator)[0]

    def test_busy_is_tried_again(self, run, make_agent, exe, monkeypatch) -> None:
        pauses: list[float] = []
        monkeypatch.setattr(install.time, "sleep", pauses.append)
        codes = iter([1618, 1618, 0])
        agent = make_agent("windows", lambda *_: next(codes))
        assert run("install", agent, src=str(exe))["state"] == "installed"
        assert pauses == [2.0, 4.0]
        assert len(agent.executed) == 3

    def test_busy_to_the_end(self, run, make_agent, exe, monkeypatch) -> None:
        monkeypatch.setattr(install.time, "sleep", lambda seconds: None)
        result = run("install", make_agent("windows", lambda *_: 1618), src=str(exe), busy_timeout=0)
        assert (result["error"]["code"], result["meaning"]) == ("SD-703", "another installation is running")

    def test_own_return_codes(self, run, make_agent, exe) -> None:
        result = run("install", make_agent("windows", lambda *_: 42), src=str(exe), return_codes={"42": {"state": "installed", "meaning": "the answer"}})
        assert (result["state"], result["meaning"], result["msg"]) == ("installed", "the answer", "setup.exe: the answer.")


class TestLogs:
    def test_given_path(self, run, make_agent, script) -> None:
        agent = make_agent("linux", lambda agent, call: agent.files.update({"/var/log/setup.log": b"one\ntwo\n"}) or 0)
        assert run("install", agent, src="setup.sh", log="/var/log/setup.log")["log"] == "one\ntwo\n"
        assert agent.files == {"/var/log/setup.log": b"one\ntwo\n"}, "only the folder of the package is ours to remove"

    def test_relative_path(self, run, make_agent, script) -> None:
        agent = make_agent("linux", lambda agent, call: agent.files.update({call["directory"] + "/setup.log": b"x\n"}) or 3)
        result = run("install", agent, src="setup.sh", log="setup.log")
        assert (result["state"], result["log"]) == ("failed", "x\n")

    def test_output_takes_the_place_of_a_log(self, run, make_agent, script, tmp_path) -> None:
        agent = make_agent("linux", lambda *_: {"stdout": b"out\n", "stderr": b"error\n"})
        result = run("install", agent, src="setup.sh", log_dest=f"{tmp_path}/one.log")
        assert result["log"] == "out\nerror\n"
        assert (tmp_path / "one.log").read_bytes() == b"out\nerror\n"

    def test_log_that_cannot_be_fetched_does_not_hide_the_end(self, run, make_agent, script) -> None:
        agent = make_agent("linux", lambda agent, call: agent.files.update({"/x.log": b"x"}) or 0)
        agent.errors["get_file"] = SojournError("SD-706", path="/x.log", detail="locked")
        result = run("install", agent, src="setup.sh", log="/x.log")
        assert result["state"] == "installed"
        assert "SD-706" in result["warnings"][0]

    def test_folder_that_cannot_be_made(self, run, make_agent, script, tmp_path) -> None:
        (tmp_path / "file").touch()
        agent = make_agent("linux")
        result = run("install", agent, src="setup.sh", log_dest=f"{tmp_path}/file/logs/")
        assert result["error"]["code"] == "SD-709"
        assert "put_file" not in agent.calls


class TestOutput:
    def test_shown_while_it_runs(self, run, make_agent, script) -> None:
        run("install", make_agent("linux", lambda *_: {"stdout": b"Step 1\nStep 2"}), src="setup.sh", host="web7")
        assert [line for line in run.shown if line[0] == 1] == [(1, "web7", "Step 1"), (1, "web7", "Step 2")]

    def test_never_with_no_log(self, run, make_agent, script) -> None:
        run("install", make_agent("linux", lambda *_: {"stdout": b"secret\n"}), src="setup.sh", no_log=True)
        assert run.shown == []

    def test_with_no_log_the_ledger_has_none_of_it(self, run, make_agent, script) -> None:
        """What it keeps is written down where a run is cut off, and shown by the next one."""
        for hidden in (False, True):
            agent = make_agent("linux", lambda *_: {"exit_code": 100, "stdout": b"secret\n", "stderr": b"secret\n"})
            run("install", agent, src="setup.sh", no_log=hidden, arguments="--password secret")
            (row,) = agent.noted
            assert row["state"] == "failed" and "ended with 100: " in row["msg"]
            assert ("secret" in json.dumps(row)) is not hidden


class TestErrors:
    def test_missing_package(self, run, make_agent) -> None:
        agent = make_agent("linux")
        result = run("install", agent, src="nothing.deb")
        check_shape(result)
        assert result["error"]["code"] == "SD-103"
        assert agent.calls == [], "the target is not touched"

    def test_checksum_mismatch(self, run, make_agent, script) -> None:
        agent = make_agent("linux")
        result = run("install", agent, src="setup.sh", checksum="sha256:" + "0" * 64)
        check_shape(result)
        assert result["error"]["code"] == "SD-106"
        assert agent.calls == []

    def test_checksum_is_handed_on(self, run, make_agent, script) -> None:
        digest = hashlib.sha256(script.read_bytes()).hexdigest()
        assert run("install", make_agent("linux"), src="setup.sh", checksum=digest)["package"]["checksum"] == digest

    def test_unknown_kind(self, run, make_agent, tmp_path) -> None:
        (tmp_path / "notes.txt").write_text("x")
        result = run("install", make_agent("linux"), src="notes.txt")
        check_shape(result)
        assert result["error"]["code"] == "SD-104"

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"kind": "pkg"}, ["'kind'", "must be one of"]),
            ({"timeout": "soon"}, ["'timeout'"]),
            ({"timeout": -1}, ["'timeout'", "0 or more"]),
            ({"return_codes": "hp"}, ["'return_codes'"]),
            ({"checksum": "1"}, ["'checksum'"]),
            ({"version": "1"}, ["'version'", "'name' or 'product_id'"]),
            ({"arguments": {"a": 1}}, ["'arguments'", "a string or a list"]),
            ({"detect": 5}, ["'detect'"]),
            ({"entry": "x"}, ["'entry'"]),
            ({"sorce": "x"}, ["'sorce'"]),
        ],
    )
    def test_bad_option(self, run, make_agent, script, options: dict[str, Any], words: list[str]) -> None:
        agent = make_agent("linux")
        result = run("install", agent, src="setup.sh", **options)
        check_shape(result)
        assert result["error"]["code"] == "SD-102"
        assert all(word in result["msg"] for word in words), result["msg"]
        assert "\n" not in result["msg"]
        assert agent.calls == []

    def test_other_connection(self, run, script) -> None:
        result = run("install", None, src="setup.sh")
        assert result["error"]["code"] == "SD-904"
        assert "sojourn.deploy.install works over" in result["msg"]

    def test_unreachable(self, run, make_agent, script) -> None:
        agent = make_agent("linux")
        agent.errors["deploy"] = SojournError("SD-203", port=22, address="::1", service="sshd")
        result = run("install", agent, src="setup.sh")
        check_shape(result)
        assert result["unreachable"] and not result.get("failed")

    def test_lost_while_installing(self, run, make_agent, script) -> None:
        def installer(agent: Any, call: dict[str, Any]) -> int:
            agent.errors["deploy"] = SojournError("SD-204", port=22, address="x", seconds=1, service="x")
            raise SojournError("SD-503", detail="no answer")

        agent = make_agent("linux", installer)
        result = run("install", agent, src="setup.sh")
        check_shape(result)
        assert result["unreachable"]
        assert agent.calls[-1] == "deploy", "nothing more is asked of a target that is gone"

    @pytest.mark.parametrize(("boot_id", "words"), [("another", "the target restarted meanwhile"), ("boot", "the agent on the target was ended meanwhile")])
    def test_lost_and_there_again(self, run, make_agent, script, boot_id: str, words: str) -> None:
        def installer(agent: Any, call: dict[str, Any]) -> int:
            agent.boot_id, agent.process_id = boot_id, 8
            raise SojournError("SD-503", detail="no answer")

        result = run("install", make_agent("linux", installer), src="setup.sh")
        check_shape(result)
        assert not result.get("unreachable") and (result["state"], result["error"]["code"]) == ("failed", "SD-712") and words in result["msg"]

    @pytest.mark.parametrize("taken_over", [True, False])
    def test_broker_killed_while_installing(self, run, make_agent, script, taken_over: bool) -> None:
        tries: list[str] = []

        def installer(agent: Any, call: dict[str, Any]) -> int:
            tries.append(call["installation"].handle)
            if len(tries) == 1:
                agent.taken_over = taken_over
                raise SojournError("SD-902", step="execute", detail=broker_client.BROKE_OFF, log="x")
            return 0

        result = run("install", make_agent("linux", installer), src="setup.sh")
        check_shape(result)
        if taken_over:
            assert result["state"] == "installed" and len(tries) == 2 and tries[0] == tries[1], "the same process, not a second one"
        else:
            assert result["error"]["code"] == "SD-712" and len(tries) == 1, "its session is lost: another agent would begin it beside itself"

    def test_an_order_that_never_arrived_is_given_again(self, run, make_agent, script) -> None:
        tries: list[str] = []

        def installer(agent: Any, call: dict[str, Any]) -> int:
            tries.append(call["installation"].handle)
            if len(tries) == 1:
                raise SojournError("SD-503", detail="no answer")
            return 0

        assert run("install", make_agent("linux", installer), src="setup.sh")["state"] == "installed"
        assert len(tries) == 2 and tries[0] == tries[1]

    def test_staged_file_that_cannot_be_removed(self, run, make_agent, script) -> None:
        agent = make_agent("linux")
        agent.errors["remove_path"] = SojournError("SD-706", path="x", detail="busy")
        result = run("install", agent, src="setup.sh")
        assert result["state"] == "installed"
        assert "SD-706" in result["warnings"][0]

    def test_disk_full(self, run, make_agent, script) -> None:
        agent = make_agent("linux")
        agent.errors["put_file"] = SojournError("SD-402", what="setup.sh", detail="12 bytes free")
        result = run("install", agent, src="setup.sh")
        check_shape(result)
        assert (result["error"]["code"], result["bytes_sent"]) == ("SD-402", 0)
        assert agent.calls[-1] == "remove_path"

    def test_no_room_is_told_before_anything_is_sent(self, run, make_agent, script, tmp_path) -> None:
        agent = make_agent("linux")
        agent.free_bytes = script.stat().st_size - 1
        result = run("install", agent, src="setup.sh")
        check_shape(result)
        assert result["error"]["code"] == "SD-402" and f"{script.stat().st_size} bytes are needed" in result["msg"]
        assert "put_file" not in agent.calls
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("setup.sh", "#!/bin/sh\n" * 1000)
        agent.free_bytes = 10000
        assert run("install", agent, src="a.zip", entry="setup.sh")["error"]["code"] == "SD-402"


class TestLookup:
    def test_beside_the_inventory_and_in_the_current_folder(self, run, make_agent, tmp_path, monkeypatch) -> None:
        (tmp_path / "inventory/packages").mkdir(parents=True)
        (tmp_path / "inventory/packages/a.sh").write_text("#!/bin/sh")
        assert run("install", make_agent("linux"), src="packages/a.sh")["state"] == "installed"
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/b.sh").write_text("#!/bin/sh")
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert run("install", make_agent("linux"), src="b.sh")["state"] == "installed"


def test_documentation_says_what_the_action_takes() -> None:
    documented = yaml.safe_load(documentation.DOCUMENTATION)["options"]
    for name, spec in install.ActionModule.ARGUMENTS.items():
        assert documented[name]["type"] == spec["type"], name
        assert documented[name].get("default") == spec.get("default"), name
        assert documented[name].get("choices") == spec.get("choices"), name
        assert documented[name].get("required", False) == spec.get("required", False), name
    assert set(documented) == set(install.ActionModule.ARGUMENTS)


class TestTakingUp:
    """A run that was cut off had begun it."""

    def test_result_that_waits(self, run, make_agent, script) -> None:
        first = make_agent("linux")
        run("install", first, src="setup.sh", arguments="-s")
        agent = make_agent("linux")
        agent.waiting = [{"handle": "a" * 32, "label": first.labels[0], "answer": {"exit_code": 0, "stdout": b"done"}}]
        result = run("install", agent, src="setup.sh", arguments="-s")
        check_shape(result)
        assert result["taken_up"] and (result["state"], result["changed"], result["stdout"], result["bytes_sent"]) == ("installed", True, "done", 0)
        assert "execute" not in agent.calls and "put_file" not in agent.calls
        assert agent.noted[0]["state"] == "installed"

    @pytest.mark.parametrize("other", [{"arguments": "-x"}, {"src": "other.sh"}])
    def test_another_installation_is_not_taken_for_it(self, run, make_agent, script, other: dict[str, Any]) -> None:
        (script.parent / "other.sh").write_text("#!/bin/sh\nexit 0\n")
        first = make_agent("linux")
        run("install", first, src="setup.sh", arguments="-s")
        agent = make_agent("linux")
        agent.waiting = [{"handle": "a" * 32, "label": first.labels[0], "answer": {}}]
        result = run("install", agent, **{"src": "setup.sh", "arguments": "-s", **other})
        assert "taken_up" not in result and "follow" not in agent.calls and "execute" in agent.calls

    def test_no_secret_in_the_label(self, run, make_agent, script) -> None:
        agent = make_agent("linux")
        run("install", agent, src="setup.sh", arguments="--key Geheim1", environment={"TOKEN": "Geheim2"})
        assert "Geheim" not in agent.labels[0] and "setup.sh" in agent.labels[0]
