"""The command lines of each kind, and how versions and database entries are compared."""

from __future__ import annotations

import io
import shutil
import subprocess
import tracemalloc

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import installers, package_database, package_version
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.installer_output import LONGEST_LINE, TAIL, Lines, decode, decode_tail, read_tail, tail
from ansible_collections.sojourn.deploy.plugins.plugin_utils.installers import Request, command

WINDOWS_PATH = "C:\\Windows\\sojourn-0123456789ab\\install-1\\my setup"
LINUX_PATH = "/tmp/sojourn-0123456789ab/install-1/package"


class TestCommands:
    def test_msi(self) -> None:
        made = command(Request("msi", f"{WINDOWS_PATH}.msi", log="C:\\x\\msi.log"))
        assert made.command_line == f'msiexec.exe /i "{WINDOWS_PATH}.msi" /qn /norestart /l*v "C:\\x\\msi.log"'

    @pytest.mark.parametrize(
        ("argument", "quoted"),
        [
            ("ALLUSERS=1", "ALLUSERS=1"),
            ("INSTALLDIR=C:\\Program Files\\Tool", 'INSTALLDIR="C:\\Program Files\\Tool"'),
            ('TITLE=a "b" c', 'TITLE="a ""b"" c"'),
            ("EMPTY=", 'EMPTY=""'),
            ("/passive", "/passive"),
            ("C:\\a b.mst", '"C:\\a b.mst"'),
        ],
    )
    def test_msi_properties(self, argument: str, quoted: str) -> None:
        assert command(Request("msi", "C:\\p.msi", arguments=[argument])).command_line == f'msiexec.exe /i "C:\\p.msi" /qn /norestart {quoted}'

    def test_msi_string_stands_as_it_is(self) -> None:
        assert command(Request("msi", "C:\\p.msi", arguments='X="1 2" Y=3')).command_line.endswith(' /norestart X="1 2" Y=3')

    def test_msi_of_the_same_product_is_recached(self) -> None:
        assert "REINSTALL=ALL REINSTALLMODE=vomus" in command(Request("msi", "C:\\p.msi", same_product=True)).command_line

    def test_exe(self) -> None:
        assert command(Request("exe", "C:\\s.exe", arguments=["/S", "/D=C:\\a b"])).arguments == ("C:\\s.exe", "/S", "/D=C:\\a b")
        # NSIS wants the rest of the line, without quotes.
        assert command(Request("exe", f"{WINDOWS_PATH}.exe", arguments="/S /D=C:\\a b")).command_line == f'"{WINDOWS_PATH}.exe" /S /D=C:\\a b'

    def test_msu(self) -> None:
        assert command(Request("msu", "C:\\kb.msu")).arguments == ("wusa.exe", "C:\\kb.msu", "/quiet", "/norestart")

    def test_rpm(self) -> None:
        assert command(Request("rpm", LINUX_PATH, arguments="--nodeps")).arguments == ("rpm", "-U", "-v", "--nodeps", LINUX_PATH)
        assert command(Request("rpm", LINUX_PATH, reinstall=True, downgrade=True)).arguments == ("rpm", "-U", "-v", "--replacepkgs", "--oldpackage", LINUX_PATH)

    def test_deb_with_apt(self) -> None:
        made = command(Request("deb", LINUX_PATH, arguments=["--no-install-recommends"], has_apt=True, downgrade=True, reinstall=True, busy_timeout=7))
        assert made.arguments[:3] == ("apt-get", "-q", "-y")
        assert made.arguments[-5:] == ("install", "--reinstall", "--allow-downgrades", "--no-install-recommends", LINUX_PATH)
        assert "DPkg::Lock::Timeout=7" in made.arguments
        assert made.environment == {"DEBIAN_FRONTEND": "noninteractive"}

    def test_deb_without_apt(self) -> None:
        made = command(Request("deb", LINUX_PATH))
        assert made.arguments[0] == "dpkg"
        assert made.arguments[-2:] == ("-i", LINUX_PATH)
        assert made.environment == {"DEBIAN_FRONTEND": "noninteractive"}

    @pytest.mark.parametrize("kind", ["sh", "scexe"])
    def test_scripts(self, kind: str) -> None:
        assert command(Request(kind, LINUX_PATH, arguments="-s 'a b'")).arguments == (LINUX_PATH, "-s", "a b")
        assert command(Request(kind, LINUX_PATH, executable=False)).arguments == ("/bin/sh", LINUX_PATH)

    def test_arguments_that_no_shell_could_split(self) -> None:
        with pytest.raises(SojournError) as caught:
            command(Request("sh", LINUX_PATH, arguments="'a"))
        assert caught.value.code == "SD-102"

    def test_no_shell_reads_the_arguments(self) -> None:
        assert command(Request("sh", LINUX_PATH, arguments="; reboot $(x)")).arguments == (LINUX_PATH, ";", "reboot", "$(x)")

    @pytest.mark.parametrize(
        ("family", "path", "absolute"),
        [
            ("windows", "C:\\a", True),
            ("windows", "C:/a", True),
            ("windows", "\\\\server\\share\\a", True),
            ("windows", "a\\b", False),
            ("windows", "C:a", False),
            ("windows", "\\a", False),
            ("linux", "/a", True),
            ("linux", "a", False),
        ],
    )
    def test_absolute(self, family: str, path: str, absolute: bool) -> None:
        assert installers.is_absolute(family, path) is absolute


