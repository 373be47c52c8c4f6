"""Makes the collection importable for every test: as it is installed where ANSIBLE_COLLECTIONS_PATH says, else as it lies here."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


def collections_path() -> Path:
    """A folder that has ansible_collections/sojourn/deploy in it."""
    for entry in os.environ.get("ANSIBLE_COLLECTIONS_PATH", "").split(":"):
        if entry and (Path(entry) / "ansible_collections/sojourn/deploy/plugins").is_dir():
            return Path(entry)
    folder = Path(tempfile.gettempdir()) / f"sojourn-deploy-checkout-{os.geteuid()}"
    link = folder / "ansible_collections/sojourn/deploy"
    link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not link.is_symlink() or link.resolve() != CHECKOUT:
        aside = link.with_name(f"deploy-{os.getpid()}")
        aside.symlink_to(CHECKOUT)
        aside.replace(link)  # at once: another worker may do the same
    return folder


COLLECTIONS = collections_path()
os.environ["ANSIBLE_COLLECTIONS_PATH"] = str(COLLECTIONS)
if str(COLLECTIONS) not in sys.path:
    sys.path.insert(0, str(COLLECTIONS))
if str(CHECKOUT) not in sys.path:
    sys.path.append(str(CHECKOUT))  # tests.lab

from tests import parallel
from tests.parallel import give_way, say  # noqa: F401  fixtures


def pytest_configure(config: pytest.Config) -> None:
    """Tests may run beside one another."""
    parallel.install(config)


@pytest.fixture(autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test takes over another's sessions, nor the user's: a folder for them of its own."""
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder
