"""Preflight on real targets, over both address families: what is told of good and bad ones, in how many seconds, and that nothing is changed there."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Controller
from tests.integration.playing import play, run
from tests.integration.test_bad_luck_ways_in import mounted
from tests.integration.test_debug_connection import Named, named, nothing_appears  # noqa: F401 - a fixture
from tests.lab.clock import jumped
from tests.lab.namespaces import connect, inside

PREFLIGHT = {"name": "preflight", "sojourn.deploy.preflight": {}}
#: The checks of a target on which all is well, in their order.
CHECKS = {
    "linux": ["admin rights", "folder", "OS", "architecture", "free space", "pending reboot", "firewall", "agent ports", "sudo", "clock", "other run"],
    "windows": ["admin rights", "share write", "SCM rights", "OS", "architecture", "free space", "pending reboot", "firewall", "clock", "other run"],
}
#: Wine has no service of Windows' firewall, which a real Windows has.
DOUBTS = {"linux": set(), "windows": {"firewall"}}


def preflight(
    controller: Controller, folder: Path, target: Any, *words: str, family: str = "ipv6", **options: Any
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The result for a target, and its checks by name; whatever came of it, nothing was changed."""
    with nothing_appears(target):
        played = play(controller, folder, [{**PREFLIGHT, "sojourn.deploy.preflight": options}], *words, hosts=target.name, family=family)
    result = played[target.name, "preflight"]
    assert result["changed"] is False and result["checks"] and result["table"], played.output
    bad = [check for check in result["checks"] if check["state"] == "failed"]
    assert bool(bad) == ("error" in result) == (played.code != 0), played.output
    if bad:
        assert result["error"]["code"] == bad[0]["code"] and f"preflight, {bad[0]['check']}: " in result["msg"] and bad[0]["remedy"] in result["msg"]
    for check in result["checks"]:
        assert bool(check["remedy"]) == (check["state"] != "ok"), check
    return result, {check["check"]: check for check in result["checks"]}


def login(target: Any, user: str) -> list[str]:
    """Words that sign in as another user."""
    return ["-e", json.dumps({"ansible_user": user, "ansible_password": target.password(user)})]


def test_all_is_well(controller: Controller, target: Any, family: str, tmp_path: Path) -> None:
    result, checks = preflight(controller, tmp_path, target, family=family)
    route = "route IPv6" if family == "ipv6" else "route IPv4"
    assert list(checks) == ["name", route, f"port {target.port}", "sign-in", *CHECKS[target.kind]], result["table"]
    assert {name for name, check in checks.items() if check["state"] != "ok"} <= DOUBTS[target.kind], "\n".join(result["table"])
    assert checks["architecture"]["detail"] == f"{target.kind}-amd64" and result["msg"].startswith("Nothing speaks against a deployment")
    if target.kind == "linux":
        assert "bookworm" in checks["OS"]["detail"] and checks["folder"]["detail"] == "/tmp" and checks["admin rights"]["detail"] == "root"
        assert checks["firewall"]["detail"].startswith(controller.lab.settings["firewall"])
    else:
        assert checks["OS"]["detail"] == "Windows 10 (10.0 build 19043)"


def test_check_mode_does_the_same(controller: Controller, target: Any, tmp_path: Path) -> None:
    assert "clock" in preflight(controller, tmp_path, target, "--check")[1]


def test_a_wrong_password(controller: Controller, target: Any, family: str, tmp_path: Path) -> None:
    result, checks = preflight(controller, tmp_path, target, "-e", "ansible_password=WrongGeheim1!", family=family)
    assert result["unreachable"] and result["error"]["code"] == "SD-301" and list(checks)[-1] == "sign-in"
    assert "WrongGeheim1!" not in json.dumps(result)


def test_without_signing_in(controller: Controller, target: Any, tmp_path: Path) -> None:
    checks = preflight(controller, tmp_path, target, "-e", "ansible_password=WrongGeheim1!", sign_in=False)[1]
    assert checks["sign-in"]["state"] == "warning" and list(checks)[-1] == "sign-in" and checks[f"port {target.port}"]["state"] == "ok"


