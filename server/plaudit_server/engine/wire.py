"""HTTP to one engine server: pooled connections over a Unix socket or to a URL. Knows nothing of what is asked.

aiohttp and not httpx, which the rest of Plaudit uses: a chat through httpx costs half a millisecond of processor time
more, and this is on the path of every chat.
"""

import contextlib
import weakref
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from yarl import URL

_CONNECT_S = 5.0
_IDLE_S = 2.0
"""vLLM closes idle connections after 5 s; ours must go first, or a request is lost on a closing one."""


class Unreachable(Exception):
    """The server cannot be reached, did not answer in time, or went away in mid-answer."""


class NotReached(Unreachable):
    """No connection came about, so nothing of the request was sent."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    content: bytes


class ReplyStream(Protocol):
    """An answer whose head has come."""

    status: int

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The body, in pieces as they came. Raises Unreachable."""
        ...

    async def read(self) -> bytes:
        """The whole body, or what came of it."""
        ...

    def close(self) -> None:
        """Hang up, unless the body has ended."""
        ...


class Wire(Protocol):
    """How a `ReplicaClient` reaches its server."""

    async def send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], *, limit_s: float | None
    ) -> Reply:
        """One exchange, within `limit_s` seconds. Raises Unreachable."""
        ...

    async def open(self, path: str, body: bytes, headers: Mapping[str, str]) -> ReplyStream:
        """A POST whose answer is read piece by piece. Raises Unreachable."""
        ...

    async def aclose(self) -> None:
        """Close the connections. What is under way ends with Unreachable."""
        ...


class PooledWire:
    """A `Wire` on aiohttp.

    Args:
        url: `http://host:port`, or `unix:///path/to/socket`.
    """

    def __init__(self, url: str) -> None:
        self._socket = url.removeprefix("unix://") if url.startswith("unix://") else None
        self._base = "http://engine" if self._socket else url.rstrip("/")
        self._addresses: dict[str, URL] = {}
        self._session: aiohttp.ClientSession | None = None
        self._under_way: weakref.WeakSet[aiohttp.ClientResponse] = weakref.WeakSet()

    async def send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], *, limit_s: float | None
    ) -> Reply:
        """One exchange; see `Wire.send`."""
        limit = _UNLIMITED if limit_s is None else aiohttp.ClientTimeout(total=limit_s, sock_connect=_CONNECT_S)
        try:
            async with self._http().request(
                method, self._address(path), data=body, headers=headers, timeout=limit
            ) as reply:
                self._under_way.add(reply)
                return Reply(reply.status, await reply.read())
        except _FAILURES as error:
            raise _failure(error) from error

    async def open(self, path: str, body: bytes, headers: Mapping[str, str]) -> "PooledStream":
        """A POST whose answer is read piece by piece; see `Wire.open`."""
        try:
            reply = await self._http().post(self._address(path), data=body, headers=headers)
        except _FAILURES as error:
            raise _failure(error) from error
        self._under_way.add(reply)
        return PooledStream(reply)

    async def aclose(self) -> None:
        """Close the connections; whoever still reads from one is told Unreachable."""
        for reply in list(self._under_way):
            # aiohttp closes its sockets without a word to those who read: they would wait for ever.
            if not reply.content.is_eof():
                reply.content.set_exception(aiohttp.ClientConnectionError("closed"))
                reply.close()
        if self._session is not None:
            await self._session.close()

    def _http(self) -> aiohttp.ClientSession:
        # Made at the first use: aiohttp wants a running loop.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=self._connector(),
                timeout=_UNLIMITED,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept-Encoding"),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    def _connector(self) -> aiohttp.BaseConnector:
        # The number of connections is bounded by the chats that are admitted.
        if self._socket:
            return aiohttp.UnixConnector(self._socket, limit=0, keepalive_timeout=_IDLE_S)
        return aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S)

    def _address(self, path: str) -> URL:
        address = self._addresses.get(path)
        if address is None:
            address = self._addresses[path] = URL(self._base + path, encoded=True)
        return address


class PooledStream:
    """A `ReplyStream` on aiohttp. What is not read stays with the server: aiohttp holds 128 KiB at most."""

    def __init__(self, reply: aiohttp.ClientResponse) -> None:
        self._reply = reply
        self.status = reply.status

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body in pieces; see `ReplyStream`."""
        content = self._reply.content
        try:
            while data := await content.readany():
                yield data
        except _FAILURES as error:
            raise Unreachable(type(error).__name__) from error

    async def read(self) -> bytes:
        """The whole body, or nothing where it does not come."""
        with contextlib.suppress(*_FAILURES):
            return await self._reply.read()
        return b""

    def close(self) -> None:
        """Hang up, unless the body has ended."""
        self._reply.close()


_UNLIMITED = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
_FAILURES = (aiohttp.ClientError, OSError, TimeoutError)


def _failure(error: Exception) -> Unreachable:
    not_reached = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    return (NotReached if not_reached else Unreachable)(type(error).__name__)
