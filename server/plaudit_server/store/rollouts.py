"""Rollouts: their steps, what they have seen, and how they end. Counts are made from rows, never kept beside them.

Whoever ends or advances a rollout compares its revision, so that of several gateway processes that come to the same
decision one acts.
"""

from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import CTE, ColumnElement, CursorResult, Float, Row, Select, case, func, insert, select, update
from sqlalchemy import cast as sql_cast
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit.wire.base import JsonObject
from plaudit.wire.rollouts import GuardrailName, Guardrails, RolloutCreate, RolloutReport, RolloutState, RolloutStep
from plaudit_server.domain.ids import new_id
from plaudit_server.domain.records import RolloutRow, Rows
from plaudit_server.domain.rollout_statistics import Moments
from plaudit_server.domain.rollouts import ArmCounts, ArmHealth, Evidence, SegmentCounts
from plaudit_server.domain.traffic import Split
from plaudit_server.errors import Conflict, NotFound
from plaudit_server.store import aliases, audit, paging, versions
from plaudit_server.store import tables as t

THUMB = "thumb"
"""The one key of feedback that rollouts are decided by; and only users' own."""

CLOCKS_MS = 60_000
"""By how much the clocks of two gateway processes may differ before a vote is missed."""

_MADE_OF: dict[RolloutState, str] = {
    "running": "resume",
    "paused": "pause",
    "promoted": "promote",
    "rolled_back": "rollback",
    "aborted": "abort",
    "expired": "expire",
}

_rollout = t.rollouts.c
_answer = t.interactions.c
_vote = t.feedback.c


async def create(conn: AsyncConnection, request: RolloutCreate, *, actor: str, now_ms: int) -> RolloutRow:
    """Begin a rollout: the alias `canary` is its candidate from now on.

    Raises:
        NotFound: there is no such version.
        Conflict: it is not ready or tainted, it is stable already, or a rollout is under way.
    """
    rollout_id = new_id("rollout_")
    # Takes the aliases' lock, so that of two who begin at once the second finds the first.
    reason = f"{rollout_id}: {request.reason or 'a rollout began'}"
    await aliases.move(conn, "canary", request.candidate, actor=actor, reason=reason, now_ms=now_ms)
    await check_none(conn)
    stable = (await aliases.get_all(conn))["stable"]
    if stable.version == request.candidate:
        raise Conflict(f"{request.candidate} is stable already.", code="candidate_is_stable")
    values = _to_row(request, rollout_id, actor, now_ms)
    values |= {"stable": stable.version, "stable_etag": int(stable.etag)}
    await conn.execute(insert(t.rollouts).values(values))
    await _open_segment(conn, rollout_id, request.steps[0].weight, now_ms)
    detail: JsonObject = {
        "candidate": request.candidate,
        "stable": stable.version,
        "weights": [step.weight for step in request.steps],
        "reason": request.reason,
    }
    await audit.append(conn, actor=actor, action="rollout.start", subject=rollout_id, detail=detail, now_ms=now_ms)
    return await get(conn, rollout_id)


async def check_none(conn: AsyncConnection) -> None:
    """Raises Conflict while a rollout is under way."""
    under_way = await live(conn)
    if under_way is not None:
        raise Conflict(
            f"{under_way.id} is {under_way.state} with {under_way.candidate}: promote or abort it first.",
            code="rollout_under_way",
        )


async def get(conn: AsyncConnection, rollout_id: str) -> RolloutRow:
    """One rollout. Raises NotFound."""
    row = (await conn.execute(select(t.rollouts).where(_rollout.id == rollout_id))).one_or_none()
    if row is None:
        raise NotFound(f"There is no rollout {rollout_id}.", code="rollout_not_found")
    return _from_row(row)


async def live(conn: AsyncConnection) -> RolloutRow | None:
    """The rollout that is running or paused."""
    row = (await conn.execute(select(t.rollouts).where(_rollout.live == 1))).one_or_none()
    return None if row is None else _from_row(row)


