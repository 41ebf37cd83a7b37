"""SQLite: one writer, whose transactions many callers share.

One task writes. What is asked of it while a commit is under way is gathered into the next transaction, so that a
hundred acknowledged votes cost a few disk flushes and not a hundred. Readers have connections of their own and see the
last commit (WAL).

`synchronous=FULL` makes SQLite flush the write-ahead log at each commit: what `write` has returned from survives a
power cut, not only a killed process. Group commit pays for it.
"""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from plaudit_server.errors import Overloaded, StorageFull
from plaudit_server.store import migrate
from plaudit_server.store.database import Database, DatabaseUnusable, Op, newer_schema

T = TypeVar("T")

_BUSY_TIMEOUT_S = 30
_SWITCH_PAUSE_S = 0.02
_READERS = 4

_DISK = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class SqliteDatabase(Database):
    """An SQLite file."""

    shared = False

    def __init__(self, path: Path, writers: AsyncEngine, readers: AsyncEngine) -> None:
        self._path = path
        self._writers = writers
        self._readers = readers
        self._writer = GroupWriter(writers)

    @classmethod
    async def open_file(cls, url: str) -> "SqliteDatabase":
        """Open and migrate. Folder and file are made where there are none. Raises as `Database.open`."""
        path = _sqlite_path(url)
        _make_file(path)
        await asyncio.to_thread(_switch_to_wal, path)
        writers = _engine(path, begin="BEGIN IMMEDIATE", pool_size=1, read_only=False)
        try:
            async with writers.begin() as conn:
                await conn.run_sync(migrate.upgrade)
        except (DBAPIError, migrate.NewerSchema) as error:
            await writers.dispose()
            raise _unusable(path, error) from error
        return cls(path, writers, _engine(path, begin="BEGIN", pool_size=_READERS, read_only=True))

    async def write(self, op: Op[T], *, touching: Collection[str] = ()) -> T:
        """See `Database.write`. Several ops share a transaction, each in a savepoint of its own."""
        return await self._writer.write(op)

    async def read(self, op: Op[T]) -> T:
        """See `Database.read`."""
        try:
            async with self._readers.connect() as conn, conn.begin():
                return await op(conn)
        except DBAPIError as error:
            raise _translated(error) from error
        except PoolTimeout as error:
            raise Overloaded("Too many database reads wait.") from error

    @property
    def waiting(self) -> int:
        """See `Database.waiting`."""
        return self._writer.waiting

    async def checkpoint(self) -> None:
        """See `Database.checkpoint`. Moves the write-ahead log into the database and empties it.

        A reader in the middle of a snapshot keeps the log from being emptied until the next call.
        """
        await self._writer.pause_for(self._truncate_log)

    async def close(self) -> None:
        """See `Database.close`."""
        await self._writer.close()
        await self._readers.dispose()
        await self._writers.dispose()

    async def _truncate_log(self) -> None:
        await asyncio.to_thread(_truncate_log, self._path)


@dataclass(slots=True)
class _Job:
    run: Op[Any] | None
    outside: Callable[[], Awaitable[None]] | None
    done: "asyncio.Future[Any]"


class GroupWriter:
    """Runs queued ops one after another, many in one transaction, and tells each caller once it is on the disk.

    Args:
        engine: its connections begin with a write lock.
        max_ops: most ops in one transaction.
        max_seconds: no further op joins a transaction that is older than this.
        max_waiting: callers beyond this wait before they may even queue.
    """

    def __init__(
        self, engine: AsyncEngine, *, max_ops: int = 64, max_seconds: float = 0.02, max_waiting: int = 1024
    ) -> None:
        self._engine = engine
        self._max_ops = max_ops
        self._max_seconds = max_seconds
        self._places = asyncio.Semaphore(max_waiting)
        self._queue: asyncio.Queue[_Job | None] = asyncio.Queue()
        self._closed = False
        self._task = asyncio.create_task(self._work(), name="plaudit-writer")

    async def write(self, op: Op[T]) -> T:
        """Run `op` in the next transaction; returns once it is on the disk."""
        result: T = await self._submit(op, None)
        return result

    @property
    def waiting(self) -> int:
        """Callers whose writes have not begun."""
        return self._queue.qsize()

    async def pause_for(self, action: Callable[[], Awaitable[None]]) -> None:
        """Run something between two transactions."""
        await self._submit(None, action)

    async def close(self) -> None:
        """Finish what is queued, then stop. Repeating it is harmless."""
        if not self._closed:
            self._closed = True
            self._queue.put_nowait(None)
        await asyncio.shield(self._task)

    async def _submit(self, op: Op[Any] | None, outside: Callable[[], Awaitable[None]] | None) -> Any:
        async with self._places:
            if self._closed:
                raise Overloaded("The server is shutting down.", code="shutting_down")
            job = _Job(op, outside, asyncio.get_running_loop().create_future())
            self._queue.put_nowait(job)
            return await job.done

    async def _work(self) -> None:
        while (job := await self._queue.get()) is not None:
            if job.done.cancelled():
                continue
            if job.outside is None:
                await self._group(job)
            else:
                _settle(job, await _outcome(job.outside()))

    async def _group(self, first: _Job) -> None:
        """Run `first` and what has queued behind it in one transaction; nobody hears of it before the commit."""
        jobs: list[_Job] = [first]
        outcomes: list[Any] = []
        try:
            async with self._engine.begin() as conn:
                deadline = asyncio.get_running_loop().time() + self._max_seconds
                outcomes.append(await self._one(conn, first))
                while (job := self._next(len(jobs), deadline)) is not None:
                    jobs.append(job)
                    outcomes.append(await self._one(conn, job))
        except Exception as error:  # noqa: BLE001  # the writer must live on, and every caller must hear of it
            # The transaction is gone, and with it what its other ops had done.
            outcomes = [_Failure(_translated(error))] * len(jobs)
        for job, outcome in zip(jobs, outcomes, strict=True):
            _settle(job, outcome)

    async def _one(self, conn: AsyncConnection, job: _Job) -> Any:
        assert job.run is not None
        savepoint = await conn.begin_nested()
        outcome = await _outcome(job.run(conn))
        if not isinstance(outcome, _Failure):
            await savepoint.commit()
        elif isinstance(outcome.error, DBAPIError) and _code(outcome.error) in _DISK | _DAMAGED:
            # SQLite rolls the whole transaction back by itself when the disk fails; the savepoint exists no more.
            raise outcome.error
        else:
            await savepoint.rollback()
        return outcome

    def _next(self, count: int, deadline: float) -> _Job | None:
        """The next job that may join this transaction."""
        while count < self._max_ops and not self._queue.empty() and asyncio.get_running_loop().time() < deadline:
            job = self._queue.get_nowait()
            if job is None or job.outside is not None:
                self._put_back(job)
                return None
            if not job.done.cancelled():
                return job
        return None

    def _put_back(self, job: _Job | None) -> None:
        rest = [job]
        while not self._queue.empty():
            rest.append(self._queue.get_nowait())
        for each in rest:
            self._queue.put_nowait(each)


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


