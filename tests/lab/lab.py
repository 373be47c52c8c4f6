#!/usr/bin/env python3
"""The lab by command line: `lab.py --help`; what it is for stands in README.md beside it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script: find the package that this file is a part of
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    __package__ = "tests.lab"

from tests.lab import LabError, machine
from tests.lab.commands import tool_environment
from tests.lab.fixtures import fixtures
from tests.lab.inventory import inventory
from tests.lab.linux_target import FIREWALLS
from tests.lab.model import Lab, leftovers, prepare


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab.py", description="Throwaway Windows and Linux targets on a private link.")
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, help: str, named: bool = True) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help, description=help)
        if named:
            sub.add_argument("--name", default="default", help="the lab's name (default: %(default)s)")
        return sub

    verb("check", "say whether this machine can run the lab, and why not", named=False)
    prepared = verb("prepare", "install what is missing, build the root file systems and the fixture packages", named=False)
    prepared.add_argument("--domain", action="store_true", help="what `up --domain` needs as well")
    up = verb("up", "bring a lab up and print its Ansible inventory")
    up.add_argument("--linux", type=int, default=1, metavar="N")
    up.add_argument("--windows", type=int, default=1, metavar="M")
    up.add_argument("--firewall", choices=FIREWALLS, default="nftables", help="of the Linux targets (%(default)s)")
    up.add_argument("--domain", action="store_true", help="with a domain controller; the Windows targets are members of its domain")
    up.add_argument("--family", choices=("ipv6", "ipv4", "link-local"), default="ipv6", help="of the printed inventory")
    down = verb("down", "take a lab away")
    down.add_argument("--all", action="store_true", help="every lab on this machine")
    shown = verb("inventory", "print the Ansible inventory")
    shown.add_argument("--family", choices=("ipv6", "ipv4", "link-local"), default="ipv6")
    verb("status", "list the labs and their targets", named=False)
    inside = verb("exec", "run a command as root inside a target")
    inside.add_argument("target")
    enter = verb("enter", "run a command in the controller's network")
    enter.add_argument("--as", dest="host", choices=("controller", "stranger"), default="controller")
    enter.add_argument("--names", action="store_true", help="with the targets' names in /etc/hosts: linux1.lab, linux1-v6.lab ...")
    for sub in (inside, enter):
        sub.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command")
    for name, help in (
        ("reboot", "reboot a target as from inside, and wait until it answers"),
        ("cut", "cut a target's power, start it with the same disk, and wait until it answers"),
        ("reset", "cut a target's power, start it with a fresh disk, and wait until it answers"),
        ("snapshot", "print what is on a target, for the nothing-left check"),
    ):
        verb(name, help).add_argument("target")
    verb("leftovers", "list what labs left on this machine; fails when there is anything", named=False)
    return parser


def _command(words: list[str]) -> list[str]:
    words = words[1:] if words[:1] == ["--"] else words
    if not words:
        raise LabError("no command given after --")
    return words


def _status() -> None:
    for lab in Lab.all():
        try:
            targets = lab.targets.values()
        except LabError:
            print(f"{lab.name}: half there; `lab.py down --name {lab.name}` clears it")
            continue
        print(f"{lab.name}: firewall {lab.settings['firewall']}")
        for target in targets:
            state = "up" if target.leader and target.answers() else "not answering" if target.leader else "off"
            print(f"  {target.name:10} {state:14} {target.addresses.ula:28} {target.addresses.ipv4}")


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says."""
    options = _parser().parse_args(arguments)
    verb = options.verb
    if verb == "check":
        for problem in (found := machine.problems()):
            print(f"this machine can't run the lab: {problem}")
        return 1 if found else 0
    if verb == "prepare":
        machine.require()
        prepare(domain=options.domain)
        fixtures()
        return 0
    if verb == "status":
        _status()
        return 0
    if verb == "leftovers":
        for line in (found := leftovers()):
            print(line)
        return 1 if found else 0
    if verb == "down" and options.all:
        for lab in Lab.all():
            lab.down()
        return 0
    lab = Lab(options.name)
    if verb == "up":
        lab.up(options.linux, options.windows, options.firewall, options.domain)
        print(inventory(lab, options.family), end="")
    elif verb == "down":
        lab.down()
    elif verb == "inventory":
        print(inventory(lab, options.family), end="")
    elif verb == "exec":
        words = lab.target(options.target).inside(_command(options.command))
        os.execvpe(words[0], words, tool_environment())
    elif verb == "enter":
        words = lab.inside(options.host, _command(options.command), options.names)
        os.execvp(words[0], words)
    elif verb in ("reboot", "cut", "reset"):
        getattr(lab.target(options.target), verb)()
    elif verb == "snapshot":
        print(lab.snapshot(options.target).as_json())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"lab.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
