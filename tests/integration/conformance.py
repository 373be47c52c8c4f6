"""ansible-core's own integration targets, called *suites* here: where they come from, how each is run over a connection, what is known of each.

They are made for a target that is the controller itself, in containers with the internet behind them. What is changed for the lab's Linux target
is in the table `SUITES`, every bit of it, and in docs/conformance.md with its reason: variables, inventories, what a role finds on the target, and,
as few as can be, words of a playbook that say "this machine" or "ssh" where a variable would do. Ansible's own `ssh` gets the same changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.conftest import COLLECTIONS
from tests.integration.controllers import COMMANDS, NEWEST, OLDEST, PIP, Other, executable
from tests.integration.own_ssh import command_line, end_shared_connections
from tests.integration.playing import PACKAGES_LEAVE
from tests.lab import cache
from tests.lab.commands import run
from tests.lab.waiting import wait_for

BOTH = (OLDEST, NEWEST)
OURS, SSH = "sojourn.deploy.ssh", "ssh"
# With this variable set, all that the table tells is run anew: each suite by both versions, over both connections.
ALL = "SOJOURN_TEST_CONFORMANCE"
IN_THE_SDIST = "test/integration/targets/"
# Which sdist a controller's suites are of. That of the newest is raised with NEWEST.
SDISTS = {
    OLDEST.name: ("2.17.0", "bd16e30ecac405dac594de3e1b1b4d9cc6fa1a9f7a01a6a8d4c471b20660716d"),
    NEWEST.name: ("2.21.5", "65bb3148c58ebb843cd5074004c805f404f152114d98476dd823324616c9c6cb"),
}
# The roles that suites depend on.
SHARED = ("prepare_tests", "setup_*", "test_utils")

# Ansible's own folder for modules: it makes it over any connection, for whomever a task becomes, and keeps it. And the folder of the stage's key.
ALWAYS_LEFT: tuple[str, ...] = ("files: /root/.ansible*", "files: /home/*/.ansible*", "files: /root/.ssh")

# Copies that useradd(8) and its like make of what they change.
USERS_LEAVE = tuple(f"files: /etc/{name}-" for name in ("group", "gshadow", "passwd", "shadow", "subgid", "subuid"))

# Fails over Ansible's own ssh only: that asks for a terminal where a task becomes another user, and leaves what it shows in the output of `raw`.
NOISE = "`raw` with `become`: ssh leaves the prompt, or its empty line, in the output"
#: How each of these failures shows: a look at what a command printed, which finds more than that.
NOISE_SHOWS = re.compile(r'"assertion": ".*\bstdout\b')


@dataclass(frozen=True)
class Change:
    """Words of a suite's file that are replaced, and why. `{connection}` and `{address}` stand for those of the run."""

    file: str
    old: str
    new: str
    why: str
    versions: tuple[Other, ...] = (OLDEST, NEWEST)


@dataclass(frozen=True)
class Suite:
    """One suite as it is run here. All of it holds for both connections."""

    name: str
    variant: str = ""
    """Tells two rows of one suite apart."""
    versions: tuple[Other, ...] = (OLDEST, NEWEST)
    """In which it is."""
    every_run: tuple[Other, ...] = (NEWEST,)
    """By which ansible-core it is run over our connection whenever the tests run; see docs/conformance.md."""
    cold: tuple[Other, ...] = ()
    """By which it is run then without a warm interpreter as well."""
    words: tuple[str, ...] = ()
    """Further words of its command line."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of its inventory's host."""
    play: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of the play that is made around a role."""
    changes: tuple[Change, ...] = ()
    prepare: Callable[[Stage], contextlib.AbstractContextManager[None]] | None = None
    """What it finds on the target."""
    why: str = ""
    """Why, for words, variables, play and prepare."""
    leaves: tuple[str, ...] = ()
    """What the suite's programs leave on the target, which is theirs: see tests.lab.snapshot.compare."""
    litter: tuple[str, ...] = ()
    """What the suite itself makes on the target and leaves, over any connection: patterns of a shell; it is removed, so that no other suite meets it."""
    users: tuple[str, ...] = ()
    """Users likewise."""
    note: str = ""
    """What else is to be known of it."""
    ssh_fails: Mapping[str, str] = field(default_factory=dict)
    """Why it fails over Ansible's own ssh, by the name of the version."""

    def __post_init__(self) -> None:
        assert set(self.every_run) & set(self.versions) or not self.every_run, f"{self} is in every run, and in none"
        assert set(self.cold) <= set(self.every_run), f"{self}, in every run, is cold alone"

    def __str__(self) -> str:
        return f"{self.name}{f', {self.variant}' if self.variant else ''}"


