"""What a step reports and what raises an alarm: each figure against the plain model, answer by answer, no padding."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from plaudit_trainer import trajectories
from plaudit_trainer.algorithms import ppo
from plaudit_trainer.algorithms.ppo import PolicyUpdate
from plaudit_trainer.models import POLICY, REFERENCE, Backbone, Exchange
from plaudit_trainer.reward_model import RewardModel, answer_features
from plaudit_trainer.trajectories import PolicyData
from tests.support.tiny_answers import sampled, trained
from tests.support.tiny_models import END, stir, tiny_backbone, tiny_config
from tests.support.tiny_votes import trajectory

EXCHANGES = [
    Exchange((5, 6, 7, 8, 9, 10), (11, END)),
    Exchange((5,), (12, END, 13, 14, 15, 16, 17, 18, 19)),  # END inside, none at its end: masks must come from lengths
    Exchange((20, 21), (22,)),
    Exchange((END, END), (23, 24, 25, END)),
]
TEMPERATURES = [1.0, 0.7, 1.3, 1.0]
ADVANTAGES = [torch.linspace(-1, 2, len(e.response_ids)) for e in EXCHANGES]
BEHIND = [0.0, 1.5, -0.5, 0.1]
"""How far the behaviour's log-probabilities lie below the proximal policy's: one answer's weights are truncated."""


def moved_backbone() -> Backbone:
    backbone = tiny_backbone()
    stir(backbone, REFERENCE, seed=5)
    stir(backbone, POLICY)
    return backbone


def plain_pass(backbone: Backbone, exchange: Exchange, temperature: float, name: str) -> torch.Tensor:
    """(T, V) log-probabilities at the response positions of one answer alone, through the whole model."""
    ids = torch.tensor([exchange.prompt_ids + exchange.response_ids])
    with backbone.using(name):
        logits = backbone.model(input_ids=ids).logits[0].float()
    return (logits[len(exchange.prompt_ids) - 1 : -1] / temperature).log_softmax(-1)


def plain(backbone: Backbone, name: str) -> list[torch.Tensor]:
    return [
        plain_pass(backbone, e, t, name).gather(1, torch.tensor(e.response_ids)[:, None])[:, 0]
        for e, t in zip(EXCHANGES, TEMPERATURES, strict=True)
    ]


@torch.no_grad()
def lesson(backbone: Backbone) -> tuple[PolicyData, list[torch.Tensor]]:
    """The answers as data, and log-probabilities of a proximal policy that lies off the present one."""
    reference = plain(backbone, REFERENCE)
    proximal = [logp - 0.3 * torch.linspace(-1, 1, len(logp)) for logp in plain(backbone, POLICY)]
    behaviour = [p - far for p, far in zip(proximal, BEHIND, strict=True)]
    answers = [
        trajectory(tokens=(e.prompt_ids, e.response_ids), logprobs=tuple(b.tolist()), temperature=t)
        for e, b, t in zip(EXCHANGES, behaviour, TEMPERATURES, strict=True)
    ]
    data = PolicyData(answers, backbone.encode(EXCHANGES), torch.arange(4.0), behaviour, reference)
    return data, proximal


@pytest.mark.parametrize("budget", [4096, 12], ids=["one padded pass", "a pass an answer"])
@pytest.mark.parametrize("kl_weight", [0.0, 0.5])
def test_no_padding_leaks_into_loss_figures_or_gradient(budget: int, kl_weight: float) -> None:
    """Against sums over each answer alone. Padding, or a token beyond an answer's end, would shift every mean."""
    backbone = moved_backbone()
    data, proximal = lesson(backbone)
    backbone.token_budget = budget
    figures = ppo.accumulate_gradient(
        backbone,
        data,
        [0, 1, 2, 3],
        proximal=proximal,
        advantages=ADVANTAGES,
        config=tiny_config(),
        kl_weight=kl_weight,
    )
    weights = list(backbone.adapter(POLICY).values())
    gradients = [w.grad.clone() for w in weights if w.grad is not None]
    for weight in weights:
        weight.grad = None

    new, old = torch.cat(plain(backbone, POLICY)), torch.cat(proximal)
    behaviour, reference = torch.cat(data.behaviour), torch.cat(data.reference)
    advantage, n = torch.cat(ADVANTAGES), len(new)
    ratio, weight_N = (new - old).exp(), (old - behaviour).exp().clamp(max=2.0)
    kl = (reference - new).exp() - 1 - (reference - new)
    away = (new - behaviour).exp() - 1 - (new - behaviour)
    clipped = ratio.clamp(0.8, 1.2) * advantage
    loss = -(weight_N * torch.minimum(ratio * advantage, clipped)).mean() + kl_weight * kl.mean()
    with torch.no_grad():
        everywhere = [plain_pass(backbone, e, t, POLICY) for e, t in zip(EXCHANGES, TEMPERATURES, strict=True)]
    expected = {
        "loss": loss.item(),
        "clipped_share": (clipped < ratio * advantage).float().mean().item(),
        "importance_mean": weight_N.mean().item(),
        "importance_truncated": len(EXCHANGES[1].response_ids),
        "entropy": sum((-p.exp() * p).sum().item() for p in everywhere) / n,
        "kl": ((new - behaviour).exp().clamp(max=2.0) * kl).sum().item() / 4,  # another policy drew these
        "kl_behaviour": away.sum().item() / 4,
        "ratio_deviation": (ratio - 1).abs().max().item(),
    }
    assert figures == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert 0 < figures["clipped_share"] < 1
    loss.backward()
    for got, parameter in zip(gradients, weights, strict=True):
        torch.testing.assert_close(got, parameter.grad, atol=1e-5, rtol=1e-4)


