"""Both connections through Ansible itself, over both address families: commands, modules, files, become, interruption, secrets."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import COLLECTIONS
from tests.integration.conftest import Controller, error_lines, secrets_of
from tests.integration.watching import left_alone, watched
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


def test_raw(controller: Controller, tmp_path: Path, family: str) -> None:
    """Its two streams are told apart, and its exit code is its own, past 255 too."""
    text = play(controller, tmp_path, r"""
- hosts: targets
  gather_facts: false
  vars:
    commands:
      linux1: "echo 汉语; echo wrong >&2; pwd; id -un; exit 42"
      windows1: 'echo one & echo wrong>&2 & echo "two three" & ver & exit 3010'
    lines:
      linux1: ["汉语", /root, root]
      windows1: ["one ", '"two three" ', ""]
  tasks:
    - ansible.builtin.raw: "{{ commands[inventory_hostname] }}"
      register: said
      failed_when: false
    - ansible.builtin.assert:
        that:
          - said.stdout_lines[:3] == lines[inventory_hostname]
          - inventory_hostname == "linux1" or said.stdout_lines[3] is match("Microsoft Windows 10")
          - said.stderr | trim == "wrong"
          - said.rc == (42 if inventory_hostname == "linux1" else 3010)
        fail_msg: "{{ said | to_json }}"
""", family=family)
    good(text)


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


@pytest.mark.leaves("files: /etc/passwd*", "files: /etc/shadow*", "files: /etc/group*", "files: /etc/gshadow*", "files: /etc/subuid*", "files: /etc/subgid*")
def test_a_user_whom_tasks_became_can_be_removed(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    """By a module, and by a command: interpreters that are kept run as he."""
    good(play(controller, tmp_path, """
- hosts: linux
  gather_facts: false
  tasks:
    - {ansible.builtin.user: {name: "{{ item }}"}, loop: [leaver, goner]}
    - {ansible.builtin.command: id -un, become: true, become_user: "{{ item }}", loop: [leaver, goner, leaver, goner]}
    - {ansible.builtin.user: {name: leaver, state: absent, remove: true}}
    - {ansible.builtin.command: id -un, become: true, become_user: goner}
    - {ansible.builtin.command: userdel -r goner}
    - {ansible.builtin.command: id -un}
"""))
    left = linux_target.exec(["sh", "-c", "getent passwd; ls /home"]).stdout
    assert "visitor" in left and "leaver" not in left and "goner" not in left


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


def test_become_by_doas_with_a_password(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    """It asks at the terminal alone."""
    linux_target.exec(["sh", "-c", "echo permit deployer as visitor > /etc/doas.conf"])
    environment = {"ANSIBLE_COLLECTIONS_PATH": f"{COLLECTIONS}:{other_collections()}"}
    password = linux_target.password("deployer")
    words = ["-e", f"ansible_user=deployer ansible_password={password}"]
    try:
        text = good(play(controller, tmp_path, """
- hosts: linux
  gather_facts: false
  become: true
  become_user: visitor
  become_method: community.general.doas
  vars: {ansible_become_password: "{{ ansible_password }}"}
  tasks:
    - {ansible.builtin.raw: id -un; echo more >&2, register: raw}
    - {ansible.builtin.command: {cmd: cat, stdin: "through a module"}, register: module}
    - ansible.builtin.debug: {msg: "{{ raw.stdout | trim }} {{ raw.stderr | trim }}, {{ module.stdout }}"}
    - {ansible.builtin.raw: id -un, vars: {ansible_become_password: wrong}, register: refused, ignore_errors: true}
    - ansible.builtin.debug: {msg: "{{ refused.msg }}"}
""", *words, **environment))
    finally:
        linux_target.exec(["rm", "/etc/doas.conf"])
    assert "visitor more, through a module" in text and "doas: Authentication failed" in text
    assert password not in text


@pytest.mark.parametrize("user", ["operator", "deployer"], ids=["without a password", "with a password"])
def test_become_by_a_sudo_that_wants_a_terminal(controller: Controller, linux_target: Any, tmp_path: Path, user: str) -> None:
    """Ansible's own ssh has to do without pipelining there."""
    rules = "/etc/sudoers.d/terminal"
    linux_target.exec(["sh", "-c", f"cat > {rules} && chmod 440 {rules}"], input="Defaults>visitor requiretty\n")
    password = linux_target.password(user)
    words = ["-e", f"ansible_user={user} ansible_password={password}"]
    try:
        text = good(play(controller, tmp_path, """
- hosts: linux
  gather_facts: false
  become: true
  become_user: visitor
  tasks:
    - {ansible.builtin.raw: sudo -n -u visitor true, become: false, register: refused, failed_when: "'must have a tty' not in refused.stderr"}
    - {ansible.builtin.raw: id -un; echo more >&2, register: raw}
    - {ansible.builtin.command: {cmd: cat, stdin: "through a module"}, register: module}
    - ansible.builtin.debug: {msg: "{{ raw.stdout | trim }} {{ raw.stderr | trim }}, {{ module.stdout }}"}
""", *words, *(["-e", f"ansible_become_password={password}"] if user == "deployer" else [])))
    finally:
        linux_target.exec(["rm", rules])
    assert re.search("visitor .*more, through a module", text)  # in between, that sudo does not find its host's name


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