@dataclass(frozen=True)
class Outcome:
    """What a run of a suite came to."""

    code: int
    output: str
    seconds: float


def table() -> str:
    """What passes, in Markdown; what is in it is asserted when all of it is run."""
    heads = [f"{name}, {SDISTS[other.name][0]}" for other in BOTH for name in ("ssh", "ours")]
    lines = [f"| suite | {' | '.join(heads)} | in every run of the tests |", f"|---{'|---' * len(heads)}|---|"]
    for suite in SUITES:
        cells = []
        for other in BOTH:
            there = other in suite.versions
            cells += ["fails" if other.name in suite.ssh_fails else "passes", "passes"] if there else ["", ""]
        runs = [f"{SDISTS[other.name][0]}{' both ways' if other in suite.cold else ''}" for other in suite.every_run]
        lines.append(f"| {suite} | {' | '.join(cells)} | {', '.join(runs)} |")
    return "\n".join(lines)


def remarks() -> str:
    """What is not as ansible-test has it, and why, suite by suite; in Markdown."""
    lines = []
    for suite in SUITES:
        of_this = []
        if suite.why:
            means = [f"the variable `{name}={value}`" for name, value in suite.variables.items()]
            means += [f"words `{' '.join(suite.words)}`"] if suite.words else []
            means += [f"the play's `{name}: {json.dumps(value)}`" for name, value in suite.play.items()]
            if suite.prepare:
                function = getattr(suite.prepare, "func", suite.prepare)
                means.append((function.__doc__ or "").partition("\n")[0].rstrip("."))
            of_this.append(f"{'; '.join(means)}. Why: {suite.why}")
        for change in suite.changes:
            old, new = (json.dumps(text) for text in (change.old, change.new))
            where = f"`{change.file}`" + (f" of {SDISTS[change.versions[0].name][0]}" if len(change.versions) == 1 else "")
            of_this.append(f"in {where}, `{old}` is `{new}`. Why: {change.why}")
        if suite.litter:
            of_this.append(f"it leaves, and the test removes, `{' '.join(suite.litter)}`")
        of_this += [f"it leaves, and the test removes, the user `{user}`" for user in suite.users]
        of_this += [f"over `ssh`, {SDISTS[name][0]}, it fails: {why}" for name, why in suite.ssh_fails.items()]
        of_this += [suite.note] if suite.note else []
        lines += [f"- **{suite}**: {text}." for text in of_this]
    return "\n".join(lines)


def sources(other: Other) -> Path:
    """The folder of the suites of a version; fetched by pip when missing."""
    version, checksum = SDISTS[other.name]
    return cache.ensure(f"suites-{other.name}", cache.digest(version, checksum, *sorted({suite.name for suite in SUITES})), partial(_fetch, version, checksum))


def _fetch(version: str, checksum: str, folder: Path) -> None:
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    wanted = scratch / "wanted.txt"
    wanted.write_text(f"ansible-core=={version} --hash=sha256:{checksum}\n")
    # Its files are wanted, not the program: that may need another Python than the one that runs the tests.
    run([*PIP, "download", "--no-deps", "--no-binary", ":all:", "--ignore-requires-python", "--no-cache-dir", "--require-hashes",
         "--dest", scratch, "--requirement", wanted])  # fmt: skip
    (sdist,) = scratch.glob("*.tar.gz")
    assert hashlib.sha256(sdist.read_bytes()).hexdigest() == checksum
    names = {suite.name for suite in SUITES}
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            path = member.name.partition("/")[2]
            name = path.removeprefix(IN_THE_SDIST).partition("/")[0]
            if path.startswith(IN_THE_SDIST) and (name in names or any(Path(name).match(pattern) for pattern in SHARED)):
                archive.extract(member.replace(name=path.removeprefix(IN_THE_SDIST)), folder, filter="tar")
    cache.remove_tree(scratch)


