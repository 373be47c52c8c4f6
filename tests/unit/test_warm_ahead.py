"""What a warm interpreter makes ready for modules that may never come (agent/internal/process/warm.py): only where it takes from nobody."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = (Path(__file__).parents[2] / "agent/internal/process/warm.py").read_text()
#: All but what connects to the agent.
DEFINITIONS = SOURCE.partition("\n_connection = ")[0]
LEARNING = """
made = []
Template.learnt = lambda self, descriptors: made.append(len(descriptors))
def available():
    if {free} is None:
        raise OSError('no /proc')
    return {free}
ours, theirs = socket.socketpair()
template = Template(ours)
template.templates = dict.fromkeys({known})
for what, ahead in {orders}:
    given = [os.open(os.devnull, os.O_RDONLY) for number in range(3 if ahead else 2)]
    template.learn(given, what, **({{'ahead': True}} if ahead else {{}}))
    for descriptor in given:
        try:
            os.fstat(descriptor)
            made.append('left open')
        except OSError:
            pass
print(json.dumps([len(made), 'left open' in made, list(template.templates)]))
"""
PLENTY = 4 << 30


def learnt(*orders: tuple[str, bool], known: Any = (), free: int | None = PLENTY) -> Any:
    """How many templates were made, and the names of all that there are then, the first to go first."""
    program = DEFINITIONS + LEARNING.format(free=free, known=list(known), orders=orders)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    made, left_open, names = json.loads(done.stdout)
    assert not left_open
    return made, names


def test_what_may_come_is_the_first_to_go() -> None:
    assert learnt(("a", True), ("b", True), ("c", False), known=["used"]) == (3, ["b", "a", "used", "c"])


def test_nothing_is_made_twice() -> None:
    assert learnt(("a", True), ("a", True), ("used", True), known=["used"]) == (1, ["a", "used"])


def test_nothing_goes_for_what_may_come() -> None:
    twelve = [str(number) for number in range(12)]
    assert learnt(("a", True), known=twelve) == (0, twelve)
    assert learnt(("a", False), known=twelve) == (1, [*twelve[1:], "a"])


@pytest.mark.parametrize("free", [100 << 20, None])
def test_where_memory_is_short_nothing_is_made_ahead(free: int | None) -> None:
    assert learnt(("a", True), ("b", False), free=free) == (1, ["b"])
