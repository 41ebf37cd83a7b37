"""Rollouts in the store: what only rows can show."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.dialects import sqlite

from plaudit.wire.rollouts import RolloutCreate, RolloutStep
from plaudit_server.domain.records import RolloutRow
from plaudit_server.errors import Conflict
from plaudit_server.store import interactions, rollouts
from plaudit_server.store.database import Database
from tests.support.rollout_rows import Crowd
from tests.support.store_rows import NOW, an_interaction, open_store, publish, vote


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_store(tmp_path) as database:
        yield database


async def _begin(db: Database) -> RolloutRow:
    steps = [RolloutStep(weight=0.5, min_seconds=0), RolloutStep(weight=0.8)]
    request = RolloutCreate(candidate=await publish(db), steps=steps)
    return await db.write(lambda conn: rollouts.create(conn, request, actor="key_1", now_ms=NOW))


async def test_who_acts_on_what_has_changed_meanwhile_is_refused(db: Database) -> None:
    row = await _begin(db)
    end = {"report": None, "actor": "rollout", "reason": "test", "now_ms": NOW}
    await db.write(lambda conn: rollouts.pause(conn, row, actor="key_1", reason=None, now_ms=NOW))
    with pytest.raises(Conflict) as raised:
        await db.write(lambda conn: rollouts.finish(conn, row, "rolled_back", **end))
    assert raised.value.code == "rollout_changed"
    assert (await db.read(lambda conn: rollouts.get(conn, row.id))).state == "paused"


async def test_a_pause_is_remembered_by_its_length(db: Database) -> None:
    row = await _begin(db)
    await db.write(lambda conn: rollouts.pause(conn, row, actor="key_1", reason=None, now_ms=NOW + 10))
    paused = await db.read(lambda conn: rollouts.get(conn, row.id))
    await db.write(lambda conn: rollouts.resume(conn, paused, actor="key_1", reason=None, now_ms=NOW + 75))
    assert (await db.read(lambda conn: rollouts.get(conn, row.id))).paused_ms == 65


async def test_answers_of_no_rollout_are_no_evidence(db: Database) -> None:
    row = await _begin(db)
    outside = an_interaction(arm="stable", end_user="eu_x")
    await db.write(lambda conn: interactions.add(conn, outside))
    await vote(db, outside.id, -1.0, received_at_ms=NOW + 1)
    (only,) = (await db.read(lambda conn: rollouts.evidence(conn, row))).segments
    assert (only.stable.exposed, only.stable.down, only.canary.exposed) == (0, 0, 0)


async def test_health_is_one_value_a_user(db: Database) -> None:
    row = await _begin(db)
    for user, lengths in {"eu_a": (10, 30), "eu_b": (40,)}.items():
        for length in lengths:
            given = {"arm": "canary", "segment": row.segment, "end_user": user, "completion_tokens": length}
            answer = an_interaction(**given, status="failed" if length == 30 else "complete")
            await db.write(lambda conn, answer=answer: interactions.add(conn, answer))
    health = (await db.read(lambda conn: rollouts.evidence(conn, row))).health
    assert (health["length"].canary.users, health["length"].canary.total) == (2, 10 + 40)
    assert (health["errors"].canary.users, health["errors"].canary.total) == (2, 0.5)
    assert health["errors"].canary.squares == 0.25
    assert health["ttft"].canary.users == 0
    assert health["length"].stable.users == 0


@pytest.mark.sqlite  # asks for its plan
async def test_exposures_are_counted_from_the_index_alone(db: Database) -> None:
    row = await _begin(db)
    await Crowd(db).visit(stable=(1, 0), canary=(1, 0))
    query = rollouts._exposures(row.id).compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
    plan = await db.read(lambda conn: conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}"))
    steps = [line[-1] for line in plan]
    assert any("interactions USING COVERING INDEX ix_interactions_segment_end_user_arm" in step for step in steps), (
        steps
    )
    assert not any(step.startswith("SCAN interactions") and "INDEX" not in step for step in steps)
