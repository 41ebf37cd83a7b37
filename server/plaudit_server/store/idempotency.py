"""Answers kept for 24 hours, so that a request sent twice is done once.

`scope` says whose key it is and for which route, such as `<key id> POST /v1/feedback`.
"""

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit_server.domain.moments import DAY_MS
from plaudit_server.domain.records import SavedAnswer
from plaudit_server.errors import Conflict
from plaudit_server.store import tables as t

_row = t.idempotency.c


async def begin(
    conn: AsyncConnection,
    *,
    scope: str,
    key: str,
    body_hash: str,
    now_ms: int,
    holder: str | None = None,
    hold_ms: int = 900_000,
) -> SavedAnswer | None:
    """Claim an idempotency key. None: the caller is the first and goes on, then calls `finish` or `abandon`.

    A claim that is neither finished nor abandoned (the process died) lapses after `hold_ms`. `holder` is the server.

    Returns:
        The answer of the first time.

    Raises:
        Conflict: the key was used with another body (code `idempotency_key_reused`), or the first request is still
            under way (code `idempotency_in_progress`).
    """
    await conn.execute(delete(t.idempotency).where(_row.scope == scope, _row.key == key, _row.expires_at <= now_ms))
    query = select(t.idempotency).where(_row.scope == scope, _row.key == key)
    known = (await conn.execute(query)).one_or_none()
    if known is None:
        claim = {"scope": scope, "key": key, "body_hash": body_hash, "expires_at": now_ms + hold_ms}
        await conn.execute(insert(t.idempotency).values({**claim, "holder": holder}))
        return None
    if known.body_hash != body_hash:
        raise Conflict("This Idempotency-Key was used with another body.", code="idempotency_key_reused")
    if known.status is None:
        raise Conflict(
            "The first request with this Idempotency-Key is still under way.", code="idempotency_in_progress"
        )
    return SavedAnswer(known.status, known.body)


async def finish(conn: AsyncConnection, *, scope: str, key: str, status: int, body: bytes, now_ms: int) -> None:
    """Keep the answer for 24 hours. `body` has passed `domain.privacy`, as everything that is written."""
    claim = update(t.idempotency).where(_row.scope == scope, _row.key == key)
    await conn.execute(claim.values(status=status, body=body, expires_at=now_ms + DAY_MS))


async def abandon(conn: AsyncConnection, *, scope: str, key: str) -> None:
    """Give the key back: the request failed in a way that may be tried again. A finished one stays."""
    open_claim = (_row.scope == scope, _row.key == key, _row.status.is_(None))
    await conn.execute(delete(t.idempotency).where(*open_claim))


async def purge(conn: AsyncConnection, *, now_ms: int) -> int:
    """Drop what has lapsed; how many."""
    return (await conn.execute(delete(t.idempotency).where(_row.expires_at <= now_ms))).rowcount


async def abandon_unfinished(conn: AsyncConnection, holder: str) -> int:
    """Give back every claim that this server neither finished nor abandoned when it last ran; how many.

    For its start: a caller who tries again should not wait until they lapse. Claims of no named server go too: a
    release that ran alone left them.
    """
    mine = or_(_row.holder == holder, _row.holder.is_(None))
    return (await conn.execute(delete(t.idempotency).where(_row.status.is_(None), mine))).rowcount
