"""Caps: no rater, and no crowd of new accounts, holds more of the weight than allowed."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.wire.training import TrainingRecord
from plaudit_trainer import batches
from plaudit_trainer.batches import PreferenceBatch, Single
from plaudit_trainer.batches.weights import caps
from plaudit_trainer.config import TrainerConfig
from tests.support.training_rows import encode, leased, record


def single(i: int, user: str, weight: float = 1.0) -> Single:
    return Single(f"r{i}", ((1,), (i,)), 1.0, weight, frozenset([user]), "c")


def built(records: list[TrainingRecord], **config: Any) -> PreferenceBatch:
    return batches.build(
        leased(records), encode, TrainerConfig(**({"min_examples": 2, "max_votes_per_user": 0} | config))
    )


def share(batch: PreferenceBatch, users: set[str]) -> float:
    total = sum(s.weight for s in batch.singles)
    return sum(s.weight for s in batch.singles if s.users <= users) / total


def test_no_rater_holds_more_than_the_share() -> None:
    records = [record(i, user="busy") for i in range(30)] + [record(100 + i, value=(-1.0) ** i) for i in range(300)]
    batch = built(records)
    assert share(batch, {"busy"}) == pytest.approx(0.01)
    assert batch.heaviest_share == pytest.approx(0.01)
    assert share(built(records, max_weight_share=0), {"busy"}) > 0.07


def test_balance_cannot_lift_a_rater_above_the_share() -> None:
    """The only down-voter is lifted fourfold by class balance; the cap comes after it."""
    records = [record(i) for i in range(200)] + [record(300 + i, user="sour", value=-1.0) for i in range(10)]
    assert share(built(records), {"sour"}) == pytest.approx(0.01)


def test_too_few_raters_for_the_share_hold_at_most_twice_an_equal_one() -> None:
    records = [record(i, user="a") for i in range(30)]
    records += [record(100 + i, user=f"u{i % 7}", value=-1.0) for i in range(14)]
    assert share(built(records), {"a"}) == pytest.approx(2 / 8)


def test_one_person_at_a_desk_is_not_capped() -> None:
    batch = built([record(i, user="me", value=(-1.0) ** i) for i in range(20)])
    assert [s.weight for s in batch.singles] == [1.0] * 20


def test_new_accounts_hold_one_percent_together() -> None:
    old = [record(i, days=30, value=(-1.0) ** i) for i in range(400)]
    new = [record(1000 + i, days=3) for i in range(40)]
    batch = built([*old, *new])
    puppets = {f"u{1000 + i}" for i in range(40)}
    assert share(batch, puppets) == pytest.approx(0.01, rel=0.02)
    assert batch.young_share == pytest.approx(0.01, rel=0.02)
    assert share(built([*old, *new], max_young_share=1), puppets) > 0.08


def test_a_capped_raters_vote_is_no_reward_of_its_own() -> None:
    records = [record(i, days=30, value=(-1.0) ** i) for i in range(100)] + [record(1000 + i, days=1) for i in range(5)]
    votes = {t.tokens[1][0]: t.vote for t in built(records).trajectories}
    assert votes[100] == 1.0 and votes[1100] is None


@pytest.mark.parametrize(("days", "young"), [(6.9, True), (7.1, False), (None, False)])
def test_youth_ends_after_a_week_and_unknown_is_not_young(days: float | None, young: bool) -> None:
    old = [record(i, days=30, value=(-1.0) ** i) for i in range(50)]
    batch = built([*old, record(99, days=days)])
    assert (batch.young_share > 0) is young


def test_where_all_are_new_nothing_is_learnt_and_the_mend_is_named() -> None:
    records = [record(i, days=1, value=(-1.0) ** i) for i in range(20)]
    batch = built(records)
    assert batch.reason is not None and "PLAUDIT_TRAINER_MAX_YOUNG_SHARE=1" in batch.reason
    assert built(records, max_young_share=1).reason is None


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
    st.floats(0.005, 0.5),
    st.floats(0.005, 0.5),
    st.sets(st.integers(0, 59)),
)
def test_both_caps_hold_at_once(votes: list[int], user_share: float, young_share: float, young_at: set[int]) -> None:
    users = [f"u{i}" for i in range(len(votes))]
    young = {users[i] for i in young_at if i < len(users)}
    examples = [single(i, user) for i, (user, n) in enumerate(zip(users, votes, strict=True)) for _ in range(n)]
    made = caps(examples, user_share=user_share, young=young, young_share=young_share)
    assert all(0 <= f <= 1 + 1e-9 for f in made.factors.values())
    if len(young) == len(users):
        assert set(made.factors.values()) == {0.0}
        return
    assert made.young_share <= young_share + 1e-6
    if not young:
        limit = user_share if user_share * len(users) >= 1 else min(1.0, 2 / len(users))
        assert made.heaviest_share <= limit + 1e-6
