"""Streams of an engine, read as a caller reads them."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import orjson

from plaudit_server.engine.base import Brand, ChatStream

BRAND = Brand("chatcmpl-ours", 1764000001, "policy@v7", "v7-0a1b2c3d")


def payloads(events: bytes) -> list[Any]:
    """What server-sent events carry."""
    return [orjson.loads(event.removeprefix(b"data: ")) for event in events.split(b"\n\n") if event]


async def each_chunk(stream: ChatStream) -> AsyncIterator[Any]:
    """Chunks as they come."""
    async with aclosing(stream.events(BRAND)) as pieces:
        async for events in pieces:
            for chunk in payloads(events):
                yield chunk


async def all_chunks(stream: ChatStream) -> list[Any]:
    """All of them; the stream is closed afterwards and its trace whole."""
    try:
        return [chunk async for chunk in each_chunk(stream)]
    finally:
        await stream.aclose()
