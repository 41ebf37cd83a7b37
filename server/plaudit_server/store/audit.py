"""Who with power did what. Rows are only ever added."""

from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit.wire.base import JsonObject
from plaudit_server.domain.records import AuditRow, Rows
from plaudit_server.store import paging
from plaudit_server.store import tables as t


async def append(
    conn: AsyncConnection, *, actor: str, action: str, subject: str, detail: JsonObject | None = None, now_ms: int
) -> AuditRow:
    """Add an entry. The one place that writes the log: the hash chain will be laid here."""
    values = {"at": now_ms, "actor": actor, "action": action, "subject": subject, "detail": detail or {}}
    done = await conn.execute(insert(t.audit).values(values))
    entry_id: int = done.inserted_primary_key[0]  # type: ignore[index]  # a one-row insert always has its key
    return AuditRow(entry_id, now_ms, actor, action, subject, detail or {})


async def page(conn: AsyncConnection, *, after: int | None = None, limit: int = 20) -> Rows[AuditRow]:
    """Entries, newest first. `after` is an entry's id."""
    return await paging.page(conn, select(t.audit), by=t.audit.c.id, after=after, limit=limit, read=_from_row)


def _from_row(row: Row[Any]) -> AuditRow:
    return AuditRow(row.id, row.at, row.actor, row.action, row.subject, row.detail)
