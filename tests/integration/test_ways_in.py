"""Both ways in, over both address families: the agent comes, answers its own client only, and goes without a trace."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CHECKOUT
from tests.integration.conftest import Controller, kill
from tests.lab.namespaces import connect, inside
from tests.lab.waiting import wait_for
from tests.lab.wan import long_way


def test_the_agent_comes_and_goes(controller: Controller, target: Any, family: str, say: Callable[[str], None]) -> None:
    agent = controller.agent(target, family)
    assert agent.present() is False
    assert agent.remove() == {"changed": False, "removed": []}
    deployed = agent.deploy()
    assert deployed["changed"] is True
    assert set(deployed["seconds"]) == {"connect", "upload", "start", "first_call"}
    info = deployed["info"]
    assert info["operating_system"] == target.kind
    assert info["tls_version"] == "TLS 1.3"
    assert info["architecture"] == "amd64"
    assert info["service_name"] == f"sojourn-{info['run']}"
    again = agent.deploy()
    assert again["changed"] is False
    assert again["info"]["process_id"] == info["process_id"]
    assert agent.present() is True
    removed = agent.remove()
    assert removed["changed"] is True
    assert any("service" in item for item in removed["removed"])
    assert agent.present() is False
    assert agent.remove()["changed"] is False
    laps = "  ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in deployed["seconds"].items())
    say(f"{target.kind} over {family}: {laps}")


def test_link_local_with_zone(controller: Controller, target: Any) -> None:
    agent = controller.agent(target, "link-local")
    assert agent.deploy()["changed"] is True
    assert agent.execute(command_line="echo there" if target.kind == "linux" else "cmd /c echo there")["stdout"].strip() == b"there"
    agent.remove()


def test_to_a_far_target_the_agent_travels_packed(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    """And unpacked it is the same: it runs, and its version and checksum are the executable's."""
    with long_way(linux_target, round_trip=0.05, loss=0) as address:
        known_hosts = tmp_path / "known_hosts"
        known_hosts.write_text("".join(f"{line}\n" for line in linux_target.known_hosts(address)))
        agent = controller.agent(linux_target, address=address, known_hosts=str(known_hosts))
        steps: list[dict[str, Any]] = []
        agent.wrapped.on_step = steps.append
        info = agent.deploy()["info"]
        upload = next(step["detail"] for step in steps if step["name"] == "upload")
        found = re.fullmatch(r"(\d+) bytes in (\d+) to (\S+)", upload)
        executable = CHECKOUT / "build/collections/ansible_collections/sojourn/deploy/agent/dist/sojourn-agent-linux-amd64"
        assert found and int(found[1]) == executable.stat().st_size > 2 * int(found[2]), upload
        running = linux_target.exec(["sha256sum", f"/proc/{info['process_id']}/exe"]).stdout.split()[0]
        assert running == hashlib.sha256(executable.read_bytes()).hexdigest()
        agent.remove()


@pytest.mark.parametrize("user", ["deployer", "operator"])
def test_root_by_sudo(controller: Controller, linux_target: Any, family: str, user: str) -> None:
    agent = controller.agent(linux_target, family, user=user)
    assert agent.deploy()["info"]["account"] == "root"
    assert agent.execute(command_line="id -un", user=user)["stdout"] == f"{user}\n".encode()
    agent.remove()


