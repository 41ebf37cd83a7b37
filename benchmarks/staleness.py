"""Users vote late: what is learnt from answers of a policy that is 1, 4 or 8 versions old?

    python -m benchmarks.staleness --minutes 60     # go on for an hour; again, until nothing is left

The loop of `learning_curve` with PPO, but the answers that are voted on come from the version so many versions before
the one that is trained (from base, while there are not so many), and no fresh rollouts dilute them. Three arms:

- decoupled: the product's. The ratio is taken to the parent, its clip too, and each token is weighted by
  parent / version that answered, truncated.
- naive: textbook PPO. The ratio, and its clip, is taken to the version that answered; no weight.
- recomputed (by --arms): the old answers are taken for the parent's own, as trainers do that keep no log-probabilities.

`gain_kept_at_lag_4` is the held-out gain of the decoupled arm at lag 4, divided by the gain at lag 0.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from benchmarks import judging, pieces
from benchmarks.cells import Cell, Cells
from benchmarks.judging import Question
from benchmarks.learning_curve import NO_PROBE
from benchmarks.online import ChangedSettings, OldAnswers, Rules
from benchmarks.pieces import Piece
from benchmarks.report import machine, write_result
from benchmarks.simulation import Crowd, bundled_model
from benchmarks.tastes import ALL_TASTES
from plaudit_trainer.config import TrainerConfig

ARMS: tuple[OldAnswers, ...] = get_args(OldAnswers)
ALL_STALE: dict[str, Any] = {"rollout_prompts": 0, "max_staleness": 1_000_000}
"""Neither fresh rollouts nor an age limit: the old answers are all there is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be there in the end."""

    taste: str
    lags: Sequence[int]
    seeds: Sequence[int]
    arms: Sequence[OldAnswers] = ("decoupled", "naive")
    rounds: int = 8
    votes_a_round: int = 128
    asked_twice: float = 0.75
    tokens: int = 64

    def units(self) -> Iterator["Unit"]:
        """At lag 0 nothing is to be recomputed."""
        for seed in self.seeds:
            for lag in self.lags:
                for arm in self.arms:
                    if lag or arm != "recomputed":
                        yield Unit(self.taste, lag, arm, seed)

    def piece(self, unit: "Unit", model: Path) -> Piece:
        """A run as it is played."""
        config = TrainerConfig(seed=unit.seed, max_new_tokens=self.tokens, **ALL_STALE, **NO_PROBE)
        crowd = Crowd(ALL_TASTES[unit.taste], unit.seed, asked_twice=self.asked_twice)
        rules = Rules(model, unit.taste, crowd, config, self.votes_a_round, lag=unit.lag, old_answers=unit.arm)
        return Piece(unit.name, "ppo", rules, {self.rounds: unit.name})


@dataclass(frozen=True, slots=True)
class Unit:
    """One run."""

    taste: str
    lag: int
    arm: OldAnswers
    seed: int

    @property
    def name(self) -> str:
        """Of the run's folder, and of its cell."""
        return f"{self.taste}.lag{self.lag}.{self.arm}.s{self.seed}"


Judged = dict[int, dict[OldAnswers, dict[int, list[Question]]]]
"""Held-out questions by lag, arm and seed."""


def collect(plan: Plan, model: Path, there: Cells) -> dict[Unit, Cell]:
    """The cells that exist."""
    made = {unit: pieces.found(plan.piece(unit, model), there) for unit in plan.units()}
    return {unit: cells[plan.rounds] for unit, cells in made.items() if cells}


def judged_by(cells: dict[Unit, Cell]) -> Judged:
    """What was judged in them."""
    judged: Judged = {}
    for unit, cell in cells.items():
        questions = [Question.of(row) for row in cell["questions"]]
        judged.setdefault(unit.lag, {}).setdefault(unit.arm, {})[unit.seed] = questions
    return judged


