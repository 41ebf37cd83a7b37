"""Batches: who holds which records, until when, and what has been consumed for ever.

A record is an answer with something said about it. `claims` has one row for each item that a live lease holds, and
`consumptions` one for each that was ever trained on or set aside; the item is the primary key of both, so neither can
happen twice, whatever the code around it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Row,
    Select,
    and_,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    union,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from plaudit.wire.training import AckRequest, BatchState, FailRequest, HeartbeatRequest, LeaseRequest
from plaudit_server.domain.ids import new_id
from plaudit_server.domain.records import (
    BatchData,
    BatchRow,
    Interaction,
    LeasedComparison,
    LeasedRecord,
    StoredFeedback,
)
from plaudit_server.errors import Conflict, NotFound
from plaudit_server.store import comparisons, feedback, interactions
from plaudit_server.store import tables as t

_answer = t.interactions.c
_vote = t.feedback.c
_pair = t.comparisons.c


async def lease(conn: AsyncConnection, request: LeaseRequest, *, now_ms: int) -> BatchData:
    """Lease the oldest records that can be learnt from; or the same batch again to a worker that still holds one."""
    await _expire(conn, now_ms)
    until_ms = now_ms + _ms(request.lease_seconds)
    held = (await conn.execute(select(t.batches).where(t.batches.c.held_by == request.worker))).one_or_none()
    if held is not None:
        await conn.execute(update(t.batches).where(t.batches.c.id == held.id).values(lease_expires_at=until_ms))
        available = await waiting(conn) + held.records
        return await _load(conn, held.id, resumed=True, available=available, needed=request.min_records)
    available, dropped = await waiting(conn), await _dropped(conn)
    if available < request.min_records:
        return _insufficient(available, request.min_records, dropped)
    batch_id = new_id("batch_")
    await conn.execute(insert(t.batches).values(_new_batch(batch_id, request.worker, now_ms, until_ms, dropped)))
    await _claim(conn, batch_id, request.max_records)
    return await _load(conn, batch_id, resumed=False, available=available, needed=request.min_records)


async def heartbeat(conn: AsyncConnection, batch_id: str, request: HeartbeatRequest, *, now_ms: int) -> BatchRow:
    """Prolong a lease.

    Raises:
        NotFound: there is no such batch.
        Conflict: the lease is lost (code `lease_lost`).
    """
    await check_held(conn, batch_id, request.worker, now_ms=now_ms)
    until_ms = now_ms + _ms(request.lease_seconds)
    await conn.execute(update(t.batches).where(t.batches.c.id == batch_id).values(lease_expires_at=until_ms))
    return await get(conn, batch_id)


async def ack(conn: AsyncConnection, batch_id: str, request: AckRequest, *, now_ms: int) -> BatchRow:
    """Consume a batch without a version. Repeating it is harmless. Raises as `heartbeat`."""
    batch = await get(conn, batch_id)
    if batch.state == "consumed" and batch.worker == request.worker:
        return batch
    await check_held(conn, batch_id, request.worker, now_ms=now_ms)
    reason = request.reason or "acknowledged without a version"
    await _use_up(conn, batch_id, _Ending("consumed", reason), now_ms)
    await _end_runs(conn, batch_id, reason, now_ms)
    return await get(conn, batch_id)


async def fail(conn: AsyncConnection, batch_id: str, request: FailRequest, *, now_ms: int) -> BatchRow:
    """Give a batch back, or set its records aside for ever. Repeating it is harmless. Raises as `heartbeat`."""
    batch = await get(conn, batch_id)
    wanted: BatchState = "released" if request.release else "discarded"
    if batch.state == wanted and batch.worker == request.worker:
        return batch
    await check_held(conn, batch_id, request.worker, now_ms=now_ms)
    ending = _Ending(wanted, request.reason)
    await (_give_back(conn, batch_id, ending) if request.release else _use_up(conn, batch_id, ending, now_ms))
    await _end_runs(conn, batch_id, request.reason, now_ms)
    return await get(conn, batch_id)


async def get(conn: AsyncConnection, batch_id: str) -> BatchRow:
    """One batch. Raises NotFound."""
    row = (await conn.execute(select(t.batches).where(t.batches.c.id == batch_id))).one_or_none()
    if row is None:
        raise NotFound(f"There is no batch {batch_id}.", code="batch_not_found")
    return from_row(row)


async def check_held(conn: AsyncConnection, batch_id: str, worker: str, *, now_ms: int) -> None:
    """Let a worker that holds a batch pass.

    Raises:
        NotFound: there is no such batch.
        Conflict: it does not hold it, or no longer (code `lease_lost`).
    """
    batch = await get(conn, batch_id)
    if batch.worker != worker:
        raise Conflict(f"Batch {batch_id} was leased by another worker.", code="lease_lost")
    if batch.state != "leased" or batch.lease_expires_at_ms <= now_ms:
        state = "expired" if batch.state == "leased" else batch.state
        raise Conflict(f"Batch {batch_id} is {state}: the lease is over. Lease again.", code="lease_lost")


async def consume(conn: AsyncConnection, batch_ids: Sequence[str], version: str, *, now_ms: int) -> int:
    """Mark the records of leased batches as trained on by `version`; how many records they were.

    For the transaction that registers the version. A record that was consumed before violates a constraint.
    """
    return sum([await _use_up(conn, b, _Ending("consumed", None, version), now_ms) for b in batch_ids])


async def waiting(conn: AsyncConnection) -> int:
    """How many records could be leased now."""
    return int((await conn.execute(select(func.count()).select_from(_eligible().subquery()))).scalar_one())


def from_row(row: Row[Any]) -> BatchRow:
    """The batch that a row of `batches` holds."""
    values = {name: row._mapping[name] for name in BatchRow.__slots__ if not name.endswith("_ms")}
    return BatchRow(created_at_ms=row.created_at, lease_expires_at_ms=row.lease_expires_at, **values)


# ── which records can be leased ─────────────────────────────────────────────────────────────────────────────────────


def _signalled() -> CompoundSelect[Any]:
    """Ids of answers of which something can be learnt that was not learnt yet."""
    votes = select(_vote.response_id).where(_vote.spent.is_(False), _vote.trainable.is_(True))
    return union(votes, _compared("chosen_id", "rejected_id"), _compared("rejected_id", "chosen_id"))


def _compared(side: str, other: str) -> Select[Any]:
    """One side of the comparisons whose other side, where that is a stored answer too, may be learnt from."""
    partner = aliased(t.interactions)
    query = select(_pair[side]).outerjoin_from(t.comparisons, partner, partner.c.id == _pair[other])
    usable = or_(_pair[other].is_(None), partner.c.train_consent.is_(True))
    return query.where(_pair.spent.is_(False), _pair.trainable.is_(True), _pair[side].is_not(None), usable)


def _unused() -> ColumnElement[bool]:
    claimed = select(t.claims.c.item_id).where(t.claims.c.item_id == _answer.id).exists()
    return and_(_answer.consumed_by.is_(None), ~claimed)


def _eligible() -> Select[Any]:
    learnable = (_answer.train_consent.is_(True), _answer.status == "complete")
    return select(_answer.id).where(_answer.id.in_(_signalled()), *learnable, _unused())


async def _dropped(conn: AsyncConnection) -> dict[str, int]:
    """Records passed over though somebody said something about them, by reason; each is counted under one."""
    said = _answer.id.in_(_signalled())
    silent = ~said
    late = select(_vote.response_id).where(
        _vote.spent.is_(False),
        _vote.trainable.is_(False),
        _vote.retracted.is_(False),
        or_(_vote.value.is_not(None), _vote.correction.is_not(None)),
    )
    taken_back = select(_vote.response_id).where(_vote.spent.is_(False), _vote.retracted.is_(True))
    reasons = {
        "no_consent": and_(said, _answer.train_consent.is_(False)),
        "not_complete": and_(said, _answer.train_consent.is_(True), _answer.status != "complete"),
        "too_old": and_(silent, _answer.id.in_(late)),
        "retracted": and_(silent, _answer.id.in_(taken_back), _answer.id.not_in(late)),
    }
    counted = {}
    for reason, condition in reasons.items():
        query = select(func.count()).select_from(t.interactions).where(condition, _unused())
        counted[reason] = int((await conn.execute(query)).scalar_one())
    return {reason: count for reason, count in counted.items() if count}


def _insufficient(available: int, needed: int, dropped: dict[str, int]) -> BatchData:
    passed_over = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in dropped.items())
    reason = f"{available} records wait, {needed} are needed" + (f"; passed over: {passed_over}" if passed_over else "")
    return BatchData(None, "insufficient_data", reason, False, available, needed, None, dropped=dropped)


# ── taking and giving back ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a batch ends."""

    state: BatchState
    reason: str | None
    version: str | None = None


