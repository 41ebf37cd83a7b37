"""PostgreSQL: each write a transaction of its own, on a bounded pool, beside the writes of other servers.

Transactions are READ COMMITTED and begin with an advisory lock that all servers on the database share. An op that does
not say what it touches takes the lock alone, and so sees the world as on SQLite: nobody else writes meanwhile. An op
that does (a vote, an answer) takes it in shared mode, and one more lock for each thing it touches. After the wait each
statement sees what those before it committed, which SERIALIZABLE transactions would have to be run again for.
"""

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from plaudit_server.errors import Overloaded, StorageFull, Unprocessable
from plaudit_server.store import migrate
from plaudit_server.store.database import Database, DatabaseUnusable, Op, newer_schema

try:
    import asyncpg
except ImportError as error:
    raise DatabaseUnusable(
        "PLAUDIT_DATABASE_URL names PostgreSQL, but its driver is not installed: pip install 'plaudit[postgres]'.",
        code="driver_missing",
    ) from error

T = TypeVar("T")

_WAIT_S = 30
"""How long a write may wait for a connection, a read for a connection, a transaction for a lock."""

_ATTEMPTS = 5
_ALONE = 0x_706C_6175_6469_7400
"""The key of the lock that all writers share: `plaudit` in ASCII. Its successor guards migrations."""

_MOST_TOUCHED = 32
"""An op that touches more than this runs alone: the server's table of locks is of a fixed size."""

_AGAIN = {"40001", "40P01"}  # serialisation failure, deadlock
_FULL = {"53100", "25006", "58030"}  # disk full, read-only server, I/O error
_DAMAGED = {"XX001", "XX002"}
_BUSY = {"55P03", "57014", "53300", "53200", "25P03"}  # lock or statement timeout, too many connections, out of memory
_NUL = {"22021", "22P05"}  # SQLite keeps them, PostgreSQL cannot
_AWAY = {"57P01", "57P02", "57P03"}  # shutting down, crashed, starting

_TROUBLE = (DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, PoolTimeout)

_TAKE = text(
    "SELECT pg_advisory_xact_lock_shared(:alone) "
    "UNION ALL SELECT pg_advisory_xact_lock(thing) FROM unnest(CAST(:things AS bigint[])) AS thing"
)
_TAKE_ALONE = text("SELECT pg_advisory_xact_lock(:alone)")
# What `write` has returned from is on the disk. Stronger settings (a standby that must have it too) are left alone.
_DURABLE = text(
    "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
)


