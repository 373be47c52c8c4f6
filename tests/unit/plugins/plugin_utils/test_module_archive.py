"""What of a module's archive goes to an agent that has others."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import random
import threading
import zipfile
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import module_archive
from ansible_collections.sojourn.deploy.plugins.plugin_utils.broker_client import Likely
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.module_archive import Archives, Coming

BASIC, COMMON = os.urandom(9000), os.urandom(3000)


class Agent:
    """What agent/internal/deploy/archive.go does."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.came = 0

    def execute(self, Input: bytes, Archive: str | None = None, ArchiveOffset: int = 0, ArchiveParts: str | None = None) -> bytes:
        self.came = len(Input)
        if Archive is None:
            found = module_archive.find(Input)
            assert found
            text = Input[found]
            self.kept[hashlib.sha256(text).hexdigest()] = base64.b64decode(text)
            return Input
        before, rest, data = Input[:ArchiveOffset], Input[ArchiveOffset:], b"" if ArchiveParts else self.kept.get(Archive, b"")
        for part in (ArchiveParts or "").split():
            size, _, of = part.partition(":")
            if of:
                archive, _, offset = of.partition(":")
                if archive not in self.kept:
                    raise SojournError("SD-713", archive=archive)
                data += self.kept[archive][int(offset) :][: int(size)]
            else:
                data, rest = data + rest[: int(size)], rest[int(size) :]
        if not data:
            raise SojournError("SD-713", archive=Archive)
        text = base64.b64encode(data)
        assert hashlib.sha256(text).hexdigest() == Archive
        self.kept[Archive] = data
        return before + text + rest

    def keep(self, Archive: str, ArchiveParts: str, Data: bytes | None = None) -> int:
        self.execute(Data or b"", Archive, 0, ArchiveParts)
        return len(Data or b"")

    def send(self, archives: Archives, program: bytes) -> int:
        """Sends a module as a session does; how many bytes went."""
        archive = module_archive.find(program)
        assert archive
        order = archives.order(program, archive)
        assert self.execute(**order.arguments) == program
        archives.sent(order)
        return self.came


def zipped(files: dict[str, bytes], second: int = 0) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 11, 29, 10, 0, second)), content)
    return stream.getvalue()


def program(files: dict[str, bytes], *, second: int = 0, before: bytes = b"zip_data=", after: bytes = b"; run()") -> bytes:
    return before + b"'" + base64.b64encode(zipped(files, second)) + b"'" + after


ZIPPED = zipped({"ansible/basic.py": BASIC})


def module(name: str, **more: Any) -> bytes:
    own = {f"ansible/modules/{name}.py": name.encode() * 20}
    return program({"ansible/__init__.py": b"", "ansible/basic.py": BASIC, "ansible/common.py": COMMON, **own}, **more)


@pytest.mark.parametrize("second", [0, 58], ids=["of the same time", "of another time"])
def test_what_is_in_an_earlier_one_goes_once(second: int) -> None:
    agent, archives = Agent(), Archives()
    assert len(BASIC) < agent.send(archives, module("stat")) < len(module("stat")), "not in base64"
    new = agent.send(archives, module("copy", second=second))
    assert new < 1200, "its own file, and the zip's directory"
    assert agent.send(archives, module("copy", second=second)) < new < agent.send(Archives(), module("copy", second=second))
    assert agent.send(archives, module("find", before=b"# more\nzip_data=", after=b"")) < 1200


def test_an_archive_that_was_let_go_is_sent_again() -> None:
    agent, archives = Agent(), Archives()
    agent.send(archives, module("stat"))
    agent.kept.clear()
    archive = module_archive.find(module("copy"))
    assert archive
    order = archives.order(module("copy"), archive)
    with pytest.raises(SojournError, match="SD-713"):
        agent.execute(**order.arguments)
    archives.lost(order)
    assert len(BASIC) < agent.send(archives, module("copy")) < len(module("copy")), "all of it, and not in base64"
    assert agent.send(archives, module("copy")) < 100 and agent.send(archives, module("slurp")) < 1200, "nothing is known against those"

    agent.kept.clear()
    archive = module_archive.find(module("stat"))
    assert archive
    order = archives.order(module("stat"), archive)
    with pytest.raises(SojournError, match="SD-713"):
        agent.execute(**order.arguments)
    archives.lost(order)
    assert [agent.send(archives, module("stat")) for _again in range(2)] == [len(module("stat"))] * 2, "it was there before, and is not left out again"


