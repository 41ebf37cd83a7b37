"""The pooled connection to an engine, on a real Unix socket; and a caller who does not read."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from plaudit_server.app import create_app
from plaudit_server.engine.replica import ReplicaClient
from plaudit_server.engine.vllm import VllmEngine
from plaudit_server.engine.wire import PooledWire, Unreachable
from plaudit_server.errors import EngineUnavailable
from plaudit_server.settings import Settings
from tests.support.engine_folders import make_base
from tests.support.server import listening, until
from tests.support.streams import all_chunks, each_chunk

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]
RECORDED = (Path(__file__).parents[1] / "support" / "recorded" / "vllm_0_32_chunks.jsonl").read_bytes().splitlines()
EVENT = b"data: " + RECORDED[2] + b"\n\n"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def whole(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status.encode(),
        len(body),
        body,
    )


def piece(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Upstream:
    """A server on a Unix socket that answers as it is told."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.connections = 0
        self.gone = 0
        self.sent = 0
        self.tasks: list[Any] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.tasks.append(asyncio.current_task())
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    lines = dict(line.lower().split(b": ", 1) for line in head.strip().split(b"\r\n")[1:])
                    await reader.readexactly(int(lines.get(b"content-length", b"0")))
                    await self.talk(reader, writer, head.split(b" ")[1])
            self.gone += 1
        finally:
            writer.transport.abort()

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def upstream(folder: Path, talk: Talk) -> AsyncIterator[tuple[Upstream, Path]]:
    made, path = Upstream(talk), folder / "u.sock"
    server = await asyncio.start_unix_server(made.serve, path)
    try:
        yield made, path
    finally:
        server.close()
        await made.close()
        await asyncio.sleep(0)  # for the transports to hear of it


async def test_one_connection_serves_request_after_request(tmp_path: Path) -> None:
    async def talk(_: object, writer: asyncio.StreamWriter, path: bytes) -> None:
        writer.write(whole(orjson.dumps({"path": path.decode()})))

    async with upstream(tmp_path, talk) as (server, path):
        wire = PooledWire(f"unix://{path}")
        for _ in range(5):
            reply = await wire.send("POST", "/v1/x", b"{}", {}, limit_s=5)
            assert (reply.status, reply.content) == (200, b'{"path":"/v1/x"}')
        assert server.connections == 1
        await wire.aclose()


async def test_nobody_there_and_too_slow_are_unreachable(tmp_path: Path) -> None:
    async def silent(*_: object) -> None:
        await asyncio.sleep(30)

    wire = PooledWire(f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(Unreachable):
        await wire.send("GET", "/health", None, {}, limit_s=5)
    await wire.aclose()
    async with upstream(tmp_path, silent) as (_, path):
        wire = PooledWire(f"unix://{path}")
        with pytest.raises(Unreachable):
            await wire.send("GET", "/health", None, {}, limit_s=0.05)
        await wire.aclose()


async def test_an_engine_that_goes_away_in_mid_stream(tmp_path: Path) -> None:
    async def dies(_: object, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(STREAM + piece(EVENT))
        await writer.drain()
        writer.transport.abort()

    async with upstream(tmp_path, dies) as (_, path), ReplicaClient(socket=path) as client:
        stream = await client.chat_stream({}, model="base", version="base", request_id="r", on_close=lambda: None)
        with pytest.raises(EngineUnavailable):
            await all_chunks(stream)
        assert stream.trace.choices[0].response_ids == [5], "what was heard before is kept"


async def test_a_stream_that_ends_without_saying_so_is_no_whole_answer(tmp_path: Path) -> None:
    async def stops(_: object, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(STREAM + piece(EVENT) + b"0\r\n\r\n")

    async with upstream(tmp_path, stops) as (_, path), ReplicaClient(socket=path) as client:
        stream = await client.chat_stream({}, model="base", version="base", request_id="r", on_close=lambda: None)
        with pytest.raises(EngineUnavailable, match="middle of the answer"):
            await all_chunks(stream)


@pytest.mark.parametrize("sent", [b"", STREAM, STREAM + piece(EVENT)], ids=["nothing", "its head", "its beginning"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_closing_the_client_ends_what_is_under_way(sent: bytes, streamed: bool, tmp_path: Path) -> None:
    """As when an engine's process is seen to die before its sockets close: nobody may go on waiting for it."""

    async def stalls(_: object, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(sent)
        await asyncio.sleep(30)

    async def asked(wire: PooledWire) -> None:
        if not streamed:
            await wire.send("POST", "/v1/x", b"{}", {}, limit_s=None)
            return
        async for _ in await wire.open("/v1/x", b"{}", {}):
            pass

    async with upstream(tmp_path, stalls) as (server, path):
        wire = PooledWire(f"unix://{path}")
        asking = asyncio.create_task(asked(wire))
        await until(lambda: server.connections == 1)
        await asyncio.sleep(0.05)  # what was sent is read
        await wire.aclose()
        async with asyncio.timeout(2):
            with pytest.raises(Unreachable):
                await asking


async def test_closing_a_stream_hangs_up(tmp_path: Path) -> None:
    async def endless(_: object, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(STREAM)
        while True:
            writer.write(piece(EVENT))
            await writer.drain()
            await asyncio.sleep(0.005)

    async with upstream(tmp_path, endless) as (server, path), ReplicaClient(socket=path) as client:
        stream = await client.chat_stream({}, model="base", version="base", request_id="r", on_close=lambda: None)
        assert (await anext(each_chunk(stream)))["id"] == "chatcmpl-ours"
        await stream.aclose()
        await until(lambda: server.gone == 1)


async def test_a_caller_who_does_not_read_stops_the_engine_and_fills_no_memory(tmp_path: Path) -> None:
    """Everything between the two sockets may hold a few hundred KiB; the engine must feel the rest."""
    burst = piece(EVENT * 100)

    async def torrent(_: object, writer: asyncio.StreamWriter, path: bytes) -> None:
        if path != b"/v1/chat/completions":
            writer.write(whole(b'{"data":[{"id":"base"}],"results":[[]]}'))
            return
        writer.write(STREAM)
        while True:
            writer.write(burst)
            await writer.drain()
            server.sent += len(burst)

    async with upstream(tmp_path, torrent) as (server, path):
        settings = Settings(data=tmp_path / "data", engine_urls=[f"unix://{path}"], consent_default="granted")
        engine = VllmEngine(settings, make_base(tmp_path / "base"))
        app = create_app(settings, engine)
        async with app.router.lifespan_context(app), listening(app) as url:
            await until(engine.is_ready)
            secret = (settings.data / "admin.key").read_text().strip()
            with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as caller:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
                body = orjson.dumps({"messages": [{"role": "user", "content": "go on"}], "stream": True})
                head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
                head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                caller.sendall(head.encode() + body)
                sent = -1
                while sent != server.sent or sent == 0:
                    sent = server.sent
                    await asyncio.sleep(0.5)
                assert sent < 32_000_000, "the engine could go on although nobody reads"
            await until(lambda: server.gone >= 1)
