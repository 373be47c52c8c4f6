"""The soak: 200 times deploy, install, remove on each family, interrupted at random points of a fixed seed: nothing is left, and nothing grows.

SOJOURN_SOAK_SEED and SOJOURN_SOAK_CYCLES ask for others. Most cycles are of one run that lasts, so that its broker's growth shows; every
fourth has a run of its own, which is killed one way or another. `-s` shows each cycle.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import broker_client, ledger
from ansible_collections.sojourn.deploy.plugins.plugin_utils.broker import MAXIMUM_LOG
from ansible_collections.sojourn.deploy.plugins.plugin_utils.broker_client import Installation
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from tests.integration import soak
from tests.integration.conftest import Controller, InNamespace, kill
from tests.integration.faults import BEGUN, FINISHED, Attempt, Watch, forget_marks
from tests.integration.soak import NONE, Caller, Cycle, Look, Package, Process, Stopwatch, TargetFigures
from tests.lab.errors import LabError
from tests.lab.waiting import wait_for

SEED = os.environ.get("SOJOURN_SOAK_SEED", "1")
CYCLES = int(os.environ.get("SOJOURN_SOAK_CYCLES", "200"))

# Seconds. What is lost counts as lost after a lease, so it is short; longer where nothing of the kind is to happen, on a machine however busy.
LEASE = 5
LASTING_LEASE = 10
WITHIN = LEASE + 30
# Cycles between two looks at the whole target, and after which growth counts: before, caches fill and libraries are loaded.
WHOLE_LOOK = 25
WARM_UP = 30
# Seconds after which a process that has not begun, and whose parent was killed, is taken for what Wine leaves: see soak.end_stillborn.
STILLBORN_AFTER = 3
# Longest that any call may take.
PATIENCE = 120

# The broker's memory may go up in steps, as when it keeps an agent that it has packed (3.3 MB). So the least of every 25 cycles may not rise each of
# the last four times: 40 kB a cycle would be too much. That alone would miss a leak with one step down in it, so there is a bound for all of the run
# as well: it was 4.6 MB on Linux (150 cycles). (9.6 with malloc's two arenas, but its bound for large blocks left to itself; 18 to 22 with both.)
BROKER_MEMORY = 1 << 20
RISES = 4
BROKER_MEMORY_IN_ALL = 8 << 20
LOG_A_CYCLE = 2048
# Descriptors of the broker: a connection that broke off is closed when Python comes to collect what held it, which is in its own time. In 200
# cycles there are up to three of those at once; one that is lost in every fortieth cycle would be too many.
BROKER_DESCRIPTORS = 4
# Of processes of the target: descriptors, and bytes of memory. Wine's manager of services starts and ends threads as it likes.
ON_TARGET = {"systemd": (4, 2 << 20), "sshd": (2, 1 << 20), "smbd": (4, 2 << 20), "services.exe": (32, 8 << 20), "wineserver64": (64, 8 << 20)}

CODES = {"0": ["installed", "installed"]}


class Work:
    """The calls of a cycle, in a thread of their own, until one fails."""

    def __init__(self, controller: Controller, target: Any, package: Package, cycle: Cycle, **options: float) -> None:
        self.caller = Caller(controller.options(target, **options), controller.owner.pid)
        self._agent = InNamespace(controller.namespace, self.caller)
        self._package = package
        self._cycle = cycle
        self._begun = {step: threading.Event() for step in soak.STEPS}
        self._over = threading.Event()
        self.at = "before"
        self.error: SojournError | None = None
        self.code: int | None = None
        self._trouble: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _step(self, name: str) -> None:
        self.at = name
        self._begun[name].set()

    def _run(self) -> None:
        try:
            self._install()
            self.at = "after"
        except SojournError as error:
            self.error = error
        except BaseException as error:
            self._trouble = error
        finally:
            self._over.set()
            for begun in self._begun.values():
                begun.set()

    def _install(self) -> None:
        agent, label = self._agent, f"package {self._cycle.number}"
        self._step("deploy")
        number = agent.note(package=label, state=ledger.PENDING)
        agent.deploy()
        self._step("put_file")
        sent = agent.put_file(str(self._package.path), f"install-{secrets.token_hex(4)}/{self._package.path.name}", mode="0700")
        self._step("execute")
        agent.note(number, state=ledger.INSTALLING, codes=CODES)
        answer = agent.execute(self._package.command(self._cycle, sent["path"]), timeout=60, on_output=lambda unused_stream, unused_data: None,
                               installation=Installation(secrets.token_hex(16), label, label, number))
        self.code = answer["exit_code"]
        agent.note(number, state="installed")
        self._step("remove")
        agent.remove()

    def wait_moment(self) -> str:
        """Until the cycle's interruption is due; in which step that is."""
        assert self._begun[self._cycle.step].wait(PATIENCE), f"{self._cycle.step} did not begin"
        self._over.wait(self._cycle.delay)
        return self.at

    def wait_step(self, name: str) -> str:
        """Until another step begins, or there is none any more."""
        assert self._begun[name].wait(PATIENCE), f"{name} did not begin"
        return self.at

    def end(self) -> None:
        """Waits for it. What failed must have said so in the product's own words."""
        assert self._over.wait(PATIENCE), f"{self.at} takes longer than {PATIENCE} s"
        if self._trouble:
            raise self._trouble
        assert self.error is None or self.error.code != "SD-903", self.error


