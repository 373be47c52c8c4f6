"""Preflight in the broker: how what targets say is judged, from texts of several distributions, and what is told of targets that are not there."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import network, preflight, smb_client, way_in_ssh
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import Found
from tests.ports import closed_port

RUN = "0123456789ab"
SECRET = "Geheim1!-nowhere"
AGENT = 7 << 20

# What the survey writes on several distributions; of os-release what it is about.
DEBIAN = """\
system Linux
machine x86_64
release 6.1.0-28-amd64
os PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
os NAME="Debian GNU/Linux"
os VERSION_ID="12"
folder open rw,nosuid,nodev,noexec,relatime,size=1017280k /tmp
room tmpfs              1017280      12   1017268       1% /tmp
folder open rw,relatime,errors=remount-ro /var/tmp
room /dev/vda1         20421124 5123456  14235000      27% /
folder open rw,relatime,errors=remount-ro /root
room /dev/vda1         20421124 5123456  14235000      27% /
root /dev/vda1         20421124 5123456  14235000      27% /
reboot /run/reboot-required
reboot /var/run/reboot-required
kernel 6.1.0-27-amd64
kernel 6.1.0-28-amd64
listens 0016
listens F34E
time 1764286000
"""
ROCKY = """\
system Linux
machine x86_64
release 5.14.0-427.13.1.el9_4.x86_64
os NAME="Rocky Linux"
os VERSION="9.4 (Blue Onyx)"
os PRETTY_NAME="Rocky Linux 9.4 (Blue Onyx)"
folder open rw,seclabel,relatime,attr2,inode64 /tmp
room /dev/mapper/rl-root  17756160 3000000  14756160      17% /
root /dev/mapper/rl-root  17756160 3000000  14756160      17% /
kernel 5.14.0-427.13.1.el9_4.x86_64
kernel 5.14.0-503.11.1.el9_5.x86_64
time 1764286000
"""
ALPINE = """\
system Linux
machine aarch64
release 6.6.58-0-virt
os NAME="Alpine Linux"
os PRETTY_NAME="Alpine Linux v3.20"
folder open rw,relatime /tmp
room /dev/vda3             5006292    612340   4121232  13% /
root /dev/vda3             5006292    612340   4121232  13% /
kernel 6.6.58-0-virt
time 1764286000
"""
CENTOS6 = """\
system Linux
machine x86_64
release 2.6.32-754.35.1.el6.x86_64
folder open rw /tmp
room /dev/sda1 8000000 4000000 4000000 50% /
"""
FREEBSD = """\
system FreeBSD
machine amd64
release 14.1-RELEASE
folder open - /tmp
room zroot/tmp  9000000  100 8999900  0%  /tmp
time 1764286000
"""


def states(checks: list[preflight.Check]) -> dict[str, str]:
    return {check.check: check.state for check in checks}


def code(check: preflight.Check) -> str | None:
    return check.error.code if check.error else None


def judged(text: str) -> tuple[preflight.Shell, dict[str, preflight.Check]]:
    shell = preflight.read_shell(text)
    return shell, {check.check: check for check in preflight.judge_linux(shell, way_in_ssh.unsupported(shell.uname), way_in_ssh.ARCHITECTURES, "web1")}


@pytest.fixture(autouse=True)
def agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's executables are not built for these tests."""
    monkeypatch.setattr(preflight, "agent_executable", lambda system, architecture, host=None: f"/agent-{system}-{architecture}")


# Linux


@pytest.mark.parametrize(
    ("text", "name", "platform"),
    [
        (DEBIAN, "Debian GNU/Linux 12 (bookworm), kernel 6.1.0-28-amd64", "linux-amd64"),
        (ROCKY, "Rocky Linux 9.4 (Blue Onyx), kernel 5.14.0-427.13.1.el9_4.x86_64", "linux-amd64"),
        (ALPINE, "Alpine Linux v3.20, kernel 6.6.58-0-virt", "linux-arm64"),
    ],
)
def test_distributions(text: str, name: str, platform: str) -> None:
    unused_shell, checks = judged(text)
    assert (checks["OS"].state, checks["OS"].detail) == ("ok", name)
    assert (checks["architecture"].state, checks["architecture"].detail) == ("ok", platform)


