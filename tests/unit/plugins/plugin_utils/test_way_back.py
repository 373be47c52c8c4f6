"""The way in once more, beside the last task: it comes as far as a sign-in, and is either taken or released, never both."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import way_back
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_back import WayBack


class Way:
    """Stands for a way in: what was asked of it, what it fails with, and what it waits for."""

    def __init__(self, **failures: Exception) -> None:
        self.target = Target.make("ssh", "::1", host="web1")
        self.events: list[str] = []
        self.failures = failures
        self.open = threading.Event()
        self.open.set()
        self.reached = threading.Event()
        self.released = threading.Event()

    def note(self, event: str) -> None:
        self.events.append(event)
        if event in self.failures:
            raise self.failures[event]

    def resolve(self) -> None:
        self.note("resolve")

    def reach(self) -> None:
        self.reached.set()
        assert self.open.wait(60)
        self.note("reach")

    def release(self) -> None:
        self.note("release")
        self.released.set()


def begin(way: Any) -> WayBack:
    return WayBack(way)


def wait_end(seconds: float = 5) -> None:
    """Until nothing goes on by itself any more: what has not been released by then never will be."""
    for thread in threading.enumerate():
        if thread.name == "way back web1":
            thread.join(seconds)
            assert not thread.is_alive()


@pytest.fixture(autouse=True)
def nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the next test either."""
    yield
    wait_end(60)


def test_what_has_come_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(way_back, "WAIT_SECONDS", 60.0)
    way = Way()
    back = begin(way)
    back._come.wait(60)
    assert way.events == ["resolve", "reach"] and back.there
    assert back.take() is way
    wait_end()
    assert way.events == ["resolve", "reach"], "it is the caller's to release"
    assert not back.there


def test_what_is_on_its_way_is_waited_for() -> None:
    way = Way()
    way.open.clear()
    back = begin(way)
    with ThreadPoolExecutor() as pool:
        taking = pool.submit(back.take)
        try:
            assert way.reached.wait(60) and back.there
            with pytest.raises(TimeoutError):
                taking.result(0.2)
        finally:
            way.open.set()
        assert taking.result(60) is way
    wait_end()
    assert "release" not in way.events


@pytest.mark.parametrize("step", ["resolve", "reach"])
@pytest.mark.parametrize("error", [SojournError("SD-204", port=22, address="::1", seconds=1, service="SSH"), KeyError("garbled")], ids=["ours", "any"])
def test_what_fails_is_released_once_and_is_nobodys(step: str, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """What is in no contract is in the log, with where it came from."""
    way = Way(**{step: error})
    back = begin(way)
    assert back.take() is None and not back.there
    wait_end()
    assert back.take() is None
    assert way.events[-2:] == [step, "release"] and way.events.count("release") == 1
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == ([] if isinstance(error, SojournError) else [True])


def test_what_is_not_taken_in_time_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(way_back, "WAIT_SECONDS", 0.05)
    way = Way()
    back = begin(way)
    assert way.released.wait(60) and not back.there
    assert back.take() is None
    wait_end()
    assert way.events == ["resolve", "reach", "release"]


def test_who_comes_late_for_one_that_comes_late_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time runs from when it has come: who waits for it may have waited for longer than that."""
    monkeypatch.setattr(way_back, "WAIT_SECONDS", 3.0)
    way = Way()
    way.open.clear()
    back = begin(way)
    with ThreadPoolExecutor() as pool:
        taking = pool.submit(back.take)
        opening = threading.Timer(3.5, way.open.set)
        opening.start()
        assert taking.result(60) is way
        opening.join()


def test_what_is_taken_in_the_last_moment_is_not_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody takes it, it is not given up."""
    monkeypatch.setattr(way_back, "WAIT_SECONDS", 0.05)
    way = Way()
    way.open.clear()
    back = begin(way)
    with back._lock:
        way.open.set()
        assert not way.released.wait(0.5)
        back._taken = True
        back._decided.set()
    wait_end()
    assert way.events == ["resolve", "reach"]


def test_it_is_either_taken_or_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the end comes in the very moment in which it is given up."""
    monkeypatch.setattr(way_back, "WAIT_SECONDS", 0.001)
    for number in range(300):
        way = Way()
        back = begin(way)
        if number % 2:
            time.sleep(0.001)
        taken = back.take()
        wait_end()
        assert (taken is None) == (way.events.count("release") == 1), way.events
