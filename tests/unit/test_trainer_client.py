"""The trainer's client: it waits for the server rather than fail, and never does anything twice."""

import json
from collections.abc import Callable

import httpx
import pytest

from plaudit.errors import APIResponseError, APIStatusError, AuthenticationError, ConflictError, InternalServerError
from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import GeneratePrompt, TokenSequence
from plaudit_trainer.client import GENERATE_AT_ONCE, PATIENCE, Link, TrainerClient
from plaudit_trainer.lease import Stopped
from tests.support.fake_learner import SilentClock
from tests.support.fake_server import FakeServer, Refusal


def nothing() -> None:
    """A check that never raises."""


class Rig:
    """A client of a fake server whose time passes at once."""

    def __init__(self, server: FakeServer, check: Callable[[], None] = nothing) -> None:
        self.server = server
        self.said: list[str] = []
        self.clock = SilentClock()
        self.client = TrainerClient(Link(server.client(), self.said.append, self.clock), "w", check)  # type: ignore[arg-type]


@pytest.fixture
def rig() -> Rig:
    return Rig(FakeServer(records=4))


def lease(rig: Rig) -> str:
    batch = rig.client.lease(min_records=1, max_records=8, lease_seconds=60)
    assert batch.id is not None
    return batch.id


def refused() -> Exception:
    return httpx.ConnectError("Connection refused")


def test_a_server_that_is_away_is_waited_for_and_it_is_said_once(rig: Rig) -> None:
    rig.server.script[":lease"] = [refused() for _ in range(40)]
    lease(rig)
    assert rig.said == [
        "waiting for the server at http://fake.server: Connection refused",
        "the server answers again",
    ]
    assert 60 < rig.clock.now() < 40 * 15


def test_other_calls_that_succeed_meanwhile_do_not_end_the_waiting(rig: Rig) -> None:
    """The engine may be away while the server answers heartbeats."""
    batch_id = lease(rig)

    def beat() -> None:
        rig.client.heartbeat(batch_id, 60)

    rig.server.script["/generate"] = [Refusal(503, "the engine starts") for _ in range(5)]
    rig.clock.during = beat
    rig.client.generate([GeneratePrompt(prompt_ids=[1])], version="base", n=1, sampling=SamplingParams())
    assert rig.server.heartbeats >= 5
    assert rig.said == ["waiting for the server at http://fake.server: the engine starts", "the server answers again"]


def test_the_retries_of_one_call_share_an_idempotency_key_and_two_calls_do_not(rig: Rig) -> None:
    batch_id = lease(rig)
    rig.server.script["/runs"] = [refused(), refused()]
    rig.client.create_run(batch_id, {})
    rig.client.create_run(batch_id, {})
    calls = zip(rig.server.log, rig.server.headers, strict=True)
    keys = [headers["Idempotency-Key"] for line, headers in calls if line.endswith("/runs")]
    assert len(keys) == 4
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_an_answer_lost_on_its_way_does_nothing_twice(rig: Rig) -> None:
    batch_id = lease(rig)
    rig.server.after[":fail"] = [httpx.ReadError("reset")]
    assert rig.client.fail(batch_id, "why", release=True).state == "released"
    assert rig.server.log.count(f"POST /v1/batches/{batch_id}:fail") == 2


@pytest.mark.parametrize("status", [429, 503, 507])
def test_retry_after_is_honoured_without_limit_of_tries(rig: Rig, status: int) -> None:
    rig.server.script[":lease"] = [Refusal(status, "later", retry_after=7) for _ in range(PATIENCE + 5)]
    lease(rig)
    assert rig.clock.now() >= 7 * (PATIENCE + 5)


def test_an_absurd_retry_after_is_capped(rig: Rig) -> None:
    rig.server.script[":lease"] = [Refusal(503, "later", retry_after=86_400)]
    lease(rig)
    assert rig.clock.now() <= 60.5