class Soak:
    """The whole of it, on one target."""

    def __init__(self, controller: Controller, target: Any, folder: Path, state: Path) -> None:
        self.controller = controller
        self.target = target
        self.package = Package(target, folder)
        self._agents = Attempt(controller, target, folder)
        self._state = state / "sojourn"
        self._lasting = controller.owner
        self.lasting_folder = Path(broker_client.run_folder(self._lasting.pid))
        self.broker = 0
        #: Folders of brokers that were killed: the next one that starts removes them, once their runs are over.
        self.stale: list[Path] = []
        self.watch = Watch(target)
        self.seconds: list[float] = []
        self.clean: list[float] = []
        self.interruptions: Counter[str] = Counter()
        self.stillborn = 0
        #: Ends of agents that nobody asked for, of which the target's log tells, since the warm-up.
        self.unasked = 0
        self.target_after: TargetFigures | None = None
        self.brokers: list[Process] = []
        self.at_rest: list[Process] = []
        self.log_sizes: list[int] = []
        self.errors: Counter[str] = Counter()

    def _agent(self, lease: int = LASTING_LEASE) -> Any:
        return self.controller.agent(self.target, lease_seconds=lease)

    # One cycle

    def cycle(self, cycle: Cycle) -> None:
        """Does it, and waits until nothing of it is left."""
        watch = Stopwatch()
        work = self._of_the_lasting_run(cycle) if cycle.kind in soak.LASTING else self._of_its_own_run(cycle)
        since = Stopwatch()
        look = self._wait_clean(cycle)
        self.clean.append(since.seconds)
        self._judge(cycle, work, look)
        if cycle.kind in soak.LASTING:
            self._measure()
        self.seconds.append(watch.seconds)
        print(f"{cycle}, at {work.at}: {watch.seconds:.2f} s, of it {since.seconds:.2f} s until clean; {work.error or 'no error'}", flush=True)

    def _of_the_lasting_run(self, cycle: Cycle) -> Work:
        # A target's firewall says nothing of a port that is closed again.
        lost = {"lease_seconds": 3, "connection_timeout": 1.5}
        options = lost if cycle.kind in (soak.AGENT, soak.AGENT_AND_NETWORK) else {"lease_seconds": LEASE if cycle.kind == soak.NETWORK else LASTING_LEASE}
        work = Work(self.controller, self.target, self.package, cycle, **options)
        if cycle.kind != NONE:
            at = work.wait_moment()
            if at == "deploy" and cycle.kind in (soak.AGENT, soak.AGENT_AND_NETWORK) and self.target.kind == "windows":
                # A guard that is stillborn (see soak.end_stillborn) keeps the folder.
                at = work.wait_step("put_file")
            self._count(cycle, at)
            if cycle.kind == soak.CALLER:
                work.caller.die()
            if cycle.kind in (soak.NETWORK, soak.AGENT_AND_NETWORK):
                self.target.reset_connections(self.target.port if at == "deploy" and cycle.kind == soak.NETWORK else 62286)
            if cycle.kind in (soak.AGENT, soak.AGENT_AND_NETWORK):
                self._kill_agents()
        else:
            self._count(cycle, "")
        work.end()
        if cycle.kind == NONE:
            assert work.error is None and work.code == 0, work.error
        elif work.at != "after":
            self._remove()
        return work

    def _of_its_own_run(self, cycle: Cycle) -> Work:
        owner = self.controller.new_run()
        folder = Path(broker_client.run_folder(owner.pid))
        try:
            # Nobody comes for the last kind: the less time that takes, the more cycles there are.
            work = Work(self.controller, self.target, self.package, cycle, lease_seconds=2 if cycle.kind == soak.OWNER_AND_BROKER else LEASE)
            self._count(cycle, work.wait_moment())
            if cycle.kind != soak.OWNER:
                with contextlib.suppress(ProcessLookupError, AssertionError):  # it may not have begun yet
                    kill(self.controller.broker_pid)
            if cycle.kind in (soak.OWNER, soak.OWNER_AND_BROKER):
                owner.kill()
                owner.wait()
            work.end()
            if cycle.kind == soak.BROKER_THEN_SAME:
                self._agent(LEASE).deploy()
                self._remove()
        finally:
            self.controller.owner = self._lasting
            owner.kill()
            owner.wait()
        if cycle.kind == soak.BROKER_THEN_OTHER:
            self._agent().deploy()
            self._remove()
        if cycle.kind in (soak.OWNER, soak.BROKER_THEN_SAME):
            wait_for("the broker's end", lambda: not folder.exists(), WITHIN)
        else:
            self.stale.append(folder)
        return work

    def _count(self, cycle: Cycle, at: str) -> None:
        self.unasked += cycle.number > WARM_UP and cycle.kind not in (NONE, soak.CALLER, soak.OWNER)
        self.interruptions[cycle.kind if cycle.kind == NONE else f"{cycle.kind}, in {at}" if at != "after" else f"{cycle.kind}, too late"] += 1

    def _kill_agents(self) -> None:
        for pid in self._agents.agents():
            with contextlib.suppress(ProcessLookupError):  # it is on its way out
                kill(pid)

    def _remove(self) -> None:
        try:
            self._agent().remove()
        except SojournError as error:
            self.errors[f"remove: {error.code} {error.sentence}"] += 1

    def _wait_clean(self, cycle: Cycle) -> Look:
        """Waits until a cheap look shows nothing of the product.

        A call that the lasting run's broker had taken when its caller died may be carried out after the removal, also after this cycle's
        end: then the next removal is what takes the agent off.
        """
        since = Stopwatch()
        while True:
            look = Look(self.target, cycle)
            if not look.left:
                return look
            assert since.seconds < WITHIN, f"{since.seconds:.0f} s after the interruption there is still:\n" + "\n".join(look.left)
            if since.seconds > 0.5:
                self._remove()
            if since.seconds > STILLBORN_AFTER and self.target.kind == "windows":
                self.stillborn += soak.end_stillborn(self.target)
            # Nothing announces to an outsider that the last trace of a service is gone.
            time.sleep(0.05)

    def _judge(self, cycle: Cycle, work: Work, look: Look) -> None:
        """What has begun is finished, and nothing else is said of it."""
        begun, finished = BEGUN in look.marks, FINISHED in look.marks
        assert begun == finished, f"an installation that has begun is finished: {look.marks}"
        if work.code is not None:
            assert work.code == 0 and finished, f"it was said to have ended with code {work.code}: {look.marks}"
        for told in ledger.take():
            for row in told["rows"]:
                assert row["package"] == f"package {cycle.number}", row
                if row["state"] in ("installed", ledger.DROPPED):
                    assert finished == (row["state"] == "installed"), row
                else:
                    self.errors[f"told: {row['state']}, {row['msg']}"] += 1
        forget_marks(self.target)

    # What must not grow

    def _measure(self) -> None:
        if not self.broker:
            self.broker = self.controller.broker_pid
        assert self.controller.broker_pid == self.broker, "the lasting run's broker is not the same any more"
        self.brokers.append(Process.of(self.broker))
        self.log_sizes.append((self.lasting_folder / "broker.log").stat().st_size)

    def rest(self) -> None:
        """Waits until the lasting broker has no more open than it had at the first such moment: threads end a little after the call that they were for."""
        with contextlib.suppress(LabError):
            wait_for("threads to end", lambda: not self.at_rest or not _more_open(Process.of(self.broker), self.at_rest[0]), 5)
        self.at_rest.append(Process.of(self.broker))

    def nothing_grew(self, then: TargetFigures) -> None:
        """At the end, against what was after the warm-up."""
        assert not _more_open(self.at_rest[-1], self.at_rest[0], BROKER_DESCRIPTORS), (
            f"the broker at rest: {self.at_rest[0]} -> {self.at_rest[-1]}: {soak.open_files(self.broker)}")
        least = self.least_memory
        assert steady_growth(least) < BROKER_MEMORY, f"the broker's memory grew all the time: {least}"
        assert least[-1] - least[0] < BROKER_MEMORY_IN_ALL, f"the broker's memory grew: {least}"
        assert self.log_sizes[-1] <= min(MAXIMUM_LOG, LOG_A_CYCLE * len(self.log_sizes)), f"the broker's log: {self.log_sizes[-1]} bytes"
        now = self.target_after = TargetFigures.of(self.target)
        for name, (descriptors, memory) in ON_TARGET.items():
            if name in then.processes:
                before, after = then.processes[name], now.processes[name]
                assert after.descriptors <= before.descriptors + descriptors and after.memory <= before.memory + memory, f"{name}: {before} -> {after}"
        told = now.counts[soak.LOG_LINES] - then.counts[soak.LOG_LINES]
        assert told <= 4 * self.unasked, f"{told} lines in the target's log of {self.unasked} ends that nobody asked for"

    @property
    def least_memory(self) -> list[int]:
        """Of the lasting broker, in each so many of its cycles."""
        return [min(process.memory for process in self.brokers[begin:begin + WHOLE_LOOK]) for begin in range(0, len(self.brokers), WHOLE_LOOK)]

    def whole_look(self) -> None:
        """Nothing at all is left, on the target and on the controller."""
        self._remove()  # see _wait_clean
        if self.target.kind == "windows":
            self._end_stillborn_console()
        self.watch.wait_clean(time.monotonic(), WITHIN)
        log = self.lasting_folder.joinpath("broker.log").read_text()
        assert "Traceback" not in log, log

    def _end_stillborn_console(self) -> None:
        """Others end by themselves, once those whose they are have."""
        try:
            wait_for("consoles to end", lambda: not any(process.name == soak.CONSOLE for process in self.target.processes()), STILLBORN_AFTER)
        except LabError:
            self.stillborn += soak.end_stillborn(self.target)

    def last_look(self) -> None:
        """What was left to other runs has been seen to by them."""
        self._agent().deploy()
        self._remove()
        self.controller.new_run()
        self._agent(LEASE).deploy()
        self._agent(LEASE).remove()
        left = [folder for folder in self.stale if folder.exists()]
        wait_for(f"the end of {left}", lambda: not any(folder.exists() for folder in self.stale), 10)
        files = os.listdir(self._state) if self._state.exists() else []
        assert not files, f"sessions that nobody has any more: {files}"

    def summary(self, target_before: TargetFigures | None) -> Iterator[str]:
        """What was done, how long it took, what has grown."""
        yield f"{len(self.seconds)} cycles, {len(self.stale)} of them left to another run or to the target; interruptions: " + "; ".join(
            f"{name} {count}" for name, count in sorted(self.interruptions.items()))
        if self.seconds:
            yield f"seconds a cycle: median {statistics.median(self.seconds):.2f}, most {max(self.seconds):.2f}; all {sum(self.seconds):.0f}"
            yield f"until clean: median {statistics.median(self.clean):.2f} s, most {max(self.clean):.2f} s"
        if self.stillborn:
            yield f"{self.stillborn} tools or consoles that an agent was about to start when it was killed, and that Wine never let run, were ended here"
        for text, count in self.errors.items():
            yield f"{count} times {text}"
        if self.brokers:
            count = len(self.brokers)
            yield "broker: " + "; ".join(f"after {number} cycles {self.brokers[number - 1]}" for number in sorted(
                {1, *(number for number in (WARM_UP, count // 2, count * 3 // 4, count) if 0 < number <= count)}))
            least = self.least_memory
            yield (f"its least memory in each {WHOLE_LOOK} cycles: {', '.join(f'{value / 1048576:.1f}' for value in least)} MB; "
                   f"steady growth {steady_growth(least) / 1048576:+.1f} MB")
            yield "broker at rest: " + "; ".join(f"{process.descriptors} descriptors, {process.threads} threads" for process in self.at_rest)
            yield f"its log: {self.log_sizes[-1]} bytes, {self.log_sizes[-1] / len(self.log_sizes):.0f} a cycle"
        if target_before:
            yield "target, since the warm-up: " + ("; ".join((self.target_after or TargetFigures.of(self.target)).since(target_before)) or "as it was")


def steady_growth(least: list[int]) -> int:
    """By how many bytes at least each of the last few figures is more than the one before; 0 where there are too few."""
    rises = [after - before for before, after in itertools.pairwise(least)]
    return min(rises[-RISES:]) if len(rises) >= RISES else 0


@pytest.mark.parametrize(
    ("least", "grown"),
    [
        ([36.3, 52.0, 53.9, 58.3, 58.5, 58.7], True), ([32.9, 39.3, 39.6, 37.9, 41.8, 51.1], True), ([31.2, 31.4, 31.5, 34.5, 40.6, 40.8], True),
        ([34.8, 36.8, 36.2, 36.2, 36.9, 38.0], False), ([36.3, 37.5, 38.7, 39.9, 41.1, 42.3], True), ([30.0, 52.0, 54.7, 57.4, 60.1, 70.2], True),
        ([32.1, 37.8, 43.5, 42.5, 45.2, 48.9], True), ([32.1, 39.8, 40.9, 41.3, 41.4, 41.6], True),
        ([30.6, 31.3, 31.4, 31.7, 31.9, 35.2], False),
    ],
)  # fmt: skip
def test_a_leak_is_told_from_steps(least: list[float], grown: bool) -> None:
    """As brokers really had it in MB, the first three and the last but one with malloc left more to itself; and three that leak 48 and 110 kB a cycle."""
    figures = [int(value * 1048576) for value in least]
    assert (steady_growth(figures) >= BROKER_MEMORY or figures[-1] - figures[0] >= BROKER_MEMORY_IN_ALL) is grown


def _more_open(now: Process, then: Process, allowed: int = 0) -> bool:
    return now.descriptors > then.descriptors + allowed or now.threads > then.threads


@pytest.fixture
def soaked(controller: Controller, target: Any, tmp_path: Path, state_home: Path) -> Iterator[Soak]:
    """A soak; and what it has to leave to others is taken away where it failed."""
    soak = Soak(controller, target, tmp_path, state_home)
    try:
        yield soak
    finally:
        forget_marks(target)
        for folder in soak.stale:
            controller.forget(folder)


@pytest.mark.parametrize("target", [pytest.param(kind, marks=pytest.mark.xdist_group(f"soak {kind}")) for kind in ("linux", "windows")], indirect=True)
def test_soak(soaked: Soak, target: Any, say: Callable[[str], None], give_way: Callable[[], None]) -> None:
    seed = f"{SEED} {target.kind}"
    say(f"soak of {target.kind}, seed {SEED}")
    print(f"\nsoak of {target.kind}, seed {SEED}")
    on_target: TargetFigures | None = None
    cycle = None
    try:
        for cycle in soak.plan(seed, CYCLES):
            give_way()
            soaked.cycle(cycle)
            if cycle.number % WHOLE_LOOK == 0 or cycle.number in (WARM_UP, CYCLES):
                soaked.whole_look()
                soaked.rest()
            if cycle.number == min(WARM_UP, CYCLES):
                on_target = TargetFigures.of(target)
        assert on_target
        soaked.nothing_grew(on_target)
        soaked.last_look()
        cycle = None
    except BaseException as error:
        say(f"seed {SEED}, {cycle or 'after the last cycle'}: {type(error).__name__}: {error}")
        raise
    finally:
        for line in soaked.summary(on_target):
            say(line)
            print(line)
