import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from plaudit.wire.training import FailRequest, RunCreate, RunUpdate
from plaudit.wire.versions import GateCheck, GateReport, VersionCreate
from plaudit_server import views
from plaudit_server.domain.records import AliasRow, RunRow, VersionRow
from plaudit_server.errors import Conflict, NotFound, PlauditError, PreconditionFailed
from plaudit_server.store import aliases, audit, interactions, leases, runs, versions
from plaudit_server.store import tables as t
from plaudit_server.store.database import Database
from tests.support.store_rows import (
    NOW,
    a_proof,
    a_registration,
    begin_run,
    open_store,
    publish,
    store_voted,
    take,
    vote,
)


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_store(tmp_path) as database:
        yield database


async def _run(db: Database, worker: str = "w1") -> RunRow:
    await store_voted(db, 2)
    return await begin_run(db, await take(db, worker), worker)


async def _register(db: Database, request: VersionCreate, *, at: int = NOW) -> tuple[VersionRow, bool]:
    return await db.write(lambda conn: versions.register(conn, request, now_ms=at))


async def _get(db: Database, name: str) -> VersionRow:
    return await db.read(lambda conn: versions.get(conn, name))


async def _update(db: Database, run_id: str, *, at: int = NOW, **changes: Any) -> RunRow:
    return await db.write(lambda conn: runs.update(conn, run_id, RunUpdate(**changes), now_ms=at))


async def _move(db: Database, name: Any, version: str, **changes: Any) -> AliasRow:
    values = {"actor": "key_1", "reason": "test", "now_ms": NOW, **changes}
    return await db.write(lambda conn: aliases.move(conn, name, version, **values))


async def _rollback(db: Database, to: str = "previous") -> AliasRow:
    return await db.write(lambda conn: aliases.rollback(conn, to, actor="key_1", reason="bad", now_ms=NOW))


async def _where(db: Database) -> dict[str, str]:
    return {name: row.version for name, row in (await db.read(aliases.get_all)).items()}


# ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_run_starts_from_stable_with_the_next_name(db: Database) -> None:
    run = await _run(db)
    assert (run.version, run.parent, run.parent_location, run.warm_start_location) == ("v1", "base", None, None)
    assert (run.state, run.metrics, run.created_at_ms) == ("running", {}, NOW)
    assert views.run(run).version == "v1"


async def test_a_run_knows_the_folders_to_go_on_from(db: Database) -> None:
    first = await publish(db)
    await _move(db, "stable", first)
    second = await publish(db, ready=False)
    run = await _run(db)
    assert (run.version, run.parent) == ("v3", first)
    assert run.parent_location == f"/srv/versions/{first}"
    assert run.warm_start_location == f"/srv/versions/{second}"


async def test_the_same_batch_has_the_same_run(db: Database) -> None:
    await store_voted(db, 2)
    batch = await take(db)
    found = await asyncio.gather(*(begin_run(db, batch) for _ in range(5)))
    assert {(run.id, run.version) for run in found} == {(found[0].id, "v1")}


async def test_numbers_are_never_given_twice(db: Database) -> None:
    names = []
    for attempt in range(3):
        run = await _run(db)
        names.append(run.version)
        request = FailRequest(worker="w1", reason="crash", release=bool(attempt % 2))
        await db.write(lambda conn, run=run, request=request: leases.fail(conn, run.batch_id, request, now_ms=NOW))
    assert names == ["v1", "v2", "v3"]
    assert (await db.read(lambda conn: runs.page(conn, state="failed"))).items[0].reason == "crash"


async def test_parallel_runs_get_different_names(db: Database) -> None:
    await store_voted(db, 12)
    batches = [await take(db, f"w{i}", max_records=2) for i in range(6)]
    found = await asyncio.gather(*(begin_run(db, batch, f"w{i}") for i, batch in enumerate(batches)))
    assert sorted(run.version for run in found) == [f"v{n}" for n in range(1, 7)]


async def test_a_run_needs_a_live_lease_of_its_worker(db: Database) -> None:
    await store_voted(db, 2)
    batch = await take(db)
    with pytest.raises(Conflict, match="another worker"):
        await begin_run(db, batch, "w2")
    with pytest.raises(Conflict, match="expired"):
        await begin_run(db, batch, at=NOW + 10**6)
    request = RunCreate(batch_id="batch_nobody", worker="w1")
    with pytest.raises(NotFound):
        await db.write(lambda conn: runs.create(conn, request, now_ms=NOW))


