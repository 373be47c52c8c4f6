# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a file of the controller is still what it was, without reading it."""

from __future__ import annotations

import os
import typing as t


class Identity(t.NamedTuple):
    """What the file system says of a file; of one that was written to since, something else."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, found: os.stat_result) -> Identity:
        """That of what was found."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
