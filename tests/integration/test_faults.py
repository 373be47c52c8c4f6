"""The fault matrix: whatever breaks, in whatever phase, on both families, over IPv6: nothing is left in the promised time, and no result lies.

docs/guarantee.md says what is promised; each of its lines is a row here. What takes long in a row is the product's own patience (the
lease, an installation), so the rows run beside each other, each worker on targets of its own.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Controller, kill
from tests.integration.faults import (
    AGENT,
    BEGUN,
    FINISHED,
    INSTALLING,
    LEASE,
    PHASES,
    WITHIN,
    Attempt,
    Watch,
    forget_marks,
    list_agent_folders,
    marked,
    package,
)
from tests.lab.snapshot import AT_NEXT_START
from tests.lab.waiting import wait_for

pytestmark = pytest.mark.leaves(*AT_NEXT_START)

SIGNALS = ("SIGINT", "SIGTERM", "SIGKILL")


class Row:
    """What came of a fault."""

    def __init__(self, attempt: Attempt, watch: Watch) -> None:
        self.attempt = attempt
        self.watch = watch
        self.since = 0.0
        self.said = "no fault was made"

    def fault(self) -> None:
        """Now it happens."""
        self.since = time.monotonic()

    def clean(self, more: float = 0, *, note: str = "", over: bool = True) -> None:
        """Nothing is left within the promised time, and so much more for an installation that is let finish; nor can anything come, once it is over."""
        more += INSTALLING if marked(self.attempt.target, BEGUN) else 0
        seconds = self.watch.wait_clean(self.since, WITHIN + more)
        if over:
            self.attempt.wait_over(self.since + WITHIN + more)
        self.said = f"clean after {seconds:.1f} s{note}"

    def tell_next_run(self) -> None:
        """Nobody could be told what became of the packages: the next run is."""
        self.attempt.begin([{"ansible.builtin.meta": "noop"}])
        assert self.attempt.end() == 0 and "AN EARLIER RUN WAS CUT OFF" in self.attempt.output, self.attempt.output

    def clean_up_by_playbook(self, *words: str, environment: dict[str, str] | None = None) -> list[dict[str, Any]]:
        """What the user does where it could not be promised; what was found."""
        attempt = Attempt(self.attempt.controller, self.attempt.target, self.attempt.folder)
        attempt.play("sojourn.deploy.cleanup", *words, environment=environment)
        assert attempt.end() == 0, attempt.output
        attempt.wait_over(time.monotonic() + WITHIN)
        (found,) = [entry["result"]["leftovers"] for entry in attempt.results if "leftovers" in entry["result"]]
        return found


@pytest.fixture
def attempt(controller: Controller, target: Any, tmp_path: Path) -> Iterator[Attempt]:
    """A run against one target after the other."""
    attempt = Attempt(controller, target, tmp_path)
    try:
        yield attempt
    finally:
        attempt.kill()
        forget_marks(target)


@pytest.fixture
def row(request: pytest.FixtureRequest, attempt: Attempt, target: Any, say: Callable[[str], None]) -> Iterator[Row]:
    """Watches the target, and prints the row when it is over."""
    row = Row(attempt, Watch(target))
    yield row
    say(f"{request.node.name}: {row.said}")


# Rows that apply to one family alone.
LINUX = pytest.mark.parametrize("target", ["linux"], indirect=True)
WINDOWS = pytest.mark.parametrize("target", ["windows"], indirect=True)


# Signals


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_to_ansible_playbook(attempt: Attempt, target: Any, row: Row, name: str, phase: str) -> None:
    megabytes = 40 if phase == "copying" else 0
    packages = [package(target, attempt.folder, megabytes=megabytes)]
    if phase != "cleaning":
        packages.append(package(target, attempt.folder, seconds=0.1, marks=("second-begun", "second-finished"), megabytes=megabytes))
    with attempt.caught(phase, [{"sojourn.deploy.packages": {"packages": packages}}, {"sojourn.deploy.agent": {"state": "absent"}}]):
        row.fault()
        os.kill(attempt.pid, getattr(signal, name))
        if name == "SIGKILL":
            attempt.end()
    code = attempt.end()
    assert code == (99 if name == "SIGINT" else -getattr(signal, name)), attempt.output
    row.clean()
    installed = phase in ("installing", "cleaning")
    assert marked(target, BEGUN) == marked(target, FINISHED) == installed, "an installation that begins finishes"
    assert not marked(target, "second-begun"), "what has not begun is dropped"
    if name == "SIGKILL":
        if phase == "cleaning":
            return
        row.tell_next_run()
    elif phase == "installing":
        assert "waiting until the installation of" in attempt.output, attempt.output
    if phase == "installing":
        assert ": installed (exit code 0: installed)" in attempt.output, attempt.output
    if phase != "cleaning":
        assert attempt.output.count(": dropped (the run was cut off before it began)") == (1 if installed else 2), attempt.output
    if name != "SIGKILL" and phase not in ("connecting", "uploading", "starting"):
        assert f"{target.name}: removed service sojourn-" in attempt.output, attempt.output


@pytest.mark.parametrize("phase", ["copying", "installing"])
def test_a_second_ctrl_c_ends_the_waiting_and_not_the_clean_up(attempt: Attempt, target: Any, row: Row, phase: str) -> None:
    with attempt.caught(phase), target.firewall_tool(holds="close") as tool:
        os.kill(attempt.pid, signal.SIGINT)
        if phase == "installing":
            attempt.wait("the waiting", lambda: "waiting until the installation" in attempt.output)
        else:
            tool.wait_held()
        row.fault()
        os.kill(attempt.pid, signal.SIGINT)
        assert attempt.end() == 99
    assert "the clean-up goes on by itself" in attempt.output, attempt.output
    row.clean()
    assert marked(target, FINISHED) == (phase == "installing")
    row.tell_next_run()
    assert (": installed (exit code 0: installed)" if phase == "installing" else ": dropped (the run was cut off before it began)") in attempt.output


def test_ansible_runner_cancels(attempt: Attempt, target: Any, row: Row, state_home: Path) -> None:
    """SIGKILL to the process group: what AWX does. What became of the packages is told by the next run."""
    with attempt.caught("installing", runner=True):
        row.fault()
        attempt.cancel()
        assert attempt.end() == 0 and attempt.runner_status == "canceled", attempt.output
    row.clean()
    assert marked(target, FINISHED)
    row.tell_next_run()
    assert ": installed (exit code 0: installed)" in attempt.output, attempt.output


def test_a_container_is_killed(attempt: Attempt, target: Any, row: Row) -> None:
    """Everything on the controller ends at once: the target does it."""
    with attempt.caught("installing", container=True):
        row.fault()
        attempt.kill()
    row.clean(over=False)
    assert marked(target, FINISHED)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_container_ends_with_its_run(attempt: Attempt, target: Any, row: Row, interrupted: bool) -> None:
    """Where all processes end with the first one, the run itself waits for the clean-up: no lease ends for ten minutes."""
    with attempt.caught("installing", [{"sojourn.deploy.packages": {"packages": [package(target, attempt.folder, seconds=2)]}}], container=True,
                        environment={"SOJOURN_LEASE_SECONDS": "600"}):
        if interrupted:
            os.kill(attempt.pid, signal.SIGINT)
        code = attempt.end()
        row.fault()
    assert code == (99 if interrupted else 0) and ": removed service sojourn-" in attempt.output, attempt.output
    assert not list_agent_folders(target)
    row.clean(over=False)
    assert marked(target, FINISHED)


# The broker


@pytest.mark.parametrize("phase", ["copying", "installing"])
def test_the_broker_is_killed(attempt: Attempt, target: Any, row: Row, phase: str) -> None:
    with attempt.caught(phase):
        row.fault()
        kill(attempt.broker_pid)
    code = attempt.end()
    row.clean()
    if phase == "installing":
        # A new broker takes the session over, and the task never knows.
        assert code == 0 and "installed: " in attempt.output, attempt.output
    else:
        assert code == 2 and "(SD-902)" in attempt.output and not marked(target, BEGUN), attempt.output


@pytest.mark.parametrize("phase", PHASES)
def test_playbook_and_broker_are_killed(attempt: Attempt, target: Any, row: Row, phase: str) -> None:
    """Nobody is left on the controller: the target does it."""
    run = ""
    with attempt.caught(phase):
        if phase == "installing":
            run = attempt.run
        row.fault()
        broker = attempt.broker_pid
        kill(attempt.pid, broker)
        attempt.end()
    row.clean()
    assert marked(target, BEGUN) == marked(target, FINISHED) == (phase in ("installing", "cleaning"))
    if run:  # who finds the target finds there what happened
        said = [line for line in target.event_log() if f"Run {run}: " in line]
        for words in ("no sign of life from the controller for ", " and is waited for.", " has ended with exit code 0 "):
            assert any(words in line for line in said), (words, target.event_log())


def test_the_brokers_socket_is_deleted(attempt: Attempt, target: Any, row: Row) -> None:
    gate = attempt.gate()
    attempt.begin([AGENT, gate.task, {"sojourn.deploy.packages": {"packages": [package(target, attempt.folder, seconds=0.1)]}}])
    attempt.wait_task()
    row.fault()
    (attempt.broker_folder / "socket").unlink()
    gate.open()
    assert attempt.end() == 0, attempt.output
    row.clean()
    assert marked(target, FINISHED)


def test_the_controllers_disk_is_full(attempt: Attempt, target: Any, row: Row) -> None:
    """Where broker and sessions have their files there is no room for a byte: the run works, only it cannot be taken over."""
    row.fault()
    attempt.begin([{"sojourn.deploy.packages": {"packages": [package(target, attempt.folder, seconds=0.1)]}}], full_disk=True)
    assert attempt.end() == 0, attempt.output
    row.clean()
    assert marked(target, FINISHED)


# The agent


def test_the_agent_is_killed_while_it_installs(attempt: Attempt, target: Any, row: Row) -> None:
    with attempt.caught("installing"):
        row.fault()
        attempt.kill_agent()
    code = attempt.end()
    row.clean()
    assert code == 2 and "(SD-712)" in attempt.output and "the agent on the target was ended meanwhile" in attempt.output, attempt.output
    assert marked(target, FINISHED), "the installer was let finish"


def test_the_agent_is_killed_twice(attempt: Attempt, target: Any, row: Row) -> None:
    """Between two tasks: another one takes its place, before anybody asks for it."""
    gate = attempt.gate()
    attempt.begin([AGENT, gate.task, {"name": "after", "ansible.builtin.raw": "echo there"}])
    attempt.wait_task()
    for count in (2, 3):
        row.fault()
        attempt.kill_agent()
        attempt.wait("another agent", lambda count=count: attempt.deployments() == count)
    gate.open()
    assert attempt.end() == 0 and attempt.results[-1]["result"]["stdout"].strip() == "there", attempt.output
    row.clean()


def test_the_agent_is_killed_and_nobody_is_left_on_the_controller(attempt: Attempt, target: Any, row: Row) -> None:
    with attempt.caught("installing"):
        broker = attempt.broker_pid
        kill(attempt.pid, broker)
        attempt.end()
        row.fault()
        attempt.kill_agent()
    row.clean()
    assert marked(target, FINISHED)


# The network


def test_the_network_is_cut_for_less_than_the_lease(attempt: Attempt, target: Any, row: Row) -> None:
    with attempt.caught("installing"):
        row.fault()
        with target.cut_off():
            attempt.pause(LEASE / 2)
    assert attempt.end() == 0 and "installed: " in attempt.output, attempt.output
    row.clean()


def test_the_network_is_cut_for_longer_than_the_lease(attempt: Attempt, target: Any, row: Row) -> None:
    """The agent waits for its installation beyond the lease, and is found again."""
    with attempt.caught("installing", [{"sojourn.deploy.packages": {"packages": [package(target, attempt.folder, seconds=30)]}}]):
        row.fault()
        with target.cut_off():
            attempt.pause(LEASE + 4)
    assert attempt.end() == 0 and "installed: " in attempt.output, attempt.output
    assert marked(target, FINISHED)
    row.clean(30)


def test_the_network_is_cut_for_good(attempt: Attempt, target: Any, row: Row) -> None:
    with attempt.caught("installing"), target.cut_off():
        row.fault()
        row.clean(over=False)
        code = attempt.end(180)
    assert code == 4 and "UNREACHABLE" in attempt.output, attempt.output
    assert marked(target, FINISHED), "the target let the installer finish"
    attempt.wait_over(time.monotonic() + WITHIN)


def test_the_network_is_cut_in_the_middle_of_a_package(attempt: Attempt, target: Any, row: Row) -> None:
    """For so long that the connection is given up: on another one the package is gone on with, and what has arrived is what was sent."""
    with attempt.caught("copying", environment={"SOJOURN_LEASE_SECONDS": "40"}), target.cut_off():
        attempt.wait("the connection to be given up", lambda: " broke off: " in attempt.broker_log)
    row.fault()
    attempt.wait_installing()
    (resumed,) = re.findall(r"sending goes on at (\d+) of (\d+) bytes", attempt.broker_log)
    assert 0 < int(resumed[0]) < int(resumed[1]) == attempt.package_size
    assert attempt.arrived_whole()
    assert attempt.end() == 0, attempt.output
    (result,) = [entry["result"]["results"][0] for entry in attempt.results if "results" in entry["result"]]
    assert result["state"] == "installed" and result["bytes_sent"] == attempt.package_size
    row.clean(30)


def test_the_connection_is_reset_while_the_agent_is_uploaded(attempt: Attempt, target: Any, row: Row) -> None:
    with attempt.caught("uploading"):
        row.fault()
        assert target.reset_connections(target.port) >= 1
        assert attempt.end() == 4, attempt.output
        assert "UNREACHABLE" in attempt.output and "(SD-205)" in attempt.output, attempt.output
        row.clean()
    assert not marked(target, BEGUN)


# Restarts


def settle_disk(target: Any, how: str) -> None:
    """What earlier rows did is on the disk, so that a power cut does not bring it back: see the lab's `write_registry`."""
    if target.kind == "windows" and how == "power cut":
        target.write_registry()


