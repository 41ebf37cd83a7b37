"""A FAKE engine: it has no model. Every answer begins with "[fake engine]".

For tests of everything around the engine. It is deterministic: the same messages, version, seed and choice give the
same words, ids and log-probabilities. Failures are switched on by setting the public attributes.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from plaudit.wire.base import JsonObject
from plaudit.wire.chat import SamplingParams
from plaudit.wire.fingerprint import file_sha256
from plaudit.wire.ops import ReplicaHealth
from plaudit.wire.training import GeneratedAnswer, GeneratePrompt, TokenSequence
from plaudit.wire.versions import ProofReport, ReplicaProof
from plaudit_server.engine.assignment import goals, spare
from plaudit_server.engine.base import AdapterRef, Brand, ChatTrace, ChoiceTrace, Member, Others
from plaudit_server.errors import EngineError, EngineRefused, EngineUnavailable

logger = logging.getLogger(__name__)

_WORDS = ("the", "loop", "learns", "from", "votes", "and", "each", "answer", "names", "its", "version", "plainly")
_DEFAULT_TOKENS = 12


def _number(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


def _tokens(body: JsonObject, version: str, index: int) -> Iterator[str]:
    """Words with their leading spaces; the first two say what this is and who spoke."""
    yield "[fake engine]"
    yield f" {version}"
    seed = (json.dumps(body.get("messages"), sort_keys=True), body.get("seed"), version, index)
    for position in range(_DEFAULT_TOKENS):
        yield " " + _WORDS[_number(seed, position) % len(_WORDS)]


def _token_id(token: str) -> int:
    return _number("id", token) % 49_152


def _logprob(token: str, position: int) -> float:
    return -(1 + _number("logprob", token, position) % 4000) / 1000


def _max_tokens(body: JsonObject) -> int:
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or 1_000_000
    assert isinstance(limit, int)
    return limit


class FakeEngine:
    """Implements `Engine` without a model.

    Attributes:
        token_delay_s: pause before each token.
        down: every replica is away; chats raise `EngineUnavailable`.
        fail_after_tokens: a chat breaks down after so many tokens.
        refuse: what every chat is refused with.
        unproven: names whose installation fails its probe.
        aborted: request ids whose generation was stopped early.
        held: the whole model that each replica holds.
        swap_s: how long an in-place swap takes; its replica answers for nothing meanwhile.
    """

    is_fake = True

    def __init__(self, *, start_s: float = 0.0) -> None:
        self.start_s = start_s
        self.token_delay_s = 0.0
        self.install_s = 0.0
        self.down = True
        self.restarts = 0
        self.fail_after_tokens: int | None = None
        self.refuse: EngineRefused | None = None
        self.unproven: set[str] = set()
        self.aborted: list[str] = []
        self.retired: list[str] = []
        self.bodies: list[JsonObject] = []
        self.members: list[Member] = []
        self.others: Others | None = None
        self.held: list[str] = ["base"]
        self.swap_s = 0.0
        self._swapping: set[int] = set()
        self._epoch: list[str] = []
        self._whole: set[str] = set()
        self._installed: set[str] = set()
        self._starting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Become ready after `start_s`."""
        logger.warning("FAKE ENGINE: there is no model behind this server; every answer is made up, for tests only")
        self._starting = asyncio.create_task(self._come_up())

    async def _come_up(self) -> None:
        await asyncio.sleep(self.start_s)
        self.down = False

    async def close(self) -> None:
        """Stop coming up."""
        if self._starting:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        self.down = True

    def crash(self) -> None:
        """Go away as a killed engine does: everything that was resident is gone."""
        self.down = True
        self._installed.clear()
        self.held = ["base"] * len(self.held)

    def recover(self) -> None:
        """Come back empty, as a restarted engine."""
        self.down = False
        self.restarts += 1

    def health(self) -> list[ReplicaHealth]:
        """One replica, `fake-0`."""
        state = (
            "down" if self.down and self._starting and self._starting.done() else "starting" if self.down else "ready"
        )
        return [
            ReplicaHealth(
                replica="fake-0",
                state=state,
                detail="FAKE: no model",
                resident=sorted(self.resident()),
                restarts=self.restarts,
            )
        ]

    def follow(self, members: Sequence[Member], others: Others | None) -> None:
        """Remember the list; there is nothing behind it."""
        self.members, self.others = list(members), others

    def is_up(self) -> bool:
        """Whether it is not down."""
        return not self.down

    def weights(self) -> set[str]:
        """Whole models that a replica holds and is not swapping."""
        return set() if self.down else {w for i, w in enumerate(self.held) if i not in self._swapping}

    def capacity(self) -> int:
        """Replicas."""
        return len(self.held)

    async def place(self, wanted: Sequence[str]) -> None:
        """Bring whole models to replicas, one at a time: the first wanted one wherever no other is to be."""
        known = [name for name in wanted if name == "base" or name in self._whole] or ["base"]
        for index, name in goals(self.held, known):
            if self.held[index] != name:
                await self._swap(index, name)

    async def _swap(self, index: int, name: str) -> None:
        self._swapping.add(index)
        await asyncio.sleep(self.swap_s)
        self._swapping.discard(index)
        self.held[index] = name
        self._epoch.append(name)

    def is_ready(self, version: str = "base") -> bool:
        """Whether `version` could answer."""
        return version in self.weights() or (version in self._installed and "base" in self.weights())

    def resident(self) -> set[str]:
        """What is installed."""
        return set() if self.down else self.weights() | self._installed

    async def base_fingerprint(self) -> str:
        """A made-up identity."""
        return hashlib.sha256(b"fake base model").hexdigest()

    async def chat(self, body: JsonObject, *, version: str, request_id: str) -> tuple[JsonObject, ChatTrace]:
        """A whole made-up answer."""
        self._accept(body, version)
        trace = ChatTrace(prompt_ids=_prompt_ids(body))
        try:
            async for _ in self._draw(body, version, trace):
                pass
        except asyncio.CancelledError:
            self.aborted.append(request_id)
            raise
        choices = [_whole_choice(choice, logprobs=bool(body.get("logprobs"))) for choice in trace.choices.values()]
        trace.usage = _usage(trace)
        return _envelope("chat.completion", choices) | {"usage": trace.usage}, trace

    async def chat_stream(self, body: JsonObject, *, version: str, request_id: str) -> "FakeStream":
        """A made-up answer, token by token."""
        self._accept(body, version)
        return FakeStream(self, body, version, request_id)

    def _accept(self, body: JsonObject, version: str) -> None:
        self.bodies.append(body)
        if not self.is_ready(version):
            raise EngineUnavailable(f"The fake engine does not have {version}.")
        if self.refuse:
            raise self.refuse

    async def _draw(self, body: JsonObject, version: str, trace: ChatTrace) -> AsyncIterator[tuple[ChoiceTrace, str]]:
        drawn = 0
        for index in range(int(body.get("n") or 1)):  # type: ignore[arg-type]  # an integer: the request was validated
            choice = trace.choices.setdefault(index, ChoiceTrace(index))
            for position, token in enumerate(_tokens(body, version, index)):
                if position == _max_tokens(body):
                    choice.finish_reason = "length"
                    break
                # Always a turn of the loop, as a real engine: a disconnect must be noticed between tokens.
                await asyncio.sleep(self.token_delay_s)
                if self.down or drawn == self.fail_after_tokens:
                    raise EngineError("The fake engine broke down in the middle of an answer.")
                drawn += 1
                trace.first_token_at = trace.first_token_at or time.monotonic()
                _append(choice, token, position)
                yield choice, token
            choice.finish_reason = choice.finish_reason or "stop"

    async def generate(
        self, prompts: Sequence[GeneratePrompt], *, version: str, n: int, sampling: SamplingParams
    ) -> list[GeneratedAnswer]:
        """`n` made-up answers for each prompt."""
        answers = []
        for prompt_index, prompt in enumerate(prompts):
            body: dict[str, Any] = {"messages": prompt.model_dump(), "n": n, "seed": sampling.seed}
            body |= {"max_tokens": sampling.max_tokens} if sampling.max_tokens else {}
            _, trace = await self.chat(body, version=version, request_id="generate")
            for choice in trace.choices.values():
                answers.append(
                    GeneratedAnswer(
                        prompt_index=prompt_index,
                        prompt_ids=prompt.prompt_ids or trace.prompt_ids or [],
                        response_ids=choice.response_ids,
                        logprobs=choice.logprobs or [],
                        text=choice.text,
                        finish_reason=choice.finish_reason,
                    )
                )
        return answers

    async def score(self, sequences: Sequence[TokenSequence], *, version: str) -> list[list[float]]:
        """Made-up log-probabilities, one a response token."""
        if not self.is_ready(version):
            raise EngineUnavailable(f"The fake engine does not have {version}.")
        return [
            [-(1 + _number(version, token, position) % 4000) / 1000 for position, token in enumerate(one.response_ids)]
            for one in sequences
        ]

    async def install(self, adapter: AdapterRef) -> ProofReport:
        """Compare the manifest's hash; nothing is loaded. Fails for names in `unproven`."""
        started = time.monotonic()
        await asyncio.sleep(self.install_s)
        if self.down:
            raise EngineUnavailable("The fake engine is down.")
        reason = self._objection(adapter)
        if adapter.kind == "full":
            return await self._install_whole(adapter, reason, started)
        if reason is None:
            self._installed.add(adapter.name)
        return _proof(reason, time.monotonic() - started)

    async def _install_whole(self, version: AdapterRef, reason: str | None, started: float) -> ProofReport:
        """Swap it in on the last replica; put back what was there where the made-up probe fails."""
        if version.name not in self.held:
            index = spare(self.held, [0] * len(self.held), ["base"])
            before = self.held[index]
            await self._swap(index, version.name)
            if reason is not None:
                await self._swap(index, before)
        self._whole |= {version.name} if reason is None else set()
        return _proof(reason, time.monotonic() - started)

    def _objection(self, adapter: AdapterRef) -> str | None:
        manifest = Path(adapter.location) / "manifest.json"
        if not manifest.is_file():
            return f"{manifest} does not exist"
        if file_sha256(manifest) != adapter.manifest_sha256:
            return "manifest.json is not the one that was registered"
        return "the fake probe was told to fail" if adapter.name in self.unproven else None

    async def retire(self, version: str) -> None:
        """Forget a version."""
        self._installed.discard(version)
        self.retired.append(version)


