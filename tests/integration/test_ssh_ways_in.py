"""SSH as it is in the field: settings of OpenSSH, jump hosts, several steps to sign in, su, sudo at a terminal, any login shell, any host key policy.

Two Linux targets: the second is the first's jump host.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import network, preflight
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from tests.integration.conftest import Controller
from tests.integration.playing import play
from tests.integration.test_bad_luck_ways_in import refused
from tests.integration.test_core_versions import marked
from tests.lab import Lab
from tests.lab.namespaces import inside
from tests.lab.waiting import wait_for
from tests.parallel import worker_of

pytestmark = pytest.mark.xdist_group("ssh")  # one lab more is enough

# What changes of an account leave beside the files themselves.
ACCOUNTS_LEAVE = ("files: /etc/*-", "files: /root/.*", "files: /home/*/.*")


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab with a jump host."""
    if given := os.environ.get("SOJOURN_TEST_LAB"):
        if Lab(given).settings["linux"] < 2:
            pytest.skip("the given lab has no second Linux target")
        yield Lab(given)
        return
    lab = Lab(f"ssh{worker_of(request.config)}")
    lab.down()  # what an interrupted run left
    lab.up(linux=2, windows=0)
    try:
        yield lab
    finally:
        lab.down()


@pytest.fixture
def jump_host(lab: Lab) -> Any:
    """The other target."""
    return lab.target("linux2")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A key of the controller's user."""
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def write(target: Any, path: str, text: str) -> None:
    target.exec(["sh", "-c", f"cat > {path}"], input=text)


def restart_sshd(target: Any) -> None:
    target.exec(["sh", "-c", "systemctl reset-failed ssh && systemctl restart ssh"])  # systemd counts starts


@contextlib.contextmanager
def sshd(controller: Controller, target: Any, **settings: str) -> Iterator[None]:
    """Settings of its sshd, before all others."""
    path = "/etc/ssh/sshd_config.d/000-test.conf"
    write(target, path, "".join(f"{name} {value}\n" for name, value in settings.items()))
    try:
        restart_sshd(target)
        yield
    finally:
        controller.end()
        target.exec(["rm", "-f", path])
        restart_sshd(target)


@contextlib.contextmanager
def admitted(controller: Controller, key: Path, *accounts: tuple[Any, str]) -> Iterator[None]:
    """The key may sign in as these users of these targets."""
    for target, user in accounts:
        home = "/root" if user == "root" else f"/home/{user}"
        script = f"umask 077; mkdir -p {home}/.ssh && cat > {home}/.ssh/authorized_keys && chown -R {user}: {home}/.ssh"
        target.exec(["sh", "-c", script], input=key.with_suffix(".pub").read_text())
    try:
        yield
    finally:
        controller.end()
        for target, user in accounts:
            target.exec(["rm", "-rf", "/root/.ssh" if user == "root" else f"/home/{user}/.ssh"])


@contextlib.contextmanager
def closed(controller: Controller, target: Any) -> Iterator[None]:
    """Its port 22 is closed to the controller."""
    here = controller.lab.network.addresses(2)
    target.exec(["nft", "-f", "-"], input=(
        "table inet test { chain input { type filter hook input priority -10; policy accept;\n"
        f"ip6 saddr {here.ula} tcp dport 22 reject\nip6 saddr {here.link_local} tcp dport 22 reject\nip saddr {here.ipv4} tcp dport 22 reject\n}}\n}}\n"))
    try:
        yield
    finally:
        controller.end()
        target.exec(["nft", "delete", "table", "inet", "test"])


def address_of(target: Any, family: str = "ipv6") -> str:
    return target.addresses.as_seen_from_the_lab(family)


def settings(folder: Path, lab: Lab, key: Path, text: str) -> str:
    """A file of OpenSSH's settings, by which the lab's hosts are known and the key is offered."""
    path = folder / "ssh_config"
    path.write_text(f"{text}\nHost *\n  UserKnownHostsFile {lab.known_hosts}\n  IdentityFile {key}\n  IdentitiesOnly yes\n")
    return str(path)


# Jump hosts


@pytest.mark.leaves(*ACCOUNTS_LEAVE)
@pytest.mark.parametrize("how", ["settings", "common args", "extra args", "ProxyCommand"])
def test_over_a_jump_host(controller: Controller, linux_target: Any, jump_host: Any, family: str, key: Path, tmp_path: Path, how: str) -> None:
    """The target's SSH is closed to the controller. The agent is placed, and goes; who comes, the target says itself."""
    from ansible_collections.sojourn.deploy.plugins.plugin_utils import session
    from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import Config

    target, jump = address_of(linux_target, family), address_of(jump_host, family)
    leads = {"settings": f"Host {target}\n  ProxyJump gate\n", "ProxyCommand": f"Host {target}\n  ProxyCommand ssh -F %d/none -W [%h]:%p gate\n"}
    text = f"Host gate\n  HostName {jump}\n  User visitor\n  HostKeyAlias {jump}\n"
    if how == "ProxyCommand":
        inner = tmp_path / "inner"
        inner.write_text(f"{text}  UserKnownHostsFile {controller.lab.known_hosts}\n  IdentityFile {key}\n")
        leads["ProxyCommand"] = f"Host {target}\n  ProxyCommand ssh -F {inner} -W [%h]:%p gate\n"
    options = {"common args": {"ssh_common_args": "-J gate"}, "extra args": {"ssh_extra_args": "-o ProxyJump=gate"}}.get(how, {})
    file = settings(tmp_path, controller.lab, key, text + leads.get(how, ""))
    with closed(controller, linux_target), admitted(controller, key, (jump_host, "visitor")):
        assert refused(controller, linux_target, family).code == "SD-203"
        controller.new_run()
        run = os.urandom(6).hex()
        way_in = session.make_way_in(controller.options(linux_target, family, config_file=file, **options), run)

        def there_and_back() -> None:
            try:
                way_in.connect()
                assert way_in.led and way_in.login_user == "root"
                way_in.keep()
                # What the kernel holds itself is the connection to the jump host, and it is told when to give that up.
                assert [jump._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for jump in way_in._jumps] == (
                    [] if how == "ProxyCommand" else [network.SILENCE_SECONDS * 1000])
                way_in.place("0")
                assert way_in.controller_address == jump
                ready = way_in.start(Config(run, "0" * 64, [way_in.controller_address], {"first": 62286, "last": 62293}, 60))
                assert linux_target.can_connect(ready.port, family, source="linux2") and not linux_target.can_connect(ready.port, family)
                if how != "ProxyCommand":
                    way_in._client.open_channel(target, ready.port, 10).close()  # what goes this way goes over the jump host
                way_in.undo()
                assert not linux_target.can_connect(ready.port, family, source="linux2")
                assert way_in.wait_removed() == [f"service sojourn-{run}", f"folder sojourn-{run}"]
            finally:
                way_in.release()

        inside(controller.namespace, there_and_back)


