"""Does the lab hold what its README promises? Needs root and some minutes; its labs' names begin with `self`."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, LabError, compare, machine
from tests.lab.commands import run
from tests.lab.fixtures import fixtures
from tests.lab.inventory import inventory
from tests.lab.linux_target import FIREWALLS, LinuxTarget
from tests.lab.model import leftovers
from tests.lab.namespaces import connect, inside
from tests.lab.processes import Process
from tests.lab.snapshot import PACKAGE_MANAGERS, Snapshot
from tests.lab.target import Target
from tests.lab.waiting import wait_for, wait_for_exit
from tests.lab.wan import CONTROLLER, long_way
from tests.lab.windows_target import WindowsTarget

pytestmark = [
    pytest.mark.lab,
    # One lab is the whole module's; names of others are used by several tests.
    pytest.mark.xdist_group("labs"),
    pytest.mark.skipif(bool(machine.problems()), reason=f"can't run the lab: {'; '.join(machine.problems())}"),
]

FAMILIES = ("ipv6", "ipv4", "link-local")
C = "/srv/windows/drive_c"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    found = Lab("selfcheck")
    found.down()
    yield found.up(linux=1, windows=1)
    found.down()


@pytest.fixture
def linux(lab: Lab) -> Iterator[LinuxTarget]:
    yield lab.target("linux1")


@pytest.fixture
def windows(lab: Lab) -> Iterator[WindowsTarget]:
    yield lab.target("windows1")


@pytest.fixture
def unchanged(lab: Lab) -> Iterator[Callable[..., list[str]]]:
    """What has changed on a target since the test began."""
    before = {name: lab.snapshot(name) for name in lab.targets}

    def changes(name: str, *expected: str, patience: float = 20) -> list[str]:
        return lasting(before[name], lambda: lab.snapshot(name), *expected, patience=patience)

    yield changes


def lasting(before: Snapshot, look: Callable[[], Snapshot], *expected: str, patience: float = 20) -> list[str]:
    """Changes that are still there after so many seconds, and at a second look: a target's own services come and go."""
    deadline, looks = time.monotonic() + patience, 0
    while True:
        found = [str(difference) for difference in compare(before, look(), expected)]
        looks += 1
        if not found or (looks > 1 and time.monotonic() > deadline):
            return found


def mine(lines: list[str]) -> list[str]:
    """Of what leftovers() lists, what is not another lab's that runs on this machine at the same time."""
    return [line for line in lines if "self" in line]


# The lab as a whole


def test_inventory_says_what_a_user_would_write_and_no_more(lab: Lab) -> None:
    text = inventory(lab)
    for name, target in lab.targets.items():
        assert f"        {name}:\n          ansible_connection: " in text
        assert set(target.host_vars("ipv6")) == {"ansible_connection", "ansible_host", "ansible_user", "ansible_password"}
    assert lab.target("linux1").addresses.ipv4 in inventory(lab, "ipv4")
    assert "%eth0" in inventory(lab, "link-local")


def test_secrets_are_for_their_owner_and_in_no_command_line(lab: Lab) -> None:
    assert (lab.folder / "credentials.json").stat().st_mode & 0o077 == 0
    passwords = [word for accounts in lab.credentials.values() for word in accounts.values()]
    assert len(set(passwords)) == len(passwords)
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said = command.read_bytes().decode(errors="replace")
        except OSError:
            continue
        assert not any(password in said for password in passwords)


def test_two_labs_at_once_do_not_meet(lab: Lab) -> None:
    other = Lab("selfother").up(linux=1, windows=0)
    try:
        address = other.target("linux1").addresses.ula
        with pytest.raises(OSError):
            connect(lab.network.namespace("controller"), address, 22, timeout=0.5)
        other.down()
        assert lab.target("linux1").answers()
    finally:
        other.down()
    assert not mine([line for line in leftovers() if "selfother" in line])


def test_down_clears_whatever_was_left_by_a_crash() -> None:
    broken = Lab("selfbroken").up(linux=1, windows=1)
    try:
        windows = broken.target("windows1").supervisor
        windows.end(signal.SIGKILL)
        (broken.folder / "lab.json").unlink()
    finally:
        Lab("selfbroken").down()
    assert not [line for line in leftovers() if "selfbroken" in line]
    assert not windows.alive


def test_names_of_one_family_and_of_both(lab: Lab) -> None:
    program = "import socket, sys; print(*sorted({info[4][0] for info in socket.getaddrinfo(sys.argv[1], 22)}))"
    addresses = lab.target("linux1").addresses
    for name, expected in {"linux1-v6.lab": {addresses.ula}, "linux1.lab": {addresses.ula, addresses.ipv4}}.items():
        done = run(lab.inside("controller", [sys.executable, "-c", program, name], names=True))
        assert set(done.stdout.split()) == expected
    assert "linux1.lab" not in Path("/etc/hosts").read_text()


def test_a_lab_is_not_brought_up_twice(lab: Lab) -> None:
    with pytest.raises(LabError, match="there already"):
        Lab(lab.name).up()


# The nothing-left check


