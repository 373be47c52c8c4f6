"""`sojourn.deploy.fetch` beside `ansible.builtin.fetch`: the same tasks, each to a place of its own, come to the same trees and the same results."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import FAMILIES, Controller
from tests.integration.controllers import NEWEST, OLDEST, Other
from tests.integration.playing import Played, play
from tests.lab import Lab

ACTIONS = {"core": "ansible.builtin.fetch", "ours": "sojourn.deploy.fetch"}
AT = "/var/tmp/fetched"
# Ansible's own folder for modules; it makes it over any connection, for whomever a task becomes, and keeps it.
ALWAYS_LEFT = ("files: /root/.ansible*", "files: /home/*/.ansible*")
VERSIONS = pytest.mark.parametrize("other", [None, OLDEST, NEWEST], ids=["installed", "oldest", "newest"])

# What is fetched. Of a local file as large as the very large one it is the size that decides.
VERY_LARGE = 9_000_000
THERE = f"""
rm -rf {AT}; mkdir -m 755 {AT}; cd {AT}; set -e
echo 'a line' >small; : >empty; printf '%0100000d' 7 >large; printf '%0{VERY_LARGE}d' 7 >very-large
mkdir folder; ln -s small link; ln -s very-large link-to-very-large; ln -s folder link-to-folder; ln -s nowhere broken
echo strange >"$(printf -- "-größe 'n\\n\\" \\$HOME")"; mkdir -m 700 closed; echo hidden >closed/inside; echo mine >unreadable; chmod 600 unreadable
"""
STRANGE = "-größe 'n\n\" $HOME"
# Sizes of local files: as long as the target's or not.
AS_LARGE, AS_VERY_LARGE, LARGER = 100_000, VERY_LARGE, VERY_LARGE + 1
GROWN = "echo more >>{at}/very-large"
CHANGED = "printf '%0{size}d' 8 >{at}/very-large"


def step(src: Any, dest: str = "", keywords: dict[str, Any] | None = None, before: str = "", **options: Any) -> dict[str, Any]:
    """A task that fetches; ``dest`` is what follows the case's place. ``before`` it, this is done on the target."""
    before = before.format(at=AT, size=VERY_LARGE)
    return {"src": src, "dest": dest, "keywords": keywords or {}, "before": before, "options": options}


def flat(src: Any, **more: Any) -> dict[str, Any]:
    return step(src, "/there", flat=True, **more)