def timed(controller: Controller, target: Any, family: str, **options: Any) -> tuple[float, dict[str, dict[str, Any]]]:
    """Seconds of a preflight without Ansible's own, and its checks by name; tasks would wait a minute."""
    agent = controller.agent(target, family, connection_timeout=60, **options)
    begin = time.monotonic()
    checks = agent.preflight()
    seconds = time.monotonic() - begin
    print(f"{target.kind}, {family}: {seconds:.1f} s")
    return seconds, {check["check"]: check for check in checks}


def test_a_dead_host_takes_seconds(controller: Controller, target: Any, family: str, tmp_path: Path) -> None:
    nobody = controller.lab.network.addresses(250)
    address = nobody.ula if family == "ipv6" else nobody.ipv4
    seconds, checks = timed(controller, target, family, address=address)
    assert seconds < 40 and "sign-in" not in checks
    result, unused_checks = preflight(controller, tmp_path, target, "-e", f"ansible_host={address}", "-T", "60", family=family)
    assert result["unreachable"] and result["error"]["code"] in ("SD-202", "SD-204")


def test_a_filtered_port_takes_seconds(controller: Controller, target: Any, family: str) -> None:
    seconds, checks = timed(controller, target, family, port=4444)
    assert seconds < 40 and checks["port 4444"]["code"] == "SD-204" and "sign-in" not in checks


@pytest.mark.parametrize(("address", "check"), [("2001:db8::1", "route IPv6"), ("203.0.113.9", "route IPv4")])
def test_no_route(controller: Controller, target: Any, tmp_path: Path, address: str, check: str) -> None:
    result, checks = preflight(controller, tmp_path, target, "-e", f"ansible_host={address}")
    assert result["unreachable"] and result["error"]["code"] == checks[check]["code"] == "SD-202" and list(checks)[-1] == check


def test_a_name_with_a_dead_address(named: Named, target: Any, family: str, tmp_path: Path) -> None:  # noqa: F811
    """A deployment goes on over the other family, so that is a warning."""
    dead = "v4" if family == "ipv6" else "v6"
    words = ["-e", f"ansible_host={target.name}-dead-{dead}.lab ansible_host_key_checking=false"]
    result, unused_checks = preflight(named, tmp_path, target, *words, family=family)
    told = [(check["check"], check["state"]) for check in result["checks"]]
    assert told[:2] == [("name IPv6", "ok"), ("name IPv4", "ok")] and ("sign-in", "ok") in told
    # The dead one is found out by its silence, or by that of its neighbours.
    port = f"port {target.port}"
    assert (port, "ok") in told and [name for name, state in told if state == "warning"][0] in (port, "route IPv4" if family == "ipv6" else "route IPv6")


def test_a_name_that_nobody_knows(named: Named, target: Any, tmp_path: Path) -> None:  # noqa: F811
    result, checks = preflight(named, tmp_path, target, "-e", "ansible_host=nobody.lab")
    assert result["unreachable"] and list(checks) == ["name"] and checks["name"]["code"] == "SD-201"


