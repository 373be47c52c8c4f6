"""The Windows session of a target: keeps Wine running, and does for its programs what only the Linux below can do.

Wine's programs ask on 127.0.0.1:47001, one line of JSON a connection, answered by one line:

    {"firewall": [RULE, ...]}                         from netsh.exe: have these rules in force
    {"firewall_tool": "open", "words": "..."}         from netsh.exe before it adds or deletes ("close") a rule: may it?
    {"shutdown": {"restart": true, "seconds": 30}}    from shutdown.exe
    {"abort": true}                                   from shutdown.exe /a
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

import firewall
from inuse import InUse
from named_pipes import Pipes
from pipefolder import PipeFolder

# Debian's `wine` is the 32-bit loader, which would keep a start.exe waiting beside every 64-bit program.
WINE = "/usr/lib/wine/wine64"
RESIDENT = r"Z:\opt\sojourn-lab\bin\resident.exe"
REQUESTS_PORT = 47001
PIPE_FOLDER = Path("/run/samba/ncalrpc/np")

# What shutdown.exe is to exit with.
NO_SHUTDOWN_IN_PROGRESS, SHUTDOWN_IS_SCHEDULED = "1116", "1190"


class Power:
    """A shutdown that was asked for and has not begun."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def shutdown(self, restart: bool, seconds: float) -> str:
        """Shut down after so many seconds."""
        if self._timer:
            return SHUTDOWN_IS_SCHEDULED
        verb = "reboot" if restart else "poweroff"
        # --no-block: systemd is about to stop this very process.
        self._timer = asyncio.get_running_loop().call_later(
            seconds, lambda: asyncio.ensure_future(asyncio.create_subprocess_exec("systemctl", "--no-block", verb))
        )
        return "ok"

    def abort(self) -> str:
        """Think better of it."""
        if not self._timer:
            return NO_SHUTDOWN_IN_PROGRESS
        self._timer.cancel()
        self._timer = None
        return "ok"


class Session:
    """Wine, and what stands around it."""

    def __init__(self) -> None:
        self.power = Power()

    async def run(self) -> int:
        """Until systemd stops it, or Wine ends by itself."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await asyncio.start_server(self._request, "127.0.0.1", REQUESTS_PORT)
        resident = await asyncio.create_subprocess_exec(WINE, RESIDENT, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE)
        while (line := (await resident.stdout.readline()).decode().strip()) != "ready":
            if not line:
                print("resident.exe ended before it was ready", flush=True)
                return 1
            print(line, flush=True)
        InUse().start()
        folder = PipeFolder(PIPE_FOLDER, Pipes())
        folder.mount()
        notify("READY=1")
        ended = asyncio.create_task(resident.wait())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        folder.unmount()
        if not stop.is_set():
            # ExitWindowsEx ends every Windows process, this session's among them; of its flags nothing is known here.
            print("Wine has ended: restarting the target", flush=True)
            self.power.shutdown(restart=True, seconds=0)
            await stop.wait()
        return 0

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._do(json.loads(await reader.readline()))
        except (ValueError, KeyError, TypeError) as error:
            answer = f"error {error!r}"
        if answer != "ok":
            print(f"request: {answer}", flush=True)
        with contextlib.suppress(ConnectionError):
            writer.write(f"{answer}\n".encode())
            await writer.drain()
        writer.close()

    async def _do(self, request: dict) -> str:
        if "firewall" in request:
            return await firewall.apply(request["firewall"])
        if "firewall_tool" in request:
            return await firewall.allowed(request["firewall_tool"], request["words"])
        if "shutdown" in request:
            return self.power.shutdown(request["shutdown"]["restart"], request["shutdown"]["seconds"])
        if "abort" in request:
            return self.power.abort()
        return "error no such request"


def notify(state: str) -> None:
    """Tell systemd (sd_notify)."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
            wire.connect(address.replace("@", "\0", 1))
            wire.send(state.encode())


if __name__ == "__main__":
    sys.exit(asyncio.run(Session().run()))
