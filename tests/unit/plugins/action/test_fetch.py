"""The fetching of a file without a target: what is asked for, and what is hashed. That it comes to the same as ansible-core's is for the lab."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError

from ansible_collections.sojourn.deploy.plugins.action import fetch as action
from ansible_collections.sojourn.deploy.plugins.plugin_utils.file_identity import Identity
from tests.conftest import COLLECTIONS

DATA = b"what is there"
SHA1, MD5 = hashlib.sha1(DATA).hexdigest(), hashlib.md5(DATA).hexdigest()
REGULAR = {"exists": True, "isdir": False, "isreg": True, "readable": True, "size": len(DATA)}
# What comes is told with digests of its own: they show who has made them.
SENT = {"sha1": "5" * 40, "md5": "6" * 32}


class Fetching:
    """Core's code with a target that answers what it is told, and a record of what it was asked, and what was hashed here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, *there: Any, **arguments: Any) -> None:
        self.asked: list[Any] = []
        self.hashed: list[str] = []
        self.sent: dict[str, Any] = {**SENT, "resumed": False}
        self.dest = folder / "fetched"
        self.meanwhile: Any = lambda: None
        self._there = list(there)
        fetching = object.__new__(action.ActionModule)
        self.fetching = fetching
        fetching._task = SimpleNamespace(
            args={"src": "/there", "dest": str(self.dest), "flat": True, **arguments}, check_mode=False, async_val=0, diff=False, action="fetch")
        fetching._loader = SimpleNamespace(path_dwim=lambda path: path)
        shell = SimpleNamespace(tmpdir=None, join_path=os.path.join, _unquote=lambda path: path)
        fetching._connection = SimpleNamespace(fetch_file_and_hash=self._fetch, become=None, _shell=shell)
        fetching._supports_async = fetching._supports_check_mode = True
        monkeypatch.setattr(action.CoreFetch, "_execute_module", lambda unused, *words, **more: self._execute(*words, **more))
        monkeypatch.setattr(action.CoreFetch, "_remote_expand_user", self._expand)
        for name in ("checksum", "secure_hash", "md5"):
            of_core = getattr(action.core_fetch, name)
            monkeypatch.setattr(action.core_fetch, name, lambda path, name=name, of_core=of_core: self._hash(name, path, of_core))

    def _hash(self, name: str, path: str, of_core: Any) -> Any:
        if os.path.exists(path) and path != os.devnull:
            self.hashed.append(name)
        return of_core(path)

    def _expand(self, path: str) -> str:
        if path.startswith("~"):
            self.asked.append("home")
        return path.replace("~", "/home")

    def _execute(self, module_name: str, module_args: dict[str, Any], **unused: Any) -> dict[str, Any]:
        if module_name.endswith("stat"):
            self.asked.append(("stat", module_args["get_checksum"]))
            answer = self._there.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return {"stat": dict(answer)}
        self.asked.append(module_name.removeprefix("ansible.legacy."))
        return {"failed": True, "msg": "file not found: /there"}

    def _fetch(self, remote: str, local: str) -> dict[str, Any]:
        self.asked.append("fetch")
        assert (remote, local) == (self.fetching._task.args["src"].replace("~", "/home"), str(self.dest))
        self.dest.write_bytes(DATA)
        result = {**self.sent, "identity": list(Identity.of(self.dest.stat()))}
        self.meanwhile()
        return result

    def run(self) -> dict[str, Any]:
        before = dict(vars(action.core_fetch))
        try:
            return self.fetching.run(None, {"inventory_hostname": "web1"})
        finally:
            assert vars(action.core_fetch) == before and not hasattr(self.fetching._connection, "fetch_file")


def said(result: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(result.get(name) for name in ("changed", "failed", "checksum", "remote_checksum", "md5sum"))


HASHED = (True, None, SENT["sha1"], SENT["sha1"], SENT["md5"])


@pytest.mark.parametrize("size", [None, len(DATA) - 1, len(DATA) + 1])
def test_a_file_is_hashed_only_while_it_comes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int | None) -> None:
    """Where there is none here, and where there is another, to judge by its size."""
    monkeypatch.setattr(action, "HASHED_IF_ASKED", 0)
    fetching = Fetching(monkeypatch, tmp_path, REGULAR)
    if size is not None:
        fetching.dest.write_bytes(bytes(size))
    assert said(fetching.run()) == HASHED
    assert fetching.asked == [("stat", False), "fetch"] and fetching.hashed == []


