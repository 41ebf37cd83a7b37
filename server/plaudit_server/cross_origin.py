"""Which pages of which origins may call what (CORS).

A page of any origin may vote under a feedback token: the token is all it needs, and no cookie goes along. Chat and
feedback routes with a key are for the origins in `PLAUDIT_CORS_ORIGINS`; everything else is for no page. Credentials
in the browser's sense (cookies) are never allowed.
"""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

_SIGNED = "/v1/feedback/t/"

_WITH_KEY = ("/v1/chat/completions", "/v1/models", "/v1/feedback", "/v1/comparisons", "/v1/events")
_SENT = ("authorization", "content-type", "idempotency-key", "x-request-id", "x-session-id", "x-train-consent")
_READ = (
    "idempotent-replayed",
    "retry-after",
    "x-compare-with",
    "x-feedback-token",
    "x-model-version",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-request-id",
    "x-rollout-arm",
)
_PREFLIGHT_S = 600


class CrossOrigin:
    """Answers preflights and marks answers, by path. It lies outside of everything, so that errors are marked too."""

    def __init__(self, app: ASGIApp, *, origins: Sequence[str]) -> None:
        self.app = app
        self.for_tokens = CORSMiddleware(
            app,
            allow_origins=["*"],
            allow_methods=["POST"],
            allow_headers=["content-type", "idempotency-key"],
            expose_headers=_READ,
            max_age=_PREFLIGHT_S,
        )
        self.with_key = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=_SENT,
            expose_headers=_READ,
            max_age=_PREFLIGHT_S,
        )
        self.has_origins = bool(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the app, by way of what its path allows."""
        await self._for(scope)(scope, receive, send)

    def _for(self, scope: Scope) -> ASGIApp:
        if scope["type"] != "http":
            return self.app
        path: str = scope["path"]
        if path.startswith(_SIGNED):
            return self.for_tokens
        is_listed = any(path == each or path.startswith(f"{each}/") for each in _WITH_KEY)
        return self.with_key if self.has_origins and is_listed else self.app
