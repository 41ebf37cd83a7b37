"""The engine's answers over ASGI: in one piece, or as server-sent events."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from plaudit.wire.base import JsonObject

_LAST_WORDS_S = 5


def json_response(answer: JsonObject, headers: Mapping[str, str]) -> Response:
    """An answer in one piece. It is the engine's, so it is not validated again."""
    return Response(orjson.dumps(answer), media_type="application/json", headers=dict(headers))


async def gone(receive: Receive) -> None:
    """Return when the caller has gone away. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends what a generator yields, and closes the generator as soon as the caller goes away or time is up.

    Starlette's own streaming response leaves the closing to the garbage collector; here it aborts a generation that
    costs money.

    Args:
        events: what to send.
        headers: of the answer.
        limit_s: how long it may take altogether, in seconds.
        cut_off: called when time is up, before `events` is closed; returns the last words.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        headers: Mapping[str, str],
        *,
        limit_s: float,
        cut_off: Callable[[], bytes],
    ) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self._events = events
        self._limit_s = limit_s
        self._cut_off = cut_off

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or as much as the caller stays for."""
        sending = asyncio.create_task(self._send_all(send))
        leaving = asyncio.create_task(gone(receive))
        last_words = None
        try:
            done, _ = await asyncio.wait({sending, leaving}, timeout=self._limit_s, return_when=asyncio.FIRST_COMPLETED)
            last_words = None if done else self._cut_off()
        finally:
            finished = sending.done()
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._events.aclose()
        if finished:
            sending.result()
        elif last_words is not None:
            # A caller who reads nothing does not read this either; the connection is closed then.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await send({"type": "http.response.body", "body": last_words, "more_body": False})

    async def _send_all(self, send: Send) -> None:
        start: Message = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        async for event in self._events:
            if event:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
