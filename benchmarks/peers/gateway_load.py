"""The load of benchmarks/gateway.py, in a process of its own: so many clients, each asking again when it was answered.

Prints one JSON object: seconds to the first byte of each answer's body, to its last, failures, and the wall time.
"""

import argparse
import asyncio
import json
import time
from collections import deque
from typing import cast

import httptools
import uvloop


class Client(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, request: bytes, want: bytes, todo: deque[int], results: "Results") -> None:
        self.request = request
        self.want = want
        self.todo = todo
        self.results = results
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.ask()

    def connection_lost(self, _: Exception | None) -> None:
        """The server hung up."""
        if self.busy:
            self.results.failed += 1
        if not self.finished.done():
            self.finished.set_result(None)

    def ask(self) -> None:
        """The next request, if any is left."""
        if not self.todo:
            self.busy = False
            self.transport.close()
            return
        self.todo.popleft()
        self.busy, self.first, self.body = True, 0.0, b""
        self.parser = httptools.HttpResponseParser(self)
        self.began = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer."""
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self.first = self.first or time.perf_counter()
        self.body += body

    def on_message_complete(self) -> None:
        """The answer is over."""
        now = time.perf_counter()
        if self.parser.get_status_code() == 200 and self.body.count(self.want) and b"votes" in self.body:
            self.results.first.append(self.first - self.began)
            self.results.total.append(now - self.began)
        else:
            self.results.failed += 1
            self.results.sample = self.body[:400].decode(errors="replace")
        asyncio.get_running_loop().call_soon(self.ask)


class Results:
    """What was measured."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.total: list[float] = []
        self.failed = 0
        self.sample = ""


async def main() -> None:
    """Ask; print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/chat/completions")
    parser.add_argument("--key", default="none")
    parser.add_argument("--body", required=True, help="JSON")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    args = parser.parse_args()
    body = args.body.encode()
    head = f"POST {args.path} HTTP/1.1\r\nHost: 127.0.0.1:{args.port}\r\nAuthorization: Bearer {args.key}\r\n"
    head += f"Content-Type: application/json\r\nAccept: */*\r\nContent-Length: {len(body)}\r\n\r\n"
    want = b"[DONE]" if json.loads(body).get("stream") else b'"choices"'
    results, todo = Results(), deque(range(args.count))
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    clients = []
    for _ in range(args.clients):
        _, client = await loop.create_connection(
            lambda: Client(head.encode() + body, want, todo, results), "127.0.0.1", args.port
        )
        clients.append(client.finished)
    await asyncio.gather(*clients)
    wall = time.perf_counter() - began
    print(json.dumps({"wall": wall, **vars(results)}))


if __name__ == "__main__":
    uvloop.run(main())
