"""Where a stage stands, and intervals of shares."""

import pytest

from plaudit_server.domain.records import MetricPoint
from plaudit_server.domain.standing import Standing, standing, wilson


def point(step: int | None, at_ms: int) -> MetricPoint:
    return MetricPoint("policy", step, at_ms, {})


def test_a_stage_ends_when_its_steps_are_done_at_the_pace_so_far() -> None:
    assert standing(0.5, point(2, 10_000), point(4, 16_000)) == Standing(4, 8, 28_000)


def test_what_is_not_known_is_not_invented() -> None:
    assert standing(0.5, None, None) == Standing()
    assert standing(0.5, point(None, 0), point(None, 9)) == Standing()
    assert standing(None, point(1, 0), point(4, 9)) == Standing(4)
    assert standing(0.25, point(2, 5), point(2, 5)) == Standing(2, 8)


@pytest.mark.parametrize(
    ("up", "down", "expected"),
    [(8, 2, (0.8, 0.4902, 0.9433)), (0, 10, (0.0, 0.0, 0.2775)), (10, 0, (1.0, 0.7225, 1.0))],
)
def test_wilsons_interval(up: int, down: int, expected: tuple[float, float, float]) -> None:
    """Against the values of R's `binom::binom.wilson`."""
    assert wilson(up, down) == pytest.approx(expected, abs=1e-4)


def test_nobody_voted() -> None:
    assert wilson(0, 0) is None