def test_of_many_only_the_last_are_looked_through() -> None:
    """An agent has let go of the others."""
    agent, archives = Agent(), Archives()
    agent.send(archives, module("first"))
    other = os.urandom(6000)
    for number in range(module_archive.SOURCES):
        agent.send(archives, program({f"ansible/{number}.py": other}))
    assert agent.send(archives, module("last")) > len(BASIC) and agent.send(archives, program({"ansible/other.py": other})) < 300


def test_files_in_any_order() -> None:
    """Whatever archives have in common, the agent has what Ansible made."""
    seed = int(os.environ.get("SOJOURN_FUZZ_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"SOJOURN_FUZZ_SEED={seed}")
    chance = random.Random(seed)
    files = {f"ansible/{number}.py": chance.randbytes(chance.choice([0, 1, 95, 96, 97, 400, 5000])) for number in range(20)}
    files["ansible/more.py"] = chance.randbytes(6000)
    agent, archives = Agent(), Archives()
    for _round in range(50):
        names = chance.sample(list(files), chance.randrange(1, len(files)))
        names.append("ansible/more.py")
        agent.send(archives, program({name: files[name] for name in names}, second=chance.randrange(4) * 2))


@pytest.mark.parametrize(
    "text",
    [
        b"UEsDB" + b"A" * 5000,  # no whole number of bytes
        b"UEsDB" + b"A" * 5003,  # no zip
        b"UEsDB" + b"A" * 2500 + b"\\n" + b"A" * 2500,
        base64.b64encode(b"PK\x03\x04" + bytes(6000) + b"PK\x05\x06" + bytes(18)),  # without files
        base64.b64encode(b"PK\x03\x04" + bytes(module_archive.MAXIMUM)),
        base64.b64encode(ZIPPED.replace(b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\xff")),  # of a later time
    ],
)
def test_what_is_not_as_ansible_makes_it_goes_whole(text: bytes) -> None:
    whole = b"zip_data='" + text + b"'"
    archive, archives = module_archive.find(whole), Archives()
    assert archive
    order = archives.order(whole, archive)
    assert order.whole and order.arguments == {"Input": whole}
    archives.sent(order)
    assert archives.order(whole, archive).arguments["Archive"] == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("program", [module("copy", before=b"#" * (module_archive.MAXIMUM_BEFORE + 1) + b"zip_data=")])
def test_what_the_agent_does_not_take_in_parts_goes_whole(program: bytes) -> None:
    archive = module_archive.find(program)
    assert archive and Archives().order(program, archive).whole


def test_too_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, archives = Agent(), Archives()
    agent.send(archives, module("stat"))
    monkeypatch.setattr(module_archive, "MAXIMUM_PARTS", 2)
    assert agent.send(archives, module("copy")) == len(module("copy"))


@pytest.mark.parametrize("program", [b"", b"print(1)", b"zip_data='UEsDBAAA'", b"zip_data='UEsDB" + b"A" * 5000, b"'UEsDB" + b"A" * 5000 + b"' + 'UEsDBAAA'"])
def test_what_has_no_archive(program: bytes) -> None:
    assert module_archive.find(program) is None


def coming(*names: str) -> Coming:
    all_of_them = Coming()
    for name in names:
        all_of_them.add(module(name))
    return all_of_them


def test_what_is_to_come_goes_ahead() -> None:
    agent, archives, to_come = Agent(), Archives(), coming("stat", "copy", "stat", "find")
    came = []
    agent.send(archives, module("stat"))
    for order in archives.ahead(to_come):
        came.append(agent.keep(**order.arguments))
        archives.sent(order)
    assert len(came) == 2 and max(came) < 1200, "one is there, and what that has is not sent"
    assert not archives.wanting(to_come) and archives.wanting(coming("file"))
    assert agent.send(archives, module("copy")) == len(module("copy")) - len(base64.b64encode(zipped_module("copy")))


def zipped_module(name: str) -> bytes:
    found = module_archive.find(module(name))
    assert found
    return base64.b64decode(module(name)[found])


def test_the_first_of_all_may_go_ahead() -> None:
    agent, archives = Agent(), Archives()
    for order in archives.ahead(coming("stat")):
        assert agent.keep(**order.arguments) == len(zipped_module("stat"))
        archives.sent(order)
    assert agent.send(archives, module("stat")) < 100


def test_what_goes_ahead_refers_to_nothing_that_was_let_go() -> None:
    agent, archives, to_come = Agent(), Archives(), coming("copy")
    agent.send(archives, module("stat"))
    agent.kept.clear()
    tries = []
    for order in archives.ahead(to_come):
        tries.append(order)
        try:
            agent.keep(**order.arguments)
        except SojournError:
            assert archives.lost(order)
        else:
            archives.sent(order)
    assert len(tries) == 2 and not archives.wanting(to_come)
    assert not Archives().lost(tries[0]), "there was nothing that could have been let go"


def test_a_module_waits_for_what_is_on_its_way() -> None:
    agent, archives = Agent(), Archives()
    began, sizes = threading.Event(), []

    def bring() -> None:
        began.set()
        sizes.append(agent.send(archives, module("copy")))

    thread = threading.Thread(target=bring)
    for order in archives.ahead(coming("copy")):
        assert not list(archives.ahead(coming("find"))), "somebody is at it"
        thread.start()
        assert began.wait(60)
        thread.join(0.1)
        assert thread.is_alive()
        agent.keep(**order.arguments)
        archives.sent(order)
    thread.join(60)
    assert sizes and sizes[0] < 100


def test_a_module_that_nobody_wants_any_more_does_not_wait() -> None:
    archives, archive, looked = Archives(), module_archive.find(module("copy")), threading.Event()
    assert archive
    for unused in archives.ahead(coming("copy")):
        archives.order(module("copy"), archive, lambda: looked.set() or True)
        break
    assert looked.is_set()


def test_a_module_that_has_come_does_not_wait_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What went ahead of it may have been lost on its way."""
    monkeypatch.setattr(module_archive, "AHEAD_SECONDS", 0.0)
    agent, archives = Agent(), Archives()
    for unused in archives.ahead(coming("copy")):
        agent.send(archives, module("copy"))
        monkeypatch.setattr(module_archive, "AHEAD_SECONDS", 600.0)
        assert agent.send(archives, module("copy")) < 100


def test_a_later_play_has_modules_of_its_own() -> None:
    to_come = Coming()
    for name, play in (("stat", 1), ("copy", 2), ("find", 1), ("file", 2)):
        to_come.add(module(name), play)
    assert [text for unused, text in to_come.all()] == [base64.b64encode(zipped_module(name)) for name in ("copy", "file")]


def test_what_was_used_makes_room_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_archive, "AHEAD", 2)
    agent, archives, to_come = Agent(), Archives(), coming("stat", "copy", "find")
    for order in archives.ahead(to_come):
        agent.keep(**order.arguments)
        archives.sent(order)
    assert not archives.wanting(to_come)
    agent.send(archives, module("stat"))
    assert archives.wanting(to_come)


def test_a_module_does_not_wait_for_what_failed() -> None:
    agent, archives = Agent(), Archives()
    sending = archives.ahead(coming("copy"))
    next(sending)
    sending.close()
    archives.no_more_ahead()
    assert agent.send(archives, module("copy")) > len(BASIC) and not archives.wanting(coming("find"))


def test_no_more_goes_ahead_than_an_agent_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_archive, "AHEAD", 5)
    monkeypatch.setattr(module_archive, "COMING", 8)
    to_come = coming(*map(str, range(20)))
    assert len(to_come.all()) == 8
    archives, count = Archives(), 0
    for order in archives.ahead(to_come):
        count += 1
        archives.sent(order)
    assert count == 5 and not archives.wanting(to_come)


@pytest.mark.parametrize("text", [b"print(1)", b"zip_data='UEsDB" + b"A" * 5000 + b"'", module("x")[:-20]])
def test_what_is_no_module_does_not_go_ahead(text: bytes) -> None:
    to_come = Coming()
    to_come.add(text)
    assert not to_come.all()


def test_what_modules_are_run_by_is_of_the_play_that_is_on() -> None:
    to_come, program, by = Coming(), module("stat"), Likely("/bin/sh -c @interpreter@", ("python3",))
    assert to_come.expected is None
    to_come.add(program, 1, by)
    assert to_come.expected == (*by, program[: program.index(b"UEsDB")])
    to_come.add(b"no module", 1, Likely("another", ()))
    assert to_come.expected is not None and to_come.expected[:2] == by
    to_come.add(b"", 2, by)
    assert to_come.expected is None and not to_come.all(), "another play has begun"
    to_come.add(program, 1, by)
    assert to_come.expected is None and not to_come.all(), "an earlier one's came late"


def test_an_interpreter_is_asked_for_once() -> None:
    archives = Archives()
    assert [archives.ask_interpreter() for unused in range(3)] == [True, False, False]
