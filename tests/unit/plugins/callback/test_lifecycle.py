"""The lifecycle callback in a real ansible-playbook without targets, and against a broker that tells what happens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.callback import lifecycle
from ansible_collections.sojourn.deploy.plugins.plugin_utils import ledger
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from tests.conftest import COLLECTIONS


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(lifecycle.CallbackModule, "_banner", lambda self, text: lines.append(f"== {text}"))
    monkeypatch.setattr(lifecycle.CallbackModule, "_say", lambda self, text, color=None: lines.append(text))
    monkeypatch.setattr(lifecycle.atexit, "register", lambda unused: None)
    return lines


def ends(monkeypatch: pytest.MonkeyPatch, *events: dict[str, Any], error: BaseException | None = None) -> list[int]:
    asked: list[int] = []

    def end_run(owner_pid: int, on_event: Any) -> bool:
        asked.append(owner_pid)
        for event in events:
            on_event(event)
        if error is not None:
            raise error
        return True

    monkeypatch.setattr(lifecycle.broker_client, "end_run", end_run)
    return asked


def test_what_happens_is_told_once(monkeypatch: pytest.MonkeyPatch, shown: list[str]) -> None:
    asked = ends(
        monkeypatch,
        {"event": "waiting", "host": "web1", "package": "a.deb"},
        {"event": "finished", "host": "web1", "package": "a.deb", "state": "reboot_required", "msg": "exit code 3010: installed"},
        {"event": "reconnecting", "host": "web2"},
        {"event": "removed", "host": "web1", "removed": ["service x", "folder y"], "seconds": 1.24},
        {"event": "failed", "host": "web2", "message": "[web2] connecting: No."},
        {"event": "dropped", "host": "web1", "package": "b.deb", "state": "dropped", "msg": ""},
    )
    callback = lifecycle.CallbackModule()
    callback.v2_playbook_on_stats(None)
    callback._at_exit()
    assert asked == [os.getpid()]
    assert shown == [
        "== CLEAN-UP",
        "web1: waiting until the installation of a.deb has finished",
        "web1: a.deb: reboot required (exit code 3010: installed)",
        "web2: waiting for the target, which does not answer",
        "web1: removed service x, folder y (1.2 s)",
        "web2: NOT REMOVED: connecting: No.",
        "web1: b.deb: dropped",
    ]


def test_nothing_is_said_where_nothing_happens(monkeypatch: pytest.MonkeyPatch, shown: list[str]) -> None:
    ends(monkeypatch)
    lifecycle.CallbackModule().v2_playbook_on_stats(None)
    assert shown == []


def test_ctrl_c_ends_the_waiting(monkeypatch: pytest.MonkeyPatch, shown: list[str]) -> None:
    ends(monkeypatch, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        lifecycle.CallbackModule().v2_playbook_on_stats(None)
    assert shown == ["Not waited for any longer; the clean-up goes on by itself."]


def test_a_broker_that_is_lost_is_told(monkeypatch: pytest.MonkeyPatch, shown: list[str]) -> None:
    ends(monkeypatch, error=SojournError("SD-902", detail="gone", log="x"))
    lifecycle.CallbackModule().v2_playbook_on_stats(None)
    assert len(shown) == 1 and "their lease is over" in shown[0] and "SD-902" in shown[0]


def test_workers_say_nothing(monkeypatch: pytest.MonkeyPatch, shown: list[str]) -> None:
    asked = ends(monkeypatch)
    callback = lifecycle.CallbackModule()
    monkeypatch.setattr(callback, "_run", os.getpid() + 1)
    callback._at_exit()
    assert asked == []


def test_earlier_runs_are_told_of(monkeypatch: pytest.MonkeyPatch, shown: list[str], state_home: Path) -> None:
    made = ledger.Ledger()
    made.note("web1", None, package="a.deb")
    ledger.leave("0123456789ab", made.cut_off())
    before = signal.getsignal(signal.SIGTERM)
    try:
        callback = lifecycle.CallbackModule()
        callback._plugin_options = {"bundle_copies": False}
        callback.v2_playbook_on_start(None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert shown[0].startswith("== AN EARLIER RUN WAS CUT OFF, ") and shown[1] == "web1: a.deb: dropped (the run was cut off before it began)"


# In a process of its own, for Ansible's loader of collections is there once for all, and what has been loaded stays.
FASTER = """
import os, sys
from types import SimpleNamespace as N
from ansible import constants as C
from ansible.plugins.loader import init_plugin_loader, module_loader
init_plugin_loader()
C.DEFAULT_LOCAL_TMP = sys.argv[1]
from ansible_collections.sojourn.deploy.plugins.callback.lifecycle import CallbackModule
callback = CallbackModule()
callback._plugin_options = {"bundle_copies": False}
callback.v2_playbook_on_start(None)
for name in ("ssh", "smb", "winrm"):
    full = f"ansible_collections.sojourn.deploy.plugins.connection.{name}"
    assert full in sys.modules and C.config.has_configuration_definition("connection", full)
