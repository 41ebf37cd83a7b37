"""PPO with a learned reward and a critic, decoupled from the policy that answered. Read `train` first.

The numbers in brackets are those of docs/explanation/learning.md. Shapes: B answers, N response tokens of all answers
of a minibatch laid end to end.
"""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from plaudit_trainer import losses
from plaudit_trainer.algorithms.base import Lesson, Trained
from plaudit_trainer.algorithms.critic import Critic
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Reporter
from plaudit_trainer.models import POLICY, Backbone
from plaudit_trainer.trajectories import PolicyData


class PPO:
    """Proximal policy optimisation (Schulman et al. 2017) on logged and fresh answers."""

    uses_trajectories = True

    def train(self, lesson: Lesson, reporter: Reporter, config: TrainerConfig) -> Trained:
        """Fit the critic and move POLICY; the critic goes to the workspace."""
        critic = Critic.load(lesson.job, lesson.data, lesson.judge, config)
        trained = train(lesson.backbone, critic, lesson.data, reporter, config)
        critic.save(lesson.job.workspace / "critic")
        return trained


class PolicyUpdate:
    """The policy's optimiser, and the last adapter known to lie within the KL ceiling."""

    def __init__(self, weights: list[nn.Parameter], config: TrainerConfig) -> None:
        self.weights = weights
        self.before = self.good = self._copy()
        self.optimiser = torch.optim.AdamW(weights, lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0)
        self.max_norm = config.max_gradient_norm
        self.steps, self.stopped, self.largest_ratio = 0, False, 0.0

    def _copy(self) -> list[Tensor]:
        return [w.detach().clone() for w in self.weights]

    def apply(self, figures: dict[str, float]) -> float:
        """Step along the accumulated gradient; the present adapter was good. The gradient's norm before clipping."""
        self.good = self._copy()
        norm = nn.utils.clip_grad_norm_(self.weights, self.max_norm).item()
        self.optimiser.step()
        self.steps += 1
        self.largest_ratio = max(self.largest_ratio, figures["ratio_deviation"])
        return norm

    def stop(self) -> None:
        """Go back to the last good adapter, for good."""
        self.stopped = True
        with torch.no_grad():
            for weight, good in zip(self.weights, self.good, strict=True):
                weight.copy_(good)

    def alarms(self) -> list[str]:
        """What shows that training did nothing."""
        if all(torch.equal(a, b) for a, b in zip(self.before, self.weights, strict=True)):
            return ["the adapter is unchanged after training"]
        if self.steps > 1 and self.largest_ratio == 0:
            return ["the ratio to the proximal policy never left 1: the passes do not see the update"]
        return []


def train(backbone: Backbone, critic: Critic, data: PolicyData, reporter: Reporter, config: TrainerConfig) -> Trained:
    """PPO over one batch of trajectories. Changes POLICY and the critic; POLICY ends as the last good adapter."""
    reporter.stage("policy", total=config.ppo_epochs * math.ceil(len(data.lengths) / config.minibatch))
    update = PolicyUpdate(list(backbone.adapter(POLICY).values()), config)
    features_NF = torch.cat([critic.features(e) for e in data.encoded])
    score_B = losses.whiten(data.score_B.cpu(), shift_mean=False)
    equal = data.score_B.std(correction=0).item() <= losses.STD_GUARD
    alarms = ["all rewards are equal: nothing can be learnt from them"] if equal else []
    shuffle = random.Random(config.seed)  # noqa: S311 (an order of examples is no secret)
    proximal, beta, metrics = data.reference, config.kl_coefficient, dict[str, float]()  # POLICY starts as REFERENCE

    for epoch in range(config.ppo_epochs):
        if epoch > 0:
            with backbone.using(POLICY):
                proximal = backbone.all_logprobs(data.encoded, data.temperatures)
            beta = losses.adapted_coefficient(beta, answer_kl(proximal, data.reference), config.kl_target)
        proximal_N, reference_N = torch.cat(proximal).cpu(), torch.cat(data.reference).cpu()
        rewards_N = losses.token_rewards(score_B, proximal_N, reference_N, data.lengths, beta)
        explained = fit_critic(critic, features_NF, rewards_N, data.lengths, config, warmup=epoch == 0)
        with torch.no_grad():
            values_N = critic.values(features_NF)
        raw_N, _ = losses.advantages_and_returns(rewards_N, values_N, data.lengths, config.gamma, config.gae_lambda)
        spread = raw_N.std(correction=0).item()
        if spread <= losses.STD_GUARD:
            alarms.append("advantages do not vary: the gradient would be noise")
        advantages = losses.whiten(raw_N).to(backbone.device).split(data.lengths)
        order = list(range(len(data.lengths)))
        shuffle.shuffle(order)
        for start in range(0, len(order), config.minibatch):
            update.optimiser.zero_grad()
            rows = order[start : start + config.minibatch]
            figures = accumulate_gradient(backbone, data, rows, proximal=proximal, advantages=advantages, config=config)
            if figures["kl"] > config.kl_ceiling:
                update.stop()
                break
            figures |= {"gradient_norm": update.apply(figures), "beta": beta, "advantage_std": spread}
            metrics = {f"ppo/{name}": value for name, value in figures.items()}
            metrics["ppo/explained_variance"] = explained
            reporter.step(update.steps, metrics)
        if update.stopped:
            break
    return _trained(backbone, data, update, metrics, alarms + update.alarms())


