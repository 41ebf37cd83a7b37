"""Bounds on what a request may be and how long it may take, over ASGI and over real sockets."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from plaudit_server.protocol import bounded_protocol
from tests.support.server import HELLO, Harness, listening, serving

pytestmark = pytest.mark.sqlite  # nothing here is the database's affair

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def part(kind: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "look:"}, {"type": kind} | fields]}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 10**6}, "n"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": 4096}, "max_tokens"),
        ({"max_completion_tokens": 4096}, "max_completion_tokens"),
        ({"stop": ["x"] * 10**5}, "stop"),
        ({"stop": "x" * 300}, "stop"),
        ({"stop": ["x" * 300]}, "stop"),
        ({"stop_token_ids": [1] * 1000}, None),
        ({"bad_words": ["x"] * 1000}, None),
        ({"logit_bias": {str(token): 1 for token in range(2000)}}, None),
        ({"messages": part("image_url", image_url={"url": "http://169.254.169.254/latest/meta-data"})}, "messages"),
        ({"messages": part("input_audio", input_audio={"data": "", "format": "wav"})}, "messages"),
        ({"messages": part("video_url", video_url={"url": "file:///etc/passwd"})}, "messages"),
        ({"messages": [{"role": "user", "content": [{"image_url": "http://10.0.0.1/"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": {"image_url": "http://10.0.0.1/"}}]}, "messages"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_too_much_is_refused_before_the_engine_is_asked(
    tmp_path: Path, fields: dict[str, Any], param: str | None
) -> None:
    async with serving(tmp_path) as server:
        answer = await server.admin.post(CHAT, json={"messages": HELLO} | fields)
        assert answer.status_code == 422, answer.text
        assert (answer.json()["error"]["param"] or "").split(".")[0] == (param or "")
        assert server.engine.bodies == []


async def test_text_in_parts_is_taken(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        messages = [{"role": "user", "content": [{"type": "text", "text": "hello"}, "world"]}]
        answer = await server.admin.post(CHAT, json={"messages": messages, "stop": ["x"] * 16, "max_tokens": 2048})
        assert answer.status_code == 200, answer.text


async def test_an_engine_of_others_knows_its_own_length(tmp_path: Path) -> None:
    async with serving(tmp_path, engine_urls=["http://engine.invalid"]) as server:
        assert (await server.admin.post(CHAT, json={"messages": HELLO, "max_tokens": 4096})).status_code == 200


@pytest.mark.parametrize("where", ["header", "headers", "query"])
async def test_large_headers(tmp_path: Path, where: str) -> None:
    async with serving(tmp_path, max_header_bytes=4096) as server:
        headers = {f"x-{number}": "y" * 100 for number in range(50)} if where == "headers" else {}
        if where == "header":
            headers = {"x-large": "y" * 5000}
        answer = await server.admin.get(
            "/v1/models" + ("?a=" + "y" * 5000 if where == "query" else ""), headers=headers
        )
        assert (answer.status_code, answer.json()["error"]["type"]) == (431, "invalid_request_error")
        assert (await server.admin.get("/v1/models")).status_code == 200


async def test_a_body_that_does_not_arrive(tmp_path: Path) -> None:
    async def dripping() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" "
            await asyncio.sleep(0.05)

    async with serving(tmp_path, body_timeout_s=0.3) as server:
        answer = await server.admin.post(CHAT, content=dripping(), headers=JSON)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], answer.headers["connection"]) == (408, "body_timeout", "close")


async def test_an_answer_that_takes_too_long_is_ended_and_recorded(tmp_path: Path) -> None:
    async with serving(tmp_path, max_stream_s=0.2) as server:
        server.engine.token_delay_s = 0.05
        answer = await server.admin.post(CHAT, json={"messages": HELLO, "stream": True, "max_tokens": 50})
        events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        error = json.loads(events[-2])["error"]
        assert (events[-1], error["code"], error["type"]) == ("[DONE]", "time_limit", "server_error")
        response_id = json.loads(events[0])["id"]
        await server.until(lambda: server.services.answering.is_speaking(response_id) is False)
        kept = (await server.admin.get(f"{CHAT}/{response_id}")).json()
        assert (kept["status"], kept["finish_reason"]) == ("failed", "time_limit")
        assert kept["completion_tokens"] > 0
        assert len(server.engine.aborted) == 1
        assert (await server.vote(response_id)).status_code == 201


async def test_a_short_answer_is_not_ended(tmp_path: Path) -> None:
    async with serving(tmp_path, max_stream_s=5) as server:
        answer = await server.admin.post(CHAT, json={"messages": HELLO, "stream": True})
        assert '"error"' not in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")


# ---- real sockets


@contextlib.asynccontextmanager
async def bounded(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Harness, int]]:
    """The server on a real socket with our protocol; its port."""
    async with (
        serving(tmp_path, **settings) as server,
        listening(server.app, http=bounded_protocol(server.settings)) as address,
    ):
        yield server, int(address.rpartition(":")[2])


async def exchange(port: int, *pieces: bytes, pause_s: float = 0.0, wait_s: float = 5.0) -> bytes:
    """Send pieces on one connection; everything that comes back until the server closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
        async with asyncio.timeout(wait_s):
            with contextlib.suppress(ConnectionError):
                return await reader.read()
        return b""
    finally:
        writer.close()


