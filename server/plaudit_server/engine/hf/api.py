"""The worker's endpoints: the part of vLLM's HTTP interface that `replica.py` and `swap.py` use, in vLLM's shapes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from plaudit_server.engine.hf.lora import AdapterRefused
from plaudit_server.engine.hf.model import ServedModel
from plaudit_server.engine.hf.sampling import BadRequest, read_sampling
from plaudit_server.engine.hf.scheduler import Asked, Drawn, Emitted, QueueFull, Scheduler

BASE = "base"


class NoSuchModel(BadRequest):
    """The request names an adapter that is not loaded."""


@dataclass(slots=True)
class Choice:
    """One answer, gathered."""

    drawn: list[Drawn]

    @property
    def ids(self) -> list[int]:
        """Tokens."""
        return [each.token for each in self.drawn]

    @property
    def text(self) -> str:
        """Text."""
        return "".join(each.text for each in self.drawn)


class Generation:
    """One request on its way through the scheduler: an asynchronous iterator of its tokens.

    Leaving it, by whatever way, ends the drawing.
    """

    def __init__(self, worker: "Worker", body: dict[str, Any], prompt_ids: list[int]) -> None:
        room = worker.model.limit - len(prompt_ids)
        if room < 1:
            raise BadRequest(
                f"the prompt has {len(prompt_ids)} tokens; prompt and answer together may have "
                f"{worker.model.limit} (PLAUDIT_ENGINE_MAX_MODEL_LEN, or the model's own positions)",
                "input_tokens",
            )
        loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Emitted]()

        def emit(event: Emitted) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens any more
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self.prompt_ids = prompt_ids
        self._scheduler = worker.scheduler
        self._asked = Asked(
            prompt_ids=prompt_ids,
            n=int(body.get("n") or 1),
            sampling=read_sampling(body, room=room),
            adapter=worker.adapter(body.get("model")),
            priority=int(body.get("priority") or 0),
            emit=emit,
        )
        self._scheduler.submit(self._asked)

    async def tokens(self) -> AsyncGenerator[Drawn]:
        """The tokens of all choices, as they are drawn.

        Raises:
            RuntimeError and others: what went wrong in the model.
        """
        try:
            while (event := await self._events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End the drawing."""
        self._scheduler.cancel(self._asked)

    async def choices(self) -> list[Choice]:
        """All choices, whole."""
        found = [Choice([]) for _ in range(self._asked.n)]
        async for drawn in self.tokens():
            found[drawn.index].drawn.append(drawn)
        return found