DPKG = [
    ("1.0", "1.0", 0),
    ("1.0-1", "1.0-1", 0),
    ("1.0", "1.0-1", -1),
    ("1.0-0", "1.0", 0),
    ("2.0", "10.0", -1),
    ("1.0~rc1", "1.0", -1),
    ("1.0~~", "1.0~", -1),
    ("1.0~~a", "1.0~", -1),
    ("1.0~", "1.0", -1),
    ("1.0+b1", "1.0", 1),
    ("1:1.0", "2.0", 1),
    ("0:1.0", "1.0", 0),
    ("1.0a", "1.0+", -1),
    ("1.2-3-4", "1.2-3-5", -1),
    ("1.2.3-1ubuntu1", "1.2.3-1", 1),
    ("007", "7", 0),
    ("1.0-1~bpo12+1", "1.0-1", -1),
]


class TestVersions:
    @pytest.mark.parametrize(("left", "right", "order"), DPKG)
    def test_dpkg(self, left: str, right: str, order: int) -> None:
        assert package_version.compare("dpkg", left, right) == order
        assert package_version.compare("dpkg", right, left) == -order

    @pytest.mark.skipif(not shutil.which("dpkg"), reason="compares with dpkg, which is not on this machine")
    @pytest.mark.parametrize(("left", "right", "order"), DPKG)
    def test_dpkg_itself_agrees(self, left: str, right: str, order: int) -> None:
        word = {-1: "lt", 0: "eq", 1: "gt"}[order]
        assert subprocess.run(["dpkg", "--compare-versions", left, word, right]).returncode == 0

    # From the tests of rpm itself (tests/rpmvercmp.at).
    @pytest.mark.parametrize(
        ("left", "right", "order"),
        [
            ("1.0", "1.0", 0),
            ("1.0", "2.0", -1),
            ("2.0.1", "2.0", 1),
            ("2.0.1a", "2.0.1", 1),
            ("5.5p1", "5.5p2", -1),
            ("5.5p10", "5.5p1", 1),
            ("10xyz", "10.1xyz", -1),
            ("xyz10", "xyz10.1", -1),
            ("xyz.4", "8", -1),
            ("xyz.4", "2", -1),
            ("5.5p2", "5.6p1", -1),
            ("6.0.rc1", "6.0", 1),
            ("10b2", "10a1", 1),
            ("1.0aa", "1.0a", 1),
            ("10.0001", "10.1", 0),
            ("10.0001", "10.0039", -1),
            ("4.999.9", "5.0", -1),
            ("20101121", "20101122", -1),
            ("2_0", "2.0", 0),
            ("a+", "a_", 0),
            ("+_", "_+", 0),
            ("1.0~rc1", "1.0", -1),
            ("1.0~rc1", "1.0~rc2", -1),
            ("1.0~rc1~git123", "1.0~rc1", -1),
            ("1.0^", "1.0", 1),
            ("1.0^git1", "1.0^git2", -1),
            ("1.0^git1", "1.01", -1),
            ("1.0^20160101", "1.0.1", -1),
            ("1.0^20160102", "1.0^20160101^git1", 1),
            ("1.0~rc1^git1", "1.0~rc1", 1),
            ("1.0^git1~pre", "1.0^git1", -1),
        ],
    )
    def test_rpm_part(self, left: str, right: str, order: int) -> None:
        assert package_version.compare_rpm_part(left, right) == order
        assert package_version.compare_rpm_part(right, left) == -order

    @pytest.mark.parametrize(
        ("left", "right", "order"),
        [("1.0-1", "1.0-2", -1), ("1:1.0-1", "2.0-1", 1), ("0:1.0-1", "1.0-1", 0), ("1.0", "1.0-7", 0), ("1.0-10.el9", "1.0-9.el9", 1)],
    )
    def test_rpm(self, left: str, right: str, order: int) -> None:
        assert package_version.compare("rpm", left, right) == order
        assert package_version.compare("rpm", right, left) == -order

    @pytest.mark.parametrize(
        ("left", "right", "order"),
        [("1.2", "1.2.0.0", 0), ("1.10", "1.9", 1), ("24.08", "24.8", 0), ("1.0 beta", "1.0", -1), ("4.2.0 (x64)", "4.2.1", -1), ("1.0", "1.0.1", -1)],
    )
    def test_windows(self, left: str, right: str, order: int) -> None:
        assert package_version.compare("windows", left, right) == order
        assert package_version.compare("windows", right, left) == -order


