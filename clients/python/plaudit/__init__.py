"""Plaudit's client: chat, feedback, versions.

    from plaudit import Plaudit

    with Plaudit() as client:
        answer = client.chat.create("What is the capital of France?")
        client.feedback.rate(answer.response_id, "up")

Names are imported when first used, so that `plaudit.wire` can be had without the HTTP client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from plaudit._chat import ChatChunk, ChatCompletion
    from plaudit.async_client import AsyncChatStream, AsyncPlaudit
    from plaudit.client import ChatStream, Plaudit
    from plaudit.errors import (
        APIConnectionError,
        APIResponseError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        BadRequestError,
        ConfigurationError,
        ConflictError,
        GoneError,
        InternalServerError,
        InvalidRequestError,
        NotFoundError,
        PermissionDeniedError,
        PlauditError,
        PreconditionFailedError,
        RateLimitError,
        ServiceUnavailableError,
        UnprocessableEntityError,
        VersionRefusedError,
        WaitTimeoutError,
    )

__all__ = [
    "APIConnectionError",
    "APIResponseError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncChatStream",
    "AsyncPlaudit",
    "AuthenticationError",
    "BadRequestError",
    "ChatChunk",
    "ChatCompletion",
    "ChatStream",
    "ConfigurationError",
    "ConflictError",
    "GoneError",
    "InternalServerError",
    "InvalidRequestError",
    "NotFoundError",
    "PermissionDeniedError",
    "Plaudit",
    "PlauditError",
    "PreconditionFailedError",
    "RateLimitError",
    "ServiceUnavailableError",
    "UnprocessableEntityError",
    "VersionRefusedError",
    "WaitTimeoutError",
    "__version__",
]

_ELSEWHERE = {
    "AsyncChatStream": "plaudit.async_client",
    "AsyncPlaudit": "plaudit.async_client",
    "ChatChunk": "plaudit._chat",
    "ChatCompletion": "plaudit._chat",
    "ChatStream": "plaudit.client",
    "Plaudit": "plaudit.client",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'plaudit' has no attribute {name!r}")
    value = getattr(import_module(_ELSEWHERE.get(name, "plaudit.errors")), name)
    globals()[name] = value
    return value
