"""What is Linux's and Windows' own in the two connections."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins import AnsiblePlugin
from ansible.plugins.become.sudo import BecomeModule
from ansible.plugins.loader import get_shell_plugin

from ansible_collections.sojourn.deploy.plugins.connection import smb, ssh, winrm
from ansible_collections.sojourn.deploy.plugins.doc_fragments.connection import ModuleDocFragment
from ansible_collections.sojourn.deploy.plugins.plugin_utils import connection_base
from ansible_collections.sojourn.deploy.plugins.plugin_utils.connection_base import ansible_error
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from tests.conftest import COLLECTIONS

# Becoming another user


@pytest.fixture
def become() -> BecomeModule:
    become = BecomeModule()
    options = {"become_user": "root", "become_exe": "sudo", "become_flags": "-H -S -n", "become_pass": "Geheim1!", "sudo_chdir": None}
    become.get_option = lambda name, *unused, **unused_more: options[name]
    become.options = options
    become.command = become.build_become_command("/bin/sh -c 'id'", get_shell_plugin(shell_type="sh"))
    return become


def test_the_talk_with_sudo(become: BecomeModule) -> None:
    talk = ssh.BecomeTalk(become, b"input", "web1", 12.0)
    prompt = become.prompt.encode()
    assert talk("stderr", prompt[:10]) is None
    assert talk("stderr", prompt[10:]) == (b"Geheim1!\n", False, True)
    assert talk("stderr", b"\n") is None
    assert talk("stdout", become.success[:5].encode()) is None
    assert talk("stdout", become.success[5:].encode() + b"\n") == (b"input", True, False)
    assert talk("stdout", b"output\n") is None
    talk.check_end()
    assert talk.strip(become.success.encode() + b"\noutput\n") == b"output\n"
    assert talk.strip_prompt(prompt + b"warning\n") == b"warning\n"
    at_terminal = ssh.BecomeTalk(become, b"input", "web1", 12.0, terminal=True)
    at_terminal("stderr", prompt)
    for own in (b"\n  output", b"\r\n\toutput", b" "):
        for line_end in (b"\n", b"\r\n"):
            assert talk.strip(become.success.encode() + line_end + own) == own, "its blanks and empty lines are the command's own"
            assert at_terminal.strip_prompt(prompt + line_end + own) == own
        assert talk.strip_prompt(prompt + own) == own


def test_sudo_that_asks_for_nothing(become: BecomeModule) -> None:
    talk = ssh.BecomeTalk(become, None, "web1", 12.0)
    assert talk("stdout", f"{become.success}\n".encode()) == (b"", True, False)


@pytest.mark.parametrize("answer", ["Sorry, try again.\n", "prompt"])
def test_a_wrong_password(become: BecomeModule, answer: str) -> None:
    talk = ssh.BecomeTalk(become, b"input", "web1", 12.0)
    assert talk("stderr", become.prompt.encode())
    with pytest.raises(AnsibleError, match=r"\[web1\] Incorrect sudo password"):
        talk("stderr", become.prompt.encode() if answer == "prompt" else answer.encode())


def test_sudo_that_ends_instead(become: BecomeModule) -> None:
    talk = ssh.BecomeTalk(become, b"input", "web1", 12.0)
    talk("stderr", b"deployer is not in the sudoers file.\n")
    with pytest.raises(AnsibleError, match=r"\[web1\] sudo ended before the command began: deployer is not in the sudoers file"):
        talk.check_end()


def test_a_prompt_that_is_not_the_expected_one(become: BecomeModule) -> None:
    talk = ssh.BecomeTalk(become, b"input", "web1", 12.0)
    assert talk.patience() == 12.0
    talk("stderr", b"Kennwort: ")
    error = talk.overdue()
    assert isinstance(error, AnsibleConnectionFailure)  # unreachable, as over Ansible's own ssh
    assert str(error) == "[web1] Timeout (12s) waiting for privilege escalation prompt: Kennwort:"
    talk("stdout", f"{become.success}\n".encode())
    assert talk.patience() is None, "the command itself may take as long as it wants"


# Command lines


@pytest.mark.parametrize("command", ["echo a", "printf '%s' '\x1b[1m\x07' \"$X\" 'q\"x' \\\\0101", "echo \udcff\udc80", "echo '\ufffe'"])
def test_any_command_can_be_carried(command: str) -> None:
    carried = ssh._carriable(command)
    carried.encode("utf-8")
    assert all(character >= " " for character in carried)
    raw = command.encode("utf-8", "surrogateescape")
    for shell in ("sh", "bash"):
        expected = subprocess.run([shell, "-c", raw], capture_output=True, env={"X": "y"}, check=False).stdout
        assert subprocess.run([shell, "-c", carried], capture_output=True, env={"X": "y"}, check=False).stdout == expected


def test_a_command_line_hardly_grows_when_it_is_carried() -> None:
    """One as long as a target's shell can take would not be started."""
    command = "printf '\x1b[1m'; : " + "a word, 'quoted'; " * 1000
    assert len(ssh._carriable(command)) < 1.5 * len(command)


