"""PPO on users' votes, readable from top to bottom: `learn_by_ppo` is the run, `train` the algorithm.

The numbers in brackets are those of docs/explanation/learning.md. Shapes: B answers, N response tokens of all answers
of a minibatch laid end to end, F features.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plaudit.wire.base import JsonObject
from plaudit.wire.chat import SamplingParams
from plaudit.wire.versions import GateCheck, GateReport, LoraShape
from plaudit_trainer import adapters, batches, gate, losses, reward_model
from plaudit_trainer.batches import PreferenceBatch, Trajectory
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Job, Outcome, Reporter, Sampler, Verdict
from plaudit_trainer.models import POLICY, REFERENCE, Backbone, Encoded, Exchange, load_base, lowest_layer
from plaudit_trainer.reward_model import RewardModel, Votes, answer_features
from plaudit_trainer.rollouts import draw, end_tokens, generate_unpublished

_PRIOR_TOKENS = 8.0
"""How many average tokens an answer's first real ones are mixed with before the critic believes them."""


def learn_by_ppo(job: Job, sampler: Sampler, reporter: Reporter, config: TrainerConfig) -> Outcome:
    """One run: votes → reward model → trajectories → PPO → gate → adapter and probe in the workspace."""
    torch.set_num_threads(config.threads)
    reporter.stage("load")
    backbone, tokenizer = load_policy(job, config)
    batch = batches.build(job.batch, text_encoder(tokenizer, end_tokens(backbone.model)[0]), config)
    metrics = batch.counts()
    if batch.reason is not None:
        return _finish(
            job,
            backbone,
            metrics,
            verdict="insufficient",
            reason=batch.reason,
            report=_refused("data", batch.reason),
            save=False,
        )

    reporter.stage("reward")
    quality, judge = fit_reward(job, batch, backbone, config, metrics)
    judge.save(job.workspace / "reward")
    reporter.step(0, metrics)
    if quality.auroc < config.reward_bar:
        reason = (
            f"the reward model foretells unseen votes with AUROC {quality.auroc:.2f} (95 % {quality.low:.2f} to "
            f"{quality.high:.2f}, n = {quality.n}); {config.reward_bar:.2f} is needed before a policy may follow it"
        )
        return _finish(
            job, backbone, metrics, verdict="rejected", reason=reason, report=_refused("reward_auroc", reason, quality)
        )

    reporter.stage("rollouts")
    logged, fresh, parents = collect(job, batch, sampler, config)
    reporter.step(0, {"rollouts/logged": len(logged), "rollouts/fresh": len(fresh), "rollouts/gate": len(parents)})
    data = prepare(logged + fresh, backbone, judge, config)
    if not data.trajectories:
        reason = "no answer of this batch has usable token ids and log-probabilities, and none could be drawn afresh"
        return _finish(
            job, backbone, metrics, verdict="rejected", reason=reason, report=_refused("trajectories", reason)
        )

    critic = Critic.load(job, data, judge, config)
    trained = train(backbone, critic, data, reporter, config)
    critic.save(job.workspace / "critic")
    adapters.round_to_stored(backbone, POLICY)
    metrics |= trained.metrics

    reporter.stage("gate")
    prompts = [t.tokens[0] for t in parents]
    answers = generate_unpublished(
        backbone, prompts, max_new_tokens=config.max_new_tokens, temperature=1.0, seed=config.seed
    )
    report = gate.check(backbone, judge, parents, answers, alarms=trained.alarms, quality=quality, config=config)
    metrics |= {f"gate/{c.name}": c.value for c in report.checks if c.value is not None}
    reporter.step(0, {})

    reporter.stage("probe")
    probe, figures = adapters.make_probe(backbone, _most_changed(data, trained, answers), config)
    (job.workspace / "probe.json").write_text(probe.model_dump_json(), encoding="utf-8")
    metrics |= figures
    verdict: Verdict = "candidate" if report.passed else "rejected"
    return _finish(job, backbone, metrics, verdict=verdict, reason="; ".join(report.refusals) or None, report=report)


# Set-up


