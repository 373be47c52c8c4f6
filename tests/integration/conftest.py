"""What every lab test stands on: a lab with one target of each kind, the controller's place in it, and the nothing-left check."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Lab
from tests.lab.namespaces import inside
from tests.lab.snapshot import compare, take
from tests.parallel import worker_of

FAMILIES = ("ipv6", "ipv4")

# What a test left as it was needs no second look before the next test.
_last_look: dict[str, dict[str, Any]] = {}


def pytest_configure(config: pytest.Config) -> None:
    """Markers of the lab tests."""
    config.addinivalue_line("markers", "leaves(*patterns): what may differ on the targets afterwards (see tests.lab.snapshot.compare)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here needs the lab."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.lab)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that is not looked after may have changed the targets."""
    if "nothing_left" not in getattr(item, "fixturenames", ()):
        _last_look.clear()


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """One lab for all tests of a process. SOJOURN_TEST_LAB names one that is up already, for quick repetition; it stays up then."""
    given, worker = os.environ.get("SOJOURN_TEST_LAB"), worker_of(request.config)
    if given:
        assert not worker, "one lab is not for several workers: SOJOURN_TEST_LAB goes without -n"
        yield Lab(given)
        return
    lab = Lab(f"tests{worker}")
    lab.down()  # what an interrupted run left
    lab.up(linux=1, windows=1)
    try:
        yield lab
    finally:
        lab.down()


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every lab test of a way in runs over IPv6 first, then over IPv4."""
    return request.param


@pytest.fixture
def linux_target(lab: Lab) -> Any:
    """The Linux target."""
    return lab.target("linux1")


@pytest.fixture
def windows_target(lab: Lab) -> Any:
    """The Windows target."""
    return lab.target("windows1")


@pytest.fixture(params=["linux", "windows"])
def target(request: pytest.FixtureRequest, lab: Lab) -> Any:
    """One after the other."""
    return lab.target(f"{request.param}1")


class InNamespace:
    """An object whose methods run in the controller's network."""

    def __init__(self, namespace: str, wrapped: Any) -> None:
        self._namespace = namespace
        self.wrapped = wrapped

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.wrapped, name)
        return lambda *args, **kwargs: inside(self._namespace, lambda: method(*args, **kwargs))


class Controller:
    """The controller of a lab: Ansible's commands, and agents without Ansible, on behalf of a run of its own."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.namespace = lab.network.namespace("controller")
        self._owners: list[subprocess.Popen[bytes]] = []
        self.folders: list[Path] = []
        self.owner = self.new_run()

    def new_run(self) -> subprocess.Popen[bytes]:
        """A process that stands for an ansible-playbook; agents made from now on belong to it."""
        from ansible_collections.sojourn.deploy.plugins.plugin_utils import broker_client

        self.owner = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self._owners.append(self.owner)
        self.folders.append(Path(broker_client.run_folder(self.owner.pid)))
        return self.owner

    def options(self, target: Any, family: str = "ipv6", **more: Any) -> Any:
        """The target's options, as its inventory has them."""
        from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target

        user = more.pop("user", target.user)
        values = {
            "user": user,
            "password": target.password(user) if user in target.accounts else None,
            "host": target.name,
        }
        if target.kind == "linux":
            values["known_hosts"] = str(self.lab.known_hosts)
        values.update(more)
        address = values.pop("address", None) or target.addresses.as_seen_from_the_lab(family)
        way_in = values.pop("way_in", "ssh" if target.kind == "linux" else "smb")
        return Target.make(way_in, address, **values)

    def agent(self, target: Any, family: str = "ipv6", **more: Any) -> Any:
        """An ``Agent`` for a target, its methods run in the controller's network."""
        from ansible_collections.sojourn.deploy.plugins.plugin_utils.broker_client import Agent

        return InNamespace(self.namespace, Agent(self.options(target, family, **more), self.owner.pid))

    @property
    def broker_pid(self) -> int:
        """The present run's broker."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if b"--owner" in words and words[words.index(b"--owner") + 1] == str(self.owner.pid).encode():
                    return int(entry.name)
        raise AssertionError("no broker runs")

    def run(self, *command: str, family: str = "ipv6", environment: dict[str, str] | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """One of Ansible's commands on the lab's inventory."""
        return self.lab.run(list(command), env=self.variables(family, environment), timeout=timeout)

    def start(self, *command: str, output: Path, family: str = "ipv6", environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """The same, without waiting for it: the process is the command's own, and leads a process group, as under ansible-runner."""
        with open(output, "wb") as file:
            return subprocess.Popen(
                self.lab.inside("controller", command), env=self.variables(family, environment), stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True)

    def variables(self, family: str = "ipv6", more: dict[str, str] | None = None) -> dict[str, str]:
        """Variables with which Ansible finds the lab's inventory."""
        from tests.lab.inventory import inventory

        path = self.lab.folder / f"inventory-{family}.yml"
        if not path.exists():
            path.write_text(inventory(self.lab, family))
            path.chmod(0o600)
        variables = {
            "ANSIBLE_INVENTORY": str(path),
            "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_RETRY_FILES_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            **(more or {}),
        }
        return {**os.environ, **variables}

    def end(self) -> None:
        """Ends the runs, and waits until their brokers have cleaned up."""
        for owner in self._owners:
            owner.kill()
            owner.wait()
        deadline = time.monotonic() + 60
        while any(folder.exists() for folder in self.folders):
            if time.monotonic() > deadline:
                logs = [(folder / "broker.log").read_text() for folder in self.folders if (folder / "broker.log").exists()]
                raise AssertionError("a broker did not end, or not well:\n" + "\n".join(logs))
            time.sleep(0.02)

    def forget(self, folder: Path | None = None) -> None:
        """For a broker that was killed: removes what only it would have."""
        import shutil

        for path in [folder] if folder else self.folders:
            shutil.rmtree(path, ignore_errors=True)