async def test_progress_and_metrics(db: Database) -> None:
    run = await _run(db)
    await _update(db, run.id, stage="reward", step=0, progress=0.1, metrics={"auroc": 0.6})
    now = await _update(db, run.id, at=NOW + 1, stage="ppo", step=1, progress=0.5, metrics={"loss": 0.5})
    now = await _update(db, run.id, at=NOW + 2, step=2, metrics={"loss": 0.25})
    assert (now.stage, now.progress, now.metrics, now.updated_at_ms) == (
        "ppo",
        0.5,
        {"auroc": 0.6, "loss": 0.25},
        NOW + 2,
    )
    points = await db.read(lambda conn: runs.metrics(conn, run.id))
    assert [(p.stage, p.step, p.at_ms, p.metrics) for p in points] == [
        ("reward", 0, NOW, {"auroc": 0.6}),
        ("ppo", 1, NOW + 1, {"loss": 0.5}),
        ("ppo", 2, NOW + 2, {"loss": 0.25}),
    ]
    assert views.metric_point(points[0]).step == 0


async def test_a_failed_run_is_over_until_its_batch_is_taken_up_again(db: Database) -> None:
    run = await _run(db)
    failed = await _update(db, run.id, state="failed", reason="out of memory")
    assert (failed.state, failed.reason) == ("failed", "out of memory")
    assert await _update(db, run.id, state="failed", reason="again") == failed
    with pytest.raises(Conflict, match="over"):
        await _update(db, run.id, stage="ppo")
    again = await begin_run(db, await take(db))
    assert (again.id, again.state, again.reason) == (run.id, "running", None)


async def test_runs_pages(db: Database) -> None:
    made = [await _run(db, f"w{i}") for i in range(3)]
    page = await db.read(lambda conn: runs.page(conn, limit=2))
    assert ([run.id for run in page.items], page.has_more) == ([made[2].id, made[1].id], True)
    rest = await db.read(lambda conn: runs.page(conn, after=made[1].id))
    assert [run.id for run in rest.items] == [made[0].id]
    with pytest.raises(NotFound):
        await db.read(lambda conn: runs.get(conn, "run_nobody"))


# ── registration ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_registering_consumes_the_batch_in_the_same_transaction(db: Database) -> None:
    run = await _run(db)
    version, new = await _register(db, a_registration(run))
    assert new
    assert (version.name, version.state, version.records, version.batch_ids) == ("v1", "loading", 2, [run.batch_id])
    batch = await db.read(lambda conn: leases.get(conn, run.batch_id))
    assert (batch.state, batch.version, batch.records) == ("consumed", "v1", 2)
    assert (await db.read(lambda conn: runs.get(conn, run.id))).state == "published"
    shown = views.version(version)
    assert shown.fingerprint == f"v1-{version.manifest_sha256 or '':.8}"
    assert shown.gate is not None
    assert shown.gate.passed


async def test_registering_the_same_again_changes_nothing(db: Database) -> None:
    run = await _run(db)
    request = a_registration(run)
    outcomes = await asyncio.gather(*(_register(db, request) for _ in range(5)))
    assert sorted(new for _, new in outcomes) == [False] * 4 + [True]
    assert len({version.name for version, _ in outcomes}) == 1
    # long after the lease is over, and the version is proven
    await db.write(lambda conn: versions.set_proof(conn, "v1", a_proof()))
    version, new = await _register(db, request, at=NOW + 10**9)
    assert (version.state, new) == ("ready", False)


async def test_something_else_under_the_same_name_is_a_conflict(db: Database) -> None:
    run = await _run(db)
    await _register(db, a_registration(run))
    for change in ({"manifest_sha256": "0" * 64}, {"location": "/elsewhere"}, {"outcome": "rejected"}):
        with pytest.raises(Conflict) as raised:
            await _register(db, a_registration(run, **change))
        assert raised.value.code == "version_exists"


async def test_registrations_that_contradict_their_run_are_refused(db: Database) -> None:
    run = await _run(db)
    refused = GateReport(passed=False, checks=[])
    wrong: list[tuple[dict[str, Any], type[PlauditError], str | None]] = [
        ({"name": "v9"}, Conflict, "wrong_name"),
        ({"parent": "v9"}, Conflict, "wrong_parent"),
        ({"batch_ids": ["batch_other"]}, Conflict, "wrong_batches"),
        ({"batch_ids": [run.batch_id, "batch_other"]}, Conflict, "wrong_batches"),
        ({"gate": refused}, Conflict, "gate_failed"),
        ({"run_id": "run_nobody"}, NotFound, "run_not_found"),
        ({"name": "base"}, Conflict, "version_exists"),
    ]
    for change, error, code in wrong:
        with pytest.raises(error) as raised:
            await _register(db, a_registration(run, **change))
        assert raised.value.code == code
    assert (await db.read(versions.states)) == {"base": "ready"}
    assert (await db.read(lambda conn: leases.get(conn, run.batch_id))).state == "leased"