@pytest.mark.leaves(*ACCOUNTS_LEAVE, "files: /root/.ansible*", "files: /tmp/*")
def test_tasks_over_a_jump_host(controller: Controller, linux_target: Any, jump_host: Any, family: str, key: Path, tmp_path: Path) -> None:
    """All that is done on the target goes inside the SSH connection, whatever the option says: no port of the target's is open to anybody."""
    file = settings(tmp_path, controller.lab, key, f"Host gate\n  HostName {address_of(jump_host, family)}\n  User visitor\n")
    more = {"config_file": file, "ssh_common_args": "-J gate"}
    words = ["-e", json.dumps({"ansible_sojourn_config_file": file, "ansible_ssh_common_args": "-J gate"})]
    large = tmp_path / "large"
    large.write_bytes(os.urandom(3 << 20))
    with closed(controller, linux_target), admitted(controller, key, (jump_host, "visitor")):
        agent = controller.agent(linux_target, family, **more)
        info = agent.deploy()["info"]
        assert info["transport"] == "tunnel" and not info.get("firewall_rule") and agent.list_ports() == []
        assert agent.put_file(str(large), "large")["size"] == 3 << 20
        agent.get_file("large", str(tmp_path / "back"))
        assert (tmp_path / "back").read_bytes() == large.read_bytes()
        agent.remove()
        played = play(controller, tmp_path, [
            {"name": "raw", "ansible.builtin.raw": "echo $SSH_CONNECTION"},
            {"name": "module", "ansible.builtin.command": {"cmd": "cat", "stdin": "through a module"}},
            {"name": "becomes", "ansible.builtin.command": "id -un", "become": True, "become_user": "visitor"},
        ], *words, family=family).well()
        assert played["linux1", "raw"]["stdout"].split()[0] == address_of(jump_host, family).partition("%")[0]
        assert played["linux1", "module"]["stdout"] == "through a module" and played["linux1", "becomes"]["stdout"] == "visitor"


@pytest.mark.leaves(*ACCOUNTS_LEAVE)
def test_several_jump_hosts_each_by_its_own_settings(controller: Controller, linux_target: Any, jump_host: Any, family: str, tmp_path: Path, key: Path) -> None:
    """Out, and back to the second target: users, keys, known_hosts and policies differ from hop to hop."""
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", other], check=True)
    first, second = address_of(jump_host, family), address_of(linux_target, family)
    learnt = tmp_path / "learnt"
    file = tmp_path / "ssh_config"
    file.write_text(f"""
Host one
  HostName {first}
  User visitor
  IdentityFile {key}
  UserKnownHostsFile {controller.lab.known_hosts}
Host two
  HostName {second}
  User operator
  IdentityFile {other}
  StrictHostKeyChecking accept-new
  UserKnownHostsFile {learnt}
  HashKnownHosts no
Host {first}
  ProxyJump one,two
  UserKnownHostsFile {tmp_path}/none
""")
    with admitted(controller, key, (jump_host, "visitor")), admitted(controller, other, (linux_target, "operator")):
        agent = controller.agent(jump_host, family, config_file=str(file), controller_address=address_of_controller(controller, family))
        steps: list[dict[str, Any]] = []
        agent.wrapped.on_step = steps.append
        info = agent.deploy()["info"]
        assert [step["name"] for step in steps[:7]] == ["resolve", "connect", "key exchange", "jump", "key exchange", "jump", "key exchange"]
        assert agent.execute(command_line="echo $SSH_CONNECTION", user="root")["stdout"].split()[0] == second.encode().partition(b"%")[0]
        assert info["account"] == "root" and learnt.read_text().startswith(f"{second} ")
        agent.remove()


def address_of_controller(controller: Controller, family: str) -> str:
    here = controller.lab.network.addresses(2)
    return here.ula if family == "ipv6" else here.ipv4


