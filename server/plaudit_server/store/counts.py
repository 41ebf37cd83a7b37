"""Figures for the metrics page."""

from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit.wire.training import RunState
from plaudit_server.domain.records import HeldLeases, NewestRun, VoteCount
from plaudit_server.store import tables as t


async def votes(conn: AsyncConnection) -> list[VoteCount]:
    """Live votes by version, key and sign."""
    vote = t.feedback.c
    sign = case((vote.value > 0, "up"), (vote.value < 0, "down"), else_="neutral").label("sign")
    query = select(vote.version, vote.key, sign, func.count()).where(vote.value.is_not(None))
    grouped = await conn.execute(
        query.group_by(vote.version, vote.key, "sign").order_by(vote.version, vote.key, "sign")
    )
    return [VoteCount(*row) for row in grouped]


async def answers(conn: AsyncConnection) -> dict[str, int]:
    """Stored answers by version."""
    version = t.interactions.c.version
    rows = await conn.execute(select(version, func.count()).group_by(version))
    return {row[0]: row[1] for row in rows}


async def held_leases(conn: AsyncConnection) -> HeldLeases:
    """Batches that workers hold, lapsed ones that nobody has freed yet included."""
    batch = t.batches.c
    query = select(func.count(), func.min(batch.created_at), func.min(batch.lease_expires_at))
    return HeldLeases(*(await conn.execute(query.where(batch.state == "leased"))).one())


async def runs(conn: AsyncConnection) -> dict[RunState, int]:
    """Training runs by state."""
    state = t.runs.c.state
    return {row[0]: row[1] for row in await conn.execute(select(state, func.count()).group_by(state))}


async def newest_run(conn: AsyncConnection) -> NewestRun | None:
    """The run that began last, with the newest step that it reported and the figures of the version it published."""
    run, point = t.runs.c, t.run_metrics.c
    newest_step = select(point.step).where(point.run_id == run.id).order_by(point.id.desc()).limit(1).scalar_subquery()
    query = select(run.state, run.stage, run.progress, newest_step, run.updated_at, run.metrics, t.versions.c.metrics)
    query = query.outerjoin_from(t.runs, t.versions, t.versions.c.run_id == run.id).order_by(run.id.desc()).limit(1)
    row = (await conn.execute(query)).one_or_none()
    return None if row is None else NewestRun(*row[:5], metrics={**row[5], **(row[6] or {})})
