#!/usr/bin/env python3
"""The main job, shown: packages onto a Windows and a Linux target over IPv6, and then what is left of it: nothing. `make demo`.

Everything here is what a user would do, an inventory, a list of packages and one ansible-playbook, but for the targets, which are
the lab's, and the look at them before and after.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import yaml

from tests.lab import Lab, Snapshot, compare
from tests.lab.fixtures import fixtures
from tests.lab.inventory import inventory
from tests.lab.snapshot import KINDS


def packages() -> list[dict[str, object]]:
    """The packages of the demonstration, as a user would list them."""
    made = fixtures()
    return [
        {"src": str(made["nsis-1.0.0"]), "arguments": "/S", "name": "Sojourn Demo", "version": "1.0.0"},
        {"src": str(made["msi-1.0.0"])},
        {"src": str(made["deb-1.0"])},
        # Debian's rpm asks for this word before it installs anything on a Debian system.
        {"src": str(made["rpm-1.0"]), "arguments": "--force-debian"},
    ]


# What the four packages put on a target themselves, and what the package managers write down when they do so; all else must be as before.
OF_THE_PACKAGES = {
    "linux": (
        "files: /usr/share/sojourn-demo-deb*",
        "files: /opt/sojourn-demo-rpm*",
        "packages: *sojourn-demo*",
        "files: /var/lib/dpkg/info/sojourn-demo.*",
        "files: /var/lib/dpkg/status*",
        "files: /var/log/dpkg.log",
        "files: /var/log/apt/*",
        "files: /var/cache/apt/*",
        "files: /var/lib/apt/lists/auxfiles",
    ),
    "windows": (
        "files: */Program Files (x86)/Sojourn Demo*",
        "files: */windows/Installer*",
        r"registry: Software\Wow6432Node\Microsoft\Windows\CurrentVersion\Uninstall\SojournDemo*",
        r"registry: Software\Wow6432Node\Microsoft\Windows\CurrentVersion\Uninstall\{6D0A4E2C-7C5B-4E0B-9A53-5B7C6E3F1000}*",
        r"registry: Software\Microsoft\Windows\CurrentVersion\Installer\*",
    ),
}


def table(lab: Lab, before: dict[str, Snapshot], after: dict[str, Snapshot]) -> bool:
    """Prints, for each target, what was there before and after; returns whether all but the packages themselves is equal."""
    clean = True
    for name, target in lab.targets.items():
        print(f"\n{name} ({target.addresses.ula})")
        print(f"  {'':<16} {'before':>6} {'after':>6} {'packages':>9}   the rest")
        left = compare(before[name], after[name], OF_THE_PACKAGES[target.kind])
        for kind in KINDS:
            old, new = (snapshot.content.get(kind, {}) for snapshot in (before[name], after[name]))
            if not old and not new:
                continue
            rest = [difference for difference in left if difference.kind == kind]
            packages = sum(old.get(thing) != new.get(thing) for thing in old.keys() | new.keys()) - len(rest)
            print(f"  {kind:<16} {len(old):>6} {len(new):>6} {packages or '':>9}   {'equal' if not rest else 'NOT EQUAL'}")
            for difference in rest:
                print(f"    {difference.what}: {difference.change}")
        clean = clean and not left
    return clean


def main() -> int:
    """Brings two targets up, runs the playbook, looks, takes them down. Returns 0 if all packages went on and nothing else stayed."""
    begin = time.monotonic()
    lab = Lab("demo")
    lab.down()
    try:
        lab.up(linux=1, windows=1)
        folder = ROOT / "build/demo"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "inventory.yml").touch(mode=0o600)
        (folder / "inventory.yml").write_text(inventory(lab))
        (folder / "packages.yml").write_text("---\n" + yaml.safe_dump({"packages": packages()}, sort_keys=False))
        before = {name: lab.snapshot(name) for name in lab.targets}
        command = ["ansible-playbook", "-i", f"{folder}/inventory.yml", "sojourn.deploy.deploy", "-e", f"@{folder}/packages.yml", "-v"]
        print(f"\n$ cat {folder.relative_to(ROOT)}/packages.yml\n{(folder / 'packages.yml').read_text()}\n$ {' '.join(command)}", flush=True)
        environment = {**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_CALLBACKS_ENABLED": "sojourn.deploy.lifecycle"}
        code = subprocess.call(lab.inside("controller", command), cwd=ROOT, env=environment)
        after = {name: lab.snapshot(name) for name in lab.targets}
        clean = table(lab, before, after)
        verdict = "All packages are installed" if code == 0 else f"ansible-playbook ended with {code}"
        print(f"\n{verdict}, and {'nothing else is left on the targets' if clean else 'THE TARGETS ARE NOT AS THEY WERE'}. {time.monotonic() - begin:.0f} s.")
        return 0 if code == 0 and clean else 1
    finally:
        lab.down()
        (ROOT / "build/demo/inventory.yml").unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
