"""When the client tries again, how long it waits, and what it sends then."""

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit import (
    APIConnectionError,
    APITimeoutError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    ServiceUnavailableError,
)
from plaudit._retry import Failure, RetryPolicy, backoff_s, parse_retry_after, pause_before_retry
from plaudit.errors import APIStatusError
from tests.support import sdk_harness as h

OK = httpx.Response(200, json=h.feedback_json())


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest) -> h.Caller:
    return h.Caller(request.param)


def rate(client: Any) -> Any:
    return client.feedback.rate(h.ANSWER_ID, "up")


@pytest.mark.parametrize(
    "first",
    [
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut"),
        *(h.refusal(status) for status in (408, 429, 500, 502, 503, 504)),
        h.refusal(409, "idempotency_in_progress"),
    ],
    ids=repr,
)
async def test_a_passing_failure_is_tried_again_under_the_same_key(caller: h.Caller, first: Any) -> None:
    script = h.Script(first, OK)
    assert (await caller(script, rate)).id == "fb_1"
    keys = [request.headers["idempotency-key"] for request in script.requests]
    assert len(keys) == 2
    assert keys[0] == keys[1]
    assert script.bodies[0] == script.bodies[1]


async def test_two_calls_have_two_keys(caller: h.Caller) -> None:
    script = h.Script(OK)
    await caller(script, rate)
    await caller(script, rate)
    assert script.requests[0].headers["idempotency-key"] != script.requests[1].headers["idempotency-key"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 412, 413, 422, 507])
async def test_a_lasting_refusal_is_not_tried_again(caller: h.Caller, status: int) -> None:
    script = h.Script(h.refusal(status))
    with pytest.raises(APIStatusError):
        await caller(script, rate)
    assert len(script.requests) == 1


async def test_it_gives_up_after_max_retries_with_doubling_waits(caller: h.Caller) -> None:
    script = h.Script(h.refusal(500))
    with pytest.raises(InternalServerError):
        await caller(script, rate, max_retries=3)
    assert caller.clock.naps == [0.5, 1.0, 2.0]


async def test_zero_retries_means_one_try(caller: h.Caller) -> None:
    script = h.Script(httpx.ConnectError("refused"))
    with pytest.raises(APIConnectionError, match=r"Cannot reach http://127\.0\.0\.1:9/v1/feedback"):
        await caller(script, rate, max_retries=0)
    assert len(script.requests) == 1


async def test_retry_after_is_kept_to(caller: h.Caller) -> None:
    script = h.Script(h.refusal(503, retry_after="5"), OK)
    await caller(script, rate)
    assert caller.clock.naps == [5.5]


async def test_a_retry_after_beyond_the_total_raises_at_once(caller: h.Caller) -> None:
    script = h.Script(h.refusal(503, retry_after="500"))
    with pytest.raises(ServiceUnavailableError) as caught:
        await caller(script, rate, retry_for=60)
    assert caught.value.retry_after_s == 500
    assert caller.clock.naps == []


async def test_waiting_for_an_earlier_try_is_bounded_by_time_alone(caller: h.Caller) -> None:
    script = h.Script(*[h.refusal(409, "idempotency_in_progress")] * 9, OK)
    await caller(script, rate, max_retries=1, retry_for=60)
    assert len(script.requests) == 10
    with pytest.raises(ConflictError):
        await caller(h.Script(h.refusal(409, "idempotency_in_progress")), rate, max_retries=1, retry_for=60)


async def test_a_conditional_write_is_not_sent_again_after_a_lost_answer(caller: h.Caller) -> None:
    def move(client: Any) -> Any:
        return client.aliases.set("stable", "v1", if_match="7")

    lost = h.Script(httpx.ReadTimeout("slow"))
    with pytest.raises(APITimeoutError):
        await caller(lost, move)
    assert len(lost.requests) == 1
    never_sent = h.Script(httpx.ConnectError("refused"), httpx.Response(200, json=h.alias_json()))
    assert (await caller(never_sent, move)).version == "v1"


async def test_a_lost_new_key_is_not_made_twice(caller: h.Caller) -> None:
    script = h.Script(httpx.ReadTimeout("slow"))
    with pytest.raises(APITimeoutError):
        await caller(script, lambda c: c.keys.create("app", ["chat"]))
    assert len(script.requests) == 1


async def test_a_lost_delete_is_sent_again(caller: h.Caller) -> None:
    script = h.Script(httpx.ReadError("reset"), h.refusal(404))
    with pytest.raises(NotFoundError):
        await caller(script, lambda c: c.feedback.delete("fb_1"))
    assert len(script.requests) == 2


@given(retry=st.integers(0, 10_000), draw=st.floats(0, 1, exclude_max=True))
def test_backoff_stays_within_its_cap(retry: int, draw: float) -> None:
    policy = RetryPolicy(cap_s=8)
    assert 0 <= backoff_s(policy, retry, draw) <= 8


@given(
    retry=st.integers(0, 10),
    elapsed_s=st.floats(0, 200),
    draw=st.floats(0, 1, exclude_max=True),
    asked=st.none() | st.floats(0, 200),
)
def test_a_pause_is_never_shorter_than_asked_nor_past_the_total(
    retry: int, elapsed_s: float, draw: float, asked: float | None
) -> None:
    failure = Failure.of_status(ServiceUnavailableError("no", status=503, retry_after_s=asked))
    pause = pause_before_retry(
        RetryPolicy(max_retries=4, total_s=100), failure, retry=retry, elapsed_s=elapsed_s, draw=draw, replayable=True
    )
    if pause is None:
        assert retry >= 4 or elapsed_s + 2 * max(asked or 0, 8) > 100
    else:
        assert retry < 4
        assert pause >= (asked or 0)
        assert elapsed_s + pause <= 100


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3.0),
        (" 0 ", 0.0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("٣", None),
        ("Fri, 02 Jan 2026 00:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_a_number_of_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert parse_retry_after({"retry-after": text}, datetime(2026, 1, 2, tzinfo=UTC)) == seconds