tasks = [N(action="ansible.builtin.find", collections=None)]
callback.v2_playbook_on_play_start(N(_uuid="1", serial=[], strategy="linear", gather_facts=False, compile=lambda: [N(block=tasks, rescue=[], always=[])]))
assert "command" in module_loader._plugin_path_cache[".py"], "it was looked for, so that workers need not"
pid, = callback._packing
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
assert [name for name in os.listdir(sys.argv[1] + "/ansiballz_cache") if name.startswith("ansible.modules.find-")]
callback.v2_playbook_on_play_start(N(_uuid="2", serial=[], strategy="linear", gather_facts=False, compile=lambda: os.read(os.pipe()[0], 1)))
assert len(callback._packing) == 1 and callback._packing[0] != pid, "the first has been waited for"
last, = callback._packing
callback.v2_playbook_on_stats(None)
try:
    os.kill(last, 0)
except ProcessLookupError:
    print("gone")
"""


def test_workers_find_connections_loaded_and_modules_packed(tmp_path: Path, state_home: Path) -> None:
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", FASTER, tmp_path], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "gone\n", done.stdout + done.stderr


def test_in_a_real_run(tmp_path: Path, state_home: Path) -> None:
    made = ledger.Ledger()
    made.note("web1", None, package="a.deb")
    ledger.leave("0123456789ab", made.cut_off())
    (tmp_path / "play.yml").write_text("- hosts: localhost\n  gather_facts: false\n  tasks: [{ansible.builtin.meta: noop}]\n")
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), tmp_path / "play.yml"], capture_output=True, text=True, check=False,
        env={**os.environ, "ANSIBLE_CALLBACKS_ENABLED": "sojourn.deploy.lifecycle", "ANSIBLE_LOCALHOST_WARNING": "0"})
    assert done.returncode == 0 and "AN EARLIER RUN WAS CUT OFF" in done.stdout and "CLEAN-UP" not in done.stdout, done.stdout + done.stderr
    assert "lifecycle" not in done.stderr, done.stderr


# The connection itself is never used: what is asked is whether the broker runs.
EARLY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.debug: {msg: x}
    - ansible.builtin.shell: cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '
      delegate_to: localhost
      vars: {ansible_connection: local}
"""


@pytest.mark.parametrize(
    ("inventory", "wanted"),
    [
        ("all: {hosts: {web1: {ansible_connection: sojourn.deploy.smb, ansible_host: '::1', ansible_port: 9}}}", "smb"),
        ("all: {hosts: {web1: {}}, vars: {ansible_connection: sojourn.deploy.ssh, ansible_host: '::1', ansible_port: 9}}", "ssh"),
        ("all: {hosts: {web1: {ansible_connection: local}}}", None),
        ("all: {hosts: {web1: {ansible_connection: '{{ connection }}', connection: local}}}", None),
    ],
    ids=["a host's", "of all", "another's", "who knows"],
)
def test_the_broker_is_started_with_a_play_that_needs_it(tmp_path: Path, state_home: Path, inventory: str, wanted: str | None) -> None:
    (tmp_path / "play.yml").write_text(EARLY)
    (tmp_path / "hosts.yml").write_text(inventory)
    process = subprocess.Popen(
        [Path(sys.executable).with_name("ansible-playbook"), "-v", "-i", tmp_path / "hosts.yml", tmp_path / "play.yml"], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "ANSIBLE_CALLBACKS_ENABLED": "sojourn.deploy.lifecycle"})
    output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    # Other runs have theirs.
    assert re.findall(rf"broker_start\.py --folder \S+ --owner {process.pid} .*?--load (\w+)", output)[:1] == ([wanted] if wanted else [])
    assert "CLEAN-UP" not in output and "lifecycle" not in errors, output + errors