@pytest.mark.parametrize("how", ["reboot", "power cut"])
@pytest.mark.parametrize("phase", PHASES)
def test_the_target_restarts(attempt: Attempt, target: Any, row: Row, phase: str, how: str) -> None:
    settle_disk(target, how)
    with ThreadPoolExecutor() as pool:
        with attempt.caught(phase):
            row.fault()
            restarted = pool.submit(target.reboot if how == "reboot" else target.cut)
            attempt.pause(1)  # what holds the run in its phase would hold the target's own shutdown as well
        restarted.result()
    row.fault()
    code = attempt.end(180)
    row.clean()
    finished = marked(target, FINISHED)
    if phase == "installing":
        # A shutdown in good order waits for it, for as long as a service's stop may take.
        assert not finished or how == "reboot"
        assert code == 0 and finished or "(SD-712)" in attempt.output and "the target restarted meanwhile" in attempt.output, attempt.output
    elif phase != "cleaning":
        assert (code == 0) == finished, attempt.output


@pytest.mark.parametrize("how", ["reboot", "power cut"])
def test_the_target_restarts_between_two_tasks(attempt: Attempt, target: Any, row: Row, how: str) -> None:
    """The run goes on: on Windows with the same agent, which starts with the system, on Linux with a new one."""
    gate, last = attempt.gate(), attempt.gate("last")
    attempt.begin([AGENT | {"name": "before"}, gate.task, {"name": "meanwhile", "ansible.builtin.raw": "echo there"}, AGENT | {"name": "after"}, last.task])
    attempt.wait_task()
    row.fault()
    settle_disk(target, how)
    target.reboot() if how == "reboot" else target.cut()
    row.fault()
    gate.open()
    attempt.wait_task(4, 180)
    deployments = attempt.deployments()
    last.open()
    assert attempt.end() == 0, attempt.output
    found = {entry["task"]: entry["result"] for entry in attempt.results}
    before, after = found["before"]["info"], found["after"]["info"]
    assert found["meanwhile"]["stdout"].strip() == "there"
    assert before["boot_id"] != after["boot_id"] and before["service_name"] == after["service_name"]
    assert deployments == (1 if target.kind == "windows" else 2)
    row.clean(31 if how == "power cut" else 0)


