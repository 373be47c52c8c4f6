"""Packages as files: their kind, what they say of themselves, and the files that are not what their names say."""

from __future__ import annotations

import hashlib
import io
import shutil
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import libraries, package_file
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

CONTROL = "Package: hello\nVersion: 1:2.10-3\nArchitecture: amd64\nMaintainer: x <x@example.com>\nDescription: x\n"


def make_deb(path: Path, control: str = CONTROL, compression: str = "gz") -> Path:
    """A .deb as deb(5) describes it: an ar archive of a mark and two tar archives."""

    def tar(files: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return buffer.getvalue()

    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, data in (
            ("debian-binary", b"2.0\n"),
            (f"control.tar.{compression}", tar({"./control": control.encode()})),
            (f"data.tar.{compression}", tar({"./usr/bin/hello": b"x"})),
        ):
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2))
    return path


def make_rpm(path: Path, name: str = "hello", version: str = "2.10", release: str = "3", epoch: int | None = None) -> Path:
    """The lead, an empty signature and a header, as the RPM file format describes them; no payload."""
    tags: list[tuple[int, int, bytes]] = [(1000, 6, name.encode() + b"\0"), (1001, 6, version.encode() + b"\0"), (1002, 6, release.encode() + b"\0")]
    if epoch is not None:
        tags.append((1003, 4, struct.pack(">I", epoch)))
    tags.append((1022, 6, b"x86_64\0"))
    index, store = b"", b""
    for tag, kind, data in tags:
        if kind == 4:
            store += b"\0" * (-len(store) % 4)
        index += struct.pack(">IIII", tag, kind, len(store), 1)
        store += data
    lead = b"\xed\xab\xee\xdb\x03\x00" + struct.pack(">HH", 0, 1) + name.encode()[:65].ljust(66, b"\0") + struct.pack(">HH", 1, 5) + b"\0" * 16
    signature = b"\x8e\xad\xe8\x01\0\0\0\0" + struct.pack(">II", 0, 0)
    header = b"\x8e\xad\xe8\x01\0\0\0\0" + struct.pack(">II", len(tags), len(store)) + index + store
    path.write_bytes(lead + signature + header)
    return path


def raises(code: str, *words: str):
    """Expects this error, with these words in its one line."""

    class Expectation:
        def __enter__(self) -> None:
            self.context = pytest.raises(SojournError)
            self.caught = self.context.__enter__()

        def __exit__(self, *details: object) -> bool:
            result = self.context.__exit__(*details)
            assert self.caught.value.code == code, str(self.caught.value)
            for word in words:
                assert word in str(self.caught.value)
            assert "\n" not in str(self.caught.value)
            return bool(result)

    return Expectation()


