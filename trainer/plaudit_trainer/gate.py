"""The gate: what a candidate must show before it may be served. Every check keeps its figure, interval and bound.

Candidate and parent answer the same held-out prompts; the intervals are bootstraps over prompts, since answers to one
prompt resemble each other.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from plaudit.wire.versions import GateCheck, GateReport
from plaudit_trainer.batches import Trajectory
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.models import POLICY, REFERENCE, Backbone, Encoded, Exchange
from plaudit_trainer.reward_model import Quality, RewardModel, answer_features
from plaudit_trainer.rollouts import end_tokens

_RESAMPLES = 2000

T = TypeVar("T")

PromptFigures = tuple[list[float], list[float]]
"""(parent's figures, candidate's figures) of one prompt's answers."""


def check(
    backbone: Backbone,
    judge: RewardModel,
    parents: Sequence[Trajectory],
    answers: Sequence[Exchange],
    *,
    alarms: Sequence[str],
    quality: Quality,
    config: TrainerConfig,
) -> GateReport:
    """Hold the trained POLICY against its parent.

    Args:
        parents: the parent's answers to held-out prompts.
        answers: the candidate's answers, one for each of `parents`, to the same prompts.
        alarms: what training itself reported; any one fails the gate.

    Returns:
        The report; it passes where every check does.
    """
    old, new = backbone.encode([Exchange(*t.tokens) for t in parents]), backbone.encode(list(answers))
    checks = [reward_check(quality, config), alarm_check(alarms)]
    if not parents:
        missing = "answers to held-out prompts from parent and candidate"
        return _report([*checks, GateCheck(name="win_rate", passed=False, value=None, bound=missing)])
    clusters, ends = [t.cluster for t in parents], end_tokens(backbone.model)
    old_BF, new_BF = answer_features(old).cpu(), answer_features(new).cpu()

    def paired(before: Sequence[float], after: Sequence[float]) -> dict[str, PromptFigures]:
        return _by_prompt(clusters, before, after)

    scores = paired(judge.scores(old_BF).tolist(), judge.scores(new_BF).tolist())
    lengths = paired([len(e.exchange.response_ids) for e in old], [len(e.exchange.response_ids) for e in new])
    finished = paired(*[[float(e.exchange.response_ids[-1] in ends) for e in side] for side in (old, new)])
    doubt = paired(judge.disagreement(old_BF).tolist(), judge.disagreement(new_BF).tolist())
    checks += [
        win_check(scores, config),
        kl_check(answer_kls(backbone, new), config),
        length_check(lengths, config),
        end_check(finished, config),
        disagreement_check(doubt, config),
    ]
    return _report(checks)


def _report(checks: list[GateCheck]) -> GateReport:
    return GateReport(passed=all(c.passed for c in checks), checks=checks)


def answer_kls(backbone: Backbone, new: Sequence[Encoded]) -> list[float]:
    """log π − log π_ref of each of the candidate's own answers: its mean is the KL, without bias."""
    ones = [1.0] * len(new)
    with backbone.using(POLICY):
        after = backbone.all_logprobs(new, ones)
    with backbone.using(REFERENCE):
        before = backbone.all_logprobs(new, ones)
    return [(a - b).sum().item() for a, b in zip(after, before, strict=True)]


# The checks


def reward_check(quality: Quality, config: TrainerConfig) -> GateCheck:
    """The reward model must foretell unseen votes."""
    return GateCheck(
        name="reward_auroc",
        passed=quality.auroc >= config.reward_bar,
        value=quality.auroc,
        low=quality.low,
        high=quality.high,
        n=quality.n,
        bound=f"AUROC on unseen votes ≥ {config.reward_bar:.2f}",
    )


def alarm_check(alarms: Sequence[str]) -> GateCheck:
    """Training must have been sound."""
    return GateCheck(
        name="alarms", passed=not alarms, value=float(len(alarms)), bound="no alarm", detail="; ".join(alarms) or None
    )


