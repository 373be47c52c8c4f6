#!/usr/bin/env python3
"""pypsexec as a peer of the first task over SMB: its own client has a service on the target run one command. Prints the seconds until its result.

Takes host, user and password as JSON on standard input. Samba has no FSCTL_PIPE_WAIT, with which pypsexec waits for the service's pipe: here the pipe
is opened again until it is there, which is quicker. The service's removal, with its fixed wait, is not counted.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from pypsexec import client, pipe
from smbprotocol.exceptions import SMBResponseException

TIMEOUT = 30.0


def open_pipe(tree: Any, name: str, access_mask: int, fsctl_wait: bool = False) -> Any:
    """In the place of pypsexec's."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            return opened(tree, name, access_mask)
        except SMBResponseException:
            if not fsctl_wait or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


opened = pipe.open_pipe


def main() -> None:
    """One run."""
    pipe.open_pipe = client.open_pipe = open_pipe
    about = json.load(sys.stdin)
    begin = time.monotonic()
    peer = client.Client(about["host"], username=about["user"], password=about["password"])
    peer.connect()
    try:
        peer.create_service()
        try:
            code = peer.run_executable("cmd.exe", arguments="/c exit 7")[2]
            seconds = time.monotonic() - begin
        finally:
            peer.remove_service()
    finally:
        peer.disconnect()
    if code != 7:
        raise SystemExit(f"the command ended with {code}")
    print(seconds)


if __name__ == "__main__":
    main()
