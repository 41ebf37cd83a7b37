"""How well scores foretell votes that they never saw: AUROC, accuracy, calibration error, each with its interval.

Shapes: B items, U units. A voted answer is one item and one unit; a pair is two items (its difference, and the
difference the other way round, so that both classes are there) and one unit: intervals count units.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_BINS = 10
_RESAMPLES = 1000
_Z = 1.96


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures on `n` votes and pairs. AUROC counts ties half.

    `unseen_raters`: whether the raters, too, were unseen, and not only the prompts.
    """

    auroc: Figure
    accuracy: Figure
    calibration_error: Figure
    n: int
    unseen_raters: bool = True

    def metrics(self, prefix: str) -> dict[str, float]:
        """As run metrics."""
        named = {"auroc": self.auroc, "accuracy": self.accuracy, "calibration_error": self.calibration_error}
        figures = {f"{prefix}_n": float(self.n), f"{prefix}_unseen_raters": float(self.unseen_raters)}
        for name, figure in named.items():
            figures |= {f"{prefix}_{name}": figure.value}
            figures |= {f"{prefix}_{name}_low": figure.low, f"{prefix}_{name}_high": figure.high}
        return {f"reward/{name}": value for name, value in figures.items()}

    def words(self) -> str:
        """For a reader: figure, interval, n."""
        raters = "" if self.unseen_raters else ", of raters it knows"
        low, high = self.auroc.low, self.auroc.high
        return f"AUROC {self.auroc.value:.2f} (95 % {low:.2f} to {high:.2f}, n = {self.n}{raters})"


def quality(
    rank_B: Tensor,
    label_B: Tensor,
    logit_B: Tensor | None = None,
    unit_B: Tensor | None = None,
    *,
    unseen_raters: bool = True,
) -> Quality:
    """How well ranks foretell labels (> 0.5 is up).

    With one class absent the AUROC is undefined: 0.5 with the interval [0, 1] is answered.

    Args:
        rank_B: what orders the answers.
        label_B: votes in [0, 1].
        logit_B: logits of an up-vote, for accuracy and calibration; the ranks where there are none.
        unit_B: the unit of each item, 0 to U − 1; each its own where there are none.
    """
    logit_B = rank_B if logit_B is None else logit_B
    unit_B = torch.arange(len(rank_B)) if unit_B is None else unit_B
    units = int(unit_B.max()) + 1 if len(unit_B) else 0
    up_B = label_B > 0.5
    right_U = torch.zeros(units).index_add(0, unit_B, ((logit_B > 0) == up_B).float())
    right_U /= torch.bincount(unit_B, minlength=units).clamp(min=1)
    return Quality(
        auroc=auroc(rank_B, up_B, unit_B),
        accuracy=wilson(right_U.sum().item(), units),
        calibration_error=calibration(logit_B.sigmoid(), up_B.float(), unit_B),
        n=units,
        unseen_raters=unseen_raters,
    )


def auroc(rank_B: Tensor, up_B: Tensor, unit_B: Tensor) -> Figure:
    """Area under the receiver operating characteristic; DeLong's interval (1988), clustered as Obuchowski's (1997)."""
    up, down = rank_B[up_B], rank_B[~up_B]
    if len(up) == 0 or len(down) == 0:
        return Figure(0.5, 0.0, 1.0)
    wins = (up[:, None] > down[None]).double() + 0.5 * (up[:, None] == down[None]).double()
    value = wins.mean().item()
    influence_B = torch.zeros(len(rank_B), dtype=torch.float64)
    influence_B[up_B] = (wins.mean(1) - value) / len(up)
    influence_B[~up_B] = (wins.mean(0) - value) / len(down)
    units = int(unit_B.max()) + 1
    variance = torch.zeros(units, dtype=torch.float64).index_add(0, unit_B, influence_B).square().sum().item()
    variance *= units / max(units - 1, 1)
    # A perfect ranking of few has no spread of its own; the variance under an exponential model keeps it honest.
    floor = value * (1 - value) / min(len(up), len(down)) if 0 < value < 1 else 0.25 / units
    half = _Z * max(variance, 0.25 * floor) ** 0.5
    return Figure(value, max(0.0, value - half), min(1.0, value + half))


def wilson(right: float, n: int) -> Figure:
    """A share with Wilson's interval (1927)."""
    if n == 0:
        return Figure(0.5, 0.0, 1.0)
    p, z = right / n, _Z
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Figure(p, max(0.0, middle - half), min(1.0, middle + half))


def calibration(probability_B: Tensor, outcome_B: Tensor, unit_B: Tensor) -> Figure:
    """Expected calibration error; its interval is a percentile bootstrap of units."""
    value = calibration_error(probability_B, outcome_B)
    if len(outcome_B) == 0:
        return Figure(value, 0.0, 1.0)
    units = int(unit_B.max()) + 1
    draw = torch.Generator().manual_seed(0)
    picked_RU = torch.randint(units, (_RESAMPLES, units), generator=draw)
    times_RU = torch.zeros(_RESAMPLES, units).scatter_add_(1, picked_RU, torch.ones(_RESAMPLES, units))
    errors_R = _errors(probability_B, outcome_B, times_RU[:, unit_B])
    low, high = errors_R.quantile(torch.tensor([0.025, 0.975])).tolist()
    return Figure(value, low, high)


def calibration_error(probability_B: Tensor, outcome_B: Tensor) -> float:
    """Mean distance of foretold and true share over ten equally wide bins, weighted by their size (Naeini 2015)."""
    if len(outcome_B) == 0:
        return 0.0
    return _errors(probability_B, outcome_B, torch.ones(1, len(outcome_B)))[0].item()


def _errors(probability_B: Tensor, outcome_B: Tensor, times_RB: Tensor) -> Tensor:
    """(R,): the error where item b counts `times_RB[r, b]` times. Sizes cancel: Σ |Σ (p − y)| ÷ Σ 1."""
    bin_B = (probability_B * _BINS).long().clamp(max=_BINS - 1)
    gap_BN = torch.zeros(len(bin_B), _BINS)
    gap_BN[torch.arange(len(bin_B)), bin_B] = probability_B.float() - outcome_B.float()
    return (times_RB @ gap_BN).abs().sum(1) / times_RB.sum(1)
