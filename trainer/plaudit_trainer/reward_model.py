"""The reward model: what users would say of an answer, from few votes, with its doubt.

An ensemble of linear heads on what the frozen base model makes of an answer: mean-pooled layers, which the critic
reads of unfinished answers too (`Encoded.prefix_TF`), and states further up, of whole answers (`Encoded.whole_E`).
Each head is the maximum a posteriori estimate of Bradley–Terry on pairs plus logistic regression on thumbs, under its
own Bayesian bootstrap of the votes and its own random prior (Osband et al. 2018), so that heads differ where votes are
silent. A fit on hundreds of votes takes well under a second, which is why every figure here can be cross-fitted.

Shapes: B answers, P pairs, K heads, F features of prefixes, E features of whole answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from plaudit_trainer import reward_fit
from plaudit_trainer.batches import Splits
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.losses import STD_GUARD
from plaudit_trainer.models import Encoded, Exchange
from plaudit_trainer.quality import Quality, quality
from plaudit_trainer.reward_fit import STRENGTHS, Evidence, Heads, Strength, Votes

_FILE = "heads.safetensors"
_WORDS = 2.0
"""How much more the word embeddings (the first half of F) count than the middle layer: measured best."""


_JUDGED_SHARE = 0.1
"""Votes of less than this share of the mean weight are not judged on."""


def answer_features(batch: Sequence[Encoded]) -> Tensor:
    """(B, F + E): of each whole answer, what the backbone makes of it."""
    return torch.stack([torch.cat([e.prefix_TF[-1], e.whole_E]) for e in batch])


def features_of(batch: Sequence[Encoded], reader: "Reader | None") -> Tensor:
    """(B, F + E), on the CPU: of each whole answer, what the backbone and then the reader make of it."""
    features_BX = answer_features(batch).cpu()
    if reader is None:
        return features_BX
    return torch.cat([features_BX, reader.read([e.exchange for e in batch])], dim=1)


class Reader(Protocol):
    """Features of whole answers beside the backbone's."""

    name: str
    """Tells what reads, so that heads of another reader are never put on its features."""
    width: int
    """How many numbers an answer."""
    weight_E: Tensor
    """Standard deviation that each standardised feature is given. The backbone's have a length of about 1 together."""

    def read(self, exchanges: Sequence[Exchange]) -> Tensor:
        """(B, width), on the CPU."""
        ...


