"""What an app is made of, opened in order and closed in reverse."""

import asyncio
import fcntl
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from plaudit_server.answer_log import AnswerLog
from plaudit_server.answering import Answering
from plaudit_server.auth import KeyRing
from plaudit_server.denials import AuditedDenials
from plaudit_server.domain.grants import GrantSigner
from plaudit_server.domain.moments import now_ms
from plaudit_server.domain.privacy import Cipher, NoRedaction, PlainCipher, Redactor, hash_end_user
from plaudit_server.engine.base import Engine
from plaudit_server.engine.traced import TracedEngine
from plaudit_server.errors import PlauditError, SettingError
from plaudit_server.first_keys import hash_key, mint_first_keys
from plaudit_server.limits import Limits
from plaudit_server.live import Live
from plaudit_server.membership import Membership
from plaudit_server.rollouts import Rollouts
from plaudit_server.serving import Serving
from plaudit_server.settings import Settings
from plaudit_server.store import feedback_tokens, idempotency, keys
from plaudit_server.store.database import Database, sqlite_url
from plaudit_server.telemetry import Telemetry, log_event

logger = logging.getLogger(__name__)

HOUSEKEEPING_S = 3600


@dataclass(slots=True)
class Services:
    """One app's parts.

    `secret` keys the hashes of end users and prompts. `server_id` tells this server from others on the database, also
    after a restart. `trainer_seen_ms` is when a trainer last called this process.
    """

    settings: Settings
    telemetry: Telemetry
    database: Database
    engine: Engine
    membership: Membership
    keys: KeyRing
    limits: Limits
    denials: AuditedDenials
    tokens: GrantSigner
    serving: Serving
    answering: Answering
    rollouts: Rollouts
    live: Live
    secret: bytes
    server_id: str
    redactor: Redactor
    cipher: Cipher
    started: float = field(default_factory=time.monotonic)
    trainer_seen_ms: int | None = None

    def hash_user(self, identifier: str) -> str:
        """What is kept of an end user's identifier."""
        return hash_end_user(self.secret, identifier)

    def hash_key(self, key_id: str) -> str:
        """Who is meant where a request names nobody: its API key."""
        return self.hash_user(f"key:{key_id}")


@asynccontextmanager
async def open_services(
    settings: Settings, telemetry: Telemetry, engine: Engine | None, database: Database | None
) -> AsyncIterator[Services]:
    """Open everything. The engine is only told to begin: the API answers before it is ready.

    Raises:
        SettingError: the data folder cannot be used, another server uses it, or the model is not there.
        DatabaseUnusable: as its message says.
    """
    async with AsyncExitStack() as stack:
        server_id = stack.enter_context(data_folder(settings.data))
        if database is None:
            url = settings.database_url or sqlite_url(settings.data / "plaudit.db")
            database = await Database.open(url, connections=settings.database_connections)
        stack.push_async_callback(database.close)
        secret = await hash_key(settings, database)
        await database.write(lambda conn: idempotency.abandon_unfinished(conn, server_id))
        await mint_first_keys(settings.data, database)
        stack.push_async_callback(_ended, asyncio.create_task(_keep_house(database)))
        running = await asyncio.to_thread(build_engine, settings) if engine is None else engine
        if telemetry.tracing is not None:
            running = TracedEngine(running, telemetry.tracing)
        services = _assemble(settings, telemetry, database, running, secret=secret, server_id=server_id)
        await services.membership.start()
        stack.push_async_callback(services.membership.close)
        await running.start()
        stack.push_async_callback(running.close)
        await services.serving.start()
        services.rollouts.start()
        stack.push_async_callback(services.answering.close)
        stack.push_async_callback(services.serving.close)
        stack.push_async_callback(services.rollouts.close)
        stack.callback(services.live.close)
        yield services


def _assemble(
    settings: Settings, telemetry: Telemetry, database: Database, engine: Engine, *, secret: bytes, server_id: str
) -> Services:
    redactor, cipher = NoRedaction(), PlainCipher()
    membership = Membership(database, engine, seeds=settings.engine_urls)
    serving = Serving(
        database,
        engine,
        telemetry,
        max_resident=settings.engine_max_loras,
        auto_promote=settings.auto_promote,
        swap_wait_s=settings.swap_wait_s,
        membership=membership,
    )
    limits = Limits(settings, telemetry)
    log = AnswerLog(database, telemetry, secret=secret, redactor=redactor, cipher=cipher)
    return Services(
        settings=settings,
        telemetry=telemetry,
        database=database,
        engine=engine,
        membership=membership,
        keys=KeyRing(lambda key: database.read(lambda conn: keys.find(conn, key)), limits),
        limits=limits,
        denials=AuditedDenials(database, telemetry),
        tokens=GrantSigner(secret),
        serving=serving,
        answering=Answering(
            engine=engine,
            demand=serving.demand,
            log=log,
            telemetry=telemetry,
            max_pending=settings.max_pending_chats,
            max_pending_key=settings.max_pending_chats_key,
        ),
        rollouts=Rollouts(database, serving, telemetry, tick_s=settings.rollout_tick_s),
        live=Live(tick_s=settings.live_tick_s, max_listeners=settings.max_live_listeners),
        secret=secret,
        server_id=server_id,
        redactor=redactor,
        cipher=cipher,
    )


def build_engine(settings: Settings) -> Engine:
    """The engine that the settings name. Blocks while the bundled model is unpacked.

    Raises:
        SettingError: the model is not there, or the engine cannot serve it.
    """
    if settings.engine == "fake":
        from plaudit_server.engine.fake import FakeEngine

        return FakeEngine()
    from plaudit_server.engine.bundled import ensure_model
    from plaudit_server.engine.transformers_engine import serves_by_transformers, transformers_engine
    from plaudit_server.engine.vllm import VllmEngine

    base = ensure_model(settings)
    return transformers_engine(settings, base) if serves_by_transformers(settings, base) else VllmEngine(settings, base)


@contextmanager
def data_folder(folder: Path) -> Iterator[str]:
    """Make the data folder and hold it: two servers on one folder would train and serve past each other.

    The kernel lets go of the lock when the process ends, however it ends. Gives the id of the server whose folder it
    is, which is the same at every start.

    Raises:
        SettingError: it cannot be written, or another server holds it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "server.lock").open("a+", encoding="ascii")
    except OSError as error:
        raise SettingError(
            f"the data folder {folder} cannot be written ({error.strerror}): set PLAUDIT_DATA to one that can"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingError(
                f"another Plaudit server uses the data folder {folder}: stop it, or set PLAUDIT_DATA to another folder"
            ) from error
        yield _server_id(lock)


def _server_id(lock: TextIO) -> str:
    lock.seek(0)
    known = lock.read(64).strip()
    if known:
        return known
    made = secrets.token_hex(16)
    lock.write(made)
    lock.flush()
    return made


async def _keep_house(database: Database) -> None:
    """Drop what has lapsed: answers that were kept for repeated requests, and used feedback tokens."""
    while True:
        try:
            await database.write(lambda conn: idempotency.purge(conn, now_ms=now_ms()))
            await database.write(lambda conn: feedback_tokens.purge(conn, now_ms=now_ms()))
        except PlauditError as error:
            log_event(logger, logging.WARNING, "housekeeping.failed", reason=error.message)
        await asyncio.sleep(HOUSEKEEPING_S)


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
