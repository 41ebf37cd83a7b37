"""Versions: registered, proven or refused, promoted, rolled back, kept resident, brought back after a restart."""

import asyncio
from pathlib import Path

import pytest

from plaudit_server.engine.fake import FakeEngine
from plaudit_server.serving import Serving
from plaudit_server.telemetry import Telemetry
from tests.support.server import HELLO, Harness, serving, until, version_body

CHAT = "/v1/chat/completions"


async def promote(server: Harness, version: str) -> None:
    answer = await server.admin.post(f"/v1/versions/{version}/promote")
    assert answer.status_code == 200, answer.text


async def test_a_version_that_fails_its_probe_never_serves_and_says_why(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.engine.unproven = {"v1"}
        await server.register()
        await server.until(lambda: server.state_is("v1", "failed"))
        version = await server.version("v1")
        assert "told to fail" in version["reason"]
        assert version["proof"]["passed"] is False
        assert (await server.admin.post(CHAT, json={"messages": HELLO, "model": "policy@v1"})).status_code == 404
        assert (await server.admin.post("/v1/versions/v1/promote")).status_code == 409
        assert (await server.chat())["model"] == "policy@base"
        assert 'plaudit_swaps_total{result="failed"} 1.0' in (await server.admin.get("/metrics")).text


async def test_a_rejected_version_is_kept_and_never_loaded(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        gate = {"passed": False, "checks": [{"name": "win_rate", "passed": False, "value": 0.4, "bound": ">= 0.48"}]}
        made = await server.register(outcome="rejected", gate=gate, reason="win rate")
        assert (made["state"], made["gate"]["passed"]) == ("rejected", False)
        await asyncio.sleep(0.1)
        assert server.engine.resident() == {"base"}


async def test_registering_again_changes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        batch, run = await server.leased_run()
        body = version_body(server.settings, run, batch)
        assert (await server.admin.post("/v1/versions", json=body)).status_code == 201
        assert (await server.admin.post("/v1/versions", json=body)).status_code == 200
        other = await server.admin.post("/v1/versions", json=body | {"manifest_sha256": "0" * 64})
        assert other.status_code == 409


async def test_two_moves_of_an_alias_with_one_etag(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        v1, v2 = await server.publish(), await server.publish()
        aliases = (await server.admin.get("/v1/aliases")).json()["data"]
        etag = next(alias["etag"] for alias in aliases if alias["name"] == "stable")
        moves = await asyncio.gather(
            *(
                server.admin.put("/v1/aliases/stable", json={"version": version}, headers={"If-Match": f'"{etag}"'})
                for version in (v1, v2)
            )
        )
        assert sorted(move.status_code for move in moves) == [200, 412]
        winner = next(move for move in moves if move.status_code == 200).json()["version"]
        assert (await server.chat())["model"] == f"policy@{winner}"


async def test_an_alias_needs_if_match(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        v1 = await server.publish()
        bare = await server.admin.put("/v1/aliases/canary", json={"version": v1})
        assert (bare.status_code, bare.json()["error"]["code"]) == (400, "missing_if_match")
        moved = await server.admin.put("/v1/aliases/canary", json={"version": v1}, headers={"If-Match": "*"})
        assert moved.status_code == 200
        assert moved.headers["etag"] == f'"{moved.json()["etag"]}"'
        assert (await server.chat(model="policy@canary"))["model"] == "policy@v1"
        assert (await server.chat())["model"] == "policy@base"
        unknown = await server.admin.put("/v1/aliases/newest", json={"version": v1}, headers={"If-Match": "*"})
        assert unknown.status_code == 422


async def test_a_stream_finishes_on_the_version_it_began_with(tmp_path: Path) -> None:
    async with serving(tmp_path, engine_max_loras=2) as server:
        await promote(server, await server.publish())
        server.engine.token_delay_s = 0.1
        before = len(server.engine.bodies)
        slow = asyncio.create_task(server.admin.post(CHAT, json={"messages": HELLO, "stream": True}))
        await server.until(lambda: len(server.engine.bodies) > before)
        await promote(server, await server.publish())
        server.engine.token_delay_s = 0
        assert (await server.chat())["model"] == "policy@v2"
        answer = await slow
        assert answer.headers["x-model-version"] == "v1"
        assert answer.text.count('"model":"policy@v1"') > 5
        assert answer.text.endswith("data: [DONE]\n\n")


async def test_only_what_is_needed_stays_resident(tmp_path: Path) -> None:
    async with serving(tmp_path, engine_max_loras=3) as server:
        for _ in range(5):
            await promote(server, await server.publish())

        async def settled() -> bool:
            return len(server.engine.resident() - {"base"}) <= 3

        await server.until(settled)
        assert {"v5", "v4"} <= server.engine.resident()
        assert "v1" in server.engine.retired
        # An old version is loaded again when somebody asks for it by name.
        refused = await server.admin.post(CHAT, json={"messages": HELLO, "model": "policy@v1"})
        assert (refused.status_code, "being loaded" in refused.json()["error"]["message"]) == (503, True)

        async def answers() -> bool:
            return (await server.admin.post(CHAT, json={"messages": HELLO, "model": "policy@v1"})).status_code == 200

        await server.until(answers)
        assert (await server.chat())["model"] == "policy@v5"


async def test_auto_promote(tmp_path: Path) -> None:
    async with serving(tmp_path, auto_promote=True) as server:
        await server.publish()

        async def serves() -> bool:
            return bool((await server.chat())["model"] == "policy@v1")

        await server.until(serves)
        entries = (await server.admin.get("/v1/audit")).json()["data"]
        assert ("auto_promote", "v1") in {(e["actor"], e["detail"].get("version")) for e in entries} or any(
            e["actor"] == "auto_promote" for e in entries
        )


async def test_auto_promote_does_not_pass_over_what_a_person_did_meanwhile(tmp_path: Path) -> None:
    async with serving(tmp_path, auto_promote=True) as server:
        batch, run = await server.leased_run()  # begun on base
        await server.publish()
        await server.until(lambda: _stable_is(server, "v2"))
        body = version_body(server.settings, run, batch)
        assert (await server.admin.post("/v1/versions", json=body)).status_code == 201
        await server.until(lambda: server.state_is("v1", "ready"))
        await asyncio.sleep(0.1)
        assert await _stable_is(server, "v2")


async def _stable_is(server: Harness, version: str) -> bool:
    aliases = (await server.admin.get("/v1/aliases")).json()["data"]
    return {alias["name"]: alias["version"] for alias in aliases}["stable"] == version


async def test_a_crash_between_registration_and_proof_is_made_good(tmp_path: Path) -> None:
    engine = FakeEngine()
    async with serving(tmp_path, engine) as server:
        engine.install_s = 30
        await server.register()
        assert await server.state_is("v1", "loading")
    async with serving(tmp_path) as server:
        await server.until(lambda: server.state_is("v1", "ready"))


async def test_after_a_restart_the_stable_version_is_proven_before_it_serves(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await promote(server, await server.publish())
    engine = FakeEngine()
    engine.install_s = 0.3
    async with serving(tmp_path, engine) as server:
        early = await server.admin.post(CHAT, json={"messages": HELLO})
        assert (early.status_code, "v1 is being loaded" in early.json()["error"]["message"]) == (503, True)
        assert (await server.anonymous.get("/readyz")).status_code == 503
        assert (await server.anonymous.get("/healthz")).status_code == 200
        pinned = await server.chat(model="policy@base")
        assert pinned["model"] == "policy@base"
        await server.until(lambda: _ready(server))
        assert (await server.chat())["model"] == "policy@v1"


async def _ready(server: Harness) -> bool:
    return (await server.anonymous.get("/readyz")).status_code == 200


async def test_a_stable_version_that_cannot_be_proven_again_is_never_replaced_silently(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await promote(server, await server.publish())
        answer = await server.chat()
    engine = FakeEngine()
    engine.unproven = {"v1"}
    async with serving(tmp_path, engine) as server:
        await server.until(lambda: server.state_is("v1", "failed"))

        async def says_so() -> bool:
            refused = await server.admin.post(CHAT, json={"messages": HELLO})
            return bool(refused.status_code == 503 and refused.json()["error"]["code"] == "stable_unproven")

        await server.until(says_so)
        refused = (await server.admin.post(CHAT, json={"messages": HELLO})).json()["error"]["message"]
        assert "Roll back" in refused
        assert "told to fail" in refused
        assert (await server.anonymous.get("/readyz")).json()["status"] == "degraded"
        assert (await server.vote(answer["id"])).status_code == 201
        rolled = await server.admin.post("/v1/rollback", json={"to": "base", "reason": "unproven"})
        assert rolled.status_code == 200, rolled.text
        assert (await server.chat())["model"] == "policy@base"


async def test_after_an_engine_restart_versions_are_installed_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await promote(server, await server.publish())
        server.engine.crash()
        server.engine.recover()
        await server.until(lambda: _ready(server))
        assert (await server.chat())["model"] == "policy@v1"


async def test_rollback_works_while_the_engine_is_down(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await promote(server, await server.publish())
        server.engine.crash()
        rolled = await server.admin.post("/v1/rollback", json={"reason": "it burns"})
        assert (rolled.status_code, rolled.json()["version"]) == (200, "base")
        server.engine.recover()
        assert (await server.chat())["model"] == "policy@base"


@pytest.mark.parametrize(("to", "status"), [("v9", 404), ("previous", 409), ("newest", 422)])
async def test_rollback_to_nothing(tmp_path: Path, to: str, status: int) -> None:
    async with serving(tmp_path) as server:
        assert (await server.admin.post("/v1/rollback", json={"to": to})).status_code == status


async def test_another_gateway_process_sees_a_move_within_half_a_second(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        other = Serving(server.services.database, server.engine, Telemetry(), max_resident=4, auto_promote=False)
        await other.start()
        try:
            v1 = await server.publish()
            assert (await other.routing.route("policy", None)).version == "base"
            await promote(server, v1)

            async def follows() -> bool:
                return (await other.routing.route("policy", None)).version == v1

            await until(follows, 0.5 + 0.3)  # and some for a busy machine
        finally:
            await other.close()


async def test_a_promotion_that_the_engine_cannot_prove_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        v1 = await server.publish()
        server.engine.unproven = {v1}
        await server.engine.retire(v1)
        refused = await server.admin.post(f"/v1/versions/{v1}/promote")
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] in ("swap_failed", "version_not_ready")  # whoever found out first
        assert (await server.chat())["model"] == "policy@base"
