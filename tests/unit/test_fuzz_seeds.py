"""The seeds of the agent's fuzz targets are what the controller sends today."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("zeep")


def seeds(folder: Path) -> dict[str, str]:
    """By their place. The library that carries them names its version."""
    return {str(path.relative_to(folder)): re.sub(r"python-urllib3/[0-9.]+", "python-urllib3", path.read_text(encoding="ascii"))
            for path in folder.glob("*/testdata/fuzz/*/*")}  # fmt: skip


def test_seeds_are_what_is_sent(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts/fuzz-seeds", tmp_path], check=True, capture_output=True, timeout=120)
    made, kept = seeds(tmp_path), seeds(ROOT / "agent/internal")
    assert len(made) > 50
    assert {name: kept.get(name) for name in made} == made, "scripts/fuzz-seeds"
