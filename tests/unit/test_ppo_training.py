"""PPO itself: rewards reach the right token, the policy moves towards them, and what ruins runs raises an alarm."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.optimize import brentq

from plaudit_trainer import losses, trajectories
from plaudit_trainer.algorithms import critic as critic_module
from plaudit_trainer.algorithms import ppo
from plaudit_trainer.algorithms.critic import Critic
from plaudit_trainer.batches import Trajectory
from plaudit_trainer.models import POLICY, Backbone, Exchange
from plaudit_trainer.reward_model import RewardModel, answer_features
from plaudit_trainer.rollouts import generate_unpublished
from plaudit_trainer.trajectories import PolicyData
from tests.support.tiny_answers import liked, sampled, trained
from tests.support.tiny_models import END, stir, tiny_backbone, tiny_config
from tests.support.tiny_votes import trajectory


def share_on_new_prompts(backbone: Backbone) -> float:
    prompts = [(9 + i % 40, 8, 3 + i // 40) for i in range(400)]
    answers = generate_unpublished(backbone, prompts, max_new_tokens=12, temperature=1.0, seed=99)
    return sum(liked(a.response_ids) for a in answers) / len(answers)


def test_the_policy_moves_towards_what_is_rewarded_on_prompts_it_never_saw() -> None:
    backbone = tiny_backbone()
    before = share_on_new_prompts(backbone)
    result, log = trained(backbone, sampled(backbone))
    assert share_on_new_prompts(backbone) > before + 0.03
    assert result.alarms == []
    assert len(log.steps) == result.metrics["ppo/steps"] == 4 * 192 / 8


def test_only_the_policy_is_trained() -> None:
    backbone = tiny_backbone()
    data = sampled(backbone, 32)
    frozen = {n: p.clone() for n, p in backbone.model.named_parameters() if ".policy" not in n}
    trained(backbone, data)
    assert all(torch.equal(p, dict(backbone.model.named_parameters())[n]) for n, p in frozen.items())
    assert any(w.abs().max() > 0 for n, w in backbone.adapter(POLICY).items() if "lora_B" in n)


def test_the_first_ratio_is_one_and_later_ones_are_not() -> None:
    backbone = tiny_backbone()
    _, log = trained(backbone, sampled(backbone, 32), ppo_epochs=1)
    assert log.steps[0]["ppo/ratio_deviation"] < 1e-4
    assert log.steps[-1]["ppo/ratio_deviation"] > 1e-3
    assert log.steps[0]["ppo/kl"] < 1e-6


def test_each_epoch_renews_the_proximal_policy() -> None:
    """At an epoch's first minibatch the ratio is one again, though the policy has moved."""
    backbone = tiny_backbone()
    _, log = trained(backbone, sampled(backbone, 32), ppo_epochs=2)
    first_of_second = log.steps[len(log.steps) // 2]
    assert first_of_second["ppo/ratio_deviation"] < 1e-4
    assert first_of_second["ppo/kl"] > 1e-4


def test_answers_of_an_older_version_are_weighted() -> None:
    backbone = tiny_backbone()
    data = sampled(backbone, 32)
    stale = replace(data, behaviour=[b + 0.5 for b in data.behaviour])
    _, log = trained(backbone, stale, ppo_epochs=1)
    assert log.steps[0]["ppo/importance_mean"] == pytest.approx(2.718281828**-0.5, abs=1e-3)


def test_equal_rewards_raise_an_alarm() -> None:
    backbone = tiny_backbone()
    data = sampled(backbone, 16)
    result, _ = trained(backbone, replace(data, score_B=torch.full((16,), 0.7)), ppo_epochs=1)
    assert "all rewards are equal" in " ".join(result.alarms)


def test_an_adapter_that_did_not_change_raises_an_alarm() -> None:
    backbone = tiny_backbone()
    result, _ = trained(backbone, sampled(backbone, 16), lr=1e-45, ppo_epochs=1)
    assert "the adapter is unchanged" in " ".join(result.alarms)


def test_far_beyond_the_ceiling_training_ends_with_the_last_adapter_before() -> None:
    backbone = tiny_backbone()
    data = sampled(backbone, 64)
    result, log = trained(backbone, data, lr=0.03, kl_ceiling=0.1)
    assert result.metrics["ppo/stopped_by_ceiling"] == 1
    assert all(step["ppo/kl"] <= 0.2 for step in log.steps)
    assert result.metrics["ppo/kl"] > 0


def far_from_its_anchor(backbone: Backbone, nats: float, answers: int = 64) -> PolicyData:
    """Answers of a parent that stands some nats from its anchor, on a quarter of them four times as far as on average.

    exp(−x) − 1 + x nats a token, where x is what anchor and parent differ by.
    """
    data = sampled(backbone, answers)
    far = [row % 4 == 0 for row in range(answers)]
    off = [
        brentq(lambda x, a=nats * 4 / n: math.exp(-x) - 1 + x - a, 0, 100) if f else 0.0
        for f, n in zip(far, data.lengths, strict=True)
    ]
    return replace(data, anchor=[r - x for r, x in zip(data.reference, off, strict=True)])


def test_a_parent_just_below_the_ceiling_can_be_trained() -> None:
    """A step away from the anchor does not end the run: what is too far is brought back when it is over."""
    backbone = tiny_backbone()
    data = far_from_its_anchor(backbone, nats=2.0)
    result, log = trained(backbone, data, lr=0.01, kl_ceiling=2.05, ppo_epochs=1)
    assert len(log.steps) == 8 and result.metrics["ppo/stopped_by_ceiling"] == 0
    assert max(step["ppo/kl"] for step in log.steps) > 2.05


def test_one_minibatch_far_from_the_anchor_does_not_end_a_run() -> None:
    """Each minibatch of four holds either no answer that is far off, or only such: its own KL says nothing of all."""
    backbone = tiny_backbone()
    data = far_from_its_anchor(backbone, nats=2.0)
    assert ppo.parent_kl(data, tiny_config()) == pytest.approx(2.0, rel=1e-3)
    result, log = trained(backbone, data, lr=1e-4, kl_ceiling=3.0, minibatch=4, ppo_epochs=1)
    assert result.metrics["ppo/stopped_by_ceiling"] == 0
    assert len(log.steps) == 16
    assert all(step["ppo/kl"] == pytest.approx(2.0, abs=0.3) for step in log.steps)


def test_a_parent_above_the_ceiling_may_come_back() -> None:
    backbone = tiny_backbone()
    data = far_from_its_anchor(backbone, nats=2.0)
    result, log = trained(backbone, data, lr=1e-4, kl_ceiling=1.0, kl_coefficient=10.0, ppo_epochs=1)
    assert log.steps and result.metrics["ppo/kl"] <= 2.0


@pytest.mark.parametrize(("target", "factor"), [(1.0, 4.0), (2.0, 1.0), (8.0, 1.0)])
def test_the_penalty_begins_higher_where_the_distance_is_used_up(target: float, factor: float) -> None:
    data = far_from_its_anchor(tiny_backbone(), nats=2.0)
    config = tiny_config(kl_target=target, kl_coefficient=0.1)
    assert ppo.first_coefficient(data, config) == pytest.approx(0.1 * factor, rel=1e-2)


def test_the_penalty_grows_while_the_kl_lies_above_its_target() -> None:
    backbone = tiny_backbone()
    _, log = trained(backbone, sampled(backbone, 64), kl_target=1e-4, kl_coefficient=0.1, ppo_epochs=3)
    betas = [step["ppo/beta"] for step in log.steps]
    assert betas[0] == 0.1
    assert betas[-1] == pytest.approx(0.1 * 1.2 * 1.2)


def test_accumulated_passes_give_the_gradient_of_one() -> None:
    backbone = tiny_backbone()
    data = sampled(backbone, 12)
    stir(backbone, POLICY, size=0.05)
    advantages = [torch.linspace(-1, 1, n) for n in data.lengths]
    gradients = []
    for budget in (4096, 40):
        backbone.token_budget = budget
        ppo.accumulate_gradient(
            backbone, data, list(range(12)), proximal=data.reference, advantages=advantages, config=tiny_config()
        )
        weights = list(backbone.adapter(POLICY).values())
        gradients.append([w.grad for w in weights])
        for weight in weights:
            weight.grad = None
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# Scores


def score_of(t: Trajectory, **changes: Any) -> float:
    backbone = tiny_backbone()
    config = tiny_config(**changes)
    encoded = backbone.encode([Exchange(*t.tokens)])
    judge = RewardModel.fresh(torch.randn(40, 128, generator=torch.Generator().manual_seed(1)), config)
    return trajectories.answer_scores([t], encoded, judge, [END], config).item()


def test_a_vote_is_half_of_the_reward_and_the_model_the_rest() -> None:
    alone = score_of(trajectory())
    assert score_of(trajectory(vote=1.0)) == pytest.approx(0.5 + 0.5 * alone, abs=1e-5)
    assert score_of(trajectory(vote=-1.0), vote_share=0.2) == pytest.approx(-0.2 + 0.8 * alone, abs=1e-5)


def test_the_vote_can_never_be_more_than_half() -> None:
    with pytest.raises(ValueError, match="vote_share"):
        tiny_config(vote_share=0.6)


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({}, False),
        ({"tokens": ((5,), (7, 8)), "finish_reason": "length"}, False),
        ({"tokens": ((5,), (7, 8)), "finish_reason": "stop", "has_stops": True}, False),
        ({"tokens": ((5,), (7, 8)), "finish_reason": "stop"}, True),
        ({"tokens": ((5,), (7, 8)), "finish_reason": None}, True),
        ({"tokens": ((5,), (END, 8)), "finish_reason": "abort"}, True),
    ],
)
def test_a_missing_end_is_told_from_a_cut(changes: dict[str, Any], lacks: bool) -> None:
    assert trajectories.lacks_end(trajectory(**changes), [END]) is lacks


