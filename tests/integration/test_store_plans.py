"""What is asked often must cost the same however much was ever said: no statement of it reads a whole table."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.engine import Engine

from plaudit.wire.training import AckRequest, LeaseRequest
from plaudit_server import leasing
from plaudit_server.domain.records import StoredEvent
from plaudit_server.store import events, interactions, leases, versions
from plaudit_server.store import tables as t
from plaudit_server.store.database import Database
from tests.support.store_rows import (
    NOW,
    an_interaction,
    compare,
    open_store,
    publish,
    store_voted,
    take,
    vote,
)

# SQLite's plans do not depend on how much is there, so a small database shows them; PostgreSQL's do.

GROWING = ("interactions", "feedback", "comparisons", "events", "consumptions", "tombstones")


BOUNDED = "SCAN comparisons USING INDEX sqlite_autoindex_comparisons_1"
"""The newest comparisons, to say what a lease passes over: it stops after a few thousand."""


@pytest.fixture
def statements() -> Iterator[list[tuple[str, Any]]]:
    """Every statement that reached the database, with its parameters."""
    seen: list[tuple[str, Any]] = []

    def remember(_conn: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        seen.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", remember)
    yield seen
    event.remove(Engine, "before_cursor_execute", remember)


async def _scans(database: Database, asked: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    """Steps that read a growing table from end to end, with their statements."""
    found = []
    asked = [pair for pair in asked if pair[0].split()[0] in ("WITH", "SELECT", "INSERT", "UPDATE")]
    for statement, parameters in asked:
        rows = await database.write(
            lambda conn, s=statement, p=parameters: conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {s}", p)
        )
        steps = [row.detail for row in rows]
        found += [(step, statement) for step in steps if step.startswith(tuple(f"SCAN {name}" for name in GROWING))]
    return found


@pytest.mark.sqlite
async def test_a_lease_reads_no_table_from_end_to_end(tmp_path: Path, statements: list[tuple[str, Any]]) -> None:
    async with open_store(tmp_path) as database:
        first, second = await store_voted(database, 2)
        await compare(database, first, second)
        again = StoredEvent("evt_1", first, "regenerate", second, None, NOW, NOW)
        await database.write(lambda conn: events.add(conn, again))
        statements.clear()
        batch = await take(database, max_prompts=8)
        done = AckRequest(worker="w1")
        await database.write(lambda conn: leases.ack(conn, batch.id or "", done, now_ms=NOW))
        asked = list(statements)
        assert len(asked) > 40
        scans = await _scans(database, asked)
        assert [pair for pair in scans if pair[0] != BOUNDED] == []
        assert all("LIMIT" in statement for _, statement in scans)


@pytest.mark.sqlite
async def test_a_vote_an_answer_and_lists_read_no_table_from_end_to_end(
    tmp_path: Path, statements: list[tuple[str, Any]]
) -> None:
    async with open_store(tmp_path) as database:
        name = await publish(database)
        (answer,) = await store_voted(database, 1)
        statements.clear()
        await vote(database, answer, -1.0)
        await vote(database, answer, 0.5, end_user="eu_2")
        made = an_interaction(metadata={"app": "web"})
        await database.write(lambda conn: interactions.add(conn, made))
        await database.write(lambda conn: interactions.forget(conn, made.id, "asked", now_ms=NOW))
        await database.read(lambda conn: interactions.page(conn, version="base", after="x"))
        await database.read(lambda conn: versions.lineage(conn, name))
        asked = list(statements)
        assert await _scans(database, asked) == []


@pytest.mark.postgres
async def test_a_lease_reads_what_is_live_and_not_what_was_learnt(
    tmp_path: Path, statements: list[tuple[str, Any]]
) -> None:
    async with open_store(tmp_path) as database:
        await store_voted(database, 1)
        old = await leasing.take(database, _OLD, now_ms=NOW - 10**6)
        done = AckRequest(worker=_OLD.worker)
        await database.write(lambda conn: leases.ack(conn, old.id or "", done, now_ms=NOW - 10**6))
        await _learn_long_ago(database, 3000)
        first, second = await store_voted(database, 2)
        again = StoredEvent("evt_1", first, "regenerate", second, None, NOW, NOW)
        await database.write(lambda conn: events.add(conn, again))
        await store_voted(database, 2, train_consent=False)  # to be passed over
        statements.clear()
        batch = await take(database)
        assert (len(batch.records), batch.dropped) == (2, {"no_consent": 2})
        read = {s: await _rows_read(database, s, p) for s, p in statements if s.split()[0] in ("WITH", "SELECT")}
        assert {s: rows for s, rows in read.items() if rows > 100} == {}
        assert sum(read.values()) > 10


_OLD = LeaseRequest(worker="w0", min_records=1, max_records=1, lease_seconds=60)


async def _learn_long_ago(database: Database, count: int) -> None:
    """Answers whose votes were learnt from, a regeneration of each that was too, and as many events of another kind."""
    (answer, said), said_again = await _rows(database), range(count)
    ids = [f"chatcmpl-old-{number:06}" for number in said_again]
    at = {"occurred_at": NOW - 10**7, "received_at": NOW - 10**7}
    answers = [{**answer, "id": name, "consumed_by": "batch_0"} for name in ids]
    votes = [{**said, **at, "id": f"fb_{name}", "response_id": name, "spent": True} for name in ids]
    kinds = [{"type": "regenerate", "spent": True}, {"type": "copy", "spent": False}]
    pairs = [
        {**kind, **at, "id": f"{kind['type']}_{name}", "response_id": name, "new_response_id": ids[number - 1]}
        for number, name in enumerate(ids)
        for kind in kinds
    ]
    for table, rows in ((t.interactions, answers), (t.feedback, votes), (t.events, pairs)):
        await database.write(lambda conn, table=table, rows=rows: conn.execute(insert(table), rows))
    await database.write(lambda conn: conn.execute(text("ANALYZE")))


async def _rows(database: Database) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of an answer and of a vote on it, which are there no longer."""
    (name,) = await store_voted(database, 1)
    found = []
    for table, column in ((t.interactions, t.interactions.c.id), (t.feedback, t.feedback.c.response_id)):
        query, removal = table.select().where(column == name), table.delete().where(column == name)
        row = (await database.read(lambda conn, q=query: conn.execute(q))).one()
        await database.write(lambda conn, r=removal: conn.execute(r))
        found.append(dict(row._mapping))
    return found[0], found[1]


async def _rows_read(database: Database, statement: str, parameters: Any) -> int:
    """Rows that a statement takes from what grows with what was said, those that it looks at in vain with them.

    Not from `interactions`: to read some thousands from end to end is cheaper than to look some thousands up.
    """
    explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}"
    plan = (await database.read(lambda conn: conn.exec_driver_sql(explain, parameters))).scalar_one()
    return _taken((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])


def _taken(node: dict[str, Any]) -> int:
    own = 0
    if node.get("Relation Name") in {*GROWING} - {"interactions"}:
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        own = (node["Actual Rows"] + removed) * node["Actual Loops"]
    return int(own) + sum(_taken(child) for child in node.get("Plans", []))
