"""PPO with a learned reward and a critic, decoupled from the policy that answered. Read `train` first.

The numbers in brackets are those of docs/explanation/learning.md. Shapes: B answers, N response tokens of all answers
of a minibatch laid end to end.
"""

import math
import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from plaudit_trainer import losses
from plaudit_trainer.algorithms.base import Lesson, Trained
from plaudit_trainer.algorithms.critic import Critic
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Reporter
from plaudit_trainer.models import POLICY, Backbone
from plaudit_trainer.rollouts import end_tokens
from plaudit_trainer.staleness import histogram, versions_behind
from plaudit_trainer.trajectories import PolicyData

_NO_RATIO = 1e-6
"""A ratio that never differs from 1 by more is rounding, not an update."""
_GUARD = 2.0
"""Of the ceiling, the KL at which training ends: that far nothing learns any more, it only breaks."""


class PPO:
    """Proximal policy optimisation (Schulman et al. 2017) on logged and fresh answers."""

    uses_trajectories = True
    uses_rollouts = True

    def train(self, lesson: Lesson, reporter: Reporter, config: TrainerConfig) -> Trained:
        """Fit the critic and move POLICY; the critic goes to the workspace."""
        critic = Critic.load(lesson.job, lesson.data, lesson.judge, config)
        behind = versions_behind(lesson.job.run, [t.version for t in lesson.data.trajectories])
        ages = histogram([behind[t.version] for t in lesson.data.trajectories])
        trained = train(lesson.backbone, critic, lesson.data, reporter, config, ages=ages)
        critic.save(lesson.job.workspace / "critic")
        return trained


class PolicyUpdate:
    """The policy's optimiser, and the last adapter known to lie within `kl_bound`."""

    def __init__(self, weights: list[nn.Parameter], config: TrainerConfig) -> None:
        self.weights = weights
        self.before = self.good = self._copy()
        self.optimiser = torch.optim.AdamW(weights, lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0)
        self.max_norm = config.max_gradient_norm
        self.steps, self.stopped, self.largest_ratio, self.later_steps = 0, False, 0.0, 0
        self.metrics: dict[str, float] = {}

    def _copy(self) -> list[Tensor]:
        return [w.detach().clone() for w in self.weights]

    def apply(self, figures: dict[str, float], *, renewed: bool = False) -> float:
        """Step along the accumulated gradient; the present adapter was good. The gradient's norm before clipping.

        Args:
            renewed: the proximal policy was just set to the present one, so that the ratio has to be 1.
        """
        self.good = self._copy()
        norm = nn.utils.clip_grad_norm_(self.weights, self.max_norm).item()
        self.optimiser.step()
        self.steps += 1
        if not renewed:
            self.later_steps += 1
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
            full = "the adapter is unchanged after training"
            return (
                [f"{full}: its first step led far beyond the KL ceiling and was taken back"] if self.stopped else [full]
            )
        if self.later_steps and self.largest_ratio <= _NO_RATIO:
            return ["the ratio to the proximal policy never left 1: the passes do not see the update"]
        return []


def train(
    backbone: Backbone,
    critic: Critic,
    data: PolicyData,
    reporter: Reporter,
    config: TrainerConfig,
    *,
    ages: Mapping[str, float] = MappingProxyType({}),
) -> Trained:
    """PPO over one batch of trajectories. Changes POLICY and the critic; POLICY ends as the last good adapter.

    `ages`, how stale the answers are, is reported with every step.
    """
    reporter.stage("policy", total=config.ppo_epochs * math.ceil(len(data.lengths) / config.minibatch))
    update = PolicyUpdate(list(backbone.adapter(POLICY).values()), config)
    features_NF = torch.cat([critic.features(e) for e in data.encoded])
    score_B = losses.whiten(data.score_B.cpu(), shift_mean=False)
    equal = data.score_B.std(correction=0).item() <= losses.STD_GUARD
    alarms = ["all rewards are equal: nothing can be learnt from them"] if equal else []
    shuffle = random.Random(config.seed)  # noqa: S311 (an order of examples is no secret)
    proximal, beta = data.reference, first_coefficient(data, config)  # POLICY starts as REFERENCE

    for epoch in range(config.ppo_epochs):
        if epoch > 0:
            with backbone.using(POLICY):
                proximal = backbone.all_logprobs(data.encoded, data.temperatures)
            used = answer_kl(proximal, data.anchored, data.behaviour, config)
            beta = losses.adapted_coefficient(beta, used, config.kl_target)
        proximal_N, anchor_N = torch.cat(proximal).cpu(), torch.cat(data.anchored).cpu()
        rewards_N = losses.token_rewards(score_B, proximal_N, anchor_N, data.lengths, beta)
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
        figures = {"beta": beta, "advantage_std": spread, "explained_variance": explained, **ages}
        improve(
            update,
            backbone,
            data,
            order,
            proximal=proximal,
            advantages=advantages,
            figures=figures,
            reporter=reporter,
            config=config,
        )
        if update.stopped:
            break
    return finished(backbone, data, update, alarms, config)


