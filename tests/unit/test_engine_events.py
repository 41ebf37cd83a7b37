"""Chunks that are cut by position: the same for the caller and for the log as chunks that are parsed."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit_server.engine.events import MOST_KEPT, EventRewriter
from plaudit_server.engine.trace import Tracer
from tests.support.streams import BRAND, payloads

RECORDED = (Path(__file__).parents[1] / "support" / "recorded" / "vllm_0_32_chunks.jsonl").read_bytes().splitlines()
HEAD = {"id": "chatcmpl-r", "object": "chat.completion.chunk", "created": 1764000000, "model": "v7-0a1b"}


def slow(body: Any, payloads_: list[bytes]) -> tuple[list[Any], Tracer]:
    """Every chunk parsed, changed and written again."""
    tracer = Tracer(body, version="v7")
    chunks = [tracer.chunk(orjson.loads(payload)) for payload in payloads_]
    tracer.end()
    return [BRAND.on(chunk) for chunk in chunks if chunk is not None], tracer


def rewritten(body: Any, stream: bytes, size: int = 1_000_000) -> tuple[bytes, EventRewriter, Tracer]:
    """The stream through the rewriter, in pieces of `size` bytes."""
    tracer = Tracer(body, version="v7")
    rewriter = EventRewriter(tracer, BRAND)
    out = b"".join(rewriter.feed(stream[at : at + size]) for at in range(0, len(stream), size))
    rewriter.settle()
    tracer.end()
    return out, rewriter, tracer


def as_stream(chunks: list[bytes]) -> bytes:
    return b"".join(b"data: " + chunk + b"\n\n" for chunk in (*chunks, b"[DONE]"))


def same(body: Any, chunks: list[bytes], size: int = 1_000_000) -> EventRewriter:
    """Both ways agree on what is sent and on what is noted."""
    expected, slow_tracer = slow(body, chunks)
    out, rewriter, tracer = rewritten(body, as_stream(chunks), size)
    assert payloads(out) == expected
    assert tracer.trace.choices == slow_tracer.trace.choices
    assert (tracer.trace.prompt_ids, tracer.trace.usage) == (slow_tracer.trace.prompt_ids, slow_tracer.trace.usage)
    assert (tracer.trace.first_token_at is None) == (slow_tracer.trace.first_token_at is None)
    assert rewriter.done
    return rewriter


@pytest.mark.parametrize("size", [1, 7, 100, 1_000_000])
def test_what_vllm_writes_is_cut_and_stays_the_same(size: int) -> None:
    rewriter = same({"messages": []}, RECORDED, size)
    assert rewriter.cut == 2, "the first chunk, and the one whose text has no \\u escape"


def test_what_is_cut_has_the_bytes_that_parsing_would_give() -> None:
    out, rewriter, _ = rewritten({"messages": []}, as_stream([RECORDED[0], RECORDED[2]]))
    expected, _ = slow({"messages": []}, [RECORDED[0], RECORDED[2]])
    assert rewriter.parsed == 0
    assert out == b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in expected)


@pytest.mark.parametrize(
    "body", [{"logprobs": True}, {"return_token_ids": True}, {"stream_options": {"include_usage": True}}]
)
def test_what_the_caller_asked_for_stays(body: Any) -> None:
    rewriter = same({"messages": []} | body, RECORDED)
    assert rewriter.parsed >= (2 if "stream_options" in body else len(RECORDED))


SNARES = ['","logprobs":{"content":[', '}]}\n\ndata: {"id"', "\\", '"', "\u2028", "答案", '\\"},"logprobs":', "[DONE]"]
texts = st.one_of(st.text(max_size=12), st.sampled_from(SNARES))
MORE: list[Any] = [{}, {}, {"prompt_token_ids": [1, 2], "prompt_text": None}, {"usage": {"completion_tokens": 1}}]
finite = st.floats(max_value=0, allow_nan=False, allow_infinity=False)


@st.composite
def tokens(draw: st.DrawFn) -> dict[str, Any]:
    text = draw(texts)
    entry: dict[str, Any] = {"token": text, "logprob": draw(finite), "bytes": list(text.encode())}
    if draw(st.integers(0, 9)) == 0:
        del entry["logprob"]
    return entry | {"top_logprobs": draw(st.sampled_from([[], [], [], [{"token": "x", "logprob": -1.0}]]))}


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    """A chunk: mostly as vLLM writes it, sometimes with something more, missing or in another form."""
    drawn = draw(st.lists(tokens(), max_size=3))
    delta: dict[str, Any] = draw(
        st.sampled_from([{}, {"role": "assistant"}, {"reasoning": "hm"}, {"logprobs": 1}, {"role": "user"}])
    ) | {"content": draw(st.one_of(texts, st.none()))}
    if draw(st.integers(0, 9)) == 0:
        delta["tool_calls"] = [{"index": 0, "id": "c", "function": {"name": "f", "arguments": draw(texts)}}]
    choice: dict[str, Any] = {"index": draw(st.integers(0, 2)), "delta": delta}
    choice["logprobs"] = {"content": drawn} if draw(st.booleans()) else None
    choice["finish_reason"] = draw(st.sampled_from([None, None, "stop", "tool_calls"]))
    choice |= draw(st.sampled_from([{}, {}, {"stop_reason": None}, {"stop_reason": 2}, {"stop_reason": "a\nb"}]))
    choice |= draw(st.sampled_from([{}, {"token_ids": None}, {"token_ids": list(range(len(drawn)))}]))
    choice |= draw(st.sampled_from([{}, {}, {}, {"routed_experts": "eA=="}]))
    more: dict[str, Any] = draw(st.sampled_from(MORE))
    choices = [choice] * draw(st.sampled_from([1, 1, 1, 1, 0, 2]))
    chunk = HEAD | {"choices": choices} | more
    compact = draw(st.integers(0, 9)) > 0
    ascii_only = draw(st.integers(0, 9)) == 0
    return json.dumps(chunk, ensure_ascii=ascii_only, separators=(",", ":") if compact else None).encode()


@settings(deadline=None, max_examples=300)
@given(st.lists(chunks(), max_size=8), st.sampled_from([5, 64, 1_000_000]), st.sampled_from([{}, {"logprobs": True}]))
def test_cut_or_parsed_makes_no_difference(made: list[bytes], size: int, asked: dict[str, Any]) -> None:
    same({"messages": []} | asked, made, size)


def test_the_first_token_is_timed_when_it_comes_and_not_when_it_is_parsed() -> None:
    tracer = Tracer({"messages": []}, version="v7")
    rewriter = EventRewriter(tracer, BRAND, clock=lambda: 42.0)
    rewriter.feed(b"data: " + RECORDED[0] + b"\n\n")
    assert tracer.trace.first_token_at is None, "the first chunk has a role and no token"
    rewriter.feed(b"data: " + RECORDED[2] + b"\n\n")
    assert tracer.trace.first_token_at == 42.0
    assert tracer.trace.choices == {}, "not parsed yet"
    rewriter.settle()
    assert tracer.trace.choices[0].response_ids == [5]


def test_a_long_answer_is_parsed_on_its_way() -> None:
    tracer = Tracer({"messages": []}, version="v7")
    rewriter = EventRewriter(tracer, BRAND)
    event = b"data: " + RECORDED[2] + b"\n\n"
    for _ in range(3 * MOST_KEPT // len(event)):
        rewriter.feed(event)
        assert rewriter._kept_bytes <= MOST_KEPT
    assert len(tracer.trace.choices[0].response_ids) > 0
    assert rewriter.parsed == 0


@pytest.mark.parametrize(
    ("payload", "words"), [(b'{"error":{"message":"it broke"}}', "it broke"), (b"{not json", "not JSON")]
)
def test_what_came_before_a_failure_is_sent_and_nothing_after_it(payload: bytes, words: str) -> None:
    out, rewriter, tracer = rewritten({"messages": []}, as_stream([RECORDED[2], payload, RECORDED[2]]))
    assert len(payloads(out)) == 1
    assert rewriter.failure is not None and words in rewriter.failure.message
    assert not rewriter.done
    assert tracer.trace.choices[0].response_ids == [5]


def test_bytes_that_are_no_text_are_a_failure_and_not_forwarded() -> None:
    broken = RECORDED[2].replace(b'"content":""', b'"content":"\xff"')
    out, rewriter, _ = rewritten({"messages": []}, as_stream([broken]))
    assert out == b"" and rewriter.failure is not None


@pytest.mark.parametrize(
    "odd", [b'"token_ids":[05]', b'"token_ids":[5,,6]', b'"token_ids":[5,]', b'"token_ids":[123456789012345678901]']
)
def test_what_might_not_be_parsed_later_is_parsed_at_once(odd: bytes) -> None:
    payload = RECORDED[2].replace(b'"token_ids":[5]', odd)
    assert payload != RECORDED[2]
    _, rewriter, _ = rewritten({"messages": []}, as_stream([payload]))
    assert (rewriter.cut, rewriter.parsed) == (0, 1)


@pytest.mark.parametrize("logprob", [b"-1e999", b"-00.1", b"-.1", b"-1.", b"NaN", b"-Infinity"])
def test_numbers_that_are_none(logprob: bytes) -> None:
    payload = RECORDED[2].replace(b"-0.000012345", logprob)
    assert payload != RECORDED[2]
    _, rewriter, _ = rewritten({"messages": []}, as_stream([payload]))
    assert (rewriter.cut, rewriter.parsed) == (0, 1)
