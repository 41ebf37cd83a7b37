"""What only PostgreSQL has: other servers that write at the same time, locks, lost connections."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, make_url, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit.wire.training import AckRequest
from plaudit_server.errors import Conflict, Overloaded, StorageFull, Unprocessable
from plaudit_server.store import aliases, leases
from plaudit_server.store import tables as t
from plaudit_server.store.database import Database, DatabaseUnusable
from tests.support.databases import current
from tests.support.store_rows import NOW, a_vote, open_store, publish, store_voted, take, vote

pytestmark = pytest.mark.postgres


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_store(tmp_path) as database:
        yield database


@asynccontextmanager
async def two_servers(folder: Path) -> AsyncIterator[tuple[Database, Database]]:
    """Two pools on one database, as two processes have them."""
    async with open_store(folder) as one, open_store(folder) as other:
        yield one, other


async def _bury(conn: AsyncConnection, name: str) -> str:
    await conn.execute(insert(t.tombstones).values(response_id=name, fate="erased", reason="test", at=0))
    return name


async def _buried(conn: AsyncConnection) -> set[str]:
    return set((await conn.execute(select(t.tombstones.c.response_id))).scalars())


# ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_servers_that_start_at_once_on_a_new_database_migrate_it_once(tmp_path: Path) -> None:
    url = await current.empty(tmp_path)
    opened = await asyncio.gather(*(Database.open(url, connections=2) for _ in range(4)))
    assert len({await database.schema() for database in opened}) == 1
    await asyncio.gather(*(database.write(lambda conn, i=i: _bury(conn, f"x{i}")) for i, database in enumerate(opened)))
    assert await opened[0].read(_buried) == {"x0", "x1", "x2", "x3"}
    for database in opened:
        await database.close()


async def test_a_database_from_a_newer_release_is_refused(tmp_path: Path) -> None:
    async with open_store(tmp_path) as database:
        await database.write(lambda conn: conn.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(DatabaseUnusable, match=r"newer release.*9999.*backup"):
        await Database.open(current.url(tmp_path))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://127.0.0.1:1/plaudit", r"Cannot reach the database plaudit on 127.0.0.1.*PLAUDIT_DATABASE_URL"),
        ("postgresql://plaudit@/plaudit?host=/nowhere", "Cannot reach the database plaudit on /nowhere"),
        ("postgresql://127.0.0.1", "names no database"),
    ],
)
async def test_a_database_out_of_reach_is_told_in_words(url: str, words: str) -> None:
    with pytest.raises(DatabaseUnusable, match=words):
        await Database.open(url)


async def test_a_database_that_does_not_exist_is_told_in_words(tmp_path: Path) -> None:
    url = await current.ready(tmp_path)
    with pytest.raises(DatabaseUnusable, match='database "nowhere" does not exist'):
        await Database.open(make_url(url).set(database="nowhere").render_as_string(hide_password=False))


def test_without_the_driver_the_server_imports_and_the_error_names_the_mend() -> None:
    code = (
        "import asyncio, sys\n"
        "sys.modules['asyncpg'] = None\n"
        "import plaudit_server.app\n"
        "from plaudit_server.store.database import Database\n"
        "asyncio.run(Database.open('postgresql://127.0.0.1/plaudit'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "DatabaseUnusable" in done.stderr.splitlines()[-1]
    assert "pip install 'plaudit[postgres]'" in done.stderr.splitlines()[-1]


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_op_that_names_nothing_is_alone_among_all_servers(tmp_path: Path) -> None:
    inside = 0

    async def alone(conn: AsyncConnection) -> None:
        nonlocal inside
        inside += 1
        assert inside == 1
        await conn.execute(text("SELECT pg_sleep(0.01)"))
        inside -= 1

    async with two_servers(tmp_path) as servers:
        await asyncio.gather(*(servers[i % 2].write(alone) for i in range(10)))


async def test_ops_that_touch_different_things_run_beside_each_other(tmp_path: Path) -> None:
    met = asyncio.Barrier(4)

    async def meet(_: AsyncConnection) -> None:
        await met.wait()  # would wait for ever if one had to end before the next began

    async with two_servers(tmp_path) as servers:
        async with asyncio.timeout(10):
            await asyncio.gather(*(servers[i % 2].write(meet, touching=[f"thing {i}"]) for i in range(4)))


async def test_ops_on_one_thing_take_turns_among_all_servers_and_go_in_order_within_one(tmp_path: Path) -> None:
    async def read_then_write(conn: AsyncConnection, name: str) -> str:
        taken = await _buried(conn)
        await conn.execute(text("SELECT pg_sleep(0.002)"))
        return await _bury(conn, f"{len(taken):03} {name}")

    async with two_servers(tmp_path) as servers:
        done = await asyncio.gather(
            *(
                servers[i % 2].write(lambda conn, i=i: read_then_write(conn, f"{i % 2} {i:03}"), touching=["thing"])
                for i in range(20)
            )
        )
        assert len({name[:3] for name in done}) == 20  # nobody read what somebody was about to change
        for server in "01":
            mine = [name[6:] for name in sorted(done) if name[4] == server]
            assert mine == sorted(mine)


async def test_an_op_that_touches_very_much_is_alone(db: Database) -> None:
    many = [f"thing {i}" for i in range(5000)]
    await asyncio.gather(*(db.write(lambda conn, i=i: _bury(conn, f"{i}"), touching=many) for i in range(8)))
    assert len(await db.read(_buried)) == 8


async def test_a_deadlock_is_run_again(db: Database) -> None:
    for name in ("a", "b"):
        await db.write(lambda conn, name=name: _bury(conn, name))
    runs, met = 0, asyncio.Barrier(2)

    async def both(conn: AsyncConnection, first: str, second: str) -> None:
        nonlocal runs
        runs += 1
        for number, name in enumerate((first, second)):
            await conn.execute(update(t.tombstones).where(t.tombstones.c.response_id == name).values(at=1))
            if number == 0 and runs <= 2:
                await met.wait()

    async with asyncio.timeout(20):
        await asyncio.gather(
            db.write(lambda conn: both(conn, "a", "b"), touching=["one"]),
            db.write(lambda conn: both(conn, "b", "a"), touching=["other"]),
        )
    assert runs == 3


async def test_a_connection_lost_before_the_commit_is_begun_again(db: Database) -> None:
    runs = 0

    async def lose_once(conn: AsyncConnection) -> str:
        nonlocal runs
        runs += 1
        await _bury(conn, "x")
        if runs == 1:
            await conn.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return "done"

    assert await db.write(lose_once) == "done"
    assert (runs, await db.read(_buried)) == (2, {"x"})


async def test_a_restart_of_the_database_is_survived(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as (one, other):
        await asyncio.gather(*(one.read(_buried) for _ in range(4)), *(one.write(_nothing) for _ in range(4)))
        await other.write(_end_others)
        assert await one.read(_buried) == set()
        assert await one.write(lambda conn: _bury(conn, "x")) == "x"


async def _nothing(_: AsyncConnection) -> None:
    pass


async def _end_others(conn: AsyncConnection) -> None:
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    await conn.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))


async def test_a_lock_that_is_never_given_is_overloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit_server.store.postgres._WAIT_S", 0.2)
    release, held = asyncio.Event(), asyncio.Event()

    async def hold(_: AsyncConnection) -> None:
        held.set()
        await release.wait()

    async with two_servers(tmp_path) as (one, other):
        stuck = asyncio.create_task(one.write(hold, touching=["thing"]))
        await held.wait()
        with pytest.raises(Overloaded, match="busy") as raised:
            await other.write(lambda conn: _bury(conn, "x"))
        assert raised.value.code == "database_locked"
        release.set()
        await stuck


async def test_readers_cannot_write(db: Database) -> None:
    with pytest.raises(StorageFull, match="read-only"):
        await db.read(lambda conn: _bury(conn, "x"))
    assert await db.read(_buried) == set()


async def test_reads_beyond_the_pool_wait_and_are_then_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit_server.store.postgres._WAIT_S", 0.5)
    release, held = asyncio.Event(), asyncio.Event()

    async def hold(_: AsyncConnection) -> None:
        held.set()
        await release.wait()

    database = await Database.open(await current.ready(tmp_path), connections=2)
    stuck = asyncio.create_task(database.read(hold))
    await held.wait()
    with pytest.raises(Overloaded, match="reads wait"):
        await database.read(_buried)
    release.set()
    await stuck
    await database.close()


async def test_what_is_acknowledged_is_on_the_disk_whatever_the_server_is_set_to(tmp_path: Path) -> None:
    async with open_store(tmp_path) as database:
        await database.write(_not_durable)

    async def setting(conn: AsyncConnection) -> Any:
        return (await conn.execute(text("SHOW synchronous_commit"))).scalar_one()

    async with open_store(tmp_path) as database:
        assert (await database.read(setting), await database.write(setting)) == ("off", "on")


async def _not_durable(conn: AsyncConnection) -> None:
    name = (await conn.execute(text("SELECT current_database()"))).scalar_one()
    await conn.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = off"))


async def test_errors_of_statements_reach_the_caller_as_they_are(db: Database) -> None:
    for ask in (db.write, db.read):
        with pytest.raises(DBAPIError, match="nowhere"):
            await ask(lambda conn: conn.execute(text("SELECT * FROM nowhere")))


async def test_a_text_that_postgresql_cannot_keep_is_refused(db: Database) -> None:
    with pytest.raises(Unprocessable, match="NUL"):
        await db.write(lambda conn: _bury(conn, "a\0b"))


# ── several servers ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_two_servers_never_lease_a_record_twice(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as servers:
        ids = await store_voted(servers[0], 40)
        taken = await asyncio.gather(*(take(servers[i % 2], f"w{i}", max_records=5) for i in range(12)))
        leased = [record.interaction.id for batch in taken for record in batch.records]
        assert sorted(leased) == sorted(ids)
        assert len(set(leased)) == len(leased)
        assert sum(batch.state == "insufficient_data" for batch in taken) == 4


async def test_a_vote_beside_a_consumption_is_spent(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as (one, other):
        (answer,) = await store_voted(one, 1)
        for number in range(5):
            batch = await take(one, at=NOW)
            done = AckRequest(worker="w1")
            await asyncio.gather(
                one.write(lambda conn, batch=batch, done=done: leases.ack(conn, batch.id or "", done, now_ms=NOW)),
                *(_touching_vote(other, answer, f"eu_{number}_{i}") for i in range(6)),
            )
            unspent = select(t.feedback.c.id).where(t.feedback.c.response_id == answer, t.feedback.c.spent.is_(False))
            assert (await one.read(lambda conn, unspent=unspent: conn.execute(unspent))).all() == []
            (answer,) = await store_voted(one, 1)


async def _touching_vote(database: Database, answer: str, user: str) -> None:
    from plaudit_server.store import feedback

    await database.write(lambda conn: feedback.put(conn, a_vote(answer, end_user=user)), touching=[answer])


async def test_two_servers_move_an_alias_one_after_the_other(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as servers:
        name = await publish(servers[0])
        moves = [
            server.write(
                lambda conn: aliases.move(conn, "stable", name, if_match="1", actor="a", reason=None, now_ms=NOW)
            )
            for server in servers
        ]
        outcomes = await asyncio.gather(*moves, return_exceptions=True)
        assert sorted(type(o).__name__ for o in outcomes) == ["AliasRow", "PreconditionFailed"]


async def test_a_hundred_votes_of_one_user_through_two_servers_are_one_row(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as servers:
        (answer,) = await store_voted(servers[0], 1)
        values = [i / 100 for i in range(1, 41)]
        await asyncio.gather(
            *(_revote(servers[i % 2], answer, value) for i, value in enumerate(values)), return_exceptions=False
        )
        assert (await vote(servers[0], answer, 1.0)).revision == 42


async def _revote(database: Database, answer: str, value: float) -> None:
    from plaudit_server.store import feedback

    await database.write(lambda conn: feedback.put(conn, a_vote(answer, value)), touching=[answer])


async def test_one_op_in_conflict_harms_no_other(db: Database) -> None:
    async def half_then_fail(conn: AsyncConnection) -> None:
        await _bury(conn, "half")
        raise Conflict("no")

    ops = [lambda conn, i=i: _bury(conn, f"{i}") for i in range(6)]
    outcomes = await asyncio.gather(*(db.write(op) for op in [*ops, half_then_fail]), return_exceptions=True)
    assert isinstance(outcomes[-1], Conflict)
    assert await db.read(_buried) == {f"{i}" for i in range(6)}
