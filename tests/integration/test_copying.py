"""`sojourn.deploy.copy` beside `ansible.builtin.copy`: the same tasks, each to a place of its own, come to the same trees and the same results."""

from __future__ import annotations

import ast
import datetime
import hashlib
import json
import os
import random
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import FAMILIES, Controller
from tests.integration.controllers import NEWEST, OLDEST, Other
from tests.integration.own_ssh import end_shared_connections
from tests.integration.playing import Played, play
from tests.lab import Lab
from tests.lab.commands import run

ACTIONS = {"core": "ansible.builtin.copy", "ours": "sojourn.deploy.copy"}
AT = "/var/tmp/copies"
# Ansible's own folder for modules; it makes it over any connection, for whomever a task becomes, and keeps it.
ALWAYS_LEFT = ("files: /root/.ansible*", "files: /home/*/.ansible*")
VAULT = "a password of no worth"

# What is at a place before: files are old, and of somebody else's mode.
DIFFERENT = """
mkdir -p "$1/deep/er" && echo other >"$1/one.txt" && echo other >"$1/deep/er/two.sh" && printf 'a line\\n' >"$1/same.txt"
chmod 600 "$1/one.txt" && chown deployer "$1/one.txt" && chmod 710 "$1/deep" && find "$1" -exec touch -h -d 2001-01-01 {} +
"""
FILE = 'echo other >"$1" && chmod 604 "$1" && touch -d 2001-01-01 "$1"'
# Of the large file's size, which is what decides.
AS_LARGE = 'head -c 100000 /dev/zero >"$1" && chmod 604 "$1" && touch -d 2001-01-01 "$1"'
LARGE = random.Random("large").randbytes(100_000)
# Of which the target is asked twice.
VERY_LARGE = 9_000_000
AS_VERY_LARGE = AS_LARGE.replace("100000", str(VERY_LARGE))
LINKS = 'mkdir "$1" && echo other >"$1.beside" && ln -s "$1.beside" "$1/one.txt" && ln -s nowhere "$1/zero"'

# A tree's lines: what it is, mode, owner, group, size, SHA-1, where a link leads, whether it is old; a backup's name has the time in it.
LIST = r"""
import hashlib, os, re, stat, sys
for top in sorted(os.listdir(b"%(at)s")):
    top = os.path.join(b"%(at)s", top)
    for path in sorted([top] + [os.path.join(folder, name) for folder, folders, files in os.walk(top) for name in folders + files]):
        found = os.lstat(path)
        words = [oct(found.st_mode), found.st_uid, found.st_gid, "old" if found.st_mtime < 1500000000 else "new", found.st_nlink]
        if stat.S_ISREG(found.st_mode):
            words += [found.st_size, hashlib.sha1(open(path, "rb").read()).hexdigest()]
        if stat.S_ISLNK(found.st_mode):
            words += [os.readlink(path)]
        print(ascii(re.sub(rb"\.\d+\.\d{4}-\d\d-\d\d@\d\d:\d\d:\d\d~", b".BACKUP~", path)), *words)
""".replace("%(at)s", AT)


