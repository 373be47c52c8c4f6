"""The Windows session of a target: keeps Wine running and joins it to Samba and to the packet filter.

Stands in for two things that Wine lacks:

* The way from SMB to the named pipes of Windows. smbd connects to a Unix socket for each pipe; what arrives is
  forwarded to the real pipe of the real services.exe in Wine, by a small Windows program (resident.exe).
* The service control manager's access check. Wine's has none: whoever is not `Administrator` is answered
  "access denied" (5) when opening the SCM, as Windows does for a remote user who is no administrator.
  It cannot show Windows' finer rights (security descriptors of single services, UAC's filtered tokens).

And it loads into nft what the stand-in netsh.exe stores.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path

NP = Path("/run/samba/ncalrpc/np")
RESIDENT = r"Z:\opt\sojourn-lab\bin\resident.exe"
# Debian's `wine` is the 32-bit loader, which would keep a start.exe waiting beside every 64-bit program.
WINE = "/usr/lib/wine/wine64"
RESIDENT_PORT = 47000
FIREWALL_PORT = 47001

# Pipe name → whether Samba speaks in messages (DCE/RPC) or in a stream of bytes.
PIPES = {"svcctl": True}
ADMINISTRATORS = {"administrator"}

ACCESS_DENIED = 5
RPC_REQUEST, RPC_RESPONSE = 0, 2
# The calls that hand out a first handle: ROpenSCManagerW and ROpenSCManagerA ([MS-SCMR] 3.1.4).
OPEN_MANAGER = {15, 27}


def account_of(greeting: bytes) -> str:
    """The account in Samba's greeting: the named_pipe_auth_req's session info, which is NDR (see named_pipe_auth.idl).

    Only one thing is wanted of a deep structure: the first conformant UTF-8 string that is one of the target's
    accounts. It can't be another's: no other account name occurs in a session of this one.
    """
    known = {"administrator", "operator", "reader", "root", "nobody"}
    position = 12
    while position + 12 <= len(greeting):
        most, offset, count = struct.unpack_from("<III", greeting, position)
        if offset == 0 and most == count and 1 < count <= 64 and position + 12 + count <= len(greeting):
            text = greeting[position + 12 : position + 12 + count].rstrip(b"\0")
            with contextlib.suppress(UnicodeDecodeError):
                name = text.decode("ascii").lower()
                if name in known:
                    return name
        position += 4
    return ""


def greeting_reply(level: int, messages: bool) -> bytes:
    """What smbd wants to hear: the level again, and the kind of pipe that it now has."""
    kind = 2 if messages else 1
    body = b"NPAM" + struct.pack("<IIHHIQI", level, level, kind, 0x05FF, 0, 4096, 0)
    return struct.pack(">I", len(body)) + body


def denial(request: bytes) -> bytes:
    """The answer to an ROpenSCManager request: no handle, and error 5."""
    call = struct.unpack_from("<I", request, 12)[0]
    context = struct.unpack_from("<H", request, 20)[0]
    stub = bytes(20) + struct.pack("<I", ACCESS_DENIED)
    head = struct.pack("<BBBB4sHHI", 5, 0, RPC_RESPONSE, 3, b"\x10\0\0\0", 24 + len(stub), 0, call)
    return head + struct.pack("<IHBB", len(stub), context, 0, 0) + stub


class Pipe:
    """One pipe name, as smbd sees it."""

    def __init__(self, name: str, messages: bool) -> None:
        self.name = name
        self.messages = messages

    async def serve(self) -> None:
        """Listen where smbd looks for the pipe."""
        path = NP / self.name
        path.unlink(missing_ok=True)
        await asyncio.start_unix_server(self._client, path)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._talk(reader, writer)
        writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = struct.unpack(">I", await reader.readexactly(4))[0]
        greeting = await reader.readexactly(length)
        level = struct.unpack_from("<I", greeting, 4)[0]
        account = account_of(greeting)
        try:
            far_reader, far_writer = await open_pipe(self.name)
        except OSError as error:
            print(f"{self.name}: {error}", flush=True)
            return
        writer.write(greeting_reply(level, self.messages))
        trusted = account in ADMINISTRATORS or not self.messages
        print(f"{self.name}: opened by {account or 'an unknown account'}", flush=True)
        up = asyncio.create_task(self._up(reader, writer, far_writer, trusted))
        try:
            await self._down(far_reader, writer)
        finally:
            up.cancel()
            far_writer.close()

    async def _up(
        self, reader: asyncio.StreamReader, near: asyncio.StreamWriter, far: asyncio.StreamWriter, trusted: bool
    ) -> None:
        """From smbd to Wine."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                if self.messages:
                    size = struct.unpack("<H", await reader.readexactly(2))[0]
                    data = await reader.readexactly(size)
                    opnum = struct.unpack_from("<H", data, 22)[0] if len(data) >= 24 else -1
                    if not trusted and data[2] == RPC_REQUEST and opnum in OPEN_MANAGER:
                        answer = denial(data)
                        near.write(struct.pack("<H", len(answer)) + answer)
                        continue
                elif not (data := await reader.read(65536)):
                    break
                far.write(data)
                await far.drain()
        far.close()

    async def _down(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        """From Wine to smbd; a DCE/RPC fragment tells its length in its own header."""
        while True:
            if self.messages:
                head = await reader.readexactly(16)
                data = head + await reader.readexactly(struct.unpack_from("<H", head, 8)[0] - 16)
                near.write(struct.pack("<H", len(data)) + data)
            elif data := await reader.read(65536):
                near.write(data)
            else:
                return
            await near.drain()


async def open_pipe(name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream to a named pipe in Wine, by way of resident.exe."""
    reader, writer = await asyncio.open_connection("127.0.0.1", RESIDENT_PORT)
    writer.write(f"pipe {name}\n".encode())
    answer = (await reader.readline()).decode().strip()
    if answer != "ok":
        writer.close()
        raise OSError(f"the pipe {name} can't be opened in Wine: {answer or 'connection closed'}")
    return reader, writer


def ruleset(rules: list[dict]) -> str:
    """nft's words for the stored rules: as on Windows, a block wins over every allow."""
    lines = []
    for rule in sorted(rules, key=lambda rule: rule["action"] != "block"):
        if rule["direction"] != "in" or not rule["enabled"]:
            continue  # what goes out is not filtered here
        verdict = "accept" if rule["action"] == "allow" else "drop"
        ports = ",".join(rule["localports"])
        match = {"tcp": "meta l4proto tcp", "udp": "meta l4proto udp"}.get(rule["protocol"], "")
        if ports and match:
            match = f"{rule['protocol']} dport {{ {ports} }}"
        families: dict[str, list[str]] = {"ip": [], "ip6": []}
        for remote in rule["remotes"]:
            first = remote.split("-")[0]
            families["ip6" if ipaddress.ip_network(first, strict=False).version == 6 else "ip"].append(remote)
        name = json.dumps(rule["name"][:100].replace('"', "'"), ensure_ascii=False)
        if not rule["remotes"]:
            lines.append(f"{match} counter {verdict} comment {name}")
        for family, remotes in families.items():
            if remotes:
                lines.append(f"{family} saddr {{ {', '.join(remotes)} }} {match} counter {verdict} comment {name}")
    body = "\n".join(lines)
    return (
        f"flush chain inet windows_firewall stored\ntable inet windows_firewall {{\nchain stored {{\n{body}\n}}\n}}\n"
    )


async def firewall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One line of JSON, all rules that are to be in force; answered once they are."""
    try:
        text = ruleset(json.loads(await reader.readline()))
        nft = await asyncio.create_subprocess_exec(
            "nft",
            "-f",
            "-",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await nft.communicate(text.encode())
        answer = "ok" if nft.returncode == 0 else f"error {said.decode().splitlines()[0]}"
    except (ValueError, KeyError, IndexError) as error:
        answer = f"error {error!r}"
    if answer != "ok":
        print(f"firewall: {answer}", flush=True)
    with contextlib.suppress(ConnectionError):
        writer.write(f"{answer}\n".encode())
        await writer.drain()
    writer.close()


def notify(state: str) -> None:
    """Tell systemd (sd_notify)."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
            wire.connect(address.replace("@", "\0", 1))
            wire.send(state.encode())


async def main() -> int:
    """Start Wine, then serve until it ends."""
    NP.mkdir(parents=True, exist_ok=True)
    NP.chmod(0o700)  # smbd refuses a folder that others could write to
    await asyncio.start_server(firewall, "127.0.0.1", FIREWALL_PORT)
    resident = await asyncio.create_subprocess_exec(
        WINE, RESIDENT, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    while (line := (await resident.stdout.readline()).decode().strip()) != "ready":
        if not line:
            print("resident.exe ended before it was ready", flush=True)
            return 1
        print(line, flush=True)
    for name, messages in PIPES.items():
        await Pipe(name, messages).serve()
    notify("READY=1")
    ended = asyncio.create_task(resident.wait())
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
    return 0 if stop.is_set() else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
