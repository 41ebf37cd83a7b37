"""In-place swaps of whole models against stubs of vLLM: proof, failures, restarts, drains, several replicas."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import httpx
import pytest

from plaudit_server.engine.base import AdapterRef, Member, Others
from plaudit_server.engine.keeper import RemoteKeeper
from plaudit_server.engine.swap import Replica
from plaudit_server.engine.vllm import VllmEngine
from plaudit_server.errors import EngineUnavailable
from plaudit_server.settings import Settings
from tests.support.engine_folders import WholeFolder, make_base
from tests.support.engine_stub import StubVllm, make_version, make_whole, probe_sequences
from tests.support.server import until

URLS = ("http://a", "http://b")
HELLO: Any = {"messages": [{"role": "user", "content": "hi"}]}


class Host:
    """Stubs by URL, and an engine over them."""

    def __init__(self, base: Path, replicas: int) -> None:
        self.base = base
        self.stubs = {url: StubVllm() for url in URLS[:replicas]}

    @property
    def first(self) -> StubVllm:
        return self.stubs[URLS[0]]

    async def engine(self, **settings: Any) -> VllmEngine:
        chosen = Settings(**{"engine_urls": list(self.stubs), "engine_drain_s": 0.2, **settings})
        engine = VllmEngine(chosen, self.base, connect=lambda url: self.stubs[url].client())
        for replica, keeper in zip(engine.fleet.replicas, engine.fleet.keepers, strict=True):
            assert isinstance(keeper, RemoteKeeper) and replica.url is not None
            replica.client = keeper._connect(replica.url)
        await look(engine)
        return engine


async def look(engine: VllmEngine) -> None:
    """What the keepers do every two seconds."""
    for replica, keeper in zip(engine.fleet.replicas, engine.fleet.keepers, strict=True):
        assert isinstance(keeper, RemoteKeeper) and replica.client is not None
        if replica.name in engine.residency._notes:
            engine.residency._notes[replica.name].workers_asked_at = float("-inf")
        await keeper._look(replica.client)


def held(engine: VllmEngine) -> list[str | None]:
    return [replica.weights for replica in engine.fleet.replicas]


def only(engine: VllmEngine) -> Replica:
    (replica,) = engine.fleet.replicas
    return replica


def paths(stub: StubVllm) -> list[str]:
    """What was asked for, workers' methods by their names."""
    return [body["method"] if path == "/collective_rpc" else path for path, body in stub.calls]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def host(base: Path) -> Host:
    return Host(base, 1)


@pytest.fixture
def pair(base: Path) -> Host:
    return Host(base, 2)


@pytest.fixture
def v1(tmp_path: Path, base: Path) -> AdapterRef:
    return make_whole(tmp_path, base, "v1")


@pytest.fixture
def v2(tmp_path: Path, base: Path, v1: AdapterRef) -> AdapterRef:
    return make_whole(tmp_path, base, "v2", parent=v1)


async def test_a_whole_model_takes_the_bases_place_with_proof(host: Host, v1: AdapterRef) -> None:
    engine = await host.engine()
    host.first.calls.clear()
    report = await engine.install(v1)
    (proof,) = report.replicas
    assert report.passed and proof.slope is not None and 0.9 < proof.slope < 1.1
    assert proof.tensors_matched == proof.tensors_expected == 6 and proof.workers == 1
    assert engine.is_ready("v1") and not engine.is_ready("base") and engine.weights() == {"v1"}
    assert [path for path, _ in itertools.groupby(paths(host.first))] == [
        "/v1/completions",  # the parent, among the users' requests
        *("plaudit_weights", "/pause", "plaudit_reload", "plaudit_weight_digests", "/reset_prefix_cache", "/resume"),
        "/v1/completions",
    ]
    await engine.chat(HELLO, version="v1", request_id="r")
    with pytest.raises(EngineUnavailable, match="base is not live"):
        await engine.chat(HELLO, version="base", request_id="r")


async def test_rolling_back_scores_no_parent_again(host: Host, v1: AdapterRef, v2: AdapterRef) -> None:
    engine = await host.engine()
    assert (await engine.install(v1)).passed and (await engine.install(v2)).passed
    assert held(engine) == ["v2"]
    host.first.calls.clear()
    assert (await engine.install(v1)).passed
    assert held(engine) == ["v1"] and paths(host.first).count("plaudit_reload") == 1
    await engine.place(["base"])
    assert held(engine) == ["base"] and engine.is_ready("base") and not host.first.paused


