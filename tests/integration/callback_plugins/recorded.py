"""Writes every result of a run as a line of JSON into the file that SOJOURN_TEST_RESULTS names, for the tests to read."""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: recorded
type: aggregate
short_description: Writes every result as a line of JSON
description: Writes every result as a line of JSON.
"""


class CallbackModule(CallbackBase):
    """Enabled by ANSIBLE_CALLBACKS_ENABLED."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "recorded"

    def _write(self, status: str, outcome: Any) -> None:
        result = getattr(outcome, "result", None) or outcome._result
        host = getattr(outcome, "host", None) or outcome._host
        task = getattr(outcome, "task", None) or outcome._task
        with open(os.environ["SOJOURN_TEST_RESULTS"], "a") as file:
            file.write(json.dumps({"host": host.get_name(), "task": task.get_name().strip(), "status": status, "result": dict(result)}, default=str) + "\n")

    def v2_runner_on_ok(self, result: Any) -> None:
        self._write("ok", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._write("failed", result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._write("unreachable", result)
