"""HTTP client of one vLLM server, over a Unix socket or a URL. Knows vLLM's endpoints; knows no versions."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Self

import orjson

from plaudit.wire.base import JsonObject
from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import GeneratedAnswer, GeneratePrompt, TokenSequence
from plaudit_server.engine.allowed import OnlyAllowed
from plaudit_server.engine.base import Brand, ChatTrace
from plaudit_server.engine.beside import Beside
from plaudit_server.engine.events import EventRewriter
from plaudit_server.engine.trace import Tracer, is_logprob, read_json
from plaudit_server.engine.wire import PooledWire, ReplyStream, Unreachable, Wire
from plaudit_server.errors import EngineError, EngineRefused, EngineUnavailable
from plaudit_server.tracing import outgoing_headers

TRAINER_PRIORITY = 10
"""vLLM serves lower numbers first; chats have 0."""

PROBE_PRIORITY = 5

_CALL_S = 60.0
_UNAVAILABLE = 503
_TOO_LONG = ("input_tokens", "input_text")
"""What the engines blame where a prompt leaves no room for an answer: no fields of ours."""
_MESSAGES = "messages"


class ReplicaClient:
    """Speaks to one vLLM server.

    Every call raises `EngineUnavailable` where the server cannot be reached, `EngineRefused` for its 4xx and
    `EngineError` for its 5xx.
    """

    def __init__(self, *, socket: Path | None = None, url: str = "http://engine", wire: Wire | None = None) -> None:
        self._wire: Wire = OnlyAllowed(wire or PooledWire(url if socket is None else f"unix://{socket}"))
        self._beside = Beside()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._wire.aclose()

    async def healthy(self, *, timeout_s: float = 5) -> bool:
        """Whether the server answers and its engine core lives."""
        with contextlib.suppress(Unreachable):
            return _is_success((await self._wire.send("GET", "/health", None, {}, limit_s=timeout_s)).status)
        return False

    async def models(self) -> set[str]:
        """Names that a request may ask for: the base's and those of loaded adapters."""
        listing = await self._call("GET", "/v1/models")
        return {card["id"] for card in listing["data"]}

    async def load_adapter(self, lora_name: str, folder: Path) -> None:
        """Load an adapter under a name never used before on this server."""
        await self._call("POST", "/v1/load_lora_adapter", {"lora_name": lora_name, "lora_path": str(folder)})

    async def unload_adapter(self, lora_name: str) -> None:
        """Take a name away. vLLM's workers keep the tensors until `call_workers('remove_lora', id)`."""
        await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": lora_name})

    async def pause(self) -> None:
        """Schedule nothing until `resume`. Answers that have begun are frozen, requests that come are queued."""
        await self._call("POST", "/pause?mode=keep")

    async def resume(self) -> None:
        """Go on after `pause`."""
        await self._call("POST", "/resume")

    async def forget_prefixes(self) -> None:
        """Empty the prefix cache, also of what frozen answers hold: they are computed anew when they go on.

        Raises:
            EngineError: it is not empty, so that old weights' keys and values would be read under new ones.
        """
        answer = await self._call("POST", "/reset_prefix_cache?reset_running_requests=true")
        if answer.get("success") is not True:
            raise EngineError("the engine could not empty its prefix cache")

    async def call_workers(self, method: str, *args: Any, timeout_s: float = 60) -> list[Any]:
        """Run a method of the worker extension in every worker; one result each."""
        body = {"method": method, "args": list(args), "timeout": timeout_s}
        answer = await self._call("POST", "/collective_rpc", body, limit_s=timeout_s + 5)
        results = answer.get("results")
        return results if isinstance(results, list) else []

    async def chat(
        self, body: JsonObject, *, model: str, version: str, request_id: str
    ) -> tuple[JsonObject, ChatTrace]:
        """One whole chat completion; see `Engine.chat`."""
        tracer = Tracer(body, version=version)
        request = tracer.request(model, stream=False)
        with self._beside.speaking():
            answer = await self._call("POST", "/v1/chat/completions", request, limit_s=None, request_id=request_id)
        return tracer.whole(answer), tracer.trace

    async def chat_stream(
        self, body: JsonObject, *, model: str, version: str, request_id: str, on_close: Callable[[], None]
    ) -> "ReplicaStream":
        """A chat completion, streamed. Returns once the server has accepted it; `on_close` is called once after it."""
        tracer = Tracer(body, version=version)
        body_bytes = orjson.dumps(tracer.request(model, stream=True))
        with contextlib.ExitStack() as until_closed:
            until_closed.enter_context(self._beside.speaking())
            try:
                reply = await self._wire.open("/v1/chat/completions", body_bytes, _headers(request_id))
            except Unreachable as error:
                raise _unreachable(error) from error
            if not _is_success(reply.status):
                content = await reply.read()
                reply.close()
                raise _refusal(reply.status, content)
            until_closed.callback(on_close)
            return ReplicaStream(reply, tracer, until_closed.pop_all().close)

    async def generate(
        self, prompts: Sequence[GeneratePrompt], *, model: str, n: int, sampling: SamplingParams
    ) -> list[GeneratedAnswer]:
        """Draw `n` answers to each prompt, in the prompts' order. A prompt that the server refuses is left out.

        Each answer is a request of its own: together, all to one prompt would go beside the users' at once.
        """
        tasks: list[asyncio.Task[GeneratedAnswer | None]] = []
        async with _unwrapped(), asyncio.TaskGroup() as group:
            for index, prompt in enumerate(prompts):
                for number in range(n):
                    # As vLLM has it for the n-th answer of one request.
                    seed = None if sampling.seed is None else sampling.seed + number
                    its = sampling.model_copy(update={"seed": seed})
                    tasks.append(group.create_task(self._draw(index, prompt, model, its)))
        return [answer for task in tasks if (answer := task.result()) is not None]

    async def _draw(
        self, index: int, prompt: GeneratePrompt, model: str, sampling: SamplingParams
    ) -> GeneratedAnswer | None:
        body = _sampling_body(sampling) | {"model": model, "priority": TRAINER_PRIORITY, "return_token_ids": True}
        async with self._beside.rollouts.enter():
            try:
                if prompt.prompt_ids is not None:
                    body |= {"prompt": prompt.prompt_ids, "logprobs": 0}
                    body.setdefault("max_tokens", None)
                    answer = await self._call("POST", "/v1/completions", body, limit_s=None)
                else:
                    body |= {"messages": prompt.messages, "logprobs": True}
                    answer = await self._call("POST", "/v1/chat/completions", body, limit_s=None)
            except EngineRefused:
                return None
        return _drawn(index, answer)

    async def score(self, sequences: Sequence[TokenSequence], *, model: str, priority: int) -> list[list[float]]:
        """Log-probability (nats) of each response token given what stands before it, at temperature 1.

        Raises:
            EngineError: the server left a log-probability out.
        """
        tasks: list[asyncio.Task[list[float]]] = []
        async with _unwrapped(), asyncio.TaskGroup() as group:
            for sequence in sequences:
                tasks.append(group.create_task(self._score_one(sequence, model, priority)))
        return [task.result() for task in tasks]

    async def _score_one(self, sequence: TokenSequence, model: str, priority: int) -> list[float]:
        # `prompt_logprobs: 0` gives each prompt token's own log-probability and no alternatives; vLLM insists on
        # drawing one token after it, which costs one decoding step and is thrown away.
        body = {
            "model": model,
            "prompt": [[*sequence.prompt_ids, *sequence.response_ids]],
            # For models with an encoder (hf/api.py). vLLM, whose models read both as one text, passes it over.
            "prompt_lengths": [len(sequence.prompt_ids)],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
            "priority": priority,
        }
        door = self._beside.scores if priority >= TRAINER_PRIORITY else self._beside.proofs
        async with door.enter():
            answer = await self._call("POST", "/v1/completions", body, limit_s=None, prompt_field="sequences")
        choices = answer["choices"]
        if len(choices) != 1:
            raise EngineError(f"the engine gave {len(choices)} answers to one sequence that it was to score")
        return _response_logprobs(sequence, choices[0])

    async def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        limit_s: float | None = _CALL_S,
        request_id: str | None = None,
        prompt_field: str = _MESSAGES,
    ) -> dict[str, Any]:
        content = None if body is None else orjson.dumps(body)
        try:
            reply = await self._wire.send(method, path, content, _headers(request_id), limit_s=limit_s)
        except Unreachable as error:
            raise _unreachable(error) from error
        if not _is_success(reply.status):
            raise _refusal(reply.status, reply.content, prompt_field)
        return read_json(reply.content) if reply.content[:1] == b"{" else {}