def test_what_is_no_linux_and_what_is_too_old() -> None:
    unused_shell, checks = judged(FREEBSD)
    assert code(checks["OS"]) == "SD-404" and "FreeBSD, not Linux" in checks["OS"].detail and "architecture" not in checks
    unused_shell, checks = judged(CENTOS6)
    assert code(checks["OS"]) == "SD-404" and "its kernel is 2.6.32" in checks["OS"].detail and checks["architecture"].state == "ok"
    unused_shell, checks = judged(CENTOS6.replace("2.6.32-754", "3.1.10-1"))
    assert code(checks["OS"]) == "SD-404" and "its kernel is 3.1.10" in checks["OS"].detail
    unused_shell, checks = judged(ALPINE.replace("aarch64", "armv7l"))
    assert code(checks["architecture"]) == "SD-404" and checks["OS"].state == "ok"


@pytest.mark.parametrize("release", ["3.2.0", "3.10.0-1160.el7.x86_64", "6.12", "4.19-rc1"])
def test_kernels_that_are_new_enough(release: str) -> None:
    assert way_in_ssh.unsupported({"system": "Linux", "machine": "x86_64", "release": release}) == {}


def test_the_folder_that_is_taken() -> None:
    shell = preflight.read_shell(DEBIAN)
    folder, room = preflight.judge_folders(shell, AGENT)
    assert (folder.check, folder.state, folder.detail) == ("folder", "ok", "/var/tmp (/tmp is mounted noexec)")
    assert (room.check, room.state, room.detail) == ("free space", "ok", "13901 MiB on /var/tmp")


def folders(*lines: str, root: str = "9000000") -> list[preflight.Check]:
    return preflight.judge_folders(preflight.read_shell("\n".join([*lines, f"root /dev/vda1 1 1 {root} 1% /"])), AGENT)


def test_no_folder() -> None:
    (check,) = folders("folder missing - /opt/x", "folder closed rw /tmp", "room /dev/vda1 1 1 9000 1% /", "folder open ro,noexec /mnt", "room t 9 1 8 1% /mnt")
    assert code(check) == "SD-403" and check.check == "folder"
    assert "/opt/x does not exist; /tmp is not writable; /mnt is mounted noexec" in check.detail and "noexec" in str(check.remedy)


@pytest.mark.parametrize(
    ("free", "state"), [("9000000", "ok"), ("90000", "warning"), ("8000", "failed")]
)
def test_room(free: str, state: str) -> None:
    checks = folders("folder open rw /tmp", f"room tmpfs 9000000 0 {free} 1% /tmp")
    assert states(checks) == {"folder": "ok", "free space": state}
    assert code(checks[1]) == ("SD-402" if state == "failed" else None) and bool(checks[1].remedy) == (state != "ok")


def test_no_room_at_all() -> None:
    (check,) = folders("folder open rw /tmp", "room tmpfs 9000000 9000000 0 100% /tmp")
    assert check.check == "free space" and code(check) == "SD-402" and "/tmp is full" in check.detail
    checks = folders("folder open rw /tmp", "room tmpfs 9000000 9000000 0 100% /tmp", "folder open rw /var/tmp", "room /dev/vda1 9 1 9000000 1% /")
    assert checks[0].detail == "/var/tmp (/tmp is full)"


def test_little_room_beside_the_agents_folder() -> None:
    checks = folders("folder open rw /tmp", "room tmpfs 9000000 0 9000000 1% /tmp", root="2000")
    assert checks[1].state == "warning" and "2.0 MiB on /" in checks[1].detail


def test_df_that_says_nothing() -> None:
    checks = folders("folder open - /tmp", "room ")
    assert states(checks) == {"folder": "ok", "free space": "warning"}


@pytest.mark.parametrize(
    ("line", "free", "mounted"),
    [
        ("tmpfs 1017280 12 1017268 1% /tmp", 1017268 << 10, "/tmp"),
        ("//nas/a share  100 50  50 50% /mnt/a b", 50 << 10, "/mnt/a b"),
        ("overlay 100 100 -4 104% /", 0, "/"),
        ("none 0 0 0 - /proc", 0, "/proc"),
        ("df: /x: Permission denied", None, ""),
    ],
)
def test_lines_of_df(line: str, free: int | None, mounted: str) -> None:
    assert preflight._free_of(line) == (free, mounted)


