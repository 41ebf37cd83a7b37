"""The gate: what a candidate must show before it may be served. Every check keeps its figure, interval and bound.

Candidate and parent answer the same held-out prompts. Everything is paired by prompt, and the intervals are bootstraps
over prompts, since answers to one prompt resemble each other. The checks themselves are in `gate_checks`.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

from torch import Tensor

from plaudit.wire.refusals import refuses
from plaudit.wire.versions import GateCheck, GateReport
from plaudit_trainer import gate_checks as checks
from plaudit_trainer.batches import Trajectory
from plaudit_trainer.ceiling import anchor_of
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.gate_checks import PromptFigures
from plaudit_trainer.models import POLICY, Backbone, Encoded, Exchange
from plaudit_trainer.rewarding import Rewards
from plaudit_trainer.rollouts import Drawn, end_tokens


def check(
    backbone: Backbone,
    rewards: Rewards,
    parents: Sequence[Trajectory],
    candidates: Sequence[Drawn],
    *,
    decode: Callable[[Sequence[int]], str],
    alarms: Sequence[str],
    config: TrainerConfig,
) -> GateReport:
    """Hold the trained POLICY against its parent.

    Args:
        rewards: what the policy followed, and the judge that it never saw.
        parents: the parent's answers to held-out prompts, drawn at temperature 1.
        candidates: the candidate's answers, one for each of `parents`, to the same prompts, drawn likewise.
        decode: the text of response ids.
        alarms: what training itself reported; any one fails the gate.

    Returns:
        The report; it passes where every check does.
    """
    first = [checks.reward_check(rewards.quality, config), checks.alarm_check(alarms)]
    if not parents:
        missing = "answers to held-out prompts from parent and candidate"
        return _report([*first, GateCheck(name="win_rate", passed=False, value=None, bound=missing)])
    old, new = backbone.encode([Exchange(*t.tokens) for t in parents]), backbone.encode([a for a, _ in candidates])

    def paired(before: Sequence[float], after: Sequence[float]) -> dict[str, PromptFigures]:
        return by_prompt([t.cluster for t in parents], before, after)

    def each(figure: Callable[[Encoded], float]) -> dict[str, PromptFigures]:
        return paired([figure(e) for e in old], [figure(e) for e in new])

    def scored(score: Callable[[Tensor], Tensor]) -> dict[str, PromptFigures]:
        return paired(score(rewards.judge.features(old)).tolist(), score(rewards.judge.features(new)).tolist())

    ends, independent = end_tokens(backbone.model), rewards.independent
    kls = paired([0.0] * len(old), backbone.answer_kls(new, POLICY, anchor_of(config)).tolist())
    surprise = paired([-sum(t.logprobs) for t in parents], [-sum(logprobs) for _, logprobs in candidates])
    lengths = each(lambda e: len(e.exchange.response_ids))
    return _report(
        [
            *first,
            checks.win_check("win_rate", scored(rewards.judge.liked), config),
            checks.independent_check(independent, scored(independent.model.liked) if independent else {}, config),
            checks.kl_check(kls, config),
            checks.length_check(lengths, config),
            checks.end_check(each(lambda e: float(e.exchange.response_ids[-1] in ends)), config),
            checks.refusal_check(each(lambda e: float(refuses(decode(e.exchange.response_ids)))), config),
            checks.entropy_check(surprise, lengths, config),
            checks.disagreement_check(scored(rewards.judge.disagreement), config),
        ]
    )


def _report(made: list[GateCheck]) -> GateReport:
    return GateReport(passed=all(c.passed for c in made), checks=made)


def by_prompt(clusters: Sequence[str], before: Sequence[float], after: Sequence[float]) -> dict[str, PromptFigures]:
    """The figures of each prompt's answers: (parent's, candidate's)."""
    figures: dict[str, PromptFigures] = defaultdict(lambda: ([], []))
    for cluster, old, new in zip(clusters, before, after, strict=True):
        figures[cluster][0].append(old)
        figures[cluster][1].append(new)
    return dict(figures)
