"""What happens around every request: its id, its bounds, its clock, and a proper answer to every failure."""

import logging
import re
import time
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plaudit_server.domain.ids import new_id
from plaudit_server.errors import (
    BadRequest,
    BodyTooLarge,
    HeadersTooLarge,
    MethodNotAllowed,
    NotFound,
    PlauditError,
    Unprocessable,
)
from plaudit_server.telemetry import Telemetry, log_event

logger = logging.getLogger(__name__)

_OUR_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def error_response(error: PlauditError) -> Response:
    """An error as OpenAI's clients expect it."""
    return Response(
        error.body().model_dump_json(), status_code=error.status, media_type="application/json", headers=error.headers()
    )


def headers_too_large(limit: int) -> HeadersTooLarge:
    """The refusal of a request line and headers of more than `limit` bytes."""
    return HeadersTooLarge(f"Address and headers are larger than {limit} bytes (PLAUDIT_MAX_HEADER_BYTES).")


class RequestShield:
    """The outermost layer.

    Every answer gets `x-request-id` (the caller's, where it is a plain token) and what handlers put into
    `request.state.answer_headers`. Headers or a body longer than allowed are refused, whether or not the length was
    announced. What no handler expected is logged once, with the request id, and answered without details.
    """

    def __init__(self, app: ASGIApp, *, telemetry: Telemetry, max_header_bytes: int, max_body_bytes: int) -> None:
        self.app = app
        self.telemetry = telemetry
        self.max_header_bytes = max_header_bytes
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        answer_headers: dict[str, str] = {}
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, started=started, answer_headers=answer_headers)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = [(name.encode(), value.encode()) for name, value in answer_headers.items()]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *added]
            await send(message)

        try:
            refusal = self._refusal(scope, headers)
            if refusal is not None:
                await error_response(refusal)(scope, receive, send_with_id)
            else:
                await self.app(scope, self._bounded(receive), send_with_id)
        except Exception:  # the last resort: whatever it was, the caller gets OpenAI's shape and no details
            log_event(logger, logging.ERROR, "request.failed", exc_info=True, request_id=request_id)
            if status:
                raise  # the answer has begun: only closing the connection can tell the caller
            await error_response(PlauditError(f"Something went wrong inside the server (request {request_id})."))(
                scope, receive, send_with_id
            )
        finally:
            self._count(scope, status, time.monotonic() - started)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> PlauditError | None:
        """What a look at the headers alone is enough to refuse."""
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size + len(scope["path"]) + len(scope["query_string"]) > self.max_header_bytes:
            return headers_too_large(self.max_header_bytes)
        length = headers.get(b"content-length", b"0")
        return self._too_large() if length.isdigit() and int(length[:20]) > self.max_body_bytes else None

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than {self.max_body_bytes} bytes (PLAUDIT_MAX_BODY_BYTES).")

    def _bounded(self, receive: Receive) -> Receive:
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:
                raise self._too_large()
            return message

        return bounded

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's template, not the path: ids in labels would make a series of each.
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self.telemetry.requests.labels(route, method, status or 499).inc()
        self.telemetry.request_seconds.labels(route).observe(seconds)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if _OUR_REQUEST_ID.fullmatch(given) else new_id("req_")


def install_error_handlers(app: FastAPI) -> None:
    """Give every error OpenAI's shape, those of the framework too."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, PlauditError)
        return error_response(error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(unprocessable(error.errors()))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return error_response(_from_http(error, request))

    app.add_exception_handler(PlauditError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def unprocessable(problems: Any) -> Unprocessable:
    """Pydantic's findings as one error: the first one's field as `param`, what was sent never repeated."""
    lines = []
    for problem in problems[:5]:
        where = _param(problem["loc"])
        lines.append(f"{where}: {problem['msg']}" if where else problem["msg"])
    first = problems[0] if problems else {"loc": (), "type": "invalid"}
    return Unprocessable("; ".join(lines) + ".", param=_param(first["loc"]) or None, code=str(first["type"])[:64])


def _param(location: Sequence[Any]) -> str:
    # Field names of an unknown field come from the caller: bounded, since they are repeated.
    return ".".join(str(part) for part in location if part not in ("body", "query", "path", "header"))[:128]


def _from_http(error: HTTPException, request: Request) -> PlauditError:
    if error.status_code == 404:
        return NotFound(f"There is no {request.method} {request.url.path[:200]}.", code="unknown_url")
    if error.status_code == 405:
        return MethodNotAllowed(
            f"{request.url.path[:200]} does not take {request.method[:16]}.",
            allow=(error.headers or {}).get("Allow", ""),
        )
    return BadRequest(str(error.detail))