async def test_a_parent_that_is_not_live_is_visited(host: Host, v1: AdapterRef, v2: AdapterRef) -> None:
    engine = await host.engine()  # a server that knows neither
    report = await engine.install(v2)
    assert report.passed, report.reason
    reloads = [body["args"] for _, body in host.first.calls if body and body.get("method") == "plaudit_reload"]
    assert [Path(folder).parent.name for folder, _ in reloads] == ["v1", "v2"]


async def test_what_is_installed_already_is_not_swapped_again(host: Host, v1: AdapterRef) -> None:
    engine = await host.engine()
    first = await engine.install(v1)
    host.first.calls.clear()
    again = await engine.install(v1)
    assert again.passed and again.replicas == first.replicas and host.first.calls == []


# ---- failures


async def test_a_reload_that_fails_leaves_the_old_weights(host: Host, v1: AdapterRef) -> None:
    engine = await host.engine()
    host.first.reload_fails = {"v1"}
    report = await engine.install(v1)
    assert not report.passed and report.reason is not None and "could not load v1: RuntimeError: no" in report.reason
    assert held(engine) == ["base"] and engine.is_ready("base") and not host.first.paused
    assert host.first.label.startswith("base-") and only(engine).held_since == []


async def test_a_reload_that_silently_does_nothing_is_seen_before_anybody_goes_on(
    host: Host, v1: AdapterRef, v2: AdapterRef
) -> None:
    engine = await host.engine()
    assert (await engine.install(v1)).passed
    host.first.keeps_old = {"v2"}
    report = await engine.install(v2)
    assert not report.passed and report.reason is not None and "holds 0 of 6 weights of v2" in report.reason
    assert held(engine) == ["v1"] and only(engine).held_since == ["v1"]


async def test_right_bytes_that_do_not_speak_are_taken_back(host: Host, v1: AdapterRef) -> None:
    engine = await host.engine()
    host.first.serve_base = True
    report = await engine.install(v1)
    assert not report.passed and report.reason is not None and "the parent or nothing is live" in report.reason
    assert held(engine) == ["base"] and engine.is_ready("base") and host.first.model == host.base.resolve()
    assert only(engine).held_since == ["v1", "base"]


async def test_a_probe_that_is_another_models_is_taken_back(host: Host, tmp_path: Path, base: Path) -> None:
    engine = await host.engine()
    version = WholeFolder(tmp_path / "v1", base).write()
    version.probe["sequences"] = probe_sequences("base", "somebody else")
    report = await engine.install(version.write().seal())
    assert not report.passed and held(engine) == ["base"]


async def test_weights_that_cannot_be_put_back_condemn_the_replica(host: Host, v1: AdapterRef) -> None:
    engine = await host.engine()
    host.first.reload_fails = {"v1", "base"}
    with pytest.raises(EngineUnavailable, match="base could not be put back either"):
        await engine.install(v1)
    assert only(engine).condemned is not None and not engine.is_ready("base") and engine.weights() == set()
    assert host.first.paused, "nobody goes on with weights that nobody knows"

    host.first.reload_fails.clear()
    await look(engine)
    assert engine.is_ready("base") and held(engine) == ["base"] and not host.first.paused


async def test_a_cache_that_stays_condemns_the_replica(host: Host, v1: AdapterRef) -> None:
    engine = await host.engine()
    host.first.cache_stays = True
    with pytest.raises(EngineUnavailable, match="prefix cache"):
        await engine.install(v1)
    assert not engine.is_ready("v1") and not engine.is_ready("base")


async def test_an_artefact_that_is_refused_reaches_no_replica(host: Host, tmp_path: Path, base: Path) -> None:
    engine = await host.engine()
    version = WholeFolder(tmp_path / "v1", base)
    version.config["num_hidden_layers"] = 7
    host.first.calls.clear()
    report = await engine.install(version.write().seal())
    assert not report.passed and report.replicas == [] and host.first.calls == []


async def test_another_gateway_on_the_replicas_is_refused(host: Host, v1: AdapterRef) -> None:
    engine = await host.engine()
    engine.follow([Member("engine-0", URLS[0])], Others(frozenset()))
    with pytest.raises(EngineUnavailable, match="one gateway only"):
        await engine.install(v1)
    assert host.first.label == ""


