"""Each check of the gate: a pure function from figures to a verdict with value, 95 % interval, n and bound.

`PromptFigures` are paired by prompt: prompts are the independent units, so `n` answers to few prompts have wide
intervals. The interval is the percentile bootstrap over prompts; with few of them (under about thirty) it is too
narrow, and for means it is replaced by Student's t where that is wider.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from plaudit.wire.versions import GateCheck
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.quality import Quality

if TYPE_CHECKING:
    from plaudit_trainer.rewarding import Independent

_RESAMPLES = 2000
_POWER_Z = 0.84
"""Of the standard normal distribution: 80 % lie below."""

T = TypeVar("T")

PromptFigures = tuple[list[float], list[float]]
"""(parent's figures, candidate's figures) of one prompt's answers."""


def reward_check(quality: Quality, config: TrainerConfig) -> GateCheck:
    """The reward model must foretell unseen votes."""
    return GateCheck(
        name="reward_auroc",
        passed=quality.auroc.value >= config.reward_bar,
        value=quality.auroc.value,
        low=quality.auroc.low,
        high=quality.auroc.high,
        n=quality.n,
        bound=f"AUROC on unseen votes ≥ {config.reward_bar:.2f} before a policy may follow the reward model",
        detail=None if quality.unseen_raters else "too few raters: the prompts are unseen, the raters are not",
    )


def alarm_check(alarms: Sequence[str]) -> GateCheck:
    """Training must have been sound."""
    return GateCheck(
        name="alarms", passed=not alarms, value=float(len(alarms)), bound="no alarm", detail="; ".join(alarms) or None
    )


def win_check(name: str, liked: dict[str, PromptFigures], config: TrainerConfig) -> GateCheck:
    """How often the candidate's answer wins where a user rates it and the parent's on the same prompt; ties count half.

    It wins where it alone gets a 👍. By a judge's chances of one that is ½ + (p_candidate − p_parent) / 2: nothing
    can be won where both are liked anyway, as it can be by who has the higher score.

    Args:
        liked: chance that a user likes each answer.
    """
    value, low, high = mean_interval([0.5 + (_mean(after) - _mean(before)) / 2 for before, after in liked.values()])
    low, high = max(0.0, low), min(1.0, high)  # Student's t knows no bounds, a rate has them
    return GateCheck(
        name=name,
        passed=low >= config.gate_win_rate,
        value=value,
        low=low,
        high=high,
        n=_answers(liked),
        bound=f"lower end of the 95 % interval ≥ {config.gate_win_rate:.2f}",
        detail=f"{len(liked)} held-out prompts; {_power(value - low, config.gate_win_rate)}",
    )


def _power(half_width: float, bound: float) -> str:
    """The smallest true win rate that four of five such gates would let pass."""
    least = bound + half_width * (1 + _POWER_Z / 1.96)
    if least > 1:
        return "too few to let even a candidate that always wins pass four times in five"
    return f"a true win rate of {least:.2f} would pass four times in five"


def independent_check(
    independent: "Independent | None", liked: dict[str, PromptFigures], config: TrainerConfig
) -> GateCheck:
    """The same by a reward model that has seen none of the votes that the policy learnt from; where there is one."""
    name = "independent_win_rate"
    if independent is not None and independent.counts(config):
        check = win_check(name, liked, config)
        judge = f"judge: {independent.model.votes:g} votes, {independent.quality.words()}"
        return check.model_copy(update={"detail": f"{check.detail}; {judge}"})
    why = f"batches are below {config.judge_batch} examples" if config.judge_batch else "PLAUDIT_TRAINER_JUDGE_BATCH=0"
    if independent is not None:
        why = f"it has seen {independent.model.votes:g} votes and foretells others with {independent.quality.words()}"
    return GateCheck(
        name=name, passed=True, value=None, bound="where there is an independent judge", detail=f"there is none: {why}"
    )


def kl_check(kls: dict[str, PromptFigures], config: TrainerConfig) -> GateCheck:
    """How far the candidate stands from its anchor: the KL of each of its own answers (`Backbone.answer_kls`)."""
    value, low, high = mean_interval([_mean(after) for _, after in kls.values()])
    return GateCheck(
        name="kl",
        passed=value <= config.kl_ceiling,
        value=value,
        low=low,
        high=high,
        n=_answers(kls),
        bound=f"nats an answer ≤ {config.kl_ceiling:g}",
    )