def test_pending_reboots() -> None:
    check = preflight.judge_reboot(preflight.read_shell(DEBIAN))
    assert check.state == "warning" and "/run/reboot-required" in check.detail and check.remedy
    check = preflight.judge_reboot(preflight.read_shell(ROCKY))
    assert check.state == "warning" and "5.14.0-503.11.1.el9_5.x86_64 is installed" in check.detail
    assert preflight.judge_reboot(preflight.read_shell(ALPINE)).state == "ok"


@pytest.mark.parametrize(
    ("running", "there", "newer"),
    [
        ("6.8.0-49-generic", ["6.8.0-48-generic", "6.8.0-49-generic"], None),
        ("6.8.0-48-generic", ["6.8.0-48-generic", "6.8.0-100-generic", "6.8.0-49-generic"], "6.8.0-100-generic"),
        ("6.8.0-48-generic", ["6.8.0-48-generic", "6.11.0-9-lowlatency"], None),
        ("6.8.0-48-generic", ["6.11.0-9-generic"], None),  # a container, whose kernel is another's
        ("6.1.0-28-amd64", [], None),
    ],
)
def test_newer_kernels(running: str, there: list[str], newer: str | None) -> None:
    assert preflight.newer_kernel(running, there) == newer


def test_ports_of_the_agent() -> None:
    listening = preflight.read_shell(DEBIAN).listening
    assert listening == {22, 62286}
    assert preflight.judge_ports((62286, 62293), listening).detail == "of 62286-62293, 62287 is free there"
    check = preflight.judge_ports((62286, 62286), listening)
    assert code(check) == "SD-601" and "62286" in check.detail


NFTABLES = "tool nft\ntool iptables\ntool ip6tables\ntable inet filter {\nchain input {\ntype filter hook input priority filter; policy drop;\n"
IPTABLES = "tool nft\ntool iptables\ntable ip filter {\nchain INPUT {\ntype filter hook input priority filter; policy accept;\n"


@pytest.mark.parametrize(
    ("text", "state", "told"),
    [
        ("", "ok", "none"),
        (NFTABLES, "ok", "nftables: inet filter input (policy drop)"),
        (IPTABLES, "ok", "iptables: ip filter INPUT (policy accept)"),
        (f"firewalld\ntable inet firewalld {{\nchain filter_INPUT {{\ntype filter hook input priority 10;\n{IPTABLES}", "ok", "firewalld"),
        (f"ufw\n{IPTABLES}", "ok", "ufw"),
        ("tool iptables\nlegacy ip filter\nlegacy ip mangle\n", "ok", "iptables-legacy"),
        ("tool iptables\nlegacy ip mangle\n", "ok", "none"),
        ("tool iptables\nlegacy ip filter\nlegacy ip6 filter\n", "warning", "'ip6tables' is missing"),
        ("module nf_tables\n", "warning", "no nft"),
    ],
)
def test_firewalls(text: str, state: str, told: str) -> None:
    check = preflight.judge_filters(text)
    assert check.state == state and told in check.detail and bool(check.remedy) == (state != "ok")