def test_idle_targets_do_not_change_in_a_minute(lab: Lab, unchanged: Callable[..., list[str]]) -> None:
    time.sleep(60)  # the passing of time is what is tested
    assert [change for name in lab.targets for change in unchanged(name)] == []


def test_a_login_leaves_nothing(lab: Lab, linux: LinuxTarget, unchanged: Callable[..., list[str]]) -> None:
    paramiko = pytest.importorskip("paramiko")
    for user in linux.accounts:
        for _ in range(2):
            client = paramiko.SSHClient()
            client.load_host_keys(str(lab.known_hosts))
            wire = connect(lab.network.namespace("controller"), linux.addresses.ula, 22)
            client.connect(linux.addresses.ula, username=user, password=linux.password(user), sock=wire, look_for_keys=False, allow_agent=False)
            assert client.exec_command("id -un")[1].read().decode().strip() == user
            client.close()
    assert unchanged("linux1") == []


def test_what_is_left_on_linux_is_seen(linux: LinuxTarget, unchanged: Callable[..., list[str]]) -> None:
    linux.exec(["sh", "-c", "echo x > /var/tmp/left; echo x > /tmp/left; rm /etc/issue; chmod 700 /etc/profile"])
    linux.exec(["systemd-run", "--quiet", "--unit=left", "sleep", "600"])
    linux.exec(["systemd-run", "--quiet", "--unit=listens", "python3", "-m", "http.server", "8080"])
    linux.exec(["nft", "add", "rule", "inet", "filter", "input", "tcp", "dport", "9", "accept"])
    linux.exec(["ip6tables-legacy", "-A", "INPUT", "-p", "tcp", "--dport", "10", "-j", "ACCEPT"])
    try:
        wait_for("the server to listen", lambda: "8080" in linux.exec(["ss", "-Hltn"]).stdout, 60)
        left = "\n".join(unchanged("linux1", patience=0))
    finally:
        linux.reset()
    for expected in (
        r"files: /var/tmp/left: left behind",
        r"files: /tmp/left: left behind",
        r"files: /etc/issue: left behind \(absent\)",
        r"files: /etc/profile",
        r"services: left.service: left behind",
        r"processes: root: .*sleep 600: left behind",
        r"listening ports: tcp 0.0.0.0:8080",
        r"firewall rules: table inet filter / chain input / tcp dport 9 accept: left behind",
        r"firewall rules: legacy6 .*--dport 10 .*: left behind",
    ):
        assert re.search(expected, left), f"{expected} not in:\n{left}"


def test_what_is_left_on_windows_is_seen(windows: WindowsTarget, unchanged: Callable[..., list[str]]) -> None:
    put(windows, "exe", "left.exe")
    script = (
        r"wine sc create left binPath= 'C:\left.exe --service --listen 9001' && wine sc start left && "
        "wine netsh advfirewall firewall add rule name=left dir=in action=allow protocol=TCP localport=9001"
    )
    windows.exec(["sh", "-c", script])
    wait_for("the service to listen", lambda: "9001" in windows.exec(["ss", "-Hltn"]).stdout, 60)
    left = "\n".join(unchanged("windows1", patience=0))
    windows.reset()
    for expected in (
        r"files: /srv/windows/drive_c/left.exe: left behind",
        r"services: left: left behind \(running, manual, C:\\left.exe",
        r"registry: SYSTEM\\CurrentControlSet\\Services\\left",
        r"processes: root: C:\\left.exe --listen 9001",
        r"listening ports: tcp .*:9001",
        r"firewall rules: .*chain stored / tcp dport 9001 .*: left behind",
    ):
        assert re.search(expected, left), f"{expected} not in:\n{left}"


# Linux


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_firewall_lets_ssh_in_and_nothing_else(firewall: str) -> None:
    lab = Lab("selffirewall").up(linux=1, windows=0, firewall=firewall)
    try:
        target = lab.target("linux1")
        program = "import socket; s = socket.create_server(('::', 4444), family=socket.AF_INET6, dualstack_ipv6=True); s.accept(); s.accept()"
        target.exec(["systemd-run", "--quiet", "--unit=listens", "python3", "-c", program])
        wait_for("the listener", lambda: "4444" in target.exec(["ss", "-Hltn"]).stdout, 60)
        for family in FAMILIES:
            assert target.can_connect(22, family)
            assert target.can_connect(22, family, source="stranger")
            if firewall != "none":
                assert not target.can_connect(4444, family)
        if firewall == "none":
            assert target.can_connect(4444)
    finally:
        lab.down()


def test_reboot_cut_and_reset(linux: LinuxTarget, windows: WindowsTarget) -> None:
    for target in (linux, windows):
        target.exec(["sh", "-c", "echo x > /var/left"])
        boot = target.exec(["cat", "/proc/sys/kernel/random/boot_id"]).stdout
        target.reboot()
        assert target.exec(["cat", "/proc/sys/kernel/random/boot_id"]).stdout != boot
        target.cut()
        target.exec(["test", "-e", "/var/left"])
        target.reset()
        assert target.exec(["test", "-e", "/var/left"], check=False).returncode == 1
        assert target.answers()


