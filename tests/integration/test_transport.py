"""Where no port can be opened: the same channel inside the way in's own connection, and not a rule on the target."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from tests.conftest import CHECKOUT
from tests.integration.conftest import Controller, kill
from tests.integration.playing import PACKAGES_LEAVE, install, play
from tests.integration.test_install import packages, uninstalled  # noqa: F401  fixtures
from tests.lab.waiting import wait_for

ECHO = {"linux": "echo {}", "windows": "cmd /c echo {}"}
LOOPBACK = {"ipv6": "[::1]", "ipv4": "127.0.0.1"}
MEGABYTES = 20


def _says(agent: Any, target: Any, text: str = "there") -> bool:
    return agent.execute(command_line=ECHO[target.kind].format(text))["stdout"].split() == [text.encode()]


def _folders(target: Any) -> str:
    places = "/tmp /var/tmp" if target.kind == "linux" else "/srv/windows/drive_c/windows"
    return target.exec(["sh", "-c", f"ls {places}"]).stdout


def test_an_agent_behind_the_tunnel(controller: Controller, target: Any, family: str, tmp_path: Path, say: Callable[[str], None]) -> None:
    """It comes, works, moves files and goes; and where no firewall rule may be made, none is asked for."""
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(MEGABYTES << 20))
    agent = controller.agent(target, family, transport="tunnel")
    with target.firewall_tool(fails="open"):
        deployed = agent.deploy()
        info = deployed["info"]
        assert info["transport"] == "tunnel"
        assert info["tls_version"] == "TLS 1.3"
        assert not info["firewall_rule"] and agent.list_ports() == []
        if target.kind == "linux":
            listening = target.exec(["ss", "-Hltnp"]).stdout.splitlines()
            assert [line.split()[3] for line in listening if f"pid={info['process_id']}," in line] == [f"{LOOPBACK[family]}:{info['port']}"], listening
        else:
            assert info["port"] == 0
        assert not target.can_connect(62286, family)
        assert _says(agent, target)
        path = "/tmp/tunnel-there" if target.kind == "linux" else r"C:\tunnel-there"
        digest = hashlib.sha256(there.read_bytes()).hexdigest()
        assert agent.put_file(str(there), path)["checksum"] == digest
        assert agent.get_file(path, str(back))["checksum"] == digest
        assert hashlib.sha256(back.read_bytes()).hexdigest() == digest
        agent.execute(command_line=f"rm {path}" if target.kind == "linux" else f"cmd /c del {path}")
        removed = agent.remove()
    assert removed["changed"] and not any("firewall" in item for item in removed["removed"]), removed
    say(f"{target.kind} over {family}: {deployed['seconds']}")


@pytest.mark.leaves(*PACKAGES_LEAVE)
def test_a_whole_play_through_the_tunnel(
    controller: Controller,
    uninstalled: None,  # noqa: F811
    packages: dict[str, Path],  # noqa: F811
    target: Any,
    family: str,
    tmp_path: Path,
) -> None:
    """A package, a raw command, modules: with ``transport`` as a variable of the inventory's, and a firewall that takes no rule."""
    package = packages["deb-1.0" if target.kind == "linux" else "msi-1.0.0"]
    tasks: list[dict[str, Any]] = [
        install("package", src=package),
        {"name": "raw", "ansible.builtin.raw": ECHO[target.kind].format("raw")},
        {"name": "agent", "sojourn.deploy.agent": {"state": "present"}},
    ]
    if target.kind == "linux":
        tasks += [{"name": "module", "ansible.builtin.command": "echo module"}, {"name": "become", "ansible.builtin.command": "id -un", "become": True}]
    with target.firewall_tool(fails="open"):
        played = play(controller, tmp_path, tasks, "-vvv", "-e", "ansible_sojourn_transport=tunnel", hosts=target.name, family=family).well()
    host = target.name
    assert played[host, "package"]["state"] == "installed", played[host, "package"]
    assert played[host, "raw"]["stdout"].split() == ["raw"]
    assert played[host, "agent"]["info"]["transport"] == "tunnel"
    if target.kind == "linux":
        assert played[host, "module"]["stdout"] == "module"
        assert played[host, "become"]["stdout"] == "root"
    assert "through the tunnel to " in played.output, played.output