async def test_a_version_whose_lease_was_lost_is_refused_and_nothing_is_trained_twice(db: Database) -> None:
    run = await _run(db)
    late = NOW + 60_000
    with pytest.raises(Conflict) as raised:
        await _register(db, a_registration(run), at=late)
    assert raised.value.code == "lease_lost"
    second = await begin_run(db, await take(db, "w2", at=late), "w2", at=late)
    with pytest.raises(Conflict):
        await _register(db, a_registration(run), at=late)
    version, _ = await _register(db, a_registration(second), at=late)
    assert (version.name, version.records) == ("v2", 2)


async def test_a_rejected_version_is_kept_with_its_reason_and_never_serves(db: Database) -> None:
    run = await _run(db)
    check = GateCheck(name="win rate", passed=False, value=0.4, n=100, bound="≥ 0.48")
    gate = GateReport(passed=False, checks=[check])
    version, _ = await _register(db, a_registration(run, outcome="rejected", gate=gate))
    assert (version.state, version.reason) == ("rejected", "win rate = 0.4 (n = 100): needs ≥ 0.48")
    assert (await db.read(lambda conn: runs.get(conn, run.id))).state == "rejected"
    assert await db.read(leases.waiting) == 0
    with pytest.raises(Conflict, match="rejected"):
        await db.write(lambda conn: versions.set_proof(conn, "v1", a_proof()))
    with pytest.raises(Conflict, match="only a ready one can serve"):
        await _move(db, "stable", "v1")


async def test_proofs_decide(db: Database) -> None:
    good, bad = await publish(db), await publish(db, ready=False)
    version = await db.write(
        lambda conn: versions.set_proof(conn, bad, a_proof(passed=False, reason="slope 0.02: the parent is served"))
    )
    assert (version.state, version.reason) == ("failed", "slope 0.02: the parent is served")
    assert version.proof is not None
    assert (await _get(db, good)).state == "ready"
    with pytest.raises(Conflict, match="cannot become ready"):
        await db.write(lambda conn: versions.set_proof(conn, bad, a_proof()))
    assert await db.read(versions.states) == {"base": "ready", good: "ready", bad: "failed"}
    assert [v.name for v in await db.read(lambda conn: versions.in_state(conn, "ready"))] == ["base", good]


async def test_versions_pages_run_from_newest_to_base(db: Database) -> None:
    for _ in range(11):  # v10 is newer than v9, though not as text
        await publish(db)
    first = await db.read(lambda conn: versions.page(conn, limit=3))
    assert ([v.name for v in first.items], first.has_more) == (["v11", "v10", "v9"], True)
    rest = await db.read(lambda conn: versions.page(conn, after="v2", limit=5))
    assert ([v.name for v in rest.items], rest.has_more) == (["v1", "base"], False)
    assert (await db.read(lambda conn: versions.page(conn, state="failed"))).items == []
    with pytest.raises(NotFound):
        await _get(db, "v99")


async def test_lineage_counts_what_all_ancestors_learned_from(db: Database) -> None:
    first = await publish(db)
    await _move(db, "stable", first)
    ids = await store_voted(db, 3)
    await vote(db, ids[0], -1.0, end_user="eu_2")
    run = await begin_run(db, await take(db))
    await _register(db, a_registration(run))
    forgotten = await db.write(lambda conn: interactions.forget(conn, ids[1], "asked", now_ms=NOW))
    assert forgotten.versions == (run.version,)
    lineage = views.lineage(await db.read(lambda conn: versions.lineage(conn, run.version)))
    assert lineage.parents == [first, "base"]
    assert lineage.feedback == {"records": 5, "up": 5, "down": 1, "comparisons": 0}
    assert [batch["version"] for batch in lineage.batches] == [first, run.version]
    assert lineage.erased_sources == 1
    base = await db.read(lambda conn: versions.lineage(conn, "base"))
    assert (base.parents, base.batches, base.erased_sources) == ([], [], 0)
    with pytest.raises(NotFound):
        await db.read(lambda conn: versions.lineage(conn, "v99"))


