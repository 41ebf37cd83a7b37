"""What else users tell: which of two answers is better, and what they did with one."""

from fastapi import Request

from plaudit.wire.feedback import Comparison, ComparisonRequest, Event, EventRequest, WrittenText
from plaudit_server import views
from plaudit_server.domain.ids import new_id
from plaudit_server.domain.moments import now_ms, to_ms
from plaudit_server.domain.privacy import SealedText
from plaudit_server.domain.records import Interaction, StoredComparison, StoredEvent
from plaudit_server.errors import Unprocessable
from plaudit_server.routes.shared import EndUser, Rater, S, end_user, errors, guarded_router, spend
from plaudit_server.routes.targets import check_known, sealed, with_answers
from plaudit_server.services import Services
from plaudit_server.store import Connection, comparisons, events, interactions

router = guarded_router("feedback")


@router.post("/v1/comparisons", status_code=201, responses=errors(404, 409, 410), summary="Prefer one answer")
async def compare(given: ComparisonRequest, request: Request, services: S, principal: Rater) -> Comparison:
    """One answer preferred to another on the same prompt.

    Where a chat named its user, there is no such answer for another one (for an annotator there is: `source`).
    """
    user = end_user(services, principal, request, given.end_user)
    spend(services, request, "feedback", user)

    async def add(conn: Connection) -> StoredComparison:
        rater = user if given.source == "user" else None
        chosen = await _side(conn, given.chosen, "chosen", rater, services)
        rejected = await _side(conn, given.rejected, "rejected", rater, services)
        if chosen and rejected and chosen.prompt_key != rejected.prompt_key:
            raise Unprocessable("chosen and rejected answer different prompts.", code="different_prompts")
        new = StoredComparison(
            id=new_id("cmp_"),
            chosen_id=given.chosen if isinstance(given.chosen, str) else None,
            rejected_id=given.rejected if isinstance(given.rejected, str) else None,
            chosen_text=_written(given.chosen, services),
            rejected_text=_written(given.rejected, services),
            chosen_version=_spoken_by(given.chosen, chosen),
            rejected_version=_spoken_by(given.rejected, rejected),
            tie=given.tie,
            end_user=user.hashed,
            received_at_ms=now_ms(),
        )
        return await comparisons.add(conn, new)

    sides = [side for side in (given.chosen, given.rejected) if isinstance(side, str)]
    return views.comparison(await with_answers(services, add, *sides), services.cipher)


async def _side(
    conn: Connection, side: str | WrittenText, name: str, rater: EndUser | None, services: Services
) -> Interaction | None:
    """The stored answer of a side; None where it is a text, or an answer whose row is not written yet."""
    if not isinstance(side, str):
        return None
    await check_known(conn, side, name, services, rater=rater)
    return await interactions.get(conn, side)


def _written(side: str | WrittenText, services: Services) -> SealedText | None:
    return None if isinstance(side, str) else sealed(side.text, services)


def _spoken_by(side: str | WrittenText, row: Interaction | None) -> str | None:
    return (row.version if row else None) if isinstance(side, str) else side.version


@router.post("/v1/events", status_code=201, responses=errors(404, 409, 410), summary="Report what a user did")
async def report(given: EventRequest, request: Request, services: S, principal: Rater) -> Event:
    """Something a user did with an answer: copied it, asked for another, went away."""
    user = end_user(services, principal, request, given.end_user)
    spend(services, request, "feedback", user)
    received = now_ms()
    new = StoredEvent(
        id=new_id("evt_"),
        response_id=given.response_id,
        type=given.type,
        new_response_id=given.new_response_id,
        end_user=user.hashed,
        occurred_at_ms=received if given.occurred_at is None else to_ms(given.occurred_at),
        received_at_ms=received,
    )

    async def add(conn: Connection) -> StoredEvent:
        await check_known(conn, given.response_id, "response_id", services, rater=user)
        if given.new_response_id:
            await check_known(conn, given.new_response_id, "new_response_id", services, rater=user)
        return await events.add(conn, new)

    return views.event(await with_answers(services, add, given.response_id, given.new_response_id or ""))
