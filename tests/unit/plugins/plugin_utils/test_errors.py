"""The error catalogue, and that the code uses it rightly."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import errors
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError

PLUGINS = Path(errors.__file__).resolve().parent.parent


def raised() -> list[tuple[str, str, set[str] | None]]:
    """Every place that makes an error: (place, code, names of the fields, None where they cannot be told)."""
    found = []
    for path in sorted(PLUGINS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if name not in ("SojournError", "error", "_error"):
                continue
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str) and argument.value.startswith("SD-"):
                    names = {keyword.arg for keyword in node.keywords}
                    found.append((f"{path.name}:{node.lineno}", argument.value, None if None in names else names))
    return found


def test_every_code_that_is_raised_is_in_the_catalogue_and_gets_its_fields() -> None:
    places = raised()
    assert len(places) > 50
    for place, code, fields in places:
        assert code in errors.catalogue(), f"{place}: {code} is not in the catalogue"
        if fields is None:
            continue
        missing = errors.placeholders(code) - fields - {"step"}
        assert not missing, f"{place}: {code} lacks {sorted(missing)}"
        unknown = fields - errors.placeholders(code) - {"host", "step"}
        assert not unknown, f"{place}: {code} has no {sorted(unknown)}"


def test_the_catalogue_is_whole() -> None:
    entries = json.loads((Path(errors.API_FOLDER) / "errors.json").read_text())["errors"]
    assert len({entry["code"] for entry in entries}) == len({entry["name"] for entry in entries}) == len(entries)
    for entry in entries:
        assert re.fullmatch(r"SD-[1-9]\d\d", entry["code"])
        assert entry["kind"] in ("unreachable", "failed")
        assert entry["sentence"].endswith((".", ".'")) and entry["remedy"].endswith(".")
        rights = entry["code"] in ("SD-305", "SD-306", "SD-308", "SD-323")
        assert ("SD-200" <= entry["code"] < "SD-400") <= (entry["kind"] == "unreachable" or rights)


def test_one_line_with_host_step_sentence_code_and_remedy() -> None:
    error = SojournError("SD-203", host="web1", step="connecting", port=22, address="fd73::1", service="SSH")
    assert str(error) == (
        "[web1] connecting: Port 22 of fd73::1 refuses connections. (SD-203) Remedy: Start the service behind it (SSH) on the target, or set ansible_port."
    )
    assert error.kind == "unreachable"
    assert "\n" not in str(SojournError("SD-407", detail="two\nlines\n.")) and ".." not in str(SojournError("SD-407", detail="an end."))


def test_a_missing_field_and_an_unknown_code_are_shown_all_the_same() -> None:
    assert "<detail>" in str(SojournError("SD-407"))
    assert "SD-999" in str(SojournError("SD-999", detail="x")) and SojournError("SD-999").code == "SD-903"


def test_over_the_wire() -> None:
    error = SojournError("SD-205", host="web1", step="uploading the agent", address="fd73::1", detail="x")
    assert "broke while uploading the agent" in str(error)
    assert str(SojournError.from_dict(json.loads(json.dumps(error.to_dict())))) == str(error)
    fault = SojournError.from_fault("SD-702", "The target has no user 'x'.", "Name a user that the target knows.", host="web1", step="calling Execute")
    assert str(SojournError.from_dict(fault.to_dict())) == str(fault)
    assert fault.sentence == "The target has no user 'x'."


def test_from_the_agent() -> None:
    error = SojournError.from_ready({"code": "SD-601", "fields": {"ports": "62286-62293"}}, host="web1", step="starting the agent")
    assert "62286-62293" in str(error)
    unknown = SojournError.from_fault("SD-799", "Something new.", "Do it.", host="web1")
    assert unknown.code == "SD-505" and "Something new" in str(unknown)


def test_secrets_are_taken_out() -> None:
    error = SojournError("SD-301", user="root", detail="the password Geheim1! is wrong")
    assert "Geheim1!" not in str(error.redacted(["Geheim1!", None, ""]))


@pytest.mark.parametrize("first, second", [("a", "b"), (None, "b")])
def test_where_it_happened_is_told_once(first: str | None, second: str) -> None:
    assert SojournError("SD-903", host=first, detail="x").at(host=second, step="s").host == (first or second)
