# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What earlier runs left on a target, found and removed; the present run's own agent is session.py's."""

from __future__ import annotations

import logging
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils import session_file
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import SYSTEMS
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import Found, WayIn

if t.TYPE_CHECKING:
    from ansible_collections.sojourn.deploy.plugins.plugin_utils.session import Session

log = logging.getLogger('sojourn.session')

Leftover = dict[str, t.Any]


def clean(session: Session, way_in: t.Callable[[], WayIn], run: str | None, force: bool, check: bool) -> dict[str, t.Any]:
    """See ``Agent.cleanup``. ``way_in`` makes one; the caller holds the session's lock."""
    changed = False
    if session.live:
        if not check:
            session.remove()
        changed = True
    found = _find(session, way_in(), run, check)
    # Over the ways in to Windows firewall rules do not show: only an agent on the target finds one that is all that is left.
    if not found and SYSTEMS[session.target.way_in] != 'windows':
        return {'changed': changed, 'leftovers': []}
    leftovers = _remove(session, way_in, found, run, force, check)
    return {'changed': changed or any(item['state'] == 'removed' for item in leftovers), 'leftovers': leftovers}


def _find(session: Session, way_in: WayIn, run: str | None, check: bool) -> list[Found]:
    try:
        way_in.connect()
        found = way_in.find()
        own = [item for item in found if item.run == session.run]
        if own and not check and not session.live and not any(item.live for item in own):
            way_in.wait_removed(0)  # of an agent of ours that died
        return [item for item in found if item.run != session.run and (run is None or item.run == run)]
    finally:
        way_in.release()


def _remove(session: Session, way_in: t.Callable[[], WayIn], found: list[Found], run: str | None, force: bool, check: bool) -> list[Leftover]:
    """By an agent, which sees more than the way in does, the leases for one; with ``check`` it only tells."""
    there = session.live
    try:
        session.deploy(take_over=False)  # what is to be judged must not be made this run's own
        try:
            answer = session.call('RemoveLeftovers', Run=run, DryRun=check or None, Force=force or None, wait=120)
            if not check:
                _forget(session, answer or [])
            return [{name: item.get(name) for name in ('kind', 'name', 'run', 'state', 'detail')} for item in answer or []]
        finally:
            if not there:
                session.remove()
    except SojournError as error:
        log.warning('%s: no agent for the clean-up, the way in does what it can: %s', session.target.host, error)
        if check:
            return [_leftover(item, 'live' if item.live and not force else 'removed', None) for item in found]
        return _remove_by_way_in(way_in(), found, force, error)


def _forget(session: Session, answer: list[Leftover]) -> None:
    """Runs of which nothing is left have no session any more."""
    left = {item.get('run') for item in answer if item.get('state') != 'removed'}
    for run in {item.get('run') for item in answer} - left:
        session_file.remove_run(session.target, str(run))


def _remove_by_way_in(way_in: WayIn, found: list[Found], force: bool, cause: SojournError) -> list[Leftover]:
    leftovers = []
    try:
        way_in.connect()
        for item in found:
            if item.live and not force:
                leftovers.append(_leftover(item, 'live', None))
                continue
            try:
                way_in.remove_found(item)
                leftovers.append(_leftover(item, 'removed', None))
            except SojournError as error:
                leftovers.append(_leftover(item, 'failed', f'{error.sentence} No agent could be deployed: {cause.sentence}'))
    finally:
        way_in.release()
    return leftovers


def _leftover(found: Found, state: str, detail: str | None) -> Leftover:
    return {'kind': found.kind, 'name': found.name, 'run': found.run, 'state': state, 'detail': detail}
