"""Several replicas against stubs of vLLM: restarts, losses, strangers, refusals, drains, quorum, other gateways."""

import asyncio
import contextlib
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from plaudit_server.engine import residency
from plaudit_server.engine.base import AdapterRef, Member, Others
from plaudit_server.engine.choice import conversation_key, preference
from plaudit_server.engine.keeper import RemoteKeeper
from plaudit_server.engine.swap import Replica
from plaudit_server.engine.vllm import VllmEngine, _never_arrived
from plaudit_server.engine.wire import NotReached, Unreachable
from plaudit_server.errors import EngineError, EngineRefused, EngineUnavailable
from plaudit_server.settings import Settings
from tests.support.engine_folders import make_base
from tests.support.engine_stub import StubVllm, make_version
from tests.support.server import until
from tests.support.streams import BRAND, all_chunks

URLS = ("http://a", "http://b", "http://c")


def hello(text: str = "hi") -> Any:
    return {"messages": [{"role": "user", "content": text}]}


class Host:
    """Stubs by URL, and gateways over them."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.stubs = {url: StubVllm() for url in URLS}

    def gateway(self, **settings: Any) -> VllmEngine:
        chosen = Settings(**{"engine_urls": list(URLS), **settings})
        return VllmEngine(chosen, self.base, connect=lambda url: self.stubs[url].client())

    def chats(self) -> list[int]:
        return [sum(path == "/v1/chat/completions" for path, _ in stub.calls) for stub in self.stubs.values()]


def replica(engine: VllmEngine, place: int) -> Replica:
    return engine.fleet.replicas[place]


async def look(engine: VllmEngine, *places: int) -> None:
    """What the keepers do every two seconds, with the workers asked each time."""
    for place in places or range(len(engine.fleet.replicas)):
        one, keeper = replica(engine, place), engine.fleet.keepers[place]
        assert isinstance(keeper, RemoteKeeper) and one.client is not None
        if one.name in engine.residency._notes:
            engine.residency._notes[one.name].workers_asked_at = float("-inf")
        await keeper._look(one.client)


async def up(engine: VllmEngine) -> VllmEngine:
    for one, keeper in zip(engine.fleet.replicas, engine.fleet.keepers, strict=True):
        assert isinstance(keeper, RemoteKeeper) and one.url is not None
        one.client = keeper._connect(one.url)
    await look(engine)
    return engine


def preferring(engine: VllmEngine, place: int) -> Any:
    """A chat whose conversation prefers one replica."""
    names = sorted(one.name for one in engine.fleet.replicas)
    return next(
        body
        for body in (hello(str(n)) for n in range(1000))
        if preference(names, conversation_key(body["messages"]) or "")[0] == replica(engine, place).name
    )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def host(base: Path) -> Host:
    return Host(base)


@pytest.fixture
def v1(tmp_path: Path, base: Path) -> AdapterRef:
    return make_version(tmp_path, base, "v1")


@pytest.fixture
async def engine(host: Host, v1: AdapterRef) -> VllmEngine:
    engine = await up(host.gateway())
    assert (await engine.install(v1)).passed
    return engine


async def test_looking_at_a_replica_that_is_well_changes_nothing(engine: VllmEngine, host: Host) -> None:
    before = [dict(one.resident) for one in engine.fleet.replicas]
    await look(engine)
    assert [one.resident for one in engine.fleet.replicas] == before
    assert sum(path == "/v1/load_lora_adapter" for stub in host.stubs.values() for path, _ in stub.calls) == 3


async def test_a_silent_restart_is_found_and_everything_proven_again(engine: VllmEngine, host: Host) -> None:
    stub = host.stubs[URLS[0]]
    stub.restart()
    await look(engine, 0)
    assert replica(engine, 0).restarts == 1 and replica(engine, 0).serves("v1")
    assert list(stub.names) == [replica(engine, 0).resident["v1"].lora_name]


async def test_a_restart_into_something_that_cannot_be_proven_gets_no_traffic_for_it(
    engine: VllmEngine, host: Host
) -> None:
    stub = host.stubs[URLS[0]]
    stub.restart()
    stub.serve_base = True
    await look(engine, 0)
    assert not replica(engine, 0).serves("v1") and engine.is_ready("v1")
    assert stub.names == {}, "what was not proven is not left lying about"


async def test_tensors_that_a_worker_dropped_are_loaded_afresh_and_proven(engine: VllmEngine, host: Host) -> None:
    stub = host.stubs[URLS[1]]
    stub.tensors.clear()  # the name is still there, and vLLM would read whatever lies in the folder by now
    old = replica(engine, 1).resident["v1"]
    await look(engine, 1)
    new = replica(engine, 1).resident["v1"]
    assert new.lora_name != old.lora_name and list(stub.names) == [new.lora_name]
    assert set(stub.tensors) == new.numbers


async def test_what_was_lost_gets_no_traffic_until_it_is_proven(
    engine: VllmEngine, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = host.stubs[URLS[1]]
    stub.tensors.clear()
    stub.serve_base = True
    await look(engine, 1)
    assert not replica(engine, 1).serves("v1") and replica(engine, 0).serves("v1")

    loads = len([path for path, _ in stub.calls if path == "/v1/load_lora_adapter"])
    await look(engine, 1)
    assert len([path for path, _ in stub.calls if path == "/v1/load_lora_adapter"]) == loads, "not at every look"

    stub.serve_base = False
    engine.residency._notes["engine-1"].try_again_at.clear()
    await look(engine, 1)
    assert replica(engine, 1).serves("v1")


async def test_strangers_are_taken_away(engine: VllmEngine, host: Host, v1: AdapterRef) -> None:
    stub = host.stubs[URLS[2]]
    stub.names["stranger"], stub.tensors[77] = 77, Path(v1.location) / "adapter"
    stub.tensors[78] = Path(v1.location) / "adapter"  # an orphan without a name
    await look(engine, 2)
    assert "stranger" not in stub.names and set(stub.tensors) == replica(engine, 2).resident["v1"].numbers
    assert replica(engine, 2).serves("v1")


async def test_a_swap_under_way_is_no_stranger(engine: VllmEngine, host: Host, tmp_path: Path, base: Path) -> None:
    v2 = make_version(tmp_path, base, "v2")
    installing = asyncio.create_task(engine.install(v2))
    while not installing.done():
        await look(engine, 0)
        await asyncio.sleep(0)
    assert installing.result().passed
    await look(engine)
    assert all(one.serves("v2") for one in engine.fleet.replicas)


async def test_a_request_for_what_a_replica_lost_is_answered_by_another(engine: VllmEngine, host: Host) -> None:
    host.stubs[URLS[0]].restart()
    body = preferring(engine, 0)

    answer, _ = await engine.chat(body, version="v1", request_id="r")

    assert answer["model"] == "v1" and not replica(engine, 0).serves("v1")
    stream = await engine.chat_stream(body, version="v1", request_id="r")
    assert {chunk["model"] for chunk in await all_chunks(stream)} == {BRAND.model}
    await look(engine, 0)
    assert replica(engine, 0).serves("v1")


async def test_a_conversation_stays_where_its_beginning_is_cached(engine: VllmEngine, host: Host) -> None:
    body = preferring(engine, 1)
    for _ in range(5):
        await engine.chat(body, version="v1", request_id="r")
    assert host.chats() == [0, 5, 0]


async def test_a_clearly_more_loaded_replica_is_passed_over(engine: VllmEngine, host: Host) -> None:
    body = preferring(engine, 1)
    replica(engine, 1).in_flight["base"] = 9
    await engine.chat(body, version="v1", request_id="r")
    assert host.chats()[1] == 0


async def test_a_replica_that_cannot_be_reached_is_replaced_once(engine: VllmEngine, host: Host) -> None:
    host.stubs[URLS[0]].up = False
    await engine.chat(preferring(engine, 0), version="v1", request_id="r")
    assert host.chats()[1:] in ([1, 0], [0, 1])

    for stub in host.stubs.values():
        stub.up = False
    with pytest.raises(EngineUnavailable):
        await engine.chat(hello(), version="v1", request_id="r")
    assert sum(one.breaker.failures for one in engine.fleet.replicas) == 3, "two were asked, not three"


async def test_a_refused_request_is_not_sent_twice(engine: VllmEngine, host: Host) -> None:
    for stub in host.stubs.values():
        stub.broken = 400
    with pytest.raises(EngineRefused):
        await engine.chat(hello(), version="v1", request_id="r")
    assert sum(host.chats()) == 1 and not any(one.breaker.failures for one in engine.fleet.replicas)


async def test_requests_that_fail_open_the_breaker_and_others_take_over(engine: VllmEngine, host: Host) -> None:
    stub = host.stubs[URLS[0]]
    stub.broken = 500
    body = preferring(engine, 0)
    for _ in range(5):
        with pytest.raises(EngineError):
            await engine.chat(body, version="v1", request_id="r")
    asked = host.chats()[0]
    for _ in range(3):
        await engine.chat(body, version="v1", request_id="r")
    assert host.chats()[0] == asked == 5
    assert engine.health()[0].breaker == "open"

    stub.broken = 0
    replica(engine, 0).breaker._open_until = 0
    await engine.chat(body, version="v1", request_id="r")
    assert host.chats()[0] == 6 and engine.health()[0].breaker == "closed"


async def test_open_breakers_everywhere_are_no_outage(engine: VllmEngine, host: Host) -> None:
    for one in engine.fleet.replicas:
        for _ in range(9):
            one.breaker.failed(float("inf"))
    assert (await engine.chat(hello(), version="v1", request_id="r"))[0]["model"] == "v1"


async def test_an_overloaded_replica_hands_over(engine: VllmEngine, host: Host) -> None:
    host.stubs[URLS[0]].broken = 503
    body = preferring(engine, 0)
    assert (await engine.chat(body, version="v1", request_id="r"))[0]["model"] == "v1"
    await (await engine.chat_stream(body, version="v1", request_id="r")).aclose()
    assert host.chats()[0] == 2


async def test_a_connection_lost_in_a_whole_answer_is_not_repeated(engine: VllmEngine, host: Host) -> None:
    stub = host.stubs[URLS[0]]
    stub.cut = httpx.ReadError
    with pytest.raises(EngineUnavailable):
        await engine.chat(preferring(engine, 0), version="v1", request_id="r")
    assert sum(host.chats()) == 1, "its tokens may have begun"


async def test_a_slow_accept_counts_as_a_failure_and_goes_elsewhere(
    engine: VllmEngine, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plaudit_server.engine.vllm.ACCEPT_TIMEOUT_S", 0.02)
    host.stubs[URLS[0]].chat_delay_s = 5
    stream = await engine.chat_stream(preferring(engine, 0), version="v1", request_id="r")
    await stream.aclose()
    assert replica(engine, 0).breaker.failures == 1 and not any(one.load for one in engine.fleet.replicas)


# ---- quorum


async def test_one_bad_replica_does_not_hold_up_a_quorum(host: Host, v1: AdapterRef) -> None:
    engine = await up(host.gateway(engine_quorum=2))
    host.stubs[URLS[0]].serve_base = True

    report = await engine.install(v1)

    assert report.passed and [proof.passed for proof in report.replicas] == [False, True, True]
    assert engine.is_ready("v1") and not replica(engine, 0).serves("v1")
    assert host.stubs[URLS[0]].names == {}
    host.stubs[URLS[0]].serve_base = False
    await look(engine)
    assert replica(engine, 0).serves("v1"), "it is tried again"


async def test_without_a_quorum_nothing_is_decided(host: Host, v1: AdapterRef) -> None:
    host.stubs[URLS[0]].up = host.stubs[URLS[1]].up = False
    engine = await up(host.gateway(engine_quorum=2))
    with pytest.raises(EngineUnavailable, match="1 of 3 engine replicas are ready, and a version needs 2"):
        await engine.install(v1)


async def test_replicas_lost_during_the_proof_leave_it_open(host: Host, v1: AdapterRef) -> None:
    engine = await up(host.gateway(engine_quorum=2))
    host.stubs[URLS[0]].up = host.stubs[URLS[1]].up = False
    with pytest.raises(EngineUnavailable, match="1 engine replicas have proven it, too few; 2 did not answer"):
        await engine.install(v1)
    assert host.stubs[URLS[2]].names == {} and not engine.is_ready("v1")


async def test_too_many_failed_proofs_condemn_a_version(host: Host, v1: AdapterRef) -> None:
    engine = await up(host.gateway(engine_quorum=2))
    host.stubs[URLS[0]].serve_base = host.stubs[URLS[1]].serve_base = True
    report = await engine.install(v1)
    assert not report.passed and engine.resident() == {"base"}
    assert all(stub.names == {} for stub in host.stubs.values())


async def test_a_replica_that_was_away_has_the_version_before_it_is_ready(host: Host, v1: AdapterRef) -> None:
    host.stubs[URLS[0]].up = False
    engine = await up(host.gateway())
    assert (await engine.install(v1)).passed and replica(engine, 0).state != "ready"
    host.stubs[URLS[0]].up = True
    await look(engine, 0)
    assert replica(engine, 0).state == "ready" and replica(engine, 0).serves("v1")


# ---- membership


def members(*urls: str, draining: str = "") -> list[Member]:
    return [Member(f"engine-{URLS.index(url)}", url, draining=url == draining) for url in urls]


async def test_a_replica_joins_at_run_time_and_is_ready_when_everything_is_proven(host: Host, v1: AdapterRef) -> None:
    engine = host.gateway(engine_urls=[URLS[0]])
    await engine.start()
    await until(engine.is_ready)
    await engine.install(v1)

    engine.follow(members(*URLS[:2]), None)
    await until(lambda: len(engine.fleet.serving("base")) == 2)

    assert replica(engine, 1).serves("v1")
    await engine.close()


async def test_a_drained_replica_ends_what_it_began_and_takes_nothing_new(host: Host, v1: AdapterRef) -> None:
    engine = host.gateway()
    await engine.start()
    await until(lambda: len(engine.fleet.serving("base")) == 3)
    await engine.install(v1)
    host.stubs[URLS[0]].may_talk.clear()
    talking = [asyncio.create_task(engine.chat(preferring(engine, 0), version="v1", request_id="r")) for _ in range(2)]
    await until(lambda: replica(engine, 0).load == 1)

    engine.follow(members(*URLS, draining=URLS[0]), None)
    begun = host.chats()[0]
    await asyncio.gather(*(engine.chat(hello(str(n)), version="v1", request_id="r") for n in range(20)))
    host.stubs[URLS[0]].may_talk.set()

    assert [answer["model"] for answer, _ in await asyncio.gather(*talking)] == ["v1", "v1"]
    assert host.chats()[0] == begun
    await until(lambda: engine.health()[0].detail == "drained")
    assert replica(engine, 0).client is None, "nobody keeps it any more"

    engine.follow(members(*URLS), None)
    await until(lambda: replica(engine, 0).serves("v1"))
    await engine.close()


async def test_a_removed_replica_ends_what_it_began(host: Host) -> None:
    engine = host.gateway()
    await engine.start()
    await until(lambda: len(engine.fleet.serving("base")) == 3)
    host.stubs[URLS[0]].may_talk.clear()
    talking = asyncio.create_task(engine.chat(preferring(engine, 0), version="base", request_id="r"))
    await until(lambda: replica(engine, 0).load == 1)

    engine.follow(members(*URLS[1:]), None)

    assert [one.replica for one in engine.health()] == ["engine-1", "engine-2"]
    host.stubs[URLS[0]].may_talk.set()
    assert (await talking)[0]["model"] == "base"
    await until(lambda: not engine.fleet._gone)
    await engine.close()


async def test_following_the_same_list_changes_nothing(engine: VllmEngine) -> None:
    before = engine.fleet.replicas
    engine.follow(members(*URLS), None)
    assert all(a is b for a, b in zip(engine.fleet.replicas, before, strict=True))


async def test_what_drains_takes_no_part_in_a_quorum(engine: VllmEngine, tmp_path: Path, base: Path) -> None:
    engine.follow(members(*URLS, draining=URLS[0]), None)
    report = await engine.install(make_version(tmp_path, base, "v2"))
    assert report.passed and [proof.replica for proof in report.replicas] == ["engine-1", "engine-2"]


# ---- other gateways on the same replicas


async def test_a_second_gateway_uses_what_the_first_has_loaded(engine: VllmEngine, host: Host, v1: AdapterRef) -> None:
    second = host.gateway()
    second.follow(members(*URLS), Others(frozenset({"v1"})))
    await up(second)

    report = await second.install(v1)

    assert report.passed and all(proof.tensors_matched == 6 for proof in report.replicas)
    assert all(len(stub.names) == len(stub.tensors) == 1 for stub in host.stubs.values())
    assert replica(second, 0).resident["v1"].lora_name == replica(engine, 0).resident["v1"].lora_name


async def test_what_another_gateway_uses_stays_when_it_is_retired_here(
    engine: VllmEngine, host: Host, v1: AdapterRef
) -> None:
    engine.follow(members(*URLS), Others(frozenset({"v1"})))
    await engine.retire("v1")
    assert engine.resident() == {"base"} and len(host.stubs[URLS[0]].names) == 1
    await look(engine)
    assert len(host.stubs[URLS[0]].names) == 1

    engine.follow(members(*URLS), Others(frozenset()))
    await look(engine)
    assert len(host.stubs[URLS[0]].names) == 1, "its owner may be about to claim it"
    for notes in engine.residency._notes.values():
        notes.strange_since = dict.fromkeys(notes.strange_since, -residency.STRANGER_GRACE_S * 1e6)
    await look(engine)
    assert host.stubs[URLS[0]].names == {} and host.stubs[URLS[0]].tensors == {}


async def test_what_another_gateway_loaded_but_cannot_be_proven_is_loaded_anew(
    engine: VllmEngine, host: Host, v1: AdapterRef, tmp_path: Path, base: Path
) -> None:
    for stub in host.stubs.values():
        other = Path(make_version(tmp_path, base, "v9").location) / "adapter"
        stub.tensors = dict.fromkeys(stub.tensors, other)
    second = host.gateway()
    second.follow(members(*URLS), Others(frozenset({"v1"})))
    await up(second)
    assert (await second.install(v1)).passed
    assert replica(second, 0).resident["v1"].lora_name != replica(engine, 0).resident["v1"].lora_name


async def test_gateways_that_miss_the_same_after_a_restart_load_it_once(
    engine: VllmEngine, host: Host, v1: AdapterRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plaudit_server.engine.proving._FIRST_WAITS_S", 0.05)
    second = host.gateway()
    second.follow(members(*URLS), Others(frozenset({"v1"}), is_first=False))
    await up(second)
    await second.install(v1)
    engine.follow(members(*URLS), Others(frozenset({"v1"})))
    host.stubs[URLS[0]].restart()

    await asyncio.gather(look(engine, 0), look(second, 0))

    assert len(host.stubs[URLS[0]].names) == len(host.stubs[URLS[0]].tensors) == 1
    assert replica(engine, 0).serves("v1") and replica(second, 0).serves("v1")


async def test_an_adapter_taken_away_during_its_proof_condemns_no_version(
    host: Host, v1: AdapterRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await up(host.gateway(engine_urls=[URLS[0]]))
    stub = host.stubs[URLS[0]]
    digests = stub._digests

    def digests_and_gone(number: int) -> Any:
        stub.names.clear()
        return digests(number)

    monkeypatch.setattr(stub, "_digests", digests_and_gone)
    with pytest.raises(EngineUnavailable, match="too few; 1 did not answer"):
        await engine.install(v1)


def test_only_what_was_never_sent_may_be_sent_again() -> None:
    def after(cause: BaseException) -> EngineUnavailable:
        made = EngineUnavailable("x")
        made.__cause__ = cause
        return made

    assert _never_arrived(EngineUnavailable("a 503"))
    assert _never_arrived(after(NotReached("ClientConnectorError")))
    assert not _never_arrived(after(Unreachable("ServerDisconnectedError")))
    assert not _never_arrived(after(TimeoutError()))
    assert not _never_arrived(EngineError("a 500"))


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_nothing_leaks_and_all_is_served_in_the_end(
    seed: int, host: Host, tmp_path: Path, base: Path
) -> None:
    """Swaps, restarts, outages, losses and strangers in a random order."""
    random = Random(seed)
    engine = await up(host.gateway())
    versions = [make_version(tmp_path / "all", base, f"v{number}") for number in range(1, 8)]
    unused = versions[3:]
    for step in range(40):
        stub = random.choice(list(host.stubs.values()))
        match random.choice(("install", "retire", "restart", "outage", "loss", "stranger", "look", "look")):
            case "install":
                await engine.residency.retire(random.choice(versions).name)
                ref = random.choice(versions[:3] if len(engine.residency.versions()) > 2 else versions)
                with contextlib.suppress(EngineUnavailable):
                    await engine.install(ref)
            case "retire":
                await engine.retire(random.choice(versions).name)
            case "restart":
                stub.restart()
            case "outage":
                stub.up = not stub.up
            case "loss" if stub.tensors:
                stub.tensors.pop(random.choice(list(stub.tensors)))
            case "stranger":
                stub.names[f"stranger-{step}"] = number = 1000 + step
                stub.tensors[number] = Path(unused[0].location) / "adapter"
            case _:
                await look(engine)
    for stub in host.stubs.values():
        stub.up = True
    for _ in range(6):
        for notes in engine.residency._notes.values():
            notes.try_again_at.clear()
        await look(engine)

    for place, stub in enumerate(host.stubs.values()):
        resident = replica(engine, place).resident
        assert set(resident) == engine.residency.versions()
        assert set(stub.names) == {one.lora_name for one in resident.values()}
        assert set(stub.tensors) == {number for one in resident.values() for number in one.numbers}
