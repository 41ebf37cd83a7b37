"""Which of a run's figures an operator watches, under names that do not depend on the learner."""

from collections.abc import Mapping
from typing import Final

STAGES: Final = ("load", "reward", "rollouts", "policy", "gate", "probe")
"""Stages that a trainer reports, in order; any other is shown as `other`, so that their number stays bounded."""

_NAMES: Final = {
    "reward/heldout_auroc": "reward_auroc",
    "reward/heldout_accuracy": "reward_accuracy",
    "gate/win_rate": "win_rate",
    "gate/independent_win_rate": "independent_win_rate",
    "gate/kl": "gate_kl",
}
_OF_ANY_LEARNER: Final = ("kl", "kl_parent", "kl_behaviour", "entropy", "clipped_share", "loss", "reward", "length")
_NOT_LEARNERS: Final = ("reward", "gate", "rollouts", "data", "probe")

FIGURES: Final = (*_NAMES.values(), *_OF_ANY_LEARNER)


def watched(metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures of a run that are shown, by their common names: `ppo/kl` and `grpo/kl` are both `kl`.

    Args:
        metrics: the newest value of each metric, as the trainer named it.
    """
    found = {_NAMES[name]: value for name, value in metrics.items() if name in _NAMES}
    for name, value in metrics.items():
        learner, _, figure = name.partition("/")
        if learner not in _NOT_LEARNERS and figure in _OF_ANY_LEARNER:
            found[figure] = value
    return found


def known_stage(stage: str | None) -> str:
    """The stage as a label: one of `STAGES`, or `other`."""
    return stage if stage in STAGES else "other"
