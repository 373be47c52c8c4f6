"""Plays for tests: tasks as a user writes them, run by ansible-playbook on the lab's inventory, and their results as data."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.integration.conftest import Controller, error_lines, secrets_of
from tests.lab.snapshot import PACKAGE_MANAGERS

# What package managers keep of a package that came and went; apt makes this folder when it first runs.
PACKAGES_LEAVE = (*PACKAGE_MANAGERS, "files: /var/lib/apt/lists/auxfiles")
CALLBACKS = Path(__file__).parent / "callback_plugins"


@dataclass
class Played:
    """What a run of ansible-playbook came to."""

    code: int
    output: str
    results: list[dict[str, Any]] = field(default_factory=list)

    def __getitem__(self, place: tuple[str, str]) -> dict[str, Any]:
        """The result of a task on a host: played[host, task]. A loop's results are in its 'results'."""
        host, task = place
        found = [entry["result"] for entry in self.results if entry["host"] == host and entry["task"] == task]
        assert len(found) == 1, f"{len(found)} results of {task!r} on {host}:\n{self.output}"
        return found[0]

    def status(self, host: str, task: str) -> str:
        """How a task ended on a host: ok, failed or unreachable."""
        (found,) = [entry["status"] for entry in self.results if (entry["host"], entry["task"]) == (host, task)]
        return found

    def of(self, host: str) -> list[dict[str, Any]]:
        """All results of a host, in order."""
        return [entry["result"] for entry in self.results if entry["host"] == host]

    def recap(self, host: str) -> dict[str, int]:
        """Ansible's own last words about a host: ok, changed, unreachable, failed ..."""
        (line,) = [line for line in self.output.splitlines() if line.startswith(f"{host} ") and "unreachable=" in line]
        return {name: int(number) for name, number in (word.split("=") for word in line.partition(" : ")[2].split())}

    def well(self) -> Played:
        """Itself, if the run succeeded."""
        assert self.code == 0, self.output
        return self

    @property
    def errors(self) -> list[str]:
        """Lines that carry one of our errors."""
        return error_lines(self.output)


def install(name: str, /, **options: Any) -> dict[str, Any]:
    """A task that installs a package and goes on after a failure."""
    return {
        "name": name,
        "sojourn.deploy.install": {key: str(value) if isinstance(value, Path) else value for key, value in options.items()},
        "ignore_errors": True,
    }


def play(
    controller: Controller,
    folder: Path,
    tasks: list[dict[str, Any]],
    *words: str,
    hosts: str = "linux1",
    family: str = "ipv6",
    environment: dict[str, str] | None = None,
    **keywords: Any,
) -> Played:
    """Runs tasks on hosts; further words are ansible-playbook's own."""
    path = folder / "play.yml"
    path.write_text(yaml.safe_dump([{"hosts": hosts, "gather_facts": False, "tasks": tasks, **keywords}], sort_keys=False))
    return run(controller, folder, str(path), *words, family=family, environment=environment)


def run(controller: Controller, folder: Path, *words: str, family: str = "ipv6", environment: dict[str, str] | None = None) -> Played:
    """Runs ansible-playbook with these words. Whatever it does, it must not print a password, nor a traceback."""
    record = folder / "results.jsonl"
    record.unlink(missing_ok=True)
    variables = {
        "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
        "ANSIBLE_CALLBACKS_ENABLED": "recorded",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "SOJOURN_TEST_RESULTS": str(record),
        **(environment or {}),
    }
    done = controller.run("ansible-playbook", *words, family=family, environment=variables, timeout=300)
    output = done.stdout + done.stderr
    results = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    assert "Traceback" not in output, output
    for secret in secrets_of(controller.lab):
        assert secret not in output and secret not in json.dumps(results)
    return Played(done.returncode, output, results)
