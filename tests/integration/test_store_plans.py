"""What is asked often must cost the same however much was ever said: no statement of it reads a whole table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from plaudit.wire.training import AckRequest
from plaudit_server.domain.records import StoredEvent
from plaudit_server.store import events, interactions, leases, versions
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

pytestmark = pytest.mark.sqlite  # its plans do not depend on how much is there, so a small database shows them

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
    for statement, parameters in [pair for pair in asked if pair[0].split()[0] in ("SELECT", "INSERT", "UPDATE")]:
        rows = await database.write(
            lambda conn, s=statement, p=parameters: conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {s}", p)
        )
        steps = [row.detail for row in rows]
        found += [(step, statement) for step in steps if step.startswith(tuple(f"SCAN {name}" for name in GROWING))]
    return found


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