async def test_headers_without_end_are_cut_off(tmp_path: Path) -> None:
    async with bounded(tmp_path, max_header_bytes=8192) as (_, port):
        endless = [b"GET /healthz HTTP/1.1\r\nhost: x\r\n", *[b"x-a: " + b"y" * 1000 + b"\r\n"] * 9]
        answer = await exchange(port, *endless, pause_s=0.01)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b"PLAUDIT_MAX_HEADER_BYTES" in answer


async def test_headers_that_drip_are_cut_off(tmp_path: Path) -> None:
    async with bounded(tmp_path, header_timeout_s=0.2) as (_, port):
        answer = await exchange(port, b"GET /healthz HTTP/1.1\r\n", b"a: b\r\n", pause_s=0.05)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "header_timeout"


async def test_a_silent_connection_is_closed(tmp_path: Path) -> None:
    async with bounded(tmp_path, header_timeout_s=0.2) as (_, port):
        assert await exchange(port) == b""


async def test_a_slow_loris_gets_408_and_is_closed(tmp_path: Path) -> None:
    async with bounded(tmp_path, body_timeout_s=0.3) as (server, port):
        secret = server.admin.headers["authorization"]
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: {secret}\r\ncontent-type: application/json\r\n"
        answer = await exchange(port, (head + "content-length: 1000\r\n\r\n").encode(), b"{", b" ", pause_s=0.05)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer.lower()


async def test_a_body_sent_to_nobody_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal was given at once; whoever goes on dripping does not keep the connection for ever."""
    monkeypatch.setattr("plaudit_server.protocol._GRACE_S", 0)
    async with bounded(tmp_path, body_timeout_s=0.2) as (_, port):
        head = b"POST /v1/feedback HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
        assert (await exchange(port, head)).startswith(b"HTTP/1.1 401 ")


async def test_an_ordinary_caller_notices_nothing(tmp_path: Path) -> None:
    """Two requests one behind the other, each answered for longer than a request may take to arrive."""
    async with bounded(tmp_path, header_timeout_s=0.2, body_timeout_s=0.2, max_header_bytes=2048) as (server, port):
        server.engine.token_delay_s = 0.1
        secret = server.admin.headers["authorization"]
        body = json.dumps({"messages": HELLO, "stream": True, "max_tokens": 8})
        lines = [f"POST {CHAT} HTTP/1.1", "host: x", "content-type: application/json", f"authorization: {secret}"]
        first, last = (
            "\r\n".join([*lines, f"connection: {then}", f"content-length: {len(body)}", "", body]).encode()
            for then in ("keep-alive", "close")
        )
        answer = await exchange(port, first + last)
        assert (answer.count(b"HTTP/1.1 200 OK"), answer.count(b"data: [DONE]")) == (2, 2)


async def test_a_proxy_is_believed_only_where_it_is_trusted() -> None:
    from plaudit_server.settings import Settings

    trusting = Settings(trusted_proxies="10.0.0.0/8, 127.0.0.1")  # type: ignore[arg-type]  # as the environment has it
    assert trusting.trusted_proxies == ["10.0.0.0/8", "127.0.0.1"]
    config = uvicorn.Config("x", forwarded_allow_ips=trusting.trusted_proxies)
    assert config.forwarded_allow_ips == ["10.0.0.0/8", "127.0.0.1"]
