"""Loads into nft what the stand-in netsh.exe keeps in the registry; and has netsh.exe fail or hang when a test wants it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
from pathlib import Path

# What a test wants: see firewall_tool.py of the lab.
LEVER = Path("/run/sojourn-lab/firewall")


def ruleset(rules: list[dict]) -> str:
    """nft's words for the stored rules: as on Windows, a block wins over every allow."""
    lines = []
    for rule in sorted(rules, key=lambda rule: rule["action"] != "block"):
        if rule["direction"] != "in" or not rule["enabled"]:
            continue  # what goes out is not filtered here
        verdict = "accept" if rule["action"] == "allow" else "drop"
        protocol, ports = rule["protocol"], ", ".join(rule["localports"])
        match = {"any": "", "icmpv4": "meta l4proto icmp", "icmpv6": "meta l4proto ipv6-icmp"}.get(protocol)
        if match is None:
            match = f"{protocol} dport {{ {ports} }}" if ports else f"meta l4proto {protocol}"
        families: dict[str, list[str]] = {"ip": [], "ip6": []}
        for remote in rule["remotes"]:
            first = ipaddress.ip_network(remote.split("-")[0], strict=False)
            families["ip6" if first.version == 6 else "ip"].append(remote)
        name = rule["name"][:100].replace('"', "'")
        end = f'{match} counter {verdict} comment "{name}"'
        if not rule["remotes"]:
            lines.append(end)
        lines += [f"{family} saddr {{ {', '.join(found)} }} {end}" for family, found in families.items() if found]
    body = "\n".join(lines)
    return f"flush chain inet windows_firewall stored\ntable inet windows_firewall {{\nchain stored {{\n{body}\n}}\n}}\n"


async def apply(rules: list[dict]) -> str:
    """Have these rules in force and no others; "ok", or what nft said."""
    nft = await asyncio.create_subprocess_exec(
        *("nft", "-f", "-"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await nft.communicate(ruleset(rules).encode())
    return "ok" if nft.returncode == 0 else f"error {json.dumps(said.decode(errors='replace')[:500])}"


async def allowed(what: str, words: str) -> str:
    """ "ok" once netsh may add ("open") or delete ("close") a rule; else why it can't."""
    try:
        mode = (LEVER / "mode").read_text().strip()
    except FileNotFoundError:
        return "ok"
    if mode == f"fails {what}":
        return "The requested operation requires elevation (Run as administrator)."
    if mode == f"holds {what}":
        with contextlib.suppress(OSError):  # nobody reads any more: the test has ended
            calls = os.open(LEVER / "calls", os.O_WRONLY | os.O_NONBLOCK)
            os.write(calls, f"netsh {words}\n".encode())
            os.close(calls)
        gate = await asyncio.create_subprocess_exec("flock", "--shared", LEVER / "gate", "true", stderr=asyncio.subprocess.DEVNULL)
        await gate.wait()
    return "ok"
