"""How far a trained policy stands from its anchor, measured on its own answers, and the step back where it is too far.

Training reckons its KL on answers that the parent gave. What the candidate would say instead is not among them, so that
estimate comes out low, by up to a half where a policy has moved far. Here the candidate answers itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.models import POLICY, REFERENCE, Backbone
from plaudit_trainer.rollouts import draw_unpublished

HEADROOM = 0.85
"""Of the ceiling, what a candidate may use: the gate measures on other prompts, and what is above it there is lost."""
_CLOSE = 1.05
"""So near to the bound is near enough: each step back costs a drawing of answers."""
_TRIES = 4
_SLOWEST = 1.0
"""Power of the way with which the KL falls at the least. What looks slower is noise of the answers drawn, and a step
back by it would be far too long."""


@dataclass(frozen=True, slots=True)
class Distance:
    """Of the trained policy from its anchor.

    Args:
        kl: nats an answer, before any step back.
        kept: share of the way from the anchor that was kept, 1 where nothing had to be taken back.
    """

    kl: float
    kept: float

    def metrics(self) -> dict[str, float]:
        """As a run reports them."""
        return {"policy/kl_own": self.kl, "policy/step_kept": self.kept}


def keep_within(backbone: Backbone, prompts: Sequence[tuple[int, ...]], config: TrainerConfig) -> Distance:
    """Measure POLICY's KL to its anchor on its own answers; above the ceiling, move it back towards the anchor.

    Back towards the anchor, not towards the parent: a parent may stand at the ceiling itself, and all that was learnt
    in this run would be taken back, whereas on the way to the anchor reward is lost more slowly than distance (Ramé et
    al. 2024, WARP, arXiv 2406.16768). Near the anchor the KL grows with the square of the way, further off more slowly:
    how fast is read off the steps back together. The gate measures what came of it.

    Args:
        prompts: none of the gate's. Without any, nothing is measured and the whole step kept.
    """
    if not prompts:
        return Distance(0.0, 1.0)
    bound = HEADROOM * config.kl_ceiling
    first = kl = own_kl(backbone, POLICY, prompts, config)
    kept, exponent = 1.0, 2.0
    for _ in range(_TRIES):
        if kl <= bound * _CLOSE:
            break
        share = (bound / kl) ** (1 / exponent)
        towards_anchor(backbone, 1 - share, config)
        kept *= share
        kl = own_kl(backbone, POLICY, prompts, config)
        exponent = min(max(math.log(kl / first) / math.log(kept), _SLOWEST), 4.0)
    return Distance(first, kept)


@torch.no_grad()
def towards_anchor(backbone: Backbone, share: float, config: TrainerConfig) -> None:
    """Move POLICY by this share of its way to the anchor: the base model, or the parent."""
    anchor = None if anchor_of(config) is None else backbone.adapter(REFERENCE)
    for name, weight in backbone.adapter(POLICY).items():
        if anchor is not None:
            weight.lerp_(anchor[name], share)
        elif "lora_B" in name:  # the base model is where B·A is 0, and B·A is linear in B
            weight.mul_(1 - share)


def own_kl(backbone: Backbone, adapter: str, prompts: Sequence[tuple[int, ...]], config: TrainerConfig) -> float:
    """KL to the anchor, nats an answer, of what an adapter answers to these prompts."""
    drawn = draw_unpublished(
        backbone,
        prompts,
        max_new_tokens=config.max_new_tokens,
        temperature=1.0,
        seed=config.seed,
        adapter=adapter,
    )
    encoded = backbone.encode([exchange for exchange, _ in drawn])
    return backbone.answer_kls(encoded, adapter, anchor_of(config)).mean().item()


def anchor_of(config: TrainerConfig) -> str | None:
    """The adapter that the KL is measured from; None is the base model."""
    return None if config.kl_anchor == "base" else REFERENCE
