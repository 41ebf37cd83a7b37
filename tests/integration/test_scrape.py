"""What `/metrics` fetches when somebody looks: engine, versions, queues, leases, the trainer."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from plaudit.wire.ops import ReplicaHealth
from plaudit_server import telemetry as module
from plaudit_server.scrape import scrape
from plaudit_server.store import Connection, counts
from tests.support.metrics import value
from tests.support.server import HELLO, Harness, serving
from tests.support.store_rows import open_store


async def figures(server: Harness) -> str:
    page = await server.admin.get("/metrics")
    assert page.status_code == 200
    return page.text


async def test_a_swap_shows_its_probe_its_bounds_and_its_margin(tmp_path: Path) -> None:
    async with serving(tmp_path, probe_slope_low=0.8, probe_slope_high=1.2) as server:
        before = await figures(server)
        assert value(before, "plaudit_probe_slope", replica="fake-0") is None
        assert value(before, "plaudit_probe_bound", side="low") == 0.8
        name = await server.publish()
        page = await figures(server)
        assert value(page, "plaudit_probe_slope", replica="fake-0") == 1
        assert value(page, "plaudit_probe_low", replica="fake-0") == 0.95
        assert value(page, "plaudit_probe_high", replica="fake-0") == 1.1
        assert value(page, "plaudit_probe_margin", replica="fake-0") == pytest.approx(0.1)

        async def both_are_ready() -> bool:  # the proof is kept before this process has read the version's new state
            return value(await figures(server), "plaudit_versions", state="ready") == 2

        await server.until(both_are_ready)
        assert value(page, "plaudit_versions_resident") == 1
        assert value(page, "plaudit_alias_version", alias="stable", version="base") == 1
        assert (await server.admin.post(f"/v1/versions/{name}/promote")).is_success
        moved = await figures(server)
        assert value(moved, "plaudit_alias_version", alias="stable", version=name) == 1
        assert value(moved, "plaudit_alias_version", alias="stable", version="base") is None


async def test_a_replica_that_is_gone_has_no_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as server:
        await server.publish()
        await figures(server)
        elsewhere = [ReplicaHealth(replica="other", state="starting")]
        monkeypatch.setattr(server.engine, "health", lambda: elsewhere)
        page = await figures(server)
        assert "fake-0" not in page
        assert value(page, "plaudit_engine_state", replica="other", state="starting") == 1


async def test_stable_is_unproven_while_the_engine_does_not_hold_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert value(await figures(server), "plaudit_stable_proven") == 1
        server.engine.crash()
        assert value(await figures(server), "plaudit_stable_proven") == 0


async def test_leases_and_the_run_are_shown(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        quiet = await figures(server)
        assert value(quiet, "plaudit_leases_held") == 0
        assert value(quiet, "plaudit_lease_age_seconds") == 0
        _, run = await server.leased_run()
        await report(server, run, stage="policy", step=3, progress=0.25, metrics={"ppo/kl": 0.02, "ppo/odd": 9})
        page = await figures(server)
        assert value(page, "plaudit_leases_held") == 1
        assert value(page, "plaudit_lease_overdue_seconds") == 0
        assert value(page, "plaudit_training_runs", state="running") == 1
        assert value(page, "plaudit_training_runs", state="published") == 0
        assert value(page, "plaudit_training_stage", stage="policy") == 1
        assert value(page, "plaudit_training_step") == 3
        assert value(page, "plaudit_training_progress") == 0.25
        assert value(page, "plaudit_training_figure", figure="kl") == 0.02
        assert "odd" not in page
        assert value(page, "plaudit_trainer_silent_seconds") < 30  # type: ignore[operator]


async def report(server: Harness, run: dict[str, Any], **update: Any) -> None:
    sent = await server.admin.post(f"/v1/training/runs/{run['id']}/metrics", json=update)
    assert sent.is_success, sent.text


async def test_a_stage_that_nobody_knows_is_other_and_the_old_one_is_gone(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _, run = await server.leased_run()
        await report(server, run, stage="reward")
        assert value(await figures(server), "plaudit_training_stage", stage="reward") == 1
        await report(server, run, stage="something new")
        page = await figures(server)
        assert value(page, "plaudit_training_stage", stage="other") == 1
        assert value(page, "plaudit_training_stage", stage="reward") is None


async def test_an_ended_run_has_no_stage_but_the_figures_of_its_version(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.register(metrics={"gate/win_rate": 0.61})
        page = await figures(server)
        assert value(page, "plaudit_training_figure", figure="win_rate") == 0.61
        assert value(page, "plaudit_training_runs", state="published") == 1
        assert "plaudit_training_stage{" not in page


async def test_an_overdue_lease_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.rated(2)
        lease = {"worker": "w", "min_records": 2, "lease_seconds": 0.05}
        assert (await server.admin.post("/v1/batches:lease", json=lease)).json()["state"] == "leased"
        await asyncio.sleep(0.1)
        overdue = value(await figures(server), "plaudit_lease_overdue_seconds")
        assert overdue is not None
        assert overdue > 0


async def test_a_trainer_that_was_never_heard_is_as_silent_as_the_server_is_old(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.services.started -= 1000
        silent = value(await figures(server), "plaudit_trainer_silent_seconds")
        assert silent is not None
        assert 1000 <= silent < 1030
        await server.admin.post("/v1/batches:lease", json={"worker": "w"})
        assert value(await figures(server), "plaudit_trainer_silent_seconds") < 30  # type: ignore[operator]


async def test_streams_have_a_speed_by_version(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.engine.token_delay_s = 0.005
        body = {"messages": HELLO, "stream": True}
        await server.admin.post("/v1/chat/completions", json=body)
        page = await figures(server)
        assert value(page, "plaudit_chat_tokens_per_second_count", version="base") == 1
        speed = value(page, "plaudit_chat_tokens_per_second_sum", version="base")
        assert speed is not None
        assert 0 < speed < 200


async def test_queues_are_counted_while_they_stand(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        release, entered = asyncio.Event(), asyncio.Event()

        async def block(conn: Connection) -> None:
            entered.set()
            await release.wait()

        blocked = asyncio.create_task(server.services.database.write(block))
        await entered.wait()
        try:
            for number in range(3):  # an answer waits for no disk: only its row does
                await server.chat(f"Question {number}?")
            await server.until(lambda: server.services.database.waiting >= 1)
            page = (await scrape(server.services)).decode()
            assert value(page, "plaudit_answers_waiting") == 3
            assert 1 <= value(page, "plaudit_writer_queue") <= 3  # in groups
            assert value(page, "plaudit_chats_in_flight") == 0
        finally:
            release.set()
        await blocked
        await server.services.answering.all_written()
        page = await figures(server)
        assert value(page, "plaudit_answers_waiting") == 0
        assert value(page, "plaudit_writer_queue") == 0


async def test_late_votes_on_a_retired_version_make_no_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as server:
        name = await server.publish()
        answer = await server.chat(model=f"policy@{name}")
        assert value(await figures(server), "plaudit_chats_total", version=name, status="complete") == 1
        server.engine.crash()
        server.engine.recover()
        monkeypatch.setattr(server.services.serving.demand, "current", lambda: {"base"})
        monkeypatch.setattr(module, "RETIRED_KEEP_S", -1.0)
        await figures(server)
        page = await figures(server)
        assert f'version="{name}"' not in page
        assert (await server.vote(answer["id"])).is_success
        page = await figures(server)
        assert f'version="{name}"' not in page
        assert value(page, "plaudit_votes_total", version="retired", value="up") == 1


async def test_a_scrape_asks_one_query_for_each_table(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.leased_run()
        await server.services.serving.close()  # its loops ask too
        asked: list[str] = []
        readers = server.services.database._readers.sync_engine
        event.listen(readers, "before_cursor_execute", lambda *given: asked.append(given[2]))
        await scrape(server.services)
        queries = [statement for statement in asked if statement.lstrip().upper().startswith("SELECT")]
        assert len(queries) == 4, queries


@pytest.mark.sqlite  # asks for its plan
@pytest.mark.parametrize("query", [counts.held_leases, counts.runs, counts.newest_run])
async def test_the_queries_of_a_scrape_read_by_an_index(tmp_path: Path, query: Any) -> None:
    async with open_store(tmp_path) as database:
        asked: list[tuple[str, Any]] = []
        engine = database._readers.sync_engine
        event.listen(engine, "before_cursor_execute", lambda *given: asked.append((given[2], given[3])))
        await database.read(query)
        (statement, parameters) = asked[-1]

        async def explain(conn: Connection) -> list[str]:
            plan = await conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            return [row[3] for row in plan]

        plan = await database.read(explain)
        assert plan
        assert not [step for step in plan if step.startswith("SCAN") and "INDEX" not in step], plan
