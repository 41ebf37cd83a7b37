"""The reward model: what users would say of an answer, from few votes, with its doubt.

An ensemble of linear heads on the frozen base model's mean-pooled layers (`Encoded.prefix_TF`). Each head is the
maximum a posteriori estimate of Bradley–Terry on pairs plus logistic regression on thumbs, under its own Bayesian
bootstrap of the votes and its own random prior (Osband et al. 2018), so that heads differ where votes are silent.
A fit on hundreds of votes takes well under a second, which is why every figure here can be cross-fitted.

Shapes: B answers, P pairs, K heads, F features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.losses import STD_GUARD, preference_loss, thumbs_loss
from plaudit_trainer.models import Encoded

_FILE = "heads.safetensors"
_WORDS = 2.0
"""How much more the word embeddings (the first half of the features) count than the middle layer: measured best."""


def answer_features(batch: Sequence[Encoded]) -> Tensor:
    """(B, F): of each whole answer."""
    return torch.stack([e.prefix_TF[-1] for e in batch])


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

    def all_features(self) -> Tensor:
        """(B + 2P, F)."""
        return torch.cat([self.features_BF, self.chosen_PF, self.rejected_PF])


@dataclass(slots=True)
class RewardModel:
    """Linear heads on standardised features. Scores are normalised to mean 0, variance 1 on reference answers.

    Args:
        centre_F: mean of each feature over the answers of the first fit.
        scale_F: their standard deviation times √F, so that a standardised answer has length about 1.
        weight_FK: the heads.
        offset_K: the score at which a user is as likely to vote up as down.
        mean: of the raw score on the reference answers.
        std: of the raw score on the reference answers.
    """

    centre_F: Tensor
    scale_F: Tensor
    weight_FK: Tensor
    offset_K: Tensor
    mean: float = 0.0
    std: float = 1.0
    pessimism: float = field(default=0.5)

    @classmethod
    def fresh(cls, features_BF: Tensor, config: TrainerConfig) -> "RewardModel":
        """Untrained heads, drawn from N(0, 1/√(F+1)), on features standardised by these answers."""
        width = features_BF.shape[1]
        generator = torch.Generator().manual_seed(config.seed)
        weight_FK = torch.randn(width, config.reward_heads, generator=generator) / (width + 1) ** 0.5
        scale_F = features_BF.std(0, correction=0).clamp(min=STD_GUARD) * width**0.5
        scale_F[: width // 2] /= _WORDS
        return cls(
            centre_F=features_BF.mean(0),
            scale_F=scale_F,
            weight_FK=weight_FK,
            offset_K=torch.zeros(config.reward_heads),
            pessimism=config.reward_pessimism,
        )

    def standardise(self, features_BF: Tensor) -> Tensor:
        """Features as the heads see them."""
        return (features_BF - self.centre_F) / self.scale_F

    def heads(self, features_BF: Tensor) -> Tensor:
        """(B, K): every head's raw score, less its offset; a logit of an up-vote."""
        return self.standardise(features_BF) @ self.weight_FK - self.offset_K

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
        features_BF = self.standardise(votes.features_BF)
        difference_PF = (votes.chosen_PF - votes.rejected_PF) / self.scale_F
        heads = self.weight_FK.shape[1]
        weight_BK = _bootstrapped(votes.weight_B, heads, generator)
        weight_PK = _bootstrapped(votes.weight_P, heads, generator)
        weight_FK = self.weight_FK.clone().requires_grad_(True)
        offset_K = self.offset_K.clone().requires_grad_(True)
        optimiser = torch.optim.LBFGS(
            [weight_FK, offset_K], max_iter=config.reward_steps, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimiser.zero_grad()
            prior = ((weight_FK - self.weight_FK) ** 2).sum() + 0.1 * ((offset_K - self.offset_K) ** 2).sum()
            total = config.reward_prior / 2 * prior
            total = total + thumbs_loss(features_BF @ weight_FK, votes.label_B, weight_BK, offset_K)
            difference_PK = difference_PF @ weight_FK
            total = total + preference_loss(difference_PK, torch.zeros_like(difference_PK), weight_PK)
            total.backward()
            return total

        optimiser.step(loss)
        fitted = RewardModel(
            self.centre_F, self.scale_F, weight_FK.detach(), offset_K.detach(), pessimism=config.reward_pessimism
        )
        fitted.normalise_on(votes.all_features())
        return fitted

    def save(self, folder: Path) -> None:
        """Write the heads to `folder` as safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"centre": self.centre_F, "scale": self.scale_F, "weight": self.weight_FK, "offset": self.offset_K}
        tensors["normal"] = torch.tensor([self.mean, self.std])
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / _FILE)

    @classmethod
    def load(cls, folder: Path, width: int, config: TrainerConfig) -> "RewardModel | None":
        """What `save` wrote; None where there is none, or it belongs to another base model or number of heads."""
        if not (folder / _FILE).is_file():
            return None
        tensors = load_file(folder / _FILE)
        if tensors["weight"].shape != (width, config.reward_heads):
            return None
        mean, std = tensors["normal"].tolist()
        return cls(
            tensors["centre"],
            tensors["scale"],
            tensors["weight"],
            tensors["offset"],
            mean,
            std,
            config.reward_pessimism,
        )


def _bootstrapped(weight_N: Tensor, heads: int, generator: torch.Generator) -> Tensor:
    """(N, K): Bayesian bootstrap (Rubin 1981), exponential weights of mean 1, half-strength: few votes are precious."""
    draws_NK = torch.empty(len(weight_N), heads).exponential_(generator=generator)
    return weight_N[:, None] * (0.5 + 0.5 * draws_NK)


# How good it is


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures on votes that the scores never saw. AUROC counts ties half; `low` and `high` are its 95 % interval."""

    auroc: float
    low: float
    high: float
    accuracy: float
    calibration_error: float
    n: int

    def metrics(self, prefix: str) -> dict[str, float]:
        """As run metrics."""
        return {
            f"reward/{prefix}_auroc": self.auroc,
            f"reward/{prefix}_auroc_low": self.low,
            f"reward/{prefix}_auroc_high": self.high,
            f"reward/{prefix}_accuracy": self.accuracy,
            f"reward/{prefix}_calibration_error": self.calibration_error,
            f"reward/{prefix}_n": float(self.n),
        }


def quality(rank_B: Tensor, label_B: Tensor, logit_B: Tensor | None = None) -> Quality:
    """How well ranks foretell labels (> 0.5 is up). The interval is DeLong's (1988).

    With one class absent the AUROC is undefined: 0.5 with the interval [0, 1] and the given n is answered.

    Args:
        rank_B: what orders the answers.
        label_B: votes in [0, 1].
        logit_B: logits of an up-vote, for accuracy and calibration; the ranks where there are none.
    """
    logit_B = rank_B if logit_B is None else logit_B
    up_B = label_B > 0.5
    accuracy = ((logit_B > 0) == up_B).float().mean().item() if len(label_B) else 0.0
    error = calibration_error(logit_B.sigmoid(), up_B.float())
    up, down = rank_B[up_B], rank_B[~up_B]
    if len(up) == 0 or len(down) == 0:
        return Quality(0.5, 0.0, 1.0, accuracy, error, len(label_B))
    wins = (up[:, None] > down[None]).double() + 0.5 * (up[:, None] == down[None]).double()
    auroc = wins.mean().item()
    variance = _sample_variance(wins.mean(1)) / len(up) + _sample_variance(wins.mean(0)) / len(down)
    # A perfect ranking of few has no spread of its own; the variance under an exponential model keeps it honest.
    floor = auroc * (1 - auroc) / min(len(up), len(down)) if 0 < auroc < 1 else 0.25 / (len(up) + len(down))
    half = 1.96 * max(variance, 0.25 * floor) ** 0.5
    return Quality(auroc, max(0.0, auroc - half), min(1.0, auroc + half), accuracy, error, len(label_B))


def _sample_variance(x: Tensor) -> float:
    return x.var().item() if len(x) > 1 else 0.25


def calibration_error(probability_B: Tensor, outcome_B: Tensor, bins: int = 10) -> float:
    """Expected calibration error over equally wide bins (Naeini et al. 2015)."""
    if len(outcome_B) == 0:
        return 0.0
    place_B = (probability_B * bins).long().clamp(max=bins - 1)
    gaps = [
        (probability_B[place_B == b].mean() - outcome_B[place_B == b].mean()).abs().item() * (place_B == b).sum().item()
        for b in range(bins)
        if (place_B == b).any()
    ]
    return sum(gaps) / len(outcome_B)


def judged(
    prior: RewardModel, votes: Votes, fold_B: Sequence[int], fold_P: Sequence[int], config: TrainerConfig
) -> Quality:
    """Cross-fitted quality: every vote is judged by heads fitted on the folds it is not in.

    Answers of different folds are ordered by scores normalised on what their heads were fitted to. The heads' offset
    must stay out of it: it follows the share of ups in the other folds, which moves against the share in this one.
    """
    ranks, logits, labels = [], [], []
    for fold in sorted({*fold_B, *fold_P}):
        kept = votes.rows(
            [i for i, f in enumerate(fold_B) if f != fold], [i for i, f in enumerate(fold_P) if f != fold]
        )
        out = votes.rows([i for i, f in enumerate(fold_B) if f == fold], [i for i, f in enumerate(fold_P) if f == fold])
        model = prior.fitted(kept, config)
        ranks.append(_judged_by(model.ranks, out))
        logits.append(_judged_by(model.logits, out))
        labels.append(_labels(out))
    return quality(torch.cat(ranks), torch.cat(labels), torch.cat(logits))


def foretold(model: RewardModel, votes: Votes) -> Quality:
    """Quality of a model on a batch it has not been fitted to: the honest, free test of the *previous* reward model."""
    return quality(_judged_by(model.logits, votes), _labels(votes))


def _judged_by(score: Callable[[Tensor], Tensor], votes: Votes) -> Tensor:
    """Answers' scores, then each pair's difference twice, once in either order, so that both classes are there."""
    difference_P = score(votes.chosen_PF) - score(votes.rejected_PF)
    return torch.cat([score(votes.features_BF), difference_P, -difference_P])


def _labels(votes: Votes) -> Tensor:
    pairs = len(votes.weight_P)
    return torch.cat([votes.label_B, torch.ones(pairs), torch.zeros(pairs)])