def entry(name: str, version: str | None, manager: str = "dpkg", **more: object) -> dict[str, object]:
    return {"manager": manager, "name": name, "version": version, "architecture": None, "id": None} | more


class TestDatabase:
    def test_name_and_architecture(self) -> None:
        entries = [entry("lib", "1", architecture="i386"), entry("lib", "2", architecture="amd64")]
        assert package_database.find(entries, package_database.Identity("dpkg", "lib", architecture="amd64")).version == "2"
        assert package_database.find(entries, package_database.Identity("dpkg", "lib", architecture="arm64")) is None
        assert package_database.find(entries, package_database.Identity("dpkg", "lib", architecture="all")).version == "2"
        assert package_database.find([entry("lib", "3", architecture="all")], package_database.Identity("dpkg", "lib", architecture="amd64")).version == "3"

    def test_versions_side_by_side(self) -> None:
        entries = [entry("kernel", "5-1", "rpm"), entry("kernel", "6-1", "rpm")]
        assert package_database.find(entries, package_database.Identity("rpm", "kernel")).version == "6-1"
        assert package_database.find(entries, package_database.Identity("rpm", "kernel", "5-1")).version == "5-1"

    def test_windows_by_id_by_name_and_by_pattern(self) -> None:
        entries = [entry("Tool 4.2 [x64]", "4.2", "windows", id="{A}"), entry("Other", None, "windows", id="Other")]
        identity = package_database.Identity
        assert package_database.find(entries, identity("windows", product_id="{a}")).version == "4.2"
        assert package_database.find(entries, identity("windows", "tool 4.2 [X64]")).version == "4.2"
        assert package_database.find(entries, identity("windows", "Tool * [x64]")).version == "4.2"
        assert package_database.find(entries, identity("windows", "Tool")) is None
        assert identity("windows", "Tool *").queries == [None]
        assert identity("windows", "Tool", product_id="{A}").queries == ["{A}", "Tool"]
        assert identity("dpkg", "a*").queries == ["a*"]

    @pytest.mark.parametrize(
        ("installed", "version", "options", "needed"),
        [
            (None, "1", {}, True),
            (None, None, {}, True),
            ("1", None, {}, False),
            ("1", None, {"reinstall": True}, True),
            ("1", "2", {}, True),
            ("2", "2", {}, False),
            ("2", "2", {"reinstall": True}, True),
            ("3", "2", {}, False),
            ("3", "2", {"reinstall": True}, False),
            ("3", "2", {"allow_downgrade": True}, True),
        ],
    )
    def test_decide(self, installed: str | None, version: str | None, options: dict[str, bool], needed: bool) -> None:
        there = package_database.Installed("dpkg", "x", installed, None) if installed else None
        assert package_database.decide(there, version, **options).needed is needed

    def test_a_version_that_windows_does_not_tell(self) -> None:
        there = package_database.Installed("windows", "x", None, None)
        assert package_database.decide(there, "1").needed
        assert not package_database.decide(there, None).needed
        assert package_database.missing_after(there, "1") is None

    @pytest.mark.parametrize(
        ("installed", "version", "downgrade", "missing"),
        [
            (None, "1", False, True),
            ("1", "1", False, False),
            ("1", "2", False, True),
            ("2", "1", False, False),
            ("2", "1", True, True),
            ("1", None, False, False),
        ],
    )
    def test_missing_after(self, installed: str | None, version: str | None, downgrade: bool, missing: bool) -> None:
        there = package_database.Installed("dpkg", "x", installed, None) if installed else None
        assert bool(package_database.missing_after(there, version, downgrade=downgrade)) is missing


