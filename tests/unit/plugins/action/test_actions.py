"""The actions agent, firewall, cleanup and recap, against a target in memory."""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ansible_collections.sojourn.deploy.plugins.action import recap
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError


class TestAgent:
    def test_present_and_again(self, run, make_agent) -> None:
        agent = make_agent("linux")
        first = run("agent", agent)
        assert first["changed"] and first["info"]["operating_system"] == "linux" and first["seconds"] == {"connect": 0.1}
        assert not run("agent", agent)["changed"]

    def test_absent_and_again(self, run, make_agent) -> None:
        agent = make_agent("linux")
        agent.deployed = True
        first = run("agent", agent, state="absent")
        assert first["changed"] and first["removed"] == ["service sojourn-0123456789ab"]
        again = run("agent", agent, state="absent")
        assert (again["changed"], again["removed"]) == (False, [])

    @pytest.mark.parametrize(
        ("there", "state", "changed"), [(True, "present", False), (True, "absent", True), (False, "present", True), (False, "absent", False)]
    )
    def test_check_mode(self, run, make_agent, there: bool, state: str, changed: bool) -> None:
        agent = make_agent("linux")
        agent.deployed = there
        assert run("agent", agent, check=True, state=state)["changed"] is changed
        assert agent.deployed is there
        assert agent.calls == []

    def test_unreachable(self, run, make_agent) -> None:
        agent = make_agent("linux")
        agent.errors["deploy"] = SojournError("SD-202", address="2001:db8::1", detail="no route")
        result = run("agent", agent)
        assert result["unreachable"] and result["error"]["code"] == "SD-202"
        assert "failed" not in result

    def test_bad_state(self, run, make_agent) -> None:
        result = run("agent", make_agent("linux"), state="gone")
        assert (result["failed"], result["error"]["code"]) == (True, "SD-102")
        assert "'state'" in result["msg"]

    @pytest.mark.parametrize("action", ["agent", "cleanup", "debug_connection", "firewall", "preflight"])
    def test_other_connection(self, run, action: str) -> None:
        result = run(action, None, **({"port": 1} if action == "firewall" else {}))
        assert result["error"]["code"] == "SD-904"


class TestPreflight:
    def check(self, name: str, state: str, error: SojournError | None = None) -> dict[str, Any]:
        remedy = None if state == "ok" else error.remedy if error else "Wait."
        code = error.code if error else None
        return {"check": name, "state": state, "detail": "so it is", "remedy": remedy, "code": code, "error": error.to_dict() if error else None}

    def run(self, run, make_agent, *checks: dict[str, Any], **options: Any) -> dict[str, Any]:
        agent = make_agent("linux")
        agent.preflight = lambda **arguments: (agent.calls.append(arguments), list(checks))[1]
        return {**run("preflight", agent, **options), "calls": agent.calls}

    def test_all_is_well(self, run, make_agent) -> None:
        result = self.run(run, make_agent, self.check("name", "ok"), self.check("clock", "warning"))
        assert not result["changed"] and "failed" not in result and result["calls"] == [{"timeout": 3.0, "sign_in": True}]
        assert [check["state"] for check in result["checks"]] == ["ok", "warning"] and "error" not in result["checks"][0]
        assert result["table"] == ["ok       name   so it is", "warning  clock  so it is", "                Remedy: Wait."]
        assert result["msg"] == "Nothing speaks against a deployment to this host: 2 checks, 1 of them with a warning: clock."
        json.dumps(result)

    @pytest.mark.parametrize(("code", "kind"), [("SD-402", "failed"), ("SD-301", "unreachable")])
    def test_the_first_failure_is_the_result(self, run, make_agent, code: str, kind: str) -> None:
        first, second = SojournError(code, what="the agent", user="me", detail="no"), SojournError("SD-306", user="me", detail="no")
        checks = self.check("name", "ok"), self.check("free space", "failed", first), self.check("SCM rights", "failed", second)
        result = self.run(run, make_agent, *checks, check=True)
        assert result[kind] and result["error"]["code"] == code and len(result["checks"]) == 3 and not result["changed"]
        assert result["msg"].startswith("[web1] preflight, free space: ") and f"({code}) Remedy: {first.remedy}" in result["msg"]

    def test_a_failure_that_is_only_told(self, run, make_agent) -> None:
        error = SojournError("SD-306", user="me", detail="no")
        result = self.run(run, make_agent, self.check("SCM rights", "failed", error), fail=False)
        assert "failed" not in result and "unreachable" not in result and result["error"]["code"] == "SD-306"
        assert result["msg"].startswith("[web1] preflight, SCM rights: ") and result["msg"].endswith(f"Remedy: {error.remedy}")

    @pytest.mark.parametrize("timeout", [0, 4000, "soon"])
    def test_bad_timeout(self, run, make_agent, timeout: Any) -> None:
        result = self.run(run, make_agent, timeout=timeout)
        assert (result["failed"], result["error"]["code"], result["calls"]) == (True, "SD-102", []) and "'timeout'" in result["msg"]