class FakeStream:
    """A made-up stream of OpenAI chunks."""

    def __init__(self, engine: FakeEngine, body: JsonObject, version: str, request_id: str) -> None:
        self.trace = ChatTrace(prompt_ids=_prompt_ids(body))
        self._engine = engine
        self._body = body
        self._version = version
        self._request_id = request_id
        self._chunks = self._generate()
        self._done = False
        self._began = len(engine._epoch)

    async def events(self, brand: Brand) -> AsyncGenerator[bytes]:
        """The chunks as server-sent events."""
        async for chunk in self._chunks:
            yield b"data: " + orjson.dumps(brand.on(chunk)) + b"\n\n"

    async def _generate(self) -> AsyncGenerator[JsonObject]:
        wants_logprobs = bool(self._body.get("logprobs"))
        spoken: set[int] = set()
        async for choice, token in self._engine._draw(self._body, self._version, self.trace):
            if choice.index not in spoken:
                spoken.add(choice.index)
                yield _chunk(choice.index, {"role": "assistant", "content": ""})
            logprobs = _openai_logprobs([(token, len(choice.response_ids) - 1)]) if wants_logprobs else None
            yield _chunk(choice.index, {"content": token}, logprobs=logprobs)
        for choice in self.trace.choices.values():
            yield _chunk(choice.index, {}, finish_reason=choice.finish_reason)
        self.trace.usage = _usage(self.trace)
        options = self._body.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            yield _envelope("chat.completion.chunk", []) | {"usage": self.trace.usage}
        self._done = True

    async def aclose(self) -> None:
        """Stop drawing. What was swapped in meanwhile, on whatever replica, has spoken too."""
        self.trace.also_by += self._engine._epoch[self._began :]
        if not self._done:
            self._done = True
            self._engine.aborted.append(self._request_id)
        await self._chunks.aclose()


