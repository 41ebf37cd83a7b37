"""The trainer's endpoints: leases, runs, answers drawn for training, scores."""

from fastapi import Response

from plaudit.wire.base import Page
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
)
from plaudit_server import leasing, views
from plaudit_server.domain.moments import now_ms
from plaudit_server.errors import Unprocessable
from plaudit_server.routes.shared import After, Limit, S, Trainer, Viewer, errors, guarded_router, page
from plaudit_server.store import leases, runs

router = guarded_router("training")


@router.post("/v1/batches:lease", responses=errors(409), summary="Lease feedback to learn from")
async def lease(given: LeaseRequest, services: S, principal: Trainer) -> Batch:
    """Records with tokens, log-probabilities and votes; or `insufficient_data` with what is missing."""
    services.trainer_seen_ms = now_ms()
    data = await leasing.take(services.database, given, now_ms=now_ms())
    services.telemetry.leases.labels(data.state).inc()
    return views.batch(data, services.cipher)


@router.get("/v1/batches", summary="List batches")
async def list_batches(
    services: S, principal: Viewer, state: BatchState | None = None, after: After = None, limit: Limit = 20
) -> Page[LeaseState]:
    """Batches without their records, newest first, with what was passed over when each was leased."""
    rows = await services.database.read(lambda conn: leases.page(conn, state=state, after=after, limit=limit))
    items = [views.lease_state(row) for row in rows.items]
    return page(items, has_more=rows.has_more, last_id=rows.items[-1].id if rows.items else None)


@router.get("/v1/batches/{batch_id}", responses=errors(404), summary="Where a batch stands")
async def get_batch(batch_id: str, services: S, principal: Viewer) -> LeaseState:
    """A batch without its records."""
    return views.lease_state(await services.database.read(lambda conn: leases.get(conn, batch_id)))


@router.post("/v1/batches/{batch_id}:heartbeat", responses=errors(404, 409), summary="Keep a lease alive")
async def heartbeat(batch_id: str, given: HeartbeatRequest, services: S, principal: Trainer) -> LeaseState:
    """409 `lease_lost` where it is over."""
    services.trainer_seen_ms = now_ms()
    row = await services.database.write(lambda conn: leases.heartbeat(conn, batch_id, given, now_ms=now_ms()))
    return views.lease_state(row)


@router.post("/v1/batches/{batch_id}:ack", responses=errors(404, 409), summary="Consume a batch without a version")
async def ack(batch_id: str, given: AckRequest, services: S, principal: Trainer) -> LeaseState:
    """Its records are trained on for ever."""
    return views.lease_state(
        await services.database.write(lambda conn: leases.ack(conn, batch_id, given, now_ms=now_ms()))
    )


@router.post("/v1/batches/{batch_id}:fail", responses=errors(404, 409), summary="Give a batch back")
async def fail(batch_id: str, given: FailRequest, services: S, principal: Trainer) -> LeaseState:
    """Its records wait for a later batch, or with `release: false` are set aside."""
    row = await services.database.write(lambda conn: leases.fail(conn, batch_id, given, now_ms=now_ms()))
    return views.lease_state(row)


@router.post("/v1/training/runs", status_code=201, responses=errors(404, 409), summary="Begin a run")
async def create_run(given: RunCreate, response: Response, services: S, principal: Trainer) -> Run:
    """Begin a run on a leased batch; the same batch always has the same run and version name."""
    return views.run(await services.database.write(lambda conn: runs.create(conn, given, now_ms=now_ms())))


@router.get("/v1/training/runs", summary="List runs")
async def list_runs(
    services: S, principal: Viewer, state: RunState | None = None, after: After = None, limit: Limit = 20
) -> Page[Run]:
    """Runs, newest first."""
    rows = await services.database.read(lambda conn: runs.page(conn, state=state, after=after, limit=limit))
    items = [views.run(row) for row in rows.items]
    return page(items, has_more=rows.has_more, last_id=rows.items[-1].id if rows.items else None)


@router.get("/v1/training/runs/{run_id}", responses=errors(404), summary="One run")
async def get_run(run_id: str, services: S, principal: Viewer) -> Run:
    """A run with the newest value of each metric."""
    return views.run(await services.database.read(lambda conn: runs.get(conn, run_id)))


@router.get("/v1/training/runs/{run_id}/metrics", responses=errors(404), summary="Metrics of a run")
async def get_metrics(run_id: str, services: S, principal: Viewer) -> Page[RunMetricPoint]:
    """Every step, oldest first."""
    points = await services.database.read(lambda conn: runs.metrics(conn, run_id))
    return Page(data=[views.metric_point(point) for point in points])


@router.post("/v1/training/runs/{run_id}/metrics", responses=errors(404, 409), summary="Report progress")
async def report(run_id: str, given: RunUpdate, services: S, principal: Trainer) -> Run:
    """The stage a run is in, a step's metrics, or its failure."""
    return views.run(await services.database.write(lambda conn: runs.update(conn, run_id, given, now_ms=now_ms())))


@router.post("/v1/training/generate", responses=errors(404, 502), summary="Draw answers for training")
async def generate(given: GenerateRequest, services: S, principal: Trainer) -> GenerateResponse:
    """At low priority, with ids and log-probabilities; never logged as users' traffic."""
    for index, prompt in enumerate(given.prompts):
        _check_prompt(prompt, index)
    async with services.serving.routing.speaking(given.version):
        answers = await services.engine.generate(
            given.prompts, version=given.version, n=given.n, sampling=given.sampling
        )
    return GenerateResponse(
        version=given.version, answers=answers, failed=len(given.prompts) - len({a.prompt_index for a in answers})
    )


def _check_prompt(prompt: GeneratePrompt, index: int) -> None:
    if (prompt.messages is None) == (prompt.prompt_ids is None):
        raise Unprocessable("Give each prompt either messages or prompt_ids.", param=f"prompts.{index}")


@router.post("/v1/training/score", responses=errors(404, 502), summary="Log-probabilities under a version")
async def score(given: ScoreRequest, services: S, principal: Trainer) -> ScoreResponse:
    """Nats, one for each response token."""
    async with services.serving.routing.speaking(given.version):
        logprobs = await services.engine.score(given.sequences, version=given.version)
    return ScoreResponse(version=given.version, logprobs=logprobs)
