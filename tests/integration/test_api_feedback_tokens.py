"""Votes from a browser: a signed token in place of a key, good for one answer, one user, one use of each key."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from plaudit_server.domain.moments import now_ms
from plaudit_server.store import feedback_tokens
from tests.support.server import HELLO, Harness, serving

CHAT = "/v1/chat/completions"
UNKNOWN = "chatcmpl-0199aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee"


async def asked(server: Harness, **fields: Any) -> tuple[str, str]:
    """The id of an answer and the token that came with it."""
    answer = await server.admin.post(CHAT, json={"messages": HELLO} | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"], answer.headers["x-feedback-token"]


async def vote(server: Harness, token: str, value: Any = True, **fields: Any) -> httpx.Response:
    """A vote as a browser gives it: no key."""
    return await server.anonymous.post(f"/v1/feedback/t/{token}", json={"value": value} | fields)


async def stored(server: Harness) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await server.admin.get("/v1/feedback")).json()["data"]
    return rows


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_the_token_of_a_chat_votes_as_its_user(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        response_id, token = await asked(server, user="ada")
        given = await vote(server, token, comment="well said", tags=["clear"])
        assert given.status_code == 201
        (row,) = await stored(server)
        assert (row["response_id"], row["value"], row["comment"]) == (response_id, 1.0, "well said")
        assert row["end_user"] == server.services.hash_user("ada")
        assert row["source"] == "user"
        # The same user by key has the same one row.
        assert (await server.vote(response_id, False, end_user="ada")).status_code == 200


async def test_a_stream_has_one_too_and_an_unstored_answer_has_none(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        streamed = await server.admin.post(CHAT, json={"messages": HELLO, "stream": True})
        assert (await vote(server, streamed.headers["x-feedback-token"])).status_code == 201
        unstored = await server.admin.post(CHAT, json={"messages": HELLO, "store": False})
        assert "x-feedback-token" not in unstored.headers


async def test_made_for_one_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat(n=2, user="ada")
        client = await server.client("feedback")
        wanted = {"response_id": f"{answer['id']}.1", "keys": ["thumb", "helpful"], "expires_in": 60}
        made = await client.post("/v1/feedback/tokens", json=wanted)
        assert made.status_code == 201, made.text
        token = made.json()["token"]
        assert made.json()["keys"] == ["thumb", "helpful"]
        assert (await vote(server, token)).status_code == 201
        assert (await vote(server, token, 0.5, key="helpful", response_id=f"{answer['id']}.1")).status_code == 201
        rows = await stored(server)
        assert {(row["key"], row["response_id"]) for row in rows} == {
            ("thumb", f"{answer['id']}.1"),
            ("helpful", f"{answer['id']}.1"),
        }
        assert {row["end_user"] for row in rows} == {server.services.hash_user("ada")}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"response_id": UNKNOWN}, 404, "response_id"),
        ({"keys": []}, 422, "keys"),
        ({"keys": ["x"] * 9}, 422, "keys"),
        ({"expires_in": 0}, 422, "expires_in"),
        ({"expires_in": 10**9}, 422, "expires_in"),
        ({"end_user": "mallory"}, 422, "end_user"),
    ],
    ids=str,
)
async def test_what_cannot_be_made(tmp_path: Path, body: dict[str, Any], status: int, param: str) -> None:
    async with serving(tmp_path) as server:
        wanted = {"response_id": (await server.chat())["id"]} | body
        made = await server.admin.post("/v1/feedback/tokens", json=wanted)
        assert (made.status_code, made.json()["error"]["param"]) == (status, param)


async def test_none_for_what_is_gone_and_none_without_the_role(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        unstored = await server.chat(store=False)
        gone = await server.admin.post("/v1/feedback/tokens", json={"response_id": unstored["id"]})
        assert refusal(gone) == (410, "not_stored")
        viewer = await server.client("viewer", "chat")
        assert (await viewer.post("/v1/feedback/tokens", json={"response_id": unstored["id"]})).status_code == 403


async def test_forged_and_expired(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        response_id, token = await asked(server)
        forged = token[:20] + ("A" if token[20] != "A" else "B") + token[21:]
        assert refusal(await vote(server, forged)) == (401, "invalid_token")
        assert refusal(await vote(server, "plk_something")) == (401, "invalid_token")
        user = server.services.hash_user("ada")
        late = server.services.tokens.sign(response_id, user, named=True, keys=["thumb"], expires_at_ms=now_ms() - 1000)
        assert refusal(await vote(server, late)) == (401, "token_expired")
        assert await stored(server) == []


async def test_forgers_are_limited_and_good_tokens_are_not(tmp_path: Path) -> None:
    async with serving(tmp_path, wrong_keys_per_minute=5) as server:
        _, token = await asked(server)
        statuses = [(await vote(server, f"ft1_{number}")).status_code for number in range(10)]
        assert statuses == [401] * 5 + [429] * 5
        assert (await vote(server, token)).status_code == 201


async def test_another_answer_or_key_is_out_of_scope(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        (_, token), (other, _) = await asked(server, user="ada"), await asked(server, user="bob")
        elsewhere = await vote(server, token, response_id=other)
        assert (refusal(elsewhere), elsewhere.json()["error"]["param"]) == ((403, "token_scope"), "response_id")
        otherwise = await vote(server, token, key="helpful")
        assert (refusal(otherwise), otherwise.json()["error"]["param"]) == ((403, "token_scope"), "key")
        assert await stored(server) == []
        assert (await vote(server, token)).status_code == 201  # what was refused used nothing up


@pytest.mark.parametrize("field", ["end_user", "source", "occurred_at", "weight", "trusted", "version"])
async def test_a_browser_chooses_nothing_else(tmp_path: Path, field: str) -> None:
    async with serving(tmp_path) as server:
        _, token = await asked(server, user="ada")
        answer = await vote(server, token, **{field: "annotator"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, field)
        assert await stored(server) == []


async def test_a_replay_stores_nothing_and_the_next_token_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _, token = await asked(server)
        first = await vote(server, token)
        assert refusal(await vote(server, token, False)) == (409, "token_used")
        assert refusal(await vote(server, token)) == (409, "token_used")
        (row,) = await stored(server)
        assert (row["value"], row["revision"]) == (1.0, 1)
        changed = await vote(server, first.headers["x-feedback-token"], False)
        assert (changed.status_code, changed.json()["value"]) == (200, -1.0)
        retracted = await vote(server, changed.headers["x-feedback-token"], None)
        assert (retracted.status_code, retracted.json()["retracted"]) == (200, True)


async def test_a_hundred_replays_at_once_are_one_vote(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _, token = await asked(server)
        answers = await asyncio.gather(*(vote(server, token, number % 2 == 0) for number in range(100)))
        statuses = [answer.status_code for answer in answers]
        assert (statuses.count(201), statuses.count(409)) == (1, 99)
        (row,) = await stored(server)
        assert row["revision"] == 1


async def test_a_repeated_request_is_answered_alike(tmp_path: Path) -> None:
    """A browser that lost the answer sends the same again under its Idempotency-Key."""
    async with serving(tmp_path) as server:
        _, token = await asked(server)
        url, headers = f"/v1/feedback/t/{token}", {"Idempotency-Key": "once"}
        first = await server.anonymous.post(url, json={"value": True}, headers=headers)
        again = await server.anonymous.post(url, json={"value": True}, headers=headers)
        assert (first.status_code, again.status_code, first.json()) == (201, 201, again.json())


async def test_no_token_is_kept(tmp_path: Path) -> None:
    """Whoever reads a backup must not be able to vote with it."""
    async with serving(tmp_path) as server:
        response_id, token = await asked(server)
        once = {"Idempotency-Key": "once"}
        body = {"response_id": response_id}
        made = await server.admin.post("/v1/feedback/tokens", json=body, headers=once)
        given = await server.anonymous.post(f"/v1/feedback/t/{token}", json={"value": True}, headers=once)
        secrets = (token, made.json()["token"], given.headers["x-feedback-token"])
    for path in (tmp_path / "data").rglob("*"):
        kept = path.read_bytes() if path.is_file() else b""
        assert not [secret for secret in secrets if secret.encode() in kept], path


async def test_a_vote_on_what_was_erased(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        response_id, token = await asked(server)
        assert (await server.admin.delete(f"{CHAT}/{response_id}")).status_code == 200
        assert refusal(await vote(server, token)) == (410, "erased")


async def test_votes_under_tokens_count_against_their_user(tmp_path: Path) -> None:
    async with serving(tmp_path, feedback_per_minute_user=2) as server:
        named = [(await asked(server, user="ada"))[1] for _ in range(3)]
        assert [(await vote(server, token)).status_code for token in named] == [201, 201, 429]
        nameless = [(await asked(server))[1] for _ in range(3)]
        assert [(await vote(server, token)).status_code for token in nameless] == [201, 201, 201]


async def test_uses_are_forgotten_when_the_token_has_expired(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _, token = await asked(server)
        await vote(server, token)
        early = await server.services.database.write(lambda conn: feedback_tokens.purge(conn, now_ms=now_ms()))
        late = await server.services.database.write(
            lambda conn: feedback_tokens.purge(conn, now_ms=now_ms() + 10_802_000)
        )
        assert (early, late) == (0, 1)
