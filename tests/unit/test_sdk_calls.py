"""What each method sends and what it makes of the answer: the same through both clients."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from plaudit import AsyncPlaudit, InvalidRequestError, Plaudit, VersionRefusedError, WaitTimeoutError
from plaudit.wire.feedback import FeedbackRequest, WrittenText
from plaudit.wire.rollouts import RolloutStep
from plaudit.wire.training import GeneratePrompt, TokenSequence
from plaudit.wire.versions import GateReport
from tests.support import sdk_harness as h

MOMENT = "2026-01-02T03:04:05Z"
LEASE_STATE = {"id": "batch_1", "state": "leased"}
BATCH = {"id": None, "state": "insufficient_data", "available": 1, "needed": 32, "reason": "1 of 32 records"}
HEALTH = {"status": "ok", "release": "0.1.0", "engine": "ready"}
KEY = {"id": "key_1", "name": "app", "roles": ["chat"], "hint": "plk_ab", "created_at": MOMENT}
REPLICA = {"name": "engine-1", "url": "http://a", "source": "operator", "state": "ready", "draining": True}
COMPARISON = {"id": "c", "chosen": h.ANSWER_ID, "rejected": None, "tie": None, "end_user": None, "received_at": MOMENT}
EVENT = {"id": "e", "response_id": h.ANSWER_ID, "type": "copy", "end_user": None}
EVENT |= {"occurred_at": MOMENT, "received_at": MOMENT}
MODEL = {"id": "policy@v1", "created": 1, "version": "v1"}
GATE = GateReport(passed=True, checks=[])
REGISTER = {"name": "v2", "run_id": "run_1", "batch_ids": ["batch_1"], "parent": "v1", "location": "/versions/v2"}
REGISTER |= {"manifest_sha256": "0" * 64, "outcome": "candidate"}


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest) -> h.Caller:
    return h.Caller(request.param)


Row = tuple[str, Callable[[Any], Any], str, str, Any, Any]
"""What it is, the call, and the method, path and body it sends; then the server's answer."""

