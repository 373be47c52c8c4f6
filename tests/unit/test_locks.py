"""The lock files: what the requirements files name is in them, with hashes, and they agree; and what the audit makes of an answer."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = {
    "tests/requirements-pip.lock": ("tests/requirements-pip.txt",),
    "tests/requirements.lock": ("requirements.txt", "tests/requirements.txt"),
    "tests/requirements-kerberos.lock": ("tests/requirements-kerberos.txt",),
    "tests/requirements-pins.lock": ("tests/requirements-pins.txt",),
    "tests/requirements-go.lock": ("tests/requirements-go.txt",),
    "requirements.lock": ("requirements.txt",),
}


def locked(name: str) -> dict[str, list[Requirement]]:
    """The packages of a lock file, by name: one for each set of Pythons. Each has hashes."""
    found: dict[str, list[Requirement]] = {}
    text = re.sub(r"(?m)^\s*#.*\n?", "", (ROOT / name).read_text()).replace("\\\n", " ")
    for line in text.splitlines():
        head, *hashes = line.split("--hash=")
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", one.strip()) for one in hashes), line
        requirement = Requirement(head)
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], line
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def versions(requirements: list[Requirement]) -> set[str]:
    return {specifier.version for requirement in requirements for specifier in requirement.specifier}


@pytest.mark.parametrize(("lock", "files"), LOCKS.items(), ids=LOCKS)
def test_what_is_required_is_locked(lock: str, files: tuple[str, ...]) -> None:
    """Else: `make lock`."""
    found = locked(lock)
    for file in files:
        for line in (ROOT / file).read_text().splitlines():
            if line.strip() and not line.startswith("#"):
                wanted = Requirement(line)
                here = found.get(canonicalize_name(wanted.name))
                assert here, f"{wanted.name} of {file} is not in {lock}"
                assert all(wanted.specifier.contains(version) for version in versions(here)), f"{lock} has {versions(here)} for {wanted}"


def test_the_lock_files_agree() -> None:
    """They go into one environment."""
    whole = locked("tests/requirements.lock")
    for name in LOCKS:
        for package, requirements in locked(name).items():
            if package in whole:
                assert versions(requirements) <= versions(whole[package]), f"{package} in {name}"


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_each_python_gets_one_version(python: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    for package, requirements in locked("tests/requirements.lock").items():
        good = [one for one in requirements if one.marker is None or Marker(str(one.marker)).evaluate(environment)]
        assert len(good) <= 1, f"{package}: {[str(one) for one in good]}"
        if package in ("ansible-core", "zeep", "smbprotocol"):
            assert good, package


def test_no_lock_file_says_where_packages_were_fetched() -> None:
    """Nobody else may have that place."""
    for name in LOCKS:
        assert "://" not in (ROOT / name).read_text() and "--index" not in (ROOT / name).read_text()


def test_the_virtual_environment_is_made_by_hash() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "--require-hashes" in makefile and not re.findall(r"pip install(?!.*--require-hashes)[^\n]*--requirement", makefile)


# The audit


@pytest.fixture
def audit() -> Any:
    loader = importlib.machinery.SourceFileLoader("audit", str(ROOT / "scripts/audit"))
    spec = importlib.util.spec_from_loader("audit", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


GOOD = {"name": "good", "version": "1", "vulns": []}
SKIPPED = {"name": "unknown", "skip_reason": "not found on PyPI"}
BAD = {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}


@pytest.mark.parametrize(
    ("packages", "modules", "code", "words"),
    [
        ([GOOD], ([], []), 0, "All was looked up"),
        ([GOOD, SKIPPED], ([], []), 2, "NOT LOOKED UP: 1 of 2 packages"),
        ([GOOD], ([], ["the agent's Go modules: no network"]), 2, "NOT LOOKED UP: the agent's Go modules"),
        ([GOOD, BAD, SKIPPED], ([], []), 1, "VULNERABLE: bad 2: PYSEC-1, mended in 3"),
        ([GOOD], (["GO-1"], []), 1, "VULNERABLE: GO-1"),
    ],
)
def test_the_audit_claims_no_more_than_it_saw(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], audit: Any, packages: list[Any], modules: Any, code: int, words: str
) -> None:
    monkeypatch.setattr(audit, "python_packages", lambda lock: audit.judged(packages, lock))
    monkeypatch.setattr(audit, "go_modules", lambda unused: modules)
    monkeypatch.setattr(audit.sys, "argv", ["audit", "go"])
    assert audit.main() == code
    assert words in capsys.readouterr().out


def test_the_audit_looks_at_every_lock_file(audit: Any) -> None:
    assert set(audit.LOCKS) == set(LOCKS)