def test_an_unknown_host_key(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    result, checks = preflight(controller, tmp_path, linux_target, "-e", f"ansible_sojourn_known_hosts_file={tmp_path}/known_hosts")
    assert result["unreachable"] and checks["host key"]["code"] == "SD-303" and checks["port 22"]["state"] == "ok" and "sign-in" not in checks


def test_something_else_on_the_port(controller: Controller, target: Any, lab: Any, tmp_path: Path, family: str) -> None:
    other = lab.target("windows1" if target.kind == "linux" else "linux1")
    port = 445 if target.kind == "linux" else 22
    words = ["-e", f"ansible_host={other.addresses.as_seen_from_the_lab(family)} ansible_port={port}"]
    checks = preflight(controller, tmp_path, target, *words, family=family)[1]
    if target.kind == "linux":
        assert checks["port 445"]["code"] in ("SD-204", "SD-205")
    else:
        # So does Windows XP, whose SMB 1 nobody speaks here.
        assert checks["OS"]["code"] == "SD-404" and "Windows XP" in checks["OS"]["detail"]


@pytest.mark.parametrize("how", ["cut off", "at work"])
def test_another_run(controller: Controller, target: Any, tmp_path: Path, how: str) -> None:
    if how == "at work":
        info = controller.agent(target).deploy()["info"]
        name = info["folder"].replace("\\", "/").rpartition("/")[2]
    else:
        name = "sojourn-0badc0ffee00"
        place = "/tmp" if target.kind == "linux" else "/srv/windows/drive_c/windows"
        target.exec(["mkdir", f"{place}/{name}"])
    try:
        unused_result, checks = preflight(controller, tmp_path, target)
    finally:
        if how == "at work":
            controller.agent(target).remove()
        else:
            target.exec(["rmdir", f"{place}/{name}"])
    other = checks["other run"]
    assert other["state"] == "warning" and name.removeprefix("sojourn-") in other["detail"] and how in other["detail"]


# Linux


@pytest.mark.parametrize("ahead", [1200, -1200])
def test_a_clock_that_differs_on_linux(controller: Controller, linux_target: Any, tmp_path: Path, ahead: int) -> None:
    """Its `date` says so: the clock itself is the machine's, and so ours as well."""
    linux_target.exec(["cp", "/usr/bin/date", "/root/date"])
    script = f"#!/bin/sh\nexec /root/date -d '{ahead} seconds' \"$@\"\n"
    linux_target.exec(["sh", "-c", "cat > /root/other && chmod 755 /root/other && mount --bind /root/other /usr/bin/date"], input=script)
    try:
        checks = preflight(controller, tmp_path, linux_target)[1]
    finally:
        linux_target.exec(["sh", "-c", "umount /usr/bin/date; rm /root/date /root/other"])
    clock = checks["clock"]
    assert clock["state"] == "warning" and re.search(r"(119\d|120\d) s ", clock["detail"]) and ("ahead" if ahead > 0 else "behind") in clock["detail"], clock


def test_mounted_noexec(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    words = ["-e", json.dumps({"ansible_sojourn_remote_folders": ["/mnt/noexec", "/no/such/folder"]})]
    with mounted(linux_target, "/mnt/noexec", "noexec,size=64m"):
        result, checks = preflight(controller, tmp_path, linux_target, *words)
    assert "unreachable" not in result and checks["folder"]["code"] == "SD-403"
    assert "/mnt/noexec is mounted noexec; /no/such/folder does not exist" in checks["folder"]["detail"]


def test_no_free_space_on_linux(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    words = ["-e", json.dumps({"ansible_sojourn_remote_folders": ["/mnt/small"]})]
    with mounted(linux_target, "/mnt/small", "size=2m"):
        result, checks = preflight(controller, tmp_path, linux_target, *words)
    assert "unreachable" not in result and checks["free space"]["code"] == "SD-402" and "2.0 MiB are free on /mnt/small" in checks["free space"]["detail"]


@pytest.mark.parametrize(("user", "told"), [("deployer", "takes the password"), ("operator", "asks for no password")])
def test_who_needs_sudo(controller: Controller, linux_target: Any, tmp_path: Path, user: str, told: str) -> None:
    checks = preflight(controller, tmp_path, linux_target, *login(linux_target, user))[1]
    assert checks["sudo"]["detail"] == told and checks["firewall"]["state"] == "ok" and f"{user}, root by sudo" in checks["admin rights"]["detail"]


def test_no_right_to_become_root(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    result, checks = preflight(controller, tmp_path, linux_target, *login(linux_target, "visitor"))
    assert "unreachable" not in result and checks["admin rights"]["code"] == checks["sudo"]["code"] == "SD-305"
    assert "other run" not in checks and "firewall" not in checks  # only root sees them


def test_sudo_is_missing(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    linux_target.exec(["sh", "-c", "mount --bind /dev/null /usr/bin/sudo"])
    try:
        checks = preflight(controller, tmp_path, linux_target, *login(linux_target, "deployer"))[1]
    finally:
        linux_target.exec(["umount", "/usr/bin/sudo"])
    assert checks["sudo"]["code"] == "SD-305" and "sudo is not installed there" in checks["sudo"]["detail"]


def test_a_pending_reboot_on_linux(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    linux_target.exec(["touch", "/run/reboot-required"])
    try:
        checks = preflight(controller, tmp_path, linux_target)[1]
    finally:
        linux_target.exec(["rm", "/run/reboot-required"])
    assert checks["pending reboot"]["state"] == "warning"


# Windows


def test_no_rights_on_windows(controller: Controller, windows_target: Any, tmp_path: Path) -> None:
    result, checks = preflight(controller, tmp_path, windows_target, *login(windows_target, "operator"))
    assert "unreachable" not in result and checks["SCM rights"]["code"] == "SD-306" and checks["share write"]["state"] == "ok"
    result, checks = preflight(controller, tmp_path, windows_target, *login(windows_target, "reader"))
    assert "unreachable" not in result and checks["admin rights"]["code"] == "SD-401" and checks["sign-in"]["state"] == "ok" and "share write" not in checks


@pytest.mark.parametrize("ahead", [1200, -1200])
def test_a_clock_that_differs_on_windows(controller: Controller, windows_target: Any, tmp_path: Path, ahead: int) -> None:
    with jumped([process for process in windows_target.processes() if process.name.startswith("smbd")], ahead):
        checks = preflight(controller, tmp_path, windows_target)[1]
    clock = checks["clock"]
    assert clock["state"] == "warning" and re.search(r"(119\d|120\d) s ", clock["detail"]) and ("ahead" if ahead > 0 else "behind") in clock["detail"], clock


def test_a_share_that_takes_no_writing(controller: Controller, windows_target: Any, tmp_path: Path) -> None:
    with windows_target.read_only():
        result, checks = preflight(controller, tmp_path, windows_target)
    assert "unreachable" not in result and checks["share write"]["code"] == "SD-401"


def test_no_free_space_on_windows(controller: Controller, windows_target: Any, tmp_path: Path) -> None:
    with windows_target.fill_disk(2 << 20):
        result, checks = preflight(controller, tmp_path, windows_target)
    assert "unreachable" not in result and checks["free space"]["code"] == "SD-402"


def test_updates_that_wait_on_windows(controller: Controller, windows_target: Any, tmp_path: Path) -> None:
    folder = "/srv/windows/drive_c/windows/winsxs"
    made = windows_target.exec(["test", "-d", folder], check=False).returncode != 0
    windows_target.exec(["sh", "-c", f"mkdir -p {folder} && touch {folder}/pending.xml"])
    try:
        checks = preflight(controller, tmp_path, windows_target)[1]
    finally:
        windows_target.exec(["sh", "-c", f"rm {folder}/pending.xml{f' && rmdir {folder}' if made else ''}"])
    assert checks["pending reboot"]["state"] == "warning"


@pytest.mark.leaves("files: */libgensec*", "files: /etc/sojourn-lab/*")  # in which the lab keeps the version that it tells
@pytest.mark.parametrize(("version", "state", "told"), [("5.1.2600", "failed", "it is Windows XP (5.1 build 2600)"), ("6.1.0", "warning", "Samba")])
def test_windows_versions(controller: Controller, lab: Any, tmp_path: Path, family: str, version: str, state: str, told: str) -> None:
    windows = lab.target("windows1")
    restarted = ["systemctl", "reset-failed", "smbd.service"]  # systemd takes it ill when a service starts that often
    windows.exec(restarted)
    windows.pretend_version(version)
    try:
        unused_result, checks = preflight(controller, tmp_path, windows, family=family)
    finally:
        windows.exec(restarted)
        windows.pretend_version("10.0.19043")
    assert checks["OS"]["state"] == state and told in checks["OS"]["detail"]
    assert checks["OS"]["code"] == ("SD-404" if state == "failed" else None)


# Several hosts


class Meeting:
    """A way to each target over the stranger, on which who comes first waits until somebody has come for each of the others too."""

    def __init__(self, lab: Any, targets: list[Any], family: str) -> None:
        self._lab, self._family = lab, family
        self._met = threading.Barrier(len(targets))
        self._ended = threading.Event()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.address = lab.network.addresses(3).as_seen_from_the_lab(family)
        self.ports = {target.name: self._listen(target) for target in targets}

    def _listen(self, target: Any) -> int:
        def listening() -> socket.socket:
            return socket.create_server((self.address, 0), family=socket.AF_INET6 if ":" in self.address else socket.AF_INET)

        listener = inside(self._lab.network.namespace("stranger"), listening)
        self._open.append(listener)
        self._start(self._accept, listener, target)
        return listener.getsockname()[1]

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, target: Any) -> None:
        with contextlib.suppress(OSError, threading.BrokenBarrierError):
            while True:
                near = listener.accept()[0]
                self._open.append(near)
                if not self._ended.is_set():
                    self._met.wait(60)
                    self._ended.set()
                far = connect(self._lab.network.namespace("stranger"), target.addresses.as_seen_from_the_lab(self._family), target.port)
                far.settimeout(None)
                self._open.append(far)
                self._start(self._pass, near, far)
                self._start(self._pass, far, near)

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def end(self) -> None:
        self._met.abort()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(20)


def test_hosts_are_looked_at_at_once(controller: Controller, lab: Any, tmp_path: Path, family: str) -> None:
    """No host answers before all have been asked: one after the other, the first would be found silent."""
    targets = [lab.target("linux1"), lab.target("windows1")]
    meeting = Meeting(lab, targets, family)
    variables = {"ansible_host": meeting.address, "ansible_port": "{{ ways[inventory_hostname] }}", "ways": meeting.ports, "ansible_host_key_checking": False}
    try:
        task = {**PREFLIGHT, "sojourn.deploy.preflight": {"timeout": 20}}
        played = play(controller, tmp_path, [task], "-e", json.dumps(variables), hosts="all", family=family).well()
    finally:
        meeting.end()
    for target in targets:
        checks = {check["check"]: check for check in played[target.name, "preflight"]["checks"]}
        assert checks["sign-in"]["state"] == "ok" and set(CHECKS[target.kind]) <= set(checks)
        assert checks["architecture"]["detail"] == f"{target.kind}-amd64"


# Role and playbook


def test_the_playbook(controller: Controller, tmp_path: Path, family: str) -> None:
    played = run(controller, tmp_path, "sojourn.deploy.preflight", family=family).well()
    for host in ("linux1", "windows1"):
        assert played.recap(host)["failed"] == 0 and played.recap(host)["changed"] == 0
    assert played.output.count("answers at ") == 2 and "linux-amd64" in played.output


def test_the_playbook_of_hosts_that_fail(controller: Controller, tmp_path: Path) -> None:
    words = ["-e", f"ansible_host={controller.lab.network.addresses(250).ula} preflight_timeout=1"]
    played = run(controller, tmp_path, "sojourn.deploy.preflight", *words)
    assert played.code == 2
    for host in ("linux1", "windows1"):
        assert played.recap(host)["failed"] == 1
    assert "Remedy: " in played.output and "SD-20" in played.output and "UNREACHABLE" not in played.output  # which would show all of it once more


def test_no_secret_is_shown(controller: Controller, tmp_path: Path) -> None:
    words = ["-e", "ansible_password=WrongGeheim1! ansible_become_password=WrongGeheim2!"]
    played = run(controller, tmp_path, "sojourn.deploy.preflight", "-vvvv", *words)
    shown = played.output + json.dumps(played.results)
    assert "SD-301" in shown and "WrongGeheim" not in shown.replace(words[1], "")
