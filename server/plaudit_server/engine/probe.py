"""Is what is served what was trained? Pure statistics on log-probabilities.

The trainer gives, for each probe token i, its log-probability under the parent and under the new version. The served
engine scores the same tokens under both names. With x_i the trained change and y_i the served change (new − parent),

    y_i = α + β x_i + noise_i,

β is 1 when the new adapter is live, 0 when parent or base answers in its place, and in between when only a part of
the adapter is applied. Levels cannot tell: bfloat16 moves a log-probability by 0.05 on average, as much as a small
PPO step does. The change can, over a few thousand tokens.

**The interval.** The noise is larger on improbable tokens and shared by neighbours in a sequence, so tokens are not
independent and have no common variance; ordinary standard errors would be too small. Whole sequences are
independent, so β's variance is estimated by leaving out one sequence at a time (the cluster jackknife, CV3) and the
interval uses Student's t with (sequences − 1) degrees of freedom. Of the usual cluster-robust estimators this is the
conservative one when clusters are few or unequal: MacKinnon, Nielsen & Webb, "Cluster-robust inference: a guide to
empirical practice", Journal of Econometrics 232 (2023), §3.

**Attenuation.** Noise in y widens the interval but does not move β; noise in x would shrink it towards 0. Where the
engine serves in float32 the trainer computes x in float32 and there is none. In bfloat16 there is no way around it: an
adapter's contribution below half a unit in the last place of a layer's output is rounded away, so a third of a small
step is lost *systematically*, in trainer and engine alike, and only x in the same precision shows it. Then the change
in float32, z, serves as an instrument: it is correlated with the true change and with nobody's rounding, and
β = cov(z, y) / cov(z, x) is 1 for the right adapter whatever the noise in x (instrumental variables; Wooldridge,
"Econometric Analysis of Cross Section and Panel Data", 2nd ed., §5.1). With z = x it is least squares again.

**Levels** serve for one thing: the parent as served must agree with the trainer's parent within the stack's own
noise, otherwise the base weights are other ones (a right adapter on a wrong base still has a slope near 1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MIN_SEQUENCES = 8
"""Fewer clusters give no interval that could be trusted near the bounds."""

CLEAR_SEQUENCES = 4
"""So many are enough where the interval, by Student's t with three degrees of freedom, is far inside the bounds."""

CLEAR_HALF_WIDTH = 0.02
"""A passing interval this narrow, a tenth of what the bounds allow, needs no further sequences."""

PARENT_TOLERANCE = 0.15
"""Largest mean |served − trained| log-probability (nats) of the parent; measured noise is 0.04 to 0.07."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the probe showed.

    Args:
        slope: β, or None where it cannot be estimated.
        low, high: its 95 % interval.
        correlation: of served and trained change.
        tokens: tokens compared.
        parent_gap: mean |served − trained| log-probability of the parent, nats.
        new_gap: the same of the new version.
        reason: why it failed; None where it passed.
    """

    slope: float | None
    low: float | None
    high: float | None
    correlation: float | None
    tokens: int
    parent_gap: float
    new_gap: float
    reason: str | None

    @property
    def passed(self) -> bool:
        """Whether the right adapter is proven live."""
        return self.reason is None


@dataclass(frozen=True, slots=True)
class ScoredSequence:
    """Log-probabilities (nats) of one sequence's response tokens, by who computed them and of what.

    `exact_change` is the instrument; None where the trained change is exact itself.
    """

    trained_parent: Sequence[float]
    trained_new: Sequence[float]
    served_parent: Sequence[float]
    served_new: Sequence[float]
    exact_change: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Slope:
    """A slope with its 95 % interval."""

    value: float
    low: float
    high: float


def judge(sequences: Sequence[ScoredSequence], *, low: float, high: float) -> ProbeResult:
    """Decide whether the new adapter is live.

    Args:
        sequences: the probe, scored.
        low, high: bounds within which β's whole interval must lie.
    """
    trained_parent = [np.asarray(s.trained_parent, float) for s in sequences]
    trained_new = [np.asarray(s.trained_new, float) for s in sequences]
    served_parent = [np.asarray(s.served_parent, float) for s in sequences]
    served_new = [np.asarray(s.served_new, float) for s in sequences]
    x = [new - parent for new, parent in zip(trained_new, trained_parent, strict=True)]
    y = [new - parent for new, parent in zip(served_new, served_parent, strict=True)]
    z = [
        change if s.exact_change is None else np.asarray(s.exact_change, float)
        for s, change in zip(sequences, x, strict=True)
    ]
    slope = cluster_slope(x, y, z)
    gap, new_gap = _gap(served_parent, trained_parent), _gap(served_new, trained_new)
    return ProbeResult(
        slope=slope.value if slope else None,
        low=slope.low if slope else None,
        high=slope.high if slope else None,
        correlation=_correlation(np.concatenate(x), np.concatenate(y)) if x else None,
        tokens=sum(map(len, x)),
        parent_gap=gap,
        new_gap=new_gap,
        reason=_verdict(slope, gap, len(sequences), low, high),
    )


