"""The blocking client."""

from collections.abc import Callable, Iterator
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


class ChatStream(StreamFacts):
    """A streamed answer. Iterate to get its chunks; closing it makes the server stop generating.

    Leaving a `for` loop over it early closes it; so does `with`.
    """

    def __init__(self, response: httpx.Response, reader: StreamReader, outgoing: Outgoing) -> None:
        super().__init__(reader)
        self._response = response
        self._outgoing = outgoing
        self._closed = False

    def __iter__(self) -> Iterator[ChatChunk]:
        return self._read()

    def read(self) -> str:
        """Read to the end; the whole text."""
        for _ in self:
            pass
        return self.text

    def close(self) -> None:
        """Stop listening, which aborts generation. Safe to call twice."""
        self._closed = True
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> Iterator[ChatChunk]:
        if self._closed:
            return
        try:
            for raw in self._response.iter_bytes():
                yield from self._reader.feed(raw)
                if self._reader.done:
                    break
            self._reader.finish()
        except httpx.HTTPError as error:
            raise connection_error(error, self._outgoing) from error
        finally:
            self.close()


class SyncDriver:
    """Does what a conversation asks for, blocking."""

    def __init__(self, core: Core, http: httpx.Client) -> None:
        self.core = core
        self.http = http

    def run(self, flow: Flow[T]) -> T:
        """Carry out a conversation and return its result."""
        answer: Answer = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = self._do(step)

    def stream(self, flow: Flow[Reply]) -> ChatStream:
        """Open a stream."""
        opened = self.run(flow)
        response, outgoing = opened.opened
        return ChatStream(response, StreamReader(opened.headers), outgoing)

    def follow(self, flow: Flow[Reply]) -> Iterator[Overview]:
        """Each overview as it comes, until the server ends the stream or nobody wants another."""
        opened = self.run(flow)
        response, outgoing = opened.opened
        reader = LiveReader(opened.headers)
        try:
            for raw in response.iter_bytes():
                seen = reader.feed(raw)
                if seen is not None:
                    yield seen
        except httpx.HTTPError as error:
            raise connection_error(error, outgoing) from error
        finally:
            response.close()

    def pages(self, fetch: Callable[[str | None], Flow[Page[T]]], after: str | None) -> Iterator[T]:
        """All items, page by page."""
        while True:
            page = self.run(fetch(after))
            yield from page.data
            if not page.has_more or page.next in (None, after):
                return
            after = page.next

    def _do(self, step: Outgoing | Pause) -> Answer:
        if isinstance(step, Pause):
            self.core.clock.sleep(step.seconds)
            return None
        try:
            request = self.http.build_request(step.method, step.url, **request_options(step))
            response = self.http.send(request, stream=step.stream)
            if step.stream and response.is_success:
                return Reply(response.status_code, response.headers, opened=(response, step))
            return Reply(response.status_code, response.headers, response.read())
        except httpx.HTTPError as error:
            return failure_from(error, step)


class Plaudit(Resources[SyncDriver]):
    """A client of a Plaudit server.

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
        transport: httpx.BaseTransport | None = None,
        clock: Clock | None = None,
    ) -> None:
        endpoint = check_url(find_endpoint(base_url, api_key))
        core = Core(endpoint, timeout, RetryPolicy(max_retries, retry_for), clock or Clock())
        http = httpx.Client(transport=transport, trust_env=uses_proxy(endpoint))
        super().__init__(SyncDriver(core, http))

    @property
    def endpoint(self) -> Endpoint:
        """The address and key in use, and where the key came from."""
        return self._driver.core.endpoint

    def close(self) -> None:
        """Close its connections."""
        self._driver.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
