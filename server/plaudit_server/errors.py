"""Every error the server answers with. An error's docstring is its default message.

PlauditError
├── BadRequest 400 · MethodNotAllowed 405 · BodyTooLate 408 · BodyTooLarge 413 · UnsupportedMedia 415
│   └── Unprocessable 422 · HeadersTooLarge 431
├── Unauthenticated 401 · Forbidden 403 · NotFound 404 · Conflict 409 · Gone 410 · PreconditionFailed 412
├── EngineError
│   ├── EngineUnavailable 503 (Retry-After)
│   ├── EngineRefused (the engine's own 4xx, passed on)
│   └── SwapFailed 409
├── AnswerTooLong 504 (inside a stream)
├── RateLimited 429 (Retry-After) · Overloaded 503 (Retry-After)
├── StorageFull 507
└── SettingError (at start only)
"""

import math
from typing import ClassVar

from plaudit.wire.base import ErrorBody, ErrorDetail


class PlauditError(Exception):
    """Something went wrong inside the server."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str | None = None, *, code: str | None = None, param: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.code = code
        self.param = param
        super().__init__(self.message)

    def body(self) -> ErrorBody:
        """The error in OpenAI's shape."""
        return ErrorBody(error=ErrorDetail(message=self.message, type=self.type, param=self.param, code=self.code))

    def headers(self) -> dict[str, str]:
        """Headers that go with the answer."""
        return {}


class BadRequest(PlauditError):
    """The request could not be read."""

    status, type = 400, "invalid_request_error"


class MethodNotAllowed(BadRequest):
    """This address does not take that method."""

    status = 405

    def __init__(self, message: str | None = None, *, allow: str = "") -> None:
        super().__init__(message, code="method_not_allowed")
        self.allow = allow

    def headers(self) -> dict[str, str]:
        """The methods that it does take."""
        return {"Allow": self.allow} if self.allow else {}


class BodyTooLate(BadRequest):
    """The request did not arrive in time."""

    status = 408

    def headers(self) -> dict[str, str]:
        """What has not arrived by now must not be read as the next request."""
        return {"Connection": "close"}


class BodyTooLarge(BadRequest):
    """The request body is too large."""

    status = 413


class UnsupportedMedia(BadRequest):
    """Send JSON, as `Content-Type: application/json`, without a content encoding."""

    status = 415


class Unprocessable(BadRequest):
    """The request is well-formed but its values are not acceptable."""

    status = 422


class HeadersTooLarge(BadRequest):
    """The request's address and headers are too large."""

    status = 431

    def headers(self) -> dict[str, str]:
        """The rest is not worth reading."""
        return {"Connection": "close"}


class Unauthenticated(PlauditError):
    """Missing or wrong API key. Send `Authorization: Bearer plk_…`."""

    status, type = 401, "authentication_error"

    def headers(self) -> dict[str, str]:
        """RFC 9110 asks for the scheme."""
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(PlauditError):
    """This key's roles do not allow that."""

    status, type = 403, "permission_error"


class NotFound(PlauditError):
    """There is no such thing."""

    status, type = 404, "not_found_error"


class Conflict(PlauditError):
    """The request contradicts the present state."""

    status, type = 409, "conflict_error"


class Gone(PlauditError):
    """It was erased, or never stored."""

    status, type = 410, "gone_error"


class PreconditionFailed(PlauditError):
    """`If-Match` does not name the present state."""

    status, type = 412, "conflict_error"


class EngineError(PlauditError):
    """The engine failed."""

    status, type = 502, "engine_error"


class EngineUnavailable(EngineError):
    """The engine is not ready. Feedback is still accepted; chat again shortly."""

    status = 503

    def __init__(
        self, message: str | None = None, *, retry_after_s: float = 5, code: str = "engine_unavailable"
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s

    def headers(self) -> dict[str, str]:
        """When to come back."""
        return {"Retry-After": str(max(1, round(self.retry_after_s)))}


class EngineRefused(EngineError):
    """The engine refused the request."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message, code=code, param=param)
        self.status = status  # type: ignore[misc]  # the engine's own 4xx
        self.type = "invalid_request_error"  # type: ignore[misc]


class SwapFailed(EngineError):
    """The version could not be proven live."""

    status = 409


class AnswerTooLong(PlauditError):
    """The answer took longer than an answer may and was ended."""

    status, type = 504, "server_error"


class RateLimited(PlauditError):
    """Too many requests. Come back after `Retry-After` seconds."""

    status, type = 429, "rate_limit_error"

    def __init__(
        self, message: str | None = None, *, retry_after_s: float = 1, code: str = "rate_limit_exceeded"
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s

    def headers(self) -> dict[str, str]:
        """When to come back: rounded up, so that coming back then is not refused again."""
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}


class Overloaded(PlauditError):
    """Too many requests in flight."""

    status, type = 503, "overloaded_error"

    def headers(self) -> dict[str, str]:
        """When to come back."""
        return {"Retry-After": "1"}


class StorageFull(PlauditError):
    """The data folder's disk is full or read-only. Free some space; nothing acknowledged was lost."""

    status, type = 507, "storage_error"


class SettingError(PlauditError):
    """A setting cannot work: the message names it and the mend. `serve` prints it as one line and exits with 2."""