def windows(shell: str) -> SimpleNamespace:
    return SimpleNamespace(_shell=get_shell_plugin(shell_type=shell))


def line(shell: str, command: str) -> str:
    return smb.Connection._command_line(windows(shell), command)


TEXT = "$x = @'\n    \u6c49\u8bed\n\n    'two'\n'@\n  $x | Out-File 'C:\\a b'; \"\U0001f4a9\""
STARTS = "-NoProfile -NonInteractive -ExecutionPolicy Unrestricted -EncodedCommand"


def test_powershell_text_comes_as_it_is() -> None:
    encoded = line("powershell", TEXT)
    words = encoded.split(" ")
    assert " ".join(words[:-1]) == f"powershell {STARTS}"
    assert base64.b64decode(words[-1], validate=True).decode("utf-16-le") == TEXT
    assert line("powershell", encoded) == encoded


@pytest.mark.parametrize(
    ("shell", "command", "given"),
    [
        # ansible-core 2.17 to 2.19; and 2.21, which quotes the words for the shell.
        *((shell, f"PowerShell {STARTS} QQA=", f"PowerShell {STARTS} QQA=") for shell in ("powershell", "cmd")),
        ("powershell", f"powershell {STARTS} 'Q+A/Q=='", f"powershell {STARTS} Q+A/Q=="),
        ("powershell", f"powershell {STARTS} 'QQA=' -EncodedArguments 'QgA='", f"powershell {STARTS} QQA= -EncodedArguments QgA="),
        ("powershell", f"& 'C:\\Program Files\\it''s\\pwsh.exe' {STARTS} QQA=", f'"C:\\Program Files\\it\'s\\pwsh.exe" {STARTS} QQA='),
    ],
)
def test_a_module_is_one_process(shell: str, command: str, given: str) -> None:
    assert line(shell, command) == given


@pytest.mark.parametrize(
    "command",
    [f"powershell {STARTS} QQA= ; 'more'", f"powershell {STARTS} 'QQA=' | Out-Null", f"powershell {STARTS} $x", f"powershell {STARTS} 'QQA='x",
     f"'powershell {STARTS} QQA='", "other -EncodedCommand QQA=", f"powershell {STARTS} 'QQA=", "type x | y"])
def test_what_only_looks_like_a_module_is_powershell_text(command: str) -> None:
    assert base64.b64decode(line("powershell", command).split(" ")[-1]).decode("utf-16-le") == command


def test_the_command_prompt() -> None:
    assert line("cmd", 'echo "a b" & ver') == 'cmd.exe /d /s /c "echo "a b" & ver"'
    for more in (f"powershell {STARTS} QQA= & ver", 'powershell -Command "1" & ver', f'^"C:\\Program Files\\pwsh.exe^" {STARTS} QQA='):
        assert line("cmd", more) == f'cmd.exe /d /s /c "{more}"'


def test_a_module_that_waits_in_a_file() -> None:
    command = f'type "C:\\t\\win_ping.ps1" | PowerShell {STARTS} QQA='
    assert line("powershell", command) == line("cmd", command) == f'cmd.exe /d /s /c "{command}"'


@pytest.mark.parametrize(
    ("errors", "text"),
    [
        (b"plain", b"plain"),
        (b"", b""),
        (
            b'before\r\n#< CLIXML\r\n<Objs Version="1.1.0.1" xmlns="x"><S S="Error">one &lt;_x000D__x000A_</S><S S="Warning">no</S>'
            b'<S S="Error">two _xD83D__xDCA9__x000D__x000A_</S></Objs>',
            "before\r\none <\r\ntwo \U0001f4a9\r\n".encode(),
        ),
        # What is around it stays, what is none is left, one may be in another.
        (b'#< CLIXML\r\n<Objs><S S="Error">one</S></Objs>\r\nafter', b"one\r\nafter"),
        (b'a\n#< CLIXML\n<Objs><S S="Error">1</S></Objs>b\n#< CLIXML\n<Objs><S S="Error">2</S></Objs>', b"a\n1b\n2"),
        (b"it says: #< CLIXML\r\nand nothing else", b"it says: #< CLIXML\r\nand nothing else"),
        (b'#< CLIXML\r\n#< CLIXML\r\n<Objs><S S="Error">1</S></Objs><Objs><S S="Error">2</S></Objs>', b"12"),
    ],
)
def test_clixml(errors: bytes, text: bytes) -> None:
    assert smb.without_clixml(errors) == text


