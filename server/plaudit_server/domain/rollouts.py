"""What becomes of a rollout: the evidence, weighed, and the decision in words.

    running ⇄ paused          the arms stay; a pause stops steps and promotion, never a rollback
       │
       ├──▶ promoted          the candidate is stable: by a person, or by itself where `auto_promote`
       ├──▶ rolled_back       e ≥ 20, a guardrail, or a candidate that can no longer answer
       ├──▶ aborted           by a person, or because a person moved `stable` under it
       └──▶ expired           undecided after `max_duration`

A user is one observation: the first answer says on which arm, the first vote says how it was liked. The first and not
the last, because evidence that has been looked at must not be rewritten afterwards: the guarantee of the e-value is for
votes that come one after another and stay. A vote counts for the segment and the arm of the answer that it is about,
however late it comes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from plaudit.wire.rollouts import (
    ArmReport,
    GuardrailName,
    GuardrailReport,
    RolloutDecision,
    RolloutReport,
    SegmentReport,
)
from plaudit.wire.versions import VersionState
from plaudit_server.domain import rollout_statistics as rs
from plaudit_server.domain.moments import to_moment
from plaudit_server.domain.records import RolloutRow
from plaudit_server.domain.rollout_statistics import Moments

MARGIN = 0.05
"""How much worse a candidate may at most be, in up-rate, to be promoted."""

STEP_RATERS = 20
"""Raters on the candidate before its share grows (or `min_raters`, where that is fewer)."""

GUARDRAIL_ALPHA = 0.05
"""How often any guardrail of a rollout may ever fire where its bound is kept."""

_NAMES: tuple[GuardrailName, ...] = get_args(GuardrailName)
_LARGEST_E = 1e300
_WORDS: dict[GuardrailName, str] = {
    "errors": "failed answers",
    "ttft": "time to the first token",
    "length": "length",
    "refusals": "refusals",
}
_SAYS: dict[GuardrailName, Callable[[float], str]] = {
    "errors": lambda share: f"{100 * share:.1f} %",
    "ttft": lambda ms: f"{ms:.0f} ms",
    "length": lambda tokens: f"{tokens:.0f} tokens",
    "refusals": lambda share: f"{100 * share:.1f} %",
}


@dataclass(frozen=True, slots=True)
class ArmCounts:
    """Users of one arm in one segment: answered there first, and by their first vote."""

    exposed: int = 0
    up: int = 0
    down: int = 0

    @property
    def raters(self) -> int:
        """Users who voted."""
        return self.up + self.down


@dataclass(frozen=True, slots=True)
class SegmentCounts:
    """A stretch of constant weight and what it saw."""

    weight: float
    started_at_ms: int
    stable: ArmCounts = ArmCounts()
    canary: ArmCounts = ArmCounts()


@dataclass(frozen=True, slots=True)
class ArmHealth:
    """One engineering figure on both arms in the present segment: a value a user."""

    stable: Moments = field(default_factory=Moments)
    canary: Moments = field(default_factory=Moments)


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a decision rests on, counted by the store from rows."""

    segments: Sequence[SegmentCounts]
    health: Mapping[GuardrailName, ArmHealth] = field(default_factory=dict)
    candidate_state: VersionState = "ready"
    candidate_tainted: bool = False


def guardrail_alpha(steps: int) -> float:
    """The error of one guardrail in one step, so that all together err at most `GUARDRAIL_ALPHA` of the time."""
    return GUARDRAIL_ALPHA / (len(_NAMES) * steps)


def assess(row: RolloutRow, evidence: Evidence, *, now_ms: int) -> RolloutReport:
    """How a rollout stands and what follows from it. The same evidence always gives the same decision."""
    report = _figures(row, evidence, now_ms)
    decision, automatic, words = _judge(row, evidence, report, now_ms)
    return report.model_copy(update={"decision": decision, "automatic": automatic, "words": words})