@pytest.mark.leaves("files: /root/.ssh")  # the test's own
def test_sign_in_with_a_key(controller: Controller, linux_target: Any, family: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    public = key.with_suffix(".pub").read_text()
    linux_target.exec(["sh", "-c", "umask 077; mkdir -p /root/.ssh; cat > /root/.ssh/authorized_keys"], input=public)
    try:
        agent = controller.agent(linux_target, family, password=None, key_file=str(key))
        agent.deploy()
        agent.remove()
    finally:
        controller.end()
        linux_target.exec(["rm", "/root/.ssh/authorized_keys"])


@pytest.mark.leaves("files: /root/.ssh")  # the test's own
@pytest.mark.parametrize("where", ["default key", "SSH agent"])
def test_existing_credentials(
    controller: Controller, linux_target: Any, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """No password and no key file in the inventory: the default keys, and those of the SSH agent, are tried."""
    folder = tmp_path / ("home/.ssh" if where == "default key" else "elsewhere")
    folder.mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "id_ed25519"], check=True)
    public = (folder / "id_ed25519.pub").read_text()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    keys = None
    linux_target.exec(["sh", "-c", "umask 077; mkdir -p /root/.ssh; cat > /root/.ssh/authorized_keys"], input=public)
    try:
        if where == "SSH agent":
            keys = subprocess.Popen(["ssh-agent", "-D", "-a", tmp_path / "agent"], stdout=subprocess.DEVNULL)
            wait_for("the SSH agent", (tmp_path / "agent").exists, 60)
            monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
            subprocess.run(["ssh-add", "-q", folder / "id_ed25519"], check=True)
        agent = controller.agent(linux_target, family, password=None)
        assert agent.deploy()["info"]["account"] == "root"
        agent.remove()
    finally:
        controller.end()
        if keys is not None:
            keys.kill()
            keys.wait()
        linux_target.exec(["rm", "/root/.ssh/authorized_keys"])


def test_the_port_is_open_for_the_controller_only_and_for_the_run_only(controller: Controller, target: Any, family: str) -> None:
    assert not target.can_connect(62286, family, "controller")
    agent = controller.agent(target, family)
    port = agent.deploy()["info"]["port"]
    assert target.can_connect(port, family, "controller")
    assert not target.can_connect(port, family, "stranger")
    agent.remove()
    assert not target.can_connect(port, family, "controller")


def test_a_busy_port_makes_the_agent_take_the_next(controller: Controller, target: Any, family: str) -> None:
    with inside(target.namespace, lambda: socket.create_server(("::", 62286), family=socket.AF_INET6, dualstack_ipv6=True)):
        agent = controller.agent(target, family)
        assert agent.deploy()["info"]["port"] == 62287
        agent.remove()


def test_many_workers_share_one_agent(controller: Controller, target: Any) -> None:
    agents = [controller.agent(target) for unused in range(20)]
    with ThreadPoolExecutor(20) as pool:
        deployed = list(pool.map(lambda agent: agent.deploy(), agents))
    assert sum(one["changed"] for one in deployed) == 1
    assert len({one["info"]["process_id"] for one in deployed}) == 1
    with ThreadPoolExecutor(20) as pool:
        line = "echo {}" if target.kind == "linux" else "cmd /c echo {}"
        answers = list(pool.map(lambda n: agents[n].execute(command_line=line.format(n))["stdout"].split(), range(20)))
    assert answers == [[str(n).encode()] for n in range(20)]


def test_two_names_of_one_target_share_one_agent(controller: Controller, target: Any) -> None:
    first, second = controller.agent(target, "ipv6"), controller.agent(target, "ipv4")
    with ThreadPoolExecutor(2) as pool:
        deployed = list(pool.map(lambda agent: agent.deploy(), (first, second)))
    assert len({one["info"]["process_id"] for one in deployed}) == 1
    assert first.present() and second.present()
    assert second.remove()["changed"] is True
    assert not first.present()


# The channel, seen by a client that holds the run's own key


class Direct:
    """An agent put on a target by its way in alone, without a broker: so that the test has the key."""

    def __init__(self, controller: Controller, target: Any, family: str) -> None:
        from ansible_collections.sojourn.deploy.plugins.plugin_utils import channel, session
        from ansible_collections.sojourn.deploy.plugins.plugin_utils.credentials import RunCredentials
        from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import Config

        self.run = os.urandom(6).hex()
        self.credentials = RunCredentials.make(self.run)
        self.namespace = controller.namespace
        self.target = target
        self.way_in = session.make_way_in(controller.options(target, family), self.run)

        def deploy() -> Any:
            self.way_in.connect()
            self.way_in.place("0")
            return self.way_in.start(
                Config(self.run, self.credentials.fingerprint, [self.way_in.controller_address], {"first": 62286, "last": 62293}, 60)
            )

        self.ready = inside(self.namespace, deploy)
        self.endpoint = channel.Endpoint(self.way_in.peer.with_port(self.ready.port), self.ready.fingerprint, "62286-62293", target.name)
        self.channel = channel.Channel(self.endpoint, self.credentials.context())

    def connect(self) -> socket.socket:
        """A bare TCP connection to the agent."""
        return connect(self.namespace, self.endpoint.peer.address, self.ready.port)

    def remove(self) -> None:
        """Ends it."""
        inside(self.namespace, lambda: self.channel.call("Shutdown"))
        inside(self.namespace, self.way_in.wait_removed)
        self.way_in.release()


