"""How often do canaries judge rightly? Rollouts simulated by the thousand, with the server's own formulas.

    python -m benchmarks.rollout             # the table of docs/explanation/rollout-statistics.md; one thread, minutes
    python -m benchmarks.rollout --quick

A rating is one user's one vote. After every single one the evidence is looked at: that is the worst case for a test
that must not be looked at often, and the promise of one that may. Four tables:

- ours: rolled back at e ≥ 20, promoted when the difference certainly lies above −5 points with ≥ 100 raters an arm.
- habits: a z-test peeked at every 50 ratings, and "5 checks, back when the canary is 5 points below", though nothing is
  wrong.
- chatty: the same e-value over every vote of users who vote often, instead of one vote a user.
- guardrails: how often they fire at their bound, where they should not, and how soon where something is broken.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks.report import write_result
from plaudit_server.domain import rollout_statistics as rs
from plaudit_server.domain.rollouts import GUARDRAIL_ALPHA, MARGIN, guardrail_alpha

BLOCK = 250
MIN_RATERS = 100

Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class World:
    """Up-rates of both arms, and the canary's share from each number of ratings on (multiples of `BLOCK`)."""

    name: str
    stable: float
    canary: float
    steps: tuple[tuple[int, float], ...] = ((0, 0.2),)

    @property
    def shares(self) -> list[float]:
        """ρ of each segment."""
        return [share for _, share in self.steps]

    def segment_at(self, rating: int) -> int:
        """The segment in which a rating falls."""
        return max(i for i, (begins, _) in enumerate(self.steps) if begins <= rating)


WORLDS = (
    World("no difference", 0.8, 0.8),
    World("no difference, 5 % canary", 0.8, 0.8, ((0, 0.05),)),
    World("no difference, 50 % canary", 0.8, 0.8, ((0, 0.5),)),
    World("no difference, steps 5 → 20 → 50 %", 0.8, 0.8, ((0, 0.05), (500, 0.2), (1000, 0.5))),
    World("canary 20 points worse", 0.8, 0.6),
    World("canary 10 points worse", 0.8, 0.7),
    World("canary 5 points worse (the margin)", 0.8, 0.75),
    World("canary 5 points better", 0.8, 0.85),
    World("canary 20 points worse, steps", 0.8, 0.6, ((0, 0.05), (500, 0.2), (1000, 0.5))),
)


@dataclass(slots=True)
class Outcome:
    """What became of each replicate: 0 undecided, 1 rolled back, 2 promoted; ratings seen, and those on the canary."""

    decision: npt.NDArray[np.int64]
    ratings: Counts
    on_canary: Counts

    def figures(self) -> dict[str, float | None]:
        """Shares in per cent, medians in ratings."""
        back, up = self.decision == 1, self.decision == 2
        return {
            "rolled_back_percent": round(100 * float(back.mean()), 2),
            "promoted_percent": round(100 * float(up.mean()), 2),
            "undecided_percent": round(100 * float((self.decision == 0).mean()), 2),
            "median_ratings_to_rollback": _median(self.ratings[back]),
            "of_them_on_canary": _median(self.on_canary[back]),
            "median_ratings_to_promotion": _median(self.ratings[up]),
        }


def simulate(world: World, replicates: int, rng: np.random.Generator, *, cap: int = 20_000) -> Outcome:
    """Rate until decided, or until `cap` ratings."""
    counts = np.zeros((replicates, len(world.steps), 2, 2), dtype=np.int64)
    outcome = Outcome(*(np.zeros(replicates, dtype=np.int64) for _ in range(3)))
    for begin in range(0, cap, BLOCK):
        live = np.flatnonzero(outcome.decision == 0)
        if not live.size:
            break
        here = world.segment_at(begin)
        grown = _rate(world, here, counts[live], rng)
        decision = _decide(grown, world.shares)
        decided = decision.any(axis=1)
        first = np.where(decided, decision.astype(bool).argmax(axis=1), BLOCK - 1)
        rows = np.arange(live.size)
        outcome.decision[live] = decision[rows, first]
        outcome.ratings[live] = begin + first + 1
        counts[live] = grown[rows, first]
        outcome.on_canary[live] = counts[live, :, 1].sum(axis=(1, 2))
    return outcome


