"""How a module's process ends in a warm interpreter (agent/internal/process/warm.py): at once, unless somebody could notice."""

import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = (Path(__file__).parents[2] / "agent/internal/process/warm.py").read_text()
#: All but what connects to the agent.
DEFINITIONS = SOURCE.partition("\n_connection = ")[0]
ENDING = """
class FakeArchive:
    ends, loaded, own = False, {{}}, Pages()
before, program = frozenset(sys.modules), {{}}
gc.collect()
gc.freeze()
exec({program!r}, program)
print(finish(program, before, FakeArchive))
sys.stdout.flush()
os._exit(0)
"""
WITH_END = "class Ends:\n    def __del__(self): print('taken apart')\n"


def ends(program: str) -> list[str]:
    """What a program, and then the short end, says."""
    done = subprocess.run([sys.executable, "-c", DEFINITIONS + ENDING.format(program=program)], capture_output=True, text=True, check=True, timeout=60)
    assert not done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    "program",
    [
        "x = [1, 2, 3]",
        "import json, argparse, shlex, pwd, subprocess\nsubprocess.run(['true'], capture_output=True)",  # what most modules do
        "import tempfile\nwith tempfile.TemporaryFile() as file: file.write(b'x')",
        "import threading\nthread = threading.Thread(target=int)\nthread.start()\nthread.join()",
        "class Ring: pass\nring = Ring()\nring.ring = ring",
    ],
)
def test_what_nobody_could_notice_ends_at_once(program: str) -> None:
    assert ends(program) == ["True"]


@pytest.mark.parametrize(
    "program",
    [
        WITH_END + "import types\ntypes.kept = Ends()",
        "import types\ntypes.kept = open('/dev/null', 'w')",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    ],
)
def test_what_somebody_could_notice_is_left_to_python(program: str) -> None:
    assert ends(program)[-1] == "False"


def test_what_is_to_be_done_at_the_end_is_done() -> None:
    assert ends("import atexit\natexit.register(print, 'bye')") == ["bye", "True"]
    assert ends(WITH_END + "kept = Ends()") == ["taken apart", "True"]