@pytest.fixture
def direct(controller: Controller, target: Any, family: str) -> Iterator[Direct]:
    """See Direct."""
    direct = Direct(controller, target, family)
    try:
        yield direct
    finally:
        direct.remove()


def test_tls_1_3_for_the_pinned_client_only(direct: Direct) -> None:
    from ansible_collections.sojourn.deploy.plugins.plugin_utils.credentials import RunCredentials

    with direct.credentials.context().wrap_socket(direct.connect()) as wire:
        assert wire.version() == "TLSv1.3"
        assert hashlib.sha256(wire.getpeercert(binary_form=True)).hexdigest() == direct.ready.fingerprint
        wire.sendall(b"GET /?wsdl HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
        assert wire.recv(12) == b"HTTP/1.1 200"

    other = RunCredentials.make("0" * 12).context()
    none = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    none.check_hostname, none.verify_mode = False, ssl.CERT_NONE
    for context in (other, none):
        # In TLS 1.3 a client is done before the server has looked at its certificate: the alert comes with the first read.
        with pytest.raises((ssl.SSLError, ConnectionError)), context.wrap_socket(direct.connect()) as wire:
            wire.sendall(b"GET /?wsdl HTTP/1.1\r\nHost: agent\r\n\r\n")
            assert wire.recv(1) == b"", "the agent answered a stranger"
            raise ConnectionResetError

    old = direct.credentials.context()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        old.wrap_socket(direct.connect())


def test_zeep_talks_to_the_agent_by_the_wsdl_that_it_serves(direct: Direct) -> None:
    import requests
    import zeep
    from lxml import etree

    class Pinned(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
            super().init_poolmanager(
                *arguments, **options, ssl_context=direct.credentials.context(), assert_fingerprint=direct.endpoint.fingerprint, assert_hostname=False)

    session = requests.Session()
    session.trust_env = session.verify = False
    session.mount("https://", Pinned())
    address = direct.endpoint.peer.address
    url = f"https://{f'[{address}]' if ':' in address else address}:{direct.ready.port}/?wsdl"

    def talk() -> tuple[bytes, Any]:
        wsdl = session.get(url, timeout=10).content
        client = zeep.Client(url, transport=zeep.Transport(session=session), settings=zeep.Settings(strict=True))
        assert client.service._binding_options["address"].startswith(url.partition("?")[0].rstrip("/"))
        return wsdl, client.service.GetInfo()

    wsdl, info = inside(direct.namespace, talk)
    assert info.Run == direct.run
    assert info.TLSVersion == "TLS 1.3"
    # It validates: its schema compiles, and what is in it belongs together.
    document = etree.fromstring(wsdl)
    names = {"wsdl": "http://schemas.xmlsoap.org/wsdl/", "xs": "http://www.w3.org/2001/XMLSchema", "soap": "http://schemas.xmlsoap.org/wsdl/soap/"}
    etree.XMLSchema(etree.fromstring(etree.tostring(document.find(".//xs:schema", names))))  # with the prefixes that it inherits
    elements = {f"t:{name}" for name in document.xpath("wsdl:types/xs:schema/xs:element/@name", namespaces=names)}
    messages = {f"t:{name}" for name in document.xpath("wsdl:message/@name", namespaces=names)}
    assert set(document.xpath("wsdl:message/wsdl:part/@element", namespaces=names)) <= elements
    assert set(document.xpath("wsdl:portType/wsdl:operation/*/@message", namespaces=names)) == messages
    offered = document.xpath("wsdl:portType/wsdl:operation/@name", namespaces=names)
    assert document.xpath("wsdl:binding/wsdl:operation/@name", namespaces=names) == offered
    assert document.xpath("wsdl:binding/soap:binding/@style", namespaces=names) == ["document"]
    # WS-I BP 1.1, R2706 and R2745: literal bodies, and each operation a SOAPAction of its own
    assert set(document.xpath("wsdl:binding//soap:body/@use", namespaces=names)) == {"literal"}
    actions = document.xpath("wsdl:binding/wsdl:operation/soap:operation/@soapAction", namespaces=names)
    assert len(set(actions)) == len(offered)


# Files and processes, in short: test_connection.py has them through Ansible


def test_files_both_ways(controller: Controller, target: Any, family: str, tmp_path: Path) -> None:
    agent = controller.agent(target, family)
    source, back = tmp_path / "source", tmp_path / "back"
    data = os.urandom(1 << 20) * 17 + b"end"
    source.write_bytes(data)
    checksum = hashlib.sha256(data).hexdigest()
    steps: list[tuple[int, int]] = []
    put = agent.put_file(str(source), "stage/a file", checksum=checksum, on_progress=lambda done, total: steps.append((done, total)))
    assert (put["size"], put["checksum"]) == (len(data), checksum) and "sha1" not in put
    hashed = agent.put_file(str(source), "stage/a file", digests=True)
    assert [hashed[name] for name in ("checksum", "sha1", "md5")] == [checksum, hashlib.sha1(data).hexdigest(), hashlib.md5(data).hexdigest()]
    assert steps[-1] == (len(data), len(data))
    assert agent.stat(put["path"], checksum=True)["checksum"] == checksum
    got = agent.get_file("stage/a file", str(back))
    assert (got["size"], got["checksum"]) == (len(data), checksum) and "sha1" not in got
    assert back.read_bytes() == data
    hashed_again = agent.get_file("stage/a file", str(back), digests=True)
    assert [hashed_again[name] for name in ("checksum", "sha1", "md5", "resumed")] == [*(hashed[name] for name in ("checksum", "sha1", "md5")), False]
    found = back.stat()
    assert hashed_again["identity"] == [found.st_dev, found.st_ino, len(data), found.st_mtime_ns] and back.read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "source"]
    assert agent.remove_path("stage", recursive=True) is True
    assert agent.remove_path("stage", recursive=True) is False


def test_a_wrong_checksum_leaves_nothing(controller: Controller, target: Any, family: str, tmp_path: Path) -> None:
    from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

    agent = controller.agent(target, family)
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3 << 20))
    with pytest.raises(SojournError, match=r"checksum of .* expected 0000.* \(SD-106\)"):
        agent.put_file(str(source), "stage/file", checksum="0" * 64)
    assert agent.stat("stage/file")["kind"] == "absent"
    assert agent.stat("stage/file.sojourn-part")["kind"] == "absent"


