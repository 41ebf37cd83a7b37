"""Chat completions: what is answered, what is kept, what happens when something goes wrong."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from plaudit_server.engine.fake import FakeEngine
from plaudit_server.errors import EngineRefused
from tests.support.server import HELLO, Harness, ask_and_leave, serving, until

CHAT = "/v1/chat/completions"


def events(text: str) -> list[Any]:
    """The payloads of a stream; the last one is `[DONE]`."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def stored(server: Harness, response_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await server.admin.get(f"{CHAT}/{response_id}")).json()
    return found


async def test_an_answer_says_who_spoke(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.admin.post(CHAT, json={"messages": HELLO}, headers={"x-request-id": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.headers["x-model-version"] == "base"
        assert answer.headers["x-rollout-arm"] == "stable"
        assert 0 <= float(answer.headers["x-overhead-ms"]) < 1000
        body = answer.json()
        assert body["id"].startswith("chatcmpl-")
        assert (body["object"], body["model"], body["system_fingerprint"]) == ("chat.completion", "policy@base", "base")
        assert "fake" not in (body["id"], body["model"])
        row = await stored(server, body["id"])
        assert row["content"] == body["choices"][0]["message"]["content"]
        assert row["messages"] == HELLO
        assert (row["status"], row["finish_reason"], row["arm"]) == ("complete", "stop", "stable")


async def test_a_share_of_the_answers_asks_for_a_comparison(tmp_path: Path) -> None:
    async with serving(tmp_path, compare_share=0.5) as server:
        rater, chatter = await server.client("chat", "feedback"), await server.client("chat")

        async def asks(who: Any, **more: Any) -> str | None:
            answer = await who.post(CHAT, json={"messages": HELLO, **more})
            assert answer.status_code == 200
            return str(answer.headers["x-compare-with"]) if "x-compare-with" in answer.headers else None

        said = [await asks(rater, stream=number % 2 == 0) for number in range(40)]
        assert 5 < said.count("policy") < 35 and set(said) == {"policy", None}

        server.settings.compare_share = 1
        assert await asks(rater, model="policy@base") == "policy@base"
        assert [await asks(chatter), await asks(rater, store=False), await asks(rater, n=2)] == [None, None, None]


async def test_a_stream_says_it_in_every_chunk_and_is_kept(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        body = {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
        answer = await server.admin.post(CHAT, json=body)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-model-version"] == "base"
        *chunks, done = events(answer.text)
        assert done == "[DONE]"
        assert {(c["id"], c["model"], c["system_fingerprint"]) for c in chunks} == {
            (chunks[0]["id"], "policy@base", "base")
        }
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
        row = await stored(server, chunks[0]["id"])
        assert row["content"] == text
        assert chunks[-1]["usage"]["completion_tokens"] == row["completion_tokens"]


async def test_the_engine_gets_what_is_its_own_and_nothing_of_ours(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.chat(
            train=True,
            metadata={"a": "b"},
            user="ada",
            store=True,
            temperature=0.3,
            repetition_penalty=1.1,
            chat_template_kwargs={"x": 1},
        )
        (body,) = server.engine.bodies
        assert set(body) == {"messages", "temperature", "repetition_penalty", "chat_template_kwargs"}


async def test_sampling_is_kept_as_numbers(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        extras = {"top_k": 5, "min_p": 0.1, "bad_words": ["secret"], "seed": 3}
        row = await stored(server, (await server.chat(temperature=0, max_tokens=4, **extras))["id"])
        assert row["sampling"]["temperature"] == 0
        assert (row["sampling"]["top_k"], row["sampling"]["max_tokens"], row["sampling"]["seed"]) == (5, 4, 3)
        assert row["sampling"]["constrained"] is True
        assert "secret" not in json.dumps(row["sampling"])


async def test_each_choice_has_a_row_of_its_own(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat(n=3)
        texts = [choice["message"]["content"] for choice in answer["choices"]]
        rows = [await stored(server, answer["id"] + suffix) for suffix in ("", ".1", ".2")]
        assert [row["content"] for row in rows] == texts
        assert (await server.vote(f"{answer['id']}.2")).status_code == 201
        assert (await server.vote(f"{answer['id']}.3")).status_code == 404


@pytest.mark.parametrize(
    ("default", "field", "header", "granted"),
    [
        ("granted", None, None, True),
        ("denied", None, None, False),
        (None, None, None, False),
        (None, True, None, True),
        ("granted", False, "true", False),
        ("denied", None, "true", True),
        ("granted", None, "denied", False),
    ],
)
async def test_consent(
    tmp_path: Path, default: str | None, field: bool | None, header: str | None, granted: bool
) -> None:
    async with serving(tmp_path, consent_default=default) as server:
        body = {"messages": HELLO} | ({} if field is None else {"train": field})
        headers = {"x-train-consent": header} if header else {}
        answer = await server.admin.post(CHAT, json=body, headers=headers)
        assert (await stored(server, answer.json()["id"]))["train_consent"] is granted


async def test_an_unclear_consent_header_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.admin.post(CHAT, json={"messages": HELLO}, headers={"x-train-consent": "perhaps"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-train-consent")


async def test_the_end_user_is_hashed_and_found_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        one = await server.chat(safety_identifier="ada@example.org", user="other")
        row = await stored(server, one["id"])
        assert row["end_user"].startswith("eu_")
        by_header = await server.admin.post(CHAT, json={"messages": HELLO}, headers={"x-session-id": "ada@example.org"})
        assert (await stored(server, by_header.json()["id"]))["end_user"] == row["end_user"]
        by_key = await stored(server, (await server.chat())["id"])
        assert by_key["end_user"] not in (None, row["end_user"])
        found = (await server.admin.get(CHAT, params={"user": "ada@example.org"})).json()["data"]
        assert {each["id"] for each in found} == {one["id"], by_header.json()["id"]}
    for path in (tmp_path / "data").rglob("*"):
        assert b"ada@example.org" not in (path.read_bytes() if path.is_file() else b""), path


async def test_store_false_leaves_only_a_tombstone(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat("My cat is called Zanzibar.", store=False)
        assert (await server.admin.get(f"{CHAT}/{answer['id']}")).status_code == 410
        refused = await server.vote(answer["id"])
        assert (refused.status_code, refused.json()["error"]["code"]) == (410, "not_stored")
        assert (await server.admin.get(CHAT)).json()["data"] == []
    for path in (tmp_path / "data").rglob("*"):
        assert b"Zanzibar" not in (path.read_bytes() if path.is_file() else b""), path


async def test_list_filter_and_page(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        ids = [
            (await server.chat(f"q{number}", metadata={"app": "a" if number % 2 else "b"}))["id"] for number in range(5)
        ]
        first = (await server.admin.get(CHAT, params={"limit": 2})).json()
        assert [row["id"] for row in first["data"]] == [ids[4], ids[3]]
        assert first["has_more"] is True
        second = (await server.admin.get(CHAT, params={"limit": 3, "after": first["next"]})).json()
        assert [row["id"] for row in second["data"]] == [ids[2], ids[1], ids[0]]
        assert second["has_more"] is False
        tagged = (await server.admin.get(CHAT, params={"metadata[app]": "a"})).json()["data"]
        assert {row["id"] for row in tagged} == {ids[1], ids[3]}
        await server.vote(ids[0])
        assert (await stored(server, ids[0]))["feedback_count"] == 1


async def test_an_erased_answer_is_gone(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat("Forget the word Xylophone.")
        assert (await server.admin.delete(f"{CHAT}/{answer['id']}")).json()["deleted"] is True
        assert (await server.admin.get(f"{CHAT}/{answer['id']}")).status_code == 410
        assert (await server.vote(answer["id"])).status_code == 410
        assert (await server.admin.delete(f"{CHAT}/{answer['id']}")).status_code == 410
        unknown = "chatcmpl-0199aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee"
        assert (await server.admin.get(f"{CHAT}/{unknown}")).status_code == 404


@pytest.mark.parametrize(("stream", "after"), [(True, 3), (True, 1), (False, 0), (True, 0)])
async def test_a_disconnect_stops_the_engine_and_is_recorded(tmp_path: Path, stream: bool, after: int) -> None:
    async with serving(tmp_path) as server:
        server.engine.token_delay_s = 0.03
        headers = {"authorization": server.admin.headers["authorization"], "x-request-id": "left"}
        pieces = await ask_and_leave(server.app, CHAT, {"messages": HELLO, "stream": stream}, headers, after=after)
        assert server.engine.aborted == ["left"]
        await server.services.answering.close()
        (row,) = (await server.admin.get(CHAT)).json()["data"]
        assert row["status"] == "aborted"
        assert row["finish_reason"] is None
        if after > 1:
            assert 0 < row["completion_tokens"] < 12
            assert row["content"].startswith("[fake engine]")
        assert b"[DONE]" not in b"".join(pieces)
        assert server.services.answering._pending == 0


async def test_an_engine_that_breaks_down_in_a_stream_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.engine.fail_after_tokens = 2
        answer = await server.admin.post(CHAT, json={"messages": HELLO, "stream": True})
        *chunks, error, done = events(answer.text)
        assert answer.status_code == 200
        assert (error["error"]["type"], done) == ("engine_error", "[DONE]")
        row = await stored(server, chunks[0]["id"])
        assert (row["status"], row["completion_tokens"]) == ("failed", 2)


async def test_an_engine_that_breaks_down_answers_502(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.engine.fail_after_tokens = 2
        answer = await server.admin.post(CHAT, json={"messages": HELLO})
        assert (answer.status_code, answer.json()["error"]["type"]) == (502, "engine_error")


@pytest.mark.parametrize("stream", [True, False])
async def test_what_the_engine_refuses_is_passed_on(tmp_path: Path, stream: bool) -> None:
    async with serving(tmp_path) as server:
        server.engine.refuse = EngineRefused(400, "This model's maximum context length is 2048 tokens.")
        answer = await server.admin.post(CHAT, json={"messages": HELLO, "stream": stream})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("This model's maximum")
        assert (await server.admin.get(CHAT)).json()["data"] == []


async def test_without_engine_chat_waits_and_feedback_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat()
        server.engine.crash()
        refused = await server.admin.post(CHAT, json={"messages": HELLO})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "engine_unavailable"
        assert (await server.vote(answer["id"])).status_code == 201
        server.engine.recover()
        assert (await server.chat())["model"] == "policy@base"


async def test_too_many_chats_are_turned_away(tmp_path: Path) -> None:
    async with serving(tmp_path, max_pending_chats=3) as server:
        server.engine.token_delay_s = 0.05
        asked = [server.admin.post(CHAT, json={"messages": HELLO, "stream": bool(n % 2)}) for n in range(8)]
        answers = await asyncio.gather(*asked)
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [200] * 3 + [503] * 5
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "overloaded_error"
        assert (await server.chat())["object"] == "chat.completion"


async def test_a_vote_during_the_answer_is_accepted(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.engine.token_delay_s = 0.05
        asking = asyncio.create_task(server.chat())
        await until(lambda: server.services.answering._speaking)
        (response_id,) = server.services.answering._speaking
        early = await server.vote(response_id)
        assert (early.status_code, early.json()["status"], early.json()["version"]) == (202, "accepted", None)
        assert (await asking)["id"] == response_id
        kept = (await server.admin.get("/v1/feedback", params={"response_id": response_id})).json()["data"]
        assert [(vote["value"], vote["version"]) for vote in kept] == [(1.0, "base")]


@pytest.mark.parametrize(
    ("model", "status"),
    [("policy@v9", 404), ("policy@canary", 404), ("gpt-4", 404), ("policy@", 404), ("x" * 65, 422)],
)
async def test_unknown_models(tmp_path: Path, model: str, status: int) -> None:
    async with serving(tmp_path) as server:
        answer = await server.admin.post(CHAT, json={"messages": HELLO, "model": model})
        assert (answer.status_code, bool(answer.json()["error"]["message"])) == (status, True)


async def test_the_models_that_may_be_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.publish()
        names = [model["id"] for model in (await server.admin.get("/v1/models")).json()["data"]]
        assert names == ["policy", "policy@stable", "policy@v1", "policy@base"]
        card = (await server.admin.get("/v1/models/policy@v1")).json()
        assert (card["version"], card["parent"]) == ("v1", "base")
        assert (await server.admin.get("/v1/models/gpt-4")).status_code == 404
        for name in names:
            assert (await server.chat(model=name))["model"].startswith("policy@")


async def test_an_answer_that_cannot_be_written_is_still_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plaudit_server.errors import StorageFull

    async with serving(tmp_path, FakeEngine()) as server:

        async def full(_op: Any, **_: Any) -> None:
            raise StorageFull

        with monkeypatch.context() as patched:
            patched.setattr(server.services.database, "write", full)
            answer = await server.admin.post(CHAT, json={"messages": HELLO})
            vote = await server.vote(answer.json()["id"])
        assert answer.status_code == 200
        assert (vote.status_code, vote.json()["error"]["type"]) == (507, "storage_error")
        assert "plaudit_answers_unrecorded_total 1.0" in (await server.admin.get("/metrics")).text
