"""What the trainer says to the server."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from plaudit._binding import D_co, Resource, endpoint, pages
from plaudit._core import Call, ask, get, post, segment
from plaudit.wire.base import Page
from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import (
    AckRequest,
    Batch,
    BatchState,
    FailRequest,
    GeneratePrompt,
    GenerateRequest,
    GenerateResponse,
    HeartbeatRequest,
    LeaseRequest,
    LeaseState,
    Run,
    RunCreate,
    RunMetricPoint,
    RunState,
    RunUpdate,
    ScoreRequest,
    ScoreResponse,
    TokenSequence,
)


class Training(Resource[D_co]):
    """`client.training`."""

    @endpoint
    def lease(
        self,
        worker: str,
        *,
        max_records: int | None = None,
        min_records: int | None = None,
        lease_seconds: float | None = None,
        max_prompts: int | None = None,
    ) -> Call[Batch]:
        """Lease feedback to learn from; state `insufficient_data` says what is missing.

        A worker that still holds a live lease gets that one again, `resumed`.
        """
        body = ask(
            LeaseRequest,
            worker=worker,
            max_records=max_records,
            min_records=min_records,
            lease_seconds=lease_seconds,
            max_prompts=max_prompts,
        )
        return post("/v1/batches:lease", Batch, body)

    @endpoint
    def batch(self, batch_id: str) -> Call[LeaseState]:
        """Where a batch stands."""
        return get(f"/v1/batches/{segment(batch_id)}", LeaseState)

    @endpoint
    def batches(
        self, *, state: BatchState | None = None, limit: int | None = None, after: str | None = None
    ) -> Call[Page[LeaseState]]:
        """Batches without their records, newest first, with what each passed over."""
        return get("/v1/batches", Page[LeaseState], state=state, limit=limit, after=after)

    iterate_batches = pages(batches)

    @endpoint
    def heartbeat(self, batch_id: str, worker: str, *, lease_seconds: float | None = None) -> Call[LeaseState]:
        """Keep a lease alive.

        Raises:
            ConflictError: it is lost: expired, or another worker's.
        """
        body = ask(HeartbeatRequest, worker=worker, lease_seconds=lease_seconds)
        return post(f"/v1/batches/{segment(batch_id)}:heartbeat", LeaseState, body)

    @endpoint
    def ack(self, batch_id: str, worker: str, *, reason: str | None = None) -> Call[LeaseState]:
        """Consume a batch without a version. Registering a version acknowledges its batches by itself."""
        return post(f"/v1/batches/{segment(batch_id)}:ack", LeaseState, ask(AckRequest, worker=worker, reason=reason))

    @endpoint
    def fail(self, batch_id: str, worker: str, reason: str, *, release: bool | None = None) -> Call[LeaseState]:
        """Give a batch back; with `release=False`, set its records aside for good."""
        body = ask(FailRequest, worker=worker, reason=reason, release=release)
        return post(f"/v1/batches/{segment(batch_id)}:fail", LeaseState, body)

    @endpoint
    def create_run(
        self,
        batch_id: str | None,
        worker: str,
        *,
        parent: str | None = None,
        lease_seconds: float | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> Call[Run]:
        """Begin a run on a leased batch. The same batch always gives the same run and version name.

        Args:
            batch_id: None for a run that learns from no feedback.
            parent: only without a batch: the version it starts from; else the stable one.
            lease_seconds: only without a batch: how long the empty batch made for it is leased.
        """
        body = ask(
            RunCreate, batch_id=batch_id, worker=worker, parent=parent, lease_seconds=lease_seconds, config=config
        )
        return post("/v1/training/runs", Run, body)

    @endpoint
    def update_run(
        self,
        run_id: str,
        *,
        stage: str | None = None,
        step: int | None = None,
        progress: float | None = None,
        metrics: Mapping[str, float] | None = None,
        state: Literal["failed"] | None = None,
        reason: str | None = None,
    ) -> Call[Run]:
        """Report progress: the stage, a step's metrics, or the run's failure."""
        body = ask(RunUpdate, stage=stage, step=step, progress=progress, metrics=metrics, state=state, reason=reason)
        return post(f"/v1/training/runs/{segment(run_id)}/metrics", Run, body)

    @endpoint
    def runs(
        self, *, state: RunState | None = None, limit: int | None = None, after: str | None = None
    ) -> Call[Page[Run]]:
        """Runs, newest first."""
        return get("/v1/training/runs", Page[Run], state=state, limit=limit, after=after)

    iterate_runs = pages(runs)

    @endpoint
    def run(self, run_id: str) -> Call[Run]:
        """One run."""
        return get(f"/v1/training/runs/{segment(run_id)}", Run)

    @endpoint
    def metrics(self, run_id: str) -> Call[Page[RunMetricPoint]]:
        """A run's metrics, step by step, oldest first."""
        return get(f"/v1/training/runs/{segment(run_id)}/metrics", Page[RunMetricPoint])

    @endpoint
    def generate(
        self,
        version: str,
        prompts: Sequence[GeneratePrompt],
        *,
        n: int | None = None,
        sampling: SamplingParams | None = None,
        timeout: float | None = None,
    ) -> Call[GenerateResponse]:
        """Draw answers at low priority, with token ids and sampling-time log-probabilities (nats).

        Args:
            version: who answers.
            prompts: as messages or as token ids.
            n: answers to each prompt.
            timeout: seconds to wait, instead of the client's own.
        """
        body = ask(GenerateRequest, version=version, prompts=prompts, n=n, sampling=sampling)
        return post("/v1/training/generate", GenerateResponse, body, timeout_s=timeout)

    @endpoint
    def score(
        self, version: str, sequences: Sequence[TokenSequence], *, timeout: float | None = None
    ) -> Call[ScoreResponse]:
        """The log-probability (nats) of each response token under a version."""
        body = ask(ScoreRequest, version=version, sequences=sequences)
        return post("/v1/training/score", ScoreResponse, body, timeout_s=timeout)
