"""Hours of work in pieces: runs that go on where they stopped, within the minutes given, with what remains in sight."""

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import judging
from benchmarks.cells import Cell, Cells, kept_file
from benchmarks.online import OnlineRun, Rules
from benchmarks.simulation import LocalEngine, default_work, fingerprint


@dataclass(frozen=True, slots=True)
class Piece:
    """One run and where it is measured.

    Args:
        name: of the run's folder.
        kind: runs of a kind take about as long as each other.
        cells: names of the measurements, by the number of rounds after which they are taken.
    """

    name: str
    kind: str
    rules: Rules
    cells: dict[int, str]


class Budget:
    """What is left of the time, and what the rest will take by what there was."""

    def __init__(self, minutes: float | None) -> None:
        self.until = None if minutes is None else time.monotonic() + 60 * minutes
        self.spent: dict[str, list[float]] = defaultdict(list)

    def note(self, kind: str, seconds: float) -> None:
        """A step of a kind took so long."""
        self.spent[kind].append(seconds)

    def expected(self, kind: str) -> float:
        """Seconds a step of a kind takes; other kinds stand in while there was none."""
        times = self.spent.get(kind) or [s for spent in self.spent.values() for s in spent]
        return sum(times) / len(times) if times else 0.0

    def allows(self, kind: str) -> bool:
        """Whether another step of a kind fits."""
        return self.until is None or time.monotonic() + self.expected(kind) < self.until


def play(pieces: Sequence[Piece], *, cells: Cells, minutes: float | None) -> bool:
    """Play what is missing, as far as the time allows. Answers whether everything is there."""
    todo = [piece for piece in pieces if len(found(piece, cells)) < len(piece.cells)]
    if not todo:
        return True
    budget = Budget(minutes)
    engine = LocalEngine(todo[0].rules.model, todo[0].rules.config, cells.work)
    for place, piece in enumerate(todo):
        run = OnlineRun(cells.work / "runs" / piece.name, piece.rules, engine)
        for rounds, cell in sorted(piece.cells.items()):
            if not _reach(run, rounds, cells.samples, budget, todo[place:]):
                print("stopped by --minutes; the same command goes on from here", flush=True)
                return False
            cells.write(cell, run.cell(rounds, cells.samples))
    return True


def found(piece: Piece, cells: Cells) -> dict[int, Cell]:
    """The measurements there are of a run, by the number of rounds."""
    settings = piece.rules.described(fingerprint(piece.rules.model))
    there = {rounds: cells.read(name, settings) for rounds, name in piece.cells.items()}
    return {rounds: cell for rounds, cell in there.items() if cell is not None}


def _reach(run: OnlineRun, rounds: int, samples: int, budget: Budget, pieces: Sequence[Piece]) -> bool:
    """Play up to a round and judge it; False where the time is up. `pieces` are this one and the later ones."""
    piece = pieces[0]
    while len(run.rounds) < rounds:
        if not budget.allows(piece.kind):
            return False
        played = run.advance()
        budget.note(piece.kind, played.seconds)
        estimate = left(len(run.rounds), budget, pieces)
        print(f"{piece.name} round {played.number}: {played.words()} | {estimate}", flush=True)
    if not budget.allows("evaluation"):
        return False
    began = time.monotonic()
    mean, low, high = judging.gain_points([run.heldout(rounds, samples)])
    budget.note("evaluation", time.monotonic() - began)
    print(f"{piece.cells[rounds]}: held-out gain {mean:+.1f} [{low:+.1f}, {high:+.1f}] points", flush=True)
    return True


def left(played: int, budget: Budget, pieces: Sequence[Piece]) -> str:
    """What the first of the pieces, so many rounds played, and the later ones will take, in words."""
    rounds = [max(p.cells) for p in pieces]
    rounds[0] = max(0, rounds[0] - played)
    seconds = sum(n * budget.expected(p.kind) for p, n in zip(pieces, rounds, strict=True))
    evaluations = sum(r >= played for r in pieces[0].cells) + sum(len(p.cells) for p in pieces[1:])
    return f"about {(seconds + evaluations * budget.expected('evaluation')) / 3600:.1f} h left"


# What the commands share


def common_arguments(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options of every long benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder (default: the bundled model)")
    parser.add_argument("--work", type=Path, default=default_work(name), help="runs, cells and answers are kept here")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--votes-a-round", type=int, default=128)
    parser.add_argument("--samples", type=int, default=8, help="answers to each held-out question; 2 were too few")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--minutes", type=float, help="begin no step that would end later than this")
    parser.add_argument("--report", action="store_true", help="only the table of the cells that exist")
    parser.add_argument("--result", default=name, help="what is measured is kept as benchmarks/results/RESULT.*")
    parser.add_argument("--no-write", action="store_true", help="neither read nor write benchmarks/results/RESULT.*")
    return parser


def cells_of(chosen: argparse.Namespace) -> Cells:
    """The cells that a command line is about."""
    return Cells(chosen.work, chosen.samples, None if chosen.no_write else kept_file(chosen.result))


def names(text: str) -> list[str]:
    """`a,b` as a list."""
    return [part for part in text.split(",") if part]


def numbers(text: str) -> list[int]:
    """`1,2` as a list."""
    return [int(part) for part in names(text)]


def known(given: Sequence[str], there: Sequence[str]) -> None:
    """Raise ValueError for a name that does not exist."""
    unknown = [name for name in given if name not in there]
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(there)}")
