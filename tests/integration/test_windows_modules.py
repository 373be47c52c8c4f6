"""What ansible-core and ansible.windows send to Windows, byte for byte, and that what comes back is what the playbook gets.

By three versions of ansible-core: the real actions and modules, the real connection, broker and agent; on the target the lab's powershell.exe
writes down what it was given, and answers what is laid out here. What is expected there is what ansible-core handed to exec_command in the same run.
That a real PowerShell makes of it what it should is not shown.
"""

from __future__ import annotations

import base64
import html
import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import COLLECTIONS
from tests.integration.conftest import Controller
from tests.integration.controllers import NEWEST, OLDEST, Other
from tests.integration.playing import play
from tests.integration.recording import Execution, Recording
from tests.integration.test_core_versions import marked
from tests.lab.other_collections import other_collections
from tests.lab.programs import windows_programs
from tests.lab.waiting import wait_for

# Where Windows has its folder for temporary files, and where the lab's disk has that.
TEMP = "C:\\windows\\temp"
DISK = "/srv/windows/drive_c/windows/temp"
RECORDINGS = f"{DISK}/sojourn-powershell"
FOLDERS = ("copy", "template", "script")

START = ["-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Unrestricted", "-EncodedCommand"]
UNICODE = "größer 汉语 \U0001f4a9"
BYTES = bytes(range(256))
ACCESS_VIOLATION = 3221225477


@dataclass(frozen=True)
class Answer:
    """What powershell.exe says, and what is to come of its standard error."""

    stdout: bytes = b""
    stderr: bytes = b""
    code: int = 0
    text: bytes = b""
    find: str = ""
    """See record.go."""

    def laid_out(self) -> dict[str, Any]:
        """As the stand-in reads it."""
        return {"Stdout": base64.b64encode(self.stdout).decode(), "Stderr": base64.b64encode(self.stderr).decode(), "Code": self.code, "Find": self.find}


def clixml(text: str) -> bytes:
    """What PowerShell writes as an error where its standard error is no console."""
    def escaped(character: str) -> str:
        if " " <= character <= "\uffff":
            return html.escape(character, quote=False)
        return "".join(f"_x{int.from_bytes(pair, 'big'):04X}_" for pair in zip(*[iter(character.encode("utf-16-be"))] * 2, strict=True))

    progress = '<Obj S="progress" RefId="0"><MS><I64 N="SourceId">1</I64><S N="Activity">Preparing</S></MS></Obj>'
    return (f'#< CLIXML\r\n<Objs Version="1.1.0.1" xmlns="http://schemas.microsoft.com/powershell/2004/04">{progress}'
            f'<S S="Error">{"".join(map(escaped, text))}</S></Objs>').encode()


def says(stdout: str, error: str = "", code: int = 0, find: str = "") -> Answer:
    """An answer in text."""
    return Answer(stdout.encode(), clixml(error) if error else b"", code, error.encode(), find)


def result(said: str = "", /, code: int = 0, find: str = "", **values: Any) -> Answer:
    """A module's answer."""
    return says(json.dumps({"changed": False, **values}, ensure_ascii=False) + "\r\n", said, code, find)


def made(name: str) -> Answer:
    """The answer to the order to make a folder, which the test has made. Without "-tmp-" in its name ansible-core would leave it."""
    return says(f"{TEMP}\\ansible-tmp-{name}\r\n")


@dataclass(frozen=True)
class Row:
    """A task, what powershell.exe answers to each of its executions, and what is to come of it."""

    name: str
    task: dict[str, Any]
    answers: list[Answer]
    check: Callable[[dict[str, Any]], bool]
    files: dict[str, bytes] = field(default_factory=dict)
    """What then lies below the folder for temporary files."""
    status: str = "ok"


