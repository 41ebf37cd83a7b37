"""The rollouts' mathematics, against scipy, quadrature and numbers worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from plaudit_server.domain import rollout_statistics as rs


def by_quadrature(n: int, x: int, share: float) -> float:
    """e_n as LEARNING.md writes it, integrated numerically."""
    prior = stats.beta(20 * share, 20 * (1 - share))
    mass = prior.sf(share)

    def bet(theta: float) -> float:
        odds = x * math.log(theta / share) + (n - x) * math.log((1 - theta) / (1 - share))
        return float(math.exp(odds) * prior.pdf(theta) / mass)

    middle = min(max((20 * share + x) / (20 + n), share + 1e-9), 1 - 1e-9)
    return sum(integrate.quad(bet, *ends, epsrel=1e-11, limit=400)[0] for ends in ((share, middle), (middle, 1)))


def by_scipy(n: int, x: int, share: float) -> float:
    a, b = 20 * share, 20 * (1 - share)
    posterior = special.betaln(a + x, b + n - x) + stats.beta.logsf(share, a + x, b + n - x)
    prior = special.betaln(a, b) + stats.beta.logsf(share, a, b)
    return float(posterior - prior - x * math.log(share) - (n - x) * math.log1p(-share))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.5, 0.95])
@pytest.mark.parametrize(("n", "x"), [(0, 0), (1, 0), (1, 1), (7, 3), (50, 25), (60, 2), (200, 60)])
def test_the_evidence_is_the_integral(share: float, n: int, x: int) -> None:
    assert math.exp(rs.log_evidence_of_harm(n, x, share)) == pytest.approx(by_quadrature(n, x, share), rel=1e-7)


@given(st.floats(0.005, 0.95), st.integers(0, 5000), st.floats(0, 1))
def test_the_evidence_agrees_with_scipy(share: float, n: int, part: float) -> None:
    x = round(n * part)
    tail = stats.beta.logsf(share, 20 * share + x, 20 * (1 - share) + n - x)
    if tail > -650:  # below, scipy's tail is no normal float any more; ours is a logarithm all the way
        assert rs.log_evidence_of_harm(n, x, share) == pytest.approx(by_scipy(n, x, share), rel=1e-6, abs=1e-6)


def test_no_votes_are_no_evidence() -> None:
    assert rs.log_evidence_of_harm(0, 0, 0.2) == pytest.approx(0, abs=1e-12)
    assert rs.log_evidence_of_imbalance(0, 0, 0.2) == pytest.approx(0, abs=1e-12)


def test_one_vote_by_hand() -> None:
    # Two-sided, one vote on the candidate: E[θ]/ρ = 1. One-sided it is worth more: E[θ | θ > ρ]/ρ.
    assert rs.log_evidence_of_imbalance(1, 1, 0.2) == pytest.approx(0, abs=1e-12)
    prior = stats.beta(4, 16)
    above = integrate.quad(lambda t: t * prior.pdf(t), 0.2, 1)[0] / prior.sf(0.2)
    assert math.exp(rs.log_evidence_of_harm(1, 1, 0.2)) == pytest.approx(above / 0.2, rel=1e-9)


@pytest.mark.parametrize("n", [10**5, 10**7, 10**8])
@pytest.mark.parametrize("part", [0.0, 0.19, 0.2, 0.21, 1.0])
def test_it_is_finite_for_any_number_of_votes(n: int, part: float) -> None:
    found = rs.log_evidence_of_harm(n, round(n * part), 0.2)
    assert math.isfinite(found)
    assert (found > 0) == (part > 0.2)


@given(st.sampled_from([0.05, 0.2, 0.5]), st.integers(1, 400), st.data())
def test_more_harm_is_more_evidence(share: float, n: int, data: st.DataObject) -> None:
    x = data.draw(st.integers(0, n - 1))
    assert rs.log_evidence_of_harm(n, x + 1, share) > rs.log_evidence_of_harm(n, x, share)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("harm", [0.3, 0.7, 1.0])
def test_it_is_a_fair_bet_at_the_worst_case_and_a_losing_one_below(share: float, harm: float) -> None:
    """E[e_{n+1} | e_n] ≤ e_n whenever a down-vote falls on the candidate with a probability of at most its share."""
    p = share * harm
    for n, x in [(0, 0), (5, 1), (40, 15), (300, 20)]:
        now = math.exp(rs.log_evidence_of_harm(n, x, share))
        next_one = p * math.exp(rs.log_evidence_of_harm(n + 1, x + 1, share))
        next_one += (1 - p) * math.exp(rs.log_evidence_of_harm(n + 1, x, share))
        assert next_one <= now * (1 + 1e-9)
        if harm == 1.0:
            assert next_one == pytest.approx(now, rel=1e-9)


def test_with_one_segment_the_difference_is_the_plain_one() -> None:
    # stable 20 down, 80 up; candidate 10 down, 15 up, at a share of one fifth
    found = rs.estimate([[[20, 80], [10, 15]]], [0.2])
    assert found.value == pytest.approx(0.6 - 0.8)
    # (25/125)/0.2² · 0.24 + (100/125)/0.8² · 0.16 = 1.2 + 0.2
    assert found.variance == pytest.approx(1.4, rel=0.02)
    assert found.n == 125


def test_a_good_day_with_a_large_share_does_not_deceive() -> None:
    """Both arms equal each day, .5 up at a share of .05, then .9 up at .5: pooled, the candidate looks better."""
    days = [[[475, 475], [25, 25]], [[50, 450], [50, 450]]]
    pooled = np.sum(days, axis=0)
    assert pooled[1, 1] / pooled[1].sum() - pooled[0, 1] / pooled[0].sum() > 0.15
    found = rs.estimate(days, [0.05, 0.5])
    assert found.value == pytest.approx(0, abs=1e-9)


def test_raters_of_one_mind_are_not_certainty() -> None:
    few = rs.estimate([[[0, 5], [0, 5]]], [0.5])
    assert few.variance > 0
    assert few.lower() < -0.5


def test_without_raters_the_bound_is_infinite() -> None:
    assert rs.estimate([[[0, 0], [0, 0]]], [0.2]).lower() == -math.inf


def test_the_half_width_by_hand() -> None:
    r2 = (-2 * math.log(0.05) + math.log(1 - 2 * math.log(0.05))) / 1000
    g = 1000 * r2 + 1
    expected = math.sqrt(1.3 * 2 * g / (1000**2 * r2) * math.log(1 + math.sqrt(g) / 0.1))
    assert float(rs.half_width(1.3, 1000, 0.05, 1000)) == pytest.approx(expected)
    # and the normal mixture that it comes from really reaches 1/α there: 2/√g · e^{x²/2} Φ(x) ≥ 1/α
    x = expected / math.sqrt(1.3) * 1000 * math.sqrt(r2) / math.sqrt(g)
    mixture = 2 / math.sqrt(g) * math.exp(x**2 / 2) * stats.norm.cdf(x)
    assert 1 / 0.05 <= mixture < 1.2 / 0.05


def test_moments_and_their_contrast() -> None:
    first, second = [1.0, 2.0, 3.0, 6.0], [1.0, 1.0, 4.0]
    a = rs.Moments(len(first), sum(first), sum(v * v for v in first))
    b = rs.Moments(len(second), sum(second), sum(v * v for v in second))
    assert a.variance == pytest.approx(np.var(first, ddof=1))
    found = rs.contrast(a, b, times=2)
    assert found.value == pytest.approx(3 - 2 * 2)
    assert found.variance / found.n == pytest.approx(np.var(first, ddof=1) / 4 + 4 * np.var(second, ddof=1) / 3)
    assert rs.contrast(a, rs.Moments()).lower() == -math.inf
    assert rs.Moments(1, 2.0, 4.0).variance == 0
