"""The agent's executables as they are shipped: what is in them, and that those for Windows can be signed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import CHECKOUT, COLLECTIONS
from tests.integration.conftest import Controller

DIST = COLLECTIONS / "ansible_collections/sojourn/deploy/agent/dist"


def test_the_bill_of_materials_is_that_of_the_executables() -> None:
    bill = json.loads((DIST / "sojourn-agent.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    parts = {part["bom-ref"]: part for part in bill["components"]}
    told = {part["name"]: part["hashes"][0]["content"] for part in parts.values() if part["type"] == "application"}
    assert told == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in DIST.glob("sojourn-agent-*")}
    assert len(told) == 4
    sums = (CHECKOUT / "agent/go.sum").read_text().splitlines()
    libraries = {part["name"]: part for part in parts.values() if part["type"] == "library"}
    assert "std" in libraries and len(libraries) > 1
    for name, part in libraries.items():
        if name != "std":
            assert f"{name} {part['version']} {part['properties'][0]['value']}" in sums
    for dependency in bill["dependencies"]:
        assert set(dependency["dependsOn"]) <= set(parts)


def test_make_signs_before_it_writes_the_bill() -> None:
    """What the bill says of an executable is of the one that is shipped."""
    words = ["make", "--no-print-directory", "--dry-run", "agent", "SIGN=-pkcs12 store.p12 -readpass password"]
    lines = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.splitlines()
    order = [next(number for number, line in enumerate(lines) if word in line) for word in ("agent/build.sh", "agent/sign.sh", "scripts/sbom")]
    assert order == sorted(order) and "agent/sign.sh agent/dist -pkcs12 store.p12 -readpass password" in lines[order[1]]


def test_executables_for_windows_can_be_signed(controller: Controller, windows_target: Any, tmp_path: Path) -> None:
    """By `make agent SIGN=...`; what is signed is the same program, and runs."""
    key, certificate, store, password = (tmp_path / name for name in ("key.pem", "certificate.pem", "store.p12", "password"))
    password.write_text("Geheim1!")
    password.chmod(0o600)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=Signer of the tests", "-keyout", key, "-out", certificate,
         "-addext", "extendedKeyUsage=codeSigning", "-addext", "keyUsage=digitalSignature"],
        check=True, capture_output=True)  # fmt: skip
    subprocess.run(["openssl", "pkcs12", "-export", "-inkey", key, "-in", certificate, "-out", store, "-passout", f"file:{password}"], check=True)
    folder = tmp_path / "dist"
    folder.mkdir()
    for path in DIST.glob("sojourn-agent-*"):
        shutil.copy(path, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    sign = CHECKOUT / "agent/sign.sh"
    refused = subprocess.run([sign, folder, "-pkcs12", store, "-pass", "x"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "-readpass" in refused.stderr
    subprocess.run([sign, folder, "-pkcs12", store, "-readpass", password], check=True, capture_output=True)
    changed = {path.name for path in folder.iterdir() if path.read_bytes() != before.get(path.name)}
    assert changed == {name for name in before if name.endswith(".exe")}
    for name in changed:
        verify = ["osslsigncode", "verify", "-CAfile", certificate, "-in"]
        subprocess.run([*verify, folder / name], check=True, capture_output=True)
        damaged = bytearray((folder / name).read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (tmp_path / "damaged.exe").write_bytes(damaged)
        assert subprocess.run([*verify, tmp_path / "damaged.exe"], capture_output=True, check=False).returncode
    agent = controller.agent(windows_target)
    path = agent.put_file(str(folder / "sojourn-agent-windows-amd64.exe"), "signed.exe")["path"]
    shown = agent.execute([path, "version"])
    assert shown["exit_code"] == 0
    assert shown["stdout"].strip() == agent.info()["agent_version"].encode()
    agent.remove()
