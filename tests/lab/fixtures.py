"""Packages to deploy: real ones, made by the real tools, built once into the cache.

A `.msu` is not among them: it needs Windows' own servicing stack, which Wine's wusa doesn't have.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

from . import cache
from .commands import run
from .programs import windows_programs
from .rootfs import HERE

SOURCE = HERE / "files/fixtures"

NAMES = {
    # Windows
    "nsis-1.0.0": "sojourn-demo-1.0.0-setup.exe",
    "nsis-1.1.0": "sojourn-demo-1.1.0-setup.exe",
    "msi-1.0.0": "sojourn-demo-1.0.0.msi",
    "exe": "sojourn-demo.exe",
    "zip-windows": "sojourn-demo-windows.zip",
    # Linux
    "deb-1.0": "sojourn-demo_1.0_all.deb",
    "deb-1.1": "sojourn-demo_1.1_all.deb",
    "rpm-1.0": "sojourn-demo-1.0-1.noarch.rpm",
    "sh": "sojourn-demo.sh",
    "scexe": "SD000001.scexe",
    "behave": "sojourn-behave.sh",
    "zip-linux": "sojourn-demo-linux.zip",
}


def fixtures() -> dict[str, Path]:
    """Every package by a short name; built when missing."""
    programs = windows_programs()
    key = cache.digest(programs.name, SOURCE, Path(__file__))
    folder = cache.ensure("fixtures", key, lambda aside: _build(aside, programs))
    return {name: folder / file for name, file in NAMES.items()}


def _build(folder: Path, programs: Path) -> None:
    folder.mkdir()
    scratch = folder / "scratch"
    scratch.mkdir()
    _windows(folder, scratch, programs)
    _linux(folder, scratch)
    shutil.rmtree(scratch)


def _windows(folder: Path, scratch: Path, programs: Path) -> None:
    for version in ("1.0.0", "1.1.0"):
        output = folder / NAMES[f"nsis-{version}"]
        run(["makensis", "-V2", f"-DVERSION={version}", f"-DOUTPUT={output}", SOURCE / "demo.nsi"])
    (scratch / "version.txt").write_text("1.0.0\r\n")
    run(["wixl", "-o", folder / NAMES["msi-1.0.0"], SOURCE / "demo.wxs"], cwd=scratch)
    shutil.copy(programs / "demo.exe", folder / NAMES["exe"])
    with zipfile.ZipFile(folder / NAMES["zip-windows"], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(programs / "demo.exe", "setup.exe")
        archive.writestr("data/version.txt", "1.0\r\n")


def _linux(folder: Path, scratch: Path) -> None:
    for version in ("1.0", "1.1"):
        _deb(folder / NAMES[f"deb-{version}"], scratch / f"deb-{version}", version)
    top = scratch / "rpm"
    run(["rpmbuild", "-bb", "--define", f"_topdir {top}", "--define", f"_dbpath {top}/db", SOURCE / "demo.spec"])
    (rpm,) = top.glob("RPMS/noarch/*.rpm")
    shutil.copy(rpm, folder / NAMES["rpm-1.0"])

    install = (SOURCE / "install.sh").read_bytes()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in {"install.sh": install, "data/version.txt": b"1.0\n"}.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    for name in ("sh", "scexe"):
        _executable(folder / NAMES[name], (SOURCE / "selfextract.sh").read_bytes() + packed.getvalue())
    _executable(folder / NAMES["behave"], (SOURCE / "behave.sh").read_bytes())
    with zipfile.ZipFile(folder / NAMES["zip-linux"], "w", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo("install.sh")
        entry.external_attr = 0o100755 << 16
        archive.writestr(entry, install)
        archive.writestr("data/version.txt", "1.0\n")


def _deb(output: Path, tree: Path, version: str) -> None:
    control = tree / "DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text(
        f"Package: sojourn-demo\nVersion: {version}\nArchitecture: all\nMaintainer: sojourn.deploy <nobody@example.invalid>\n"
        "Description: A package to deploy\n Installs one file, so that its coming and going can be seen.\n"
    )
    content = tree / "usr/share/sojourn-demo-deb/version.txt"
    content.parent.mkdir(parents=True)
    content.write_text(f"{version}\n")
    run(["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree, output])


def _executable(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o755)