class PostgresDatabase(Database):
    """A PostgreSQL database, shared with other servers."""

    shared = True

    def __init__(self, where: str, writers: AsyncEngine, readers: AsyncEngine, *, durable: bool) -> None:
        self._where = where
        self._writers = writers
        self._readers = readers
        self._durable = durable
        self._turns = Turns()
        self._running: set[asyncio.Task[Any]] = set()
        self._waiting: set[asyncio.Task[Any]] = set()
        self._closed = False

    @classmethod
    async def connect(cls, url: str, *, connections: int) -> "PostgresDatabase":
        """Connect and migrate. Raises as `Database.open`."""
        address = _address(url)
        where = f"{address.database} on {address.host or address.query.get('host') or 'the local socket'}"
        half = max(1, connections // 2)
        writers = _engine(address, half, "READ COMMITTED")
        try:
            async with writers.begin() as conn:
                await _migrate(conn)
                durable = (await conn.execute(text("SHOW synchronous_commit"))).scalar_one() != "off"
        except (*_TROUBLE, migrate.NewerSchema) as error:
            await writers.dispose()
            raise _unusable(where, error) from error
        readers = _engine(address, max(1, connections - half), "REPEATABLE READ")
        return cls(where, writers, readers.execution_options(postgresql_readonly=True), durable=durable)

    async def write(self, op: Op[T], *, touching: Collection[str] = ()) -> T:
        """See `Database.write`. A deadlock, or a connection lost before the commit, begins it again."""
        if self._closed:
            raise Overloaded("The server is shutting down.", code="shutting_down")
        # A task of its own: once begun it is carried through, although the request that caused it may be cancelled.
        task = asyncio.create_task(self._in_turn(op, touching))
        for tasks in (self._running, self._waiting):
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        task.add_done_callback(_heard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task in self._waiting:
                task.cancel()
            raise

    @property
    def waiting(self) -> int:
        """See `Database.waiting`."""
        return len(self._waiting)

    async def read(self, op: Op[T]) -> T:
        """See `Database.read`."""
        try:
            return await self._snapshot(op)
        except PoolTimeout as error:
            raise Overloaded("Too many database reads wait.") from error
        except _TROUBLE as error:
            if not (isinstance(error, DBAPIError) and error.connection_invalidated):
                raise _translated(error) from error
        try:  # the connection was of a server that has gone; there may be a new one
            return await self._snapshot(op)
        except _TROUBLE as error:
            raise _translated(error) from error

    async def _snapshot(self, op: Op[T]) -> T:
        async with self._readers.connect() as conn, conn.begin():
            return await op(conn)

    async def checkpoint(self) -> None:
        """Nothing: autovacuum frees erased rows, and log archives and backups keep them until they expire."""

    async def close(self) -> None:
        """See `Database.close`."""
        self._closed = True
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)
        await self._readers.dispose()
        await self._writers.dispose()

    async def _in_turn(self, op: Op[T], touching: Collection[str]) -> T:
        things = sorted(_key(thing) for thing in set(touching))
        if len(things) > _MOST_TOUCHED:
            things = []
        async with self._turns.of(things or [_ALONE]):
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    return await self._attempt(op, things)
                except _Again as again:
                    if attempt == _ATTEMPTS:
                        raise _translated(again.why) from again.why
                    await asyncio.sleep(0.01 * 2**attempt * random.random())  # noqa: S311  # only to be out of step
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, op: Op[T], things: Sequence[int]) -> T:
        committing = False
        try:
            async with self._writers.connect() as conn:
                async with conn.begin():
                    await self._lock(conn, things)
                    self._waiting.discard(_this_task())
                    result = await op(conn)
                    committing = True
                return result
        except PoolTimeout as error:
            raise Overloaded("Too many database writes wait.") from error
        except _TROUBLE as error:
            # Whether a commit that was never answered took effect nobody can say: it is not begun again.
            if _state(error) in _AGAIN or (not committing and _disconnected(error)):
                raise _Again(error) from error
            raise _translated(error) from error

    async def _lock(self, conn: AsyncConnection, things: Sequence[int]) -> None:
        if things:
            await conn.execute(_TAKE, {"alone": _ALONE, "things": list(things)})
        else:
            await conn.execute(_TAKE_ALONE, {"alone": _ALONE})
        if not self._durable:
            await conn.execute(_DURABLE)


class _Again(Exception):
    """The transaction is gone and may be begun again."""

    def __init__(self, why: Exception) -> None:
        self.why = why


class Turns:
    """Ops of this process that touch the same thing go in the order they came, without holding connections.

    The database's locks would keep them apart too, but in any order, and each waiting one would hold a connection.
    """

    def __init__(self) -> None:
        self._locks: dict[int, asyncio.Lock] = {}
        self._users: Counter[int] = Counter()

    @asynccontextmanager
    async def of(self, things: Sequence[int]) -> AsyncIterator[None]:
        """Wait for one's turn at each of `things`, which are in order: two ops can never wait for each other."""
        async with AsyncExitStack() as stack:
            for thing in things:
                await stack.enter_async_context(self._turn(thing))
            yield

    @asynccontextmanager
    async def _turn(self, thing: int) -> AsyncIterator[None]:
        lock = self._locks.setdefault(thing, asyncio.Lock())
        self._users[thing] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[thing] -= 1
            if not self._users[thing]:
                del self._users[thing], self._locks[thing]


def _this_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None
    return task


def _heard(task: "asyncio.Task[Any]") -> None:
    """Look at what it raised, so that asyncio does not complain where the caller went away."""
    if not task.cancelled():
        task.exception()