class ReplicaStream:
    """A streamed chat answer. Closing it closes the connection, on which vLLM aborts the generation."""

    def __init__(self, reply: ReplyStream, tracer: Tracer, on_close: Callable[[], None]) -> None:
        self._reply = reply
        self._tracer = tracer
        self._on_close = on_close
        self._closed = False
        self._rewriter: EventRewriter | None = None
        self.trace = tracer.trace

    async def events(self, brand: Brand) -> AsyncGenerator[bytes]:
        """The chunks as server-sent events under our name; see `ChatStream.events`.

        Raises:
            EngineError: the engine failed, or went away, in mid-stream.
        """
        rewriter = self._rewriter = EventRewriter(self._tracer, brand)
        try:
            async for data in self._reply:
                if events := rewriter.feed(data):
                    yield events
                if rewriter.failure is not None:
                    raise rewriter.failure
        except Unreachable as error:
            raise _unreachable(error) from error
        if not rewriter.done:
            raise EngineUnavailable("The engine went away in the middle of the answer.")

    async def aclose(self) -> None:
        """Stop generation, if it has not ended."""
        if self._closed:
            return
        self._closed = True
        if self._rewriter is not None:
            self._rewriter.settle()
        self._tracer.end()
        try:
            self._reply.close()
        finally:
            self._on_close()