def _figures(row: RolloutRow, evidence: Evidence, now_ms: int) -> RolloutReport:
    segments = evidence.segments
    counts = [[[s.stable.down, s.stable.up], [s.canary.down, s.canary.up]] for s in segments]
    stable, canary = _total([s.stable for s in segments]), _total([s.canary for s in segments])
    estimate = rs.estimate(counts, [s.weight for s in segments])
    known = bool(stable.raters and canary.raters)
    imbalance = sum(
        rs.log_evidence_of_imbalance(s.stable.exposed + s.canary.exposed, s.canary.exposed, s.weight) for s in segments
    )
    return RolloutReport(
        at=to_moment(now_ms),
        decision="hold",
        automatic=False,
        words="",
        e_value=_shown(sum(map(_log_harm, segments))),
        e_bound=rs.ENOUGH,
        sample_ratio_e_value=_shown(imbalance),
        sample_ratio_ok=imbalance < math.log(rs.ENOUGH),
        difference=estimate.value if known else None,
        difference_low=estimate.lower() if known else None,
        margin=MARGIN,
        stable=_arm(row.stable, stable),
        canary=_arm(row.candidate, canary),
        segments=[_segment(row, s) for s in segments],
        guardrails=[g for name in _NAMES if (g := _guardrail(row, name, evidence.health)) is not None],
    )


def _judge(
    row: RolloutRow, evidence: Evidence, report: RolloutReport, now_ms: int
) -> tuple[RolloutDecision, bool, str]:
    harm = _why_back(row, evidence, report)
    if harm is not None:
        automatic = row.auto_rollback or not _can_serve(evidence)
        wait = "" if automatic else " Waiting for a person: auto_rollback is off."
        if automatic or not _is_over(row, now_ms):
            return "rollback", automatic, f"Roll back {row.candidate}: {harm}{wait}"
    missing = _why_not_promote(row, report, now_ms)
    is_last = row.step == len(row.steps) - 1
    if harm is None and not missing and is_last and (row.auto_promote or not _is_over(row, now_ms)):
        wait = "" if row.auto_promote else " Waiting for a person: auto_promote is off."
        return "promote", row.auto_promote, f"Promote {row.candidate}: {_no_worse(report)}.{wait}"
    if _is_over(row, now_ms):
        why = "; ".join(missing) or harm or "nobody promoted it"
        return "expire", True, f"The time is over: {why}. {row.stable} serves everybody."
    if not missing and not is_last:
        share = 100 * row.steps[row.step + 1].weight
        return "advance", True, f"On to {share:g} % of users: {_rates(report)}, nothing against {row.candidate}."
    return "hold", False, f"Hold: {'; '.join(missing)}. {_rates(report)}."


def _why_back(row: RolloutRow, evidence: Evidence, report: RolloutReport) -> str | None:
    """What speaks for a rollback, strongest first."""
    if not _can_serve(evidence):
        state = "tainted by an erasure" if evidence.candidate_tainted else evidence.candidate_state
        return f"it is {state} and may no longer serve."
    if report.e_value >= rs.ENOUGH:
        downs = report.stable.down + report.canary.down
        return (
            f"{report.canary.down} of {downs} down-votes fell on it where {_expected(report):.0f} at most were to be "
            f"expected (evidence {report.e_value:.3g} to 1; {rs.ENOUGH:g} to 1 is enough). {_rates(report)}."
        )
    fired = _fired(report)
    return f"{'; '.join(fired)}." if fired and row.guardrails.on_breach == "rollback" else None


def _why_not_promote(row: RolloutRow, report: RolloutReport, now_ms: int) -> list[str]:
    """What is missing for the next step or, on the last, for a promotion."""
    missing = [] if row.state != "paused" else [f"paused ({row.reason})" if row.reason else "paused"]
    missing += _fired(report)
    if not report.sample_ratio_ok:
        missing.append(
            f"users do not fall on the arms by the weights ({report.canary.exposed} of "
            f"{report.canary.exposed + report.stable.exposed} on {row.candidate}, evidence "
            f"{report.sample_ratio_e_value:.3g} to 1): look for answers that were lost or not logged"
        )
    few = [_WORDS[g.name] for g in report.guardrails if g.state == "too_few"]
    if few:
        missing.append(f"too few users to judge {', '.join(few)}")
    left_s = row.steps[row.step].min_seconds - (now_ms - row.segment_started_at_ms) / 1000
    if left_s > 0:
        missing.append(f"this step lasts {math.ceil(left_s)} s more")
    return missing + (_on_last(row, report) if row.step == len(row.steps) - 1 else _on_step(row, report))


def _on_step(row: RolloutRow, report: RolloutReport) -> list[str]:
    needed = min(STEP_RATERS, row.min_raters)
    return [] if report.canary.raters >= needed else [f"{report.canary.raters} of {needed} raters on {row.candidate}"]


