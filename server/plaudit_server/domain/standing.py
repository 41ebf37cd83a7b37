"""Where a run's stage stands, out of the steps it reported; and how sure a share of votes is."""

import math
from dataclasses import dataclass

from plaudit_server.domain.records import MetricPoint

_Z = 1.959963984540054
"""Of a 95 % interval."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Step of steps, and when the stage will end if it goes on as it went. None where that is not known."""

    step: int | None = None
    steps: int | None = None
    ends_at_ms: int | None = None


def standing(progress: float | None, first: MetricPoint | None, last: MetricPoint | None) -> Standing:
    """Where a stage stands.

    Args:
        progress: the share of the stage's steps that was reported with `last`.
        first: the stage's first reported step.
        last: its newest.
    """
    if last is None or last.step is None:
        return Standing()
    if not progress:
        return Standing(step=last.step)
    steps = round(last.step / progress)
    if first is None or first.step is None or last.step <= first.step:
        return Standing(last.step, steps)
    a_step_ms = (last.at_ms - first.at_ms) / (last.step - first.step)
    return Standing(last.step, steps, last.at_ms + round(a_step_ms * max(0, steps - last.step)))


def wilson(up: int, down: int) -> tuple[float, float, float] | None:
    """The share of `up`, and Wilson's 95 % interval of it (1927), which stays in [0, 1] and holds for few votes too."""
    n = up + down
    if n == 0:
        return None
    share = up / n
    middle = share + _Z**2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    low, high = (middle - half) / scale, (middle + half) / scale
    return share, max(0.0, min(low, share)), min(1.0, max(high, share))