def step(src: str, dest: str = "", keywords: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """A task that copies; both words are what follows the folder of the case. Without the first it copies its ``content``."""
    return {"options": {"src": src, "dest": dest, **options}, "keywords": keywords or {}}


# By name: what is done before, then the tasks, one after the other to the same place. `src` is beside the play, `dest` below the place.
CASES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "a second time": ("", [step("tree"), step("tree")]),
    "what is in it": ("", [step("tree/", "/there/"), step("tree/", "/there")]),
    "modes": ("", [step("few/", mode="0640", directory_mode="0750", owner="deployer", group="deployer"), step("few/", mode="0604", directory_mode="0705")]),
    "modes of many": (DIFFERENT, [step("few/", mode="0640", directory_mode="0750", owner="deployer")]),
    "symbolic modes": (DIFFERENT, [step("few/", mode="u=rwX,g=r,o=", directory_mode="u=rwx,g=rx,o=")]),
    "modes of the source": ("", [step("tree/", mode="preserve"), step("tree/", mode="preserve")]),
    "links as they are": ("", [step("tree/", local_follow=False), step("tree/", local_follow=False)]),
    "links as they are, modes": ("", [step("few", local_follow=False, mode="preserve", owner="deployer")]),
    "different": (DIFFERENT, [step("few/")]),
    "only what is missing": (DIFFERENT, [step("few/", force=False, directory_mode="0711"), step("few/", force=False)]),
    "backup": (DIFFERENT, [step("few/", backup=True)]),
    "in place": (DIFFERENT, [step("few/", unsafe_writes=True)]),
    "validated": ("", [step("few/", validate="test -e %s", mode="0600")]),
    "not valid": (DIFFERENT, [step("few/", validate="grep -q line %s", keywords={"diff": True})]),
    "no place to validate": ("", [step("few/", validate="true")]),
    "no such user": (DIFFERENT, [step("flat/", owner="nosuchuser", keywords={"diff": True})]),
    "no such mode": ("", [step("few/", mode="nonsense")]),
    "check, nothing there": ("", [step("few", keywords={"check_mode": True})]),
    "check, different": (DIFFERENT, [step("few/", mode="0640", keywords={"check_mode": True, "diff": True})]),
    "diff": (DIFFERENT, [step("few/", keywords={"diff": True})]),
    "diff of one": ("", [step("single/", keywords={"diff": True}), step("single/", mode="0600", keywords={"diff": True})]),
    "one file among folders and links": ("", [step("almost/", local_follow=False), step("almost/", local_follow=False)]),
    "nothing in it": ("", [step("empty"), step("folders"), step("folders/")]),
    "following": (LINKS, [step("flat/", follow=True), step("flat/", follow=True, mode="0640")]),
    "not following": (LINKS, [step("flat/")]),
    "a file in the way": ('mkdir "$1" && touch "$1/deep"', [step("few/")]),
    "a folder in the way": ('mkdir -p "$1/one.txt"', [step("flat/")]),
    "a folder in the place of a link": ('mkdir -p "$1/link"', [step("tree/", local_follow=False)]),
    "a link to a folder": ('mkdir "$1.beside" && ln -s "$1.beside" "$1"', [step("few/")]),
    "two names for one file": ('mkdir -p "$1/deep/er" && ln -s deep/er "$1/a" && touch "$1/deep/er/two.sh"', [step("twice/", local_follow=False)]),
    "a wrong checksum": ("", [step("flat/", checksum="0" * 40)]),
    "encrypted": ("", [step("secret/", mode="0600"), step("secret/", mode="0600"), step("secret/", "/as-it-is", decrypt=False)]),
    "no rights": ('mkdir "$1" && chmod 700 "$1"', [step("few/", keywords={"become": True, "become_user": "deployer"})]),
    "another user": ('mkdir "$1" && chown deployer "$1"', [step("few/", mode="0640", keywords={"become": True, "become_user": "deployer"})]),
    "home": ("", [step("flat/", dest="~deployer/COPY"), step("flat/", dest="$HOME/COPY")]),
    "a file": ("", [step("flat/one.txt", keywords={"diff": True}), step("flat/one.txt", keywords={"diff": True}), step("flat/one.txt", mode="0640")]),
    "a file, different": (FILE, [step("flat/one.txt", keywords={"diff": True}, backup=True, owner="deployer")]),
    "a file, only if it is missing": (FILE, [step("flat/one.txt", force=False)]),
    "a file in a folder": ('mkdir "$1"', [step("flat/one.txt"), step("tree/größe.txt", "/"), step("flat/one.txt", "/not/there/")]),
    "a file where no folder is": ("", [step("flat/one.txt", "/not/there")]),
    "a file, checked": (FILE, [step("flat/one.txt", keywords={"check_mode": True, "diff": True})]),
    "a file, in place": (FILE, [step("flat/one.txt", unsafe_writes=True, mode="u+x")]),
    "a file, validated": ("", [step("flat/one.txt", validate="grep -q line %s"), step("flat/zero", validate="grep -q line %s")]),
    "a file of nobody": (FILE, [step("flat/one.txt", owner="nosuchuser", keywords={"diff": True})]),
    "a file with a wrong checksum": ("", [step("flat/one.txt", checksum="0" * 40)]),
    "a file with its mode": ("", [step("tree/deep/er/two.sh", mode="preserve"), step("tree/deep/er/two.sh", mode="preserve")]),
    "a file with nothing in it": (FILE, [step("flat/zero", mode="0600"), step("flat/zero", mode="0600")]),
    "a file, encrypted": ("", [step("secret/sealed", mode="0600"), step("secret/sealed", "-as-it-is", decrypt=False)]),
    "a file, and a link": ('echo other >"$1.beside" && ln -s "$1.beside" "$1"', [
        step("flat/one.txt", follow=True), step("flat/one.txt", follow=True, mode="0640")]),
    "a file in the place of a link": ('echo other >"$1.beside" && ln -s "$1.beside" "$1"', [step("flat/one.txt"), step("flat/one.txt", mode="0640")]),
    "a file without rights": ('mkdir -m 700 "$1"', [step("flat/one.txt", "/there", keywords={"become": True, "become_user": "deployer"})]),
    "a file of another user": ('mkdir "$1" && chown deployer "$1"', [step("flat/one.txt", "/", keywords={"become": True, "become_user": "deployer"})]),
    "a file at home": ("", [step("flat/one.txt", dest="~deployer/COPY")]),
    "a large file": ("", [step("large"), step("large"), step("large", mode="0600")]),
    "a large file, other content": (AS_LARGE, [step("large", keywords={"diff": True}, backup=True, owner="deployer"), step("large")]),
    "a large file, other size": (FILE, [step("large", keywords={"diff": True}, backup=True, mode="0640"), step("large", mode="u+x")]),
    "a large file, checked": ("", [step("large", keywords={"check_mode": True, "diff": True}), step("large"), step("large", keywords={"check_mode": True})]),
    "a large file, checked, other content": (AS_LARGE, [step("large", keywords={"check_mode": True, "diff": True})]),
    "a large file, checked, other size": (FILE, [step("large", keywords={"check_mode": True, "diff": True})]),
    "a large file, only if it is missing": (AS_LARGE, [step("large", force=False), step("large", "-2", force=False), step("large", "-2", force="no")]),
    "a large file with its checksum": (FILE, [step("large", checksum=hashlib.sha1(LARGE).hexdigest())]),
    "a large file with a wrong checksum": ("", [step("large", checksum="0" * 40), step("large", checksum="not hashed yet")]),
    "a large file with a wrong checksum, over another": (AS_LARGE, [step("large", checksum="0" * 40)]),
    "a large file with its mode": (FILE, [step("large", mode="preserve"), step("large", mode="preserve")]),
    "a large file, in place": (AS_LARGE, [step("large", unsafe_writes=True)]),
    "a large file, validated": ("", [step("large", validate="test -s %s"), step("large", "-2", validate="false %s")]),
    "a large file of nobody": (FILE, [step("large", owner="nosuchuser", keywords={"diff": True}), step("large", mode="nonsense")]),
    "a large file in a folder": ('mkdir -p "$1/inner/large"', [step("large"), step("large"), step("large", "/inner"), step("large", "/new/")]),
    "a large file where no folder is": ("", [step("large", "/not/there")]),
    "a large file, and a link": ('echo other >"$1.beside" && ln -s "$1.beside" "$1"', [
        step("large", follow=True), step("large", follow=True, mode="0640"), step("large", keywords={"diff": True})]),
    "a large file, and a link to the same": ('head -c 100000 /dev/zero >"$1.beside" && ln -s "$1.beside" "$1"', [
        step("large", follow=True, backup=True), step("large", mode="0640")]),
    "a large file, and a link to nothing": ('ln -s nowhere "$1"', [step("large", follow=True), step("large")]),
    "a large file, and a pipe": ('mkfifo "$1"', [step("large", "-2"), step("large")]),
    "a very large file": (FILE, [step("very-large"), step("very-large"), step("very-large", mode="0600")]),
    "a very large file, other content": (AS_VERY_LARGE, [step("very-large", "", owner="deployer"), step("very-large", force=False)]),
    "a large file, encrypted": ("", [step("secret-large", mode="0600"), step("secret-large", mode="0600"), step("secret-large", "-2", decrypt=False)]),
    "a large file without rights": ('mkdir -m 700 "$1"', [step("large", "/there", keywords={"become": True, "become_user": "deployer"})]),
    "a large file of another user": ('mkdir "$1" && chown deployer "$1"', [
        step("large", "/", keywords={"become": True, "become_user": "deployer"}), step("large", "/", keywords={"become": True, "become_user": "deployer"})]),
    "a large file over what is not to be read": ('mkdir "$1" && head -c 100000 /dev/zero >"$1/large" && chmod 600 "$1/large" && chown deployer "$1"', [
        step("large", "/", keywords={"become": True, "become_user": "deployer"})]),
    "a large file at home": ("", [step("large", dest="~deployer/COPY"), step("large", dest="$HOME/COPY.$HOME")]),
    "a large file without pipelining": (FILE, [step("large", keywords={"vars": {"ansible_pipelining": False}})]),
    "a large file, not shown": (FILE, [step("large", keywords={"no_log": True})]),
    "a large text": (FILE, [step("", content="ein größerer\ntext" * 10_000, keywords={"diff": True})]),
    "a text": (FILE, [step("", content="ein größerer\ntext", keywords={"diff": True}), step("", content="ein größerer\ntext"), step("", content="")]),
    "a text in a folder": ('mkdir "$1"', [step("", content="x")]),
    "data": ("", [step("", content={"a": [1, "two"]}), step("", content={"a": [1, "two"]}, mode="0600")]),
    "a secret text": (FILE, [step("", content="hidden", keywords={"no_log": True})]),
    "there already": ('mkdir "$1" && echo x >"$1/x"', [step("DEST", "-copy", remote_src=True)]),
    "no source": ("", [step("missing/")]),
    "no such option": ("", [step("flat/", colour="red")]),
}  # fmt: skip
# What the target's own user without rights signs in for.
SIGNED_IN = {"as a user": ("", [step("tree/", mode="0640")])}
# Over Ansible's own ssh this takes a second a file.
FEW = ("modes of many", "not valid")