@pytest.mark.parametrize("how", ["reboot", "power cut"])
@pytest.mark.parametrize("phase", ["copying", "installing"])
def test_the_target_restarts_and_nobody_is_left_on_the_controller(attempt: Attempt, target: Any, row: Row, phase: str, how: str) -> None:
    settle_disk(target, how)
    with attempt.caught(phase, settled=how == "power cut"):
        row.fault()
        broker = attempt.broker_pid
        kill(attempt.pid, broker)
        attempt.end()
    target.reboot() if how == "reboot" else target.cut()
    row.fault()
    row.clean()
    assert not marked(target, FINISHED) or how == "reboot"


@LINUX
def test_ansibles_own_reboot(attempt: Attempt, target: Any, row: Row) -> None:
    attempt.begin([{"name": "restart", "ansible.builtin.reboot": {"reboot_timeout": 120}}, {"name": "after", "ansible.builtin.command": "uptime"}])
    row.fault()
    assert attempt.end(200) == 0, attempt.output
    found = {entry["task"]: entry["result"] for entry in attempt.results}
    assert found["restart"]["rebooted"] and found["after"]["rc"] == 0
    row.clean(30, note=", with the restart")


# The target


def test_the_targets_disk_is_full(attempt: Attempt, target: Any, row: Row) -> None:
    gate = attempt.gate()
    large = package(target, attempt.folder, megabytes=30)
    attempt.begin([AGENT, gate.task, {"sojourn.deploy.packages": {"packages": [large]}}])
    attempt.wait_task()
    with target.fill_disk(1 << 20, **({"at": "/tmp"} if target.kind == "linux" else {})):
        row.fault()
        gate.open()
        assert attempt.end() == 2 and "(SD-402)" in attempt.output, attempt.output
        attempt.wait_over(time.monotonic() + WITHIN)
    row.clean()
    assert not marked(target, BEGUN)