def _append(choice: ChoiceTrace, token: str, position: int) -> None:
    assert choice.logprobs is not None
    choice.response_ids.append(_token_id(token))
    choice.logprobs.append(_logprob(token, position))
    choice.text += token


def _prompt_ids(body: JsonObject) -> list[int]:
    return [_token_id(word) for word in json.dumps(body.get("messages")).split()]


def _usage(trace: ChatTrace) -> JsonObject:
    prompt = len(trace.prompt_ids or [])
    completion = sum(len(choice.response_ids) for choice in trace.choices.values())
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _envelope(kind: str, choices: list[Any]) -> JsonObject:
    return {"id": "fake", "object": kind, "created": int(time.time()), "model": "fake", "choices": choices}


def _chunk(
    index: int, delta: JsonObject, *, finish_reason: str | None = None, logprobs: JsonObject | None = None
) -> JsonObject:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return _envelope("chat.completion.chunk", [choice])


def _whole_choice(choice: ChoiceTrace, *, logprobs: bool) -> JsonObject:
    words = choice.text.replace("[fake engine]", "[fake_engine]").split(" ")
    tokens = [
        (word if i == 0 else f" {word}").replace("[fake_engine]", "[fake engine]") for i, word in enumerate(words)
    ]
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text},
        "logprobs": _openai_logprobs([(token, i) for i, token in enumerate(tokens)]) if logprobs else None,
        "finish_reason": choice.finish_reason,
    }


def _openai_logprobs(tokens: list[tuple[str, int]]) -> JsonObject:
    content: list[Any] = [
        {"token": token, "logprob": _logprob(token, position), "bytes": list(token.encode()), "top_logprobs": []}
        for token, position in tokens
    ]
    return {"content": content}


def _proof(reason: str | None, seconds: float) -> ProofReport:
    passed = reason is None
    shown: dict[str, float] = {"low": 0.95, "high": 1.1} if passed else {}
    replica = ReplicaProof(
        replica="fake-0", passed=passed, slope=1.0 if passed else None, workers=1, reason=reason, **shown
    )
    return ProofReport(passed=passed, replicas=[replica], checked_at=datetime.now(UTC), seconds=seconds, reason=reason)