def load_policy(job: Job, config: TrainerConfig) -> tuple[Backbone, Any]:
    """The base model with the parent's adapter as POLICY (to train) and REFERENCE (as it was); and the tokenizer."""
    from transformers import AutoTokenizer

    model = load_base(job.base, config)
    depth = model.config.num_hidden_layers
    cut, rank, weights = lowest_layer(depth, config.lora_layers), config.lora_rank, {}
    if job.run.parent_location is not None:
        folder = Path(job.run.parent_location) / "adapter"
        weights, rank = adapters.read_weights(folder), adapters.read_shape(folder).rank
        cut = min(cut, adapters.lowest_adapted_layer(weights))
    backbone = Backbone(model, cut, config.token_budget)
    for name in (POLICY, REFERENCE):
        backbone.add_adapter(name, rank, seed=config.seed)
        adapters.write_into(backbone, name, weights)
    return backbone, AutoTokenizer.from_pretrained(job.base)


def text_encoder(tokenizer: Any, end: int) -> batches.Encoder:
    """Tokens of texts that no engine drew: corrections, written comparisons, redacted answers."""

    def encode(messages: Sequence[JsonObject], answer: str) -> tuple[list[int], list[int]]:
        prompt = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return prompt_ids, [*tokenizer(answer, add_special_tokens=False)["input_ids"], end]

    return encode


def fit_reward(
    job: Job, batch: PreferenceBatch, backbone: Backbone, config: TrainerConfig, metrics: dict[str, float]
) -> tuple[reward_model.Quality, RewardModel]:
    """Judge the previous reward model on these votes, cross-fit to judge the new one, then fit it on all of them."""
    votes = _votes(batch, backbone)
    width = votes.all_features().shape[1]
    warm = job.run.warm_start_location
    prior = RewardModel.load(Path(warm) / "reward", width, config) if warm else None
    if prior is not None:
        metrics |= reward_model.foretold(prior, votes).metrics("prequential")
    prior = prior or RewardModel.fresh(votes.all_features(), config)
    folds = batches.folds_of([*batch.singles, *batch.pairs], config.reward_folds, config.seed)
    singles = len(batch.singles)
    quality = reward_model.judged(prior, votes, folds[:singles], folds[singles:], config)
    metrics |= quality.metrics("heldout")
    judge = prior.fitted(votes, config)
    metrics["reward/disagreement"] = judge.disagreement(votes.all_features()).mean().item()
    return quality, judge


def _votes(batch: PreferenceBatch, backbone: Backbone) -> Votes:
    texts = list(
        dict.fromkeys([s.tokens for s in batch.singles] + [t for p in batch.pairs for t in (p.chosen, p.rejected)])
    )
    features_BF = answer_features(backbone.encode([Exchange(*t) for t in texts])).cpu()
    row = {t: i for i, t in enumerate(texts)}
    return Votes(
        features_BF=features_BF[torch.tensor([row[s.tokens] for s in batch.singles], dtype=torch.long)],
        label_B=torch.tensor([s.label for s in batch.singles]),
        weight_B=torch.tensor([s.weight for s in batch.singles]),
        chosen_PF=features_BF[torch.tensor([row[p.chosen] for p in batch.pairs], dtype=torch.long)],
        rejected_PF=features_BF[torch.tensor([row[p.rejected] for p in batch.pairs], dtype=torch.long)],
        weight_P=torch.tensor([p.weight for p in batch.pairs]),
    )


# 1. Rollouts


def collect(
    job: Job, batch: PreferenceBatch, sampler: Sampler, config: TrainerConfig
) -> tuple[list[Trajectory], list[Trajectory], list[Trajectory]]:
    """Logged answers to train on, fresh ones to train on, and the parent's answers to held-out prompts for the gate.

    No held-out prompt is trained on by the policy: neither its logged answers nor fresh ones.
    """
    heldout = batches.heldout_clusters(list(batch.messages), config.heldout_share, config.seed)
    logged = [t for t in batch.trajectories if t.cluster not in heldout]
    # All said outright: what is left out falls to the engine's defaults, which for some models cut the distribution.
    sampling = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, max_tokens=config.max_new_tokens)
    shuffled = sorted(batch.messages)
    random.Random(f"{config.seed} {job.run.version}").shuffle(shuffled)  # noqa: S311 (no secret)
    train = {c: batch.messages[c] for c in shuffled if c not in heldout}
    train = dict(list(train.items())[: config.rollout_prompts])
    unseen = {c: batch.messages[c] for c in shuffled if c in heldout}
    fresh = draw(sampler, train, version=job.run.parent, n=config.rollouts_per_prompt, sampling=sampling)
    n = math.ceil(config.gate_answers / max(len(unseen), 1))
    return logged, fresh, draw(sampler, unseen, version=job.run.parent, n=n, sampling=sampling)


