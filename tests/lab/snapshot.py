"""The nothing-left check: what is on a target, before and after, and how the two differ.

Files are read from outside: a target's disk is an overlay, so whatever differs from its pristine root is in the
overlay's upper layer, and only that has to be walked and hashed. The rest is asked of the target's own tools.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import LabError

if TYPE_CHECKING:
    from .target import Target

KINDS = (
    *("services", "files", "firewall rules", "listening ports", "processes", "sessions"),
    *("mounts", "accounts", "packages", "registry", "network"),
)

# What is not compared, each with the reason why it may change on a target that nobody touched.
# A pattern that ends with a slash stands for a folder and everything below it.
LEFT_OUT = {
    "linux": {
        "/var/log/journal/": "the journal grows by itself",
        "/run/log/journal/": "the journal grows by itself",
        "/run/systemd/": "systemd's notes on what it runs; what it runs is listed under services",
        "/run/udev/": "notes of a device manager that containers don't run",
        "/var/log/wtmp": "every login is written down here",
        "/var/log/btmp": "every failed login is written down here",
        "/var/log/lastlog": "every login is written down here",
        "/run/utmp": "who is logged in; listed under sessions",
        "/run/user/": "belongs to a logged-in user's session and goes with it",
        "/run/motd.dynamic": "written at login",
        "/run/sshd.pid": "a process id, another one after each boot",
        "/run/sudo/": "sudo's memory of who gave a password; it forgets by itself",
        "/var/lib/sudo/lectured/": "sudo's memory of whom it lectured, at an account's first use of it",
        "/run/dbus/": "the bus's own socket",
        "/var/lib/systemd/random-seed": "rewritten at shutdown",
        "/var/lib/systemd/timers/": "when timers ran last",
        "/var/cache/ldconfig/aux-cache": "rewritten at each boot",
        "/run/firewalld/": "firewalld's own notes; its rules are listed under firewall rules",
        "/run/xtables.lock": "the empty lock file of whoever looked at iptables, this check included",
        "/run/ufw.lock": "ufw's empty lock file",
        "/tmp/systemd-private-*/": "services' own temporary folders, named after the boot",
        "/var/tmp/systemd-private-*/": "services' own temporary folders, named after the boot",
        "/root/.rpmdb/": "rpm's database; its content is listed under packages",
    },
    "windows": {
        "/var/log/": "logs of the Linux below; the Windows logs are in the prefix",
        "/run/": "the Linux below; of Windows there is nothing in it",
        "/tmp/wine-*/": "the wineserver's own socket",
        "/tmp/systemd-private-*/": "services' own temporary folders, named after the boot",
        "/var/tmp/systemd-private-*/": "services' own temporary folders, named after the boot",
        "/var/lib/samba/": "smbd's databases of sessions and locks; listed under sessions",
        "/var/cache/samba/": "smbd's caches",
        "/var/lib/systemd/": "the Linux below: timers, random seed",
        "/var/cache/ldconfig/aux-cache": "rewritten at each boot",
        "/srv/windows/system.reg": "rewritten with new time stamps; its content is listed under registry",
        "/srv/windows/user.reg": "rewritten with new time stamps",
        "/srv/windows/userdef.reg": "rewritten with new time stamps",
        "/srv/windows/reg[0-9a-f]*.tmp": "what wineserver writes one of these to, before it takes its place",
    },
}

# NSIS uninstallers run from a copy that Windows deletes at the next start: it goes with whatever test restarts the target next.
AT_NEXT_START = (
    "files: /srv/windows/drive_c/users/root/AppData/Local/Temp/~nsu*",
    r"registry: SYSTEM\CurrentControlSet\Control\Session Manager\\PendingFileRenameOperations",
)

# What package managers keep of a package that came and went: for `expected`, where a test installs and removes one.
PACKAGE_MANAGERS = (
    "files: /var/lib/dpkg/*-old",
    "files: /var/log/dpkg.log",
    "files: /var/log/apt*",
    "files: /var/cache/apt*",
    "files: /srv/windows/drive_c/windows/Installer",
    *AT_NEXT_START,
    r"registry: Software\Microsoft\Windows\CurrentVersion\Installer\U*",
)

# Started on demand by the system itself, and ended by it in its own time.
_OWN_UNITS = re.compile(
    r"session-c?\d+\.scope|user@\d+\.service|user-runtime-dir@\d+\.service|user-\d+\.slice|run-user-\d+\.mount|"
    r"systemd-(hostnamed|timedated|localed|tmpfiles-clean)\.service|polkit\.service|"
    # they fail to start where many containers have used up the machine's inotify instances
    r"systemd-ask-password-(console|wall)\.path"
)
_OWN_PROCESSES = re.compile(
    # the check's own
    r"ps -|sh -c #snapshot|/usr/bin/python3 -c #snapshot|nsenter |env -i |"
    # D-Bus services that end by themselves
    r"/(usr/)?lib/systemd/systemd-(hostnamed|timedated|localed)|/usr/lib/polkit-1/polkitd|"
    # kept by systemd for its journal's clients and user lookups, as many as it thinks fit
    r"systemd-userwork|"
    # runs a quarter of an hour after the boot, and then daily
    r"(/usr)?/?(bin/)?systemd-tmpfiles --clean|"
    # Wine starts these when something first needs them
    r"c:\\windows\\system32\\(rpcss|svchost|explorer|plugplay|winedevice|wineboot|spoolsv)\.exe",
    re.IGNORECASE,
)
# What a session that has ended leaves for a moment, and what is waited for before anything is called left over.
_PASSING = re.compile(
    r"sshd: (?!/usr/sbin/sshd)|sshd-session: |systemd --user|systemd-user-runtime-dir|sftp-server|smbd: client|"
    # systemd's children before they have become what they are to be, the keeper of a PAM session, and whatever is
    # about to end: a container has no kernel threads
    r": \([\w-]+\)$|: \[[^\]]+\]$|"
    r"conhost\.exe|wineboot",
    re.IGNORECASE,
)

_REGISTRY = (
    r"SYSTEM\CurrentControlSet\Services",
    r"SYSTEM\CurrentControlSet\Control\Session Manager",
    r"Software\Microsoft\Windows\CurrentVersion\Uninstall",
    r"Software\Wow6432Node\Microsoft\Windows\CurrentVersion\Uninstall",
    r"Software\Microsoft\Windows\CurrentVersion\Run",
    r"Software\Microsoft\Windows\CurrentVersion\RunOnce",
    r"Software\Microsoft\Windows\CurrentVersion\Installer",
    r"Software\Microsoft\Windows\CurrentVersion\App Paths",
)

_LINUX_QUESTIONS = r"""#snapshot
systemctl is-system-running --wait > /dev/null 2>&1
part() { printf '\n@@ %s\n' "$1"; }
part services; systemctl list-units --no-legend --plain --full --no-pager
part nft; nft -s list ruleset
part legacy4; grep -q . /proc/net/ip_tables_names 2> /dev/null && iptables-legacy-save
part legacy6; grep -q . /proc/net/ip6_tables_names 2> /dev/null && ip6tables-legacy-save
part ports; ss -Hlntuw
part ssh; ss -Hnt state established state close-wait '( sport = :22 )'
part logins; loginctl list-sessions --no-legend --no-pager
part processes; ps -ww -eo user:32=,args=
part packages; dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\n'; [ -e /root/.rpmdb ] && rpm -qa
part accounts; cut -d: -f1,3,4,6,7 /etc/passwd; sed 's/^/group /' /etc/group
part addresses; ip -o address show; ip route show table all; ip -6 route show table all
part jobs; systemctl list-jobs --no-legend --no-pager
part end
"""

_WINDOWS_QUESTIONS = r"""#snapshot
systemctl is-system-running --wait > /dev/null 2>&1
part() { printf '\n@@ %s\n' "$1"; }
ask() { python3 -c '#snapshot
import socket, sys
with socket.create_connection(("127.0.0.1", 47000), timeout=20) as wire:
    wire.sendall((sys.argv[1] + "\n").encode()); print(wire.makefile().read())' "$1"; }
part nft; nft -s list ruleset
part ports; ss -Hlntu
part processes; ps -ww -eo user:32=,args=
part smb; smbstatus -j 2>/dev/null
part wine; ask services
part registry; ask 'registry @REGISTRY@'
part addresses; ip -o address show
part end
"""


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was."""

    kind: str
    what: str
    change: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}: {self.change}"