def _new_batch(batch_id: str, worker: str, now_ms: int, until_ms: int, dropped: dict[str, int]) -> dict[str, Any]:
    counts = {"records": 0, "up": 0, "down": 0, "comparisons": 0, "dropped": dropped}
    holder = {"id": batch_id, "worker": worker, "held_by": worker, "state": "leased"}
    return {**holder, **counts, "created_at": now_ms, "lease_expires_at": until_ms}


async def _claim(conn: AsyncConnection, batch_id: str, max_records: int) -> None:
    mine = literal(batch_id, t.ID)
    oldest = _eligible().add_columns(mine).order_by(_answer.created_at, _answer.id).limit(max_records)
    await conn.execute(insert(t.claims).from_select(["item_id", "batch_id"], oldest))
    records = await _count(conn, t.claims, t.claims.c.batch_id == batch_id)
    held = _items(batch_id)
    both = aliased(t.interactions), aliased(t.interactions)
    pairs = select(_pair.id, mine).select_from(t.comparisons)
    for side, name in zip(both, ("chosen_id", "rejected_id"), strict=True):
        pairs = pairs.outerjoin(side, side.c.id == _pair[name])
        pairs = pairs.where(or_(_pair[name].is_(None), side.c.train_consent.is_(True)))
    free = _pair.id.not_in(select(t.claims.c.item_id))
    touching = or_(_pair.chosen_id.in_(held), _pair.rejected_id.in_(held))
    pairs = pairs.where(_pair.spent.is_(False), _pair.trainable.is_(True), free, touching)
    await conn.execute(insert(t.claims).from_select(["item_id", "batch_id"], pairs))
    await conn.execute(update(t.batches).where(t.batches.c.id == batch_id).values(records=records))


