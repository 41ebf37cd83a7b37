"""What becomes of a rollout, from counts alone."""

from dataclasses import replace
from typing import Any

import pytest

from plaudit.wire.rollouts import GuardrailName, Guardrails, RolloutReport, RolloutStep
from plaudit_server.domain.records import RolloutRow
from plaudit_server.domain.rollout_statistics import Moments
from plaudit_server.domain.rollouts import ArmCounts, ArmHealth, Evidence, SegmentCounts, assess

T0 = 1_800_000_000_000
HOUR = 3_600_000

ROW = RolloutRow(
    id="rollout_1",
    candidate="v2",
    stable="v1",
    stable_etag="3",
    state="running",
    step=0,
    steps=[RolloutStep(weight=0.2, min_seconds=3600)],
    min_raters=100,
    max_duration_ms=100 * HOUR,
    guardrails=Guardrails(min_users=50),
    auto_promote=False,
    auto_rollback=True,
    created_at_ms=T0,
    updated_at_ms=T0,
    ended_at_ms=None,
    paused_at_ms=None,
    paused_ms=0,
    actor="operator",
    reason=None,
    report=None,
    revision=1,
    segment=1,
    segment_started_at_ms=T0,
)


def moments(users: int, mean: float, spread: float = 0.0) -> Moments:
    return Moments(users, users * mean, users * mean**2 + (users - 1) * spread**2)


def health(**changes: tuple[float, float]) -> dict[GuardrailName, ArmHealth]:
    """Two thousand users and five hundred; (stable, canary) means by name."""
    means: dict[Any, tuple[float, float]] = {"errors": (0.01, 0.01), "ttft": (200, 200), "length": (90, 90)}
    means |= {"refusals": (0.02, 0.02)} | changes
    return {
        name: ArmHealth(moments(2000, stable, stable / 2), moments(500, canary, canary / 2))
        for name, (stable, canary) in means.items()
    }


GOOD = Evidence(
    segments=[SegmentCounts(0.2, T0, ArmCounts(2000, 960, 240), ArmCounts(500, 255, 45))],
    health=health(),
)


def judged(row: RolloutRow = ROW, evidence: Evidence = GOOD, *, at: int = T0 + 2 * HOUR) -> RolloutReport:
    return assess(row, evidence, now_ms=at)


def votes(canary_up: int, canary_down: int, stable_up: int = 960, stable_down: int = 240) -> Evidence:
    stable, canary = ArmCounts(2000, stable_up, stable_down), ArmCounts(500, canary_up, canary_down)
    return replace(GOOD, segments=[SegmentCounts(0.2, T0, stable, canary)])


def test_a_good_candidate_waits_for_a_person() -> None:
    report = judged()
    assert (report.decision, report.automatic) == ("promote", False)
    assert "Waiting for a person" in report.words
    assert "v2 85 % up of 300 raters, v1 80 % up of 1200 raters" in report.words


def test_a_good_candidate_is_promoted_where_that_is_allowed() -> None:
    report = judged(replace(ROW, auto_promote=True))
    assert (report.decision, report.automatic) == ("promote", True)
    assert report.difference_low is not None
    assert -0.05 < report.difference_low < report.difference  # type: ignore[operator]


def test_a_bad_candidate_is_rolled_back_in_words_with_the_figures() -> None:
    report = judged(evidence=votes(30, 30, 190, 50), at=T0 + 60_000)
    assert (report.decision, report.automatic) == ("rollback", True)
    assert "30 of 80 down-votes fell on it where 16 at most were to be expected" in report.words
    assert "v2 50 % up of 60 raters, v1 79 % up of 240 raters" in report.words
    assert report.e_value >= 20


def test_rollback_waits_where_it_is_not_automatic_and_ends_with_the_time() -> None:
    row = replace(ROW, auto_rollback=False)
    report = judged(row, votes(30, 30, 190, 50))
    assert (report.decision, report.automatic) == ("rollback", False)
    late = judged(row, votes(30, 30, 190, 50), at=T0 + 101 * HOUR)
    assert (late.decision, late.automatic) == ("expire", True)


@pytest.mark.parametrize(
    ("row", "evidence", "says"),
    [
        (ROW, votes(80, 19), "99 of 100 raters on v2"),
        (ROW, votes(95, 5, 70, 15), "85 of 100 raters on v1"),
        (ROW, votes(0, 0, 0, 0), "0 of 100 raters on v2"),
        (ROW, votes(115, 35), "could still be more than 5 points worse"),
        (replace(ROW, segment_started_at_ms=T0 + 2 * HOUR - 1000), GOOD, "this step lasts 3599 s more"),
        (replace(ROW, state="paused", reason="lunch"), GOOD, "paused (lunch)"),
        (ROW, replace(GOOD, health={}), "too few users to judge failed answers, time to the first token, length"),
        (ROW, replace(GOOD, health=health() | {"ttft": ArmHealth()}), "too few users to judge time to the first token"),
    ],
)
def test_what_is_missing_holds(row: RolloutRow, evidence: Evidence, says: str) -> None:
    report = judged(replace(row, auto_promote=True), evidence)
    assert (report.decision, report.automatic) == ("hold", False)
    assert says in report.words


