"""Users' feedback. What is answered with 2xx is durable."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from plaudit.wire.base import Label, Moment, Page, VersionName
from plaudit.wire.chat import Deleted
from plaudit.wire.feedback import (
    Feedback,
    FeedbackBatch,
    FeedbackBatchItem,
    FeedbackBatchRequest,
    FeedbackRequest,
    FeedbackToken,
    FeedbackTokenRequest,
    Sign,
    TokenFeedbackRequest,
)
from plaudit_server import views
from plaudit_server.domain.feedback import (
    Outcome,
    check_target,
    outcome,
    sign,
    status_code,
)
from plaudit_server.domain.grants import Grant
from plaudit_server.domain.moments import DAY_MS, now_ms, to_moment, to_ms
from plaudit_server.domain.records import Interaction, NewFeedback, StoredFeedback
from plaudit_server.errors import Conflict, Forbidden, NotFound, PlauditError
from plaudit_server.guarded import TokenRoute
from plaudit_server.middleware import unprocessable
from plaudit_server.routes.shared import (
    After,
    EndUser,
    Limit,
    Operator,
    Rater,
    Reader,
    S,
    end_user,
    errors,
    guarded_router,
    page,
    spend,
)
from plaudit_server.routes.targets import check_known, check_own, sealed, with_answers
from plaudit_server.services import Services
from plaudit_server.store import Connection, feedback, feedback_tokens, interactions

router = guarded_router("feedback")
token_router = APIRouter(route_class=TokenRoute, tags=["feedback"], responses=errors())

_CREATED: dict[int | str, dict[str, Any]] = {
    201: {"description": "new"},
    202: {"description": "accepted before its answer's row is written"},
}


@router.post("/v1/feedback", responses=errors(404, 409, 410) | _CREATED, summary="Give feedback")
async def give(given: FeedbackRequest, request: Request, response: Response, services: S, principal: Rater) -> Feedback:
    """One user's word on one answer. 200: it replaced an earlier one. `value: null` retracts.

    Where the chat named its user and the vote (of source `user`) names another, there is no such answer for them.
    """
    user = end_user(services, principal, request, given.end_user)
    spend(services, request, "feedback", user)
    row, status = await _give(given, user, services)
    response.status_code = status_code(status)
    return views.feedback(row, services.cipher, status)


@router.post("/v1/feedback/batch", responses=errors(409), summary="Give many pieces of feedback")
async def give_batch(given: FeedbackBatchRequest, request: Request, services: S, principal: Rater) -> FeedbackBatch:
    """Each item is judged on its own, and counts on its own; results come in the order of the items."""
    shown = request.state.answer_headers
    services.limits.spend("feedback", "key", principal.key_id, shown, cost=len(given.items) - 1)

    async def one(item: object) -> FeedbackBatchItem:
        try:
            parsed = FeedbackRequest.model_validate(item)
            user = end_user(services, principal, request, parsed.end_user)
            spend(services, request, "feedback", user)
            row, status = await _give(parsed, user, services)
        except ValidationError as error:
            return _refused(unprocessable(error.errors(include_input=False, include_url=False)))
        except PlauditError as error:
            return _refused(error)
        return FeedbackBatchItem(status=status_code(status), feedback=views.feedback(row, services.cipher, status))

    await services.answering.all_written()
    # Queued in order and written in order, so that the later of two votes by one user stands.
    return FeedbackBatch(results=list(await asyncio.gather(*(one(item) for item in given.items))))


def _refused(error: PlauditError) -> FeedbackBatchItem:
    return FeedbackBatchItem(status=error.status, error=error.body().error.model_dump())


async def _give(
    given: FeedbackRequest, user: EndUser, services: Services, grant: Grant | None = None
) -> tuple[StoredFeedback, Outcome]:
    """Write a vote, and in the same transaction that its token was used."""
    received = now_ms()
    new = NewFeedback(
        response_id=given.response_id,
        key=given.key,
        end_user=user.hashed,
        value=given.value,
        retracts=given.is_retraction,
        tags=given.tags,
        comment=sealed(given.comment, services),
        correction=sealed(given.correction, services),
        source=given.source,
        occurred_at_ms=received if given.occurred_at is None else to_ms(given.occurred_at),
        received_at_ms=received,
        max_age_ms=services.settings.vote_max_age_days * DAY_MS,
    )

    async def put(conn: Connection) -> tuple[StoredFeedback, Outcome]:
        fate = await interactions.fate(conn, given.response_id)
        check_target(given.response_id, fate, in_flight=services.answering.is_speaking(given.response_id))
        if given.source == "user" and fate == "stored":
            await check_own(conn, given.response_id, user, services)
        if grant is not None:
            await feedback_tokens.use(conn, grant.id, given.key, expires_at_ms=grant.expires_at_ms)
        row, what = await feedback.put(conn, new)
        return row, outcome(what, fate)

    row, status = await with_answers(services, put, given.response_id)
    if given.value is not None:
        services.telemetry.voted(row.version, sign(given.value), current=services.serving.demand.current())
    return row, status


@router.post("/v1/feedback/tokens", status_code=201, responses=errors(404, 409, 410), summary="Let a browser rate")
async def make_token(given: FeedbackTokenRequest, services: S, principal: Rater) -> FeedbackToken:
    """A token under which a browser may rate one answer, once a key, as the user who asked for it."""

    async def find(conn: Connection) -> Interaction:
        await check_known(conn, given.response_id, "response_id", services)
        row = await interactions.get(conn, given.response_id)
        if row is None or row.end_user is None:
            raise Conflict("The answer is not written yet; try again shortly.", code="answer_in_flight")
        return row

    await services.answering.written(given.response_id)
    row = await services.database.read(find)
    assert row.end_user is not None  # `find` saw to it
    expires_at_ms = now_ms() + given.expires_in * 1000
    named = row.key_id is None or row.end_user != services.hash_key(row.key_id)
    token = services.tokens.sign(row.id, row.end_user, named=named, keys=given.keys, expires_at_ms=expires_at_ms)
    return FeedbackToken(
        token=token, response_id=row.id, keys=given.keys, expires_at=to_moment(-(-expires_at_ms // 1000) * 1000)
    )


@token_router.post(
    "/v1/feedback/t/{token}", responses=errors(404, 409, 410) | _CREATED, summary="Give feedback under a token"
)
async def give_by_token(
    token: str, given: TokenFeedbackRequest, request: Request, response: Response, services: S
) -> Feedback:
    """For browsers, which have no key: whose word it is and of which answer, the token says.

    Each key of a token may be used once. The answer has a fresh token for the same in `x-feedback-token`, which
    expires with the first.
    """
    grant: Grant = request.state.grant
    if given.response_id not in (None, grant.response_id):
        raise Forbidden("This token is for another answer.", code="token_scope", param="response_id")
    if given.key not in grant.keys:
        raise Forbidden(f"This token is for {', '.join(grant.keys)}.", code="token_scope", param="key")
    said = given.model_dump(exclude_unset=True) | {"response_id": grant.response_id}
    row, status = await _give(
        FeedbackRequest.model_validate(said), EndUser(grant.end_user, grant.named), services, grant
    )
    response.status_code = status_code(status)
    response.headers["x-feedback-token"] = services.tokens.renew(grant)
    return views.feedback(row, services.cipher, status)


@router.get("/v1/feedback", summary="List feedback")
async def list_feedback(
    *,
    services: S,
    principal: Reader,
    response_id: Annotated[str | None, Query(max_length=64)] = None,
    version: Annotated[VersionName | None, Query()] = None,
    since: Annotated[Moment | None, Query()] = None,
    key: Annotated[Label | None, Query()] = None,
    vote: Annotated[Sign | None, Query(description="`none`: words without a thumb")] = None,
    after: After = None,
    limit: Limit = 20,
) -> Page[Feedback]:
    """Live feedback, newest first."""
    await services.answering.all_written()  # an early vote learns its version from its answer's row
    rows = await services.database.read(
        lambda conn: feedback.page(
            conn,
            response_id=response_id,
            version=version,
            since_ms=to_ms(since) if since else None,
            key=key,
            vote=vote,
            after=after,
            limit=limit,
        )
    )
    items = [views.feedback(row, services.cipher) for row in rows.items]
    return page(items, has_more=rows.has_more, last_id=rows.items[-1].id if rows.items else None)


@router.get("/v1/feedback/{feedback_id}", responses=errors(404), summary="One piece of feedback")
async def get_feedback(feedback_id: str, services: S, principal: Reader) -> Feedback:
    """One piece of feedback."""
    await services.answering.all_written()
    row = await services.database.read(lambda conn: feedback.get(conn, feedback_id))
    if row is None:
        raise NotFound(f"There is no feedback {feedback_id[:64]}.", code="feedback_not_found")
    return views.feedback(row, services.cipher)


@router.delete("/v1/feedback/{feedback_id}", responses=errors(404), summary="Remove feedback")
async def delete_feedback(feedback_id: str, services: S, principal: Operator) -> Deleted:
    """Remove a piece of feedback with its history. A user takes a vote back with `value: null`."""
    if not await services.database.write(lambda conn: feedback.delete(conn, feedback_id)):
        raise NotFound(f"There is no feedback {feedback_id[:64]}.", code="feedback_not_found")
    return Deleted(id=feedback_id, object="feedback.deleted")