async def _use_up(conn: AsyncConnection, batch_id: str, ending: _Ending, now_ms: int) -> int:
    """Turn the claims of a batch into consumptions."""
    mine = t.claims.c.batch_id == batch_id
    claimed = select(t.claims.c.item_id, t.claims.c.batch_id, literal(now_ms, _answer.created_at.type)).where(mine)
    await conn.execute(insert(t.consumptions).from_select(["item_id", "batch_id", "at"], claimed))
    held = _items(batch_id)
    learnt = and_(_vote.response_id.in_(held), _vote.trainable.is_(True))
    counts = {
        "records": await _count(conn, t.interactions, _answer.id.in_(held)),
        "up": await _count(conn, t.feedback, and_(learnt, _vote.value > 0)),
        "down": await _count(conn, t.feedback, and_(learnt, _vote.value < 0)),
        "comparisons": await _count(conn, t.comparisons, _pair.id.in_(held)),
    }
    await conn.execute(update(t.interactions).where(_answer.id.in_(held)).values(consumed_by=batch_id))
    await conn.execute(update(t.feedback).where(_vote.response_id.in_(held)).values(spent=True))
    await conn.execute(update(t.comparisons).where(or_(_pair.id.in_(held), _too_late(held))).values(spent=True))
    await _close(conn, batch_id, ending, **counts)
    return counts["records"]


def _too_late(held: Select[Any]) -> ColumnElement[bool]:
    """Comparisons that came after their answers were leased: once every stored side is consumed they teach no more."""
    fresh = select(_answer.id).where(
        or_(_answer.id == _pair.chosen_id, _answer.id == _pair.rejected_id), _answer.consumed_by.is_(None)
    )
    return and_(or_(_pair.chosen_id.in_(held), _pair.rejected_id.in_(held)), ~fresh.exists())


async def _give_back(conn: AsyncConnection, batch_id: str, ending: _Ending) -> None:
    await _close(conn, batch_id, ending)


