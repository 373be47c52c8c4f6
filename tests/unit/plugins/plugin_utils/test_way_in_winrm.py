"""The way in by WinRM, without a Windows: what it makes of what commands say, and what it sends."""

from __future__ import annotations

import base64
import gzip
import os
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import way_in_winrm, winrm_client, winrm_scripts
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import Config

RUN = "0123456789ab"
NAME = f"sojourn-{RUN}"
GERMAN = """
SERVICE_NAME: sojourn-0123456789ab
        TYP                : 10  WIN32_OWN_PROCESS
        STATUS             : 1  STOPPED
                                (NOT_STOPPABLE, NOT_PAUSABLE, IGNORES_SHUTDOWN)
        WIN32_BEENDIGUNGSCODE : 1066  (0x42a)
        DIENST_BEENDIGUNGSCODE : 7  (0x7)
        PRÜFPUNKT          : 0x0
        WARTEHINWEIS       : 0x0
"""

Said = Callable[[str], winrm_client.Done]


class Prompt:
    """Answers as a test has it, and keeps what it was asked."""

    def __init__(self, said: Said) -> None:
        self.said = said
        self.lines: list[str] = []
        self.input = b""

    def run(self, line: str, chunks_in: Any = (), *, seconds: float = 0) -> winrm_client.Done:
        self.lines.append(line)
        self.input += b"".join(chunks_in)
        return self.said(line)


def done(text: str = "", code: int = 0, errors: str = "") -> winrm_client.Done:
    return winrm_client.Done(code, text.encode(), errors.encode())


def way_in(said: Said) -> tuple[way_in_winrm.WinrmWayIn, Prompt]:
    made = way_in_winrm.WinrmWayIn(Target.make("winrm", "::1", host="w", user="me", password="Geheim1!"), RUN)
    prompt = Prompt(said)
    made._client = prompt
    made._executable = __file__
    return made, prompt


CONFIG = Config(RUN, "0" * 64, ["fd73:6a6f:7572:5eba:ffff:ffff:ffff:ffff"], {"first": 62286, "last": 62293}, 86400.0)


def test_lines_fit_the_prompt() -> None:
    """8191 characters are all that it takes."""
    assert winrm_scripts.PLACE.isascii() and winrm_scripts.START.isascii()
    made, prompt = way_in(lambda unused_line: done(f"sum {way_in_winrm.digest(__file__)}\r\nexit 0\r\nexit 0\r\nexit 0\r\n"))
    made._serve(CONFIG)
    made, placing = way_in(lambda unused_line: done("placed\r\n"))
    made._upload(__file__, b"x", "a" * 64)
    for line in (*prompt.lines, *placing.lines):
        assert len(line) < 7000
        script = base64.b64decode(line.rpartition(" ")[2]).decode("utf-16-le")
        assert "@" not in script and NAME in script, script


def test_nothing_is_expanded_in_what_is_filled_in() -> None:
    assert winrm_scripts.fill("x '@a@' y", a="it's $env:x \u2019") == "x 'it''s $env:x \u2019\u2019' y"
    assert winrm_scripts.fill("x @a@ y", a=("one", "it's")) == "x 'one','it''s' y"


def test_the_input_is_the_executable_in_short_lines_and_small_messages() -> None:
    data = os.urandom(1_000_000)
    chunks = list(way_in_winrm._input(data))
    assert max(map(len, chunks)) <= winrm_client.INPUT_SIZE and len(chunks) > 2
    lines = b"".join(chunks).split(b"\r\n")
    assert max(map(len, lines)) < 70_000
    assert b"".join(base64.b64decode(line) for line in lines) == data
    assert all(chunk.endswith(b"\r\n") for chunk in chunks)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("damaged 00ff\r\n", "SD-408"),
        ("refused 80070005 Zugriff verweigert\r\n", "SD-401"),
        ("refused 80070070 Es steht nicht genug Speicherplatz zur Verfügung.\r\n", "SD-402"),
        ("refused 80131620 something\r\n", "SD-401"),
        ("", "SD-421"),
    ],
)
def test_why_it_could_not_be_placed(text: str, code: str) -> None:
    refusal = "Cannot create type. Only core types are supported in this language mode."
    made, unused_prompt = way_in(lambda line: done(text, 1, refusal) if "power" in line else done())
    with pytest.raises(SojournError) as caught:
        made._upload(__file__, gzip.compress(b"x"), "token")
    assert caught.value.code == code and caught.value.step == "uploading the agent"
    if code == "SD-421":
        assert "language mode" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("sum 00\r\n", "SD-408", "its SHA-256 is 00"),
        ("refused 80070002 x\r\n", "SD-406", "has vanished"),
        ("sum {sum}\r\n[SC] OpenSCManager FAILED 5:\r\n\r\nexit 5\r\n", "SD-306", "refuses access"),
        ("sum {sum}\r\nexit 1073\r\n", "SD-407", "sc create failed with error 1073"),
        ("sum {sum}\r\nexit 0\r\nexit 0\r\nexit 1053\r\n", "SD-406", "did not report to the service control manager"),
        ("sum {sum}\r\nexit 0\r\n", "SD-421", "PowerShell ended with 1"),
        ("", "SD-421", "PowerShell ended with 1"),
    ],
)
def test_why_it_did_not_start(text: str, code: str, said: str) -> None:
    text = text.replace("{sum}", way_in_winrm.digest(__file__))
    made, unused_prompt = way_in(lambda line: done(text, 1) if "power" in line else done())
    with pytest.raises(SojournError) as caught:
        made._serve(CONFIG)
    assert caught.value.code == code and said in str(caught.value)


