"""One run, readable from top to bottom: users' votes → reward model → rollouts → policy → gate → adapter and probe.

What trains the policy is an `Algorithm`; everything before and after it is the same for all of them.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plaudit.wire.base import JsonObject
from plaudit.wire.chat import SamplingParams
from plaudit.wire.prompts import prompt_text
from plaudit.wire.versions import GateCheck, GateReport, LoraShape
from plaudit_trainer import adapters, algorithms, batches, ceiling, distributed, gate, gate_checks, rewarding, seq2seq
from plaudit_trainer.algorithms.base import Lesson, NothingToLearn, Trained
from plaudit_trainer.architecture import load_base, lowest_layer
from plaudit_trainer.batches import PhraseHistory, PreferenceBatch, Trajectory
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Job, Outcome, Reporter, Sampler, Verdict
from plaudit_trainer.models import POLICY, REFERENCE, Backbone, EncodedOnce, Exchange
from plaudit_trainer.readers import reader_for
from plaudit_trainer.rollouts import draw, draw_unpublished, end_tokens
from plaudit_trainer.staleness import without_stale
from plaudit_trainer.trajectories import PolicyData, prepare

_ANSWERS_A_PROMPT = 8
"""More answers to one prompt tell the gate next to nothing: prompts are its units."""


class _Refused(Exception):
    """The run ends here; `check` is the gate's check that says so."""

    def __init__(self, verdict: Verdict, check: GateCheck) -> None:
        super().__init__(check.bound)
        self.verdict, self.check = verdict, check


@dataclass(frozen=True, slots=True)
class _Desk:
    """What every stage of a run works with. `metrics` is added to as it goes on."""

    job: Job
    backbone: Backbone
    tokenizer: Any
    sampler: Sampler
    reporter: Reporter
    config: TrainerConfig
    metrics: dict[str, float]


def learn_from_votes(job: Job, sampler: Sampler, reporter: Reporter, config: TrainerConfig) -> Outcome:
    """One run of the configured algorithm. Fills the workspace as `learner.learn` promises."""
    torch.set_num_threads(config.threads)
    reporter.stage("load")
    desk = _Desk(job, *load_policy(job, config), sampler, reporter, config, {})
    try:
        report = _learn(desk)
        verdict: Verdict = "candidate" if report.passed else "rejected"
        reason = "; ".join(report.refusals) or None
    except _Refused as refusal:
        report = GateReport(passed=False, checks=[refusal.check])
        verdict = refusal.verdict
        reason = "; ".join(report.refusals) if refusal.check.value is not None else str(refusal)
    return _finish(job, desk.backbone, metrics=desk.metrics, verdict=verdict, reason=reason, report=report)


def _learn(desk: _Desk) -> GateReport:
    """Train POLICY and judge it, stage by stage."""
    batch = _preference_batch(desk)
    encode = EncodedOnce(desk.backbone)
    rewards = _reward_model(desk, batch, encode)
    data, parents = _trajectories(desk, batch, rewards, encode)
    del encode  # what the policy does not need is not kept through its training
    trained = _policy(desk, batch, rewards, data)
    answers, report = _gate(desk, rewards, parents, trained)
    _probe(desk, data, trained, answers)
    return report


# The stages


def _preference_batch(desk: _Desk) -> PreferenceBatch:
    """The leased votes as pairs, singles and trajectories."""
    model = desk.backbone.model
    tokens_of = text_encoder(desk.tokenizer, end_tokens(model)[0], has_encoder=model.config.is_encoder_decoder)
    batch = batches.build(desk.job.batch, tokens_of, desk.config, _history(desk.job))
    batch = without_stale(batch, desk.job.run, desk.config)
    desk.metrics.update(batch.counts())
    if batch.reason is not None:
        raise _Refused("insufficient", _failed("data", batch.reason))
    return batch


def _history(job: Job) -> PhraseHistory:
    warm = job.run.warm_start_location
    return PhraseHistory.load(Path(warm) / "reward" if warm else None)


