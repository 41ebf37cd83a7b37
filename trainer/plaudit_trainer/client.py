"""The trainer's endpoints over HTTP, for a client that would rather wait than fail.

The server may be restarted at any moment, and a run that has worked for minutes must not die of it. So no answer,
429 and 503 are waited for without limit (said once); other 5xx are tried `PATIENCE` times, since they may be the
request's fault. Every 4xx is an answer, and is raised.
"""

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from plaudit._retry import IN_PROGRESS, Clock, RetryPolicy, backoff_s, parse_retry_after
from plaudit.errors import APIResponseError, APIStatusError, ConflictError, error_class
from plaudit.wire.base import ErrorBody, JsonObject, RequestModel
from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import (
    Batch,
    FailRequest,
    GeneratedAnswer,
    GeneratePrompt,
    GenerateRequest,
    GenerateResponse,
    HeartbeatRequest,
    LeaseRequest,
    LeaseState,
    Run,
    RunCreate,
    RunUpdate,
    ScoreRequest,
    ScoreResponse,
    TokenSequence,
)
from plaudit.wire.versions import Version, VersionCreate

PATIENCE = 12
BACKOFF = RetryPolicy(base_s=0.5, cap_s=15.0)
GENERATE_AT_ONCE = 64
"""Answers asked for in one request: what the engine can keep in flight, and what a lost connection costs at most."""

_WAITED_FOR = frozenset({429, 503, 507})
_SHORT = httpx.Timeout(60, connect=5)
_LONG = httpx.Timeout(1800, connect=5)  # rollouts have low priority: users' chats may hold them up for long
_LOOKS_PER_S = 5

Answer = TypeVar("Answer", bound=BaseModel)


class Link:
    """What all calls share: the connection, and which of them wait, so that waiting is said once and not by each."""

    def __init__(self, http: httpx.Client, say: Callable[[str], None], clock: Clock | None = None) -> None:
        self.http = http
        self.clock = clock or Clock()
        self._say = say
        self._lock = threading.Lock()
        self._waiting: set[httpx.Request] = set()

    def waits(self, request: httpx.Request, reason: str) -> None:
        """This request got no answer, or the word that it is too early."""
        with self._lock:
            if not self._waiting:
                self._say(f"waiting for the server at {self.http.base_url}: {reason}")
            self._waiting.add(request)

    def ended(self, request: httpx.Request, *, answered: bool) -> None:
        """This request waits no longer."""
        with self._lock:
            if request in self._waiting:
                self._waiting.remove(request)
                if answered and not self._waiting:
                    self._say("the server answers again")