def test_an_executable_that_somebody_holds_is_waited_for() -> None:
    said = iter(["refused 80070020 x\r\n", f"sum {way_in_winrm.digest(__file__)}\r\nexit 0\r\nexit 0\r\nexit 0\r\n"])
    made, prompt = way_in(lambda unused_line: done(next(said)))
    made._serve(CONFIG)
    assert len(prompt.lines) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Microsoft Windows [Version 6.1.7601]\r\n\r\nAMD64/\r\n", "it is Windows 6.1.7601"),
        ("Microsoft Windows [Version 10.0.20348.1]\r\n\r\nx86/\r\n", "it is a Windows for x86"),
        ("Microsoft Windows [Version 10.0.20348.1]\r\n", "an architecture that it does not tell"),
    ],
)
def test_what_is_not_supported(text: str, said: str) -> None:
    with pytest.raises(SojournError) as caught:
        way_in(lambda unused_line: done(text))[0]._platform()
    assert caught.value.code == "SD-404" and said in str(caught.value)


@pytest.mark.parametrize(("own", "wow", "architecture"), [("AMD64", "", "amd64"), ("x86", "AMD64", "amd64"), ("ARM64", "", "arm64")])
def test_what_is(own: str, wow: str, architecture: str) -> None:
    text = f"Microsoft Windows [Version 10.0.20348.1]\r\n\r\n{own}/{wow}\r\n"
    assert way_in(lambda unused_line: done(text))[0]._platform() == (architecture, (10, 0, 20348))


def test_what_sc_says_is_read_in_any_language() -> None:
    assert way_in(lambda unused_line: done(GERMAN))[0]._status(NAME) == (1, 7)
    assert way_in(lambda unused_line: done("x", 1060))[0]._status(NAME) == (None, 0)
    for answer, code in ((done("x", 5), "SD-306"), (done("x", 1), "SD-421"), (done("x"), "SD-421")):
        with pytest.raises(SojournError) as caught:
            way_in(lambda unused_line, answer=answer: answer)[0]._status(NAME)
        assert caught.value.code == code


def test_an_agent_that_says_why_it_cannot_serve() -> None:
    error = '{"error": {"code": "SD-601", "fields": {"ports": "62286-62293"}}}'
    made, prompt = way_in(lambda line: done(error) if line.startswith("cd /d") else done(f"sum {way_in_winrm.digest(__file__)}\nexit 0\nexit 0\nexit 0\n"))
    with pytest.raises(SojournError) as caught:
        made.start(CONFIG)
    assert caught.value.code == "SD-601" and len(prompt.lines) == 2


def test_a_service_that_stops_before_it_is_ready() -> None:
    def said(line: str) -> winrm_client.Done:
        if "power" in line:
            return done(f"sum {way_in_winrm.digest(__file__)}\nexit 0\nexit 0\nexit 0\n")
        return done(GERMAN) if line.startswith("sc.exe query") else done("there" if line.endswith("echo there") else "")

    with pytest.raises(SojournError, match=r"the service has stopped \(code 7\).*\(SD-406\)"):
        way_in(said)[0].start(CONFIG)


def test_what_is_found() -> None:
    def said(line: str) -> winrm_client.Done:
        if line.startswith("reg query"):
            return done(f"HKEY_LOCAL_MACHINE\\SYSTEM\\CurrentControlSet\\Services\\{NAME}\r\nHKEY_LOCAL_MACHINE\\x\\sojourn-else\r\n")
        if line.startswith("dir"):
            return done(f"{NAME}\r\nsojourn-ba9876543210\r\nsojourn-other\r\n")
        return done(GERMAN.replace(": 1 ", ": 4 "))

    found = way_in(said)[0].find()
    assert [(item.kind, item.run, item.live) for item in found] == [("service", RUN, True), ("folder", RUN, True), ("folder", "ba9876543210", False)]


@pytest.mark.parametrize("name", ["system32", "sojourn-*", "sojourn-0123456789abc", r"sojourn-0123456789ab\..\x"])
def test_only_names_of_this_project_are_removed(name: str) -> None:
    made, prompt = way_in(lambda unused_line: done())
    with pytest.raises(SojournError, match="SD-801"):
        made._remove(name)
    assert prompt.lines == []
