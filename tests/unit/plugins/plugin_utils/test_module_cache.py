"""What is packed for a play beforehand, in a real process, by Ansible's own code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible import constants as C

from ansible_collections.sojourn.deploy.plugins.plugin_utils import module_cache
from tests.conftest import COLLECTIONS


def task(action: str, uuid: str = "") -> SimpleNamespace:
    return SimpleNamespace(action=action, collections=None, _uuid=uuid)


def play(*items: Any, facts: bool = False) -> Any:
    return SimpleNamespace(gather_facts=facts, compile=lambda: list(items))


def block(*items: Any, rescue: Any = (), always: Any = ()) -> SimpleNamespace:
    return SimpleNamespace(block=list(items), rescue=list(rescue), always=list(always))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(C, "DEFAULT_LOCAL_TMP", str(tmp_path))
    return tmp_path / "ansiballz_cache"


def wait(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert module_cache.stop(pid, wait=False)


def test_what_a_play_runs_is_known_beforehand() -> None:
    inner = block(task("copy"), task("some.collection.module"))
    tree = block(task("ansible.builtin.debug"), inner, rescue=[task("copy")], always=[task("command"), task("raw")])
    assert [name for name, unused in module_cache.modules(play(tree, block(task("shell")), facts=True))] == [
        "ansible.legacy.setup", "ansible.legacy.stat", "ansible.legacy.copy", "ansible.legacy.file", "some.collection.module", "command",
        "ansible.legacy.command"]  # fmt: skip
    ours = ["ansible.legacy.stat", "sojourn.deploy.copy", "ansible.legacy.file", "ansible.legacy.copy"]
    assert [name for name, unused in module_cache.modules(play(block(task("sojourn.deploy.copy"))))] == ours
    assert [name for name, unused in module_cache.modules(play(block(task("sojourn.deploy.fetch"))))] == ["ansible.legacy.stat"]
    assert [name for name, unused in module_cache.modules(play(block(task("ansible.builtin.template"), task("ping"))), bundle_copies=True)] == [*ours, "ping"]


@pytest.mark.parametrize(
    ("items", "last"),
    [
        ([block(task("debug", "a"), task("copy", "b"))], "b"),
        ([block(task("debug", "a")), block(task("copy", "b"))], "b"),
        ([block(task("debug", "a"), block(task("copy", "b"), rescue=[task("copy", "c")], always=[task("raw", "d"), task("raw", "e")]))], "e"),
        ([block(task("debug", "a"), rescue=[task("copy", "b")])], "a"),
        ([block(task("debug", "a"), block(task("raw", "b")), task("copy", "c"), always=[block()])], "c"),
        ([block(task("debug", "a"), task("meta", "b")), block(task("ansible.builtin.meta", "c"))], "a"),
        ([block(task("meta", "a"))], None),
        ([block()], None),
        ([], None),
    ],
    ids=["a block", "blocks", "always", "rescue", "nested", "meta", "only meta", "empty", "nothing"],
)
def test_the_task_that_a_play_ends_with(items: list[Any], last: str | None) -> None:
    assert module_cache.last_task(play(*items, facts=True)) == last


def test_of_a_play_that_is_wrong_nobody_knows_the_last_task() -> None:
    def bad() -> Any:
        raise ValueError("not a play")

    assert module_cache.last_task(SimpleNamespace(compile=bad)) is None


# In a process of its own, as a run is.
LIKELY = """
import json, sys
from ansible import context
from ansible.module_utils.common.collections import ImmutableDict
from ansible.plugins.loader import init_plugin_loader
init_plugin_loader()
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play import Play
from ansible.vars.manager import VariableManager
from ansible_collections.sojourn.deploy.plugins.plugin_utils import module_cache
found = []
for host, play, asked in json.load(sys.stdin):
    context.CLIARGS = ImmutableDict(asked)
    loader = DataLoader()
    inventory = InventoryManager(loader, sources=['one,two,'])
    for name, value in {'ansible_connection': 'sojourn.deploy.ssh', **host}.items():
        inventory.get_host('one').set_variable(name, value)
    inventory.get_host('two').set_variable('ansible_connection', 'sojourn.deploy.ssh')
    variables = VariableManager(loader, inventory)
    found.append(module_cache.likely(Play.load({'hosts': 'all', **play}, variable_manager=variables, loader=loader)))
