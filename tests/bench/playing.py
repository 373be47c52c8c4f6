"""The rows of the table whose cells are playbooks, or what does the same beside Ansible."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.peers import OURS, Peers, Played
from tests.lab.wan import long_way

MB = 1_000_000
LARGE_MB = 256
FILES = (200, 1000)
ITEMS = 100
MODULES = 40
#: Of the long way: seconds, and the share of all packets.
ROUND_TRIP, LOSS = 0.05, 0.01
#: Deploys the agent, opens the connection: what follows is measured without.
FIRST: dict[str, Any] = {"name": "first", "ansible.builtin.raw": "true"}

Samples = dict[str, list[float]]


@dataclass
class Row:
    """One line of the table: a figure for each column, all in one unit, the less the better."""

    name: str
    what: str
    unit: str
    samples: Samples = field(default_factory=dict)

    def add(self, column: str, value: float) -> None:
        """One sample of a column."""
        self.samples.setdefault(column, []).append(value)

    def medians(self) -> dict[str, float]:
        """By column."""
        return {column: statistics.median(values) for column, values in self.samples.items()}


def take_turns(rounds: int, cells: dict[str, Callable[[], Any]], add: Callable[[str, Any], None]) -> None:
    """Each cell once in every round, the first round to warm up."""
    for number in range(rounds + 1):
        for column, act in cells.items():
            sample = act()
            if number:
                add(column, sample)


def task(module: str, arguments: Any, **more: Any) -> dict[str, Any]:
    """A task as a playbook has it."""
    return {"name": module, f"ansible.builtin.{module}": arguments, **more}


def raw(peers: Peers, rounds: int) -> list[Row]:
    """An item of a loop over `raw`, without what Ansible takes for an item that does nothing."""
    row = Row("raw", f"`raw`, an item of a {ITEMS}-item loop, beyond `debug`", "ms")
    loop = {"loop": f"{{{{ range({ITEMS}) | list }}}}"}
    tasks = [FIRST, {**task("debug", {"msg": "x"}), **loop, "name": "nothing"}, {**task("raw", "true"), **loop}]

    def cell(column: str) -> float:
        laps = peers.play(column, tasks).laps
        return (laps["raw"] - laps["nothing"]) / ITEMS * 1000

    take_turns(rounds, {column: partial(cell, column) for column in (OURS, "mitogen", "ssh")}, row.add)
    return [row]


def command(peers: Peers, rounds: int) -> list[Row]:
    """A Python module, one task after the other."""
    row = Row("command", f"a task with a Python module, {MODULES} x `command`, in all", "ms")
    beyond = Row("command", f"a task with a Python module, {MODULES} x `command`, beyond `debug`", "ms")
    tasks = [FIRST, *({**task("debug", {"msg": "x"}), "name": f"nothing {n}"} for n in range(MODULES)),
             *({**task("command", "true"), "name": f"command {n}"} for n in range(MODULES))]  # fmt: skip

    def add(column: str, played: Played) -> None:
        taken = {word: sum(seconds for name, seconds in played.laps.items() if name.startswith(word)) / MODULES * 1000 for word in ("command", "nothing")}
        row.add(column, taken["command"])
        beyond.add(column, taken["command"] - taken["nothing"])

    take_turns(rounds, {column: partial(peers.play, column, tasks) for column in (OURS, "mitogen", "ssh")}, add)
    return [row, beyond]


def mixed_tasks(folder: Path) -> list[dict[str, Any]]:
    """A play as they are."""
    (folder / "template.j2").write_text("{{ inventory_hostname }} {{ 6 * 7 }}\n")
    (folder / "file").write_text("a line\nanother line\n")
    at = "/var/tmp/bench-mixed"
    return [
        task("file", {"path": at, "state": "absent"}), task("file", {"path": at, "state": "directory", "mode": "0755"}),
        task("copy", {"src": str(folder / "file"), "dest": f"{at}/copied"}), task("copy", {"content": "words\n", "dest": f"{at}/words", "mode": "0600"}),
        task("template", {"src": str(folder / "template.j2"), "dest": f"{at}/templated"}), task("command", "uname -a"), task("shell", "echo $HOME | wc -c"),
        task("stat", {"path": f"{at}/copied"}), task("lineinfile", {"path": f"{at}/copied", "line": "a third line"}),
        task("lineinfile", {"path": f"{at}/copied", "regexp": "^another", "line": "a second line"}),
        task("replace", {"path": f"{at}/copied", "regexp": "third", "replace": "last"}),
        task("blockinfile", {"path": f"{at}/words", "block": "one\ntwo"}), task("service_facts", {}), task("find", {"paths": "/etc", "patterns": "*.conf"}),
        task("slurp", {"src": f"{at}/copied"}), task("getent", {"database": "passwd"}), task("user", {"name": "root"}), task("setup", {"gather_subset": "min"}),
        task("fetch", {"src": f"{at}/words", "dest": str(folder / "fetched"), "flat": True}), task("file", {"path": at, "state": "absent"}),
    ]  # fmt: skip


def mixed(peers: Peers, rounds: int) -> list[Row]:
    """A whole run of a play of mixed modules."""
    tasks = mixed_tasks(peers.work)
    row = Row("mixed", f"a run of a play of {len(tasks)} mixed modules, all in all", "s")
    cells = {column: partial(peers.play, column, tasks) for column in (OURS, "mitogen", "ssh")}
    take_turns(rounds, cells, lambda column, played: row.add(column, played.seconds))
    return [row]


def far(peers: Peers, rounds: int) -> list[Row]:
    """The same over a long way. Each run of a column loses the same share of its packets, not the same packets."""
    tasks = mixed_tasks(peers.work)
    row = Row("far", f"the same, {ROUND_TRIP * 1000:.0f} ms of round-trip time and {LOSS:.0%} of the packets lost", "s")
    target = peers.lab.target("linux1")
    with long_way(target, ROUND_TRIP, LOSS) as address:
        with peers.lab.known_hosts.open("a") as file:
            file.writelines(f"{line}\n" for line in target.known_hosts(address))
        cells = {column: partial(peers.play, column, tasks, address=address) for column in (OURS, "mitogen", "ssh")}
        take_turns(rounds, cells, lambda column, played: row.add(column, played.seconds))
    return [row]


def large_file(folder: Path) -> Path:
    """One that nothing can compress."""
    path = folder / "large"
    if not path.exists():
        with path.open("wb") as stream:
            for _megabyte in range(LARGE_MB):
                stream.write(os.urandom(MB))
    return path


def _seconds(command: list[Any]) -> float:
    begin = time.monotonic()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return time.monotonic() - begin


def copy(peers: Peers, rounds: int) -> list[Row]:
    """A large file, by `copy` and by scp alone."""
    row = Row("copy", f"`copy` of {LARGE_MB} MB, the task", "s")
    file, address = large_file(peers.work), peers.lab.target("linux1").addresses.ula
    at = "/var/tmp/bench-copy"
    tasks = [FIRST, {**task("raw", f"rm -f {at}"), "name": "room"}, task("copy", {"src": str(file), "dest": at})]
    cells: dict[str, Callable[[], float]] = {
        column: lambda column=column: peers.play(column, tasks).laps["copy"] for column in (OURS, "mitogen", "ssh", "paramiko")
    }  # fmt: skip
    cells["scp"] = lambda: _seconds(["scp", "-q", *peers.ssh_options, file, f"root@[{address}]:{at}-scp"])
    take_turns(rounds, cells, row.add)
    peers.lab.exec("linux1", ["rm", "-f", at, f"{at}-scp"])
    return [row]


def folder(peers: Peers, rounds: int) -> list[Row]:
    """A folder of many small files; by this collection's action beside what mitogen makes of ansible-core's."""
    rows = []
    for count in FILES:
        row = Row("folder", f"`copy` of a folder of {count} small files, the task", "s")
        by_ours = Row("folder", f"`sojourn.deploy.copy` of the same (mitogen: its `copy`), {count} files", "s")
        source, at = peers.work / f"folder-{count}", "/var/tmp/bench-folder"
        source.mkdir()
        for number in range(count):
            (source / f"file-{number}").write_text(f"{number}\n" * 20)
        options = {"src": f"{source}/", "dest": at}
        before = [FIRST, {**task("raw", f"rm -rf {at}"), "name": "room"}]
        tasks, tasks_of_ours = [*before, task("copy", options)], [*before, {"name": "copy", "sojourn.deploy.copy": options}]

        def cell(column: str, tasks: list[dict[str, Any]]) -> float:
            return peers.play(column, tasks).laps["copy"]

        few = min(rounds, 2) if count > FILES[0] else rounds
        take_turns(few, {column: partial(cell, column, tasks) for column in (OURS, "mitogen")}, row.add)
        take_turns(rounds, {column: partial(cell, column, tasks_of_ours) for column in (OURS, "ssh")}, by_ours.add)
        by_ours.samples["mitogen"] = row.samples["mitogen"]
        if count == FILES[0]:  # it takes minutes
            row.add("ssh", cell("ssh", tasks))
        peers.lab.exec("linux1", ["rm", "-rf", at])
        rows += [row, by_ours]
    return rows


def fetch(peers: Peers, rounds: int) -> list[Row]:
    """A large file the other way."""
    row = Row("fetch", f"`fetch` of {LARGE_MB} MB, the task", "s")
    at = "/var/tmp/bench-fetch"
    peers.lab.exec("linux1", ["sh", "-c", f"head -c {LARGE_MB * MB} /dev/urandom > {at}"])
    local = peers.work / "fetched-large"

    def cell(column: str) -> float:
        local.unlink(missing_ok=True)
        return peers.play(column, [FIRST, task("fetch", {"src": at, "dest": str(local), "flat": True})]).laps["fetch"]

    take_turns(rounds, {column: partial(cell, column) for column in (OURS, "mitogen", "ssh")}, row.add)
    peers.lab.exec("linux1", ["rm", "-f", at])
    return [row]


def first(peers: Peers, rounds: int) -> list[Row]:
    """The first task of a run, the way in included, beside a sign-in by ssh alone."""
    row = Row("first", "first task on a fresh host (SSH), the way in included", "s")
    address = peers.lab.target("linux1").addresses.ula
    cells: dict[str, Callable[[], float]] = {
        column: lambda column=column: peers.play(column, [FIRST]).laps["first"] for column in (OURS, "mitogen", "ssh")
    }  # fmt: skip
    cells["ssh alone"] = lambda: _seconds(["ssh", *peers.ssh_options, f"root@{address}", "true"])
    take_turns(rounds, cells, row.add)
    return [row]


def hosts(peers: Peers, rounds: int) -> list[Row]:
    """Many hosts at once."""
    names = [name for name, target in peers.lab.targets.items() if target.kind == "linux"]
    rows = [Row("hosts", f"{len(names)} hosts x 10 tasks, forks 20, all in all", "s"), Row("hosts", "  the same, the controller's processor time", "s")]
    tasks = [{**task("command", "true"), "name": f"command {number}"} for number in range(10)]

    def add(column: str, played: Played) -> None:
        rows[0].add(column, played.seconds)
        rows[1].add(column, played.processor_seconds)

    take_turns(rounds, {column: partial(peers.play, column, tasks, "all") for column in (OURS, "mitogen", "ssh")}, add)
    return rows


#: By the names that `make bench ROWS=` takes.
ROWS: dict[str, Callable[[Peers, int], list[Row]]] = {
    "raw": raw, "command": command, "mixed": mixed, "far": far, "copy": copy, "folder": folder, "fetch": fetch, "first": first, "hosts": hosts,
}  # fmt: skip
#: Rows that want many targets.
MANY = ("hosts", "figures")


def table(rows: list[Row]) -> str:
    """The table in Markdown: ratios are ours to the best peer's."""
    columns = list(dict.fromkeys(column for row in rows for column in row.samples))
    lines = ["| what | " + " | ".join(columns) + " | to the best peer | rounds |", "|---" * (len(columns) + 3) + "|"]
    for row in rows:
        medians = row.medians()
        cells = [_figure(medians[column], row.unit) if column in medians else "" for column in columns]
        best = min((value for column, value in medians.items() if column != OURS), default=None)
        ratio = f"{medians[OURS] / best:.2f}" if best and OURS in medians else ""
        rounds = sorted({len(values) for values in row.samples.values()}, reverse=True)
        lines.append(f"| {row.what}, {row.unit} | " + " | ".join(cells) + f" | {ratio} | {' or '.join(map(str, rounds))} |")
    return "\n".join(lines)


def _figure(value: float, unit: str) -> str:
    return f"{value:.1f}" if unit == "ms" else f"{value:.2f}"