# By name: what is at the place here before (a size, a link's target, None for a folder), then the tasks, one after the other.
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "by the host's name": ({}, [step("small"), step("small"), step("large"), step("very-large"), step("very-large")]),
    "nothing in it": ({}, [step("empty"), step("empty")]),
    "flat": ({}, [flat("very-large"), flat("very-large"), flat("small"), flat("empty"), flat("large")]),
    "into a folder": ({"in": None}, [step("very-large", "/in/", flat="yes"), step("small", "/in/", flat=True), step("small", "/in", flat=True)]),
    "a folder in the way": ({"in/small": None}, [step("small", "/in/", flat=True), step("small", "/in/small/x", flat=True)]),
    "a file in the way": ({"in": 5}, [step("small", "/in")]),
    "over another": ({"there": AS_VERY_LARGE}, [flat("very-large"), flat("very-large")]),
    "over another size": ({"there": LARGER}, [flat("very-large"), flat("very-large", diff=True)]),
    "over less": ({"there": 5}, [flat("very-large")]),
    "over more": ({"there": LARGER}, [flat("small")]),
    "over as much": ({"there": AS_LARGE}, [flat("large"), flat("large")]),
    "over a link": ({"kept": AS_VERY_LARGE, "there": "kept"}, [flat("very-large"), flat("very-large"), flat("large"), flat("small")]),
    "over a link to nothing": ({"there": "nowhere"}, [flat("very-large")]),
    "over a link to a folder": ({"in": None, "there": "in"}, [flat("small"), step("small", "/there/", flat=True)]),
    "what grew": ({}, [flat("very-large"), flat("very-large", before=GROWN), flat("very-large")]),
    "what changed": ({}, [flat("very-large", before=CHANGED), flat("very-large")]),
    "not validated": ({"there": AS_VERY_LARGE}, [flat("very-large", validate_checksum=False), flat("very-large", validate_checksum="no")]),
    "through links": ({}, [step("link"), step("link-to-very-large"), step("link-to-very-large"), step("broken"), step("link-to-folder")]),
    "a folder": ({}, [step("folder"), step("folder", fail_on_missing=False), step("folder/"), step(f"{AT}/../fetched/folder/../small")]),
    "what is not there": ({}, [step("none"), step("none", fail_on_missing=False), step("small/none"), step("small/none", fail_on_missing="no")]),
    "the kernel's": ({}, [*(step(name, **more) for name in ("/proc/version", "/sys/class/net/lo/mtu") for more in ({}, {"validate_checksum": False}))]),
    "a strange name": ({}, [step(STRANGE), step(STRANGE)]),
    "home": ({}, [step("~/.bashrc"), step("~root/.bashrc"), step("~deployer/.bashrc"), step("~nobody-of-this-name/.bashrc")]),
    "checked": ({}, [flat("very-large", keywords={"check_mode": True, "diff": True}), flat("small", keywords={"check_mode": True})]),
    "in a loop": ({}, [step(f"{AT}/{{{{ item }}}}", keywords={"loop": ["very-large", "none", "small", "very-large"]})]),
    "as another": ({}, [step(name, keywords={"become": True, "become_user": "deployer"}) for name in ("large", "large", "unreadable", "closed/inside")]),
    "not shown": ({}, [flat("very-large", keywords={"no_log": True})]),
    "without pipelining": ({}, [flat("very-large", keywords={"vars": {"ansible_pipelining": False}}), flat("very-large")]),
    "beside it": ({}, [flat("small", keywords={"async": 20, "poll": 1})]),
    "no source": ({}, [step(None), step(["small"]), step(""), step(5)]),
    "no such option": ({}, [flat("small", colour="red")]),
    "outside": ({}, [step("../../../etc/hostname"), step("small", "/../" + "x" * 300, flat=True)]),
    "relative": ({}, [step("small", "RELATIVE"), step("very-large", "RELATIVE", flat=True), step("small", "", flat=True)]),
}  # fmt: skip
# For who has no rights.
SIGNED_IN = {
    "as a user": ({}, [step(name, **more) for name in ("very-large", "unreadable", "closed/inside") for more in ({}, {"fail_on_missing": False})]),
    "as who becomes root": ({}, [step(name, keywords={"become": True}) for name in ("small", "unreadable", "closed/inside")]),
}


def place(folder: Path, number: int, action: str) -> Path:
    """Where a case's tasks fetch to."""
    return folder / f"{number}-{action}"


def prepare(cases: dict[str, Any], folder: Path) -> None:
    """What is there before."""
    for number, (before, _steps) in enumerate(cases.values()):
        for action in ACTIONS:
            here = place(folder, number, action)
            here.mkdir(parents=True)
            for name, what in before.items():
                (here / name).parent.mkdir(exist_ok=True)
                if what is None:
                    (here / name).mkdir()
                elif isinstance(what, str):
                    (here / name).symlink_to(what)
                else:
                    (here / name).write_bytes(bytes(what))
                    os.utime(here / name, (1, 1))


