"""Tests beside one another, in worker processes of pytest-xdist: what stays together, what runs alone, what is printed all the same.

`make pytest` runs them so: `pytest --numprocesses 3`. Without xdist (and where xdist is not even installed) nothing here has any
effect but the marks.

- Each worker has a lab of its own, which tests/integration/conftest.py brings up. Tests that share something else stay in one
  process: `pytest.mark.xdist_group("...")`. xdist's own scheduler of that mark (3.8) goes by ids that pytest 9.2 does not
  let it change, and then says nothing and scatters the groups; the one here is told by the workers.
- A test that measures has the mark `alone`: while it runs, no other worker runs a test. A long one lets it in by the fixture `give_way`.
- What a test prints is not seen from a worker. What it says, by the fixture `say`, is.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections import Counter
from collections.abc import Generator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

SAID = "said"
# Of why a test failed, at once; all of it comes at the end.
WHY_LINES = 40
GROUPS = "groups.json"
_INPUT = "sojourn_turns"


def worker_of(config: pytest.Config) -> str:
    """The name of this worker, such as gw0; empty in a run without workers."""
    return getattr(config, "workerinput", {}).get("workerid", "")


class Parallel:
    """The hooks; one object in each process."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.turns: Turns | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        config.addinivalue_line("markers", "alone: measures, and so runs while no other worker runs a test")
        config.addinivalue_line("markers", "xdist_group(name): these tests run in one worker, one after the other")
        if worker_of(config):
            self.turns = Turns(Path(config.workerinput[_INPUT]))  # type: ignore[attr-defined]

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker that is about to start where the turns are."""
        if not self._folder:
            self._folder = tempfile.TemporaryDirectory(prefix="sojourn-tests-")
        node.workerinput[_INPUT] = self._folder.name

    def pytest_unconfigure(self) -> None:
        if self._folder:
            self._folder.cleanup()

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """The order in which workers take tests: what runs alone, while there is nothing beside it yet; what takes long, as a group does; unit tests last."""
        if not worker_of(self.config):
            return
        assert self.turns
        for item in items:
            if item.get_closest_marker("alone") and not item.get_closest_marker("xdist_group"):
                item.add_marker(pytest.mark.xdist_group("alone"))
        groups = {item: mark.args[0] for item in items if (mark := item.get_closest_marker("xdist_group"))}
        sizes = Counter(groups.values())

        def order(item: pytest.Item) -> tuple[bool, bool, int, str, bool]:
            group = groups.get(item, "")
            return group != "alone", not group, -sizes[group], group, "unit" in item.path.parts

        items.sort(key=order)  # it keeps the order of those that are equal
        self.turns.write(GROUPS, json.dumps({item.nodeid: group for item, group in groups.items()}))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """The scheduler: it hands out groups, and single tests, in the order of the collection."""
        from xdist.scheduler import LoadScopeScheduling

        folder = self._folder

        class Scheduler(LoadScopeScheduling):
            @cached_property
            def groups(self) -> dict[str, str]:
                assert folder  # and all have collected
                return json.loads((Path(folder.name) / GROUPS).read_text())

            def _split_scope(self, nodeid: str) -> str:
                return self.groups.get(nodeid, nodeid)

        config.option.loadscopereorder = False
        return Scheduler(config, log)

    @pytest.hookimpl(wrapper=True, optionalhook=True)
    def pytest_report_to_serializable(self) -> Generator[None, Any, Any]:
        """What a worker reports: a name that is no UTF-8, as a target's file may have one, would end all of the run."""
        return encodable((yield))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
        """Run a test with its fixtures when it is its turn."""
        if not self.turns:
            return (yield)
        self.turns.begin(_alone(item))
        try:
            return (yield)
        finally:
            if not (_alone(item) and _alone(nextitem)):
                self.turns.end()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print what a test said, in the process that prints, and why one failed: at once, a run that is cut off has no end."""
        printer = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and printer and not worker_of(self.config):
            printer.ensure_newline()
            printer.write_line(f"    {report.nodeid}, {report.when}:")
            for line in report.longreprtext.splitlines()[-WHY_LINES:]:
                printer.write_line(f"    {encodable(line)}")
        if report.when == "call" and printer and not worker_of(self.config):
            for name, text in report.user_properties:
                if name == SAID:
                    printer.ensure_newline()
                    printer.write_line(f"    {encodable(text)}")


def encodable(data: Any) -> Any:
    """The same, with what UTF-8 cannot have written as Python would."""
    if isinstance(data, str):
        return data.encode(errors="backslashreplace").decode()
    if isinstance(data, dict):
        return {encodable(key): encodable(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(map(encodable, data))
    return data


def _alone(item: pytest.Item | None) -> bool:
    return bool(item and item.get_closest_marker("alone"))


class Turns:
    """Many at once, or one alone: two locks on files, which the kernel releases when a worker ends, however it ends.

    The second says who runs. Everybody comes to it by way of the first, which who wants to be alone keeps: so it is not
    overtaken for ever.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._door, self._room = (os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600) for name in ("door", "room"))

    def write(self, name: str, text: str) -> None:
        """Leave a note for the others; it is there as a whole, or not at all."""
        aside = self.folder / f"{name}-{os.getpid()}"
        aside.write_text(text)
        aside.replace(self.folder / name)

    def begin(self, alone: bool) -> None:
        """Return when it is this process's turn."""
        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        fcntl.flock(self._door, kind)
        fcntl.flock(self._room, kind)
        if not alone:
            fcntl.flock(self._door, fcntl.LOCK_UN)

    def end(self) -> None:
        """Let the others go on."""
        fcntl.flock(self._room, fcntl.LOCK_UN)
        fcntl.flock(self._door, fcntl.LOCK_UN)


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Any:
    """Prints a line while the tests run, from a worker too: say(text)."""
    return lambda text: request.node.user_properties.append((SAID, text))


@pytest.fixture
def give_way(request: pytest.FixtureRequest) -> Any:
    """Lets those who wait to be alone go first, where a long test can be interrupted: give_way()."""
    plugin = request.config.pluginmanager.get_plugin("sojourn-parallel")

    def give() -> None:
        if plugin and plugin.turns:
            plugin.turns.end()
            plugin.turns.begin(alone=False)

    return give


def install(config: pytest.Config) -> None:
    """Have all this in a run of pytest."""
    if not config.pluginmanager.has_plugin("sojourn-parallel"):
        config.pluginmanager.register(Parallel(config), "sojourn-parallel")
