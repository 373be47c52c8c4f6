"""Writes down when each task of a run began and ended, into the file that SOJOURN_BENCH_LAPS names; says nothing otherwise."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: laps
type: stdout
short_description: when each task began and ended
description: For tests/bench.
"""


class CallbackModule(CallbackBase):
    """See the file."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "laps"

    def __init__(self) -> None:
        super().__init__()
        self._laps: list[dict[str, Any]] = []

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Of all hosts."""
        self._laps.append({"name": task.get_name(), "begin": time.monotonic(), "end": None})

    def v2_runner_on_ok(self, result: Any) -> None:
        """Of one host; the last one counts."""
        self._laps[-1]["end"] = time.monotonic()

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """What failed is told: no figure comes of it."""
        self._display.display(f"{self._laps[-1]['name']}: {json.dumps(getattr(result, '_result', getattr(result, 'result', None)), default=str)}")

    v2_runner_on_unreachable = v2_runner_on_failed

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """The end."""
        with open(os.environ["SOJOURN_BENCH_LAPS"], "w", encoding="utf-8") as file:
            json.dump(self._laps, file)