def test_the_disk_fills_up_while_it_installs(attempt: Attempt, target: Any, row: Row) -> None:
    """What the agent would write then, its lease for one, it can do without. On Windows the installer writes to that disk too, and says so."""
    with attempt.caught("installing"):
        row.fault()
        with target.fill_disk(0, **({"at": "/tmp"} if target.kind == "linux" else {})):
            attempt.pause(1)
            code = attempt.end()
            attempt.wait_over(time.monotonic() + WITHIN)
    if target.kind == "linux":
        assert code == 0 and "installed: " in attempt.output and marked(target, FINISHED), attempt.output
    else:
        assert code == 2 and "ended with 65" in attempt.output and "Disk full. (SD-703)" in attempt.output, attempt.output
    row.clean()


def test_no_folder_can_be_written(attempt: Attempt, target: Any, row: Row) -> None:
    windows = target.kind == "windows"
    row.fault()
    variables = {} if windows else {"vars": {"ansible_sojourn_remote_folders": ["/var/tmp"]}}
    with target.read_only() if windows else target.read_only("/var/tmp"):
        attempt.begin([{"sojourn.deploy.packages": {"packages": [package(target, attempt.folder)]}}], **variables)
        assert attempt.end() == 2 and ("(SD-401)" if windows else "(SD-403)") in attempt.output, attempt.output
    row.clean()