def test_output_comes_while_the_process_runs(controller: Controller, linux_target: Any) -> None:
    agent = controller.agent(linux_target)
    agent.deploy()
    linux_target.exec(["mkfifo", "/tmp/go-on"])
    seen: list[tuple[str, bytes]] = []

    def on_output(stream: str, data: bytes) -> None:
        seen.append((stream, data))
        if data == b"one\n":  # the process ends only because this came while it ran
            linux_target.exec(["sh", "-c", "echo > /tmp/go-on"])

    result = agent.execute(command_line="echo one; read line < /tmp/go-on; rm /tmp/go-on; echo two >&2; exit 7", on_output=on_output, timeout=60)
    assert seen == [("stdout", b"one\n"), ("stderr", b"two\n")]
    assert (result["exit_code"], result["stdout"], result["stderr"], result["timed_out"]) == (7, b"one\n", b"two\n", False)


def test_a_timeout_kills_the_whole_tree(controller: Controller, linux_target: Any) -> None:
    agent = controller.agent(linux_target)
    result = agent.execute(command_line="sleep 4711 & sleep 4711; wait", timeout=0.5)
    assert result["timed_out"] is True
    wait_for("all of it to be gone", lambda: linux_target.exec(["pgrep", "-f", "sleep 4711"], check=False).stdout == "", 60)


