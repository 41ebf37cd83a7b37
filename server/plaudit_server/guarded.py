"""The route classes of every endpoint that needs a key, or a signed token in its place.

Order matters: who asks, and whether they ask too often, is settled before the body is read; the body is read strictly
before it is validated; and a repeated POST is answered from the record before anything runs again.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from plaudit_server import strictjson
from plaudit_server.auth import authenticate, client_address
from plaudit_server.domain.grants import Grant
from plaudit_server.domain.moments import now_ms
from plaudit_server.errors import BadRequest, BodyTooLate, Unauthenticated, UnsupportedMedia
from plaudit_server.idempotency import answer_once
from plaudit_server.limits import Kind, Limits, Per
from plaudit_server.services import Services

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


LIMITED: dict[str, Kind] = {
    "/v1/chat/completions": "chat",
    "/v1/feedback": "feedback",
    "/v1/feedback/batch": "feedback",
    "/v1/comparisons": "feedback",
    "/v1/events": "feedback",
    "/v1/feedback/tokens": "feedback",
}
"""POSTs that count against a key's limits; a test holds this against the routes that end users cause."""


class GuardedRoute(APIRoute):
    """Authenticates, counts, parses strictly, answers repeated POSTs once."""

    def get_route_handler(self) -> Handler:
        """FastAPI's handler with ours around it."""
        validated = super().get_route_handler()
        wants_body = self.body_field is not None
        limited = LIMITED.get(self.path) if self.methods == {"POST"} else None

        async def handler(request: Request) -> Response:
            principal = request.state.principal = await authenticate(request)
            if limited:
                limits: Limits = request.app.state.services.limits
                limits.spend(limited, "key", principal.key_id, request.state.answer_headers)
            body = await read_json(request) if wants_body else b""
            if request.method != "POST":
                return await validated(request)
            scope = f"{principal.key_id} {request.method} {request.url.path}"
            return await answer_once(request, scope, body, lambda: validated(request))

        return handler


class TokenRoute(APIRoute):
    """Takes a signed feedback token out of the address in place of a key. A browser has no other secret."""

    def get_route_handler(self) -> Handler:
        """FastAPI's handler with ours around it."""
        validated = super().get_route_handler()

        async def handler(request: Request) -> Response:
            services: Services = request.app.state.services
            grant = request.state.grant = read_grant(request, services)
            per: Per = "user" if grant.named else "key"  # who was not named is their key, here as elsewhere
            services.limits.spend("feedback", per, grant.end_user, request.state.answer_headers)
            body = await read_json(request)
            return await answer_once(request, f"token {grant.id}", body, lambda: validated(request))

        return handler


def read_grant(request: Request, services: Services) -> Grant:
    """What the token in the address allows.

    Raises:
        Unauthenticated: it is forged or has expired.
        RateLimited: too many such came from this address.
    """
    try:
        return services.tokens.read(request.path_params["token"], now_ms=now_ms())
    except Unauthenticated:
        services.limits.guess(client_address(request))
        raise


async def read_json(request: Request) -> bytes:
    """Read and parse the body; FastAPI finds the parsed value where Starlette keeps it.

    Raises:
        BodyTooLate: it did not arrive in time.
        BodyTooLarge: longer than allowed (raised by the shield while reading).
        UnsupportedMedia: not JSON, or compressed.
        BadRequest: not JSON after all.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("Compressed request bodies are not accepted: send it without Content-Encoding.")
    services: Services = request.app.state.services
    try:
        async with asyncio.timeout(services.settings.body_timeout_s):
            body = await request.body()
    except TimeoutError:
        limit = f"{services.settings.body_timeout_s:g} s (PLAUDIT_BODY_TIMEOUT_S)"
        raise BodyTooLate(f"The request's body did not arrive within {limit}.", code="body_timeout") from None
    except ClientDisconnect:
        raise BadRequest("The connection closed before the body was complete.") from None
    if not body:
        return body
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMedia
    request._json = strictjson.parse(body)
    return body