def rows(here: Path) -> list[Row]:
    """The tasks of the play."""
    source, script, template = here / "汉语 file.bin", here / "script.ps1", here / "template.j2"
    source.write_bytes(BYTES * 300)
    script.write_bytes(f'param($a)\r\n"{UNICODE}"\r\n'.encode("utf-8-sig"))
    template.write_text("{{ 1 + 1 }} größer\n")
    here_string = f"$text = @'\n    {UNICODE}\n\n'@\n  $text | Write-Output"
    windows = "ansible.windows.win_"
    command = {f"{windows}command": "whoami"}
    ran = {"changed": True, "rc": 0, "stdout": f"{UNICODE}\r\n", "stderr": "said to standard error\r\n"}
    # What a module makes of a file is said to be in the input, so that the real one is sent.
    wanted = {"files": [{"src": "FOUND", "dest": "file.bin"}], "directories": [], "symlinks": []}
    sent = '"files": ?\\[\\{"src": ?"([^"]+)"'
    removed = says("")
    large = "汉" * (1 << 20)
    return [
        Row("ping", {f"{windows}ping": {}}, [result(ping="pong")], lambda r: r["ping"] == "pong" and not r["changed"]),
        Row("command", {f"{windows}command": {"cmd": f'echo "{UNICODE}"', "stdin": UNICODE}}, [result("a warning\r\n", **ran)],
            lambda r: (r["stdout"], r["stdout_lines"], r["stderr"], r["rc"]) == (ran["stdout"], [UNICODE], ran["stderr"], 0) and r["changed"]),
        Row("shell", {f"{windows}shell": f"Write-Output '{UNICODE}'; exit -1073741819"},
            [result(failed=True, rc=ACCESS_VIOLATION, msg=f"{UNICODE}: non-zero return code", code=1)],
            lambda r: (r["rc"], r["msg"]) == (ACCESS_VIOLATION, f"{UNICODE}: non-zero return code"), status="failed"),
        Row("noise", {f"{windows}ping": {}}, [says(f'{UNICODE}\r\n{{"changed": false, "ping": "{UNICODE}"}}\r\nbehind it\r\n', "profile\r\n")],
            lambda r: r["ping"] == UNICODE),
        Row("crash", {f"{windows}ping": {}}, [says(f"no JSON, {UNICODE}", f"<{UNICODE}>\r\n", ACCESS_VIOLATION)],
            lambda r: (r["module_stdout"], r["module_stderr"], r["rc"]) == (f"no JSON, {UNICODE}", f"<{UNICODE}>\r\n", ACCESS_VIOLATION), status="failed"),
        Row("copy", {f"{windows}copy": {"src": str(source), "dest": "C:\\t\\file.bin"}},
            [result(find=sent, **wanted), made("copy"), result(changed=True, dest="C:\\t\\file.bin"), removed],
            lambda r: r["changed"] and r["operation"] == "file_copy", {"ansible-tmp-copy/source": source.read_bytes()}),
        Row("copy again", {f"{windows}copy": {"src": str(source), "dest": "C:\\t\\file.bin"}}, [result(files=[], directories=[], symlinks=[])],
            lambda r: not r["changed"]),
        Row("template", {f"{windows}template": {"src": str(template), "dest": "C:\\t\\file.bin"}},
            [made("template"), result(find=sent, **wanted), made("template"), result(changed=True), removed],
            lambda r: r["changed"], {"ansible-tmp-template/source": "2 größer\r\n".encode()}),
        Row("facts", {"ansible.builtin.setup": {"gather_subset": "!all"}}, [result(ansible_facts={"ansible_hostname": UNICODE})],
            lambda r: r["ansible_facts"]["ansible_hostname"] == UNICODE),
        Row("service", {f"{windows}service": {"name": "spooler", "state": "started"}}, [result(exists=True, display_name=UNICODE)],
            lambda r: r["display_name"] == UNICODE),
        Row("stat", {f"{windows}stat": {"path": "C:\\"}}, [result(stat={"exists": True, "isdir": True})], lambda r: r["stat"]["isdir"]),
        Row("async", {**command, "async": 30, "poll": 0}, [result(started=1, finished=0, ansible_job_id="123.4", results_file="C:\\123.4")],
            lambda r: r["ansible_job_id"] == "123.4"),
        Row("async_status", {"ansible.builtin.async_status": {"jid": "123.4"}}, [result(started=1, finished=1, ansible_job_id="123.4", **ran)],
            lambda r: r["finished"] and r["stdout"] == ran["stdout"]),
        Row("runas", {**command, "become": True, "become_method": "ansible.builtin.runas", "become_user": "SYSTEM"}, [result(**ran)],
            lambda r: r["stdout"] == ran["stdout"]),
        Row("raw", {"ansible.builtin.raw": here_string, "register": "raw", "failed_when": False},
            [says(f"{UNICODE}\r\n", f"{UNICODE}\r\n", ACCESS_VIOLATION)],
            lambda r: (r["stdout"], r["stderr"], r["rc"]) == (f"{UNICODE}\r\n", f"{UNICODE}\r\n", ACCESS_VIOLATION)),
        # By the command prompt itself: powershell.exe hears nothing of it.
        Row("raw, cmd", {"ansible.builtin.raw": 'echo one & echo "two  three" & exit 3010', "failed_when": False, "vars": {"ansible_shell_type": "cmd"}}, [],
            lambda r: r["rc"] == 3010 and [line.strip() for line in r["stdout_lines"]] == ["one", '"two  three"']),
        Row("ping, cmd", {f"{windows}ping": {}, "vars": {"ansible_shell_type": "cmd"}}, [result(ping="pong")], lambda r: r["ping"] == "pong"),
        Row("script", {"ansible.builtin.script": f"{script} 'a b'", "register": "script", "failed_when": False},
            [made("script"), says(f"{UNICODE}\r\n", f"{UNICODE}\r\n", 3010), removed],
            lambda r: (r["stdout"], r["stderr"], r["rc"]) == (f"{UNICODE}\r\n", f"{UNICODE}\r\n", 3010),
            {"ansible-tmp-script/script.ps1": script.read_bytes()}),
        Row("powershell", {f"{windows}powershell": {"script": here_string}}, [result(output=[large], error=[], result={})], lambda r: r["output"] == [large]),
    ]