def test_a_caller_that_goes_away_kills_its_process(controller: Controller, linux_target: Any) -> None:
    agent = controller.agent(linux_target)
    agent.deploy()
    started = threading.Event()

    class Interrupted(BaseException):
        pass

    def interrupt(unused_stream: str, unused_data: bytes) -> None:
        started.set()
        raise Interrupted

    with pytest.raises(Interrupted):
        agent.execute(command_line="echo started; sleep 4712", on_output=interrupt)
    wait_for("sleep to be gone", lambda: linux_target.exec(["pgrep", "-f", "sleep 4712"], check=False).stdout == "", 60)


# The end, however it comes


@pytest.mark.parametrize("way", ["run killed", "broker told to end"])
def test_the_broker_cleans_up(controller: Controller, target: Any, family: str, way: str) -> None:
    agent = controller.agent(target, family)
    agent.deploy()
    if way == "run killed":
        controller.owner.kill()
        controller.owner.wait()
    else:
        os.kill(controller.broker_pid, 15)
    controller.end()  # waits for the broker; nothing_left looks at the targets


def test_the_lease_cleans_up_after_a_killed_broker(controller: Controller, target: Any, family: str) -> None:
    agent = controller.agent(target, family, lease_seconds=6)
    port = agent.deploy()["info"]["port"]
    kill(controller.broker_pid)
    controller.forget()
    wait_for("the agent to go", lambda: not target.can_connect(port, family), 60)
    wait_for("its folder to go", lambda: "sojourn-" not in _folders(target), 60)
    if target.kind == "linux":
        def told() -> bool:
            lines = target.exec(["journalctl", "-b", "-o", "cat", "-t", "sojourn-agent", "--no-pager"]).stdout.splitlines()[-2:]
            return (len(lines) == 2 and lines[0].endswith(": no sign of life from the controller for 6 s. The agent removes itself.")
                    and ": the agent has ended and removed the firewall rule sojourn-" in lines[1])

        wait_for("its last words, which it says when the folder is gone", told, 60)


def _kill_agent(target: Any, run: str, *, guard: bool) -> None:
    """The agent's process as nothing can catch it; with its guard or without."""
    executable = f"sojourn-{run}.agent" + (".exe" if target.kind == "windows" else "")
    for word in ("guard", "serve") if guard else ("serve",):  # a guard that saw its agent's end would be in the middle of its work
        target.exec(["pkill", "-9", "-f", f"{executable}['\"]? {word}$"])


def test_an_agent_that_was_killed_with_its_guard_is_cleaned_up_after(controller: Controller, target: Any, family: str) -> None:
    """By the run's end, its firewall rule too, which no way in reaches."""
    info = controller.agent(target, family).deploy()["info"]
    _kill_agent(target, info["run"], guard=True)
    controller.end()


def test_an_agent_that_was_killed_leaves_nothing_though_nobody_comes(controller: Controller, target: Any, family: str) -> None:
    """Its broker is dead too: its guard takes back what it left. A process that is not safe to kill is waited for."""
    agent = controller.agent(target, family, lease_seconds=3600)
    info = agent.deploy()["info"]
    go_on = "/tmp/go-on" if target.kind == "linux" else "/srv/windows/drive_c/go-on"
    line = f"while ! [ -e {go_on} ]; do sleep 0.1; done" if target.kind == "linux" else r"cmd /c for /l %i in (1,0,2) do if exist C:\go-on exit"
    thread = threading.Thread(target=lambda: _ignore(lambda: agent.execute(command_line=line)), daemon=True)
    thread.start()
    wait_for("the process", lambda: _unfinished(target) == 1, 60)
    kill(controller.broker_pid)
    controller.forget()
    _kill_agent(target, info["run"], guard=False)
    wait_for("the port to close", lambda: not target.can_connect(info["port"], family), 60)
    assert f"sojourn-{info['run']}" in _folders(target)
    target.exec(["touch", go_on])
    try:
        wait_for("the folder to go", lambda: "sojourn-" not in _folders(target), 60)
    finally:
        target.exec(["rm", go_on])
    thread.join(30)