async def split(conn: AsyncConnection) -> Split | None:
    """How users are divided now. Nobody is, once somebody has moved `stable` under the rollout."""
    row = await live(conn)
    if row is None or await is_superseded(conn, row):
        return None
    return Split(row.id, row.segment, row.candidate, row.weight, row.stable)


async def is_superseded(conn: AsyncConnection, row: RolloutRow) -> bool:
    """Whether `stable` was moved since the rollout began."""
    return (await aliases.get_all(conn))["stable"].etag != row.stable_etag


async def page(conn: AsyncConnection, *, after: str | None = None, limit: int = 20) -> Rows[RolloutRow]:
    """Rollouts, newest first."""
    return await paging.page(conn, select(t.rollouts), by=_rollout.id, after=after, limit=limit, read=_from_row)


# Acting. Each compares the revision of the row it was given, and is written into the audit log.


async def advance(conn: AsyncConnection, row: RolloutRow, report: RolloutReport, *, actor: str, now_ms: int) -> None:
    """Go on to the next step, in a segment of its own. Raises Conflict where somebody acted meanwhile."""
    step = row.step + 1
    await _set(conn, row, {"step": step, "reason": report.words, "report": _json(report)}, now_ms)
    await _open_segment(conn, row.id, row.steps[step].weight, now_ms)
    detail: JsonObject = {"step": step, "weight": row.steps[step].weight, "reason": report.words}
    await audit.append(conn, actor=actor, action="rollout.advance", subject=row.id, detail=detail, now_ms=now_ms)


async def pause(conn: AsyncConnection, row: RolloutRow, *, actor: str, reason: str | None, now_ms: int) -> None:
    """Keep the arms as they are and go no further by itself. Raises Conflict unless it is running."""
    _check_state(row, "running")
    await _change(conn, row, "paused", {"paused_at": now_ms}, actor=actor, reason=reason, now_ms=now_ms)


async def resume(conn: AsyncConnection, row: RolloutRow, *, actor: str, reason: str | None, now_ms: int) -> None:
    """Go on after a pause, which does not count against the rollout's duration. Raises Conflict unless it is paused."""
    _check_state(row, "paused")
    paused_ms = row.paused_ms + now_ms - (row.paused_at_ms or now_ms)
    values = {"paused_at": None, "paused_ms": paused_ms}
    await _change(conn, row, "running", values, actor=actor, reason=reason, now_ms=now_ms)


async def finish(
    conn: AsyncConnection,
    row: RolloutRow,
    state: RolloutState,
    *,
    report: RolloutReport | None,
    actor: str,
    reason: str | None,
    now_ms: int,
) -> None:
    """End a rollout. Promoted, its candidate becomes stable; else `canary` names what is stable, and nobody is tried.

    Raises:
        Conflict: it is over, or somebody acted meanwhile; or the candidate can no longer serve.
        PreconditionFailed: promoting, and somebody has moved `stable` since it began.
    """
    _check_state(row, "running", "paused")
    values = {"live": None, "ended_at": now_ms, "report": _json(report) if report else None}
    await _change(conn, row, state, values, actor=actor, reason=reason, now_ms=now_ms)
    if state == "promoted" and not await _is_stable(conn, row.candidate):
        etag = row.stable_etag
        words = {"actor": actor, "reason": f"{row.id}: {reason}", "now_ms": now_ms, "action": "promote"}
        await aliases.move(conn, "stable", row.candidate, if_match=etag, **words)  # type: ignore[arg-type]
    await aliases.withdraw_canary(conn, actor=actor, reason=f"{row.id} is over: {state}", now_ms=now_ms)


async def _is_stable(conn: AsyncConnection, version: str) -> bool:
    return (await aliases.get_all(conn))["stable"].version == version


async def _change(
    conn: AsyncConnection,
    row: RolloutRow,
    state: RolloutState,
    values: Mapping[str, Any],
    *,
    actor: str,
    reason: str | None,
    now_ms: int,
) -> None:
    await _set(conn, row, {"state": state, "reason": reason, **values}, now_ms)
    detail: JsonObject = {"candidate": row.candidate, "stable": row.stable, "reason": reason}
    action = f"rollout.{_MADE_OF[state]}"
    await audit.append(conn, actor=actor, action=action, subject=row.id, detail=detail, now_ms=now_ms)


