"""Answers, and what became of those that are not kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit_server.domain.records import Fate, Interaction, Rows
from plaudit_server.store import paging
from plaudit_server.store import tables as t


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What `forget` did: whether there was a row, and the versions that had learned from it."""

    found: bool
    versions: tuple[str, ...]


async def add(conn: AsyncConnection, interaction: Interaction) -> None:
    """Write one answer; see `add_many`."""
    await add_many(conn, [interaction])


async def add_many(conn: AsyncConnection, answers: Sequence[Interaction]) -> None:
    """Write answers, one statement a table however many they are.

    Feedback that came before an answer learns its version. An answer erased meanwhile is not written.
    """
    known = await _known(conn, [answer.id for answer in answers])
    new = {answer.id: answer for answer in answers if answer.id not in known}
    if not new:
        return
    await conn.execute(insert(t.interactions), [_to_row(answer) for answer in new.values()])
    labels = [{"response_id": a.id, "name": n, "value": v} for a in new.values() for n, v in a.metadata.items()]
    if labels:
        await conn.execute(insert(t.interaction_metadata), labels)
    early = select(t.feedback.c.response_id).where(t.feedback.c.response_id.in_(new)).distinct()
    for response_id in (await conn.execute(early)).scalars().all():
        said = t.feedback.c.response_id == response_id
        await conn.execute(update(t.feedback).where(said).values(version=new[response_id].version))


async def get(conn: AsyncConnection, response_id: str) -> Interaction | None:
    """One answer."""
    row = (await conn.execute(select(t.interactions).where(t.interactions.c.id == response_id))).one_or_none()
    return None if row is None else from_row(row)


async def page(
    conn: AsyncConnection,
    *,
    version: str | None = None,
    end_user: str | None = None,
    since_ms: int | None = None,
    metadata: Mapping[str, str] | None = None,
    after: str | None = None,
    limit: int = 20,
) -> Rows[Interaction]:
    """Answers, newest first. `metadata` keeps those that carry every given name with the given value."""
    answer = t.interactions.c
    query = select(t.interactions)
    if version is not None:
        query = query.where(answer.version == version)
    if end_user is not None:
        query = query.where(answer.end_user == end_user)
    if since_ms is not None:
        query = query.where(answer.created_at >= since_ms)
    for name, value in (metadata or {}).items():
        query = query.where(_carries(name, value))
    return await paging.page(conn, query, by=answer.id, after=after, limit=limit, read=from_row)


async def forget(conn: AsyncConnection, response_id: str, reason: str, *, now_ms: int) -> Forgotten:
    """Erase an answer and every text that was said about it; later votes on it are told that it is gone.

    Votes keep their sign for the counts but are never learnt from. Works for an answer that is not yet written. Of a
    batch that is leased now the answer is no longer handed out, but it stays claimed: the worker may have read it, and
    what is registered from that batch is then tainted.
    """
    learned = await _learned(conn, response_id)
    await _bury(conn, response_id, "erased", reason, now_ms)
    await _erase_feedback(conn, response_id)
    sides = or_(t.comparisons.c.chosen_id == response_id, t.comparisons.c.rejected_id == response_id)
    await conn.execute(update(t.comparisons).where(sides).values(chosen_text=None, rejected_text=None, trainable=False))
    await conn.execute(delete(t.interaction_metadata).where(t.interaction_metadata.c.response_id == response_id))
    gone = await conn.execute(delete(t.interactions).where(t.interactions.c.id == response_id))
    return Forgotten(found=gone.rowcount > 0, versions=learned)


async def add_tombstone(conn: AsyncConnection, response_id: str, reason: str, *, now_ms: int) -> None:
    """Remember that an answer was made with `store: false`, and nothing else of it."""
    await _bury(conn, response_id, "unstored", reason, now_ms)


async def fate(conn: AsyncConnection, response_id: str) -> Fate:
    """What became of an answer."""
    buried = select(t.tombstones.c.fate).where(t.tombstones.c.response_id == response_id)
    found: Fate | None = (await conn.execute(buried)).scalar_one_or_none()
    if found is not None:
        return found
    stored = select(t.interactions.c.id).where(t.interactions.c.id == response_id)
    return "unknown" if (await conn.execute(stored)).first() is None else "stored"


async def asked_by(conn: AsyncConnection, response_id: str) -> tuple[str | None, str | None]:
    """The end user (keyed hash) and the API key of a stored answer; None for what is not known."""
    answer = t.interactions.c
    query = select(answer.end_user, answer.key_id).where(answer.id == response_id)
    found = (await conn.execute(query)).one_or_none()
    return (None, None) if found is None else (found.end_user, found.key_id)


async def _known(conn: AsyncConnection, response_ids: Sequence[str]) -> set[str]:
    """Those of the ids that have a row or a tombstone."""
    found: set[str] = set()
    for column in (t.tombstones.c.response_id, t.interactions.c.id):
        found.update((await conn.execute(select(column).where(column.in_(response_ids)))).scalars())
    return found


def from_row(row: Row[Any]) -> Interaction:
    """The answer that a row of `interactions` holds."""
    values = dict(row._mapping)
    return Interaction(created_at_ms=values.pop("created_at"), **values)


def _to_row(interaction: Interaction) -> dict[str, Any]:
    values = {name: getattr(interaction, name) for name in Interaction.__slots__}
    values["created_at"] = values.pop("created_at_ms")
    return values


def _carries(name: str, value: str) -> ColumnElement[bool]:
    label = t.interaction_metadata.c
    found = select(label.response_id).where(label.response_id == t.interactions.c.id)
    return found.where(label.name == name, label.value == value).exists()


async def _learned(conn: AsyncConnection, response_id: str) -> tuple[str, ...]:
    """Versions that were trained on the answer, or on a comparison it was part of."""
    part = or_(t.comparisons.c.chosen_id == response_id, t.comparisons.c.rejected_id == response_id)
    items = or_(
        t.consumptions.c.item_id == response_id,
        t.consumptions.c.item_id.in_(select(t.comparisons.c.id).where(part).scalar_subquery()),
    )
    query = select(t.batches.c.version).join_from(t.batches, t.consumptions).where(items).distinct()
    found = (await conn.execute(query.where(t.batches.c.version.is_not(None)))).scalars()
    return tuple(sorted(found))


async def _bury(conn: AsyncConnection, response_id: str, what: Fate, reason: str, now_ms: int) -> None:
    tomb = t.tombstones
    known = (await conn.execute(select(tomb.c.fate).where(tomb.c.response_id == response_id))).first()
    if known is None:
        values = {"response_id": response_id, "fate": what, "reason": reason, "at": now_ms}
        await conn.execute(insert(tomb).values(values))


async def _erase_feedback(conn: AsyncConnection, response_id: str) -> None:
    said = t.feedback.c.response_id == response_id
    ids = select(t.feedback.c.id).where(said).scalar_subquery()
    await conn.execute(delete(t.feedback_revisions).where(t.feedback_revisions.c.feedback_id.in_(ids)))
    erased: dict[str, Any] = {"comment": None, "correction": None, "tags": [], "trainable": False}
    await conn.execute(update(t.feedback).where(said).values(erased))
