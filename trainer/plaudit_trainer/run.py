"""One run, readable from top to bottom: users' votes → reward model → rollouts → policy → gate → adapter and probe.

What trains the policy is an `Algorithm`; everything before and after it is the same for all of them.
"""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from plaudit.wire.base import JsonObject
from plaudit.wire.chat import SamplingParams
from plaudit.wire.versions import GateCheck, GateReport, LoraShape
from plaudit_trainer import adapters, algorithms, batches, gate, reward_model
from plaudit_trainer.algorithms.base import Lesson, Trained
from plaudit_trainer.batches import PreferenceBatch, Trajectory
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Job, Outcome, Reporter, Sampler, Verdict
from plaudit_trainer.models import POLICY, REFERENCE, Backbone, Exchange, load_base, lowest_layer
from plaudit_trainer.reward_model import RewardModel, Votes, answer_features
from plaudit_trainer.rollouts import draw, end_tokens, generate_unpublished
from plaudit_trainer.trajectories import PolicyData, prepare


class _Refused(Exception):
    """The run ends here; `check` is the gate's check that says so."""

    def __init__(self, verdict: Verdict, check: GateCheck) -> None:
        super().__init__(check.bound)
        self.verdict, self.check = verdict, check


def learn_from_votes(job: Job, sampler: Sampler, reporter: Reporter, config: TrainerConfig) -> Outcome:
    """One run of the configured algorithm. Fills the workspace as `learner.learn` promises."""
    torch.set_num_threads(config.threads)
    reporter.stage("load")
    backbone, tokenizer = load_policy(job, config)
    metrics: dict[str, float] = {}
    try:
        report = _learn(
            job, backbone, tokenizer=tokenizer, sampler=sampler, reporter=reporter, metrics=metrics, config=config
        )
        verdict: Verdict = "candidate" if report.passed else "rejected"
        reason = "; ".join(report.refusals) or None
    except _Refused as refusal:
        report = GateReport(passed=False, checks=[refusal.check])
        verdict, reason = refusal.verdict, str(refusal)
    return _finish(job, backbone, metrics=metrics, verdict=verdict, reason=reason, report=report)


def _learn(
    job: Job,
    backbone: Backbone,
    *,
    tokenizer: Any,
    sampler: Sampler,
    reporter: Reporter,
    metrics: dict[str, float],
    config: TrainerConfig,
) -> GateReport:
    """Train POLICY and judge it; adds to `metrics`."""
    algorithm = algorithms.chosen(config)
    batch = batches.build(job.batch, text_encoder(tokenizer, end_tokens(backbone.model)[0]), config)
    metrics |= batch.counts()
    if batch.reason is not None:
        raise _Refused("insufficient", _failed("data", batch.reason))

    reporter.stage("reward")
    quality, judge = fit_reward(job, batch, backbone, config, metrics)
    judge.save(job.workspace / "reward")
    reporter.step(0, metrics)
    if quality.auroc < config.reward_bar:
        raise _Refused("rejected", _weak_judge(quality, config))

    reporter.stage("rollouts")
    logged, fresh, parents = collect(job, batch, sampler, config, to_train=algorithm.uses_trajectories)
    reporter.step(0, {"rollouts/logged": len(logged), "rollouts/fresh": len(fresh), "rollouts/gate": len(parents)})
    data = prepare(logged + fresh, backbone, judge, config)
    if algorithm.uses_trajectories and not data.trajectories:
        reason = "no answer of this batch has usable token ids and log-probabilities, and none could be drawn afresh"
        raise _Refused("rejected", _failed("trajectories", reason))

    trained = algorithm.train(Lesson(job, batch, backbone, judge, data), reporter, config)
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
    return report


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
    job: Job, batch: PreferenceBatch, sampler: Sampler, config: TrainerConfig, *, to_train: bool
) -> tuple[list[Trajectory], list[Trajectory], list[Trajectory]]:
    """Logged answers to train on, fresh ones to train on, and the parent's answers to held-out prompts for the gate.

    The first two are empty unless `to_train`.

    No held-out prompt is trained on by the policy: neither its logged answers nor fresh ones.
    """
    heldout = batches.heldout_clusters(list(batch.messages), config.heldout_share, config.seed)
    logged = [t for t in batch.trajectories if to_train and t.cluster not in heldout]
    # All said outright: what is left out falls to the engine's defaults, which for some models cut the distribution.
    sampling = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, max_tokens=config.max_new_tokens)
    shuffled = sorted(batch.messages)
    random.Random(f"{config.seed} {job.run.version}").shuffle(shuffled)  # noqa: S311 (no secret)
    train = {c: batch.messages[c] for c in shuffled if c not in heldout}
    train = dict(list(train.items())[: config.rollout_prompts * to_train])
    unseen = {c: batch.messages[c] for c in shuffled if c in heldout}
    fresh = draw(sampler, train, version=job.run.parent, n=config.rollouts_per_prompt, sampling=sampling)
    n = math.ceil(config.gate_answers / max(len(unseen), 1))
    return logged, fresh, draw(sampler, unseen, version=job.run.parent, n=n, sampling=sampling)


# The end


def _most_changed(data: PolicyData, trained: Trained, answers: Sequence[Exchange]) -> list[Exchange]:
    order = trained.change_B.argsort(descending=True).tolist()
    return [data.encoded[row].exchange for row in order] + list(answers)


def _failed(name: str, reason: str) -> GateCheck:
    return GateCheck(name=name, passed=False, value=None, bound=reason)


def _weak_judge(quality: reward_model.Quality, config: TrainerConfig) -> GateCheck:
    reason = (
        f"the reward model foretells unseen votes with AUROC {quality.auroc:.2f} (95 % {quality.low:.2f} to "
        f"{quality.high:.2f}, n = {quality.n}); {config.reward_bar:.2f} is needed before a policy may follow it"
    )
    return GateCheck(
        name="reward_auroc",
        passed=False,
        value=quality.auroc,
        low=quality.low,
        high=quality.high,
        n=quality.n,
        bound=reason,
    )


def _finish(
    job: Job,
    backbone: Backbone,
    *,
    metrics: dict[str, float],
    verdict: Verdict,
    reason: str | None,
    report: GateReport,
) -> Outcome:
    """Write what the workspace still lacks, and answer. A run that learnt nothing leaves its report only."""
    rank = next(iter(backbone.adapter(POLICY).values())).shape[0]
    lora = LoraShape(rank=rank, alpha=rank, target_modules=[])
    if verdict != "insufficient":
        adapters.round_to_stored(backbone, POLICY)
        lora = adapters.save(backbone, POLICY, job.workspace / "adapter", job.base.name)
        if not (job.workspace / "probe.json").exists():
            (job.workspace / "probe.json").write_text('{"format": 1, "sequences": []}', encoding="utf-8")
    metrics = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    words = {"verdict": verdict, "reason": reason, "gate": report.model_dump(mode="json"), "metrics": metrics}
    (job.workspace / "report.json").write_text(json.dumps(words, indent=2) + "\n", encoding="utf-8")
    return Outcome(verdict, reason, report, metrics, lora)
