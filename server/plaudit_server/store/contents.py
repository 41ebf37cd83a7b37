"""What a worker gets with a batch: records with their votes, comparisons, who the raters are, prompts of the log."""

from typing import Any

from sqlalchemy import Row, Select, func, select, union
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit_server.domain.records import BatchData, Interaction, LeasedComparison, LeasedRecord, StoredFeedback
from plaudit_server.store import comparisons, feedback, interactions, regenerations
from plaudit_server.store import tables as t

_answer = t.interactions.c
_vote = t.feedback.c
_pair = t.comparisons.c
_event = t.events.c

_LOOK_BACK = 4
"""Answers looked at for each prompt wanted, since one prompt has several."""


def items(batch_id: str) -> Select[Any]:
    """What a live batch holds, as a subquery: a list of ids could be longer than a database takes parameters."""
    return select(t.claims.c.item_id).where(t.claims.c.batch_id == batch_id)


async def load(
    conn: AsyncConnection, batch: Row[Any], *, resumed: bool, available: int, needed: int, max_prompts: int
) -> BatchData:
    """A live batch, as its row of `batches` and its claims say."""
    held = items(batch.id)
    records = await _records(conn, held)
    ids = frozenset(record.interaction.id for record in records)
    pairs = [*await _comparisons(conn, held, ids), *await _regenerations(conn, held, ids)]
    compared = {side for pair in pairs for side in pair.in_batch}
    # Votes may have been taken back since the lease began: a record of which nothing is said any more is left out.
    records = [record for record in records if record.feedback or record.interaction.id in compared]
    return BatchData(
        id=batch.id,
        state="leased",
        reason=None,
        resumed=resumed,
        available=available,
        needed=needed,
        lease_expires_at_ms=batch.lease_expires_at,
        records=records,
        comparisons=pairs,
        dropped=batch.dropped,
        leased_at_ms=batch.created_at,
        prompts=await _prompts(conn, held, batch.created_at, max_prompts),
        first_seen_ms=await _first_seen(conn, held),
    )


async def _records(conn: AsyncConnection, held: Select[Any]) -> list[LeasedRecord]:
    votes: dict[str, list[StoredFeedback]] = {}
    said = select(t.feedback).where(_vote.response_id.in_(held), _vote.trainable.is_(True))
    for row in await conn.execute(said.order_by(_vote.received_at, _vote.id)):
        votes.setdefault(row.response_id, []).append(feedback.from_row(row))
    answers = select(t.interactions).where(_answer.id.in_(held)).order_by(_answer.created_at, _answer.id)
    found = [interactions.from_row(row) for row in await conn.execute(answers)]
    return [LeasedRecord(answer, votes.get(answer.id, [])) for answer in found]


async def _comparisons(conn: AsyncConnection, held: Select[Any], records: frozenset[str]) -> list[LeasedComparison]:
    pairs = select(t.comparisons).where(_pair.id.in_(held), _pair.trainable.is_(True)).order_by(_pair.id)
    found = [comparisons.from_row(row) for row in await conn.execute(pairs)]
    chosen, rejected = (select(side).where(_pair.id.in_(held)) for side in (_pair.chosen_id, _pair.rejected_id))
    sides = await _sides(conn, union(chosen, rejected))
    return [
        LeasedComparison(
            comparison=pair,
            chosen=sides.get(pair.chosen_id or ""),
            rejected=sides.get(pair.rejected_id or ""),
            in_batch=records & {pair.chosen_id, pair.rejected_id},
        )
        for pair in found
    ]


async def _regenerations(conn: AsyncConnection, held: Select[Any], records: frozenset[str]) -> list[LeasedComparison]:
    """Only those that still stand: the kept answer may have been sent back since the lease began."""
    rows = (await conn.execute(regenerations.usable(*_event).where(_event.id.in_(held)).order_by(_event.id))).all()
    sent_back, kept = (query.where(_event.id.in_(held)) for query in regenerations.answers())
    sides = await _sides(conn, union(sent_back, kept))
    return [
        LeasedComparison(
            comparison=regenerations.as_comparison(row),
            chosen=sides.get(row.new_response_id),
            rejected=sides.get(row.response_id),
            in_batch=records & {row.new_response_id, row.response_id},
            source="regeneration",
        )
        for row in rows
    ]


async def _sides(conn: AsyncConnection, named: Any) -> dict[str, Interaction]:
    rows = await conn.execute(select(t.interactions).where(_answer.id.in_(named)))
    return {row.id: interactions.from_row(row) for row in rows}


async def _first_seen(conn: AsyncConnection, held: Select[Any]) -> dict[str, int]:
    """When the raters of a batch first chatted or voted, whichever was earlier; what was erased is not remembered."""
    raters = union(
        select(_vote.end_user).where(_vote.response_id.in_(held), _vote.end_user != ""),
        select(_pair.end_user).where(_pair.id.in_(held), _pair.end_user.is_not(None)),
        select(_event.end_user).where(_event.id.in_(held), _event.end_user.is_not(None)),
    )
    rater = raters.subquery("raters").c[0]
    # One look into an index for each, however much a rater has said. Ids sort by their time of making.
    answered = select(_answer.created_at).where(_answer.end_user == rater).order_by(_answer.id).limit(1)
    voted = select(func.min(_vote.received_at)).where(_vote.end_user == rater)
    rows = await conn.execute(select(rater, answered.scalar_subquery(), voted.scalar_subquery()))
    found = {row[0]: [at for at in row[1:] if at is not None] for row in rows}
    return {user: min(times) for user, times in found.items() if times}


async def _prompts(conn: AsyncConnection, held: Select[Any], until_ms: int, count: int) -> list[Interaction]:
    """The newest answers to prompts that no record of the batch has, one a prompt."""
    if not count:
        return []
    mine = select(_answer.prompt_key).where(_answer.id.in_(held))
    log = select(_answer.id, _answer.prompt_key).where(
        _answer.train_consent.is_(True),
        _answer.status == "complete",
        _answer.created_at <= until_ms,
        _answer.prompt_key.not_in(mine),
    )
    newest = log.order_by(_answer.created_at.desc(), _answer.id.desc()).limit(_LOOK_BACK * count)
    first: dict[str, str] = {}
    for row in await conn.execute(newest):
        first.setdefault(row.prompt_key, row.id)
    chosen = list(first.values())[:count]
    found = await conn.execute(select(t.interactions).where(_answer.id.in_(chosen)))
    rows = {row.id: interactions.from_row(row) for row in found}
    return [rows[response_id] for response_id in chosen]