def win_check(scores: dict[str, PromptFigures], config: TrainerConfig) -> GateCheck:
    """How often the reward model prefers the candidate's answer to the parent's on the same prompt; ties count half."""

    def wins(figures: PromptFigures) -> float:
        before, after = torch.tensor(figures[0]), torch.tensor(figures[1])
        return ((after[:, None] > before).float() + 0.5 * (after[:, None] == before).float()).mean().item()

    value, low, high = _interval([wins(f) for f in scores.values()], _mean)
    return GateCheck(
        name="win_rate",
        passed=low >= config.gate_win_rate,
        value=value,
        low=low,
        high=high,
        n=_answers(scores),
        bound=f"lower end of the 95 % interval ≥ {config.gate_win_rate:.2f}",
        detail=f"{len(scores)} held-out prompts",
    )


def kl_check(kls: Sequence[float], config: TrainerConfig) -> GateCheck:
    """How far the candidate moved from its parent."""
    value, low, high = _interval(list(kls), _mean)
    return GateCheck(
        name="kl",
        passed=value <= config.kl_ceiling,
        value=value,
        low=low,
        high=high,
        n=len(kls),
        bound=f"nats an answer ≤ {config.kl_ceiling:g}",
    )


def length_check(lengths: dict[str, PromptFigures], config: TrainerConfig) -> GateCheck:
    """Answers may not grow: much of what passes for reward is length."""
    value, low, high = _interval(list(lengths.values()), lambda f: _after(f) / max(_before(f), 1e-9) - 1)
    return GateCheck(
        name="length_growth",
        passed=value <= config.gate_length_growth,
        value=value,
        low=low,
        high=high,
        n=_answers(lengths),
        bound=f"mean length grows by ≤ {config.gate_length_growth:.0%}",
    )


def end_check(finished: dict[str, PromptFigures], config: TrainerConfig) -> GateCheck:
    """Answers must still come to an end."""
    value, low, high = _interval(list(finished.values()), lambda f: _after(f) - _before(f))
    return GateCheck(
        name="end_of_text_change",
        passed=value >= -config.gate_end_of_text_drop,
        value=value,
        low=low,
        high=high,
        n=_answers(finished),
        bound=f"share of finished answers falls by ≤ {config.gate_end_of_text_drop:.0%}",
    )


def disagreement_check(doubt: dict[str, PromptFigures], config: TrainerConfig) -> GateCheck:
    """The candidate may not have moved to where the reward heads contradict each other: there the reward is hacked."""
    value, low, high = _interval(list(doubt.values()), lambda f: _after(f) / max(_before(f), 1e-9) - 1)
    return GateCheck(
        name="disagreement_growth",
        passed=value <= config.gate_disagreement_growth,
        value=value,
        low=low,
        high=high,
        n=_answers(doubt),
        bound=f"disagreement of the reward heads grows by ≤ {config.gate_disagreement_growth:.0%}",
    )


# Intervals


def _by_prompt(clusters: Sequence[str], before: Sequence[float], after: Sequence[float]) -> dict[str, PromptFigures]:
    figures: dict[str, PromptFigures] = defaultdict(lambda: ([], []))
    for cluster, old, new in zip(clusters, before, after, strict=True):
        figures[cluster][0].append(old)
        figures[cluster][1].append(new)
    return dict(figures)


def _answers(figures: dict[str, PromptFigures]) -> int:
    return sum(len(after) for _, after in figures.values())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _before(prompts: Sequence[PromptFigures]) -> float:
    return _mean([x for before, _ in prompts for x in before])


def _after(prompts: Sequence[PromptFigures]) -> float:
    return _mean([x for _, after in prompts for x in after])


def _interval(units: Sequence[T], figure: Callable[[Sequence[T]], float]) -> tuple[float, float, float]:
    """(value, low, high): a figure of independent units with its 95 % percentile bootstrap interval."""
    draw = random.Random(0)  # noqa: S311 (resampling is no secret)
    draws = sorted(figure(draw.choices(units, k=len(units))) for _ in range(_RESAMPLES))
    return figure(units), draws[int(0.025 * _RESAMPLES)], draws[int(0.975 * _RESAMPLES) - 1]
