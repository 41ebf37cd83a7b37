"""Votes, comments, corrections: one live row for each (response, key, end user), and its history."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, func, insert, select, update
from sqlalchemy import delete as sql_delete
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit.wire.feedback import Sign
from plaudit_server.domain.feedback import PutOutcome, is_trainable
from plaudit_server.domain.ids import minted_at_ms, new_id
from plaudit_server.domain.records import NewFeedback, Rows, StoredFeedback
from plaudit_server.store import paging
from plaudit_server.store import tables as t

_SAID = ("value", "tags", "comment", "correction", "source", "retracted")
"""What makes two pieces of feedback the same. A repeated one may carry another time: it is still the same word."""

_HISTORY = (*_SAID, "revision", "occurred_at", "received_at", "trainable")


_SIGNS: dict[Sign, ColumnElement[bool]] = {
    "up": t.feedback.c.value > 0,
    "down": t.feedback.c.value < 0,
    "none": t.feedback.c.value.is_(None),
}


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a vote needs to know of the answer. The version is None while it is not written.

    `spent`: it was learnt from, or never can be. A vote that comes before its answer is looked at by the next lease
    (`signals.retire`); any other is marked here, so that a service without a trainer leaves no lease years of work.
    """

    version: str | None
    created_at_ms: int | None
    spent: bool


async def put(conn: AsyncConnection, new: NewFeedback) -> tuple[StoredFeedback, PutOutcome]:
    """Write feedback, replacing an earlier one of the same (response, key, end user).

    The answer's row need not exist yet. The same content twice changes nothing and adds no revision.
    """
    live = await _live(conn, new)
    values = _values(new, live, await _answer(conn, new.response_id))
    if live is None:
        values |= {"id": new_id("fb_"), "revision": 1}
        await conn.execute(insert(t.feedback).values(values))
        return _stored(values), "created"
    if all(values[name] == live._mapping[name] for name in _SAID):
        return from_row(live), "replaced"
    await _archive(conn, live)
    values |= {"id": live.id, "revision": live.revision + 1}
    await conn.execute(update(t.feedback).where(t.feedback.c.id == live.id).values(values))
    return _stored(values), "replaced"


async def get(conn: AsyncConnection, feedback_id: str) -> StoredFeedback | None:
    """One piece of feedback."""
    row = (await conn.execute(select(t.feedback).where(t.feedback.c.id == feedback_id))).one_or_none()
    return None if row is None else from_row(row)


async def revisions(conn: AsyncConnection, feedback_id: str) -> list[StoredFeedback]:
    """What was replaced, oldest first; without the live row."""
    old = t.feedback_revisions.c
    kept = [old[name] for name in _HISTORY]
    shared = [t.feedback.c[name] for name in ("id", "response_id", "key", "end_user", "version", "spent")]
    query = select(*shared, *kept).join_from(t.feedback, t.feedback_revisions).where(old.feedback_id == feedback_id)
    return [from_row(row) for row in (await conn.execute(query.order_by(old.revision))).all()]


async def page(
    conn: AsyncConnection,
    *,
    response_id: str | None = None,
    version: str | None = None,
    since_ms: int | None = None,
    key: str | None = None,
    vote: Sign | None = None,
    after: str | None = None,
    limit: int = 20,
) -> Rows[StoredFeedback]:
    """Feedback, newest first by its first revision. `since_ms` bounds the time it was received."""
    query = select(t.feedback)
    if response_id is not None:
        query = query.where(t.feedback.c.response_id == response_id)
    if version is not None:
        query = query.where(t.feedback.c.version == version)
    if since_ms is not None:
        query = query.where(t.feedback.c.received_at >= since_ms)
    if key is not None:
        query = query.where(t.feedback.c.key == key)
    if vote is not None:
        query = query.where(_SIGNS[vote])
    return await paging.page(conn, query, by=t.feedback.c.id, after=after, limit=limit, read=from_row)


async def delete(conn: AsyncConnection, feedback_id: str) -> bool:
    """Remove a piece of feedback with its history; whether there was one."""
    await conn.execute(sql_delete(t.feedback_revisions).where(t.feedback_revisions.c.feedback_id == feedback_id))
    gone = await conn.execute(sql_delete(t.feedback).where(t.feedback.c.id == feedback_id))
    return gone.rowcount > 0


async def counts(conn: AsyncConnection, response_ids: Sequence[str]) -> dict[str, int]:
    """How many live, not retracted pieces of feedback each answer has; answers without any are missing."""
    said = t.feedback.c
    query = select(said.response_id, func.count()).where(said.response_id.in_(response_ids), said.retracted.is_(False))
    return {row[0]: row[1] for row in await conn.execute(query.group_by(said.response_id))}


def from_row(row: Row[Any]) -> StoredFeedback:
    """The feedback that a row of `feedback` holds."""
    return _stored(row._mapping)


def _stored(columns: Mapping[Any, Any]) -> StoredFeedback:
    values = dict(columns)
    del values["spent"]
    values["end_user"] = values["end_user"] or None
    values["occurred_at_ms"] = values.pop("occurred_at")
    values["received_at_ms"] = values.pop("received_at")
    return StoredFeedback(**values)


def _values(new: NewFeedback, live: Row[Any] | None, answer: _Answer) -> dict[str, Any]:
    stands = new.value is None and not new.retracts and live is not None
    value = live.value if stands and live is not None else new.value
    return {
        "response_id": new.response_id,
        "key": new.key,
        "end_user": new.end_user or "",
        "value": value,
        "tags": list(new.tags),
        "comment": new.comment,
        "correction": new.correction,
        "source": new.source,
        "occurred_at": new.occurred_at_ms,
        "received_at": new.received_at_ms,
        "version": answer.version,
        "retracted": new.retracts,
        "trainable": is_trainable(
            value=value,
            has_correction=new.correction is not None,
            retracted=new.retracts,
            answered_at_ms=answer.created_at_ms,
            occurred_at_ms=new.occurred_at_ms,
            received_at_ms=new.received_at_ms,
            max_age_ms=new.max_age_ms,
        ),
        "spent": answer.spent,
    }


async def _live(conn: AsyncConnection, new: NewFeedback) -> Row[Any] | None:
    row = t.feedback.c
    same = (row.response_id == new.response_id, row.key == new.key, row.end_user == (new.end_user or ""))
    # FOR UPDATE does nothing on SQLite, which has one writer; elsewhere it makes a second voter wait for the first.
    return (await conn.execute(select(t.feedback).where(*same).with_for_update())).one_or_none()


async def _answer(conn: AsyncConnection, response_id: str) -> _Answer:
    row = t.interactions.c
    query = select(row.version, row.created_at, row.consumed_by, row.train_consent, row.status)
    found = (await conn.execute(query.where(row.id == response_id))).one_or_none()
    if found is None:
        return _Answer(None, minted_at_ms(response_id), spent=False)
    hopeless = not found.train_consent or found.status != "complete"
    return _Answer(found.version, found.created_at, spent=hopeless or found.consumed_by is not None)


async def _archive(conn: AsyncConnection, live: Row[Any]) -> None:
    old = {name: live._mapping[name] for name in _HISTORY}
    await conn.execute(insert(t.feedback_revisions).values(feedback_id=live.id, **old))