class Stage:
    """Where a suite is run: a folder as ansible-test would lay it out, the variables that it would set, and the key by which both connections sign in."""

    def __init__(self, lab: Any, target: Any, other: Other, connection: str, folder: Path, *, warm: bool) -> None:
        self.lab = lab
        self.target = target
        self.other = other
        self.connection = connection
        self.warm = warm
        self.folder = folder
        self.output = folder / "output"
        self.integration = folder / "test/integration"
        self.address = target.addresses.as_seen_from_the_lab("ipv6")
        self.key = folder / "key"
        self.known_hosts = folder / "known_hosts"
        # Short: it holds sockets.
        self.sockets = Path(tempfile.mkdtemp(prefix="sojourn-ssh-"))

    def __enter__(self) -> Stage:
        for path in (self.output, self.folder / "bin", self.integration / "targets"):
            path.mkdir(parents=True)
        for name in COMMANDS:
            executable(self.folder / "bin" / name, f'#!/bin/sh\nexec {self.other.ensure()}/bin/{name} "$@"\n')
        executable(self.folder / "bin/sshpass", SSHPASS)
        executable(self.folder / "bin/virtualenv.sh", VIRTUALENV)
        (self.folder / "ansible.cfg").touch()
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "conformance", "-f", self.key])
        shutil.copy(self.lab.known_hosts, self.known_hosts)
        public = self.key.with_suffix(".pub").read_text()
        self.target.exec(["sh", "-c", "umask 077; mkdir -p /root/.ssh; cat > /root/.ssh/authorized_keys"], input=public)
        return self

    def __exit__(self, *unused: object) -> None:
        shutil.rmtree(self.sockets)
        wait_for("the controller's processes to end", lambda: not self.processes(), timeout=60)
        self.target.exec(["rm", "/root/.ssh/authorized_keys"])

    def processes(self) -> list[int]:
        """What the run has started here and has not ended; of everything that begins with SOJOURN_ the broker gets its share too."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if f"SOJOURN_TEST_MARK={self.folder}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """ansible-test's variables, and instead of a configuration file what the lab's target takes to be reached."""
        variables = self.other.environment()
        return {
            **os.environ,
            **variables,
            "PATH": f"{self.folder}/bin:{variables['PATH']}",
            "OUTPUT_DIR": str(self.output),
            "INVENTORY_PATH": str(self.integration / "inventory"),
            "PAGER": "/bin/cat",
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_CONFIG": str(self.folder / "ansible.cfg"),
            "ANSIBLE_DEPRECATION_WARNINGS": "false",
            "ANSIBLE_FORCE_HANDLERS": "true",
            "ANSIBLE_HOME": str(self.folder / "home"),
            "ANSIBLE_HOST_PATTERN_MISMATCH": "error",
            "ANSIBLE_INVENTORY": "/dev/null",
            "ANSIBLE_LIBRARY": "/dev/null",
            "ANSIBLE_NOCOLOR": "true",
            "ANSIBLE_RETRY_FILES_ENABLED": "false",
            "ANSIBLE_TEST_PYTHON_INTERPRETER": str(self.other.ensure() / "bin/python"),
            "ANSIBLE_TEST_PYTHON_VERSION": self.other.python,
            "ANSIBLE_TRANSPORT": self.connection,
            "ANSIBLE_PRIVATE_KEY_FILE": str(self.key),
            "ANSIBLE_SSH_COMMON_ARGS": f"-o UserKnownHostsFile={self.known_hosts}",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.sockets),
            "SOJOURN_KNOWN_HOSTS_FILE": str(self.known_hosts),
            "SOJOURN_WARM_INTERPRETER": str(self.warm).lower(),
            "SOJOURN_TEST_MARK": str(self.folder),
            **more,
        }

    def play(self, suite: Suite) -> Outcome:
        """Runs a suite as ansible-test would: its script, or a play around its role."""
        targets = self.integration / "targets"
        for pattern in (suite.name, *SHARED):
            for path in sources(self.other).glob(pattern):
                shutil.copytree(path, targets / path.name, symlinks=True)
        for change in suite.changes:
            if self.other in change.versions:
                self._change(targets / suite.name / change.file, change)
        host = {
            "ansible_host": self.address, "ansible_connection": self.connection, "ansible_user": "root", "ansible_python_interpreter": "/usr/bin/python3",
            **suite.variables}
        inventory = f"testhost {' '.join(f'{name}={json.dumps(value)}' for name, value in host.items())}\n"
        (self.integration / "inventory").write_text(self._filled(inventory))
        folder, more = targets / suite.name, {}
        if (folder / "test.sh").exists():
            more["INVENTORY"] = str(self.integration / "inventory")
            command = ["bash", "./test.sh"]
        elif (folder / "runme.sh").exists():
            command = ["bash", "./runme.sh"]
        else:
            aliases = (folder / "aliases").read_text().split()
            folder, more["ANSIBLE_ROLES_PATH"] = self.integration, str(targets)
            play = {
                "hosts": "testhost", "gather_facts": "gather_facts/no" not in aliases, "vars": {"output_dir": str(self.output)}, "roles": [suite.name],
                **suite.play}
            (folder / "play.yml").write_text(json.dumps([play]))
            command = ["ansible-playbook", "play.yml", "-i", "inventory"]
        command += [self._filled(word) for word in suite.words]
        more["ANSIBLE_PLAYBOOK_DIR"] = str(folder)
        with (suite.prepare or (lambda unused: contextlib.nullcontext()))(self):
            began = time.monotonic()
            with open(self.folder / "log", "wb") as log:
                done = subprocess.run(
                    self.lab.inside("controller", command), env=self.environment(more), cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    timeout=900)
            seconds = time.monotonic() - began
            # Before anything is taken back on the target, such as an address, the agent is gone, and the connections that Ansible's ssh keeps for later.
            wait_for("the brokers to end", lambda: not self._brokers(), timeout=60)
            end_shared_connections(self.sockets)
            if suite.litter:
                self.exec(f"rm -rf {' '.join(suite.litter)}")
            for user in suite.users:
                self.exec(f"if id {user} > /dev/null 2>&1; then userdel -r {user} 2> /dev/null; fi")
        return Outcome(done.returncode, (self.folder / "log").read_text(errors="replace"), seconds)

    def _brokers(self) -> list[int]:
        return [pid for pid in self.processes() if b"broker_start.py" in command_line(pid)]

    def _filled(self, text: str) -> str:
        return text.replace("{connection}", self.connection).replace("{address}", self.address).replace("{folder}", str(self.folder))

    def _change(self, path: Path, change: Change) -> None:
        text = path.read_text()
        assert change.old in text, f"{path} has no {change.old!r} any more"
        path.write_text(text.replace(change.old, self._filled(change.new)))

    def exec(self, script: str, *arguments: str, input: str | None = None) -> None:
        """A script on the target."""
        self.target.exec(["sh", "-euc", script, "sh", *arguments], input=input)


# sshpass(1) as far as suites call it: answers the first question that a command asks at its terminal.
SSHPASS = f"""\
#!{sys.executable}
import os, pty, sys
assert sys.argv[1] == "-p"
answer = sys.argv[2].encode() + b"\\n"
def read(descriptor):
    global answer
    data = os.read(descriptor, 1024)
    if b"assword" in data and answer:
        os.write(descriptor, answer)
        answer = b""
    return data
