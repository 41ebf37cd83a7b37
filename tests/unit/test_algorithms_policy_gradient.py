"""Advantages of the critic-free learners, in numbers one can check by hand."""

from dataclasses import replace

import pytest
import torch

from plaudit_trainer.algorithms import passes
from plaudit_trainer.algorithms.grouped import group_advantages, groups_of
from plaudit_trainer.algorithms.passes import Opening
from plaudit_trainer.algorithms.ppo import PolicyUpdate
from plaudit_trainer.algorithms.reinforce import returns_to_go, spread_over_tokens, vote_advantages
from plaudit_trainer.trajectories import PolicyData
from tests.support.tiny_models import tiny_config
from tests.support.tiny_votes import Quiet, trajectory


def data_of(scores: list[float], lengths: list[int], votes: list[float | None] | None = None) -> PolicyData:
    """Answers with flat log-probabilities; the reference's are −1 a token."""
    trajectories = [
        replace(trajectory(tokens=((5,), tuple(range(3, 3 + n))), logprobs=(-1.0,) * n), vote=v)
        for n, v in zip(lengths, votes or [None] * len(lengths), strict=True)
    ]
    flat = [torch.full((n,), -1.0) for n in lengths]
    return PolicyData(trajectories, [], torch.tensor(scores), flat, flat)


def opening(proximal: list[torch.Tensor], beta: float) -> Opening:
    weights = [torch.nn.Parameter(torch.zeros(1))]
    return Opening(PolicyUpdate(weights, tiny_config()), [], proximal, beta, Quiet())


# GRPO


def test_the_group_is_the_baseline_and_its_spread_the_scale() -> None:
    score_B = torch.tensor([1.0, 3.0, 10.0, 10.0, 7.0, 0.0, 6.0])
    advantage_B = group_advantages(score_B, [[0, 1], [2, 3], [5, 6]], "group")
    assert advantage_B.tolist() == pytest.approx([-1, 1, 0, 0, 0, -1, 1])  # 4 is alone; 2 and 3 are equal


def test_the_spread_of_the_batch_keeps_proportions() -> None:
    score_B = torch.tensor([1.0, 3.0, 0.0, 6.0])
    advantage_B = group_advantages(score_B, [[0, 1], [2, 3]], "batch")
    root = 5**0.5  # of (1 + 1 + 9 + 9) / 4
    assert advantage_B.tolist() == pytest.approx([-1 / root, 1 / root, -3 / root, 3 / root])


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_equal_scores_give_no_advantage(scale: str) -> None:
    advantage_B = group_advantages(torch.full((4,), 0.3), [[0, 1], [2, 3]], scale)  # type: ignore[arg-type]
    assert not advantage_B.any()


def test_groups_are_answers_to_the_very_same_tokens() -> None:
    data = data_of([0.0] * 5, [1] * 5)
    prompts = [(5, 6), (7,), (5, 6), (8,), (7,)]
    named = [replace(t, tokens=(p, t.tokens[1])) for t, p in zip(data.trajectories, prompts, strict=True)]
    assert groups_of(replace(data, trajectories=named)) == [[0, 2], [1, 4]]


# REINFORCE


def test_the_mean_vote_is_the_baseline_and_unvoted_answers_have_none() -> None:
    rows, advantage_B = vote_advantages(data_of([9.0] * 5, [1] * 5, [1.0, None, -1.0, -1.0, -1.0]))
    assert rows == [0, 2, 3, 4]
    root = 3**0.5  # votes have mean −½ and variance ¾
    assert advantage_B.tolist() == pytest.approx([root, 0, -1 / root, -1 / root, -1 / root])


def test_every_token_of_an_answer_has_its_advantage() -> None:
    tokens = spread_over_tokens(torch.tensor([0.5, -2.0]), data_of([0, 0], [3, 1]))
    assert [t.tolist() for t in tokens] == [[0.5, 0.5, 0.5], [-2.0]]


# REINFORCE++


def test_returns_carry_the_score_less_the_kl_still_to_come() -> None:
    data, beta = data_of([0.0, 0.0], [3, 1]), 0.5
    proximal = [torch.tensor([-0.5, -1.0, -2.0]), torch.tensor([-1.0])]  # log π/π_ref: 0.5, 0, −1 and 0
    raw = torch.tensor([2 - 0.5 * (0.5 - 1), 2 - 0.5 * (0 - 1), 2 - 0.5 * -1, -1.0])
    got = returns_to_go(torch.tensor([2.0, -1.0]), data, opening(proximal, beta), tiny_config())
    expected = (raw - raw.mean()) / raw.std(correction=0)
    torch.testing.assert_close(torch.cat(list(got.tokens)), expected)
    assert got.figures["advantage_std"] == pytest.approx(raw.std(correction=0).item())
    assert got.alarms == []


def test_returns_are_discounted_by_gamma() -> None:
    data = data_of([0.0, 0.0], [2, 2])
    got = returns_to_go(torch.tensor([1.0, 0.0]), data, opening(data.reference, 0.0), tiny_config(gamma=0.5))
    raw = torch.tensor([0.5, 1.0, 0.0, 0.0])
    torch.testing.assert_close(torch.cat(list(got.tokens)), (raw - raw.mean()) / raw.std(correction=0))


def test_returns_that_do_not_vary_raise_an_alarm() -> None:
    data = data_of([0.0, 0.0], [2, 2])
    got = returns_to_go(torch.tensor([1.0, 1.0]), data, opening(data.reference, 0.0), tiny_config())
    assert got.alarms == ["advantages do not vary: the gradient would be noise"]


# Figures


def test_figures_of_the_shared_update_bear_the_learners_name() -> None:
    quiet = Quiet()
    passes._Named(quiet, "grpo").step(3, {"ppo/kl": 1.0, "stale/3": 2.0})
    assert quiet.steps == [{"grpo/kl": 1.0, "stale/3": 2.0}]