print(json.dumps(found))
"""
PYTHON = {"ansible_python_interpreter": "/usr/bin/python3.9"}
MODULE = {"command": "true"}
FIRST: dict[str, Any] = {"gather_facts": False, "tasks": [{"raw": "true"}, MODULE]}
Case = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


def likely(tmp_path: Path, cases: list[Case], **variables: str) -> list[Any]:
    """Of each: the first host's variables, the play, what was said on the command line."""
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(tmp_path / "home"), **variables}
    done = subprocess.run([sys.executable, "-c", LIKELY], env=environment, input=json.dumps(cases), capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout.replace(" && sleep 0", "").replace("'", ""))  # of which newer ones do without
    assert len(found) == len(cases)
    return found


PLAIN = ["/bin/sh -c @interpreter@", ["/usr/bin/python3.9"]]
LOCAL = [{**MODULE, "become": True, "delegate_to": "localhost"}, {**MODULE, "connection": "local"}]
RESCUED = {"block": [{"debug": {"msg": "x"}}], "rescue": [{**MODULE, "become": True}]}


def test_by_what_modules_will_be_run_is_known_beforehand(tmp_path: Path) -> None:
    """That it is what Ansible says then, test_modules_ahead shows."""
    cases: dict[str, Case] = {
        "plain": (PYTHON, FIRST, {}),
        "as whom it is anyway": ({**PYTHON, "ansible_user": "root"}, {**FIRST, "become": True}, {}),
        "raw is no module": (PYTHON, {"gather_facts": False, "tasks": [{"raw": "true", "become": True}, MODULE]}, {}),
        "the facts come first": (PYTHON, {"tasks": [{**MODULE, "become": True}]}, {}),
        "the first that is for this host": (PYTHON, {"gather_facts": False, "tasks": [*LOCAL, RESCUED, MODULE]}, {}),
    }
    assert dict(zip(cases, likely(tmp_path, list(cases.values())), strict=True)) == dict.fromkeys(cases, PLAIN)
    configured = likely(tmp_path, [({}, FIRST, {}), ({"ansible_connection": "local"}, FIRST, {})], ANSIBLE_PYTHON_INTERPRETER="/usr/bin/python3.9")
    assert configured == [PLAIN, PLAIN], "of the first that is reached so"


def test_an_interpreter_is_looked_for_where_ansible_will(tmp_path: Path) -> None:
    names = ["python4", "/opt/python"]
    hosts: list[dict[str, Any]] = [{}, {"ansible_python_interpreter": "auto_silent"}, {"ansible_interpreter_python_fallback": names}]
    usual, silent, other = likely(tmp_path, [(host, FIRST, {}) for host in hosts])
    if "_INTERPRETER_PYTHON_DISTRO_MAP" in C.config.get_configuration_definitions():
        assert usual is silent is other is None, "there a list of systems decides"
        return
    assert usual == silent and usual[0] == PLAIN[0] and len(usual[1]) > 1 and "/usr/bin/python3" in usual[1]
    assert other == [PLAIN[0], names]


