"""What passes between caller and vLLM: nothing of ours leaks out, nothing drawn is lost or invented."""

from typing import Any

import orjson
import pytest

from plaudit_server.engine.trace import SseParser, Tracer, drawn_logprobs


def entry(logprob: float, token: str = "a") -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": [97], "top_logprobs": []}


def whole(*, logprobs: list[float], ids: list[int]) -> dict[str, Any]:
    """A chat answer as vLLM 0.32 writes it."""
    return {
        "id": "chatcmpl-1",
        "model": "v7-0a1b2c3d",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Paris."},
                "logprobs": {"content": [entry(p) for p in logprobs]},
                "finish_reason": "stop",
                "token_ids": ids,
                "routed_experts": None,
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        "prompt_token_ids": [1, 2, 3],
        "prompt_logprobs": None,
        "prompt_text": None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def chunk(choices: list[dict[str, Any]], **rest: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "v7-0a1b2c3d", "choices": choices, **rest}


def piece(text: str, ids: list[int], logprobs: list[float], index: int = 0, **rest: Any) -> dict[str, Any]:
    return {
        "index": index,
        "delta": {"content": text},
        "logprobs": {"content": [entry(p) for p in logprobs]},
        "token_ids": ids,
        "finish_reason": None,
        **rest,
    }


def test_we_always_ask_for_ids_and_logprobs_at_the_best_priority() -> None:
    body = Tracer({"messages": [], "max_tokens": None, "top_k": 5}, version="v7").request("v7-0a1b2c3d", stream=False)

    assert body["model"] == "v7-0a1b2c3d"
    assert (body["logprobs"], body["return_token_ids"], body["priority"], body["stream"]) == (True, True, 0, False)
    assert body["top_k"] == 5 and body["max_tokens"] is None
    assert "stream_options" not in body


def test_callers_cannot_jump_the_queue_or_reach_into_caches() -> None:
    ours = {"priority": -9, "request_id": "x", "kv_transfer_params": {"a": 1}}
    body = Tracer({"messages": [], **ours}, version="base").request("base", stream=True)

    assert body["priority"] == 0
    assert "request_id" not in body and "kv_transfer_params" not in body


def test_a_whole_answer_is_traced_and_cleaned() -> None:
    tracer = Tracer({"messages": []}, version="v7")

    answer = tracer.whole(whole(logprobs=[-0.5, -0.25], ids=[10, 2]))

    assert answer["model"] == "v7"
    assert set(answer) == {"id", "model", "choices", "usage"}
    choice: Any = answer["choices"][0]  # type: ignore[index]
    assert choice["logprobs"] is None and "token_ids" not in choice
    assert tracer.trace.prompt_ids == [1, 2, 3]
    drawn = tracer.trace.choices[0]
    assert (drawn.response_ids, drawn.logprobs, drawn.text) == ([10, 2], [-0.5, -0.25], "Paris.")
    assert drawn.finish_reason == "stop"
    assert tracer.trace.usage == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_what_the_caller_asked_for_stays() -> None:
    tracer = Tracer({"messages": [], "logprobs": True, "return_token_ids": True}, version="v7")

    answer: Any = tracer.whole(whole(logprobs=[-0.5, -0.25], ids=[10, 2]))

    assert answer["prompt_token_ids"] == [1, 2, 3]
    assert answer["choices"][0]["token_ids"] == [10, 2]
    assert len(answer["choices"][0]["logprobs"]["content"]) == 2


@pytest.mark.parametrize("bad", [[-9999.0, -0.1], [float("nan"), -0.1], [float("-inf"), -0.1], [-0.1]])
def test_a_missing_logprob_is_never_invented(bad: list[float]) -> None:
    tracer = Tracer({"messages": []}, version="v7")

    tracer.whole(whole(logprobs=bad, ids=[10, 2]))

    assert tracer.trace.choices[0].logprobs is None
    assert tracer.trace.choices[0].response_ids == [10, 2]


def test_a_stream_is_put_together_for_each_choice() -> None:
    tracer = Tracer({"messages": [], "n": 2}, version="v7")
    chunks = [
        chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None}], prompt_token_ids=[1, 2]),
        chunk([piece("Par", [10], [-0.5])]),
        chunk([piece("Lon", [20], [-0.7], index=1)]),
        chunk([piece("is", [11, 2], [-0.1, -0.2], finish_reason="stop")]),
        chunk([piece("don", [21], [-0.9], index=1, finish_reason="length")]),
    ]

    passed = [tracer.chunk(c) for c in chunks]
    last = tracer.chunk(chunk([], usage={"completion_tokens": 5}))
    tracer.end()

    assert last is None, "usage was ours to ask for"
    assert all(c is not None and c["model"] == "v7" and "prompt_token_ids" not in c for c in passed)
    first, second = tracer.trace.choices[0], tracer.trace.choices[1]
    assert (first.text, first.response_ids, first.logprobs) == ("Paris", [10, 11, 2], [-0.5, -0.1, -0.2])
    assert (second.text, second.response_ids, second.finish_reason) == ("London", [20, 21], "length")
    assert tracer.trace.prompt_ids == [1, 2] and tracer.trace.usage == {"completion_tokens": 5}
    assert tracer.trace.first_token_at is not None


def test_a_stream_chunk_without_logprobs_leaves_none() -> None:
    tracer = Tracer({"messages": []}, version="base")
    tracer.chunk(chunk([piece("a", [10], [-0.5])]))
    tracer.chunk(chunk([{**piece("b", [11], []), "logprobs": None}]))
    tracer.chunk(chunk([piece("c", [12], [-0.5])]))
    tracer.end()

    assert tracer.trace.choices[0].logprobs is None
    assert tracer.trace.choices[0].response_ids == [10, 11, 12]


def test_usage_stays_where_asked_for() -> None:
    tracer = Tracer({"messages": [], "stream_options": {"include_usage": True}}, version="base")

    assert tracer.chunk(chunk([], usage={"completion_tokens": 5})) is not None


def test_tool_calls_are_merged_from_their_pieces() -> None:
    tracer = Tracer({"messages": []}, version="base")
    for delta in (
        {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Rome"}'}}]},
    ):
        tracer.chunk(chunk([{"index": 0, "delta": delta, "logprobs": None}]))

    (call,) = tracer.trace.choices[0].tool_calls
    assert call == {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_events_survive_any_cutting_and_odd_line_separators(size: int) -> None:
    payloads = [orjson.dumps({"t": "a\u2028b\x85c\x0bd"}), b"[DONE]"]
    raw = b"".join(b"data: " + p + b"\r\n\r\n" for p in payloads) + b": comment\n\n"
    parser = SseParser()

    seen = [p for at in range(0, len(raw), size) for p in parser.feed(raw[at : at + size])]

    assert seen == payloads


def test_logprobs_absent_are_none() -> None:
    assert drawn_logprobs(None) is None
    assert drawn_logprobs({"content": None}) is None
    assert drawn_logprobs({"content": []}) == []
