import asyncio
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit_server.errors import Conflict, Overloaded, StorageFull
from plaudit_server.store import tables as t
from plaudit_server.store.database import Database, DatabaseUnusable, sqlite_url
from plaudit_server.store.sqlite import GroupWriter
from tests.support.databases import current
from tests.support.store_rows import open_store


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_store(tmp_path) as database:
        yield database


async def _bury(conn: AsyncConnection, name: str) -> str:
    await conn.execute(insert(t.tombstones).values(response_id=name, fate="erased", reason="test", at=0))
    return name


async def _buried(conn: AsyncConnection) -> set[str]:
    return set((await conn.execute(select(t.tombstones.c.response_id))).scalars())


# ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_new_database_has_base_as_stable(db: Database) -> None:
    async def look(conn: AsyncConnection) -> Any:
        version = (await conn.execute(select(t.versions.c.name, t.versions.c.state))).one()
        return *version, (await conn.execute(select(t.aliases.c.name, t.aliases.c.version))).one()

    assert await db.read(look) == ("base", "ready", ("stable", "base"))


@pytest.mark.sqlite
async def test_connections_are_durable_and_checked(db: Database) -> None:
    async def pragmas(conn: AsyncConnection) -> list[Any]:
        names = ("journal_mode", "synchronous", "foreign_keys", "query_only")
        return [(await conn.execute(text(f"PRAGMA {name}"))).scalar_one() for name in names]

    assert await db.write(pragmas) == ["wal", 2, 1, 0]
    assert await db.read(pragmas) == ["wal", 2, 1, 1]


@pytest.mark.sqlite
async def test_only_the_owner_may_read_the_file(db: Database, tmp_path: Path) -> None:
    await db.write(lambda conn: _bury(conn, "x"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in _files(tmp_path)} == {0o600}


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def _on_disk(folder: Path, what: bytes) -> bool:
    return any(what in path.read_bytes() for path in folder.iterdir())


@pytest.mark.sqlite
async def test_folders_are_made_and_odd_names_work(tmp_path: Path) -> None:
    folder = tmp_path / "a b%20?#c" / "ü"
    async with open_store(folder) as database:
        await database.write(lambda conn: _bury(conn, "x"))
    async with open_store(folder) as database:
        assert await database.read(_buried) == {"x"}
    assert (folder / "plaudit.db").exists()


async def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    async with open_store(tmp_path) as database:
        before = await database.read(_everything)
    async with open_store(tmp_path) as database:
        assert await database.read(_everything) == before


async def _everything(conn: AsyncConnection) -> list[Any]:
    return [*(await conn.execute(select(t.versions))).all(), *(await conn.execute(select(t.aliases))).all()]


@pytest.mark.sqlite
async def test_two_processes_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "plaudit.db")
    opened = await asyncio.gather(*(Database.open(url) for _ in range(4)))
    await asyncio.gather(*(database.write(lambda conn, i=i: _bury(conn, f"x{i}")) for i, database in enumerate(opened)))
    assert await opened[0].read(_buried) == {"x0", "x1", "x2", "x3"}
    for database in opened:
        await database.close()


@pytest.mark.sqlite
async def test_a_database_from_a_newer_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with open_store(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "plaudit.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = (tmp_path / "plaudit.db").read_bytes()
    with pytest.raises(DatabaseUnusable, match=r"newer release.*9999.*backup") as raised:
        await Database.open(sqlite_url(tmp_path / "plaudit.db"))
    assert raised.value.code == "newer_schema"
    assert (tmp_path / "plaudit.db").read_bytes() == before


@pytest.mark.sqlite
@pytest.mark.parametrize("content", [b"this is not a database, " * 1000, b"SQLite format 3\0" + b"\xff" * 8192])
async def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plaudit.db"
    path.write_bytes(content)
    with pytest.raises(DatabaseUnusable, match=r"plaudit\.db is damaged or is not.*backup"):
        await Database.open(sqlite_url(path))
    assert path.read_bytes() == content


@pytest.mark.sqlite
async def test_damage_within_a_file_that_opens_is_told_in_words(tmp_path: Path) -> None:
    async with open_store(tmp_path) as database:
        for i in range(50):
            await database.write(lambda conn, i=i: _bury(conn, f"{i:0200}"))
        await database.checkpoint()
    path = tmp_path / "plaudit.db"
    pages = path.read_bytes()
    path.write_bytes(pages[: 4096 * 4] + b"\xa5" * (len(pages) - 4096 * 4))
    with pytest.raises(DatabaseUnusable, match="damaged"):
        async with open_store(tmp_path) as database:
            await database.read(_buried)


@pytest.mark.sqlite
async def test_another_programs_database_is_not_touched(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "plaudit.db") as connection:
        connection.execute("CREATE TABLE audit (mine TEXT)")
    connection.close()
    with pytest.raises(DatabaseUnusable, match="already exists"):
        await Database.open(sqlite_url(tmp_path / "plaudit.db"))
    with sqlite3.connect(tmp_path / "plaudit.db") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("audit",)]
    connection.close()