def test_by_what_modules_will_be_run_is_not_guessed_at(tmp_path: Path) -> None:
    """Least of all where somebody would become another: what is refused is written down, and told to somebody."""
    cases: dict[str, Case] = {
        "an old way": ({"ansible_python_interpreter": "auto_legacy"}, FIRST, {}),
        "a template": ({"ansible_python_interpreter": "{{ found }}"}, FIRST, {}),
        "two words": ({"ansible_python_interpreter": "/usr/bin/env python3"}, FIRST, {}),
        "a variable": ({**PYTHON, "ansible_become": True}, FIRST, {}),
        "another connection": ({"ansible_connection": "ssh"}, {**FIRST, "hosts": "one"}, {}),
        "another shell": ({**PYTHON, "ansible_shell_type": "fish"}, FIRST, {}),
        "off": ({**PYTHON, "ansible_sojourn_warm_interpreter": False}, FIRST, {}),
        "files": ({**PYTHON, "ansible_pipelining": False}, FIRST, {}),
        "become": (PYTHON, {**FIRST, "become": True}, {}),
        "become maybe": (PYTHON, {**FIRST, "become": "{{ wanted }}"}, {}),
        "become whom": (PYTHON, {**FIRST, "become": True, "become_user": "{{ 'a' if n > 3 else 'root' }}"}, {}),
        "become another": ({**PYTHON, "ansible_user": "root"}, {**FIRST, "become": True, "become_user": "other"}, {}),
        "facts become": (PYTHON, {"become": True, "tasks": [{**MODULE, "become": False}]}, {}),
        "a task becomes": (PYTHON, {"gather_facts": False, "tasks": [{**MODULE, "become": True}]}, {}),
        "a block becomes": (PYTHON, {"gather_facts": False, "tasks": [{"block": [MODULE], "become": True}]}, {}),
        "a task's variable": (PYTHON, {"gather_facts": False, "tasks": [{**MODULE, "vars": {"ansible_become": True}}]}, {}),
        "a block's variable": (PYTHON, {"gather_facts": False, "tasks": [{"block": [MODULE], "vars": {"ansible_become": True}}]}, {}),
        "an environment": (PYTHON, {**FIRST, "environment": {"http_proxy": "http://proxy"}}, {}),
        "async": (PYTHON, {"gather_facts": False, "tasks": [{**MODULE, "async": 10, "poll": 0}]}, {}),
        "asked to become": (PYTHON, FIRST, {"become": True}),
        "no module": (PYTHON, {"gather_facts": False, "tasks": [{"raw": "true"}, {"debug": {"msg": "x"}}]}, {}),
        "nobody": (PYTHON, {**FIRST, "hosts": "nobody"}, {}),
    }
    assert dict(zip(cases, likely(tmp_path, list(cases.values())), strict=True)) == dict.fromkeys(cases)
    root: Case = ({**PYTHON, "ansible_user": "root"}, {**FIRST, "become": True}, {})
    assert likely(tmp_path, [(PYTHON, FIRST, {})], SOJOURN_WARM_INTERPRETER="false") == [None]
    assert likely(tmp_path, [(PYTHON, FIRST, {})], ANSIBLE_BECOME="true") == [None]
    assert likely(tmp_path, [(PYTHON, FIRST, {})], ANSIBLE_KEEP_REMOTE_FILES="true") == [None]
    assert likely(tmp_path, [root, (PYTHON, FIRST, {})], ANSIBLE_BECOME_ALLOW_SAME_USER="true") == [None, PLAIN]


# In a process of its own, for Ansible's loader of collections is there once for all.
PACK = """
import os, sys
from types import SimpleNamespace as N
from ansible import constants as C
from ansible.plugins.loader import init_plugin_loader
init_plugin_loader()
C.DEFAULT_LOCAL_TMP = sys.argv[1]
from ansible_collections.sojourn.deploy.plugins.plugin_utils import module_cache
tasks = [N(action=name, collections=None) for name in ("no.such.module", "shell", "ansible.builtin.find")]
os.waitpid(module_cache.fill(N(gather_facts=False, compile=lambda: [N(block=tasks, rescue=[], always=[])]), False, 3, ahead=False), 0)
"""


def test_modules_are_packed_where_workers_look(tmp_path: Path) -> None:
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", PACK, tmp_path], env=environment, capture_output=True, text=True, check=True)
    found = {path.name.partition("-")[0] for path in (tmp_path / "ansiballz_cache").iterdir() if not path.name.endswith(".lock")}
    assert found == {"ansible.modules.command", "ansible.modules.find"}
    assert not done.stdout and not done.stderr


# The broker is not there yet when the first is ready.
ANNOUNCE = PACK.replace("os.waitpid", """
told = []
def announce(owner, program, play, by):
    told.append(program)
    with open(sys.argv[1] + "/told", "a") as file:
        print((owner, play) == (parent, 3), len(told) > 1 and module_archive.find(program) is not None, hashlib.sha256(program).hexdigest(), file=file)
    return len(told) > 1
import hashlib
from ansible_collections.sojourn.deploy.plugins.plugin_utils import module_archive
parent = os.getpid()
module_cache.broker_client.announce_module = announce
os.waitpid""").replace("ahead=False", "ahead=True").replace('"shell",', '"shell", "sojourn.test.own", "sojourn.deploy.copy",')


