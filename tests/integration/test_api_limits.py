"""Who asks too often is told so, cheaply, and nobody else notices."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from plaudit_server.store import keys
from tests.support.server import HELLO, make_client, serving

pytestmark = pytest.mark.sqlite  # nothing here is the database's affair

CHAT = "/v1/chat/completions"
LIMIT = "x-ratelimit-limit-requests"
REMAINING = "x-ratelimit-remaining-requests"
RESET = "x-ratelimit-reset-requests"


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post(CHAT, json={"messages": HELLO} | fields)


def is_told(answer: httpx.Response) -> bool:
    """Whether a refusal has everything that a client needs to come back."""
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
    return int(answer.headers["retry-after"]) >= 1


async def test_a_key_has_so_many_chats_a_minute(tmp_path: Path) -> None:
    async with serving(tmp_path, chats_per_minute_key=3) as server:
        client = await server.client("chat")
        answers = [await ask(client) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert [answer.headers[REMAINING] for answer in answers] == ["2", "1", "0", "0", "0"]
        assert {answer.headers[LIMIT] for answer in answers} == {"3"}
        assert 19 < float(answers[0].headers[RESET].removesuffix("s")) <= 20
        assert is_told(answers[-1])
        assert int(answers[-1].headers["retry-after"]) <= 20
        assert "PLAUDIT_CHATS_PER_MINUTE_KEY" in answers[-1].json()["error"]["message"]
        assert len(server.engine.bodies) == 3
        assert (await ask(await server.client("chat"))).status_code == 200
        assert 'plaudit_limited_total{limit="chat_key"} 2.0' in (await server.admin.get("/metrics")).text


async def test_a_stream_tells_what_remains(tmp_path: Path) -> None:
    async with serving(tmp_path, chats_per_minute_key=3) as server:
        assert (await ask(server.admin, stream=True)).headers[REMAINING] == "2"


async def test_an_end_user_has_a_limit_of_their_own(tmp_path: Path) -> None:
    async with serving(tmp_path, chats_per_minute_user=2) as server:
        statuses = [(await ask(server.admin, user="ada")).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        other = await ask(server.admin, user="bob")
        assert (other.status_code, other.headers[LIMIT], other.headers[REMAINING]) == (200, "2", "1")
        # Nobody named is the key, not one more user.
        assert [(await ask(server.admin)).status_code for _ in range(4)] == [200] * 4
        by_header = await server.admin.post(CHAT, json={"messages": HELLO}, headers={"x-session-id": "ada"})
        assert is_told(by_header)


async def test_feedback_has_limits_apart_from_chats(tmp_path: Path) -> None:
    async with serving(
        tmp_path, chats_per_minute_key=3, feedback_per_minute_key=4, feedback_per_minute_user=2
    ) as server:
        answers = [await server.chat(f"q{number}") for number in range(3)]
        votes = [await server.vote(answers[0]["id"], end_user="ada") for _ in range(3)]
        assert [vote.status_code for vote in votes] == [201, 200, 429]
        event = {"response_id": answers[0]["id"], "type": "copy", "end_user": "bob"}
        assert (await server.admin.post("/v1/events", json=event)).status_code == 201
        comparison = {"chosen": answers[0]["id"], "rejected": {"text": "worse"}}
        assert is_told(await server.admin.post("/v1/comparisons", json=comparison))


async def test_each_item_of_a_batch_counts(tmp_path: Path) -> None:
    async with serving(tmp_path, feedback_per_minute_key=5) as server:
        answer = await server.chat()
        items = [{"response_id": answer["id"], "value": True, "end_user": f"u{number}"} for number in range(3)]
        assert (await server.admin.post("/v1/feedback/batch", json={"items": items})).status_code == 200
        assert is_told(await server.admin.post("/v1/feedback/batch", json={"items": items}))
        assert len((await server.admin.get("/v1/feedback")).json()["data"]) == 3


async def test_zero_is_no_limit(tmp_path: Path) -> None:
    none = dict.fromkeys(("chats_per_minute_key", "chats_per_minute_user", "wrong_keys_per_minute"), 0)
    async with serving(tmp_path, max_pending_chats_key=0, **none) as server:
        answers = [await ask(server.admin, user="ada") for _ in range(5)]
        assert {answer.status_code for answer in answers} == {200}
        assert REMAINING not in answers[0].headers
        wrong = make_client(server.app, "plk_wrong")
        assert [(await wrong.get("/v1/models")).status_code for _ in range(100)] == [401] * 100


async def test_the_defaults_leave_a_person_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answers = await asyncio.gather(*(ask(server.admin, user="ada") for _ in range(100)))
        assert {answer.status_code for answer in answers} == {200}


async def test_a_thousand_bad_keys_do_not_reach_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    find = keys.find

    async def counted(conn: Any, secret: str) -> Any:
        asked.append(secret)
        return await find(conn, secret)

    async with serving(tmp_path) as server:
        assert (await server.admin.get("/v1/models")).status_code == 200
        monkeypatch.setattr(keys, "find", counted)
        statuses = []
        for number in range(1000):
            headers = {"authorization": f"Bearer plk_guess_{number}"}
            answer = await server.anonymous.post(CHAT, json={"messages": HELLO}, headers=headers)
            statuses.append(answer.status_code)
        assert statuses.count(429) >= 900
        assert len([secret for secret in asked if secret.startswith("plk_guess_")]) == statuses.count(401)
        assert is_told(answer)
        assert (await server.admin.get("/v1/models")).status_code == 200  # who came with a good key stays


async def test_a_key_has_so_many_chats_in_flight(tmp_path: Path) -> None:
    async with serving(tmp_path, max_pending_chats=6, max_pending_chats_key=4) as server:
        server.engine.token_delay_s = 0.02
        burster, normal = await server.client("chat"), await server.client("chat")
        burst = [asyncio.create_task(ask(burster)) for _ in range(10)]
        await server.until(lambda: len(server.engine.bodies) == 4)
        assert (await ask(normal)).status_code == 200
        answers = await asyncio.gather(*burst)
        statuses = [answer.status_code for answer in answers]
        assert (statuses.count(200), statuses.count(429)) == (4, 6)
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("too_many_in_flight", "1")
        assert (await ask(burster)).status_code == 200


async def test_one_keys_burst_is_not_anothers_trouble(tmp_path: Path) -> None:
    """A hundredfold burst meets 429; the other key gets every answer."""
    async with serving(tmp_path, chats_per_minute_key=50) as server:
        burster, normal = await server.client("chat"), await server.client("chat")

        async def burst() -> list[int]:
            return [answer.status_code for answer in await asyncio.gather(*(ask(burster) for _ in range(1000)))]

        bursting = asyncio.create_task(burst())
        statuses = [(await ask(normal)).status_code for _ in range(10)]
        assert statuses == [200] * 10
        refused = await bursting
        assert refused.count(429) >= 900
        assert set(refused) == {200, 429}


async def test_a_refusal_costs_no_reading(tmp_path: Path) -> None:
    """429 is said before the body is looked at."""
    async with serving(tmp_path, chats_per_minute_key=1) as server:
        assert (await ask(server.admin)).status_code == 200
        answer = await server.admin.post(CHAT, content=b"{ not json", headers={"content-type": "application/json"})
        assert is_told(answer)
