"""The lines of docs/howto/run-on-postgres.md that back up and restore, run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit_server.store import tables as t
from plaudit_server.store.database import Database
from tests.support.databases import current, programs
from tests.support.store_rows import open_store, publish, store_voted, vote

HOWTO = Path(__file__).parents[2] / "docs" / "howto" / "run-on-postgres.md"


def run(what: str, **environment: str) -> None:
    """The code block of that name."""
    named = rf'^```sh title="{what}"\n(.*?)^```$'
    (block,) = re.findall(named, HOWTO.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    beside = [str(Path(sys.executable).parent), *([str(found)] if (found := programs()) else []), os.environ["PATH"]]
    given = dict(os.environ) | environment | {"PATH": ":".join(beside)}
    done = subprocess.run(["bash", "-euc", block], env=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


async def _everything(conn: AsyncConnection) -> dict[str, list[Any]]:
    return {
        table.name: (await conn.execute(select(table).order_by(*table.primary_key.columns))).all()
        for table in t.metadata.sorted_tables
    }


async def _used(folder: Path) -> dict[str, list[Any]]:
    """A database with a little of everything, as it was when its servers stopped."""
    async with open_store(folder) as database:
        (answer,) = await store_voted(database, 1, metadata={"app": "wéb"})
        await vote(database, answer, -1.0)
        await publish(database)
        return await database.read(_everything)


@pytest.mark.postgres
async def test_postgresql_comes_back_from_a_dump(tmp_path: Path) -> None:
    before = await _used(tmp_path / "old")
    run("backup-postgres", BACKUP=str(tmp_path), PLAUDIT_DATABASE_URL=current.url(tmp_path / "old"))
    url = await current.empty(tmp_path / "new")
    run("restore-postgres", BACKUP=str(tmp_path), NEW_DATABASE_URL=url)
    restored = await Database.open(url)
    assert await restored.read(_everything) == before
    await store_voted(restored, 1)  # counters and keys go on from where they were
    await publish(restored, "w2")
    await restored.close()


@pytest.mark.sqlite
async def test_sqlite_comes_back_from_a_copy_made_while_it_ran(tmp_path: Path) -> None:
    folder, backup = tmp_path / "data", tmp_path / "backup"
    backup.mkdir()
    async with open_store(folder) as database:
        await store_voted(database, 3)
        before = await database.read(_everything)
        run("backup-sqlite", BACKUP=str(backup), PLAUDIT_DATA=str(folder))
        await store_voted(database, 1)
    run("restore-sqlite", BACKUP=str(backup), PLAUDIT_DATA=str(folder))
    async with open_store(folder) as database:
        assert await database.read(_everything) == before