CALLS: list[Row] = [
    ("health", lambda c: c.health(), "GET", "/healthz", None, HEALTH),
    ("models", lambda c: c.chat.models(), "GET", "/v1/models", None, h.page_json([])),
    (
        "rate",
        lambda c: c.feedback.rate(h.ANSWER_ID, "down", comment="hm", tags=["x"]),
        "POST",
        "/v1/feedback",
        {"response_id": h.ANSWER_ID, "value": -1.0, "comment": "hm", "tags": ["x"]},
        h.feedback_json(),
    ),
    (
        "token",
        lambda c: c.feedback.token(h.ANSWER_ID, keys=["thumb", "helpful"], expires_in=60),
        "POST",
        "/v1/feedback/tokens",
        {"response_id": h.ANSWER_ID, "keys": ["thumb", "helpful"], "expires_in": 60},
        {"token": "ft1_x", "response_id": h.ANSWER_ID, "keys": ["thumb", "helpful"], "expires_at": MOMENT},
    ),
    (
        "by token",
        lambda c: c.feedback.by_token("ft1_x", "up", key="helpful"),
        "POST",
        "/v1/feedback/t/ft1_x",
        {"value": 1.0, "key": "helpful"},
        h.feedback_json(),
    ),
    ("model", lambda c: c.chat.model("policy@v1"), "GET", "/v1/models/policy%40v1", None, MODEL),
    (
        "tuning run",
        lambda c: c.training.create_run(None, "w", parent="v1", lease_seconds=60),
        "POST",
        "/v1/training/runs",
        {"worker": "w", "parent": "v1", "lease_seconds": 60.0},
        h.run_json(),
    ),
    (
        "retract",
        lambda c: c.feedback.create(h.ANSWER_ID, None),
        "POST",
        "/v1/feedback",
        {"response_id": h.ANSWER_ID, "value": None},
        h.feedback_json(),
    ),
    (
        "comment only",
        lambda c: c.feedback.create(h.ANSWER_ID, comment="hm"),
        "POST",
        "/v1/feedback",
        {"response_id": h.ANSWER_ID, "comment": "hm"},
        h.feedback_json(),
    ),
    (
        "batch",
        lambda c: c.feedback.batch([FeedbackRequest(response_id=h.ANSWER_ID, value=True), {"response_id": "?"}]),
        "POST",
        "/v1/feedback/batch",
        {"items": [{"response_id": h.ANSWER_ID, "value": 1.0}, {"response_id": "?"}]},
        {"results": [{"status": 201}, {"status": 422}]},
    ),
    (
        "list since",
        lambda c: c.feedback.list(since=datetime(2026, 1, 2, tzinfo=UTC), version="v1", limit=5),
        "GET",
        "/v1/feedback?version=v1&since=2026-01-02T00%3A00%3A00Z&limit=5",
        None,
        h.page_json([]),
    ),
    ("unrate", lambda c: c.feedback.delete("fb_1"), "DELETE", "/v1/feedback/fb_1", None, {"id": "a", "object": "b"}),
    (
        "compare",
        lambda c: c.comparisons.create(h.ANSWER_ID, WrittenText(text="no"), end_user="u"),
        "POST",
        "/v1/comparisons",
        {"chosen": h.ANSWER_ID, "rejected": {"text": "no"}, "end_user": "u"},
        COMPARISON,
    ),
    (
        "event",
        lambda c: c.events.create(h.ANSWER_ID, "copy"),
        "POST",
        "/v1/events",
        {"response_id": h.ANSWER_ID, "type": "copy"},
        EVENT,
    ),
    ("version", lambda c: c.versions.get("v1"), "GET", "/v1/versions/v1", None, h.version_json()),
    (
        "hostile name",
        lambda c: c.versions.get("a/../b?c"),
        "GET",
        "/v1/versions/a%2F..%2Fb%3Fc",
        None,
        h.version_json(),
    ),
    (
        "promote",
        lambda c: c.versions.promote("v1", "better"),
        "POST",
        "/v1/versions/v1/promote",
        {"reason": "better"},
        h.alias_json(),
    ),
    (
        "start a rollout",
        lambda c: c.rollouts.start("v2", [0.1, RolloutStep(weight=0.5, min_seconds=60)], min_raters=50),
        "POST",
        "/v1/rollouts",
        {
            "candidate": "v2",
            "steps": [{"weight": 0.1}, {"weight": 0.5, "min_seconds": 60.0}],
            "min_raters": 50,
        },
        h.rollout_json(),
    ),
    ("rollouts", lambda c: c.rollouts.list(limit=3), "GET", "/v1/rollouts?limit=3", None, h.page_json([])),
    ("rollout", lambda c: c.rollouts.get("rollout_1"), "GET", "/v1/rollouts/rollout_1", None, h.rollout_json()),
    *(
        (
            f"{verb} a rollout",
            lambda c, verb=verb: getattr(c.rollouts, verb)("rollout_1", "why"),
            "POST",
            f"/v1/rollouts/rollout_1/{verb}",
            {"reason": "why"},
            h.rollout_json(),
        )
        for verb in ("promote", "pause", "resume", "abort")
    ),
    ("rollback", lambda c: c.rollback("v1"), "POST", "/v1/rollback", {"to": "v1"}, h.alias_json()),
    (
        "register",
        lambda c: c.versions.register(**REGISTER, gate=GATE),
        "POST",
        "/v1/versions",
        REGISTER | {"gate": {"passed": True, "checks": []}},
        h.version_json("v2", state="loading"),
    ),
    (
        "lease",
        lambda c: c.training.lease("w", min_records=8),
        "POST",
        "/v1/batches:lease",
        {"worker": "w", "min_records": 8},
        BATCH,
    ),
    (
        "heartbeat",
        lambda c: c.training.heartbeat("batch_1", "w"),
        "POST",
        "/v1/batches/batch_1:heartbeat",
        {"worker": "w"},
        LEASE_STATE,
    ),
    ("ack", lambda c: c.training.ack("batch_1", "w"), "POST", "/v1/batches/batch_1:ack", {"worker": "w"}, LEASE_STATE),
    (
        "fail",
        lambda c: c.training.fail("batch_1", "w", "nan", release=False),
        "POST",
        "/v1/batches/batch_1:fail",
        {"worker": "w", "reason": "nan", "release": False},
        LEASE_STATE,
    ),
    (
        "create run",
        lambda c: c.training.create_run("batch_1", "w", config={"lr": 0.1}),
        "POST",
        "/v1/training/runs",
        {"batch_id": "batch_1", "worker": "w", "config": {"lr": 0.1}},
        h.run_json(),
    ),
    (
        "update run",
        lambda c: c.training.update_run("run_1", stage="ppo", step=0, metrics={"kl": 0.5}),
        "POST",
        "/v1/training/runs/run_1/metrics",
        {"stage": "ppo", "step": 0, "metrics": {"kl": 0.5}},
        h.run_json(),
    ),
    (
        "metrics",
        lambda c: c.training.metrics("run_1"),
        "GET",
        "/v1/training/runs/run_1/metrics",
        None,
        h.page_json([]),
    ),
    (
        "generate",
        lambda c: c.training.generate("v1", [GeneratePrompt(prompt_ids=[1, 2])], n=2),
        "POST",
        "/v1/training/generate",
        {"version": "v1", "prompts": [{"prompt_ids": [1, 2]}], "n": 2},
        {"version": "v1", "answers": []},
    ),
    (
        "score",
        lambda c: c.training.score("v1", [TokenSequence(prompt_ids=[1], response_ids=[2])]),
        "POST",
        "/v1/training/score",
        {"version": "v1", "sequences": [{"prompt_ids": [1], "response_ids": [2]}]},
        {"version": "v1", "logprobs": [[-0.5]]},
    ),
    (
        "create key",
        lambda c: c.keys.create("app", ["chat"]),
        "POST",
        "/v1/keys",
        {"name": "app", "roles": ["chat"]},
        KEY | {"secret": "plk_abc"},
    ),
    ("replicas", lambda c: c.replicas.list(), "GET", "/v1/replicas", None, h.page_json([REPLICA])),
    ("add replica", lambda c: c.replicas.add("http://a"), "POST", "/v1/replicas", {"url": "http://a"}, REPLICA),
    ("drain", lambda c: c.replicas.drain("engine-1"), "POST", "/v1/replicas/engine-1/drain", None, REPLICA),
    ("remove", lambda c: c.replicas.remove("engine-1"), "DELETE", "/v1/replicas/engine-1", None, REPLICA),
    ("revoke", lambda c: c.keys.revoke("key_1"), "DELETE", "/v1/keys/key_1", None, KEY | {"revoked_at": MOMENT}),
    (
        "completions by metadata",
        lambda c: c.completions.list(user="u", metadata={"a b": "1"}),
        "GET",
        "/v1/chat/completions?user=u&metadata%5Ba+b%5D=1",
        None,
        h.page_json([]),
    ),
    ("batch state", lambda c: c.training.batch("batch_1"), "GET", "/v1/batches/batch_1", None, LEASE_STATE),
    ("audit", lambda c: c.audit.list(limit=1), "GET", "/v1/audit?limit=1", None, h.page_json([])),
]