def looks(sequences: int) -> list[int]:
    """After how many of a probe's sequences to judge: where they leave no doubt, the rest need not be scored."""
    return [*(n for n in (CLEAR_SEQUENCES, MIN_SEQUENCES) if n < sequences), sequences]


def is_beyond_doubt(result: ProbeResult) -> bool:
    """Whether a part of a probe passes so clearly that the rest need not be asked for."""
    if not result.passed or result.low is None or result.high is None:
        return False
    return _is_clear(result.low, result.high)


def _is_clear(low: float, high: float) -> bool:
    return high - low <= 2 * CLEAR_HALF_WIDTH


def _verdict(slope: Slope | None, parent_gap: float, sequences: int, low: float, high: float) -> str | None:
    """Why it fails, or None. The first reason is the most telling one."""
    if sequences < MIN_SEQUENCES and (slope is None or not _is_clear(slope.low, slope.high)):
        return f"the probe has {sequences} sequences; {MIN_SEQUENCES} are needed"
    if not parent_gap <= PARENT_TOLERANCE:
        return (
            f"the parent as served differs from the trainer's by {parent_gap:.3f} nats a token "
            f"(at most {PARENT_TOLERANCE}): the base model or the parent is another one"
        )
    if slope is None:
        return "change too small to prove: the trainer saw none on the probe tokens"
    if low <= slope.low and slope.high <= high:
        return None
    interval = f"slope {slope.value:.2f}, 95 % interval {slope.low:.2f} to {slope.high:.2f}"
    return f"{_complaint(slope, low, high)} ({interval}, must lie in {low:g} to {high:g})"


def _complaint(slope: Slope, low: float, high: float) -> str:
    """What an interval that is not within the bounds means."""
    if slope.low <= 0 <= slope.high and slope.high < low:
        return "the parent or nothing is live, not the new adapter"
    if slope.high < low or slope.low > high:
        return "what is served did not change as it was trained to"
    if slope.high - slope.low > high - low:
        return "change too small to prove"
    return "the served change is not proven to be the trained one"


def cluster_slope(x: Sequence[Floats], y: Sequence[Floats], z: Sequence[Floats] | None = None) -> Slope | None:
    """Slope of y on x with intercept and instrument z, and its cluster-jackknife 95 % interval.

    Args:
        x, y: one array a cluster, equal lengths pairwise.
        z: the instrument, likewise; None: x itself, which is least squares.

    Returns:
        None where there are fewer than `CLEAR_SEQUENCES`, or z and x do not vary together, also without one of them.
    """
    if len(x) < CLEAR_SEQUENCES:
        return None
    rows = zip(x, y, z if z is not None else x, strict=True)
    sums = np.array([[len(a), a.sum(), b.sum(), c.sum(), c @ a, c @ b] for a, b, c in rows])
    total = sums.sum(axis=0)
    whole, without = _slope(total[None, :]), _slope(total - sums)
    if not np.all(np.isfinite(whole)) or not np.all(np.isfinite(without)):
        return None
    clusters = len(x)
    value = float(whole[0])
    # CV3: (G − 1)/G Σ (β₋g − β)², centred on β itself, which is the more conservative form.
    error = math.sqrt((clusters - 1) / clusters * float(np.sum((without - value) ** 2)))
    reach = student_t_975(clusters - 1) * error
    return Slope(value, value - reach, value + reach)


def _slope(sums: Floats) -> Floats:
    """Slopes from rows of (n, Σx, Σy, Σz, Σzx, Σzy); NaN where z and x do not vary together."""
    n, sx, sy, sz, szx, szy = sums.T
    shared = n * szx - sz * sx
    enough = shared > 1e-12 * np.maximum(n * np.abs(szx), 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(enough, (n * szy - sz * sy) / shared, np.nan)


def student_t_975(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, by the Cornish–Fisher expansion (Abramowitz & Stegun 26.7.5).

    Within 0.2 % from 3 degrees of freedom on.
    """
    z = 1.959963984540054
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def _gap(served: Sequence[Floats], trained: Sequence[Floats]) -> float:
    """Mean absolute difference; infinite where there is nothing to compare."""
    if not served:
        return math.inf
    return float(np.mean(np.abs(np.concatenate(served) - np.concatenate(trained))))


def _correlation(x: Floats, y: Floats) -> float | None:
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])
