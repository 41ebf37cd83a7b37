"""Batches: who holds which records, until when, and what has been consumed for ever.

A record is an answer with something said about it: a vote, a correction, a comparison, a regeneration that was kept.
`claims` has one row for each item that a live lease holds, and `consumptions` one for each that was ever trained on or
set aside; the item is the primary key of both, so neither can happen twice, whatever the code around it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, delete, func, insert, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from plaudit.wire.training import AckRequest, BatchState, FailRequest, HeartbeatRequest, LeaseRequest
from plaudit_server.domain.ids import new_id
from plaudit_server.domain.records import BatchData, BatchRow, Rows
from plaudit_server.errors import Conflict, NotFound
from plaudit_server.store import contents, paging, regenerations, signals
from plaudit_server.store import tables as t
from plaudit_server.store.contents import items

_answer = t.interactions.c
_vote = t.feedback.c
_pair = t.comparisons.c
_event = t.events.c

_IDS_AT_ONCE = 10_000
"""Of a statement: PostgreSQL takes 32,767 parameters."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What could be leased at some moment.

    Finding it takes as long as much waits, and is done beside the writers (`Database.read`). A lease then takes what
    was found, which is short.

    Args:
        available: records that wait.
        dropped: what was passed over, each under one reason.
        oldest: ids of the oldest that wait, as many as were asked for at most.
        hopeless: what no survey need look at again.
    """

    available: int
    dropped: dict[str, int]
    oldest: Sequence[str]
    hopeless: signals.Hopeless


async def lapsed(conn: AsyncConnection, now_ms: int) -> list[str]:
    """Batches that are held by workers that went away."""
    batch = t.batches.c
    query = select(batch.id).where(batch.state == "leased", batch.lease_expires_at <= now_ms)
    return list((await conn.execute(query)).scalars())


async def expire(conn: AsyncConnection, now_ms: int) -> None:
    """Free what is held by workers that went away."""
    for batch_id in await lapsed(conn, now_ms):
        reason = "the worker let the lease expire"
        await _give_back(conn, batch_id, _Ending("expired", reason))
        await _end_runs(conn, batch_id, reason, now_ms)


async def survey(conn: AsyncConnection, max_records: int) -> Survey:
    """Look for the oldest records that can be learnt from."""
    oldest = signals.eligible().order_by(_answer.created_at, _answer.id).limit(max_records)
    return Survey(
        available=await waiting(conn),
        dropped=await signals.passed_over(conn),
        oldest=(await conn.execute(oldest)).scalars().all(),
        hopeless=await signals.hopeless(conn),
    )


async def lease(conn: AsyncConnection, request: LeaseRequest, found: Survey, *, now_ms: int) -> BatchData | None:
    """Lease what was found; or the same batch again to a worker that still holds one.

    None where some of it was taken or erased since: look again.
    """
    await signals.retire(conn, found.hopeless)
    until_ms = now_ms + _ms(request.lease_seconds)
    held = (await conn.execute(select(t.batches).where(t.batches.c.held_by == request.worker))).one_or_none()
    if held is not None:
        await conn.execute(update(t.batches).where(t.batches.c.id == held.id).values(lease_expires_at=until_ms))
        return await _load(conn, held.id, request, resumed=True, available=found.available + held.records)
    if found.available < request.min_records:
        return _insufficient(found.available, request.min_records, found.dropped)
    if await _count_free(conn, found.oldest) < len(found.oldest):
        return None
    batch_id = new_id("batch_")
    await conn.execute(insert(t.batches).values(_new_batch(batch_id, request.worker, now_ms, until_ms, found.dropped)))
    await _claim(conn, batch_id, found.oldest)
    return await _load(conn, batch_id, request, resumed=False, available=found.available)


async def _load(
    conn: AsyncConnection, batch_id: str, request: LeaseRequest, *, resumed: bool, available: int
) -> BatchData:
    row = (await conn.execute(select(t.batches).where(t.batches.c.id == batch_id))).one()
    limits = {"needed": request.min_records, "max_prompts": request.max_prompts}
    return await contents.load(conn, row, resumed=resumed, available=available, **limits)


async def open_empty(conn: AsyncConnection, worker: str, lease_seconds: float, *, now_ms: int) -> str:
    """A batch without records, leased to a worker whose run learns from no feedback; its id.

    Raises:
        Conflict: the worker holds a batch already (code `holds_batch`).
    """
    await expire(conn, now_ms)
    if (await conn.execute(select(t.batches.c.id).where(t.batches.c.held_by == worker))).first() is not None:
        raise Conflict(f"{worker} holds a batch: begin its run, or give it back.", code="holds_batch")
    batch_id, until_ms = new_id("batch_"), now_ms + _ms(lease_seconds)
    await conn.execute(insert(t.batches).values(_new_batch(batch_id, worker, now_ms, until_ms, {})))
    return batch_id


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


async def page(
    conn: AsyncConnection, *, state: BatchState | None = None, after: str | None = None, limit: int = 20
) -> Rows[BatchRow]:
    """Batches, newest first."""
    query = select(t.batches) if state is None else select(t.batches).where(t.batches.c.state == state)
    return await paging.page(conn, query, by=t.batches.c.id, after=after, limit=limit, read=from_row)


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
    return int((await conn.execute(select(func.count()).select_from(signals.eligible().subquery()))).scalar_one())


def from_row(row: Row[Any]) -> BatchRow:
    """The batch that a row of `batches` holds."""
    values = {name: row._mapping[name] for name in BatchRow.__slots__ if not name.endswith("_ms")}
    return BatchRow(created_at_ms=row.created_at, lease_expires_at_ms=row.lease_expires_at, **values)


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


async def _count_free(conn: AsyncConnection, ids: Sequence[str]) -> int:
    parts = (ids[start : start + _IDS_AT_ONCE] for start in range(0, len(ids), _IDS_AT_ONCE))
    return sum([await _count(conn, t.interactions, and_(_answer.id.in_(part), signals.free())) for part in parts])


async def _claim(conn: AsyncConnection, batch_id: str, answers: Sequence[str]) -> None:
    await conn.execute(insert(t.claims), [{"item_id": answer, "batch_id": batch_id} for answer in answers])
    held, mine = items(batch_id), literal(batch_id, t.ID)
    both = aliased(t.interactions), aliased(t.interactions)
    pairs = select(_pair.id, mine).select_from(t.comparisons)
    for side, name in zip(both, ("chosen_id", "rejected_id"), strict=True):
        pairs = pairs.outerjoin(side, side.c.id == _pair[name])
        pairs = pairs.where(or_(_pair[name].is_(None), side.c.train_consent.is_(True)))
    free = _pair.id.not_in(select(t.claims.c.item_id))
    touching = or_(_pair.chosen_id.in_(held), _pair.rejected_id.in_(held))
    pairs = pairs.where(_pair.spent.is_(False), _pair.trainable.is_(True), free, touching)
    await conn.execute(insert(t.claims).from_select(["item_id", "batch_id"], pairs))
    again = regenerations.usable(_event.id, mine).where(_event.id.not_in(select(t.claims.c.item_id)))
    again = again.where(or_(_event.response_id.in_(held), _event.new_response_id.in_(held)))
    await conn.execute(insert(t.claims).from_select(["item_id", "batch_id"], again))
    await conn.execute(update(t.batches).where(t.batches.c.id == batch_id).values(records=len(answers)))


async def _use_up(conn: AsyncConnection, batch_id: str, ending: _Ending, now_ms: int) -> int:
    """Turn the claims of a batch into consumptions."""
    mine = t.claims.c.batch_id == batch_id
    claimed = select(t.claims.c.item_id, t.claims.c.batch_id, literal(now_ms, _answer.created_at.type)).where(mine)
    await conn.execute(insert(t.consumptions).from_select(["item_id", "batch_id", "at"], claimed))
    held = items(batch_id)
    learnt = and_(_vote.response_id.in_(held), _vote.trainable.is_(True))
    counts = {
        "records": await _count(conn, t.interactions, _answer.id.in_(held)),
        "up": await _count(conn, t.feedback, and_(learnt, _vote.value > 0)),
        "down": await _count(conn, t.feedback, and_(learnt, _vote.value < 0)),
        "comparisons": await _count(conn, t.comparisons, _pair.id.in_(held)),
    }
    await conn.execute(update(t.interactions).where(_answer.id.in_(held)).values(consumed_by=batch_id))
    await conn.execute(update(t.feedback).where(_vote.response_id.in_(held)).values(spent=True))
    for table, live, first, second in (
        (t.comparisons, _pair.spent.is_(False), _pair.chosen_id, _pair.rejected_id),
        (t.events, regenerations.live(), _event.new_response_id, _event.response_id),
    ):
        late = _too_late(held, first, second)
        await conn.execute(update(table).where(live, or_(table.c.id.in_(held), late)).values(spent=True))
    await _close(conn, batch_id, ending, **counts)
    return counts["records"]


def _too_late(held: Select[Any], first: ColumnElement[Any], second: ColumnElement[Any]) -> ColumnElement[bool]:
    """Pairs that came after their answers were leased: once every stored side is consumed they teach no more."""
    fresh = select(_answer.id).where(or_(_answer.id == first, _answer.id == second), _answer.consumed_by.is_(None))
    return and_(or_(first.in_(held), second.in_(held)), ~fresh.exists())


async def _give_back(conn: AsyncConnection, batch_id: str, ending: _Ending) -> None:
    await _close(conn, batch_id, ending)


async def _close(conn: AsyncConnection, batch_id: str, ending: _Ending, **counts: int) -> None:
    await conn.execute(delete(t.claims).where(t.claims.c.batch_id == batch_id))
    values = {"state": ending.state, "reason": ending.reason, "version": ending.version, "held_by": None, **counts}
    await conn.execute(update(t.batches).where(t.batches.c.id == batch_id).values(values))


async def _end_runs(conn: AsyncConnection, batch_id: str, reason: str, now_ms: int) -> None:
    running = (t.runs.c.batch_id == batch_id, t.runs.c.state == "running")
    await conn.execute(update(t.runs).where(*running).values(state="failed", reason=reason, updated_at=now_ms))


async def _count(conn: AsyncConnection, table: Any, condition: ColumnElement[bool]) -> int:
    return int((await conn.execute(select(func.count()).select_from(table).where(condition))).scalar_one())


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
