"""Swap faults on real vLLM with the real model: each is caught, and good swaps raise no alarm."""

from pathlib import Path

import pytest

from tests.support.engine_adapters import publish
from tests.support.engine_faults import Case, on_wrong_base, renamed, zeroed

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


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
    sequences = await case.bench.draw(prompts=8, tokens=48)
    version = publish(tmp_path, other, name="v3", parent=None, adapter=case.parent.adapter, sequences=sequences)

    report = await case.bench.install(version, case.bench.client, None)

    assert not report.passed and report.reason is not None and "base model" in report.reason


async def test_one_replica_missed(case: Case) -> None:
    """Two replicas over one vLLM. The one that missed may even see the other's tensors: behaviour gives it away."""
    version = renamed(case.parent, "v4", case.bench.reference.fingerprint)
    bad = case.bench.faulty("load skipped")
    async with case.bench.engine(case.bench.client, bad) as engine:
        report = await engine.install(version.ref)

        assert not report.passed and report.reason is not None and report.reason.startswith("engine-1:")
        assert not engine.is_ready("v4"), "not even on the replica that has it"