def _reward_model(desk: _Desk, batch: PreferenceBatch, encode: EncodedOnce) -> rewarding.Rewards:
    """Fitted, judged on votes it has not seen, and written down; refused where it foretells them too badly."""
    desk.reporter.stage("reward")
    folder = desk.job.workspace / "reward"
    reader = reader_for(desk.backbone, desk.tokenizer, desk.config)
    rewards = rewarding.fit(desk.job, batch, encode, reader=reader, metrics=desk.metrics, config=desk.config)
    rewards.save(folder)
    batches.remember(desk.job.batch, desk.config, _history(desk.job)).save(folder)
    desk.reporter.step(0, desk.metrics)
    if not (weak := gate_checks.reward_check(rewards.quality, desk.config)).passed:
        raise _Refused("rejected", weak)
    return rewards


def _trajectories(
    desk: _Desk, batch: PreferenceBatch, rewards: rewarding.Rewards, encode: EncodedOnce
) -> tuple[PolicyData, list[Trajectory]]:
    """What the policy learns from, scored; and the parent's answers for the gate."""
    desk.reporter.stage("rollouts")
    algorithm = algorithms.chosen(desk.config)
    logged, fresh, parents = collect(
        desk.job,
        batch,
        desk.sampler,
        desk.config,
        to_train=algorithm.uses_trajectories,
        to_answer=algorithm.uses_rollouts,
    )
    counts = {"rollouts/logged": len(logged), "rollouts/fresh": len(fresh), "rollouts/gate": len(parents)}
    desk.reporter.step(0, {name: float(count) for name, count in counts.items()})
    data = prepare(logged + fresh, desk.backbone, rewards.judge, desk.config, encode)
    if algorithm.uses_trajectories and not data.trajectories:
        reason = "no answer of this batch has usable token ids and log-probabilities, and none could be drawn afresh"
        raise _Refused("rejected", _failed("trajectories", reason))
    return data, parents


def _policy(desk: _Desk, batch: PreferenceBatch, rewards: rewarding.Rewards, data: PolicyData) -> Trained:
    """POLICY, trained and within the KL ceiling, as it will be stored."""
    lesson = Lesson(desk.job, batch, desk.backbone, rewards.judge, data)
    try:
        trained = algorithms.chosen(desk.config).train(lesson, desk.reporter, desk.config)
    except NothingToLearn as reason:
        raise _Refused("rejected", _failed("lesson", str(reason))) from reason
    held = batches.heldout_clusters(list(batch.messages | batch.log), desk.config.heldout_share, desk.config.seed)
    learnt = [t.tokens[0] for t in batch.trajectories if t.cluster not in held]
    distance = ceiling.keep_within(desk.backbone, learnt[: desk.config.kl_answers], desk.config)
    adapters.round_to_stored(desk.backbone, POLICY)
    desk.metrics.update(trained.metrics | distance.metrics())
    return trained


def _gate(
    desk: _Desk, rewards: rewarding.Rewards, parents: list[Trajectory], trained: Trained
) -> tuple[list[Exchange], GateReport]:
    """The candidate's answers to held-out prompts, and what they say of it."""
    desk.reporter.stage("gate")
    drawn = draw_unpublished(
        desk.backbone,
        [t.tokens[0] for t in parents],
        max_new_tokens=desk.config.max_new_tokens,
        temperature=1.0,
        seed=desk.config.seed,
    )
    report = gate.check(
        desk.backbone,
        rewards,
        parents,
        drawn,
        decode=lambda ids: desk.tokenizer.decode(ids, skip_special_tokens=True),
        alarms=trained.alarms,
        config=desk.config,
    )
    desk.metrics.update({f"gate/{c.name}": c.value for c in report.checks if c.value is not None})
    desk.reporter.step(0, {})
    return [answer for answer, _ in drawn], report


def _probe(desk: _Desk, data: PolicyData, trained: Trained, answers: Sequence[Exchange]) -> None:
    """What the server will hold the engine against."""
    desk.reporter.stage("probe")
    probe, figures = adapters.make_probe(desk.backbone, _most_changed(data, trained, answers), desk.config)
    (desk.job.workspace / "probe.json").write_text(probe.model_dump_json(), encoding="utf-8")
    desk.metrics.update(figures)


# Set-up