async def test_a_second_gateway_answers_for_nothing_where_a_whole_model_is_live(host: Host, v1: AdapterRef) -> None:
    first = await host.engine()
    assert (await first.install(v1)).passed
    second = VllmEngine(Settings(engine_urls=[URLS[0]]), host.base, connect=lambda url: host.stubs[url].client())
    second.follow([Member("engine-0", URLS[0])], Others(frozenset({"v1"})))
    keeper = second.fleet.keepers[0]
    assert isinstance(keeper, RemoteKeeper)
    only(second).client = keeper._connect(URLS[0])
    await keeper._look(keeper._connect(URLS[0]))
    assert not second.is_up() and host.first.label.startswith("v1-"), "and it takes nothing away"


async def test_an_engine_that_cannot_swap_says_so(host: Host, v1: AdapterRef) -> None:
    engine = await host.engine()
    host.first.extension = False
    report = await engine.install(v1)
    assert not report.passed and engine.is_ready("base")


# ---- answers that have begun


async def test_answers_that_have_begun_are_waited_for(host: Host, v1: AdapterRef) -> None:
    engine = await host.engine(engine_drain_s=5)
    host.first.may_talk.clear()
    asking = asyncio.create_task(engine.chat(HELLO, version="base", request_id="r"))
    await until(lambda: only(engine).load == 1)
    installing = asyncio.create_task(engine.install(v1))
    await until(lambda: not engine.is_ready("base"))  # nothing new goes there
    assert not installing.done()
    host.first.may_talk.set()
    _, trace = await asking
    assert trace.also_by == [] and (await installing).passed


async def test_answers_that_take_longer_go_on_and_say_so(host: Host, v1: AdapterRef) -> None:
    engine = await host.engine(engine_drain_s=0.05)
    stream = await engine.chat_stream(HELLO, version="base", request_id="s")
    host.first.may_talk.clear()
    asking = asyncio.create_task(engine.chat(HELLO, version="base", request_id="r"))
    await until(lambda: only(engine).load == 2)
    assert (await engine.install(v1)).passed
    host.first.may_talk.set()
    _, trace = await asking
    await stream.aclose()
    assert trace.also_by == stream.trace.also_by == ["v1"]


async def test_the_trainer_is_given_no_mixture(host: Host, v1: AdapterRef) -> None:
    engine = await host.engine()
    from plaudit_server.engine.fleet import unchanged

    with pytest.raises(EngineUnavailable, match="v1 was swapped in"), unchanged(only(engine)):
        assert (await engine.install(v1)).passed


# ---- adapters and whole models


async def test_adapters_leave_with_the_base_model_and_come_back_with_it(
    host: Host, v1: AdapterRef, tmp_path: Path, base: Path
) -> None:
    engine = await host.engine()
    adapter = make_version(tmp_path, base, "v7")
    assert (await engine.install(adapter)).passed and engine.is_ready("v7")
    assert (await engine.install(v1)).passed
    assert not engine.is_ready("v7") and host.first.names == {} and host.first.tensors == {}
    await look(engine)
    assert host.first.names == {}, "not on other weights than its own"
    with pytest.raises(EngineUnavailable, match="holds the base model"):
        await engine.install(make_version(tmp_path, base, "v8"))

    await engine.place(["base"])
    assert engine.is_ready("v7") and engine.is_ready("base")


# ---- restarts


async def test_after_a_restart_the_right_whole_model_is_loaded_and_proven(
    host: Host, v1: AdapterRef, v2: AdapterRef
) -> None:
    engine = await host.engine()
    assert (await engine.install(v1)).passed and (await engine.install(v2)).passed
    await engine.place(["v2"])
    host.first.restart()
    host.first.calls.clear()
    await look(engine)
    assert held(engine) == ["v2"] and only(engine).restarts == 1
    assert paths(host.first).count("plaudit_reload") == 2, "the parent was scored in this life too"