@pytest.mark.parametrize("agent_too", [False, True], ids=["lease", "guard"])
def test_a_command_that_may_outlive_its_agent_keeps_nothing_there(controller: Controller, target: Any, family: str, agent_too: bool) -> None:
    """A task's own, such as `tail -f`: nobody comes for it any more, and it goes on, as over Ansible's own ssh."""
    agent = controller.agent(target, family, lease_seconds=3600 if agent_too else 10)
    info = agent.deploy()["info"]
    folder = "/tmp" if target.kind == "linux" else "/srv/windows/drive_c"
    line = "touch /tmp/begun; while ! [ -e /tmp/go-on ]; do sleep 0.1; done; touch /tmp/went-on" if target.kind == "linux" else (
        r'cmd /c "echo x > C:\begun & (for /l %i in (1,0,2) do ping -n 2 ::1 >nul & if exist C:\go-on echo x > C:\went-on & if exist C:\went-on exit)"')
    thread = threading.Thread(target=lambda: _ignore(lambda: agent.execute(command_line=line, may_outlive=True)), daemon=True)
    thread.start()
    try:
        wait_for("the process", lambda: target.exec(["ls", f"{folder}/begun"], check=False).returncode == 0, 60)
        kill(controller.broker_pid)
        controller.forget()
        if agent_too:
            _kill_agent(target, info["run"], guard=False)
        wait_for("the port to close", lambda: not target.can_connect(info["port"], family), 60)
        wait_for("the folder to go", lambda: "sojourn-" not in _folders(target), 60)
        assert target.exec(["ls", f"{folder}/went-on"], check=False).returncode != 0
        target.exec(["touch", f"{folder}/go-on"])
        wait_for("it to go on", lambda: target.exec(["ls", f"{folder}/went-on"], check=False).returncode == 0, 60)
    finally:
        target.exec(["touch", f"{folder}/go-on"])
        thread.join(30)
        target.exec(["sh", "-c", f"rm -f {folder}/begun {folder}/went-on {folder}/go-on"])


@pytest.mark.leaves("files: /root/.ansible*")
@pytest.mark.parametrize("agent_too", [False, True], ids=["lease", "guard"])
def test_a_module_that_outlives_its_agent_keeps_nothing_there(controller: Controller, linux_target: Any, tmp_path: Path, agent_too: bool) -> None:
    """Nor the interpreter that has begun it. What it has begun comes and goes faster than anybody could list it."""
    line = "touch /tmp/begun; until [ -e /tmp/go-on ]; do sleep 0.002; done; touch /tmp/went-on"
    lease = ("-e", f"ansible_sojourn_lease_seconds={3600 if agent_too else 10}")
    run = controller.start("ansible", "linux", *lease, "-m", "shell", "-a", line, output=tmp_path / "output")
    try:
        wait_for("the module", lambda: linux_target.exec(["ls", "/tmp/begun"], check=False).returncode == 0, 60)
        name = Path(_folders(linux_target).split()[0]).name
        assert linux_target.exec(["pgrep", "-f", "^/usr/bin/python3$"]).stdout.split(), "its interpreter is warm"
        broker = _broker_of(run.pid)
        os.kill(broker, signal.SIGSTOP)  # or it would clean up
        kill(run.pid)
        kill(broker)
        run.wait()
        if agent_too:
            linux_target.exec(["pkill", "-9", "-f", "[a]gent serve$"])
        wait_for("the folder to go", lambda: "sojourn-" not in _folders(linux_target), 60)
        wait_for("its unit to go", lambda: name not in linux_target.exec(["systemctl", "list-units", "--all", "--no-legend", "sojourn-*"]).stdout, 60)
        assert linux_target.exec(["pgrep", "-f", "^/usr/bin/python3$"], check=False).stdout.split() == _of_the_shell(linux_target)
        scopes = linux_target.exec(["systemctl", "list-units", "--no-legend", "daemon-*.scope"]).stdout.splitlines()
        assert len(scopes) == 1, scopes
        assert linux_target.exec(["ls", "/tmp/went-on"], check=False).returncode != 0
        linux_target.exec(["touch", "/tmp/go-on"])
        wait_for("it to go on", lambda: linux_target.exec(["ls", "/tmp/went-on"], check=False).returncode == 0, 60)
    finally:
        run.kill()
        run.wait()
        linux_target.exec(["touch", "/tmp/go-on"])
        try:
            wait_for("its end", lambda: linux_target.exec(["pgrep", "-f", "^/bin/sh -c touch /tmp/begun"], check=False).returncode != 0, 60)
        finally:
            linux_target.exec(["rm", "-f", "/tmp/begun", "/tmp/went-on", "/tmp/go-on"])


