"""The promises of a rollout, by simulation: what `make bench-rollout` does, with fewer replicates and looser bounds."""

import numpy as np
import pytest

from benchmarks import rollout as bench

NO_DIFFERENCE, WORSE = bench.WORLDS[0], bench.WORLDS[4]
STEPS = bench.World("steps", 0.8, 0.8, ((0, 0.1), (250, 0.5)))
SURE = 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5
"""Three standard errors above the promised 5 %, with 300 replicates."""


def _simulate(world: bench.World, replicates: int = 300, cap: int = 2000) -> dict[str, float | None]:
    return bench.simulate(world, replicates, np.random.default_rng(7), cap=cap).figures()


@pytest.mark.parametrize("world", [NO_DIFFERENCE, STEPS], ids=lambda world: world.name)
def test_a_candidate_that_is_no_worse_is_seldom_rolled_back(world: bench.World) -> None:
    found = _simulate(world)
    assert found["rolled_back_percent"] <= 100 * SURE
    assert found["promoted_percent"] > 30  # by 2,000 ratings


def test_a_candidate_that_is_much_worse_is_always_rolled_back_and_soon() -> None:
    found = _simulate(WORSE)
    assert (found["rolled_back_percent"], found["promoted_percent"]) == (100, 0)
    assert 150 < (found["median_ratings_to_rollback"] or 0) < 450
    assert (found["of_them_on_canary"] or 0) < 100


def test_at_the_margin_few_are_promoted() -> None:
    assert _simulate(bench.WORLDS[6])["promoted_percent"] <= 100 * SURE


def test_the_habits_raise_false_alarms() -> None:
    found = bench.habits(400, np.random.default_rng(7))
    assert found["z_test_every_50_percent"] > 15
    assert found["five_checks_5_points_percent"] > 12


def test_one_vote_a_user_keeps_the_promise_and_every_vote_does_not() -> None:
    found = bench.chatty(300, np.random.default_rng(7), votes=5, users=400)
    assert found["first_percent"] <= 100 * SURE
    assert found["all_percent"] > 20


def test_guardrails_keep_quiet_at_their_bound_and_speak_beyond_it() -> None:
    found = bench.guardrails(100, np.random.default_rng(7), users=1500)
    assert max(found["errors_at_bound"]["fired_percent"], found["ttft_at_bound"]["fired_percent"]) <= 5
    assert min(found["errors_10_points_worse"]["fired_percent"], found["ttft_doubled"]["fired_percent"]) > 95
