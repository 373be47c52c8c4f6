"""Modules that go to a target ahead of their tasks: they are there, for who runs modules only, and come to the same results."""

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
NEVER = ("slurp", "find", "getent", "lineinfile", "replace")


def count(name: str, least: int = 0) -> dict[str, Any]:
    return {"name": name, "ansible.builtin.raw": COUNT, "register": "counted", "until": f"counted.stdout | int >= {least}", "retries": 60, "delay": 1}


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
