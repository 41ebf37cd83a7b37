"""How much is learnt from how many votes: PPO beside other learners, on the same questions, users and votes.

    python -m benchmarks.learning_curve --minutes 60          # go on for an hour; again, until nothing is left
    python -m benchmarks.learning_curve --report              # the table of what there is
    python -m benchmarks.learning_curve --samples 16 --result NAME   # the same runs judged anew, kept beside the first

Each run plays the product's loop: rounds of 128 votes on answers of the version that serves, 10 % of the votes
false, the gate active, the next round begun from the newest version that passed. After 128, 512 and 1,024 votes the
serving version answers questions never learnt on. Every learner hears the same questions and the same users; in the
first round, where base answers, also the same answers; from then on each is voted on for its own, as it would be live.
Trainer settings are taken from `PLAUDIT_TRAINER_*`; the same hold for every learner, but for `--lr`. What was measured
is kept beside the results (`learning_curve.cells.jsonl`), so that another machine adds to it; a cell counts only while
the settings, and `--samples`, are those it was made with.

Of ten answers users rate one. The other nine are not drawn: no learner here learns from silence.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from benchmarks import pieces
from benchmarks.cells import Cell, Cells
from benchmarks.learning_report import report, show
from benchmarks.online import ChangedSettings, Rules
from benchmarks.pieces import Piece
from benchmarks.report import machine, write_result
from benchmarks.simulation import Crowd, bundled_model
from benchmarks.tastes import ALL_TASTES
from plaudit_trainer.config import TrainerConfig

TASTES = ("you", "number", "careful", "on_topic")
LEARNERS = ("ppo", "kto", "dpo", "reinforce")
VOTES = (128, 512, 1024)
NO_PROBE: dict[str, Any] = {"probe_sequences": 1, "probe_min_tokens": 64, "probe_tokens": 64}
"""The swap probe proves what an engine serves; here nothing is served, so it is kept as small as may be."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be there in the end."""

    tastes: Sequence[str]
    learners: Sequence[str]
    seeds: Sequence[int]
    votes: Sequence[int]
    votes_a_round: int = 128
    asked_twice: float = 0.75
    tokens: int = 64
    parts: Sequence[str] = ("",)
    lr: Mapping[str, float] = field(default_factory=dict)

    def runs(self) -> Iterator["Unit"]:
        """One seed after the other, so that an early report covers every taste."""
        for seed in self.seeds:
            for learner in self.learners:
                for taste in self.tastes:
                    unit = Unit(taste, learner, seed)
                    if self.votes_of(unit):
                        yield unit

    def votes_of(self, unit: "Unit") -> list[int]:
        """Where a run is measured: only cells whose name contains one of `parts`."""
        return [v for v in sorted(self.votes) if any(part in unit.cell(v) for part in self.parts)]

    def piece(self, unit: "Unit", model: Path) -> Piece:
        """A run as it is played."""
        crowd = Crowd(ALL_TASTES[unit.taste], unit.seed, asked_twice=self.asked_twice)
        rules = Rules(model, unit.taste, crowd, self.settings(unit), self.votes_a_round)
        cells = {v // self.votes_a_round: unit.cell(v) for v in self.votes_of(unit)}
        return Piece(unit.name, unit.learner, rules, cells)

    def settings(self, unit: "Unit") -> TrainerConfig:
        """The trainer's settings, from the environment, with what this benchmark fixes."""
        fixed = {"algorithm": unit.learner, "seed": unit.seed, "max_new_tokens": self.tokens, **NO_PROBE}
        own: dict[str, Any] = {"lr": self.lr[unit.learner]} if unit.learner in self.lr else {}
        return TrainerConfig(**fixed, **own)


@dataclass(frozen=True, slots=True)
class Unit:
    """One run. Its cells are the numbers of votes at which it is measured."""

    taste: str
    learner: str
    seed: int

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return f"{self.taste}.{self.learner}.s{self.seed}"

    def cell(self, votes: int) -> str:
        """Name of a cell."""
        return f"{self.taste}.{self.learner}.{votes}.s{self.seed}"


def collect(plan: Plan, model: Path, there: Cells) -> tuple[list[tuple[str, Cell]], list[str]]:
    """The cells that exist, by name, and the names of those that do not."""
    found: list[tuple[str, Cell]] = []
    missing = []
    for unit in plan.runs():
        piece = plan.piece(unit, model)
        made = pieces.found(piece, there)
        found += [(piece.cells[rounds], cell) for rounds, cell in made.items()]
        missing += [name for rounds, name in sorted(piece.cells.items()) if rounds not in made]
    return found, missing


# The command


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser, names, numbers = pieces.common_arguments("learning_curve", __doc__), pieces.names, pieces.numbers
    parser.add_argument("--tastes", type=names, default=list(TASTES), help=f"of {', '.join(ALL_TASTES)}")
    parser.add_argument("--learners", type=names, default=list(LEARNERS), help="values of the trainer's `algorithm`")
    parser.add_argument("--votes", type=numbers, default=list(VOTES), help="where to measure, multiples of a round")
    parser.add_argument(
        "--cells", type=names, default=[""], help="only TASTE.LEARNER.VOTES.sSEED with one of these in it"
    )
    parser.add_argument("--asked-twice", type=float, default=0.75, help="share of votes on two answers to one question")
    parser.add_argument("--lr", type=rates, default={}, help="a learner's own learning rate, such as dpo=2e-4,kto=3e-4")
    parser.add_argument("--quick", action="store_true", help="one taste, PPO, one seed, 2 rounds of 32: does it run?")
    return parser.parse_args(given)


def rates(text: str) -> dict[str, float]:
    """`a=1,b=2` as a mapping."""
    return {name: float(value) for name, _, value in (part.partition("=") for part in pieces.names(text))}


def plan_of(chosen: argparse.Namespace) -> Plan:
    """The plan that a command line describes.

    Raises:
        ValueError: it asks for what there is not.
    """
    algorithms = get_args(TrainerConfig.model_fields["algorithm"].annotation)
    pieces.known(chosen.tastes, list(ALL_TASTES))
    pieces.known([*chosen.learners, *chosen.lr], algorithms)
    odd = [v for v in chosen.votes if v % chosen.votes_a_round]
    if odd:
        raise ValueError(f"--votes {odd} are no multiples of --votes-a-round {chosen.votes_a_round}")
    return Plan(
        tastes=chosen.tastes,
        learners=chosen.learners,
        seeds=chosen.seeds,
        votes=chosen.votes,
        votes_a_round=chosen.votes_a_round,
        asked_twice=chosen.asked_twice,
        tokens=chosen.tokens,
        parts=chosen.cells,
        lr=chosen.lr,
    )


def quick(chosen: argparse.Namespace) -> None:
    """Shrink the work, and keep it apart from the real one."""
    chosen.tastes, chosen.learners, chosen.seeds = chosen.tastes[:1], chosen.learners[:1], chosen.seeds[:1]
    chosen.votes, chosen.votes_a_round, chosen.samples, chosen.no_write = [32, 64], 32, 1, True
    chosen.work = chosen.work / "quick"


def main(given: Sequence[str] | None = None) -> int:
    """Play, report, write."""
    chosen, console = arguments(given), Console(width=None if sys.stdout.isatty() else 160)
    if chosen.quick:
        quick(chosen)
    try:
        plan = plan_of(chosen)
        model, there = chosen.model or bundled_model(), pieces.cells_of(chosen)
        if not chosen.report:
            runs = [plan.piece(unit, model) for unit in plan.runs()]
            pieces.play(runs, cells=there, minutes=chosen.minutes)
    except (ValueError, ChangedSettings) as error:
        print(error, file=sys.stderr)
        return 2
    found, missing = collect(plan, model, there)
    result = report([cell for _, cell in found], missing)
    show(result, console)
    hardware = machine()
    console.print(
        f"{hardware['cores']} cores, {hardware['processor']}, GPU {hardware['gpu'] or 'none'}", highlight=False
    )
    if not chosen.no_write and found:
        there.keep(found)
        console.print(f"written: {write_result(chosen.result, result)}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