class TestFirewall:
    def test_open_and_again(self, run, make_agent) -> None:
        agent = make_agent("linux")
        first = run("firewall", agent, port=8080, diff=True)
        assert first["changed"] and first["rules"][0]["name"] == "sojourn-0123456789ab-tcp-8080"
        assert (first["diff"]["before"], first["diff"]["after"]) == ("", "tcp 8080 ipv6 and ipv4 from anywhere (sojourn-0123456789ab-tcp-8080)\n")
        again = run("firewall", agent, port=8080, diff=True)
        assert not again["changed"]
        assert again["diff"]["before"] == again["diff"]["after"] != ""

    def test_close_and_again(self, run, make_agent) -> None:
        agent = make_agent("linux")
        agent.open_port(53, "udp", keep=True)
        first = run("firewall", agent, port=53, protocol="udp", state="closed", diff=True)
        assert first["changed"] and first["diff"]["after"] == ""
        assert not run("firewall", agent, port=53, protocol="udp", state="closed")["changed"]

    @pytest.mark.parametrize(
        ("options", "changed"),
        [
            ({}, False),
            ({"family": "ipv6"}, False),
            ({"keep": True}, True),
            ({"port": 81}, True),
            ({"protocol": "udp"}, True),
            ({"source": "2001:db8::1"}, True),
            ({"state": "closed"}, True),
            ({"state": "closed", "source": "2001:db8::1"}, False),
            ({"state": "closed", "port": 81}, False),
        ],
    )
    def test_check_mode(self, run, make_agent, options: dict[str, Any], changed: bool) -> None:
        agent = make_agent("linux")
        agent.open_port(80)
        agent.calls.clear()
        assert run("firewall", agent, check=True, diff=True, **{"port": 80, **options})["changed"] is changed
        assert "open_port" not in agent.calls and "close_port" not in agent.calls

    @pytest.mark.parametrize(
        ("there", "asked"), [("2001:db8::1/128", "2001:db8:0::1"), ("10.0.0.0/8", "10.1.2.3/8"), ("::/0", None), ("2001:db8::1", "[2001:db8::1]")]
    )
    def test_sources_are_compared_by_what_they_mean(self, run, make_agent, there: str, asked: str | None) -> None:
        agent = make_agent("linux")
        agent.open_port(80, source=there)
        assert not run("firewall", agent, check=True, port=80, source=asked, family="ipv4" if "." in there else "ipv6")["changed"]

    def test_one_family_of_two(self, run, make_agent) -> None:
        agent = make_agent("linux")
        agent.open_port(80, family="ipv6")
        assert run("firewall", agent, check=True, port=80)["changed"]
        agent.open_port(80, family="ipv4")
        assert not run("firewall", agent, check=True, port=80)["changed"]

    def test_where_nothing_filters(self, run, make_agent) -> None:
        agent = make_agent("linux")
        agent.firewall_kind = "none"
        assert not run("firewall", agent, check=True, port=80)["changed"]

    @pytest.mark.parametrize(
        ("options", "option"),
        [
            ({"port": 0}, "port"),
            ({"port": 65536}, "port"),
            ({"source": "here"}, "source"),
            ({"source": "10.0.0.1", "family": "ipv6"}, "family"),
            ({"protocol": "sctp"}, "protocol"),
        ],
    )
    def test_bad_option(self, run, make_agent, options: dict[str, Any], option: str) -> None:
        agent = make_agent("linux")
        result = run("firewall", agent, **{"port": 80, **options})
        assert result["error"]["code"] == "SD-102"
        assert f"'{option}'" in result["msg"]
        assert agent.calls == []

    def test_refused(self, run, make_agent) -> None:
        agent = make_agent("linux")
        agent.errors["open_port"] = SojournError("SD-603", detail="policy")
        assert run("firewall", agent, port=80)["error"]["code"] == "SD-603"