class Worker:
    """The model behind HTTP."""

    def __init__(self, model: ServedModel, scheduler: Scheduler) -> None:
        self.model = model
        self.scheduler = scheduler

    def app(self) -> Starlette:
        """The ASGI app."""
        post = ["POST"]
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/v1/models", self.models),
                Route("/v1/load_lora_adapter", self.load, methods=post),
                Route("/v1/unload_lora_adapter", self.unload, methods=post),
                Route("/collective_rpc", self.rpc, methods=post),
                Route("/v1/chat/completions", self.chat, methods=post),
                Route("/v1/completions", self.completions, methods=post),
            ],
            exception_handlers={
                NoSuchModel: _answer_with(404),
                BadRequest: _answer_with(400),
                AdapterRefused: _answer_with(400),
                QueueFull: _answer_with(503),
                RuntimeError: _answer_with(500),
            },
        )

    def adapter(self, name: Any) -> int | None:
        """The number of the adapter that a request names; None is the base model."""
        if name in (None, BASE):
            return None
        number = self.model.adapters.names.get(str(name))
        if number is None:
            raise NoSuchModel(f"The model `{name}` does not exist.", "model")
        return number

    async def health(self, _: Request) -> Response:
        """200 while the model's thread lives."""
        return Response(status_code=200 if self.scheduler.is_alive else 503)

    async def models(self, _: Request) -> Response:
        """The base model and loaded adapters."""
        cards = [{"id": name, "object": "model"} for name in (BASE, *self.model.adapters.names)]
        return JSONResponse({"object": "list", "data": cards})

    async def load(self, request: Request) -> Response:
        """Load an adapter."""
        body = await _body(request)
        await self._do(lambda: self.model.adapters.load(body["lora_name"], Path(body["lora_path"])))
        return Response("Success")

    async def unload(self, request: Request) -> Response:
        """Take an adapter away."""
        body = await _body(request)
        await self._do(lambda: self.model.adapters.unload(body["lora_name"]))
        return Response("Success")

    async def rpc(self, request: Request) -> Response:
        """The methods of `engine.worker.AdapterInspector`, answered by the one worker there is."""
        body = await _body(request)
        adapters, arguments = self.model.adapters, body.get("args") or []
        known: dict[str, Callable[[], Any]] = {
            "plaudit_ping": lambda: {"ok": True},
            "plaudit_adapters": lambda: sorted(adapters.numbers),
            "plaudit_forget": lambda: adapters.forget_all(arguments[0]),
            "plaudit_digests": lambda: adapters.digests(arguments[0]),
        }
        if body.get("method") not in known:
            raise NoSuchModel(f"there is no method {body.get('method')}")
        return JSONResponse({"results": [await self._do(known[body["method"]])]})

    async def _do(self, work: Callable[[], Any], priority: int = 0) -> Any:
        return await asyncio.wrap_future(self.scheduler.call(work, priority=priority))

    async def chat(self, request: Request) -> Response:
        """Chat completions, whole or streamed."""
        body = await _body(request)
        try:
            prompt_ids = self.model.prompt_ids(body["messages"])
        except (ValueError, TypeError, jinja2.TemplateError) as error:
            raise BadRequest(f"the messages cannot be read: {error}", "messages") from error
        generation = Generation(self, body, prompt_ids)
        if body.get("stream"):
            return _Stream(generation, self._events(generation, body))
        choices = await _unless_gone(request, generation)
        answer = _envelope("chat.completion", [self._chat_choice(i, c) for i, c in enumerate(choices)])
        answer |= {"usage": _usage(prompt_ids, choices), "prompt_token_ids": prompt_ids}
        return JSONResponse(answer)

    async def _events(self, generation: Generation, body: dict[str, Any]) -> AsyncIterator[bytes]:
        counts, spoken = 0, set[int]()
        first: dict[str, Any] = {"prompt_token_ids": generation.prompt_ids}
        try:
            async with contextlib.aclosing(generation.tokens()) as tokens:
                async for drawn in tokens:
                    if drawn.index not in spoken:
                        spoken.add(drawn.index)
                        yield _event(_chunk(drawn.index, {"role": "assistant", "content": ""}) | first)
                        first = {}
                    counts += 1
                    yield _event(self._chat_chunk(drawn))
        except (RuntimeError, ValueError, IndexError, TypeError, AdapterRefused) as error:
            yield _event(_error(error, 500))
            return
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = _usage_of(len(generation.prompt_ids), counts)
            yield _event(_envelope("chat.completion.chunk", []) | {"usage": usage})
        yield b"data: [DONE]\n\n"

    def _chat_chunk(self, drawn: Drawn) -> dict[str, Any]:
        logprobs = {"content": [self._entry(drawn)]}
        chunk = _chunk(drawn.index, {"content": drawn.text}, logprobs=logprobs, finish_reason=drawn.finish_reason)
        chunk["choices"][0]["token_ids"] = [drawn.token]
        return chunk

    def _chat_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text},
            "logprobs": {"content": [self._entry(drawn) for drawn in choice.drawn]},
            "finish_reason": choice.drawn[-1].finish_reason,
            "token_ids": choice.ids,
        }

    def _entry(self, drawn: Drawn) -> dict[str, Any]:
        top = [self._token(token, logprob) for token, logprob in drawn.top]
        return self._token(drawn.token, drawn.logprob) | {"top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.model.tokenizer.decode([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    async def completions(self, request: Request) -> Response:
        """Draw an answer to a prompt of token ids; or, with `prompt_logprobs`, score whole sequences."""
        body = await _body(request)
        if body.get("prompt_logprobs") is not None:
            return await self._score(body)
        if not _is_ids(body.get("prompt")):
            raise BadRequest("prompt must be a list of token ids", "prompt")
        generation = Generation(self, body, body["prompt"])
        choices = await _unless_gone(request, generation)
        found = [
            {
                "index": index,
                "text": choice.text,
                "token_ids": choice.ids,
                "prompt_token_ids": generation.prompt_ids,
                "logprobs": {"token_logprobs": [drawn.logprob for drawn in choice.drawn]},
                "finish_reason": choice.drawn[-1].finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return JSONResponse(_envelope("text_completion", found) | {"usage": _usage(generation.prompt_ids, choices)})

    async def _score(self, body: dict[str, Any]) -> Response:
        """Each prompt is a prompt and its answer; `prompt_lengths` says where the answer begins."""
        prompts, lengths = body.get("prompt"), body.get("prompt_lengths")
        if not isinstance(prompts, list) or not prompts or not all(map(_is_ids, prompts)):
            raise BadRequest("prompt must be a list of lists of token ids", "prompt")
        if not _is_ids(lengths) or len(lengths) != len(prompts):  # type: ignore[arg-type]  # it is a list by now
            raise BadRequest("prompt_lengths must say for each prompt where its answer begins", "prompt_lengths")
        assert isinstance(lengths, list)
        if not all(0 < length < len(prompt) for prompt, length in zip(prompts, lengths, strict=True)):
            raise BadRequest("each of prompt_lengths must leave a prompt and an answer", "prompt_lengths")
        pairs = [(prompt[:length], prompt[length:]) for prompt, length in zip(prompts, lengths, strict=True)]
        adapter = self.adapter(body.get("model"))
        scored = await self._do(lambda: self.model.score(pairs, adapter), int(body.get("priority") or 0))
        choices = []
        for index, ((prompt, response), logprobs) in enumerate(zip(pairs, scored, strict=True)):
            entries = [{str(token): {"logprob": value}} for token, value in zip(response, logprobs, strict=True)]
            choice = {"index": index, "text": "", "finish_reason": "length"}
            choices.append(choice | {"prompt_logprobs": [*[None] * len(prompt), *entries]})
        return JSONResponse(_envelope("text_completion", choices))


class _Stream(StreamingResponse):
    """A streamed answer, whose drawing ends with it even where the caller left before it began."""

    def __init__(self, generation: Generation, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.cancel()


async def _unless_gone(request: Request, generation: Generation) -> list[Choice]:
    """The choices, unless the caller goes away first: then the drawing ends and nobody reads what is answered."""
    asking = asyncio.ensure_future(generation.choices())
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([asking, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            raise BadRequest("the caller went away")
        return asking.result()
    finally:
        generation.cancel()
        leaving.cancel()
        asking.cancel()
        await asyncio.gather(asking, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise BadRequest("the body is not JSON") from error
    if not isinstance(body, dict):
        raise BadRequest("the body is not a JSON object")
    return body


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, int) for each in value)


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _envelope(kind: str, choices: list[Any]) -> dict[str, Any]:
    return {"id": "hf", "object": kind, "created": int(time.time()), "model": BASE, "choices": choices}


def _chunk(
    index: int, delta: dict[str, Any], *, logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return _envelope("chat.completion.chunk", [choice])


def _usage(prompt_ids: Sequence[int], choices: Sequence[Choice]) -> dict[str, int]:
    return _usage_of(len(prompt_ids), sum(len(choice.drawn) for choice in choices))


def _usage_of(prompt: int, drawn: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}


def _error(error: Exception, status: int) -> dict[str, Any]:
    words = str(error) or type(error).__name__
    return {
        "error": {
            "message": words,
            "type": type(error).__name__,
            "param": getattr(error, "param", None),
            "code": status,
        }
    }


def _answer_with(status: int) -> Callable[[Request, Exception], Response]:
    def answer(_: Request, error: Exception) -> Response:
        return JSONResponse(_error(error, status), status_code=status)

    return answer
