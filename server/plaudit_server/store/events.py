"""What users did with answers."""

from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit_server.domain.records import Rows, StoredEvent
from plaudit_server.store import paging
from plaudit_server.store import tables as t


async def add(conn: AsyncConnection, event: StoredEvent) -> StoredEvent:
    """Write an event."""
    values = {name: getattr(event, name) for name in StoredEvent.__slots__}
    values |= {"occurred_at": values.pop("occurred_at_ms"), "received_at": values.pop("received_at_ms")}
    await conn.execute(insert(t.events).values(values))
    return event


async def get(conn: AsyncConnection, event_id: str) -> StoredEvent | None:
    """One event."""
    row = (await conn.execute(select(t.events).where(t.events.c.id == event_id))).one_or_none()
    return None if row is None else _from_row(row)


async def page(
    conn: AsyncConnection, *, response_id: str | None = None, after: str | None = None, limit: int = 20
) -> Rows[StoredEvent]:
    """Events, newest first."""
    query = select(t.events)
    if response_id is not None:
        query = query.where(t.events.c.response_id == response_id)
    return await paging.page(conn, query, by=t.events.c.id, after=after, limit=limit, read=_from_row)


def _from_row(row: Row[Any]) -> StoredEvent:
    values = dict(row._mapping)
    del values["spent"]
    return StoredEvent(occurred_at_ms=values.pop("occurred_at"), received_at_ms=values.pop("received_at"), **values)
