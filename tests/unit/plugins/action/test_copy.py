"""The copying of folders without a target: what is asked for, what is sent, what is placed. That it comes to the same as ansible-core's is for the lab."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ansible.modules
import pytest
from ansible import constants as C
from ansible.errors import AnsibleActionFail

from ansible_collections.sojourn.deploy.plugins.action import copy as action
from ansible_collections.sojourn.deploy.plugins.modules import copy as module
from tests.conftest import COLLECTIONS


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(C, "DEFAULT_LOCAL_TMP", str(tmp_path))
    bundle = action.Bundle()
    yield bundle
    bundle.close()
    assert not os.path.exists(bundle.path)


def core() -> dict[str, str]:
    return {name: (Path(next(iter(ansible.modules.__path__))) / f"{name}.py").read_text() for name in action.CORE}


PROGRAM = """
import sys
from ansible.module_utils import basic
from ansible_collections.sojourn.deploy.plugins.modules import copy
basic._ANSIBLE_ARGS = sys.stdin.buffer.read()
basic._ANSIBLE_PROFILE = "legacy"
copy.main()
"""


def run(plan: dict[str, Any] | None, program: str = PROGRAM, **internals: Any) -> dict[str, Any]:
    """Runs the module, in a process of its own."""
    arguments = {"dest": "/unused", **({"_plan": action.pack(plan)} if plan else {}), **internals}
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode(), capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    assert done.stdout, done.stderr.decode()
    return json.loads(done.stdout)


def plan_of(requests: list[action.Request], contents: str | None = None, inline: str | None = None) -> dict[str, Any]:
    common, own = action.in_common(requests)
    return {"sources": core(), "common": common, "requests": own, "contents": contents, "inline": inline, "diff_limit": 1000, "last": True}


def copied(name: str, dest: Path, size: int, seen: str | None = None, **more: Any) -> action.Request:
    return action.Request("copy", {"src": "/x/.source.txt", "dest": f"{dest}/", "_original_basename": name, **more}, size, seen)


def test_the_installed_ansible_core_is_one_whose_modules_can_be_run() -> None:
    loader = SimpleNamespace(find_plugin_with_context=lambda name, **unused: SimpleNamespace(
        plugin_resolved_path=str(Path(next(iter(ansible.modules.__path__))) / f"{name.rpartition('.')[2]}.py")))
    own = SimpleNamespace(_shared_loader_obj=SimpleNamespace(module_loader=loader), _task=SimpleNamespace(collections=None))
    assert action.ActionModule._sources(own) == core()
    loader.find_plugin_with_context = lambda name, **unused: SimpleNamespace(plugin_resolved_path="/home/me/library/copy.py")
    assert action.ActionModule._sources(own) is None


def test_parameters_in_common_are_sent_once() -> None:
    requests = [
        action.Request("copy", {"mode": "0600", "dest": "/a/", "_original_basename": name, "checksum": name * 2}, 1, None) for name in ("one", "two")]
    for more in ({"path": "/a/b"}, {"path": "/a/c", "src": "x"}):
        requests.append(action.Request("file", {**more, "mode": None}, None, None))
    common, own = action.in_common(requests)
    assert common == {"copy": {"mode": "0600", "dest": "/a/"}, "file": {"mode": None}}
    assert [request.arguments for request in requests] == [{**common[name], **arguments} for name, arguments, size, seen in own]


def test_packed_and_unpacked() -> None:
    value = {"names": ["größe", "new\nline", "\udcff", "-dash"], "mode": None}
    assert action.unpack(module.pack(value)) == module.unpack(action.pack(value)) == value


def test_a_bundle_is_for_this_user_alone_and_has_one_file_after_the_other(bundle: action.Bundle, tmp_path: Path) -> None:
    assert os.stat(bundle.path).st_mode & 0o777 == 0o600
    for name, data in {"one": b"first", "\udcff": b"", "three": b"third"}.items():
        path = os.fsencode(tmp_path) + b"/" + os.fsencode(name)
        Path(os.fsdecode(path)).write_bytes(data)
        assert bundle.add(os.fsdecode(path)) == (len(data), hashlib.sha1(data).hexdigest())
    assert Path(bundle.whole()).read_bytes() == b"firstthird" and bundle.size == 10
    bundle.clear()
    assert Path(bundle.whole()).read_bytes() == b"" and bundle.size == 0


def test_names_that_core_cannot_handle_get_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(C, "DEFAULT_LOCAL_TMP", str(tmp_path))
    names = action.PlainNames()
    assert names.plain("/some/größe\n $HOME") == "/some/größe\n $HOME" and list(tmp_path.iterdir()) == []
    for path in (f"{tmp_path}/\udcfe", f"{tmp_path}/\udcff"):
        link = names.plain(path)
        assert link.isascii() and os.readlink(link) == path
    assert names.meant(link) == f"{tmp_path}/?" and names.meant("/other") == "/other"
    names.close()
    assert not os.path.lexists(link) and not os.path.exists(os.path.dirname(link))


def test_a_file_that_changes_or_vanishes_is_named(bundle: action.Bundle, tmp_path: Path) -> None:
    own = action.ActionModule.__new__(action.ActionModule)
    own._stage, own._bundle, own._placed, own._requests, own._returned, own._seen = "plan", bundle, 0, [], {}, None
    own._task, own._plain_names = SimpleNamespace(args={}), action.PlainNames()
    (tmp_path / "one").write_text("content")
    own._transfer_file(str(tmp_path / "one"), "/tmp/.source")
    with pytest.raises(AnsibleActionFail, match="one changed while it was being copied"):
        own._execute_module(module_name="ansible.legacy.copy", module_args={"checksum": hashlib.sha1(b"as it was").hexdigest()})
    with pytest.raises(AnsibleActionFail, match="two cannot be read any more: No such file or directory"):
        own._transfer_file(str(tmp_path / "two"), "/tmp/.source")


def test_looking(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "gone").symlink_to("nowhere")
    names = ["file", "folder", "link", "gone", "absent", "file/below", "\udcff"]
    sha1 = hashlib.sha1(b"x").hexdigest()
    for follow, link, gone in ((False, [False, f"{tmp_path}/file", ""], [False, f"{tmp_path}/nowhere", ""]), (True, [False, f"{tmp_path}/file", sha1], 0)):
        seen = module.unpack(run({"dest": str(tmp_path), "names": names, "follow": follow, "checksum": True})["seen"])
        assert seen["entries"] == [[False, None, sha1], [True, None, ""], link, gone, 0, None, 0]
        assert seen["one_file_twice"] is follow  # the file, and the link that is followed to it
    (tmp_path / "other").symlink_to("folder")
    seen = module.unpack(run({"dest": str(tmp_path), "names": ["folder/new", "other/new"], "follow": False, "checksum": True})["seen"])
    assert seen == {"entries": [0, 0], "one_file_twice": True}


def test_placing_ends_with_the_first_failure_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    contents, dest, temporary = tmp_path / "contents", tmp_path / "dest", tmp_path / "temporary"
    contents.write_bytes(b"firstsecondthird")
    temporary.mkdir()
    modes = {"one": "0640", "deep/two": "0640", "three": "nonsense", "four": "0640"}
    sizes = {"one": 5, "deep/two": 6, "three": 5, "four": 0}
    requests = [copied(name, dest, size, mode=modes[name]) for name, size in sizes.items()]
    answer = run(plan_of(requests, str(contents)), _ansible_tmpdir=str(temporary), _ansible_remote_tmp=str(temporary))
    assert answer["failed"] and answer["msg"] == "mode must be in octal or symbolic form"
    assert answer["all_of_it"] == {"changed": True, "failed_at": 2, "before": None}
    assert (dest / "one").read_bytes() == b"first" and (dest / "deep/two").read_bytes() == b"second" and (dest / "one").stat().st_mode & 0o777 == 0o640
    assert not (dest / "four").exists() and list(temporary.iterdir()) == []


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/out", ".."])
def test_nothing_is_placed_outside(tmp_path: Path, name: str) -> None:
    (tmp_path / "dest").mkdir()
    (tmp_path / "contents").write_bytes(b"x")
    answer = run(plan_of([copied(name, tmp_path / "dest", 1)], str(tmp_path / "contents")), _ansible_tmpdir=str(tmp_path))
    assert answer["failed"] and "outside of the folder" in answer["msg"]
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_ends_too_early_is_told(tmp_path: Path) -> None:
    (tmp_path / "contents").write_bytes(b"x")
    answer = run(plan_of([copied("one", tmp_path / "dest", 2)], str(tmp_path / "contents")), _ansible_tmpdir=str(tmp_path))
    assert answer["failed"] and answer["msg"] == "The bundle of files ends too early."
    assert not (tmp_path / "dest").exists()


def test_contents_may_come_with_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder for them is the module's own then, and goes with it."""
    temporary, there = tmp_path / "temporary", tmp_path / "there"
    temporary.mkdir()
    there.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    result = run(plan_of([copied("a", there, 3), copied("b", there, 4)], inline=base64.b64encode(b"onefour").decode()))
    assert not result.get("failed") and result["changed"], result
    assert [(there / name).read_bytes() for name in "ab"] == [b"one", b"four"] and not list(temporary.iterdir())


