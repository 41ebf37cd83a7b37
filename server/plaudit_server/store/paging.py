"""Pages: newest first, continued after an id. Ids sort by their time of making."""

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Row, Select
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit_server.domain.records import Rows

T = TypeVar("T")


async def page(
    conn: AsyncConnection,
    query: Select[Any],
    *,
    by: ColumnElement[Any],
    after: Any | None,
    limit: int,
    read: Callable[[Row[Any]], T],
) -> Rows[T]:
    """Run `query` for one page, in falling order of `by`, from below `after`."""
    if isinstance(after, str):
        after = after.partition("\0")[0]  # no id has one, and PostgreSQL refuses to look at it
    if after is not None:
        query = query.where(by < after)
    rows = (await conn.execute(query.order_by(by.desc()).limit(limit + 1))).all()
    return Rows([read(row) for row in rows[:limit]], has_more=len(rows) > limit)
