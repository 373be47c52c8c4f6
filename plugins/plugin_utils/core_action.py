# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Actions of ansible-core for those of ours that have its code decide, with some of what it asks for answered otherwise."""

from __future__ import annotations

import concurrent.futures
import importlib.machinery
import os
import threading
import types
import typing as t

import ansible.plugins.action
from ansible.plugins.loader import action_loader

T = t.TypeVar('T')

#: What core's code takes for the SHA-1 of a file that is hashed only while it is on its way: no file has it.
NOT_YET = 'not hashed yet'
#: Bytes from which on it is cheaper to ask the target once more than to have it hash for nothing.
HASHED_IF_ASKED = 8 << 20


def load(name: str) -> types.ModuleType:
    """Core's action by its file. By its name in this process there may be a user's own, and once core's is there by it, a user's is never loaded."""
    own_name = f'{__name__}_{name}'
    loader = importlib.machinery.SourceFileLoader(own_name, os.path.join(next(iter(ansible.plugins.action.__path__)), f'{name}.py'))
    module = types.ModuleType(own_name)
    loader.exec_module(module)
    return module


def replace(name: str, core: types.ModuleType, action: type[t.Any]) -> None:
    """Has ``ansible.builtin``'s be ours in this process and those that it forks, also where another action calls it. ``core`` is what ``load`` returned.

    Ansible takes an action's class from the module that it keeps for the action's file. The class in core's own module has to stay: its methods name it.
    """
    path = action_loader.find_plugin_with_context(f'ansible.builtin.{name}').plugin_resolved_path
    module = types.ModuleType(core.__name__, core.__doc__)
    module.__dict__.update(vars(core), ActionModule=action)
    action_loader._module_cache[path] = module


def beside(function: t.Callable[..., T], *arguments: t.Any) -> t.Callable[[], T]:
    """Calls something in a thread; what gives its result, or raises what it raised. A task that is to end does not wait for it."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future.result
