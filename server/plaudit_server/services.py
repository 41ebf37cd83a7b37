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

from plaudit.wire.ops import Role
from plaudit_server.answer_log import AnswerLog
from plaudit_server.answering import Answering
from plaudit_server.auth import KeyRing, read_secret, write_secret
from plaudit_server.domain.moments import now_ms
from plaudit_server.domain.privacy import Cipher, NoRedaction, PlainCipher, Redactor, hash_end_user
from plaudit_server.engine.base import Engine
from plaudit_server.errors import PlauditError, SettingError
from plaudit_server.membership import Membership
from plaudit_server.serving import Serving
from plaudit_server.settings import Settings
from plaudit_server.store import Connection, idempotency, keys
from plaudit_server.store.database import Database, sqlite_url
from plaudit_server.telemetry import Telemetry, log_event

logger = logging.getLogger(__name__)

HOUSEKEEPING_S = 3600

_MINTED_AT_START: tuple[tuple[str, Role], ...] = (("admin", "admin"), ("trainer", "trainer"))


@dataclass(slots=True)
class Services:
    """One app's parts.

    `secret` keys the hashes of end users and prompts. `trainer_seen_ms` is when a trainer last called this process.
    """

    settings: Settings
    telemetry: Telemetry
    database: Database
    engine: Engine
    membership: Membership
    keys: KeyRing
    serving: Serving
    answering: Answering
    secret: bytes
    redactor: Redactor
    cipher: Cipher
    started: float = field(default_factory=time.monotonic)
    trainer_seen_ms: int | None = None

    def hash_user(self, identifier: str) -> str:
        """What is kept of an end user's identifier."""
        return hash_end_user(self.secret, identifier)


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
        stack.enter_context(data_folder(settings.data))
        secret = _secret(settings.data / "hash.key")
        if database is None:
            database = await Database.open(settings.database_url or sqlite_url(settings.data / "plaudit.db"))
        stack.push_async_callback(database.close)
        await database.write(idempotency.abandon_unfinished)
        await _mint_first_keys(settings.data, database)
        stack.push_async_callback(_ended, asyncio.create_task(_keep_house(database)))
        running = await asyncio.to_thread(build_engine, settings) if engine is None else engine
        services = _assemble(settings, telemetry, database, running, secret)
        await services.membership.start()
        stack.push_async_callback(services.membership.close)
        await running.start()
        stack.push_async_callback(running.close)
        await services.serving.start()
        stack.push_async_callback(services.answering.close)
        stack.push_async_callback(services.serving.close)
        yield services


def _assemble(settings: Settings, telemetry: Telemetry, database: Database, engine: Engine, secret: bytes) -> Services:
    redactor, cipher = NoRedaction(), PlainCipher()
    membership = Membership(database, engine, seeds=settings.engine_urls)
    serving = Serving(
        database,
        engine,
        telemetry,
        max_resident=settings.engine_max_loras,
        auto_promote=settings.auto_promote,
        membership=membership,
    )
    log = AnswerLog(database, telemetry, secret=secret, redactor=redactor, cipher=cipher)
    return Services(
        settings=settings,
        telemetry=telemetry,
        database=database,
        engine=engine,
        membership=membership,
        keys=KeyRing(lambda key: database.read(lambda conn: keys.find(conn, key))),
        serving=serving,
        answering=Answering(
            engine=engine, serving=serving, log=log, telemetry=telemetry, max_pending=settings.max_pending_chats
        ),
        secret=secret,
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
def data_folder(folder: Path) -> Iterator[None]:
    """Make the data folder and hold it: two servers on one folder would train and serve past each other.

    The kernel lets go of the lock when the process ends, however it ends.

    Raises:
        SettingError: it cannot be written, or another server holds it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "server.lock").open("a")
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
        yield


async def _keep_house(database: Database) -> None:
    """Drop answers that were kept for repeated requests and have lapsed."""
    while True:
        try:
            await database.write(lambda conn: idempotency.purge(conn, now_ms=now_ms()))
        except PlauditError as error:
            log_event(logger, logging.WARNING, "housekeeping.failed", reason=error.message)
        await asyncio.sleep(HOUSEKEEPING_S)


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _secret(path: Path) -> bytes:
    """The key of our hashes: made once; with another one, every user would be a stranger."""
    if not path.exists():
        write_secret(path, secrets.token_hex(32))
    try:
        return bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise SettingError(f"{path} cannot be read ({error}): restore it from a backup of the data folder") from error


async def _is_known(database: Database, secret: str) -> bool:
    return await database.read(lambda conn: keys.find(conn, secret)) is not None


async def _mint_first_keys(folder: Path, database: Database) -> None:
    for name, role in _MINTED_AT_START:
        path = folder / f"{name}.key"
        known = read_secret(path)
        if known and await _is_known(database, known):
            continue
        secret = keys.new_secret()
        # The file first: a key in the database that nobody has the secret of could never be used, nor found out.
        write_secret(path, secret)

        async def create(conn: Connection, name: str = name, role: Role = role, secret: str = secret) -> None:
            await keys.create(conn, name=name, roles=[role], now_ms=now_ms(), secret=secret)

        await database.write(create)