def _key(thing: str) -> int:
    """A lock's key. Two things that share one by chance merely wait for each other."""
    return int.from_bytes(hashlib.blake2b(thing.encode("utf-8", "surrogatepass"), digest_size=8).digest(), signed=True)


def _address(url: str) -> URL:
    given = make_url(url).set(drivername="postgresql+asyncpg")
    if not given.database:
        raise DatabaseUnusable("PLAUDIT_DATABASE_URL names no database: postgresql://user:password@host/plaudit")
    if "sslmode" in given.query:  # libpq's name for what the driver calls ssl
        given = given.update_query_dict({"ssl": given.query["sslmode"]}).difference_update_query(["sslmode"])
    return given


def _engine(address: URL, size: int, isolation: str) -> AsyncEngine:
    settings = {
        "application_name": "plaudit",
        "lock_timeout": f"{round(_WAIT_S * 1000)}ms",
        # A server that hangs in the middle of a write must not stop all others for ever.
        "idle_in_transaction_session_timeout": f"{round(2000 * _WAIT_S)}ms",
        # Every query has an index made for it. A plan that reads a whole table looks cheap while the table is small, or
        # was when it was last analysed; it grows with the table.
        "enable_seqscan": "off",
        "random_page_cost": "1.1",
        "jit": "off",  # the queries are short, and so is what the driver asks of the catalogue
        "max_parallel_workers_per_gather": "0",  # to start a worker takes longer than any of the queries
    }
    return create_async_engine(
        address,
        isolation_level=isolation,
        hide_parameters=True,  # they are what people wrote, and errors are logged
        pool_size=size,
        max_overflow=0,
        pool_timeout=_WAIT_S,
        connect_args={"server_settings": settings, "timeout": _WAIT_S},
    )


async def _migrate(conn: AsyncConnection) -> None:
    # Several servers may start at once: one migrates, the others find it done.
    await conn.execute(text("SET LOCAL lock_timeout = 0"))
    await conn.execute(_TAKE_ALONE, {"alone": _ALONE + 1})
    await conn.run_sync(migrate.upgrade)


def _unusable(where: str, error: Exception) -> DatabaseUnusable:
    if isinstance(error, migrate.NewerSchema):
        return newer_schema(where, error)
    if _disconnected(error) or _state(error) in _AWAY | _BUSY:
        return DatabaseUnusable(
            f"Cannot reach the database {where}: {_words(error)}. Start it, or mend PLAUDIT_DATABASE_URL.",
            code="database_unreachable",
        )
    return DatabaseUnusable(f"Cannot open the database {where}: {_words(error)}.")


def _translated(error: Exception) -> Exception:
    """The same in our words, where it is about the database; whatever else an op raised as it is."""
    state, words = _state(error), _words(error)
    known = (
        (_FULL, StorageFull(f"The database cannot be written: {words}. Nothing acknowledged was lost.")),
        (_BUSY | _AGAIN, Overloaded(f"The database is busy: {words}.", code="database_locked")),
        (_DAMAGED, DatabaseUnusable("The database is damaged. Put back a backup.", code="damaged")),
        (_NUL, Unprocessable("Texts must not contain NUL characters.", code="nul_character")),
    )
    for states, ours in known:
        if state in states:
            return ours
    if isinstance(error, PoolTimeout):
        return Overloaded("Too many database transactions wait.")
    if state in _AWAY or _disconnected(error):
        return Overloaded("The database cannot be reached.", code="database_unreachable")
    return error


def _state(error: Exception) -> str | None:
    """SQLSTATE."""
    state: str | None = getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None)
    return state


def _disconnected(error: Exception) -> bool:
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or (_state(error) or "").startswith("08")
    return isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.PostgresConnectionError)


def _words(error: Exception) -> str:
    """What the server said, without the driver's class names."""
    cause = error.orig.__cause__ or error.orig if isinstance(error, DBAPIError) and error.orig else error
    return str(cause).strip().rstrip(".") or type(cause).__name__
