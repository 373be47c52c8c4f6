"""Both connections through Ansible itself, over both address families: commands, modules, files, become, interruption, secrets."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils.broker_client import run_folder
from tests.conftest import COLLECTIONS
from tests.integration.conftest import Controller, error_lines, secrets_of
from tests.lab.other_collections import other_collections
from tests.lab.waiting import wait_for

# Ansible's own remote_tmp: it makes the folder for modules that are not pipelined, and never removes it.
pytestmark = pytest.mark.leaves("files: /root/.ansible*", "files: /home/*/.ansible*")


def good(result: subprocess.CompletedProcess[str]) -> str:
    """What a command wrote, if it went well."""
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def play(controller: Controller, folder: Path, text: str, *more: str, family: str = "ipv6", **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a playbook."""
    path = folder / "play.yml"
    path.write_text(text)
    return controller.run("ansible-playbook", str(path), *more, family=family, environment=environment)


def test_raw(controller: Controller, family: str) -> None:
    text = good(controller.run("ansible", "linux", "-m", "raw", "-a", "echo 汉语; echo wrong >&2; pwd; id -un; exit 0", family=family))
    assert "linux1 | CHANGED | rc=0 >>" in text and "汉语\n/root\nroot" in text and "wrong" in text
    result = controller.run("ansible", "linux", "-m", "raw", "-a", "exit 42", family=family)
    assert "rc=42" in result.stdout
    text = good(controller.run("ansible", "windows", "-m", "raw", "-a", 'echo one & echo "two three" & ver', family=family))
    assert "one" in text and '"two three"' in text and "Microsoft Windows 10" in text
    result = controller.run("ansible", "windows", "-m", "raw", "-a", "exit 3010", family=family)
    assert "rc=3010" in result.stdout


def test_characters_that_xml_cannot_carry(controller: Controller) -> None:
    text = good(controller.run("ansible", "linux", "-m", "raw", "-a", "printf '%s' '\x1b[1m\\0101 a\x07' | od -An -c"))
    assert re.search(r"033\s+\[\s+1\s+m\s+\\\s+0\s+1\s+0\s+1\s+a\s+\\a", text), text


def test_command_module(controller: Controller, family: str) -> None:
    assert "uid=0(root)" in good(controller.run("ansible", "linux", "-m", "command", "-a", "id", family=family))
    assert '"ping": "pong"' in good(controller.run("ansible", "linux", "-m", "ping", family=family))


def test_command_module_without_pipelining(controller: Controller) -> None:
    text = good(controller.run("ansible", "linux", "-m", "command", "-a", "id", environment={"SOJOURN_PIPELINING": "false"}))
    assert "uid=0(root)" in text


def test_copy_and_fetch(controller: Controller, linux_target: Any, family: str, tmp_path: Path) -> None:
    source = tmp_path / "汉语 a file"
    source.write_bytes(os.urandom(3 << 20))
    checksum = hashlib.sha1(source.read_bytes(), usedforsecurity=False).hexdigest()
    text = good(play(controller, tmp_path, f"""
- hosts: linux
  gather_facts: false
  tasks:
    - ansible.builtin.copy: {{src: "{source}", dest: "/var/tmp/汉语 copy", mode: "0640"}}
      register: first
    - ansible.builtin.copy: {{src: "{source}", dest: "/var/tmp/汉语 copy", mode: "0640"}}
      register: second
    - ansible.builtin.fetch: {{src: "/var/tmp/汉语 copy", dest: "{tmp_path}/back", flat: true}}
    - ansible.builtin.file: {{path: "/var/tmp/汉语 copy", state: absent}}
    - ansible.builtin.debug: {{msg: "first {{{{ first.changed }}}} second {{{{ second.changed }}}} {{{{ first.checksum }}}}"}}
""", family=family))
    assert f"first True second False {checksum}" in text
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_windows_files_by_the_plugin(controller: Controller, family: str, tmp_path: Path) -> None:
    # Ansible's own copy and fetch need PowerShell on the target, which the lab's Wine lacks: the plugin's two methods, called by an action of the test.
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1 << 20))
    actions = tmp_path / "action_plugins"
    actions.mkdir()
    (actions / "there_and_back.py").write_text("""
from ansible.plugins.action import ActionBase
class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        remote = '"C:\\\\windows\\\\temp\\\\sojourn test 汉语.bin"'
        self._connection.put_file(self._task.args['source'], remote)
        self._connection.fetch_file(remote, self._task.args['back'])
        self._connection.fetch_file('C:\\\\windows\\\\temp', self._task.args['back'] + '.folder')
        code, output, errors = self._connection.exec_command('del ' + remote)
        return {'changed': True, 'rc': code, 'errors': errors.decode()}
""")
    good(play(controller, tmp_path, f"""
- hosts: windows
  gather_facts: false
  tasks:
    - there_and_back: {{source: "{source}", back: "{tmp_path}/back"}}
""", family=family, ANSIBLE_ACTION_PLUGINS=str(actions), ANSIBLE_LIBRARY=str(actions)))
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert not (tmp_path / "back.folder").exists()