@pytest.mark.parametrize("row", CALLS, ids=[c[0] for c in CALLS])
async def test_each_method_sends_its_request_and_reads_its_answer(caller: h.Caller, row: Row) -> None:
    _, use, method, path, body, answer = row
    script = h.Script(httpx.Response(200, json=answer))
    result = await caller(script, use)
    request = script.requests[0]
    assert (request.method, request.url.raw_path.decode()) == (method, path)
    assert script.bodies == [body]
    assert request.headers["authorization"] == "Bearer plk_test"
    assert ("idempotency-key" in request.headers) == (method == "POST")
    assert result == type(result).model_validate(answer)
    assert result.model_fields_set <= answer.keys()


async def test_an_answer_knows_who_spoke(caller: h.Caller) -> None:
    script = h.Script(httpx.Response(200, json=h.completion_json(choices=2), headers=h.ANSWER_HEADERS))
    answer = await caller(script, lambda c: c.chat.create("Capital of France?", n=2, extra_body={"top_k": 5}))
    assert (answer.text, answer.version, answer.arm, answer.request_id) == ("Paris.", "v1", "stable", "req-1")
    assert answer.feedback_token == "t"
    assert answer.response_ids == [h.ANSWER_ID, f"{h.ANSWER_ID}.1"]
    assert script.bodies == [{"messages": [{"role": "user", "content": "Capital of France?"}], "n": 2, "top_k": 5}]


async def test_session_travels_as_a_header(caller: h.Caller) -> None:
    script = h.Script(httpx.Response(200, json=h.completion_json()))
    await caller(script, lambda c: c.chat.create("hi", session="s-1"))
    assert script.requests[0].headers["x-session-id"] == "s-1"
    assert "session" not in script.bodies[0]


@pytest.mark.parametrize(
    "use",
    [
        lambda c: c.chat.create("hi", temperature=9),
        lambda c: c.chat.create([]),
        lambda c: c.chat.create("hi", session="a\nb"),
        lambda c: c.feedback.create(h.ANSWER_ID),
        lambda c: c.feedback.create("not-an-id", "up"),
        lambda c: c.feedback.create(h.ANSWER_ID, float("nan")),
        lambda c: c.feedback.create(h.ANSWER_ID, "up", comment="\ud800"),
        lambda c: c.feedback.list(since=datetime(2026, 1, 1)),  # no zone: that is the fault
        lambda c: c.versions.get(".."),
        lambda c: c.comparisons.create(h.ANSWER_ID, h.ANSWER_ID),
    ],
)
async def test_bad_arguments_are_refused_before_anything_is_sent(caller: h.Caller, use: Callable[[Any], Any]) -> None:
    script = h.Script(httpx.Response(200, json={}))
    with pytest.raises(InvalidRequestError):
        await caller(script, use)
    assert script.requests == []


