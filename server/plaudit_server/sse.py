"""The engine's answers over ASGI: in one piece, or as server-sent events."""

import asyncio
from collections.abc import AsyncGenerator, Mapping

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from plaudit.wire.base import JsonObject


def json_response(answer: JsonObject, headers: Mapping[str, str]) -> Response:
    """An answer in one piece. It is the engine's, so it is not validated again."""
    return Response(orjson.dumps(answer), media_type="application/json", headers=dict(headers))


async def gone(receive: Receive) -> None:
    """Return when the caller has gone away. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends what a generator yields, and closes the generator as soon as the caller goes away.

    Starlette's own streaming response leaves the closing to the garbage collector; here it aborts a generation that
    costs money.
    """

    def __init__(self, events: AsyncGenerator[bytes], headers: Mapping[str, str]) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or as much as the caller stays for."""
        sending = asyncio.create_task(self._send_all(send))
        leaving = asyncio.create_task(gone(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            finished = sending.done()
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._events.aclose()
        if finished:
            sending.result()

    async def _send_all(self, send: Send) -> None:
        start: Message = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        async for event in self._events:
            if event:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
