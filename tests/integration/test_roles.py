"""The roles agent, firewall and cleanup on real targets: each does its work once, and a second time changes nothing."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Controller, kill
from tests.integration.playing import Played, play
from tests.lab.namespaces import inside
from tests.lab.network import FIXED_HOSTS
from tests.lab.waiting import wait_for

PORT = 8470
RUN = "0badc0ffee00"


TASKS = {"agent": "Bring the agent into its state", "cleanup": "Remove what earlier runs left"}


def role(name: str, **variables: Any) -> dict[str, Any]:
    """A task that applies one of the roles."""
    return {"name": f"role {name}", "ansible.builtin.include_role": {"name": f"sojourn.deploy.{name}"}, "vars": variables}


def changes(played: Played, host: str, name: str) -> list[bool]:
    """Whether each application of the role changed the host, in order."""
    task = f"sojourn.deploy.{name} : {TASKS[name]}"
    return [bool(entry["result"].get("changed")) for entry in played.results if (entry["host"], entry["task"]) == (host, task)]


class TestAgent:
    def test_idempotent(self, controller: Controller, tmp_path: Path, family: str) -> None:
        tasks = [role("agent", agent_state=state) for state in ("absent", "present", "present", "absent", "absent")]
        played = play(controller, tmp_path, tasks, hosts="all", family=family).well()
        for host in ("linux1", "windows1"):
            assert changes(played, host, "agent") == [False, True, False, True, False]

    def test_check_mode(self, controller: Controller, tmp_path: Path) -> None:
        played = play(controller, tmp_path, [role("agent"), role("agent", agent_state="absent")], "--check", hosts="all").well()
        assert changes(played, "linux1", "agent") == [True, False]

    def test_bad_state(self, controller: Controller, tmp_path: Path) -> None:
        played = play(controller, tmp_path, [role("agent", agent_state="gone")])
        assert played.code != 0
        assert "value of agent_state must be one of: present, absent, got: gone" in played.output


@contextmanager
def listening(target: Any, port: int) -> Iterator[None]:
    """Something listens on the target's port, on all of its addresses."""

    def listen() -> socket.socket:
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)

    with inside(target.namespace, listen):
        yield


class TestFirewall:
    @pytest.fixture
    def closed_afterwards(self, controller: Controller, target: Any) -> Iterator[None]:
        """Kept ports are closed even if the test fails."""
        yield
        agent = controller.agent(target)
        for protocol in ("tcp", "udp"):
            agent.close_port(PORT, protocol)
        agent.remove()

    def reach(self, target: Any) -> dict[tuple[str, str], bool]:
        """Who reaches the port, over which family. A closed one takes a second to be told, so all are tried at once."""
        places = [(family, source) for family in ("ipv6", "ipv4") for source in FIXED_HOSTS]
        with ThreadPoolExecutor() as pool:
            return dict(zip(places, pool.map(lambda place: target.can_connect(PORT, *place), places), strict=True))

    def test_kept_port(self, controller: Controller, tmp_path: Path, target: Any, closed_afterwards: None) -> None:
        ports = [{"port": PORT}, {"port": PORT, "protocol": "udp"}]
        opening = role("firewall", firewall_ports=ports, firewall_keep=True)
        closing = role("firewall", firewall_ports=ports, firewall_state="closed")
        with listening(target, PORT):
            assert not any(self.reach(target).values())
            first = play(controller, tmp_path, [opening], hosts=target.name).well()
            assert [entry["changed"] for entry in self.items(first)] == [True, True]
            assert all(self.reach(target).values()), "open over both families, for everybody, after the run"
            second = play(controller, tmp_path, [opening, closing, closing], hosts=target.name).well()
            assert [entry["changed"] for entry in self.items(second)] == [False, False, True, True, False, False]
            assert not any(self.reach(target).values())

    def items(self, played: Played) -> list[dict[str, Any]]:
        """Results of the ports, in order."""
        return [item for entry in played.results if "results" in entry["result"] for item in entry["result"]["results"]]

    def test_port_for_the_run_alone(self, controller: Controller, tmp_path: Path, target: Any) -> None:
        with listening(target, PORT):
            opening = role("firewall", firewall_ports=[{"port": PORT}])
            look = {"name": "look", "ansible.builtin.wait_for": {"host": "{{ ansible_host }}", "port": PORT, "timeout": 5}, "delegate_to": "localhost"}
            closing = role("firewall", firewall_ports=[{"port": PORT, "state": "closed"}])
            played = play(controller, tmp_path, [opening, opening, look, closing, closing, opening], hosts=target.name).well()
            assert [entry["changed"] for entry in self.items(played)] == [True, False, True, False, True]
            wait_for("what was left open to be closed with the run", lambda: not any(self.reach(target).values()), timeout=60)

    def test_one_source(self, controller: Controller, tmp_path: Path, target: Any, family: str, closed_afterwards: None) -> None:
        addresses = controller.lab.network.addresses(FIXED_HOSTS["controller"])
        source = addresses.ula if family == "ipv6" else addresses.ipv4
        with listening(target, PORT):
            opening = role("firewall", firewall_ports=[{"port": PORT, "source": source, "keep": True}])
            played = play(controller, tmp_path, [opening, opening], hosts=target.name, family=family).well()
            assert [entry["changed"] for entry in self.items(played)] == [True, False]
            assert {place for place, is_open in self.reach(target).items() if is_open} == {(family, "controller")}

    def test_check_mode(self, controller: Controller, tmp_path: Path, target: Any) -> None:
        with listening(target, PORT):
            played = play(controller, tmp_path, [role("firewall", firewall_ports=[{"port": PORT, "keep": True}])], "--check", hosts=target.name).well()
            assert [entry["changed"] for entry in self.items(played)] == [True]
            assert not any(self.reach(target).values())


