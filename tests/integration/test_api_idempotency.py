"""A POST that is sent twice is done once."""

import asyncio
from pathlib import Path
from typing import Any

from tests.support.server import HELLO, Harness, serving


async def post(server: Harness, path: str, body: Any, key: str) -> Any:
    return await server.admin.post(path, json=body, headers={"Idempotency-Key": key})


async def test_the_same_again_has_the_same_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        first, second = await server.chat("q", seed=1), await server.chat("q", seed=2)
        body = {"chosen": first["id"], "rejected": second["id"]}
        made = await post(server, "/v1/comparisons", body, "k1")
        again = await post(server, "/v1/comparisons", body, "k1")
        assert (again.status_code, again.json()) == (201, made.json())
        assert again.headers["idempotent-replayed"] == "true"
        other = await post(server, "/v1/comparisons", body, "k2")
        assert other.json()["id"] != made.json()["id"]


async def test_another_body_under_the_same_key_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat()
        await post(server, "/v1/feedback", {"response_id": answer["id"], "value": True}, "k")
        refused = await post(server, "/v1/feedback", {"response_id": answer["id"], "value": False}, "k")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_reused")
        kept = (await server.admin.get("/v1/feedback")).json()["data"]
        assert [vote["value"] for vote in kept] == [1.0]


async def test_keys_are_by_caller_and_route(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat()
        body = {"response_id": answer["id"], "value": True}
        await post(server, "/v1/feedback", body, "k")
        elsewhere = await post(server, "/v1/events", {"response_id": answer["id"], "type": "copy"}, "k")
        assert elsewhere.status_code == 201
        other = await server.client("feedback")
        mine = await other.post("/v1/feedback", json=body | {"value": False}, headers={"Idempotency-Key": "k"})
        assert mine.status_code == 201


async def test_a_failed_attempt_may_be_repeated(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.engine.crash()
        body = {"messages": HELLO}
        assert (await post(server, "/v1/chat/completions", body, "k")).status_code == 503
        server.engine.recover()
        made = await post(server, "/v1/chat/completions", body, "k")
        assert made.status_code == 200
        again = await post(server, "/v1/chat/completions", body, "k")
        assert again.json() == made.json()
        assert len(server.engine.bodies) == 1


async def test_two_at_once_are_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.engine.token_delay_s = 0.02
        body = {"messages": HELLO}
        both = await asyncio.gather(*(post(server, "/v1/chat/completions", body, "k") for _ in range(2)))
        assert sorted(answer.status_code for answer in both) == [200, 409]
        assert len(server.engine.bodies) == 1


async def test_a_claim_left_by_a_dead_server_does_not_block(tmp_path: Path) -> None:
    from plaudit_server.domain.moments import now_ms
    from plaudit_server.store import idempotency

    async with serving(tmp_path) as server:
        answer = await server.chat()
        key = (await server.admin.get("/v1/keys")).json()["data"]
        admin = next(each["id"] for each in key if each["name"] == "admin")
        scope = f"{admin} POST /v1/feedback"
        await server.services.database.write(
            lambda conn: idempotency.begin(conn, scope=scope, key="k", body_hash="x", now_ms=now_ms())
        )
        body = {"response_id": answer["id"], "value": True}
        assert (await post(server, "/v1/feedback", body, "k")).status_code == 409
    async with serving(tmp_path) as server:
        assert (await post(server, "/v1/feedback", body, "k")).status_code == 201


async def test_what_must_not_be_kept_is_not(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for fields in ({"store": False}, {"stream": True}):
            body = {"messages": [{"role": "user", "content": "Quixotic."}]} | fields
            for _ in range(2):
                assert (await post(server, "/v1/chat/completions", body, "k")).status_code == 200
        assert len(server.engine.bodies) == 4
        refused = await post(server, "/v1/events", {}, "x" * 256)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "idempotency_key")
