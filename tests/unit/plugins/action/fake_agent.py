"""A stand-in for class Agent: a target in memory that knows packages and paths, and runs installers as the test says."""

from __future__ import annotations

import fnmatch
import hashlib
import ntpath
import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDERS = {"windows": "C:\\Windows\\sojourn-0123456789ab", "linux": "/tmp/sojourn-0123456789ab"}
MANAGERS = {"windows": ["windows"], "linux": ["dpkg", "rpm"]}

Installer = Callable[["FakeAgent", dict[str, Any]], "dict[str, Any] | int"]


def nothing(agent: FakeAgent, call: dict[str, Any]) -> int:
    """An installer that reports success and does nothing."""
    return 0


class FakeAgent:
    """Implements what actions call of class Agent; `calls` has what was called, in order."""

    def __init__(self, operating_system: str = "linux", installer: Installer = nothing) -> None:
        self.operating_system = operating_system
        self.folder = FOLDERS[operating_system]
        self.managers = list(MANAGERS[operating_system])
        self.installer = installer
        self.firewall_kind = "nftables"
        self.free_bytes = 1 << 30
        self.boot_id = "boot"
        self.packages: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.rules: list[dict[str, Any]] = []
        self.leftovers: list[dict[str, Any]] = []
        self.deployed = False
        self.calls: list[str] = []
        self.executed: list[dict[str, Any]] = []
        self.labels: list[str] = []
        #: What the action announced, as the broker's ledger has it.
        self.noted: list[dict[str, Any]] = []
        #: Processes of an earlier run, each with 'handle', 'label' and its 'answer'.
        self.waiting: list[dict[str, Any]] = []
        self.taken_over = False
        self.process_id = 7
        #: Errors to raise, by method.
        self.errors: dict[str, Exception] = {}

    # For tests

    def add_package(self, name: str, version: str | None, *, manager: str | None = None, **more: Any) -> None:
        """Makes the database list a package."""
        self.packages.append(
            {"manager": manager or self.managers[0], "name": name, "version": version, "architecture": None, "id": None, "publisher": None} | more
        )

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.errors:
            raise self.errors[name]

    def _absolute(self, path: str) -> str:
        if self.operating_system == "windows":
            return ntpath.normpath(ntpath.join(self.folder, path))
        return posixpath.normpath(posixpath.join(self.folder, path))

    # As class Agent has them

    def deploy(self) -> dict[str, Any]:
        self._called("deploy")
        changed, self.deployed = not self.deployed, True
        return {"changed": changed, "info": self.info(), "seconds": {"connect": 0.1}, "taken_over": self.taken_over or bool(self.waiting)}

    def present(self) -> bool:
        return self.deployed

    def info(self) -> dict[str, Any]:
        return {
            "operating_system": self.operating_system,
            "folder": self.folder,
            "package_managers": self.managers,
            "firewall_kind": self.firewall_kind,
            "free_bytes": self.free_bytes,
            "boot_id": self.boot_id,
            "process_id": self.process_id,
        }

    def remove(self) -> dict[str, Any]:
        self._called("remove")
        changed, self.deployed = self.deployed, False
        return {"changed": changed, "removed": ["service sojourn-0123456789ab"] if changed else []}

    def note(self, key: str | None = None, **changes: Any) -> str:
        if key is None:
            self.noted.append({})
            key = str(len(self.noted) - 1)
        self.noted[int(key)].update({name: value for name, value in changes.items() if value is not None})
        return key

    def executions(self) -> list[dict[str, Any]]:
        return [{"handle": entry["handle"], "label": entry["label"]} for entry in self.waiting]

    def follow(self, installation: Any, on_output: Any = None) -> dict[str, Any]:
        self._called("follow")
        (entry,) = [entry for entry in self.waiting if entry["handle"] == installation.handle]
        return {"exit_code": 0, "stdout": b"", "stderr": b"", "timed_out": False, "seconds": 1.5, **entry["answer"]}

    def cleanup(self, run: str | None = None, force: bool = False, check: bool = False) -> dict[str, Any]:
        self._called("cleanup")
        self.cleanup_arguments = (run, force, check)
        return {"changed": any(item["state"] == "removed" for item in self.leftovers), "leftovers": self.leftovers}

    def query_packages(self, manager: str | None = None, name: str | None = None) -> list[dict[str, Any]]:
        self._called("query_packages")
        return [
            entry
            for entry in self.packages
            if manager in (None, entry["manager"]) and (name is None or name.casefold() in (str(entry["name"]).casefold(), str(entry["id"]).casefold()))
        ]

    def put_file(
        self, local_path: str, remote_path: str, *, mode: str = "0600", user: str | None = None, checksum: str | None = None, on_progress: Any = None
    ) -> dict[str, Any]:
        self._called("put_file")
        data = Path(local_path).read_bytes()
        path = self._absolute(remote_path)
        self.files[path] = data
        return {"path": path, "size": len(data), "checksum": hashlib.sha256(data).hexdigest(), "seconds": 0.25}

    def get_file(self, remote_path: str, local_path: str, *, user: str | None = None) -> dict[str, Any]:
        self._called("get_file")
        data = self.files[self._absolute(remote_path)]
        Path(local_path).write_bytes(data)
        return {"path": local_path, "size": len(data), "checksum": hashlib.sha256(data).hexdigest(), "seconds": 0.01}

    def execute(self, arguments: Any = None, *, command_line: str | None = None, on_output: Any = None, **more: Any) -> dict[str, Any]:
        self._called("execute")
        call = {"arguments": arguments, "command_line": command_line, **more}
        self.executed.append(call)
        if "installation" in more:
            self.labels.append(more["installation"].label)
        if arguments and arguments[0] == "chmod":
            return {"exit_code": 0, "stdout": b"", "stderr": b"", "timed_out": False, "seconds": 0.0}
        answer = self.installer(self, call)
        result = {"exit_code": 0, "stdout": b"", "stderr": b"", "timed_out": False, "seconds": 1.5}
        result.update({"exit_code": answer} if isinstance(answer, int) else answer)
        if on_output:
            for stream in ("stdout", "stderr"):
                if result[stream]:
                    on_output(stream, result[stream])
        return result

    def stat(self, path: str, checksum: bool = False, user: str | None = None) -> dict[str, Any]:
        self._called("stat")
        return {"path": path, "kind": "file" if self._absolute(path) in self.files else "absent"}

    def remove_path(self, path: str, recursive: bool = False, user: str | None = None) -> bool:
        self._called("remove_path")
        absolute = self._absolute(path)
        gone = [name for name in self.files if name == absolute or (recursive and fnmatch.fnmatchcase(name, absolute + "[/\\]*"))]
        for name in gone:
            del self.files[name]
        return bool(gone)

    def extract(self, path: str, folder: str) -> int:
        self._called("extract")
        self.extracted = (path, folder)
        return 1

    def open_port(self, port: int, protocol: str = "tcp", source: str | None = None, family: str | None = None, keep: bool = False) -> dict[str, Any]:
        self._called("open_port")
        run = None if keep else "0123456789ab"
        name = f"sojourn-{run or 'kept'}-{protocol}-{port}"
        rule = {"name": name, "run": run, "port": port, "protocol": protocol, "family": family, "source": source, "firewall_kind": self.firewall_kind}
        changed = rule not in self.rules
        if changed:
            self.rules.append(rule)
        return {"changed": changed, "rules": [rule]}

    def close_port(self, port: int, protocol: str = "tcp", source: str | None = None, family: str | None = None) -> dict[str, Any]:
        self._called("close_port")
        left = [rule for rule in self.rules if (rule["port"], rule["protocol"]) != (port, protocol)]
        changed, self.rules = len(left) != len(self.rules), left
        return {"changed": changed}

    def list_ports(self) -> list[dict[str, Any]]:
        self._called("list_ports")
        return list(self.rules)
