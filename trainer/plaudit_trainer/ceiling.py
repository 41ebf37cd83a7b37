"""How far a trained policy stands from its anchor, measured on its own answers, and the step back where it is too far.

Training reckons its KL on answers that the parent gave. What the candidate would say instead is not among them, so that
estimate comes out low, by up to a half where a policy has moved far. Here the candidate answers itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from plaudit_trainer import losses
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.models import POLICY, REFERENCE, Backbone
from plaudit_trainer.rollouts import draw_unpublished

HEADROOM = 0.85
"""Of the ceiling, what a candidate may use: the gate measures on other prompts, and what is above it there is lost."""
_HARDLY_A_STEP = 0.05


@dataclass(frozen=True, slots=True)
class Distance:
    """Of the trained policy from its anchor.

    Args:
        kl: nats an answer, before any step back.
        kept: share of the way from the parent that was kept, 1 where nothing had to be taken back.
    """

    kl: float
    kept: float

    def metrics(self) -> dict[str, float]:
        """As a run reports them."""
        return {"policy/kl_own": self.kl, "policy/step_kept": self.kept}

    def alarms(self) -> list[str]:
        """Whether nothing was left of the step."""
        if self.kept > _HARDLY_A_STEP:
            return []
        return ["the parent stands at the KL ceiling already, and training led further away: next to nothing was kept"]


def keep_within(backbone: Backbone, prompts: Sequence[tuple[int, ...]], config: TrainerConfig) -> Distance:
    """Measure POLICY's KL to its anchor on its own answers; above the ceiling, move it back towards REFERENCE.

    Along the way from parent to candidate the KL is convex, if the adapter's two factors are taken to move the
    distribution linearly: so the share (bound − KL of the parent) / (KL of the candidate − KL of the parent) of the
    step lies within the bound. The gate measures what came of it.

    Args:
        prompts: none of the gate's. Without any, nothing is measured and the whole step kept.
    """
    if not prompts:
        return Distance(0.0, 1.0)
    bound = HEADROOM * config.kl_ceiling
    reached = own_kl(backbone, POLICY, prompts, config)
    if reached <= bound:
        return Distance(reached, 1.0)
    parent = own_kl(backbone, REFERENCE, prompts, config)
    kept = min(1.0, max(0.0, bound - parent) / max(reached - parent, losses.STD_GUARD))
    with torch.no_grad():
        for name, weight in backbone.adapter(POLICY).items():
            weight.lerp_(backbone.adapter(REFERENCE)[name], 1 - kept)
    return Distance(reached, kept)


def own_kl(backbone: Backbone, adapter: str, prompts: Sequence[tuple[int, ...]], config: TrainerConfig) -> float:
    """KL to the anchor, nats an answer, of what an adapter answers to these prompts (low-variance estimator)."""
    drawn = draw_unpublished(
        backbone,
        prompts,
        max_new_tokens=config.max_new_tokens,
        temperature=1.0,
        seed=config.seed,
        adapter=adapter,
    )
    encoded = backbone.encode([exchange for exchange, _ in drawn])
    ones = [1.0] * len(encoded)
    with backbone.using(adapter):
        own = backbone.all_logprobs(encoded, ones)
    with backbone.using(None if config.kl_anchor == "base" else REFERENCE):
        anchor = backbone.all_logprobs(encoded, ones)
    return torch.stack([losses.kl_penalty(a, b).sum() for a, b in zip(own, anchor, strict=True)]).mean().item()