@pytest.mark.parametrize(("is_child", "asked"), [(True, 1), (False, 5)])
async def test_workers_of_an_engine_of_our_own_are_left_alone_between_the_looks_that_ask_them(
    host: Host, v1: AdapterRef, *, is_child: bool, asked: int
) -> None:
    engine = await host.engine()
    assert (await engine.install(v1)).passed
    replica = only(engine)
    replica.url = None if is_child else replica.url
    engine.residency._notes[replica.name].workers_asked_at = float("-inf")
    host.first.calls.clear()
    for _ in range(5):
        await engine.residency.look(replica)
    assert paths(host.first).count("plaudit_weights") == asked
    assert held(engine) == ["v1"]


async def test_a_restart_into_what_cannot_be_proven_is_not_ready_for_it(host: Host, v1: AdapterRef) -> None:
    engine = await host.engine()
    assert (await engine.install(v1)).passed
    await engine.place(["v1"])
    host.first.restart()
    host.first.serve_base = True
    await look(engine)
    assert held(engine) == ["base"] and not engine.is_ready("v1") and engine.is_up()
    reloads = paths(host.first).count("plaudit_reload")
    await engine.place(["v1"])
    assert paths(host.first).count("plaudit_reload") == reloads, "not at every tick"


async def test_a_swap_that_a_server_did_not_finish_is_found_by_the_next(host: Host, v1: AdapterRef) -> None:
    host.first.label, host.first.paused = "?", True
    engine = await host.engine()
    assert held(engine) == ["base"] and not host.first.paused and host.first.label.startswith("base-")


async def test_a_replica_that_goes_away_in_a_swap_comes_back_whole(host: Host, v1: AdapterRef) -> None:
    engine = await host.engine()
    answer = host.first._answer

    async def cut(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/reset_prefix_cache":
            raise httpx.ReadError("cut", request=request)
        return await answer(request)

    client = only(engine).client
    assert client is not None
    host.first._answer = cut  # type: ignore[method-assign]
    only(engine).client = host.first.client()
    with pytest.raises(EngineUnavailable):
        await engine.install(v1)
    assert not engine.is_ready("base") and not engine.is_ready("v1")
    only(engine).client = client
    await look(engine)
    assert held(engine) == ["base"] and not host.first.paused


async def test_an_engine_that_dies_of_a_model_comes_up_without_it(host: Host, v1: AdapterRef) -> None:
    engine = await host.engine()
    assert (await engine.install(v1)).passed
    await engine.place(["v1"])
    answer, deadly = host.first._answer, True

    async def dies(request: httpx.Request) -> httpx.Response:
        if deadly and b"plaudit_reload" in request.content:
            host.first.restart()
            raise httpx.ReadError("died", request=request)
        return await answer(request)

    host.first._answer = dies  # type: ignore[method-assign]
    host.first.restart()
    only(engine).client = host.first.client()
    await look(engine)
    assert not engine.is_up()
    await look(engine)
    assert held(engine) == ["base"] and engine.is_up()

    deadly = False
    engine.residency.placement._not_before.clear()
    await engine.place(["v1"])
    assert held(engine) == ["v1"]


# ---- several replicas


async def test_one_replica_at_a_time_while_the_other_serves(pair: Host, v1: AdapterRef) -> None:
    engine = await pair.engine()
    report = await engine.install(v1)
    assert report.passed and len(report.replicas) == 1
    assert engine.weights() == {"base", "v1"} and engine.is_ready("base") and engine.is_ready("v1")

    seen = []
    placing = asyncio.create_task(engine.place(["v1"]))
    while not placing.done():
        seen.append(engine.is_ready("v1"))
        await asyncio.sleep(0)
    await placing
    assert all(seen) and held(engine) == ["v1", "v1"]
    assert all(replica.proof is not None and replica.proof.passed for replica in engine.fleet.replicas)


async def test_a_replica_that_cannot_prove_it_keeps_what_it_has(pair: Host, v1: AdapterRef) -> None:
    engine = await pair.engine()
    assert (await engine.install(v1)).passed
    place = held(engine).index("base")
    list(pair.stubs.values())[place].serve_base = True
    await engine.place(["v1"])
    assert sorted(map(str, held(engine))) == ["base", "v1"]


async def test_a_trial_is_over_when_what_serves_is_placed_again(pair: Host, v1: AdapterRef) -> None:
    engine = await pair.engine()
    assert (await engine.install(v1)).passed
    await engine.place(["base"])
    assert held(engine) == ["base", "base"] and engine.capacity() == 2
