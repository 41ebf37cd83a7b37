"""Token buckets: exact to the token, bounded, nothing taken where nothing is allowed."""

import pytest

from plaudit_server.domain.buckets import Buckets


def test_a_full_bucket_may_go_at_once_and_comes_back_evenly() -> None:
    buckets = Buckets(60)
    assert [buckets.take("a", 100.0).allowed for _ in range(61)] == [True] * 60 + [False]
    assert buckets.take("a", 100.9).allowed is False
    assert buckets.take("a", 101.0).allowed is True
    assert buckets.take("a", 101.0).allowed is False
    assert [buckets.take("a", 161.0).allowed for _ in range(61)] == [True] * 60 + [False]


def test_what_is_told() -> None:
    buckets = Buckets(120)
    first = buckets.take("a", 0.0)
    assert (first.limit, first.remaining, first.reset_s, first.retry_after_s) == (120, 119, 0.5, 0.0)
    buckets.take("a", 0.0, cost=119)
    refused = buckets.take("a", 0.25)
    assert (refused.allowed, refused.remaining) == (False, 0)
    assert refused.retry_after_s == pytest.approx(0.25)
    assert refused.reset_s == pytest.approx(59.75)
    assert buckets.take("a", 0.25 + refused.retry_after_s).allowed


def test_a_refusal_takes_nothing() -> None:
    buckets = Buckets(10)
    buckets.take("a", 0.0, cost=5)
    assert not buckets.take("a", 0.0, cost=6).allowed
    assert buckets.take("a", 0.0, cost=5).allowed


def test_what_costs_more_than_a_bucket_holds_takes_a_full_one() -> None:
    buckets = Buckets(10)
    assert buckets.take("a", 0.0, cost=1000).allowed
    assert not buckets.take("a", 0.0).allowed
    assert not buckets.take("a", 59.0, cost=1000).allowed
    assert buckets.take("a", 60.0, cost=1000).allowed


def test_names_do_not_share() -> None:
    buckets = Buckets(1)
    assert buckets.take("a", 0.0).allowed
    assert buckets.take("b", 0.0).allowed
    assert not buckets.take("a", 0.0).allowed


def test_giving_back() -> None:
    buckets = Buckets(1)
    buckets.take("a", 0.0)
    buckets.give_back("a")
    buckets.give_back("nobody")
    assert buckets.take("a", 0.0).allowed
    assert not buckets.take("a", 0.0).allowed


def test_memory_is_bounded_and_the_busy_are_remembered() -> None:
    buckets = Buckets(2, max_names=100)
    for number in range(10_000):
        buckets.take("busy", 0.0)
        buckets.take(f"passer-by {number}", 0.0)
    assert len(buckets) == 100
    assert not buckets.take("busy", 0.0).allowed
