"""The loop at a glance, live, and the statistics of votes."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from plaudit import AsyncPlaudit, AuthenticationError
from plaudit.wire.overview import Overview
from tests.support.server import Harness, listening, serving

TOPICS = {"server", "aliases", "waiting", "counts", "newest", "run", "refusal", "rollout"}


async def test_the_overview_tells_what_waits_runs_and_was_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        empty = (await server.admin.get("/v1/overview")).json()
        assert (empty["run"], empty["refusal"], empty["rollout"]) == (None, None, None)
        await server.rated(3)
        unwilling = await server.chat("Not this.", train=False, user="no")
        await server.vote(unwilling["id"], False, end_user="no")
        seen = Overview.model_validate((await server.admin.get("/v1/overview")).json())
        assert (seen.waiting.records, seen.waiting.passed_over) == (3, {"no_consent": 1})
        assert seen.server.status == "ok" and seen.server.fake_engine
        assert [alias.version for alias in seen.aliases if alias.name == "stable"] == ["base"]
        assert seen.newest.answer == unwilling["id"]
        name = await server.publish()
        seen = Overview.model_validate((await server.admin.get("/v1/overview")).json())
        assert (seen.counts.versions["ready"], seen.counts.runs["published"], seen.counts.batches["consumed"]) == (
            2,
            1,
            1,
        )
        assert seen.run is not None and (seen.run.version, seen.run.state) == (name, "published")


async def test_the_overview_tells_where_a_run_stands(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _, run = await server.leased_run()
        url = f"/v1/training/runs/{run['id']}/metrics"
        for step in (1, 2):
            await asyncio.sleep(0.02)
            said = {"stage": "policy", "step": step, "progress": step / 8, "metrics": {"ppo/kl": 0.1 * step}}
            assert (await server.admin.post(url, json=said)).is_success
        now = (await server.admin.get("/v1/overview")).json()["run"]
        assert (now["stage"], now["step"], now["steps"], now["metrics"]) == ("policy", 2, 8, {"ppo/kl": 0.2})
        assert now["stage_ends_at"] > now["updated_at"]
        assert (await server.admin.post(url, json={"stage": "gate"})).is_success
        now = (await server.admin.get("/v1/overview")).json()["run"]
        assert (now["stage"], now["step"], now["steps"], now["stage_ends_at"]) == ("gate", None, None, None)
        assert (await server.admin.post(url, json={"state": "failed", "reason": "out of memory"})).is_success
        refusal = (await server.admin.get("/v1/overview")).json()["refusal"]
        assert (refusal["kind"], refusal["subject"], refusal["reason"]) == ("run_failed", run["id"], "out of memory")
        gate = {"passed": False, "checks": [{"name": "win rate", "passed": False, "value": 0.4, "bound": "≥ 0.48"}]}
        refused = await server.register(outcome="rejected", gate=gate)
        refusal = (await server.admin.get("/v1/overview")).json()["refusal"]
        assert (refusal["kind"], refusal["subject"]) == ("rejected", refused["name"])
        assert "win rate = 0.4" in refusal["reason"]


async def test_the_overview_has_the_rollout_with_its_evidence(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        name = await server.publish()
        given = {"candidate": name, "steps": [{"weight": 0.5}]}
        assert (await server.admin.post("/v1/rollouts", json=given)).status_code == 201
        rollout = (await server.admin.get("/v1/overview")).json()["rollout"]
        assert (rollout["candidate"], rollout["state"]) == (name, "running")
        assert rollout["report"]["e_bound"] == 20


async def test_votes_by_version_over_time(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        ids = await server.rated(3)
        await server.vote(ids[0], 0.0, end_user="neutral", source="annotator")
        await server.vote(ids[0], False, end_user="other", key="tone", source="annotator")
        found = (await server.admin.get("/v1/statistics/votes")).json()
        (base,) = found["versions"]
        assert (base["version"], base["up"], base["down"]) == ("base", 2, 1)
        assert base["low"] < base["up_rate"] < base["high"]
        assert sum(point["up"] + point["down"] for point in base["points"]) == 3
        assert all(point["begins_at"].endswith("T00:00:00Z") for point in base["points"])
        tone = (await server.admin.get("/v1/statistics/votes", params={"key": "tone"})).json()["versions"]
        assert [(one["version"], one["up"], one["down"]) for one in tone] == [("base", 0, 1)]
        none = (await server.admin.get("/v1/statistics/votes", params={"version": "v1"})).json()
        assert none["versions"] == []
        params: dict[str, Any] = {"since": "2020-01-01T00:00:00Z", "bucket_seconds": 60}
        refused = await server.admin.get("/v1/statistics/votes", params=params)
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "bucket_seconds")


async def test_feedback_is_narrowed_by_key_and_thumb(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        ids = await server.rated(2)
        words = {"response_id": ids[0], "comment": "only words", "end_user": "third", "source": "annotator"}
        assert (await server.admin.post("/v1/feedback", json=words)).is_success
        await server.vote(ids[1], True, end_user="fourth", key="tone", source="annotator")

        async def narrowed(**params: str) -> list[tuple[str, float | None]]:
            rows = (await server.admin.get("/v1/feedback", params=params)).json()["data"]
            return [(row["key"], row["value"]) for row in rows]

        assert await narrowed(vote="up") == [("tone", 1), ("thumb", 1)]
        assert await narrowed(vote="down") == [("thumb", -1)]
        assert await narrowed(vote="none") == [("thumb", None)]
        assert await narrowed(vote="up", key="thumb") == [("thumb", 1)]


async def test_batches_are_listed_with_what_was_passed_over(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        unwilling = await server.chat("Not this.", train=False, user="no")
        await server.vote(unwilling["id"], False, end_user="no")
        name = await server.publish()
        batch, _ = await server.leased_run()
        newest, oldest = (await server.admin.get("/v1/batches")).json()["data"]
        assert (newest["id"], newest["state"], newest["records"]) == (batch["id"], "leased", 4)
        assert (oldest["version"], oldest["up"], oldest["down"]) == (name, 2, 2)
        assert oldest["dropped"] == {"no_consent": 1}
        leased = (await server.admin.get("/v1/batches", params={"state": "leased"})).json()["data"]
        assert [one["id"] for one in leased] == [batch["id"]]
        page = (await server.admin.get("/v1/batches", params={"limit": 1})).json()
        assert page["has_more"] and page["next"] == batch["id"]


@contextlib.asynccontextmanager
async def ear(url: str, key: str) -> AsyncIterator["asyncio.Queue[tuple[str, Any]]"]:
    """Everything that a listener hears, event by event."""
    heard: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    async def listen() -> None:
        async with (
            httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as client,
            client.stream("GET", "/v1/live", timeout=20) as answer,
        ):
            assert answer.status_code == 200, await answer.aread()
            assert answer.headers["content-type"].startswith("text/event-stream")
            name = ""
            async for line in answer.aiter_lines():
                if line.startswith(":"):
                    heard.put_nowait(("comment", line))
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                if line.startswith("data: "):
                    heard.put_nowait((name, json.loads(line.removeprefix("data: "))))
        heard.put_nowait(("end", None))

    task = asyncio.create_task(listen())
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def told(heard: "asyncio.Queue[tuple[str, Any]]", *names: str) -> Any:
    """What comes under one of the names, whatever comes before it."""
    async with asyncio.timeout(10):
        while True:
            name, data = await heard.get()
            if name in names:
                return data


def admin_key(server: Harness) -> str:
    return (server.settings.data / "admin.key").read_text(encoding="ascii").strip()


async def test_a_listener_hears_all_at_first_and_then_what_changes(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, live_tick_s=0.05) as server,
        listening(server.app) as url,
        ear(url, admin_key(server)) as heard,
    ):
        async with asyncio.timeout(10):
            first = [await heard.get() for _ in TOPICS]
        assert {name for name, _ in first} == TOPICS
        assert all(list(data) == [name] for name, data in first)
        await asyncio.sleep(0.2)
        assert heard.empty()  # nothing changed, nothing is said
        await server.rated(1)
        async with asyncio.timeout(10):
            while (await told(heard, "waiting"))["waiting"]["records"] != 1:
                pass
        await server.client("viewer")  # making a key is audited
        async with asyncio.timeout(10):
            while (await told(heard, "newest"))["newest"]["audit"] is None:
                pass


async def test_nobody_looks_while_nobody_listens(tmp_path: Path) -> None:
    async with serving(tmp_path, live_tick_s=0.05) as server, listening(server.app) as url:
        live = server.services.live
        async with ear(url, admin_key(server)) as heard:
            await told(heard, "server")
            assert live._task is not None
        await server.until(lambda: live._task is None)
        assert live._listeners == 0


async def test_only_so_many_may_listen(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, live_tick_s=0.05, max_live_listeners=1) as server,
        listening(server.app) as url,
        ear(url, admin_key(server)) as heard,
    ):
        await told(heard, "server")
        refused = await server.admin.get("/v1/live")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_listeners")


async def test_a_revoked_key_hears_no_more(tmp_path: Path) -> None:
    async with serving(tmp_path, live_tick_s=0.05) as server, listening(server.app) as url:
        server.services.live._keep_alive_s = 0.2
        made = (await server.admin.post("/v1/keys", json={"name": "ear", "roles": ["viewer"]})).json()
        async with ear(url, made["secret"]) as heard:
            assert await told(heard, "comment") == ": still here"
            await server.admin.delete(f"/v1/keys/{made['id']}")
            assert (await told(heard, "error"))["error"]["code"] == "invalid_api_key"
            await told(heard, "end")
        await server.until(lambda: server.services.live._listeners == 0)


async def test_a_server_that_ends_does_not_wait_for_listeners(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, live_tick_s=0.05) as server,
        listening(server.app) as url,
        ear(url, admin_key(server)) as heard,
    ):
        await told(heard, "server")
        server.services.live.close()
        await told(heard, "end")
        assert (await server.admin.get("/v1/live")).status_code == 503


async def test_the_sdk_follows(tmp_path: Path) -> None:
    async with serving(tmp_path, live_tick_s=0.05) as server, listening(server.app) as url:
        server.services.live._keep_alive_s = 0.2
        made = (await server.admin.post("/v1/keys", json={"name": "ear", "roles": ["operator"]})).json()
        async with AsyncPlaudit(url, made["secret"]) as client:
            waiting = []
            try:
                async with asyncio.timeout(10):
                    async for seen in client.live():
                        if not waiting:  # once: other parts change while none waits yet
                            await server.rated(2)
                        waiting.append(seen.waiting.records)
                        if waiting[-1] == 2:
                            await server.admin.delete(f"/v1/keys/{made['id']}")
            except AuthenticationError:
                waiting.append(-1)
            assert waiting[0] == 0 and waiting[-2:] == [2, -1]
