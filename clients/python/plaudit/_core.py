"""The protocol, without any I/O: requests out of typed arguments, typed answers out of bytes.

A conversation is a generator (`Flow`). It yields what it wants done, a request to send or a pause to keep, and is sent
what came of it. The drivers in `client.py` and `async_client.py` only do as they are told, so the sync and the async
client cannot differ.
"""

import json
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ValidationError

from plaudit import __version__
from plaudit._config import Endpoint
from plaudit._retry import Clock, Failure, RetryPolicy, is_in_progress, parse_retry_after, pause_before_retry
from plaudit.errors import (
    APIResponseError,
    APIStatusError,
    AuthenticationError,
    InvalidRequestError,
    error_class,
)

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "gone_error": 410,
    "engine_error": 502,
    "overloaded_error": 503,
    "storage_error": 507,
}
"""HTTP status for an error that arrives inside a stream, where it has none of its own."""


class Omit(Enum):
    """The type of `OMIT`."""

    OMIT = "omit"


OMIT: Final = Omit.OMIT
"""An argument that was not given, where None means something."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. For a stream that opened, `opened` is the driver's response and `body` is empty."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    opened: Any = None


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and how to read its answer.

    Args:
        replayable: whether sending it twice does the same as sending it once.
        accepts: error statuses whose body is an answer all the same.
        retries: whether to try again at all; probes of health do not.
        timeout_s: instead of the client's own.
    """

    method: str
    path: str
    parse: Callable[[Reply], T]
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    stream: bool = False
    replayable: bool = True
    accepts: frozenset[int] = frozenset()
    retries: bool = True
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request ready to be sent, as it is."""

    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes | None
    timeout_s: float
    stream: bool


@dataclass(frozen=True, slots=True)
class Pause:
    """A wish to wait."""

    seconds: float


Answer = Reply | Failure | None
Flow = Generator[Outgoing | Pause, Answer, T]


@dataclass(frozen=True, slots=True)
class Core:
    """What every request of one client has in common."""

    endpoint: Endpoint
    timeout_s: float
    retry: RetryPolicy
    clock: Clock = field(default_factory=Clock)

    def exchange(self, call: Call[T]) -> Flow[T]:
        """Send until there is an answer or no sense in trying again.

        Raises:
            PlauditError: any of the tree in `plaudit.errors`.
        """
        outgoing = self._outgoing(call)
        began, retry = self.clock.now(), 0
        while True:
            outcome = self._judge(call, (yield outgoing))
            if not isinstance(outcome, Failure):
                return outcome.value
            pause = pause_before_retry(
                self.retry,
                outcome,
                retry=retry,
                elapsed_s=self.clock.now() - began,
                draw=self.clock.draw(),
                replayable=call.replayable,
            )
            if pause is None or not call.retries:
                raise outcome.error
            retry += not is_in_progress(outcome)
            yield Pause(pause)

    def _judge(self, call: Call[T], answer: Answer) -> "Failure | _Value[T]":
        if isinstance(answer, Failure):
            return answer
        assert answer is not None, "the driver answers every request"
        if 200 <= answer.status < 300:
            return _Value(self._read(call, answer))
        error = status_error(answer)
        if answer.status in call.accepts:
            try:
                return _Value(call.parse(answer))
            except ValueError:
                return Failure.of_status(error)
        if isinstance(error, AuthenticationError) and self.endpoint.api_key is None:
            raise AuthenticationError(
                f"{error.message} No key was given: set PLAUDIT_API_KEY, or run where data/admin.key is.",
                status=error.status,
                code=error.code,
                request_id=error.request_id,
            )
        return Failure.of_status(error)

    def _read(self, call: Call[T], reply: Reply) -> T:
        try:
            return call.parse(reply)
        except ValueError as error:
            raise APIResponseError(
                f"{call.method} {self.endpoint.base_url}{call.path} gave an answer that is not Plaudit's "
                f"({_first_problem(error)}). Is the address right, and is this client ({__version__}) new enough?"
            ) from error

    def _outgoing(self, call: Call[Any]) -> Outgoing:
        headers = {"accept": "application/json", "user-agent": f"plaudit-python/{__version__}"}
        if self.endpoint.api_key is not None:
            headers["authorization"] = f"Bearer {self.endpoint.api_key}"
        if call.body is not None:
            headers["content-type"] = "application/json"
        if call.method == "POST" and not call.stream:
            # Made once for each call and kept over its retries, so that the server recognises them.
            headers["idempotency-key"] = str(uuid.uuid4())
        headers.update(call.headers)
        query = f"?{urlencode(call.query)}" if call.query else ""
        timeout_s = self.timeout_s if call.timeout_s is None else call.timeout_s
        url = f"{self.endpoint.base_url}{call.path}{query}"
        return Outgoing(call.method, url, headers, call.body, timeout_s, call.stream)


@dataclass(frozen=True, slots=True)
class _Value(Generic[T]):
    value: T


def get(path: str, model: type[M], **query: str | int | datetime | None) -> Call[M]:
    """A GET whose answer is a `model`. Query arguments that are None are left out."""
    return Call("GET", path, reader(model), query=_query(query))


def post(path: str, model: type[M], body: BaseModel | None = None, *, timeout_s: float | None = None) -> Call[M]:
    """A POST, which carries an idempotency key and so may be sent again."""
    return Call("POST", path, reader(model), body=encode(body), timeout_s=timeout_s)


def delete(path: str, model: type[M]) -> Call[M]:
    """A DELETE."""
    return Call("DELETE", path, reader(model))


def reader(model: type[M]) -> Callable[[Reply], M]:
    """Reads a reply's body as `model`. It raises a ValueError where it is none."""

    def read(reply: Reply) -> M:
        return model.model_validate_json(reply.body)

    return read


