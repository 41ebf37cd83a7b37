"""Figures for the metrics page."""

from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit_server.domain.records import VoteCount
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