def test_wrong_and_missing_become_passwords(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    """Of a task, on a target where the agent is already; and on the way to it."""
    password = linux_target.password("deployer")
    login = ("-e", f"ansible_user=deployer ansible_password={password}")
    text = good(play(controller, tmp_path, f"""
- hosts: linux
  gather_facts: false
  become: true
  tasks:
    - {{ansible.builtin.raw: id -un, register: right, vars: {{ansible_become_password: "{password}"}}}}
    - {{ansible.builtin.raw: touch /tmp/never, register: wrong, ignore_errors: true, vars: {{ansible_become_password: wrong}}}}
    - {{ansible.builtin.raw: touch /tmp/never, register: missing, ignore_errors: true}}
    - {{ansible.builtin.command: touch /tmp/never, register: module, ignore_errors: true, vars: {{ansible_become_password: wrong}}}}
    - ansible.builtin.debug: {{msg: "{{{{ right.stdout | trim }}}} | {{{{ wrong.msg }}}} | {{{{ missing.msg }}}} | {{{{ module.msg }}}} |"}}
    - {{ansible.builtin.raw: ls /tmp/never, become: false, register: made, failed_when: made.rc == 0}}
""", *login))
    assert re.search(r"root \| .*Incorrect sudo password.* \| .*Missing sudo password.* \| .*Incorrect sudo password.* \|", text), text
    assert re.search(r"linux1\s+: ok=6\s+changed=\d+\s+unreachable=0\s+failed=0\s+skipped=0\s+rescued=0\s+ignored=3", text), text
    result = controller.run("ansible", "linux", *login, "-e", "ansible_become_password=wrong", "--become", "-m", "raw", "-a", "id")
    assert result.returncode != 0 and "sudo refused the password" in result.stdout + result.stderr


@pytest.mark.parametrize("user", ["operator", "deployer"], ids=["without a password", "with a password"])
def test_what_another_user_says_is_the_commands_own(controller: Controller, linux_target: Any, tmp_path: Path, user: str) -> None:
    """Blanks and empty lines at its beginning too."""
    password = linux_target.password(user)
    text = good(play(controller, tmp_path, r"""
- hosts: linux
  gather_facts: false
  become: true
  tasks:
    - {ansible.builtin.raw: "printf '\\n  out'; printf '\\n  err' >&2", register: said}
    - ansible.builtin.debug: {msg: "<{{ said.stdout | replace('\n', 'N') }}> <{{ said.stderr | replace('\n', 'N') }}>"}
""", "-e", f"ansible_user={user} ansible_password={password}", *(["-e", f"ansible_become_password={password}"] if user == "deployer" else [])))
    # sudo may say before it that it does not find its host's name
    assert re.search(r"<N  out> <(sudo: .*)?N  err>", text), text


def test_a_password_that_is_asked_for(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    """By Ansible (-k), which gives it to the connection's option `password`."""
    inventory, file = tmp_path / "inventory.json", tmp_path / "asked"
    file.touch(0o600)
    file.write_text(linux_target.password("deployer"))
    host = {"ansible_host": linux_target.addresses.ula, "ansible_connection": "sojourn.deploy.ssh", "ansible_user": "deployer",
            "ansible_sojourn_known_hosts_file": str(controller.lab.known_hosts), "ansible_become_password": linux_target.password("deployer")}  # fmt: skip
    inventory.write_text(json.dumps({"all": {"hosts": {"asked": host}}}))
    words = ("ansible", "-i", str(inventory), "asked", "-m", "raw", "-a", "id -un")
    assert "deployer" in good(controller.run(*words, "--connection-password-file", str(file)))
    file.write_text("wrong")
    result = controller.run(*words, "--connection-password-file", str(file))
    assert result.returncode == 4 and "SD-301" in result.stdout + result.stderr


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
    wait_for("the task to be gone", lambda: linux_target.exec(["pgrep", "-f", "sleep 4713"], check=False).stdout == "", 60)


def test_a_task_whose_time_is_over_before_the_agent_is_there_begins_nothing(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    with linux_target.slow("1mbps"):  # the executable takes some seconds
        text = good(play(controller, tmp_path, """
- hosts: linux
  gather_facts: false
  tasks:
    - {ansible.builtin.raw: touch /tmp/late, timeout: 3, register: late, ignore_errors: true}
    - {ansible.builtin.raw: ls /tmp/late, register: there, failed_when: false}
    - {ansible.builtin.raw: "true"}
    - {ansible.builtin.raw: ls /tmp/late, register: later, failed_when: false}
    - ansible.builtin.debug: {msg: "{{ late.msg }} | {{ there.rc }} {{ later.rc }} |"}
"""))
    assert re.search(r"[Tt]imed out after 3 second.* \| 2 2 \|", text), text


def test_async_outlives_reset_and_run(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    """Each waits for a file, which comes once the agent that began it has gone."""
    wait = "until [ -e /tmp/{0}.go ]; do sleep 0.1; done; id -un > /tmp/{0}.done"
    try:
        text = good(play(controller, tmp_path, f"""
- hosts: linux
  gather_facts: false
  tasks:
    - {{ansible.builtin.shell: "{wait.format("reset")}", async: 120, poll: 0, register: job}}
    - ansible.builtin.raw: pgrep -f '[a]gent serve'
      register: before
    - ansible.builtin.meta: reset_connection
    - ansible.builtin.raw: touch /tmp/reset.go; pgrep -f '[a]gent serve'
      register: after
    - {{ansible.builtin.async_status: {{jid: "{{{{ job.ansible_job_id }}}}"}}, register: ended, until: ended.finished, retries: 60, delay: 1}}
    - {{ansible.builtin.raw: cat /tmp/reset.done, register: said}}
    - {{ansible.builtin.shell: "{wait.format("run")}", async: 120, poll: 0}}
    - ansible.builtin.debug: {{msg: "{{{{ said.stdout | trim }}}} {{{{ ended.rc }}}} {{{{ before.stdout != after.stdout }}}}"}}
"""))
        assert "root 0 True" in text, text
        wait_for("the agent to go", lambda: not linux_target.exec(["sh", "-c", "ls -d /tmp/sojourn-*"], check=False).stdout, 60)
        assert linux_target.exec(["ls", "/tmp/run.done"], check=False).returncode != 0
        linux_target.exec(["touch", "/tmp/run.go"])
        wait_for("the job to end", lambda: linux_target.exec(["cat", "/tmp/run.done"], check=False).stdout == "root\n", 60)
    finally:
        linux_target.exec(["touch", "/tmp/reset.go", "/tmp/run.go"])
        wait_for("the jobs to end", lambda: not linux_target.exec(["pgrep", "-f", "until .* /tmp/(reset|run)[.]go"], check=False).stdout, 60)
        linux_target.exec(["sh", "-c", "rm -f /tmp/reset.* /tmp/run.*"])


def test_ctrl_c_kills_the_task_and_cleans_up(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    def runs() -> bool:
        return bool(linux_target.exec(["pgrep", "-f", "sleep 4714"], check=False).stdout)

    process = controller.start("ansible", "linux", "-m", "raw", "-a", "sleep 4714", output=tmp_path / "output")
    try:
        wait_for("the task to run", runs, 60)
        os.kill(process.pid, signal.SIGINT)
        process.wait(30)
        wait_for("the task to be gone", lambda: not runs(), 60)
    finally:
        process.kill()
        process.wait()


def test_the_agent_serves_the_whole_run_and_a_reset_brings_a_new_one(controller: Controller, tmp_path: Path) -> None:
    text = good(play(controller, tmp_path, """
- hosts: linux
  gather_facts: false
  tasks:
    - ansible.builtin.raw: ls -d /tmp/sojourn-*; pgrep -f '[a]gent serve' | head -n1
      register: first
    - ansible.builtin.raw: ls -d /tmp/sojourn-*; pgrep -f '[a]gent serve' | head -n1
      register: second
    - ansible.builtin.meta: reset_connection
    - ansible.builtin.raw: ls -d /tmp/sojourn-*; pgrep -f '[a]gent serve' | head -n1
      register: third
    - ansible.builtin.debug: {msg: "same {{ first.stdout == second.stdout }} new {{ third.stdout != second.stdout }}"}
"""))
    assert "same True new True" in text


def test_wait_for_connection(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    """A host that is away is asked again until it is there."""
    output = tmp_path / "output"
    with linux_target.cut_off():
        waiting = controller.start("ansible", "linux", "-vvv", "-m", "wait_for_connection", "-a", "timeout=120 connect_timeout=2 sleep=1", output=output)
        wait_for("a second try", lambda: output.read_text().count("attempting ping") >= 2 or waiting.poll() is not None, 60)
        assert waiting.poll() is None, output.read_text()
    assert waiting.wait(120) == 0 and "linux1 | SUCCESS" in output.read_text(), output.read_text()


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


@pytest.mark.parametrize("transport", ["direct", "tunnel"])
def test_secrets_are_shown_nowhere(controller: Controller, lab: Any, tmp_path: Path, transport: str) -> None:
    secrets = secrets_of(lab)
    linux, windows = lab.target("linux1"), lab.target("windows1")
    package = tmp_path / "package.sh"
    package.write_text("#!/bin/sh\nenv; ps -ef; cat /proc/$PPID/environ /proc/$PPID/cmdline\n")
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
- hosts: linux1
  gather_facts: false
  become: true
  vars: {{ansible_user: deployer, ansible_password: "{linux.password("deployer")}"}}
  vars_files: [become.yml]
  tasks:
    - ansible.builtin.raw: id -un
    - ansible.builtin.command: id -un
"""
    (tmp_path / "become.yml").write_text(f"ansible_become_password: {json.dumps(linux.password('deployer'))}\n")
    way = ("-e", f"ansible_sojourn_transport={transport}")
    with watched(lab) as watch:
        result = play(controller, tmp_path, text, "-vvvvv", *way)
        wrong = controller.run("ansible", "targets", "-e", "ansible_password=WrongGeheim1!", *way, "-m", "raw", "-a", "id", "-vvvvv")
    shown = result.stdout + result.stderr + wrong.stdout + wrong.stderr
    assert result.returncode == 0, shown
    assert len(error_lines(wrong.stdout + wrong.stderr)) >= 2, wrong.stdout + wrong.stderr
    without_command_line = [line for line in shown.splitlines() if "WrongGeheim1!" in line]
    assert not without_command_line, without_command_line
    assert not [secret for secret in secrets if secret in shown]
    assert not watch.found, watch.found[:5]
    assert {"config.json", "session", "broker.log"} <= watch.seen, watch.seen
    for target in (linux, windows):  # an agent that lives and ends as it is to says nothing there
        said = left_alone(controller, target, controller.agent(target, transport=transport, lease_seconds=5))
        assert not [line for line in said for secret in (*secrets, "WrongGeheim1!") if secret in line]
        controller.new_run()
    log = linux.exec(["journalctl", "--no-pager", "--quiet", "--output=cat"]).stdout
    assert not [secret for secret in (*secrets, "WrongGeheim1!") if secret in log]


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


# In a process of its own, for Ansible's loader of collections is there once for all.
PROGRAMS = """
import base64, json, sys
from ansible import constants as C
from ansible.executor import module_common
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader, module_loader
from ansible.template import Templar
init_plugin_loader()
C.DEFAULT_LOCAL_TMP = sys.argv[1]
made = []
for name, arguments in (("stat", {"path": "/"}), ("slurp", {"src": "/etc/hostname"})):
    path = module_loader.find_plugin_with_context(f"ansible.legacy.{name}", ".py").plugin_resolved_path
    module = module_common.modify_module(
        module_name=f"ansible.legacy.{name}", module_path=path, module_args=arguments, templar=Templar(loader=DataLoader(), variables={}),
        task_vars={"ansible_python_interpreter": "/usr/bin/python3"}, module_compression="ZIP_DEFLATED")
    made.append(base64.b64encode(getattr(module, "b_module_data", None) or module[0]).decode())
print(json.dumps(made))
"""


def test_of_a_module_only_what_is_new_goes_to_the_agent(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    environment = {**os.environ, "ANSIBLE_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", PROGRAMS, tmp_path], env=environment, capture_output=True, text=True, check=True)
    stat, slurp = (base64.b64decode(text) for text in json.loads(done.stdout))
    agent = controller.agent(linux_target)
    agent.deploy()
    try:
        def sent(program: bytes, said: bytes) -> int:
            """Bytes that the broker has written for it, as the kernel counts them: little but what went to the agent."""
            counters = Path(f"/proc/{controller.broker_pid}/io")
            before, result = counters.read_text(), agent.execute(command_line="/usr/bin/python3", input_data=program, warm=True)
            assert result["exit_code"] == 0 and said in result["stdout"], result
            return int(re.search(r"wchar: (\d+)", counters.read_text())[1]) - int(re.search(r"wchar: (\d+)", before)[1])  # type: ignore[index]

        first = sent(stat, b'"isdir": true')
        assert 80_000 < first < len(stat), "all of it, but not in base64"
        assert sent(slurp, b'"encoding": "base64"') < 30_000 < first, "only what the first had not"
        assert sent(slurp, b'"encoding": "base64"') < 15_000
    finally:
        agent.remove()
