"""The fleet's list, and who uses what on it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from plaudit_server.domain.records import ReplicaRow
from plaudit_server.errors import Conflict, NotFound
from plaudit_server.store import audit, replicas
from plaudit_server.store.database import Database
from tests.support.store_rows import NOW, open_store

SEEDS = ["http://a", "http://b"]


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_store(tmp_path) as database:
        await database.write(lambda conn: replicas.seed(conn, SEEDS, now_ms=NOW))
        yield database


async def listed(db: Database) -> list[str]:
    return [f"{row.name} {row.url} {row.state}" for row in await db.read(replicas.listed)]


async def add(db: Database, url: str) -> tuple[ReplicaRow, bool]:
    return await db.write(lambda conn: replicas.add(conn, url, actor="ops", now_ms=NOW))


async def leave(db: Database, name: str, state: str = "removed", *, may_be_last: bool = False) -> ReplicaRow:
    return await db.write(
        lambda conn: replicas.leave(conn, name, state, actor="ops", may_be_last=may_be_last, now_ms=NOW)  # type: ignore[arg-type]
    )


async def test_seeds_are_listed_in_their_order_and_once(db: Database) -> None:
    await db.write(lambda conn: replicas.seed(conn, [*SEEDS, "http://c"], now_ms=NOW))
    assert await listed(db) == ["engine-0 http://a active", "engine-1 http://b active", "engine-2 http://c active"]


async def test_a_removed_seed_does_not_come_back_by_itself(db: Database) -> None:
    await leave(db, "engine-0")
    await db.write(lambda conn: replicas.seed(conn, SEEDS, now_ms=NOW))
    assert await listed(db) == ["engine-1 http://b active"]
    assert (await add(db, "http://a"))[1]
    assert await listed(db) == ["engine-0 http://a active", "engine-1 http://b active"]


async def test_numbers_are_counted_and_not_sorted_as_text(db: Database) -> None:
    for number in range(2, 12):
        await add(db, f"http://{number}")
    assert [row.name for row in await db.read(replicas.listed)] == [f"engine-{n}" for n in range(12)]


async def test_number_zero_is_left_to_a_child_of_the_server(tmp_path: Path) -> None:
    async with open_store(tmp_path / "other") as empty:
        assert (await add(empty, "http://x"))[0].name == "engine-1"


async def test_adding_again_changes_nothing(db: Database) -> None:
    first, is_new = await add(db, "http://c")
    assert is_new and await add(db, "http://c") == (first, False)


async def test_a_drained_replica_is_listed_and_can_come_back(db: Database) -> None:
    assert (await leave(db, "engine-0", "draining")).state == "draining"
    assert await listed(db) == ["engine-0 http://a draining", "engine-1 http://b active"]
    await add(db, "http://a")
    assert (await listed(db))[0] == "engine-0 http://a active"


@pytest.mark.parametrize("state", ["draining", "removed"])
async def test_the_last_active_replica_stays(db: Database, state: str) -> None:
    await leave(db, "engine-0", "draining")
    with pytest.raises(Conflict, match="engine-1 is the last engine replica"):
        await leave(db, "engine-1", state)
    assert (await leave(db, "engine-1", state, may_be_last=True)).state == state


async def test_what_is_not_there_cannot_leave(db: Database) -> None:
    for name in ("engine-9", "nonsense"):
        with pytest.raises(NotFound):
            await leave(db, name)


async def test_every_change_is_audited_once(db: Database) -> None:
    await add(db, "http://c")
    await leave(db, "engine-2", "draining")
    await leave(db, "engine-2", "draining")
    await leave(db, "engine-2")
    entries = (await db.read(audit.page)).items
    assert [(e.action, e.subject, e.actor, e.detail["url"]) for e in reversed(entries)] == [
        (f"replica.{what}", "engine-2", "ops", "http://c") for what in ("added", "draining", "removed")
    ]


async def test_two_who_add_at_once_get_two_names(db: Database) -> None:
    added = await asyncio.gather(*(add(db, f"http://{n}") for n in range(4)))
    assert len({row.name for row, _ in added}) == 4


async def test_gateways_know_what_the_others_use_while_they_live(db: Database) -> None:
    await db.write(lambda conn: replicas.beat(conn, "gw_1", ["v2", "v1"], now_ms=NOW))
    await db.write(lambda conn: replicas.beat(conn, "gw_1", ["v2"], now_ms=NOW + 1))
    await db.write(lambda conn: replicas.beat(conn, "gw_2", [], now_ms=NOW))
    assert await db.read(lambda conn: replicas.others(conn, "gw_2", since_ms=NOW)) == {"gw_1": frozenset({"v2"})}
    assert await db.read(lambda conn: replicas.others(conn, "gw_1", since_ms=NOW + 1)) == {}
    await db.write(lambda conn: replicas.gone(conn, "gw_1", before_ms=NOW))
    assert await db.read(lambda conn: replicas.others(conn, "gw_3", since_ms=0)) == {"gw_2": frozenset()}
    await db.write(lambda conn: replicas.gone(conn, "gw_3", before_ms=NOW + 1))
    assert await db.read(lambda conn: replicas.others(conn, "gw_3", since_ms=0)) == {}
