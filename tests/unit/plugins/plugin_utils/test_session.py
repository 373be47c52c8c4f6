"""A session with a way in and an agent in memory: one deployment for many, nothing kept after a failure, the lease, jobs, the end."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ansible_collections.sojourn.deploy.plugins.plugin_utils import module_archive, network, way_back
from ansible_collections.sojourn.deploy.plugins.plugin_utils import session as session_module
from ansible_collections.sojourn.deploy.plugins.plugin_utils.broker_client import Likely
from ansible_collections.sojourn.deploy.plugins.plugin_utils.credentials import RunCredentials
from ansible_collections.sojourn.deploy.plugins.plugin_utils.errors import SojournError
from ansible_collections.sojourn.deploy.plugins.plugin_utils.job import Job
from ansible_collections.sojourn.deploy.plugins.plugin_utils.module_archive import Archives
from ansible_collections.sojourn.deploy.plugins.plugin_utils.options import Target
from ansible_collections.sojourn.deploy.plugins.plugin_utils.session import Session
from ansible_collections.sojourn.deploy.plugins.plugin_utils.way_in import AlreadyPlaced, Config, Found, Ready, WayIn

RUN = "0123456789ab"


class Host:
    """A target: what is on it, and what happened."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.fail_at = ""
        self.placed: str | None = None
        self.running = False
        self.found: list[Found] = []
        self.left: SojournError | None = None
        self.calls: dict[str, Callable[..., Any]] = {}
        self.configs: list[Config] = []
        self.boot_id = "b"
        self.reminded = 0

    def way_in(self, target: Target, run: str) -> WayIn:
        return FakeWayIn(self, target, run)

    def channel(self, endpoint: Any, unused_context: Any) -> Any:
        return FakeChannel(self, endpoint)


class FakeWayIn(WayIn):
    def __init__(self, host: Host, target: Target, run: str) -> None:
        super().__init__(target, run)
        self.at = host

    def note(self, event: str) -> None:
        self.at.events.append(event)
        if self.at.fail_at == event:
            raise self.error("SD-903", detail=f"failed at {event}")

    def connect(self) -> None:
        self.peer, self.controller_address = network.Peer(10, ("::1", 22, 0, 0)), "::2"
        self.note("connect")

    def place(self, session: str) -> None:
        self.environment = {"SSH_CONNECTION": f"::2 5 {self.target.address} 22"}
        if self.at.placed is not None:
            raise AlreadyPlaced(self.at.placed)
        self.at.placed = session
        self.note("place")

    def start(self, config: Config) -> Ready:
        self.at.configs.append(config)
        self.note("start")
        self.at.running = True
        return Ready(self.run, 1, 62286, "ab" * 32, "none", "b")

    def undo(self) -> None:
        self.note("undo")
        self.at.placed, self.at.running = None, False

    def rights(self) -> Any:
        return ("root", self.target)

    def remind(self, rights: Any) -> None:
        assert rights in (None, ("root", self.target)), "of the same target, by the same user"
        self.at.reminded += rights is not None

    def wait_removed(self, patience: float = 1.0) -> list[str]:
        self.note("wait_removed")
        self._left = self.at.left
        self.at.placed, self.at.running = None, False
        return ["service x"]

    def find(self) -> list[Found]:
        self.note("find")
        return list(self.at.found)

    def remove_found(self, found: Found) -> None:
        self.note(f"remove {found.kind}")
        if found.kind == "firewall-rule":
            raise self.error("SD-801", what="it", detail="no")

    def release(self) -> None:
        self.note("release")


class FakeChannel:
    def __init__(self, host: Host, endpoint: Any) -> None:
        self.at = host
        self.endpoint = endpoint
        self.closed = False
        self.archives = Archives()
        self.heard = time.monotonic()

    def call(self, operation: str, *, wait: float = 0, patience: float = 0, **arguments: Any) -> Any:
        self.at.events.append(operation)
        if self.at.fail_at == operation:
            raise SojournError("SD-503", step=operation, detail="gone")
        if operation in self.at.calls:
            return self.at.calls[operation](**arguments)
        return {"GetInfo": {"folder": "/tmp/x", "operating_system": "linux", "service_name": "x"}, "Shutdown": 0, "RenewLease": 1.0}.get(operation)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host()
    monkeypatch.setattr(session_module, "make_way_in", host.way_in)
    monkeypatch.setattr(session_module.channel_module, "Channel", host.channel)
    yield host
    # Threads of this test's sessions would go on in the next one, by what that has patched.
    for thread in threading.enumerate():
        if thread.name.startswith(("keeper ", "clearing ")) and (target := getattr(thread, "_target", None)):
            target.__self__._ended.set()
            target.__self__._drop()
            thread.join(10)


CREDENTIALS = RunCredentials.make(RUN)


def make(host: Host, find_other: Callable[[str], Any] = lambda unused: None, token: str = "t", **options: Any) -> Session:
    coming = options.pop("coming", None)
    return Session(Target.make("ssh", "::1", host="web1", **options), RUN, CREDENTIALS, token, find_other, coming=coming)


def test_deploys_once_and_tells_what_it_took(host: Host) -> None:
    session = make(host, lease_seconds=60, agent_ports="5-6")
    assert not session.live
    first = session.deploy()
    assert first["changed"] and set(first["seconds"]) == {"connect", "upload", "start", "first_call"} and session.live
    assert host.events == ["connect", "place", "start", "GetInfo", "release"]
    assert host.configs == [Config(RUN, CREDENTIALS.fingerprint, ["::2"], {"first": 5, "last": 6}, 60.0)]
    second = session.deploy()
    assert not second["changed"] and second["info"] == first["info"] and len(host.events) == 5


def test_many_at_once_deploy_once(host: Host) -> None:
    session = make(host)
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda unused: session.deploy(), range(20)))
    assert sum(result["changed"] for result in results) == 1 and host.events.count("place") == 1


# The transport


class TunnelWayIn(FakeWayIn):
    """One that the firewall, or whoever is in between, keeps from going directly; and that a tunnel is made of."""

    obstacle = ""

    @property
    def alive(self) -> bool:
        return True

    def keep(self) -> None:
        self.note("keep")

    def start(self, config: Config) -> Ready:
        super().start(config)
        if config.transport == "direct":
            if self.obstacle == "SD-603":
                raise self.error("SD-603", detail="a policy")
            return Ready(self.run, 1, 62286, "ab" * 32, "none", "b")
        return Ready(self.run, 1, 62286, "ab" * 32, "none", "b", "::1")


