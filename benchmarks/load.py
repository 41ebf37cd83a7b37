"""Closed-loop streaming clients: each asks, reads to the end, asks again. Shared by the benchmarks of serving."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson

Body = dict[str, Any]


@dataclass(slots=True)
class Answer:
    """One request and what came of it. Times by the monotonic clock, seconds; `gaps` lie between its pieces."""

    client: int
    began: float
    status: int = 0
    header_version: str | None = None
    response_id: str | None = None
    first_at: float | None = None
    ended: float = 0.0
    gaps: list[float] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    tokens: int = 0
    prompt_ids: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def failed(self) -> bool:
        """Not answered whole."""
        return self.status != 200 or self.error is not None

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token."""
        return None if self.first_at is None else self.first_at - self.began

    @property
    def mixed(self) -> bool:
        """Whether it names more than one version."""
        named = {version.removeprefix("policy@") for version in self.versions}
        return len(named | ({self.header_version} if self.header_version else set())) > 1


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share lies; nan of none. No interpolation."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def questions() -> list[str]:
    """Everyday questions."""
    lines = (Path(__file__).parent / "prompts.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def chat_body(number: int, *, tokens: int, model: str = "policy", **more: Any) -> Body:
    """A streamed question, the number-th of them."""
    asked = questions()
    text = f"{asked[number % len(asked)]} ({number})"
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 1.0,
        "stream": True,
        **more,
    }


async def ask(http: httpx.AsyncClient, body: Body, *, client: int = 0) -> Answer:
    """One streamed chat. Nothing is raised: what went wrong is in the answer."""
    answer = Answer(client, time.monotonic())
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            answer.status = response.status_code
            answer.header_version = response.headers.get("x-model-version")
            if not response.is_success:
                answer.error = (await response.aread()).decode(errors="replace")[:200]
            else:
                await _read(response, answer)
    except httpx.HTTPError as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.ended = time.monotonic()
    return answer


async def _read(response: httpx.Response, answer: Answer) -> None:
    rest, last, done = b"", None, False
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        now = time.monotonic()
        for payload in (line[6:] for line in lines if line.startswith(b"data: ")):
            if payload.strip() == b"[DONE]":
                done = True
            elif _note(answer, orjson.loads(payload)):
                answer.first_at = answer.first_at or now
                answer.gaps += [now - last] if last is not None else []
                last = now
    if not done:
        answer.error = answer.error or "the stream broke off"


def _note(answer: Answer, chunk: Any) -> bool:
    """Keep what a chunk says; whether it brought tokens."""
    if "error" in chunk:
        answer.error = str(chunk["error"])
        return False
    answer.response_id = chunk.get("id") or answer.response_id
    if chunk.get("model"):
        answer.versions.add(chunk["model"])
    answer.prompt_ids = chunk.get("prompt_token_ids") or answer.prompt_ids
    for choice in chunk["choices"]:
        answer.ids += choice.get("token_ids") or []
        entries = (choice.get("logprobs") or {}).get("content") or []
        answer.logprobs += [entry["logprob"] for entry in entries]
        if choice["delta"].get("content"):
            answer.tokens += max(1, len(entries))
            return True
    return False


class Load:
    """Closed-loop clients, spread over servers.

    Args:
        servers: addresses; client k asks the (k mod n)-th.
        key: an API key for all of them, or one for each.
        clients: how many.
        body: of the n-th request.
        rest: how long a client pauses after an answer, as a multiple of the answer's own time: 0 keeps the engine full.
    """

    def __init__(
        self,
        servers: Sequence[str],
        key: str | Sequence[str],
        *,
        clients: int,
        body: Callable[[int], Body],
        rest: float = 0,
    ) -> None:
        keys = [key] * len(servers) if isinstance(key, str) else list(key)
        self._https = [open_client(url, one) for url, one in zip(servers, keys, strict=True)]
        self._clients = clients
        self._body = body
        self._rest = rest
        self._numbers = itertools.count()
        self._stopping = False
        self.gate = asyncio.Event()  # closed, every request is refused before it is sent: see the arm "wait"
        self.gate.set()
        self.answers: list[Answer] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Ask until the block ends; requests under way are read to their end."""
        tasks = [asyncio.create_task(self._client(number)) for number in range(self._clients)]
        try:
            yield self
        finally:
            self._stopping = True
            self.gate.set()
            await asyncio.gather(*tasks)
            for http in self._https:
                await http.aclose()

    async def _client(self, number: int) -> None:
        http = self._https[number % len(self._https)]
        while not self._stopping:
            if not self.gate.is_set():
                now = time.monotonic()
                self.answers.append(Answer(number, now, status=503, ended=now, error="refused: a step is under way"))
                await asyncio.sleep(1)  # as Retry-After would say
                continue
            answer = await ask(http, self._body(next(self._numbers)), client=number)
            self.answers.append(answer)
            if answer.failed:
                await asyncio.sleep(0.2)
            elif self._rest:
                await asyncio.sleep(self._rest * (answer.ended - answer.began))


def open_client(url: str, key: str) -> httpx.AsyncClient:
    """An HTTP client of one server."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=128, keepalive_expiry=2)
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=600, limits=limits, trust_env=False)


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Counts, rates and percentiles of what was answered."""
    good = [answer for answer in answers if not answer.failed]
    ttft = [answer.ttft for answer in good if answer.ttft is not None]
    gaps = [gap for answer in good for gap in answer.gaps]
    whole = [answer.ended - answer.began for answer in good]
    span = max((a.ended for a in answers), default=0) - min((a.began for a in answers), default=0)
    return {
        "answers": len(answers),
        "failed": len(answers) - len(good),
        "tokens": sum(answer.tokens for answer in good),
        "tokens_per_s": round(sum(answer.tokens for answer in good) / span, 2) if span else None,
        "ttft_ms": {f"p{q:g}": round(1000 * percentile(ttft, q / 100), 2) for q in (50, 95, 99)},
        "gap_ms": {f"p{q:g}": round(1000 * percentile(gaps, q / 100), 2) for q in (50, 95, 99)},
        "longest_gap_ms": round(1000 * max(gaps, default=0), 1),
        "answer_s": {f"p{q:g}": round(percentile(whole, q / 100), 3) for q in (50, 95, 99)},
    }
