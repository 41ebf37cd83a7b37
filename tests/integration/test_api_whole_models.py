"""Versions that are whole models: registered, tried, promoted, rolled back; chats wait for a swap or say why not."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx

from plaudit_server.engine.fake import FakeEngine
from tests.support.server import HELLO, Harness, serving, version_body

CHAT = "/v1/chat/completions"


def fleet(replicas: int, **attributes: Any) -> FakeEngine:
    engine = FakeEngine()
    engine.held = ["base"] * replicas
    for name, value in attributes.items():
        setattr(engine, name, value)
    return engine


async def whole(server: Harness, state: str = "ready") -> str:
    """A registered whole model, tried."""
    name: str = (await server.register(kind="full"))["name"]
    await server.until(lambda: server.state_is(name, state))
    return name


async def ask(server: Harness, model: str = "policy", **fields: Any) -> httpx.Response:
    return await server.admin.post(CHAT, json={"messages": HELLO, "model": model} | fields)


async def test_a_whole_model_is_tried_promoted_and_rolled_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        name = await whole(server)
        version = await server.version(name)
        assert (version["kind"], version["proof"]["passed"]) == ("full", True)
        assert (await server.version("base"))["kind"] == "full"
        assert (await server.chat())["model"] == "policy@base", "it was only tried"
        await server.until(lambda: server.engine.held == ["base"])

        assert (await server.admin.post(f"/v1/versions/{name}/promote")).status_code == 200
        assert (await server.chat())["model"] == f"policy@{name}" and server.engine.held == [name]

        back = await server.admin.post("/v1/rollback", json={"reason": "a test"})
        assert back.status_code == 200 and back.json()["version"] == "base", back.text
        assert (await server.chat())["model"] == "policy@base" and server.engine.held == ["base"]


async def test_chats_wait_for_a_swap_and_none_fails(tmp_path: Path) -> None:
    async with serving(tmp_path, fleet(1, swap_s=0.2)) as server:
        name = await whole(server)
        chats = [asyncio.create_task(ask(server))]
        promoting = asyncio.create_task(server.admin.post(f"/v1/versions/{name}/promote"))
        while not promoting.done():
            await asyncio.sleep(0.02)
            chats.append(asyncio.create_task(ask(server, stream=len(chats) % 2 == 0)))
        answers = await asyncio.gather(*chats)
        assert {answer.status_code for answer in answers} == {200}
        assert promoting.result().status_code == 200
        assert answers[-1].headers["x-model-version"] == name


async def test_the_wait_is_bounded(tmp_path: Path) -> None:
    async with serving(tmp_path, swap_wait_s=0.1) as server:
        name = await whole(server)
        await server.until(lambda: server.engine.held == ["base"])
        server.engine.swap_s = 1.5
        promoting = asyncio.create_task(server.admin.post(f"/v1/versions/{name}/promote"))
        await server.until(lambda: not server.engine.weights())
        refused = await ask(server)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "swap_under_way"
        assert "Retry-After" in refused.headers
        assert (await promoting).status_code == 200
        assert (await ask(server)).status_code == 200


async def test_a_whole_model_that_fails_its_probe_never_serves(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.engine.unproven = {"v1"}
        name = await whole(server, "failed")
        await server.until(lambda: server.engine.held == ["base"])
        assert (await server.admin.post(f"/v1/versions/{name}/promote")).status_code == 409
        assert (await server.chat())["model"] == "policy@base"


async def test_automatic_promotion(tmp_path: Path) -> None:
    async with serving(tmp_path, auto_promote=True) as server:
        name = await whole(server)
        assert (await server.chat())["model"] == f"policy@{name}" and server.engine.held == [name]


async def test_what_is_not_live_says_which_model_is(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        name = await whole(server)
        await server.admin.post(f"/v1/versions/{name}/promote")
        began = time.monotonic()
        refused = await ask(server, "policy@base")
        assert refused.status_code == 503 and time.monotonic() - began < 2
        assert f"a replica holds one at a time: {name} on 1 now" in refused.json()["error"]["message"]
        await asyncio.sleep(0.6)
        assert server.engine.held == [name], "who asks for another one does not take it away from the others"


async def test_one_beside_the_other_takes_two_replicas(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        name = await whole(server)
        alias = await server.admin.put("/v1/aliases/canary", json={"version": name}, headers={"If-Match": "*"})
        rollout = await server.admin.post("/v1/rollouts", json={"candidate": name, "steps": [{"weight": 0.5}]})
        for refused in (alias, rollout):
            assert refused.status_code == 409 and refused.json()["error"]["code"] == "needs_two_replicas"
        await server.until(lambda: server.engine.held == ["base"])


async def test_a_canary_on_two_replicas(tmp_path: Path) -> None:
    async with serving(tmp_path, fleet(2)) as server:
        name = await whole(server)
        await server.until(lambda: server.engine.held == ["base", "base"])
        body = {"candidate": name, "steps": [{"weight": 0.5}]}
        begun = await server.admin.post("/v1/rollouts", json=body)
        assert begun.status_code == 201, begun.text
        arms = [(await ask(server, user=f"u{n}")).headers["x-model-version"] for n in range(24)]
        assert set(arms) == {"base", name}
        await server.until(lambda: sorted(server.engine.held) == ["base", name])

        promoted = await server.admin.post(f"/v1/rollouts/{begun.json()['id']}/promote", json={})
        assert promoted.status_code == 200, promoted.text
        await server.until(lambda: server.engine.held == [name, name])
        assert (await ask(server, user="u1")).headers["x-model-version"] == name


async def test_another_version_stays_on_a_spare_replica_while_it_is_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path, fleet(2)) as server:
        name = await whole(server)
        await server.admin.post(f"/v1/versions/{name}/promote")
        await server.until(lambda: server.engine.held == [name, name])
        assert (await ask(server, "policy@base")).status_code == 200
        assert sorted(server.engine.held) == ["base", name]


async def test_an_adapter_and_a_whole_model_take_turns(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        adapter = await server.publish()
        name = await whole(server)
        await server.admin.post(f"/v1/versions/{adapter}/promote")
        assert (await server.chat())["model"] == f"policy@{adapter}"
        await server.admin.post(f"/v1/versions/{name}/promote")
        assert (await server.chat())["model"] == f"policy@{name}"
        back = await server.admin.post("/v1/rollback", json={"reason": "a test"})
        assert back.json()["version"] == adapter, back.text
        assert (await server.chat())["model"] == f"policy@{adapter}" and server.engine.held == ["base"]


async def test_after_the_engines_restart_the_right_whole_model_serves(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        name = await whole(server)
        await server.admin.post(f"/v1/versions/{name}/promote")
        server.engine.crash()
        assert (await ask(server)).status_code == 503
        server.engine.recover()
        assert server.engine.held == ["base"]
        answer = await ask(server)
        assert answer.status_code == 200 and answer.headers["x-model-version"] == name


async def test_after_the_servers_restart_the_right_whole_model_serves(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        name = await whole(server)
        await server.admin.post(f"/v1/versions/{name}/promote")
    async with serving(tmp_path) as server:
        assert (await server.chat())["model"] == f"policy@{name}" and server.engine.held == [name]


async def test_an_answer_that_two_models_have_drawn_says_so_and_has_no_log_probabilities(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        name = await whole(server)
        await server.until(lambda: server.engine.held == ["base"])
        server.engine.token_delay_s = 0.05
        before = len(server.engine.bodies)
        answering = asyncio.create_task(ask(server, stream=True, train=True))
        await server.until(lambda: len(server.engine.bodies) > before)
        assert (await server.admin.post(f"/v1/versions/{name}/promote")).status_code == 200
        answer = await answering
        assert answer.headers["x-model-version"] == "base"

        row = (await server.admin.get(CHAT)).json()["data"][0]
        assert row["sampling"]["also_by"] == [name]
        stored = (await server.services.database.read(_rows))[0]
        assert stored.logprobs is None and stored.segment is None and stored.status == "complete"
        assert (await server.vote(row["id"])).status_code == 201


async def _rows(conn: Any) -> list[Any]:
    from plaudit_server.store import interactions

    return list((await interactions.page(conn, limit=5)).items)


async def test_adapters_are_not_trained_on_a_whole_model(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        name, adapter = await whole(server), await server.publish()
        await server.admin.post(f"/v1/versions/{name}/promote")
        await server.rated(4, user="again")
        lease = {"worker": "w", "min_records": 4, "max_records": 4}
        batch = (await server.admin.post("/v1/batches:lease", json=lease)).json()
        refused = await server.admin.post("/v1/training/runs", json={"batch_id": batch["id"], "worker": "w"})
        assert refused.status_code == 409 and refused.json()["error"]["code"] == "parent_is_full"

        for parent, kind, code in ((name, "adapter", "parent_is_full"), (adapter, "full", "parent_is_adapter")):
            run = await server.admin.post("/v1/training/runs", json={"worker": f"t-{kind}", "parent": parent})
            assert run.status_code == 201, run.text
            body = version_body(server.settings, run.json(), {"id": run.json()["batch_id"]})
            made = await server.admin.post("/v1/versions", json=body | {"kind": kind})
            assert made.status_code == 409 and made.json()["error"]["code"] == code


async def test_the_same_folder_cannot_be_registered_as_another_kind(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        batch, run = await server.leased_run()
        body = version_body(server.settings, run, batch) | {"kind": "full"}
        assert (await server.admin.post("/v1/versions", json=body)).status_code == 201
        assert (await server.admin.post("/v1/versions", json=body | {"kind": "adapter"})).status_code == 409