def test_disk_can_be_filled(linux: LinuxTarget) -> None:
    done = linux.exec(["dd", "if=/dev/zero", "of=/var/full", "bs=1M", "count=4000"], check=False)
    linux.exec(["rm", "-f", "/var/full"])
    assert done.returncode and "No space left" in done.stderr


def test_linux_packages(linux: LinuxTarget, unchanged: Callable[..., list[str]]) -> None:
    for name, (install, remove) in {
        "deb-1.0": (["dpkg", "-i"], ["dpkg", "--purge", "sojourn-demo"]),
        "rpm-1.0": (["rpm", "-i"], ["rpm", "-e", "sojourn-demo"]),
        "sh": (["sh"], ["rm", "-r", "/opt/sojourn-demo-sh"]),
        "scexe": (["sh"], ["rm", "-r", "/opt/sojourn-demo-sh"]),
    }.items():
        path = f"/root/{fixtures()[name].name}"
        linux.exec(["sh", "-c", f"cat > {path}"], input=fixtures()[name].read_bytes())
        linux.exec([*install, path])
        linux.exec(["sh", "-c", "ls /usr/share/sojourn-demo-deb /opt/sojourn-demo-* | grep version.txt"])
        if name == "scexe":
            assert [linux.exec(["sh", path, f"--exit={code}"], check=False).returncode for code in range(4)] == [0, 1, 2, 3]
        linux.exec([*remove])
        linux.exec(["rm", path])
    assert unchanged("linux1", *PACKAGE_MANAGERS) == []


# Windows


def put(windows: WindowsTarget, fixture: str, name: str) -> None:
    windows.exec(["sh", "-c", f"cat > '{C}/{name}'"], input=fixtures()[fixture].read_bytes())


class Client:
    """SMB as the project does it, from the controller's network."""

    def __init__(self, lab: Lab, windows: WindowsTarget, user: str = "Administrator") -> None:
        pytest.importorskip("pypsexec")
        from smbprotocol.connection import Connection
        from smbprotocol.session import Session

        self.host, self.user, self.password = windows.addresses.ula, user, windows.password(user)
        self.connection = Connection(uuid.uuid4(), self.host, 445)
        inside(lab.network.namespace("controller"), self.connection.connect)
        self.session = Session(self.connection, user, self.password)
        self.session.connect()

    def share(self, name: str):
        from smbprotocol.tree import TreeConnect

        tree = TreeConnect(self.session, rf"\\{self.host}\{name}")
        tree.connect()
        return tree

    def open(self, tree, name: str, access: int, disposition: int, options: int = 0):
        from smbprotocol.open import ImpersonationLevel, Open

        file = Open(tree, name)
        file.create(ImpersonationLevel.Impersonation, access, 0x80, 7, disposition, options)
        return file

    def service(self, name: str):
        from pypsexec.scmr import Service

        service = Service(name, self.session)
        service.open()
        return service

    def close(self) -> None:
        self.connection.disconnect(True)


@pytest.fixture
def client(lab: Lab, windows: WindowsTarget) -> Iterator[Client]:
    found = Client(lab, windows)
    yield found
    found.close()


READ_WRITE, DELETE = 0xC0000000, 0x00010000
OPEN, CREATE = 1, 2
DELETE_ON_CLOSE = 0x1000


def delete(client: Client, tree, name: str) -> str:
    """Delete a file; the name of the status when it can't be."""
    from smbprotocol.exceptions import SMBResponseException

    try:
        client.open(tree, name, DELETE, OPEN, DELETE_ON_CLOSE).close()
    except SMBResponseException as error:
        return type(error).__name__
    return ""


def try_to_delete(service) -> bool:
    """A service that is still stopping can't be deleted: 1061 here as on Windows, the more the busier the machine."""
    from pypsexec.exceptions import SCMRException

    try:
        service.delete()
    except SCMRException:
        return False
    return True


def test_a_service_lives_and_goes(lab: Lab, windows: WindowsTarget, unchanged: Callable[..., list[str]]) -> None:
    client = Client(lab, windows)
    assert client.connection.dialect == 0x311
    admin = client.share("ADMIN$")
    file = client.open(admin, "demo.exe", READ_WRITE, CREATE)
    data = fixtures()["exe"].read_bytes()
    for offset in range(0, len(data), 1 << 20):
        file.write(data[offset : offset + (1 << 20)], offset)
    file.close()
    service = client.service("demo")
    service.create(r'"%SystemRoot%\demo.exe" --service --pipe sojourn-selfcheck')
    service.start()

    # What it serves on a pipe is reached over the same connection.
    tree = client.share("IPC$")

    def open_pipe() -> object:
        from smbprotocol.exceptions import ObjectNameNotFound

        try:
            return client.open(tree, "sojourn-selfcheck", READ_WRITE, OPEN)
        except ObjectNameNotFound:
            return None

    pipe = wait_for("the pipe", open_pipe, 60)
    pipe.write(b"hello\n")
    assert pipe.read(0, 100) == b"hello\n"
    pipe.close()

    held = ["sh", "-c", "grep -q demo.exe /proc/$(pgrep -o -x smbd)/mountinfo"]
    wait_for("the file to be held", lambda: windows.exec(held, check=False).returncode == 0, 60)
    assert delete(client, admin, "demo.exe") == "AccessDenied"
    service.stop()
    wait_for("the service to have stopped", lambda: try_to_delete(service), 60)
    service.close()
    wait_for("the file to be free", lambda: delete(client, admin, "demo.exe") in ("", "ObjectNameNotFound"), 60)
    client.close()
    assert unchanged("windows1") == []


