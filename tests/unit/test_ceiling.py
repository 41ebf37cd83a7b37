"""A candidate too far from its anchor is brought back by as much as its own answers say, and no further."""

import math

import pytest
import torch

from plaudit_trainer import ceiling
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


def test_a_step_beyond_the_ceiling_is_scaled_back_to_lie_below_it() -> None:
    backbone = stirred(0.5)
    reached = own_kl(backbone, POLICY, PROMPTS, tiny_config())
    config = tiny_config(kl_ceiling=reached / 2)
    parent = weights(backbone, REFERENCE)
    distance = keep_within(backbone, PROMPTS, config)
    assert distance.kl == pytest.approx(reached)
    assert 0.1 < distance.kept <= math.sqrt(HEADROOM / 2)
    assert 0.7 < own_kl(backbone, POLICY, PROMPTS, config) / (HEADROOM * config.kl_ceiling) <= 1.05
    assert all(torch.equal(a, b) for a, b in zip(parent, weights(backbone, REFERENCE), strict=True))


def test_a_step_within_the_ceiling_is_left_alone() -> None:
    backbone = stirred(0.2)
    before = weights(backbone, POLICY)
    distance = keep_within(backbone, PROMPTS, tiny_config(kl_ceiling=1e6))
    assert distance.kept == 1 and distance.kl > 0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(backbone, POLICY), strict=True))


def test_from_a_parent_beyond_the_ceiling_a_step_is_kept_but_brought_nearer_to_base() -> None:
    """Its direction is what was learnt: the product B·A only becomes shorter."""
    backbone = stirred(0.6, parent=0.5)
    parent = own_kl(backbone, REFERENCE, PROMPTS, tiny_config())
    before = deltas(backbone)
    distance = keep_within(backbone, PROMPTS, tiny_config(kl_ceiling=parent / 2))
    assert 0 < distance.kept < 1
    for old, new in zip(before, deltas(backbone), strict=True):
        torch.testing.assert_close(new, distance.kept * old)


def deltas(backbone: Backbone) -> list[torch.Tensor]:
    """B·A of each layer of POLICY."""
    adapter = backbone.adapter(POLICY)
    return [
        (adapter[n.replace("lora_A", "lora_B")] @ weight).detach() for n, weight in adapter.items() if "lora_A" in n
    ]


def test_with_the_parent_as_the_anchor_it_is_the_parent_that_a_step_goes_back_to() -> None:
    backbone = stirred(0.6, parent=0.5)
    config = tiny_config(kl_anchor="parent")
    reached = own_kl(backbone, POLICY, PROMPTS, config)
    parent, policy = weights(backbone, REFERENCE), weights(backbone, POLICY)
    distance = keep_within(backbone, PROMPTS, tiny_config(kl_anchor="parent", kl_ceiling=reached / 4 / HEADROOM))
    assert 0 < distance.kept <= 0.5
    for ours, before, after in zip(weights(backbone, POLICY), policy, parent, strict=True):
        torch.testing.assert_close(ours, torch.lerp(after, before, distance.kept))


def test_from_the_parent_a_parent_far_off_costs_nothing() -> None:
    """With the parent as the anchor, only the step itself is measured."""
    backbone = stirred(0.5, parent=0.5)
    assert own_kl(backbone, REFERENCE, PROMPTS, tiny_config(kl_anchor="parent")) == pytest.approx(0, abs=1e-5)
    assert keep_within(backbone, PROMPTS, tiny_config(kl_anchor="parent", kl_ceiling=0.5)).kept == 1


def test_noise_that_hides_a_step_back_does_not_make_the_next_one_far_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen in a run: 8.12 nats, brought back by 8 %, 8.13 by other answers; the next step then took a third of all."""
    measured = iter([8.12, 8.13, 5.0])
    monkeypatch.setattr(ceiling, "own_kl", lambda *_: next(measured))
    assert 0.75 < keep_within(stirred(0.5), PROMPTS, tiny_config(kl_ceiling=8.0)).kept < 0.8


def test_without_prompts_nothing_is_measured() -> None:
    assert keep_within(stirred(0.5), [], tiny_config(kl_ceiling=0.1)).kept == 1
