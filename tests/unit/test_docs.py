"""The documentation: what is made from code is up to date, and links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path for pattern in ("*.md", "docs/*.md", "roles/*/*.md", "tests/**/*.md") for path in ROOT.glob(pattern))


def test_the_page_of_errors_is_that_of_the_catalogue() -> None:
    made = subprocess.run([sys.executable, ROOT / "scripts/errors-doc"], check=True, capture_output=True, text=True).stdout
    assert (ROOT / "docs/errors.md").read_text(encoding="utf-8") == made, "scripts/errors-doc > docs/errors.md"


def test_the_page_of_conformance_is_that_of_its_table() -> None:
    made = subprocess.run([sys.executable, ROOT / "scripts/conformance-doc"], check=True, capture_output=True, text=True).stdout
    assert (ROOT / "docs/conformance.md").read_text(encoding="utf-8") == made, "scripts/conformance-doc > docs/conformance.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_the_page_on_ssh_names_the_environment_that_commands_see() -> None:
    from ansible_collections.sojourn.deploy.plugins.plugin_utils import broker_client

    (told,) = re.findall(r"of its environment (.*?)Other variables", (ROOT / "docs/ssh.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert re.findall(r"`(\w+)`", told) == [*broker_client._ENVIRONMENT, *broker_client._ENVIRONMENT_PREFIXES]


def test_tests_that_the_page_on_trust_names_are_there() -> None:
    """In a table's last column: a file (`test_...`), then what it has; or one of the agent's (`Test...`)."""
    agents = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "agent").rglob("*_test.go"))
    named = 0
    for line in (ROOT / "docs/security.md").read_text(encoding="utf-8").splitlines():
        text = ""
        for word in re.findall(r"`(\w+)`", line.rsplit("|", 2)[-2]) if line.count("|") == 4 else []:
            if word.startswith("test_"):
                paths = list((ROOT / "tests").rglob(f"{word}.py"))  # a lab test and a unit test may have one name
                assert paths, word
                text = "".join(path.read_text(encoding="utf-8") for path in paths)
            elif word.startswith(("Test", "Fuzz")):
                named += 1
                assert f"func {word}(" in agents, word
            else:
                named += 1
                assert f"def test_{word}(" in text, word
    assert named > 20