@pytest.mark.parametrize(("user", "may_write"), [("operator", True), ("reader", False)])
def test_who_is_no_administrator(lab: Lab, windows: WindowsTarget, user: str, may_write: bool) -> None:
    from pypsexec.exceptions import SCMRException
    from smbprotocol.exceptions import AccessDenied

    client = Client(lab, windows, user)
    with pytest.raises(SCMRException, match="ACCESS_DENIED"):
        client.service("demo")
    if may_write:
        admin = client.share("ADMIN$")
        client.open(admin, "written.txt", READ_WRITE, CREATE).close()
        assert delete(client, admin, "written.txt") == ""
    else:
        with pytest.raises(AccessDenied):
            client.share("ADMIN$")
    client.close()


def test_change_notify_tells_what_a_windows_program_wrote(client: Client, windows: WindowsTarget) -> None:
    from smbprotocol.change_notify import CompletionFilter, FileSystemWatcher

    windows.exec(["mkdir", f"{C}/windows/watched"])
    folder = client.open(client.share("ADMIN$"), "watched", 0x81, OPEN, 1)
    watcher = FileSystemWatcher(folder)
    watcher.start(CompletionFilter.FILE_NOTIFY_CHANGE_FILE_NAME)
    windows.exec(["wine", "cmd", "/c", r"echo x> C:\windows\watched\new.txt"])
    assert [change["file_name"].get_value() for change in watcher.wait()] == ["new.txt"]
    windows.exec(["rm", "-r", f"{C}/windows/watched"])


def netsh(windows: WindowsTarget, *words: str) -> tuple[int, str]:
    done = windows.exec(["wine", "netsh", "advfirewall", *words], check=False)
    return done.returncode, done.stdout.replace("\r", "")


@pytest.mark.parametrize("shell", [r"C:\windows\system32\cmd.exe", r"C:\windows\syswow64\cmd.exe"])
def test_programs_of_either_width_get_the_stand_ins(windows: WindowsTarget, shell: str) -> None:
    assert "State" in windows.exec(["wine", shell, "/c", "netsh advfirewall show allprofiles state"]).stdout
    assert "Usage" in windows.exec(["wine", shell, "/c", "shutdown"], check=False).stdout
    assert "Service Control Manager" in windows.exec(["wine", shell, "/c", "sc"], check=False).stdout
    assert "knows only what win_reboot sends" in windows.exec(["wine", shell, "/c", "powershell -Command 1"], check=False).stderr


def test_netsh_opens_one_port_for_one_address(lab: Lab, windows: WindowsTarget, unchanged: Callable[..., list[str]]) -> None:
    put(windows, "exe", "listens.exe")
    windows.exec(["sh", "-c", r"wine sc create listens binPath= 'C:\listens.exe --service --listen 62286' start= auto; wine sc start listens"])
    wait_for("the service to listen", lambda: "62286" in windows.exec(["ss", "-Hltn"]).stdout, 60)
    assert not any(windows.can_connect(62286, family) for family in FAMILIES)

    controller = lab.network.addresses(2)
    rule = ["name=one", "dir=in", "action=allow", "protocol=TCP", "localport=62286", f"remoteip={controller.ula},{controller.ipv4}"]
    assert netsh(windows, "firewall", "add", "rule", *rule) == (0, "Ok.\n\n")
    assert windows.can_connect(62286, "ipv6") and windows.can_connect(62286, "ipv4")
    assert not windows.can_connect(62286, "link-local")
    assert not any(windows.can_connect(62286, family, source="stranger") for family in FAMILIES)
    code, shown = netsh(windows, "firewall", "show", "rule", "name=ONE")
    assert code == 0 and f"{'RemoteIP:':38}{controller.ula}/128,{controller.ipv4}/32\n" in shown

    windows.reboot()  # rules and services of automatic start outlive it
    wait_for("the service to listen", lambda: windows.can_connect(62286), 60)
    assert netsh(windows, "firewall", "delete", "rule", "name=one") == (0, "\nDeleted 1 rule(s).\nOk.\n\n")
    assert not windows.can_connect(62286)
    assert netsh(windows, "firewall", "delete", "rule", "name=one") == (1, "\nNo rules match the specified criteria.\n\n")
    assert "ON" in netsh(windows, "show", "allprofiles", "state")[1]
    windows.exec(["wine", "reg", "add", r"HKLM\Software\sojourn-lab", "/v", "Language", "/d", "de"])
    assert netsh(windows, "firewall", "delete", "rule", "name=one") == (1, "\nKeine Regeln stimmen mit den angegebenen Kriterien überein.\n\n")
    windows.exec(["wine", "reg", "delete", r"HKLM\Software\sojourn-lab", "/f"])
    windows.exec(["sh", "-c", f"wine sc stop listens; wine sc delete listens; rm {C}/listens.exe"])
    wait_for("the service to end", lambda: "62286" not in windows.exec(["ss", "-Hltn"]).stdout, 60)
    assert unchanged("windows1") == []