class TestOutput:
    @pytest.mark.parametrize(
        ("data", "text"),
        [
            ("grün\r\nzwei\r\n".encode(), "grün\nzwei\n"),
            ("\ufeffgrün".encode(), "grün"),
            ("grün".encode("utf-16"), "grün"),
            ("a line of UTF-16".encode("utf-16-le"), "a line of UTF-16"),
            ("grün".encode("cp1252"), "grün"),
            (b"", ""),
        ],
    )
    def test_decode(self, data: bytes, text: str) -> None:
        assert decode(data) == text

    def test_tail_begins_with_a_line(self) -> None:
        text = "".join(f"line {number}\n" for number in range(20000))
        assert len(tail(text)) <= TAIL
        assert tail(text).startswith("line ")
        assert tail(text).endswith("line 19999\n")
        assert tail("short") == "short"

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le"])
    def test_tail_of_a_log(self, tmp_path, encoding: str) -> None:
        log = tmp_path / "log"
        log.write_bytes("".join(f"line {number} äöü\r\n" for number in range(60000)).encode(encoding))
        assert read_tail(str(log)).endswith("line 59999 äöü\n")
        assert read_tail(str(log)).startswith("line ")
        assert len(read_tail(str(log))) <= TAIL
        log.write_bytes("short\r\n".encode(encoding))
        assert read_tail(str(log)) == "short\n"

    def test_lines_stay_whole(self) -> None:
        shown: list[str] = []
        lines = Lines(shown.append)
        lines.feed("stdout", b"one\ntw")
        lines.feed("stderr", b"error\n")
        assert shown == ["one", "error"]
        lines.feed("stdout", "o ü\r\n10%\r20%\r\nrest".encode())
        lines.end()
        assert shown == ["one", "error", "two ü", "20%", "rest"]
        transcript = io.BytesIO()
        lines.write(transcript)
        assert transcript.getvalue() == "one\ntwerror\no ü\r\n10%\r20%\r\nrest".encode()

    def test_much_output_without_a_line_end_takes_neither_time_nor_memory(self) -> None:
        shown: list[str] = []
        lines = Lines(shown.append)
        piece = b"x" * (1 << 20)
        tracemalloc.start()
        try:
            for unused in range(200):
                lines.feed("stdout", piece)
            lines.end()
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()
        assert [len(line) for line in shown] == [LONGEST_LINE]

    def test_only_the_last_part_of_much_output_is_decoded(self) -> None:
        data = b"line\n" * (8 << 20)
        tracemalloc.start()
        try:
            text = decode_tail(data)
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()
        assert text.endswith("line\nline\n")
        assert TAIL - 5 <= len(text) <= TAIL
        assert decode_tail("ü\r\n".encode("cp1252")) == "ü\n"

    def test_nothing_acts_on_the_terminal(self) -> None:
        shown: list[str] = []
        Lines(shown.append).feed("stdout", b"\x1b[31mred\x1b[0m \x07bell\x1b]0;title\n")
        assert shown == ["red bell0;title"]

    def test_utf16_is_readable(self) -> None:
        shown: list[str] = []
        Lines(shown.append).feed("stdout", "one\r\ntwo\r\n".encode("utf-16-le"))
        assert shown == ["one", "two"]