def tasks_of(cases: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Both actions, one after the other."""
    tasks: list[dict[str, Any]] = []
    for number, (name, (_before, steps)) in enumerate(cases.items()):
        tasks.append({"name": f"{name}, there", "ansible.builtin.shell": {"cmd": THERE}, "become": False})
        for position, one in enumerate(steps):
            if one["before"]:
                tasks.append({"name": f"{name} {position}, before", "ansible.builtin.shell": one["before"]})
            for action, module in ACTIONS.items():
                here = place(folder, number, action)
                options = dict(one["options"])
                src = one["src"]
                options["src"] = f"{AT}/{src}" if isinstance(src, str) and src and src[0] not in "/~" else src
                dest = one["dest"]
                options["dest"] = f"{folder.name}/{here.name}/{dest}" if dest == "RELATIVE" else f"{here}{dest}"
                tasks.append({"name": f"{name} {position} {action}", module: options, "ignore_errors": True, **one["keywords"]})
    tasks.append({"name": "clean", "ansible.builtin.raw": f"rm -rf {AT}"})
    return tasks


def tree(folder: Path) -> list[Any]:
    """What is below a folder: names, modes, sizes, contents, where links lead, and whether it is old."""
    lines: list[Any] = []
    for path in sorted(folder.rglob("*")):
        found = path.lstat()
        content = hashlib.sha1(path.read_bytes()).hexdigest() if path.is_file() else None
        leads = os.readlink(path) if path.is_symlink() else None
        lines.append((ascii(str(path.relative_to(folder))), oct(found.st_mode), content, leads, found.st_mtime < 1000))
    return lines


def alike(value: Any) -> Any:
    """A result without what must differ: the place, names of temporary folders and jobs, and where in which file something was raised."""
    text = json.dumps(value, sort_keys=True)
    text = re.sub(r"\b(\d+)-(core|ours)\b", r"\1-X", text).replace(*ACTIONS.values())
    data = json.loads(text)
    for item in (data, *data.get("results", ())):
        for name in ("exception", "warnings"):
            item.pop(name, None)
    return data


def compare(played: Played, cases: dict[str, Any], folder: Path) -> None:
    """Results and trees; all that is not equal is told."""
    wrong = []
    for number, (name, (_before, steps)) in enumerate(cases.items()):
        for position, one in enumerate(steps):
            if one["keywords"].get("check_mode"):
                assert len(re.findall(rf"TASK \[{name} {position} \w+\] \*+\nskipping: ", played.output)) == 2
                continue
            core, ours = (alike(played["linux1", f"{name} {position} {action}"]) for action in ACTIONS)
            if core != ours:
                wrong.append(f"{name} {position}:\n  core {json.dumps(core)}\n  ours {json.dumps(ours)}")
        trees = [tree(place(folder, number, action)) for action in ACTIONS]
        if trees[0] != trees[1]:
            wrong.append(f"{name}:\n  core {trees[0]}\n  ours {trees[1]}")
    assert not wrong, "\n".join(wrong)
    assert len(tree(folder)) > 5 * min(len(cases), 3)


def both(controller: Controller, tmp_path: Path, cases: dict[str, Any], *words: str, **more: Any) -> Played:
    folder = tmp_path / "here"
    prepare(cases, folder)
    played = play(controller, tmp_path, tasks_of(cases, folder), *words, **more).well()
    compare(played, cases, folder)
    return played


@pytest.mark.leaves(*ALWAYS_LEFT)
@pytest.mark.xdist_group("controllers")
@VERSIONS
def test_the_same_as_ansible_core(controller: Controller, other: Other | None, tmp_path: Path) -> None:
    played = both(controller, tmp_path, CASES, environment={**other.environment(), "ANSIBLE_HOME": f"{tmp_path}/home"} if other else None)
    content = b"%0*d" % (VERY_LARGE, 7)
    result = played["linux1", "flat 0 ours"]
    assert result["changed"] and (result["checksum"], result["md5sum"]) == (hashlib.sha1(content).hexdigest(), hashlib.md5(content).hexdigest())
    assert not played["linux1", "flat 1 ours"]["changed"]
    assert all(played["linux1", f"the kernel's {number} ours"]["changed"] for number in (0, 2))


@pytest.mark.leaves(*ALWAYS_LEFT)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_for_who_has_no_rights(controller: Controller, lab: Lab, family: str, tmp_path: Path) -> None:
    password = lab.target("linux1").password("deployer")
    (tmp_path / "login.json").write_text(json.dumps({"ansible_user": "deployer", "ansible_password": password, "ansible_become_password": password}))
    folder = tmp_path / "here"
    prepare(SIGNED_IN, folder)
    tasks = tasks_of(SIGNED_IN, folder)
    for task in tasks:  # what is there is root's
        if "ansible.builtin.shell" in task or "ansible.builtin.raw" in task:
            task["become"] = True
    compare(play(controller, tmp_path, tasks, "-e", f"@{tmp_path}/login.json", family=family).well(), SIGNED_IN, folder)


# What looks at a file where this is beside the playbook; it writes down whether it was to hash it.
STAT = f"""
import hashlib, os
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule({{"path": {{}}, "follow": {{}}, "get_checksum": {{"type": "bool"}}, "checksum_algorithm": {{}}}})
path, hashes = module.params["path"], module.params["get_checksum"]
with open("{AT}/asked", "a") as asked:
    asked.write(f"{{hashes}} ")
result = {{"exists": True, "isdir": False, "isreg": True, "readable": True, "size": os.path.getsize(path)}}
if hashes:
    result["checksum"] = hashlib.sha1(open(path, "rb").read()).hexdigest()
module.exit_json(stat=result)
"""


@pytest.mark.leaves(*ALWAYS_LEFT)
@pytest.mark.xdist_group("controllers")
@VERSIONS
def test_in_the_place_of_ansible_cores(controller: Controller, other: Other | None, tmp_path: Path) -> None:
    """By an option of `lifecycle`, in loops too. The target is not asked to hash what comes; what is here already, of the same size, it is."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library/stat.py").write_text(STAT)
    (tmp_path / "here").mkdir()
    fetch = {"dest": f"{tmp_path}/here/", "flat": True}
    tasks: list[dict[str, Any]] = [
        {"name": "there", "ansible.builtin.shell": {"cmd": THERE}},
        {"name": "builtin", "ansible.builtin.fetch": {"src": f"{AT}/very-large", **fetch}},
        {"name": "plain", "fetch": {"src": f"{AT}/{{{{ item }}}}", **fetch}, "loop": ["large", "small"]},
        {"name": "again", "ansible.legacy.fetch": {"src": f"{AT}/very-large", **fetch}},
        {"name": "asked", "ansible.builtin.raw": f"cat {AT}/asked"}, {"name": "clean", "ansible.builtin.raw": f"rm -rf {AT}"},
    ]  # fmt: skip
    environment = {"ANSIBLE_CALLBACKS_ENABLED": "recorded,sojourn.deploy.lifecycle", "ANSIBLE_HOME": f"{tmp_path}/home"}
    environment |= other.environment() if other else {}
    results = []
    for bundled, asked in ((False, "True True True True"), (True, "False False False False True")):
        for path in (tmp_path / "here").iterdir():
            path.unlink()
        played = play(controller, tmp_path, tasks, environment=environment | {"SOJOURN_BUNDLE_COPIES": str(bundled)}).well()
        assert played["linux1", "asked"]["stdout"].strip() == asked
        results.append([played["linux1", name] for name in ("builtin", "plain", "again")])
        assert [result["changed"] for result in results[-1]] == [True, True, False]
    assert results[0] == results[1]


