"""Measurements that took hours: in a work folder, and a copy beside the results, so that another machine goes on."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS
from benchmarks.simulation import write_json

Cell = dict[str, Any]
"""One measurement, as `OnlineRun.cell` makes it: its `settings`, `questions`, `rounds`, and what it was computed on."""


def kept_file(benchmark: str) -> Path:
    """Where a benchmark's cells are kept: a line each, in the order of their names."""
    return RESULTS / f"{benchmark}.cells.jsonl"


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of a benchmark. Only those made with the settings of now count: others would answer another question.

    A setting that did not exist when a cell was made is not compared: else each new one would throw hours away. The
    report says where cells were not made with all the same settings, and by which commits.

    Args:
        work: folder of this machine's runs.
        samples: answers to each held-out question; a cell that has another number of them does not count either.
        kept: file of `keep`; None: neither read nor written.
    """

    work: Path
    samples: int
    kept: Path | None = None

    def file(self, name: str) -> Path:
        """Where this machine's measurement lies."""
        return self.work / "cells" / f"{name}.json"

    def read(self, name: str, settings: dict[str, Any]) -> Cell | None:
        """A measurement: this machine's, else the one kept; None where none was made with these settings."""
        own = [json.loads(self.file(name).read_text(encoding="utf-8"))] if self.file(name).is_file() else []
        kept = self._kept().get(name)
        wanted = json.loads(json.dumps(settings))
        return next((c for c in (*own, *([kept] if kept else [])) if self._counts(c, wanted)), None)

    def write(self, name: str, cell: Cell) -> None:
        """Add a measurement of this machine."""
        write_json(self.file(name), cell)

    def keep(self, cells: Iterable[tuple[str, Cell]]) -> None:
        """Put measurements beside the results, in the place of kept ones of the same name."""
        if self.kept is None:
            return
        lines = sorted((self._kept() | dict(cells)).items())
        text = "".join(json.dumps({"name": name, **cell}, ensure_ascii=False) + "\n" for name, cell in lines)
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        draft = self.kept.with_suffix(".draft")
        draft.write_text(text, encoding="utf-8")
        draft.replace(self.kept)  # whole or not at all: what is in it took hours

    def _counts(self, cell: Cell, wanted: dict[str, Any]) -> bool:
        answers = {len(question["new"]) for question in cell["questions"]}
        return answers == {self.samples} and _made_with(cell["settings"], wanted)

    def _kept(self) -> dict[str, Cell]:
        if self.kept is None or not self.kept.is_file():
            return {}
        lines = map(json.loads, self.kept.read_text(encoding="utf-8").splitlines())
        return {line.pop("name"): line for line in lines}


def _made_with(made: Any, wanted: Any) -> bool:
    """Whether all that was set then is set so now."""
    if isinstance(made, dict) and isinstance(wanted, dict):
        return all(name in wanted and _made_with(value, wanted[name]) for name, value in made.items())
    return bool(made == wanted)