async def _outcome(work: Awaitable[Any]) -> Any:
    """What it returned, or what it raised, wrapped."""
    try:
        return await work
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return _Failure(error)
    except Exception as error:  # noqa: BLE001  # whatever it is belongs to the caller, never to the writer
        return _Failure(error)


def _settle(job: _Job, outcome: Any) -> None:
    if job.done.done():
        return  # its caller went away meanwhile
    if not isinstance(outcome, _Failure):
        job.done.set_result(outcome)
    elif isinstance(outcome.error, asyncio.CancelledError):
        job.done.cancel()
    else:
        job.done.set_exception(outcome.error)


def sqlite_url(path: Path) -> str:
    """The SQLAlchemy URL of an SQLite file."""
    return URL.create("sqlite+aiosqlite", database=str(path)).render_as_string()


def _engine(path: Path, *, begin: str, pool_size: int, read_only: bool) -> AsyncEngine:
    engine = create_async_engine(
        sqlite_url(path),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=_BUSY_TIMEOUT_S,
        hide_parameters=True,  # they are what people wrote, and errors are logged
        # None: the driver begins no transactions by itself; `begin` below does, with the lock we want.
        connect_args={"isolation_level": None, "timeout": _BUSY_TIMEOUT_S},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        if not read_only:
            cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA secure_delete=ON")  # what is erased is overwritten, not merely unlinked
        cursor.execute(f"PRAGMA query_only={'ON' if read_only else 'OFF'}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _switch_to_wal(path: Path) -> None:
    """Have the file in WAL mode before anything else opens it.

    Where two processes switch a new file at once SQLite refuses one of them without waiting, whatever its timeout. What
    else is wrong with the file is told by whoever opens it next.
    """
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=1)) as connection:
        while not _is_wal(connection) and time.monotonic() < deadline:
            time.sleep(_SWITCH_PAUSE_S)


def _is_wal(connection: sqlite3.Connection) -> bool:
    """Whether it could be switched, or was already."""
    try:
        return bool(connection.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",))
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in _BUSY:
            return False
        raise


def _sqlite_path(url: str) -> Path:
    parsed = make_url(url)
    if not parsed.database or parsed.database == ":memory:":
        raise DatabaseUnusable("The database must be a file, as in sqlite+aiosqlite:////srv/plaudit/plaudit.db")
    return Path(parsed.database)


def _make_file(path: Path) -> None:
    # Made here and not by SQLite, so that nobody else on the machine may read people's conversations.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("r+b"):
            pass
    except OSError as error:
        raise DatabaseUnusable(
            f"Cannot write the database {path}: {error.strerror}. Choose another folder with PLAUDIT_DATA."
        ) from error


def _truncate_log(path: Path) -> None:
    # Inside a transaction SQLite refuses, and the engines begin one always; hence a connection of its own.
    with closing(sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _unusable(path: Path, error: Exception) -> DatabaseUnusable:
    if isinstance(error, migrate.NewerSchema):
        return newer_schema(str(path), error)
    code = _code(error) if isinstance(error, DBAPIError) else None
    if code in _DAMAGED:
        return DatabaseUnusable(
            f"The database {path} is damaged or is not an SQLite file. Put back a backup, "
            f"or move it away to start empty; `sqlite3 {path} .recover` may save what is left.",
            code="damaged",
        )
    if code in _DISK:
        return DatabaseUnusable(
            f"Cannot write the database {path}: {_words(error)}. Free some space or permit writing."
        )
    return DatabaseUnusable(f"Cannot open the database {path}: {_words(error)}.")


def _translated(error: Exception) -> Exception:
    code = _code(error) if isinstance(error, DBAPIError) else None
    if code in _DISK:
        return StorageFull(f"The data folder cannot be written: {_words(error)}. Nothing acknowledged was lost.")
    if code in _BUSY:
        return Overloaded("Another process has the database locked.", code="database_locked")
    if code in _DAMAGED:
        return DatabaseUnusable("The database is damaged. Put back a backup.", code="damaged")
    return error


def _code(error: DBAPIError) -> int | None:
    """SQLite's primary result code; the driver reports extended ones, such as SQLITE_IOERR_WRITE."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _words(error: Exception) -> str:
    return str(error.orig if isinstance(error, DBAPIError) else error)
