"""The fleet's list: engine replicas that others run, and the gateways that share them.

A removed replica keeps its row, so that a URL that is still in the settings does not bring it back at the next start.
"""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit_server.domain.records import ReplicaRow, ReplicaSource, ReplicaState
from plaudit_server.errors import Conflict, NotFound, Overloaded
from plaudit_server.store import audit
from plaudit_server.store import tables as t

_replica = t.replicas.c
_PREFIX = "engine-"
_ATTEMPTS = 8


async def listed(conn: AsyncConnection) -> list[ReplicaRow]:
    """Those that belong to the fleet, draining ones too, in the order of their numbers."""
    return [row for row in await _all(conn) if row.state != "removed"]


async def get(conn: AsyncConnection, name: str) -> ReplicaRow:
    """One that belongs to the fleet. Raises NotFound."""
    for row in await listed(conn):
        if row.name == name:
            return row
    raise NotFound(f"There is no engine replica {name} in the list.", code="replica_not_found")


async def seed(conn: AsyncConnection, urls: Sequence[str], *, now_ms: int) -> None:
    """Put the URLs of the settings on the list, unless they were there before, be it removed."""
    known = {row.url for row in await _all(conn)}
    for url in urls:
        if url not in known:
            await _insert(conn, url, "settings", lowest=0, now_ms=now_ms)


async def add(conn: AsyncConnection, url: str, *, actor: str, now_ms: int) -> tuple[ReplicaRow, bool]:
    """Put a replica on the list, or a drained or removed one back on it; the row, and whether it was not on it."""
    known = next((row for row in await _all(conn) if row.url == url), None)
    if known is not None and known.state == "active":
        return known, False
    if known is None:
        # Number 0 is left to a child of the server.
        known = await _insert(conn, url, "operator", lowest=1, now_ms=now_ms)
    else:
        await _set_state(conn, known.name, "active")
    await audit.append(
        conn, actor=actor, action="replica.added", subject=known.name, detail={"url": url}, now_ms=now_ms
    )
    return await get(conn, known.name), True


async def leave(
    conn: AsyncConnection, name: str, state: ReplicaState, *, actor: str, may_be_last: bool, now_ms: int
) -> ReplicaRow:
    """Drain a replica or remove it; the row as it is then. Repeating it is harmless.

    Args:
        state: `draining` or `removed`.
        may_be_last: whether chats would still be answered with no replica on the list.

    Raises:
        NotFound: it is not on the list.
        Conflict: no other would be left to answer.
    """
    row = await get(conn, name)
    if row.state == state:
        return row
    left = [other for other in await listed(conn) if other.state == "active" and other.name != name]
    if not (left or may_be_last):
        raise Conflict(f"{name} is the last engine replica: add another one first.", code="last_replica")
    await _set_state(conn, name, state)
    detail: dict[str, Any] = {"url": row.url}
    await audit.append(conn, actor=actor, action=f"replica.{state}", subject=name, detail=detail, now_ms=now_ms)
    return ReplicaRow(row.name, row.url, state, row.source, row.added_at_ms)


async def beat(conn: AsyncConnection, gateway: str, versions: Collection[str], *, now_ms: int) -> None:
    """A gateway lives, and uses these versions on the replicas."""
    # Of two that claim at once, the second must see the first. SQLite has one writer and needs no lock.
    await conn.execute(select(t.gateways.c.id).order_by(t.gateways.c.id).with_for_update())
    values = {"versions": sorted(versions), "seen_at": now_ms}
    done = await conn.execute(update(t.gateways).where(t.gateways.c.id == gateway).values(values))
    if not done.rowcount:
        await conn.execute(insert(t.gateways).values(id=gateway, **values))


async def others(conn: AsyncConnection, gateway: str, *, since_ms: int) -> dict[str, frozenset[str]]:
    """Other gateways that were heard since then, and the versions that each uses."""
    alive = (t.gateways.c.id != gateway, t.gateways.c.seen_at >= since_ms)
    rows = await conn.execute(select(t.gateways.c.id, t.gateways.c.versions).where(*alive))
    return {row.id: frozenset(row.versions) for row in rows}


async def gone(conn: AsyncConnection, gateway: str, *, before_ms: int) -> None:
    """A gateway has ended; forget it, and those that were last heard before then."""
    await conn.execute(delete(t.gateways).where((t.gateways.c.id == gateway) | (t.gateways.c.seen_at < before_ms)))


async def _insert(conn: AsyncConnection, url: str, source: ReplicaSource, *, lowest: int, now_ms: int) -> ReplicaRow:
    for _ in range(_ATTEMPTS):
        rows = await _all(conn)
        if found := next((row for row in rows if row.url == url), None):
            return found  # another gateway was quicker
        number = max([lowest - 1, *(_number(row.name) for row in rows)]) + 1
        row = ReplicaRow(f"{_PREFIX}{number}", url, "active", source, now_ms)
        values = {"name": row.name, "url": url, "state": row.state, "source": source, "added_at": now_ms}
        try:
            async with conn.begin_nested():
                await conn.execute(insert(t.replicas).values(values))
        except IntegrityError:
            continue
        return row
    raise Overloaded("Too many replicas are being added at once.")


async def _set_state(conn: AsyncConnection, name: str, state: ReplicaState) -> None:
    await conn.execute(update(t.replicas).where(_replica.name == name).values(state=state))


async def _all(conn: AsyncConnection) -> list[ReplicaRow]:
    rows = [_from_row(row) for row in await conn.execute(select(t.replicas))]
    return sorted(rows, key=lambda row: _number(row.name))


def _number(name: str) -> int:
    return int(name.removeprefix(_PREFIX))


def _from_row(row: Row[Any]) -> ReplicaRow:
    return ReplicaRow(row.name, row.url, row.state, row.source, row.added_at)
