"""Chat answers as OpenAI has them, with what Plaudit adds: which version spoke, and the id to rate."""

import json
from collections.abc import Mapping

from pydantic import ConfigDict, Field, PrivateAttr, ValidationError

from plaudit._core import Reply, error_from
from plaudit._sse import SSEDecoder
from plaudit.errors import APIConnectionError, APIResponseError
from plaudit.wire.base import JsonObject, ResponseModel

DONE = "[DONE]"


class _Open(ResponseModel):
    model_config = ConfigDict(extra="allow")


class ChatMessage(_Open):
    """What the model said."""

    role: str = "assistant"
    content: str | None = None
    tool_calls: list[JsonObject] | None = None


class ChatChoice(_Open):
    """One of the n answers."""

    index: int = 0
    message: ChatMessage
    finish_reason: str | None = None
    logprobs: JsonObject | None = None


class ChatCompletion(_Open):
    """A whole answer.

    `text` and `response_id` are of the first choice; `response_ids` has one for each choice.
    """

    id: str
    model: str
    choices: list[ChatChoice] = Field(min_length=1)
    created: int | None = None
    usage: JsonObject | None = None
    system_fingerprint: str | None = None
    _headers: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @property
    def text(self) -> str:
        """What the first choice says."""
        return self.choices[0].message.content or ""

    @property
    def response_id(self) -> str:
        """The id to rate."""
        return self.id

    @property
    def response_ids(self) -> list[str]:
        """The id to rate of each choice."""
        return [choice_id(self.id, choice.index) for choice in self.choices]

    @property
    def version(self) -> str | None:
        """The version that spoke, such as `v42`."""
        return self._headers.get("x-model-version") or version_of(self.model)

    @property
    def arm(self) -> str | None:
        """`stable`, `canary` or `pinned`."""
        return self._headers.get("x-rollout-arm")

    @property
    def feedback_token(self) -> str | None:
        """A token that may rate this answer and nothing else."""
        return self._headers.get("x-feedback-token")

    @property
    def compare_with(self) -> str | None:
        """The model whose answer to the same messages the server asks to show beside this one; mostly None."""
        return self._headers.get("x-compare-with")

    @property
    def request_id(self) -> str | None:
        """What to look for in the server's log."""
        return self._headers.get("x-request-id")


class ChatDelta(_Open):
    """What a chunk adds."""

    role: str | None = None
    content: str | None = None
    tool_calls: list[JsonObject] | None = None


class ChunkChoice(_Open):
    """One choice's part of a chunk."""

    index: int = 0
    delta: ChatDelta = Field(default_factory=ChatDelta)
    finish_reason: str | None = None


class ChatChunk(_Open):
    """One event of a streamed answer."""

    id: str
    model: str = ""
    choices: list[ChunkChoice] = Field(default_factory=list)
    usage: JsonObject | None = None
    system_fingerprint: str | None = None

    @property
    def text(self) -> str:
        """What it adds to the first choice; empty for the chunks that carry only a role, a reason or the usage."""
        return "".join(choice.delta.content or "" for choice in self.choices if choice.index == 0)


def version_of(model: str) -> str | None:
    """`v42` of `policy@v42`."""
    return model.partition("@")[2] or None


def choice_id(completion_id: str, index: int) -> str:
    """The id of one choice's answer: the completion's, and `.k` behind it for choice k > 0."""
    return completion_id if index == 0 else f"{completion_id}.{index}"


def read_completion(reply: Reply) -> ChatCompletion:
    """A completion with the headers that came along. A ValueError where it is none."""
    completion = ChatCompletion.model_validate_json(reply.body)
    completion._headers = reply.headers
    return completion


class StreamReader:
    """A streamed answer while it comes in: bytes to chunks, and what is known so far. No I/O.

    Attributes:
        text: what the first choice has said so far.
        finish_reason: of the first choice; None while it speaks.
        usage: token counts, where they were asked for.
        done: whether the server said that the stream is complete.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers
        self.text = ""
        self.finish_reason: str | None = None
        self.usage: JsonObject | None = None
        self.done = False
        self.completion_id: str | None = None
        self.model = ""
        self._events = SSEDecoder()

    @property
    def version(self) -> str | None:
        """The version that speaks."""
        return self.headers.get("x-model-version") or version_of(self.model)

    def feed(self, raw: bytes) -> list[ChatChunk]:
        """The chunks completed by these bytes.

        Raises:
            APIStatusError: the server reported an error inside the stream.
            APIResponseError: this is no stream of chat completion chunks.
        """
        kind = self.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            raise APIResponseError(f"Wanted a stream of events, got {kind!r}. Is the address Plaudit's?")
        try:
            events = self._events.feed(raw)
        except ValueError as error:
            raise APIResponseError(f"The stream cannot be read: {error}") from None
        chunks = []
        for data in events:
            if data == DONE:
                self.done = True
            elif not self.done:
                chunks.append(self._chunk(data))
        return chunks

    def finish(self) -> None:
        """Call at the end of the bytes.

        Raises:
            APIConnectionError: the stream ended before the answer did.
        """
        if not self.done:
            raise APIConnectionError(
                f"The answer broke off after {len(self.text)} characters: the server or the engine stopped. Ask again."
            )

    def _chunk(self, data: str) -> ChatChunk:
        try:
            parsed = json.loads(data)
            if isinstance(parsed, dict) and isinstance(parsed.get("error"), dict):
                raise error_from(parsed["error"], request_id=self.headers.get("x-request-id"))
            chunk = ChatChunk.model_validate(parsed)
        except (ValidationError, json.JSONDecodeError) as error:
            raise APIResponseError(f"The stream holds an event that is no chat chunk: {data[:80]!r}") from error
        self._note(chunk)
        return chunk

    def _note(self, chunk: ChatChunk) -> None:
        self.completion_id = self.completion_id or chunk.id
        self.model = chunk.model or self.model
        self.usage = chunk.usage or self.usage
        self.text += chunk.text
        for choice in chunk.choices:
            if choice.index == 0:
                self.finish_reason = choice.finish_reason or self.finish_reason


class StreamFacts:
    """What is known of a streamed answer; grows while it is read."""

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader

    @property
    def text(self) -> str:
        """What the first choice has said so far."""
        return self._reader.text

    @property
    def response_id(self) -> str | None:
        """The id to rate; known from the first chunk on."""
        return self._reader.completion_id

    @property
    def version(self) -> str | None:
        """The version that speaks, such as `v42`."""
        return self._reader.version

    @property
    def arm(self) -> str | None:
        """`stable`, `canary` or `pinned`."""
        return self._reader.headers.get("x-rollout-arm")

    @property
    def feedback_token(self) -> str | None:
        """A token that may rate this answer and nothing else."""
        return self._reader.headers.get("x-feedback-token")

    @property
    def compare_with(self) -> str | None:
        """The model whose answer to the same messages the server asks to show beside this one; mostly None."""
        return self._reader.headers.get("x-compare-with")

    @property
    def request_id(self) -> str | None:
        """What to look for in the server's log."""
        return self._reader.headers.get("x-request-id")

    @property
    def finish_reason(self) -> str | None:
        """`stop`, `length` or `tool_calls`; None while it speaks."""
        return self._reader.finish_reason

    @property
    def usage(self) -> JsonObject | None:
        """Token counts, where `stream_options={"include_usage": True}` asked for them."""
        return self._reader.usage
