"""A FAKE of the server's trainer endpoints, for tests of the trainer alone. It serves nobody and proves nothing.

It keeps what the real one promises: a record is leased to one worker at a time and consumed once; a batch always
answers with the same run; an idempotency key answers twice alike. Use `client(...)` inside a process, or `serve()`
for real connections from another one.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from pydantic import BaseModel

from plaudit.wire.training import (
    Batch,
    GeneratedAnswer,
    GenerateRequest,
    GenerateResponse,
    LeaseRequest,
    LeaseState,
    RecordVote,
    Run,
    RunCreate,
    RunUpdate,
    TrainingRecord,
)
from plaudit.wire.versions import Version, VersionCreate

IS_FAKE = True
KEY = "plk_fake_trainer"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def record(number: int) -> TrainingRecord:
    """An invented record."""
    vote = RecordVote(
        feedback_id=f"fb-{number}",
        key="thumb",
        value=1.0 if number % 2 else -1.0,
        end_user=f"user-{number}",
        source="user",
        occurred_at=NOW,
    )
    return TrainingRecord(
        response_id=f"record-{number}",
        version="base",
        created_at=NOW,
        prompt_key=f"prompt-{number}",
        messages=[{"role": "user", "content": f"question {number}"}],
        content="an answer",
        prompt_ids=[1, 2],
        response_ids=[3, 4],
        logprobs=[-0.5, -0.5],
        finish_reason="stop",
        sampling={},
        end_user=f"user-{number}",
        redacted=False,
        votes=[vote],
    )


class Refusal(Exception):
    """An error answer in the making."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after, self.code = status, retry_after, code