def test_what_an_earlier_one_left_in_the_folder_is_no_hindrance(tmp_path: Path) -> None:
    """A loop has one folder for all of its items. What is left may be a link: it is not followed."""
    folder, there, elsewhere = tmp_path / "folder", tmp_path / "there", tmp_path / "elsewhere"
    folder.mkdir()
    there.mkdir()
    elsewhere.write_text("stays")
    (folder / ".source.txt").symlink_to(elsewhere)
    result = run(plan_of([copied("a", there, 3)], inline=base64.b64encode(b"new").decode()), _ansible_tmpdir=str(folder))
    assert not result.get("failed") and (there / "a").read_bytes() == b"new" and elsewhere.read_text() == "stays", result


def test_what_is_copied_is_in_no_debug_output(tmp_path: Path) -> None:
    """Ansible's own has the arguments of every module in it, `no_log` or not."""
    task = {"sojourn.deploy.copy": {"content": "hidden", "dest": str(tmp_path / "copied")}, "no_log": True}
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]))
    environment = {"ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(tmp_path / "home"), "ANSIBLE_PIPELINING": "true", "ANSIBLE_DEBUG": "true"}
    command = [Path(sys.executable).with_name("ansible-playbook"), "-vvvvv", tmp_path / "play.yml"]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    shown = done.stdout + done.stderr
    assert done.returncode == 0 and (tmp_path / "copied").read_text() == "hidden", shown
    plans = re.findall(r"'_plan': (\S+?)[,})]", shown)
    assert plans and set(plans) == {"'...'"}, plans


def test_where_its_own_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made beside it, though what is to hold it is not there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    found = Path(module.own_folder("~/.ansible/tmp"))
    assert found.parent == tmp_path and list(tmp_path.iterdir()) == [found] and found.stat().st_mode & 0o077 == 0
    (tmp_path / ".ansible/tmp").mkdir(parents=True)
    assert Path(module.own_folder("~/.ansible/tmp")).parent == tmp_path / ".ansible/tmp"
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    assert Path(module.own_folder("/proc/none/tmp")).parent == Path(module.own_folder(None)).parent == tmp_path


def small(monkeypatch: pytest.MonkeyPatch, pipelining: bool = True, **arguments: Any) -> Any:
    copying = object.__new__(action.ActionModule)
    copying._task = SimpleNamespace(args=arguments)
    copying._connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir=None))
    monkeypatch.setattr(copying, "_is_pipelining_enabled", lambda style: pipelining)
    monkeypatch.setattr(copying, "_find_needle", lambda kind, path: path)
    return copying