def test_what_is_not_rewarded_gets_no_gradient_at_all() -> None:
    backbone = moved_backbone()
    data, _ = lesson(backbone)
    with backbone.using(POLICY):
        present = backbone.all_logprobs(data.encoded, data.temperatures)
    nothing = [torch.zeros_like(a) for a in ADVANTAGES]
    ppo.accumulate_gradient(backbone, data, [0, 1, 2, 3], proximal=present, advantages=nothing, config=tiny_config())
    assert all(w.grad is not None and w.grad.abs().max() == 0 for w in backbone.adapter(POLICY).values())
    assert all(w.grad is None for w in backbone.adapter(REFERENCE).values())


def test_a_fresh_adapters_gradient_lies_in_b_alone() -> None:
    """B starts at zero, so nothing reaches A before the first step."""
    backbone = tiny_backbone()
    data, proximal = lesson(backbone)
    ppo.accumulate_gradient(backbone, data, [0, 1], proximal=proximal, advantages=ADVANTAGES, config=tiny_config())
    for name, weight in backbone.adapter(POLICY).items():
        assert weight.grad is not None
        assert (weight.grad.abs().max() > 0) == ("lora_B" in name)


def test_the_answers_temperature_is_applied_in_every_pass() -> None:
    """Reference, proximal and present log-probabilities agree at the start only where all three divide by it."""
    backbone = tiny_backbone()
    with backbone.using(REFERENCE):
        drawn = plain(backbone, REFERENCE)
    answers = [
        trajectory(tokens=(e.prompt_ids, e.response_ids), logprobs=tuple(p.tolist()), temperature=t)
        for e, p, t in zip(EXCHANGES, drawn, TEMPERATURES, strict=True)
    ]
    config = tiny_config(lr=3e-3, ppo_epochs=1, kl_ceiling=1e6)
    judge = RewardModel.fresh(answer_features(backbone.encode(EXCHANGES)), config)
    data = trajectories.prepare(answers, backbone, judge, config)
    _, log = trained(backbone, data, ppo_epochs=1, minibatch=4)
    assert log.steps[0]["ppo/ratio_deviation"] < 1e-4
    assert log.steps[0]["ppo/kl"] < 1e-6 and log.steps[0]["ppo/kl_behaviour"] < 1e-6
    assert log.steps[0]["ppo/importance_mean"] == pytest.approx(1, abs=1e-4)


# What a step reports


def test_a_step_reports_all_that_is_to_be_watched() -> None:
    backbone = tiny_backbone()
    data = sampled(backbone, 24)
    parts = {"vote": torch.full((24,), 0.25), "model": data.score_B - 0.25, "missing_end": torch.zeros(24)}
    result, log = trained(backbone, replace(data, parts=parts), ppo_epochs=1, minibatch=24)
    names = {"loss", "clipped_share", "importance_mean", "importance_truncated", "entropy", "kl", "kl_behaviour"}
    names |= {"ratio_deviation", "reward", "reward_vote", "reward_model", "reward_missing_end", "length", "end_of_text"}
    names |= {"beta", "advantage_std", "explained_variance", "gradient_norm"}
    (step,) = log.steps
    assert set(step) == {f"ppo/{name}" for name in names}
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in step.values())
    assert step["ppo/reward_vote"] == 0.25
    assert step["ppo/reward"] == pytest.approx(data.score_B.mean().item(), abs=1e-6)
    assert step["ppo/reward_model"] == pytest.approx(step["ppo/reward"] - 0.25, abs=1e-6)
    assert step["ppo/length"] == sum(data.lengths) / 24
    ended = [t.tokens[1][-1] == END for t in data.trajectories]
    assert step["ppo/end_of_text"] == pytest.approx(sum(ended) / 24) and 0 < sum(ended) < 24
    assert step["ppo/gradient_norm"] > 0 and step["ppo/entropy"] > 0
    assert set(result.metrics) >= set(step)