# 2. Scores and log-probabilities


@dataclass(frozen=True, slots=True)
class PolicyData:
    """Trajectories ready for PPO: encoded, scored, with behaviour and reference log-probabilities (one tensor each)."""

    trajectories: list[Trajectory]
    encoded: list[Encoded]
    score_B: Tensor
    behaviour: list[Tensor]
    reference: list[Tensor]

    @property
    def lengths(self) -> list[int]:
        """Response tokens of each."""
        return [len(t.logprobs) for t in self.trajectories]

    @property
    def temperatures(self) -> list[float]:
        """At which each was drawn; applied in every pass over it."""
        return [t.temperature for t in self.trajectories]


def prepare(
    trajectories: Sequence[Trajectory], backbone: Backbone, judge: RewardModel, config: TrainerConfig
) -> PolicyData:
    """Encode and score trajectories, and recompute their log-probabilities under the reference."""
    encoded = backbone.encode([Exchange(*t.tokens) for t in trajectories])
    with backbone.using(REFERENCE):
        reference = backbone.all_logprobs(encoded, [t.temperature for t in trajectories])
    score_B = answer_scores(trajectories, encoded, judge, end_tokens(backbone.model), config)
    behaviour = [torch.tensor(t.logprobs, device=backbone.device) for t in trajectories]
    return PolicyData(list(trajectories), encoded, score_B.to(backbone.device), behaviour, reference)


def answer_scores(
    trajectories: Sequence[Trajectory],
    encoded: Sequence[Encoded],
    judge: RewardModel,
    ends: Sequence[int],
    config: TrainerConfig,
) -> Tensor:
    """(B,): w_v · own vote + (1 − w_v) · reward model where there is a vote, else the reward model; less penalties."""
    if not encoded:
        return torch.zeros(0)
    model_B = judge.scores(answer_features(encoded).cpu())
    scores = [
        score if t.vote is None else config.vote_share * t.vote + (1 - config.vote_share) * score
        for t, score in zip(trajectories, model_B.tolist(), strict=True)
    ]
    penalties = [config.missing_end_penalty * lacks_end(t, ends) for t in trajectories]
    return torch.tensor(scores) - torch.tensor(penalties)


def lacks_end(trajectory: Trajectory, ends: Sequence[int]) -> bool:
    """It stopped, but not by an end-of-text token. Cut at a token limit or at the caller's stop string is not bad."""
    if trajectory.finish_reason == "length" or (trajectory.finish_reason == "stop" and trajectory.has_stops):
        return False
    return trajectory.tokens[1][-1] not in ends


# The critic