async def test_a_line_may_be_longer_than_a_statement_has_parameters(db: Database) -> None:
    length = 33_000  # PostgreSQL takes 32,767
    row = {"kind": "adapter", "state": "retired", "records": 1, "created_at": NOW, "metrics": {}, "tainted": False}
    line = [{**row, "name": f"v{n}", "number": n, "parent": f"v{n - 1}" if n > 1 else "base"} for n in range(1, length)]
    await db.write(lambda conn: conn.execute(insert(t.versions), line))
    found = await db.read(lambda conn: versions.lineage(conn, f"v{length - 1}"))
    assert found.parents == ["base" if n == 0 else f"v{n}" for n in range(length - 2, -1, -1)]
    marked = await db.write(lambda conn: versions.taint(conn, ["v2"]))
    assert marked == [f"v{n}" for n in range(2, length)]
    assert (await _get(db, f"v{length - 1}")).tainted


async def test_taint_reaches_descendants_and_keeps_them_from_serving(db: Database) -> None:
    first = await publish(db)
    sibling = await publish(db)
    await _move(db, "stable", first)
    child = await publish(db)
    assert await db.write(lambda conn: versions.taint(conn, [first])) == [first, child]
    assert await db.write(lambda conn: versions.taint(conn, [first, "v99"])) == []
    assert not (await _get(db, sibling)).tainted
    with pytest.raises(Conflict) as raised:
        await _move(db, "canary", child)
    assert raised.value.code == "version_tainted"


# ── aliases ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_moving_stable_remembers_what_was_there(db: Database) -> None:
    first, second = await publish(db), await publish(db)
    assert await _where(db) == {"stable": "base"}
    row = await _move(db, "stable", first)
    assert (row.version, row.etag, row.actor, row.reason) == (first, "2", "key_1", "test")
    await _move(db, "canary", second)
    assert await _where(db) == {"stable": first, "previous": "base", "canary": second}
    assert (await _get(db, second)).aliases == ["canary"]
    await _move(db, "stable", second)
    assert await _where(db) == {"stable": second, "previous": first, "canary": second}
    assert (await _get(db, second)).aliases == ["canary", "stable"]


async def test_moving_an_alias_to_where_it_is_changes_nothing(db: Database) -> None:
    first = await publish(db)
    moved = await _move(db, "stable", first)
    assert await _move(db, "stable", first) == moved
    assert await _where(db) == {"stable": first, "previous": "base"}
    assert len((await db.read(audit.page)).items) == 1


async def test_rollback_and_rollback_of_the_rollback(db: Database) -> None:
    first, second = await publish(db), await publish(db)
    with pytest.raises(Conflict) as raised:
        await _rollback(db)
    assert raised.value.code == "no_previous"
    await _move(db, "stable", first)
    await _move(db, "stable", second)
    assert (await _rollback(db)).version == first
    assert (await _rollback(db)).version == second
    assert (await _rollback(db, "base")).version == "base"
    assert await _where(db) == {"stable": "base", "previous": second}
    with pytest.raises(NotFound):
        await _rollback(db, "v99")


async def test_etags_guard_against_lost_updates(db: Database) -> None:
    first = await publish(db)
    for stale in ("0", '"7"', "nonsense", ""):
        with pytest.raises(PreconditionFailed, match="etag is 1"):
            await _move(db, "stable", first, if_match=stale)
    assert (await _move(db, "stable", first, if_match='"1"')).etag == "2"
    assert (await _move(db, "stable", "base", if_match="*")).etag == "3"
    assert (await _move(db, "canary", first, if_match="0")).etag == "1"


async def test_two_promotions_at_once_make_one_winner(db: Database) -> None:
    first, second = await publish(db), await publish(db)
    outcomes = await asyncio.gather(
        *(_move(db, "stable", name, if_match="1") for name in (first, second)), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["AliasRow", "PreconditionFailed"]


async def test_only_proven_versions_serve(db: Database) -> None:
    name = await publish(db, ready=False)
    for attempt in (_move(db, "stable", name), _move(db, "canary", name), _rollback(db, name)):
        with pytest.raises(Conflict, match="loading"):
            await attempt
    with pytest.raises(NotFound):
        await _move(db, "canary", "v99")
    with pytest.raises(Conflict, match="follows"):
        await _move(db, "previous", "base")
    assert await _where(db) == {"stable": "base"}


async def test_moves_are_audited_and_refusals_are_not(db: Database) -> None:
    first = await publish(db)
    await _move(db, "stable", first, action="promote")
    await _rollback(db)
    with pytest.raises(NotFound):
        await _move(db, "stable", "v99")
    entries = (await db.read(audit.page)).items
    assert [(e.action, e.actor, e.subject, e.detail) for e in entries] == [
        ("rollback", "key_1", "stable", {"from": first, "to": "base", "reason": "bad"}),
        ("promote", "key_1", "stable", {"from": "base", "to": first, "reason": "test"}),
    ]
    assert views.audit(entries[0]).action == "rollback"
    assert views.alias((await db.read(aliases.get_all))["stable"]).etag == "3"