os.set_inheritable(0, True)
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[3:], read, lambda descriptor: b"")))
"""
# ansible-test's script of this name, without pip: nothing is installed, and not every Python has the means to make it.
VIRTUALENV = """\
rm -rf "${OUTPUT_DIR}/venv"
"${ANSIBLE_TEST_PYTHON_INTERPRETER}" -m venv --without-pip --system-site-packages "${OUTPUT_DIR}/venv"
set +ux
source "${OUTPUT_DIR}/venv/bin/activate"
set -ux
"""


# What suites find on the target


@contextlib.contextmanager
def folder_on_target(stage: Stage, path: str = "output") -> Iterator[None]:
    """The folder of the run, by the same name on the target: where the two are one machine it is there."""
    stage.exec('mkdir -p "$1"', str(stage.folder / path))
    try:
        yield
    finally:
        top = stage.folder.parts[:3]  # such as /tmp/pytest-of-root
        stage.exec('rm -r "$1"', str(Path(*top)))


@contextlib.contextmanager
def output_and_role(stage: Stage) -> Iterator[None]:
    """One output folder for both, the role's files on both, and one name for the Python of each.

    Templates are made on the controller, compared with the role's files on the target and read by lookups on the controller; and the target's Python
    is asked, on the controller, for its jinja2.
    """
    with folder_on_target(stage):
        role = stage.integration / "targets/template"
        archive = subprocess.run(["tar", "-C", "/", "-c", str(role.relative_to("/"))], capture_output=True, check=True).stdout
        stage.target.exec(["tar", "-C", "/", "-x"], input=archive)
        stage.exec('ln -s /usr/bin/python3 "$1"', str(stage.folder / "python"))
        executable(stage.folder / "python", f'#!/bin/sh\nexec {stage.other.ensure()}/bin/python "$@"\n')
        leader = stage.target.leader
        stage.output.rmdir()
        stage.output.symlink_to(f"/proc/{leader.pid}/root{stage.output}")
        yield


@contextlib.contextmanager
def sudo_for(user: str, stage: Stage) -> Iterator[None]:
    """A user whom the suite makes and signs in as may use sudo: the agent is root's."""
    file = "/etc/sudoers.d/conformance"
    stage.exec('umask 337; echo "$1 ALL=(ALL:ALL) NOPASSWD: ALL" > "$2"', user, file)
    try:
        yield
    finally:
        stage.exec('rm "$1"', file)


