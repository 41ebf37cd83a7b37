"""Every error the client raises.

PlauditError
├── ConfigurationError          the client cannot be built: a bad address, a key that is no header value
├── InvalidRequestError         the arguments cannot make a valid request; nothing was sent (also a ValueError)
├── APIConnectionError          no answer: refused, reset, broken off in mid-stream
│   └── APITimeoutError         no answer in time
├── APIResponseError            an answer that is not Plaudit's
├── APIStatusError              the server said no: `status`, `code`, `param`, `request_id`
│   ├── BadRequestError 400, 413, 415, 431
│   ├── AuthenticationError 401 · PermissionDeniedError 403
│   ├── NotFoundError 404 · GoneError 410
│   ├── ConflictError 409
│   │   └── PreconditionFailedError 412
│   ├── UnprocessableEntityError 422
│   ├── RateLimitError 429
│   ├── InternalServerError 500, 507 and other 5xx
│   └── ServiceUnavailableError 502, 503, 504
├── VersionRefusedError         a version that was waited for failed its gate or its proof
└── WaitTimeoutError            a version that was waited for is still loading (also a TimeoutError)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plaudit.wire.versions import Version


class PlauditError(Exception):
    """Anything that this client raises."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


class ConfigurationError(PlauditError):
    """The client cannot be built from its arguments and environment."""


class InvalidRequestError(PlauditError, ValueError):
    """The arguments cannot make a valid request. Nothing was sent."""


class APIConnectionError(PlauditError):
    """The server gave no answer, or broke off while answering."""


class APITimeoutError(APIConnectionError):
    """The server gave no answer in time."""


class APIResponseError(PlauditError):
    """The answer is not one that Plaudit gives: something else listens at that address, or it is much newer."""


class APIStatusError(PlauditError):
    """The server refused or failed.

    Args:
        message: the server's own words.
        status: HTTP status.
        code: the machine-readable reason, such as `engine_unavailable`.
        param: the field at fault.
        request_id: what to look for in the server's log.
        retry_after_s: when the server said to come back, in seconds.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class BadRequestError(APIStatusError):
    """400, 413, 415, 431: the request could not be read."""


class AuthenticationError(APIStatusError):
    """401: no key, or a wrong or revoked one."""


class PermissionDeniedError(APIStatusError):
    """403: the key's roles do not allow it."""


class NotFoundError(APIStatusError):
    """404: there is no such thing."""


class GoneError(APIStatusError):
    """410: it was erased, or never stored."""


class ConflictError(APIStatusError):
    """409: it contradicts the present state."""


class PreconditionFailedError(ConflictError):
    """412: `if_match` does not name the present state; somebody else was faster."""


class UnprocessableEntityError(APIStatusError):
    """422: well-formed, but not acceptable."""


class RateLimitError(APIStatusError):
    """429: too many requests."""


class InternalServerError(APIStatusError):
    """500, 507 and other 5xx: the server failed."""


class ServiceUnavailableError(APIStatusError):
    """502, 503, 504: the engine or the server is not ready."""


class VersionRefusedError(PlauditError):
    """A version that was waited for was rejected by its gate or failed its proof."""

    def __init__(self, version: "Version") -> None:
        self.version = version
        super().__init__(f"{version.name} is {version.state}: {version.reason or 'no reason given'}")


class WaitTimeoutError(PlauditError, TimeoutError):
    """A version that was waited for is still loading."""


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    412: PreconditionFailedError,
    413: BadRequestError,
    415: BadRequestError,
    422: UnprocessableEntityError,
    429: RateLimitError,
    431: BadRequestError,
    502: ServiceUnavailableError,
    503: ServiceUnavailableError,
    504: ServiceUnavailableError,
}


def error_class(status: int) -> type[APIStatusError]:
    """The error that stands for an HTTP status."""
    return _BY_STATUS.get(status, InternalServerError if status >= 500 else APIStatusError)
