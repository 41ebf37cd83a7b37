"""Users' feedback: votes, comments, corrections, comparisons, events."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, WithJsonSchema, model_validator

from plaudit.wire.base import Label, Moment, RequestModel, ResponseId, ResponseModel, Text, VersionName

Source = Literal["user", "annotator", "implicit", "system"]
EventType = Literal["copy", "regenerate", "edit", "abandon", "share"]
Tie = Literal["good", "bad"]
Sign = Literal["up", "down", "none"]
"""What a list of feedback can be narrowed to: thumbs up, thumbs down, words without a thumb."""

MAX_BATCH_ITEMS = 1000
DEFAULT_KEY = "thumb"
TOKEN_SECONDS = 10_800
"""How long a feedback token lives unless its maker says otherwise."""


def to_vote(value: Any) -> Any:
    """Bring `true`, `false`, `"up"`, `"down"` or a number in [−1, 1] to a float; None (retract) stays None."""
    if isinstance(value, bool):
        return 1.0 if value else -1.0
    if isinstance(value, str):
        if value not in ("up", "down"):
            raise ValueError('a vote is true, false, "up", "down" or a number from -1 to 1')
        return 1.0 if value == "up" else -1.0
    return value


Vote = Annotated[
    float | None,
    Field(ge=-1, le=1),
    BeforeValidator(to_vote),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "boolean"},
                {"enum": ["up", "down"], "type": "string"},
                {"type": "number", "minimum": -1, "maximum": 1},
                {"type": "null"},
            ],
            "description": "true/up = 1, false/down = -1, or a number between; null retracts the vote",
        },
        mode="validation",
    ),
]


class FeedbackRequest(RequestModel):
    """One user's word on one answer. A second one for the same (response, key, end user) replaces the first."""

    response_id: ResponseId
    key: Label = DEFAULT_KEY
    value: Vote = None
    tags: list[Label] = Field(default_factory=list, max_length=32)
    comment: Text | None = None
    correction: Text | None = None
    end_user: Label | None = Field(default=None, description="hashed at the edge; the clear value is never stored")
    source: Source = "user"
    occurred_at: Moment | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "FeedbackRequest":
        if "value" not in self.model_fields_set and self.comment is None and self.correction is None and not self.tags:
            raise ValueError("give at least one of value, tags, comment, correction (value: null retracts)")
        return self

    @property
    def is_retraction(self) -> bool:
        """Whether the caller said `value: null`, as opposed to saying nothing about it."""
        return "value" in self.model_fields_set and self.value is None


class TokenFeedbackRequest(RequestModel):
    """What a browser says under a feedback token. Whose word it is and of which answer, the token says.

    `response_id` may be repeated; another than the token's is refused.
    """

    response_id: ResponseId | None = None
    key: Label = DEFAULT_KEY
    value: Vote = None
    tags: list[Label] = Field(default_factory=list, max_length=32)
    comment: Text | None = None
    correction: Text | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "TokenFeedbackRequest":
        if "value" not in self.model_fields_set and self.comment is None and self.correction is None and not self.tags:
            raise ValueError("give at least one of value, tags, comment, correction (value: null retracts)")
        return self


class FeedbackTokenRequest(RequestModel):
    """Ask for a token under which a browser may rate one answer, as the user who asked for that answer."""

    response_id: ResponseId
    keys: list[Label] = Field(default=[DEFAULT_KEY], min_length=1, max_length=8, description="what may be rated")
    expires_in: int = Field(default=TOKEN_SECONDS, ge=1, le=30 * 86_400, description="seconds")


class FeedbackToken(ResponseModel):
    """A signed token for `POST /v1/feedback/t/{token}`. Each of its keys may be used once."""

    object: Literal["feedback.token"] = "feedback.token"
    token: str
    response_id: str
    keys: list[str]
    expires_at: Moment


class Feedback(ResponseModel):
    """A stored piece of feedback."""

    object: Literal["feedback"] = "feedback"
    id: str
    response_id: str
    key: str
    value: float | None
    tags: list[str]
    comment: str | None
    correction: str | None
    end_user: str | None = Field(description="keyed hash of the end user")
    source: Source
    occurred_at: Moment
    received_at: Moment
    version: VersionName | None = Field(description="the version that spoke; null until the answer's row is written")
    revision: int = Field(description="1 for the first, counted up with each replacement")
    retracted: bool
    trainable: bool
    status: Literal["created", "replaced", "accepted"] | None = None


class FeedbackBatchRequest(RequestModel):
    """Many pieces of feedback. Each is judged on its own: one bad item does not spoil the others."""

    items: list[dict[str, JsonValue]] = Field(min_length=1, max_length=MAX_BATCH_ITEMS)


class FeedbackBatchItem(ResponseModel):
    """What became of one item: its status code and the feedback, or the error."""

    status: int
    feedback: Feedback | None = None
    error: dict[str, JsonValue] | None = None


class FeedbackBatch(ResponseModel):
    """Results in the order of the items."""

    object: Literal["feedback.batch"] = "feedback.batch"
    results: list[FeedbackBatchItem]


class WrittenText(RequestModel):
    """A text that is not a stored answer, as one side of a comparison."""

    text: Text
    version: VersionName | None = None


class ComparisonRequest(RequestModel):
    """One answer preferred to another on the same prompt. At least one side is a stored answer."""

    chosen: ResponseId | WrittenText
    rejected: ResponseId | WrittenText
    tie: Tie | None = None
    end_user: Label | None = None
    source: Source = Field(default="user", description="a user compares answers of their own, others anybody's")

    @model_validator(mode="after")
    def _has_a_stored_side(self) -> "ComparisonRequest":
        if not isinstance(self.chosen, str) and not isinstance(self.rejected, str):
            raise ValueError("chosen or rejected must be the id of a stored answer")
        if self.chosen == self.rejected:
            raise ValueError("chosen and rejected must differ")
        return self


class Comparison(ResponseModel):
    """A stored comparison."""

    object: Literal["comparison"] = "comparison"
    id: str
    chosen: str | None
    rejected: str | None
    chosen_text: str | None = None
    rejected_text: str | None = None
    tie: Tie | None
    end_user: str | None
    received_at: Moment


class EventRequest(RequestModel):
    """Something a user did with an answer. `regenerate` names the new answer in `new_response_id`."""

    response_id: ResponseId
    type: EventType
    new_response_id: ResponseId | None = None
    end_user: Label | None = None
    occurred_at: Moment | None = None


class Event(ResponseModel):
    """A stored event."""

    object: Literal["event"] = "event"
    id: str
    response_id: str
    type: EventType
    new_response_id: str | None = None
    end_user: str | None
    occurred_at: Moment
    received_at: Moment