def improve(
    update: PolicyUpdate,
    backbone: Backbone,
    data: PolicyData,
    order: Sequence[int],
    *,
    proximal: Sequence[Tensor],
    advantages: Sequence[Tensor],
    figures: dict[str, float],
    reporter: Reporter,
    config: TrainerConfig,
    kl_weight: float = 0.0,
) -> None:
    """One pass over the answers: a clipped step for each minibatch, up to `kl_bound`.

    Whatever gives each token an advantage is trained by this: PPO, and the algorithms without a critic.

    Args:
        order: rows of `data`, in the order in which minibatches take them.
        proximal: log-probabilities under POLICY as it is now, one tensor an answer of `data`.
        advantages: of each token, one tensor an answer of `data`.
        figures: what to report beside the figures of each step.
        kl_weight: of the KL to the anchor in the loss itself, for algorithms that do not put it into the reward.
    """
    ends = end_tokens(backbone.model)
    kl_before_B = answer_kls(proximal, data.anchored, data.behaviour, config)
    bound = kl_bound(config)
    for start in range(0, len(order), config.minibatch):
        rows = list(order[start : start + config.minibatch])
        update.optimiser.zero_grad()
        step = accumulate_gradient(
            backbone, data, rows, proximal=proximal, advantages=advantages, config=config, kl_weight=kl_weight
        )
        # A minibatch's own KL is too noisy to stop by: to the KL on all rows is added what has changed on its own.
        step["kl"] += (kl_before_B.mean() - kl_before_B[rows].mean()).item()
        if step["kl"] > bound:
            # One unlikely token can say so alone, the estimator's tail being exponential: all rows decide.
            with backbone.using(POLICY):
                present = backbone.all_logprobs(data.encoded, data.temperatures)
            kl_before_B = answer_kls(present, data.anchored, data.behaviour, config)
            step["kl"] = kl_before_B.mean().item()
            if step["kl"] > bound:
                update.stop()
                return
        norm = update.apply(step, renewed=start == 0)
        step |= answer_figures(data, rows, ends) | figures | {"gradient_norm": norm}
        update.metrics = {f"ppo/{name}": value for name, value in step.items()}
        reporter.step(update.steps, update.metrics)