def test_windows_packages(windows: WindowsTarget, unchanged: Callable[..., list[str]]) -> None:
    for name in ("nsis-1.0.0", "nsis-1.1.0", "msi-1.0.0", "exe"):
        put(windows, name, fixtures()[name].name)
    uninstall = r"HKLM\Software\Wow6432Node\Microsoft\Windows\CurrentVersion\Uninstall"
    for version in ("1.0.0", "1.1.0"):
        windows.exec(["wine", rf"C:\sojourn-demo-{version}-setup.exe", "/S"])
        assert version in windows.exec(["wine", "reg", "query", rf"{uninstall}\SojournDemo", "/v", "DisplayVersion"]).stdout
    windows.exec(["wine", "msiexec", "/i", r"C:\sojourn-demo-1.0.0.msi", "/qn"])
    windows.exec(["wine", "msiexec", "/x", r"C:\sojourn-demo-1.0.0.msi", "/qn"])
    windows.exec(["wine", r"C:\Program Files (x86)\Sojourn Demo\uninstall.exe", "/S"])
    assert windows.exec(["wine", r"C:\sojourn-demo.exe", "--line", "héllo", "--exit", "7"], check=False).stdout == "héllo\n"
    windows.exec(["sh", "-c", f"rm {C}/sojourn-demo*"])
    assert unchanged("windows1", *PACKAGE_MANAGERS) == []


def test_a_job_object_ends_its_tree(windows: WindowsTarget, unchanged: Callable[..., list[str]]) -> None:
    put(windows, "exe", "job.exe")
    done = windows.exec(["wine", r"C:\job.exe", "--job", "3", "0.5"])
    assert "with code 7" in done.stdout
    windows.exec(["rm", f"{C}/job.exe"])
    assert unchanged("windows1") == []


def test_shutdown_restarts_switches_off_and_is_called_off(windows: WindowsTarget) -> None:
    windows.exec(["wine", "shutdown", "/r", "/t", "600"])
    assert windows.exec(["wine", "shutdown", "/r", "/t", "600"], check=False).returncode == 1190 & 255
    windows.exec(["wine", "shutdown", "/a"])
    assert windows.exec(["wine", "shutdown", "/a"], check=False).returncode == 1116 & 255
    leader = windows.leader
    windows.exec(["wine", "shutdown", "/r", "/t", "0"], check=False)
    assert wait_for_exit(leader.pid, 120)
    windows.wait_until_up()
    leader = windows.leader
    windows.exec(["wine", "shutdown", "/s", "/t", "0"], check=False)
    assert wait_for_exit(leader.pid, 120)
    windows.cut()
    assert windows.answers()


def test_it_can_tell_another_version(lab: Lab, windows: WindowsTarget) -> None:
    pytest.importorskip("spnego")
    from spnego._ntlm_raw.messages import Challenge

    told = []
    original = Challenge.__init__

    def listen(self, *words, **options) -> None:
        original(self, *words, **options)
        told.append((self.version.major, self.version.minor, self.version.build))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Challenge, "__init__", listen)
        Client(lab, windows).close()
        windows.pretend_version("5.1.2600")
        Client(lab, windows).close()
    windows.reset()
    assert told == [(10, 0, 19043), (5, 1, 2600)]


# Faults. Each shows what the lever does, and that nothing of it is left afterwards.


def reachable(target: Target) -> list[bool]:
    return [target.can_connect(family=family) for family in FAMILIES]


@pytest.mark.parametrize("name", ["linux1", "windows1"])
def test_a_cut_wire_loses_what_is_sent(lab: Lab, name: str) -> None:
    target = lab.target(name)
    with target.cut_off():
        assert reachable(target) == [False] * 3
        assert target.can_connect(source="stranger")
        assert all(other.can_connect() for other in lab.targets.values() if other is not target)
    assert reachable(target) == [True] * 3
    with pytest.raises(RuntimeError), target.cut_off():
        raise RuntimeError
    assert target.can_connect()


def test_what_was_lost_is_sent_again(lab: Lab, linux: LinuxTarget) -> None:
    with connect(lab.network.namespace("controller"), linux.addresses.ula, 22) as wire:
        assert wire.recv(1000).startswith(b"SSH-")
        with linux.cut_off():
            wire.sendall(b"SSH-2.0-selfcheck\r\n")
            wire.settimeout(0.5)
            with pytest.raises(TimeoutError):
                wire.recv(1)
        wire.settimeout(10)
        assert wire.recv(1)


@pytest.fixture
def sink(lab: Lab, linux: LinuxTarget) -> Iterator[Callable[[], float]]:
    """Sends 500 kB to the Linux target; the seconds that it took."""
    script = "import socket; s = socket.create_server(('::', 4444), family=10)\nwhile True:\n c = s.accept()[0]\n while c.recv(1 << 16): pass\n c.close()"
    linux.exec(["systemd-run", "--quiet", "--unit=sink", "python3", "-c", script])
    linux.exec(["nft", "insert", "rule", "inet", "filter", "input", "tcp", "dport", "4444", "accept", "comment", "sink"])

    def send() -> float:
        began = time.monotonic()
        with connect(lab.network.namespace("controller"), linux.addresses.ula, 4444) as wire:
            wire.settimeout(20)
            wire.sendall(bytes(500_000))
            wire.shutdown(socket.SHUT_WR)
            assert wire.recv(1) == b""  # it has all of it
        return time.monotonic() - began

    wait_for("the sink to listen", lambda: linux.can_connect(4444), 60)
    yield send
    linux.reset()