@contextlib.contextmanager
def more_addresses(stage: Stage) -> Iterator[None]:
    """Three more addresses of the target, in the place of 127.0.0.3, 127.0.0.4 and 127.0.0.254; one that never answers; and the folder of the suite."""
    addresses = [f"{stage.address}{end}" for end in ("03", "04", "fe")]
    with open(stage.known_hosts, "a") as file:
        file.writelines(f"{line}\n" for line in stage.target.known_hosts(*addresses))
    link = 'link=$(ip -o -6 address show to "$1" | cut -d " " -f 2); shift; '
    stage.exec(f'{link} for address; do ip address add "$address/64" dev "$link" nodad; done', stage.address, *addresses)
    # The target passes nothing on, and says nothing of that: so a host of the internet is that does not answer.
    silent = ["ip", "route", "add", "4.2.2.2", "via", stage.target.addresses.ipv4]
    run(stage.lab.inside("controller", silent))
    try:
        with folder_on_target(stage, "test/integration/targets/delegate_to"):
            yield
    finally:
        silent[2] = "delete"
        run(stage.lab.inside("controller", silent))
        stage.exec(f'{link} for address; do ip address delete "$address/64" dev "$link"; done', stage.address, *addresses)


@contextlib.contextmanager
def packages_to_install(stage: Stage) -> Iterator[None]:
    """A repository in the target with the packages that the suite removes and installs again, and an empty one in the place of Ubuntu's language-pack-fr."""
    place = "/var/tmp/conformance"
    build = stage.folder / "repository"
    control = build / "language-pack-fr/DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text("Package: language-pack-fr\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: nothing\n")
    run(["dpkg-deb", "--root-owner-group", "--build", control.parent.parent, build])
    for name in ("tar", "unzip", "zip", "zstd"):
        for deb in (cache.folder() / "debs/bookworm").glob(f"{name}_*.deb"):
            shutil.copy(deb, build)
    entries = []
    stage.exec('mkdir "$1"', place)
    for deb in build.glob("*.deb"):
        data = deb.read_bytes()
        about = run(["dpkg-deb", "--field", deb]).stdout.strip()
        entries.append(f"{about}\nFilename: ./{deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n")
        stage.target.exec(["sh", "-c", 'cat > "$1"', "sh", f"{place}/{deb.name}"], input=data)
    stage.exec('cat > "$1/Packages"', place, input="".join(entries))
    stage.exec('mv /etc/apt/sources.list "$1"; echo "deb [trusted=yes] file:$1 ./" > /etc/apt/sources.list; apt-get -q update', place)
    try:
        yield
    finally:
        stage.exec('dpkg --purge language-pack-fr; mv "$1/sources.list" /etc/apt; rm -r "$1"; rm -f /var/lib/apt/lists/*conformance*', place)


@contextlib.contextmanager
def slow_boot(stage: Stage) -> Iterator[None]:
    """A target that takes as long to start as the suite takes for granted; the lab's are up again within a second."""
    unit = "/etc/systemd/system/conformance.service"
    stage.exec('cat > "$1"; systemctl enable -q conformance.service', unit, input=(
        "[Unit]\nBefore=ssh.service\n[Service]\nType=oneshot\nExecStart=/bin/sleep 11\n[Install]\nRequiredBy=ssh.service\n"))
    try:
        yield
    finally:
        stage.exec('systemctl disable -q conformance.service; rm "$1"; systemctl daemon-reload; systemctl reset-failed', unit)