def leftover(state: str, kind: str = "folder", detail: str | None = None) -> dict[str, Any]:
    return {"kind": kind, "name": "sojourn-aaaaaaaaaaaa", "run": "aaaaaaaaaaaa", "state": state, "detail": detail}


class TestCleanup:
    def test_nothing_left(self, run, make_agent) -> None:
        result = run("cleanup", make_agent("linux"))
        assert (result["changed"], result["leftovers"]) == (False, [])

    def test_removed_and_live(self, run, make_agent) -> None:
        agent = make_agent("linux")
        agent.leftovers = [leftover("removed"), leftover("live", "service")]
        result = run("cleanup", agent, diff=True)
        assert result["changed"] and result["leftovers"] == agent.leftovers
        assert result["diff"]["after"] == "service sojourn-aaaaaaaaaaaa\n"

    def test_not_removed(self, run, make_agent) -> None:
        agent = make_agent("windows")
        agent.leftovers = [leftover("removed", "service"), leftover("failed", detail="in use")]
        result = run("cleanup", agent)
        assert result["failed"] and result["changed"] and result["error"]["code"] == "SD-801"
        assert "folder sojourn-aaaaaaaaaaaa" in result["msg"] and "in use" in result["msg"]
        assert len(result["leftovers"]) == 2

    def test_check_mode_and_run(self, run, make_agent) -> None:
        agent = make_agent("linux")
        run("cleanup", agent, check=True, run="sojourn-AAAAAAAAAAAA")
        assert agent.cleanup_arguments == ("aaaaaaaaaaaa", False, True)
        run("cleanup", agent, run="aaaaaaaaaaaa", force=True)
        assert agent.cleanup_arguments == ("aaaaaaaaaaaa", True, False)

    def test_force_names_its_run(self, run, make_agent) -> None:
        agent = make_agent("linux")
        assert run("cleanup", agent, force=True)["error"]["code"] == "SD-102" and agent.calls == []

    @pytest.mark.parametrize("wrong", ["x", "aaaaaaaaaaaa/..", "*"])
    def test_bad_run(self, run, make_agent, wrong: str) -> None:
        agent = make_agent("linux")
        assert run("cleanup", agent, run=wrong)["error"]["code"] == "SD-102"
        assert agent.calls == []


