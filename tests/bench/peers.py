"""Who is measured beside this collection, and how each plays a playbook."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.lab import Lab, cache
from tests.lab.commands import run

ROOT = Path(__file__).resolve().parents[2]
OURS = "sojourn"
#: Connection plugins by column; mitogen's is `ssh`, which its strategy replaces where it is called by just this name.
CONNECTIONS = {OURS: "sojourn.deploy.ssh", "mitogen": "ssh", "ssh": "ansible.builtin.ssh", "paramiko": "ansible.builtin.paramiko_ssh"}
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


@dataclass
class Played:
    """What a playbook took: in all, on the controller's processors, and each task by its name."""

    seconds: float
    processor_seconds: float
    laps: dict[str, float] = field(default_factory=dict)


class Peers:
    """The columns of the table whose cells are playbooks, all by one ansible-core: the newest that this Python, and mitogen, go with."""

    def __init__(self, lab: Lab, work: Path) -> None:
        self.lab = lab
        self.work = work
        # What a run leaves running (our broker, ssh's master) becomes a child of this process, and its processor time is counted.
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)

    @cached_property
    def controller(self) -> Path:
        """A virtual environment with ansible-core, mitogen and the collection's libraries, in the lab's cache.

        SOJOURN_BENCH_PYTHON names another Python to build it with; newer ones go with newer releases of ansible-core.
        """
        python = os.environ.get("SOJOURN_BENCH_PYTHON", sys.executable)
        requirements = ROOT / "requirements.txt"

        def build(folder: Path) -> None:
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", folder / "bin/python"]
            run([python, "-m", "venv", "--without-pip", folder])
            run([*pip, "install", "ansible-core", "mitogen", "--requirement", requirements])

        return cache.ensure("controller-peers", cache.digest(python, requirements), build)

    @cached_property
    def version(self) -> str:
        """Of ansible-core and mitogen."""
        code = "from importlib.metadata import version as v; print('ansible-core', v('ansible-core') + ', mitogen', v('mitogen'))"
        return subprocess.run([self.controller / "bin/python", "-c", code], check=True, capture_output=True, text=True).stdout.strip()

    @cached_property
    def key(self) -> Path:
        """A key that all Linux targets admit: who asks for a password measures that."""
        key = self.work / "key"
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
        public = key.with_suffix(".pub").read_text()
        for name, target in self.lab.targets.items():
            if target.kind == "linux":
                self.lab.exec(name, ["sh", "-c", "mkdir -p -m 700 ~/.ssh && cat >> ~/.ssh/authorized_keys"], input=public)
        return key

    @property
    def ssh_options(self) -> list[str]:
        """For ssh and scp themselves."""
        return ["-i", str(self.key), "-o", f"UserKnownHostsFile={self.lab.known_hosts}", "-o", "BatchMode=yes"]

    @cached_property
    def inventory(self) -> Path:
        """All Linux targets."""
        hosts: dict[str, Any] = {
            name: {
                "ansible_host": target.addresses.ula, "ansible_user": "root", "ansible_ssh_private_key_file": str(self.key),
                "ansible_python_interpreter": "/usr/bin/python3", "ansible_sojourn_known_hosts_file": str(self.lab.known_hosts),
            }
            for name, target in self.lab.targets.items() if target.kind == "linux"
        }  # fmt: skip
        path = self.work / "hosts.json"
        path.write_text(json.dumps({"all": {"hosts": hosts}}))
        return path

    @cached_property
    def settings(self) -> Path:
        """An empty ansible.cfg, in the place of the machine's."""
        path = self.work / "ansible.cfg"
        path.touch()
        return path

    def play(self, column: str, tasks: list[dict[str, Any]], hosts: str = "linux1", *, address: str | None = None) -> Played:
        """Plays tasks, with ``address`` over another than the inventory's; a failed one is an error, and no figure."""
        number = len(list(self.work.glob("play-*")))
        folder = self.work / f"play-{number}"
        folder.mkdir()
        playbook, laps = folder / "play.json", folder / "laps.json"
        playbook.write_text(json.dumps([{"hosts": hosts, "gather_facts": False, "tasks": tasks}]))
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build/collections"), "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests/bench/callback_plugins"),
            "ANSIBLE_STDOUT_CALLBACK": "laps", "SOJOURN_BENCH_LAPS": str(laps), "ANSIBLE_PIPELINING": "true", "ANSIBLE_FORKS": "20",
            "ANSIBLE_SSH_ARGS": f"-o ControlMaster=auto -o ControlPersist=20s -o UserKnownHostsFile={self.lab.known_hosts}",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder), "ANSIBLE_PARAMIKO_HOST_KEY_CHECKING": "false", "ANSIBLE_DEPRECATION_WARNINGS": "false",
            "ANSIBLE_CONFIG": str(self.settings),
        }  # fmt: skip
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # of who works on the project; whoever uses it has compiled files
        if column == OURS:  # as docs have it in ansible.cfg; the end of a run then waits for the clean-up
            environment |= {"ANSIBLE_CALLBACKS_ENABLED": "sojourn.deploy.lifecycle", "SOJOURN_BUNDLE_COPIES": "true"}
        if column == "mitogen":
            site = next((self.controller / "lib").glob("python3*/site-packages"))
            environment |= {"ANSIBLE_STRATEGY": "mitogen_linear", "ANSIBLE_STRATEGY_PLUGINS": str(site / "ansible_mitogen/plugins/strategy")}
        before = _processor_seconds()
        begin = time.monotonic()
        program = [self.controller / "bin/python", "-P", "-m", "ansible", "playbook"]
        words = ["-e", f"ansible_connection={CONNECTIONS[column]}", *(["-e", f"ansible_host={address}"] if address else [])]
        done = subprocess.run(
            [*program, "-i", self.inventory, *words, playbook],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        seconds = time.monotonic() - begin
        if done.returncode:
            raise SystemExit(f"bench.py: {column} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        for path in folder.glob("*"):
            if path.is_socket():
                subprocess.run(["ssh", "-O", "exit", "-o", f"ControlPath={path}", "linux1"], capture_output=True, check=False)
        _reap()
        taken = _processor_seconds() - before
        return Played(seconds, taken, {lap["name"]: (lap["end"] or lap["begin"]) - lap["begin"] for lap in json.loads(laps.read_text())})


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _reap() -> None:
    """Waits for what a run has left running, which ends soon after it."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return
