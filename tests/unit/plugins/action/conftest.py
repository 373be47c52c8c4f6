"""Runs an action against a target in memory, as Ansible's executor does it, without forks."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader

COLLECTION = "ansible_collections.sojourn.deploy"


def _load_fake_agent() -> Any:
    # By its path: the folders of unit tests are no packages.
    spec = importlib.util.spec_from_file_location("fake_agent", Path(__file__).with_name("fake_agent.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_agent"] = module
    spec.loader.exec_module(module)
    return module


fake_agent = _load_fake_agent()


class Runner:
    """Runs actions; `shown` has the lines that they showed at -v and more, `printed` those that they always show."""

    def __init__(self, basedir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.basedir = basedir
        self.monkeypatch = monkeypatch
        self.printed: list[str] = []
        self.shown: list[tuple[int, str | None, str]] = []

    def __call__(
        self, action: str, agent: Any, *, check: bool = False, diff: bool = False, no_log: bool = False, host: str = "web1", **args: Any
    ) -> dict[str, Any]:
        module = importlib.import_module(f"{COLLECTION}.plugins.action.{action}")
        base = importlib.import_module(f"{COLLECTION}.plugins.plugin_utils.action_base")
        display = SimpleNamespace(
            verbose=lambda line, host=None, caplevel=2: self.shown.append((caplevel + 1, host, line)),
            display=lambda line, color=None: self.printed.append(line),
        )
        self.monkeypatch.setattr(base, "display", display)
        if hasattr(module, "display"):
            self.monkeypatch.setattr(module, "display", display)
        loader = DataLoader()
        loader.set_basedir(str(self.basedir))
        task = SimpleNamespace(
            copy=lambda: SimpleNamespace(**vars(task)),
            args=args,
            action=f"sojourn.deploy.{action}",
            check_mode=check,
            diff=diff,
            no_log=no_log,
            async_val=0,
            environment=None,
            delegate_to=None,
            get_search_path=lambda: [str(self.basedir)],
        )
        connection = SimpleNamespace(transport="sojourn.deploy.ssh", _shell=SimpleNamespace(tmpdir=None)) if agent is None else None
        if connection is None:
            connection = SimpleNamespace(transport="sojourn.deploy.ssh", agent=agent, _shell=SimpleNamespace(tmpdir=None))
        plugin = module.ActionModule(task=task, connection=connection, play_context=SimpleNamespace(), loader=loader, templar=None, shared_loader_obj=None)
        return plugin.run(task_vars={"inventory_hostname": host, "inventory_dir": str(self.basedir / "inventory")})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """run(action, agent, check=, diff=, **options) gives the action's result."""
    return Runner(tmp_path, monkeypatch)


@pytest.fixture
def make_agent() -> Callable[..., Any]:
    """make_agent(operating_system, installer) gives a target in memory."""
    return fake_agent.FakeAgent