async def test_listing_is_paged_lazily_to_its_end(caller: h.Caller) -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        pages = {
            None: h.page_json([h.version_json("v3"), h.version_json("v2")], "v2"),
            "v2": h.page_json([h.version_json("v1")]),
        }
        assert request.url.params["limit"] == "2"
        return httpx.Response(200, json=pages[request.url.params.get("after")])

    script = h.Script(serve)
    found = await caller(script, lambda c: c.versions.iterate(limit=2))
    assert [version.name for version in found] == ["v3", "v2", "v1"]
    assert len(script.requests) == 2


def test_the_second_page_is_fetched_only_when_needed() -> None:
    script = h.Script(httpx.Response(200, json=h.page_json([h.version_json("v3")], "v3")))
    client = h.Caller("sync").client(script)
    assert isinstance(client, Plaudit)
    with client:
        assert next(client.versions.iterate()).name == "v3"
    assert len(script.requests) == 1


async def test_a_server_that_repeats_its_cursor_does_not_loop(caller: h.Caller) -> None:
    script = h.Script(httpx.Response(200, json=h.page_json([h.version_json()], "same")))
    assert len(await caller(script, lambda c: c.versions.iterate())) == 2


async def test_wait_returns_the_version_once_proven(caller: h.Caller) -> None:
    loading = httpx.Response(200, json=h.version_json(state="loading"))
    script = h.Script(loading, loading, httpx.Response(200, json=h.version_json()))
    version = await caller(script, lambda c: c.versions.wait("v1", poll=2))
    assert version.state == "ready"
    assert caller.clock.naps == [2, 2]


async def test_wait_raises_for_a_refused_version_with_its_reason(caller: h.Caller) -> None:
    failed = h.version_json(state="failed", reason="slope 0.02")
    with pytest.raises(VersionRefusedError, match=r"v1 is failed: slope 0\.02") as caught:
        await caller(h.Script(httpx.Response(200, json=failed)), lambda c: c.versions.wait("v1"))
    assert caught.value.version.state == "failed"


async def test_wait_gives_up_in_time(caller: h.Caller) -> None:
    script = h.Script(httpx.Response(200, json=h.version_json(state="loading")))
    with pytest.raises(WaitTimeoutError):
        await caller(script, lambda c: c.versions.wait("v1", timeout=5, poll=2))
    assert caller.clock.at == 4


async def test_a_token_gives_the_next_one_and_figures_come_as_text(caller: h.Caller) -> None:
    voted = httpx.Response(201, json=h.feedback_json(), headers={"x-feedback-token": "ft1_next"})
    vote = await caller(h.Script(voted), lambda c: c.feedback.by_token("ft1_x", "up"))
    assert (vote.value, vote.feedback_token) == (1.0, "ft1_next")
    assert await caller(h.Script(httpx.Response(200, text="a 1\n")), lambda c: c.metrics()) == "a 1\n"


async def test_an_idempotency_key_of_ones_own_is_sent(caller: h.Caller) -> None:
    script = h.Script(httpx.Response(200, json=h.feedback_json()))
    await caller(script, lambda c: c.feedback.create(h.ANSWER_ID, "up", idempotency_key="mine"))
    assert script.requests[0].headers["idempotency-key"] == "mine"


async def test_if_match_is_quoted_once(caller: h.Caller) -> None:
    script = h.Script(httpx.Response(200, json=h.alias_json()))
    await caller(script, lambda c: c.aliases.set("stable", "v1", if_match="7"))
    await caller(script, lambda c: c.aliases.set("stable", "v1", if_match='"7"'))
    await caller(script, lambda c: c.aliases.set("stable", "v1"))
    assert [request.headers["if-match"] for request in script.requests] == ['"7"', '"7"', "*"]


async def test_not_ready_is_an_answer_of_ready(caller: h.Caller) -> None:
    starting = {"status": "starting", "release": "0.1.0", "engine": "starting"}
    health = await caller(h.Script(httpx.Response(503, json=starting)), lambda c: c.ready())
    assert (health.status, health.engine) == ("starting", "starting")
    assert caller.clock.naps == []


async def test_async_client_takes_an_asgi_app() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["path"] == "/v1/versions/v1"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        body = httpx.Response(200, json=h.version_json()).content
        await send({"type": "http.response.body", "body": body})

    async with AsyncPlaudit(h.URL, "plk_x", transport=httpx.ASGITransport(app)) as client:
        assert (await client.versions.get("v1")).name == "v1"
