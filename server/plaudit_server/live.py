"""The overview as it changes, for whoever listens.

One look serves all listeners of this process, and nobody looks while nobody listens. What changed elsewhere is seen
all the same, because a look reads the store: any number of gateway processes may serve.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial

import orjson

from plaudit.wire.overview import Overview
from plaudit_server.errors import Overloaded, PlauditError
from plaudit_server.serving import forever

KEEP_ALIVE_S = 15
"""A silent connection is cut by proxies; and after this time at most it is known that a key was revoked."""

_SHARE_OF_TIME = 0.1
"""Looking takes at most this part of the time."""

Look = Callable[[], Awaitable[Overview]]


class Live:
    """Looks while somebody listens, and tells each listener what is new to it.

    Args:
        tick_s: seconds between two looks; more where one look takes long.
        max_listeners: further ones are refused.
        keep_alive_s: seconds of silence before a comment is sent.
    """

    def __init__(self, *, tick_s: float, max_listeners: int, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self._tick_s = tick_s
        self._max_listeners = max_listeners
        self._keep_alive_s = keep_alive_s
        self._listeners = 0
        self._took_s = 0.0
        self._closed = False
        self._seen: dict[str, bytes] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def check_room(self) -> None:
        """Let one more listener pass.

        Raises:
            Overloaded: there are as many as there may be, or the server ends.
        """
        if self._closed or self._listeners >= self._max_listeners:
            raise Overloaded("Too many listen already: come back later.", code="too_many_listeners")

    async def listen(self, look: Look, welcome: Callable[[], Awaitable[object]]) -> AsyncGenerator[bytes]:
        """Server-sent events: every part of the overview at first, then each part that changed.

        Args:
            look: takes one look.
            welcome: asked now and then; raises a PlauditError where the listener may listen no more.
        """
        try:
            self.check_room()
        except Overloaded as error:  # others came in between
            yield _failed(error)
            return
        told: dict[str, bytes] = {}
        heard_at = time.monotonic()
        self._listeners += 1
        try:
            self._begin(look)
            while not self._closed:
                changed, fresh = self._changed, {k: v for k, v in self._seen.items() if told.get(k) != v}
                told |= fresh
                if fresh:
                    yield b"".join(_event(topic, part) for topic, part in fresh.items())
                if time.monotonic() - heard_at >= self._keep_alive_s:
                    await welcome()
                    heard_at = time.monotonic()
                    yield b": still here\n\n"
                await _until(changed, self._keep_alive_s)
        except PlauditError as error:
            yield _failed(error)
        finally:
            self._listeners -= 1
            if self._listeners == 0:
                self._stop()

    def close(self) -> None:
        """End every stream: the server ends, and must not wait for listeners."""
        self._closed = True
        self._stop()
        self._changed.set()

    def _begin(self, look: Look) -> None:
        if self._task is None:
            self._task = asyncio.create_task(forever("live", partial(self._look, look), self._rest))

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._task, self._seen = None, {}

    async def _rest(self) -> None:
        await asyncio.sleep(max(self._tick_s, self._took_s / _SHARE_OF_TIME))

    async def _look(self, look: Look) -> None:
        began = time.monotonic()
        overview = await look()
        self._took_s = time.monotonic() - began
        parts = overview.model_dump(mode="json", exclude={"object"})
        seen = {topic: orjson.dumps({topic: part}) for topic, part in parts.items()}
        if seen != self._seen:
            self._seen = seen
            self._changed.set()
            self._changed = asyncio.Event()


async def _until(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def _failed(error: PlauditError) -> bytes:
    return _event("error", orjson.dumps(error.body().model_dump()))


def _event(topic: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (topic.encode(), data)