@pytest.mark.sqlite
async def test_a_folder_that_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseUnusable, match=r"Cannot write the database.*PLAUDIT_DATA"):
        await Database.open(sqlite_url(tmp_path / "file" / "plaudit.db"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(DatabaseUnusable, match="Is a directory"):
        await Database.open(sqlite_url(tmp_path / "folder"))


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "not a database URL"),
        ("mysql://localhost/plaudit", "cannot use mysql"),
        ("sqlite+aiosqlite://", "must be a file"),
        ("sqlite+aiosqlite:///:memory:", "must be a file"),
    ],
)
async def test_urls_that_cannot_work_are_refused(url: str, words: str) -> None:
    with pytest.raises(DatabaseUnusable, match=words):
        await Database.open(url)


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_write_returns_what_its_op_returned_and_readers_see_it(db: Database) -> None:
    assert await db.write(lambda conn: _bury(conn, "x")) == "x"
    assert await db.read(_buried) == {"x"}


@pytest.mark.sqlite
async def test_writes_are_grouped(db: Database) -> None:
    commits = await _commits(db, 100)
    assert 2 <= commits <= 40


async def _commits(db: Database, writes: int) -> int:
    from sqlalchemy import event

    seen = []
    event.listen(db._writers.sync_engine, "commit", lambda _: seen.append(1))
    await asyncio.gather(*(db.write(lambda conn, i=i: _bury(conn, f"g{i}")) for i in range(writes)))
    return len(seen)


async def test_an_op_that_fails_harms_no_other(db: Database) -> None:
    await db.write(lambda conn: _bury(conn, "taken"))

    async def half_then_fail(conn: AsyncConnection) -> None:
        await _bury(conn, "half")
        raise Conflict("no")

    ops: list[Any] = [lambda conn, i=i: _bury(conn, f"good{i}") for i in range(20)]
    ops[5] = lambda conn: _bury(conn, "taken")
    ops[10] = half_then_fail
    outcomes = await asyncio.gather(*(db.write(op) for op in ops), return_exceptions=True)
    assert isinstance(outcomes[5], IntegrityError)
    assert isinstance(outcomes[10], Conflict)
    good = {f"good{i}" for i in range(20) if i not in (5, 10)}
    assert {o for o in outcomes if isinstance(o, str)} == good
    assert await db.read(_buried) == good | {"taken"}


async def test_foreign_keys_are_enforced(db: Database) -> None:
    async def orphan(conn: AsyncConnection) -> None:
        await conn.execute(insert(t.claims).values(item_id="x", batch_id="batch_nobody"))

    with pytest.raises(IntegrityError):
        await db.write(orphan)


@pytest.mark.sqlite
async def test_readers_cannot_write(db: Database) -> None:
    with pytest.raises(StorageFull, match="readonly"):
        await db.read(lambda conn: _bury(conn, "x"))
    assert await db.read(_buried) == set()


async def test_a_reader_sees_one_snapshot(db: Database) -> None:
    async def look_twice(conn: AsyncConnection) -> tuple[set[str], set[str]]:
        first = await _buried(conn)
        await db.write(lambda other: _bury(other, "between"))
        return first, await _buried(conn)

    assert await db.read(look_twice) == (set(), set())
    assert await db.read(_buried) == {"between"}


async def test_cancelled_callers_do_not_hurt_the_group(db: Database) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slow(conn: AsyncConnection) -> None:
        await _bury(conn, "slow")
        entered.set()
        await go_on.wait()

    first = asyncio.create_task(db.write(slow))
    await entered.wait()
    waiting = [asyncio.create_task(db.write(lambda conn, i=i: _bury(conn, f"w{i}"))) for i in range(6)]
    await asyncio.sleep(0)
    first.cancel()
    waiting[0].cancel()
    waiting[3].cancel()
    go_on.set()
    outcomes = await asyncio.gather(first, *waiting, return_exceptions=True)
    assert [isinstance(o, asyncio.CancelledError) for o in outcomes] == [True, True, False, False, True, False, False]
    # The one that had begun is carried through; those that had not begun leave nothing.
    assert await db.read(_buried) == {"slow", "w1", "w2", "w4", "w5"}


async def test_an_op_that_cancels_itself_does_not_stop_the_writer(db: Database) -> None:
    async def cancelled(conn: AsyncConnection) -> None:
        await _bury(conn, "x")
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await db.write(cancelled)
    await db.write(lambda conn: _bury(conn, "y"))
    assert await db.read(_buried) == {"y"}


async def test_a_cancelled_reader_gives_its_connection_back(db: Database) -> None:
    async def stuck(conn: AsyncConnection) -> None:
        await _buried(conn)
        await asyncio.sleep(60)

    for _ in range(3):
        tasks = [asyncio.create_task(db.read(stuck)) for _ in range(4)]
        await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert await asyncio.wait_for(db.read(_buried), 5) == set()


