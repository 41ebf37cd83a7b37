"""Drives the sync and the async client alike, against a scripted server and a clock that only tests turn."""

import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx

from plaudit import AsyncPlaudit, Plaudit
from plaudit._retry import Clock

URL = "http://127.0.0.1:9"
Handler = Callable[[httpx.Request], httpx.Response]


class FakeClock(Clock):
    """Time passes only by sleeping; every draw is `drawn`."""

    def __init__(self, drawn: float = 1.0) -> None:
        self.at = 0.0
        self.drawn = drawn
        self.naps: list[float] = []

    def now(self) -> float:
        return self.at

    def draw(self) -> float:
        return self.drawn

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.at += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


class Script:
    """A fake server: answers with the given replies in turn, the last one for ever, and keeps the requests."""

    def __init__(self, *replies: httpx.Response | Exception | Handler) -> None:
        self.replies = list(replies)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply(request) if callable(reply) else fresh(reply)

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) if request.content else None for request in self.requests]


def fresh(reply: httpx.Response) -> httpx.Response:
    """The same answer again: httpx binds a response to the one client that received it."""
    if not reply.is_closed:
        return reply  # it streams, and can be read but once
    return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)


class Caller:
    """One kind of client. `await caller(lambda c: c.versions.get("v1"))` works for both."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.clock = FakeClock()

    def client(self, handler: Handler, **options: Any) -> Plaudit | AsyncPlaudit:
        make: Any = Plaudit if self.kind == "sync" else AsyncPlaudit
        given = {"base_url": URL, "api_key": "plk_test", "clock": self.clock} | options
        return make(**given, transport=httpx.MockTransport(handler))

    async def __call__(self, handler: Handler, use: Callable[[Any], Any], **options: Any) -> Any:
        client = self.client(handler, **options)
        try:
            return await settled(use(client))
        finally:
            await settled(client.close() if isinstance(client, Plaudit) else client.aclose())


async def settled(result: Any) -> Any:
    """The result itself: awaited if need be, iterators read to their end."""
    if inspect.isawaitable(result):
        return await result
    if isinstance(result, AsyncIterator):
        return [item async for item in result]
    return list(result) if isinstance(result, Iterator) else result


async def chunks_of(stream: Any) -> list[Any]:
    """All chunks of a stream of either kind."""
    return [chunk async for chunk in stream] if hasattr(stream, "__aiter__") else list(stream)


def refusal(status: int, code: str | None = None, message: str = "no", **headers: str) -> httpx.Response:
    """An error as the server words it."""
    body = {"error": {"message": message, "type": "some_error", "param": None, "code": code}}
    return httpx.Response(status, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


def version_json(name: str = "v1", **changes: Any) -> dict[str, Any]:
    """A version as the server sends it."""
    version = {
        "object": "version",
        "name": name,
        "state": "ready",
        "parent": "base",
        "fingerprint": f"{name}-01234567",
        "created_at": "2026-01-02T03:04:05Z",
    }
    return version | changes


def alias_json(name: str = "stable", version: str = "v1", etag: str = "7") -> dict[str, Any]:
    """An alias as the server sends it."""
    moved = "2026-01-02T03:04:05Z"
    return {"object": "alias", "name": name, "version": version, "etag": etag, "updated_at": moved}


def rollout_json(**changes: Any) -> dict[str, Any]:
    """A running rollout, as the server sends it."""
    rollout = {"id": "rollout_1", "candidate": "v2", "stable": "v1", "state": "running", "step": 0, "weight": 0.2}
    rollout |= {"steps": [{"weight": 0.2}, {"weight": 0.5}], "min_raters": 100, "max_duration": 3600.0}
    rollout |= {"guardrails": {}, "auto_promote": False, "auto_rollback": True, "actor": "admin"}
    rollout |= {"created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z"}
    return rollout | changes


def rollout_report_json() -> dict[str, Any]:
    """How a rollout stands."""
    stable = {"version": "v1", "exposed": 400, "raters": 240, "up": 190, "down": 50, "up_rate": 0.79}
    canary = {"version": "v2", "exposed": 80, "raters": 60, "up": 48, "down": 12, "up_rate": 0.8}
    guard = {"name": "errors", "state": "ok", "stable": 0.01, "canary": 0.02, "excess": 0.01, "low": -0.03}
    guard |= {"bound": 0.02, "users_stable": 400, "users_canary": 80}
    report = {"at": "2026-01-02T03:04:05Z", "decision": "hold", "automatic": False, "e_value": 0.7, "e_bound": 20.0}
    report |= {"words": "Hold: 60 of 100 raters on v2.", "sample_ratio_e_value": 0.4, "sample_ratio_ok": True}
    report |= {"difference": 0.01, "difference_low": -0.09, "margin": 0.05, "stable": stable, "canary": canary}
    return report | {"segments": [], "guardrails": [guard]}


def run_json(**changes: Any) -> dict[str, Any]:
    """A run as the server sends it."""
    moment = "2026-01-02T03:04:05Z"
    run = {"id": "run_1", "batch_id": "batch_1", "version": "v2", "parent": "v1", "state": "running"}
    return run | {"created_at": moment, "updated_at": moment} | changes


def feedback_json(**changes: Any) -> dict[str, Any]:
    """A vote as the server sends it."""
    moment = "2026-01-02T03:04:05Z"
    vote: dict[str, Any] = {"id": "fb_1", "response_id": ANSWER_ID, "key": "thumb", "value": 1.0, "tags": []}
    vote |= {"comment": None, "correction": None, "end_user": None, "source": "user", "version": "v1"}
    vote |= {"revision": 1, "retracted": False, "trainable": True, "occurred_at": moment, "received_at": moment}
    return vote | changes


def page_json(items: list[Any], next_after: str | None = None) -> dict[str, Any]:
    """A list as the server sends it."""
    return {"object": "list", "data": items, "has_more": next_after is not None, "next": next_after}


ANSWER_ID = "chatcmpl-01890a5d-ac96-774b-bcce-b302099a8057"


def completion_json(text: str = "Paris.", choices: int = 1) -> dict[str, Any]:
    """A whole answer as the server sends it."""
    said = [
        {"index": k, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} for k in range(choices)
    ]
    return {"id": ANSWER_ID, "object": "chat.completion", "created": 1, "model": "policy@v1", "choices": said}


ANSWER_HEADERS = {"x-model-version": "v1", "x-rollout-arm": "stable", "x-request-id": "req-1", "x-feedback-token": "t"}


def sse(*events: Any, done: bool = True) -> bytes:
    """Events as bytes."""
    lines = [f"data: {json.dumps(event)}\n\n" for event in events] + (["data: [DONE]\n\n"] if done else [])
    return "".join(lines).encode()


def chunk_json(text: str | None = None, finish: str | None = None) -> dict[str, Any]:
    """One piece of a streamed answer."""
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": ANSWER_ID, "object": "chat.completion.chunk", "model": "policy@v1", "choices": [choice]}


def streamed(content: bytes, status: int = 200) -> httpx.Response:
    """A response that streams."""
    return httpx.Response(status, content=content, headers={"content-type": "text/event-stream"} | ANSWER_HEADERS)
