"""What all servers on one database must agree on. The first to say a thing is right, for ever."""

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit_server.store import tables as t


async def get(conn: AsyncConnection, name: str) -> str | None:
    """What was said; None where nobody said anything."""
    found: str | None = (await conn.execute(select(t.facts.c.value).where(t.facts.c.name == name))).scalar_one_or_none()
    return found


async def remember(conn: AsyncConnection, name: str, value: str) -> str:
    """What stands now: `value`, or what was said before."""
    known = await get(conn, name)
    if known is not None:
        return known
    await conn.execute(insert(t.facts).values(name=name, value=value))
    return value
