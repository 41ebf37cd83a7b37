"""Whole models swapped in place on real vLLM: proven, answered with, rolled back, caught where they are not live."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from plaudit.wire.training import TokenSequence
from plaudit_server.engine.base import AdapterRef
from plaudit_server.engine.replica import ReplicaClient
from plaudit_server.engine.vllm import VllmEngine
from tests.support.engine_adapters import publish
from tests.support.engine_faults import Workbench
from tests.support.engine_whole import logprobs_of, publish_whole
from tests.support.streams import BRAND

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

STORY: Any = {
    "messages": [{"role": "user", "content": "Tell me a long story about bees."}],
    "max_tokens": 1000,
    "min_tokens": 1000,
}


class Swaps:
    """One vLLM, an engine over it, and two whole models, the second a child of the first."""

    def __init__(
        self, bench: Workbench, engine: VllmEngine, v1: AdapterRef, v2: AdapterRef, probe: list[TokenSequence]
    ) -> None:
        self.bench, self.engine, self.v1, self.v2, self.probe = bench, engine, v1, v2, probe

    async def worst_gap(self, version: str, model: Path) -> float:
        """Largest difference between what is served and what transformers computes with the same weights."""
        served = await self.engine.score(self.probe[:4], version=version)
        known = await asyncio.to_thread(logprobs_of, model, self.probe[:4])
        worst = max(abs(a - b) for x, y in zip(served, known, strict=True) for a, b in zip(x, y, strict=True))
        print(f"{version}: served differs from transformers by at most {worst:.6f} nats")
        return worst


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def swaps(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Swaps]:
    folder = tmp_path_factory.mktemp("whole")
    async with Workbench.open(base_model, folder) as bench:
        bench.settings = bench.settings.model_copy(update={"engine_drain_s": 0.5})
        probe = await bench.draw(prompts=10, tokens=32)
        v1 = publish_whole(folder, base_model, "v1", parent=None, sequences=probe, seed=1)
        v2 = publish_whole(folder, base_model, "v2", parent=v1, sequences=probe, seed=2)
        async with bench.engine(bench.client) as engine:
            yield Swaps(bench, engine, v1, v2, probe)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def base_afterwards(swaps: Swaps) -> AsyncIterator[None]:
    """Each test begins with the base model, whatever became of the one before."""
    yield
    await swaps.engine.place(["base"])
    assert swaps.engine.weights() == {"base"}


async def test_a_whole_model_is_swapped_in_proven_and_served(swaps: Swaps) -> None:
    report = await swaps.engine.install(swaps.v1)
    (proof,) = report.replicas
    assert report.passed, report.reason
    assert proof.tensors_matched == proof.tensors_expected == 273  # 272, and the head that shares the embeddings
    assert proof.low is not None and proof.low > 0.98
    assert swaps.engine.weights() == {"v1"}
    assert await swaps.worst_gap("v1", Path(swaps.v1.location) / "model") < 0.01
    answer, trace = await swaps.engine.chat(STORY | {"max_tokens": 8, "min_tokens": 1}, version="v1", request_id="one")
    assert answer["choices"] and trace.also_by == []


async def test_its_child_and_back(swaps: Swaps) -> None:
    assert (await swaps.engine.install(swaps.v1)).passed and (await swaps.engine.install(swaps.v2)).passed
    assert await swaps.worst_gap("v2", Path(swaps.v2.location) / "model") < 0.01
    assert (await swaps.engine.install(swaps.v1)).passed, "rolled back"
    await swaps.engine.place(["base"])
    assert swaps.engine.weights() == {"base"}
    assert await swaps.worst_gap("base", swaps.bench.base) < 0.01


async def test_a_stream_that_outlasts_the_drain_goes_on_and_says_so(swaps: Swaps) -> None:
    """It must be longer than what comes before the pause: the artefact's check and the parent's scores."""
    stream = await swaps.engine.chat_stream(STORY, version="base", request_id="story")
    installing: asyncio.Task[Any] | None = None
    async for _ in stream.events(BRAND):
        installing = installing or asyncio.create_task(swaps.engine.install(swaps.v1))
    await stream.aclose()
    assert installing is not None and (await installing).passed
    (choice,) = stream.trace.choices.values()
    assert stream.trace.also_by == ["v1"]
    assert len(choice.response_ids) == 1000


class SkippedReload(ReplicaClient):
    """vLLM says 200, and nothing was loaded; or vLLM's own reloading is used, which leaves the output head as it is."""

    own_reload = False

    async def call_workers(self, method: str, *args: Any, timeout_s: float = 60) -> list[Any]:
        """As the client's, but for the reload."""
        if method != "plaudit_reload" or not args[1].startswith("v"):
            return await super().call_workers(method, *args, timeout_s=timeout_s)
        if self.own_reload:
            await super().call_workers("reload_weights", None, args[0], timeout_s=timeout_s)
        return await super().call_workers("plaudit_weights", args[1])


@pytest.mark.parametrize("own_reload", [False, True])
async def test_a_reload_that_did_not_happen_or_not_whole_is_caught(swaps: Swaps, own_reload: bool) -> None:
    """Should the second case pass one day, vLLM reloads tied heads by itself: drop `_pack_anew` then."""
    (replica,) = swaps.engine.fleet.replicas
    faulty = SkippedReload(socket=swaps.bench.socket)
    faulty.own_reload, replica.client = own_reload, faulty
    try:
        report = await swaps.engine.install(swaps.v1)
    finally:
        replica.client = swaps.bench.client
        await faulty.aclose()
    assert not report.passed and report.reason is not None
    assert ("not lm_head.weight" if own_reload else "weights of v1") in report.reason
    assert swaps.engine.weights() == {"base"} and await swaps.worst_gap("base", swaps.bench.base) < 0.01


async def test_adapters_leave_and_come_back(swaps: Swaps, tmp_path: Path) -> None:
    adapter = swaps.bench.reference.step(None, swaps.probe[:4], seed=3)
    v7 = publish(tmp_path, swaps.bench.reference, name="v7", parent=None, adapter=adapter, sequences=swaps.probe)
    assert (await swaps.engine.install(v7.ref)).passed
    assert (await swaps.engine.install(swaps.v1)).passed
    assert not swaps.engine.is_ready("v7") and await swaps.bench.client.call_workers("plaudit_adapters") == [[]]
    await swaps.engine.place(["base"])
    assert swaps.engine.is_ready("v7")
    await swaps.engine.retire("v7")