@contextlib.asynccontextmanager
async def _unwrapped() -> AsyncIterator[None]:
    """A task group's first engine error instead of the group of all of them."""
    try:
        yield
    except BaseExceptionGroup as group:  # not `except*`: Python 3.11.2 wraps once more what is raised in it
        errors, others = group.split(EngineError)
        if errors is None or others is not None:
            raise
        raise next(_leaves(errors)) from None


def _leaves(group: BaseExceptionGroup[EngineError]) -> "itertools.chain[EngineError]":
    leaves: list[EngineError] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return itertools.chain(leaves)


def _headers(request_id: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json"} | outgoing_headers()
    if request_id is not None:
        headers["X-Request-Id"] = request_id
    return headers


def _is_success(status: int) -> bool:
    return 200 <= status < 300


def _unreachable(error: Unreachable) -> EngineUnavailable:
    return EngineUnavailable(f"The engine cannot be reached ({error}); try again shortly.")


def _refusal(status: int, content: bytes, prompt_field: str = _MESSAGES) -> EngineError:
    """vLLM's error answer as ours. Its two shapes: OpenAI's, and FastAPI's `detail`.

    `prompt_field` is what our caller gave the prompt in.
    """
    message, param, code = f"the engine answered {status}", None, None
    with contextlib.suppress(orjson.JSONDecodeError):
        body = orjson.loads(content)
        error = body.get("error", body) if isinstance(body, dict) else {}
        if isinstance(error, dict):
            message = str(error.get("message") or error.get("detail") or message)
            param = error.get("param") if isinstance(error.get("param"), str) else None
            code = error.get("type") if isinstance(error.get("type"), str) else None
    if status == _UNAVAILABLE:
        return EngineUnavailable(message)
    if 400 <= status < 500:
        if param in _TOO_LONG:
            return EngineRefused(status, message, code="context_length_exceeded", param=prompt_field)
        return EngineRefused(status, message, code=code, param=param)
    return EngineError(message)


def _sampling_body(sampling: SamplingParams) -> dict[str, Any]:
    """The sampling as vLLM's fields; what was left open is left to vLLM's neutral defaults."""
    return {name: value for name, value in sampling.model_dump().items() if value is not None}


def _drawn(index: int, answer: dict[str, Any]) -> GeneratedAnswer | None:
    """The drawn answer, or None where vLLM left out an id or a log-probability: nothing is ever invented."""
    choice = answer["choices"][0]
    ids = choice.get("token_ids")
    prompt_ids = choice.get("prompt_token_ids") or answer.get("prompt_token_ids")
    logprobs = _logprob_list(choice.get("logprobs"))
    if not ids or not prompt_ids or len(logprobs) != len(ids) or not all(map(is_logprob, logprobs)):
        return None
    text = choice["text"] if "text" in choice else (choice["message"].get("content") or "")
    return GeneratedAnswer(
        prompt_index=index,
        prompt_ids=prompt_ids,
        response_ids=ids,
        logprobs=logprobs,
        text=text,
        finish_reason=choice.get("finish_reason"),
    )


def _logprob_list(logprobs: dict[str, Any] | None) -> list[Any]:
    """Both of OpenAI's shapes: the chat's `content`, and the completion's `token_logprobs`."""
    logprobs = logprobs or {}
    if logprobs.get("content") is not None:
        return [entry.get("logprob") for entry in logprobs["content"]]
    return logprobs.get("token_logprobs") or []


def _response_logprobs(sequence: TokenSequence, choice: dict[str, Any]) -> list[float]:
    """The response's part of vLLM's `prompt_logprobs`: one `{token id: {logprob, …}}` for each prompt token."""
    entries = (choice.get("prompt_logprobs") or [])[len(sequence.prompt_ids) :]
    values = [
        (entry or {}).get(str(token), {}).get("logprob")
        for entry, token in zip(entries, sequence.response_ids, strict=False)
    ]
    if len(values) != len(sequence.response_ids) or not all(map(is_logprob, values)):
        raise EngineError("the engine left out a token's log-probability")
    return values
