"""Sets the Windows version that smbd tells in its NTLM challenge: `ntlm_version.py 10.0.19043`.

Stands in for nothing, but undoes a giveaway: Samba's library holds the constant 6.1 build 0 (ntlmssp_version_blob), and a
client that turns old systems away by this version would take the target for one. A new version counts for smbd's next
start.
"""

import os
import re
import struct
import sys
from pathlib import Path

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/samba/libgensec-private-samba.so.0")
# The VERSION structure ([MS-NLMP] 2.2.2.10): major, minor, build, three reserved bytes, revision 15.
# What it is now is noted, as the constant is found by its value.
NOTE = Path("/etc/sojourn-lab/ntlm-version")
SAMBA_OWN = "6.1.0"


def structure(version: str) -> bytes:
    """The version as it stands in a challenge."""
    major, minor, build = map(int, version.split("."))
    return struct.pack("<BBH3xB", major, minor, build, 15)


def main() -> int:
    """Replace the version that is there by the one asked for."""
    wanted = sys.argv[1]
    if not re.fullmatch(r"\d+\.\d+\.\d+", wanted):
        print("a version is MAJOR.MINOR.BUILD")
        return 2
    now = NOTE.read_text().strip() if NOTE.exists() else SAMBA_OWN
    data = LIBRARY.read_bytes()
    if data.count(structure(now)) != 1:
        print(f"{LIBRARY} doesn't hold the version {now} exactly once: this Samba isn't known")
        return 1
    # A new file in the old one's place: a running smbd keeps the old one mapped.
    aside = LIBRARY.with_suffix(".new")
    aside.write_bytes(data.replace(structure(now), structure(wanted)))
    aside.chmod(0o644)
    os.replace(aside, LIBRARY)
    NOTE.write_text(f"{wanted}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
