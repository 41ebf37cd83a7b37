"""When a replica that fails is asked again."""

from plaudit_server.engine.breaker import Breaker


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker(opens_after=3, rest_s=2, longest_rest_s=10)
    for _ in range(3):
        breaker.failed(at)
    return breaker


def test_failures_in_a_row_open_it() -> None:
    breaker = Breaker(opens_after=3)
    breaker.failed(0)
    breaker.failed(0)
    assert breaker.allows(0) and breaker.state(0) == "closed"
    breaker.failed(0)
    assert not breaker.allows(0) and breaker.state(0) == "open"


def test_a_success_between_them_starts_the_count_afresh() -> None:
    breaker = Breaker(opens_after=3)
    for _ in range(5):
        breaker.failed(0)
        breaker.failed(0)
        breaker.succeeded()
    assert breaker.state(0) == "closed"


def test_after_its_rest_one_request_tries_and_the_others_wait() -> None:
    breaker = opened()
    assert not breaker.allows(1.9)
    assert breaker.allows(2) and breaker.state(2) == "half_open"
    breaker.began(2)
    assert not breaker.allows(2.1)
    breaker.succeeded()
    assert breaker.state(2.2) == "closed" and breaker.allows(2.2) and breaker.failures == 0


def test_a_try_that_fails_doubles_the_rest_up_to_a_bound() -> None:
    breaker, now, rests = opened(), 0.0, []
    for _ in range(5):
        end = next(step / 10 for step in range(int(now * 10) + 1, 10_000) if breaker.allows(step / 10))
        rests.append(round(end - now, 6))
        now = end
        breaker.began(now)
        breaker.failed(now)
    assert rests == [2, 4, 8, 10, 10]


def test_a_try_that_never_ends_does_not_keep_it_shut_for_ever() -> None:
    breaker = opened()
    breaker.began(2)
    assert not breaker.allows(3.9)
    assert breaker.allows(4)


def test_failures_of_requests_sent_before_it_opened_do_not_lengthen_the_rest() -> None:
    breaker = opened()
    for _ in range(20):
        breaker.failed(1)
    assert breaker.allows(2)


def test_after_a_success_the_rest_is_short_again() -> None:
    breaker = opened()
    breaker.began(2)
    breaker.failed(2)
    breaker.began(6)
    breaker.succeeded()
    for _ in range(3):
        breaker.failed(10)
    assert not breaker.allows(11.9) and breaker.allows(12)