@pytest.mark.parametrize("when", ["open", "close"])
def test_the_firewall_tool_fails(attempt: Attempt, target: Any, row: Row, when: str) -> None:
    tasks = [{"sojourn.deploy.packages": {"packages": [package(target, attempt.folder, seconds=0.1)]}}, {"sojourn.deploy.agent": {"state": "absent"}}]
    row.fault()
    with target.firewall_tool(fails=when):
        attempt.begin(tasks)
        code = attempt.end()
    if when == "open":
        assert code == 2 and "(SD-603)" in attempt.output and not marked(target, BEGUN), attempt.output
    else:
        assert marked(target, FINISHED) and code == 2 and "(SD-801)" in attempt.output, attempt.output
        rule = re.search(r"The firewall rule (sojourn-[0-9a-f]{12}) could not be removed from the target: (nft|netsh) ", attempt.output)
        assert rule and f"firewall rule {rule[1]}" not in str([entry["result"].get("removed") for entry in attempt.results]), attempt.output
        assert any(f"could not remove: the firewall rule {rule[1]} (" in line for line in target.event_log()), target.event_log()
        row.clean_up_by_playbook()
    row.clean(30 if when == "close" else 0, note=", with the clean-up" if when == "close" else "")


def test_the_firewall_tool_fails_the_guard(attempt: Attempt, target: Any, row: Row) -> None:
    """The agent is killed, and nobody is left on the controller: the folder stays, and says why."""
    with attempt.caught("installing"):
        broker = attempt.broker_pid
        kill(attempt.pid, broker)
        attempt.end()
        run = attempt.run
        row.fault()
        with target.firewall_tool(fails="close"):
            attempt.kill_agent()
            wait_for("the guard's word", lambda: attempt.has("left.json"), WITHIN + INSTALLING)
            wait_for("the guard's end", lambda: not target.processes_of(run), 60)
        word = f"could not remove: the firewall rule sojourn-{run} ("
        wait_for("its word in the target's log", lambda: any(word in line for line in target.event_log()), 60)
    row.clean_up_by_playbook()
    row.clean()
    assert marked(target, FINISHED)


