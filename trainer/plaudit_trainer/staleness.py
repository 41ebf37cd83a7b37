"""How old an answer is, in versions: what decoupled PPO can still correct for has an end.

The wire gives each answer's version by name only. Its ancestry stands in the manifests of the folder that versions are
published in, which trainer and server share; where a manifest is gone, the numbers in the names bound the age from
above (every run takes a number, also one that published nothing).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from plaudit.wire.training import Run
from plaudit_trainer.batches import PreferenceBatch
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.publish import MANIFEST

_LONGEST_LINE = 256
BUCKETS = {"0": (0, 0), "1": (1, 1), "2_3": (2, 3), "4_7": (4, 7), "8_up": (8, None)}
"""Of the histogram: versions behind, from and to."""


def versions_behind(run: Run, versions: Sequence[str]) -> dict[str, int | None]:
    """Of each version, how many policy updates lie between it and the run's parent; None where nobody can tell.

    Between versions of two branches these are the updates back to their common ancestor and forth again.
    """
    folders = [Path(place).parent for place in (run.parent_location, run.warm_start_location) if place]
    newer = _line(run.parent, folders)
    return {version: _distance(newer, _line(version, folders)) for version in set(versions)}


def without_stale(batch: PreferenceBatch, run: Run, config: TrainerConfig) -> PreferenceBatch:
    """The batch less the trajectories further behind than the bound, or of unknown age; they are counted as dropped.

    Their votes stay: a reward model does not mind who answered.
    """
    behind = versions_behind(run, [t.version for t in batch.trajectories])
    kept = [t for t in batch.trajectories if (n := behind[t.version]) is not None and n <= config.max_staleness]
    stale = len(batch.trajectories) - len(kept)
    return replace(batch, trajectories=kept, dropped=batch.dropped | ({"trajectory_stale": stale} if stale else {}))


def histogram(behind: Sequence[int | None]) -> dict[str, float]:
    """How many answers are how far behind, by bucket; those of unknown age apart."""
    counts = {
        f"behind_{name}": sum(n is not None and low <= n and (high is None or n <= high) for n in behind)
        for name, (low, high) in BUCKETS.items()
    }
    return {name: float(n) for name, n in (counts | {"behind_unknown": behind.count(None)}).items()}


def _line(version: str, folders: Sequence[Path]) -> list[str]:
    """The version, its parent, and so on, as far as manifests tell."""
    line = [version]
    while len(line) < _LONGEST_LINE and (parent := _parent(line[-1], folders)) and parent not in line:
        line.append(parent)
    return line


def _parent(version: str, folders: Sequence[Path]) -> str | None:
    for folder in folders:
        try:
            parent = json.loads((folder / version / MANIFEST).read_text(encoding="utf-8"))["parent"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return str(parent)
    return None


def _distance(newer: list[str], older: list[str]) -> int | None:
    shared = next((version for version in newer if version in older), None)
    if shared is not None:
        return newer.index(shared) + older.index(shared)
    numbers = [_number(newer[0]), _number(older[0])]
    return None if None in numbers else abs((numbers[0] or 0) - (numbers[1] or 0))


def _number(version: str) -> int | None:
    found = re.fullmatch(r"v(\d+)", version)
    return 0 if version == "base" else int(found[1]) if found else None