def test_the_parts_of_a_score_add_up_to_it() -> None:
    backbone, config = tiny_backbone(), tiny_config()
    answers = [trajectory(vote=1.0), trajectory(), trajectory(tokens=((5, 6), (7, 8, 9)), finish_reason=None)]
    encoded = backbone.encode([Exchange(*t.tokens) for t in answers])
    judge = RewardModel.fresh(torch.randn(40, 128, generator=torch.Generator().manual_seed(1)), config)
    parts = trajectories.score_parts(answers, encoded, judge, [END], config)
    model_B = judge.scores(answer_features(encoded))
    assert parts["vote"].tolist() == [0.5, 0, 0]
    torch.testing.assert_close(parts["model"], model_B * torch.tensor([0.5, 1, 1]))
    assert parts["missing_end"].tolist() == [0, 0, -1]
    total_B = trajectories.answer_scores(answers, encoded, judge, [END], config)
    torch.testing.assert_close(total_B, parts["vote"] + parts["model"] + parts["missing_end"])


# Alarms


def test_advantages_that_do_not_vary_raise_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()

    def flat(rewards_N: torch.Tensor, values_N: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full_like(rewards_N, 0.3), values_N.detach() + 0.3

    monkeypatch.setattr(ppo.losses, "advantages_and_returns", flat)
    result, log = trained(backbone, sampled(backbone, 16), ppo_epochs=1)
    assert "advantages do not vary" in " ".join(result.alarms)
    assert log.steps[0]["ppo/gradient_norm"] == 0


def test_passes_that_do_not_see_the_update_raise_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the optimiser moves weights that the passes do not read."""
    backbone = tiny_backbone()
    data = sampled(backbone, 32)
    elsewhere = [torch.nn.Parameter(w.detach().clone()) for w in backbone.adapter(POLICY).values()]
    monkeypatch.setattr(ppo, "PolicyUpdate", lambda weights, config: _Elsewhere(elsewhere, weights, config))
    result, _ = trained(backbone, data, ppo_epochs=1)
    assert "ratio to the proximal policy never left 1" in " ".join(result.alarms)


class _Elsewhere(PolicyUpdate):
    """Takes the gradients of the model's weights, moves others."""

    def __init__(self, weights: list[torch.nn.Parameter], read: list[torch.nn.Parameter], config: object) -> None:
        super().__init__(weights, config)  # type: ignore[arg-type]
        self.read = read

    def apply(self, figures: dict[str, float], *, renewed: bool = False) -> float:
        for weight, seen in zip(self.weights, self.read, strict=True):
            weight.grad, seen.grad = seen.grad, None
        return super().apply(figures, renewed=renewed)


def test_one_minibatch_an_epoch_has_no_later_ratio_to_be_alarmed_about() -> None:
    backbone = tiny_backbone()
    result, log = trained(backbone, sampled(backbone, 16), ppo_epochs=3, minibatch=16)
    assert max(step["ppo/ratio_deviation"] for step in log.steps) < 1e-4
    assert result.alarms == []


def test_a_last_step_beyond_the_ceiling_is_taken_back() -> None:
    """The ceiling is looked at before each step; what the last one did is only seen afterwards."""
    backbone = tiny_backbone()
    data = sampled(backbone, 16)
    result, log = trained(backbone, data, ppo_epochs=1, minibatch=16, lr=0.1, kl_ceiling=0.5)
    assert len(log.steps) == 1 and log.steps[0]["ppo/kl"] < 1e-6
    assert result.metrics["ppo/stopped_by_ceiling"] == 1
    assert result.metrics["ppo/kl"] < 0.5


def test_a_minibatch_that_alone_lies_beyond_the_ceiling_does_not_stop_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """One token that base found likely and the policy does not explodes a minibatch's estimate: all rows decide."""
    backbone, minibatches, plainly = tiny_backbone(), [], ppo.accumulate_gradient

    def with_an_outlier(*given: Any, **named: Any) -> dict[str, float]:
        minibatches.append(plainly(*given, **named))
        return minibatches[-1] | ({"kl": 1e6} if len(minibatches) == 2 else {})

    monkeypatch.setattr(ppo, "accumulate_gradient", with_an_outlier)
    result, log = trained(backbone, sampled(backbone, 32), ppo_epochs=1, minibatch=8, lr=1e-3, kl_ceiling=5.0)
    assert len(log.steps) == 4 and result.metrics["ppo/stopped_by_ceiling"] == 0
    assert 0 < log.steps[1]["ppo/kl"] < 5