def test_the_scripts_run_in_a_shell(tmp_path: Path) -> None:
    """As root's and users' shells have it; what they say is read."""
    for word in ("sh", "bash"):
        done = subprocess.run([word, "-c", way_in_ssh._SURVEY, "sh", str(tmp_path), "/no/such/folder"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("system ") and done.stderr == ""
        shell = preflight.read_shell(done.stdout)
        assert [(folder.path, folder.state) for folder in shell.folders] == [(str(tmp_path), "open"), ("/no/such/folder", "missing")]
        assert shell.folders[0].free is not None and shell.folders[0].options != ("-",) and shell.time and abs(shell.time - time.time()) < 60
        assert not list(tmp_path.iterdir())
        filters = subprocess.run([word, "-c", way_in_ssh._FILTERS, "sh"], capture_output=True, text=True, check=True)
        assert filters.stderr == "" and preflight.judge_filters(filters.stdout).check == "firewall"


def test_who_listens_is_seen() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        text = subprocess.run(["sh", "-c", way_in_ssh._SURVEY, "sh"], capture_output=True, text=True, check=True).stdout
        assert server.getsockname()[1] in preflight.read_shell(text).listening


# Both


@pytest.mark.parametrize(("ahead", "state"), [(0, "ok"), (299, "ok"), (-299, "ok"), (301, "warning"), (-86400, "warning")])
def test_clocks(ahead: float, state: str) -> None:
    check = preflight.judge_clock(ahead)
    assert check.state == state and bool(check.remedy) == (state == "warning")
    assert ("behind" in check.detail) == (ahead < 0)


def test_other_runs() -> None:
    own, dead, live = Found("folder", f"sojourn-{RUN}", RUN, True), Found("service", "x", "aaaaaaaaaaaa", False), Found("folder", "y", "bbbbbbbbbbbb", True)
    assert preflight.judge_found([own], RUN).state == "ok"
    check = preflight.judge_found([own, dead], RUN)
    assert check.state == "warning" and "cut off: aaaaaaaaaaaa" in check.detail and "cleanup" in str(check.remedy)
    check = preflight.judge_found([dead, live], RUN)
    assert check.state == "warning" and "at work on the target: run bbbbbbbbbbbb" in check.detail


# Windows


@pytest.mark.parametrize(
    ("version", "state", "name"),
    [
        ((5, 1, 2600), "failed", "Windows XP (5.1 build 2600)"),
        ((5, 2, 3790), "failed", "Server 2003"),
        ((6, 1, 7601), "failed", "Windows 7 or Server 2008 R2"),
        ((6, 3, 9600), "failed", "Windows 8.1 or Server 2012 R2"),
        ((10, 0, 9926), "failed", "never released"),
        ((10, 0, 10240), "ok", "Windows 10"),
        ((10, 0, 14393), "ok", "Server 2016"),
        ((10, 0, 17763), "ok", "Server 2019"),
        ((10, 0, 19043), "ok", "Windows 10 (10.0 build 19043)"),
        ((10, 0, 20348), "ok", "Server 2022"),
        ((10, 0, 26100), "ok", "Server 2025"),
        ((6, 1, 0), "warning", "a Samba server"),
        (None, "ok", "Windows 10 / Server 2016 or newer"),
    ],
)
def test_windows_versions(version: tuple[int, int, int] | None, state: str, name: str) -> None:
    check = preflight.judge_windows(version)
    assert check.state == state and name in check.detail
    assert code(check) == ("SD-404" if state == "failed" else None) and bool(check.remedy) == (state != "ok")


@pytest.mark.parametrize(("state", "told"), [(4, "ok"), (1, "warning"), (None, "warning"), (SojournError("SD-306", user="me", detail="no"), "warning")])
def test_windows_firewall(state: Any, told: str) -> None:
    assert preflight.judge_windows_firewall(state).state == told


@pytest.mark.parametrize(("waiting", "told"), [(False, "ok"), (True, "warning"), (SojournError("SD-401", user="me", share="ADMIN$", detail="no"), "warning")])
def test_updates_that_wait(waiting: Any, told: str) -> None:
    check = preflight.judge_updates(waiting)
    assert check.state == told and bool(check.remedy) == (told != "ok")


def test_what_smb_tells_by_the_way() -> None:
    now = 1764286000.0
    answer = struct.pack("<HHHH16sIIIIQQ", 65, 1, 0x311, 3, b"g" * 16, 0, 1, 1, 1, int((now + 400 + smb_client.FILETIME_BEGIN) * 1e7), 0)
    assert smb_client.clock_ahead(answer, now) == pytest.approx(400, abs=0.01)
    assert smb_client.clock_ahead(answer[:40] + bytes(16), now) is None and smb_client.clock_ahead(b"", now) is None
    challenge = struct.pack("<8sIHHIIQQHHIBBH3xB", b"NTLMSSP\0", 2, 0, 0, 56, 0x02000000, 1, 0, 0, 0, 56, 10, 0, 20348, 15)
    assert smb_client.version_told(b"spnego" + challenge + b"rest") == (10, 0, 20348)
    assert smb_client.version_told(challenge[:20] + bytes(4) + challenge[24:]) is None  # a server that tells no version
    assert smb_client.version_told(challenge[:50]) is None and smb_client.version_told(b"") is None


# Targets that are not there


def look(way_in: str, address: str = "::1", *, sign_in: bool = True, timeout: float = 1, **options: Any) -> list[dict[str, Any]]:
    target = Target.make(way_in, address, host="web1", **{"user": "someone", "password": SECRET, "connection_timeout": 60, **options})
    checks = preflight.look(target, RUN, None, timeout=timeout, sign_in=sign_in)
    assert SECRET not in json.dumps(checks)
    for check in checks:
        assert check["state"] in ("ok", "warning", "failed") and bool(check["remedy"]) == (check["state"] != "ok"), check
        assert (check["state"] != "failed") or check["code"]
    return checks


def failures(checks: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(check["check"], check["code"]) for check in checks if check["state"] == "failed"]


@pytest.mark.parametrize("way_in", ["ssh", "smb", "winrm"])
def test_a_closed_port(way_in: str) -> None:
    port = closed_port()
    checks = look(way_in, port=port)
    assert failures(checks) == [(f"port {port}", "SD-203")]
    assert [check["check"] for check in checks] == ["name", "route IPv6", f"port {port}"]
    assert ("Windows XP" in checks[-1]["detail"]) == (way_in == "smb")


@pytest.mark.parametrize(("way_in", "check", "code"), [("ssh", "port", "SD-205"), ("smb", "OS", "SD-404"), ("winrm", "OS", "SD-404")])
def test_something_else_on_the_port(way_in: str, check: str, code: str) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        import threading

        def hang_up() -> None:
            connection = server.accept()[0]
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20)
            connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        port = server.getsockname()[1]
        checks = look(way_in, port=port)
    (found,) = failures(checks)
    assert found == (f"{check} {port}" if check == "port" else check, code)
    assert "sign-in" not in [told["check"] for told in checks]


@pytest.mark.parametrize("way_in", ["ssh", "smb", "winrm"])
def test_one_who_says_nothing_takes_seconds(way_in: str) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        begin = time.monotonic()
        checks = look(way_in, port=server.getsockname()[1])
        assert time.monotonic() - begin < 30 and failures(checks)


def test_a_name_service_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "resolve", lambda *unused, **options: time.sleep(30))
    begin = time.monotonic()
    checks = look("ssh", "web1.example")
    assert time.monotonic() - begin < 25 and failures(checks) == [("name", "SD-201")]


