# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the options that all connections have; plugin_utils/connection_base.py reads them."""

from __future__ import annotations


class ModuleDocFragment:
    """Options of all connections."""

    DOCUMENTATION = r"""
options:
  host_name:
    description:
      - Name of the host in messages.
    type: string
    default: inventory_hostname
    vars:
      - name: inventory_hostname
  remote_addr:
    description:
      - The target's address. A name, an IPv4 address, or an IPv6 address, with or without brackets, short or in full, and with its zone
        (V(fe80::1%eth0)) if it is link-local.
      - A name's addresses are tried in the order of the controller's name resolution; an address that does not answer at once does not
        keep the others waiting.
    type: string
    default: inventory_hostname
    vars:
      - name: inventory_hostname
      - name: ansible_host
      - name: ansible_ssh_host
      - name: ansible_sojourn_host
  remote_user:
    description:
      - User to sign in as.
      - Without it, existing credentials are used.
    type: string
    ini:
      - section: defaults
        key: remote_user
    env:
      - name: ANSIBLE_REMOTE_USER
    vars:
      - name: ansible_user
      - name: ansible_ssh_user
      - name: ansible_sojourn_user
    cli:
      - name: user
    keyword:
      - name: remote_user
  password:
    description:
      - Password of O(remote_user).
      - Without it, existing credentials are used.
    type: string
    vars:
      - name: ansible_password
      - name: ansible_ssh_password
      - name: ansible_ssh_pass
      - name: ansible_sojourn_password
  connection_timeout:
    description:
      - Seconds until a target that does not answer counts as unreachable.
    type: float
    default: 10
    ini:
      - section: defaults
        key: timeout
      - section: sojourn
        key: connection_timeout
    env:
      - name: ANSIBLE_TIMEOUT
      - name: ANSIBLE_SSH_TIMEOUT
      - name: SOJOURN_CONNECTION_TIMEOUT
    vars:
      - name: ansible_connection_timeout
      - name: ansible_ssh_timeout
      - name: ansible_sojourn_connection_timeout
    cli:
      - name: timeout
  agent_ports:
    description:
      - The TCP port, or the range of ports of which the agent takes the first free one, on the target.
    type: string
    default: 62286-62293
    ini:
      - section: sojourn
        key: agent_ports
    env:
      - name: SOJOURN_AGENT_PORTS
    vars:
      - name: ansible_sojourn_agent_ports
  transport:
    description:
      - How the controller reaches the agent.
      - With V(direct), by a port of the target (O(agent_ports)), which the agent opens in the target's firewall for the controller alone.
      - With V(tunnel), inside the connection that brought the agent there, which stays signed in for the whole run.
        Over SSH it is a forwarded connection to the target's loopback (C(direct-tcpip)), over SMB a named pipe. No port is opened, and no firewall rule made.
      - With V(auto), directly, and by tunnel where the agent's port cannot be reached or the target's firewall takes no rule.
        C(-vvv) and M(sojourn.deploy.debug_connection) say which it was.
      - Where a target is reached over jump hosts, it is always the tunnel; over WinRM it is never.
    type: string
    choices: [direct, tunnel, auto]
    default: direct
    ini:
      - section: sojourn
        key: transport
    env:
      - name: SOJOURN_TRANSPORT
    vars:
      - name: ansible_sojourn_transport
  lease_seconds:
    description:
      - Seconds without a sign of life from the controller after which the agent removes itself from the target.
      - A running installation is let finish first.
    type: float
    default: 120
    ini:
      - section: sojourn
        key: lease_seconds
    env:
      - name: SOJOURN_LEASE_SECONDS
    vars:
      - name: ansible_sojourn_lease_seconds
  reconnect_timeout:
    description:
      - Seconds to wait for a target that was there before in this run and does not answer any more. It may be restarting.
      - A target that was not reached yet in this run is not waited for; see O(connection_timeout).
    type: float
    default: 300
    ini:
      - section: sojourn
        key: reconnect_timeout
    env:
      - name: SOJOURN_RECONNECT_TIMEOUT
    vars:
      - name: ansible_sojourn_reconnect_timeout
  controller_address:
    description:
      - The controller's address as the target sees it; only from there the agent's port is opened.
      - Without it, the address of the connection that the agent came over. Needed with SMB and WinRM where addresses are translated on the way.
    type: string
    ini:
      - section: sojourn
        key: controller_address
    env:
      - name: SOJOURN_CONTROLLER_ADDRESS
    vars:
      - name: ansible_sojourn_controller_address
"""
