"""A POST that is sent twice is done once.

The answer is kept for 24 hours under (key, route, Idempotency-Key), sealed like any other text, and only if the
first attempt succeeded: what failed may be tried again. Not kept, so that the header has no effect: streamed chats
(their bytes have been seen), chats with `store: false` (nothing of them may be kept), new API keys and feedback tokens
(their secret may not).
"""

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from starlette.responses import Response

from plaudit_server.domain.moments import now_ms
from plaudit_server.domain.privacy import SealedText, seal_text, unseal_text
from plaudit_server.domain.records import SavedAnswer
from plaudit_server.errors import BadRequest, PlauditError
from plaudit_server.services import Services
from plaudit_server.store import idempotency
from plaudit_server.telemetry import log_event

logger = logging.getLogger(__name__)

_MAX_KEY = 255
_NEVER_KEPT = frozenset({"/v1/keys", "/v1/feedback/tokens"})


async def answer_once(request: Request, scope: str, body: bytes, answer: Callable[[], Awaitable[Response]]) -> Response:
    """Answer from the record, or run `answer` and keep what it said. `scope` is whose key it is and for what.

    Raises:
        BadRequest: the header is empty or too long.
        Conflict: the key was used with another body, or its first request is still under way.
    """
    key = request.headers.get("idempotency-key")
    if key is None or not _is_kept(request):
        return await answer()
    if not 0 < len(key) <= _MAX_KEY or not key.isascii() or not key.isprintable():
        raise BadRequest(f"Idempotency-Key must be 1 to {_MAX_KEY} printable ASCII characters.", code="idempotency_key")
    services: Services = request.app.state.services
    claim = f"{scope} {key}"
    # Keyed: an unkeyed hash of a short prompt could be guessed.
    body_hash = hmac.new(services.secret, b"body:" + body, hashlib.sha256).hexdigest()
    saved = await services.database.write(
        lambda conn: idempotency.begin(
            conn, scope=scope, key=key, body_hash=body_hash, now_ms=now_ms(), holder=services.server_id
        ),
        touching=[claim],
    )
    if saved is not None:
        return _replay(saved, services)
    try:
        response = await answer()
    except BaseException:
        await _settle(services, claim, lambda conn: idempotency.abandon(conn, scope=scope, key=key))
        raise
    sealed = seal_text(bytes(response.body).decode(), services.redactor, services.cipher)[0]
    status = response.status_code
    await _settle(
        services,
        claim,
        lambda conn: idempotency.finish(conn, scope=scope, key=key, status=status, body=sealed, now_ms=now_ms()),
    )
    return response


def _is_kept(request: Request) -> bool:
    body: Any = getattr(request, "_json", None)
    streamed = isinstance(body, dict) and body.get("stream") is True
    unstored = isinstance(body, dict) and body.get("store") is False
    return not streamed and not unstored and request.url.path not in _NEVER_KEPT


def _replay(saved: SavedAnswer, services: Services) -> Response:
    text = unseal_text(SealedText(saved.body), services.cipher)
    return Response(
        text, status_code=saved.status, media_type="application/json", headers={"idempotent-replayed": "true"}
    )


async def _settle(services: Services, claim: str, op: Callable[[Any], Awaitable[None]]) -> None:
    # The work is done and durable: not being able to note it must not turn it into an error. The claim lapses by
    # itself.
    try:
        await services.database.write(op, touching=[claim])
    except PlauditError as error:
        log_event(logger, logging.WARNING, "idempotency.unsettled", reason=error.message)
