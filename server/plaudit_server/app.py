"""The app: everything put together, opened and closed by its lifespan."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI

from plaudit_server.access_log import AccessLog
from plaudit_server.cross_origin import CrossOrigin
from plaudit_server.engine.base import Engine
from plaudit_server.middleware import RequestShield, install_error_handlers
from plaudit_server.routes import (
    chat,
    feedback,
    governance,
    ops,
    overview,
    pages,
    replicas,
    rollouts,
    signals,
    training,
    versions,
)
from plaudit_server.routes.ops import RELEASE
from plaudit_server.services import open_services
from plaudit_server.settings import Settings
from plaudit_server.store.database import Database
from plaudit_server.telemetry import Telemetry, log_event
from plaudit_server.tracing import RequestSpans, Tracing, open_tracing

logger = logging.getLogger(__name__)

_ABOUT = """Serves a language model, learns from its users' feedback, and proves every swap.

Every error has OpenAI's shape. Every POST takes `Idempotency-Key`. Lists continue with `after=<next>`."""


def create_app(
    settings: Settings,
    engine: Engine | None = None,
    database: Database | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The server as an ASGI app. Nothing is opened until its lifespan begins; what is given is closed with it.

    Args:
        settings: where the data lies and how to behave.
        engine: unset: the one that the settings name.
        database: unset: the one that the settings name.
        tracing: unset: to where the settings say, or none.

    Raises:
        SettingError: traces are wanted, and OpenTelemetry is not installed.
    """
    tracing = tracing or open_tracing(settings.otlp_endpoint)
    telemetry = Telemetry(tracing)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if tracing is not None:
                stack.push_async_callback(tracing.close)
            app.state.services = await stack.enter_async_context(open_services(settings, telemetry, engine, database))
            _say_what_is_assumed(settings)
            yield

    app = FastAPI(
        title="Plaudit",
        version=RELEASE,
        description=_ABOUT,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url="/openapi.json",
        docs_url="/docs",
        redoc_url=None,
        separate_input_output_schemas=True,
    )
    app.add_middleware(
        RequestShield,
        telemetry=telemetry,
        max_header_bytes=settings.max_header_bytes,
        max_body_bytes=settings.max_body_bytes,
    )
    app.add_middleware(CrossOrigin, origins=settings.cors_origins)
    if settings.access_log:
        app.add_middleware(AccessLog)
    if tracing is not None:
        app.add_middleware(RequestSpans, tracing=tracing)
    install_error_handlers(app)
    for each in (chat, feedback, signals, versions, rollouts, training, governance, replicas, overview, ops):
        app.include_router(each.router)
    app.include_router(feedback.token_router)
    app.include_router(ops.open_router)
    app.include_router(pages.pages_router())
    return app


def _say_what_is_assumed(settings: Settings) -> None:
    if settings.consent_default is None:
        log_event(
            logger,
            logging.WARNING,
            "PLAUDIT_CONSENT_DEFAULT is not set: an exchange is learnt from only where its request says so",
        )