def test_a_missing_end_costs_one() -> None:
    cut = trajectory(tokens=((5,), (7, 8)), finish_reason="length")
    assert score_of(cut) - score_of(replace(cut, finish_reason=None)) == pytest.approx(1.0, abs=1e-5)


# The critic


def test_the_critic_starts_as_the_reward_model_and_knows_no_token_early() -> None:
    backbone = tiny_backbone()
    data = sampled(backbone, 32)
    judge = RewardModel.fresh(answer_features(data.encoded), tiny_config())
    judge.normalise_on(answer_features(data.encoded))
    critic = Critic(judge, torch.stack([e.context_D for e in data.encoded]))
    long = max(data.encoded, key=lambda e: len(e.exchange.response_ids))
    values = critic.values(critic.features(long))
    assert len(values) == len(long.exchange.response_ids)
    assert values[0].item() == pytest.approx((-judge.offset_K.mean() - judge.mean).item() / judge.std, abs=1e-5)
    shrink = (len(values) - 1) / (len(values) - 1 + critic_module._PRIOR_TOKENS)
    raw = (judge.standardise(long.prefix_TF[-2:-1]) @ judge.weight_FK).mean() / judge.std
    assert values[-1].item() == pytest.approx(values[0].item() + shrink * raw.item(), abs=1e-4)


def test_the_critic_learns_to_foretell_returns() -> None:
    backbone = tiny_backbone()
    data = sampled(backbone, 96)
    config = tiny_config()
    judge = RewardModel.fresh(answer_features(data.encoded), config)
    critic = Critic(judge, torch.stack([e.context_D for e in data.encoded]))
    features = torch.cat([critic.features(e) for e in data.encoded])
    rewards = losses.token_rewards(
        data.score_B, torch.cat(data.reference), torch.cat(data.reference), data.lengths, 0.0
    )
    assert ppo.fit_critic(critic, features, rewards, data.lengths, config, warmup=True) > 0.15