def test_facts_and_many_modules(controller: Controller, tmp_path: Path) -> None:
    text = good(play(controller, tmp_path, """
- hosts: linux
  tasks:
    - ansible.builtin.template: {src: t.j2, dest: /var/tmp/t, mode: "0600"}
    - ansible.builtin.stat: {path: /var/tmp/t}
      register: t
    - ansible.builtin.shell: cat /var/tmp/t; rm /var/tmp/t
      register: out
    - ansible.builtin.script: s.sh
      register: script
    - ansible.builtin.debug: {msg: "{{ ansible_facts.distribution }} {{ t.stat.size }} {{ out.stdout }} {{ script.stdout }}"}
""".replace("t.j2", str(tmp_path / "t.j2")).replace("s.sh", str(tmp_path / "s.sh"))
        if (tmp_path / "t.j2").write_text("x{{ 1 + 1 }}") and (tmp_path / "s.sh").write_text("#!/bin/sh\necho from-script\n") else ""))
    assert "Debian 2 x2 from-script" in text


# Whose rights tasks have


@pytest.mark.parametrize("user", ["deployer", "operator", "root"])
def test_tasks_run_as_the_login_user_unless_they_become(controller: Controller, linux_target: Any, user: str) -> None:
    login = ["-u", user, "-e", f"ansible_password={linux_target.password(user)} ansible_user={user}"]
    assert f"\n{user}" in good(controller.run("ansible", "linux", *login, "-m", "raw", "-a", "id -un"))
    password = [] if user == "operator" else ["-e", f"ansible_become_password={linux_target.password(user)}"]
    for module in ("raw", "command"):
        text = good(controller.run("ansible", "linux", *login, *password, "--become", "-m", module, "-a", "id -un"))
        assert re.search(r"rc=0 >>\s+root\s", text) and "BECOME" not in text and "password" not in text, text