def ask(model: type[M], /, nulls: Mapping[str, None] | None = None, **fields: Any) -> M:
    """A request out of keyword arguments. None means left out, unless the field is named in `nulls`.

    Raises:
        InvalidRequestError: the values cannot make a valid request.
    """
    given = {name: value for name, value in fields.items() if value is not None} | dict(nulls or {})
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise InvalidRequestError(_first_problem(error)) from None


def encode(body: BaseModel | None) -> bytes | None:
    """What was given of a request, as JSON: defaults are the server's to fill in."""
    if body is None:
        return None
    try:
        return body.model_dump_json(exclude_unset=True).encode()
    except ValueError as error:  # values that JSON has no words for: sets of bytes, lone surrogates
        raise InvalidRequestError(f"the request cannot be written as JSON: {error}") from None


def segment(text: str) -> str:
    """One path segment. An id that holds a slash stays one segment.

    Raises:
        InvalidRequestError: empty, or a dot segment, which would name another resource.
    """
    if text in ("", ".", ".."):
        raise InvalidRequestError(f"{text!r} is not a name or id")
    return quote(text, safe="")


def status_error(reply: Reply) -> APIStatusError:
    """The error that a refusal stands for."""
    try:
        parsed = json.loads(reply.body)
    except ValueError:
        parsed = None
    error = parsed.get("error") if isinstance(parsed, dict) else None
    request_id = reply.headers.get("x-request-id")
    retry_after_s = parse_retry_after(reply.headers)
    if not isinstance(error, dict):
        message = f"HTTP {reply.status} without an error body: does a proxy stand before the server?"
        return error_class(reply.status)(
            message, status=reply.status, request_id=request_id, retry_after_s=retry_after_s
        )
    return error_from(error, status=reply.status, request_id=request_id, retry_after_s=retry_after_s)


def error_from(
    error: Mapping[str, Any],
    *,
    status: int | None = None,
    request_id: str | None = None,
    retry_after_s: float | None = None,
) -> APIStatusError:
    """An error out of OpenAI's error object. Inside a stream there is no status: its code or its type tells."""
    code, param = error.get("code"), error.get("param")
    if status is None:
        numeric = isinstance(code, int) and 400 <= code < 600
        status = int(code) if numeric and code is not None else STATUS_OF_TYPE.get(str(error.get("type")), 500)
    return error_class(status)(
        str(error.get("message") or f"HTTP {status}"),
        status=status,
        code=None if code is None else str(code),
        param=None if param is None else str(param),
        request_id=request_id,
        retry_after_s=retry_after_s,
    )


def _query(fields: Mapping[str, str | int | datetime | None]) -> dict[str, str]:
    query = {}
    for name, value in fields.items():
        if isinstance(value, datetime):
            if value.tzinfo is None:
                raise InvalidRequestError(f"{name}: give a time with its zone, such as datetime.now(UTC)")
            query[name] = value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        elif value is not None:
            query[name] = str(value)
    return query


def _first_problem(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first, count = error.errors(include_url=False)[0], error.error_count()
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {count - 1} more)" if count > 1 else ""
    return f"{where + ': ' if where else ''}{first['msg']}{more}"