def _broker_of(pid: int) -> int:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if words[words.index(b"--owner") + 1] == str(pid).encode():
                return int(entry.name)
    raise AssertionError("no broker runs")


def _of_the_shell(target: Any) -> list[str]:
    """The module itself, which waits for its shell: all that may be there of it."""
    shell = target.exec(["pgrep", "-f", "^/bin/sh -c touch /tmp/begun"]).stdout.split()
    return target.exec(["ps", "-o", "ppid=", "-p", ",".join(shell)]).stdout.split()


@pytest.mark.leaves("firewall rules: legacy*", "mounts: *")  # the lab's boot does
def test_a_target_that_reboots_without_its_controller_is_clean(controller: Controller, target: Any) -> None:
    """On Windows the agent starts again with the target, and nobody comes; on Linux it ends with it."""
    agent = controller.agent(target, lease_seconds=15 if target.kind == "windows" else 3600)
    port = agent.deploy()["info"]["port"]
    kill(controller.broker_pid)
    controller.forget()
    target.reboot()
    if target.kind == "windows":
        wait_for("the agent to start again", lambda: target.can_connect(port), 60)
    wait_for("its folder to go", lambda: "sojourn-" not in _folders(target), 60)


def test_a_named_run_that_lives_is_removed_by_force_only(controller: Controller, target: Any) -> None:
    """By another run's agent, as RemoveLeftovers says."""
    other, mine = Direct(controller, target, "ipv6"), Direct(controller, target, "ipv6")
    try:

        def remove(**how: Any) -> set[tuple[str, str]]:
            answer = inside(mine.namespace, lambda: mine.channel.call("RemoveLeftovers", Run=other.run, wait=60, **how))
            return {(item["state"], item["detail"].partition(" has ")[0]) for item in answer or []}

        assert remove() == {("live", "its lease")}
        assert remove(DryRun=True, Force=True) == {("removed", "removed by force; its lease")}
        assert inside(other.namespace, lambda: other.channel.call("GetInfo"))["run"] == other.run
        assert remove(Force=True) == {("removed", "removed by force; its lease")}
        assert remove() == set()
    finally:
        mine.remove()
        other.way_in.release()


def test_a_killed_agent_is_placed_anew_at_once(direct: Direct) -> None:
    """By a way in that does not wait for the guard of the old one: neither harms the other."""
    from ansible_collections.sojourn.deploy.plugins.plugin_utils import channel
    from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import AlreadyPlaced, Config

    config = Config(direct.run, direct.credentials.fingerprint, [direct.way_in.controller_address], {"first": 62286, "last": 62293}, 60)

    def place() -> Any:
        try:
            direct.way_in.place("0")
        except AlreadyPlaced:
            direct.way_in.wait_removed(0)
            direct.way_in.place("0")
        return direct.way_in.start(config)

    for unused_time in range(3):
        _kill_agent(direct.target, direct.run, guard=False)
        ready = inside(direct.namespace, place)
        direct.endpoint = channel.Endpoint(direct.way_in.peer.with_port(ready.port), ready.fingerprint, "62286-62293", direct.target.name)
        direct.channel = channel.Channel(direct.endpoint, direct.credentials.context())
        assert inside(direct.namespace, lambda: direct.channel.call("GetInfo"))["process_id"] == ready.process_id
    deadline = time.monotonic() + 3  # what an old guard, or one who deletes for it, could still do would show by then
    while time.monotonic() < deadline:
        direct.connect().close()
        assert f"sojourn-{direct.run}" in _folders(direct.target)
    if direct.target.kind == "linux":
        assert direct.target.exec(["systemctl", "is-active", f"sojourn-{direct.run}"]).stdout.strip() == "active"


