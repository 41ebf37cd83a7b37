"""A token that is thrown away is drawn from nobody's generator. The runner is a stand-in; e2e asks real vLLM."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from plaudit_server.engine import cpu_seeds


@dataclass
class Batch:
    generators: dict[int, Any]
    num_reqs: int = 3


@dataclass
class Mask:
    np: Any


@dataclass
class CpuGenerator:
    """As torch's: it draws, and cannot be rewound."""

    drawn: int = 0

    def set_offset(self, _: int) -> None:
        raise RuntimeError("CPU Generator does not use offset")


@dataclass
class Runner:
    """What of vLLM's runner matters here."""

    input_batch: Batch
    discard_request_mask: Mask
    seen: list[list[int]] = field(default_factory=list)

    def _sample(self, logits: str, metadata: Any = None) -> str:
        for generator in self.input_batch.generators.values():
            generator.drawn += 1
        return f"tokens of {logits}"

    def _bookkeeping_sync(self, tokens: str) -> str:
        self.seen.append(sorted(self.input_batch.generators))
        for index in self.discard_request_mask.np[: self.input_batch.num_reqs].nonzero()[0]:
            generator = self.input_batch.generators.get(int(index))
            if generator is not None:
                generator.set_offset(0)
        if tokens == "broken":
            raise ValueError("broken")
        return tokens


def a_step(thrown_away: list[bool]) -> Any:
    """Requests 0 and 2 are seeded; the mask is longer than the batch, as vLLM's is."""
    kind = type("Runner", (Runner,), dict(Runner.__dict__))
    cpu_seeds.set_aside(kind)
    return kind(Batch({0: CpuGenerator(), 2: CpuGenerator()}), Mask(np.array([*thrown_away, True, True])))


def test_vllms_own_way_raises() -> None:
    runner = Runner(Batch({0: CpuGenerator()}), Mask(np.array([True])))
    with pytest.raises(RuntimeError, match="does not use offset"):
        runner._bookkeeping_sync("x")


def test_only_what_is_kept_is_drawn_and_all_generators_are_there_for_the_next_step() -> None:
    runner = a_step([True, True, False])
    before = dict(runner.input_batch.generators)

    assert runner._bookkeeping_sync(runner._sample("logits", metadata=None)) == "tokens of logits"

    assert runner.seen == [[2]]
    assert runner.input_batch.generators == before
    assert [before[i].drawn for i in (0, 2)] == [0, 1]

    runner.discard_request_mask.np[:] = False
    runner._bookkeeping_sync(runner._sample("logits"))
    assert [before[i].drawn for i in (0, 2)] == [1, 2]


def test_they_come_back_after_an_error_too() -> None:
    runner = a_step([True, False, False])
    runner._sample("logits")
    with pytest.raises(ValueError, match="broken"):
        runner._bookkeeping_sync("broken")
    assert sorted(runner.input_batch.generators) == [0, 2]
