"""The way in once more, beside a run's last task: it waits at the target without a sign-in, is what the end signs in by, and is given up if the end is far."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_back import WAIT_SECONDS
from tests.integration.conftest import Controller
from tests.integration.playing import Played, play
from tests.integration.test_ssh_ways_in import sshd
from tests.lab.waiting import wait_for

#: The ports from which somebody is connected to sshd who has not yet said who wants to sign in.
WAITING = r"""waiting() { for p in $(ps -e -o pid=,args= | sed -n 's/^ *\([0-9]*\) sshd[a-z-]*: \[accepted\].*/\1/p'); do
ss -Htnp state established "( sport = :22 )" | sed -n "s/^.*:\([0-9]*\) *users:.*pid=$p,.*/\1/p"; done; }
now() { cut -d' ' -f1 /proc/uptime; }
"""
#: Says from which port, or "nobody".
LOOK = WAITING + "for i in $(seq 50); do port=$(waiting); [ -z \"$port\" ] || break; sleep 0.1; done; echo ${port:-nobody}"
#: Says from which port, and how many seconds later nobody was there any more.
LOOK_AND_STAY = LOOK + (
    f"\nbegin=$(now); for i in $(seq {int(WAIT_SECONDS + 20) * 5}); do [ -n \"$(waiting)\" ] || break; sleep 0.2; done\n"
    "echo $(now) $begin | awk '{ print $1 - $2 }'; waiting\n")  # fmt: skip
#: From then on, nothing of that connection comes through any more, and nobody is told.
LOOK_AND_CUT = LOOK + """
nft add table inet cut
for hook in input output; do nft add chain inet cut $hook "{ type filter hook $hook priority -10; policy accept; }"; done
nft add rule inet cut input tcp dport 22 tcp sport $port drop
nft add rule inet cut output tcp sport 22 tcp dport $port drop
"""
FEW = LOOK.replace("seq 50", "seq 5")


def lines(played: Played, name: str) -> list[str]:
    """What a task said."""
    return played["linux1", name]["stdout"].split()


def run(controller: Controller, folder: Path, *scripts: str, callback: bool = True) -> Played:
    """A run whose tasks, named by their numbers, run these scripts."""
    tasks: list[dict[str, Any]] = [{"name": str(number), "ansible.builtin.raw": script} for number, script in enumerate(scripts)]
    return play(
        controller, folder, tasks, environment={"ANSIBLE_CALLBACKS_ENABLED": f"recorded{',sojourn.deploy.lifecycle' if callback else ''}"}).well()


def sign_ins(target: Any, least: int = 0) -> list[str]:
    """From which ports somebody has signed in, of all that sshd has ever let in; waits until there are so many."""
    def found() -> list[str]:
        journal = target.exec(["journalctl", "--no-pager", "-o", "cat", "-t", "sshd"]).stdout
        return re.findall(r"^Accepted \w+ for root from \S+ port (\d+) ", journal, re.MULTILINE)

    return wait_for("sign-ins", lambda: found() if len(found()) >= least else None, 30) if least else found()


def removed_well(played: Played) -> bool:
    return bool(re.search(r"^linux1: removed .+ \(\d", played.output, re.MULTILINE)) and "NOT REMOVED" not in played.output


def test_the_end_signs_in_by_what_waits_beside_the_last_task(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    before = sign_ins(linux_target)
    played = run(controller, tmp_path, "true", FEW, LOOK)
    assert lines(played, "1") == ["nobody"], "it is not the last"
    (port,) = lines(played, "2")
    assert port != "nobody"
    first, *again = sign_ins(linux_target, len(before) + 2)[len(before) :]
    assert again == [port] != [first], "one to put the agent there, and this one"
    assert removed_well(played)


def test_without_the_callback_nobody_waits(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    before = sign_ins(linux_target)
    assert lines(run(controller, tmp_path, "true", FEW, callback=False), "1") == ["nobody"]
    assert len(sign_ins(linux_target, len(before) + 2)) == len(before) + 2


def test_what_nobody_takes_is_gone_long_before_the_end(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    """A last task may take hours."""
    before = sign_ins(linux_target)
    played = run(controller, tmp_path, "true", LOOK_AND_STAY)
    port, seconds, *left = lines(played, "1")
    assert port != "nobody" and not left
    assert WAIT_SECONDS - 3 < float(seconds) < WAIT_SECONDS + 15
    again = sign_ins(linux_target, len(before) + 2)[len(before) :]
    assert len(again) == 2 and port not in again, "the end has come by a connection of its own"
    assert removed_well(played)


def test_what_sshd_has_closed_meanwhile_is_made_anew(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    """Its patience may be the shorter one."""
    with sshd(controller, linux_target, LoginGraceTime="2"):
        before = sign_ins(linux_target)
        played = run(controller, tmp_path, "true", LOOK_AND_STAY)
        port, unused_seconds, *left = lines(played, "1")
        assert port != "nobody" and not left
        again = sign_ins(linux_target, len(before) + 2)[len(before) :]
        assert len(again) == 2 and port not in again and removed_well(played)


def test_what_somebody_on_the_way_has_cut_is_made_anew(controller: Controller, linux_target: Any, tmp_path: Path) -> None:
    """A connection of which nobody hears any more is no sign-in that was refused."""
    with sshd(controller, linux_target, LoginGraceTime="15"):
        before = sign_ins(linux_target)
        try:
            played = run(controller, tmp_path, "true", LOOK_AND_CUT)
        finally:
            linux_target.exec(["nft", "delete", "table", "inet", "cut"])
        (port,) = lines(played, "1")
        again = sign_ins(linux_target, len(before) + 2)[len(before) :]
        assert port != "nobody" and port not in again and removed_well(played)
        wait_for("the end of what was cut", lambda: not linux_target.exec(["sh", "-c", f"{WAITING} waiting"]).stdout.split() or None, 60)
