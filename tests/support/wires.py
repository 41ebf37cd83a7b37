"""A wire for tests: through an httpx transport (a mock, or an ASGI app) instead of a socket."""

from collections.abc import AsyncIterator, Mapping

import httpx

from plaudit_server.engine.wire import NotReached, Reply, Unreachable


class HttpxWire:
    """Implements `plaudit_server.engine.wire.Wire`."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._http = httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=60)

    async def send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], *, limit_s: float | None
    ) -> Reply:
        """One exchange."""
        try:
            answer = await self._http.request(method, path, content=body, headers=dict(headers), timeout=limit_s)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NotReached(type(error).__name__) from error
        except (httpx.HTTPError, OSError) as error:
            raise Unreachable(type(error).__name__) from error
        return Reply(answer.status_code, answer.content)

    async def open(self, path: str, body: bytes, headers: Mapping[str, str]) -> "HttpxStream":
        """A POST whose answer is read at once and handed out in pieces."""
        return HttpxStream(await self.send("POST", path, body, headers, limit_s=None))

    async def aclose(self) -> None:
        """Close."""
        await self._http.aclose()


class HttpxStream:
    """Implements `plaudit_server.engine.wire.ReplyStream`."""

    def __init__(self, reply: Reply) -> None:
        self.status = reply.status
        self._content = reply.content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """In pieces of 100 bytes: no event ends with its piece."""
        for at in range(0, len(self._content), 100):
            yield self._content[at : at + 100]

    async def read(self) -> bytes:
        """All of it."""
        return self._content

    def close(self) -> None:
        """Nothing to hang up."""