@pytest.fixture
def recordings(windows_target: Any, nothing_left: None) -> Iterator[Callable[[list[Answer]], None]]:
    """Has powershell.exe write down what it is given, from when it is told what to answer."""
    def lay_out(answers: list[Answer]) -> None:
        folders = [RECORDINGS, *(f"{DISK}/ansible-tmp-{name}" for name in FOLDERS)]
        text = json.dumps([answer.laid_out() for answer in answers])
        windows_target.exec(["sh", "-euc", f"mkdir {' '.join(folders)}; cat > {RECORDINGS}/answers.json"], input=text)

    yield lay_out
    windows_target.exec(["sh", "-c", f"rm -rf {RECORDINGS} {DISK}/ansible-tmp-*"])


def read(windows_target: Any, path: str) -> bytes:
    """A file of the target."""
    return base64.b64decode(windows_target.exec(["base64", path]).stdout)


def recorded(windows_target: Any) -> list[tuple[str, bytes]]:
    """The command line and the standard input of each execution of powershell.exe, in order."""
    command = f"cd {RECORDINGS}; for file in *.line; do n=${{file%.line}}; echo $n:$(base64 -w0 $n.line):$(base64 -w0 $n.input); done"
    lines = sorted((line.split(":") for line in windows_target.exec(["sh", "-euc", command]).stdout.splitlines()), key=lambda words: int(words[0]))
    return [(base64.b64decode(line).decode("utf-16-le"), base64.b64decode(data)) for _, line, data in lines]


def script_of(line: str) -> str:
    """The script in a command line of PowerShell that has one and nothing else in it."""
    program, *words, encoded = line.split(" ")
    assert program.lower() == "powershell" and words == START, line[:200]
    return base64.b64decode(encoded, validate=True).decode("utf-16-le")


@pytest.fixture(params=[OLDEST, None, NEWEST], ids=["oldest", "installed", "newest"])
def other(request: pytest.FixtureRequest) -> Other | None:
    """One version after the other, built into the cache when missing; None is the one that runs the tests."""
    if request.param:
        request.param.ensure()
    return request.param