class TestPackages:
    @pytest.fixture
    def files(self, tmp_path) -> None:
        for name in ("one.sh", "two.sh", "three.sh"):
            (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / "setup.exe").write_bytes(b"MZ")

    @staticmethod
    def installer(**codes: int):
        """An installer that ends with the code given for its name, else 0."""
        return lambda agent, call: {"exit_code": codes.get(str(call["arguments"][0]).rpartition("/")[2].partition(".")[0], 0), "stdout": b"x" * 5000}

    def test_in_order(self, run, make_agent, files) -> None:
        agent = make_agent("linux", self.installer())
        result = run(
            "packages", agent, packages=[{"src": "two.sh"}, {"src": "setup.exe"}, {"src": "one.sh", "arguments": ["a"]}, {"src": "three.sh", "when": "no"}]
        )
        assert [(row["package"], row["state"]) for row in result["results"]] == [
            ("two.sh", "installed"),
            ("setup.exe", "not_applicable"),
            ("one.sh", "installed"),
        ]
        assert [call["arguments"][0].rpartition("/")[2] for call in agent.executed] == ["two.sh", "one.sh"]
        assert result["changed"] and not result.get("failed")
        assert "stdout" not in result["results"][0]
        assert run.printed[0] == "installed: [web1] => two.sh: two.sh: installed."
        json.dumps(result)

    def test_failure_drops_the_rest(self, run, make_agent, files) -> None:
        result = run("packages", make_agent("linux", self.installer(two=9)), packages=[{"src": "one.sh"}, {"src": "two.sh"}, {"src": "three.sh"}])
        assert [row["state"] for row in result["results"]] == ["installed", "failed", "dropped"]
        assert result["failed"] and result["changed"] and result["error"]["code"] == "SD-703"
        assert result["msg"].startswith("[web1] installing: The installer of 'two.sh' ended with 9")
        assert len(result["results"][1]["stdout"]) == 2000

    def test_going_on(self, run, make_agent, files) -> None:
        agent = make_agent("linux", self.installer(one=9))
        result = run("packages", agent, packages=[{"src": "one.sh"}, {"src": "two.sh"}], stop_on_failure=False)
        assert [row["state"] for row in result["results"]] == ["failed", "installed"]
        assert result["failed"]

    def test_lost_target_is_not_asked_again(self, run, make_agent, files) -> None:
        agent = make_agent("linux")
        agent.errors["deploy"] = SojournError("SD-202", address="2001:db8::1", detail="no route")
        result = run("packages", agent, packages=[{"src": "one.sh"}, {"src": "two.sh"}], stop_on_failure=False)
        assert [row["state"] for row in result["results"]] == ["unreachable", "dropped"]
        assert result["unreachable"] and "failed" not in result

    def test_check_mode_and_diff(self, run, make_agent, files) -> None:
        agent = make_agent("linux")
        result = run("packages", agent, check=True, diff=True, packages=[{"src": "one.sh", "name": "one", "version": "2"}])
        assert result["changed"] and "put_file" not in agent.calls
        assert result["diff"][0]["after"] == "one 2\n"
        assert result["results"][0]["version_after"] == "2"

    def test_log_folder_for_all(self, run, make_agent, files, tmp_path) -> None:
        run(
            "packages",
            make_agent("linux", self.installer()),
            packages=[{"src": "one.sh"}, {"src": "two.sh", "log_dest": f"{tmp_path}/two.log"}],
            log_dest=f"{tmp_path}/logs/",
        )
        assert (tmp_path / "logs/web1-one.sh.log").exists() and (tmp_path / "two.log").exists()

    def test_own_family_may_be_insisted_on(self, run, make_agent, files) -> None:
        result = run("packages", make_agent("linux"), packages=[{"src": "setup.exe", "skip_wrong_family": False}])
        assert result["error"]["code"] == "SD-105"

    def test_nothing_to_do(self, run, make_agent) -> None:
        result = run("packages", make_agent("linux"), packages=[])
        assert not result["changed"] and not result.get("failed")

    def test_no_log(self, run, make_agent, files) -> None:
        run("packages", make_agent("linux"), packages=[{"src": "one.sh"}], no_log=True)
        assert run.printed == [] and run.shown == []

    @pytest.mark.parametrize(
        ("packages", "words"), [([{"name": "x"}], "no 'src'"), ([{"src": "x", "argments": ""}], "'argments'"), ("x", "'packages'"), ([1], "'packages'")]
    )
    def test_bad_list(self, run, make_agent, packages: Any, words: str) -> None:
        agent = make_agent("linux")
        result = run("packages", agent, packages=packages)
        assert result["failed"] and result["error"]["code"] == "SD-102" and words in result["msg"]
        assert agent.calls == [] and result["results"] == []


RESULTS = {
    "web1": [
        {"package": "hello.deb", "state": "installed", "version_before": "1", "version_after": "2", "seconds": 1.26, "msg": "hello 2: installed."},
        {"package": "setup.exe", "state": "not_applicable", "version_before": None, "version_after": None, "seconds": {"total": 0.01}, "msg": "x"},
    ],
    "win1": [
        {"package": "setup.exe", "state": "failed", "version_before": None, "version_after": None, "seconds": 2, "msg": "It\nfailed."},
        {"package": "other.msi", "state": "dropped"},
    ],
    "win2": [{"package": "setup.exe", "state": "unreachable", "msg": "No route."}],
    "new1": [],
}