def test_users_who_do_not_fall_by_the_weights_hold() -> None:
    lost = replace(GOOD, segments=[SegmentCounts(0.2, T0, ArmCounts(2000, 960, 240), ArmCounts(350, 255, 45))])
    report = judged(replace(ROW, auto_promote=True), lost)
    assert (report.decision, report.sample_ratio_ok) == ("hold", False)
    assert "350 of 2350 on v2" in report.words


@pytest.mark.parametrize(
    ("name", "stable", "canary", "fires"),
    [
        ("errors", 0.01, 0.10, True),
        ("errors", 0.01, 0.03, False),
        ("ttft", 200, 300, True),
        ("ttft", 200, 245, False),
        ("length", 90, 180, True),
        ("length", 90, 130, False),
        ("refusals", 0.02, 0.20, True),
        ("refusals", 0.02, 0.06, False),
    ],
)
def test_guardrails(name: GuardrailName, stable: float, canary: float, fires: bool) -> None:
    evidence = replace(GOOD, health=health(**{name: (stable, canary)}))
    report = judged(evidence=evidence)
    assert {g.name for g in report.guardrails if g.state == "fired"} == ({name} if fires else set())
    assert report.decision == ("rollback" if fires else "promote")
    held = judged(replace(ROW, auto_promote=True, guardrails=Guardrails(on_breach="hold")), evidence)
    assert held.decision == ("hold" if fires else "promote")
    off = judged(replace(ROW, guardrails=Guardrails(**{name: None})), evidence)
    assert off.decision == "promote"


def test_a_guardrail_needs_users() -> None:
    few = {**health(), "errors": ArmHealth(moments(2000, 0.01, 0.1), moments(49, 1.0))}
    assert judged(evidence=replace(GOOD, health=few)).decision == "hold"


STEPS = replace(ROW, steps=[RolloutStep(weight=0.05), RolloutStep(weight=0.2), RolloutStep(weight=0.5)])


def test_a_step_goes_on_when_its_time_is_over_and_somebody_rated() -> None:
    some = replace(GOOD, segments=[SegmentCounts(0.05, T0, ArmCounts(2000, 300, 80), ArmCounts(105, 16, 4))])
    report = judged(STEPS, some)
    assert (report.decision, report.automatic) == ("advance", True)
    assert "On to 20 % of users" in report.words
    fewer = replace(GOOD, segments=[SegmentCounts(0.05, T0, ArmCounts(2000, 300, 80), ArmCounts(105, 15, 4))])
    held = judged(STEPS, fewer)
    assert (held.decision, "19 of 20 raters on v2" in held.words) == ("hold", True)


def test_no_promotion_before_the_last_step() -> None:
    sure = replace(GOOD, segments=[SegmentCounts(0.05, T0, ArmCounts(20000, 9600, 2400), ArmCounts(1000, 490, 110))])
    assert judged(replace(STEPS, auto_promote=True), sure).decision == "advance"
    assert judged(replace(STEPS, auto_promote=True, step=2), sure).decision == "promote"


def test_evidence_of_segments_is_multiplied() -> None:
    two = replace(
        GOOD,
        segments=[
            SegmentCounts(0.05, T0, ArmCounts(2000, 190, 50), ArmCounts(105, 10, 7)),
            SegmentCounts(0.2, T0, ArmCounts(400, 100, 25), ArmCounts(100, 20, 13)),
        ],
    )
    report = judged(replace(STEPS, step=1), two)
    first, second = (segment.e_value for segment in report.segments)
    assert report.e_value == pytest.approx(first * second)
    assert max(first, second) < 20 < report.e_value
    assert report.decision == "rollback"


def test_a_pause_stops_no_rollback_and_its_time_does_not_count() -> None:
    paused = replace(ROW, state="paused")
    assert judged(paused, votes(30, 30, 190, 50)).decision == "rollback"
    assert judged(paused, votes(80, 19), at=T0 + 500 * HOUR).decision == "hold"
    resumed = replace(ROW, paused_ms=450 * HOUR)
    assert judged(resumed, votes(80, 19), at=T0 + 500 * HOUR).decision == "hold"
    assert judged(resumed, votes(80, 19), at=T0 + 550 * HOUR).decision == "expire"


def test_the_time_ends_what_is_undecided_and_what_nobody_promoted() -> None:
    late = T0 + 100 * HOUR
    undecided = judged(evidence=votes(80, 19), at=late)
    assert (undecided.decision, undecided.automatic) == ("expire", True)
    assert "99 of 100 raters" in undecided.words
    assert "nobody promoted it" in judged(at=late).words
    assert judged(replace(ROW, auto_promote=True), at=late).decision == "promote"


@pytest.mark.parametrize("change", [{"candidate_state": "failed"}, {"candidate_tainted": True}])
def test_a_candidate_that_may_not_serve_is_rolled_back_always(change: dict[str, Any]) -> None:
    report = judged(replace(ROW, auto_rollback=False), replace(GOOD, **change))
    assert (report.decision, report.automatic) == ("rollback", True)
    assert "may no longer serve" in report.words


def test_an_endless_e_value_can_still_be_shown() -> None:
    report = judged(evidence=votes(0, 100_000, 100_000, 0))
    assert report.e_value == pytest.approx(1e300)