class FakeServer:
    """The fake. `script` holds what the next requests to a path ending get instead of an answer."""

    def __init__(self, records: int = 0) -> None:
        self.records: dict[str, TrainingRecord] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, Run] = {}
        self.updates: list[tuple[str, RunUpdate]] = []
        self.versions: dict[str, VersionCreate] = {}
        self.consumed: list[str] = []
        self.set_aside: list[str] = []
        self.log: list[str] = []
        self.headers: list[httpx.Headers] = []
        self.script: dict[str, list[Exception | Callable[[], None]]] = {}
        self.after: dict[str, list[Exception]] = {}
        self.remembered: dict[tuple[str, str], tuple[bytes, httpx.Response]] = {}
        self.heartbeats = 0
        self._lock = threading.Lock()
        self.add_records(records)

    def add_records(self, count: int) -> None:
        for _ in range(count):
            fresh = record(len(self.records))
            self.records[fresh.response_id] = fresh

    def expire_leases(self) -> None:
        """As if every worker had been silent for too long."""
        for batch in self.batches.values():
            if batch["state"] == "leased":
                batch["state"] = "expired"

    def free(self) -> list[str]:
        held = {i for b in self.batches.values() if b["state"] == "leased" for i in b["records"]}
        return [i for i in self.records if i not in held and i not in self.consumed and i not in self.set_aside]

    def states(self) -> list[str]:
        return [batch["state"] for batch in self.batches.values()]

    # transport

    def client(self) -> httpx.Client:
        """An httpx client whose every request ends here."""
        return httpx.Client(
            base_url="http://fake.server",
            transport=httpx.MockTransport(self.handle),
            headers={"Authorization": f"Bearer {KEY}"},
        )

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Listen on a free port of this machine; yields the address."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = httpx.Request(
                    self.command, f"http://fake{self.path}", headers=dict(self.headers), content=body
                )
                try:
                    response = fake.handle(request)
                except httpx.TransportError:
                    self.close_connection = True
                    return
                self.send_response(response.status_code)
                for name, value in response.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(response.content)

            do_GET = do_POST = _answer  # names that the base class asks for

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
            http.daemon_threads = True
            thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            try:
                yield f"http://127.0.0.1:{http.server_address[1]}"
            finally:
                http.shutdown()
                thread.join()

    def handle(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            path = request.url.path
            self.log.append(f"{request.method} {path}")
            self.headers.append(request.headers)
            try:
                self._follow_script(self.script, path)
                response = self._remembered(request, path)
                self._follow_script(self.after, path)
            except Refusal as refusal:
                return _error(refusal)
            return response

    def _follow_script(self, script: dict[str, list[Any]], path: str) -> None:
        for ending, steps in script.items():
            if path.endswith(ending) and steps:
                step = steps.pop(0)
                if isinstance(step, Exception):
                    raise step
                step()

    def _remembered(self, request: httpx.Request, path: str) -> httpx.Response:
        key = request.headers.get("Idempotency-Key")
        if key is None:
            return self._route(request, path)
        if (path, key) in self.remembered:
            body, response = self.remembered[path, key]
            if body != request.content:
                raise Refusal(409, "this idempotency key was used with another body", code="idempotency_mismatch")
            return httpx.Response(response.status_code, content=response.content)
        response = self._route(request, path)
        self.remembered[path, key] = (request.content, response)
        return response

    def _route(self, request: httpx.Request, path: str) -> httpx.Response:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            raise Refusal(401, "Missing or wrong API key.")
        body = request.content
        status = 201 if path == "/v1/versions" else 200
        content = self._answer(path, body).model_dump_json().encode()
        return httpx.Response(status, content=content, headers={"Content-Type": "application/json"})

    def _answer(self, path: str, body: bytes) -> BaseModel:
        parts = path.strip("/").split("/")[1:]
        plain: dict[tuple[str, ...], Callable[[], BaseModel]] = {
            ("batches:lease",): lambda: self._lease(LeaseRequest.model_validate_json(body)),
            ("training", "runs"): lambda: self._create_run(RunCreate.model_validate_json(body)),
            ("training", "generate"): lambda: _generate(GenerateRequest.model_validate_json(body)),
            ("versions",): lambda: self._register(VersionCreate.model_validate_json(body)),
        }
        if tuple(parts) in plain:
            return plain[tuple(parts)]()
        match parts:
            case ["batches", target]:
                batch_id, _, verb = target.partition(":")
                return self._batch(batch_id, verb, json.loads(body))
            case ["training", "runs", run_id]:
                return self._run(run_id)
            case ["training", "runs", run_id, "metrics"]:
                return self._update(run_id, RunUpdate.model_validate_json(body))
        raise Refusal(404, f"no such path: {path}")

    # endpoints

    def _lease(self, ask: LeaseRequest) -> Batch:
        for batch_id, held in self.batches.items():
            if held["state"] == "leased" and held["worker"] == ask.worker:
                if time.monotonic() < held["until"]:
                    return self._as_batch(batch_id, ask, resumed=True)
                held["state"] = "expired"
        free = self.free()
        if len(free) < ask.min_records:
            reason = f"{len(free)} of {ask.min_records} records"
            return Batch(id=None, state="insufficient_data", reason=reason, available=len(free), needed=ask.min_records)
        batch_id = f"batch-{len(self.batches)}"
        until = time.monotonic() + ask.lease_seconds
        self.batches[batch_id] = {
            "worker": ask.worker,
            "state": "leased",
            "records": free[: ask.max_records],
            "until": until,
        }
        return self._as_batch(batch_id, ask, resumed=False)

    def _as_batch(self, batch_id: str, ask: LeaseRequest, *, resumed: bool) -> Batch:
        ids = self.batches[batch_id]["records"]
        return Batch(
            id=batch_id,
            state="leased",
            resumed=resumed,
            available=len(self.free()) + len(ids),
            needed=ask.min_records,
            lease_expires_at=NOW + timedelta(seconds=ask.lease_seconds),
            records=[self.records[i] for i in ids],
        )

    def _held(self, batch_id: str, worker: str | None = None) -> dict[str, Any]:
        if batch_id not in self.batches:
            raise Refusal(404, f"no batch {batch_id}")
        batch = self.batches[batch_id]
        if batch["state"] != "leased" or (worker is not None and batch["worker"] != worker):
            raise Refusal(409, f"{batch_id} is {batch['state']}, not held by {worker}")
        return batch

    def _batch(self, batch_id: str, verb: str, body: dict[str, Any]) -> LeaseState:
        batch = self._held(batch_id, body["worker"])
        if verb == "heartbeat":
            self.heartbeats += 1
            batch["until"] = time.monotonic() + body["lease_seconds"]
        elif verb == "fail":
            batch |= {"state": "released" if body["release"] else "discarded", "reason": body["reason"]}
            if not body["release"]:
                self.set_aside += batch["records"]
        else:
            raise Refusal(404, f"no such verb: {verb}")
        return LeaseState(id=batch_id, state=batch["state"], reason=batch.get("reason"))

    def _create_run(self, ask: RunCreate) -> Run:
        self._held(ask.batch_id, ask.worker)
        for run in self.runs.values():
            if run.batch_id == ask.batch_id:
                return run
        number = len(self.runs) + 1
        parent = f"v{max((int(name[1:]) for name in self.versions), default=0)}"
        run = Run(
            id=f"run-{number}",
            batch_id=ask.batch_id,
            version=f"v{number}",
            parent="base" if parent == "v0" else parent,
            state="running",
            created_at=NOW,
            updated_at=NOW,
        )
        self.runs[run.id] = run
        return run

    def _run(self, run_id: str) -> Run:
        if run_id not in self.runs:
            raise Refusal(404, f"no run {run_id}")
        return self.runs[run_id]

    def _update(self, run_id: str, update: RunUpdate) -> Run:
        run = self._run(run_id)
        self.updates.append((run_id, update))
        if update.state is not None:
            run = run.model_copy(update={"state": update.state, "reason": update.reason})
            self.runs[run_id] = run
        return run

    def _register(self, ask: VersionCreate) -> Version:
        if ask.name in self.versions:
            raise Refusal(409, f"{ask.name} exists")
        batches = [self._held(batch_id) for batch_id in ask.batch_ids]
        self._run(ask.run_id)
        for batch in batches:
            batch["state"] = "consumed"
            self.consumed += batch["records"]
        self.versions[ask.name] = ask
        ended = "published" if ask.outcome == "candidate" else "rejected"
        self.runs[ask.run_id] = self.runs[ask.run_id].model_copy(update={"state": ended})
        return Version(
            name=ask.name,
            state="loading" if ask.outcome == "candidate" else "rejected",
            parent=ask.parent,
            fingerprint=f"{ask.name}-{ask.manifest_sha256[:8]}",
            created_at=NOW,
        )


def _generate(ask: GenerateRequest) -> GenerateResponse:
    answers = [
        GeneratedAnswer(
            prompt_index=index, prompt_ids=[1], response_ids=[2], logprobs=[-1.0], text="fake", finish_reason="stop"
        )
        for index in range(len(ask.prompts))
        for _ in range(ask.n)
    ]
    return GenerateResponse(version=ask.version, answers=answers)


def _error(refusal: Refusal) -> httpx.Response:
    body = {"error": {"message": str(refusal), "type": "fake_error", "param": None, "code": refusal.code}}
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return httpx.Response(refusal.status, json=body, headers=headers)
