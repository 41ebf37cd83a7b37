"""The losses against numbers computed by hand and against plain loops written independently of them."""

import math
import random
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit_trainer import losses

TIGHT = {"atol": 1e-5, "rtol": 1e-5}


def floats(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


# Rewards


def test_the_score_lands_on_each_answers_last_real_token() -> None:
    zeros = torch.zeros(5)
    rewards = losses.token_rewards(floats(1.0, -2.0), zeros, zeros, [2, 3], beta=0.1)
    assert rewards.tolist() == [0.0, 1.0, 0.0, 0.0, -2.0]


def test_the_kl_penalty_is_paid_where_it_arises() -> None:
    rewards = losses.token_rewards(floats(0.0), floats(-1.0, -2.0), floats(-1.5, -1.0), [2], beta=0.1)
    torch.testing.assert_close(rewards, floats(-0.05, 0.1))


def test_an_answer_of_one_token_gets_its_score_on_it() -> None:
    rewards = losses.token_rewards(floats(3.0, 4.0), torch.zeros(2), torch.zeros(2), [1, 1], beta=0.1)
    assert rewards.tolist() == [3.0, 4.0]


# Advantages


def test_advantages_by_hand() -> None:
    # δ2 = 1 − 0.5 = 0.5; δ1 = 0 + 0.5 − 0.2 = 0.3; A2 = 0.5; A1 = 0.3 + 0.95 · 0.5
    advantages, returns = losses.advantages_and_returns(floats(0, 1), floats(0.2, 0.5), [2], gamma=1.0, lam=0.95)
    torch.testing.assert_close(advantages, floats(0.775, 0.5))
    torch.testing.assert_close(returns, floats(0.975, 1.0))


def reference_advantages(
    rewards: list[list[float]], values: list[list[float]], gamma: float, lam: float
) -> list[float]:
    """Σ_k (γλ)^k δ_{t+k}, straight from the definition."""
    out = []
    for r, v in zip(rewards, values, strict=True):
        after = [*v[1:], 0.0]
        delta = [r[t] + gamma * after[t] - v[t] for t in range(len(r))]
        out += [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(r))) for t in range(len(r))]
    return out


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.5, 1.0), st.floats(0.0, 1.0))
def test_advantages_are_the_definition_and_never_cross_answers(seed: int, gamma: float, lam: float) -> None:
    draw = random.Random(seed)
    lengths = [draw.randint(1, 7) for _ in range(4)]
    rewards = [[draw.gauss(0, 1) for _ in range(n)] for n in lengths]
    values = [[draw.gauss(0, 1) for _ in range(n)] for n in lengths]
    flat_r, flat_v = floats(*chain(*rewards)), floats(*chain(*values))
    advantages, returns = losses.advantages_and_returns(flat_r, flat_v, lengths, gamma, lam)
    torch.testing.assert_close(advantages, floats(*reference_advantages(rewards, values, gamma, lam)), **TIGHT)
    torch.testing.assert_close(returns, advantages + flat_v, **TIGHT)


def test_with_lambda_one_the_return_is_the_sum_of_rewards() -> None:
    _, returns = losses.advantages_and_returns(floats(1, 2, 3), torch.randn(3), [3], gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, floats(6, 5, 3), **TIGHT)


# Whitening