def test_a_name_with_one_family(monkeypatch: pytest.MonkeyPatch) -> None:
    port = closed_port()
    peer = network.Peer(socket.AF_INET6, ("::1", port, 0, 0))

    def resolve(address: str, unused_port: int, family: int = socket.AF_UNSPEC) -> list[network.Peer]:
        if family == socket.AF_INET:
            raise SojournError("SD-201", address=address, detail="no such name")
        return [peer]

    monkeypatch.setattr(network, "resolve", resolve)
    checks = look("ssh", "web1.example", port=port)
    assert [(check["check"], check["state"]) for check in checks] == [
        ("name IPv6", "ok"), ("name IPv4", "ok"), ("route IPv6", "ok"), (f"port {port}", "failed")]
    assert "no address of this family" in checks[1]["detail"]


def test_no_sign_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after it is not said to be good."""
    monkeypatch.setattr(preflight.Preflight, "_sign_in_and_survey", lambda self: pytest.fail("it signed in"))
    monkeypatch.setattr(preflight.diagnosis.Diagnosis, "reach", lambda self: None)
    monkeypatch.setattr(preflight.Preflight, "_judge_ports", lambda self: None)
    checks = look("ssh", sign_in=False)
    assert checks[-1]["check"] == "sign-in" and checks[-1]["state"] == "warning" and "sign_in" in checks[-1]["remedy"]


def test_whatever_happens_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.Preflight, "_judge_ports", lambda self: 1 / 0)
    checks = look("ssh", port=closed_port())
    assert failures(checks) == [("preflight", "SD-903")] and checks[0]["check"] == "name"
