"""The app: everything put together, opened and closed by its lifespan."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from plaudit_server.engine.base import Engine
from plaudit_server.middleware import RequestShield, install_error_handlers
from plaudit_server.routes import chat, feedback, governance, ops, replicas, training, versions
from plaudit_server.routes.ops import RELEASE
from plaudit_server.services import open_services
from plaudit_server.settings import Settings
from plaudit_server.store.database import Database
from plaudit_server.telemetry import Telemetry, log_event

logger = logging.getLogger(__name__)

_ABOUT = """Serves a language model, learns from its users' feedback, and proves every swap.

Every error has OpenAI's shape. Every POST takes `Idempotency-Key`. Lists continue with `after=<next>`."""


def create_app(settings: Settings, engine: Engine | None = None, database: Database | None = None) -> FastAPI:
    """The server as an ASGI app. Nothing is opened until its lifespan begins; what is given is closed with it.

    Args:
        settings: where the data lies and how to behave.
        engine: unset: the one that the settings name.
        database: unset: the one that the settings name.
    """
    telemetry = Telemetry()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_services(settings, telemetry, engine, database) as services:
            app.state.services = services
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
    app.add_middleware(RequestShield, telemetry=telemetry, max_body_bytes=settings.max_body_bytes)
    install_error_handlers(app)
    for router in (chat.router, feedback.router, versions.router, training.router, governance.router, ops.router):
        app.include_router(router)
    app.include_router(replicas.router)
    app.include_router(ops.open_router)
    return app


def _say_what_is_assumed(settings: Settings) -> None:
    if settings.consent_default is None:
        log_event(
            logger,
            logging.WARNING,
            "PLAUDIT_CONSENT_DEFAULT is not set: an exchange is learnt from only where its request says so",
        )