# The suites

_CONNECTION = ("-e", "target_hosts=testhost", "-e", "action_prefix=", "-e", "local_tmp={folder}/local", "-e", "remote_tmp=/tmp/conformance")
_CONNECTION_WHY = "the words that its manual asks for"


def _here(file: str, old: str, new: str, why: str = "the suite's host is the controller itself", versions: tuple[Other, ...] = BOTH) -> Change:
    return Change(file, old, new, why, versions)


_COPY_LEAVES = ("/tmp/ansible_test.*", *(f"/root/{name}" for name in (
    "checkmode_subdir", "destdir_should_never_exist_because_of_check_mode", "dir1", "dir2", "foo.txt", "subdir")))

_FETCH = _here(
    "setup_unreadable_test.yml", '"~root/.ssh/authorized_keys"', '"{folder}/key.pub"', "it takes the keys of the target's root from the controller")

SUITES: tuple[Suite, ...] = (
    Suite("connection", "with pipelining", every_run=BOTH, words=_CONNECTION, why=_CONNECTION_WHY, variables={"ansible_pipelining": "true"}),
    Suite("connection", "without pipelining", every_run=BOTH, words=_CONNECTION, why=_CONNECTION_WHY, variables={"ansible_pipelining": "false"}),
    Suite("raw", every_run=BOTH, cold=(NEWEST,)),
    Suite("script", every_run=BOTH),
    Suite("copy", leaves=USERS_LEAVE, litter=_COPY_LEAVES),
    Suite(
        "copy", "by sojourn.deploy.copy", every_run=(), leaves=USERS_LEAVE, litter=_COPY_LEAVES,
        changes=(_here("meta/main.yml", "dependencies:", "collections: [sojourn.deploy]\ndependencies:", "so its `copy` is this collection's"),),
    ),
    Suite(
        "fetch", leaves=USERS_LEAVE,
        prepare=partial(sudo_for, "fetcher"), why="it signs in as a user whom it makes; the agent is started by sudo", changes=(_FETCH,),
    ),
    Suite(
        "fetch", "by sojourn.deploy.fetch", every_run=(), leaves=USERS_LEAVE,
        prepare=partial(sudo_for, "fetcher"), why="it signs in as a user whom it makes; the agent is started by sudo",
        changes=(_FETCH, _here(
            "roles/fetch_tests/meta/main.yml", "dependencies:", "collections: [sojourn.deploy]\ndependencies:", "so its `fetch` is this collection's")),
    ),
    Suite("slurp", every_run=BOTH, leaves=USERS_LEAVE),
    Suite("file", leaves=USERS_LEAVE, litter=("/tmp/touch_check_mode_test",), users=("test2",)),
    Suite("stat", every_run=BOTH, cold=(NEWEST,)),
    Suite(
        "template", leaves=USERS_LEAVE,
        prepare=output_and_role, variables={"ansible_python_interpreter": "{folder}/python"},
        why="it takes output_dir, the role's folder, and the target's Python with jinja2 in it, to be the controller's",
    ),
    Suite("async", leaves=("files: /var/cache/apt/*.bin",)),
    Suite("async_fail", every_run=BOTH, cold=(NEWEST,)),
    Suite("command_shell", every_run=BOTH, cold=BOTH),
    Suite("become", every_run=BOTH, leaves=USERS_LEAVE, ssh_fails={OLDEST.name: NOISE, NEWEST.name: NOISE}),
    Suite(
        "become_sudo", versions=(NEWEST,), leaves=USERS_LEAVE, litter=("/etc/sudoers.d/ansibletest1", "/tmp/sudoshim.sh"), ssh_fails={NEWEST.name: NOISE}),
    Suite(
        "become_su", "as 2.17 has it", versions=(OLDEST,), every_run=(OLDEST,),
        changes=(_here("runme.sh", "--become-method=su localhost", "--become-method=su -i ../../inventory testhost"),),
    ),
    Suite("become_su", leaves=USERS_LEAVE, litter=("/etc/sudoers.d/ansibletest1", "/tmp/sushim.sh"), versions=(NEWEST,)),
    Suite(
        # It has Ansible keep the files of its modules, to look at them.
        "become_unprivileged", leaves=USERS_LEAVE, litter=("/var/tmp/ansible-tmp-*",),
        changes=(
            _here("inventory", "ansible_host=localhost\nansible_connection=ssh", "ansible_host={address}\nansible_connection={connection}"),
            _here("inventory", "{{ ansible_playbook_python }}", "/usr/bin/python3"),
        ),
    ),
    Suite(
        "unarchive", leaves=(*USERS_LEAVE, *PACKAGES_LEAVE, "files: /var/lib/apt/lists/partial", "files: /var/cache/apt/*.bin"),
        litter=("/root/ansible", "/root/test-unarchive-relative"),
        prepare=packages_to_install, why="it removes zip and installs it again, and a package of Ubuntu's",
        changes=(_here(
            "tasks/main.yml", "- import_tasks: test_download.yml\n", "", "it has the target fetch an archive from the internet, which the lab has not"),),
    ),
    Suite("wait_for_connection", every_run=BOTH),
    Suite(
        "reboot",
        prepare=slow_boot, play={"gather_subset": ["all", "!virtual"]}, words=("--skip-tags", "molly-guard", "-e", "timeout=60"),
        why="it skips itself in a container; a boot takes more than 10 s; molly-guard comes from the internet; it waits 30 s and not 60 for what never comes",
    ),
    Suite(
        "signal_propagation", versions=(NEWEST,), note="what it interrupts are lookups on the controller, of hosts that have the connection",
        changes=(
            _here("inventory", "ansible_connection=local", "ansible_host={address}\nansible_connection={connection}"),
            _here("inventory", "{{ansible_playbook_python}}", "/usr/bin/python3"),
            Change("runme.sh", "sleep 2\n", "sleep 10\n", "so many processes take longer to end beside other tests"),
        ),
    ),
    Suite(
        "connection_delegation",
        changes=(
            Change("inventory.ini", "ansible_host=127.0.0.1 ansible_connection=delegation_connection", "ansible_host={address} ansible_connection={connection}",
                   "it has a connection of its own"),
            Change("action_plugins/delegation_action.py", "get_option('remote_password')", "get_option('password')", "what that connection calls the password"),
        ),
    ),
    Suite(
        "delegate_to",
        prepare=more_addresses, why="it has addresses of the controller for hosts, and writes beside its playbook",
        changes=(
            *(_here("inventory", old, new) for old, new in (
                ("127.0.0.3", "{address}03"), ("127.0.0.4", "{address}04"), ("ansible_connection=ssh", "ansible_connection={connection}"),
                ("{{ ansible_playbook_python }}", "/usr/bin/python3"))),
            *(_here("test_delegate_to.yml", old, new) for old, new in (
                ("127.0.0.3", "{address}03"), ("127.0.0.4", "{address}04"), ("127.0.0.254", "{address}fe"))),
            _here("delegate_with_fact_from_delegate_host.yml", "ansible_connection=ssh", "ansible_connection={connection}", versions=(OLDEST,)),
            _here("delegate_with_fact_from_delegate_host.yml", "ansible_connection: ssh", "ansible_connection: {connection}", versions=(NEWEST,)),
            _here("delegate_vars_hanldling.yml", "127.0.0.4", "{address}04", versions=(OLDEST,)),
            _here("delegate_vars_inventory", "127.0.0.4", "{address}04", versions=(NEWEST,)),
            _here("delegate_vars_hanldling.yml", "ansible_connection: ssh", "ansible_connection: {connection}", versions=(OLDEST,)),
            _here("delegate_vars_handling.yml", "ansible_connection: ssh", "ansible_connection: {connection}", versions=(NEWEST,)),
            Change(
                "test_delegated_async_inner.yml", "async: 5\n", "async: 60\n",
                "its three seconds over the controller's own connection take more than five beside other tests", (NEWEST,)),
            Change("runme.sh", "set -eux\n", "set -eux -o pipefail\n", "of a pipe of its playbook's output it sees the last command alone", (NEWEST,)),
        ),
    ),
    Suite("loop-connection", note="it has a connection of its own and looks at what that answers: nothing goes over `ssh` or ours, and it is run as it is"),
)