class Critic:
    """V of the state before each response token: a linear head on what the reward model reads, of the prefix so far.

    It starts as the reward model (the mean of its heads on the prefix, mixed with the average answer while the prefix
    is short) plus a part that reads the prompt, and is pulled back to that start as it learns.
    """

    def __init__(self, judge: RewardModel, context_BF: Tensor) -> None:
        self.judge = judge
        self.centre_D = context_BF.mean(0)
        self.scale_D = context_BF.std(0, correction=0).clamp(min=losses.STD_GUARD) * context_BF.shape[1] ** 0.5
        self.start_F = torch.cat([judge.weight_FK.mean(1) / judge.std, torch.zeros(context_BF.shape[1])])
        self.weight_F = nn.Parameter(self.start_F.clone())
        self.bias = nn.Parameter(-(judge.offset_K.mean() + judge.mean) / judge.std)

    @classmethod
    def load(cls, job: Job, data: PolicyData, judge: RewardModel, config: TrainerConfig) -> "Critic":
        """From this run's reward model; the part that reads the prompt goes on from the last run's, where it fits."""
        critic = cls(judge, torch.stack([e.context_D for e in data.encoded]).cpu())
        file = Path(job.run.warm_start_location or ".") / "critic" / "critic.safetensors"
        if job.run.warm_start_location and file.is_file():
            saved = load_file(file)
            if saved["weight"].shape == critic.weight_F.shape:
                critic.centre_D, critic.scale_D = saved["centre"], saved["scale"]
                width = len(critic.centre_D)
                critic.start_F[-width:] = saved["weight"][-width:]
                critic.weight_F.data.copy_(critic.start_F)
        return critic

    def save(self, folder: Path) -> None:
        """Write it as safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"weight": self.weight_F.detach(), "bias": self.bias.detach(), "centre": self.centre_D}
        save_file({**tensors, "scale": self.scale_D}, folder / "critic.safetensors")

    def features(self, encoded: Encoded) -> Tensor:
        """(R, F): of the state before each response token."""
        prefix_TF = self.judge.standardise(encoded.prefix_TF[:-1].cpu())
        count_T = torch.arange(1, len(prefix_TF) + 1)
        shrunk_TF = prefix_TF * (count_T / (count_T + _PRIOR_TOKENS))[:, None]
        so_far_TF = torch.cat([torch.zeros(1, prefix_TF.shape[1]), shrunk_TF])
        context_D = (encoded.context_D.cpu() - self.centre_D) / self.scale_D
        return torch.cat([so_far_TF, context_D.expand(len(so_far_TF), -1)], dim=1)

    def values(self, features_NF: Tensor) -> Tensor:
        """(N,)."""
        return features_NF @ self.weight_F + self.bias

    def fit(self, features_NF: Tensor, returns_N: Tensor, old_N: Tensor, clip: float, config: TrainerConfig) -> float:
        """Minimise the clipped value loss and the pull to the start; the explained variance of the returns after it."""
        optimiser = torch.optim.Adam([self.weight_F, self.bias], lr=config.critic_lr)
        for _ in range(config.critic_steps):
            optimiser.zero_grad()
            loss = losses.value_loss(self.values(features_NF), old_N, returns_N, clip)
            (loss + config.critic_prior * ((self.weight_F - self.start_F) ** 2).sum()).backward()
            optimiser.step()
        with torch.no_grad():
            unexplained = (returns_N - self.values(features_NF)).var()
            return (1 - unexplained / returns_N.var().clamp(min=losses.STD_GUARD)).item()


# 3–5. The algorithm


@dataclass(frozen=True, slots=True)
class Trained:
    """What training did. `alarms` are conditions under which the run must not be believed."""

    metrics: dict[str, float]
    alarms: list[str]
    change_B: Tensor


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


# The end


def _most_changed(data: PolicyData, trained: Trained, answers: Sequence[Exchange]) -> list[Exchange]:
    order = trained.change_B.argsort(descending=True).tolist()
    return [data.encoded[row].exchange for row in order] + list(answers)


def _refused(name: str, reason: str, quality: reward_model.Quality | None = None) -> GateReport:
    figures = {"value": quality.auroc, "low": quality.low, "high": quality.high, "n": quality.n} if quality else {}
    check = GateCheck(name=name, passed=False, bound=reason, **{"value": None, **figures})
    return GateReport(passed=False, checks=[check])


def _finish(
    job: Job,
    backbone: Backbone,
    metrics: dict[str, float],
    *,
    verdict: Verdict,
    reason: str | None,
    report: GateReport,
    save: bool = True,
) -> Outcome:
    """Write what the workspace still lacks, and answer."""
    rank = next(iter(backbone.adapter(POLICY).values())).shape[0]
    lora = LoraShape(rank=rank, alpha=rank, target_modules=[])
    if save:
        adapters.round_to_stored(backbone, POLICY)
        lora = adapters.save(backbone, POLICY, job.workspace / "adapter", job.base.name)
        if not (job.workspace / "probe.json").exists():
            (job.workspace / "probe.json").write_text('{"format": 1, "sequences": []}', encoding="utf-8")
    metrics = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    words = {"verdict": verdict, "reason": reason, "gate": report.model_dump(mode="json"), "metrics": metrics}
    (job.workspace / "report.json").write_text(json.dumps(words, indent=2) + "\n", encoding="utf-8")
    return Outcome(verdict, reason, report, metrics, lora)
