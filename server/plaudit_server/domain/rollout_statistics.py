"""The statistics of a rollout: evidence that a candidate is worse, and a bound on how much worse it may be.

Both may be looked at as often as one likes. An e-value is a bet at fair odds under the hypothesis: by Ville's
inequality it ever reaches 20 with a probability of at most 1/20. A confidence sequence holds at all times at once. A
z-test that is looked at daily promises neither.

Sources: Lindon & Malek, arXiv 2011.03567 (the e-values; Netflix's canaries, arXiv 2205.14762); Waudby-Smith, Arbour,
Sinha, Kennedy & Ramdas, Ann. Statist. 2024, arXiv 2103.06476 (the confidence sequence).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

CONCENTRATION = 20.0
"""a + b of the Beta prior, whose mean is the candidate's share."""

ENOUGH = 20.0
"""The e-value that decides: at most 1 wrong decision in 20, however often one looks."""

ALPHA = 0.05
"""How often the confidence sequence of the difference may ever be wrong."""

TUNED_FOR = 2000
"""Raters near which the confidence sequence is tightest. Any number is valid that does not depend on the data."""

_MAX_TERMS = 200_000
_TINY = 1e-300


def log_evidence_of_harm(downs: int, on_candidate: int, share: float) -> float:
    """The natural log of e_n = ∫ (θ/ρ)^x ((1−θ)/(1−ρ))^(n−x) dπ(θ), π = Beta(20ρ, 20(1−ρ)) truncated to (ρ, 1).

    Under "the candidate gets no more down-votes than its share" this is a supermartingale that began at e = 1.

    Args:
        downs: n, down-votes on both arms.
        on_candidate: x, those of them on the candidate.
        share: ρ, the candidate's share of users, above 0 and below 1.
    """
    a, b = CONCENTRATION * share, CONCENTRATION * (1 - share)
    x, rest = on_candidate, downs - on_candidate
    posterior = _log_beta(a + x, b + rest) + _log_upper_tail(share, a + x, b + rest)
    prior = _log_beta(a, b) + _log_upper_tail(share, a, b)
    return posterior - prior - x * math.log(share) - rest * math.log1p(-share)


