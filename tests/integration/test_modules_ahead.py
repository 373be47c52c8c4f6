"""Modules that go to a target ahead of their tasks, and the interpreter that they need: they are there, for who runs modules only, and come to the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Controller
from tests.integration.controllers import NEWEST, OLDEST, Other
from tests.integration.playing import play

pytestmark = pytest.mark.leaves("files: /root/.ansible*", "files: /home/*/.ansible*")

#: Interpreters of the agent's: one that others are forked from, what they all import, and a template for each archive, with at most one process that waits.
COUNT = 'n=0; for p in $(grep -l /sojourn- /proc/[0-9]*/cgroup | cut -d/ -f3); do case $(readlink /proc/$p/exe) in *python*) n=$((n+1));; esac; done; echo $n'
#: Of these, those that nothing else of Python's has begun.
BEGUN = COUNT.replace("*python*)", "*python*) case $(readlink /proc/$(grep PPid: /proc/$p/status | cut -f2)/exe) in *python*) continue;; esac;")
NEVER = ("slurp", "find", "getent", "lineinfile", "replace")


def count(name: str, least: int = 0, what: str = COUNT) -> dict[str, Any]:
    return {"name": name, "ansible.builtin.raw": what, "register": "counted", "until": f"counted.stdout | int >= {least}", "retries": 60, "delay": 1}


@pytest.mark.xdist_group("controllers")
@pytest.mark.parametrize(
    ("user", "other"), [("root", None), ("root", OLDEST), ("root", NEWEST), ("operator", None)], ids=["installed", "oldest", "newest", "another user"]
)
def test_modules_are_there_ahead_of_their_tasks(controller: Controller, linux_target: Any, tmp_path: Path, other: Other | None, user: str) -> None:
    """Their templates are made before any of their tasks has run, on who has run a module."""
    (tmp_path / "file").write_text("one\ntwo\n")
    arguments = {"slurp": {"src": "/etc/hostname"}, "find": {"paths": "/etc", "patterns": "host*"}, "getent": {"database": "group", "key": "root"},
                 "lineinfile": {"path": "/etc/hostname", "line": "no", "state": "absent"}, "replace": {"path": "/etc/hostname", "regexp": "no"}}  # fmt: skip
    later: list[dict[str, Any]] = [{"name": name, f"ansible.builtin.{name}": arguments[name]} for name in NEVER]
    environment = {"ANSIBLE_HOME": f"{tmp_path}/home", **(other.environment() if other else {})}
    words = tmp_path / "variables.json"
    words.write_text(json.dumps({"ansible_user": user, "ansible_password": linux_target.password(user)}))
    results = []
    for ahead in (True, False):
        more = {"ANSIBLE_CALLBACKS_ENABLED": "recorded,sojourn.deploy.lifecycle"} if ahead else {}
        tasks = [count("before"), {"name": "command", "ansible.builtin.command": "id -un"}, count("after", 4 + len(NEVER) if ahead else 1), *later]
        played = play(controller, tmp_path, tasks, "-e", f"@{words}", environment=environment | more).well()
        assert played["linux1", "before"]["stdout"].strip() == "0", "a target on which no module has run gets none"
        assert played["linux1", "command"]["stdout"] == user
        assert (int(played["linux1", "after"]["stdout"]) >= 4 + len(NEVER)) == ahead
        results.append([{key: value for key, value in played["linux1", name].items() if key not in ("diff", "invocation")} for name in NEVER])
    assert results[0] == results[1]


@pytest.mark.xdist_group("controllers")
@pytest.mark.parametrize(
    ("login", "explicit", "other"),
    [("root", True, None), ("operator", True, None), ("operator", False, None), ("root", True, OLDEST), ("operator", False, NEWEST)],
    ids=["root", "another user", "found out", "oldest", "newest, found out"],
)
def test_the_interpreter_is_there_before_the_first_module(
    controller: Controller, linux_target: Any, tmp_path: Path, login: str, explicit: bool, other: Other | None,
) -> None:  # fmt: skip
    """After the first command of any kind; and it is the one by which modules are run then."""
    environment = {"ANSIBLE_HOME": f"{tmp_path}/home", "ANSIBLE_CALLBACKS_ENABLED": "recorded,sojourn.deploy.lifecycle"}
    environment |= other.environment() if other else {}
    words = tmp_path / "variables.json"
    variables = {"ansible_user": login, "ansible_password": linux_target.password(login)}
    words.write_text(json.dumps(variables | ({"ansible_python_interpreter": "/usr/bin/python3"} if explicit else {})))
    tasks = [{"name": "first", "ansible.builtin.raw": "true"}, count("templates", 3), count("before", what=BEGUN),
             *({"name": f"command {number}", "ansible.builtin.command": "id -un"} for number in range(2)), count("after", what=BEGUN)]  # fmt: skip
    played = play(controller, tmp_path, tasks, "-e", f"@{words}", environment=environment).well()
    assert played["linux1", "before"]["stdout"].strip() == "1"
    assert played["linux1", "command 1"]["stdout"] == login
    assert played["linux1", "after"]["stdout"].strip() == "1", "modules came with another command line than foreseen"


def test_nobody_becomes_another_before_the_first_module(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    """Who may is for the tasks to find out. Nor does a play without modules get an interpreter, whatever the one before it has."""
    variables = ["-e", json.dumps({"ansible_user": "operator", "ansible_password": linux_target.password("operator")})]
    environment = {"ANSIBLE_HOME": f"{tmp_path}/home", "ANSIBLE_CALLBACKS_ENABLED": "recorded,sojourn.deploy.lifecycle"}
    log = "journalctl --no-pager -o cat | grep -c 'operator : .*BECOME-SUCCESS' || true"
    before = linux_target.exec(["sh", "-c", log]).stdout
    tasks = [{"name": "first", "ansible.builtin.raw": "sleep 2"}, {"name": "none", "ansible.builtin.raw": COUNT},
             {"name": "no", "ansible.builtin.command": "true", "become": True, "become_user": "{{ 'a' if 1 > 3 else 'visitor' }}", "when": False}]  # fmt: skip
    played = play(controller, tmp_path, tasks, *variables, environment=environment).well()
    assert played["linux1", "none"]["stdout"].strip() == "0" and linux_target.exec(["sh", "-c", log]).stdout == before