@pytest.fixture
def tunnels(host: Host, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    """Ways in of that kind, with an obstacle; gives the endpoints of the channels that are opened."""
    endpoints: list[Any] = []

    def channel(endpoint: Any, unused_context: Any) -> Any:
        endpoints.append(endpoint)
        opened = FakeChannel(host, endpoint)
        if TunnelWayIn.obstacle == "SD-501" and endpoint.tunnel is None:
            error = SojournError("SD-501", step="reaching the agent", port=62286, address="::1", ports="1", detail="silence")
            opened.call = lambda *unused, **unused_too: (_ for _ in ()).throw(error)  # type: ignore[method-assign]
        return opened

    def lay(obstacle: str) -> list[Any]:
        monkeypatch.setattr(TunnelWayIn, "obstacle", obstacle)
        return endpoints

    monkeypatch.setattr(session_module, "make_way_in", lambda target, run: TunnelWayIn(host, target, run))
    monkeypatch.setattr(session_module.channel_module, "Channel", channel)
    return lay


def test_a_tunnel_keeps_the_way_in_until_the_agent_is_removed(host: Host, tunnels: Callable[[str], list[Any]]) -> None:
    endpoints = tunnels("")
    session = make(host, transport="tunnel")
    session.deploy()
    assert host.events == ["connect", "place", "start", "keep", "GetInfo"]
    assert host.configs[0].transport == "tunnel" and str(endpoints[0].tunnel) == "[::1]:62286"
    assert session._file is not None and session._file.record.tunnel == "::1"
    session.remove()
    assert host.events.count("release") == host.events.count("connect") == 2


def test_a_tunnel_that_leads_to_nothing_takes_all_back(host: Host, tunnels: Callable[[str], list[Any]]) -> None:
    tunnels("")
    host.fail_at = "GetInfo"
    with pytest.raises(SojournError):
        make(host, transport="tunnel").deploy()
    assert host.events[-2:] == ["undo", "release"] and host.events.count("release") == 1 and host.placed is None


def test_auto_is_direct_where_that_works_at_no_cost(host: Host, tunnels: Callable[[str], list[Any]]) -> None:
    """Step by step the same as direct, with one channel."""
    endpoints = tunnels("")
    make(host, transport="auto").deploy()
    assert host.events == ["connect", "place", "start", "GetInfo", "release"]
    assert host.configs[0].transport == "direct" and len(endpoints) == 1 and endpoints[0].tunnel is None


@pytest.mark.parametrize("obstacle", ["SD-501", "SD-603"])
def test_auto_takes_the_direct_agent_back_before_it_goes_by_tunnel(host: Host, tunnels: Callable[[str], list[Any]], obstacle: str) -> None:
    endpoints = tunnels(obstacle)
    session = make(host, transport="auto")
    session.deploy()
    assert host.events == ["connect", "place", "start", "undo", "place", "start", "keep", "GetInfo"]
    assert [config.transport for config in host.configs] == ["direct", "tunnel"]
    assert endpoints[-1].tunnel is not None and session.live
    session.remove()


def test_direct_stays_direct(host: Host, tunnels: Callable[[str], list[Any]]) -> None:
    tunnels("SD-603")
    with pytest.raises(SojournError, match="SD-603"):
        make(host).deploy()
    assert host.events == ["connect", "place", "start", "undo", "release"]


@pytest.mark.parametrize("step", ["connect", "place", "start", "GetInfo"])
def test_after_a_failure_nothing_is_kept(host: Host, step: str) -> None:
    session = make(host)
    host.fail_at = step
    with pytest.raises(SojournError):
        session.deploy()
    assert not session.live and host.events[-1] == "release"
    if step != "connect":
        assert host.events[-2] == "undo" and host.placed is None and not host.running
    host.fail_at = ""
    assert session.deploy()["changed"]


@pytest.mark.parametrize("of_a_dead_run", [False, True])
def test_failures_leave_no_file_open(host: Host, monkeypatch: pytest.MonkeyPatch, of_a_dead_run: bool) -> None:
    """Not even where nothing can be taken back, or where a dead run's session is there."""
    monkeypatch.setattr(session_module, "RECONNECT_PAUSES", (60.0, 60.0))

    def undo(way_in: FakeWayIn) -> None:
        raise way_in.error("SD-801", what="it", detail="the connection is gone")

    if of_a_dead_run:
        dead = make(host)
        dead.deploy()
        dead._file.let_go()
        host.fail_at = "RenewLease"
    session = make(host)
    if of_a_dead_run:
        session.run = "b" * 12
        host.calls["RenewLease"] = host.calls["GetInfo"] = lambda: (_ for _ in ()).throw(SojournError("SD-503", step="x", detail="gone"))
    else:
        host.fail_at = "start"
        monkeypatch.setattr(FakeWayIn, "undo", undo)
    before = len(os.listdir("/proc/self/fd"))
    for unused in range(4):
        with pytest.raises(SojournError):
            session.deploy()
    # Where something may have been left behind, the session's own file is kept.
    assert len(os.listdir("/proc/self/fd")) == before + (not of_a_dead_run)


def test_what_cannot_be_taken_back_for_whatever_reason_is_cleared_away_later(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """An undoing that fails with what is in no contract, as libraries do with what a target garbles; the user sees why the deployment failed."""
    monkeypatch.setattr(session_module, "RECONNECT_PAUSES", (60.0, 60.0))

    def undo(unused: FakeWayIn) -> None:
        raise KeyError("garbled")

    session = make(host)
    host.fail_at = "start"
    with monkeypatch.context() as patch:
        patch.setattr(FakeWayIn, "undo", undo)
        with pytest.raises(SojournError, match="failed at start"):
            session.deploy()
    host.fail_at = ""
    assert host.placed is not None
    assert session.end(lambda event, **unused: None)["removed"] == ["service x"]
    assert host.placed is None and not session.live


def test_the_address_that_the_user_gives_is_the_one_admitted(host: Host) -> None:
    make(host, controller_address="2001:db8::9").deploy()
    assert host.configs[0].controller_addresses == ["2001:db8::9"]


def test_a_second_name_joins_the_first(host: Host) -> None:
    sessions: dict[str, Session] = {}
    first, second = (make(host, sessions.get, token) for token in ("one", "two"))
    sessions.update(one=first, two=second)
    first.deploy()
    assert not second.deploy()["changed"] and second.live
    assert host.events.count("start") == 1
    assert second.remove()["changed"] and not first.live and not second.live


def test_an_own_agent_that_died_is_cleared_away(host: Host) -> None:
    host.placed = "of a session that nobody knows any more"
    assert make(host).deploy()["changed"]
    assert host.events[:6] == ["connect", "find", "wait_removed", "place", "start", "GetInfo"]


def test_an_own_agent_that_waits_for_an_installation_is_spared(host: Host) -> None:
    """It does not answer, for whatever reason; it ends by itself."""
    session = make(host)
    session.deploy()
    host.found = [Found("folder", f"sojourn-{RUN}", RUN, live=True)]
    with pytest.raises(SojournError, match="SD-801"):
        session._deploy_once()
    assert "wait_removed" not in host.events and host.events.count("place") == 1
    assert session._file is not None and session._file.record.peer is not None, "it can be taken over still"


def test_a_lost_agent_is_deployed_anew(host: Host) -> None:
    session = make(host)
    session.deploy()
    session._recover = lambda channel: None  # type: ignore[method-assign]  # the keeper's tries would be beside the caller's
    host.fail_at = "Stat"
    with pytest.raises(SojournError):
        session.call("Stat", Path="/")
    assert not session.live or host.events.count("place") == 2

    def gone(**unused: Any) -> None:
        raise SojournError("SD-503", detail="gone")

    host.calls["RenewLease"] = gone
    host.fail_at, host.placed = "", None
    session._lose(session._channel)
    session.call("Stat", Path="/")
    assert session.live and host.events.count("place") >= 2


def test_the_lease_is_renewed_in_time(host: Host) -> None:
    session = make(host, lease_seconds=2)
    session.deploy()
    deadline = time.monotonic() + 60
    while host.events.count("RenewLease") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    session.remove()
    count = host.events.count("RenewLease")
    time.sleep(0.7)
    assert host.events.count("RenewLease") == count


def test_removing(host: Host) -> None:
    session = make(host)
    assert session.remove() == {"changed": False, "removed": []} and host.events == []
    session.deploy()
    host.events.clear()
    assert session.remove() == {"changed": True, "removed": ["service x"]}
    assert sorted(host.events) == ["Shutdown", "connect", "release", "wait_removed"]
    assert host.reminded == 1
    assert not session.live
    assert session.remove()["changed"] is False


def test_removing_an_agent_that_is_gone_looks_all_the_same(host: Host) -> None:
    session = make(host)
    session.deploy()
    host.fail_at = "Shutdown"
    assert session.remove()["changed"] and host.placed is None


def test_an_agent_that_was_killed_leaves_no_rule(host: Host) -> None:
    session = make(host)
    host.calls["GetInfo"] = lambda: {"folder": "/tmp/x", "operating_system": "linux", "service_name": "x", "firewall_rule": f"sojourn-{RUN}"}
    session.deploy()
    host.events.clear()
    host.fail_at = "Shutdown"
    host.left = SojournError("SD-801", what="The agent", detail="it did not remove itself")
    assert session.end(lambda *unused, **fields: None)["removed"] == ["service x", f"firewall rule sojourn-{RUN}"]
    assert host.events[-7:] == ["wait_removed", "connect", "place", "start", "undo", "release", "release"]
    assert host.placed is None and not host.running


def test_a_rule_that_could_not_be_taken_back_is_told(host: Host) -> None:
    session = make(host)
    host.calls["GetInfo"] = lambda: {"folder": "/tmp/x", "operating_system": "linux", "service_name": "x", "firewall_rule": f"sojourn-{RUN}"}
    session.deploy()
    host.left = SojournError("SD-801", what="The agent", detail="it did not remove itself")

    def gone() -> None:
        host.fail_at = "start"
        raise SojournError("SD-503", step="Shutdown", detail="gone")

    host.calls["Shutdown"] = gone
    with pytest.raises(SojournError) as caught:
        session.remove()
    assert caught.value.code == "SD-801" and f"firewall rule sojourn-{RUN}" in caught.value.sentence
    assert host.events[-4:] == ["start", "undo", "release", "release"] and host.placed is None


@pytest.mark.parametrize("recovers", [True, False])
def test_a_rule_that_the_agent_could_not_close_is_closed_by_another_or_told(host: Host, monkeypatch: pytest.MonkeyPatch, recovers: bool) -> None:
    session = make(host)
    rule = f"sojourn-{RUN}"
    host.calls["GetInfo"] = lambda: {"folder": "/tmp/x", "operating_system": "linux", "service_name": "x", "firewall_rule": rule}
    session.deploy()
    host.left = SojournError("SD-801", what=f"The firewall rule {rule}", detail="nft ended with exit status 1: busy")
    host.events.clear()
    if recovers:
        assert session.remove()["removed"] == ["service x", f"firewall rule {rule}"]
        assert host.configs[-1].controller_addresses == [], "it opens nothing that it would have to close"
    else:
        def start(way_in: WayIn, unused: Config) -> Ready:
            raise way_in.error("SD-603", detail="nft ended with exit status 1: still busy")

        monkeypatch.setattr(FakeWayIn, "start", start)
        with pytest.raises(SojournError) as caught:
            session.remove()
        assert caught.value.code == "SD-801"
        assert caught.value.sentence == f"The firewall rule {rule} could not be removed from the target: nft ended with exit status 1: still busy."
    assert host.events.index("wait_removed") < host.events.index("place") < host.events.index("undo")
    assert host.placed is None and not host.running and not session.live


def test_a_rule_that_stays_after_a_failed_deployment_is_tried_again_at_the_end(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody was told of a rule, as no agent was ever established; undoing its start said so."""
    monkeypatch.setattr(session_module, "RECONNECT_PAUSES", (60.0, 60.0))
    session = make(host)
    host.fail_at = "GetInfo"
    undo = FakeWayIn.undo

    def undo_and_tell(way_in: FakeWayIn) -> None:
        undo(way_in)
        raise way_in.error("SD-801", what=f"The firewall rule sojourn-{RUN}", detail="busy")

    monkeypatch.setattr(FakeWayIn, "undo", undo_and_tell)
    with pytest.raises(SojournError):
        session.deploy()
    host.fail_at = ""
    told: list[str] = []
    with pytest.raises(SojournError, match="SD-801") as caught:
        session.end(lambda event, **unused: told.append(event))
    assert f"The firewall rule sojourn-{RUN}" in caught.value.sentence and caught.value.fields["detail"] == "busy" and told == []
    monkeypatch.setattr(FakeWayIn, "undo", undo)
    assert f"firewall rule sojourn-{RUN}" in session.end(lambda event, **unused: None)["removed"]


def test_what_an_agents_file_says() -> None:
    way_in = FakeWayIn(Host(), Target.make("ssh", "::1", host="web1"), RUN)
    assert way_in.left() is None and way_in._left_of(None) is None
    told = way_in._left_of(b'{"error": {"code": "SD-801", "fields": {"what": "The firewall rule sojourn-x", "detail": "nft \\u003e 1"}}}')
    assert told and told.sentence == "The firewall rule sojourn-x could not be removed from the target: nft > 1." and told.host == "web1"
    for nonsense in (b"", b"{", b"[]", b'{"error": null}'):
        error = way_in._left_of(nonsense)
        assert error and error.code == "SD-801" and "it did not remove itself" in error.sentence


def test_removing_waits_for_what_must_not_be_interrupted(host: Host) -> None:
    session = make(host)
    session.deploy()
    host.calls["Shutdown"] = lambda: 1
    left = [3]

    def info() -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise SojournError("SD-503", step="x", detail="gone")

    host.calls["GetInfo"] = info
    session.remove()
    assert left[0] == -1


def test_an_agent_that_does_not_answer_while_it_waits_is_asked_again(host: Host) -> None:
    session = make(host)
    session.deploy()
    host.calls["Shutdown"] = lambda: 1
    host.found = [Found("service", f"sojourn-{RUN}", RUN, True)]
    left = [3]

    def info() -> Any:
        left[0] -= 1
        if left[0] < 0:
            host.found = []
        raise SojournError("SD-501", step="x", detail="timed out")

    host.calls["GetInfo"] = info
    session.remove()
    assert left[0] == -1


def test_removing_goes_in_with_what_got_the_agent_in(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make(host, password="first")
    session.deploy()
    tried: list[str | None] = []
    right = ["first"]

    def way_in(target: Target, run: str) -> WayIn:
        made = FakeWayIn(host, target, run)

        def connect() -> None:
            tried.append(target.password)
            if target.password not in right:
                raise made.error("SD-301", user="root", detail="wrong password")
            FakeWayIn.connect(made)

        made.connect = connect
        return made

    monkeypatch.setattr(session_module, "make_way_in", way_in)
    session.target = Target.make("ssh", "::1", host="web1", password="second")
    assert session.remove()["changed"] and tried == ["first"]
    session.target = Target.make("ssh", "::1", host="web1", password="first")
    session.deploy()
    tried.clear()
    right[:] = ["second"]
    session.target = Target.make("ssh", "::1", host="web1", password="second")
    host.reminded = 0
    assert session.remove()["changed"] and tried == ["first", "second"]
    assert host.reminded == 1, "only who went in with that"
    right[:] = ["first"]
    session.target = Target.make("ssh", "::1", host="web1", password="first")
    session.deploy()
    right[:] = []
    with pytest.raises(SojournError, match="SD-301"):
        session.remove()


# The end is near


class StepwiseWayIn(TunnelWayIn):
    """One that comes to its sign-in step by step, and may be left waiting before it. Who signs in, and by which password, is noted."""

    bears_waiting = True
    #: Errors that sign-ins come to, one each.
    refusals: list[str]
    signed_in: list[str | None]
    made: list[StepwiseWayIn]
    #: Whether the connection is there after such an error.
    stays = True
    signed_in_here = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: What it was told of silence, and whether it had signed in by then.
        self.soon: list[tuple[bool, bool]] = []

    connect = WayIn.connect

    @property
    def alive(self) -> bool:
        return self.stays

    def notice_silence(self, *, soon: bool) -> None:
        self.soon.append((soon, self.signed_in_here))

    def resolve(self) -> None:
        self.note("resolve")

    def reach(self) -> None:
        self.peer, self.controller_address = network.Peer(10, ("::1", 22, 0, 0)), "::2"
        self.note("reach")

    def admit(self) -> None:
        self.note("admit")

    def sign_in(self) -> None:
        self.signed_in_here = True
        self.signed_in.append(self.target.password)
        self.note("sign_in")
        if self.refusals:
            raise self.error(self.refusals.pop(0), user="root", address="::1", detail="for a reason")

@pytest.fixture
def stepwise(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StepwiseWayIn]]:
    """Ways in of that kind; afterwards all of them have been released, each once."""
    made: list[StepwiseWayIn] = []

    class Way(StepwiseWayIn):
        refusals: list[str] = []
        signed_in: list[str | None] = []
        releases = 0

        def release(self) -> None:
            self.releases += 1
            super().release()

    def way_in(target: Target, run: str) -> WayIn:
        made.append(Way(host, target, run))
        return made[-1]

    Way.made = made
    monkeypatch.setattr(way_back, "WAIT_SECONDS", 60.0)
    monkeypatch.setattr(session_module, "make_way_in", way_in)
    yield Way
    settle()
    # One that was made only to be asked what it bears has nothing to release.
    assert all(way.releases == 1 for way in made if way.peer is not None)


def settle() -> None:
    """Until nothing that was begun goes on by itself."""
    for thread in threading.enumerate():
        if thread.name.startswith("way back "):
            thread.join(60)
            assert not thread.is_alive()


IN_AGAIN = ["resolve", "reach", "admit", "sign_in"]


def near_its_end(host: Host, **options: Any) -> Session:
    """A session whose end is expected, and what was begun for that has come."""
    session = make(host, **options)
    session.deploy()
    host.events.clear()
    host.reminded = 0
    session.expect_end()
    assert session._way_back is not None
    session._way_back._come.wait(60)
    return session


def ways_in(host: Host) -> list[str]:
    """What ways in did, without what the agent was asked beside them."""
    return [event for event in host.events if event in (*IN_AGAIN, "wait_removed", "release")]


def test_the_end_takes_what_was_begun_for_it(host: Host, stepwise: type[StepwiseWayIn]) -> None:
    """It goes no further than to the sign-in by itself; all in all it is the same as without."""
    session = near_its_end(host)
    assert host.events == ["resolve", "reach"]
    assert session.end(lambda *unused, **fields: None) == {"changed": True, "removed": ["service x"]}
    settle()
    assert ways_in(host) == [*IN_AGAIN, "wait_removed", "release"] and host.reminded == 1 and not session.live


def test_the_end_waits_for_what_is_on_its_way(host: Host, stepwise: type[StepwiseWayIn], monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection of its own would be no quicker."""
    session = make(host)
    session.deploy()
    host.events.clear()
    going, reach = threading.Event(), StepwiseWayIn.reach

    def reach_late(way_in: StepwiseWayIn) -> None:
        assert going.wait(60)
        reach(way_in)

    monkeypatch.setattr(stepwise, "reach", reach_late)
    # The agent has been told by the time at which the way in is there.
    host.calls["Shutdown"] = lambda: (going.set(), 0)[1]
    session.expect_end()
    assert session.remove()["changed"] and ways_in(host) == [*IN_AGAIN, "wait_removed", "release"]


def test_what_was_begun_is_begun_once(host: Host, stepwise: type[StepwiseWayIn], monkeypatch: pytest.MonkeyPatch) -> None:
    """But once it has been given up it is begun again."""
    session = near_its_end(host)
    session.expect_end()
    assert session.remove()["changed"] and host.events.count("reach") == 1
    monkeypatch.setattr(way_back, "WAIT_SECONDS", 0.02)
    session = near_its_end(host)
    settle()
    assert host.events == ["resolve", "reach", "release"]
    session.expect_end()
    settle()
    assert host.events == ["resolve", "reach", "release"] * 2
    assert session.remove()["changed"] and ways_in(host)[6:] == [*IN_AGAIN, "wait_removed", "release"]


@pytest.mark.parametrize("code", ["SD-205", "SD-204"])
def test_what_the_target_has_closed_meanwhile_is_made_anew(
    host: Host, stepwise: type[StepwiseWayIn], monkeypatch: pytest.MonkeyPatch, code: str,
) -> None:  # fmt: skip
    session = near_its_end(host)
    stepwise.refusals.append(code)
    monkeypatch.setattr(stepwise, "stays", False)
    assert session.remove() == {"changed": True, "removed": ["service x"]}
    assert ways_in(host) == [*IN_AGAIN, "release", *IN_AGAIN, "wait_removed", "release"], "one at a time: a service may let in only so many"
    assert host.reminded == 2, "each for itself"
    assert [way.soon for way in stepwise.made[-2:]] == [[(True, False)], []]


def test_what_could_not_be_begun_is_made_at_the_end(host: Host, stepwise: type[StepwiseWayIn]) -> None:
    session = make(host)
    session.deploy()
    host.events.clear()
    host.fail_at = "reach"
    session.expect_end()
    settle()
    assert host.events == ["resolve", "reach", "release"]
    host.fail_at = ""
    assert session.remove()["changed"] and ways_in(host)[3:] == [*IN_AGAIN, "wait_removed", "release"]


def test_a_sign_in_that_is_refused_is_not_tried_again(host: Host, stepwise: type[StepwiseWayIn]) -> None:
    """Each try counts, where accounts are locked."""
    session = near_its_end(host, password="first")
    stepwise.signed_in.clear()
    stepwise.refusals.append("SD-301")
    with pytest.raises(SojournError, match="SD-301"):
        session.remove()
    assert stepwise.signed_in == ["first"] and ways_in(host) == [*IN_AGAIN, "release"]


@pytest.mark.parametrize(("code", "stays"), [("SD-205", True), ("SD-301", True), ("SD-301", False)])
def test_a_sign_in_that_may_still_be_answered_is_not_begun_twice(
    host: Host, stepwise: type[StepwiseWayIn], monkeypatch: pytest.MonkeyPatch, code: str, stays: bool,
) -> None:  # fmt: skip
    """It may be waiting for somebody's telephone; and who refuses may hang up."""
    session = near_its_end(host, password="first")
    stepwise.signed_in.clear()
    stepwise.refusals.append(code)
    monkeypatch.setattr(stepwise, "stays", stays)
    with pytest.raises(SojournError, match=code):
        session.remove()
    assert stepwise.signed_in == ["first"]


def test_silence_counts_until_the_sign_in_only(host: Host, stepwise: type[StepwiseWayIn]) -> None:
    session = near_its_end(host)
    assert session.remove()["changed"] and stepwise.made[-1].soon == [(True, False), (False, True)]


def test_what_an_end_expects_is_given_up_where_the_agent_is_lost(host: Host, stepwise: type[StepwiseWayIn]) -> None:
    """It is in the way of who looks for that: a service may let in only so many."""
    session = near_its_end(host)
    session._lose(session._channel)
    settle()
    assert ways_in(host)[-1] == "release" and session._way_back is not None and not session._way_back.there


def test_a_password_that_the_run_has_changed_is_tried_by_a_connection_of_its_own(host: Host, stepwise: type[StepwiseWayIn]) -> None:
    session = near_its_end(host, password="first")
    stepwise.signed_in.clear()
    stepwise.refusals.append("SD-301")
    session.target = Target.make("ssh", "::1", host="web1", password="second")
    assert session.remove()["changed"] and stepwise.signed_in == ["first", "second"]
    assert ways_in(host) == [*IN_AGAIN, *IN_AGAIN, "wait_removed", "release", "release"] and host.reminded == 1, "only who went in with that"


@pytest.mark.parametrize("proven", [True, False], ids=["deployed anew", "only asked for"])
def test_what_was_begun_by_options_that_are_others_now_is_released(host: Host, stepwise: type[StepwiseWayIn], proven: bool) -> None:
    """What got the agent in decides, not what the last task's options were."""
    session = near_its_end(host, password="first")
    changed = Target.make("ssh", "::1", host="web1", password="second")
    if proven:
        session._proven, session._rights = changed, None
    session.deploy(changed)
    host.events.clear()
    stepwise.signed_in.clear()
    assert session.remove()["changed"] and stepwise.signed_in == ["second" if proven else "first"]
    assert ways_in(host) == ([*IN_AGAIN, "wait_removed", "release", "release"] if proven else ["admit", "sign_in", "wait_removed", "release"])


@pytest.mark.parametrize("why", ["tunnel", "not borne", "no agent", "lost", "ended", "removed"])
def test_nothing_is_begun_where_it_is_of_no_use(host: Host, stepwise: type[StepwiseWayIn], monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    if why == "not borne":
        monkeypatch.setattr(stepwise, "bears_waiting", False)
    session = make(host, transport="tunnel" if why == "tunnel" else "direct")
    if why != "no agent":
        session.deploy()
    if why == "lost":
        session._recover = lambda channel: None  # type: ignore[method-assign]
        host.calls["RenewLease"] = lambda **unused: (_ for _ in ()).throw(SojournError("SD-503", detail="gone"))
        session._lose(session._channel)
    elif why == "ended":
        session._ended.set()
    elif why == "removed":
        session.remove()
    host.events.clear()
    session.expect_end()
    assert session._way_back is None and "reach" not in host.events
    host.calls.pop("RenewLease", None)
    session.end(lambda *unused, **fields: None)
    settle()


def test_of_a_target_with_two_names_it_is_begun_once(host: Host, stepwise: type[StepwiseWayIn]) -> None:
    sessions: dict[str, Session] = {}
    first, second = (make(host, sessions.get, token) for token in ("one", "two"))
    sessions.update(one=first, two=second)
    first.deploy()
    second.deploy()
    second.expect_end()
    assert second._way_back is None and second.live
    first.expect_end()
    host.events.clear()
    assert second.remove()["changed"] and first._way_back is None and host.events.count("sign_in") == 1
    settle()


# Jobs


def execution(out: bytes = b"", err: bytes = b"", at: tuple[int, int] = (0, 0), **more: Any) -> dict[str, Any]:
    return {
        "handle": "7", "running": False, "exit_code": 0, "timed_out": False, "seconds": 1.0, "standard_output_offset": at[0], "standard_output": out,
        "standard_error_offset": at[1], "standard_error": err, **more,
    }  # fmt: skip


def run(session: Session, job: Job | None = None, **arguments: Any) -> tuple[dict[str, Any], list[tuple[str, bytes]]]:
    seen: list[tuple[str, bytes]] = []
    return session.execute(arguments, arguments.pop("data", None), lambda stream, data: seen.append((stream, data)), job or Job()), seen


def test_output_is_passed_on_once_even_if_it_comes_twice(host: Host) -> None:
    session = make(host)
    answers = [execution(b"lo w", at=(3, 0)), execution(b"world", b"e", at=(6, 0), exit_code=3)]

    def read(StandardOutputOffset: int, **unused: Any) -> Any:
        return {**answers.pop(0), "running": bool(answers)}

    host.calls["Execute"] = lambda **unused: execution(b"hello", running=True, exit_code=None)
    host.calls["ReadOutput"] = read
    result, seen = run(session, command_line="x")
    assert b"".join(data for stream, data in seen if stream == "stdout") == b"hello world"
    assert result == {"exit_code": 3, "timed_out": False, "seconds": 1.0}


def test_an_ended_process_is_released_with_the_next_command(host: Host) -> None:
    """A request for each would cost more than most commands do."""
    asked: list[Any] = []
    host.calls["Execute"] = lambda **arguments: asked.append((arguments["Handle"], arguments["Release"])) or execution()
    session = make(host)
    for _number in range(3):
        run(session, command_line="x")
    handles = [handle for handle, _released in asked]
    assert [released for _handle, released in asked] == [None, handles[:1], handles[1:2]]
    assert "Release" not in host.events


def test_a_run_that_ends_before_a_process_begins_still_ends_its_agent(host: Host) -> None:
    """What is refused then is no word about the agent: taken for lost, it would stay until its lease is over."""
    session = make(host)
    session.deploy()
    session._ended.set()
    with pytest.raises(SojournError, match=r"the run has ended.*\(SD-503\)"):
        run(session, command_line="x")
    assert "Execute" not in host.events
    assert session.end(lambda *unused, **unused_fields: None)["changed"] and "Shutdown" in host.events


def test_what_an_order_was_to_release_is_not_forgotten_with_it(host: Host) -> None:
    asked: list[Any] = []

    def execute(**arguments: Any) -> Any:
        asked.append((arguments["Handle"], arguments["Release"]))
        if len(asked) == 2:
            raise SojournError("SD-701", program="x", detail="there is none")
        return execution()

    host.calls["Execute"] = execute
    session = make(host)
    run(session, command_line="x")
    with pytest.raises(SojournError, match="SD-701"):
        run(session, command_line="y")
    run(session, command_line="x")
    assert [released for _handle, released in asked] == [None, [asked[0][0]], [asked[0][0]]]


@pytest.mark.parametrize(
    ("job", "output", "number"),
    [
        (Job(finish=True, package="tool"), b"", 1), (Job(), bytes(session_module.RELEASE_AT_ONCE_BYTES + 1), 1),
        (Job(), b"", session_module.RELEASE_WITH_NEXT + 1),
    ],
    ids=["installation", "much output", "too many"],
)
def test_what_must_not_be_kept_is_released_at_once(host: Host, job: Job, output: bytes, number: int) -> None:
    """Another run would take a result that it finds for one that nobody has heard of; and memory is the target's."""
    released: list[str] = []
    all_released = threading.Event()

    def release(Handle: str, **unused: Any) -> None:
        released.append(Handle)
        if len(released) == number:
            all_released.set()

    host.calls["Execute"] = lambda **unused: execution(output)
    host.calls["Release"] = release
    session = make(host)
    session.deploy()
    with session._wake:
        session._released = [str(number) for number in range(number - 1)]
    session._take_released = list  # type: ignore[method-assign]
    run(session, job, command_line="x")
    assert all_released.wait(10) and job.handle in released


def test_output_without_end_ends_the_command(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is held in memory. An installation is not ended for what it says, only listened to no more."""
    monkeypatch.setattr(session_module, "MAXIMUM_OUTPUT", 10)
    killed = threading.Event()
    host.calls["Execute"] = lambda **unused: execution(b"0123456789", running=True, exit_code=None)
    host.calls["ReadOutput"] = lambda StandardOutputOffset, **unused: execution(b"01234", at=(StandardOutputOffset, 0), running=StandardOutputOffset < 40)
    host.calls["Signal"] = lambda **unused: killed.set()
    session = make(host)
    with pytest.raises(SojournError, match="to standard output") as caught:
        run(session, command_line="x")
    assert caught.value.code == "SD-714" and killed.is_set()
    killed.clear()
    result, seen = run(session, Job(finish=True, package="tool"), command_line="x")
    assert result["exit_code"] == 0 and seen == [("stdout", b"0123456789")] and not killed.is_set()


def test_a_modules_archive_goes_once(host: Host) -> None:
    session = make(host)
    archive = base64.b64encode(b"PK\x03\x04" + bytes(6000))
    module = b"zip_data='%s', params='%d'"
    kept, came = set(), []

    def execute(Input: bytes, Archive: str | None = None, ArchiveOffset: int = 0, **unused: Any) -> Any:
        came.append(len(Input))
        if Archive is not None:
            if Archive not in kept:
                raise SojournError("SD-713", archive=Archive)
            Input = Input[:ArchiveOffset] + archive + Input[ArchiveOffset:]
        kept.add(hashlib.sha256(archive).hexdigest())
        return execution(Input)

    host.calls["Execute"] = execute
    for number in range(3):
        data = module % (archive, number)
        assert run(session, command_line="python3", warm=True, data=data)[1] == [("stdout", data)]
    assert came[0] > len(archive) > came[1] == came[2]
    kept.clear()  # the agent has too many others by now
    came.clear()
    for number in range(3):
        data = module % (archive, number)
        assert run(session, command_line="python3", warm=True, data=data)[1] == [("stdout", data)]
    assert came[0] < len(archive) < came[1] == came[2] == came[3]  # not asked again


def packed(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for file, content in (("basic", "#" * 5000), (f"modules/{name}", name)):
            archive.writestr(zipfile.ZipInfo(f"ansible/{file}.py"), content)  # made at any time it is the same
    return b"zip_data='%s'" % base64.b64encode(stream.getvalue())


@pytest.mark.parametrize("wrong", ["", "SD-504", "SD-503", "bug"])
def test_modules_are_sent_ahead_once_one_has_run(host: Host, wrong: str) -> None:
    """What goes wrong with that is of no consequence to tasks."""
    coming = module_archive.Coming()
    for name in ("stat", "copy", "find"):
        coming.add(packed(name))
    session = make(host, coming=coming)
    kept: list[str] = []
    all_kept = threading.Event()

    def keep(Archive: str, **unused: Any) -> None:
        kept.append(Archive)
        if wrong == "bug":
            raise ValueError("not foreseen")
        if wrong:
            raise SojournError(wrong, detail="no")
        if len(kept) == 2:
            all_kept.set()

    sizes: list[int] = []
    host.calls["KeepArchive"] = keep
    host.calls["Execute"] = lambda Input=b"", **unused: sizes.append(len(Input or b"")) or execution(b"done")
    run(session, command_line="true")
    assert not kept, "nothing says that this target is to run modules"
    for name in ("stat", "copy", "find"):
        assert run(session, command_line="python3", warm=True, data=packed(name))[1] == [("stdout", b"done")]
        if name == "stat" and not wrong:
            assert all_kept.wait(60)
        for thread in threading.enumerate():
            if thread.name.startswith("ahead"):
                thread.join(60)
    assert len(kept) == (1 if wrong else 2)
    assert (max(sizes[-2:]) > 100) == bool(wrong)


def test_what_is_known_to_come_only_later_goes_ahead_with_any_command(host: Host) -> None:
    """They are packed beside the first tasks, of which there may be few with modules."""
    coming = module_archive.Coming()
    session = make(host, coming=coming)
    kept = threading.Event()
    host.calls["KeepArchive"] = lambda **unused: kept.set()
    host.calls["Execute"] = lambda **unused: execution(b"done")
    run(session, command_line="python3", warm=True, data=packed("stat"))
    run(session, command_line="true")
    assert not kept.is_set()
    coming.add(packed("copy"))
    run(session, command_line="true")
    assert kept.wait(60)


@pytest.mark.parametrize("foreseen", ["", "nothing", "wrong", "for no task", "on Windows"])
def test_an_interpreter_is_ready_before_the_first_module(host: Host, foreseen: str) -> None:
    """Where it is known by what modules will come, a task's first command is enough."""
    coming = module_archive.Coming()
    for name in ("stat", "copy"):
        coming.add(b"begins " + packed(name), by=None if foreseen == "nothing" else Likely("/bin/sh -c @interpreter@", ("python3", "/a/b")))
    session = make(host, coming=coming)
    if foreseen == "on Windows":
        host.calls["GetInfo"] = lambda: {"folder": "C:/x", "operating_system": "windows", "service_name": "x"}
    asked: list[tuple[str, dict[str, Any]]] = []

    def prepare(**arguments: Any) -> None:
        asked.append(("PrepareInterpreter", arguments))
        if foreseen == "wrong":
            raise SojournError("SD-505", detail="no")

    host.calls["PrepareInterpreter"] = prepare
    host.calls["KeepArchive"] = lambda **arguments: asked.append(("KeepArchive", arguments))
    host.calls["Execute"] = lambda **unused: execution(b"done")
    for unused in range(2):
        run(session, command_line="true", before_modules=foreseen != "for no task")
        for thread in threading.enumerate():
            if thread.name.startswith("ahead"):
                thread.join(60)
    if foreseen in ("nothing", "for no task", "on Windows"):
        assert not asked
        return
    assert asked[0] == ("PrepareInterpreter", {"CommandLine": "/bin/sh -c @interpreter@", "Interpreter": ["python3", "/a/b"],
                                               "User": "root", "Beginning": b"begins zip_data='",
                                               "Environment": [{"Name": "SSH_CONNECTION", "Value": "::2 5 ::1 22"}]})  # fmt: skip
    assert [name for name, unused in asked[1:]] == ([] if foreseen == "wrong" else ["KeepArchive"] * 2)


@pytest.mark.parametrize("gone", ["caller", "run"])
def test_a_module_that_waits_for_its_archive_is_not_begun_for_nobody(host: Host, gone: str) -> None:
    watched = threading.Event()
    coming, job = module_archive.Coming(), Job(on_watch=watched.set)
    for name in ("stat", "copy"):
        coming.add(packed(name))
    session = make(host, coming=coming)
    under_way, over = threading.Event(), threading.Event()
    host.calls["KeepArchive"] = lambda **unused: under_way.set() or over.wait(60)
    host.calls["Execute"] = lambda **unused: execution(b"done")
    run(session, command_line="python3", warm=True, data=packed("stat"))
    assert under_way.wait(60)
    before = host.events.count("Execute")
    threading.Timer(0.2, job.cancel if gone == "caller" else session._ended.set).start()
    try:
        with pytest.raises((session_module.Cancelled, SojournError)):
            run(session, job, command_line="python3", warm=True, data=packed("copy"))
        assert host.events.count("Execute") == before and watched.is_set()
    finally:
        over.set()


def test_a_caller_that_goes_away_kills(host: Host) -> None:
    session = make(host)
    job, killed = Job(), threading.Event()
    host.calls["Execute"] = lambda **unused: execution(running=True)
    host.calls["Signal"] = lambda **arguments: (arguments == {"Handle": job.handle, "Name": "kill", "Tree": True}) and killed.set()
    host.calls["ReadOutput"] = lambda **unused: execution(running=not killed.wait(60), exit_code=137)
    threading.Timer(0.2, job.cancel).start()
    assert run(session, job, command_line="x")[0]["exit_code"] == 137
    assert host.events.count("Signal") == 1
    job.cancel()
    assert host.events.count("Signal") == 1


def test_an_installation_finishes_without_its_caller(host: Host) -> None:
    session = make(host)
    ends: list[Any] = []
    job = Job(finish=True, package="tool", on_end=lambda end, heard: ends.append((end, heard)))
    going, done = threading.Event(), threading.Event()
    host.calls["Execute"] = lambda **unused: execution(running=True)
    host.calls["ReadOutput"] = lambda **unused: (going.set(), execution(b"late", running=not done.wait(60), exit_code=3))[1]
    with ThreadPoolExecutor() as pool:
        result = pool.submit(run, session, job, command_line="x")
        assert going.wait(60)
        told: list[Any] = []
        ended = pool.submit(session.end, lambda event, **fields: (told.append((event, fields)), done.set()))
        assert result.result(60)[0]["exit_code"] == 3 and result.result()[1] == []
        assert ended.result(60)["changed"]
    assert told == [("waiting", {"package": "tool"})] and ends == [({"exit_code": 3, "timed_out": False, "seconds": 1.0}, False)]
    assert "Signal" not in host.events and host.placed is None
    assert host.events.index("Shutdown") > max(number for number, event in enumerate(host.events) if event == "ReadOutput")


def test_a_process_that_is_no_installation_does_not(host: Host) -> None:
    session = make(host)
    killed = threading.Event()
    host.calls["Execute"] = lambda **unused: execution(running=True)
    host.calls["Signal"] = lambda **unused: killed.set()
    host.calls["ReadOutput"] = lambda **unused: execution(running=not killed.wait(60), exit_code=137)
    with ThreadPoolExecutor() as pool:
        result = pool.submit(run, session, Job(), command_line="x")
        while "ReadOutput" not in host.events:
            killed.wait(0.01)
        session.end(lambda *unused, **fields: None)
        assert result.result(60)[0]["exit_code"] == 137


def test_a_caller_that_was_gone_before_there_was_a_process(host: Host) -> None:
    session = make(host)
    session.deploy()
    job = Job()
    job.cancel()
    with pytest.raises(session_module.Cancelled):
        run(session, job, command_line="x")
    assert "Execute" not in host.events


def test_a_caller_that_goes_as_its_process_begins(host: Host) -> None:
    session = make(host)
    job = Job()
    host.calls["Execute"] = lambda **unused: (job.cancel(), execution(running=True))[1]
    host.calls["ReadOutput"] = lambda **unused: execution()
    result, seen = run(session, job, command_line="x")
    assert "Signal" in host.events and seen == []


def test_a_caller_that_goes_while_the_agent_is_put_there(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks for it where the agent is at hand, which is quicker; but wherever that may take long."""
    session, watched = make(host), []
    host.calls["Execute"] = lambda **unused: execution()
    run(session, Job(on_watch=lambda: watched.append("first")), command_line="x")
    run(session, Job(on_watch=lambda: watched.append("at hand")), command_line="x")
    assert watched == ["first"]
    with ThreadPoolExecutor() as pool:
        assert session._at_hand()
        with session._lock:
            assert not pool.submit(session._at_hand).result(60), "somebody puts it there, or removes it"
    host.calls["Execute"] = lambda **unused: execution(running=True)
    host.calls["ReadOutput"] = lambda **unused: execution()
    run(session, Job(on_watch=lambda: watched.append("long")), command_line="x")
    assert watched == ["first", "long"]
    monkeypatch.setattr(session_module, "RECONNECT_PAUSES", (0.01, 0.01))
    monkeypatch.setattr(session, "_recover", lambda channel: None)  # the keeper's tries would be beside the caller's
    session._lose(session._channel)
    host.events.clear()
    host.fail_at = "RenewLease"
    placed, caller = [], threading.current_thread().name

    def way_in(target: Target, run: str) -> WayIn:
        made = FakeWayIn(host, target, run)

        def connect() -> None:
            placed.append(threading.current_thread().name)
            if placed.count(caller) == 3:
                job.cancel()  # as whoever watches it would
            assert placed.count(caller) < 10
            raise made.error("SD-204", port=1, address="x", seconds=1, service="x")

        made.connect = connect
        return made

    monkeypatch.setattr(session_module, "make_way_in", way_in)
    job = Job(on_watch=lambda: watched.append("lost"))
    with pytest.raises(session_module.Cancelled):
        run(session, job, command_line="x")
    assert watched == ["first", "long", "lost"] and placed.count(caller) == 3 and "Execute" not in host.events


def test_input_that_may_not_have_come_ends_the_process(host: Host) -> None:
    """It would wait for it for ever, and so would the task."""
    session, killed = make(host), threading.Event()
    host.calls["Execute"] = lambda **unused: execution(running=True)

    def write(**unused: Any) -> None:
        raise SojournError("SD-503", step="calling WriteInput", detail="the connection was lost")

    host.calls["WriteInput"] = write
    host.calls["Signal"] = lambda **unused: killed.set()
    host.calls["ReadOutput"] = lambda **unused: execution(running=not killed.is_set(), exit_code=137)
    job = Job()
    job.write(b"input", True)
    with pytest.raises(SojournError, match="SD-503"):
        run(session, job, command_line="x", keep_input_open=True)
    assert killed.is_set() and host.events.count("Execute") == 1, "it had begun"

    job = Job()
    job.write(b"input", True)
    host.calls["ReadOutput"] = lambda **unused: execution()
    assert run(session, job, command_line="x", keep_input_open=True)[0]["exit_code"] == 0, "it had come all the same"

    def ended(**unused: Any) -> None:
        raise SojournError("SD-504", step="calling WriteInput", detail="it has ended")

    host.calls["WriteInput"] = ended
    job = Job()
    job.write(b"input", True)
    host.calls["ReadOutput"] = lambda **unused: execution(exit_code=3)
    assert run(session, job, command_line="x", keep_input_open=True)[0]["exit_code"] == 3, "who does not read its input is no error"


def test_an_agent_that_is_used_is_not_reset(host: Host) -> None:
    session = make(host)
    going, done = threading.Event(), threading.Event()
    host.calls["Execute"] = lambda **unused: execution(running=True)
    host.calls["ReadOutput"] = lambda **unused: (going.set(), execution(running=not done.wait(60)))[1]
    with ThreadPoolExecutor() as pool:
        first = pool.submit(run, session, Job(), command_line="x")
        assert going.wait(60)
        assert session.remove(unless_used=True) == {"changed": False, "removed": []} and "Shutdown" not in host.events
        done.set()
        first.result(60)
    assert session.remove(unless_used=True)["changed"] and "Shutdown" in host.events


@pytest.mark.parametrize("how", ["put_file", "get_file"])
def test_an_agent_that_is_sending_a_file_is_not_reset(host: Host, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    session = make(host)
    going, done = threading.Event(), threading.Event()

    def transfer(*unused: Any, **more: Any) -> dict[str, Any]:
        going.set()
        assert done.wait(60)
        return {"size": 1, "checksum": ""}

    monkeypatch.setattr(FakeChannel, how, transfer, raising=False)
    more = {"mode": None, "checksum": None, "on_progress": None} if how == "put_file" else {}
    with ThreadPoolExecutor() as pool:
        first = pool.submit(lambda: getattr(session, how)("a", "b", user=None, cancelled=threading.Event(), **more))
        assert going.wait(60)
        assert session.remove(unless_used=True) == {"changed": False, "removed": []} and "Shutdown" not in host.events
        done.set()
        first.result(60)
    assert session.remove(unless_used=True)["changed"] and "Shutdown" in host.events


def test_an_agent_that_is_taken_away_meanwhile_is_put_there_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another task's reset_connection, between this one's look and its order."""
    session = make(host)
    host.calls["Execute"] = lambda **unused: execution()
    deploy, left = session.deploy, [2]

    def taken_away(**arguments: Any) -> Any:
        result = deploy(**arguments)
        if left[0]:
            left[0] -= 1
            session.remove()
        return result

    monkeypatch.setattr(session, "deploy", taken_away)
    assert run(session, command_line="x")[0]["exit_code"] == 0 and host.events.count("place") == 3


def test_input_that_comes_early_is_kept(host: Host) -> None:
    session = make(host)
    job, written = Job(), []
    job.write(b"early", False, True)
    host.calls["Execute"] = lambda **unused: execution(running=True)
    host.calls["WriteInput"] = lambda **arguments: written.append(arguments)
    host.calls["ReadOutput"] = lambda **unused: (job.write(b"", True), execution())[1]
    run(session, job, command_line="x", keep_input_open=True)
    assert written == [
        {"Handle": job.handle, "Data": b"early", "Close": None, "Answer": True}, {"Handle": job.handle, "Data": None, "Close": True, "Answer": None},
    ]  # fmt: skip


def test_the_caller_is_told_of_the_start_before_any_output(host: Host) -> None:
    session = make(host)
    seen: list[Any] = []
    host.calls["Execute"] = lambda **unused: execution(b"one", running=True)
    host.calls["ReadOutput"] = lambda **unused: execution(at=(3, 0))
    session.execute({"command_line": "x"}, None, lambda stream, data: seen.append(data), Job(on_start=lambda: seen.append("started")))
    assert seen == ["started", b"one"]


def variables(host: Host, session: Session, **arguments: Any) -> dict[str, str]:
    """What a command of this session has in its environment."""
    seen: list[Any] = []
    host.calls["Execute"] = lambda Environment, **unused: (seen.append(Environment), execution())[1]
    run(session, command_line="x", **arguments)
    return {item["Name"]: item["Value"] for item in seen[0] or []}


def test_a_login_users_commands_know_the_way_in_that_was_theirs(host: Host) -> None:
    first = make(host)
    assert variables(host, first, user="root") == {"SSH_CONNECTION": "::2 5 ::1 22"}
    assert variables(host, first, user="root", environment={"SSH_CONNECTION": "own"}) == {"SSH_CONNECTION": "own"}
    assert variables(host, first) == {}, "an installer's"
    # Another name of the target: the same agent, but its own way in.
    second = Session(Target.make("ssh", "::3", host="web2"), RUN, CREDENTIALS, "other", lambda token: first)
    assert variables(host, second, user="root") == {"SSH_CONNECTION": "::2 5 ::3 22"}
    assert host.events.count("start") == 1


def test_no_agent_is_put_there_for_a_caller_that_has_gone(host: Host, tmp_path: Any) -> None:
    gone = threading.Event()
    gone.set()
    with pytest.raises(session_module.Cancelled):
        make(host).put_file(str(tmp_path / "x"), "x", mode=None, user=None, checksum=None, on_progress=None, cancelled=gone)
    assert host.events == []


# Brokers that died


def crash(session: Session) -> None:
    """Its broker is gone: the keeper has stopped, and the kernel has let go of the file."""
    session._drop()
    session._file._close()


def test_the_next_broker_takes_the_session_over(host: Host, state_home: Any) -> None:
    first = make(host)
    first.deploy()
    (file,) = (state_home / "sojourn").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    crash(first)
    second = Session(first.target, "f" * 12, RunCredentials.make("f" * 12), "u", lambda unused: None)
    deployed = second.deploy()
    assert deployed["taken_over"] and second.run == RUN and host.events.count("place") == 1
    assert variables(host, second, user="root") == {"SSH_CONNECTION": "::2 5 ::1 22"}
    assert second.remove()["changed"] and not list((state_home / "sojourn").iterdir())


def test_a_session_that_is_held_is_nobody_elses(host: Host) -> None:
    first = make(host)
    first.deploy()
    second = Session(first.target, "f" * 12, RunCredentials.make("f" * 12), "u", lambda unused: None)
    host.placed = None  # another folder, by the other run's name
    assert not second.deploy()["taken_over"] and second.run == "f" * 12


def test_what_a_dead_run_left_goes_with_the_next_deployment(host: Host, state_home: Any) -> None:
    first = make(host)
    first.deploy()
    crash(first)
    host.placed = None
    failing = [SojournError("SD-501", detail="refused")]

    def renew(**unused: Any) -> float:
        if failing:
            raise failing.pop()
        return 1.0

    asked: list[dict[str, Any]] = []
    host.calls["RenewLease"] = renew
    host.calls["RemoveLeftovers"] = lambda **arguments: asked.append(arguments) or []
    second = Session(first.target, "f" * 12, RunCredentials.make("f" * 12), "u", lambda unused: None)
    assert not second.deploy()["taken_over"] and asked == [{"Run": RUN}]
    assert len(list((state_home / "sojourn").iterdir())) == 1  # its own


@pytest.fixture
def dead(host: Host, monkeypatch: pytest.MonkeyPatch) -> Session:
    """The session of another run, whose broker has died; the next one's pauses are short."""
    monkeypatch.setattr(session_module, "RECONNECT_PAUSES", (0.01, 0.01))
    first = make(host)
    first.deploy()
    crash(first)
    return first


def after(dead: Session, **options: Any) -> Session:
    target = Target.make("ssh", "::1", host="web1", **options)
    return Session(target, "f" * 12, RunCredentials.make("f" * 12), "u", lambda unused: None)


def not_at_first(*values: Any) -> Callable[..., Any]:
    """Raises or gives these values, one a call, and the last again and again."""
    waiting = list(values)

    def call(**unused: Any) -> Any:
        value = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(value, Exception):
            raise value
        return value

    return call


def test_an_agent_that_lives_and_does_not_answer_at_first_is_taken_over_when_it_does(host: Host, dead: Session) -> None:
    host.found = [Found("folder", f"sojourn-{RUN}", RUN, live=True)]
    gone = SojournError("SD-501", detail="no answer")
    host.calls["RenewLease"] = not_at_first(gone, gone, gone, 1.0)
    second = after(dead)
    assert second.deploy()["taken_over"] and second.run == RUN and host.events.count("place") == 1
    second.remove()


def test_nothing_is_begun_beside_an_agent_that_lives_and_never_answers(host: Host, dead: Session, state_home: Any) -> None:
    host.found = [Found("folder", f"sojourn-{RUN}", RUN, live=True)]
    host.calls["RenewLease"] = not_at_first(SojournError("SD-501", detail="no answer"))
    second = after(dead, reconnect_timeout=0.05)
    with pytest.raises(SojournError, match=rf"{RUN}.*SD-409"):
        second.deploy()
    assert host.events.count("place") == 1 and not second.live
    host.found = []
    host.placed = None
    host.calls["RemoveLeftovers"] = lambda **unused: []
    assert not second.deploy()["taken_over"], "the session was kept, and is seen to once the agent is gone"
    second.remove()
    assert not list((state_home / "sojourn").iterdir())


@pytest.mark.parametrize("check", [True, False])
def test_a_clean_up_takes_nothing_over(host: Host, dead: Session, state_home: Any, check: bool) -> None:
    """Its own agent judges the earlier run's: what lives is left, and told; of what is gone the session goes too."""
    host.placed = None
    host.found = [Found("folder", f"sojourn-{RUN}", RUN, live=True)]
    asked: list[dict[str, Any]] = []
    answers = [[{"kind": "folder", "name": "x", "run": RUN, "state": state}] for state in ("live", "removed")]
    host.calls["RemoveLeftovers"] = lambda **arguments: (asked.append(arguments), answers.pop(0))[1]
    second = after(dead)
    assert [item["state"] for item in second.cleanup(None, False, check)["leftovers"]] == ["live"]
    assert second.run == "f" * 12 and "RenewLease" not in host.events and asked == [{"Run": None, "DryRun": check or None, "Force": None}]
    assert [file.name[-17:-5] for file in (state_home / "sojourn").iterdir()] == [RUN]
    host.placed = None
    second.cleanup(RUN, True, check)
    assert [file.name[-17:-5] for file in (state_home / "sojourn").iterdir()] == ([RUN] if check else [])


def test_a_session_that_was_taken_over_knows_its_agent_again(host: Host, dead: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows it starts again with the target, with new keys."""
    second = after(dead)
    assert second.deploy()["taken_over"]
    known: list[Ready | None] = []
    restarted = Ready(RUN, 2, 62286, "cd" * 32, "none", "c")
    monkeypatch.setattr(FakeWayIn, "find_restarted", lambda unused_self, ready: (known.append(ready), restarted)[1])
    host.calls["RenewLease"] = not_at_first(SojournError("SD-503", detail="gone"))
    host.fail_at = "Stat"
    with pytest.raises(SojournError):
        second.call("Stat", Path="/")
    host.fail_at = ""
    second.deploy()
    assert known and known[0] is not None and known[0].fingerprint == "ab" * 32 and host.events.count("start") == 1
    second.remove()


@pytest.mark.parametrize("ends", [True, False])
def test_a_guard_that_only_an_agent_sees_is_waited_for(host: Host, dead: Session, ends: bool) -> None:
    host.placed = None
    host.calls["RenewLease"] = not_at_first(SojournError("SD-501", detail="no answer"), 1.0)
    live, removed = ([{"kind": "process", "name": "x", "state": state}] for state in ("live", "removed"))
    host.calls["RemoveLeftovers"] = not_at_first(live, live, removed if ends else live)
    second = after(dead, reconnect_timeout=60 if ends else 0.05)
    if ends:
        assert not second.deploy()["taken_over"] and second.live and host.events.count("RemoveLeftovers") == 3
        second.remove()
    else:
        with pytest.raises(SojournError, match="SD-409"):
            second.deploy()
        assert not second.live and "Shutdown" in host.events


def test_while_an_installation_is_waited_for_a_new_run_may_take_over(host: Host) -> None:
    first = make(host)
    going, done = threading.Event(), threading.Event()
    host.calls["Execute"] = lambda **unused: execution(running=True)
    host.calls["ReadOutput"] = lambda **unused: (going.set(), execution(running=not done.wait(60)))[1]
    with ThreadPoolExecutor() as pool:
        pool.submit(run, first, Job(finish=True, package="tool"), command_line="x")
        assert going.wait(60)
        waiting = threading.Event()
        ended = pool.submit(first.end, lambda *unused, **fields: waiting.set())
        assert waiting.wait(60)
        second = Session(first.target, "f" * 12, RunCredentials.make("f" * 12), "u", lambda unused: None)
        assert second.deploy()["taken_over"]
        done.set()
        assert ended.result(60) == {"changed": False, "removed": []}
    assert second.live and "Shutdown" not in host.events
    second.remove()


def test_an_agent_that_answers_again_is_the_same(host: Host) -> None:
    session = make(host)
    session.deploy()
    host.fail_at = "Stat"
    with pytest.raises(SojournError):
        session.call("Stat", Path="/")
    host.fail_at = ""
    session.call("Stat", Path="/")
    assert session.live and host.events.count("place") == 1


def test_a_target_that_is_not_there_for_a_while_is_waited_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "RECONNECT_PAUSES", (0.01, 0.02))
    session = make(host, reconnect_timeout=5)
    session.deploy()
    down = [3]

    def way_in(target: Target, run: str) -> WayIn:
        made = FakeWayIn(host, target, run)

        def connect() -> None:
            down[0] -= 1
            if down[0] >= 0:
                raise made.error("SD-204", port=1, address="x", seconds=1, service="x")
            FakeWayIn.connect(made)

        made.connect = connect
        return made

    monkeypatch.setattr(session_module, "make_way_in", way_in)
    host.fail_at = "RenewLease"
    session._lose(session._channel)
    host.placed = None
    session.deploy()
    assert session.live and down[0] < 0 and host.events.count("place") == 2


# Leftovers

DEAD = [Found("service", "sojourn-aaaaaaaaaaaa", "a" * 12, False), Found("firewall-rule", "sojourn-aaaaaaaaaaaa", "a" * 12, False)]
LIVE = [Found("folder", "sojourn-bbbbbbbbbbbb", "b" * 12, True)]


def test_cleanup_where_nothing_is_only_looks(host: Host) -> None:
    assert make(host).cleanup(None, False, False) == {"changed": False, "leftovers": []}
    assert host.events == ["connect", "find", "release"]


def test_cleanup_asks_an_agent_what_lives_as_only_it_sees_the_leases(host: Host) -> None:
    host.found = LIVE
    asked: list[dict[str, Any]] = []
    host.calls["RemoveLeftovers"] = lambda **arguments: asked.append(arguments) or [{"kind": "folder", "name": "x", "run": "b" * 12, "state": "live"}]
    result = make(host).cleanup(None, False, False)
    assert not result["changed"] and [item["state"] for item in result["leftovers"]] == ["live"]
    assert asked == [{"Run": None, "DryRun": None, "Force": None}] and host.placed is None


def test_cleanup_in_check_mode_only_asks(host: Host) -> None:
    host.found = DEAD + LIVE
    asked: list[dict[str, Any]] = []
    host.calls["RemoveLeftovers"] = lambda **arguments: asked.append(arguments) or []
    make(host).cleanup(None, False, True)
    assert asked == [{"Run": None, "DryRun": True, "Force": None}] and host.placed is None
    host.fail_at = "start"
    result = make(host).cleanup(None, False, True)
    assert [item["state"] for item in result["leftovers"]] == ["removed", "removed", "live"] and "remove service" not in host.events


def test_cleanup_has_the_agent_remove(host: Host) -> None:
    host.found = DEAD
    gone = {"kind": "service", "name": "sojourn-" + "a" * 12, "run": "a" * 12, "state": "removed", "detail": None}
    host.calls["RemoveLeftovers"] = lambda **arguments: [gone]
    result = make(host).cleanup(None, False, False)
    assert result["changed"] and result["leftovers"][0]["state"] == "removed"
    assert host.placed is None and "Shutdown" in host.events


def test_cleanup_without_an_agent_does_what_it_can(host: Host) -> None:
    host.found = DEAD + LIVE
    host.fail_at = "start"
    result = make(host).cleanup(None, False, False)
    assert [(item["kind"], item["state"]) for item in result["leftovers"]] == [("service", "removed"), ("firewall-rule", "failed"), ("folder", "live")]
    assert "failed at start" in result["leftovers"][1]["detail"]
    host.events.clear()
    forced = make(host).cleanup("b" * 12, True, False)
    assert [(item["run"], item["state"]) for item in forced["leftovers"]] == [("b" * 12, "removed")]


def test_cleanup_ends_the_own_session_first(host: Host) -> None:
    session = make(host)
    session.deploy()
    assert session.cleanup(None, False, False) == {"changed": True, "leftovers": []}
    assert host.placed is None and not session.live


def test_paths_are_absolute_on_the_target(host: Host) -> None:
    session = make(host)
    session.deploy()
    assert session.absolute("a/b") == "/tmp/x/a/b" and session.absolute("/etc/x") == "/etc/x"
    session._info = {"folder": "C:\\Windows\\sojourn-1", "operating_system": "windows"}
    assert session.absolute("a/b") == "C:\\Windows\\sojourn-1\\a\\b" and session.absolute("D:\\x") == "D:\\x" and session.absolute("\\\\s\\x") == "\\\\s\\x"
