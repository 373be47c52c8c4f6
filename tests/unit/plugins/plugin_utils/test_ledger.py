"""The ledger: what became of the packages of a run that was cut off, and the word left for the next run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import ledger
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.ledger import INSTALLING, PENDING, Ledger

CODES = {"0": ["installed", "installed"], "3010": ["reboot_required", "installed, reboot required"]}


def test_what_had_not_begun_is_dropped() -> None:
    made = Ledger()
    first, second = (made.note("web1", None, package=name) for name in ("a.deb", "b.deb"))
    made.note("web1", first, state=INSTALLING, codes=CODES)
    assert made.unfinished
    row = made.ended(first, {"exit_code": 3010, "timed_out": False, "seconds": 1.0})
    assert row is not None and (row.state, row.msg) == ("reboot_required", "exit code 3010: installed, reboot required")
    assert [(row.package, row.state) for row in made.cut_off()] == [("b.deb", "dropped")]
    assert [(row.package, row.state) for row in made.rows] == [("a.deb", "reboot_required"), ("b.deb", "dropped")]
    assert not made.unfinished and second != first


def test_what_had_begun_and_was_not_followed_is_told_too() -> None:
    made = Ledger()
    made.note("web1", None, package="busy", state=INSTALLING)
    (row,) = made.cut_off()
    assert row.state == "failed" and "nobody knows" in row.msg


@pytest.mark.parametrize(
    ("end", "state", "words"),
    [
        ({"exit_code": 0, "timed_out": False}, "installed", "exit code 0: installed"),
        ({"exit_code": 7, "timed_out": False}, "failed", "exit code 7: a code that"),
        ({"exit_code": None, "timed_out": False}, "failed", "it was killed"),
        ({"exit_code": 1, "timed_out": True}, "failed", "did not end in time"),
        (SojournError("SD-503", detail="gone"), "failed", "nobody knows how it ended"),
        (OSError(), "failed", "nobody knows how it ended: OSError"),
    ],
)
def test_how_an_installation_ended(end: object, state: str, words: str) -> None:
    made = Ledger()
    number = made.note("web1", None, package="a", state=INSTALLING, codes=CODES)
    row = made.ended(number, end)  # type: ignore[arg-type]
    assert row is not None and row.state == state and words in row.msg


def test_a_key_of_another_broker_is_a_row_of_its_own() -> None:
    made = Ledger()
    assert made.ended(None, {}) is None and made.ended("of another", {}) is None
    first = made.note("web1", None, package="a")
    assert made.note("web2", "of another", package="b", state="installed") == "of another" != first
    assert [(row.host, row.package, row.state) for row in made.rows] == [("web1", "a", PENDING), ("web2", "b", "installed")]


def test_what_its_process_came_to_counts_until_something_is_made_of_it() -> None:
    """The run may be cut off between the installer's end and the look whether the package is there."""
    made = Ledger()
    key = made.note("web1", None, package="a", state=INSTALLING, codes={"0": ["installed", "installed"]})
    made.ended(key, {"exit_code": 0, "timed_out": False}, final=False)
    assert made.unfinished and [(row.state, row.msg) for row in made.cut_off()] == [("installed", "exit code 0: installed")]
    other = made.note("web1", None, package="b", state=INSTALLING, codes={"0": ["installed", "installed"]})
    made.ended(other, {"exit_code": 0, "timed_out": False}, final=False)
    made.note("web1", other, state="failed", msg="it is not there")
    assert not made.cut_off() and made.rows[1].state == "failed"


def test_word_is_left_once(state_home: Path) -> None:
    made = Ledger()
    made.note("web1", None, package="a")
    ledger.leave("0123456789ab", made.cut_off())
    (file,) = (state_home / "sojourn").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    (word,) = ledger.take()
    assert word["rows"] == [{"host": "web1", "package": "a", "state": "dropped", "msg": "the run was cut off before it began"}]
    assert ledger.take() == [] and not file.exists()


def test_nonsense_is_passed_over(state_home: Path) -> None:
    (state_home / "sojourn").mkdir()
    (state_home / "sojourn/cut-off-x.json").write_text("{")
    assert ledger.take() == []