@pytest.mark.sqlite
async def test_a_full_disk_fails_the_group_and_loses_nothing_acknowledged(db: Database) -> None:
    await db.write(lambda conn: _bury(conn, "before"))
    pages = await db.write(_page_count)
    await db.write(lambda conn: _pragma(conn, f"max_page_count={pages + 2}"))
    big = [lambda conn, i=i: _bury(conn, f"{i}" * 3000) for i in range(12)]
    outcomes = await asyncio.gather(*(db.write(op) for op in big), return_exceptions=True)
    failed = [o for o in outcomes if isinstance(o, BaseException)]
    assert failed
    assert all(isinstance(o, StorageFull) and "full" in o.message for o in failed)
    acknowledged = {o for o in outcomes if isinstance(o, str)}
    assert await db.read(_buried) == acknowledged | {"before"}
    await db.write(lambda conn: _pragma(conn, "max_page_count=1000000"))
    await db.write(lambda conn: _bury(conn, "after"))
    assert "after" in await db.read(_buried)


async def _page_count(conn: AsyncConnection) -> int:
    return int((await conn.execute(text("PRAGMA page_count"))).scalar_one())


async def _pragma(conn: AsyncConnection, what: str) -> None:
    await conn.execute(text(f"PRAGMA {what}"))


@pytest.mark.sqlite
async def test_a_read_only_disk_is_storage_full(db: Database) -> None:
    await db.write(lambda conn: _pragma(conn, "query_only=ON"))
    with pytest.raises(StorageFull, match="readonly"):
        await db.write(lambda conn: _bury(conn, "x"))
    await db._writers.dispose()  # the next connection may write again
    await db.write(lambda conn: _bury(conn, "x"))


@pytest.mark.sqlite
async def test_a_locked_database_is_overloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit_server.store.sqlite._BUSY_TIMEOUT_S", 0.05)
    async with open_store(tmp_path) as database:
        other = sqlite3.connect(tmp_path / "plaudit.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Overloaded, match="locked"):
            await database.write(lambda conn: _bury(conn, "x"))
        other.execute("ROLLBACK")
        other.close()
        await database.write(lambda conn: _bury(conn, "x"))


@pytest.mark.sqlite
async def test_a_read_that_finds_no_free_connection_is_overloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plaudit_server.store.sqlite._BUSY_TIMEOUT_S", 0.05)
    release, reading = asyncio.Event(), asyncio.Semaphore(0)

    async def held(_: AsyncConnection) -> None:
        reading.release()
        await release.wait()

    async with open_store(tmp_path) as database:
        stuck = [asyncio.create_task(database.read(held)) for _ in range(4)]
        for _ in stuck:
            await reading.acquire()
        with pytest.raises(Overloaded, match="reads wait"):
            await database.read(_buried)
        release.set()
        await asyncio.gather(*stuck)
        assert await database.read(_buried) == set()


@pytest.mark.sqlite
async def test_too_many_writes_wait_their_turn(db: Database) -> None:
    writer = GroupWriter(db._writers, max_waiting=3, max_ops=2)
    await asyncio.gather(*(writer.write(lambda conn, i=i: _bury(conn, f"{i}")) for i in range(30)))
    assert len(await db.read(_buried)) == 30
    await writer.close()


async def test_closing_finishes_what_was_accepted(tmp_path: Path) -> None:
    database = await Database.open(await current.ready(tmp_path))
    writes = [asyncio.create_task(database.write(lambda conn, i=i: _bury(conn, f"{i}"))) for i in range(200)]
    await asyncio.sleep(0)
    await database.close()
    assert len(await asyncio.gather(*writes)) == 200
    with pytest.raises(Overloaded, match="shutting down"):
        await database.write(lambda conn: _bury(conn, "late"))
    await database.close()
    async with open_store(tmp_path) as again:
        assert len(await again.read(_buried)) == 200


@pytest.mark.sqlite
async def test_a_checkpoint_empties_the_log_and_erased_bytes_leave_the_disk(db: Database, tmp_path: Path) -> None:
    async def dig_up(conn: AsyncConnection) -> None:
        await conn.execute(t.tombstones.delete())

    await db.write(lambda conn: _bury(conn, "a secret worth finding"))
    await db.checkpoint()
    assert _on_disk(tmp_path, b"worth finding")
    await asyncio.gather(db.write(dig_up), db.checkpoint(), db.write(lambda conn: _bury(conn, "other")))
    await db.checkpoint()
    assert (tmp_path / "plaudit.db-wal").stat().st_size == 0
    assert not _on_disk(tmp_path, b"worth finding")


@pytest.mark.sqlite
async def test_an_op_that_breaks_the_connection_does_not_stop_the_writer(db: Database) -> None:
    with pytest.raises(InvalidRequestError):
        await db.write(lambda conn: conn.close())
    await asyncio.wait_for(db.write(lambda conn: _bury(conn, "x")), 5)
    assert await db.read(_buried) == {"x"}


@pytest.mark.sqlite
async def test_errors_of_statements_reach_the_caller_as_they_are(db: Database) -> None:
    with pytest.raises(DBAPIError, match="no such table"):
        await db.write(lambda conn: conn.execute(text("SELECT * FROM nowhere")))
    with pytest.raises(DBAPIError, match="no such table"):
        await db.read(lambda conn: conn.execute(text("SELECT * FROM nowhere")))
