"""The lab's Ansible inventory."""

from __future__ import annotations

import json

from .model import Lab


def inventory(lab: Lab, family: str = "ipv6") -> str:
    """The inventory as YAML: hosts by kind, each with nothing but what a user of the collection would write."""
    lines = [
        f"# Lab {lab.name!r}: throwaway targets; the addresses answer inside `lab.py enter --name {lab.name}` only.",
        "all:",
    ]
    lines.append("  children:")
    for kind in ("linux", "windows"):
        targets = [target for target in lab.targets.values() if target.kind == kind]
        lines.append(f"    {kind}:")
        lines.append("      hosts:" if targets else "      hosts: {}")
        for target in targets:
            lines.append(f"        {target.name}:")
            lines += [f"          {key}: {json.dumps(value)}" for key, value in target.host_vars(family).items()]
        lines.append("      vars:")
        if kind == "windows":
            lines.append("        # Wine has no PowerShell; a real Windows host would leave this at its default.")
            lines.append("        ansible_shell_type: cmd")
        else:
            lines.append(f"        ansible_sojourn_known_hosts_file: {json.dumps(str(lab.known_hosts))}")
    lines += ["    targets:", "      children:", "        linux: {}", "        windows: {}"]
    return "\n".join(lines) + "\n"
