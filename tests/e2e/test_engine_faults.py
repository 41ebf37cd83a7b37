"""Swap faults on real vLLM with the real model: each is caught, and good swaps raise no alarm."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from plaudit.wire.versions import ReplicaProof
from plaudit_server.engine.replica import ReplicaClient
from tests.support.engine_adapters import Published, publish
from tests.support.engine_faults import Workbench, on_wrong_base, zeroed

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]


class Case:
    """A workbench with a parent and its child, both a small step of training."""

    def __init__(self, bench: Workbench, parent: Published, new: Published) -> None:
        self.bench, self.parent, self.new = bench, parent, new

    async def install(self, client: ReplicaClient) -> ReplicaProof:
        report = await self.bench.install(self.new, client, self.parent)
        assert report.passed == report.replicas[0].passed
        return report.replicas[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def case(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Case]:
    folder = tmp_path_factory.mktemp("swap")
    async with Workbench.open(base_model, folder) as bench:
        sequences = await bench.draw(prompts=16, tokens=48)
        first = bench.reference.step(None, sequences[:4], seed=1)
        parent = publish(folder, bench.reference, name="v1", parent=None, adapter=first, sequences=sequences)
        second = bench.reference.step(first, sequences[4:8], seed=2)
        new = publish(folder, bench.reference, name="v2", parent=parent, adapter=second, sequences=sequences)
        yield Case(bench, parent, new)


async def test_good_swaps_raise_no_alarm(case: Case) -> None:
    for _ in range(3):
        proof = await case.install(case.bench.client)

        assert proof.passed, proof.reason
        assert proof.tensors_matched == proof.tensors_expected == 420
        assert proof.low is not None and proof.low > 0.8


async def test_served_log_probabilities_are_the_trainers(case: Case) -> None:
    """On the CPU both compute in float32: what is served is what was trained, not nearly so."""
    result = await case.bench.slope_alone(case.new, Path(case.new.ref.location) / "adapter", case.parent)

    assert result.passed, result.reason
    assert result.parent_gap < 0.01 and result.new_gap < 0.01


async def test_load_skipped(case: Case) -> None:
    proof = await case.install(case.bench.faulty("load skipped"))

    assert not proof.passed and proof.reason is not None and "hold 0 new adapters" in proof.reason
    assert (await case.bench.slope_alone(case.new, None, None)).slope == 0


async def test_base_served(case: Case) -> None:
    proof = await case.install(case.bench.faulty("base served"))

    assert not proof.passed and proof.high is not None and proof.high < 0.8
    assert proof.tensors_matched == 420, "the bytes are there: only behaviour tells"


async def test_parents_adapter_under_the_new_name(case: Case) -> None:
    instead = Path(case.parent.ref.location) / "adapter"
    proof = await case.install(case.bench.faulty("another", instead))

    assert not proof.passed and proof.reason is not None and "tensors as published" in proof.reason
    alone = await case.bench.slope_alone(case.new, instead, case.parent)
    assert not alone.passed and abs(alone.slope) < 0.05


async def test_zeroed_adapter(case: Case) -> None:
    proof = await case.install(case.bench.faulty("another", zeroed(case.new)))

    assert not proof.passed and proof.reason is not None and "tensors as published" in proof.reason
    alone = await case.bench.slope_alone(case.new, zeroed(case.new), case.parent)
    assert not alone.passed and alone.high < 0.8


async def test_wrong_base(case: Case, tmp_path: Path) -> None:
    """The trainer had another base: the adapter's bytes are right and its slope may be too, the levels are not."""
    other = on_wrong_base(case.bench.reference, size=0.05, seed=3)
    sequences = await case.bench.draw(prompts=16, tokens=48)
    version = publish(tmp_path, other, name="v3", parent=None, adapter=case.parent.adapter, sequences=sequences)

    report = await case.bench.install(version, case.bench.client, None)

    assert not report.passed and report.reason is not None and "base model" in report.reason


async def test_one_replica_missed(case: Case) -> None:
    """Two replicas over one vLLM. The one that missed may even see the other's tensors: behaviour gives it away."""
    bad = case.bench.faulty("none")
    async with case.bench.engine(case.bench.client, bad) as engine:
        bad.fault = "load skipped"
        report = await engine.install(case.parent.ref)

        assert not report.passed and report.reason is not None and report.reason.startswith("engine-1:")
        assert not engine.is_ready("v1"), "not even on the replica that has it"
