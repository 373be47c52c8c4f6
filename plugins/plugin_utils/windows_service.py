# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as a Windows service, as far as the ways in to Windows have it in common; not how they speak to the service control manager."""

from __future__ import annotations

import time

#: Windows' own firewall. Its rules are taken while it runs only.
FIREWALL = 'MpsSvc'
#: In %SystemRoot% while an update's files wait for a restart.
WAITING_UPDATES = r'WinSxS\pending.xml'
DESCRIPTION = 'Installs software for the time of one Ansible run and removes itself when the run ends (sojourn.deploy).'

#: States ([MS-SCMR] 2.2.47), and errors of the service control manager that are no failures here.
STOPPED, START_PENDING, STOP_PENDING, RUNNING = 1, 2, 3, 4
ACCESS_DENIED, CANNOT_ACCEPT, NOT_ACTIVE, NOT_THERE, MARKED_FOR_DELETE = 5, 1061, 1062, 1060, 1072

#: Win32 errors of a service's start that people meet.
START = {
    2: "the agent's executable is not there any more; an antivirus may have removed it",
    3: "the agent's folder is not there any more; an antivirus may have removed it",
    5: 'access denied; a policy or an antivirus may forbid it',
    193: "the agent's executable is not one for this Windows",
    225: 'the antivirus takes the agent for a virus',
    577: 'a policy allows only other signed programs',
    1053: 'it did not report to the service control manager in time',
    1058: 'the service is disabled',
    1069: 'LocalSystem may not sign in as a service',
    1260: 'a software restriction policy forbids it',
    4551: 'an application control policy forbids it',
}

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.25
#: Seconds after which a service that is still starting, but is to go, is deleted all the same.
HANGS_SECONDS = 10.0
#: Seconds within which an agent's folder goes once its service has stopped, unless somebody else holds a file in it.
FOLDER_SECONDS = 5.0
#: Seconds that somebody else, such as an antivirus, may have the executable open in such a way that it could be written to.
HELD_SECONDS = 10.0


def display_name(run: str) -> str:
    """What people read in the list of services."""
    return f'Sojourn deployment agent (run {run})'


class Pauses:
    """Waits between looks at something that tells of no change itself, growing, until a deadline."""

    def __init__(self, seconds: float) -> None:
        self._begin = time.monotonic()
        self._deadline = self._begin + seconds
        self._pause = _FIRST_PAUSE

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._begin

    def again(self) -> bool:
        """Waits; False once the deadline has passed."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(self._pause, left))
        self._pause = min(self._pause * 1.5, _LONGEST_PAUSE)
        return True
