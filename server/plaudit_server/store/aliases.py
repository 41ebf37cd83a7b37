"""Who serves: `stable`, `canary`, `previous`."""

from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit.wire.base import JsonObject
from plaudit.wire.versions import AliasName
from plaudit_server.domain.records import AliasRow
from plaudit_server.domain.versions import check_servable
from plaudit_server.errors import Conflict, PreconditionFailed
from plaudit_server.store import audit, versions
from plaudit_server.store import tables as t


async def get_all(conn: AsyncConnection) -> dict[AliasName, AliasRow]:
    """Every alias that points somewhere; `stable` always does."""
    return {row.name: _from_row(row) for row in await conn.execute(select(t.aliases))}


async def move(
    conn: AsyncConnection,
    name: AliasName,
    version: str,
    *,
    if_match: str | None = None,
    actor: str,
    reason: str | None,
    now_ms: int,
    action: str = "alias.move",
) -> AliasRow:
    """Point an alias at a version, and write it into the audit log. Moving `stable` keeps the old one as `previous`.

    Pointing it where it points already changes nothing, so that `previous` stays what one would roll back to.

    Args:
        name: `stable` or `canary`; `previous` follows by itself.
        if_match: the etag the caller saw, quoted or not; `*` or None for any.
        action: what the audit log calls it.

    Raises:
        NotFound: there is no such version.
        Conflict: it is not ready, or tainted.
        PreconditionFailed: `if_match` is not the alias's etag.
    """
    if name == "previous":
        raise Conflict("`previous` follows `stable` by itself.", code="alias_not_movable")
    # Two who move at once take turns: the second meets the etag of the first. SQLite has one writer and needs no lock.
    await conn.execute(select(t.aliases.c.name).with_for_update())
    known = await get_all(conn)
    now = known.get(name)
    _check_match(name, now, if_match)
    wanted = await versions.get(conn, version)
    check_servable(version, wanted.state, tainted=wanted.tainted)
    if now is not None and now.version == version:
        return now
    if name == "stable" and now is not None:
        await _point(conn, "previous", now.version, known, actor=actor, reason=reason, now_ms=now_ms)
    await _point(conn, name, version, known, actor=actor, reason=reason, now_ms=now_ms)
    detail: JsonObject = {"from": now.version if now else None, "to": version, "reason": reason}
    await audit.append(conn, actor=actor, action=action, subject=name, detail=detail, now_ms=now_ms)
    return (await get_all(conn))[name]


async def rollback(conn: AsyncConnection, to: str, *, actor: str, reason: str, now_ms: int) -> AliasRow:
    """Move `stable` to `previous` or to a named version. Raises as `move`; Conflict where nothing is `previous`."""
    version = to
    if to == "previous":
        previous = (await get_all(conn)).get("previous")
        if previous is None:
            raise Conflict("Stable was never moved, so there is nothing to roll back to.", code="no_previous")
        version = previous.version
    return await move(conn, "stable", version, actor=actor, reason=reason, now_ms=now_ms, action="rollback")


async def withdraw_canary(conn: AsyncConnection, *, actor: str, reason: str | None, now_ms: int) -> None:
    """Point `canary` at what is stable: nobody is tried any more. Whatever state that is in, it serves already."""
    known = await get_all(conn)
    now, stable = known.get("canary"), known["stable"].version
    if now is None or now.version == stable:
        return
    await _point(conn, "canary", stable, known, actor=actor, reason=reason, now_ms=now_ms)
    detail: JsonObject = {"from": now.version, "to": stable, "reason": reason}
    await audit.append(conn, actor=actor, action="alias.move", subject="canary", detail=detail, now_ms=now_ms)


def _check_match(name: AliasName, now: AliasRow | None, if_match: str | None) -> None:
    etag = now.etag if now else "0"
    if if_match is not None and if_match.removeprefix("W/").strip('" ') not in ("*", etag):
        raise PreconditionFailed(f"Alias {name} was moved meanwhile: its etag is {etag}.", code="etag_mismatch")


async def _point(
    conn: AsyncConnection,
    name: AliasName,
    version: str,
    known: dict[AliasName, AliasRow],
    *,
    actor: str,
    reason: str | None,
    now_ms: int,
) -> None:
    values = {"version": version, "updated_at": now_ms, "actor": actor, "reason": reason}
    if name in known:
        move_on = update(t.aliases).where(t.aliases.c.name == name)
        await conn.execute(move_on.values({**values, "etag": t.aliases.c.etag + 1}))
    else:
        await conn.execute(insert(t.aliases).values({**values, "name": name, "etag": 1}))


def _from_row(row: Row[Any]) -> AliasRow:
    return AliasRow(row.name, row.version, str(row.etag), row.updated_at, row.actor, row.reason)