def _rate(world: World, here: int, counts: Counts, rng: np.random.Generator) -> Counts:
    """Counts after each of `BLOCK` further ratings: (replicates, ratings, segments, arms, votes)."""
    shape = (counts.shape[0], BLOCK)
    canary = rng.random(shape) < world.shares[here]
    up = rng.random(shape) < np.where(canary, world.canary, world.stable)
    grown = np.repeat(counts[:, None], BLOCK, axis=1)
    for arm in (0, 1):
        for vote in (0, 1):
            grown[:, :, here, arm, vote] += np.cumsum((canary == arm) & (up == vote), axis=1)
    return grown


def _decide(counts: Counts, shares: Sequence[float]) -> npt.NDArray[np.int64]:
    evidence = np.zeros(counts.shape[:2])
    for segment, share in enumerate(shares):
        evidence += log_evidence(counts[:, :, segment, :, 0].sum(axis=-1), counts[:, :, segment, 1, 0], share)
    mean, variance, n = rs.difference_of_up_rates(counts, shares)
    certain = mean - rs.half_width(variance, n) > -MARGIN
    enough = (counts.sum(axis=(2, 4)) >= MIN_RATERS).all(axis=-1)
    return np.where(evidence >= math.log(rs.ENOUGH), 1, np.where(certain & enough, 2, 0))


def log_evidence(downs: Counts, on_canary: Counts, share: float) -> rs.Numbers:
    """The server's `log_evidence_of_harm`, once for each pair of numbers that occurs."""
    pairs, where = np.unique(np.stack([downs.ravel(), on_canary.ravel()]), axis=1, return_inverse=True)
    known = np.array([_once(int(n), int(x), share) for n, x in pairs.T])
    return known[where.ravel()].reshape(downs.shape)


@lru_cache(maxsize=2_000_000)
def _once(downs: int, on_canary: int, share: float) -> float:
    return rs.log_evidence_of_harm(downs, on_canary, share)


def habits(replicates: int, rng: np.random.Generator, *, share: float = 0.2, horizon: int = 2000) -> dict[str, float]:
    """False rollbacks, in per cent, of two habits where both arms get 80 % up."""
    shape = (replicates, horizon)
    canary, up = rng.random(shape) < share, rng.random(shape) < 0.8
    n1, n0 = (np.cumsum(side, axis=1).astype(float) for side in (canary, ~canary))
    u1, u0 = (np.cumsum(side & up, axis=1).astype(float) for side in (canary, ~canary))
    p1, p0, pooled = u1 / np.maximum(n1, 1), u0 / np.maximum(n0, 1), (u1 + u0) / (n1 + n0)
    error = np.sqrt(np.maximum(pooled * (1 - pooled), 1e-12) * (1 / np.maximum(n1, 1) + 1 / np.maximum(n0, 1)))
    peeks = np.arange(99, horizon, 50)
    peeked = (((p1 - p0) / error)[:, peeks] < -1.645).any(axis=1)
    checks = np.linspace(horizon / 5, horizon, 5, dtype=int) - 1
    threshold = ((p1 - p0)[:, checks] < -0.05).any(axis=1)
    return {
        "z_test_every_50_percent": round(100 * float(peeked.mean()), 2),
        "five_checks_5_points_percent": round(100 * float(threshold.mean()), 2),
    }


def chatty(
    replicates: int, rng: np.random.Generator, *, votes: int, share: float = 0.2, users: int = 1000
) -> dict[str, float]:
    """False rollbacks, in per cent, where users cast `votes` votes on average (geometric) and differ in taste.

    A user's own up-rate is Beta(4, 1). `all` counts every vote, `first` one a user. Nothing is wrong with the canary.
    """
    canary = rng.random((replicates, users)) < share
    taste = rng.beta(4.0, 1.0, (replicates, users))
    cast = rng.geometric(1 / votes, (replicates, users))
    downs = rng.binomial(cast, 1 - taste)
    first = rng.random((replicates, users)) < downs / cast  # votes of one user are exchangeable
    found = {}
    for name, each in (("all", downs), ("first", first.astype(np.int64))):
        n, x = np.cumsum(each, axis=1), np.cumsum(each * canary, axis=1)
        reached = log_evidence(n, x, share) >= math.log(rs.ENOUGH)
        found[f"{name}_percent"] = round(100 * float(reached.any(axis=1).mean()), 2)
    return found