def test_auto_goes_directly_where_it_can(controller: Controller, target: Any, family: str) -> None:
    agent = controller.agent(target, family, transport="auto")
    steps: list[dict[str, Any]] = []
    agent.wrapped.on_step = steps.append
    info = agent.deploy()["info"]
    assert (info["transport"], info["port"]) == ("direct", 62286) and info["firewall_rule"]
    assert "not directly" not in {step["name"] for step in steps}
    agent.remove()


@pytest.mark.parametrize("obstacle", ["port", "firewall"])
def test_auto_goes_by_tunnel_where_it_must(controller: Controller, target: Any, family: str, obstacle: str) -> None:
    """The agent's port does not come through, or no rule may be made: it says so, and nothing of the first try is left beside the tunnel."""
    agent = controller.agent(target, family, transport="auto", agent_ports="62286")
    steps: list[dict[str, Any]] = []
    agent.wrapped.on_step = steps.append
    with target.cut_off(62286) if obstacle == "port" else target.firewall_tool(fails="open"):
        info = agent.deploy()["info"]
        assert info["transport"] == "tunnel"
        (said,) = [step["detail"] for step in steps if step["name"] == "not directly"]
        assert ("(SD-501)" if obstacle == "port" else "(SD-603)") in said and "by tunnel" in said
        assert agent.list_ports() == []
        assert _says(agent, target)
        agent.remove()


def test_auto_tells_the_user_which_it_took(controller: Controller, target: Any) -> None:
    """With -v, as nothing else about the way in."""
    words = ("ansible", target.name, "-e", "ansible_sojourn_transport=auto ansible_sojourn_agent_ports=62286", "-m", "raw", "-a", "echo hello")
    def run(*more: str) -> subprocess.CompletedProcess[str]:
        done = controller.run(*words, *more)
        wait_for("the end of its agent, which has the port", lambda: "sojourn-" not in _folders(target), 60)
        return done

    with target.cut_off(62286):
        for verbose in ("-v", None):
            done = run(*([verbose] if verbose else []))
            assert done.returncode == 0 and ("NOT DIRECTLY" in done.stdout and "by tunnel" in done.stdout) is bool(verbose), done.stdout + done.stderr
    done = run("-v")
    assert done.returncode == 0 and "NOT DIRECTLY" not in done.stdout


def test_a_connection_that_is_lost_is_made_anew(controller: Controller, target: Any, family: str) -> None:
    """The connection under the tunnel is reset between two calls: the agent is the same afterwards."""
    agent = controller.agent(target, family, transport="tunnel")
    process = agent.deploy()["info"]["process_id"]
    assert target.reset_connections(target.port) >= 1
    assert _says(agent, target)
    assert agent.info()["process_id"] == process
    agent.remove()


def test_the_lease_is_renewed_through_the_tunnel(controller: Controller, target: Any) -> None:
    agent = controller.agent(target, transport="tunnel", lease_seconds=5)
    process = agent.deploy()["info"]["process_id"]
    # Three leases long: what runs there tells of the time, and is not what keeps it alive.
    wait = "sleep 15" if target.kind == "linux" else "cmd /c ping -n 16 127.0.0.1 >nul"
    agent.execute(command_line=wait, safe_to_kill=True)
    assert agent.info()["process_id"] == process
    agent.remove()


def test_the_lease_cleans_up_behind_the_tunnel(controller: Controller, target: Any, family: str) -> None:
    """Its broker is killed, and the connection with it."""
    controller.agent(target, family, transport="tunnel", lease_seconds=6).deploy()
    kill(controller.broker_pid)
    controller.forget()
    wait_for("its folder to go", lambda: "sojourn-" not in _folders(target), 60)


