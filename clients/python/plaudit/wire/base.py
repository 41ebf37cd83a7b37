"""What every message shares: strict requests, tolerant responses, OpenAI's error and list shapes."""

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

T = TypeVar("T")

MAX_TEXT = 32_768
"""Longest free text (comment, correction, reason) in characters."""


class RequestModel(BaseModel):
    """A message to the server. Unknown fields are refused, so that a misspelt one is never silently ignored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ResponseModel(BaseModel):
    """A message from the server. Unknown fields are ignored, so that an older client understands a newer server."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("text may not contain NUL characters")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("text may not contain lone surrogates") from error
    return text


def _as_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("the time lies outside the years 1 to 9999") from error


def _whole_key(text: Any) -> Any:
    return text.strip() if isinstance(text, str) else text


Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_storable)]
"""Free text a person wrote."""

Label = Annotated[str, BeforeValidator(_whole_key), Field(min_length=1, max_length=128), AfterValidator(_storable)]
"""A short name: a tag, a user's identifier, a reason code."""

Moment = Annotated[AwareDatetime, AfterValidator(_as_utc)]
"""A point in time: RFC 3339 with a zone, kept as UTC."""

VersionName = Annotated[str, Field(pattern=r"^(base|v[1-9][0-9]{0,8})$")]
"""`base` or `v<number>`."""

ResponseId = Annotated[str, Field(pattern=r"^chatcmpl-[0-9a-f-]{36}(\.[1-9][0-9]{0,2})?$")]
"""The id of one answer: the completion's id, and `.k` behind it for choice k > 0 of a request with n > 1."""


class ErrorDetail(ResponseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(ResponseModel):
    """OpenAI's error envelope; every 4xx and 5xx of the server has it."""

    error: ErrorDetail


class Page(ResponseModel, Generic[T]):
    """A list, newest first unless its endpoint says otherwise. `next` is passed back as `after` for the next page."""

    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool = False
    next: str | None = None


JsonObject = dict[str, JsonValue]
