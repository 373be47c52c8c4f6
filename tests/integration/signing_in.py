"""One sign-in to a Windows target by the way in itself, in a process of its own: neither Ansible, nor broker, nor agent; what it came to as data."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tests.conftest import COLLECTIONS
from tests.lab.clock import jumped
from tests.lab.processes import Process

_SCRIPT = """
import json, os, sys
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from ansible_collections.sojourn.deploy.plugins.plugin_utils.session import make_way_in

way_in = make_way_in(Target.from_dict(json.loads(sys.stdin.readline())), "0123456789ab")
print(os.getpid(), flush=True)
sys.stdin.readline()
told = {"by": "", "code": "", "text": ""}
try:
    way_in.connect()
    told["by"] = way_in._client.sign_in_kind
    told["encrypted"] = bool(way_in._client.session.encrypt_data)
except SojournError as error:
    told.update(code=error.code, text=str(error))
finally:
    way_in.release()
print(json.dumps(told))
"""


def sign_in(command: Sequence[str], environment: Mapping[str, str], target: Any, *, clock: float = 0) -> dict[str, Any]:
    """What a sign-in came to: ``by`` which kind, or the ``code`` and ``text`` of the error; ``clock``: by how much that process's own is ahead.

    ``command`` is what is put before Python, such as to be in the controller's network.
    """
    words = [*command, sys.executable, "-P", "-c", _SCRIPT]
    variables = {**os.environ, **environment, "PYTHONPATH": str(COLLECTIONS)}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables) as process, contextlib.ExitStack() as stack:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(target.to_dict()) + "\n")
        process.stdin.flush()
        found = Process.find(int(process.stdout.readline()))
        assert found
        if clock:
            stack.enter_context(jumped([found], clock))
        told = process.communicate("\n", timeout=90)[0]
    assert target.password is None or target.password not in told
    return json.loads(told)