def test_a_broker_is_told_what_was_packed(tmp_path: Path) -> None:
    """Of ansible-core's own modules, and this collection's: what others import may do more than to define things."""
    own = tmp_path / "more/ansible_collections/sojourn/test/plugins/modules"
    own.mkdir(parents=True)
    (own / "own.py").write_text("from ansible.module_utils.basic import AnsibleModule\n")
    paths = f"{COLLECTIONS}:{tmp_path}/more"
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": paths, "ANSIBLE_HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", ANNOUNCE, tmp_path], env=environment, capture_output=True, text=True, check=True)
    told = [line.split() for line in (tmp_path / "told").read_text().splitlines()]
    assert any("own" in path.name for path in (tmp_path / "ansiballz_cache").iterdir())
    assert [line[:2] for line in told] == [*[["True", "False"]] * 2, *[["True", "True"]] * 6], "the play itself, command, the four of our copy, find"
    assert told[0][2] == told[1][2] and len({line[2] for line in told}) == 7, "the first again once there is a broker, then the others"


def test_a_broker_is_told_of_a_play_that_sends_nothing_ahead(tmp_path: Path) -> None:
    """What an earlier one has told is over then."""
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", ANNOUNCE.replace("ahead=True", "ahead=False"), tmp_path], env=environment, capture_output=True, check=True)
    told = [line.split() for line in (tmp_path / "told").read_text().splitlines()]
    assert [line[:2] for line in told] == [["True", "False"]] * 2


def test_a_broker_is_told_that_is_there_later_than_all_that_was_packed(tmp_path: Path) -> None:
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(tmp_path / "home")}
    later = ANNOUNCE.replace("len(told) > 1", "bool(started)").replace("told = []", "told, started = [], []")
    await_start = "module_cache.broker_client.await_start = lambda owner: started.append(owner == parent) or True"
    later = later.replace("parent = os.getpid()", f"{await_start}\nparent = os.getpid()")
    subprocess.run([sys.executable, "-c", later, tmp_path], env=environment, capture_output=True, text=True, check=True)
    told = [line.split() for line in (tmp_path / "told").read_text().splitlines()]
    assert {line[1] for line in told[:-7]} == {"False"} and len({line[2] for line in told[-7:]}) == 7, "the play itself, and six modules"


PREPARE = """
import os, sys
from ansible.plugins.loader import init_plugin_loader, module_loader
init_plugin_loader()
from ansible_collections.sojourn.deploy.plugins.plugin_utils import module_cache
module_cache.prepare()
def listed(path):
    raise AssertionError(f"{path} is listed anew")
kept = os.listdir, os.scandir
os.listdir = os.scandir = listed
assert module_loader.find_plugin_with_context("ansible.legacy.command", ".py").plugin_resolved_path.endswith("/command.py")
assert module_loader.find_plugin_with_context("ansible.legacy.stat", ".py").plugin_resolved_path.endswith("/stat.py")
os.listdir, os.scandir = kept
before = set(sys.modules)
try:
    from ansible.module_utils.common.json import Direction, get_module_decoder, get_module_encoder
except ImportError:  # before 2.19
    sys.exit()
get_module_encoder("legacy", Direction.CONTROLLER_TO_MODULE), get_module_decoder("legacy", Direction.MODULE_TO_CONTROLLER)
assert set(sys.modules) == before, set(sys.modules) - before
"""


def test_what_every_worker_looks_for_is_found_once(tmp_path: Path) -> None:
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", PREPARE], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_goes_wrong_there_stays_there(cache: Path) -> None:
    def bad() -> Any:
        raise ValueError("not a play")

    pid = module_cache.fill(SimpleNamespace(gather_facts=False, compile=bad), False, 1, ahead=True)
    assert pid is not None
    wait(pid)
    assert not cache.exists()


def test_it_ends_when_it_is_told_to(cache: Path) -> None:
    begun = time.monotonic()
    pid = module_cache.fill(SimpleNamespace(gather_facts=False, compile=signal.pause), False, 1, ahead=False)
    assert pid is not None and not module_cache.stop(pid, wait=False)
    assert module_cache.stop(pid)
    assert module_cache.stop(pid), "gone already"
    assert time.monotonic() - begun < module_cache.LONGEST
