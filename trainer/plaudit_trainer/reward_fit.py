"""Fitting heads to votes: maximum a posteriori, with priors as strong as cross-validation finds best.

Features come in two kinds. The plain ones (averaged word embeddings and middle layer, what readers read) tell tastes
apart from few votes. The states of the whole answer, from further up, say more of what it means, and need more votes.
How far either kind may move from its prior is chosen for each fit.

Shapes: B answers, P pairs, K heads, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.losses import preference_loss, thumbs_loss

_OFFSET = 0.1
"""Prior precision of the offset, where that of the plain features is 1."""
_FOLDS = 4
_FEWEST = 24
"""Below so many votes and pairs there is nothing to choose by: the first strength is taken."""


@dataclass(frozen=True, slots=True)
class Votes:
    """What is fitted: answers with a label in [0, 1] and pairs, each weighted."""

    features_BF: Tensor
    label_B: Tensor
    weight_B: Tensor
    chosen_PF: Tensor
    rejected_PF: Tensor
    weight_P: Tensor

    def __len__(self) -> int:
        return len(self.label_B) + len(self.weight_P)

    def rows(self, singles: Sequence[int], pairs: Sequence[int]) -> "Votes":
        """Only these answers and these pairs."""
        s, p = torch.tensor(singles, dtype=torch.long), torch.tensor(pairs, dtype=torch.long)
        return Votes(
            self.features_BF[s],
            self.label_B[s],
            self.weight_B[s],
            self.chosen_PF[p],
            self.rejected_PF[p],
            self.weight_P[p],
        )

    def part(self, places: Sequence[int], singles: int) -> "Votes":
        """Only these, by their places in singles followed by pairs; `singles` is how many singles there are."""
        return self.rows([i for i in places if i < singles], [i - singles for i in places if i >= singles])

    def all_features(self) -> Tensor:
        """(B + 2P, F)."""
        return torch.cat([self.features_BF, self.chosen_PF, self.rejected_PF])


@dataclass(frozen=True, slots=True)
class Strength:
    """Precision of the prior on the weights of either kind of feature, in votes."""

    plain: float
    states: float


STRENGTHS = (Strength(1, 4), Strength(3, 3), Strength(10, 2.5), Strength(100, 3))
"""From what a few votes on words want to what a thousand human preferences want (docs/explanation/experiments.md)."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Votes as the heads see them.

    Args:
        features_BF: standardised.
        difference_PF: chosen less rejected, standardised.
        state_F: which features are states of the whole answer.
    """

    features_BF: Tensor
    label_B: Tensor
    weight_B: Tensor
    difference_PF: Tensor
    weight_P: Tensor
    state_F: Tensor

    def where(self, take_N: Tensor) -> "Evidence":
        """Only these of the singles followed by the pairs."""
        b, p = take_N[: len(self.label_B)], take_N[len(self.label_B) :]
        parts = self.features_BF[b], self.label_B[b], self.weight_B[b], self.difference_PF[p], self.weight_P[p]
        return Evidence(*parts, self.state_F)

    def loss(self, weight_FK: Tensor, offset_K: Tensor, weight_BK: Tensor, weight_PK: Tensor) -> Tensor:
        """Σ w·loss over votes and heads."""
        difference_PK = self.difference_PF @ weight_FK
        preferences = preference_loss(difference_PK, torch.zeros_like(difference_PK), weight_PK)
        return thumbs_loss(self.features_BF @ weight_FK, self.label_B, weight_BK, offset_K) + preferences


@dataclass(frozen=True, slots=True)
class Heads:
    """Weights and offsets."""

    weight_FK: Tensor
    offset_K: Tensor

    def mean(self) -> "Heads":
        """Their mean as a single one."""
        return Heads(self.weight_FK.mean(1, keepdim=True), self.offset_K.mean(0, keepdim=True))


def fitted(seen: Evidence, start: Heads, strength: Strength, config: TrainerConfig, draw: torch.Generator) -> Heads:
    """Each head fitted to its own Bayesian bootstrap of the votes; see `maximum_a_posteriori`."""
    heads = start.weight_FK.shape[1]
    return maximum_a_posteriori(
        seen,
        start,
        strength,
        config,
        weight_BK=_bootstrapped(seen.weight_B, heads, draw),
        weight_PK=_bootstrapped(seen.weight_P, heads, draw),
    )


def maximum_a_posteriori(
    seen: Evidence, start: Heads, strength: Strength, config: TrainerConfig, *, weight_BK: Tensor, weight_PK: Tensor
) -> Heads:
    """Minimises Σ w·loss + ½ Σ λ_f (W − W₀)² by L-BFGS, exact to its tolerance and the same on every run.

    Args:
        start: W₀, the prior's centre.
        strength: λ, times `reward_prior`.
    """
    weight_FK = start.weight_FK.clone().requires_grad_(True)
    offset_K = start.offset_K.clone().requires_grad_(True)
    precision_F = config.reward_prior * torch.where(seen.state_F, strength.states, strength.plain)
    precision = config.reward_prior * _OFFSET * strength.plain
    optimiser = torch.optim.LBFGS([weight_FK, offset_K], max_iter=config.reward_steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        prior = (precision_F[:, None] * (weight_FK - start.weight_FK) ** 2).sum()
        prior = prior + precision * ((offset_K - start.offset_K) ** 2).sum()
        total = prior / 2 + seen.loss(weight_FK, offset_K, weight_BK, weight_PK)
        total.backward()
        return total

    optimiser.step(loss)
    return Heads(weight_FK.detach(), offset_K.detach())


def best_strength(seen: Evidence, start: Heads, config: TrainerConfig) -> Strength:
    """The strength whose fits to three quarters of the votes foretell the last quarter with the least log-loss."""
    count = len(seen.label_B) + len(seen.weight_P)
    if count < _FEWEST:
        return STRENGTHS[0]
    order_N = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    alone = start.mean()

    def missed(strength: Strength) -> float:
        total = 0.0
        for fold in range(_FOLDS):
            inside, outside = seen.where(order_N % _FOLDS != fold), seen.where(order_N % _FOLDS == fold)
            weights = {"weight_BK": inside.weight_B[:, None], "weight_PK": inside.weight_P[:, None]}
            found = maximum_a_posteriori(inside, alone, strength, config, **weights)
            judged = outside.weight_B[:, None], outside.weight_P[:, None]
            total += outside.loss(found.weight_FK, found.offset_K, *judged).item()
        return total

    return min(STRENGTHS, key=missed)


def _bootstrapped(weight_N: Tensor, heads: int, generator: torch.Generator) -> Tensor:
    """(N, K): Bayesian bootstrap (Rubin 1981), exponential weights of mean 1, half-strength: few votes are precious."""
    draws_NK = torch.empty(len(weight_N), heads).exponential_(generator=generator)
    return weight_N[:, None] * (0.5 + 0.5 * draws_NK)