# Whichever comes first builds what the others use as well.
@pytest.mark.xdist_group("controllers")
def test_modules(controller: Controller, windows_target: Any, recordings: Callable[[list[Answer]], None], other: Other | None, tmp_path: Path) -> None:
    table = rows(tmp_path)
    recordings([answer for row in table for answer in row.answers])
    recording = Recording(tmp_path, "smb")
    mark = str(tmp_path / "home")
    environment = {
        **(other.environment() if other else {}), **recording.environment, "ANSIBLE_COLLECTIONS_PATH": f"{COLLECTIONS}:{other_collections()}",
        "ANSIBLE_HOME": mark, "SOJOURN_TEST_MARK": mark}
    # With PowerShell for the shell, as a Windows host has it by default; the lab's inventory says otherwise.
    tasks = [{"vars": {"ansible_shell_type": "powershell"}, **row.task, "name": row.name, "ignore_errors": row.status == "failed"} for row in table]
    played = play(controller, tmp_path, tasks, "-e", "ansible_connection=recorded", hosts="windows1", environment=environment).well()
    wait_for("the controller's processes to end", lambda: not marked(mark), timeout=60)

    for row in table:
        assert played.status("windows1", row.name) == row.status, played.output
        assert row.check(played["windows1", row.name]), (row.name, played["windows1", row.name])
        for path, content in row.files.items():
            assert read(windows_target, f"{DISK}/{path}") == content, row.name
    assert "behind it" in played.output, "ansible-core itself tells of what comes after the JSON"
    # ansible-core's newest deprecates what connections used to call.
    assert "_encode_script" not in played.output and "sojourn" not in "".join(line for line in played.output.splitlines() if "WARNING]" in line)

    handed = recording.tasks()
    assert [len(executions) for executions in handed] == [len(row.answers) or 1 for row in table], "each module is one execution, and no task has more"
    seen = recorded(windows_target)
    assert len(seen) == sum(len(row.answers) for row in table)
    for row, executions in zip(table, handed, strict=True):
        for execution, answer in zip(executions, row.answers, strict=bool(row.answers)):
            (line, data), seen = seen[0], seen[1:]
            same(row.name, execution, line, data)
            if not answer.find:
                assert execution.said(answer.stdout, answer.text, answer.code), (row.name, execution)


def same(name: str, execution: Execution, line: str, data: bytes) -> None:
    """What arrived is what ansible-core handed over."""
    if name == "raw":
        assert script_of(line) == execution.command, line
    else:
        # Some versions quote the words, none of which has a blank in it, for the shell; nothing else may differ.
        assert line == " ".join(shlex.split(execution.command)) and script_of(line), (name, line)
        assert execution.command in (line, line.replace(line.split(" ")[-1], f"'{line.split(' ')[-1]}'")), (name, execution.command)
    assert data == (execution.input or b""), (name, len(data), len(execution.input or b""))
    if name in ("ping", "command", "runas", "async", "facts", "powershell"):
        assert len(data) > 10_000, "the module itself was in it"


def test_bytes_go_in_and_out_as_they_are(controller: Controller, windows_target: Any, recordings: Callable[[list[Answer]], None], tmp_path: Path) -> None:
    recordings([Answer(BYTES * 5000, BYTES[::-1] * 300, ACCESS_VIOLATION), Answer(code=0x80000000), Answer(code=256)])
    agent = controller.agent(windows_target)
    done = agent.execute(["powershell.exe", "größer"], input_data=BYTES * 20_000)
    assert (done["stdout"], done["stderr"], done["exit_code"]) == (BYTES * 5000, BYTES[::-1] * 300, ACCESS_VIOLATION)
    assert agent.execute(["powershell.exe"], input_data=b"")["exit_code"] == 0x80000000
    assert agent.execute(["powershell.exe"])["exit_code"] == 256
    assert recorded(windows_target) == [("powershell.exe größer", BYTES * 20_000), ("powershell.exe", b""), ("powershell.exe", b"")]


def test_what_breaks_away_outlives_its_parent(controller: Controller, windows_target: Any) -> None:
    """An asynchronous task's process asks to leave the job object. What does not ask is killed with it; what does outlives the agent too."""
    program = "sojourn-breakaway.exe"

    def living(seconds: int) -> list[int]:
        return [process.pid for process in windows_target.processes() if f"{program} --sleep {seconds}" in process.command]

    agent = controller.agent(windows_target)
    agent.put_file(str(windows_programs() / "demo.exe"), f"{TEMP}\\{program}")

    class Enough(Exception):
        pass

    def interrupt(stream: str, data: bytes) -> None:
        assert stream == "stdout" and data.startswith(b"left")
        wait_for("its children", lambda: living(4711) and living(4712), timeout=60)
        raise Enough

    try:
        words = ["--daemon", "4711", "--breakaway", "4712", "--line", "left", "--sleep", "4713"]
        with pytest.raises(Enough):
            agent.execute([f"{TEMP}\\{program}", *words], on_output=interrupt)
        wait_for("its tree to be killed", lambda: not living(4711) and not living(4713), timeout=60)
        assert living(4712)
        agent.remove()
        assert living(4712)
    finally:
        windows_target.exec(["pkill", "-f", f"{program} --sleep"], check=False)
        wait_for("them to end", lambda: not any(map(living, (4711, 4712, 4713))), timeout=60)
        windows_target.exec(["rm", "-f", f"{DISK}/{program}"])