async def _set(conn: AsyncConnection, row: RolloutRow, values: Mapping[str, Any], now_ms: int) -> None:
    """Compare and set. Raises Conflict where the rollout has changed since `row` was read."""
    same = (_rollout.id == row.id, _rollout.revision == row.revision)
    changed = {**values, "updated_at": now_ms, "revision": row.revision + 1}
    done = cast("CursorResult[Any]", await conn.execute(update(t.rollouts).where(*same).values(changed)))
    if done.rowcount == 0:
        raise Conflict(f"{row.id} was changed meanwhile: look again.", code="rollout_changed")


def _check_state(row: RolloutRow, *states: RolloutState) -> None:
    if row.state not in states:
        raise Conflict(f"{row.id} is {row.state}.", code="rollout_state")


async def _open_segment(conn: AsyncConnection, rollout_id: str, weight: float, now_ms: int) -> None:
    opened = insert(t.rollout_segments).values(rollout_id=rollout_id, weight=weight, started_at=now_ms)
    segment = (await conn.execute(opened)).inserted_primary_key[0]  # type: ignore[index]  # a one-row insert has its key
    values = {"segment": segment, "segment_started_at": now_ms}
    await conn.execute(update(t.rollouts).where(_rollout.id == rollout_id).values(values))


# What it has seen


async def evidence(conn: AsyncConnection, row: RolloutRow) -> Evidence:
    """Everything that a decision rests on, counted now. Three aggregates over the answers of this rollout."""
    segment = t.rollout_segments.c
    segments = (
        await conn.execute(select(t.rollout_segments).where(segment.rollout_id == row.id).order_by(segment.id))
    ).all()
    exposed = {(each.segment, each.canary): each.users for each in await conn.execute(_exposures(row.id))}
    votes = {(v.segment, v.arm == "canary"): ArmCounts(0, v.up, v.down) for v in await conn.execute(_votes(row))}

    def arm(segment_id: int, *, canary: bool) -> ArmCounts:
        voted = votes.get((segment_id, canary), ArmCounts())
        return ArmCounts(exposed.get((segment_id, int(canary)), 0), voted.up, voted.down)

    candidate = await versions.get(conn, row.candidate)
    return Evidence(
        segments=[
            SegmentCounts(s.weight, s.started_at, arm(s.id, canary=False), arm(s.id, canary=True)) for s in segments
        ],
        health=await _health(conn, row.segment),
        candidate_state=candidate.state,
        candidate_tainted=candidate.tainted,
    )


def _of(rollout_id: str) -> ColumnElement[bool]:
    segment = t.rollout_segments.c
    return _answer.segment.in_(select(segment.id).where(segment.rollout_id == rollout_id))


