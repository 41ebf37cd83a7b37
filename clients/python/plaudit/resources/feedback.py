"""What users say and do."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from plaudit._binding import D_co, Resource, endpoint, pages
from plaudit._core import OMIT, Call, Omit, Reply, ask, delete, encode, get, post, segment
from plaudit.wire.base import Page
from plaudit.wire.chat import Deleted
from plaudit.wire.feedback import (
    Comparison,
    ComparisonRequest,
    Event,
    EventRequest,
    EventType,
    Feedback,
    FeedbackBatch,
    FeedbackBatchRequest,
    FeedbackRequest,
    FeedbackToken,
    FeedbackTokenRequest,
    Sign,
    Source,
    Tie,
    TokenFeedbackRequest,
    WrittenText,
)

T = TypeVar("T")


class TokenVote(Feedback):
    """A vote given under a token, and the token to change it with."""

    feedback_token: str | None = None


class FeedbackVotes(Resource[D_co]):
    """`client.feedback`."""

    @endpoint
    def create(
        self,
        response_id: str,
        value: bool | float | str | Omit | None = OMIT,
        *,
        key: str | None = None,
        tags: Sequence[str] | None = None,
        comment: str | None = None,
        correction: str | None = None,
        end_user: str | None = None,
        source: Source | None = None,
        occurred_at: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> Call[Feedback]:
        """Rate an answer. A second word for the same (answer, key, end user) replaces the first.

        It is durable when this returns.

        Args:
            response_id: the answer's id.
            value: `"up"`, `"down"`, True, False or a number from −1 to 1. None retracts; leave it out to only comment.
            key: what is rated; the server's default is `thumb`.
            correction: the answer as it should have been.
            end_user: whose word it is; the server keeps a keyed hash.
            idempotency_key: of your own, so that the same request sent again within 24 hours, by another process too,
                is answered from memory.

        Raises:
            NotFoundError: there is no such answer.
            GoneError: it was erased, or was never stored.
        """
        spoken = {} if value is OMIT else {"value": value}
        body = ask(
            FeedbackRequest,
            nulls={"value": None} if value is None else None,
            response_id=response_id,
            key=key,
            tags=tags,
            comment=comment,
            correction=correction,
            end_user=end_user,
            source=source,
            occurred_at=occurred_at,
            **spoken,
        )
        return _once(post("/v1/feedback", Feedback, body), idempotency_key)

    rate = create

    @endpoint
    def batch(self, items: Sequence[FeedbackRequest | Mapping[str, Any]]) -> Call[FeedbackBatch]:
        """Many at once. Each is judged on its own: look at the `status` of each result."""
        rows = [_row(item) for item in items]
        return post("/v1/feedback/batch", FeedbackBatch, ask(FeedbackBatchRequest, items=rows))

    @endpoint
    def token(
        self, response_id: str, *, keys: Sequence[str] | None = None, expires_in: int | None = None
    ) -> Call[FeedbackToken]:
        """A token under which a browser may rate one answer, as the user who asked for it; each key once.

        Every chat whose answer is stored comes with one for the key `thumb`: `answer.feedback_token`.

        Args:
            response_id: the answer's id.
            keys: what may be rated; the server's default is `thumb` alone.
            expires_in: seconds; the server's default is three hours.

        Raises:
            NotFoundError: there is no such answer.
            GoneError: it was erased, or was never stored.
        """
        body = ask(FeedbackTokenRequest, response_id=response_id, keys=keys, expires_in=expires_in)
        return post("/v1/feedback/tokens", FeedbackToken, body)

    @endpoint
    def by_token(
        self,
        token: str,
        value: bool | float | str | Omit | None = OMIT,
        *,
        response_id: str | None = None,
        key: str | None = None,
        tags: Sequence[str] | None = None,
        comment: str | None = None,
        correction: str | None = None,
    ) -> Call[TokenVote]:
        """Rate as a browser does, under a token and as the user whom it names. `feedback_token` of the answer is the
        next one: each key of a token may be used once.

        Args:
            value: as in `create`.
            response_id: the token's own answer; refused where it is another.

        Raises:
            AuthenticationError: the token is forged or expired.
            PermissionDeniedError: it is for another answer or key.
            ConflictError: it was used.
        """
        spoken = {} if value is OMIT else {"value": value}
        body = ask(
            TokenFeedbackRequest,
            nulls={"value": None} if value is None else None,
            response_id=response_id,
            key=key,
            tags=tags,
            comment=comment,
            correction=correction,
            **spoken,
        )
        return Call("POST", f"/v1/feedback/t/{segment(token)}", _token_vote, body=encode(body))

    @endpoint
    def list(
        self,
        *,
        response_id: str | None = None,
        version: str | None = None,
        since: datetime | None = None,
        key: str | None = None,
        vote: Sign | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Call[Page[Feedback]]:
        """What was said, newest first. `vote="none"`: words without a thumb."""
        return get(
            "/v1/feedback",
            Page[Feedback],
            response_id=response_id,
            version=version,
            since=since,
            key=key,
            vote=vote,
            limit=limit,
            after=after,
        )

    iterate = pages(list)

    @endpoint
    def get(self, feedback_id: str) -> Call[Feedback]:
        """One piece of feedback."""
        return get(f"/v1/feedback/{segment(feedback_id)}", Feedback)

    @endpoint
    def delete(self, feedback_id: str) -> Call[Deleted]:
        """Remove one piece of feedback."""
        return delete(f"/v1/feedback/{segment(feedback_id)}", Deleted)


class Comparisons(Resource[D_co]):
    """`client.comparisons`."""

    @endpoint
    def create(
        self,
        chosen: str | WrittenText,
        rejected: str | WrittenText,
        *,
        tie: Tie | None = None,
        end_user: str | None = None,
        source: Source | None = None,
        idempotency_key: str | None = None,
    ) -> Call[Comparison]:
        """Say that one answer is better than another to the same prompt.

        Args:
            chosen: an answer's id, or a `WrittenText`. At least one side is an id.
            rejected: likewise.
            tie: `good` or `bad`: neither is better, both are this.
            source: whose judgement it is; a `user` who is named may compare only answers of their own.
            idempotency_key: of your own, as for feedback.
        """
        body = ask(ComparisonRequest, chosen=chosen, rejected=rejected, tie=tie, end_user=end_user, source=source)
        return _once(post("/v1/comparisons", Comparison, body), idempotency_key)


class Events(Resource[D_co]):
    """`client.events`."""

    @endpoint
    def create(
        self,
        response_id: str,
        type: EventType,
        *,
        new_response_id: str | None = None,
        end_user: str | None = None,
        occurred_at: datetime | None = None,
    ) -> Call[Event]:
        """Report what a user did with an answer: `copy`, `regenerate`, `edit`, `abandon`, `share`."""
        body = ask(
            EventRequest,
            response_id=response_id,
            type=type,
            new_response_id=new_response_id,
            end_user=end_user,
            occurred_at=occurred_at,
        )
        return post("/v1/events", Event, body)


def _once(call: Call[T], key: str | None) -> Call[T]:
    return call if key is None else replace(call, headers={"idempotency-key": key})


def _token_vote(reply: Reply) -> TokenVote:
    vote = TokenVote.model_validate_json(reply.body)
    following = reply.headers.get("x-feedback-token")
    return vote if following is None else vote.model_copy(update={"feedback_token": following})


def _row(item: FeedbackRequest | Mapping[str, Any]) -> dict[str, Any]:
    return item.model_dump(mode="json", exclude_unset=True) if isinstance(item, FeedbackRequest) else dict(item)