def test_modules_with_input_become_root_with_a_password(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    result = play(controller, tmp_path, """
- hosts: linux
  gather_facts: false
  become: true
  tasks:
    - ansible.builtin.copy: {content: "secret", dest: /root/sojourn-test, mode: "0600"}
    - ansible.builtin.command: cat /root/sojourn-test
      register: out
    - ansible.builtin.command: stat -c %U /root/sojourn-test
      register: owner
    - ansible.builtin.file: {path: /root/sojourn-test, state: absent}
    - ansible.builtin.debug: {msg: "{{ out.stdout }} {{ owner.stdout }}"}
""", "-e", f"ansible_user=deployer ansible_password={linux_target.password('deployer')} ansible_become_password={linux_target.password('deployer')}")
    assert "secret root" in good(result)


@pytest.mark.leaves("files: /etc/group-", "files: /etc/gshadow-", "files: /home/visitor/.ansible*")  # usermod(8)'s copies; Ansible's own folder
def test_a_user_who_becomes_another_has_that_users_present_groups(controller: Controller, tmp_path: Path) -> None:
    become = "become: true, become_user: visitor"
    text = good(play(controller, tmp_path, f"""
- hosts: linux
  gather_facts: false
  tasks:
    - {{ansible.builtin.command: id -nG, {become}, register: before}}
    - ansible.builtin.command: usermod -aG games visitor
    - {{ansible.builtin.command: id -nG, {become}, register: after}}
    - ansible.builtin.command: gpasswd -d visitor games
    - {{ansible.builtin.command: sudo -n true, {become}, register: refused, failed_when: refused.rc != 1}}
    - ansible.builtin.debug: {{msg: "{{{{ before.stdout }}}}, {{{{ after.stdout }}}}, {{{{ refused.stderr_lines[-1] }}}}"}}
"""))
    assert "visitor, visitor games, sudo: a password is required" in text


def test_become_by_doas(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    linux_target.exec(["sh", "-c", "echo permit nopass deployer as visitor > /etc/doas.conf"])
    environment = {"ANSIBLE_COLLECTIONS_PATH": f"{COLLECTIONS}:{other_collections()}"}
    words = ["-e", f"ansible_user=deployer ansible_password={linux_target.password('deployer')}"]
    try:
        text = good(play(controller, tmp_path, """
- hosts: linux
  gather_facts: false
  become_method: community.general.doas
  tasks:
    - {ansible.builtin.raw: id -un, become: true, become_user: visitor, register: raw}
    - {ansible.builtin.command: id -un, become: true, become_user: visitor, register: module}
    - {ansible.builtin.command: id -un, register: plain}
    - ansible.builtin.raw: id -un
      become: true
      register: refused
      failed_when: refused.rc == 0
    - ansible.builtin.debug:
        msg: "{{ [raw, module, plain] | map(attribute='stdout') | map('trim') | join(' ') }}, {{ refused.stderr | trim }}"
""", *words, **environment))
    finally:
        linux_target.exec(["rm", "/etc/doas.conf"])
    assert "visitor visitor deployer, doas: Operation not permitted" in text


def test_loops_with_templated_hosts_and_users(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    passwords = {user: linux_target.password(user) for user in ("deployer", "operator")}
    text = good(play(controller, tmp_path, f"""
- hosts: linux1
  gather_facts: false
  vars:
    passwords: {json.dumps(passwords)}
  tasks:
    - ansible.builtin.add_host:
        name: "as-{{{{ item }}}}"
        groups: linux
        ansible_host: "{{{{ ansible_host }}}}"
        ansible_user: "{{{{ item }}}}"
        ansible_password: "{{{{ passwords[item] }}}}"
        ansible_connection: sojourn.deploy.ssh
      loop: [deployer, operator]
    - {{ansible.builtin.command: id -un, delegate_to: "as-{{{{ item }}}}", loop: [deployer, operator, deployer], register: hosts}}
    - ansible.builtin.command: id -un
      vars: {{ansible_user: "{{{{ item }}}}", ansible_password: "{{{{ passwords[item] }}}}"}}
      loop: [operator, deployer]
      register: users
    - ansible.builtin.debug: {{msg: "{{{{ (hosts.results + users.results) | map(attribute='stdout') | join(' ') }}}}"}}
"""))
    assert "deployer operator deployer operator deployer" in text


def test_wrong_and_missing_become_passwords(controller: Controller, linux_target: Any) -> None:
    login = ["-e", f"ansible_user=deployer ansible_password={linux_target.password('deployer')}", "--become", "-m", "raw", "-a", "id"]
    # The agent itself gets in with the login's password; the task's own sudo gets another.
    assert controller.run("ansible", "linux", *login).returncode != 0
    first = good(controller.run("ansible", "linux", *login[:2], "-m", "raw", "-a", "id"))
    assert "deployer" in first
    result = controller.run("ansible", "linux", *login[:2], "-e", "ansible_become_password=wrong", *login[2:])
    assert result.returncode != 0
    assert "refused the password" in result.stdout + result.stderr or "Incorrect sudo password" in result.stdout + result.stderr


def test_files_are_read_with_the_login_users_rights(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    result = controller.run(
        "ansible", "linux", "-e", f"ansible_user=deployer ansible_password={linux_target.password('deployer')}",
        "-m", "fetch", "-a", f"src=/etc/shadow dest={tmp_path}/ flat=true")
    assert result.returncode != 0
    assert not (tmp_path / "shadow").exists()


# Interruption and the end


def test_a_tasks_timeout_kills_it_on_the_target(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    begin = time.monotonic()
    result = play(controller, tmp_path, """
- hosts: linux
  gather_facts: false
  tasks:
    - ansible.builtin.raw: sleep 4713 & sleep 4713; wait
      timeout: 2
""")
    assert result.returncode == 2 and time.monotonic() - begin < 60
    wait_for("the task to be gone", lambda: linux_target.exec(["pgrep", "-f", "sleep 4713"], check=False).stdout == "", 20)


def test_ctrl_c_kills_the_task_and_cleans_up(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    def runs() -> bool:
        return bool(linux_target.exec(["pgrep", "-f", "sleep 4714"], check=False).stdout)

    process = controller.start("ansible", "linux", "-m", "raw", "-a", "sleep 4714", output=tmp_path / "output")
    try:
        wait_for("the task to run", runs, 60)
        os.kill(process.pid, signal.SIGINT)
        process.wait(30)
        wait_for("the task to be gone", lambda: not runs(), 20)
    finally:
        process.kill()
        process.wait()


def test_the_agent_serves_the_whole_run_and_a_reset_brings_a_new_one(controller: Controller, tmp_path: Path) -> None:
    text = good(play(controller, tmp_path, """
- hosts: linux
  gather_facts: false
  tasks:
    - ansible.builtin.raw: ls -d /tmp/sojourn-*; pgrep -f 'agent serve' | head -n1
      register: first
    - ansible.builtin.raw: ls -d /tmp/sojourn-*; pgrep -f 'agent serve' | head -n1
      register: second
    - ansible.builtin.meta: reset_connection
    - ansible.builtin.raw: ls -d /tmp/sojourn-*; pgrep -f 'agent serve' | head -n1
      register: third
    - ansible.builtin.debug: {msg: "same {{ first.stdout == second.stdout }} new {{ third.stdout != second.stdout }}"}
"""))
    assert "same True new True" in text


def test_wait_for_connection(controller: Controller) -> None:
    assert "SUCCESS" in good(controller.run("ansible", "linux", "-m", "wait_for_connection", "-a", "timeout=20"))


def test_both_kinds_in_one_play(controller: Controller, tmp_path: Path, family: str) -> None:
    text = good(play(controller, tmp_path, """
- hosts: targets
  gather_facts: false
  tasks:
    - ansible.builtin.raw: echo hello
    - ansible.builtin.raw: echo from the delegate
      delegate_to: linux1
""", family=family))
    assert re.search(r"linux1\s+: ok=2", text) and re.search(r"windows1\s+: ok=2", text)


# Secrets


def test_secrets_are_shown_nowhere(controller: Controller, lab: Any, tmp_path: Path) -> None:
    secrets = secrets_of(lab)
    found: list[str] = []
    stop = threading.Event()
    base = Path(run_folder(os.getpid())).parent

    def watch() -> None:
        needles = [secret.encode() for secret in secrets]
        while not stop.is_set():
            for entry in Path("/proc").iterdir():
                if not entry.name.isdigit() or int(entry.name) == os.getpid():
                    continue
                for file in ("cmdline", "environ"):
                    try:
                        data = (entry / file).read_bytes()
                    except OSError:
                        continue
                    found.extend(f"/proc/{entry.name}/{file}: {data[:200]!r}" for needle in needles if needle in data)
            for path in base.glob("*/*"):
                try:
                    if path.is_file():
                        found.extend(str(path) for needle in needles if needle in path.read_bytes())
                except OSError:
                    continue
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    package = tmp_path / "package.sh"
    package.write_text("#!/bin/sh\nenv; ps -ef; cat /proc/$PPID/environ /proc/$PPID/cmdline\n")
    try:
        text = f"""
- hosts: targets
  gather_facts: false
  tasks:
    - ansible.builtin.raw: echo hello
    - sojourn.deploy.install:
        src: "{package}"
        skip_wrong_family: true
        creates: /nowhere
      ignore_errors: true
    - ansible.builtin.raw: id -un
      become: true
      vars: {{ansible_become_password: "{lab.target("linux1").password("root")}"}}
      when: inventory_hostname == 'linux1'
"""
        result = play(controller, tmp_path, text, "-vvvvv")
        wrong = controller.run("ansible", "targets", "-e", "ansible_password=WrongGeheim1!", "-m", "raw", "-a", "id", "-vvvvv")
    finally:
        stop.set()
        watcher.join()
    shown = result.stdout + result.stderr + wrong.stdout + wrong.stderr
    assert result.returncode == 0, shown
    assert len(error_lines(wrong.stdout + wrong.stderr)) >= 2, wrong.stdout + wrong.stderr
    without_command_line = [line for line in shown.splitlines() if "WrongGeheim1!" in line]
    assert not without_command_line, without_command_line
    assert not [secret for secret in secrets if secret in shown]
    assert not found, found[:5]


def test_the_broker_has_no_secret_in_its_arguments_environment_or_files(controller: Controller, target: Any, lab: Any) -> None:
    agent = controller.agent(target)
    agent.deploy()
    broker = Path(f"/proc/{controller.broker_pid}")
    data = (broker / "cmdline").read_bytes() + (broker / "environ").read_bytes()
    for path in Path(os.readlink(broker / "fd/2")).parent.iterdir():
        if path.is_file():
            data += path.read_bytes()
            assert path.stat().st_mode & 0o077 == 0
    assert b"run" in data
    assert not [secret for secret in secrets_of(lab) if secret.encode() in data]
    agent.remove()
