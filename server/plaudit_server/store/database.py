"""The database: opening, migrating, writing, reading. `sqlite.py` and `postgres.py` do it.

A write is alone, on both: on SQLite because there is one writer, on PostgreSQL because of a lock, unless it names what
it touches. So an op is written as if nobody else were there.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import ClassVar, TypeVar

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit_server.errors import PlauditError
from plaudit_server.store import migrate

T = TypeVar("T")
Op = Callable[[AsyncConnection], Awaitable[T]]

CONNECTIONS = 16
"""Connections to PostgreSQL that one process may hold unless told otherwise."""


class DatabaseUnusable(PlauditError):
    """The database cannot be used. The message says what to do about it."""

    type = "storage_error"


def sqlite_url(path: Path) -> str:
    """The SQLAlchemy URL of an SQLite file."""
    return URL.create("sqlite+aiosqlite", database=str(path)).render_as_string()


class Database(ABC):
    """One open database. Make it with `open`, end it with `close`."""

    shared: ClassVar[bool]
    """Whether several servers may use it at once."""

    @staticmethod
    async def open(url: str, *, connections: int = CONNECTIONS) -> "Database":
        """Open, and bring it to this release's schema.

        Args:
            connections: the most that this process may hold, reading and writing; SQLite has its own number.

        Raises:
            DatabaseUnusable: it is damaged, from a newer release, out of reach, or in a folder that cannot be written.
        """
        try:
            driver = make_url(url).drivername
        except ArgumentError as error:
            raise DatabaseUnusable(f"PLAUDIT_DATABASE_URL is not a database URL: {url!r}") from error
        if driver in ("sqlite", "sqlite+aiosqlite"):
            from plaudit_server.store.sqlite import SqliteDatabase

            return await SqliteDatabase.open_file(url)
        if driver in ("postgresql", "postgres", "postgresql+asyncpg"):
            from plaudit_server.store.postgres import PostgresDatabase

            return await PostgresDatabase.connect(url, connections=connections)
        raise DatabaseUnusable(f"Data are kept in SQLite or PostgreSQL; Plaudit cannot use {driver}.")

    @abstractmethod
    async def write(self, op: Op[T], *, touching: Collection[str] = ()) -> T:
        """Run `op` in a transaction; returns once it is durable.

        An op that raises undoes itself and no other. It must do nothing but use its connection: others may wait for
        it, and it may be run again from the start. A caller that is cancelled before its op began leaves nothing
        behind; afterwards the op is carried through.

        Args:
            touching: everything that the op reads to decide or writes, by id, where it touches nothing beside it. It
                then runs beside ops that touch other things. Without it an op is alone.

        Raises:
            StorageFull: the disk is full or read-only; nothing was written.
            Overloaded: the database is being closed, locked, or out of reach.
            Exception: whatever `op` raised.
        """

    @abstractmethod
    async def read(self, op: Op[T]) -> T:
        """Run `op` on one consistent snapshot of what was committed. It cannot write.

        Raises:
            StorageFull: it tried to write, or the disk cannot be read.
            Overloaded: too many reads wait, or the database is out of reach.
            Exception: whatever `op` raised.
        """

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Writes of this process that have not begun."""

    async def schema(self) -> str:
        """The revision of its schema."""
        return await self.read(lambda conn: conn.run_sync(migrate.revision))

    @abstractmethod
    async def checkpoint(self) -> None:
        """Have erased bytes leave the disk, as far as the database can be made to. Best effort."""

    @abstractmethod
    async def close(self) -> None:
        """Finish every accepted write, then close. Repeating it is harmless."""


def newer_schema(where: str, revisions: Exception) -> DatabaseUnusable:
    """The refusal of a database that a newer release wrote."""
    return DatabaseUnusable(
        f"The database {where} was written by a newer release of Plaudit (schema {revisions}). "
        "Start that release, or put back the backup from before the upgrade.",
        code="newer_schema",
    )
