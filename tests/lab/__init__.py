"""The lab: throwaway Windows and Linux targets on a private IPv6 link, as namespaces and containers of this machine.

    from tests.lab import Lab

    lab = Lab("mine").up(linux=1, windows=1)
    lab.run(["ansible", "all", "-m", "ping"])   # from the controller's network
    lab.exec("linux1", ["nft", "list", "ruleset"])   # inside a target
    lab.down()

`lab.py` beside this file is the same by command line; README.md says what the targets can and cannot show.
"""

from .errors import LabError
from .model import Lab, prepare
from .snapshot import Difference, Snapshot, compare

__all__ = ["Difference", "Lab", "LabError", "Snapshot", "compare", "prepare"]