# States in which runs may leave a target


def agent_killed(controller: Controller, target: Any) -> str:
    """Broker and agent were killed: service, folder and rule are there, and nothing will ever end them."""
    info = controller.agent(target, lease_seconds=3600).deploy()["info"]
    kill(controller.broker_pid)
    controller.forget()
    controller.new_run()
    # The guard too, which would clean up after it, and before it, which would notice.
    target.exec(["pkill", "-9", "-f", f"sojourn-{info['run']}.agent"])
    return info["run"]


def service_stopped(controller: Controller, target: Any) -> str:
    """A service of a run, which is not running, and nothing else."""
    if target.kind == "linux":
        target.exec(["systemd-run", "--quiet", f"--unit=sojourn-{RUN}", "--remain-after-exit", "true"])
    else:
        target.exec(["wine", "sc", "create", f"sojourn-{RUN}", "binPath=", f"C:\\windows\\sojourn-{RUN}\\agent.exe", "start=", "auto"])
    return RUN


def only_folder(controller: Controller, target: Any) -> str:
    """A run's folder, with something in it. One of the last minutes might be of a run that is about to begin, and is spared."""
    folder = f"/tmp/sojourn-{RUN}" if target.kind == "linux" else f"/srv/windows/drive_c/windows/sojourn-{RUN}"
    target.exec(["sh", "-c", f"mkdir -p {folder}/install-1 && echo x >{folder}/install-1/setup && touch -d '1 hour ago' {folder}"])
    return RUN


def only_rule(controller: Controller, target: Any) -> str:
    """A run's firewall rule."""
    if target.kind == "linux":
        target.exec(["nft", "insert", "rule", "inet", "filter", "input", "tcp", "dport", "62286", "accept", "comment", f'"sojourn-{RUN}"'])
    else:
        words = ["advfirewall", "firewall", "add", "rule", f"name=sojourn-{RUN}", "dir=in", "action=allow", "protocol=TCP", "localport=62286"]
        target.exec(["wine", "netsh", *words])
    return RUN


class TestCleanup:
    def test_nothing_to_clean(self, controller: Controller, tmp_path: Path, family: str) -> None:
        played = play(controller, tmp_path, [role("cleanup"), role("cleanup")], hosts="all", family=family).well()
        for host in ("linux1", "windows1"):
            assert changes(played, host, "cleanup") == [False, False]

    @pytest.mark.parametrize("leave", [agent_killed, service_stopped, only_folder, only_rule])
    def test_from_any_state(self, controller: Controller, tmp_path: Path, target: Any, leave: Callable[[Controller, Any], str]) -> None:
        run = leave(controller, target)
        check = role("cleanup")
        check["ansible.builtin.include_role"]["apply"] = {"check_mode": True}
        played = play(controller, tmp_path, [check, role("cleanup"), role("cleanup")], hosts=target.name).well()
        assert changes(played, target.name, "cleanup") == [True, True, False]
        would, leftovers, nothing = [entry["result"]["leftovers"] for entry in played.results if "leftovers" in entry["result"]]
        assert {(item["run"], item["state"]) for item in would} == {(item["run"], item["state"]) for item in leftovers} == {(run, "removed")}
        assert nothing == []

    def test_of_one_run(self, controller: Controller, tmp_path: Path, target: Any) -> None:
        only_folder(controller, target)
        other = play(controller, tmp_path, [role("cleanup", cleanup_run="0123456789ab")], hosts=target.name).well()
        assert changes(other, target.name, "cleanup") == [False]
        own = play(controller, tmp_path, [role("cleanup", cleanup_run=f"sojourn-{RUN}")], hosts=target.name).well()
        assert changes(own, target.name, "cleanup") == [True]

    def test_what_is_not_ours_is_left(self, controller: Controller, tmp_path: Path, linux_target: Any) -> None:
        linux_target.exec(["mkdir", "/tmp/sojourn-of-somebody", "/tmp/sojourn-0badc0ffee00x"])
        try:
            played = play(controller, tmp_path, [role("cleanup")]).well()
            assert changes(played, "linux1", "cleanup") == [False]
        finally:
            linux_target.exec(["rmdir", "/tmp/sojourn-of-somebody", "/tmp/sojourn-0badc0ffee00x"])
