"""A new migration only adds: what the last release writes still fits the newest schema."""

from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, inspect, text

from plaudit_server.store import migrate
from plaudit_server.store.database import Database
from tests.support.databases import current
from tests.support.store_rows import open_store

NEW = "x"
"""The value of every text, so that what refers to a row finds it."""


def _steps() -> list[tuple[str, str]]:
    script = ScriptDirectory(str(Path(migrate.__file__).parent / "migrations"))
    found = [(str(step.down_revision), step.revision) for step in script.walk_revisions() if step.down_revision]
    return found[::-1]


@pytest.mark.parametrize(("before", "after"), _steps())
async def test_the_release_before_can_write_into_the_schema_of_the_next(
    before: str, after: str, tmp_path: Path
) -> None:
    async with open_store(tmp_path) as database:
        await database.write(lambda conn: conn.run_sync(_rebuild, before))
        old = await database.read(lambda conn: conn.run_sync(_reflect))
        await database.write(lambda conn: conn.run_sync(_upgrade, after))
        # Everything that the code of the release before knows of, written without what it does not know of.
        await database.write(lambda conn: conn.run_sync(_write, old))
        new = await database.read(lambda conn: conn.run_sync(_reflect))
    for table in old.values():
        kept = new[table.name].columns
        for column in table.columns:
            assert column.name in kept, f"{table.name}.{column.name} is gone"
            assert kept[column.name].nullable == column.nullable, f"{table.name}.{column.name}"
            assert str(kept[column.name].type) == str(column.type), f"{table.name}.{column.name}"


async def test_an_old_database_with_rows_is_migrated_to_the_newest(tmp_path: Path) -> None:
    async with open_store(tmp_path) as database:
        await database.write(lambda conn: conn.run_sync(_rebuild, "0001"))
        old = await database.read(lambda conn: conn.run_sync(_reflect))
        await database.write(lambda conn: conn.run_sync(_write, old))
    again = await Database.open(await current.ready(tmp_path))
    assert await again.schema() == _steps()[-1][1]
    await again.close()


def _rebuild(connection: Connection, revision: str) -> None:
    """The schema of an earlier release, in place of the newest."""
    metadata = MetaData()
    metadata.reflect(connection)
    if connection.dialect.name == "sqlite":
        connection.execute(text("PRAGMA defer_foreign_keys=ON"))
    metadata.drop_all(connection)
    _upgrade(connection, revision)


def _upgrade(connection: Connection, revision: str) -> None:
    command.upgrade(migrate.config(connection), revision)


def _reflect(connection: Connection) -> dict[str, Table]:
    metadata = MetaData()
    metadata.reflect(connection)
    assert "alembic_version" in inspect(connection).get_table_names()
    return {table.name: table for table in metadata.sorted_tables if table.name != "alembic_version"}


def _write(connection: Connection, tables: dict[str, Table]) -> None:
    for table in tables.values():
        connection.execute(table.insert().values({c.name: _value(c) for c in table.columns if not c.nullable}))


def _value(column: Any) -> Any:
    kind = column.type.python_type
    return {str: NEW, int: 7, float: 0.5, bool: False, bytes: b"x"}.get(kind, {})