def report(judged: Judged, missing: list[str], plan: Plan) -> dict[str, Any]:
    """Gains by arm and lag, and the share of the gain at lag 0 that is kept, over the seeds that both have."""
    result: dict[str, Any] = {"taste": plan.taste, "rounds": plan.rounds, "gain_points": {}, "kl_to_base": {}}
    result |= {"gain_kept": {}, "missing": missing}
    fresh = judged.get(0, {}).get("decoupled", {})
    for lag, arms in sorted(judged.items()):
        for arm, by_seed in arms.items():
            seeds = list(by_seed.values())
            result["gain_points"].setdefault(arm, {})[str(lag)] = judging.gain_points(seeds)
            result["kl_to_base"].setdefault(arm, {})[str(lag)] = round(judging.mean_of(seeds, "new", "kl"), 2)
            both = [s for s in by_seed if s in fresh]
            whole = [fresh[s] for s in both]
            if lag and both and judging.gain_points(whole)[1] > 0:  # else there is nothing to keep a share of
                kept = judging.kept_share([by_seed[s] for s in both], whole)
                result["gain_kept"].setdefault(arm, {})[str(lag)] = kept
    result["decoupled_lead_points"] = leads(judged)
    kept_at_4 = result["gain_kept"].get("decoupled", {}).get("4")
    return result | ({"gain_kept_at_lag_4": kept_at_4} if kept_at_4 else {})


def leads(judged: Judged) -> dict[str, dict[str, list[float]]]:
    """By other arm and lag: the points that the decoupled arm gained more, on the seeds that both have."""
    found: dict[str, dict[str, list[float]]] = {}
    for lag, arms in sorted(judged.items()):
        mine = arms.get("decoupled", {})
        for arm, theirs in arms.items():
            both = [[(mine[seed], theirs[seed])] for seed in theirs if seed in mine]
            if arm != "decoupled" and both:
                found.setdefault(arm, {})[str(lag)] = judging.lead_points(both)
    return found


def show(result: dict[str, Any], console: Console) -> None:
    """The table."""
    table = Table(title=f"PPO on votes for old answers, taste {result['taste']}, {result['rounds']} rounds; 95 %")
    for column in ("lag", "arm", "gain, points", "share of the gain at lag 0", "KL to base"):
        table.add_column(column, justify="right")
    for arm, gains in result["gain_points"].items():
        for lag, (mean, low, high) in gains.items():
            kept = result["gain_kept"].get(arm, {}).get(lag)
            share = f"{kept[0]:.2f} [{kept[1]:.2f}, {kept[2]:.2f}]" if kept else "–"
            kl = f"{result['kl_to_base'][arm][lag]:.1f}"
            table.add_row(lag, arm, f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]", share, kl)
    console.print(table)
    for arm, lags in result["decoupled_lead_points"].items():
        for lag, (mean, low, high) in lags.items():
            lead = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}] points"
            console.print(f"decoupled before {arm} at lag {lag}: {lead}", highlight=False)
    if result["missing"]:
        console.print(f"missing {len(result['missing'])}: {', '.join(result['missing'])}", highlight=False)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = pieces.common_arguments("staleness", __doc__)
    parser.add_argument("--taste", choices=ALL_TASTES, default="number")
    parser.add_argument("--lags", type=pieces.numbers, default=[0, 4, 8, 1], help="versions, in the order of running")
    parser.add_argument("--arms", type=pieces.names, default=["decoupled", "naive"], help=f"of {', '.join(ARMS)}")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="lags 0 and 1, one seed, 2 rounds of 32: does it run?")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Play, report, write."""
    chosen, console = arguments(given), Console(width=None if sys.stdout.isatty() else 140)
    if chosen.quick:
        chosen.lags, chosen.seeds, chosen.rounds, chosen.votes_a_round = [0, 1], chosen.seeds[:1], 2, 32
        chosen.samples, chosen.no_write, chosen.work = 1, True, chosen.work / "quick"
    plan = Plan(
        taste=chosen.taste,
        lags=chosen.lags,
        seeds=chosen.seeds,
        arms=chosen.arms,
        rounds=chosen.rounds,
        votes_a_round=chosen.votes_a_round,
        tokens=chosen.tokens,
    )
    try:
        pieces.known(chosen.arms, ARMS)
        model, there = chosen.model or bundled_model(), pieces.cells_of(chosen)
        if not chosen.report:
            runs = [plan.piece(unit, model) for unit in plan.units()]
            pieces.play(runs, cells=there, minutes=chosen.minutes)
    except (ValueError, ChangedSettings) as error:
        print(error, file=sys.stderr)
        return 2
    found = collect(plan, model, there)
    result = report(judged_by(found), [unit.name for unit in plan.units() if unit not in found], plan)
    show(result, console)
    hardware = machine()
    console.print(
        f"{hardware['cores']} cores, {hardware['processor']}, GPU {hardware['gpu'] or 'none'}", highlight=False
    )
    if not chosen.no_write and found:
        there.keep((unit.name, cell) for unit, cell in found.items())
        console.print(f"written: {write_result(chosen.result, result)}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
