"""What answers have been said something about that can still be learnt from.

The tables keep everything that was ever said; `spent` marks what can teach no more, and the indexes that begin with it
keep the rest apart. So looking for what can be leased costs what the unspent signals cost, however many answers lie
behind them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    CompoundSelect,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    union,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from plaudit_server.store import regenerations
from plaudit_server.store import tables as t

_answer = t.interactions.c
_vote = t.feedback.c
_pair = t.comparisons.c
_SIDES = (_pair.chosen_id, _pair.rejected_id)

_RECENT = 4096
"""Votes, and comparisons, looked at to say what is passed over."""
_RETIRED_AT_ONCE = 1000
"""Signals of a kind that one lease marks as spent. Most are marked as they come (`feedback.put`)."""


def eligible() -> Select[Any]:
    """Ids of answers that can be leased now."""
    return select(_answer.id).where(_answer.id.in_(_signalled()), free())


def free() -> ColumnElement[bool]:
    """Whether an answer may be learnt from and nobody has it."""
    return and_(_answer.train_consent.is_(True), _answer.status == "complete", _unused())


@dataclass(frozen=True, slots=True)
class Hopeless:
    """Ids of live votes, comparisons and events that can never be learnt from, because of their answers."""

    feedback: Sequence[str]
    comparisons: Sequence[str]
    events: Sequence[str]


async def hopeless(conn: AsyncConnection) -> Hopeless:
    """The first thousand of each."""
    found = [
        (await conn.execute(select(row.id).where(*live, never).limit(_RETIRED_AT_ONCE))).scalars().all()
        for row, live, never in (
            (_vote, (_vote.spent.is_(False), _vote.trainable.is_(True)), _no_lesson(_vote.response_id)),
            (_pair, (_pair.spent.is_(False), _pair.trainable.is_(True)), _refused()),
            (t.events.c, (regenerations.live(),), regenerations.hopeless()),
        )
    ]
    return Hopeless(*found)


async def retire(conn: AsyncConnection, found: Hopeless) -> None:
    """Mark them as spent: no lease need look at them again."""
    for table, ids in ((t.feedback, found.feedback), (t.comparisons, found.comparisons), (t.events, found.events)):
        if ids:
            mark = update(table).where(table.c.id == bindparam("marked")).values(spent=True)
            await conn.execute(mark, [{"marked": one} for one in ids])


async def passed_over(conn: AsyncConnection) -> dict[str, int]:
    """Records of which something was said since the last lease, and that cannot be leased; each under one reason.

    Of the newest few thousand votes and comparisons: a service that may learn from nothing would else count everything
    that was ever said each time.
    """
    new = _new_answers().c
    teaches = _said(new.id, _vote.trainable.is_(True))
    late = _said(
        new.id,
        _vote.trainable.is_(False),
        _vote.retracted.is_(False),
        or_(_vote.value.is_not(None), _vote.correction.is_not(None)),
    )
    said = or_(teaches, *(exists().where(side == new.id, _pair.trainable.is_(True)) for side in _SIDES))
    reason = case(
        (and_(said, new.train_consent.is_(False)), "no_consent"),
        (and_(said, new.status != "complete"), "not_complete"),
        (or_(teaches, new.id.in_(_signalled())), None),
        (late, "too_old"),
        (_said(new.id, _vote.retracted.is_(True)), "retracted"),
        else_=None,
    ).label("reason")
    over = select(reason).subquery()
    counted = select(over.c.reason, func.count()).where(over.c.reason.is_not(None)).group_by(over.c.reason)
    return {row[0]: row[1] for row in await conn.execute(counted)}


def _new_answers() -> CTE:
    """Answers of which something was said since the last lease, and that no batch has.

    Found before anything is asked of them: PostgreSQL would else ask it of every answer there is.
    """
    query = select(_answer.id, _answer.train_consent, _answer.status).where(_answer.id.in_(_recent()), _unused())
    return query.cte("new_answers").prefix_with("MATERIALIZED")


def _recent() -> CompoundSelect[Any]:
    """Ids of answers of which something was said since the last lease."""
    last = select(t.batches.c.created_at).order_by(t.batches.c.id.desc()).limit(1).scalar_subquery()
    since = func.coalesce(last, 0)
    votes = select(_vote.response_id).where(_vote.received_at >= since)
    votes = votes.order_by(_vote.received_at.desc()).limit(_RECENT)
    pairs = select(*_SIDES, _pair.received_at).order_by(_pair.id.desc()).limit(_RECENT).subquery()
    sides = (select(pairs.c[side.name]).where(pairs.c.received_at >= since) for side in _SIDES)
    return union(select(votes.subquery().c.response_id), *sides)


def _signalled() -> CompoundSelect[Any]:
    """Ids of answers of which something can be learnt that was not learnt yet."""
    votes = select(_vote.response_id).where(_vote.spent.is_(False), _vote.trainable.is_(True))
    compared = _compared("chosen_id", "rejected_id"), _compared("rejected_id", "chosen_id")
    return union(votes, *compared, *regenerations.answers())


def _compared(side: str, other: str) -> Select[Any]:
    """One side of the comparisons whose other side, where that is a stored answer too, may be learnt from."""
    partner = aliased(t.interactions)
    query = select(_pair[side]).outerjoin_from(t.comparisons, partner, partner.c.id == _pair[other])
    usable = or_(_pair[other].is_(None), partner.c.train_consent.is_(True))
    return query.where(_pair.spent.is_(False), _pair.trainable.is_(True), _pair[side].is_not(None), usable)


def _unused() -> ColumnElement[bool]:
    claimed = select(t.claims.c.item_id).where(t.claims.c.item_id == _answer.id).exists()
    return and_(_answer.consumed_by.is_(None), ~claimed)


def _said(response_id: ColumnElement[Any], *what: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether a piece of feedback of some kind stands on an answer."""
    return exists().where(_vote.response_id == response_id, *what)


def _no_lesson(response_id: ColumnElement[Any]) -> ColumnElement[bool]:
    """The answer is there, and without consent or not whole; that never changes."""
    never = or_(_answer.train_consent.is_(False), _answer.status != "complete")
    return exists().where(_answer.id == response_id, never)


def _refused() -> ColumnElement[bool]:
    """A side of the comparison is without consent."""
    return or_(*(exists().where(_answer.id == side, _answer.train_consent.is_(False)) for side in _SIDES))
