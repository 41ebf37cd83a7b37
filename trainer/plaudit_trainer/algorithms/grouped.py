"""GRPO: answers to the same prompt are each other's baseline.

Live traffic answers each prompt once, so it has no groups: they come from fresh rollouts (`rollouts_per_prompt` ≥ 2),
which a logged answer to the very same prompt joins. Shape: B answers.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from plaudit_trainer import losses
from plaudit_trainer.algorithms.base import Lesson, NothingToLearn, Trained
from plaudit_trainer.algorithms.passes import Advantages, clipped_passes
from plaudit_trainer.algorithms.reinforce import spread_over_tokens
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Reporter
from plaudit_trainer.trajectories import PolicyData


class GRPO:
    """Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300, equation 3).

    PPO's clipped loss with one advantage an answer, plus β times the KL to the reference. The mean is over the tokens
    of a minibatch, not over answers of means over tokens: dividing by an answer's length would favour long bad answers
    over short bad ones (Liu et al. 2025, "Dr. GRPO", arXiv 2503.20783).
    """

    uses_trajectories = True
    uses_rollouts = True

    def train(self, lesson: Lesson, reporter: Reporter, config: TrainerConfig) -> Trained:
        """Move POLICY.

        Raises:
            NothingToLearn: no prompt has two answers with different scores.
        """
        data = lesson.data
        groups = groups_of(data)
        advantage_B = group_advantages(data.score_B.cpu(), groups, config.group_scale)
        if not advantage_B.any():
            raise NothingToLearn(
                f"grpo compares answers to the same prompt, and none of {len(groups)} prompts answered more than once "
                "has answers of different score; raise rollouts_per_prompt and rollout_prompts, or choose reinforce++"
            )
        rows = [row for group in groups for row in group]
        figures = {
            "advantage_std": advantage_B[rows].std(correction=0).item(),
            "groups": float(len(groups)),
            "groups_of_equal_score": float(sum(not advantage_B[group].any() for group in groups)),
            "answers_alone": float(len(data.lengths) - len(rows)),
        }
        tokens = spread_over_tokens(advantage_B, data)
        return clipped_passes(
            "grpo",
            lambda _: Advantages(tokens, figures),
            rows,
            lesson=lesson,
            reporter=reporter,
            config=config,
            kl_in_loss=True,
        )


def groups_of(data: PolicyData) -> list[list[int]]:
    """Rows that answer the very same prompt, by its token ids; answers that stand alone are left out."""
    by_prompt: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, trajectory in enumerate(data.trajectories):
        by_prompt[trajectory.tokens[0]].append(row)
    return [rows for rows in by_prompt.values() if len(rows) > 1]


def group_advantages(score_B: Tensor, groups: Sequence[Sequence[int]], scale: Literal["group", "batch"]) -> Tensor:
    """(B,): each score less its group's mean, over a standard deviation; 0 for rows in no group.

    Args:
        scale: "group", the paper's: each group's own standard deviation. It weighs a prompt whose answers hardly
            differ as much as one where they differ widely (Liu et al. 2025), and in groups of two makes every
            difference ±1. "batch": that of all centred scores, which keeps proportions.
    """
    advantage_B = torch.zeros_like(score_B)
    for group in groups:
        rows = list(group)
        centred = score_B[rows] - score_B[rows].mean()
        advantage_B[rows] = losses.whiten(score_B[rows]) if scale == "group" else centred
    if scale == "batch":
        rows = [row for group in groups for row in group]
        spread = advantage_B[rows].std(correction=0)
        return advantage_B / spread if spread > losses.STD_GUARD else torch.zeros_like(advantage_B)
    return advantage_B