def test_one_of_the_same_size_is_compared_as_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(action, "HASHED_IF_ASKED", 0)
    fetching = Fetching(monkeypatch, tmp_path, REGULAR, {**REGULAR, "checksum": SHA1})
    fetching.dest.write_bytes(DATA)
    assert said(fetching.run()) == (False, None, SHA1, None, MD5)
    assert fetching.asked == [("stat", False), ("stat", True)] and fetching.hashed == ["checksum", "md5"]
    fetching = Fetching(monkeypatch, tmp_path, REGULAR, {**REGULAR, "checksum": SENT["sha1"]})
    assert said(fetching.run()) == HASHED
    assert fetching.asked == [("stat", False), ("stat", True), "fetch"] and fetching.hashed == ["checksum"]


@pytest.mark.parametrize("validate", [True, False])
def test_another_than_was_asked_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, validate: bool) -> None:
    """It was changed between the question and its way here."""
    monkeypatch.setattr(action, "HASHED_IF_ASKED", 0)
    fetching = Fetching(monkeypatch, tmp_path, REGULAR, {**REGULAR, "checksum": "7" * 40}, validate_checksum=validate)
    fetching.dest.write_bytes(DATA)
    result = fetching.run()
    assert said(result) == (None if validate else True, validate or None, SENT["sha1"], "7" * 40, SENT["md5"])
    assert result.get("msg") == ("checksum mismatch" if validate else None)


def test_over_a_small_one_the_target_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for there, came in ((SHA1, (False, None, SHA1, None, MD5)), (SENT["sha1"], HASHED)):
        fetching = Fetching(monkeypatch, tmp_path, {**REGULAR, "checksum": there})
        fetching.dest.write_bytes(DATA)
        assert said(fetching.run()) == came
        assert fetching.asked == [("stat", True), *(["fetch"] if came is HASHED else [])]


@pytest.mark.parametrize("there", [SENT["sha1"], "7" * 40])
def test_what_came_in_pieces_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: str) -> None:
    """They may be of two files."""
    fetching = Fetching(monkeypatch, tmp_path, REGULAR, {**REGULAR, "checksum": there})
    fetching.sent["resumed"] = True
    result = fetching.run()
    assert fetching.asked == [("stat", False), "fetch", ("stat", True)]
    assert said(result) == (HASHED if there == SENT["sha1"] else (None, True, SENT["sha1"], there, SENT["md5"]))


@pytest.mark.parametrize("how", ["longer", "as long", "another"])
def test_what_is_another_when_it_is_there_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str) -> None:
    """Such as another host's file, to the same place."""
    fetching = Fetching(monkeypatch, tmp_path, REGULAR)
    content = b"another and longer" if how == "longer" else bytes(len(DATA))

    def meanwhile() -> None:
        if how == "another":
            fetching.dest.rename(tmp_path / "kept")
        fetching.dest.write_bytes(content)
        os.utime(fetching.dest, (1, 1))

    fetching.meanwhile = meanwhile
    result = fetching.run()
    assert said(result) == (None, True, hashlib.sha1(content).hexdigest(), SENT["sha1"], hashlib.md5(content).hexdigest())
    assert result["msg"] == "checksum mismatch"


def test_what_vanishes_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetching = Fetching(monkeypatch, tmp_path, REGULAR)
    fetching.meanwhile = lambda: fetching.dest.unlink()
    assert said(fetching.run()) == (None, True, None, SENT["sha1"], None)