@pytest.mark.leaves(*ACCOUNTS_LEAVE)
def test_what_keeps_one_from_getting_over_a_jump_host(controller: Controller, linux_target: Any, jump_host: Any, key: Path, tmp_path: Path) -> None:
    jump = address_of(jump_host)
    gate = f"Host gate\n  HostName {jump}\n  User visitor\n"

    def error(text: str, **options: Any) -> SojournError:
        controller.new_run()
        file = settings(tmp_path, controller.lab, key, text)
        return refused(controller, linux_target, config_file=file, **{"ssh_common_args": "-J gate", **options})

    (tmp_path / "changed").write_text(f"{jump} {key.with_suffix('.pub').read_text()}")
    found = error(f"{gate}  UserKnownHostsFile {tmp_path}/none\n")
    assert found.code == "SD-303" and jump in str(found) and f"{tmp_path}/none" in str(found)
    assert error(f"{gate}  UserKnownHostsFile {tmp_path}/changed\n  StrictHostKeyChecking accept-new\n").code == "SD-304"
    found = error(f"{gate}  UserKnownHostsFile {tmp_path}/none\n", host_key_checking=False)
    assert found.code == "SD-303", "what the inventory says of the target's key is not said of the jump host's"
    found = error(gate)
    assert found.code == "SD-301" and "the jump host gate: it took none of" in str(found) and "'visitor'" in str(found)
    assert error("Host gate\n  HostName gate\n  ProxyJump gate\n").code == "SD-108"
    found = error(gate, ssh_common_args="-o ProxyCommand='sh -c \"echo the gate is shut >&2; exit 1\"'")
    assert found.code == "SD-205" and "its ProxyCommand says: the gate is shut" in str(found)
    with admitted(controller, key, (jump_host, "visitor")):
        found = error(gate, port=2222)
        assert found.code == "SD-206" and "gate" in str(found) and "2222" in str(found)
        with sshd(controller, jump_host, AllowTcpForwarding="no"):
            found = error(gate)
            assert found.code == "SD-206" and "it forwards nothing there" in str(found)


@pytest.mark.leaves(*ACCOUNTS_LEAVE)
def test_diagnosis_goes_over_the_jump_host_too(controller: Controller, linux_target: Any, jump_host: Any, key: Path, tmp_path: Path) -> None:
    file = settings(tmp_path, controller.lab, key, f"Host gate\n  HostName {address_of(jump_host)}\n  User visitor\n")
    words = ["-e", json.dumps({"ansible_sojourn_config_file": file, "ansible_ssh_common_args": "-o ProxyJump=gate"})]
    task = {"name": "look", "sojourn.deploy.debug_connection": {"sign_in": True}}
    check = {"name": "check", "sojourn.deploy.preflight": {}}
    with closed(controller, linux_target), admitted(controller, key, (jump_host, "visitor")):
        played = play(controller, tmp_path, [task, check], *words)
        result = played["linux1", "look"]
        found = {(finding["section"], finding["name"]): finding["value"] for finding in result["findings"]}
        assert found["address", "way"] == [f"visitor@[{address_of(jump_host)}]", f"root@[{address_of(linux_target)}]"]
        assert found["address", "taken"] == address_of(jump_host) and found["sign-in", "jump hosts"] == [f"visitor@[{address_of(jump_host)}]"]
        assert found["sign-in", "outcome"] == "signed in" and found["sign-in", "rights"] == "root" and "error" not in result
        checks = {entry["check"]: entry["state"] for entry in played["linux1", "check"]["checks"]}
        assert checks["name"] == checks["sign-in"] == checks["admin rights"] == "ok", checks
        assert found["agent", "transport"].startswith("tunnel: ")
        assert [entry["detail"] for entry in played["linux1", "check"]["checks"] if entry["check"] == "firewall"] == [preflight.NO_RULE]


# What the settings say, as for Ansible's own ssh


@pytest.fixture
def users_folder() -> Iterator[Path]:
    """~/.ssh, where OpenSSH has it: something to mount another one on. Not everybody has one."""
    folder = Path(pwd.getpwuid(os.getuid()).pw_dir, ".ssh")
    made = not folder.exists()
    folder.mkdir(mode=0o700, exist_ok=True)
    yield folder
    if made:
        with contextlib.suppress(OSError):  # another process of the tests has it, or has removed it
            folder.rmdir()


@pytest.mark.leaves(*ACCOUNTS_LEAVE, "files: /tmp/*", "files: /home/operator/.ansible*")
def test_the_users_own_settings_count_as_for_ansibles_own_ssh(
    controller: Controller, linux_target: Any, family: str, key: Path, tmp_path: Path, users_folder: Path,
) -> None:
    """The inventory has a name and nothing more. ~/.ssh, of which OpenSSH's place is not $HOME's, is another folder for this command alone."""
    home = tmp_path / "ssh"
    home.mkdir(mode=0o700)
    address = address_of(linux_target, family)
    (home / "config").write_text(
        f"Include more\nMatch originalhost web* user operator\n  HostName {address}\n  IdentityFile ~/.ssh/key\n  HostKeyAlias fleet\n")
    (home / "more").write_text("Host web1\n  User operator\n")
    for path in (home / "config", home / "more"):
        path.chmod(0o600)
    (home / "key").write_bytes(key.read_bytes())
    (home / "key").chmod(0o600)
    (home / "known_hosts").write_text("".join(f"{line}\n" for line in linux_target.known_hosts("fleet")))
    inventory = tmp_path / "inventory.json"
    inventory.write_text(json.dumps({"all": {"hosts": {"web1": {}}}}))
    said = {}
    with admitted(controller, key, (linux_target, "operator")):
        for connection in ("ansible.builtin.ssh", "sojourn.deploy.ssh"):
            words = ["ansible", "-i", str(inventory), "web1", "-c", connection, "-m", "ansible.builtin.command", "-a", "id -un", "-o"]
            mounted = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f'mount --bind {home} {users_folder} && exec "$@"', "sh", *words]
            done = controller.run(*mounted, family=family, environment={"HOME": str(users_folder.parent), "ANSIBLE_SSH_ARGS": "-o ControlMaster=no"})
            assert done.returncode == 0, done.stdout + done.stderr
            said[connection] = re.sub(r".*\(stdout\) ", "", done.stdout.strip().splitlines()[-1])
    assert set(said.values()) == {"operator"}


# Host keys: each row as Ansible's own ssh and as this connection has it


