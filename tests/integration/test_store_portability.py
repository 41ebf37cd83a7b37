"""The migrations make exactly the tables, and every statement of the store runs, on each database."""

from pathlib import Path
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect

from plaudit.wire.rollouts import RolloutCreate, RolloutStep
from plaudit.wire.training import AckRequest, FailRequest, HeartbeatRequest, RunUpdate
from plaudit_server.domain.records import StoredEvent
from plaudit_server.domain.rollouts import assess
from plaudit_server.store import (
    aliases,
    audit,
    comparisons,
    counts,
    events,
    feedback,
    idempotency,
    interactions,
    keys,
    leases,
    overview,
    replicas,
    rollouts,
    runs,
    versions,
)
from plaudit_server.store import tables as t
from plaudit_server.store.database import Database
from tests.support.store_rows import (
    NOW,
    a_registration,
    begin_run,
    compare,
    open_store,
    publish,
    store_answers,
    store_voted,
    take,
    vote,
)


def test_tables_can_be_created_in_order() -> None:
    made: set[str] = set()
    for table in t.metadata.sorted_tables:
        needs = {key.column.table.name for key in table.foreign_keys} - {table.name}
        assert needs <= made, table.name
        made.add(table.name)


async def test_migrations_make_exactly_the_tables(tmp_path: Path) -> None:
    def differences(connection: Connection) -> tuple[list[Any], set[str]]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, t.metadata), set(inspect(connection).get_table_names())

    async with open_store(tmp_path) as database:
        found, names = await database.read(lambda conn: conn.run_sync(differences))
    assert found == []
    assert names == {table.name for table in t.metadata.sorted_tables} | {"alembic_version"}


async def test_every_statement_of_the_store_runs(tmp_path: Path) -> None:
    async with open_store(tmp_path) as database:
        await _use_everything(database)


async def _use_everything(database: Database) -> None:
    await _use_answers(database)
    await _use_training(database)
    await _use_rollouts(database)
    await _use_the_rest(database)


async def _use_answers(database: Database) -> None:
    first, second = await store_answers(database, 2, metadata={"app": "web"})
    said = await vote(database, first, 1.0)
    await vote(database, first, -1.0)
    pair = await compare(database, first, second)
    happened = StoredEvent("evt_1", first, "copy", None, None, NOW, NOW)
    await database.write(lambda conn: events.add(conn, happened))
    filters = {"version": "base", "end_user": "eu_1", "since_ms": 0, "metadata": {"app": "web"}, "after": "x"}
    await database.read(lambda conn: interactions.page(conn, **filters))
    wanted = {"response_id": first, "version": "base", "since_ms": 0, "key": "thumb", "after": "x"}
    for sign in ("up", "down", "none"):
        await database.read(lambda conn, sign=sign: feedback.page(conn, vote=sign, **wanted))
    await database.read(lambda conn: feedback.revisions(conn, said.id))
    await database.read(lambda conn: feedback.counts(conn, [first, second]))
    await database.read(lambda conn: comparisons.get(conn, pair.id))
    await database.read(comparisons.page)
    await database.read(lambda conn: events.get(conn, "evt_1"))
    await database.read(lambda conn: events.page(conn, response_id=first))
    await database.write(lambda conn: feedback.delete(conn, said.id))
    await database.write(lambda conn: interactions.forget(conn, first, "asked", now_ms=NOW))
    await database.write(lambda conn: interactions.add_tombstone(conn, "chatcmpl-x", "store: false", now_ms=NOW))