def test_sending_is_slowed(lab: Lab, linux: LinuxTarget, windows: WindowsTarget, sink: Callable[[], float]) -> None:
    def slowed(lever: contextlib.AbstractContextManager[None]) -> bool:
        with lever:
            return sink() > 1.4  # 2 s by the arithmetic, less what is sent in one go

    def quick() -> bool:
        return min(sink() for unused in range(5)) < 1

    # Its own slowness before and after shows that it was the lever; the two may be nested.
    assert quick()
    with windows.slow("1kbit"):
        assert quick()
        assert slowed(linux.slow("2mbit"))
    assert slowed(lab.slow("250kbps"))
    assert quick()
    assert "htb" not in run(lab.inside("controller", ["tc", "qdisc"])).stdout
    with pytest.raises(LabError, match="written like"):
        slowed(lab.slow("fast"))


def test_a_long_way_takes_its_time_and_its_losses_are_made_good(lab: Lab, linux: LinuxTarget) -> None:
    with long_way(linux, round_trip=0.2, loss=0.05, seed=3) as address:
        begin = time.monotonic()
        with connect(lab.network.namespace("controller"), address, 22, timeout=30) as connection:
            assert time.monotonic() - begin >= 0.2
            assert connection.recv(4) == b"SSH-"
    assert "wan0" not in linux.exec(["ip", "-o", "link"]).stdout
    assert CONTROLLER not in linux.exec(["ss", "-tnH"]).stdout


@pytest.mark.parametrize("name", ["linux1", "windows1"])
def test_connections_are_reset(lab: Lab, name: str) -> None:
    target = lab.target(name)
    with target.half_open(target.port, 3, "ipv4") as ours, lab.half_open(name, target.port) as more:
        assert target.reset_connections(9) == 0
        assert target.reset_connections(target.port) == 4
        for wire in ours + more:
            with contextlib.suppress(TimeoutError), pytest.raises(ConnectionResetError):
                while wire.recv(100):  # what had come before
                    pass
    assert target.can_connect()


def test_connections_on_which_nothing_is_said(linux: LinuxTarget) -> None:
    def established() -> int:
        return len(linux.exec(["ss", "-Hnt", "state", "established", "sport = :22"]).stdout.splitlines())

    with linux.half_open(22, 7):
        wait_for("sshd to have taken all", lambda: established() == 7, 60)
    wait_for("sshd to let go of all", lambda: established() == 0, 60)