def _parity_rows(lab: Lab, target: Any, folder: Path, certificate: str) -> dict[str, dict[str, Any]]:
    """Hosts of an inventory by their names; known_hosts of each is made here."""
    address, zoned = address_of(target), address_of(target, "link-local")
    keys = (target.folder / "host_keys").read_text().split("\n")[:-1]
    authority, stranger = (folder / "authority.pub").read_text(), (folder / "stranger.pub").read_text()
    plain = "".join(f"{address} {one}\n" for one in keys)
    rows: dict[str, dict[str, Any]] = {}

    def row(name: str, known: str, host: str = address, **variables: Any) -> None:
        file = folder / name
        file.write_text(known)
        args = f"-o ControlMaster=no -o UserKnownHostsFile={file} {variables.pop('args', '')}"
        rows[name] = {"ansible_host": host, "ansible_ssh_args": args, **variables}

    row("known", plain)
    row("unknown", "")
    if certificate != "none":
        row("authority", f"@cert-authority * {authority}")
        row("authority_and_key", f"@cert-authority * {authority}{plain}")
        row("authority_and_changed", f"@cert-authority * {authority}{address} {stranger}")
        row("authority_accept_new", f"@cert-authority * {authority}", args="-o StrictHostKeyChecking=accept-new")
        row("authority_off", f"@cert-authority * {authority}", ansible_host_key_checking=False)
        row("authority_of_others", f"@cert-authority *.example {authority}")
        row("authority_alias", f"@cert-authority fleet {authority}", args="-o HostKeyAlias=fleet")
        row("authority_revoked", f"@cert-authority * {authority}@revoked * {authority}")
        row("authority_revoked_accept_new", f"@cert-authority * {authority}@revoked * {authority}", args="-o StrictHostKeyChecking=accept-new")
        row("stranger_authority", f"@cert-authority * {stranger}")
        row("authority_port", f"@cert-authority [{address}]:2222 {authority}", ansible_port=2222)
        row("authority_known_without_port", f"@cert-authority {address} {authority}", ansible_port=2222)
        return rows
    row("known_by_pattern", "".join(f"fd73:* {one}\n" for one in keys))
    row("known_but_negated", "".join(f"*,!{address} {one}\n" for one in keys))
    row("hashed", plain)
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", folder / "hashed"], check=True, capture_output=True)
    row("changed", f"{address} {stranger}")
    row("one_key_of_two", f"{address} {keys[1]}\n")
    row("revoked", plain + "".join(f"@revoked * {one}\n" for one in keys))
    (folder / "revoked_file").write_text("".join(f"{one}\n" for one in keys))
    row("revoked_by_file", plain, args=f"-o RevokedHostKeys={folder / 'revoked_file'}")
    row("accept_new_unknown", "", args="-o StrictHostKeyChecking=accept-new")
    row("accept_new_changed", f"{address} {stranger}", args="-o StrictHostKeyChecking=accept-new")
    row("accept_new_revoked", "".join(f"@revoked * {one}\n" for one in keys), args="-o StrictHostKeyChecking=accept-new")
    row("off_unknown", "", ansible_host_key_checking=False)
    row("off_changed", f"{address} {stranger}", ansible_host_key_checking=False)
    row("off_revoked", "".join(f"@revoked * {one}\n" for one in keys), ansible_host_key_checking=False)
    row("off_revoked_by_file", "", args=f"-o RevokedHostKeys={folder / 'revoked_file'}", ansible_host_key_checking=False)
    row("alias", "".join(f"fleet {one}\n" for one in keys), args="-o HostKeyAlias=fleet")
    row("alias_unknown", plain, args="-o HostKeyAlias=fleet")
    row("port", "".join(f"[{address}]:2222 {one}\n" for one in keys), ansible_port=2222)
    row("port_known_without", plain, ansible_port=2222)
    row("port_known_of_another", "".join(f"[{address}]:2223 {one}\n" for one in keys), ansible_port=2222)
    row("port_changed", f"[{address}]:2222 {stranger}{plain}", ansible_port=2222)
    row("zone", "".join(f"{zoned} {one}\n" for one in keys), host=zoned)
    row("zone_unknown", "".join(f"{zoned.partition('%')[0]} {one}\n" for one in keys), host=zoned)
    row("ipv4", "".join(f"{address_of(target, 'ipv4')} {one}\n" for one in keys), host=address_of(target, "ipv4"))
    row("ipv4_unknown", plain, host=address_of(target, "ipv4"))
    return rows