async def _use_training(database: Database) -> None:
    name = await publish(database)
    await database.write(
        lambda conn: aliases.move(conn, "stable", name, if_match="1", actor="key_1", reason=None, now_ms=NOW)
    )
    await database.write(lambda conn: aliases.move(conn, "canary", name, actor="key_1", reason=None, now_ms=NOW))
    await database.write(lambda conn: aliases.rollback(conn, "previous", actor="key_1", reason="test", now_ms=NOW))
    await store_voted(database, 2)
    held = await take(database)
    run = await begin_run(database, held)
    update = RunUpdate(stage="ppo", step=1, metrics={"loss": 0.5})
    await database.write(lambda conn: runs.update(conn, run.id, update, now_ms=NOW))
    await database.read(lambda conn: runs.metrics(conn, run.id))
    await database.read(lambda conn: runs.page(conn, state="running", after="x"))
    await database.read(overview.newest_run)
    await database.read(overview.last_refusal)
    await database.read(overview.marks)
    await database.read(lambda conn: overview.states(conn, "versions"))
    filters = {"key": "thumb", "since_ms": 0, "bucket_ms": 1000}
    await database.read(lambda conn: overview.votes_over_time(conn, version=None, **filters))
    await database.read(lambda conn: leases.page(conn, state="leased", after="x"))
    beat, given_back = HeartbeatRequest(worker="w1"), FailRequest(worker="w1", reason="stopped")
    await database.write(lambda conn: leases.heartbeat(conn, run.batch_id, beat, now_ms=NOW))
    await database.write(lambda conn: leases.fail(conn, run.batch_id, given_back, now_ms=NOW))
    lapsed = await take(database, "w2", at=NOW + 1)
    again = await take(database, "w1", at=NOW + 10**6)
    assert lapsed.id != again.id
    done = AckRequest(worker="w1")
    await database.write(lambda conn: leases.ack(conn, again.id or "", done, now_ms=NOW + 10**6))
    same = a_registration(await database.read(lambda conn: _run_of(conn, name)))
    await database.write(lambda conn: versions.register(conn, same, now_ms=NOW))
    await database.read(lambda conn: versions.page(conn, state="ready", after="v9"))
    await database.read(lambda conn: versions.in_state(conn, "ready"))
    await database.read(versions.states)
    await database.read(lambda conn: versions.lineage(conn, name))
    await database.write(lambda conn: versions.taint(conn, [name]))


async def _run_of(conn: Any, name: str) -> Any:
    return await runs.get(conn, (await versions.get(conn, name)).run_id or "")


async def _use_rollouts(database: Database) -> None:
    steps = [RolloutStep(weight=0.2), RolloutStep(weight=0.5)]
    for state in ("promoted", "rolled_back"):
        request = RolloutCreate(candidate=await publish(database), steps=steps)
        row = await database.write(lambda conn, r=request: rollouts.create(conn, r, actor="key_1", now_ms=NOW))
        await database.read(rollouts.split)
        report = assess(row, await database.read(lambda conn, r=row: rollouts.evidence(conn, r)), now_ms=NOW)
        for change in (rollouts.pause, rollouts.resume):
            now = await database.read(lambda conn, r=row: rollouts.get(conn, r.id))
            await database.write(lambda conn, r=now, c=change: c(conn, r, actor="key_1", reason=None, now_ms=NOW))
        now = await database.read(lambda conn, r=row: rollouts.get(conn, r.id))
        await database.write(lambda conn, r=now, f=report: rollouts.advance(conn, r, f, actor="rollout", now_ms=NOW))
        now = await database.read(lambda conn, r=row: rollouts.get(conn, r.id))
        end = {"report": report, "actor": "rollout", "reason": "test", "now_ms": NOW}
        await database.write(lambda conn, r=now, s=state, e=end: rollouts.finish(conn, r, s, **e))
    await database.read(lambda conn: rollouts.page(conn, after="x"))


async def _use_the_rest(database: Database) -> None:
    key, secret = await database.write(lambda conn: keys.create(conn, name="k", roles=["chat"], now_ms=NOW))
    await database.read(lambda conn: keys.find(conn, secret))
    await database.read(lambda conn: keys.page(conn, after="x"))
    await database.write(lambda conn: keys.revoke(conn, key.id, now_ms=NOW))
    claim = {"scope": "s", "key": "k"}
    await database.write(lambda conn: idempotency.begin(conn, **claim, body_hash="h", now_ms=NOW))
    await database.write(lambda conn: idempotency.finish(conn, **claim, status=200, body=b"{}", now_ms=NOW))
    await database.write(lambda conn: idempotency.abandon(conn, **claim))
    await database.write(lambda conn: idempotency.purge(conn, now_ms=NOW))
    await database.write(lambda conn: replicas.seed(conn, ["http://a"], now_ms=NOW))
    await database.write(lambda conn: replicas.add(conn, "http://b", actor="key_1", now_ms=NOW))
    gone = {"actor": "key_1", "may_be_last": True, "now_ms": NOW}
    await database.write(lambda conn: replicas.leave(conn, "engine-0", "removed", **gone))
    await database.write(lambda conn: replicas.beat(conn, "gw_1", ["v1"], now_ms=NOW))
    await database.write(lambda conn: replicas.beat(conn, "gw_1", ["v2"], now_ms=NOW))
    await database.read(lambda conn: replicas.others(conn, "gw_2", since_ms=NOW))
    await database.write(lambda conn: replicas.gone(conn, "gw_1", before_ms=NOW))
    await database.read(lambda conn: audit.page(conn, after=10))
    await database.read(counts.votes)
    await database.read(counts.answers)
