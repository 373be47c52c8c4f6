"""A connection of the tests that is ours, and writes down what ansible-core hands to it and what it gives back: the oracle is ansible-core itself.

The plugin is written into a folder, since Ansible reads a plugin's options out of the text of its file.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from dataclasses import dataclass
from pathlib import Path

_PLUGIN = '''
import base64
import hashlib
import json
import os

from ansible_collections.sojourn.deploy.plugins.connection import @WAY_IN@


def memory(what, pid="self"):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(what))


def broker():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\\0")
        except OSError:
            continue
        if b"--owner" in words and words[words.index(b"--owner") + 1] == str(os.getppid()).encode():
            return pid


class Connection(@WAY_IN@.Connection):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._task = str(kwargs["task_uuid"])

    def exec_command(self, cmd, in_data=None, sudoable=True):
        self._connect()  # the way there is no part of it
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # VmHWM begins anew
        before = memory("VmRSS")
        code, stdout, stderr = super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        more = memory("VmHWM") - before
        entry = {
            "task": self._task, "command": str(cmd), "input": None if in_data is None else base64.b64encode(in_data).decode(), "code": code,
            "stderr": base64.b64encode(stderr).decode(), "stdout": base64.b64encode(stdout[:4096]).decode(),
            "size": len(stdout), "sha256": hashlib.sha256(stdout).hexdigest(),
            "worker": more, "broker": memory("VmHWM", broker())}
        with open(os.environ["SOJOURN_TEST_EXECUTIONS"], "a") as file:
            file.write(json.dumps(entry) + "\\n")
        return code, stdout, stderr
'''


@dataclass(frozen=True)
class Execution:
    """One call of exec_command."""

    task: str
    command: str
    input: bytes | None
    code: int
    stderr: bytes
    stdout: bytes
    """Its first 4096 bytes: it may be large."""
    size: int
    sha256: str
    worker: int
    """Bytes of memory that the worker had more during the call, at most."""
    broker: int
    """The most bytes of memory that the broker has had so far."""

    def said(self, stdout: bytes, stderr: bytes, code: int) -> bool:
        """Whether it gave just this back."""
        return (self.sha256, self.stderr, self.code) == (hashlib.sha256(stdout).hexdigest(), stderr, code)


class Recording:
    """The plugin, `recorded`, in a folder; and what it has written down."""

    def __init__(self, folder: Path, way_in: str) -> None:
        plugins = folder / "connection_plugins"
        plugins.mkdir()
        real = importlib.import_module(f"ansible_collections.sojourn.deploy.plugins.connection.{way_in}")
        (plugins / "recorded.py").write_text(f"DOCUMENTATION = {real.DOCUMENTATION!r}\n" + _PLUGIN.replace("@WAY_IN@", way_in))
        self._file = folder / "executions.jsonl"
        #: For Ansible to use it, beside `-e ansible_connection=recorded`.
        self.environment = {"ANSIBLE_CONNECTION_PLUGINS": str(plugins), "SOJOURN_TEST_EXECUTIONS": str(self._file)}

    def tasks(self) -> list[list[Execution]]:
        """The executions of each task, in order; tasks without any are not among them."""
        tasks: dict[str, list[Execution]] = {}
        for line in self._file.read_text().splitlines():
            entry = json.loads(line)
            entry |= {name: base64.b64decode(entry[name]) for name in ("stdout", "stderr")}
            entry["input"] = None if entry["input"] is None else base64.b64decode(entry["input"])
            tasks.setdefault(entry["task"], []).append(Execution(**entry))
        return list(tasks.values())
