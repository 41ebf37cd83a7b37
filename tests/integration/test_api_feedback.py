"""Votes, comments, corrections, comparisons, events."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import serving

UNKNOWN = "chatcmpl-0199aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee"


@pytest.mark.parametrize(
    ("value", "kept"), [(True, 1.0), (False, -1.0), ("up", 1.0), ("down", -1.0), (0.25, 0.25), (-1, -1.0)]
)
async def test_ways_to_vote(tmp_path: Path, value: Any, kept: float) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat()
        vote = (await server.vote(answer["id"], value)).json()
        assert (vote["value"], vote["status"], vote["version"], vote["trainable"]) == (kept, "created", "base", True)


async def test_a_hundred_equal_votes_at_once_are_one_row(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat()
        votes = await asyncio.gather(*(server.vote(answer["id"], True, end_user="ada") for _ in range(100)))
        statuses = [vote.status_code for vote in votes]
        assert (statuses.count(201), statuses.count(200)) == (1, 99)
        assert len({vote.json()["id"] for vote in votes}) == 1
        assert (await server.admin.get("/v1/feedback")).json()["data"][0]["revision"] == 1


async def test_retract_and_replace(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat()
        await server.vote(answer["id"], True)
        retracted = (await server.vote(answer["id"], None)).json()
        assert (retracted["value"], retracted["retracted"], retracted["trainable"]) == (None, True, False)
        restored = (
            await server.vote(answer["id"], False, comment="too long", correction="Hi.", tags=["length"])
        ).json()
        assert (restored["value"], restored["retracted"], restored["revision"]) == (-1.0, False, 3)
        assert (restored["comment"], restored["correction"], restored["tags"]) == ("too long", "Hi.", ["length"])


async def test_two_users_have_two_rows_and_the_same_user_by_header_has_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat()
        assert (await server.vote(answer["id"], end_user="ada")).status_code == 201
        assert (await server.vote(answer["id"], end_user="bob")).status_code == 201
        body = {"response_id": answer["id"], "value": False}
        again = await server.admin.post("/v1/feedback", json=body, headers={"x-session-id": "ada"})
        assert again.status_code == 200


async def test_an_old_vote_is_kept_but_not_trained_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat()
        long_ago = (datetime.now(UTC) - timedelta(days=31)).isoformat()
        vote = (await server.vote(answer["id"], True, occurred_at=long_ago)).json()
        assert (vote["trainable"], vote["value"]) == (False, 1.0)


async def test_a_vote_on_nothing_is_404(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        refused = await server.vote(UNKNOWN)
        assert refused.status_code == 404
        assert refused.json()["error"] | {"message": ""} == {
            "message": "",
            "type": "not_found_error",
            "param": "response_id",
            "code": "response_not_found",
        }


async def test_another_users_answer_cannot_be_voted_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat(user="ada")
        refused = await server.vote(answer["id"], end_user="mallory")
        unknown = await server.vote(UNKNOWN, end_user="mallory")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "response_not_found")
        assert refused.text.replace(answer["id"], UNKNOWN) == unknown.text  # nothing is told of whether it exists
        item = {"response_id": answer["id"], "value": False, "end_user": "mallory"}
        batch = await server.admin.post("/v1/feedback/batch", json={"items": [item]})
        assert batch.json()["results"][0]["status"] == 404
        by_header = {"response_id": answer["id"], "value": False}
        header = {"x-session-id": "mallory"}
        assert (await server.admin.post("/v1/feedback", json=by_header, headers=header)).status_code == 404
        assert (await server.admin.get("/v1/feedback")).json()["data"] == []
        # Whoever rates for a living, and an application that names nobody, may.
        assert (await server.vote(answer["id"], end_user="expert", source="annotator")).status_code == 201
        assert (await server.vote(answer["id"])).status_code == 201
        assert (await server.vote(answer["id"], end_user="ada")).status_code == 201


async def test_a_batch_judges_each_item_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat()
        items: list[Any] = [
            {"response_id": answer["id"], "value": True},
            {"response_id": UNKNOWN, "value": True},
            {"response_id": answer["id"], "value": 7},
            {"response_id": answer["id"], "valeu": True},
            {"response_id": answer["id"], "value": False},
        ]
        results = (await server.admin.post("/v1/feedback/batch", json={"items": items})).json()["results"]
        assert [result["status"] for result in results] == [201, 404, 422, 422, 200]
        assert results[2]["error"]["param"] == "value"
        assert results[3]["error"]["param"] == "valeu"
        assert results[4]["feedback"]["value"] == -1.0


async def test_list_get_delete(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answers = [await server.chat(f"q{number}") for number in range(3)]
        votes = [(await server.vote(answer["id"])).json() for answer in answers]
        page = (await server.admin.get("/v1/feedback", params={"limit": 2})).json()
        assert [vote["id"] for vote in page["data"]] == [votes[2]["id"], votes[1]["id"]]
        rest = (await server.admin.get("/v1/feedback", params={"after": page["next"]})).json()
        assert [vote["id"] for vote in rest["data"]] == [votes[0]["id"]]
        of_base = (await server.admin.get("/v1/feedback", params={"version": "base"})).json()["data"]
        assert len(of_base) == 3
        assert (await server.admin.get("/v1/feedback", params={"version": "v7"})).json()["data"] == []
        since = {"since": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}
        assert (await server.admin.get("/v1/feedback", params=since)).json()["data"] == []

        one = f"/v1/feedback/{votes[0]['id']}"
        assert (await server.admin.get(one)).json()["response_id"] == answers[0]["id"]
        assert (await server.admin.delete(one)).json()["deleted"] is True
        assert (await server.admin.get(one)).status_code == 404
        assert (await server.admin.delete(one)).status_code == 404


async def test_comparisons(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        first, second = await server.chat("same", seed=1), await server.chat("same", seed=2)
        made = await server.admin.post("/v1/comparisons", json={"chosen": first["id"], "rejected": second["id"]})
        assert made.status_code == 201
        assert (made.json()["chosen"], made.json()["rejected"]) == (first["id"], second["id"])
        written = {"chosen": {"text": "A better one."}, "rejected": first["id"], "end_user": "ada"}
        made = await server.admin.post("/v1/comparisons", json=written)
        assert (made.status_code, made.json()["chosen_text"]) == (201, "A better one.")

        other = await server.chat("something else")
        crossed = await server.admin.post("/v1/comparisons", json={"chosen": first["id"], "rejected": other["id"]})
        assert (crossed.status_code, crossed.json()["error"]["code"]) == (422, "different_prompts")
        missing = await server.admin.post("/v1/comparisons", json={"chosen": first["id"], "rejected": UNKNOWN})
        assert (missing.status_code, missing.json()["error"]["param"]) == (404, "rejected")
        unstored = await server.chat("same", store=False)
        gone = await server.admin.post("/v1/comparisons", json={"chosen": unstored["id"], "rejected": first["id"]})
        assert (gone.status_code, gone.json()["error"]["param"]) == (410, "chosen")


async def test_another_users_answers_cannot_be_compared_nor_told_of(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        mine = [await server.chat("same", seed=n, user="ada") for n in (1, 2)]
        foreign = await server.chat("same", seed=3, user="eve")
        sides = {"chosen": foreign["id"], "rejected": mine[0]["id"], "end_user": "ada"}
        refused = await server.admin.post("/v1/comparisons", json=sides)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "response_not_found")
        assert refused.json()["error"]["param"] == "chosen"
        told = {"response_id": foreign["id"], "type": "copy", "end_user": "ada"}
        assert (await server.admin.post("/v1/events", json=told)).status_code == 404
        told = {"response_id": mine[0]["id"], "type": "regenerate", "new_response_id": foreign["id"], "end_user": "ada"}
        assert (await server.admin.post("/v1/events", json=told)).json()["error"]["param"] == "new_response_id"
        own = {"chosen": mine[1]["id"], "rejected": mine[0]["id"], "end_user": "ada"}
        assert (await server.admin.post("/v1/comparisons", json=own)).status_code == 201
        assert (await server.admin.post("/v1/comparisons", json=sides | {"source": "annotator"})).status_code == 201


async def test_events(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        first, second = await server.chat("q", seed=1), await server.chat("q", seed=2)
        body = {"response_id": first["id"], "type": "regenerate", "new_response_id": second["id"]}
        made = await server.admin.post("/v1/events", json=body)
        assert (made.status_code, made.json()["new_response_id"]) == (201, second["id"])
        missing = await server.admin.post("/v1/events", json=body | {"new_response_id": UNKNOWN})
        assert (missing.status_code, missing.json()["error"]["param"]) == (404, "new_response_id")
        wrong = await server.admin.post("/v1/events", json=body | {"type": "clap"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "type")