def test_where_there_is_no_md5(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The broker may have one where FIPS 140 forbids to tell it; and the other way round."""
    def forbidden(path: str) -> str:
        raise ValueError("disabled for FIPS")

    fetching = Fetching(monkeypatch, tmp_path, REGULAR)
    with monkeypatch.context() as patch:
        patch.setattr(action.core_fetch, "md5", forbidden)
        assert said(fetching.run()) == (*HASHED[:4], None)
    fetching.dest.unlink()
    fetching = Fetching(monkeypatch, tmp_path, REGULAR)
    fetching.sent["md5"] = None
    assert said(fetching.run()) == (*HASHED[:4], MD5) and fetching.hashed == ["md5"]


@pytest.mark.parametrize("there", [{"exists": False}, {**REGULAR, "readable": False}, {**REGULAR, "isreg": False}], ids=str)
def test_what_has_no_checksum_is_for_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: dict[str, Any]) -> None:
    fetching = Fetching(monkeypatch, tmp_path, there)
    assert "does not exist" in fetching.run()["msg"] and fetching.asked == [("stat", False), "slurp"]


def test_a_folder_is_for_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetching = Fetching(monkeypatch, tmp_path, {**REGULAR, "isdir": True, "isreg": False})
    assert "is a directory" in fetching.run()["msg"] and fetching.asked == [("stat", False)]


def test_a_stat_of_another_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user's own, which tells the checksum in any case, or no size."""
    monkeypatch.setattr(action, "HASHED_IF_ASKED", 0)
    fetching = Fetching(monkeypatch, tmp_path, {"exists": True, "isdir": False, "checksum": SENT["sha1"]})
    assert said(fetching.run()) == HASHED and fetching.asked == [("stat", False), "fetch"]
    without = {name: value for name, value in REGULAR.items() if name != "size"}
    fetching = Fetching(monkeypatch, tmp_path, without, {**without, "checksum": SHA1})
    assert said(fetching.run()) == (False, None, SHA1, None, MD5) and fetching.asked == [("stat", False), ("stat", True)]


def test_a_file_without_size_may_have_something_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Such as those in /proc, of which nothing comes: that is a failure, as it is with core."""
    fetching = Fetching(monkeypatch, tmp_path, {**REGULAR, "size": 0}, {**REGULAR, "size": 0, "checksum": "7" * 40})
    assert said(fetching.run()) == (None, True, SENT["sha1"], "7" * 40, SENT["md5"])
    assert fetching.asked == [("stat", False), ("stat", True), "fetch"]


def test_a_local_file_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Core's code says so, though it is of another size."""
    monkeypatch.setattr(action, "HASHED_IF_ASKED", 0)
    fetching = Fetching(monkeypatch, tmp_path, REGULAR)
    fetching.dest.write_bytes(b"x")

    def none(*unused: Any, **unused_more: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", none)
    with pytest.raises(AnsibleError, match="Permission denied"):
        fetching.run()
    assert fetching.asked == [("stat", False)]


def test_what_core_refuses_it_refuses_in_its_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetching = Fetching(monkeypatch, tmp_path, REGULAR)
    fetching.dest.mkdir()
    with pytest.raises(AnsibleActionFail, match="dest is an existing directory"):
        fetching.run()
    assert fetching.asked == [("stat", False)]
    fetching = Fetching(monkeypatch, tmp_path, dest=None)
    with pytest.raises(AnsibleActionFail, match="src and dest are required|Invalid type"):
        fetching.run()
    assert fetching.asked == []


def test_a_target_that_is_lost_is_told_as_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetching = Fetching(monkeypatch, tmp_path, AnsibleConnectionFailure("gone"))
    with pytest.raises(AnsibleConnectionFailure):
        fetching.run()
    monkeypatch.setattr(action, "HASHED_IF_ASKED", 0)
    fetching = Fetching(monkeypatch, tmp_path, REGULAR, AnsibleConnectionFailure("gone"))
    fetching.dest.write_bytes(DATA)
    with pytest.raises(AnsibleConnectionFailure):
        fetching.run()


def test_a_home_is_asked_for_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetching = Fetching(monkeypatch, tmp_path, REGULAR, src="~/there")
    assert said(fetching.run()) == HASHED and fetching.asked == ["home", ("stat", False), "fetch"]


@pytest.mark.parametrize("how", ["become", "windows", "another connection", "another version"])
def test_all_else_is_as_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str) -> None:
    fetching = Fetching(monkeypatch, tmp_path, {**REGULAR, "checksum": SHA1})
    connection = fetching.fetching._connection
    fetch = connection.fetch_file_and_hash
    if how == "become":
        connection.become = True
    elif how == "windows":
        connection._shell._IS_WINDOWS = True
    elif how == "another connection":
        del connection.fetch_file_and_hash
    else:
        monkeypatch.setattr(action, "CALLED", action.CALLED | {"something_else"})
    connection.fetch_file = fetch
    monkeypatch.setattr(fetching.fetching, "_answering", lambda: pytest.fail("it is answered otherwise"))
    result = fetching.fetching.run(None, {"inventory_hostname": "web1"})
    if how == "become":
        assert fetching.asked == ["slurp"]
    else:
        assert said(result) == (True, None, SHA1, SHA1, MD5)
        assert fetching.asked == [("stat", True), "fetch"] and fetching.hashed == ["secure_hash", "md5"]


def test_the_installed_ansible_core_is_one_that_can_be_answered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Fetching(monkeypatch, tmp_path).fetching._hashes_on_the_way()


REPLACED = """
from ansible.plugins.loader import action_loader, init_plugin_loader
init_plugin_loader()
from ansible_collections.sojourn.deploy.plugins.action import fetch
fetch.replace_core()
for name in ("fetch", "ansible.builtin.fetch", "ansible.legacy.fetch"):
    assert action_loader.get(name, class_only=True) is fetch.ActionModule, name
assert issubclass(action_loader.get("sojourn.deploy.fetch", class_only=True), fetch.CoreFetch)
assert fetch.core_fetch.ActionModule is fetch.CoreFetch
print("replaced")
"""


def test_in_the_place_of_cores(tmp_path: Path) -> None:
    """In a process of its own, for it lasts."""
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", REPLACED], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "replaced\n", done.stderr
