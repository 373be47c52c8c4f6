"""What a scanner of TLS (sslyze) says of the agent's port, by the strictest configuration that it knows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.integration.conftest import Controller
from tests.lab import cache
from tests.lab.commands import run

# In an environment of its own: it holds other libraries to versions that are not the newest.
SCANNER = "sslyze==6.3.1"
# Of the certificate, which is pinned: that nobody signed it, and that it has no end. It goes with the run, and a target's clock is not to be relied on.
NOT_ASKED_FOR = {"certificate_path_validation", "maximum_certificate_lifespan"}
SCAN = """
import json, sys
from sslyze import Scanner, ServerNetworkLocation, ServerScanRequest, ServerScanStatusEnum
from sslyze.mozilla_tls_profile.tls_config_checker import (
    MozillaTlsConfiguration, ServerNotCompliantWithTlsConfiguration, TlsConfigurationEnum, check_server_against_tls_configuration)

scanner = Scanner()
scanner.queue_scans([ServerScanRequest(ServerNetworkLocation("agent", port=int(sys.argv[2]), ip_address=sys.argv[1]))])
result = next(iter(scanner.get_results()))
issues = {}
if result.scan_status != ServerScanStatusEnum.COMPLETED:
    issues["scan"] = str(result.connectivity_error_trace or result.scan_status)
else:
    try:
        check_server_against_tls_configuration(result, MozillaTlsConfiguration.get(TlsConfigurationEnum.MOZILLA_MODERN))
    except ServerNotCompliantWithTlsConfiguration as error:
        issues = error.issues
    scanned = result.scan_result
    suites = [suite.cipher_suite.name for suite in scanned.tls_1_3_cipher_suites.result.accepted_cipher_suites]
    print(json.dumps({"issues": issues, "suites": suites}))
    sys.exit()
print(json.dumps({"issues": issues, "suites": []}))
"""


def scanner() -> Path:
    """A virtual environment with it, in the lab's cache."""

    def build(folder: Path) -> None:
        run([sys.executable, "-m", "venv", "--without-pip", folder])
        run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", folder / "bin/python", "install", SCANNER])

    return cache.ensure("scanner", cache.digest(SCANNER, sys.base_prefix), build)


def test_a_scanner_finds_nothing_to_complain_of(controller: Controller, target: Any, family: str) -> None:
    python = scanner() / "bin/python"
    agent = controller.agent(target, family)
    port = agent.deploy()["info"]["port"]
    done = controller.lab.run([str(python), "-c", SCAN, target.addresses.as_seen_from_the_lab(family), str(port)], timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name: words for name, words in found["issues"].items() if name not in NOT_ASKED_FOR} == {}
    assert found["suites"]
    assert agent.info()["port"] == port  # it serves its own all the same
    agent.remove()