def test_the_firewall_tool_fails_for_a_while(attempt: Attempt, target: Any, row: Row) -> None:
    gate = attempt.gate()
    install = {"sojourn.deploy.packages": {"packages": [package(target, attempt.folder, seconds=0.1)]}}
    attempt.begin([install, gate.task, {"sojourn.deploy.agent": {"state": "absent"}}])
    attempt.wait("the end of the installation", lambda: marked(target, FINISHED))
    row.fault()
    with target.firewall_tool(fails="close"):
        gate.open()
        attempt.pause(5)
        assert attempt.process is not None and attempt.process.poll() is None, attempt.output
    assert attempt.end() == 0, attempt.output
    assert "firewall rule sojourn-" in str(attempt.results[-1]["result"]["removed"]), attempt.results[-1]
    row.clean()


@WINDOWS
def test_the_service_is_held_open(attempt: Attempt, target: Any, row: Row) -> None:
    """Somebody looks at it in the services' console: it stays marked for deletion, and is gone with that look."""
    gate = attempt.gate()
    attempt.begin([AGENT, gate.task, {"sojourn.deploy.agent": {"state": "absent"}}])
    attempt.wait_task()
    with target.hold_service(f"sojourn-{attempt.run}"):
        gate.open()
        assert attempt.end() == 2 and "(SD-801)" in attempt.output and "The service sojourn-" in attempt.output, attempt.output
        row.fault()  # what is promised counts from when it is let go
    row.clean()


@WINDOWS
@pytest.mark.parametrize("seconds", [3, 40])
def test_the_agents_file_is_locked(attempt: Attempt, target: Any, row: Row, seconds: int) -> None:
    """A scanner has it open: it is tried again; whoever holds it too long is told of, and the next clean-up removes it."""
    gate = attempt.gate()
    attempt.begin([AGENT, gate.task, {"sojourn.deploy.agent": {"state": "absent"}}])
    attempt.wait_task()
    with target.lock_file(rf"C:\windows\sojourn-{attempt.run}\agent.exe"):
        gate.open()
        attempt.pause(seconds)
        if seconds > 30:
            assert attempt.end() == 2 and "(SD-801)" in attempt.output and "The folder" in attempt.output, attempt.output
        row.fault()  # as above
    if seconds > 30:
        row.clean_up_by_playbook()
    else:
        assert attempt.end() == 0, attempt.output
    row.clean()


