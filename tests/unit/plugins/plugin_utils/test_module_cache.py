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


LIKELY = """
import json, os, sys
from ansible import constants as C
from ansible.plugins.loader import init_plugin_loader
init_plugin_loader()
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play import Play
from ansible.vars.manager import VariableManager
from ansible_collections.sojourn.deploy.plugins.plugin_utils import module_cache
host, play, asked = json.load(sys.stdin)
from ansible import context
from ansible.module_utils.common.collections import ImmutableDict
context.CLIARGS = ImmutableDict(asked)
loader = DataLoader()
inventory = InventoryManager(loader, sources=['one,two,'])
for name, value in {'ansible_connection': 'sojourn.deploy.ssh', **host}.items():
    inventory.get_host('one').set_variable(name, value)
inventory.get_host('two').set_variable('ansible_connection', 'sojourn.deploy.ssh')
variables = VariableManager(loader, inventory)
made = Play.load({'hosts': 'all', **play}, variable_manager=variables, loader=loader)
print(json.dumps(module_cache.likely(made)))
"""
PYTHON = {"ansible_python_interpreter": "/usr/bin/python3.9"}
FIRST: dict[str, Any] = {"gather_facts": False, "tasks": [{"raw": "true"}, {"command": "true"}]}


def likely(tmp_path: Path, host: dict[str, Any], play: dict[str, Any], asked: dict[str, Any] | None = None, **variables: str) -> Any:
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(tmp_path / "home"), **variables}
    text = json.dumps([host, play, asked or {}])
    done = subprocess.run([sys.executable, "-c", LIKELY], env=environment, input=text, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.replace(" && sleep 0", ""))  # of which newer ones do without


def test_by_what_modules_will_be_run_is_known_beforehand(tmp_path: Path) -> None:
    """That it is what Ansible says then, test_modules_ahead shows."""
    plain = ["/bin/sh -c @interpreter@", ["/usr/bin/python3.9"]]
    assert likely(tmp_path, PYTHON, FIRST)[0].replace("'", "") == plain[0]
    plain[0] = likely(tmp_path, PYTHON, FIRST)[0]
    assert likely(tmp_path, PYTHON, FIRST) == plain
    assert likely(tmp_path, {**PYTHON, "ansible_user": "root"}, {**FIRST, "become": True}) == plain, "as whom it is anyway"
    assert likely(tmp_path, PYTHON, {"gather_facts": False, "tasks": [{"raw": "true", "become": True}, {"command": "true"}]}) == plain
    assert likely(tmp_path, PYTHON, {"tasks": [{"command": "true", "become": True}]}) == plain, "the facts come first"
    local = [{"command": "true", "become": True, "delegate_to": "localhost"}, {"command": "true", "connection": "local"}]
    rescued = {"block": [{"debug": {"msg": "x"}}], "rescue": [{"command": "true", "become": True}]}
    assert likely(tmp_path, PYTHON, {"gather_facts": False, "tasks": [*local, rescued, {"command": "true"}]}) == plain, "the first that is for this host"
    assert likely(tmp_path, {}, FIRST, ANSIBLE_PYTHON_INTERPRETER="/usr/bin/python3.9") == plain
    assert likely(tmp_path, {"ansible_connection": "local"}, FIRST, ANSIBLE_PYTHON_INTERPRETER="/usr/bin/python3.9") == plain, "of the first that is reached so"


@pytest.mark.parametrize("how", [{}, {"ansible_python_interpreter": "auto_silent"}, {"ansible_interpreter_python_fallback": ["python4", "/opt/python"]}])
def test_an_interpreter_is_looked_for_where_ansible_will(tmp_path: Path, how: dict[str, Any]) -> None:
    found = likely(tmp_path, how, FIRST)
    if "_INTERPRETER_PYTHON_DISTRO_MAP" in C.config.get_configuration_definitions():
        assert found is None, "there a list of systems decides"
        return
    assert found[0].replace("'", "") == "/bin/sh -c @interpreter@"
    assert found[1] == how.get("ansible_interpreter_python_fallback", found[1]) and len(found[1]) > 1 and set(found[1]) & {"/usr/bin/python3", "/opt/python"}


MODULE = {"command": "true"}


@pytest.mark.parametrize(
    ("host", "play", "asked", "variables"),
    [
        ({"ansible_python_interpreter": "auto_legacy"}, FIRST, {}, {}),
        ({"ansible_python_interpreter": "{{ found }}"}, FIRST, {}, {}),
        ({"ansible_python_interpreter": "/usr/bin/env python3"}, FIRST, {}, {}),
        ({**PYTHON, "ansible_become": True}, FIRST, {}, {}),
        ({"ansible_connection": "ssh"}, {**FIRST, "hosts": "one"}, {}, {}),
        ({**PYTHON, "ansible_shell_type": "fish"}, FIRST, {}, {}),
        ({**PYTHON, "ansible_sojourn_warm_interpreter": False}, FIRST, {}, {}),
        ({**PYTHON, "ansible_pipelining": False}, FIRST, {}, {}),
        (PYTHON, FIRST, {}, {"SOJOURN_WARM_INTERPRETER": "false"}),
        (PYTHON, {**FIRST, "become": True}, {}, {}),
        (PYTHON, {**FIRST, "become": "{{ wanted }}"}, {}, {}),
        (PYTHON, {**FIRST, "become": True, "become_user": "{{ 'a' if n > 3 else 'root' }}"}, {}, {}),
        ({**PYTHON, "ansible_user": "root"}, {**FIRST, "become": True, "become_user": "other"}, {}, {}),
        (PYTHON, {"become": True, "tasks": [{**MODULE, "become": False}]}, {}, {}),
        (PYTHON, {"gather_facts": False, "tasks": [{**MODULE, "become": True}]}, {}, {}),
        (PYTHON, {"gather_facts": False, "tasks": [{"block": [MODULE], "become": True}]}, {}, {}),
        (PYTHON, {"gather_facts": False, "tasks": [{**MODULE, "vars": {"ansible_become": True}}]}, {}, {}),
        (PYTHON, FIRST, {"become": True}, {}),
        (PYTHON, FIRST, {}, {"ANSIBLE_BECOME": "true"}),
        ({**PYTHON, "ansible_user": "root"}, {**FIRST, "become": True}, {}, {"ANSIBLE_BECOME_ALLOW_SAME_USER": "true"}),
        (PYTHON, {"gather_facts": False, "tasks": [{"raw": "true"}, {"debug": {"msg": "x"}}]}, {}, {}),
        (PYTHON, {**FIRST, "hosts": "nobody"}, {}, {}),
    ],
    ids=["an old way", "a template", "two words", "a variable", "another connection", "another shell", "off", "files", "off for all", "become", "become maybe",
         "become whom", "become another", "facts become", "a task becomes", "a block becomes", "a task's variable", "asked to become", "all become",
         "even the same", "no module", "nobody"],
)  # fmt: skip
def test_by_what_modules_will_be_run_is_not_guessed_at(
    tmp_path: Path, host: dict[str, Any], play: dict[str, Any], asked: dict[str, Any], variables: dict[str, str],
) -> None:  # fmt: skip
    """Least of all where somebody would become another: what is refused is written down, and told to somebody."""
    assert likely(tmp_path, host, play, asked, **variables) is None


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
