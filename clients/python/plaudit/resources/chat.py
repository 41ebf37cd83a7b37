"""Chatting, and the answers that were kept."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypedDict, Unpack

from plaudit._binding import D_co, Resource, endpoint, pages, streaming
from plaudit._chat import ChatCompletion, read_completion
from plaudit._core import Call, Reply, ask, delete, encode, get, segment
from plaudit.errors import InvalidRequestError
from plaudit.wire.base import Page
from plaudit.wire.chat import ChatRequest, Deleted, ModelCard, StoredCompletion

Messages = str | Sequence[Mapping[str, Any]]
"""A conversation in OpenAI's shape, or a string: a single user message."""

PATH = "/v1/chat/completions"


class ChatOptions(TypedDict, total=False):
    """Arguments of `chat.create` and `chat.stream`. What is left out is the server's to choose.

    Attributes:
        model: `policy` (the default), or pinned: `policy@v42`, `policy@canary`, `policy@base`.
        max_tokens: longest answer, in tokens.
        n: answers wanted.
        store: False: neither logged nor learnt from, and cannot be rated.
        train: whether the exchange may be learnt from; left out, the server's setting decides.
        metadata: kept with the answer.
        user: who asks, for sticky assignment; the server keeps a keyed hash of it.
        session: the same, where there is no user.
        timeout: seconds to wait, instead of the client's own.
        extra_body: anything else that the engine understands, such as `{"top_k": 20}`.
    """

    model: str
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    n: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    logprobs: bool | None
    top_logprobs: int | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    response_format: Mapping[str, Any] | None
    stream_options: Mapping[str, Any] | None
    store: bool | None
    train: bool | None
    metadata: Mapping[str, str] | None
    user: str | None
    session: str | None
    timeout: float | None
    extra_body: Mapping[str, Any] | None


class Chat(Resource[D_co]):
    """`client.chat`."""

    @endpoint
    def create(self, messages: Messages, **options: Unpack[ChatOptions]) -> Call[ChatCompletion]:
        """Ask, and wait for the whole answer: `.text`, `.response_id`, `.version`.

        Raises:
            ServiceUnavailableError: the engine is not ready, and did not become so while it was tried again.
        """
        return _prepare(messages, options, Call("POST", PATH, read_completion))

    @streaming
    def stream(self, messages: Messages, **options: Unpack[ChatOptions]) -> Call[Reply]:
        """Ask, and get the answer as it is spoken. Returns once the server has accepted.

        It is tried again only up to there, never after a piece has arrived.
        """
        return _prepare(messages, options, Call("POST", PATH, _as_it_is, stream=True))

    @endpoint
    def models(self) -> Call[Page[ModelCard]]:
        """The names that a request may ask for."""
        return get("/v1/models", Page[ModelCard])

    @endpoint
    def model(self, name: str) -> Call[ModelCard]:
        """What one of these names stands for now."""
        return get(f"/v1/models/{segment(name)}", ModelCard)


class Completions(Resource[D_co]):
    """`client.completions`: answers that were stored."""

    @endpoint
    def list(
        self,
        *,
        version: str | None = None,
        user: str | None = None,
        since: datetime | None = None,
        metadata: Mapping[str, str] | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Call[Page[StoredCompletion]]:
        """Stored answers, newest first; with `metadata`, those that carry all of it."""
        carried = {f"metadata[{name}]": value for name, value in (metadata or {}).items()}
        page = Page[StoredCompletion]
        return get(PATH, page, version=version, user=user, since=since, limit=limit, after=after, **carried)

    iterate = pages(list)

    @endpoint
    def get(self, response_id: str) -> Call[StoredCompletion]:
        """One stored answer."""
        return get(f"{PATH}/{segment(response_id)}", StoredCompletion)

    @endpoint
    def delete(self, response_id: str) -> Call[Deleted]:
        """Erase one stored answer."""
        return delete(f"{PATH}/{segment(response_id)}", Deleted)


def _prepare(messages: Messages, options: ChatOptions, call: Call[Any]) -> Call[Any]:
    fields: dict[str, Any] = dict(options)
    session, timeout_s, extra = (fields.pop(name, None) for name in ("session", "timeout", "extra_body"))
    conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    fields |= {"messages": conversation, **(extra or {})} | ({"stream": True} if call.stream else {})
    headers = _session_header(session) | ({"accept": "text/event-stream"} if call.stream else {})
    return replace(call, body=encode(ask(ChatRequest, **fields)), headers=headers, timeout_s=timeout_s)


def _session_header(session: str | None) -> dict[str, str]:
    if session is None:
        return {}
    if not (session.isascii() and session.isprintable()):
        raise InvalidRequestError("session: printable ASCII only, since it travels as a header; or use user=")
    return {"x-session-id": session}


def _as_it_is(reply: Reply) -> Reply:
    return reply
