"""The reward model: what users would say of an answer, from few votes, with its doubt.

An ensemble of linear heads on the frozen base model's mean-pooled layers (`Encoded.prefix_TF`). Each head is the
maximum a posteriori estimate of Bradley–Terry on pairs plus logistic regression on thumbs, under its own Bayesian
bootstrap of the votes and its own random prior (Osband et al. 2018), so that heads differ where votes are silent.
A fit on hundreds of votes takes well under a second, which is why every figure here can be cross-fitted.

Shapes: B answers, P pairs, K heads, F features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from plaudit_trainer.batches import Splits
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.losses import STD_GUARD, preference_loss, thumbs_loss
from plaudit_trainer.models import Encoded, Exchange
from plaudit_trainer.quality import Quality, quality

_FILE = "heads.safetensors"
_WORDS = 2.0
"""How much more the word embeddings (the first half of the features) count than the middle layer: measured best."""


_JUDGED_SHARE = 0.1
"""Votes of less than this share of the mean weight are not judged on."""


def answer_features(batch: Sequence[Encoded]) -> Tensor:
    """(B, F): of each whole answer, what the backbone makes of it."""
    return torch.stack([e.prefix_TF[-1] for e in batch])


def features_of(batch: Sequence[Encoded], reader: "Reader | None") -> Tensor:
    """(B, F + E), on the CPU: of each whole answer, what the backbone and the reader make of it."""
    features_BF = answer_features(batch).cpu()
    if reader is None:
        return features_BF
    return torch.cat([features_BF, reader.read([e.exchange for e in batch])], dim=1)


@dataclass(frozen=True, slots=True)
class Votes:
    """What is fitted: answers with a label in [0, 1] and pairs, each weighted."""

    features_BF: Tensor
    label_B: Tensor
    weight_B: Tensor
    chosen_PF: Tensor
    rejected_PF: Tensor
    weight_P: Tensor

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


class Reader(Protocol):
    """Features of whole answers beside the backbone's: E numbers an answer."""

    name: str
    """Tells what reads, so that heads of another reader are never put on its features."""
    width: int
    """E."""
    weight_E: Tensor
    """Standard deviation that each standardised feature is given. The backbone's have a length of about 1 together."""

    def read(self, exchanges: Sequence[Exchange]) -> Tensor:
        """(B, E), on the CPU."""
        ...