def _on_last(row: RolloutRow, report: RolloutReport) -> list[str]:
    few = [
        f"{arm.raters} of {row.min_raters} raters on {arm.version}"
        for arm in (report.canary, report.stable)
        if arm.raters < row.min_raters
    ]
    if few:
        return few
    if report.difference_low is None or report.difference_low <= -MARGIN:
        low = "unknown" if report.difference_low is None else f"{100 * report.difference_low:+.1f} points"
        return [f"{row.candidate} could still be more than {100 * MARGIN:g} points worse (lower bound {low})"]
    return []


def _fired(report: RolloutReport) -> list[str]:
    return [
        f"{_WORDS[g.name]}: {_SAYS[g.name](g.canary or 0)} on {report.canary.version}, "
        f"{_SAYS[g.name](g.stable or 0)} on {report.stable.version} ({g.users_canary} and {g.users_stable} users)"
        for g in report.guardrails
        if g.state == "fired"
    ]


def _no_worse(report: RolloutReport) -> str:
    return (
        f"its up-rate is at most {100 * MARGIN:g} points below that of {report.stable.version} "
        f"(difference {100 * (report.difference or 0):+.1f} points, lower bound "
        f"{100 * (report.difference_low or 0):+.1f}). {_rates(report)}"
    )


def _rates(report: RolloutReport) -> str:
    def said(arm: ArmReport) -> str:
        rate = "no rating" if arm.up_rate is None else f"{100 * arm.up_rate:.0f} % up"
        return f"{arm.version} {rate} of {arm.raters} raters"

    return f"{said(report.canary)}, {said(report.stable)}"


def _expected(report: RolloutReport) -> float:
    return sum(s.weight * (s.stable.down + s.canary.down) for s in report.segments)


def _is_over(row: RolloutRow, now_ms: int) -> bool:
    """Whether `max_duration` has passed. A paused rollout waits for a person, for as long as it takes."""
    return row.state == "running" and now_ms - row.created_at_ms - row.paused_ms >= row.max_duration_ms


def _can_serve(evidence: Evidence) -> bool:
    return evidence.candidate_state == "ready" and not evidence.candidate_tainted


def _total(arms: Sequence[ArmCounts]) -> ArmCounts:
    return ArmCounts(sum(a.exposed for a in arms), sum(a.up for a in arms), sum(a.down for a in arms))


def _arm(version: str, counts: ArmCounts) -> ArmReport:
    rate = counts.up / counts.raters if counts.raters else None
    return ArmReport(
        version=version, exposed=counts.exposed, raters=counts.raters, up=counts.up, down=counts.down, up_rate=rate
    )


def _segment(row: RolloutRow, counts: SegmentCounts) -> SegmentReport:
    return SegmentReport(
        weight=counts.weight,
        started_at=to_moment(counts.started_at_ms),
        e_value=_shown(_log_harm(counts)),
        stable=_arm(row.stable, counts.stable),
        canary=_arm(row.candidate, counts.canary),
    )


def _log_harm(counts: SegmentCounts) -> float:
    return rs.log_evidence_of_harm(counts.stable.down + counts.canary.down, counts.canary.down, counts.weight)


def _shown(log_e: float) -> float:
    return math.exp(min(log_e, math.log(_LARGEST_E)))


def _guardrail(
    row: RolloutRow, name: GuardrailName, health: Mapping[GuardrailName, ArmHealth]
) -> GuardrailReport | None:
    """One figure held against its bound; None where it is turned off."""
    bound = getattr(row.guardrails, name)
    if bound is None:
        return None
    is_ratio = name in ("ttft", "length")
    arms = health.get(name, ArmHealth())
    estimate = rs.contrast(arms.canary, arms.stable, times=bound if is_ratio else 1.0)
    enough = min(arms.canary.users, arms.stable.users) >= row.guardrails.min_users
    low = estimate.lower(guardrail_alpha(len(row.steps))) if enough else None
    fired = low is not None and low > (0.0 if is_ratio else bound)
    return GuardrailReport(
        name=name,
        state="fired" if fired else "ok" if enough else "too_few",
        stable=arms.stable.mean,
        canary=arms.canary.mean,
        excess=estimate.value if arms.canary.users and arms.stable.users else None,
        low=low,
        bound=bound,
        users_stable=arms.stable.users,
        users_canary=arms.canary.users,
    )
