"""The asynchronous client: as `client.py`, with `await`."""

from collections.abc import AsyncIterator, Callable
from typing import Self, TypeVar

import httpx

from plaudit._chat import ChatChunk, StreamFacts, StreamReader
from plaudit._config import Endpoint, find_endpoint
from plaudit._core import Answer, Core, Flow, Outgoing, Pause, Reply
from plaudit._http import check_url, connection_error, failure_from, request_options, uses_proxy
from plaudit._live import LiveReader
from plaudit._retry import Clock, RetryPolicy
from plaudit.resources import Resources
from plaudit.wire.base import Page
from plaudit.wire.overview import Overview

T = TypeVar("T")


class AsyncChatStream(StreamFacts):
    """A streamed answer. Iterate to get its chunks; closing it makes the server stop generating.

    Use `async with`, or `aclose`, where it may be left early.
    """

    def __init__(self, response: httpx.Response, reader: StreamReader, outgoing: Outgoing) -> None:
        super().__init__(reader)
        self._response = response
        self._outgoing = outgoing
        self._closed = False

    def __aiter__(self) -> AsyncIterator[ChatChunk]:
        return self._read()

    async def read(self) -> str:
        """Read to the end; the whole text."""
        async for _ in self:
            pass
        return self.text

    async def aclose(self) -> None:
        """Stop listening, which aborts generation. Safe to call twice."""
        self._closed = True
        await self._response.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _read(self) -> AsyncIterator[ChatChunk]:
        if self._closed:
            return
        try:
            async for raw in self._response.aiter_bytes():
                for chunk in self._reader.feed(raw):
                    yield chunk
            # Not left at [DONE]: that would leave httpx's generators half-way, for the garbage collector to end inside
            # the running task, and where nest_asyncio is in use (Chainlit) that cancels the task.
            self._reader.finish()
        except httpx.HTTPError as error:
            raise connection_error(error, self._outgoing) from error
        finally:
            await self.aclose()


class AsyncDriver:
    """Does what a conversation asks for, letting other tasks run."""

    def __init__(self, core: Core, http: httpx.AsyncClient) -> None:
        self.core = core
        self.http = http

    async def run(self, flow: Flow[T]) -> T:
        """Carry out a conversation and return its result."""
        answer: Answer = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = await self._do(step)

    async def stream(self, flow: Flow[Reply]) -> AsyncChatStream:
        """Open a stream."""
        opened = await self.run(flow)
        response, outgoing = opened.opened
        return AsyncChatStream(response, StreamReader(opened.headers), outgoing)

    async def follow(self, flow: Flow[Reply]) -> AsyncIterator[Overview]:
        """Each overview as it comes, until the server ends the stream or nobody wants another."""
        opened = await self.run(flow)
        response, outgoing = opened.opened
        reader = LiveReader(opened.headers)
        try:
            async for raw in response.aiter_bytes():
                seen = reader.feed(raw)
                if seen is not None:
                    yield seen
        except httpx.HTTPError as error:
            raise connection_error(error, outgoing) from error
        finally:
            await response.aclose()

    async def pages(self, fetch: Callable[[str | None], Flow[Page[T]]], after: str | None) -> AsyncIterator[T]:
        """All items, page by page."""
        while True:
            page = await self.run(fetch(after))
            for item in page.data:
                yield item
            if not page.has_more or page.next in (None, after):
                return
            after = page.next

    async def _do(self, step: Outgoing | Pause) -> Answer:
        if isinstance(step, Pause):
            await self.core.clock.asleep(step.seconds)
            return None
        try:
            request = self.http.build_request(step.method, step.url, **request_options(step))
            response = await self.http.send(request, stream=step.stream)
            if step.stream and response.is_success:
                return Reply(response.status_code, response.headers, opened=(response, step))
            return Reply(response.status_code, response.headers, await response.aread())
        except httpx.HTTPError as error:
            return failure_from(error, step)


class AsyncPlaudit(Resources[AsyncDriver]):
    """An asynchronous client of a Plaudit server.

    Args:
        base_url: the server's address; else `PLAUDIT_URL`; else the local run's.
        api_key: `plk_…`; else `PLAUDIT_API_KEY`; else, for a server on this machine, `data/admin.key`.
        timeout: seconds to wait for an answer, or for the next piece of a stream.
        max_retries: tries after the first.
        retry_for: seconds after which no retry begins any more.
        transport: an httpx transport in place of the network; for tests.
        clock: time and chance in place of the real ones; for tests.

    Raises:
        ConfigurationError: the address or the key cannot be used.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 600.0,
        max_retries: int = 4,
        retry_for: float = 120.0,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock | None = None,
    ) -> None:
        endpoint = check_url(find_endpoint(base_url, api_key))
        core = Core(endpoint, timeout, RetryPolicy(max_retries, retry_for), clock or Clock())
        http = httpx.AsyncClient(transport=transport, trust_env=uses_proxy(endpoint))
        super().__init__(AsyncDriver(core, http))

    @property
    def endpoint(self) -> Endpoint:
        """The address and key in use, and where the key came from."""
        return self._driver.core.endpoint

    async def aclose(self) -> None:
        """Close its connections."""
        await self._driver.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
