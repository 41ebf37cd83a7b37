"""Answers that users had made again: the one they kept is preferred to the one they sent back.

An event says so; it is leased and consumed like a comparison, under its own id. An answer that was sent back in its
turn was not kept, and says nothing of the one before it.
"""

from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, exists, or_, select
from sqlalchemy.orm import aliased

from plaudit_server.domain.records import StoredComparison
from plaudit_server.store import tables as t

_event = t.events.c
_old, _new = aliased(t.interactions), aliased(t.interactions)


def usable(*columns: ColumnElement[Any]) -> Select[Any]:
    """Regenerations that can be learnt from: kept, not learnt yet, one prompt, both answers whole and with consent."""
    query = select(*columns).select_from(t.events)
    query = query.join(_old, _old.c.id == _event.response_id).join(_new, _new.c.id == _event.new_response_id)
    query = query.where(live(), ~_sent_back())
    query = query.where(_old.c.prompt_key == _new.c.prompt_key, _old.c.id != _new.c.id)
    for side in (_old, _new):
        query = query.where(side.c.train_consent.is_(True), side.c.status == "complete")
    return query


def live() -> ColumnElement[bool]:
    """Regenerations that were not learnt from yet."""
    return and_(_event.type == "regenerate", _event.spent.is_(False))


def hopeless() -> ColumnElement[bool]:
    """Those that can never be learnt from: nothing that is missing may yet come."""
    pair = exists().where(_old.c.id == _event.response_id, _new.c.id == _event.new_response_id)
    gone = t.tombstones.c.response_id
    return or_(
        _event.new_response_id.is_(None),
        _event.new_response_id == _event.response_id,
        _sent_back(),
        pair.where(_old.c.prompt_key != _new.c.prompt_key),
        *(exists().where(gone == side) for side in (_event.response_id, _event.new_response_id)),
        *(
            exists().where(side.c.id == own, or_(side.c.train_consent.is_(False), side.c.status != "complete"))
            for side, own in ((_old, _event.response_id), (_new, _event.new_response_id))
        ),
    )


def _sent_back() -> ColumnElement[bool]:
    # Looked up for each of the few that are live. PostgreSQL would make an EXISTS a join with all regenerations there
    # ever were: it does not know how few are live, since it counts types and spent ones apart.
    again = aliased(t.events)
    sent_back = select(again.c.id).where(again.c.response_id == _event.new_response_id, again.c.type == "regenerate")
    return sent_back.limit(1).scalar_subquery().is_not(None)


def answers() -> tuple[Select[Any], Select[Any]]:
    """Ids of their answers: those sent back, and those kept."""
    return usable(_event.response_id), usable(_event.new_response_id)


def as_comparison(row: Row[Any]) -> StoredComparison:
    """The preference that a row of `events` stands for."""
    return StoredComparison(
        id=row.id,
        chosen_id=row.new_response_id,
        rejected_id=row.response_id,
        chosen_text=None,
        rejected_text=None,
        chosen_version=None,
        rejected_version=None,
        tie=None,
        end_user=row.end_user,
        received_at_ms=row.received_at,
    )