def test_the_next_run_takes_the_agent_over_through_the_tunnel(controller: Controller, target: Any, family: str) -> None:
    before = controller.agent(target, family, transport="tunnel").deploy()["info"]
    kill(controller.broker_pid)
    controller.forget(controller.folders[-1])
    controller.new_run()
    agent = controller.agent(target, family, transport="tunnel")
    deployed = agent.deploy()
    assert deployed["taken_over"], deployed
    assert deployed["info"]["process_id"] == before["process_id"] and deployed["info"]["transport"] == "tunnel"
    assert _says(agent, target)
    agent.remove()


def test_an_agent_that_was_killed_behind_the_tunnel_is_replaced(controller: Controller, target: Any) -> None:
    agent = controller.agent(target, transport="tunnel")
    before = agent.deploy()["info"]
    target.exec(["pkill", "-9", "-f", f"sojourn-{before['run']}.agent{'.exe' if target.kind == 'windows' else ''}['\"]? serve$"])
    wait_for("its guard to have cleaned up", lambda: "sojourn-" not in _folders(target), 60)
    assert _says(agent, target)
    after = agent.info()
    assert after["process_id"] != before["process_id"] and after["transport"] == "tunnel"
    agent.remove()


def test_a_restarted_target_is_found_through_the_tunnel(controller: Controller, target: Any) -> None:
    agent = controller.agent(target, transport="tunnel")
    before = agent.deploy()["info"]
    target.reboot()
    assert _says(agent, target)
    after = agent.info()
    assert after["boot_id"] != before["boot_id"] and after["transport"] == "tunnel"
    agent.remove()


@pytest.fixture
def no_forwarding(linux_target: Any) -> Any:
    """An sshd that forwards nothing."""
    setting = "/etc/ssh/sshd_config.d/no-forwarding.conf"
    linux_target.exec(["sh", "-c", f"echo AllowTcpForwarding no > {setting} && systemctl reset-failed ssh && systemctl restart ssh"])
    yield
    linux_target.exec(["sh", "-c", f"rm {setting} && systemctl reset-failed ssh && systemctl restart ssh"])


def test_a_server_that_forwards_nothing_is_told_of(controller: Controller, linux_target: Any, family: str, no_forwarding: None) -> None:
    with pytest.raises(SojournError, match=r"refuses to connect to (::1|127\.0\.0\.1) port 62286 .*\(SD-506\).*AllowTcpForwarding"):
        controller.agent(linux_target, family, transport="tunnel").deploy()
    assert "sojourn-" not in _folders(linux_target)


@pytest.mark.parametrize(("package", "tests"), [("tunnel", 4), ("removal", 1), ("systemlog", 1), ("leftovers", 1), ("ownership", 5), ("service", 2)])
def test_what_the_agent_has_on_windows_alone_passes_its_own_tests(
    windows_target: Any, nothing_left: None, tmp_path: Path, package: str, tests: int,
) -> None:
    """Go's tests in Wine."""
    go = subprocess.run([CHECKOUT / "scripts/find-go", CHECKOUT / ".venv"], capture_output=True, text=True, check=True).stdout.strip()
    program = tmp_path / f"{package}.test.exe"
    subprocess.run(
        [go, "test", "-c", "-o", program, f"./internal/{package}"], cwd=CHECKOUT / "agent", env={**os.environ, "GOOS": "windows"}, check=True)
    there = Path(f"/proc/{windows_target.leader.pid}/root/srv/windows/drive_c/{package}.test.exe")
    shutil.copy(program, there)
    try:
        done = windows_target.exec(["wine", rf"C:\{package}.test.exe", "-test.v", "-test.timeout", "60s"], check=False)
    finally:
        there.unlink()
    assert done.returncode == 0 and done.stdout.count("--- PASS") >= tests, done.stdout + done.stderr
