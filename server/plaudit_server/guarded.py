"""The route class of every endpoint that needs a key.

Order matters: who asks is settled before the body is read, the body is read strictly before it is validated, and a
repeated POST is answered from the record before anything runs again.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from plaudit_server import strictjson
from plaudit_server.auth import authenticate
from plaudit_server.errors import BadRequest, UnsupportedMedia
from plaudit_server.idempotency import answer_once

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class GuardedRoute(APIRoute):
    """Authenticates, parses strictly, answers repeated POSTs once."""

    def get_route_handler(self) -> Handler:
        """FastAPI's handler with ours around it."""
        validated = super().get_route_handler()
        wants_body = self.body_field is not None

        async def handler(request: Request) -> Response:
            request.state.principal = await authenticate(request)
            body = await read_json(request) if wants_body else b""
            if request.method != "POST":
                return await validated(request)
            return await answer_once(request, body, lambda: validated(request))

        return handler


async def read_json(request: Request) -> bytes:
    """Read and parse the body; FastAPI finds the parsed value where Starlette keeps it.

    Raises:
        BodyTooLarge: longer than allowed (raised by the shield while reading).
        UnsupportedMedia: not JSON, or compressed.
        BadRequest: not JSON after all.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("Compressed request bodies are not accepted: send it without Content-Encoding.")
    try:
        body = await request.body()
    except ClientDisconnect:
        raise BadRequest("The connection closed before the body was complete.") from None
    if not body:
        return body
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMedia
    request._json = strictjson.parse(body)
    return body
