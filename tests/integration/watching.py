"""Looks for secrets while something runs: in what every process was started with, and in the files of the run on the controller and on the targets;
and in what an agent says that is left alone."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.sojourn.deploy.plugins.plugin_utils.broker_client import run_folder
from tests.integration.conftest import Controller, kill, secrets_of
from tests.lab import Lab
from tests.lab.waiting import wait_for

#: Seconds between two looks.
_PAUSE = 0.02


class Watch:
    """What was found of them, and the names of the files that were looked into."""

    def __init__(self, lab: Lab) -> None:
        self.found: list[str] = []
        self.seen: set[str] = set()
        self._needles = [secret.encode() for secret in secrets_of(lab)]
        self._run = Path(run_folder(os.getpid())).parent
        # Where Ansible keeps what it makes for a task.
        self._ansible = Path(os.environ.get("ANSIBLE_HOME", Path.home() / ".ansible"), "tmp")
        self._places = []
        for target in lab.targets.values():
            root = Path(f"/proc/{target.leader.pid}/root")
            folders = ("tmp", "var/tmp", "root", "home/deployer") if target.kind == "linux" else ("srv/windows/drive_c/windows",)
            self._places += [root / folder for folder in folders]

    def look(self) -> None:
        """Once, at everything."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                for file in ("cmdline", "environ"):
                    self._look_into(entry / file)
        for path in (*self._run.rglob("*"), *self._ansible.rglob("*"), *(path for place in self._places for path in place.glob("sojourn-*/**/*"))):
            if path.is_file():
                self.seen.add(path.name)
                self._look_into(path)

    def _look_into(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            self.found += [f"{path}: {data[:200]!r}" for needle in self._needles if needle in data]


@contextlib.contextmanager
def watched(lab: Lab) -> Iterator[Watch]:
    """Looks again and again while the context lasts, and once more at its end."""
    watch = Watch(lab)
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(_PAUSE):
            with contextlib.suppress(OSError):  # what goes away meanwhile
                watch.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()


def left_alone(controller: Controller, target: Any, agent: Any) -> list[str]:
    """The target's event log, once `agent` was put there, its broker was killed, and its lease has ended it."""
    run = agent.deploy()["info"]["run"]
    kill(controller.broker_pid)
    controller.forget()

    def log() -> list[str]:
        """By the run's name: the log keeps what agents of earlier tests said."""
        lines: list[str] = target.event_log()
        said = [line for line in lines if f"Run {run}: " in line]
        return lines if all(any(words in line for line in said) for words in ("no sign of life", "the agent has ended and removed ")) else []

    return wait_for("its lease to end", log, 60)