@pytest.mark.parametrize(("given", "path"), [("'C:\\a b'", "C:\\a b"), ('"C:\\x"', "C:\\x"), ("C:\\x'", "C:\\x'"), ("", ""), ("'", "'")])
def test_paths_without_quotes(given: str, path: str) -> None:
    assert smb.unquoted(given) == path


# What Ansible sees


def test_kinds_of_errors() -> None:
    assert isinstance(ansible_error(SojournError("SD-301", user="x", detail="y")), AnsibleConnectionFailure)
    failed = ansible_error(SojournError("SD-706", path="x", detail="y"))
    assert isinstance(failed, AnsibleError) and not isinstance(failed, AnsibleConnectionFailure)


def test_options_that_are_set_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a loop does, whose items have a connection in common, and reboot and win_reboot with the timeout."""
    made = []
    monkeypatch.setattr(connection_base, "Agent", lambda target, owner: made.append(target) or SimpleNamespace(remove=lambda: None))
    common = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]
    options = {name: option.get("default") for name, option in common.items()} | {"remote_addr": "::1", "remote_user": "x", "host_name": "files1", "port": 445}
    monkeypatch.setattr(AnsiblePlugin, "set_option", lambda unused_self, name, value: options.update({name: value}))
    monkeypatch.setattr(AnsiblePlugin, "set_options", lambda unused_self, direct: options.update(direct))
    connection = smb.Connection.__new__(smb.Connection)
    connection.__dict__ |= {"_agent": None, "_owner_pid": 1, "get_option": options.get}
    assert connection.agent is connection.agent
    connection.set_option("connection_timeout", 3.0)
    assert connection.agent
    connection.set_options(direct={"remote_user": "y"})
    assert connection.agent
    assert [(target.user, target.connection_timeout) for target in made] == [("x", common["connection_timeout"]["default"]), ("x", 3), ("y", 3)]


def test_what_ansible_and_awx_depend_on() -> None:
    common = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]
    for module in (ssh, smb, winrm):
        options = {**common, **yaml.safe_load(module.DOCUMENTATION)["options"]}
        # -k and AWX's machine credentials find the option by this name only.
        assert {"name": "ansible_password"} in options["password"]["vars"]
        assert {"name": "remote_user"} in options["remote_user"]["keyword"] and {"name": "ansible_user"} in options["remote_user"]["vars"]
        assert {"name": "ansible_host"} in options["remote_addr"]["vars"]
        assert {"name": "port"} in options["port"]["keyword"]
        assert "connection_timeout" in options  # win_reboot asks for it
        for name, option in options.items():
            assert option.get("vars") or option.get("env"), name
            assert option["description"], name
    assert smb.Connection.module_implementation_preferences == (".ps1", ".exe", "") and not smb.Connection.allow_executable
    assert smb.Connection.is_pipelining_enabled(SimpleNamespace(), wrap_async=True)
    assert ssh.Connection.has_pipelining and ssh.Connection.has_tty and not smb.Connection.has_tty


# In a process of its own, for Ansible's loader of collections is there once for all; and by it, for options of a fragment and of a plugin meet only there.
LOADED = """
import json, sys
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader, init_plugin_loader
init_plugin_loader()
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
made = {}
for name, more in (("ssh", {}), ("smb", {}), ("winrm", {}), ("winrm", {"ansible_winrm_transport": "basic"})):
    connection = connection_loader.get(f"sojourn.deploy.{name}", PlayContext(), None)
    variables = {"ansible_host": "2001:db8::1", "ansible_user": "me", "ansible_password": "x", "inventory_hostname": "web1", **more}
    connection.set_options(var_options=variables)
    try:
        target = connection.agent.target
        said = [target.transport, target.winrm_transport]
    except SojournError as error:
        said = [error.code, error.fields["option"]]
    made[" ".join([name, *more.values()])] = said
print(json.dumps(made))
"""
NEITHER = {"ssh": ["direct", "ntlm"], "smb": ["direct", "ntlm"], "winrm": ["direct", "ntlm"], "winrm basic": ["direct", "basic"]}
TUNNEL = {"ssh": ["tunnel", "ntlm"], "smb": ["tunnel", "ntlm"], "winrm": ["SD-102", "transport"], "winrm basic": ["SD-102", "transport"]}


@pytest.mark.parametrize(("transport", "wanted"), [(None, NEITHER), ("tunnel", TUNNEL)])
def test_how_the_agent_is_reached_and_how_winrm_signs_in_are_two_options(tmp_path: Path, transport: str | None, wanted: dict[str, list[str]]) -> None:
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(tmp_path / "home")}
    environment.pop("SOJOURN_TRANSPORT", None)
    if transport is not None:
        environment["SOJOURN_TRANSPORT"] = transport
    done = subprocess.run([sys.executable, "-c", LOADED], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 and json.loads(done.stdout) == wanted, done.stdout + done.stderr