async def _close(conn: AsyncConnection, batch_id: str, ending: _Ending, **counts: int) -> None:
    await conn.execute(delete(t.claims).where(t.claims.c.batch_id == batch_id))
    values = {"state": ending.state, "reason": ending.reason, "version": ending.version, "held_by": None, **counts}
    await conn.execute(update(t.batches).where(t.batches.c.id == batch_id).values(values))


async def _expire(conn: AsyncConnection, now_ms: int) -> None:
    """Free what is held by workers that went away."""
    lapsed = select(t.batches.c.id).where(t.batches.c.state == "leased", t.batches.c.lease_expires_at <= now_ms)
    for batch_id in (await conn.execute(lapsed)).scalars().all():
        reason = "the worker let the lease expire"
        await _give_back(conn, batch_id, _Ending("expired", reason))
        await _end_runs(conn, batch_id, reason, now_ms)


async def _end_runs(conn: AsyncConnection, batch_id: str, reason: str, now_ms: int) -> None:
    running = (t.runs.c.batch_id == batch_id, t.runs.c.state == "running")
    await conn.execute(update(t.runs).where(*running).values(state="failed", reason=reason, updated_at=now_ms))


# ── what the worker gets ────────────────────────────────────────────────────────────────────────────────────────────


async def _load(conn: AsyncConnection, batch_id: str, *, resumed: bool, available: int, needed: int) -> BatchData:
    row = (await conn.execute(select(t.batches).where(t.batches.c.id == batch_id))).one()
    records = await _records(conn, batch_id)
    pairs = await _comparisons(conn, batch_id, frozenset(record.interaction.id for record in records))
    compared = {side for pair in pairs for side in pair.in_batch}
    # Votes may have been taken back since the lease began: a record of which nothing is said any more is left out.
    records = [record for record in records if record.feedback or record.interaction.id in compared]
    return BatchData(
        id=batch_id,
        state="leased",
        reason=None,
        resumed=resumed,
        available=available,
        needed=needed,
        lease_expires_at_ms=row.lease_expires_at,
        records=records,
        comparisons=pairs,
        dropped=row.dropped,
    )


async def _records(conn: AsyncConnection, batch_id: str) -> list[LeasedRecord]:
    held = _items(batch_id)
    votes: dict[str, list[StoredFeedback]] = {}
    said = select(t.feedback).where(_vote.response_id.in_(held), _vote.trainable.is_(True))
    for row in await conn.execute(said.order_by(_vote.received_at, _vote.id)):
        votes.setdefault(row.response_id, []).append(feedback.from_row(row))
    answers = select(t.interactions).where(_answer.id.in_(held)).order_by(_answer.created_at, _answer.id)
    found = [interactions.from_row(row) for row in await conn.execute(answers)]
    return [LeasedRecord(answer, votes.get(answer.id, [])) for answer in found]


async def _comparisons(conn: AsyncConnection, batch_id: str, records: frozenset[str]) -> list[LeasedComparison]:
    held = _items(batch_id)
    pairs = select(t.comparisons).where(_pair.id.in_(held), _pair.trainable.is_(True)).order_by(_pair.id)
    found = [comparisons.from_row(row) for row in await conn.execute(pairs)]
    sides = await _sides(conn, held)
    return [
        LeasedComparison(
            comparison=pair,
            chosen=sides.get(pair.chosen_id or ""),
            rejected=sides.get(pair.rejected_id or ""),
            in_batch=records & {pair.chosen_id, pair.rejected_id},
        )
        for pair in found
    ]


async def _sides(conn: AsyncConnection, held: Select[Any]) -> dict[str, Interaction]:
    named = union(
        select(_pair.chosen_id).where(_pair.id.in_(held)), select(_pair.rejected_id).where(_pair.id.in_(held))
    )
    rows = await conn.execute(select(t.interactions).where(_answer.id.in_(named)))
    return {row.id: interactions.from_row(row) for row in rows}


def _items(batch_id: str) -> Select[Any]:
    """What a live batch holds, as a subquery: a list of ids could be longer than a database takes parameters."""
    return select(t.claims.c.item_id).where(t.claims.c.batch_id == batch_id)


async def _count(conn: AsyncConnection, table: Any, condition: ColumnElement[bool]) -> int:
    return int((await conn.execute(select(func.count()).select_from(table).where(condition))).scalar_one())


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