def _trained(
    backbone: Backbone, data: PolicyData, update: PolicyUpdate, metrics: dict[str, float], alarms: list[str]
) -> Trained:
    with backbone.using(POLICY):
        final = backbone.all_logprobs(data.encoded, data.temperatures)
    change_B = torch.stack([(n - r).abs().mean() for n, r in zip(final, data.reference, strict=True)])
    figures = {
        "kl": answer_kl(final, data.reference),
        "steps": update.steps,
        "stopped_by_ceiling": float(update.stopped),
        "score_mean": data.score_B.mean().item(),
        "score_std": data.score_B.std(correction=0).item(),
        "mean_change": change_B.mean().item(),
    }
    return Trained(metrics | {f"ppo/{name}": float(value) for name, value in figures.items()}, alarms, change_B.cpu())


def fit_critic(
    critic: Critic, features_NF: Tensor, rewards_N: Tensor, lengths: list[int], config: TrainerConfig, *, warmup: bool
) -> float:
    """Fit the critic to the λ-returns of its own values, renewed as it moves; the explained variance after it.

    At the first epoch this is the warm-up, before the policy moves: there the values are far off and are not clipped
    to where they were.
    """
    explained = 0.0
    for _ in range(config.critic_warmup_rounds if warmup else 1):
        with torch.no_grad():
            old_N = critic.values(features_NF)
        _, returns_N = losses.advantages_and_returns(rewards_N, old_N, lengths, config.gamma, config.gae_lambda)
        clip = float("inf") if warmup else config.value_clip
        explained = critic.fit(features_NF, returns_N, old_N, clip, config)
    return explained


def accumulate_gradient(
    backbone: Backbone,
    data: PolicyData,
    rows: list[int],
    *,
    proximal: Sequence[Tensor],
    advantages: Sequence[Tensor],
    config: TrainerConfig,
) -> dict[str, float]:
    """Add the policy loss's gradient over these rows, in passes that fit the token budget; figures of the minibatch."""
    total = sum(data.lengths[r] for r in rows)
    figures = {"loss": 0.0, "clipped_share": 0.0, "importance_mean": 0.0, "ratio_deviation": 0.0, "kl": 0.0}
    for places in backbone.buckets([len(data.encoded[r].exchange) for r in rows]):
        part = [rows[p] for p in places]
        with backbone.using(POLICY):
            logprobs_N = backbone.logprobs([data.encoded[r] for r in part], [data.temperatures[r] for r in part])
        proximal_N = torch.cat([proximal[r] for r in part])
        behaviour_N = torch.cat([data.behaviour[r] for r in part])
        weight_N = losses.importance_weights(proximal_N, behaviour_N, config.importance_cap)
        advantage_N = torch.cat([advantages[r] for r in part])
        loss = losses.policy_loss(logprobs_N, proximal_N, advantage_N, weight_N, clip=config.clip, token_count=total)
        loss.loss.backward()
        share = len(logprobs_N) / total
        figures["loss"] += loss.loss.item()
        figures["clipped_share"] += share * loss.clipped_share
        figures["importance_mean"] += share * loss.importance_mean
        figures["ratio_deviation"] = max(figures["ratio_deviation"], loss.ratio_deviation)
        reference_N = torch.cat([data.reference[r] for r in part])
        figures["kl"] += losses.kl_penalty(logprobs_N.detach(), reference_N).sum().item() / len(rows)
    return figures


def answer_kl(logprobs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Mean over answers of the KL to the reference, nats an answer (low-variance estimator)."""
    per_answer = [losses.kl_penalty(a, b).sum() for a, b in zip(logprobs, reference, strict=True)]
    return torch.stack(per_answer).mean().item()