class TestRecap:
    def test_table(self) -> None:
        assert recap.table(RESULTS) == [
            "host  package    state           version  seconds",
            "web1  hello.deb  installed       1 → 2        1.3",
            "      setup.exe  not applicable  -            0.0",
            "win1  setup.exe  failed          -            2.0",
            "  It failed.",
            "      other.msi  dropped         -              -",
            "win2  setup.exe  unreachable     -              -",
            "  No route.",
            "new1  -          no packages     -              -",
        ]

    def test_counts(self) -> None:
        assert recap.count(RESULTS) == {"installed": 1, "not_applicable": 1, "failed": 1, "dropped": 1, "unreachable": 1}
        assert recap.failed_hosts(RESULTS) == ["win1", "win2"]
        assert recap.errors(RESULTS) == {"win1": "It failed.", "win2": "No route."}

    def run(self, monkeypatch: pytest.MonkeyPatch, check: bool = False, **args: Any) -> tuple[dict[str, Any], list[str]]:
        shown: list[str] = []
        monkeypatch.setattr(recap, "display", SimpleNamespace(banner=shown.append, display=shown.append))
        task = SimpleNamespace(args=args, action="sojourn.deploy.recap", check_mode=check, diff=False, no_log=False, async_val=0, environment=None)
        connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir=None))
        return recap.ActionModule(task, connection, SimpleNamespace(), None, None, None).run(task_vars={}), shown

    def test_shown(self, monkeypatch) -> None:
        result, shown = self.run(monkeypatch, results=RESULTS)
        assert shown == ["DEPLOY RECAP", *recap.table(RESULTS)] and result["table"] == shown[1:]
        assert result["failed_hosts"] == ["win1", "win2"] and not result["changed"]
        json.dumps(result)

    def test_results_of_packages(self, monkeypatch) -> None:
        results = {
            "web1": {"results": RESULTS["web1"], "changed": True},
            "web2": {"failed": True, "msg": "bad list", "results": []},
            "web3": {"unreachable": True, "msg": "gone"},
        }
        result, unused_shown = self.run(monkeypatch, results=results, removals={"web1": {"failed": True, "msg": "locked"}, "web2": {"changed": False}})
        assert result["failed_hosts"] == ["web1", "web2", "web3"]
        assert result["errors"] == {"web1": "locked", "web2": "bad list", "web3": "gone"}
        assert result["states"] == {"installed": 1, "not_applicable": 1, "failed": 2, "unreachable": 1}

    def test_check_mode_is_told(self, monkeypatch) -> None:
        unused_result, shown = self.run(monkeypatch, check=True, results={}, title="MINE")
        assert shown[0] == "MINE (check mode: nothing was changed)"

    @pytest.mark.parametrize("results", [None, "x", {"a": 1}])
    def test_bad_results(self, monkeypatch, results: Any) -> None:
        result, shown = self.run(monkeypatch, results=results)
        assert result["failed"] and not shown


@pytest.mark.parametrize("name", ["agent", "cleanup", "debug_connection", "firewall", "packages", "preflight", "recap"])
def test_documentation_says_what_the_action_takes(name: str) -> None:
    spec = importlib.import_module(f"ansible_collections.sojourn.deploy.plugins.action.{name}").ActionModule.ARGUMENTS
    documented = yaml.safe_load(importlib.import_module(f"ansible_collections.sojourn.deploy.plugins.modules.{name}").DOCUMENTATION)["options"]
    assert set(documented) == set(spec)
    for option, told in documented.items():
        assert (told["type"], told.get("default"), told.get("choices"), told.get("required", False)) == (
            spec[option]["type"],
            spec[option].get("default"),
            spec[option].get("choices"),
            spec[option].get("required", False),
        ), option