@pytest.mark.parametrize("days", [1, -1])
def test_the_clock_jumps(attempt: Attempt, target: Any, row: Row, days: int) -> None:
    """A lease counts monotonic time: it neither ends a day early nor lasts a day longer."""
    gate = attempt.gate()
    attempt.begin([AGENT, gate.task, {"name": "after", "ansible.builtin.raw": "echo there"}, gate.task])
    attempt.wait_task()
    with target.jump_clock(days * 86400, *target.processes_of(attempt.run)):
        known = attempt.agents()
        attempt.pause(LEASE * 1.5)
        gate.open()
        attempt.wait("the task after it", lambda: len(attempt.results) == 3)
        assert known and attempt.agents() == known, "the agent is the same"
        broker = attempt.broker_pid
        kill(attempt.pid, broker)
        attempt.end()
        row.fault()
        row.clean(over=False)


def test_five_hundred_half_open_connections(attempt: Attempt, target: Any, row: Row) -> None:
    with attempt.caught("installing"):
        row.fault()
        with target.half_open(62286, 500):
            assert attempt.end() == 0 and "installed: " in attempt.output, attempt.output
    row.clean()


# Company


def test_two_runs_of_two_users_one_of_which_is_killed(attempt: Attempt, target: Any, row: Row, tmp_path: Path) -> None:
    """What lives is left alone by its neighbour's end, and by a clean-up."""
    (tmp_path / "other").mkdir()
    other = Attempt(attempt.controller, target, tmp_path / "other")
    user = {"ansible_user": "operator", "ansible_password": target.password("operator")} if target.kind == "linux" else {}
    gate = other.gate()
    try:
        attempt.begin([AGENT, attempt.gate().task], environment={"SOJOURN_LEASE_SECONDS": "20"})  # it is alive still when the clean-up comes
        attempt.wait_task()
        first = attempt.run
        (tmp_path / "vars").write_text(json.dumps(user))
        other.begin([AGENT, gate.task, {"name": "after", "ansible.builtin.raw": "echo there"}], "-e", f"@{tmp_path}/vars",
                    environment={"XDG_STATE_HOME": str(tmp_path / "state")})
        other.wait("the second agent", lambda: len(attempt.runs()) == 2)
        row.fault()
        broker = attempt.broker_pid
        kill(attempt.pid, broker)
        attempt.end()
        found = row.clean_up_by_playbook()
        assert {leftover["state"] for leftover in found} == {"live"}, found
        attempt.wait_for_run_gone(first)
        found = row.clean_up_by_playbook()
        assert found and {leftover["state"] for leftover in found} == {"live"} and first not in {leftover["run"] for leftover in found}, found
        gate.open()
        assert other.end() == 0 and other.results[-1]["result"]["stdout"].strip() == "there", other.output
        other.wait_over(time.monotonic() + WITHIN)
        row.clean(WITHIN, note=", with two clean-ups")
    finally:
        other.kill()


# Taking up


@pytest.mark.parametrize("killed", ["playbook", "playbook and broker"])
def test_the_next_run_takes_the_installation_up(attempt: Attempt, target: Any, row: Row, killed: str) -> None:
    """It waits for it, or takes the result that waits; nothing is sent, and nothing installed twice."""
    tasks = [{"name": "install", "sojourn.deploy.install": package(target, attempt.folder, seconds=25)}]
    with attempt.caught("installing", tasks):
        row.fault()
        broker = attempt.broker_pid
        kill(attempt.pid, *([broker] if "broker" in killed else []))
        attempt.end()
    first = attempt.run
    attempt.begin(tasks)
    assert attempt.end() == 0, attempt.output
    result = attempt.results[-1]["result"]
    assert result["taken_up"] and (result["state"], result["changed"], result["exit_code"], result["bytes_sent"]) == ("installed", True, 0, 0), result
    assert result["stdout"].split("\n")[:2] == ["it begins", "it has finished"], result
    assert f"sojourn-{first}" in attempt.output, "the agent was the same"
    row.clean(25)


