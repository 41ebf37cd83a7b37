"""One answer preferred to another."""

from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit_server.domain.records import Rows, StoredComparison
from plaudit_server.store import paging
from plaudit_server.store import tables as t


async def add(conn: AsyncConnection, comparison: StoredComparison) -> StoredComparison:
    """Write a comparison. Its stored answers must have been looked up by the caller (`interactions.fate`)."""
    values = {name: getattr(comparison, name) for name in StoredComparison.__slots__}
    values["received_at"] = values.pop("received_at_ms")
    await conn.execute(insert(t.comparisons).values({**values, "spent": await _all_spent(conn, comparison)}))
    return comparison


async def get(conn: AsyncConnection, comparison_id: str) -> StoredComparison | None:
    """One comparison."""
    row = (await conn.execute(select(t.comparisons).where(t.comparisons.c.id == comparison_id))).one_or_none()
    return None if row is None else from_row(row)


async def page(conn: AsyncConnection, *, after: str | None = None, limit: int = 20) -> Rows[StoredComparison]:
    """Comparisons, newest first."""
    query = select(t.comparisons)
    return await paging.page(conn, query, by=t.comparisons.c.id, after=after, limit=limit, read=from_row)


def from_row(row: Row[Any]) -> StoredComparison:
    """The comparison that a row of `comparisons` holds."""
    values = dict(row._mapping)
    del values["spent"]
    return StoredComparison(received_at_ms=values.pop("received_at"), **values)


async def _all_spent(conn: AsyncConnection, comparison: StoredComparison) -> bool:
    """Whether every stored side was consumed already: it comes too late to be learnt from, and only counts."""
    sides = {side for side in (comparison.chosen_id, comparison.rejected_id) if side}
    row = t.interactions.c
    query = select(row.id).where(row.id.in_(sides), row.consumed_by.is_not(None))
    return len((await conn.execute(query)).all()) == len(sides)