def _ignore(action: Any) -> None:
    from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

    with contextlib.suppress(SojournError, OSError, EOFError):
        action()


def _unfinished(target: Any) -> int:
    """What the one agent there has written into its lease."""
    folder = _folders(target).split()[0]
    return json.loads(target.exec(["cat", f"{folder}/lease.json"]).stdout)["unfinished"]


@pytest.mark.leaves("firewall rules: legacy*", "mounts: *")  # the lab's boot does
def test_a_target_that_loses_its_power_boots_without_the_agent(controller: Controller, linux_target: Any) -> None:
    """Its broker is dead too. What is in memory is gone; the folder goes by systemd-tmpfiles."""
    controller.agent(linux_target, lease_seconds=3600, remote_folders=("/var/tmp",)).deploy()
    assert "tmpfiles.d/sojourn-" in linux_target.exec(["sh", "-c", "ls /etc/tmpfiles.d/*"]).stdout
    kill(controller.broker_pid)
    controller.forget()
    linux_target.cut()
    assert _folders(linux_target) == ""


def _folders(target: Any) -> str:
    places = "/tmp /var/tmp /root" if target.kind == "linux" else "/srv/windows/drive_c/windows"
    return target.exec(["sh", "-c", f"ls -d {places.replace(' ', '/sojourn-* ')}/sojourn-*"], check=False).stdout


def test_the_lease_is_renewed(controller: Controller, target: Any) -> None:
    """The agent lives for several times as long as it lasts, and it begins anew each time."""
    agent = controller.agent(target, lease_seconds=6)
    process = agent.deploy()["info"]["process_id"]
    seen: list[float] = []
    deadline = time.monotonic() + 18
    while time.monotonic() < deadline:
        info = agent.info()
        assert info["process_id"] == process
        seen.append(info["lease_remaining_seconds"])
    assert sum(later > before for before, later in itertools.pairwise(seen)) >= 3


# Leftovers of other runs


def test_cleanup_of_an_untouched_target_changes_nothing(controller: Controller, target: Any, family: str) -> None:
    assert controller.agent(target, family).cleanup() == {"changed": False, "leftovers": []}


def test_cleanup_removes_the_dead_and_spares_the_living(controller: Controller, target: Any, family: str) -> None:
    living_agent = controller.agent(target, family)
    living = living_agent.deploy()["info"]
    controller.new_run()
    # A run whose broker was killed, and its agent and its guard too: nothing will end it, until a run deploys again or cleans up.
    dead = controller.agent(target, family, lease_seconds=3600).deploy()["info"]
    kill(controller.broker_pid)
    controller.forget(controller.folders[-1])
    _kill_agent(target, dead["run"], guard=True)
    controller.new_run()
    agent = controller.agent(target, family)
    would = agent.cleanup(check=True)
    assert would["changed"] is True
    done = agent.cleanup()
    assert done["changed"] is True
    states = {(item["run"], item["state"]) for item in done["leftovers"]}
    assert (dead["run"], "removed") in states
    assert all(state == "live" for run, state in states if run == living["run"]), states
    assert living_agent.info()["process_id"] == living["process_id"]
    again = agent.cleanup()
    assert again["changed"] is False
    assert {item["run"] for item in again["leftovers"]} <= {living["run"]}
    assert not agent.present()
    living_agent.remove()
