"""Loads into nft what the stand-in netsh.exe keeps in the registry."""

from __future__ import annotations

import asyncio
import ipaddress
import json


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
