"""Streams: bytes cut anywhere, ends that come too early, and who may be asked again."""

import json
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit import APIConnectionError, APIResponseError, AsyncPlaudit, Plaudit, ServiceUnavailableError
from plaudit._sse import SSEDecoder
from tests.support import sdk_harness as h


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest) -> h.Caller:
    return h.Caller(request.param)


class Bytes(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body in given pieces that may break, and remembers being closed."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.pieces = pieces
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1


def reply(body: Bytes) -> httpx.Response:
    return httpx.Response(200, stream=body, headers={"content-type": "text/event-stream"} | h.ANSWER_HEADERS)


TALK = h.sse(h.chunk_json(), h.chunk_json("Pa"), h.chunk_json("ris 👍."), h.chunk_json(finish="stop"))


async def read(client: Any) -> tuple[Any, list[Any]]:
    stream = await h.settled(client.chat.stream("Capital?"))
    return stream, await h.chunks_of(stream)


async def test_a_stream_gives_its_chunks_and_facts(caller: h.Caller) -> None:
    script = h.Script(h.streamed(TALK))
    stream, chunks = await caller(script, read)
    assert [chunk.text for chunk in chunks] == ["", "Pa", "ris 👍.", ""]
    assert (stream.text, stream.finish_reason, stream.version) == ("Paris 👍.", "stop", "v1")
    assert (stream.response_id, stream.arm, stream.request_id) == (h.ANSWER_ID, "stable", "req-1")
    assert script.bodies[0]["stream"] is True
    assert "idempotency-key" not in script.requests[0].headers


@given(cuts=st.lists(st.integers(0, len(TALK)), max_size=40))
def test_cuts_anywhere_change_nothing(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(TALK)]
    pieces = [TALK[a:b] for a, b in pairwise(edges)]
    with Plaudit(h.URL, "plk_x", transport=httpx.MockTransport(lambda _: reply(Bytes(*pieces)))) as client:
        assert client.chat.stream("x").read() == "Paris 👍."


data_text = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1)


@given(
    events=st.lists(data_text, max_size=6),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    bom=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=20),
)
def test_the_decoder_finds_every_event(events: list[str], ending: str, bom: bool, cuts: list[int]) -> None:
    text = "".join(f": note{ending}event: x{ending}data: {event}{ending}{ending}" for event in events)
    raw = (b"\xef\xbb\xbf" if bom else b"") + text.encode()
    edges = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    decoder = SSEDecoder()
    found = [event for a, b in pairwise(edges) for event in decoder.feed(raw[a:b])]
    assert found == events


def test_lines_of_one_event_are_joined_and_an_unfinished_event_is_dropped() -> None:
    assert SSEDecoder().feed(b"data: a\ndata:b\n\ndata: lost") == ["a\nb"]


def test_an_endless_event_is_refused() -> None:
    decoder = SSEDecoder()
    with pytest.raises(ValueError, match="not an event stream"):
        for _ in range(40):
            decoder.feed(b"x" * (1 << 20))


@pytest.mark.parametrize("pieces", [(TALK[:200],), (TALK[:200], httpx.ReadError("reset")), (b"",)])
async def test_a_stream_that_ends_early_raises_and_is_not_asked_again(caller: h.Caller, pieces: Any) -> None:
    body = Bytes(*pieces)
    script = h.Script(reply(body))
    with pytest.raises(APIConnectionError, match="broke off"):
        await caller(script, read)
    assert len(script.requests) == 1
    assert body.closed


async def test_before_the_first_byte_it_is_asked_again(caller: h.Caller) -> None:
    script = h.Script(httpx.ConnectError("refused"), h.refusal(503, retry_after="1"), h.streamed(TALK))
    stream, _ = await caller(script, read)
    assert stream.text == "Paris 👍."
    assert len(script.requests) == 3


async def test_an_error_inside_the_stream_is_raised_by_its_type(caller: h.Caller) -> None:
    error = {"error": {"message": "engine died", "type": "overloaded_error", "code": "engine_unavailable"}}
    body = Bytes(h.sse(h.chunk_json("Pa"), error, done=False))
    with pytest.raises(ServiceUnavailableError, match="engine died") as caught:
        await caller(h.Script(reply(body)), read)
    assert (caught.value.code, caught.value.request_id) == ("engine_unavailable", "req-1")
    assert body.closed


@pytest.mark.parametrize("content", [b"data: {not json}\n\n", b'data: {"no": "chunk"}\n\n', b"data: 7\n\n"])
async def test_events_that_are_no_chunks_are_named(caller: h.Caller, content: bytes) -> None:
    with pytest.raises(APIResponseError):
        await caller(h.Script(h.streamed(content)), read)


async def test_an_answer_that_is_no_stream_is_named_and_closed(caller: h.Caller) -> None:
    body = Bytes(json.dumps(h.completion_json()).encode())
    page = httpx.Response(200, stream=body, headers={"content-type": "text/html"})
    with pytest.raises(APIResponseError, match="text/html"):
        await caller(h.Script(page), read)
    assert body.closed


async def test_leaving_early_closes_the_connection(caller: h.Caller) -> None:
    body = Bytes(TALK[:250], TALK[250:])

    async def leave(client: Any) -> None:
        stream = await h.settled(client.chat.stream("x"))
        if caller.kind == "sync":
            with stream:
                next(iter(stream))
        else:
            async with stream:
                await anext(aiter(stream))

    await caller(h.Script(reply(body)), leave)
    assert body.closed


def test_breaking_out_of_the_loop_closes_the_connection() -> None:
    body = Bytes(TALK[:250], TALK[250:])
    with Plaudit(h.URL, "plk_x", transport=httpx.MockTransport(lambda _: reply(body))) as client:
        stream = client.chat.stream("x")
        for _ in stream:
            break
        assert body.closed
        assert list(stream) == []


class Ending(httpx.AsyncByteStream):
    """A body that knows whether it was read to its end."""

    ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield h.sse(h.chunk_json("Hello.", "stop"))
        self.ended = True


async def test_an_async_stream_is_read_past_done() -> None:
    """One left half-way is ended by the garbage collector, in Chainlit at the cost of the task that read it."""
    body = Ending()
    reply = httpx.Response(200, stream=body, headers={"content-type": "text/event-stream"})
    async with AsyncPlaudit(h.URL, "plk_test", transport=httpx.MockTransport(lambda _: reply)) as client:
        stream = await client.chat.stream("Hello?")
        assert [chunk.text async for chunk in stream] == ["Hello."]
        assert body.ended
