"""Figures for whoever watches: few rows by an index each, because it is asked every few seconds."""

from typing import Any, Literal

from sqlalchemy import ColumnElement, Row, case, func, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit_server.domain.records import MetricPoint, NewestMarks, RefusalRow, RunRow, StageSpan, VoteBucket
from plaudit_server.store import runs
from plaudit_server.store import tables as t

_WORDLESS = "no reason was given"


async def states(conn: AsyncConnection, what: Literal["versions", "batches"]) -> dict[Any, int]:
    """How many versions or batches there are, by state."""
    state = {"versions": t.versions, "batches": t.batches}[what].c.state
    return {row[0]: row[1] for row in await conn.execute(select(state, func.count()).group_by(state))}


async def marks(conn: AsyncConnection) -> NewestMarks:
    """Marks that move when feedback, an answer or an audit entry comes."""
    columns = (t.feedback.c.received_at, t.interactions.c.id, t.audit.c.id)
    newest = (select(func.max(column)).scalar_subquery() for column in columns)
    return NewestMarks(*(await conn.execute(select(*newest))).one())


async def newest_run(conn: AsyncConnection) -> tuple[RunRow, StageSpan] | None:
    """The run that began last, and the first and newest step of the stage it is in."""
    found = await runs.page(conn, limit=1)
    if not found.items:
        return None
    run, point = found.items[0], t.run_metrics.c
    of_stage = (point.run_id == run.id, point.stage == run.stage, point.step.is_not(None))
    steps = select(t.run_metrics).where(*of_stage)
    ends = [await _point(conn, steps.order_by(order).limit(1)) for order in (point.id, point.id.desc())]
    return run, StageSpan(first=ends[0], last=ends[1])


async def last_refusal(conn: AsyncConnection) -> RefusalRow | None:
    """The last version that was refused or run that failed, whichever is newer."""
    version, run = t.versions.c, t.runs.c
    refused = select(version.name, version.state, version.created_at.label("at"), version.reason).where(
        version.state.in_(("rejected", "failed"))
    )
    failed = select(run.id, literal("run_failed", t.STATE), run.updated_at, run.reason).where(run.state == "failed")
    newest = (
        refused.order_by(version.created_at.desc()).limit(1).subquery(),
        failed.order_by(run.updated_at.desc()).limit(1).subquery(),
    )
    both = union_all(*(select(each) for each in newest)).subquery()
    row = (await conn.execute(select(both).order_by(both.c.at.desc()).limit(1))).first()
    return None if row is None else RefusalRow(row[0], row[1], row[2], row[3] or _WORDLESS)


async def votes_over_time(
    conn: AsyncConnection, *, key: str, version: str | None, since_ms: int, bucket_ms: int
) -> list[VoteBucket]:
    """Live votes with a sign, by version and stretch of time; both in rising order of time."""
    vote = t.feedback.c
    begins = (vote.received_at - vote.received_at % bucket_ms).label("begins")
    wanted = [vote.key == key, vote.received_at >= since_ms, vote.value != 0, vote.version.is_not(None)]
    if version is not None:
        wanted.append(vote.version == version)
    query = select(vote.version, begins, _how_many(vote.value > 0), _how_many(vote.value < 0)).where(*wanted)
    rows = await conn.execute(query.group_by(vote.version, "begins").order_by("begins"))
    return [VoteBucket(*row) for row in rows]


def _how_many(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((condition, 1), else_=0))


async def _point(conn: AsyncConnection, query: Any) -> MetricPoint | None:
    row: Row[Any] | None = (await conn.execute(query)).first()
    return None if row is None else MetricPoint(row.stage, row.step, row.at, row.metrics)
