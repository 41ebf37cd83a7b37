"""A log line a request, where `PLAUDIT_ACCESS_LOG` asks for it: after the last byte, without text of users."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plaudit_server.telemetry import log_event

logger = logging.getLogger(__name__)


class AccessLog:
    """Says of each request what it was, how it ended and how long it took."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, version = time.monotonic(), 499, None

        async def send_noting(message: Message) -> None:
            nonlocal status, version
            if message["type"] == "http.response.start":
                status = message["status"]
                version = dict(message["headers"]).get(b"x-model-version")
            await send(message)

        try:
            await self.app(scope, receive, send_noting)
        finally:
            log_event(
                logger,
                logging.INFO,
                "request",
                request_id=scope.get("state", {}).get("request_id"),
                method=scope["method"][:8],
                route=getattr(scope.get("route"), "path", "unmatched"),
                status=status,
                seconds=round(time.monotonic() - started, 4),
                version=version and version.decode("latin-1"),
            )
