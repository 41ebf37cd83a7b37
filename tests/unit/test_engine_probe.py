"""The probe's statistics on made data whose truth is known."""

import math

import numpy as np
import pytest
from numpy.random import Generator, default_rng
from scipy import stats

from plaudit_server.engine.probe import (
    CLEAR_SEQUENCES,
    MIN_SEQUENCES,
    ScoredSequence,
    cluster_slope,
    is_beyond_doubt,
    judge,
    looks,
    student_t_975,
)

LOW, HIGH = 0.8, 1.2


def make(
    random: Generator,
    *,
    live: float = 1.0,
    change: float = 0.1,
    noise: float = 0.06,
    parent_shift: float = 0.0,
    sequences: int = 32,
    tokens: int = 64,
) -> list[ScoredSequence]:
    """Sequences of which the share `live` of the trained change is served.

    The noise has a part shared within a sequence, and grows with how improbable a token is.
    """
    made = []
    for _ in range(sequences):
        parent = -random.exponential(1.5, tokens)
        new = parent + random.normal(0, change, tokens)
        spread = noise * (0.5 + np.abs(parent) / 3)
        served_parent = parent + spread * random.normal(0, 1, tokens) + parent_shift
        served_new = parent + live * (new - parent) + spread * random.normal(0, 1, tokens)
        served_new += noise * 0.3 * random.normal() + parent_shift
        made.append(ScoredSequence(parent.tolist(), new.tolist(), served_parent.tolist(), served_new.tolist()))
    return made


def test_a_live_adapter_passes() -> None:
    result = judge(make(default_rng(0)), low=LOW, high=HIGH)

    assert result.passed and result.reason is None
    assert result.slope == pytest.approx(1, abs=0.1)
    assert result.tokens == 32 * 64


def test_two_hundred_good_swaps_raise_no_alarm() -> None:
    random = default_rng(1)

    verdicts = [judge(make(random), low=LOW, high=HIGH).reason for _ in range(200)]

    assert [v for v in verdicts if v] == []


@pytest.mark.parametrize("live", [0.0, 0.5, -1.0, 1.6])
def test_anything_but_the_whole_change_fails(live: float) -> None:
    random = default_rng(2)

    assert all(not judge(make(random, live=live), low=LOW, high=HIGH).passed for _ in range(100))


def test_a_parent_in_place_of_the_new_version_is_named() -> None:
    result = judge(make(default_rng(3), live=0), low=LOW, high=HIGH)

    assert result.reason is not None and "the parent or nothing is live" in result.reason


def test_another_base_is_named_though_the_slope_is_one() -> None:
    result = judge(make(default_rng(4), parent_shift=-0.3), low=LOW, high=HIGH)

    assert result.slope == pytest.approx(1, abs=0.1)
    assert result.reason is not None and "base model" in result.reason


def test_a_change_smaller_than_the_noise_is_not_proven() -> None:
    result = judge(make(default_rng(5), change=0.005), low=LOW, high=HIGH)

    assert result.reason is not None and "too small to prove" in result.reason


def test_no_change_at_all_is_not_proven() -> None:
    result = judge(make(default_rng(6), change=0.0), low=LOW, high=HIGH)

    assert result.slope is None
    assert result.reason is not None and "too small to prove" in result.reason


def test_few_sequences_prove_nothing() -> None:
    result = judge(make(default_rng(7), sequences=MIN_SEQUENCES - 1), low=LOW, high=HIGH)

    assert result.reason is not None and "sequences" in result.reason


def test_a_few_that_agree_to_four_digits_are_enough() -> None:
    """As float32 gives them; one sequence less has no interval."""
    clear = make(default_rng(7), sequences=CLEAR_SEQUENCES, noise=1e-4)
    result = judge(clear, low=LOW, high=HIGH)

    assert result.passed and is_beyond_doubt(result)
    assert not judge(clear[1:], low=LOW, high=HIGH).passed
    assert not judge(make(default_rng(7), sequences=CLEAR_SEQUENCES, noise=1e-4, live=0.9), low=0.95, high=HIGH).passed


@pytest.mark.parametrize("live", [0.0, 0.5, 0.7, 1.3])
def test_a_few_never_prove_what_is_not_there(live: float) -> None:
    """Ten thousand first looks at wrong adapters, with much noise and with little: none is taken for the right one."""
    random = default_rng(11)
    taken = 0
    for number in range(2500):
        few = make(random, live=live, noise=(0.06, 0.01, 1e-4)[number % 3], sequences=CLEAR_SEQUENCES, tokens=32)
        taken += is_beyond_doubt(judge(few, low=LOW, high=HIGH))
    assert taken == 0