def _look(targets: list[Any]) -> dict[str, Any]:
    with ThreadPoolExecutor() as pool:
        return dict(zip([target.name for target in targets], pool.map(take, targets), strict=True))


@pytest.fixture
def nothing_left(request: pytest.FixtureRequest, lab: Lab) -> Iterator[None]:
    """The project's most important check: afterwards the targets are as they were.

    A test that asks for certain targets by fixture is checked on those; any other on all of the lab.
    """
    named = [name for name in ("target", "linux_target", "windows_target") if name in request.fixturenames]
    targets = [request.getfixturevalue(name) for name in named] or list(lab.targets.values())
    known = _last_look.setdefault(lab.name, {})
    before = {target.name: known.pop(target.name, None) for target in targets}
    before.update(_look([target for target in targets if before[target.name] is None]))
    yield
    marker = request.node.get_closest_marker("leaves")
    # A target's own services come and go; what is really left is still there at the second look.
    deadline, looks = time.monotonic() + 30, 0
    while True:
        after = _look(targets)
        looks += 1
        differences = [
            f"{name}: {difference}" for name in after for difference in compare(before[name], after[name], marker.args if marker else ())
        ]
        if not differences or (looks > 1 and time.monotonic() > deadline):
            break
    assert not differences, "\n".join(differences)
    known.update(after)


@pytest.fixture
def controller(lab: Lab, nothing_left: None) -> Iterator[Controller]:
    """The controller; when the test is over its runs end, and then nothing may be left on any target."""
    controller = Controller(lab)
    try:
        yield controller
    finally:
        controller.end()


def kill(*pids: int) -> None:
    """As a crash would, and waits for it; several at once: none of them sees another go, and does something about it."""
    import select

    descriptors = [os.pidfd_open(pid) for pid in pids]
    try:
        for number in (signal.SIGSTOP, signal.SIGKILL) if len(pids) > 1 else (signal.SIGKILL,):
            for pid in pids:
                os.kill(pid, number)
        for pid, descriptor in zip(pids, descriptors, strict=True):
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            assert poll.poll(10_000), f"process {pid} did not end"
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def error_lines(output: str) -> list[str]:
    """Lines of Ansible's output that carry one of our errors."""
    return [line for line in output.splitlines() if "(SD-" in line]


def secrets_of(lab: Lab) -> list[str]:
    """Every password of the lab."""
    return [password for accounts in json.loads((lab.folder / "credentials.json").read_text()).values() for password in accounts.values()]