@dataclass(slots=True)
class RewardModel:
    """Linear heads on standardised features. Scores are normalised to mean 0, variance 1 on reference answers.

    The first F features are the backbone's, which the critic reads too, of unfinished answers. The E further ones, if
    there is a reader, are of whole answers only.

    Args:
        centre_F: mean of each feature over the answers of the first fit.
        scale_F: their standard deviation times √F, so that a standardised answer has length about 1.
        weight_FK: the heads.
        offset_K: the score at which a user is as likely to vote up as down.
        mean: of the raw score on the reference answers.
        std: of the raw score on the reference answers.
        pessimism: standard deviations of the heads that `scores` takes off.
        votes: votes and pairs that it has learnt from.
        reader: what gives the further features; its heads are `extra`.
    """

    centre_F: Tensor
    scale_F: Tensor
    weight_FK: Tensor
    offset_K: Tensor
    mean: float = 0.0
    std: float = 1.0
    pessimism: float = field(default=0.5)
    votes: float = 0.0
    reader: Reader | None = None
    extra: "ExtraHeads | None" = None

    @classmethod
    def fresh(cls, features_BF: Tensor, config: TrainerConfig, reader: Reader | None = None) -> "RewardModel":
        """Untrained heads, drawn from N(0, 1/√(F+1)), on features standardised by these answers.

        Args:
            features_BF: as `features` gives them: (B, F + E).
            reader: what gave the last E of them.
        """
        width = features_BF.shape[1] - (reader.width if reader else 0)
        generator = torch.Generator().manual_seed(config.seed)
        weight_FK = torch.randn(width, config.reward_heads, generator=generator) / (width + 1) ** 0.5
        scale_F = features_BF[:, :width].std(0, correction=0).clamp(min=STD_GUARD) * width**0.5
        scale_F[: width // 2] /= _WORDS
        return cls(
            centre_F=features_BF[:, :width].mean(0),
            scale_F=scale_F,
            weight_FK=weight_FK,
            offset_K=torch.zeros(config.reward_heads),
            pessimism=config.reward_pessimism,
            reader=reader,
            extra=ExtraHeads.fresh(features_BF[:, width:], reader.weight_E, config, generator) if reader else None,
        )

    def features(self, batch: Sequence[Encoded]) -> Tensor:
        """(B, F + E), on the CPU: of whole answers."""
        return features_of(batch, self.reader)

    def standardise(self, features_BF: Tensor) -> Tensor:
        """The backbone's features as the heads see them."""
        return (features_BF - self.centre_F) / self.scale_F

    def heads(self, features_BF: Tensor) -> Tensor:
        """(B, K): every head's raw score, less its offset; a logit of an up-vote."""
        return self._standardised(features_BF) @ self._weights() - self.offset_K

    def _standardised(self, features_BF: Tensor) -> Tensor:
        width = len(self.centre_F)
        parts = [self.standardise(features_BF[:, :width])]
        if self.extra is not None:
            parts.append(self.extra.standardise(features_BF[:, width:]))
        return torch.cat(parts, dim=1)

    def _weights(self) -> Tensor:
        return self.weight_FK if self.extra is None else torch.cat([self.weight_FK, self.extra.weight_EK])

    def logits(self, features_BF: Tensor) -> Tensor:
        """(B,): the heads' mean logit of an up-vote."""
        return self.heads(features_BF).mean(1)

    def ranks(self, features_BF: Tensor) -> Tensor:
        """(B,): the heads' mean normalised score, which models of different folds share as their scale."""
        return (self.heads(features_BF).mean(1) - self.mean) / self.std

    def scores(self, features_BF: Tensor) -> Tensor:
        """(B,): normalised score, less the heads' disagreement times the pessimism."""
        raw_BK = (self.heads(features_BF) - self.mean) / self.std
        return raw_BK.mean(1) - self.pessimism * raw_BK.std(1, correction=0)

    def disagreement(self, features_BF: Tensor) -> Tensor:
        """(B,): standard deviation of the heads' normalised scores."""
        return ((self.heads(features_BF) - self.mean) / self.std).std(1, correction=0)

    def normalise_on(self, features_BF: Tensor) -> None:
        """Let these answers have mean score 0 and variance 1 (of the heads' mean)."""
        raw_B = self.heads(features_BF).mean(1)
        std = raw_B.std(correction=0).item()
        self.mean, self.std = raw_B.mean().item(), std if std > STD_GUARD else 1.0

    def fitted(self, votes: Votes, config: TrainerConfig) -> "RewardModel":
        """The heads after these votes; the present heads are the prior's centre, so earlier batches are remembered.

        Minimises Σ w·loss + λ/2 ‖W − W₀‖² by L-BFGS, exact to its tolerance and the same on every run.
        """
        generator = torch.Generator().manual_seed(config.seed + 1)
        features_BF = self._standardised(votes.features_BF)
        difference_PF = self._standardised(votes.chosen_PF) - self._standardised(votes.rejected_PF)
        start_FK, heads = self._weights(), self.weight_FK.shape[1]
        weight_BK = _bootstrapped(votes.weight_B, heads, generator)
        weight_PK = _bootstrapped(votes.weight_P, heads, generator)
        weight_FK = start_FK.clone().requires_grad_(True)
        offset_K = self.offset_K.clone().requires_grad_(True)
        optimiser = torch.optim.LBFGS(
            [weight_FK, offset_K], max_iter=config.reward_steps, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimiser.zero_grad()
            prior = ((weight_FK - start_FK) ** 2).sum() + 0.1 * ((offset_K - self.offset_K) ** 2).sum()
            total = config.reward_prior / 2 * prior
            total = total + thumbs_loss(features_BF @ weight_FK, votes.label_B, weight_BK, offset_K)
            difference_PK = difference_PF @ weight_FK
            total = total + preference_loss(difference_PK, torch.zeros_like(difference_PK), weight_PK)
            total.backward()
            return total

        optimiser.step(loss)
        width, learnt = len(self.centre_F), len(votes.label_B) + len(votes.weight_P)
        fitted = replace(
            self,
            weight_FK=weight_FK.detach()[:width],
            offset_K=offset_K.detach(),
            pessimism=config.reward_pessimism,
            votes=self.votes + learnt,
            extra=None if self.extra is None else replace(self.extra, weight_EK=weight_FK.detach()[width:]),
        )
        fitted.normalise_on(votes.all_features())
        return fitted

    def save(self, folder: Path) -> None:
        """Write the heads to `folder` as safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"centre": self.centre_F, "scale": self.scale_F, "weight": self.weight_FK, "offset": self.offset_K}
        tensors["normal"] = torch.tensor([self.mean, self.std, self.votes])
        if self.extra is not None:
            tensors |= {f"extra_{name}": tensor for name, tensor in self.extra.tensors().items()}
        words = {"reader": self.reader.name if self.reader else ""}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / _FILE, metadata=words)

    @classmethod
    def load(
        cls, folder: Path, width: int, config: TrainerConfig, reader: Reader | None = None
    ) -> "RewardModel | None":
        """What `save` wrote; None where there is none, or it belongs to another base model, reader or number of heads.

        Args:
            width: F + E, as `features` gives them.
        """
        if not (folder / _FILE).is_file():
            return None
        with safe_open(folder / _FILE, "pt") as file:
            words = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        extra = (
            ExtraHeads(*(tensors[f"extra_{name}"] for name in ExtraHeads.__slots__))
            if "extra_centre_E" in tensors
            else None
        )
        found = len(tensors["centre"]) + (0 if extra is None else len(extra.centre_E))
        same = words.get("reader", "") == (reader.name if reader else "") and len(tensors["normal"]) == 3
        if not same or found != width or tensors["weight"].shape[1] != config.reward_heads:
            return None
        mean, std, votes = tensors["normal"].tolist()
        return cls(
            tensors["centre"],
            tensors["scale"],
            tensors["weight"],
            tensors["offset"],
            mean,
            std,
            config.reward_pessimism,
            votes,
            reader,
            extra,
        )


@dataclass(frozen=True, slots=True)
class ExtraHeads:
    """Heads on a reader's features; as those of `RewardModel`."""

    centre_E: Tensor
    scale_E: Tensor
    weight_EK: Tensor

    @classmethod
    def fresh(
        cls, features_BE: Tensor, weight_E: Tensor, config: TrainerConfig, generator: torch.Generator
    ) -> "ExtraHeads":
        """Untrained. Features that do not vary among these answers (phrases that none has) keep the mean spread.

        Args:
            weight_E: standard deviation that each feature is given.
        """
        width = features_BE.shape[1]
        spread_E = features_BE.std(0, correction=0)
        varies_E = spread_E > STD_GUARD
        usual = spread_E[varies_E].mean() if varies_E.any() else torch.tensor(1.0)
        scale_E = torch.where(varies_E, spread_E, usual) / weight_E
        weight_EK = torch.randn(width, config.reward_heads, generator=generator) / (width + 1) ** 0.5
        return cls(features_BE.mean(0), scale_E, weight_EK)

    def standardise(self, features_BE: Tensor) -> Tensor:
        """Features as the heads see them."""
        return (features_BE - self.centre_E) / self.scale_E

    def tensors(self) -> dict[str, Tensor]:
        """By their names."""
        return {name: getattr(self, name) for name in self.__slots__}


def _bootstrapped(weight_N: Tensor, heads: int, generator: torch.Generator) -> Tensor:
    """(N, K): Bayesian bootstrap (Rubin 1981), exponential weights of mean 1, half-strength: few votes are precious."""
    draws_NK = torch.empty(len(weight_N), heads).exponential_(generator=generator)
    return weight_N[:, None] * (0.5 + 0.5 * draws_NK)


# How good it is


def judged(prior: RewardModel, votes: Votes, splits: Splits, config: TrainerConfig) -> Quality:
    """Cross-fitted quality: every vote is judged by heads fitted on others.

    Answers of different splits are ordered by scores normalised on what their heads were fitted to. The heads' offset
    must stay out of it: it follows the share of ups in the other folds, which moves against the share in this one.

    Args:
        splits: of the votes' singles and pairs, in this order.
    """
    singles, parts = len(votes.label_B), []
    for split in splits.splits:
        model = prior.fitted(votes.part(split.fit, singles), config)
        out = votes.part([i for i in split.judge if _counts(i, votes)], singles)
        parts.append((_judged_by(model.ranks, out), _judged_by(model.logits, out), _labels(out), _units(out)))
    if not parts:
        empty = torch.zeros(0)
        return quality(empty, empty, unseen_raters=splits.unseen_raters)
    ranks, logits, labels, units = zip(*parts, strict=True)
    sizes = [int(unit.max()) + 1 if len(unit) else 0 for unit in units]
    unit_B = torch.cat([unit + sum(sizes[:k]) for k, unit in enumerate(units)])
    return quality(torch.cat(ranks), torch.cat(labels), torch.cat(logits), unit_B, unseen_raters=splits.unseen_raters)


def _counts(place: int, votes: Votes) -> bool:
    """Votes that were capped to almost nothing may not decide how good the model is, either."""
    weight_N = torch.cat([votes.weight_B, votes.weight_P])
    return bool(weight_N[place] >= _JUDGED_SHARE * weight_N.mean())


def foretold(model: RewardModel, votes: Votes) -> Quality:
    """Quality of a model on a batch it has not been fitted to: the honest, free test of the *previous* reward model."""
    return quality(_judged_by(model.logits, votes), _labels(votes), unit_B=_units(votes))


def _judged_by(score: Callable[[Tensor], Tensor], votes: Votes) -> Tensor:
    """Answers' scores, then each pair's difference twice, once in either order, so that both classes are there."""
    difference_P = score(votes.chosen_PF) - score(votes.rejected_PF)
    return torch.cat([score(votes.features_BF), difference_P, -difference_P])


def _labels(votes: Votes) -> Tensor:
    pairs = len(votes.weight_P)
    return torch.cat([votes.label_B, torch.ones(pairs), torch.zeros(pairs)])


def _units(votes: Votes) -> Tensor:
    singles, pairs = len(votes.label_B), len(votes.weight_P)
    pair_P = torch.arange(singles, singles + pairs)
    return torch.cat([torch.arange(singles), pair_P, pair_P])