OWN = """
from ansible.plugins.action import ActionBase
class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        return {"mine": True}
"""


@pytest.mark.leaves(*ALWAYS_LEFT)
@pytest.mark.xdist_group("controllers")
@VERSIONS
def test_an_action_of_the_users_own_stays_what_it_is(controller: Controller, other: Other | None, tmp_path: Path) -> None:
    """Beside the playbook, for plain `fetch`; in either order."""
    (tmp_path / "action_plugins").mkdir()
    (tmp_path / "action_plugins/fetch.py").write_text(OWN)
    options = {"src": "/etc/hostname", "dest": f"{tmp_path}/hostname", "flat": True}
    tasks: list[dict[str, Any]] = [
        {"name": "ours", "sojourn.deploy.fetch": options}, {"name": "own", "fetch": options}, {"name": "core's", "ansible.builtin.fetch": options},
        {"name": "ours again", "sojourn.deploy.fetch": options},
    ]  # fmt: skip
    environment = {"ANSIBLE_CALLBACKS_ENABLED": "recorded,sojourn.deploy.lifecycle", "ANSIBLE_HOME": f"{tmp_path}/home"}
    environment |= other.environment() if other else {}
    for bundled in (False, True):
        played = play(controller, tmp_path, tasks, environment=environment | {"SOJOURN_BUNDLE_COPIES": str(bundled)}).well()
        assert [bool(played["linux1", task["name"]].get("mine")) for task in tasks] == [False, True, False, False]


@pytest.mark.leaves(*ALWAYS_LEFT)
def test_in_a_play_that_names_the_collection(controller: Controller, tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library/stat.py").write_text(STAT)
    played = play(controller, tmp_path, [
        {"name": "there", "ansible.builtin.shell": {"cmd": THERE}},
        {"name": "fetch", "fetch": {"src": f"{AT}/large", "dest": f"{tmp_path}/large", "flat": True}},
        {"name": "asked", "ansible.builtin.raw": f"cat {AT}/asked"}, {"name": "clean", "ansible.builtin.raw": f"rm -rf {AT}"}],
        collections=["sojourn.deploy"]).well()
    assert played["linux1", "asked"]["stdout"].strip() == "False"
    assert hashlib.sha1((tmp_path / "large").read_bytes()).hexdigest() == played["linux1", "fetch"]["checksum"]
