"""Which feedback tokens were used: each of a token's keys once."""

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit_server.errors import Conflict
from plaudit_server.store import tables as t

_use = t.feedback_token_uses.c


async def use(conn: AsyncConnection, token_id: str, key: str, *, expires_at_ms: int) -> None:
    """Use one key of a token.

    Raises:
        Conflict: it was used before (code `token_used`).
    """
    same = (_use.token_id == token_id, _use.key == key)
    if (await conn.execute(select(_use.token_id).where(*same))).first() is not None:
        raise _used()
    try:
        values = {"token_id": token_id, "key": key, "expires_at": expires_at_ms}
        await conn.execute(insert(t.feedback_token_uses).values(values))
    except IntegrityError:  # another gateway process was faster
        raise _used() from None


def _used() -> Conflict:
    return Conflict(
        "This feedback token was used. The answer to its first use has the next one in `x-feedback-token`.",
        code="token_used",
    )


async def purge(conn: AsyncConnection, *, now_ms: int) -> int:
    """Forget tokens that could not be used any more; how many uses."""
    return (await conn.execute(delete(t.feedback_token_uses).where(_use.expires_at <= now_ms))).rowcount
