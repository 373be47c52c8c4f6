"""Sessions on the disk: private, held while their broker lives, free when it does not, gone with the session."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import network, session_file
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from ansible_collections.sojourn.deploy.plugins.plugin_utils.session_file import Record, SessionFile

TARGET = Target.make("ssh", "fd73::1", user="root", password="Geheim1!")
PEER = network.Peer(10, ("fe80::1", 62286, 0, 3))


def record(run: str = "0123456789ab", **more: object) -> Record:
    values = {"target": session_file.target_hash(TARGET), "run": run, "token": "t", "owner": "1-2", "credentials": "KEY", "peer": PEER, "fingerprint": "ab"}
    return Record(**{**values, **more})  # type: ignore[arg-type]


def test_what_is_written_is_read_again() -> None:
    assert Record.from_json(record().to_json()) == record()
    assert Record.from_json(record(peer=None, fingerprint=None).to_json()).peer is None
    assert "KEY" not in repr(record())


def test_it_is_private_and_names_no_target(state_home: Path) -> None:
    file = SessionFile.create(record())
    (path,) = (state_home / "sojourn").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert "fd73" not in path.name and "Geheim" not in path.read_text() and "fd73::1" not in path.read_text()
    file.remove()
    assert not path.exists()


def test_it_is_free_when_its_process_has_ended(state_home: Path) -> None:
    script = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from ansible_collections.sojourn.deploy.plugins.plugin_utils.session_file import Record, SessionFile\n"
        f"file = SessionFile.create(Record.from_json({record().to_json()!r}))\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline() == b"held\n"
    assert list(session_file.abandoned(TARGET)) == []
    holder.kill()
    holder.wait()
    (found,) = session_file.abandoned(TARGET)
    assert found.record == record()
    assert list(session_file.abandoned(TARGET)) == [], "it is ours now"
    found.remove()


def test_letting_go_and_taking_back() -> None:
    file = SessionFile.create(record())
    file.let_go()
    assert file.take_back()
    file.let_go()
    (other,) = session_file.abandoned(TARGET)
    assert not file.take_back()
    other.remove()
    assert not file.take_back(), "it was another's, and is gone"
    file.forget()


def test_a_rewritten_file_stays_held() -> None:
    file = SessionFile.create(record())
    new = file.rewrite(fingerprint="cd")
    assert list(session_file.abandoned(TARGET)) == [] and new.record.fingerprint == "cd"
    new.remove()


def test_others_are_not_taken() -> None:
    SessionFile.create(record()).forget()
    assert list(session_file.abandoned(Target.make("ssh", "fd73::2", user="root"))) == []
    assert list(session_file.abandoned_by("3-4")) == []
    (own,) = session_file.abandoned_by("1-2")
    own.remove()


def test_looking_for_ones_own_takes_nothing_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for a moment: who comes for it right then would find it held."""
    SessionFile.create(record()).forget()
    taken: list[str] = []
    take = SessionFile.take
    monkeypatch.setattr(SessionFile, "take", lambda path: (taken.append(path), take(path))[1])
    assert list(session_file.abandoned_by("3-4")) == [] and taken == []


def test_a_run_of_which_nothing_is_left_has_no_session() -> None:
    held = SessionFile.create(record("a" * 12))
    SessionFile.create(record("b" * 12)).forget()
    for run in ("a" * 12, "b" * 12, "c" * 12):
        session_file.remove_run(TARGET, run)
    assert os.path.exists(held.path) and list(session_file.abandoned(TARGET)) == []
    held.remove()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"peer": 3}', '{"peer": null}'])
def test_what_is_no_session_is_passed_over(state_home: Path, text: str) -> None:
    folder = Path(session_file.private_folder())
    (folder / f"{session_file.target_hash(TARGET)}-0123456789ab.json").write_text(text)
    assert list(session_file.abandoned(TARGET)) == []


def test_one_that_is_not_its_users_alone_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that others may read, nor one that another user has put there, nor what a link leads to."""
    file = SessionFile.create(record())
    file.let_go()
    own = os.geteuid()
    os.chmod(file.path, 0o640)
    assert SessionFile.take(file.path) is None
    os.chmod(file.path, 0o600)
    link = f"{file.path}.link"
    os.symlink(file.path, link)
    assert SessionFile.take(link) is None
    monkeypatch.setattr(session_file.os, "geteuid", lambda: own + 1)
    assert SessionFile.take(file.path) is None
    monkeypatch.setattr(session_file.os, "geteuid", lambda: own)
    os.unlink(link)
    taken = SessionFile.take(file.path)
    assert taken is not None
    taken.remove()


def test_old_ones_are_forgotten(state_home: Path) -> None:
    SessionFile.create(record()).forget()
    held = SessionFile.create(record("a" * 12))
    for path in (state_home / "sojourn").iterdir():
        os.utime(path, (time.time() - 8 * 86400,) * 2)
    SessionFile.create(record("b" * 12)).forget()
    session_file.forget_old()
    assert sorted(path.name[-17:-5] for path in (state_home / "sojourn").iterdir()) == ["a" * 12, "b" * 12]
    held.remove()


def test_a_folder_that_others_can_enter_is_refused(state_home: Path) -> None:
    (state_home / "sojourn").mkdir(mode=0o755)
    (state_home / "sojourn").chmod(0o755)
    with pytest.raises(SojournError, match="open to other users"):
        SessionFile.create(record())
    assert session_file.keep(record()) is None, "the session works without"