class TrainerClient:
    """The endpoints. `check` is called before every wait and during it: what it raises ends the waiting.

    Args:
        link: shared by the clients of all threads.
        worker: this trainer's name; leases are held under it.
        check: raises when waiting has become pointless.
    """

    def __init__(self, link: Link, worker: str, check: Callable[[], None]) -> None:
        self._link = link
        self.worker = worker
        self._check = check

    def checked_by(self, check: Callable[[], None]) -> "TrainerClient":
        """The same client for another thread or another reason to give up."""
        return TrainerClient(self._link, self.worker, check)

    def lease(self, *, min_records: int, max_records: int, lease_seconds: float, max_prompts: int = 0) -> Batch:
        """A batch, the one still held under this name, or the reason why there is none."""
        request = LeaseRequest(
            worker=self.worker,
            min_records=min_records,
            max_records=max_records,
            lease_seconds=lease_seconds,
            max_prompts=max_prompts,
        )
        return self._post("/v1/batches:lease", request, Batch)

    def heartbeat(self, batch_id: str, lease_seconds: float) -> LeaseState:
        """Keep a lease. Raises ConflictError (or NotFoundError) where it is no longer held."""
        request = HeartbeatRequest(worker=self.worker, lease_seconds=lease_seconds)
        return self._post(f"/v1/batches/{batch_id}:heartbeat", request, LeaseState)

    def fail(self, batch_id: str, reason: str, *, release: bool) -> LeaseState:
        """Give a batch back, or set its records aside."""
        request = FailRequest(worker=self.worker, reason=reason, release=release)
        return self._post(f"/v1/batches/{batch_id}:fail", request, LeaseState, key=_fresh_key())

    def create_run(self, batch_id: str, config: JsonObject) -> Run:
        """Begin a run, or find the one begun on this batch before."""
        request = RunCreate(batch_id=batch_id, worker=self.worker, config=config)
        return self._post("/v1/training/runs", request, Run, key=_fresh_key())

    def run(self, run_id: str) -> Run:
        """How a run stands."""
        return self._send("GET", f"/v1/training/runs/{run_id}", None, Run)

    def update_run(self, run_id: str, update: RunUpdate) -> Run:
        """Report progress, or the end."""
        return self._post(f"/v1/training/runs/{run_id}/metrics", update, Run, key=_fresh_key())

    def register(self, version: VersionCreate) -> Version:
        """Register a published folder. Repeating it, also after a restart, registers once."""
        key = f"register-{version.run_id}-{version.manifest_sha256[:16]}"
        return self._post("/v1/versions", version, Version, key=key, timeout=_LONG)

    def generate(
        self, prompts: Sequence[GeneratePrompt], *, version: str, n: int, sampling: SamplingParams
    ) -> list[GeneratedAnswer]:
        """`n` answers a prompt at low priority; answers to prompts the engine refused are missing."""
        answers: list[GeneratedAnswer] = []
        step = max(1, GENERATE_AT_ONCE // n)
        for start in range(0, len(prompts), step):
            self._check()
            request = GenerateRequest(
                version=version, prompts=list(prompts[start : start + step]), n=n, sampling=sampling
            )
            part = self._post("/v1/training/generate", request, GenerateResponse, timeout=_LONG)
            answers += [a.model_copy(update={"prompt_index": a.prompt_index + start}) for a in part.answers]
        return answers

    def score(self, sequences: Sequence[TokenSequence], *, version: str) -> list[list[float]]:
        """Log-probability (nats) of each response token under `version`, one list a sequence."""
        logprobs: list[list[float]] = []
        for start in range(0, len(sequences), GENERATE_AT_ONCE):
            self._check()
            request = ScoreRequest(version=version, sequences=list(sequences[start : start + GENERATE_AT_ONCE]))
            logprobs += self._post("/v1/training/score", request, ScoreResponse, timeout=_LONG).logprobs
        return logprobs

    def _post(
        self,
        path: str,
        body: RequestModel,
        answer: type[Answer],
        *,
        key: str | None = None,
        timeout: httpx.Timeout = _SHORT,
    ) -> Answer:
        return self._send("POST", path, body, answer, key=key, timeout=timeout)

    def _send(
        self,
        method: str,
        path: str,
        body: RequestModel | None,
        answer: type[Answer],
        *,
        key: str | None = None,
        timeout: httpx.Timeout = _SHORT,
    ) -> Answer:
        request = self._link.http.build_request(
            method,
            path,
            content=body.model_dump_json() if body else None,
            headers={"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {}),
            timeout=timeout,
        )
        answered = False
        try:
            parsed = _parse(self._insist(request), answer)
            answered = True
        finally:
            self._link.ended(request, answered=answered)
        return parsed

    def _insist(self, request: httpx.Request) -> httpx.Response:
        """Send until there is an answer that waiting would not change."""
        failures = 0
        while True:
            try:
                return _accepted(self._link.http.send(request))
            except (APIStatusError, httpx.TransportError) as error:
                if not _may_pass(error, failures):
                    raise
                if not isinstance(error, APIStatusError) or error.status in _WAITED_FOR:
                    self._link.waits(request, _in_words(error))
                self._wait(error, failures)
                failures += 1

    def _wait(self, error: Exception, failures: int) -> None:
        clock = self._link.clock
        pause = backoff_s(BACKOFF, failures, clock.draw())
        if isinstance(error, APIStatusError) and error.retry_after_s is not None:
            pause = min(60.0, error.retry_after_s + pause)
        for _ in range(max(1, round(pause * _LOOKS_PER_S))):
            self._check()
            clock.sleep(min(pause, 1 / _LOOKS_PER_S))


def connect(url: str, key: str, say: Callable[[str], None]) -> Link:
    """A link to the server at `url`; nothing is sent yet."""
    is_local = httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")  # never through a proxy
    http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, trust_env=not is_local)
    return Link(http, say)


def is_lost(error: APIStatusError) -> bool:
    """Whether the server says that a batch is no longer ours: another's, expired, consumed, or unknown to it."""
    return error.status in (404, 409, 410)


def _fresh_key() -> str:
    """One key a call; the call's own retries share it."""
    return uuid.uuid4().hex


def _may_pass(error: Exception, failures: int) -> bool:
    """Whether waiting may help: the server is away, starting, or still busy with the same request."""
    if not isinstance(error, APIStatusError):
        return True
    if error.status in _WAITED_FOR or (isinstance(error, ConflictError) and error.code == IN_PROGRESS):
        return True
    return error.status >= 500 and failures + 1 < PATIENCE


def _accepted(response: httpx.Response) -> httpx.Response:
    if not response.is_success:
        raise _refusal(response)
    return response


def _parse(response: httpx.Response, answer: type[Answer]) -> Answer:
    try:
        return answer.model_validate_json(response.content)
    except ValidationError as error:
        path = response.request.url.path
        raise APIResponseError(f"{path} answered something else than a {answer.__name__}: {error}") from error


def _refusal(response: httpx.Response) -> APIStatusError:
    try:
        detail = ErrorBody.model_validate_json(response.content).error
        message, code, param = detail.message, detail.code, detail.param
    except ValidationError:  # a proxy's page
        message, code, param = f"HTTP {response.status_code} {response.reason_phrase}", None, None
    return error_class(response.status_code)(
        message,
        status=response.status_code,
        code=code,
        param=param,
        request_id=response.headers.get("x-request-id"),
        retry_after_s=parse_retry_after(response.headers),
    )


def _in_words(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def sleep_checked(seconds: float, check: Callable[[], None]) -> None:
    """Sleep, looking up a few times a second; what `check` raises ends it."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        check()
        time.sleep(min(left, 1 / _LOOKS_PER_S))