@pytest.mark.leaves(*ACCOUNTS_LEAVE)
@pytest.mark.parametrize("certificate", ["none", "good", "of another name", "expired"])
def test_host_keys_are_judged_as_by_ansibles_own_ssh(controller: Controller, linux_target: Any, key: Path, tmp_path: Path, certificate: str) -> None:
    """A table: each row is a host of the inventory; both connections have the same variables, and take, or refuse, the same."""
    from ansible_collections.sojourn.deploy.plugins.plugin_utils import session

    for name in ("authority", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", tmp_path / name], check=True)
    public = tmp_path / "host.pub"
    public.write_text(linux_target.exec(["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).stdout)
    names = "another.example" if certificate == "of another name" else f"{address_of(linux_target)},{address_of(linux_target, 'ipv4')},fleet"
    span = "-2h:-1h" if certificate == "expired" else "-5m:+1h"
    signing = ["ssh-keygen", "-q", "-s", tmp_path / "authority", "-h", "-I", "lab", "-n", names, "-V", span, public]
    subprocess.run(signing, check=True, capture_output=True)
    write(linux_target, "/etc/ssh/test-cert.pub", (tmp_path / "host-cert.pub").read_text())
    rows = _parity_rows(controller.lab, linux_target, tmp_path, certificate)
    inventory = tmp_path / "inventory.json"
    common = {"ansible_user": "root", "ansible_ssh_private_key_file": str(key), "ansible_connection": "ansible.builtin.ssh"}
    inventory.write_text(json.dumps({"all": {"hosts": rows, "vars": common}}))
    kept = {name: (tmp_path / name).read_bytes() for name in rows}
    linux_target.exec(["nft", "insert", "rule", "inet", "filter", "input", "tcp", "dport", "2222", "accept"])
    try:
        with admitted(controller, key, (linux_target, "root")), sshd(
            controller, linux_target, HostCertificate="none" if certificate == "none" else "/etc/ssh/test-cert.pub", Port="22\nPort 2222", MaxStartups="200"
        ):
            done = controller.run(
                "ansible", "-i", str(inventory), "all", "-m", "ansible.builtin.raw", "-a", "echo in", "-o", "-f", "4", timeout=300,
                environment={"SSH_AUTH_SOCK": "", "ANSIBLE_HOST_KEY_CHECKING": "true"})
            theirs = {line.split()[0]: "CHANGED" in line for line in done.stdout.splitlines() if line.split() and line.split()[0] in rows}
            assert set(theirs) == set(rows), done.stdout + done.stderr
            ours: dict[str, bool] = {}
            codes: dict[str, str] = {}
            for name, variables in rows.items():
                (tmp_path / name).write_bytes(kept[name])  # accept-new wrote to it
                options = controller.options(
                    linux_target, address=variables["ansible_host"], password=None, key_file=str(key), known_hosts=None, ssh_args=variables["ansible_ssh_args"],
                    port=variables.get("ansible_port"), host_key_checking=variables.get("ansible_host_key_checking", True))
                way_in = session.make_way_in(options, "0" * 12)
                try:
                    inside(controller.namespace, way_in.connect)
                    ours[name] = True
                except SojournError as error:
                    assert error.code in ("SD-303", "SD-304", "SD-307"), error
                    ours[name], codes[name] = False, error.code
                finally:
                    way_in.release()
    finally:
        linux_target.exec(["sh", "-c", "rm -f /etc/ssh/test-cert.pub; nft -f /etc/nftables.conf"])
    assert ours == theirs, {name: (ours[name], theirs[name], codes.get(name)) for name in rows if ours[name] != theirs[name]}
    if certificate in ("none", "good"):
        assert sum(ours.values()) not in (0, len(ours))


@pytest.mark.leaves(*ACCOUNTS_LEAVE)
def test_who_may_be_in_between_gets_no_password(controller: Controller, linux_target: Any, key: Path, tmp_path: Path) -> None:
    """With host key checking off, a key that has changed is taken; for a sign-in by key, and for no other."""
    known = tmp_path / "known_hosts"
    known.write_text(f"{address_of(linux_target)} {key.with_suffix('.pub').read_text()}")
    error = refused(controller, linux_target, known_hosts=str(known), host_key_checking=False)
    assert error.code in ("SD-301", "SD-302") and "no password is sent" in str(error)
    with admitted(controller, key, (linux_target, "root")):
        controller.new_run()
        agent = controller.agent(linux_target, known_hosts=str(known), host_key_checking=False, key_file=str(key), password=None)
        agent.deploy()
        agent.remove()


@pytest.mark.leaves(*ACCOUNTS_LEAVE)
@pytest.mark.parametrize("checks", ["by option", "by settings that have keys alone"])
def test_who_may_be_in_between_gets_no_password_on_the_way_to_root(
    controller: Controller, linux_target: Any, key: Path, tmp_path: Path, checks: str
) -> None:
    """Whoever took the sign-in by key may also ask for a password as sudo does, or su."""
    known = tmp_path / "known_hosts"
    known.write_text(f"{address_of(linux_target)} {key.with_suffix('.pub').read_text()}")
    options = {"known_hosts": str(known), "host_key_checking": False, "key_file": str(key)}
    if checks != "by option":
        options["ssh_common_args"] = "-o PreferredAuthentications=publickey"

    def error(**more: Any) -> str:
        controller.new_run()
        found = refused(controller, linux_target, **{**options, **more})
        assert found.code == "SD-305", found
        return str(found)

    with admitted(controller, key, *((linux_target, user) for user in ("deployer", "visitor", "operator"))):
        assert "sudo asks for a password; its host key is not the one that is known, so no password is sent" in error(user="deployer")
        assert "no password is sent" in error(user="deployer", become_password=linux_target.password("deployer"))
        su = {"user": "visitor", "root_method": "su", "become_password": linux_target.password("root")}
        assert "su asks for a password; its host key is not the one that is known, so no password is sent" in error(**su)
        write(linux_target, "/etc/sudoers.d/zz-test", "Defaults requiretty\n")
        try:
            assert "no password is sent" in error(user="deployer")
        finally:
            linux_target.exec(["rm", "/etc/sudoers.d/zz-test"])
        controller.new_run()
        agent = controller.agent(linux_target, **options, user="operator")  # whose sudo asks for none
        agent.deploy()
        agent.remove()


@pytest.mark.leaves(*ACCOUNTS_LEAVE, "files: /tmp/*", "files: /root/.ansible*")
def test_relative_paths_lead_from_where_ansible_was_started(controller: Controller, linux_target: Any, key: Path, tmp_path: Path) -> None:
    """The files are in the working directory of ansible's command. One of them knows another key of the host: that is no unknown host."""
    address = address_of(linux_target)
    (tmp_path / "ssh.cfg").write_text(
        f"Host web1\n  HostName {address}\n  User root\n  IdentityFile ./key\n  HostKeyAlias web1\n  ProxyCommand ./lead '[%h]:%p'\n")
    (tmp_path / "lead").write_text(f"#!/bin/sh\nexec ssh -F none -o UserKnownHostsFile={controller.lab.known_hosts} -i key -W \"$1\" root@{address}\n")
    (tmp_path / "lead").chmod(0o755)
    known = tmp_path / "known_hosts"
    inventory = tmp_path / "inventory.json"
    args = "-o ControlMaster=no -F ./ssh.cfg -o UserKnownHostsFile=./known_hosts -o StrictHostKeyChecking=accept-new"
    inventory.write_text(json.dumps({"all": {"hosts": {"web1": {"ansible_ssh_args": args}}}}))

    def said(connection: str) -> tuple[int, str]:
        words = ["ansible", "-i", str(inventory), "web1", "-c", connection, "-m", "ansible.builtin.command", "-a", "id -un", "-o"]
        mark = str(tmp_path)
        done = controller.run("sh", "-c", f'cd {tmp_path} && exec "$@"', "sh", *words, environment={"SOJOURN_TEST_MARK": mark})
        wait_for("its broker to end, which reads the files once more", lambda: not marked(mark), 60)
        return done.returncode, done.stdout + done.stderr

    with admitted(controller, key, (linux_target, "root")):
        for connection in ("ansible.builtin.ssh", "sojourn.deploy.ssh"):
            known.write_text("".join(f"{line}\n" for line in linux_target.known_hosts("web1")))
            code, text = said(connection)
            assert code == 0 and "(stdout) root" in text, text
            known.write_text(f"web1 {key.with_suffix('.pub').read_text()}")
            code, text = said(connection)
            assert code != 0 and known.read_text().count("\n") == 1, text
            if connection == "sojourn.deploy.ssh":
                assert "SD-304" in text, text


# Signing in


@pytest.mark.leaves(*ACCOUNTS_LEAVE)
@pytest.mark.parametrize(("methods", "password_method"), [
    ("any", False), ("publickey,keyboard-interactive", False), ("publickey,password", True), ("password,publickey", True),
    ("keyboard-interactive,publickey", False),
])  # fmt: skip
def test_every_step_of_the_sign_in(
    controller: Controller, linux_target: Any, family: str, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, methods: str, password_method: bool
) -> None:
    """The host's PAM asks by keyboard-interactive; and what it wants besides is given as well, be the key named or not."""
    by_password = "yes" if password_method else "no"
    wanted = {"PasswordAuthentication": by_password, "KbdInteractiveAuthentication": "yes", "UsePAM": "yes", "AuthenticationMethods": methods}
    (tmp_path / "home/.ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with admitted(controller, key, (linux_target, "root")), sshd(controller, linux_target, **wanted):
        if methods != "any":
            error = refused(controller, linux_target, family)
            assert error.code == "SD-301" and "publickey" in str(error), error
            controller.new_run()
            error = refused(controller, linux_target, family, key_file=str(key), password=None)
            assert error.code == "SD-301" and ("password" in str(error) or "keyboard-interactive" in str(error)), error
        named = settings(tmp_path, controller.lab, key, "")
        found = tmp_path / "home/.ssh/id_ed25519"
        for options in ({"key_file": str(key)}, {"config_file": named}, {}):
            if not options:
                found.write_bytes(key.read_bytes())
                found.chmod(0o600)
            controller.new_run()
            agent = controller.agent(linux_target, family, **options)
            agent.deploy()
            agent.remove()


def test_a_wrong_password_by_keyboard_interactive(controller: Controller, linux_target: Any, family: str) -> None:
    with sshd(controller, linux_target, PasswordAuthentication="no", KbdInteractiveAuthentication="yes", UsePAM="yes"):
        error = refused(controller, linux_target, family, password="Wrong1!x")
        assert error.code == "SD-301" and "keyboard-interactive" in str(error) and "Wrong1!x" not in str(error)


@pytest.mark.leaves(*ACCOUNTS_LEAVE)
def test_only_what_the_settings_name_is_offered(
    controller: Controller, linux_target: Any, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IdentitiesOnly, IdentityAgent and a public key whose private one the SSH agent has; the agent has more keys than the host has patience."""
    place = f"/tmp/sojourn-test-agent-{os.getpid()}"
    keys = subprocess.Popen(["ssh-agent", "-D", "-a", place], stdout=subprocess.PIPE)
    try:
        assert keys.stdout and keys.stdout.readline()
        others = [tmp_path / f"other{number}" for number in range(7)]
        for path in others:
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        subprocess.run(["ssh-add", "-q", *others, key], check=True, env={**os.environ, "SSH_AUTH_SOCK": place})
        monkeypatch.setenv("SSH_AUTH_SOCK", place)
        with admitted(controller, key, (linux_target, "root")):
            assert refused(controller, linux_target, password=None).code == "SD-301"
            for more in ("  IdentitiesOnly yes\n", f"  IdentityAgent {place}\n  IdentitiesOnly yes\n", ""):
                file = tmp_path / "ssh_config"
                file.write_text(f"Host *\n  IdentityFile {key}.pub\n{more}")
                controller.new_run()
                agent = controller.agent(linux_target, password=None, config_file=str(file))
                agent.deploy()
                agent.remove()
            file.write_text(f"Host *\n  IdentityFile {key}.pub\n  IdentityAgent none\n")
            controller.new_run()
            assert refused(controller, linux_target, password=None, config_file=str(file)).code == "SD-302"
    finally:
        controller.end()
        keys.kill()
        keys.wait()
        Path(place).unlink(missing_ok=True)


# Becoming root


def test_root_by_su(controller: Controller, linux_target: Any, family: str) -> None:
    """The login user has no sudo; su asks at a terminal, and gets root's password there."""
    agent = controller.agent(linux_target, family, user="visitor", root_method="su", become_password=linux_target.password("root"))
    assert agent.deploy()["info"]["account"] == "root"
    assert agent.execute(command_line="id -un", user="visitor")["stdout"] == b"visitor\n"
    removed = agent.remove()
    assert removed["changed"] is True


def test_su_that_refuses(controller: Controller, linux_target: Any, family: str) -> None:
    error = refused(controller, linux_target, family, user="visitor", root_method="su", become_password="Wrong1!x")
    assert error.code == "SD-305" and "su refused the password" in str(error) and "ansible_become_method: su" in str(error)
    assert "Wrong1!x" not in str(error)
    controller.new_run()
    error = refused(controller, linux_target, family, user="visitor", root_method="su")
    assert error.code == "SD-305" and "su asks for root's password and none was given" in str(error)


def test_su_where_there_is_no_sudo(controller: Controller, linux_target: Any) -> None:
    linux_target.exec(["chmod", "a-x", "/usr/bin/sudo"])
    try:
        assert refused(controller, linux_target, user="visitor").code == "SD-305"
        controller.new_run()
        agent = controller.agent(linux_target, user="visitor", become_password=linux_target.password("root"))
        agent.deploy()
        agent.remove()
    finally:
        controller.end()
        linux_target.exec(["chmod", "4755", "/usr/bin/sudo"])


@pytest.mark.leaves("files: /home/visitor/.ansible*")
def test_su_through_ansible(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    """The variables that Ansible has for su do; tasks run as the login user all the same, unless they become. No password is in a process's arguments."""
    variables = {"ansible_user": "visitor", "ansible_password": linux_target.password("visitor"), "ansible_become_method": "su",
                 "ansible_become_password": linux_target.password("root")}
    listing = "for p in /proc/[0-9]*; do tr '\\000' ' ' < $p/cmdline; tr '\\000' ' ' < $p/environ; echo; done 2>/dev/null"
    words = tmp_path / "variables.json"
    words.write_text(json.dumps(variables))
    played = play(controller, tmp_path, [
        {"name": "check", "sojourn.deploy.preflight": {}},
        {"name": "plain", "ansible.builtin.command": "id -un"},
        {"name": "root", "ansible.builtin.command": "id -un", "become": True},
        {"name": "look", "ansible.builtin.raw": listing, "become": True, "no_log": True, "register": "seen"},
        {"name": "none", "ansible.builtin.assert": {"that": [f"{name} not in seen.stdout" for name in variables if "pass" in name]}, "no_log": True},
    ], "-e", f"@{words}").well()  # fmt: skip
    checks = {entry["check"]: entry["detail"] for entry in played["linux1", "check"]["checks"]}
    assert (checks["admin rights"], checks["sudo"]) == ("visitor, root by su", "not needed: root by su")
    assert played["linux1", "plain"]["stdout"] == "visitor" and played["linux1", "root"]["stdout"] == "root"


@pytest.mark.leaves("files: /home/*/.ansible*")
def test_tasks_that_become_by_another_method_and_password(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    """Than the way in: that is by sudo, with the login user's password; tasks by su, with that of whom they become."""
    variables = {"ansible_user": "deployer", "ansible_password": linux_target.password("deployer"), "ansible_become_method": "su",
                 "ansible_become_user": "visitor", "ansible_become_password": linux_target.password("visitor")}
    own = {"ansible_sojourn_root_method": "sudo", "ansible_sojourn_root_password": linux_target.password("deployer")}
    words = tmp_path / "variables.json"
    task = [{"name": "become", "ansible.builtin.command": "id -un", "become": True}]
    words.write_text(json.dumps({**variables, **own}))
    assert play(controller, tmp_path, task, "-e", f"@{words}").well()["linux1", "become"]["stdout"] == "visitor"
    words.write_text(json.dumps(variables))
    assert "SD-305" in play(controller, tmp_path, task, "-e", f"@{words}").output


@pytest.mark.parametrize("defaults", ["requiretty", "requiretty,use_pty", "use_pty"])
@pytest.mark.parametrize("user", ["deployer", "operator"])
def test_sudo_that_demands_a_terminal(controller: Controller, linux_target: Any, user: str, defaults: str) -> None:
    """With a password, and without."""
    write(linux_target, "/etc/sudoers.d/zz-test", f"Defaults {defaults}\n")
    try:
        agent = controller.agent(linux_target, user=user)
        assert agent.deploy()["info"]["account"] == "root"
        assert agent.execute(command_line="id -un", user=user)["stdout"] == f"{user}\n".encode()
        assert controller.agent(linux_target, user=user).present()
        agent.remove()
        if user == "deployer":
            controller.new_run()
            error = refused(controller, linux_target, user=user, become_password="Wrong1!x")
            assert error.code == "SD-305" and "sudo refused the password" in str(error)
        if "requiretty" in defaults:
            controller.new_run()
            error = refused(controller, linux_target, user="visitor")
            assert error.code == "SD-305" and "sudoers" in str(error), error
    finally:
        controller.end()
        linux_target.exec(["rm", "/etc/sudoers.d/zz-test"])


@pytest.mark.parametrize("then", ["operator ALL=(ALL:ALL) PASSWD: ALL", "Defaults:operator requiretty"])
@pytest.mark.parametrize("killed", [False, True])
def test_sudo_that_has_changed_by_the_end(controller: Controller, linux_target: Any, then: str, killed: bool) -> None:
    """What a user may is not asked again before the agent is seen to be gone; an installation may have changed it. So it may where the agent was killed."""
    agent = controller.agent(linux_target, user="operator")
    process = agent.deploy()["info"]["process_id"]
    if killed:
        linux_target.exec(["kill", "-9", str(process)])
    write(linux_target, "/etc/sudoers.d/zz-test", f"{then}\n")
    try:
        removed = agent.remove()
        assert removed["changed"] and any(name.startswith("folder") for name in removed["removed"])
    finally:
        controller.end()
        linux_target.exec(["rm", "/etc/sudoers.d/zz-test"])


# Login shells

WELCOME = "echo 'system WELCOME'\necho 'folder /welcome'\nsh -c 'echo WELCOME >&2'\nprintf 'half a line '\n"
BANNERS = {"bash": ".bashrc", "tcsh": ".tcshrc", "fish": ".config/fish/config.fish", "dash": ".profile"}


@contextlib.contextmanager
def with_shell(controller: Controller, target: Any, user: str, shell: str, banner: str = "") -> Iterator[None]:
    """A user's login shell; with a banner, its own files say something."""
    home = "/root" if user == "root" else f"/home/{user}"
    name = Path(shell).name
    target.exec(["sh", "-c", "cp -p /etc/passwd /etc/passwd.test"])
    target.exec(["sed", "-i", f"s,^\\({user}:.*:\\)[^:]*$,\\1{shell},", "/etc/passwd"])
    file = f"{home}/{BANNERS[name]}" if banner else ""
    kept = target.exec(["sh", "-c", f"cat {file} 2>/dev/null || true"]).stdout if banner else ""
    if banner:
        target.exec(["sh", "-c", f"mkdir -p $(dirname {file}); chown {user}: $(dirname {file})"])
        write(target, file, banner)
    try:
        yield
    finally:
        controller.end()
        target.exec(["mv", "/etc/passwd.test", "/etc/passwd"])
        if banner and kept:
            write(target, file, kept)
        elif banner:
            target.exec(["rm", "-rf", file])
        if name == "fish":
            target.exec(["rm", "-rf", f"{home}/.config", f"{home}/.local", f"{home}/.cache"])


@pytest.mark.leaves(*ACCOUNTS_LEAVE)
@pytest.mark.parametrize("shell", ["/bin/dash", "/bin/tcsh", "/usr/bin/fish", "/bin/bash"])
@pytest.mark.parametrize("user", ["root", "operator", "deployer", "visitor by su"])
def test_any_login_shell(controller: Controller, linux_target: Any, user: str, shell: str) -> None:
    """Which says something of its own on both streams, where it reads files. Of who gets root by su, root's shell is that one too."""
    name = user.partition(" ")[0]
    options = {"root_method": "su", "become_password": linux_target.password("root")} if name == "visitor" else {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(with_shell(controller, linux_target, name, shell, banner=WELCOME))
        agent = controller.agent(linux_target, user=name, **options)
        assert agent.deploy()["info"]["account"] == "root"
        assert agent.execute(command_line="id -un", user=name)["stdout"] == f"{name}\n".encode()
        agent.remove()


@pytest.mark.leaves(*ACCOUNTS_LEAVE)
def test_a_login_shell_at_a_terminal_that_seems_to_ask_gets_no_password(controller: Controller, linux_target: Any) -> None:
    """Its file says what looks like su's question, and keeps whatever comes within a while: with the password gone, su would refuse."""
    asks = "if [ -t 0 ]; then printf 'Your password expires in: '; IFS= read -r -t 2 kept; fi\n"
    with with_shell(controller, linux_target, "visitor", "/bin/bash", banner=asks):
        agent = controller.agent(linux_target, user="visitor", root_method="su", become_password=linux_target.password("root"))
        assert agent.deploy()["info"]["account"] == "root"
        agent.remove()


@pytest.mark.leaves(*ACCOUNTS_LEAVE)
@pytest.mark.parametrize("shell", ["/bin/dash", "/usr/bin/fish"])
def test_roots_own_shell_when_another_user_becomes_root(controller: Controller, linux_target: Any, shell: str) -> None:
    with with_shell(controller, linux_target, "root", shell):
        for options in ({"user": "deployer"}, {"user": "visitor", "root_method": "su", "become_password": linux_target.password("root")}):
            controller.new_run()
            agent = controller.agent(linux_target, **options)
            agent.deploy()
            agent.remove()


@pytest.mark.leaves(*ACCOUNTS_LEAVE)
@pytest.mark.parametrize("connection", ["ansible.builtin.ssh", "sojourn.deploy.ssh"])
def test_tasks_of_a_login_user_with_another_shell(controller: Controller, linux_target: Any, tmp_path: Path, connection: str) -> None:
    variables = {"ansible_connection": connection, "ansible_user": "operator", "ansible_password": linux_target.password("operator"),
                 "ansible_ssh_args": f"-o ControlMaster=no -o UserKnownHostsFile={controller.lab.known_hosts}", "ansible_remote_tmp": "/tmp/.ansible-test"}
    words = tmp_path / "variables.json"
    words.write_text(json.dumps(variables))
    with with_shell(controller, linux_target, "operator", "/usr/bin/fish"):
        played = play(controller, tmp_path, [
            {"name": "module", "ansible.builtin.command": "id -un"}, {"name": "raw", "ansible.builtin.raw": "id -un"},
            {"name": "become", "ansible.builtin.command": "id -un", "become": True},
            {"name": "tidy", "ansible.builtin.file": {"path": "/tmp/.ansible-test", "state": "absent"}},
        ], "-e", f"@{words}").well()  # fmt: skip
    assert [played["linux1", name]["stdout"].strip() for name in ("module", "raw", "become")] == ["operator", "operator", "root"]


@pytest.mark.leaves(*ACCOUNTS_LEAVE)
@pytest.mark.parametrize("what", ["nologin", "false", "forced command", "forced command that waits for its input's end"])
def test_an_account_that_may_run_nothing(controller: Controller, linux_target: Any, family: str, what: str) -> None:
    if what.startswith("forced command"):
        with sshd(controller, linux_target, ForceCommand=f"echo This service allows file transfer only.{'; cat' if 'waits' in what else ''}"):
            error = refused(controller, linux_target, family)
        assert "This service allows file transfer only." in str(error)
    else:
        with with_shell(controller, linux_target, "operator", "/usr/sbin/nologin" if what == "nologin" else "/bin/false"):
            error = refused(controller, linux_target, family, user="operator")
        assert ("This account is currently not available." if what == "nologin" else "exit code 1 and no word") in str(error)
    assert error.code == "SD-308" and "chsh" in str(error)
