"""Every row of the vendors' tables of return codes, and the maps that users write."""

from __future__ import annotations

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import return_codes
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

ROWS = [
    # HP Windows packages: zero is a failure.
    ("hp_windows", 0, "failed"),
    ("hp_windows", 1, "installed"),
    ("hp_windows", 2, "reboot_required"),
    ("hp_windows", 3, "not_applicable"),
    # HP Linux packages, one target.
    ("hp_linux", 0, "installed"),
    ("hp_linux", 1, "reboot_required"),
    ("hp_linux", 2, "not_applicable"),
    ("hp_linux", 3, "failed"),
    # HP Linux packages, several devices.
    ("hp_linux_devices", 0, "installed"),
    ("hp_linux_devices", 1, "reboot_required"),
    ("hp_linux_devices", 2, "already_current"),
    ("hp_linux_devices", 3, "not_applicable"),
    ("hp_linux_devices", 4, "failed"),
    ("hp_linux_devices", 5, "failed"),
    # HP SUM itself.
    ("hp_sum", 0, "installed"),
    ("hp_sum", 1, "reboot_required"),
    ("hp_sum", 3, "not_applicable"),
    ("hp_sum", -1, "failed"),
    ("hp_sum", -2, "failed"),
    ("hp_sum", -3, "failed"),
    ("hp_sum", 255, "failed"),
    ("hp_sum", 254, "failed"),
    ("hp_sum", 253, "failed"),
    # Windows Installer.
    ("msi", 0, "installed"),
    ("msi", 3010, "reboot_required"),
    ("msi", 1641, "reboot_required"),
    ("msi", 1638, "failed"),
    ("msi", 1618, "failed"),
    ("msi", 1602, "failed"),
    ("msi", 1603, "failed"),
    ("exe", 3010, "reboot_required"),
    # Windows updates, as unsigned and as signed number.
    ("msu", 0x00240006, "already_current"),
    ("msu", 0x80240017, "not_applicable"),
    ("msu", -2145124329, "not_applicable"),
    ("msu", 3010, "reboot_required"),
    # Dell.
    ("dell", 0, "installed"),
    ("dell", 1, "failed"),
    ("dell", 2, "reboot_required"),
    ("dell", 3, "already_current"),
    ("dell", 4, "failed"),
    ("dell", 5, "not_applicable"),
    ("dell", 6, "reboot_required"),
    ("generic", 0, "installed"),
    ("generic", 1, "failed"),
]


@pytest.mark.parametrize(("table", "code", "state"), ROWS)
def test_table(table: str, code: int, state: str) -> None:
    outcome = return_codes.outcome(return_codes.TABLES[table], code)
    assert outcome.state == state
    assert outcome.meaning
    assert outcome.changed == (state in ("installed", "reboot_required"))


@pytest.mark.parametrize("table", sorted(return_codes.TABLES))
def test_every_table_has_a_success_and_known_states(table: str) -> None:
    states = {outcome.state for outcome in return_codes.TABLES[table].values()}
    assert "installed" in states
    assert states <= set(return_codes.STATES)


@pytest.mark.parametrize("code", [17, 0xC0000005])
def test_unknown_code_is_a_failure(code: int) -> None:
    for table in return_codes.TABLES.values():
        outcome = return_codes.outcome(table, code)
        assert outcome.state == "failed"
        assert "does not name" in outcome.meaning


def test_windows_exception_is_shown_in_hexadecimal() -> None:
    assert "0xC0000005" in return_codes.outcome(return_codes.TABLES["exe"], 0xC0000005).meaning


def test_only_a_running_installation_is_busy() -> None:
    assert [code for code, outcome in return_codes.TABLES["msi"].items() if outcome.busy] == [1618]


@pytest.mark.parametrize(("kind", "table"), sorted(return_codes.DEFAULT_TABLES.items()))
def test_default_table(kind: str, table: str) -> None:
    assert return_codes.read_table(None, kind) is return_codes.TABLES[table]


def test_named_table() -> None:
    assert return_codes.read_table("dell", "exe") is return_codes.TABLES["dell"]


def test_own_map_is_laid_over_the_kinds_table() -> None:
    table = return_codes.read_table(
        {5: "installed", "0x80240017": {"state": "not_applicable", "meaning": "not for this one"}, "-1": "failed", 3010: "installed"}, "exe"
    )
    assert return_codes.outcome(table, 5).state == "installed"
    assert return_codes.outcome(table, 0x80240017).meaning == "not for this one"
    assert return_codes.outcome(table, 0xFFFFFFFF).state == "failed"
    assert return_codes.outcome(table, 3010).state == "installed"
    assert return_codes.outcome(table, 0).state == "installed", "codes that the map does not name keep their meaning"


@pytest.mark.parametrize(
    ("option", "detail"),
    [
        ("hp", "'hp' is not a table; the tables are dell, exe"),
        ({"x": "installed"}, "'x' is not a number"),
        ({True: "installed"}, "'True' is not a number"),
        ({1.5: "installed"}, "'1.5' is not a number"),
        ({5_000_000_000: "installed"}, "not a 32-bit number"),
        ({1: "fine"}, "1 has the state 'fine'"),
        ({1: {"state": "installed", "text": ""}}, "1 has 'text'"),
        ({1: {"meaning": "x"}}, "1 has the state 'None'"),
        ([0, 3010], "the name of a table or a map"),
    ],
)
def test_bad_map(option: object, detail: str) -> None:
    with pytest.raises(SojournError) as caught:
        return_codes.read_table(option, "exe")
    assert caught.value.code == "SD-102"
    assert detail in str(caught.value)
    assert "return_codes" in str(caught.value)