def load_policy(job: Job, config: TrainerConfig) -> tuple[Backbone, Any]:
    """The base model with the parent's adapter as POLICY (to train) and REFERENCE (as it was); and the tokenizer."""
    from transformers import AutoTokenizer

    model = load_base(job.base, config)
    has_encoder = model.config.is_encoder_decoder
    depth = seq2seq.stack_depth(model) if has_encoder else model.config.num_hidden_layers
    cut, rank, weights = lowest_layer(depth, config.lora_layers), config.lora_rank, {}
    if job.run.parent_location is not None:
        folder = Path(job.run.parent_location) / "adapter"
        weights, rank = adapters.read_weights(folder), adapters.read_shape(folder).rank
        lowest = seq2seq.lowest_adapted_layer(model, weights) if has_encoder else adapters.lowest_adapted_layer(weights)
        cut = min(cut, lowest)
    backbone = (seq2seq.Seq2SeqBackbone if has_encoder else Backbone)(
        model, cut, config.token_budget, distributed.join()
    )
    for name in (POLICY, REFERENCE):
        backbone.add_adapter(name, rank, seed=config.seed)
        adapters.write_into(backbone, name, weights)
    if config.gradient_checkpointing:
        backbone.checkpoint_layers()
    distributed.shard(backbone)
    return backbone, AutoTokenizer.from_pretrained(job.base)


def text_encoder(tokenizer: Any, end: int, *, has_encoder: bool = False) -> batches.Encoder:
    """Tokens of texts that no engine drew: corrections, written comparisons, redacted answers."""

    def encode(messages: Sequence[JsonObject], answer: str) -> tuple[list[int], list[int]]:
        prompt, adds_special = prompt_text(messages, tokenizer, has_encoder=has_encoder)
        prompt_ids = tokenizer(prompt, add_special_tokens=adds_special)["input_ids"]
        return prompt_ids, [*tokenizer(answer, add_special_tokens=False)["input_ids"], end]

    return encode


# 1. Rollouts


def collect(
    job: Job,
    batch: PreferenceBatch,
    sampler: Sampler,
    config: TrainerConfig,
    *,
    to_train: bool,
    to_answer: bool = True,
) -> tuple[list[Trajectory], list[Trajectory], list[Trajectory]]:
    """Logged answers to train on, fresh ones to train on, and the parent's answers to held-out prompts for the gate.

    The first two are empty unless `to_train`, and the second unless the algorithm wants prompts answered afresh.

    No held-out prompt is trained on by the policy: neither its logged answers nor fresh ones.
    """
    known = batch.messages | batch.log
    heldout = batches.heldout_clusters(list(known), config.heldout_share, config.seed)
    logged = [t for t in batch.trajectories if to_train and t.cluster not in heldout]
    # All said outright: what is left out falls to the engine's defaults, which for some models cut the distribution.
    sampling = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, max_tokens=config.max_new_tokens)
    shuffled = sorted(batch.messages)
    random.Random(f"{config.seed} {job.run.version}").shuffle(shuffled)  # noqa: S311 (no secret)
    # Of the log first: a rater who could also choose what is practised would have two hands on the policy.
    pool = sorted(batch.log.keys() - batch.messages.keys())
    random.Random(f"{config.seed} {job.run.version} pool").shuffle(pool)  # noqa: S311 (no secret)
    train = {c: known[c] for c in (*pool, *shuffled) if c not in heldout}
    train = dict(list(train.items())[: config.rollout_prompts * (to_train and to_answer)])
    # The batch's own held-out prompts are few; those of the log, each one more independent unit, give the gate power.
    asked = [c for c in (*shuffled, *sorted(batch.log)) if c in heldout][: config.gate_answers]
    unseen = {c: known[c] for c in asked}
    fresh = draw(sampler, train, version=job.run.parent, n=config.rollouts_per_prompt, sampling=sampling)
    n = min(math.ceil(config.gate_answers / max(len(unseen), 1)), _ANSWERS_A_PROMPT)
    return logged, fresh, draw(sampler, unseen, version=job.run.parent, n=n, sampling=sampling)


# The end


def _most_changed(data: PolicyData, trained: Trained, answers: Sequence[Exchange]) -> list[Exchange]:
    order = trained.change_B.argsort(descending=True).tolist()
    return [data.encoded[row].exchange for row in order] + list(answers)


def _failed(name: str, reason: str) -> GateCheck:
    return GateCheck(name=name, passed=False, value=None, bound=reason)


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
