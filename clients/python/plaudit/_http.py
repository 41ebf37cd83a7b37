"""What both drivers need of httpx: timeouts, and its errors brought into our tree."""

from collections.abc import Mapping
from typing import TypedDict

import httpx

from plaudit._config import Endpoint
from plaudit._core import Outgoing
from plaudit._retry import Failure
from plaudit.errors import APIConnectionError, APITimeoutError, ConfigurationError

CONNECT_TIMEOUT_S = 5.0
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError)


class RequestOptions(TypedDict):
    """Arguments of `build_request`."""

    headers: Mapping[str, str]
    content: bytes | None
    timeout: httpx.Timeout


def request_options(outgoing: Outgoing) -> RequestOptions:
    """The request's part for httpx. Connecting is given a few seconds, answering the whole timeout."""
    timeout = httpx.Timeout(outgoing.timeout_s, connect=min(CONNECT_TIMEOUT_S, outgoing.timeout_s))
    return {"headers": dict(outgoing.headers), "content": outgoing.content, "timeout": timeout}


def check_url(endpoint: Endpoint) -> Endpoint:
    """The endpoint, if httpx can use its address.

    Raises:
        ConfigurationError: it cannot.
    """
    try:
        httpx.URL(endpoint.base_url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ConfigurationError(f"{endpoint.base_url!r} is not a server's address: {error}") from None
    return endpoint


def uses_proxy(endpoint: Endpoint) -> bool:
    """Whether proxies of the environment apply. They never do to this machine itself."""
    return not endpoint.local


def failure_from(error: httpx.HTTPError, outgoing: Outgoing) -> Failure:
    """A try that brought no answer."""
    return Failure(connection_error(error, outgoing), may_have_acted=not isinstance(error, _NEVER_SENT))


def connection_error(error: httpx.HTTPError, outgoing: Outgoing) -> APIConnectionError:
    """Our error for httpx's, in one line that names the address and the mend."""
    address = outgoing.url.partition("?")[0]
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        kind: type[APIConnectionError] = APITimeoutError
        text = f"No answer from {outgoing.method} {address} within {outgoing.timeout_s:g} s. Is the server busy?"
    elif isinstance(error, _NEVER_SENT):
        kind = APITimeoutError if isinstance(error, httpx.ConnectTimeout) else APIConnectionError
        text = (
            f"Cannot reach {address} ({error or type(error).__name__}). Is the server running, and PLAUDIT_URL right?"
        )
    else:
        kind, text = APIConnectionError, f"{outgoing.method} {address} broke off ({error or type(error).__name__})."
    made = kind(text)
    made.__cause__ = error
    return made
