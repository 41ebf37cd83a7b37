"""Health, readiness, metrics. Health and readiness need no key: load balancers have none, and they tell no secrets."""

import time
from importlib.metadata import version as release_of
from typing import Literal

from fastapi import APIRouter, Request, Response

from plaudit.wire.ops import Health
from plaudit_server.domain.moments import now_ms, to_moment
from plaudit_server.routes.shared import Reader, S, guarded_router
from plaudit_server.scrape import scrape
from plaudit_server.services import Services
from plaudit_server.telemetry import METRICS_CONTENT_TYPE

open_router = APIRouter(tags=["operations"])
router = guarded_router("operations")

RELEASE = release_of("plaudit")

EngineState = Literal["starting", "ready", "down"]


@open_router.get("/healthz", summary="The process answers")
async def healthz(services: S) -> Health:
    """Always 200 while the process answers; says how the engine is."""
    return _health(services)


@open_router.get("/readyz", responses={503: {"model": Health, "description": "chat would not be answered"}})
async def readyz(services: S, response: Response) -> Health:
    """200 where a chat on `policy` would be answered."""
    health = _health(services)
    if health.status != "ok":
        response.status_code = 503
    return health


def _health(services: Services) -> Health:
    replicas = services.engine.health()
    states = {replica.state for replica in replicas}
    engine: EngineState = "ready" if "ready" in states else "starting" if "starting" in states else "down"
    answers = services.serving.routing.answers()
    return Health(
        status="ok" if answers else "degraded" if services.engine.is_up() or engine == "down" else "starting",
        release=RELEASE,
        engine=engine,
        fake_engine=services.engine.is_fake,
        replicas=replicas,
        stable=services.serving.catalog.stable,
        trainer_seen_at=None if services.trainer_seen_ms is None else to_moment(services.trainer_seen_ms),
        now=to_moment(now_ms()),
        uptime_s=round(time.monotonic() - services.started, 3),
    )


@router.get("/metrics", summary="Prometheus", response_class=Response)
async def metrics(request: Request, services: S, principal: Reader) -> Response:
    """Prometheus' text format. Needs a viewer's key: figures by version tell a competitor much."""
    return Response(await scrape(services), media_type=METRICS_CONTENT_TYPE)