def _exposures(rollout_id: str) -> Select[Any]:
    """Users by the segment and arm of their first answer.

    Segment and arm go into one number, so that the smallest a user has tells both: within a segment a user never
    changes arms. Read from the index alone.
    """
    code = _answer.segment * 2 + case((_answer.arm == "canary", 1), else_=0)
    firsts = select(func.min(code).label("code")).where(_of(rollout_id), _answer.end_user.is_not(None))
    users = firsts.group_by(_answer.end_user).subquery()
    counted = select(users.c.code, func.count().label("users")).group_by(users.c.code).subquery()
    on_canary = counted.c.code % 2
    return select((counted.c.code // 2).label("segment"), on_canary.label("canary"), counted.c.users)


def _votes(row: RolloutRow) -> Select[Any]:
    """Users by the segment, arm and sign of their first vote, as it was first given.

    A user is who asked, since that is who was assigned; not who is named in the vote. The votes are found by the time
    of their receipt, since a rollout has far fewer of them than answers.
    """
    first = _first_votes(row)
    up, down = (func.sum(case((sign, 1), else_=0)) for sign in (first.c.value > 0, first.c.value < 0))
    tally = select(first.c.segment, first.c.arm, up.label("up"), down.label("down")).where(first.c.place == 1)
    return tally.group_by(first.c.segment, first.c.arm)


def _first_votes(row: RolloutRow) -> CTE:
    original = t.feedback_revisions
    value = func.coalesce(original.c.value, _vote.value)
    place = func.row_number().over(partition_by=_answer.end_user, order_by=_vote.id)
    return (
        select(_answer.segment, _answer.arm, value.label("value"), place.label("place"))
        .select_from(t.feedback)
        .join(t.interactions, _answer.id == _vote.response_id)
        .outerjoin(original, (original.c.feedback_id == _vote.id) & (original.c.revision == 1))
        .where(_vote.received_at >= row.created_at_ms - CLOCKS_MS, _vote.key == THUMB, _vote.source == "user")
        .where(_of(row.id), _answer.end_user.is_not(None), value != 0)
        .cte("first_votes")
    )


async def _health(conn: AsyncConnection, segment: int) -> dict[GuardrailName, ArmHealth]:
    """One value a user, then sums of them by arm: answers of one user resemble each other."""
    complete = _answer.status == "complete"
    figures: dict[GuardrailName, ColumnElement[Any]] = {
        "errors": case((_answer.status == "failed", 1.0), else_=0.0),
        "ttft": _answer.ttft_ms,
        "length": case((complete, sql_cast(_answer.completion_tokens, Float))),
        "refusals": case((complete & _answer.refused.is_(True), 1.0), (complete, 0.0)),
    }
    of_user = [func.avg(figure).label(name) for name, figure in figures.items()]
    drawn = (_answer.segment == segment, _answer.end_user.is_not(None))
    users = select(_answer.arm, *of_user).where(*drawn).group_by(_answer.arm, _answer.end_user).subquery()
    sums = [
        made.label(f"{name}_{kind}")
        for name in figures
        for kind, made in (
            ("n", func.count(users.c[name])),
            ("total", func.sum(users.c[name])),
            ("squares", func.sum(users.c[name] * users.c[name])),
        )
    ]
    rows = (await conn.execute(select(users.c.arm, *sums).group_by(users.c.arm))).all()
    arms = {row.arm: row._mapping for row in rows}
    return {name: ArmHealth(_moments(arms.get("stable"), name), _moments(arms.get("canary"), name)) for name in figures}


def _moments(sums: Mapping[Any, Any] | None, name: str) -> Moments:
    if sums is None:
        return Moments()
    return Moments(sums[f"{name}_n"], float(sums[f"{name}_total"] or 0), float(sums[f"{name}_squares"] or 0))


def _to_row(request: RolloutCreate, rollout_id: str, actor: str, now_ms: int) -> dict[str, Any]:
    return {
        "id": rollout_id,
        "live": 1,
        "candidate": request.candidate,
        "state": "running",
        "step": 0,
        "steps": [step.model_dump() for step in request.steps],
        "min_raters": request.min_raters,
        "max_duration_ms": round(request.max_duration * 1000),
        "guardrails": request.guardrails.model_dump(),
        "auto_promote": request.auto_promote,
        "auto_rollback": request.auto_rollback,
        "created_at": now_ms,
        "updated_at": now_ms,
        "paused_ms": 0,
        "actor": actor,
        "reason": request.reason,
        "revision": 1,
        "segment": 0,
        "segment_started_at": now_ms,
    }


def _json(report: RolloutReport) -> JsonObject:
    return report.model_dump(mode="json")


def _from_row(row: Row[Any]) -> RolloutRow:
    values = dict(row._mapping)
    del values["live"]
    for name in ("created_at", "updated_at", "ended_at", "paused_at", "segment_started_at"):
        values[f"{name}_ms"] = values.pop(name)
    values["stable_etag"] = str(values["stable_etag"])
    values["steps"] = [RolloutStep.model_validate(step) for step in row.steps]
    values["guardrails"] = Guardrails.model_validate(row.guardrails)
    values["report"] = None if row.report is None else RolloutReport.model_validate(row.report)
    return RolloutRow(**values)