def finished(
    backbone: Backbone, data: PolicyData, update: PolicyUpdate, alarms: list[str], config: TrainerConfig
) -> Trained:
    """What came of all passes; takes the last step back where it went beyond `kl_bound`."""
    with backbone.using(POLICY):
        final = backbone.all_logprobs(data.encoded, data.temperatures)
        reached = answer_kl(final, data.anchored, data.behaviour, config)
        if not update.stopped and reached > kl_bound(config):  # the last step went too far
            update.stop()
            final = backbone.all_logprobs(data.encoded, data.temperatures)
    change_B = torch.stack([(n - r).abs().mean() for n, r in zip(final, data.reference, strict=True)])
    figures = {
        "kl": answer_kl(final, data.anchored, data.behaviour, config),
        "kl_parent": answer_kl(final, data.reference, data.behaviour, config),
        "steps": update.steps,
        "stopped_by_ceiling": float(update.stopped),
        "score_mean": data.score_B.mean().item(),
        "score_std": data.score_B.std(correction=0).item(),
        "mean_change": change_B.mean().item(),
    }
    metrics = update.metrics | {f"ppo/{name}": float(value) for name, value in figures.items()}
    return Trained(metrics, alarms + update.alarms(), change_B.cpu())


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
    kl_weight: float = 0.0,
) -> dict[str, float]:
    """The policy loss's gradient over these rows, in passes that fit the token budget; figures of the minibatch.

    Every token weighs the same, whichever pass or process it lies in. With several processes the gradient is their
    sum afterwards, so call this once a step, on cleared gradients.

    Returns:
        loss; clipped_share, importance_mean and entropy (nats), means over tokens; importance_truncated, a number of
        tokens; kl and kl_behaviour, nats an answer; ratio_deviation, the largest |ratio − 1|.
    """
    total = sum(data.lengths[r] for r in rows)
    sums, furthest = torch.zeros(7), 0.0
    for places, counts in backbone.passes([len(data.encoded[r].exchange) for r in rows]):
        part = [rows[p] for p in places]
        with backbone.using(POLICY):
            logprobs_N, entropy_N = backbone.logprobs_and_entropies(
                [data.encoded[r] for r in part], [data.temperatures[r] for r in part]
            )
        proximal_N, behaviour_N, anchor_N, advantage_N = (
            torch.cat([tensors[r] for r in part]) for tensors in (proximal, data.behaviour, data.anchored, advantages)
        )
        weight_N = losses.importance_weights(proximal_N, behaviour_N, config.importance_cap)
        loss = losses.policy_loss(logprobs_N, proximal_N, advantage_N, weight_N, clip=config.clip, token_count=total)
        kl_N = losses.kl_penalty(logprobs_N, anchor_N)
        objective = loss.loss + kl_weight * kl_N.sum() / total
        (objective * float(counts)).backward()
        if not counts:
            continue
        furthest = max(furthest, loss.ratio_deviation)
        truncated_N = proximal_N - behaviour_N > math.log(config.importance_cap)
        away_N = losses.kl_penalty(behaviour_N, logprobs_N.detach())  # these tokens were drawn from the behaviour
        watched_kl_N = losses.kl_of_others(logprobs_N.detach(), anchor_N, behaviour_N, config.importance_cap)
        watched = (objective * total, loss.clipped_N, weight_N, entropy_N, truncated_N, watched_kl_N, away_N)
        sums += torch.stack([x.detach().float().sum() for x in watched]).cpu()
    sums = sums.to(backbone.device)
    gradients = [w.grad for w in backbone.adapter(POLICY).values() if w.grad is not None]
    backbone.crew.add_up([*gradients, sums])
    objective_sum, *per_token, truncated, kl, away = sums.tolist()
    clipped, importance, entropy = (x / total for x in per_token)
    return {
        "loss": objective_sum / total,
        "clipped_share": clipped,
        "importance_mean": importance,
        "importance_truncated": truncated,
        "entropy": entropy,
        "kl": kl / len(rows),
        "kl_behaviour": away / len(rows),
        "ratio_deviation": backbone.crew.largest(furthest),
    }


def answer_figures(data: PolicyData, rows: Sequence[int], ends: Sequence[int]) -> dict[str, float]:
    """What these answers are: mean reward and its parts, mean length in tokens, share that ends with end-of-text."""
    chosen = torch.tensor(rows)
    finished = sum(data.trajectories[r].tokens[1][-1] in ends for r in rows)
    figures = {"reward": data.score_B.cpu()[chosen].mean().item()}
    figures |= {f"reward_{name}": part_B[chosen].mean().item() for name, part_B in data.parts.items()}
    figures |= {"length": sum(data.lengths[r] for r in rows) / len(rows), "end_of_text": finished / len(rows)}
    return figures


def answer_kls(
    logprobs: Sequence[Tensor], reference: Sequence[Tensor], behaviour: Sequence[Tensor], config: TrainerConfig
) -> Tensor:
    """(B,): the KL to the reference of each answer, nats, where these answers are the behaviour's."""
    each = zip(logprobs, reference, behaviour, strict=True)
    return torch.stack([losses.kl_of_others(a, b, drawn, config.importance_cap).sum() for a, b, drawn in each])


def answer_kl(
    logprobs: Sequence[Tensor], reference: Sequence[Tensor], behaviour: Sequence[Tensor], config: TrainerConfig
) -> float:
    """Mean of `answer_kls`."""
    return answer_kls(logprobs, reference, behaviour, config).mean().item()


def kl_bound(config: TrainerConfig) -> float:
    """Nats an answer at which training ends.

    Well above the ceiling: a parent near it must be able to move on, and a first step alone can lead past it. What lies
    beyond the ceiling in the end is brought back (`ceiling.py`), where the candidate's own answers tell.
    """
    return _GUARD * config.kl_ceiling


def parent_kl(data: PolicyData, config: TrainerConfig) -> float:
    """Of the policy that training starts from, to the anchor, nats an answer."""
    return answer_kl(data.reference, data.anchored, data.behaviour, config)


def first_coefficient(data: PolicyData, config: TrainerConfig) -> float:
    """β of the first pass: the configured one, and more where the parent has used up its distance already.

    It grows with the square of KL / target. The adaptation from pass to pass alone comes too late: a run has two
    passes, and a parent near the ceiling would be driven against it in the first.
    """
    used = parent_kl(data, config) / config.kl_target
    return config.kl_coefficient * max(1.0, used) ** 2
