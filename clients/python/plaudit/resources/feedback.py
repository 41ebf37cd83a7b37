"""What users say and do."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from plaudit._binding import D_co, Resource, endpoint, pages
from plaudit._core import OMIT, Call, Omit, ask, delete, get, post, segment
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
    Source,
    Tie,
    WrittenText,
)


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
    ) -> Call[Feedback]:
        """Rate an answer. A second word for the same (answer, key, end user) replaces the first.

        It is durable when this returns.

        Args:
            response_id: the answer's id.
            value: `"up"`, `"down"`, True, False or a number from −1 to 1. None retracts; leave it out to only comment.
            key: what is rated; the server's default is `thumb`.
            correction: the answer as it should have been.
            end_user: whose word it is; the server keeps a keyed hash.

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
        return post("/v1/feedback", Feedback, body)

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
    def list(
        self,
        *,
        response_id: str | None = None,
        version: str | None = None,
        since: datetime | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Call[Page[Feedback]]:
        """What was said, newest first."""
        return get(
            "/v1/feedback",
            Page[Feedback],
            response_id=response_id,
            version=version,
            since=since,
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
    ) -> Call[Comparison]:
        """Say that one answer is better than another to the same prompt.

        Args:
            chosen: an answer's id, or a `WrittenText`. At least one side is an id.
            rejected: likewise.
            tie: `good` or `bad`: neither is better, both are this.
            source: whose judgement it is; a `user` who is named may compare only answers of their own.
        """
        body = ask(ComparisonRequest, chosen=chosen, rejected=rejected, tie=tie, end_user=end_user, source=source)
        return post("/v1/comparisons", Comparison, body)


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


def _row(item: FeedbackRequest | Mapping[str, Any]) -> dict[str, Any]:
    return item.model_dump(mode="json", exclude_unset=True) if isinstance(item, FeedbackRequest) else dict(item)