def test_which_are_small_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small").write_bytes(bytes(action.INLINE))
    (tmp_path / "large").write_bytes(bytes(action.INLINE + 1))
    dest, file = "/there", str(tmp_path / "small")
    for kind, more in {
        "file": [{"src": file}, {"content": "ö" * (action.INLINE // 2)}, {"content": {"a": [1]}}],
        "folder": [{"src": str(tmp_path)}, {"src": str(tmp_path), "validate": "true %s"}],
        "": [{"src": str(tmp_path / "large")}, {"src": str(tmp_path / "none")}, {"src": file, "validate": "true %s"},
             {"content": "ö" * (action.INLINE // 2 + 1)}, {"src": file, "content": "both"},
             {"src": file, "remote_src": "yes"}, {"src": file, "raw": True}, {"content": object()}, {}],
    }.items():  # fmt: skip
        for arguments in more:
            assert small(monkeypatch, dest=dest, **arguments)._kind() == kind, arguments
    assert small(monkeypatch, src=file)._kind() == "" and small(monkeypatch, False, dest=dest, src=file)._kind() == ""
    for kind, pipelining, more in (("large", True, {}), ("", False, {}), ("", True, {"validate": "true %s"}), ("", True, {"remote_src": True})):
        copying = small(monkeypatch, pipelining, dest=dest, src=str(tmp_path / "large"), **more)
        copying._connection.put_file_and_hash = None
        assert copying._kind() == kind, more
    windows = small(monkeypatch, dest=dest, src=file)
    windows._connection._shell._IS_WINDOWS = True
    assert windows._kind() == ""


def test_a_module_never_takes_for_its_folder_what_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that makes a folder of its own keeps it; whatever happens, the name that stands for none does not outlive the task."""
    copying = small(monkeypatch, dest="/there", content="x")
    shell = copying._connection._shell
    seen: list[str | None] = []

    def execute(self: Any, name: Any = None, *unused: Any, **unused_more: Any) -> dict[str, Any]:
        seen.append(shell.tmpdir)
        if name == "makes one":
            shell.tmpdir = "/real"
        return {}

    def core_run(self: Any, tmp: Any, task_vars: Any) -> Any:
        assert self._make_tmp_path() == shell.tmpdir == action.NO_FOLDER
        self._execute_module("ansible.legacy.stat")
        assert shell.tmpdir == action.NO_FOLDER
        self._remove_tmp_path(shell.tmpdir)
        raise AnsibleActionFail("no")

    monkeypatch.setattr(action.CoreCopy, "_execute_module", execute)
    monkeypatch.setattr(action.CoreCopy, "_remove_tmp_path", lambda *unused: pytest.fail("nothing is there to be removed"))
    monkeypatch.setattr(action.CoreCopy, "run", core_run)
    monkeypatch.setattr(copying, "_sources", dict)
    with pytest.raises(AnsibleActionFail):
        copying.run()
    assert seen == [None] and shell.tmpdir is None
    shell.tmpdir = action.NO_FOLDER
    copying._execute_module("makes one")
    assert shell.tmpdir == "/real"


REPLACED = """
from ansible.plugins.loader import action_loader, init_plugin_loader
init_plugin_loader()
from ansible_collections.sojourn.deploy.plugins.action import copy
copy.replace_core()
for name in ("copy", "ansible.builtin.copy", "ansible.legacy.copy"):
    assert action_loader.get(name, class_only=True) is copy.ActionModule, name
assert issubclass(action_loader.get("sojourn.deploy.copy", class_only=True), copy.CoreCopy)
assert copy.core_copy.ActionModule is copy.CoreCopy and not action_loader.get("template", class_only=True)._early_needs_tmp_path(None)
print("replaced")
"""


def test_in_the_place_of_cores(tmp_path: Path) -> None:
    """In a process of its own, for it lasts."""
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", REPLACED], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "replaced\n", done.stderr


def test_what_was_there_is_kept_for_a_diff_of_what_fails(tmp_path: Path) -> None:
    (tmp_path / "contents").write_bytes(b"new")
    (tmp_path / "one").write_text("before\n")
    requests = [copied("one", tmp_path, 3, f"{tmp_path}/one", owner="nosuchuser")]
    before = run(plan_of(requests, str(tmp_path / "contents")), _ansible_tmpdir=str(tmp_path))["all_of_it"]["before"]
    assert (before["peeked"]["state"], before["content"]) == ("file", "YmVmb3JlCg==")


SENT = {"sha1": "5" * 40, "md5": "6" * 32}
WITHOUT_MD5 = PROGRAM.replace("copy.main()", "del basic.AVAILABLE_HASH_ALGORITHMS['md5']\ncopy.main()")


@pytest.mark.parametrize(
    ("digests", "program", "expected"),
    [
        ({"path": "source", **SENT}, PROGRAM, ("5" * 40, "6" * 32)),
        ({"path": "source", "sha1": "5" * 40, "md5": None}, PROGRAM, ("5" * 40, hashlib.md5(b"new").hexdigest())),
        ({"path": "source", **SENT}, WITHOUT_MD5, ("5" * 40, None)),
        ({"path": "sourc", **SENT}, PROGRAM, (hashlib.sha1(b"new").hexdigest(), hashlib.md5(b"new").hexdigest())),
        (None, WITHOUT_MD5, (hashlib.sha1(b"new").hexdigest(), None)),
    ],
)
def test_what_was_hashed_on_its_way_is_not_hashed_again(tmp_path: Path, digests: dict[str, Any] | None, program: str, expected: Any) -> None:
    """That the digests are others shows who has made them. Nothing but that file has them, so one that was there is replaced."""
    (tmp_path / "source").write_bytes(b"new")
    (tmp_path / "there").write_bytes(b"old")
    request = action.Request("copy", {"src": f"{tmp_path}/source", "dest": f"{tmp_path}/there", "checksum": expected[0], "backup": True}, None, None)
    plan = plan_of([request])
    if digests:
        plan["digests"] = {**digests, "path": f"{tmp_path}/{digests['path']}"}
    result = run(plan, program)
    assert not result.get("failed") and result["changed"], result
    assert (result["checksum"], result["md5sum"]) == expected and (tmp_path / "there").read_bytes() == b"new"


class Large:
    """Core's own code, with a large file that is to be copied and a target that answers as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, *there: dict[str, Any], **arguments: Any) -> None:
        self.asked: list[Any] = []
        self.placed: dict[str, Any] = {}
        self.answer: dict[str, Any] = {"changed": True}
        self.sent: dict[str, Any] = SENT
        copying = small(monkeypatch, src=str(path), dest="/there", **arguments)
        self.copying, self.path, self._there = copying, path, list(there)
        copying._size = action.HASHED_IF_ASKED
        copying._task.diff = copying._task.check_mode = False
        copying._task.collections = []
        copying._vars = {}
        copying._loader = SimpleNamespace(get_real_file=lambda path, decrypt: path, cleanup_tmp_file=lambda path: None)
        copying._connection = SimpleNamespace(put_file_and_hash=self._put, become=None, _shell=SimpleNamespace(
            tmpdir="/tmp/folder", path_has_trailing_slash=lambda path: path.endswith("/"), join_path=os.path.join))
        monkeypatch.setattr(copying, "_fixup_perms2", lambda paths: paths)
        monkeypatch.setattr(action.CoreCopy, "_execute_module", lambda unused, *words, **more: self._execute(*words, **more))

    def _put(self, local: str, remote: str) -> dict[str, Any]:
        self.asked.append("put")
        return {"size": 1, "checksum": "7" * 64, **self.sent}

    def _execute(self, module_name: str, module_args: dict[str, Any], **unused: Any) -> dict[str, Any]:
        if module_name.endswith("stat"):
            self.asked.append(("stat", module_args["get_checksum"]))
            return {"stat": self._there.pop(0)}
        self.asked.append(module_name)
        if module_name == action.MODULE:
            self.placed = action.unpack(module_args["_plan"])
        return dict(self.answer)

    def copy(self) -> Any:
        with self.copying._hashing_on_the_way(core()):
            return self.copying._copy_file(str(self.path), "file", None, None, "/there", {}, False)


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    (tmp_path / "large").write_bytes(b"large")
    return tmp_path / "large"


def not_hashed(path: str) -> Any:
    raise AssertionError("it is hashed")


REGULAR = {"exists": True, "isdir": False, "isreg": True, "readable": True}
HAS = hashlib.sha1(b"large").hexdigest()


@pytest.mark.parametrize("there", [
    {"exists": False}, {**REGULAR, "size": 4}, {**REGULAR, "size": 5, "readable": False}, {**REGULAR, "size": 5, "isreg": False, "islnk": True},
])  # fmt: skip
def test_a_large_file_is_hashed_only_while_it_is_sent(monkeypatch: pytest.MonkeyPatch, large_file: Path, there: dict[str, Any]) -> None:
    large = Large(monkeypatch, large_file, there)
    monkeypatch.setattr(action.core_copy, "checksum", not_hashed)
    result = large.copy()
    assert large.asked == [("stat", False), "put", action.MODULE] and action.core_copy.checksum is not_hashed
    ((name, arguments, size, seen),) = large.placed["requests"]
    assert (name, arguments["checksum"], size, seen) == ("copy", SENT["sha1"], None, None)
    assert large.placed["digests"] == {"path": arguments["src"], **SENT} and result["checksum"] == SENT["sha1"]


def test_a_large_file_of_a_folder_is_hashed_only_while_it_is_sent(monkeypatch: pytest.MonkeyPatch, large_file: Path) -> None:
    monkeypatch.setattr(action.core_copy, "checksum", not_hashed)
    monkeypatch.setattr(action, "LARGE", 5)
    monkeypatch.setattr(action, "HASHED_IF_ASKED", 5)
    large = Large(monkeypatch, large_file, {"exists": False})
    copying = large.copying
    copying._requests, copying._plain_names, copying._core_sources = [], action.PlainNames(), core()
    with copying._in("plan"):
        result = copying._copy_file(str(large_file), "file", None, None, "/there", {}, False)
        assert copying._stage == "plan"
    assert large.asked == [("stat", False), "put", action.MODULE] and result["checksum"] == SENT["sha1"]


def test_a_large_file_whose_checksum_was_given(monkeypatch: pytest.MonkeyPatch, large_file: Path) -> None:
    """It is for core's module to compare; a failure before that shows what was sent."""
    monkeypatch.setattr(action.core_copy, "checksum", not_hashed)
    large = Large(monkeypatch, large_file, {"exists": False}, checksum=action.NOT_YET)
    large.answer = {"failed": True, "msg": "no"}
    assert large.copy()["checksum"] == SENT["sha1"] and large.placed["requests"][0][1]["checksum"] == action.NOT_YET


def test_a_large_file_whose_digests_another_transfer_makes(monkeypatch: pytest.MonkeyPatch, large_file: Path) -> None:
    """It goes on as core has it: both ends hash it."""
    large = Large(monkeypatch, large_file, {"exists": False})
    large.sent = {"sha1": None, "md5": None}
    assert large.copy()["checksum"] == large.placed["requests"][0][1]["checksum"] == HAS
    assert large.asked == [("stat", False), "put", action.MODULE] and large.placed["digests"] is None


@pytest.mark.parametrize("there", ["0" * 40, ""])
def test_a_large_file_in_the_place_of_another_of_its_size(monkeypatch: pytest.MonkeyPatch, large_file: Path, there: str) -> None:
    large = Large(monkeypatch, large_file, {**REGULAR, "size": 5}, {**REGULAR, "size": 5, "checksum": there})
    assert large.copy()["checksum"] == SENT["sha1"]
    assert large.asked == [("stat", False), ("stat", True), "put", action.MODULE]
    assert large.placed["requests"][0][1]["checksum"] == HAS, "core's module compares it with what was sent"


def test_a_large_file_that_is_there_is_not_sent(monkeypatch: pytest.MonkeyPatch, large_file: Path) -> None:
    large = Large(monkeypatch, large_file, {**REGULAR, "size": 5}, {**REGULAR, "size": 5, "checksum": HAS})
    assert large.copy()["checksum"] == HAS
    assert large.asked == [("stat", False), ("stat", True), "ansible.legacy.file"]


@pytest.mark.parametrize(("there", "then"), [("0" * 40, ["put", action.MODULE]), (HAS, ["ansible.legacy.file"])])
def test_what_is_less_large_is_asked_about_once(monkeypatch: pytest.MonkeyPatch, large_file: Path, there: str, then: list[str]) -> None:
    large = Large(monkeypatch, large_file, {**REGULAR, "size": 5, "checksum": there})
    large.copying._size = action.HASHED_IF_ASKED - 1
    large.copy()
    assert large.asked == [("stat", True), *then]


def test_a_large_file_that_is_in_no_folder_yet_is_not_hashed_without_force(monkeypatch: pytest.MonkeyPatch, large_file: Path) -> None:
    monkeypatch.setattr(action.core_copy, "checksum", not_hashed)
    assert Large(monkeypatch, large_file, {"exists": False}, force=False).copy()["checksum"] == SENT["sha1"]
    there = Large(monkeypatch, large_file, {**REGULAR, "size": 5}, force=False)
    assert there.copy() is None and there.asked == [("stat", False)]


def test_what_is_not_to_be_replaced_is_not_hashed(monkeypatch: pytest.MonkeyPatch, large_file: Path) -> None:
    there = Large(monkeypatch, large_file, {**REGULAR, "size": 5}, force=False)
    there.copying._size = action.HASHED_IF_ASKED - 1
    assert there.copy() is None and there.asked == [("stat", False)]


@pytest.mark.parametrize("how", ["longer", "as long", "another", "gone"])
@pytest.mark.parametrize("known", [True, False])
def test_a_large_file_that_changes_while_it_is_sent(monkeypatch: pytest.MonkeyPatch, large_file: Path, how: str, known: bool) -> None:
    large = Large(monkeypatch, large_file, {"exists": False})
    large.sent = SENT if known else {"sha1": None, "md5": None}

    def put(local: str, remote: str) -> dict[str, Any]:
        if how in ("another", "gone"):
            large_file.unlink()
        if how != "gone":
            large_file.write_bytes(b"Large, and more" if how == "longer" else b"Large")
            os.utime(large_file, (1, 1))
        return {"size": 5, "checksum": "7" * 64, **large.sent}

    large.copying._connection.put_file_and_hash = put
    with pytest.raises(AnsibleActionFail, match="changed while it was being copied"):
        large.copy()
    assert large.asked == [("stat", False)]


@pytest.mark.parametrize(("user", "trusted"), [("root", True), ("deployer", True), ("visitor", False)])
def test_where_others_may_get_at_a_large_file_it_is_hashed_there(monkeypatch: pytest.MonkeyPatch, large_file: Path, user: str, trusted: bool) -> None:
    """Its folder may be a group's, where a task becomes a user without rights."""
    large = Large(monkeypatch, large_file, {"exists": False})
    monkeypatch.setattr(large.copying, "_is_become_unprivileged", lambda: user not in ("root", "deployer"))
    large.copy()
    assert bool(large.placed["digests"]) == trusted and large.placed["requests"][0][1]["checksum"] == SENT["sha1"]


def test_a_large_file_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, large_file: Path) -> None:
    """Core's code says so, as ever; and where both ends are asked, what goes wrong on either."""
    def fails(path: str) -> Any:
        raise AnsibleActionFail(f"no such {os.path.basename(path)}")

    large = Large(monkeypatch, large_file, {"exists": False}, {**REGULAR, "size": 5}, {**REGULAR, "size": 5})
    monkeypatch.setattr(action.core_copy, "checksum", fails)
    large_file.rename(f"{large_file}-away")
    with pytest.raises(AnsibleActionFail, match="no such large"):
        large.copy()
    os.rename(f"{large_file}-away", large_file)
    with pytest.raises(AnsibleActionFail, match="no such large"):
        large.copy()
    assert action.core_copy.checksum is fails and large.copying._stage == ""


def test_without_a_plan_it_says_whose_it_is() -> None:
    assert "by the action of its name" in run(None)["msg"]


def test_a_bundle_goes_when_it_is_large_enough(tmp_path: Path, bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is to be room for a bundle on either end, not for all of the folder once more."""
    monkeypatch.setattr(action, "BUNDLE", 1000)
    copying = object.__new__(action.ActionModule)
    copying._stage, copying._bundle, copying._returned = "plan", bundle, {}
    copying._plain_names = SimpleNamespace(plain=str)
    placed: list[int] = []

    def place() -> None:
        placed.append(bundle.size)
        bundle.clear()

    monkeypatch.setattr(action.CoreCopy, "_copy_file", lambda self, source, *unused: bundle.add(source) and {})
    monkeypatch.setattr(copying, "_place", place)
    for size in (600, 600, 10, 900, 1000, 5):
        (tmp_path / "file").write_bytes(bytes(size))
        copying._copy_file(str(tmp_path / "file"), "file", None, None, "/there", {}, False)
    assert placed == [1200, 1910]
    assert bundle.size == 5