def log_evidence_of_imbalance(exposed: int, on_candidate: int, share: float) -> float:
    """The same bet, on both sides: the log of the e-value against "users fall on the candidate by its share".

    Args:
        exposed: users who were answered.
        on_candidate: those of them answered by the candidate.
        share: ρ, above 0 and below 1.
    """
    a, b = CONCENTRATION * share, CONCENTRATION * (1 - share)
    x, rest = on_candidate, exposed - on_candidate
    return _log_beta(a + x, b + rest) - _log_beta(a, b) - x * math.log(share) - rest * math.log1p(-share)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean of pseudo-outcomes: its value, the variance of one of them, and how many there are."""

    value: float
    variance: float
    n: float

    def lower(self, alpha: float = ALPHA, tuned_for: float = TUNED_FOR) -> float:
        """The lower end of its one-sided confidence sequence, which is right at all times at once."""
        return self.value - float(half_width(self.variance, self.n, alpha, tuned_for))


def difference_of_up_rates(counts: npt.ArrayLike, shares: npt.ArrayLike) -> tuple[Numbers, Numbers, Numbers]:
    """Δ = up-rate(candidate) − up-rate(stable) over segments of constant share: mean, variance, n of pseudo-outcomes.

    Augmented inverse-probability weighting: a rater of segment s counts
    μ₁ − μ₀ + A(Y − μ₁)/ρ_s − (1 − A)(Y − μ₀)/(1 − ρ_s), A for the candidate and Y for up.
    With one segment the mean is the plain difference. With several it is not fooled by a good day on which the share
    was large, as a pooled difference would be. The variance is never below what the rates themselves imply with one
    more vote of each kind on each arm, so that a few raters of one mind do not look like certainty.

    Args:
        counts: raters, of shape (…, segments, 2 arms: stable and candidate, 2 votes: down and up).
        shares: ρ of each segment.

    Returns:
        Three arrays of the leading shape. Where an arm has no rater its rate is taken as one half.
    """
    raters = np.asarray(counts, dtype=np.float64)
    share = np.asarray(shares, dtype=np.float64)
    by_arm = raters.sum(axis=-3)
    of_arm = by_arm.sum(axis=-1)
    up_rate = np.divide(by_arm[..., 1], of_arm, out=np.full(of_arm.shape, 0.5), where=of_arm > 0)
    delta = up_rate[..., 1] - up_rate[..., 0]
    # (segments, 2 arms): by how much an arm's residual is weighed, with its sign.
    weight = np.stack([-1 / (1 - share), 1 / share], axis=-1)
    residual = np.stack([-up_rate, 1 - up_rate], axis=-1)
    outcome = delta[..., None, None, None] + weight[:, :, None] * residual[..., None, :, :]
    n = raters.sum(axis=(-3, -2, -1))
    safe_n = np.maximum(n, 1)
    mean = (raters * outcome).sum(axis=(-3, -2, -1)) / safe_n
    spread = (raters * outcome**2).sum(axis=(-3, -2, -1)) / safe_n - mean**2
    guarded = (by_arm[..., 1] + 1) / (of_arm + 2)
    of_segment = raters.sum(axis=(-2, -1))
    inverse = (of_segment[..., None] * np.abs(weight)).sum(axis=-2) / safe_n[..., None]
    implied = (guarded * (1 - guarded) * inverse).sum(axis=-1)
    return mean, np.maximum(spread, implied), n


def half_width(
    variance: npt.ArrayLike, n: npt.ArrayLike, alpha: float = ALPHA, tuned_for: float = TUNED_FOR
) -> Numbers:
    """How far below its mean the one-sided asymptotic confidence sequence ends; infinite without data.

    σ √( 2(nr² + 1)/(n²r²) · ln(1 + √(nr² + 1)/(2α)) ), with r² such that it is tightest near `tuned_for`.
    """
    count = np.maximum(np.asarray(n, dtype=np.float64), _TINY)
    r2 = (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / tuned_for
    grown = count * r2 + 1
    width = np.sqrt(
        np.asarray(variance, dtype=np.float64)
        * 2
        * grown
        / (count * r2)
        / count
        * np.log1p(np.sqrt(grown) / (2 * alpha))
    )
    return np.where(np.asarray(n) > 0, width, np.inf)


@dataclass(frozen=True, slots=True)
class Moments:
    """What is kept of a figure that every user of an arm has one of: how many users, Σ and Σ²."""

    users: int = 0
    total: float = 0.0
    squares: float = 0.0

    @property
    def mean(self) -> float | None:
        """The mean over users; None without any."""
        return self.total / self.users if self.users else None

    @property
    def variance(self) -> float:
        """The sample variance; 0 below two users."""
        if self.users < 2:
            return 0.0
        return max(0.0, (self.squares - self.total**2 / self.users) / (self.users - 1))


def contrast(candidate: Moments, stable: Moments, *, times: float = 1.0) -> Estimate:
    """mean(candidate) − times · mean(stable), with the variance that belongs to all users of both arms together."""
    n = candidate.users + stable.users
    if not candidate.users or not stable.users:
        return Estimate(0.0, math.inf, n)
    value = candidate.total / candidate.users - times * stable.total / stable.users
    spread = candidate.variance / candidate.users + times**2 * stable.variance / stable.users
    return Estimate(value, spread * n, n)


def estimate(counts: Sequence[Any], shares: Sequence[float]) -> Estimate:
    """`difference_of_up_rates` of one rollout."""
    mean, variance, n = difference_of_up_rates(counts, shares)
    return Estimate(float(mean), float(variance), float(n))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_upper_tail(cut: float, a: float, b: float) -> float:
    """log P(θ > cut) for θ ~ Beta(a, b), right also where the probability is far too small for a float."""
    if cut > (a + 1) / (a + b + 2):
        return _log_lower_tail(1 - cut, b, a)
    return math.log1p(-math.exp(_log_lower_tail(cut, a, b)))


def _log_lower_tail(x: float, a: float, b: float) -> float:
    """The log of the regularised incomplete beta I_x(a, b), by its continued fraction, for x below the mean or near."""
    front = a * math.log(x) + b * math.log1p(-x) - _log_beta(a, b) - math.log(a)
    return front + math.log(_continued_fraction(x, a, b))


def _continued_fraction(x: float, a: float, b: float) -> float:
    """Lentz's method on DLMF 8.17.22. Needs about √max(a, b) terms.

    Raises:
        ArithmeticError: it does not converge, which for a and b below 10⁹ it does.
    """
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = 1.0
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            change = c * d
            value *= change
        if abs(change - 1) < 1e-14:
            return value
    raise ArithmeticError(f"the incomplete beta at x = {x}, a = {a}, b = {b} does not converge")


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