# What the broker would be told goes to the output, where the tasks are.
HEARS = """
DOCUMENTATION = "{name: hears, type: aggregate, short_description: x, description: x}"
from ansible.plugins.callback import CallbackBase
from ansible_collections.sojourn.deploy.plugins.plugin_utils import broker_client

class CallbackModule(CallbackBase):
    CALLBACK_VERSION, CALLBACK_TYPE, CALLBACK_NAME = 2.0, "aggregate", "hears"

    def __init__(self):
        super().__init__()
        broker_client.expect_end = lambda owner: self._display.display(f"TASK [the end, {owner}]")
"""
ROLE = "[{name: of the role, debug: {msg: x}, changed_when: true, notify: handler}]"
PLAIN = "- {hosts: all, gather_facts: false, tasks: [{name: one, debug: {msg: x}}, {name: two, debug: {msg: x}}]}\n"
PARTS = """
- hosts: all
  gather_facts: false
  pre_tasks: [{name: pre, debug: {msg: x}}]
  roles: [role]
  tasks: [{name: task, debug: {msg: x}}]
  handlers: [{name: handler, debug: {msg: x}}]
"""
POST = PARTS + """
  post_tasks:
    - block:
        - {name: in the block, fail: {msg: x}}
      rescue:
        - {name: in the rescue, debug: {msg: x}}
      always:
        - {name: always, debug: {msg: x}, changed_when: true, notify: handler}
    - meta: noop
"""
SERIAL = PLAIN.replace("gather_facts", "serial: 1, gather_facts")


@pytest.mark.parametrize(
    ("playbooks", "seen"),
    [
        ([PLAIN + PLAIN], ["one", "two", "one", "two", "END"]),
        ([PLAIN + PARTS], ["one", "two", "pre", "role : of the role", "task", "END", "handler"]),
        ([PLAIN + POST], ["one", "two", "pre", "role : of the role", "task", "handler", "in the block", "in the rescue", "always", "END", "handler"]),
        ([SERIAL], ["one", "two", "one", "two"]),
        ([SERIAL + PLAIN], ["one", "two", "one", "two", "one", "two", "END"]),
        ([PLAIN + SERIAL], ["one", "two", "one", "two", "one", "two"]),
        ([PLAIN, PLAIN], ["one", "two", "END", "one", "two", "END"]),
        ([PLAIN + PLAIN.replace("debug", "when: false, debug")], ["one", "two", "one", "two", "END"]),
    ],
    ids=["two plays", "handlers", "parts", "serial", "serial first", "serial last", "two playbooks", "skipped"],
)
def test_the_end_is_expected_when_the_last_task_begins(tmp_path: Path, state_home: Path, playbooks: list[str], seen: list[str]) -> None:
    """Once, however many hosts there are; a play that takes its hosts in turns begins its last task again and again."""
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks/hears.py").write_text(HEARS)
    (tmp_path / "roles/role/tasks").mkdir(parents=True)
    (tmp_path / "roles/role/tasks/main.yml").write_text(ROLE)
    (tmp_path / "hosts.yml").write_text("all: {hosts: {web1: {}, web2: {}}, vars: {ansible_connection: local}}")
    paths = [tmp_path / f"play{number}.yml" for number in range(len(playbooks))]
    for path, text in zip(paths, playbooks, strict=True):
        path.write_text(text)
    environment = {"ANSIBLE_CALLBACKS_ENABLED": "hears,sojourn.deploy.lifecycle", "ANSIBLE_CALLBACK_PLUGINS": str(tmp_path / "callbacks")}
    process = subprocess.Popen(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", tmp_path / "hosts.yml", *paths], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, **environment})
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "lifecycle" not in errors, output + errors
    told = re.findall(r"^(?:TASK|RUNNING HANDLER) \[(.*)\]", output, re.MULTILINE)
    assert ["END" if name == f"the end, {process.pid}" else name for name in told if name != "meta"] == seen