@dataclass(slots=True)
class RewardModel:
    """Linear heads on standardised features. Scores are normalised to mean 0, variance 1 on reference answers.

    The first F features are those that the critic reads too, of unfinished answers. The E further ones are of whole
    answers only: the backbone's states, then what the reader reads.

    Args:
        centre_F: mean of each feature over the answers of the first fit.
        scale_F: their standard deviation times √F, so that a standardised answer has length about 1.
        weight_FK: the heads.
        offset_K: the score at which a user is as likely to vote up as down.
        mean: of the raw score on the reference answers.
        std: of the raw score on the reference answers.
        whole: the heads on the E further features.
        reader: what gave the last of them.
        pessimism: standard deviations of the heads that `scores` takes off.
        votes: votes and pairs that it has learnt from.
        strength: of the priors of the last fit.
    """

    centre_F: Tensor
    scale_F: Tensor
    weight_FK: Tensor
    offset_K: Tensor
    whole: "WholeHeads"
    reader: Reader | None = None
    mean: float = 0.0
    std: float = 1.0
    pessimism: float = 0.5
    votes: float = 0.0
    strength: Strength = STRENGTHS[0]

    @classmethod
    def fresh(cls, features_BF: Tensor, config: TrainerConfig, reader: Reader | None = None) -> "RewardModel":
        """Untrained heads, drawn from N(0, 1/√(F+1)), on features standardised by these answers.

        Args:
            features_BF: as `features` gives them: (B, F + E).
            reader: what gave the last of them.
        """
        width = _prefix_width(features_BF.shape[1], reader)
        generator = torch.Generator().manual_seed(config.seed)
        weight_FK = torch.randn(width, config.reward_heads, generator=generator) / (width + 1) ** 0.5
        scale_F = features_BF[:, :width].std(0, correction=0).clamp(min=STD_GUARD) * width**0.5
        scale_F[: width // 2] /= _WORDS
        return cls(
            centre_F=features_BF[:, :width].mean(0),
            scale_F=scale_F,
            weight_FK=weight_FK,
            offset_K=torch.zeros(config.reward_heads),
            whole=WholeHeads.fresh(features_BF[:, width:], reader, config, generator),
            reader=reader,
            pessimism=config.reward_pessimism,
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
        parts = self.standardise(features_BF[:, :width]), self.whole.standardise(features_BF[:, width:])
        return torch.cat(parts, dim=1)

    def _weights(self) -> Tensor:
        return torch.cat([self.weight_FK, self.whole.weight_EK])

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

    def liked(self, features_BF: Tensor) -> Tensor:
        """(B,): chance of an up-vote, the heads' mean, so that doubt draws it towards ½.

        Where there were pairs only, nothing tells the offset: it is the chance to be preferred to a middling answer.
        """
        return self.heads(features_BF).sigmoid().mean(1)

    def disagreement(self, features_BF: Tensor) -> Tensor:
        """(B,): standard deviation of the heads' normalised scores."""
        return ((self.heads(features_BF) - self.mean) / self.std).std(1, correction=0)

    def normalise_on(self, features_BF: Tensor) -> None:
        """Let these answers have mean score 0 and variance 1 (of the heads' mean)."""
        raw_B = self.heads(features_BF).mean(1)
        std = raw_B.std(correction=0).item()
        self.mean, self.std = raw_B.mean().item(), std if std > STD_GUARD else 1.0

    def fitted(self, votes: Votes, config: TrainerConfig) -> "RewardModel":
        """The heads after these votes; the present heads are the prior's centre, so earlier batches are remembered."""
        width, seen = len(self.centre_F), self._evidence(votes)
        start = Heads(self._weights(), self.offset_K)
        strength = reward_fit.best_strength(seen, start, config)
        generator = torch.Generator().manual_seed(config.seed + 1)
        found = reward_fit.fitted(seen, start, strength, config, generator)
        model = replace(
            self,
            weight_FK=found.weight_FK[:width],
            whole=replace(self.whole, weight_EK=found.weight_FK[width:]),
            offset_K=found.offset_K,
            pessimism=config.reward_pessimism,
            votes=self.votes + len(votes),
            strength=strength,
        )
        model.normalise_on(votes.all_features())
        return model

    def _evidence(self, votes: Votes) -> Evidence:
        features_BF = self._standardised(votes.features_BF)
        difference_PF = self._standardised(votes.chosen_PF) - self._standardised(votes.rejected_PF)
        width = len(self.centre_F)
        state_F = torch.zeros(features_BF.shape[1], dtype=torch.bool)
        state_F[width : 2 * width] = True
        return Evidence(features_BF, votes.label_B, votes.weight_B, difference_PF, votes.weight_P, state_F)

    def save(self, folder: Path) -> None:
        """Write the heads to `folder` as safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"centre": self.centre_F, "scale": self.scale_F, "weight": self.weight_FK, "offset": self.offset_K}
        tensors["normal"] = torch.tensor([self.mean, self.std, self.votes])
        tensors |= {f"whole_{name}": tensor for name, tensor in self.whole.tensors().items()}
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
        names = [f"whole_{name}" for name in WholeHeads.__slots__]
        same = words.get("reader", "") == (reader.name if reader else "") and all(name in tensors for name in names)
        if not same or tensors["weight"].shape[1] != config.reward_heads:
            return None
        whole = WholeHeads(*(tensors[name] for name in names))
        if len(tensors["centre"]) + len(whole.centre_E) != width:
            return None
        mean, std, votes = tensors["normal"].tolist()
        return cls(
            tensors["centre"],
            tensors["scale"],
            tensors["weight"],
            tensors["offset"],
            whole,
            reader,
            mean,
            std,
            config.reward_pessimism,
            votes,
        )


def _prefix_width(width: int, reader: Reader | None) -> int:
    """F: as many of the backbone's features are of prefixes as are of whole answers."""
    return (width - (reader.width if reader else 0)) // 2


@dataclass(frozen=True, slots=True)
class WholeHeads:
    """Heads on what is read of whole answers only; as those of `RewardModel`."""

    centre_E: Tensor
    scale_E: Tensor
    weight_EK: Tensor

    @classmethod
    def fresh(
        cls, features_BE: Tensor, reader: Reader | None, config: TrainerConfig, generator: torch.Generator
    ) -> "WholeHeads":
        """Untrained. Features that do not vary among these answers (phrases that none has) keep the mean spread.

        Args:
            reader: what gave the last of the features.
        """
        width = features_BE.shape[1]
        states = width - (reader.width if reader else 0)
        weight_E = torch.full((states,), max(states, 1) ** -0.5)
        if reader is not None:
            weight_E = torch.cat([weight_E, reader.weight_E])
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
