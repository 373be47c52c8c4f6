#!/usr/bin/env python3
"""The figures of docs/performance.md: `make bench`, or some rows alone, `make bench ROWS=raw,command`.

Every figure is the median of five rounds after one to warm up (ROUNDS=1: less patience; fewer where one takes minutes, as the table says), the peers
of a row taking turns in the same rounds against the same target. Nothing here is a test: no figure passes or fails. playing.py has the rows that are
playbooks, peers.py who plays them; here are the others, in the row `figures`: parts of the first answer, packages sent, sizes and memory; and in the
row `tunnel`: the two transports.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "build/collections")]

from ansible_collections.sojourn.deploy.plugins.plugin_utils.broker_client import Agent, run_folder
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from tests.bench.peers import Peers
from tests.bench.playing import MANY, ROWS, Row, table
from tests.lab import Lab

ROUNDS = int(os.environ.get("SOJOURN_BENCH_ROUNDS", "5"))
LINUX_TARGETS = 20
UPLOAD_MB = 256
MB = 1_000_000
INSIDE = "SOJOURN_BENCH_INSIDE"
WANTED = "SOJOURN_BENCH_ROWS"
FIGURES = "figures"
TUNNEL = "tunnel"
TUNNEL_MB, TUNNEL_ITEMS = 64, 50


class Bench:
    """The lab that is measured, and the rows that were."""

    def __init__(self, lab: Lab, work: Path) -> None:
        self.lab = lab
        self.work = work
        self.rows: list[tuple[str, str]] = []

    def target(self, name: str, **options: str) -> Target:
        """What the connection plugin would make of the inventory's host."""
        host = self.lab.target(name)
        way_in = {"linux": "ssh", "windows": "smb"}[host.kind]
        return Target.make(
            way_in, host.addresses.ula, host=name, user=host.user, password=host.password(), known_hosts=str(self.lab.known_hosts),
            **options,
        )  # fmt: skip

    def row(self, what: str, figure: str) -> None:
        """Adds a line of the table, and shows it at once."""
        self.rows.append((what, figure))
        print(f"{what:<66} {figure}", flush=True)

    def take_turns(self, what: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
        """Runs each in turn, ROUNDS times after a warm-up; gives the seconds of each."""
        seconds: dict[str, list[float]] = {name: [] for name in what}
        for number in range(ROUNDS + 1):
            for name, act in what.items():
                begin = time.monotonic()
                act()
                if number:
                    seconds[name].append(time.monotonic() - begin)
        return seconds


def first_answer(bench: Bench, name: str) -> None:
    """From nothing (no broker, no agent) to the first answer, with its parts."""
    samples = []
    for _number in range(ROUNDS + 1):
        # A process of its own for each: it owns a broker of its own, as an ansible-playbook does.
        child = subprocess.run([sys.executable, __file__, "--first-answer", bench.lab.name, name], check=True, capture_output=True, text=True)
        samples.append(json.loads(child.stdout))
    parts = {part: statistics.median(sample[part] for sample in samples[1:]) for part in samples[0]}
    inner = ", ".join(f"{part.replace('_', ' ')} {value:.2f}" for part, value in parts.items() if part != "total")
    bench.row(f"first answer over {bench.target(name).way_in}, s", f"{parts['total']:.2f} ({inner})")


def first_answer_sample(lab_name: str, name: str) -> None:
    """One sample, in a process of its own; prints its seconds as JSON."""
    agent = Agent(Bench(Lab(lab_name), Path()).target(name), os.getpid())
    begin = time.monotonic()
    seconds = agent.deploy()["seconds"]
    total = time.monotonic() - begin
    agent.remove()
    known = sum(value for value in seconds.values())
    print(json.dumps({"total": total, **seconds, "broker_start_and_rest": max(total - known, 0.0)}))


def uploads(bench: Bench, stack: ExitStack) -> None:
    """256 MB to each target, beside scp, smbclient and Ansible's own copy."""
    file = bench.work / "payload"
    with file.open("wb") as stream:
        for _megabyte in range(UPLOAD_MB):
            stream.write(os.urandom(MB))
    linux, windows = bench.lab.target("linux1"), bench.lab.target("windows1")
    secrets = bench.work / "secrets"
    secrets.mkdir(mode=0o700)
    askpass, login = secrets / "askpass", secrets / "smb"
    (secrets / "password").write_text(linux.password())
    askpass.write_text(f"#!/bin/sh\ncat {secrets}/password\n")
    askpass.chmod(0o700)
    login.write_text(f"username={windows.user}\npassword={windows.password()}\n")
    environment = {**os.environ, "SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force"}
    inventory = bench.work / "inventory.yml"
    inventory.write_text(
        subprocess.run([sys.executable, ROOT / "tests/lab/lab.py", "inventory", "--name", bench.lab.name], check=True, capture_output=True, text=True).stdout
    )
    options = ["-o", f"UserKnownHostsFile={bench.lab.known_hosts}", "-o", "PubkeyAuthentication=no"]
    ours_linux, ours_windows = Agent(bench.target("linux1"), os.getpid()), Agent(bench.target("windows1"), os.getpid())
    for agent in (ours_linux, ours_windows):
        agent.deploy()
        stack.callback(agent.remove)

    def command(*words: object) -> Callable[[], None]:
        return lambda: subprocess.run([str(word) for word in words], check=True, env=environment, stdin=subprocess.DEVNULL, capture_output=True) and None

    def copy(connection: str) -> Callable[[], None]:
        # A new name each time: an unchanged file would not be copied.
        settings = {
            **environment, "ANSIBLE_SSH_ARGS": " ".join(options), "ANSIBLE_PIPELINING": "true", "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
             "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build/collections"),
        }  # fmt: skip

        def act() -> None:
            linux.exec(["rm", "-f", "/tmp/bench-copy"])
            subprocess.run(
                [Path(sys.executable).parent / "ansible", "linux1", "-i", inventory, "-e", f"ansible_connection={connection}",
                 "-m", "ansible.builtin.copy", "-a", f"src={file} dest=/tmp/bench-copy"],
                check=True, env=settings, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip

        return act

    address = windows.addresses.ula
    seconds = bench.take_turns(
        {
            "PutFile, agent on Linux": lambda: ours_linux.put_file(str(file), "payload") and None,
            "PutFile, agent under Wine": lambda: ours_windows.put_file(str(file), "payload") and None,
            "scp": command("scp", "-q", *options, file, f"root@[{linux.addresses.ula}]:/tmp/bench-scp"),
            "smbclient put": command("smbclient", f"//{address}/C$", "-A", login, "-c", f"put {file} bench-smb"),
            "Ansible copy over sojourn.deploy.ssh": copy("sojourn.deploy.ssh"),
            "Ansible copy over ssh": copy("ansible.builtin.ssh"),
        }
    )
    for name, values in seconds.items():
        median = statistics.median(values)
        bench.row(f"upload of {UPLOAD_MB} MB: {name}, MB/s", f"{UPLOAD_MB / median:.0f} ({median:.2f} s)")
    linux.exec(["rm", "-f", "/tmp/bench-copy", "/tmp/bench-scp"])
    for name, agent in (("Linux", ours_linux), ("Wine", ours_windows)):
        agent.remove_path("payload")
        bench.row(f"agent's resident memory after the uploads, {name}, MB", f"{agent.info()['resident_bytes'] / MB:.1f}")


def tunnels(bench: Bench) -> None:
    """The two transports: raw per item (a play of one more than so many items, less a play of one), an operation, 64 MB each way."""
    file, back, inventory, playbook = (bench.work / name for name in ("tunnelled", "back", "tunnel.yml", "tunnel-play.yml"))
    file.write_bytes(os.urandom(TUNNEL_MB * MB))
    inventory.write_text(
        subprocess.run([sys.executable, ROOT / "tests/lab/lab.py", "inventory", "--name", bench.lab.name], check=True, capture_output=True, text=True).stdout
    )
    tasks = [{"ansible.builtin.raw": "{{ line }}", "loop": "{{ range(items | int) | list }}"}]
    playbook.write_text(json.dumps([{"hosts": "{{ host }}", "gather_facts": False, "tasks": tasks}]))
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build/collections"), "ANSIBLE_NOCOLOR": "1"}

    def played(name: str, transport: str, items: int) -> float:
        line = "true" if name == "linux1" else "cmd /c exit 0"
        values = json.dumps({"host": name, "line": line, "items": items, "ansible_sojourn_transport": transport})
        begin = time.monotonic()
        command = [Path(sys.executable).parent / "ansible-playbook", "-i", inventory, playbook, "-e", values]
        subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        return time.monotonic() - begin

    for name, label in (("linux1", "Linux"), ("windows1", "Wine")):
        figures: dict[str, dict[str, list[float]]] = {}
        for number in range(ROUNDS + 1):
            for transport in ("direct", "tunnel"):
                items = (played(name, transport, TUNNEL_ITEMS + 1) - played(name, transport, 1)) / TUNNEL_ITEMS
                agent = Agent(bench.target(name, transport=transport), os.getpid())
                agent.deploy()
                laps = [time.monotonic()]
                agent.put_file(str(file), "payload")
                laps.append(time.monotonic())
                agent.get_file("payload", str(back))
                laps.append(time.monotonic())
                calls = []
                for _call in range(TUNNEL_ITEMS):
                    begin = time.monotonic()
                    agent.info()
                    calls.append(time.monotonic() - begin)
                agent.remove()
                sample = {
                    "raw per item, ms": items * 1000, "GetInfo, ms": statistics.median(calls) * 1000,
                    f"PutFile of {TUNNEL_MB} MB, MB/s": TUNNEL_MB / (laps[1] - laps[0]), f"GetFile of {TUNNEL_MB} MB, MB/s": TUNNEL_MB / (laps[2] - laps[1]),
                }  # fmt: skip
                for what, value in sample.items():
                    if number:
                        figures.setdefault(what, {}).setdefault(transport, []).append(value)
        for what, by in figures.items():
            bench.row(f"{label}: {what}", ", ".join(f"{transport} {statistics.median(values):.1f}" for transport, values in by.items()))


def sizes(bench: Bench) -> None:
    """What the agent weighs."""
    for path in sorted((ROOT / "agent/dist").glob("sojourn-agent-*")):
        bench.row(f"size of {path.name}, MB", f"{path.stat().st_size / MB:.2f}")
    for name, label in (("linux1", "Linux"), ("windows1", "Wine")):
        agent = Agent(bench.target(name), os.getpid())
        agent.deploy()
        bench.row(f"agent's resident memory, idle, {label}, MB", f"{agent.info()['resident_bytes'] / MB:.1f}")
        agent.remove()


def broker_process() -> int:
    """The process id of this process's broker."""
    folder = run_folder(os.getpid())
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if folder.encode() in words:
                return int(entry.name)
    raise SystemExit("bench.py: the broker is not there")


def resident(pid: int) -> float:
    """Resident memory of a process, in MB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / MB


def broker_memory(bench: Bench) -> None:
    """The broker with one session and with twenty."""
    agents = [Agent(bench.target(f"linux{number}"), os.getpid()) for number in range(1, LINUX_TARGETS + 1)]
    try:
        agents[0].info()
        one = resident(broker_process())
        for agent in agents[1:]:
            agent.deploy()
        twenty = resident(broker_process())
    finally:
        for agent in agents:
            agent.remove()
    bench.row("broker's resident memory, 1 session, MB", f"{one:.1f}")
    bench.row(f"broker's resident memory, {LINUX_TARGETS} sessions, MB", f"{twenty:.1f}")


def measure(lab_name: str, wanted: list[str]) -> None:
    """Takes the figures; runs in the controller's network."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sojourn-bench-")))
        bench = Bench(Lab(lab_name), work)
        peers = Peers(bench.lab, work)
        rows: list[Row] = []
        for name in wanted:
            if name == FIGURES:
                first_answer(bench, "linux1")
                first_answer(bench, "windows1")
                broker_memory(bench)
                sizes(bench)
                uploads(bench, stack)
                continue
            if name == TUNNEL:
                tunnels(bench)
                continue
            found = ROWS[name](peers, ROUNDS)
            print(table(found), flush=True)
            rows += found
        if rows:
            print(f"\n{peers.version}\n\n{table(rows)}")
    if bench.rows:
        print("\n| what | figure |\n|---|---|")
        for what, figure in bench.rows:
            print(f"| {what} | {figure} |")


def main() -> int:
    """Brings a lab up, measures in its controller's network, takes it down."""
    words = sys.argv[1:]
    if words[:1] == ["--first-answer"]:
        first_answer_sample(words[1], words[2])
        return 0
    every = [*ROWS, FIGURES, TUNNEL]
    wanted = os.environ.get(WANTED, "").replace(",", " ").split() or every
    if unknown := set(wanted) - set(every):
        raise SystemExit(f"bench.py: no such row: {', '.join(sorted(unknown))} (there are {', '.join(every)})")
    if os.environ.get(INSIDE):
        measure(os.environ[INSIDE], wanted)
        return 0
    if missing := [tool for tool in ("scp", "smbclient") if not shutil.which(tool)]:
        packages = [{"scp": "openssh-client"}.get(tool, tool) for tool in missing]
        subprocess.run(["apt-get", "-qq", "install", "--yes", "--no-install-recommends", *packages], check=True)
    lab = Lab(os.environ.get("SOJOURN_BENCH_LAB", "bench"))
    lab.down()
    lab.up(linux=LINUX_TARGETS if set(wanted) & set(MANY) else 1, windows=1 if {FIGURES, TUNNEL} & set(wanted) else 0)
    try:
        _ = Peers(lab, Path()).controller  # built here: in the lab's network nothing can be fetched
        return subprocess.call(lab.inside("controller", [sys.executable, __file__]), env={**os.environ, INSIDE: lab.name})
    finally:
        lab.down()


if __name__ == "__main__":
    sys.exit(main())