class TestKind:
    @pytest.mark.parametrize(
        ("name", "content", "kind", "family"),
        [
            ("a.msi", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "msi", "windows"),
            ("a.MSI", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "msi", "windows"),
            ("a.exe", b"MZ\x90", "exe", "windows"),
            ("a.msu", b"MSCF\0", "msu", "windows"),
            ("a.msu", b"MSWIM\0\0\0", "msu", "windows"),
            ("a.rpm", b"\xed\xab\xee\xdb\x03", "rpm", "linux"),
            ("a.deb", b"!<arch>\ndebian-binary", "deb", "linux"),
            ("a.sh", b"echo", "sh", "linux"),
            ("a.run", b"#!/bin/sh", "sh", "linux"),
            ("UPDATE.BIN", b"#!/bin/sh", "sh", "linux"),
            ("CP012345.scexe", b"#!/bin/sh", "scexe", "linux"),
            # Without a suffix that tells.
            ("installer", b"MZ\x90", "exe", "windows"),
            ("installer", b"#!/bin/sh", "sh", "linux"),
            ("installer", b"\x7fELF", "sh", "linux"),
            ("package", b"!<arch>\ndebian-binary", "deb", "linux"),
            ("package-1.0", b"\xed\xab\xee\xdb\x03", "rpm", "linux"),
        ],
    )
    def test_found(self, tmp_path: Path, name: str, content: bytes, kind: str, family: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        package = package_file.identify(str(path))
        assert (package.kind, package.runs, package.family, package.size) == (kind, kind, family, len(content))

    def test_given(self, tmp_path: Path) -> None:
        path = tmp_path / "hpsetup.data"
        path.write_bytes(b"#!/bin/sh")
        assert package_file.identify(str(path), "scexe").kind == "scexe"

    @pytest.mark.parametrize("content", [b"%PDF-1.4", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"])
    def test_unknown(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "report"
        path.write_bytes(content)
        with raises("SD-104", "report", "msi, exe, msu, rpm, deb, sh, scexe, zip"):
            package_file.identify(str(path))

    def test_missing(self, tmp_path: Path) -> None:
        with raises("SD-103", "nothing.deb"):
            package_file.identify(str(tmp_path / "nothing.deb"))

    def test_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a.deb").mkdir()
        with raises("SD-107", "directory"):
            package_file.identify(str(tmp_path / "a.deb"))

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "a.sh").touch()
        with raises("SD-107", "empty"):
            package_file.identify(str(tmp_path / "a.sh"))

    @pytest.mark.parametrize("name", ["a.deb", "a.rpm", "a.msi", "a.exe", "a.zip", "a.msu"])
    def test_web_page_under_the_packages_name(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("<!DOCTYPE html><title>404</title>")
        with raises("SD-107", "<!DOCTYP"):
            package_file.identify(str(tmp_path / name))

    def test_entry_is_for_zips(self, tmp_path: Path) -> None:
        (tmp_path / "a.sh").write_text("x")
        with raises("SD-102", "entry"):
            package_file.identify(str(tmp_path / "a.sh"), entry="b.sh")


class TestZip:
    @pytest.fixture
    def archive(self, tmp_path: Path) -> str:
        path = tmp_path / "bundle.zip"
        make_deb(tmp_path / "hello.deb")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("win/setup.exe", b"MZ\x90")
            archive.writestr("linux\\setup.sh", b"#!/bin/sh")
            archive.writestr("readme.txt", b"x")
            archive.writestr("inner.zip", b"PK\x03\x04")
            archive.write(tmp_path / "hello.deb", "hello.deb", zipfile.ZIP_DEFLATED)
        return str(path)

    @pytest.mark.parametrize(
        ("entry", "runs", "family"),
        [("win/setup.exe", "exe", "windows"), ("win\\setup.exe", "exe", "windows"), ("./win/setup.exe", "exe", "windows"), ("linux/setup.sh", "sh", "linux")],
    )
    def test_entry(self, archive: str, entry: str, runs: str, family: str) -> None:
        package = package_file.identify(archive, entry=entry)
        assert (package.kind, package.runs, package.family) == ("zip", runs, family)

    def test_facts_of_the_entry(self, archive: str) -> None:
        facts = package_file.read_facts(package_file.identify(archive, "zip", "hello.deb"))
        assert (facts.name, facts.version) == ("hello", "1:2.10-3")

    def test_no_entry(self, archive: str) -> None:
        with raises("SD-102", "entry", "needs the name of the file"):
            package_file.identify(archive)

    def test_entry_that_is_not_there(self, archive: str) -> None:
        with raises("SD-102", "'setup.exe' is not in bundle.zip", "win/setup.exe"):
            package_file.identify(archive, entry="setup.exe")

    def test_entry_of_unknown_kind(self, archive: str) -> None:
        with raises("SD-104", "readme.txt"):
            package_file.identify(archive, entry="readme.txt")

    def test_entry_that_is_a_zip(self, archive: str) -> None:
        with raises("SD-102", "zip itself"):
            package_file.identify(archive, entry="inner.zip")

    def test_damaged(self, tmp_path: Path) -> None:
        (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and no more")
        with raises("SD-107", "zip"):
            package_file.identify(str(tmp_path / "a.zip"), entry="x")


class TestChecksum:
    def test_verified(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"x")
        digest = hashlib.sha256(b"x").hexdigest()
        package_file.verify_checksum(str(path), package_file.read_checksum(f"sha256:{digest.upper()}"))
        package_file.verify_checksum(str(path), package_file.read_checksum(digest))
        package_file.verify_checksum(str(path), package_file.read_checksum(None))
        with raises("SD-106", digest, "0" * 64):
            package_file.verify_checksum(str(path), "0" * 64)

    @pytest.mark.parametrize(("text", "detail"), [("md5:" + "0" * 32, "'md5' is not supported"), ("abc", "64 hexadecimal digits"), ("sha256:", "64")])
    def test_bad(self, text: str, detail: str) -> None:
        with raises("SD-102", "checksum", detail):
            package_file.read_checksum(text)


class TestFacts:
    @pytest.mark.parametrize("compression", ["gz", "xz", "bz2"])
    def test_deb(self, tmp_path: Path, compression: str) -> None:
        facts = package_file.read_facts(package_file.identify(str(make_deb(tmp_path / "a.deb", compression=compression))))
        assert facts == package_file.Facts("hello", "1:2.10-3", "amd64")

    @pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb, which is not on this machine")
    @pytest.mark.parametrize("compression", ["gzip", "xz", "zstd"])
    def test_real_deb(self, tmp_path: Path, compression: str) -> None:
        (tmp_path / "tree/DEBIAN").mkdir(parents=True)
        (tmp_path / "tree/DEBIAN/control").write_text(CONTROL)
        made = subprocess.run(
            ["dpkg-deb", f"-Z{compression}", "--uniform-compression", "--build", "tree", "a.deb"], cwd=tmp_path, capture_output=True, text=True
        )
        if compression == "zstd" and "unknown compression" in made.stderr:
            pytest.skip("this dpkg-deb has no zstd")
        assert made.returncode == 0, made.stderr
        assert package_file.read_facts(package_file.identify(str(tmp_path / "a.deb"))) == package_file.Facts("hello", "1:2.10-3", "amd64")

    @pytest.mark.parametrize(("epoch", "version"), [(None, "2.10-3"), (0, "2.10-3"), (2, "2:2.10-3")])
    def test_rpm(self, tmp_path: Path, epoch: int | None, version: str) -> None:
        facts = package_file.read_facts(package_file.identify(str(make_rpm(tmp_path / "a.rpm", epoch=epoch))))
        assert facts == package_file.Facts("hello", version, "x86_64")

    @pytest.mark.skipif(not shutil.which("rpmbuild"), reason="needs rpmbuild, which is not on this machine")
    def test_real_rpm(self, tmp_path: Path) -> None:
        (tmp_path / "a.spec").write_text(
            "Name: hello\nVersion: 2.10\nRelease: 3\nEpoch: 1\nSummary: x\nLicense: MIT\nBuildArch: noarch\n%description\nx\n%files\n"
        )
        subprocess.run(["rpmbuild", "-bb", "--quiet", "--define", f"_topdir {tmp_path}/top", "a.spec"], cwd=tmp_path, check=True, capture_output=True)
        (path,) = (tmp_path / "top").rglob("*.rpm")
        assert package_file.read_facts(package_file.identify(str(path))) == package_file.Facts("hello", "1:2.10-3", "noarch")

    @pytest.mark.skipif(not shutil.which("wixl"), reason="needs wixl, which is not on this machine")
    def test_real_msi(self, tmp_path: Path) -> None:
        (tmp_path / "file.txt").write_text("x")
        (tmp_path / "a.wxs").write_text(
            """<?xml version="1.0"?><Wix xmlns="http://schemas.microsoft.com/wix/2006/wi">
            <Product Id="{11111111-2222-3333-4444-555555555555}" Name="A Tool" Language="1033" Version="4.2.1" Manufacturer="x"
                UpgradeCode="{21111111-2222-3333-4444-555555555555}">
              <Package InstallerVersion="200" Compressed="yes"/><Media Id="1" Cabinet="a.cab" EmbedCab="yes"/>
              <Directory Id="TARGETDIR" Name="SourceDir"><Directory Id="ProgramFilesFolder">
                <Component Id="c" Guid="{31111111-2222-3333-4444-555555555555}"><File Id="f" Source="file.txt" KeyPath="yes"/></Component>
              </Directory></Directory>
              <Feature Id="F" Level="1"><ComponentRef Id="c"/></Feature></Product></Wix>"""
        )
        subprocess.run(["wixl", "-o", "a.msi", "a.wxs"], cwd=tmp_path, check=True, capture_output=True)
        facts = package_file.read_facts(package_file.identify(str(tmp_path / "a.msi")))
        assert facts == package_file.Facts("A Tool", "4.2.1", None, "{11111111-2222-3333-4444-555555555555}")

    @pytest.mark.parametrize(("code_page", "encoding"), [(65001, "utf-8"), (1252, "cp1252"), (0, "latin-1"), (932, "cp932"), (12345, "latin-1")])
    @pytest.mark.parametrize("width", [2, 3])
    def test_msi_properties(self, code_page: int, encoding: str, width: int) -> None:
        name = "テスト" if encoding == "cp932" else "Größe"
        strings = ["ProductName", name, "", "Long", "x" * 70000, "ProductVersion", "4.2"]
        pool = struct.pack("<I", code_page | (0x80000000 if width == 3 else 0))
        for text in strings:
            data = text.encode(encoding)
            if len(data) > 0xFFFF:
                pool += struct.pack("<HHI", 0, 1, len(data))
            else:
                pool += struct.pack("<HH", len(data), 1 if text else 0)
        columns = [1, 4, 6], [2, 5, 7]
        streams = {
            "_StringPool": pool,
            "_StringData": b"".join(text.encode(encoding) for text in strings),
            "Property": b"".join(number.to_bytes(width, "little") for column in columns for number in column),
        }
        assert package_file.read_msi_properties(streams.__getitem__) == {"ProductName": name, "Long": "x" * 70000, "ProductVersion": "4.2"}

    def test_msi_stream_names(self) -> None:
        # As they stand in every .msi.
        assert package_file.msi_stream_name("Property") == "\u4840\u4559\u44f2\u4568\u4737"
        assert package_file.msi_stream_name("_StringPool") == "\u4840\u3f3f\u4577\u446c\u3e6a\u44b2\u482f"

    @pytest.mark.parametrize("name", ["a.exe", "a.sh", "a.msu"])
    def test_kinds_that_say_nothing(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes({"a.exe": b"MZ", "a.sh": b"x", "a.msu": b"MSCF"}[name])
        assert package_file.read_facts(package_file.identify(str(tmp_path / name))) == package_file.Facts()

    @pytest.mark.parametrize("kind", ["deb", "rpm", "msi"])
    @pytest.mark.parametrize("size", [20, 200])
    def test_cut_off(self, tmp_path: Path, kind: str, size: int) -> None:
        path = tmp_path / f"a.{kind}"
        if kind == "deb":
            make_deb(path)
        elif kind == "rpm":
            make_rpm(path)
        else:
            path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600)
        path.write_bytes(path.read_bytes()[:size])
        with raises("SD-107", path.name):
            package_file.read_facts(package_file.identify(str(path)))

    @pytest.mark.parametrize(("kind", "library"), [("deb", "python-debian"), ("rpm", "rpmfile"), ("msi", "olefile")])
    def test_missing_library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, library: str) -> None:
        monkeypatch.setattr(package_file, "library", lambda name: libraries._Missing(name, ImportError(f"No module named '{name}'")))
        path = tmp_path / f"a.{kind}"
        path.write_bytes({"deb": b"!<arch>\ndebian-binary", "rpm": b"\xed\xab\xee\xdb", "msi": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"}[kind])
        with raises("SD-901", library):
            package_file.read_facts(package_file.identify(str(path)))
