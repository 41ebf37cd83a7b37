"""Replicas over the API: added, drained, removed, and known to every gateway."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from plaudit_server import membership
from plaudit_server.engine.base import Member
from plaudit_server.engine.vllm import VllmEngine
from plaudit_server.errors import StorageFull
from plaudit_server.settings import Settings
from plaudit_server.store.database import sqlite_url
from tests.support.databases import current
from tests.support.engine_folders import make_base
from tests.support.engine_stub import StubVllm
from tests.support.server import HELLO, Harness, serving

A, B = "http://10.0.0.1:8000", "http://10.0.0.2:8000"


async def listed(server: Harness) -> list[dict[str, Any]]:
    answer = await server.admin.get("/v1/replicas")
    assert answer.status_code == 200
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


async def add(server: Harness, url: str, status: int = 201) -> dict[str, Any]:
    answer = await server.admin.post("/v1/replicas", json={"url": url})
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_child_is_listed_without_an_address(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        (child,) = await listed(server)
        assert (child["name"], child["url"], child["source"], child["state"]) == ("fake-0", None, "child", "ready")


async def test_add_drain_and_remove_are_in_force_here_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        added = await add(server, A + "/")
        assert (added["name"], added["url"], added["source"]) == ("engine-1", A, "operator")
        assert server.engine.members == [Member("engine-1", A)]
        await add(server, A, status=200)

        drained = await server.admin.post("/v1/replicas/engine-1/drain")
        assert drained.json()["draining"] and server.engine.members == [Member("engine-1", A, draining=True)]
        assert (await add(server, A))["draining"] is False

        assert (await server.admin.delete("/v1/replicas/engine-1")).json()["removed"]
        assert server.engine.members == [] and len(await listed(server)) == 1
        assert (await server.admin.delete("/v1/replicas/engine-1")).status_code == 404
        done = [entry["action"] for entry in (await server.admin.get("/v1/audit")).json()["data"]]
        assert done == ["replica.removed", "replica.added", "replica.draining", "replica.added"]


async def test_what_was_added_is_still_there_after_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path, engine_urls=A) as server:
        await add(server, B)
        await server.admin.delete("/v1/replicas/engine-0")
    async with serving(tmp_path, engine_urls=A) as server:
        assert server.engine.members == [Member("engine-1", B)]


async def test_the_last_replica_cannot_leave_a_server_without_a_child(tmp_path: Path) -> None:
    async with serving(tmp_path, engine_urls=A) as server:
        for answer in (
            await server.admin.post("/v1/replicas/engine-0/drain"),
            await server.admin.delete("/v1/replicas/engine-0"),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "last_replica")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "10.0.0.1:8000",
        "ftp://x",
        "http://",
        "http://user:pw@x",
        "http://x?key=1",
        "http://x#y",
        "http://" + "x" * 600,
    ],
)
async def test_an_address_that_cannot_be_is_refused(tmp_path: Path, url: str) -> None:
    async with serving(tmp_path) as server:
        answer = await server.admin.post("/v1/replicas", json={"url": url})
        assert answer.status_code == 422 and answer.json()["error"]["param"] == "url"


async def test_a_viewer_may_look_and_an_operator_may_change(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        viewer, operator, chatter = [await server.client(role) for role in ("viewer", "operator", "chat")]
        assert (await viewer.get("/v1/replicas")).status_code == 200
        assert (await viewer.post("/v1/replicas", json={"url": A})).status_code == 403
        assert (await chatter.get("/v1/replicas")).status_code == 403
        assert (await operator.post("/v1/replicas", json={"url": A})).status_code == 201


async def test_health_tells_no_addresses(tmp_path: Path) -> None:
    async with serving(tmp_path, engine_urls=A) as server:
        assert "10.0.0.1" not in (await server.anonymous.get("/healthz")).text


@asynccontextmanager
async def first_gateway(folder: Path) -> AsyncIterator[Harness]:
    url = sqlite_url(folder / "shared.db") if current.kind == "sqlite" else await current.ready(folder)
    async with serving(folder / "one", database_url=url, engine_urls=A) as one:
        yield one


@asynccontextmanager
async def second_gateway(folder: Path, one: Harness) -> AsyncIterator[Harness]:
    """On the same database, with a data folder of its own."""
    (folder / "two" / "data").mkdir(parents=True)
    shutil.copy(one.settings.data / "admin.key", folder / "two" / "data" / "admin.key")
    shared = {"database_url": one.settings.database_url, "hash_key_file": one.settings.data / "hash.key"}
    async with serving(folder / "two", **shared, engine_urls=A) as two:
        yield two


@asynccontextmanager
async def two_gateways(folder: Path) -> AsyncIterator[tuple[Harness, Harness]]:
    async with first_gateway(folder) as one, second_gateway(folder, one) as two:
        yield one, two


async def test_every_gateway_knows_within_a_second(tmp_path: Path) -> None:
    async with two_gateways(tmp_path) as (one, two):
        assert two.engine.members == [Member("engine-0", A)]
        await add(one, B)
        await two.until(lambda: two.engine.members == [Member("engine-0", A), Member("engine-1", B)], seconds=1)


async def test_gateways_know_what_the_others_use(tmp_path: Path) -> None:
    async with first_gateway(tmp_path) as one:
        name = await one.publish()
        async with second_gateway(tmp_path, one) as two:
            await two.until(lambda: two.engine.others is not None and name in two.engine.others.versions)
            await one.until(lambda: one.engine.others is not None)
            assert one.engine.others is not None and one.engine.others.is_first is not two.engine.others.is_first  # type: ignore[union-attr]
        await one.until(lambda: one.engine.others is None)


async def test_a_gateway_that_is_long_busy_goes_on_saying_what_it_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "BEAT_S", 0.1)
    monkeypatch.setattr(membership, "ALIVE_S", 1.5)
    async with two_gateways(tmp_path) as (one, two):
        name = await one.publish()
        one.engine.install_s = 4
        await one.register()
        for _ in range(25):
            await two.services.membership.refresh()
            assert two.engine.others is not None
            await two.until(lambda: two.engine.others is not None and name in two.engine.others.versions, seconds=1)
            await asyncio.sleep(0.1)


async def test_chats_move_to_a_replica_that_was_added_and_leave_one_that_drains(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    stubs = {A: StubVllm(), B: StubVllm()}
    settings = Settings(engine_urls=[A], data=tmp_path / "x")
    engine: Any = VllmEngine(settings, base, connect=lambda url: stubs[url].client())
    engine.start_s = 0  # the harness waits for the engine then
    async with serving(tmp_path, engine, engine_urls=A) as server:
        await add(server, B)
        await server.until(lambda: len(engine.fleet.serving("base")) == 2)
        drained = await server.admin.post("/v1/replicas/engine-0/drain")
        assert drained.status_code == 200
        for number in range(5):
            answer = await server.admin.post("/v1/chat/completions", json={"messages": HELLO, "user": str(number)})
            assert answer.status_code == 200
        asked = [sum(path == "/v1/chat/completions" for path, _ in stub.calls) for stub in stubs.values()]
        assert asked == [0, 5]
        await server.until(lambda: engine.health()[0].detail == "drained")


async def test_a_claim_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: Any, **__: Any) -> None:
        raise StorageFull

    async with serving(tmp_path, engine_urls=A) as server:
        monkeypatch.setattr("plaudit_server.store.replicas.beat", full)
        name = await server.publish()
        assert (await server.admin.post(f"/v1/versions/{name}/promote")).status_code == 200
        assert (await server.chat())["model"] == f"policy@{name}"