def guardrails(replicates: int, rng: np.random.Generator, *, share: float = 0.2, users: int = 5000) -> dict[str, Any]:
    """How often a guardrail fires in per cent, looked at after every 25 users, and when.

    `at_bound`: the canary is worse by exactly what is allowed, the worst case in which it must not fire.
    """
    lognormal = {"sigma": 0.8}
    worlds: dict[str, tuple[float, float, Any, Any]] = {
        "errors_at_bound": (1.0, 0.02, lambda s: rng.binomial(3, 0.01, s) / 3, lambda s: rng.binomial(3, 0.03, s) / 3),
        "errors_10_points_worse": (
            1.0,
            0.02,
            lambda s: rng.binomial(3, 0.01, s) / 3,
            lambda s: rng.binomial(3, 0.11, s) / 3,
        ),
        "ttft_at_bound": (
            1.25,
            0.0,
            lambda s: rng.lognormal(5.0, size=s, **lognormal),
            lambda s: 1.25 * rng.lognormal(5.0, size=s, **lognormal),
        ),
        "ttft_doubled": (
            1.25,
            0.0,
            lambda s: rng.lognormal(5.0, size=s, **lognormal),
            lambda s: 2 * rng.lognormal(5.0, size=s, **lognormal),
        ),
    }
    return {
        name: _fires(rng.random((replicates, users)) < share, times, bound, stable, canary)
        for name, (times, bound, stable, canary) in worlds.items()
    }


def _fires(canary: Bools, times: float, bound: float, of_stable: Any, of_canary: Any) -> dict[str, float | None]:
    value = np.where(canary, of_canary(canary.shape), of_stable(canary.shape))
    seen = np.arange(99, canary.shape[1], 25)
    arms = []
    for side in (canary, ~canary):
        n, total, squares = (
            np.cumsum(part, axis=1)[:, seen].astype(float) for part in (side, side * value, side * value**2)
        )
        n = np.maximum(n, 2)
        arms.append((n, total / n, (squares - total**2 / n) / (n - 1)))
    (n1, mean1, v1), (n0, mean0, v0) = arms
    width = rs.half_width((v1 / n1 + times**2 * v0 / n0) * (n1 + n0), n1 + n0, guardrail_alpha(1))
    fired = (mean1 - times * mean0 - width > bound) & (n1 >= 50) & (n0 >= 50)
    first = seen[fired.argmax(axis=1)] + 1
    any_time = fired.any(axis=1)
    return {"fired_percent": round(100 * float(any_time.mean()), 2), "median_users": _median(first[any_time])}


def _median(values: Counts) -> float | None:
    return float(np.median(values)) if values.size else None


def measure(replicates: int, seed: int) -> dict[str, Any]:
    """All four tables."""
    rng = np.random.default_rng(seed)
    contrast = habits(replicates, rng)
    return {
        "replicates": replicates,
        "seed": seed,
        "e_value": rs.ENOUGH,
        "margin_points": 100 * MARGIN,
        "guardrail_alpha": GUARDRAIL_ALPHA,
        "ours": {world.name: simulate(world, replicates, rng).figures() for world in WORLDS},
        "habits_false_rollbacks": contrast,
        "chatty_false_rollbacks": {f"{n} votes a user": chatty(replicates, rng, votes=n) for n in (2, 5, 10)},
        "guardrails": guardrails(min(replicates, 1000), rng),
    }


def show(figures: dict[str, Any]) -> None:
    """The tables."""
    console = Console(width=200)
    columns = next(iter(figures["ours"].values()))
    table = Table("world", *(name.replace("_", " ") for name in columns), box=None)
    for name, row in figures["ours"].items():
        table.add_row(name, *("" if value is None else f"{value:g}" for value in row.values()))
    console.print(table)
    for part in ("habits_false_rollbacks", "chatty_false_rollbacks", "guardrails"):
        console.print(part, figures[part])


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few replicates, no result file")
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=4)
    given = parser.parse_args()
    figures = measure(200 if given.quick else given.replicates, given.seed)
    show(figures)
    if not given.quick:
        print(write_result("rollout", figures))


if __name__ == "__main__":
    main()