def sources(folder: Path) -> None:
    """What is copied: names and contents of many kinds."""
    tree = folder / "tree"
    for name in ("deep/er", "hollow/inside"):
        (tree / name).mkdir(parents=True)
    script = "#!/bin/sh\n# a line\n"
    for name, text in {"one.txt": "a line\n", "zero": "", "größe.txt": "a line\n", "-dash": "a line\n", "new\nline": "a line\n",
                       "deep/er/two.sh": script}.items():  # fmt: skip
        (tree / name).write_text(text)
    (tree / "deep/er/two.sh").chmod(0o750)
    (folder / "outside").write_text("a line\n")
    for name, leads in {"link": "one.txt", "broken": "nowhere", "out": str(folder / "outside"), "to-folder": "deep", "deep/circle": ".."}.items():
        (tree / name).symlink_to(leads)
    for name, text in {"flat/one.txt": "a line\n", "flat/zero": "", "single/one.txt": "a line\n", "almost/deep/one.txt": "a line\n",
                       "few/one.txt": "a line\n", "few/same.txt": "a line\n", "few/zero": "", "few/deep/er/two.sh": script,
                       "twice/a/two.sh": "one\n", "twice/deep/er/two.sh": "", "secret/plain": "a line\n"}.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "large").write_bytes(LARGE)
    (folder / "large").chmod(0o750)
    (folder / "very-large").write_bytes(LARGE * (VERY_LARGE // len(LARGE)))
    (folder / "almost/link").symlink_to("deep")
    (folder / "few/link").symlink_to("one.txt")
    for name in ("empty", "folders/one/two", "folders/three", "few/hollow"):
        (folder / name).mkdir(parents=True)
    from ansible.constants import DEFAULT_VAULT_IDENTITY
    from ansible.parsing.vault import VaultLib, VaultSecret

    vault = VaultLib([(DEFAULT_VAULT_IDENTITY, VaultSecret(VAULT.encode()))])
    (folder / "secret/sealed").write_bytes(vault.encrypt("a hidden line\n"))
    (folder / "secret-large").write_bytes(vault.encrypt("a hidden line\n" * 6000))
    (folder / "vault-password").write_text(VAULT)


def place(number: int, action: str) -> str:
    """Where a case's tasks copy to."""
    return f"{AT}/{number}-{action}"


def tasks_of(cases: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Both actions, one after the other."""
    tasks: list[dict[str, Any]] = [{"name": "room", "ansible.builtin.raw": f"rm -rf {AT}; mkdir -m 755 {AT}"}]
    before = "".join(
        f"set -- {place(number, action)}\n{script}\n" for number, (script, _steps) in enumerate(cases.values()) for action in ACTIONS if script)
    tasks.append({"name": "before", "ansible.builtin.shell": f"set -e\n{before}", "no_log": False})
    for number, (name, (_script, steps)) in enumerate(cases.items()):
        for position, one in enumerate(steps):
            for action, module in ACTIONS.items():
                here = place(number, action)
                options = dict(one["options"])
                dest = options["dest"]
                options["dest"] = dest.replace("COPY", os.path.basename(here)) if dest.startswith(("~", "$")) else here + dest
                options["src"] = here if options["src"] == "DEST" else f"{folder}/{options['src']}"
                if "content" in options:
                    del options["src"]
                tasks.append({"name": f"{name} {position} {action}", module: options, "ignore_errors": True, **one["keywords"]})
    tasks.append({"name": "homes", "ansible.builtin.shell": f"for home in /root /home/deployer; do for copy in $home/*-core $home/*-ours; do "
                  f"test ! -e $copy || mv $copy {AT}/$(basename $copy)$(echo $home | tr / .); done; done"})  # fmt: skip
    tasks.append({"name": "list", "ansible.builtin.command": {"argv": ["/usr/bin/python3", "-c", LIST]}})
    tasks.append({"name": "clean", "ansible.builtin.raw": f"rm -rf {AT}"})
    return tasks


def alike(value: Any) -> Any:
    """A result without what must differ: the place, times, names of temporary folders, and where in which file something was raised."""
    text = json.dumps(value, sort_keys=True)
    text = re.sub(r"\b(\d+)-(core|ours)\b", r"\1-X", text)
    text = re.sub(r"/[\w./]*/ansible-(module)?tmp-[\w.-]+", "TMP", text)
    text = re.sub(r"\.\d+\.\d{4}-\d\d-\d\d@\d\d:\d\d:\d\d~", ".BACKUP~", text)
    text = re.sub(r'("_original_basename": )"[.]\w{8}"', r'\1"TEXT"', text)
    text = text.replace(*ACTIONS.values())
    data = json.loads(text)
    data.pop("exception", None)
    # Whoever is the first to become a user is told that the user's folder for modules was not there.
    warnings = [warning for warning in data.pop("warnings", []) if not warning.startswith("Module remote_tmp ")]
    return {**data, **({"warnings": warnings} if warnings else {})}


def compare(played: Played, cases: dict[str, Any]) -> None:
    """Results and trees; all that is not equal is told."""
    wrong = []
    seen = 0
    for name, (_script, steps) in cases.items():
        for position in range(len(steps)):
            core, ours = (alike(played["linux1", f"{name} {position} {action}"]) for action in ACTIONS)
            seen += 1
            if core != ours:
                wrong.append(f"{name} {position}:\n  core {json.dumps(core)}\n  ours {json.dumps(ours)}")
    lines = played["linux1", "list"]["stdout"].splitlines()
    trees = {action: [re.sub(rf"(\d+)-{action}\b", r"\1-X", line) for line in lines if re.search(rf"/\d+-{action}\b", line.split()[0])] for action in ACTIONS}
    assert seen and len(trees["core"]) > 5 * min(len(cases), 3)
    wrong += [f"the trees: {line!r} of {'core' if line in trees['core'] else 'ours'} alone" for line in sorted({*trees["core"]} ^ {*trees["ours"]})]
    assert not wrong, "\n".join(wrong)
    assert trees["core"] == trees["ours"]


@pytest.fixture
def sources_here(tmp_path: Path) -> Path:
    """What is copied, in a folder of the controller."""
    folder = tmp_path / "sources"
    folder.mkdir()
    sources(folder)
    return folder


def both(controller: Controller, tmp_path: Path, folder: Path, cases: dict[str, Any], *words: str, **more: Any) -> None:
    played = play(controller, tmp_path, tasks_of(cases, folder), "--vault-password-file", str(folder / "vault-password"), *words, **more).well()
    compare(played, cases)


@pytest.mark.leaves(*ALWAYS_LEFT)
@pytest.mark.xdist_group("controllers")
@pytest.mark.parametrize("other", [None, OLDEST, NEWEST], ids=["installed", "oldest", "newest"])
def test_the_same_as_ansible_core(controller: Controller, other: Other | None, sources_here: Path, tmp_path: Path) -> None:
    both(controller, tmp_path, sources_here, CASES, environment={**other.environment(), "ANSIBLE_HOME": f"{tmp_path}/home"} if other else None)


@pytest.mark.leaves(*ALWAYS_LEFT)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_for_who_becomes_root(controller: Controller, lab: Lab, family: str, sources_here: Path, tmp_path: Path) -> None:
    password = lab.target("linux1").password("deployer")
    (tmp_path / "login.json").write_text(json.dumps({"ansible_user": "deployer", "ansible_password": password, "ansible_become_password": password}))
    cases = {name: CASES[name] for name in FEW} | SIGNED_IN
    both(controller, tmp_path, sources_here, cases, "-e", f"@{tmp_path}/login.json", family=family, become=True)


@pytest.mark.leaves(*ALWAYS_LEFT)
@pytest.mark.parametrize("other", [OLDEST, NEWEST], ids=str)
@pytest.mark.xdist_group("controllers")
def test_names_that_ansible_core_refuses(controller: Controller, lab: Lab, other: Other, tmp_path: Path) -> None:
    """By plain `copy`, in a play that names the collection: so this shows whose that is, too."""
    names = sorted([b"\xff no UTF-8", b"$NO_SUCH_VARIABLE", b"~root", b"{{ 1 + 1 }}", b"-\n", b"deep \xff/\xfe"])
    for name in names:
        path = os.fsencode(tmp_path) + b"/tree/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(name)
    task = {"copy": {"src": f"{tmp_path}/tree/", "dest": f"{AT}/names", "mode": "0600"}}
    read = "import os; paths = [os.path.join(folder, name) for folder, _folders, names in os.walk(b'.') for name in names]; " \
           "print([(path, open(path, 'rb').read()) for path in paths])"  # fmt: skip
    played = play(controller, tmp_path, [
        {"name": "copy", **task}, {"name": "again", **task},
        {"name": "read", "ansible.builtin.command": {"argv": ["/usr/bin/python3", "-c", read], "chdir": f"{AT}/names"}},
        {"name": "clean", "ansible.builtin.raw": f"rm -rf {AT}"}],
        environment={**other.environment(), "ANSIBLE_HOME": f"{tmp_path}/home"}, collections=["sojourn.deploy"]).well()
    assert sorted(ast.literal_eval(played["linux1", "read"]["stdout"])) == sorted((b"./" + name, name) for name in names)
    assert [played["linux1", name]["changed"] for name in ("copy", "again")] == [True, False]


@pytest.mark.leaves(*ALWAYS_LEFT)
@pytest.mark.xdist_group("controllers")
@pytest.mark.parametrize("other", [None, OLDEST, NEWEST], ids=["installed", "oldest", "newest"])
def test_in_the_place_of_ansible_cores(controller: Controller, other: Other | None, tmp_path: Path, sources_here: Path) -> None:
    """By an option of `lifecycle`, for `template` too. Nothing is made in Ansible's own folder on the target then: it is not even there afterwards."""
    (tmp_path / "page.j2").write_text("{{ inventory_hostname }}\n")
    tasks: list[dict[str, Any]] = [
        {"name": "template", "ansible.builtin.template": {"src": f"{tmp_path}/page.j2", "dest": f"{AT}/page", "mode": "0640"}},
        {"name": "folder", "ansible.builtin.copy": {"src": f"{sources_here}/few/", "dest": f"{AT}/few", "mode": "0600"}},
        {"name": "default", "copy": {"content": "text"}},
    ]
    again = [{**task, "name": f"{task['name']} again"} for task in tasks]
    read = {"name": "read", "ansible.builtin.shell": f"cd {AT} && find . -type f | sort | xargs sha1sum; stat -c %a page text few/one.txt"}
    page = {"src": f"{tmp_path}/page.j2", "dest": f"{AT}/page.conf"}
    fails: list[dict[str, Any]] = [
        {"name": "not valid", "ansible.builtin.template": {**page, "validate": "false %s"}},
        {"name": "no folder, no pipelining", "ansible.builtin.template": {**page, "dest": f"{AT}/no/such/page.conf"}, "vars": {"ansible_pipelining": False}},
        {"name": "the first is not valid", "ansible.builtin.template": {**page, "validate": "{{ item }}"}, "loop": ["false %s", "true %s", ""]},
        {"name": "no YAML for JSON", "ansible.builtin.copy": {"content": "x", "dest": f"{AT}/x", "group": datetime.date(2020, 1, 2)}},
    ]
    (tmp_path / "large.j2").write_text("{{ inventory_hostname * 20000 }}\n")
    large = {"src": f"{tmp_path}/large.j2", "dest": f"{AT}/large"}
    fails += [{"name": "large", "ansible.builtin.template": large}, {"name": "large, of nobody", "ansible.builtin.template": {**large, "owner": "nosuchuser"}}]
    fails = [{**task, "ignore_errors": True} for task in fails]
    left = {"name": "left", "ansible.builtin.raw": "find /root/.ansible/tmp /tmp -mindepth 1 -name 'ansible*'", "failed_when": False}
    defaults = [{"ansible.builtin.copy": {"dest": f"{AT}/text", "mode": "0604"}}]
    environment = {"ANSIBLE_CALLBACKS_ENABLED": "recorded,sojourn.deploy.lifecycle", "ANSIBLE_HOME": f"{tmp_path}/home"}
    environment |= other.environment() if other else {}
    results = []
    for bundled in (False, True):
        room = {"name": "room", "ansible.builtin.raw": f"rm -rf {AT} /root/.ansible; mkdir {AT}"}
        clean = {"name": "clean", "ansible.builtin.raw": f"rm -rf {AT}; ls -d /root/.ansible", "failed_when": False}
        more = {"SOJOURN_BUNDLE_COPIES": str(bundled)}
        played = play(controller, tmp_path, [room, *tasks, *again, read, clean], environment=environment | more, module_defaults=defaults).well()
        assert played["linux1", "clean"]["stdout"].strip() == ("" if bundled else "/root/.ansible")
        results.append([alike(played["linux1", task["name"]]) for task in (*tasks, *again, read)])
        for volatile in ("start", "end", "delta"):
            results[-1][-1].pop(volatile)
        failed = play(controller, tmp_path, [room, *fails, left, clean], environment=environment | more, module_defaults=defaults).well()
        assert failed["linux1", "left"]["stdout"] == "", "what is rendered stays on no target"
        results[-1] += [alike(failed["linux1", task["name"]]) for task in fails]
        assert [item["changed"] for item in failed["linux1", "the first is not valid"]["results"]] == [False, True, False]
    assert results[0] == results[1]


OWN = """
from ansible.plugins.action import ActionBase
class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        return {"mine": True}
"""


@pytest.mark.leaves(*ALWAYS_LEFT)
@pytest.mark.xdist_group("controllers")
@pytest.mark.parametrize("other", [None, OLDEST, NEWEST], ids=["installed", "oldest", "newest"])
def test_an_action_of_the_users_own_stays_what_it_is(controller: Controller, other: Other | None, tmp_path: Path) -> None:
    """Beside the playbook, for plain `copy` and what calls it; in either order."""
    (tmp_path / "action_plugins").mkdir()
    (tmp_path / "action_plugins/copy.py").write_text(OWN)
    (tmp_path / "page.j2").write_text("text\n")
    options = {"content": "text", "dest": f"{AT}-own"}
    tasks: list[dict[str, Any]] = [
        {"name": "ours", "sojourn.deploy.copy": options}, {"name": "own", "copy": options}, {"name": "core's", "ansible.builtin.copy": options},
        {"name": "template", "template": {"src": f"{tmp_path}/page.j2", "dest": f"{AT}-own"}}, {"name": "ours again", "sojourn.deploy.copy": options},
        {"name": "clean", "ansible.builtin.raw": f"rm -f {AT}-own"},
    ]  # fmt: skip
    environment = {"ANSIBLE_CALLBACKS_ENABLED": "recorded,sojourn.deploy.lifecycle", "ANSIBLE_HOME": f"{tmp_path}/home"}
    environment |= other.environment() if other else {}
    for bundled in (False, True):
        played = play(controller, tmp_path, tasks, environment=environment | {"SOJOURN_BUNDLE_COPIES": str(bundled)}).well()
        assert [bool(played["linux1", task["name"]].get("mine")) for task in tasks] == [False, True, False, True, False, False]


@pytest.mark.leaves(*ALWAYS_LEFT)
def test_large_files_and_more_than_a_bundle(controller: Controller, tmp_path: Path) -> None:
    """One that goes by itself, and the others in two bundles."""
    (tmp_path / "tree/deep").mkdir(parents=True)
    sizes = {"a": 30, "b": 30, "c": 33, "d": 30, "deep/e": 30, "deep/f": 30, "deep/g": 0}
    for name, megabytes in sizes.items():
        with open(tmp_path / "tree" / name, "wb") as file:
            file.write(name.encode() * (megabytes << 20))
            file.truncate(megabytes << 20)
    task = {"sojourn.deploy.copy": {"src": f"{tmp_path}/tree/", "dest": f"{AT}/large", "mode": "0600"}}
    played = play(controller, tmp_path, [
        {"name": "copy", **task}, {"name": "again", **task},
        {"name": "read", "ansible.builtin.shell": f"cd {AT}/large && find . -type f | sort | xargs sha1sum"},
        {"name": "clean", "ansible.builtin.raw": f"rm -rf {AT}"}]).well()
    assert played["linux1", "read"]["stdout"].splitlines() == [
        f"{hashlib.sha1((tmp_path / 'tree' / name).read_bytes()).hexdigest()}  ./{name}" for name in sorted(sizes)]
    assert [played["linux1", name]["changed"] for name in ("copy", "again")] == [True, False]


@pytest.mark.leaves(*ALWAYS_LEFT, "files: /root/.ssh")
@pytest.mark.xdist_group("controllers")
def test_the_same_over_ansibles_own_ssh(controller: Controller, lab: Lab, sources_here: Path, tmp_path: Path) -> None:
    """By the newest version, of whose Debian `ssh` comes too: the machine that runs the tests need not have it."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"])
    linux = lab.target("linux1")
    linux.exec(["sh", "-c", "umask 077; mkdir -p /root/.ssh; cat > /root/.ssh/authorized_keys"], input=(tmp_path / "key.pub").read_text())
    sockets = Path(tempfile.mkdtemp(prefix="sojourn-ssh-"))  # short, for what is in it
    options = f"-o UserKnownHostsFile={lab.known_hosts} -o ControlMaster=auto -o ControlPersist=60 -o ControlPath={sockets}/ssh"
    variables = {
        "ansible_connection": "ansible.builtin.ssh", "ansible_ssh_private_key_file": str(tmp_path / "key"), "ansible_password": None,
        "ansible_ssh_args": options, "ansible_pipelining": True}
    environment = {**NEWEST.environment(), "ANSIBLE_HOME": f"{tmp_path}/home"}
    try:
        both(controller, tmp_path, sources_here, {name: CASES[name] for name in FEW}, "-e", json.dumps(variables), environment=environment)
    finally:
        linux.exec(["rm", "/root/.ssh/authorized_keys"])
        end_shared_connections(sockets)
        shutil.rmtree(sockets)