def test_the_next_run_takes_the_result_that_waits(attempt: Attempt, target: Any, row: Row) -> None:
    """The installation has ended when the next run comes, and nobody has taken its result."""
    tasks = [{"name": "install", "sojourn.deploy.install": package(target, attempt.folder, seconds=2)}]
    with attempt.caught("installing", tasks, environment={"SOJOURN_LEASE_SECONDS": "60"}):
        row.fault()
        broker = attempt.broker_pid
        kill(attempt.pid, broker)
        attempt.end()
    first = attempt.run
    wait_for("the installer's end", lambda: marked(target, FINISHED), 60)
    attempt.begin(tasks)
    assert attempt.end() == 0, attempt.output
    result = attempt.results[-1]["result"]
    assert result["taken_up"] and (result["state"], result["exit_code"], result["bytes_sent"]) == ("installed", 0, 0), result
    assert result["stdout"].split("\n")[:2] == ["it begins", "it has finished"] and f"sojourn-{first}" in attempt.output, result
    row.clean()


def test_the_next_run_insists_on_an_agent_that_lives(attempt: Attempt, target: Any, row: Row) -> None:
    """It does not answer at first: nothing is begun beside it."""
    tasks = [{"name": "install", "sojourn.deploy.install": package(target, attempt.folder, seconds=40)}]
    with attempt.caught("installing", tasks):
        row.fault()
        broker = attempt.broker_pid
        kill(attempt.pid, broker)
        attempt.end()
    with target.cut_off(62286):
        attempt.begin(tasks)
        attempt.wait("the agent called in vain", lambda: "does not answer" in attempt.broker_log)
    assert attempt.end() == 0, attempt.output
    result = attempt.results[-1]["result"]
    assert result["taken_up"] and (result["state"], result["bytes_sent"]) == ("installed", 0), result
    row.clean(40)


def test_the_next_run_waits_for_the_guard_of_an_agent_that_was_killed(attempt: Attempt, target: Any, row: Row) -> None:
    """The installation goes on without its agent: the next run begins nothing beside it, and finds it complete."""
    tasks = [{"name": "install", "sojourn.deploy.install": package(target, attempt.folder)}]
    with attempt.caught("installing", tasks):
        row.fault()
        broker = attempt.broker_pid
        kill(attempt.pid, broker)
        attempt.end()
        attempt.kill_agent()
    attempt.begin(tasks)
    assert attempt.end() == 0, attempt.output
    result = attempt.results[-1]["result"]
    assert (result["state"], result["changed"]) == ("already_current", False) and marked(target, FINISHED), result
    row.clean()


def test_a_clean_up_is_forced(attempt: Attempt, target: Any, row: Row) -> None:
    """What lives goes where its run is named and the user insists; what lives beside it stays."""
    attempt.begin([AGENT, attempt.gate().task], environment={"SOJOURN_LEASE_SECONDS": "600"})
    attempt.wait_task()
    run = attempt.run
    broker = attempt.broker_pid
    kill(attempt.pid, broker)
    attempt.end()
    # Another home: with this one the session would be taken over, and ended in good order.
    other = {"XDG_STATE_HOME": str(attempt.folder / "other")}
    found = row.clean_up_by_playbook("-e", f"cleanup_run={run}", environment=other)
    assert {leftover["state"] for leftover in found} == {"live"}, found
    row.fault()
    found = row.clean_up_by_playbook("-e", f"cleanup_run={run}", "-e", "cleanup_force=true", environment=other)
    assert {leftover["state"] for leftover in found} == {"removed"} and "folder" in {leftover["kind"] for leftover in found}, found
    row.clean(over=False)


def test_another_user_does_not_take_it_up(attempt: Attempt, target: Any, row: Row, tmp_path: Path) -> None:
    """The session's key is in a file of its user alone: who has another home has another session."""
    with attempt.caught("installing"):
        row.fault()
        broker = attempt.broker_pid
        kill(attempt.pid, broker)
        attempt.end()
    (file,) = (Path(os.environ["XDG_STATE_HOME"]) / "sojourn").glob("*.json")
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    first = attempt.run
    attempt.begin([AGENT], environment={"XDG_STATE_HOME": str(tmp_path / "other")})
    assert attempt.end() == 0 and attempt.results[-1]["result"]["info"]["run"] != first, attempt.output
    row.clean()