@dataclass(frozen=True)
class Snapshot:
    """What was on a target: for each kind, things by name."""

    target: str
    content: dict[str, dict[str, str]]

    def as_json(self) -> str:
        """For `lab.py snapshot` and for keeping."""
        return json.dumps({"target": self.target, **self.content}, indent=1, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Snapshot:
        """The reverse of `as_json`."""
        content = json.loads(text)
        return cls(content.pop("target"), content)


def compare(before: Snapshot, after: Snapshot, expected: Iterable[str] = ()) -> list[Difference]:
    """What differs, by kind; empty when nothing was left and nothing is missing.

    `expected` are shell patterns for what may differ, matched against "KIND: THING" and against THING alone, as in
    "files: /opt/demo*" or "*sojourn-demo*".
    """
    patterns = list(expected)
    found = []
    for kind in KINDS:
        old, new = before.content.get(kind, {}), after.content.get(kind, {})
        for what in sorted(old.keys() | new.keys()):
            if old.get(what) == new.get(what):
                continue
            if any(fnmatch.fnmatchcase(name, p) for p in patterns for name in (what, f"{kind}: {what}")):
                continue
            if what not in new and any(fnmatch.fnmatchcase(f"{kind}: {what}", p) for p in AT_NEXT_START):
                continue
            if what not in old:
                change = f"left behind ({new[what]})" if new[what] else "left behind"
            elif what not in new:
                change = f"gone (was {old[what]})" if old[what] else "gone"
            else:
                change = f"was {old[what]}, is {new[what]}"
            found.append(Difference(kind, what, change))
    return found


def take(target: Target, settle: float = 8.0) -> Snapshot:
    """Look at a target once its sessions have ended, or after `settle` seconds with what is still there."""
    deadline = time.monotonic() + settle
    pause = 0.02
    while True:
        content = _look(target)
        passing = [name for name in content["processes"] if _PASSING.search(name)]
        passing += [*content["sessions"], *content.pop("jobs", {})]
        if not passing or time.monotonic() > deadline:
            break
        # Nothing announces to an outsider that the last process of another system's session has ended.
        time.sleep(pause)
        pause = min(pause * 2, 0.5)
    content["files"] = dict(_files(target))
    return Snapshot(target.name, content)


def _look(target: Target) -> dict[str, dict[str, str]]:
    """Everything but the files."""
    windows = target.kind == "windows"
    script = _WINDOWS_QUESTIONS.replace("@REGISTRY@", "|".join(_REGISTRY)) if windows else _LINUX_QUESTIONS
    parts: dict[str, list[str]] = {}
    for line in target.exec(["sh", "-c", script], check=False).stdout.splitlines():
        if line.startswith("@@ "):
            lines = parts.setdefault(line[3:], [])
        elif line:
            lines.append(line)
    if "end" not in parts:
        raise LabError(f"{target.name} did not answer the snapshot's questions")
    content: dict[str, dict[str, str]] = {
        "firewall rules": _counted(_rules(parts)),
        "listening ports": _counted(_port(line) for line in parts["ports"]),
        "processes": _counted(_processes(parts["processes"])),
        "network": _counted(_without_numbers(parts["addresses"])),
        "mounts": dict(_mounts(target)),
    }
    if windows:
        content["services"] = dict(_windows_services(_asked(parts["wine"])))
        content["registry"] = _asked(parts["registry"])
        content["sessions"] = dict(_smb_sessions(parts["smb"]))
    else:
        content["jobs"] = _counted(parts["jobs"])
        content["services"] = dict(_units(parts["services"]))
        content["packages"] = _counted(parts["packages"])
        content["accounts"] = _counted(parts["accounts"])
        connections = [f"connection {' '.join(line.split()[-2:])}" for line in parts["ssh"]]
        content["sessions"] = _counted([*connections, *(f"login {' '.join(line.split())}" for line in parts["logins"])])
    return content


def _counted(items: Iterable[str]) -> dict[str, str]:
    """A list as a mapping, so that a second one of the same name is seen as well."""
    return {item: "" if number == 1 else f"{number} times" for item, number in Counter(items).items()}


def _asked(lines: list[str]) -> dict[str, str]:
    """What resident.exe answered."""
    answer = json.loads("".join(lines) or '{"error": "no answer"}')
    if "error" in answer:
        raise LabError(f"the target's Windows session does not answer: {answer['error']}")
    return answer


def _units(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, load, active, sub = line.split()[:4]
        if name.endswith(".timer") and sub == "running":
            sub = "waiting"  # it has just gone off, as systemd-tmpfiles-clean.timer does a quarter of an hour after the boot
        if not _OWN_UNITS.fullmatch(name):
            yield name, f"{load} {active} {sub}"


def _windows_services(services: dict[str, str]) -> Iterator[tuple[str, str]]:
    for name, about in services.items():
        if re.search(r", manual, C:\\windows\\system32\\", about):
            about = re.sub(r"^[^,]+", "on demand", about)  # Wine's own, started when something first needs them
        yield name, about


def _rules(parts: dict[str, list[str]]) -> Iterator[str]:
    """Every rule with the table and chain that it is in; counters and handles are not part of it."""
    place: list[str] = []
    for line in parts["nft"]:
        words = re.sub(r"counter packets \d+ bytes \d+", "counter", line.strip())
        if words == "}":
            place.pop()
        elif words.endswith("{"):
            place.append(words[:-2])
            yield " / ".join(place)
        elif words and not words.startswith("#"):
            yield " / ".join([*place, words])
    for family in ("legacy4", "legacy6"):
        for line in parts.get(family, []):
            if not line.startswith("#"):
                rule = re.sub(r"\[\d+:\d+\]", "", line)
                yield f"{family} {rule}"


def _port(line: str) -> str:
    words = line.split()
    return f"{words[0]} {words[4]}"


def _processes(lines: list[str]) -> Iterator[str]:
    for line in lines:
        user, _, args = line.strip().partition(" ")
        args = args.strip()
        if not _OWN_PROCESSES.match(args) and not args.endswith("<defunct>"):
            # sshd writes how many logins are under way into its own title.
            args = re.sub(r"\d+ of \d+-\d+ startups", "", args).strip()
            yield f"{user}: {args}"


def _without_numbers(lines: list[str]) -> Iterator[str]:
    for line in lines:
        yield re.sub(r"^\d+: |\\.*| (expires|mtu) \S+", "", line).strip()


def _mounts(target: Target) -> Iterator[tuple[str, str]]:
    leader = target.leader
    table = Path(f"/proc/{leader.pid}/mountinfo").read_text() if leader else ""
    for line in table.splitlines():
        place = line.split()[4]
        if not place.startswith(("/run/user/", "/run/credentials/", "/run/systemd/")):
            yield place, line.partition(" - ")[2].split()[0]


def _smb_sessions(lines: list[str]) -> Iterator[tuple[str, str]]:
    status = json.loads("\n".join(lines) or "{}")
    for session in status.get("sessions", {}).values():
        yield f"session of {session['username']} from {session['remote_machine']}", ""
    for tree in status.get("tcons", {}).values():
        yield f"share {tree['service']} from {tree['machine']}", ""
    for name in status.get("open_files", {}):
        yield f"open file {name}", ""


# Files


def _files(target: Target) -> Iterator[tuple[str, str]]:
    """Every file, folder and link that differs from the pristine root, and all that is on the target's tmpfs mounts."""
    supervisor, leader = target.supervisor, target.leader
    if not supervisor or not leader:
        raise LabError(f"{target.name} is not running")
    left_out, layers = LEFT_OUT[target.kind], target.layers
    # The disk is mounted in the supervisor's own mounts: seen through its root, not through ours.
    upper = Path(f"/proc/{supervisor.pid}/root{target.folder}/disk/upper")
    for place, about in _walk(upper, "", left_out):
        if about != _pristine(layers, place):
            yield place, about
        if about.startswith("folder") and _is_opaque(upper / place[1:]):
            yield from _hidden(upper / place[1:], layers, place, left_out)
    for mounted in ("/run", "/tmp", "/dev/shm"):
        if f"{mounted}/" not in left_out:
            yield from _walk(Path(f"/proc/{leader.pid}/root{mounted}"), mounted, left_out)


def _excluded(place: str, left_out: dict[str, str]) -> bool:
    return any(fnmatch.fnmatchcase(place, pattern.rstrip("/")) for pattern in left_out)


def _walk(top: Path, prefix: str, left_out: dict[str, str]) -> Iterator[tuple[str, str]]:
    try:
        entries = sorted(os.scandir(top), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        place = f"{prefix}/{entry.name}"
        if _excluded(place, left_out):
            continue
        about = _about(Path(entry.path))
        if about:
            yield place, about
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), place, left_out)


def _about(path: Path) -> str:
    """Kind, mode, owner and content of one thing; empty when it vanished meanwhile."""
    try:
        info = path.lstat()
        owner = f"{stat.S_IMODE(info.st_mode):04o} {info.st_uid}:{info.st_gid}"
        if stat.S_ISDIR(info.st_mode):
            return f"folder {owner}"
        if stat.S_ISLNK(info.st_mode):
            return f"link to {os.readlink(path)}"
        if stat.S_ISREG(info.st_mode):
            with open(path, "rb") as file:
                return f"file {owner} {info.st_size} bytes {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
            return "absent"  # overlay's mark for a file of the lower layer that was removed
        return f"{'socket' if stat.S_ISSOCK(info.st_mode) else 'special file'} {owner}"
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _pristine(layers: list[Path], place: str) -> str:
    for layer in layers:
        if about := _about(layer / place[1:]):
            return about
    return ""


def _is_opaque(path: Path) -> bool:
    try:
        return os.getxattr(path, "trusted.overlay.opaque", follow_symlinks=False) == b"y"
    except OSError:
        return False


def _hidden(upper: Path, layers: list[Path], place: str, left_out: dict[str, str]) -> Iterator[tuple[str, str]]:
    """What a folder that was removed and made anew hides of the pristine one."""
    names = set()
    for layer in layers:
        folder = layer / place[1:]
        if folder.is_dir():
            names |= set(os.listdir(folder))
    for name in sorted(names - set(os.listdir(upper))):
        if not _excluded(f"{place}/{name}", left_out):
            yield f"{place}/{name}", "absent"
