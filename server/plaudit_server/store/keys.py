"""API keys. Only their SHA-256 is kept.

A key is 256 random bits, so there is nothing to guess: a slow password hash would cost every request and protect
nothing, and the hash can be looked up directly.
"""

import hashlib
import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit.wire.ops import Role
from plaudit_server.domain.ids import new_id
from plaudit_server.domain.records import KeyRow, Rows
from plaudit_server.errors import NotFound
from plaudit_server.store import paging
from plaudit_server.store import tables as t

_SHOWN = 10


def new_secret() -> str:
    """A new key: `plk_` and 256 random bits."""
    return "plk_" + secrets.token_urlsafe(32)


async def create(
    conn: AsyncConnection, *, name: str, roles: Sequence[Role], now_ms: int, secret: str | None = None
) -> tuple[KeyRow, str]:
    """Make a key; the row and the secret, which cannot be read again. `secret` sets it instead of drawing one."""
    secret = secret or new_secret()
    row = KeyRow(new_id("key_"), name, sorted(set(roles)), secret[:_SHOWN] + "…", now_ms, None)
    values = {"id": row.id, "name": name, "roles": row.roles, "hint": row.hint, "created_at": now_ms}
    await conn.execute(insert(t.keys).values({**values, "secret_sha256": _digest(secret)}))
    return row, secret


async def find(conn: AsyncConnection, secret: str) -> KeyRow | None:
    """The live key with this secret; None where there is none or it was revoked."""
    query = select(t.keys).where(t.keys.c.secret_sha256 == _digest(secret), t.keys.c.revoked_at.is_(None))
    row = (await conn.execute(query)).one_or_none()
    return None if row is None else _from_row(row)


async def held(conn: AsyncConnection, role: Role) -> bool:
    """Whether a live key has this role."""
    rows = await conn.execute(select(t.keys.c.roles).where(t.keys.c.revoked_at.is_(None)))
    return any(role in roles for roles in rows.scalars())


async def get(conn: AsyncConnection, key_id: str) -> KeyRow:
    """One key, revoked or not. Raises NotFound."""
    row = (await conn.execute(select(t.keys).where(t.keys.c.id == key_id))).one_or_none()
    if row is None:
        raise NotFound(f"There is no key {key_id}.", code="key_not_found")
    return _from_row(row)


async def page(conn: AsyncConnection, *, after: str | None = None, limit: int = 20) -> Rows[KeyRow]:
    """Keys, newest first, revoked ones too."""
    return await paging.page(conn, select(t.keys), by=t.keys.c.id, after=after, limit=limit, read=_from_row)


async def revoke(conn: AsyncConnection, key_id: str, *, now_ms: int) -> KeyRow:
    """End a key. Repeating it is harmless. Raises NotFound."""
    live = (t.keys.c.id == key_id, t.keys.c.revoked_at.is_(None))
    await conn.execute(update(t.keys).where(*live).values(revoked_at=now_ms))
    return await get(conn, key_id)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _from_row(row: Row[Any]) -> KeyRow:
    return KeyRow(row.id, row.name, row.roles, row.hint, row.created_at, row.revoked_at)