def test_a_server_error_is_tried_a_dozen_times_and_then_raised(rig: Rig) -> None:
    rig.server.script[":lease"] = [Refusal(500, "broken") for _ in range(PATIENCE + 1)]
    with pytest.raises(InternalServerError, match="broken"):
        lease(rig)
    assert len(rig.server.log) == PATIENCE


def test_refusals_are_raised_at_once(rig: Rig) -> None:
    batch_id = lease(rig)
    rig.client.fail(batch_id, "why", release=True)
    with pytest.raises(ConflictError, match="released"):
        rig.client.heartbeat(batch_id, 60)
    with pytest.raises(APIStatusError) as caught:
        rig.client.heartbeat("batch-9", 60)
    assert caught.value.status == 404
    assert rig.clock.slept == []


def test_a_wrong_key_is_raised_at_once(rig: Rig) -> None:
    http = httpx.Client(base_url="http://fake", transport=httpx.MockTransport(rig.server.handle))
    with pytest.raises(AuthenticationError):
        TrainerClient(Link(http, rig.said.append), "w", nothing).run("run-1")


def test_a_request_still_being_answered_is_waited_for(rig: Rig) -> None:
    rig.server.script[":lease"] = [Refusal(409, "busy", code="idempotency_in_progress") for _ in range(20)]
    assert lease(rig) == "batch-0"


def test_the_check_ends_the_waiting() -> None:
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks > 3:
            raise Stopped

    rig = Rig(FakeServer(), check)
    rig.server.script[":lease"] = [refused() for _ in range(100)]
    with pytest.raises(Stopped):
        lease(rig)
    assert sum(rig.clock.slept) < 2


def test_with_the_check_raising_already_one_try_is_made(rig: Rig) -> None:
    def check() -> None:
        raise Stopped

    batch_id = lease(rig)
    assert rig.client.checked_by(check).fail(batch_id, "trainer stopped", release=True).state == "released"


def test_many_prompts_are_asked_for_in_parts_and_numbered_as_one(rig: Rig) -> None:
    prompts = [GeneratePrompt(prompt_ids=[number]) for number in range(100)]
    answers = rig.client.generate(prompts, version="base", n=2, sampling=SamplingParams(temperature=0.5))
    assert [answer.prompt_index for answer in answers] == [index for index in range(100) for _ in range(2)]
    assert len(rig.server.log) == 100 * 2 // GENERATE_AT_ONCE + 1


def test_scores_of_many_sequences_come_back_in_order() -> None:
    sizes: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sequences = json.loads(request.content)["sequences"]
        sizes.append(len(sequences))
        logprobs = [[float(sequence["prompt_ids"][0])] for sequence in sequences]
        return httpx.Response(200, json={"version": "base", "logprobs": logprobs})

    http = httpx.Client(base_url="http://fake", transport=httpx.MockTransport(answer))
    sequences = [TokenSequence(prompt_ids=[number], response_ids=[1]) for number in range(100)]
    logprobs = TrainerClient(Link(http, print), "w", nothing).score(sequences, version="base")
    assert logprobs == [[float(number)] for number in range(100)]
    assert sizes == [64, 36]


@pytest.mark.parametrize("content", [b"<html>", b"{}", b'{"object": "run"}'])
def test_an_answer_of_something_else_is_an_error_in_words(content: bytes) -> None:
    http = httpx.Client(
        base_url="http://fake", transport=httpx.MockTransport(lambda request: httpx.Response(200, content=content))
    )
    with pytest.raises(APIResponseError, match="something else than a Run"):
        TrainerClient(Link(http, print), "w", nothing).run("run-1")


def test_a_proxys_error_page_is_put_into_words(rig: Rig) -> None:
    http = httpx.Client(
        base_url="http://fake", transport=httpx.MockTransport(lambda request: httpx.Response(404, content=b"<html>"))
    )
    with pytest.raises(APIStatusError, match="HTTP 404 Not Found"):
        TrainerClient(Link(http, print), "w", nothing).run("run-1")
