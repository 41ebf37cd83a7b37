"""From vLLM's chat answers to what the caller asked for and what was really drawn. No input or output here.

We always ask vLLM for token ids, log-probabilities and usage. `Tracer` notes them in a `ChatTrace` while an answer
passes through and takes out again what the caller did not ask for.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import orjson

from plaudit.wire.base import JsonObject
from plaudit_server.engine.base import ChatTrace, ChoiceTrace

MISSING_LOGPROB = -9999.0
"""What vLLM writes where it has no log-probability, or minus infinity."""

_OURS = ("priority", "request_id", "kv_transfer_params", "ec_transfer_params")
"""Fields of vLLM that only we may set: they jump its queue or reach into its caches."""

_INTERNALS = ("prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params", "metrics")


class SseParser:
    """Server-sent events from bytes. Lines end in LF only: httpx's own splitter also breaks at U+2028 inside JSON."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payload of each `data:` line completed by these bytes."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


class Tracer:
    """One chat request: its body for the engine, and its answer for the caller."""

    def __init__(self, body: JsonObject, *, version: str) -> None:
        self.trace = ChatTrace()
        self._version = version
        self._body = body
        self._wants_logprobs = bool(body.get("logprobs"))
        self._wants_ids = bool(body.get("return_token_ids"))
        options = body.get("stream_options")
        self._wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))

    @property
    def wants_everything(self) -> bool:
        """Whether the caller asked for something that we would otherwise take out."""
        return self._wants_logprobs or self._wants_ids

    def request(self, model: str, *, stream: bool) -> dict[str, Any]:
        """The body for vLLM, which knows the version as `model`."""
        body: dict[str, Any] = {name: value for name, value in self._body.items() if name not in _OURS}
        body |= {"model": model, "stream": stream, "logprobs": True, "return_token_ids": True, "priority": 0}
        if not self._wants_logprobs:
            body.pop("top_logprobs", None)
        body.pop("stream_options", None)
        if stream:
            given = self._body.get("stream_options")
            body["stream_options"] = {**(given if isinstance(given, dict) else {}), "include_usage": True}
        return body

    def whole(self, answer: dict[str, Any]) -> JsonObject:
        """Note a whole answer; returns it as the caller wants it."""
        self.trace.prompt_ids = answer.get("prompt_token_ids")
        self.trace.usage = answer.get("usage")
        for choice in answer["choices"]:
            self._note(choice, choice["message"])
            self._strip_choice(choice)
        self._finish()
        return self._strip(answer)

    def note(self, chunk: dict[str, Any]) -> None:
        """Note a chunk that the caller has already."""
        if chunk.get("prompt_token_ids") is not None:
            self.trace.prompt_ids = chunk["prompt_token_ids"]
        if chunk.get("usage") is not None:
            self.trace.usage = chunk["usage"]
        for choice in chunk["choices"]:
            if choice.get("token_ids") and self.trace.first_token_at is None:
                self.trace.first_token_at = time.monotonic()
            self._note(choice, choice["delta"])

    def chunk(self, chunk: dict[str, Any]) -> JsonObject | None:
        """Note a chunk; returns it as the caller wants it, or None where it has nothing for them."""
        self.note(chunk)
        if chunk.get("usage") is not None and not self._wants_usage:
            chunk.pop("usage")
            if not chunk["choices"]:
                return None
        for choice in chunk["choices"]:
            self._strip_choice(choice)
        return self._strip(chunk)

    def end(self) -> None:
        """The stream has ended, in whatever way: settle what is known."""
        self._finish()

    def _note(self, choice: dict[str, Any], message: dict[str, Any]) -> None:
        seen = self.trace.choices.setdefault(choice["index"], ChoiceTrace(choice["index"]))
        ids = choice.get("token_ids") or []
        seen.response_ids += ids
        logprobs = drawn_logprobs(choice.get("logprobs"))
        if logprobs is None and ids:
            seen.logprobs = None
        elif seen.logprobs is not None and logprobs is not None:
            seen.logprobs += logprobs
        seen.text += message.get("content") or ""
        _merge_tool_calls(seen.tool_calls, message.get("tool_calls") or [])
        seen.finish_reason = choice.get("finish_reason") or seen.finish_reason

    def _finish(self) -> None:
        for choice in self.trace.choices.values():
            if choice.logprobs is not None and len(choice.logprobs) != len(choice.response_ids):
                choice.logprobs = None

    def _strip_choice(self, choice: dict[str, Any]) -> None:
        if not self._wants_logprobs and choice.get("logprobs") is not None:
            choice["logprobs"] = None
        if not self._wants_ids:
            choice.pop("token_ids", None)
        choice.pop("routed_experts", None)

    def _strip(self, answer: dict[str, Any]) -> JsonObject:
        for name in _INTERNALS:
            if name != "prompt_token_ids" or not self._wants_ids:
                answer.pop(name, None)
        if answer.get("prompt_logprobs") is None:
            answer.pop("prompt_logprobs", None)
        answer["model"] = self._version
        return answer


def drawn_logprobs(logprobs: dict[str, Any] | None) -> list[float] | None:
    """Log-probabilities of the drawn tokens; None where any is missing."""
    content = (logprobs or {}).get("content")
    if content is None:
        return None
    values = [entry.get("logprob") for entry in content]
    if values and set(map(type, values)) == {float} and math.isfinite(sum(values)) and min(values) > MISSING_LOGPROB:
        return values  # the usual, without a call for each of them
    return values if all(map(is_logprob, values)) else None


def is_logprob(value: object) -> bool:
    """Whether this is a log-probability and not one of the ways of saying that there is none."""
    return isinstance(value, int | float) and math.isfinite(value) and value > MISSING_LOGPROB


def _merge_tool_calls(calls: list[Any], deltas: list[dict[str, Any]]) -> None:
    """Streams bring a call in pieces, told apart by `index`; whole answers bring it at once."""
    for place, delta in enumerate(deltas):
        index = delta.get("index", place)
        while len(calls) <= index:
            calls.append({"id": None, "type": "function", "function": {"name": None, "arguments": ""}})
        call, function = calls[index], delta.get("function") or {}
        call["id"] = delta.get("id") or call["id"]
        call["function"]["name"] = function.get("name") or call["function"]["name"]
        call["function"]["arguments"] += function.get("arguments") or ""


def read_json(payload: bytes) -> dict[str, Any]:
    """One JSON object of vLLM's."""
    parsed: dict[str, Any] = orjson.loads(payload)
    return parsed
