"""Dealing passes over processes: each row counts once, and nobody waits for somebody who does not come."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit_trainer import precision
from plaudit_trainer.distributed import ALONE, Crew, LedReporter, LedSampler, leading
from tests.support.tiny_models import tiny_backbone, tiny_config
from tests.support.tiny_votes import Quiet


def pairs(lengths: list[int]) -> list[list[int]]:
    """A grouping: two rows a pass, longest first."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[i : i + 2] for i in range(0, len(order), 2)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 5))
def test_every_row_counts_once_in_as_many_passes_on_each_process(lengths: list[int], size: int) -> None:
    dealt = [Crew(rank, size).deal(lengths, pairs) for rank in range(size)]
    assert sorted(row for passes in dealt for rows, counts in passes if counts for row in rows) == list(
        range(len(lengths))
    )
    assert len({len(passes) for passes in dealt}) == 1
    assert all(len(rows) == 1 for passes in dealt for rows, counts in passes if not counts)


def test_shares_are_alike() -> None:
    lengths = [100, 90, 80, 70, 10, 9, 8, 7]
    loads = [sum(lengths[r] for rows, _ in Crew(rank, 2).deal(lengths, pairs) for r in rows) for rank in (0, 1)]
    assert abs(loads[0] - loads[1]) < 0.1 * sum(lengths)


def test_alone_nothing_is_exchanged() -> None:
    tensor = torch.ones(2)
    ALONE.add_up([tensor])
    assert tensor.tolist() == [1, 1]
    assert ALONE.gathered({3: tensor}, torch.device("cpu")) == {3: tensor}
    assert (ALONE.told("a"), ALONE.led(lambda: "b"), ALONE.largest(2.0)) == ("a", "b", 2.0)
    ALONE.settle()


def test_the_leaders_reporter_and_sampler_are_asked() -> None:
    log = Quiet()
    reporter = LedReporter(ALONE, log)
    reporter.stage("policy", 3)
    reporter.step(1, {"a": 1.0})
    assert (log.stages, log.steps) == (["policy"], [{"a": 1.0}])

    class Refuses:
        def generate(self, *_: object, **__: object) -> None:
            raise LookupError

    with pytest.raises(LookupError):
        LedSampler(ALONE, Refuses()).generate([], version="base", n=1, sampling=None)  # type: ignore[arg-type]


def test_the_leader_decides_the_precision_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each measuring for itself, unlike CPUs could compute the same run in different precisions."""
    told: list[Any] = []
    used: list[str] = []
    monkeypatch.setattr(Crew, "told", lambda _, word: told.append(word))
    monkeypatch.setattr(Crew, "settle", lambda _: None)
    monkeypatch.setattr(precision, "bfloat16_is_faster", lambda: True)
    lead: Any = leading(Crew(0, 2), lambda *lesson: used.append(lesson[-1].precision))  # type: ignore[arg-type, return-value]
    lead("job", None, None, tiny_config(precision="auto", device="cpu"))
    assert [config.precision for _, config in told] == used == ["bfloat16"]


def test_alone_a_backbones_passes_are_its_buckets() -> None:
    backbone = tiny_backbone(token_budget=20)
    lengths = [3, 9, 4, 4, 7, 2, 30, 5]
    passes = backbone.passes(lengths)
    assert all(counts for _, counts in passes)
    assert sorted(r for rows, _ in passes for r in rows) == list(range(8))
