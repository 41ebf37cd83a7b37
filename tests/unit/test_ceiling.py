"""A candidate too far from its anchor is brought back by as much as its own answers say, and no further."""

import pytest
import torch

from plaudit_trainer.ceiling import HEADROOM, keep_within, own_kl
from plaudit_trainer.models import POLICY, REFERENCE, Backbone
from tests.support.tiny_models import stir, tiny_backbone, tiny_config

PROMPTS = [(5 + i % 50, 6 + i // 50, 7) for i in range(256)]


def stirred(policy: float, parent: float = 0.0) -> Backbone:
    backbone = tiny_backbone()
    for name, size in ((REFERENCE, parent), (POLICY, policy)):
        if size:
            stir(backbone, name, size)
    return backbone


def weights(backbone: Backbone, name: str) -> list[torch.Tensor]:
    return [w.detach().clone() for w in backbone.adapter(name).values()]


def test_a_step_beyond_the_ceiling_is_shortened_to_lie_below_it() -> None:
    backbone = stirred(0.5)
    reached = own_kl(backbone, POLICY, PROMPTS, tiny_config())
    config = tiny_config(kl_ceiling=reached / 2)
    parent = weights(backbone, REFERENCE)
    distance = keep_within(backbone, PROMPTS, config)
    assert distance.kl == pytest.approx(reached)
    assert distance.kept == pytest.approx(HEADROOM / 2, rel=1e-3)
    assert 0 < own_kl(backbone, POLICY, PROMPTS, config) <= HEADROOM * config.kl_ceiling
    assert distance.alarms() == []
    assert all(torch.equal(a, b) for a, b in zip(parent, weights(backbone, REFERENCE), strict=True))


def test_a_step_within_the_ceiling_is_left_alone() -> None:
    backbone = stirred(0.2)
    before = weights(backbone, POLICY)
    distance = keep_within(backbone, PROMPTS, tiny_config(kl_ceiling=1e6))
    assert distance.kept == 1 and distance.kl > 0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(backbone, POLICY), strict=True))


def test_a_parent_at_the_ceiling_lets_no_step_further_away() -> None:
    backbone = stirred(0.6, parent=0.5)
    parent = own_kl(backbone, REFERENCE, PROMPTS, tiny_config())
    assert own_kl(backbone, POLICY, PROMPTS, tiny_config()) > parent
    distance = keep_within(backbone, PROMPTS, tiny_config(kl_ceiling=parent / 2))
    assert distance.kept == 0 and "next to nothing was kept" in " ".join(distance.alarms())
    assert all(torch.equal(a, b) for a, b in zip(weights(backbone, POLICY), weights(backbone, REFERENCE), strict=True))


def test_from_the_parent_a_parent_far_off_costs_nothing() -> None:
    """With the parent as the anchor, only the step itself is measured."""
    backbone = stirred(0.5, parent=0.5)
    assert own_kl(backbone, REFERENCE, PROMPTS, tiny_config(kl_anchor="parent")) == pytest.approx(0, abs=1e-5)
    assert keep_within(backbone, PROMPTS, tiny_config(kl_anchor="parent", kl_ceiling=0.5)).kept == 1


def test_without_prompts_nothing_is_measured() -> None:
    assert keep_within(stirred(0.5), [], tiny_config(kl_ceiling=0.1)).kept == 1