def test_whitening_gives_mean_zero_and_variance_one() -> None:
    x = torch.randn(100) * 7 + 3
    white = losses.whiten(x)
    torch.testing.assert_close(white.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(white.std(correction=0), torch.tensor(1.0), **TIGHT)
    torch.testing.assert_close(losses.whiten(x, shift_mean=False).mean(), x.mean(), **TIGHT)


def test_whitening_a_constant_invents_no_signal() -> None:
    assert losses.whiten(torch.full((8,), 3.0)).tolist() == [0.0] * 8
    assert losses.whiten(torch.full((8,), 3.0), shift_mean=False).tolist() == [3.0] * 8
    noise = 3.0 + torch.randn(8) * 1e-8
    assert losses.whiten(noise).abs().max() == 0


# Policy


def reference_policy_loss(
    new: list[float], proximal: list[float], behaviour: list[float], advantages: list[float], *, clip: float, cap: float
) -> float:
    total = 0.0
    for n, p, b, a in zip(new, proximal, behaviour, advantages, strict=True):
        ratio, weight = math.exp(n - p), min(math.exp(p - b), cap)
        bounded = max(1 - clip, min(1 + clip, ratio))
        total -= weight * min(ratio * a, bounded * a)
    return total / len(new)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_policy_loss_is_decoupled_ppo(seed: int) -> None:
    draw = random.Random(seed)
    new, proximal, behaviour = ([-draw.random() * 3 for _ in range(9)] for _ in range(3))
    advantages = [draw.gauss(0, 1) for _ in range(9)]
    weight = losses.importance_weights(floats(*proximal), floats(*behaviour), cap=2.0)
    got = losses.policy_loss(floats(*new), floats(*proximal), floats(*advantages), weight, clip=0.2)
    expected = reference_policy_loss(new, proximal, behaviour, advantages, clip=0.2, cap=2.0)
    assert got.loss.item() == pytest.approx(expected, abs=1e-5)


def test_policy_gradient_is_zero_where_clipped_and_not_elsewhere() -> None:
    logprobs = floats(math.log(1.5), math.log(0.5), math.log(1.5), math.log(0.5), 0.0).requires_grad_()
    advantages = floats(1.0, -1.0, -1.0, 1.0, 1.0)
    result = losses.policy_loss(logprobs, torch.zeros(5), advantages, torch.ones(5), clip=0.2)
    result.loss.backward()
    assert logprobs.grad is not None
    # beyond the clip in the direction the advantage wants: no gradient; against it, or inside: −w · ρ · A / n
    torch.testing.assert_close(logprobs.grad, floats(0.0, 0.0, 0.3, -0.1, -0.2), **TIGHT)
    assert result.clipped_share == pytest.approx(2 / 5)


def test_constants_of_the_policy_loss_get_no_gradient() -> None:
    inputs = [torch.randn(6).requires_grad_() for _ in range(4)]
    losses.policy_loss(*inputs, clip=0.2).loss.backward()
    assert inputs[0].grad is not None and inputs[0].grad.abs().sum() > 0
    assert all(x.grad is None for x in inputs[1:])


def test_accumulated_parts_add_up_to_the_whole() -> None:
    new, proximal, advantages, weight = torch.randn(4, 10).unbind()
    whole = losses.policy_loss(new, proximal, advantages, weight.exp(), clip=0.2).loss
    parts = [
        losses.policy_loss(new[s], proximal[s], advantages[s], weight.exp()[s], clip=0.2, token_count=10).loss
        for s in (slice(0, 3), slice(3, 10))
    ]
    torch.testing.assert_close(sum(parts), whole, **TIGHT)


def test_at_the_first_step_the_gradient_is_reinforce() -> None:
    logprobs = torch.randn(6).requires_grad_()
    advantages = torch.randn(6)
    losses.policy_loss(logprobs, logprobs.detach(), advantages, torch.ones(6), clip=0.2).loss.backward()
    torch.testing.assert_close(logprobs.grad, -advantages / 6, **TIGHT)


def test_importance_weights_are_truncated_above_only() -> None:
    weights = losses.importance_weights(floats(0, 0, 0), floats(-2, 0, 2), cap=2.0)
    torch.testing.assert_close(weights, floats(2.0, 1.0, math.exp(-2)), **TIGHT)


# The whole, against the usual padded and masked arrays


def padded_reference(
    scores: np.ndarray, arrays: dict[str, np.ndarray], mask: np.ndarray, *, beta: float, lam: float, clip: float
) -> tuple[float, float]:
    """Policy and value loss as Ziegler et al. 2019 and Schulman et al. 2017 have them, on (B, T) arrays, in float64."""
    new, old, reference, values = (arrays[name] for name in ("new", "old", "reference", "values"))
    rewards = -beta * (old - reference) * mask
    last = mask.sum(1).astype(int) - 1
    rewards[np.arange(len(last)), last] += scores
    advantages, running = np.zeros_like(rewards), np.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        following = values[:, t + 1] * mask[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        running = (rewards[:, t] + following - values[:, t] + lam * running) * mask[:, t]
        advantages[:, t] = running
    returns = advantages + values
    mean = (advantages * mask).sum() / mask.sum()
    spread = np.sqrt((((advantages - mean) ** 2) * mask).sum() / mask.sum())
    white = (advantages - mean) / spread
    ratio = np.exp(new - old)
    worse = np.maximum(-white * ratio, -white * np.clip(ratio, 1 - clip, 1 + clip))
    moved = values + np.clip(arrays["new_values"] - values, -clip, clip)
    square = np.maximum((arrays["new_values"] - returns) ** 2, (moved - returns) ** 2)
    return (worse * mask).sum() / mask.sum(), 0.5 * (square * mask).sum() / mask.sum()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_end_to_end_the_losses_are_those_of_padded_arrays(seed: int) -> None:
    """What stands beyond an answer's end in the arrays is noise: a leak of it on either side would show."""
    draw = np.random.default_rng(seed)
    lengths = [int(n) for n in draw.integers(1, 8, 5)]
    mask = (np.arange(8)[None] < np.array(lengths)[:, None]).astype(float)
    arrays = {name: draw.normal(size=mask.shape) for name in ("new", "old", "reference", "values", "new_values")}
    scores = draw.normal(size=5)
    flat = {name: torch.tensor(a[mask > 0], dtype=torch.float32) for name, a in arrays.items()}

    rewards = losses.token_rewards(
        torch.tensor(scores, dtype=torch.float32), flat["old"], flat["reference"], lengths, beta=0.05
    )
    advantages, returns = losses.advantages_and_returns(rewards, flat["values"], lengths, gamma=1.0, lam=0.95)
    policy = losses.policy_loss(
        flat["new"], flat["old"], losses.whiten(advantages), torch.ones(sum(lengths)), clip=0.2
    ).loss
    value = losses.value_loss(flat["new_values"], flat["values"], returns, clip=0.2)
    expected = padded_reference(scores, arrays, mask, beta=0.05, lam=0.95, clip=0.2)
    assert policy.item() == pytest.approx(expected[0], abs=1e-5, rel=1e-4)
    assert value.item() == pytest.approx(expected[1], abs=1e-5, rel=1e-4)


# Value


def test_value_loss_by_hand_and_its_gradient() -> None:
    values = floats(1.0, 0.1).requires_grad_()
    loss = losses.value_loss(values, floats(0.0, 0.0), floats(2.0, 1.0), clip=0.2)
    # first: |1 − 2|² = 1 against (0.2 − 2)² = 3.24 → the clipped, constant one counts; second: unclipped, 0.81
    assert loss.item() == pytest.approx(0.5 * (3.24 + 0.81) / 2)
    loss.backward()
    torch.testing.assert_close(values.grad, floats(0.0, -0.45), **TIGHT)


def test_with_an_infinite_clip_the_value_loss_is_least_squares() -> None:
    values, old, returns = torch.randn(3, 20).unbind()
    loss = losses.value_loss(values, old, returns, clip=float("inf"))
    torch.testing.assert_close(loss, 0.5 * ((values - returns) ** 2).mean(), **TIGHT)


# KL


def test_kl_estimates_the_divergence_and_is_never_negative() -> None:
    torch.manual_seed(0)
    policy, reference = torch.randn(50).log_softmax(0), torch.randn(50).log_softmax(0)
    tokens = torch.multinomial(policy.exp(), 200_000, replacement=True)
    estimate = losses.kl_penalty(policy[tokens], reference[tokens])
    exact = (policy.exp() * (policy - reference)).sum()
    assert estimate.min() >= 0
    assert estimate.mean().item() == pytest.approx(exact.item(), rel=0.03)


def test_tokens_of_another_policy_give_the_same_kl_and_without_their_weight_a_larger_one() -> None:
    torch.manual_seed(0)
    behaviour, reference = torch.randn(50).log_softmax(0), torch.randn(50).log_softmax(0)
    policy = (behaviour - 0.5 * (reference - behaviour)).log_softmax(0)  # a step further away
    tokens = torch.multinomial(behaviour.exp(), 400_000, replacement=True)
    exact = (policy.exp() * (policy - reference)).sum().item()
    weighted = losses.kl_of_others(policy[tokens], reference[tokens], behaviour[tokens], cap=1e9).mean().item()
    plain = losses.kl_penalty(policy[tokens], reference[tokens]).mean().item()
    assert weighted == pytest.approx(exact, rel=0.03)
    assert plain > 1.1 * exact
    capped = losses.kl_of_others(floats(0.0), floats(1.0), floats(-5.0), cap=2.0)
    assert capped.item() == pytest.approx(2 * (math.e - 2))


def test_the_coefficient_follows_the_kl() -> None:
    assert losses.adapted_coefficient(0.1, kl=8.0, target=4.0) == pytest.approx(0.12)
    assert losses.adapted_coefficient(0.1, kl=0.0, target=4.0) == pytest.approx(0.08)
    assert losses.adapted_coefficient(0.1, kl=4.0, target=4.0) == pytest.approx(0.1)


# Reward model


def test_preference_loss_is_bradley_terry() -> None:
    loss = losses.preference_loss(floats(1.0, 0.0)[:, None], floats(0.0, 2.0)[:, None], floats(1.0, 0.5)[:, None])
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)) + 0.5 * math.log(1 + math.exp(2)), abs=1e-6)


def test_thumbs_loss_is_cross_entropy_with_an_offset() -> None:
    loss = losses.thumbs_loss(floats(1.0, 1.0)[:, None], floats(1.0, 0.0), floats(1.0, 2.0)[:, None], floats(0.25))
    p = 1 / (1 + math.exp(-0.75))
    assert loss.item() == pytest.approx(-math.log(p) - 2 * math.log(1 - p), abs=1e-6)


def test_heads_do_not_share_gradients() -> None:
    scores = torch.randn(5, 3).requires_grad_()
    weight = torch.ones(5, 3)
    weight[:, 1] = 0
    losses.thumbs_loss(scores, torch.ones(5), weight, torch.zeros(3)).backward()
    assert scores.grad is not None
    assert scores.grad[:, 1].abs().max() == 0 and scores.grad[:, [0, 2]].abs().min() > 0