def test_a_probe_is_looked_at_after_a_few_after_more_and_at_its_end() -> None:
    assert looks(24) == [CLEAR_SEQUENCES, MIN_SEQUENCES, 24]
    assert looks(MIN_SEQUENCES) == [CLEAR_SEQUENCES, MIN_SEQUENCES]
    assert [looks(n) for n in (0, 3, CLEAR_SEQUENCES)] == [[0], [3], [CLEAR_SEQUENCES]]


def test_no_sequences_fail_without_an_error() -> None:
    assert judge([], low=LOW, high=HIGH).reason == f"the probe has 0 sequences; {MIN_SEQUENCES} are needed"


def test_the_interval_covers_the_truth_under_correlated_heteroscedastic_noise() -> None:
    """95 % nominal; 1,000 draws give a standard error of 0.7 points. Too narrow would be dishonest."""
    random = default_rng(8)
    covered = 0
    for _ in range(1000):
        x = [random.normal(0, 0.1, 40) * random.uniform(0.3, 2) for _ in range(20)]
        y = [a + 0.3 * np.abs(a) * random.normal() + 0.05 * random.normal(0, 1, 40) for a in x]
        slope = cluster_slope(x, y)
        assert slope is not None
        covered += slope.low <= 1 <= slope.high
    assert 0.935 <= covered / 1000 <= 0.995


def test_ordinary_errors_would_not_cover_it() -> None:
    """The same data as above with independent tokens assumed: this is why the jackknife is there."""
    random = default_rng(8)
    covered = 0
    for _ in range(500):
        x = [random.normal(0, 0.1, 40) * random.uniform(0.3, 2) for _ in range(20)]
        y = [a + 0.3 * np.abs(a) * random.normal() + 0.05 * random.normal(0, 1, 40) for a in x]
        fit = stats.linregress(np.concatenate(x), np.concatenate(y))
        covered += abs(fit.slope - 1) <= 1.96 * fit.stderr
    assert covered / 500 < 0.93


def test_the_slope_is_that_of_least_squares() -> None:
    random = default_rng(9)
    x = [random.normal(0, 1, n) for n in range(5, 15)]
    y = [0.7 * a + 0.2 + random.normal(0, 0.1, len(a)) for a in x]

    slope = cluster_slope(x, y)

    assert slope is not None
    assert slope.value == pytest.approx(stats.linregress(np.concatenate(x), np.concatenate(y)).slope)


def test_the_interval_is_the_cluster_jackknife() -> None:
    random = default_rng(10)
    x = [random.normal(0, 1, 12) for _ in range(9)]
    y = [a + random.normal(0, 0.3, 12) for a in x]
    whole = stats.linregress(np.concatenate(x), np.concatenate(y)).slope
    without = [
        stats.linregress(np.concatenate(x[:g] + x[g + 1 :]), np.concatenate(y[:g] + y[g + 1 :])).slope for g in range(9)
    ]
    error = math.sqrt(8 / 9 * sum((b - whole) ** 2 for b in without))

    slope = cluster_slope(x, y)

    assert slope is not None
    assert slope.high - slope.value == pytest.approx(stats.t.ppf(0.975, 8) * error, rel=3e-3)


@pytest.mark.parametrize("degrees", [3, 7, 8, 11, 23, 47, 200])
def test_students_quantile(degrees: int) -> None:
    assert student_t_975(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-3)


def rounded(random: Generator, *, live: float = 1.0, instrument: bool = True) -> list[ScoredSequence]:
    """As bfloat16 does on both sides: a third of the step is lost, and each side adds rounding noise of its own."""
    made = []
    for _ in range(64):
        parent, exact = -random.exponential(1.5, 48), random.normal(0, 0.12, 48)
        x = 0.66 * exact + random.normal(0, 0.07, 48)
        y = live * 0.66 * exact + random.normal(0, 0.07, 48)
        change = exact.tolist() if instrument else None
        made.append(
            ScoredSequence(parent.tolist(), (parent + x).tolist(), parent.tolist(), (parent + y).tolist(), change)
        )
    return made


def test_rounding_noise_in_the_trained_change_bends_least_squares_but_not_the_instrument() -> None:
    random = default_rng(8)
    naive = [judge(rounded(random, instrument=False), low=LOW, high=HIGH) for _ in range(50)]
    instrumented = [judge(rounded(random), low=LOW, high=HIGH) for _ in range(50)]

    assert np.mean([r.slope for r in naive]) == pytest.approx(
        0.66**2 * 0.12**2 / (0.66**2 * 0.12**2 + 0.07**2), abs=0.03
    )
    assert not any(r.passed for r in naive)
    assert np.mean([r.slope for r in instrumented]) == pytest.approx(1, abs=0.02)
    assert all(r.passed for r in instrumented)


def test_the_instrument_does_not_hide_a_fault() -> None:
    random = default_rng(9)

    assert not any(judge(rounded(random, live=0), low=LOW, high=HIGH).passed for _ in range(100))
    assert not any(judge(rounded(random, live=0.5), low=LOW, high=HIGH).passed for _ in range(100))