def length_check(lengths: dict[str, PromptFigures], config: TrainerConfig) -> GateCheck:
    """Answers may not grow: much of what passes for reward is length."""
    value, low, high = interval(list(lengths.values()), _growth)
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
    value, low, high = mean_interval([_mean(after) - _mean(before) for before, after in finished.values()])
    return GateCheck(
        name="end_of_text_change",
        passed=value >= -config.gate_end_of_text_drop,
        value=value,
        low=low,
        high=high,
        n=_answers(finished),
        bound=f"share of finished answers falls by ≤ {config.gate_end_of_text_drop:.0%}",
    )


def refusal_check(refusing: dict[str, PromptFigures], config: TrainerConfig) -> GateCheck:
    """The candidate may not have learnt to refuse."""
    value, low, high = mean_interval([_mean(after) - _mean(before) for before, after in refusing.values()])
    return GateCheck(
        name="refusal_change",
        passed=value <= config.gate_refusal_growth,
        value=value,
        low=low,
        high=high,
        n=_answers(refusing),
        bound=f"share of answers that refuse grows by ≤ {config.gate_refusal_growth:.0%}",
    )


def entropy_check(
    surprise: dict[str, PromptFigures], lengths: dict[str, PromptFigures], config: TrainerConfig
) -> GateCheck:
    """Neither collapse to one answer nor noise. −log π of a policy's own samples is its entropy, without bias.

    Args:
        surprise: −log π (nats) of each answer under the policy that gave it.
        lengths: their tokens.
    """
    units = [(surprise[prompt], lengths[prompt]) for prompt in surprise]

    def change(drawn: Sequence[tuple[PromptFigures, PromptFigures]]) -> float:
        before, after = (
            sum(sum(s[side]) for s, _ in drawn) / max(1.0, sum(sum(n[side]) for _, n in drawn)) for side in (0, 1)
        )
        return after / max(before, 1e-9) - 1

    value, low, high = interval(units, change)
    return GateCheck(
        name="entropy_change",
        passed=abs(value) <= config.gate_entropy_change,
        value=value,
        low=low,
        high=high,
        n=_answers(surprise),
        bound=f"entropy a token changes by ≤ {config.gate_entropy_change:.0%} either way",
    )


def disagreement_check(doubt: dict[str, PromptFigures], config: TrainerConfig) -> GateCheck:
    """The candidate may not have moved to where the reward heads contradict each other: there the reward is hacked."""
    value, low, high = interval(list(doubt.values()), _growth)
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


def _answers(figures: dict[str, PromptFigures]) -> int:
    return sum(len(after) for _, after in figures.values())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _growth(prompts: Sequence[PromptFigures]) -> float:
    before, after = (_mean([x for figures in prompts for x in figures[side]]) for side in (0, 1))
    return after / max(before, 1e-9) - 1


def mean_interval(units: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of one or more units: the bootstrap's interval, or Student's t where that is wider.

    One unit alone has no spread to tell from: its interval is one to either side.
    """
    if len(units) < 2:
        return units[0], units[0] - 1.0, units[0] + 1.0
    value = _mean(units)
    drawn_RU = torch.randint(len(units), (_RESAMPLES, len(units)), generator=torch.Generator().manual_seed(0))
    means_R = torch.tensor(units, dtype=torch.float64)[drawn_RU].mean(1)
    low, high = means_R.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    spread = math.sqrt(sum((x - value) ** 2 for x in units) / (len(units) - 1))
    half = _student_t(len(units) - 1) * spread / math.sqrt(len(units))
    return value, min(low, value - half), max(high, value + half)


def _student_t(degrees: int) -> float:
    """Its 97.5 % quantile, to 1 % (Cornish–Fisher expansion; for one or two degrees from the table)."""
    if degrees <= 2:
        return {1: 12.706, 2: 4.303}[degrees]
    z = 1.959964
    terms = [(z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384]
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def interval(units: Sequence[T], figure: Callable[[Sequence[T]], float]) -> tuple[float, float, float]:
    """(value, low, high): a figure of independent units with its 95 % percentile bootstrap interval."""
    draw = random.Random(0)  # noqa: S311 (resampling is no secret)
    draws = sorted(figure(draw.choices(units, k=len(units))) for _ in range(_RESAMPLES))
    return figure(units), draws[int(0.025 * _RESAMPLES)], draws[int(0.975 * _RESAMPLES) - 1]
