"""Runs a playbook by ansible-runner and cancels it when the file 'cancel' is there: run_by_runner.py FOLDER PLAYBOOK; writes FOLDER/status."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ansible_runner


def main() -> int:
    """Returns when the run has ended, however."""
    folder, playbook = Path(sys.argv[1]), sys.argv[2]
    folder.mkdir(exist_ok=True)
    result = ansible_runner.run(
        private_data_dir=str(folder), playbook=playbook, inventory=os.environ["ANSIBLE_INVENTORY"], envvars=dict(os.environ),
        cancel_callback=(folder / "cancel").exists, settings={"pexpect_timeout": 1, "pexpect_use_poll": True})
    (folder / "status").write_text(result.status)
    return 0


if __name__ == "__main__":
    sys.exit(main())