@contextlib.contextmanager
def two_clocks(target: Target, command: list[str]) -> Iterator[tuple[Callable[[], tuple[float, float]], Process]]:
    """A program of the target that tells its wall clock and its monotonic one, as often as it is asked; and its process."""
    program = subprocess.Popen(target.inside(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdin and program.stdout

    def ask() -> tuple[float, float]:
        program.stdin.write("\n")
        program.stdin.flush()
        wall, monotonic = program.stdout.readline().split()
        return float(wall) - time.time(), float(monotonic) - time.monotonic()

    try:
        ask()
        yield ask, max((found for found in target.processes() if command[-1] in found.command), key=lambda found: found.began)
    finally:
        program.stdin.close()
        program.wait(10)
        program.stdout.close()


def test_the_wall_clock_jumps_on_linux(linux: LinuxTarget) -> None:
    script = "import sys, time\nfor line in sys.stdin: print(time.time(), time.monotonic(), flush=True)"
    with two_clocks(linux, ["python3", "-c", script]) as (ask, process):
        for seconds in (86_400 * 400, -3600):
            with linux.jump_clock(seconds, process):
                wall, monotonic = ask()
                assert abs(wall - seconds) < 60 and abs(monotonic) < 60
                assert abs(float(linux.exec(["date", "+%s"]).stdout) - time.time()) < 60
                with pytest.raises(LabError, match="jumped already"), linux.jump_clock(1, process):
                    pass
            assert abs(ask()[0]) < 60


def test_the_wall_clock_jumps_on_windows(windows: WindowsTarget) -> None:
    put(windows, "exe", "clocks.exe")
    with two_clocks(windows, ["wine", r"C:\clocks.exe", "--clocks"]) as (ask, _):
        ticks = ask()[1]  # since Windows began
        with windows.jump_clock(86_400 * 400):
            wait_for("the jump", lambda: abs(ask()[0] - 86_400 * 400) < 60, 60)
            assert abs(ask()[1] - ticks) < 60
            # One that is started afterwards as well, if it reads the clock where Go does.
            with two_clocks(windows, ["wine", r"C:\clocks.exe", "--clocks"]) as (ask_another, _):
                assert abs(ask_another()[0] - 86_400 * 400) < 60
        wait_for("the jump back", lambda: abs(ask()[0]) < 60, 60)
    windows.exec(["rm", f"{C}/clocks.exe"])


def test_the_disk_is_full(linux: LinuxTarget, windows: WindowsTarget, unchanged: Callable[..., list[str]]) -> None:
    def write(target: Target, place: str, size: int) -> bool:
        done = target.exec(["sh", "-c", f"head -c {size} /dev/zero > {place}/filled; code=$?; rm {place}/filled; exit $code"], check=False)
        return done.returncode == 0

    for target, place, at in ((linux, "/var", None), (linux, "/tmp", "/tmp"), (windows, C, None)):
        with target.fill_disk(100_000, at=at):
            assert write(target, place, 50_000) and not write(target, place, 200_000)
        assert write(target, place, 200_000)
        assert unchanged(target.name) == []
    with pytest.raises(LabError, match="nothing is mounted"), linux.fill_disk(at="/var"):
        pass


def test_a_place_takes_no_writing_on_linux(linux: LinuxTarget, unchanged: Callable[..., list[str]]) -> None:
    for place in ("/var/tmp", "/mnt/new"):
        with linux.read_only(place):
            assert "Read-only" in linux.exec(["touch", f"{place}/x"], check=False).stderr
    assert unchanged("linux1") == []


def test_admin_takes_no_writing(lab: Lab, windows: WindowsTarget, unchanged: Callable[..., list[str]]) -> None:
    from smbprotocol.exceptions import AccessDenied

    with windows.read_only():
        client = Client(lab, windows)
        with pytest.raises(AccessDenied):
            client.open(client.share("ADMIN$"), "x.txt", READ_WRITE, CREATE)
        client.open(client.share("C$"), "x.txt", READ_WRITE, CREATE).close()
        client.close()
    client = Client(lab, windows)
    client.open(client.share("ADMIN$"), "x.txt", READ_WRITE, CREATE).close()
    client.close()
    windows.exec(["rm", f"{C}/x.txt", f"{C}/windows/x.txt"])
    assert unchanged("windows1") == []


TOOLS = {
    "nft": (
        [*("nft", "insert", "rule", "inet", "filter", "input", "tcp", "dport", "9", "accept", "comment", "lever")],
        ["sh", "-c", "nft delete rule inet filter input handle $(nft -a list ruleset | sed -n 's/.*\"lever\" # handle //p')"],
        [*("nft", "list", "ruleset")],
    ),
    "nft by script": (
        ["sh", "-c", "echo 'add rule inet filter input tcp dport 9 accept comment \"lever\"' | nft -f -"],
        ["sh", "-c", "echo delete rule inet filter input handle $(nft -a list ruleset | sed -n 's/.*\"lever\" # handle //p') | nft --file -"],
        [*("nft", "list", "ruleset")],
    ),
    "ip6tables": (
        [*("ip6tables-legacy", "-w", "-I", "INPUT", "-p", "tcp", "--dport", "9", "-m", "comment", "--comment", "lever", "-j", "ACCEPT")],
        [*("ip6tables-legacy", "-w", "-D", "INPUT", "-p", "tcp", "--dport", "9", "-m", "comment", "--comment", "lever", "-j", "ACCEPT")],
        [*("ip6tables-legacy", "-S")],
    ),
    "netsh": (
        [*("wine", "netsh", "advfirewall", "firewall", "add", "rule", "name=lever", "dir=in", "action=allow", "protocol=TCP", "localport=9")],
        [*("wine", "netsh", "advfirewall", "firewall", "delete", "rule", "name=lever")],
        [*("wine", "netsh", "advfirewall", "firewall", "show", "rule", "name=all")],
    ),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_the_firewall_tool_fails_or_hangs(lab: Lab, tool: str) -> None:
    target = lab.target("windows1" if tool == "netsh" else "linux1")
    opens, closes, shows = TOOLS[tool]
    before = lab.snapshot(target.name)

    def there() -> bool:
        return "lever" in target.exec(shows, check=False).stdout

    def works(command: list[str]) -> bool:
        return target.exec(command, check=False).returncode == 0

    with target.firewall_tool(fails="open"):
        assert not works(opens) and not there()
    assert works(opens) and there()
    with target.firewall_tool(fails="close"):
        assert not works(closes) and there()
    for what, command in (("close", closes), ("open", opens)):
        with target.firewall_tool(holds=what) as lever:
            called = subprocess.Popen(target.inside(command), stdout=subprocess.DEVNULL)
            assert tool.split()[0] in lever.wait_held()
            assert called.poll() is None and there() == (what == "close")
        assert called.wait(120) == 0 and there() == (what == "open")
    with target.firewall_tool(holds="open") as lever:
        assert works(closes) and not there()
        with pytest.raises(LabError, match="gave up"):
            lever.wait_held(0.1)
    expected = ["firewall rules: legacy6 *"] if tool == "ip6tables" else []  # the table that the first rule made
    assert lasting(before, lambda: lab.snapshot(target.name), *expected) == []
    if expected:
        target.reset()


def test_the_firewall_tool_is_let_go_of_while_it_is_called(linux: LinuxTarget, unchanged: Callable[..., list[str]]) -> None:
    """No shell takes the tool itself for the script that was before it (then there would be a file of an odd name)."""
    linux.exec(["systemd-run", "--unit=calls", "sh", "-c", "cd /; while :; do nft list ruleset; iptables -S; done >/dev/null 2>&1"])
    for unused in range(10):
        with linux.firewall_tool(fails="open"):
            pass
    linux.exec(["systemctl", "stop", "calls"])
    assert unchanged("linux1") == []


def test_a_deleted_service_stays_while_somebody_holds_it(windows: WindowsTarget, unchanged: Callable[..., list[str]]) -> None:
    def sc(*words: str) -> int:
        return windows.exec(["wine", "sc", *words], check=False).returncode

    assert sc("create", "held", "binPath=", r"C:\none.exe") == 0
    with windows.hold_service("held"):
        assert sc("delete", "held") == 0
        assert sc("delete", "held") == 1072 & 255  # marked for deletion
        assert sc("query", "held") == 0
    assert sc("query", "held") == 1060 & 255
    with pytest.raises(LabError, match="can't be held"), windows.hold_service("held"):
        pass
    assert unchanged("windows1") == []


def test_sc_tells_of_services(windows: WindowsTarget, unchanged: Callable[..., list[str]]) -> None:
    def sc(*words: str) -> tuple[int, list[str]]:
        done = windows.exec(["wine", "sc", *words], check=False)
        return done.returncode, [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]

    code, lines = sc("query", "Eventlog")
    assert code == 0 and lines[0] == "SERVICE_NAME: Eventlog" and lines[2] == "STATE : 4 RUNNING"
    assert sc("query", "nosuch")[1][0] == "[SC] EnumQueryServicesStatus:OpenService FAILED 1060:"
    assert sc("create", "told", "binPath=", r"C:\none.exe", "start=", "auto", "DisplayName=", "It's told")[0] == 0
    assert sc("create", "told", "binPath=", r"C:\none.exe")[0] == 1073 & 255  # it is there
    assert sc("description", "told", "What it does")[0] == 0
    assert sc("start", "told")[0] == 2  # there is no such file
    assert sc("stop", "told")[0] == 1062 & 255  # it does not run
    assert "STATE : 1 STOPPED" in sc("query", "told")[1]
    assert sc("create", "other", "type=", "kernel")[0] == 87
    assert sc("delete", "told")[0] == 0
    assert unchanged("windows1") == []


def test_winrm_in_the_place_of_file_sharing(windows: WindowsTarget, unchanged: Callable[..., list[str]]) -> None:
    def open_ports() -> list[int]:
        return [port for port in (445, 5985, 5986) if all(windows.can_connect(port, family) for family in FAMILIES)]

    assert open_ports() == [445]
    with windows.winrm_only():
        assert open_ports() == [5985, 5986]
        windows.reboot()
        assert open_ports() == [5985, 5986]
    assert open_ports() == [445]
    assert unchanged("windows1", "firewall rules: legacy*", "mounts: *") == []


def test_a_file_that_is_open_is_nobody_elses(lab: Lab, windows: WindowsTarget, unchanged: Callable[..., list[str]]) -> None:
    client = Client(lab, windows)
    windows.exec(["sh", "-c", f"echo x > {C}/windows/locked.txt"])
    admin = client.share("ADMIN$")
    remove = ["wine", "cmd", "/c", r"del C:\windows\locked.txt"]
    with windows.lock_file(r"C:\windows\locked.txt"):
        assert "violation" in windows.exec(remove).stderr
        assert delete(client, admin, "locked.txt") == "SharingViolation"
        windows.exec(["test", "-e", f"{C}/windows/locked.txt"])
    with windows.lock_file(r"C:\windows\locked.txt", over_smb=False):
        assert delete(client, admin, "locked.txt") == ""
    client.close()
    assert unchanged("windows1") == []


def test_events_are_read_on_linux(linux: LinuxTarget) -> None:
    linux.exec(["logger", "--tag", "sojourn-agent", "größer"])
    linux.exec(["logger", "--tag", "another", "kleiner"])
    wait_for("the journal", lambda: linux.event_log() == ["größer"], 60)


def test_events_are_read_on_windows(windows: WindowsTarget) -> None:
    put(windows, "exe", "event.exe")
    text = 'größer, "汉语": C:\\x'
    binary = r'C:\event.exe --service --event "größer, \"汉语\": C:\x"'
    windows.exec(["wine", "sc", "create", "event", "binPath=", binary])
    windows.exec(["wine", "sc", "start", "event"])
    wait_for("the event", lambda: windows.event_log() == [text], 60)
    windows.exec(["sh", "-c", f"wine sc stop event; wine sc delete event; rm {C}/event.exe"])


def test_processes_of_a_run(linux: LinuxTarget) -> None:
    assert linux.processes_of("0123456789ab") == []
    linux.exec(["systemd-run", "--quiet", "--unit=of-a-run", "sh", "-c", "sleep 600 # sojourn-0123456789ab"])
    (process,) = linux.processes_of("0123456789ab")
    assert process.name in ("sh", "sleep")
    process.end()
    linux.exec(["systemctl", "reset-failed", "of-a-run"], check=False)
