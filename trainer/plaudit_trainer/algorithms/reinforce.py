"""Policy gradients without a critic: vote-only REINFORCE, the honest baseline, and REINFORCE++.

Shapes: B answers, N response tokens of all answers laid end to end.
"""

import math

import torch
from torch import Tensor

from plaudit_trainer import losses
from plaudit_trainer.algorithms.base import Lesson, NothingToLearn, Trained
from plaudit_trainer.algorithms.passes import Advantages, Opening, clipped_passes
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Reporter
from plaudit_trainer.trajectories import PolicyData

SILENT = "advantages do not vary: the gradient would be noise"


class Reinforce:
    """REINFORCE (Williams 1992) on logged answers: the reward is the users' own vote, the baseline the batch's mean.

    The loss is −1/n Σ_t w_t · π/π_prox · A + β · KL, whose gradient is the score function's times A: an answer's vote
    less the mean vote, scaled to variance 1. Nothing is clipped. The weights w_t and π/π_prox let several passes be
    made over answers that older versions gave.
    """

    uses_trajectories = True
    uses_rollouts = False

    def train(self, lesson: Lesson, reporter: Reporter, config: TrainerConfig) -> Trained:
        """Move POLICY.

        Raises:
            NothingToLearn: fewer than two answers have votes, or all votes are the same.
        """
        voted, advantage_B = vote_advantages(lesson.data)
        tokens = spread_over_tokens(advantage_B, lesson.data)
        return clipped_passes(
            "reinforce",
            lambda _: Advantages(tokens),
            voted,
            lesson=lesson,
            reporter=reporter,
            config=config.model_copy(update={"clip": math.inf}),
            kl_in_loss=True,
        )


def vote_advantages(data: PolicyData) -> tuple[list[int], Tensor]:
    """Rows with a vote, and (B,) their votes less the mean vote over the standard deviation; 0 for the others.

    Raises:
        NothingToLearn: there is no difference to learn from.
    """
    voted = [row for row, t in enumerate(data.trajectories) if t.vote is not None]
    vote_B = torch.tensor([data.trajectories[row].vote or 0.0 for row in voted])
    if len(voted) < 2 or vote_B.std(correction=0) <= losses.STD_GUARD:
        raise NothingToLearn(
            "reinforce learns from the difference between up- and down-voted answers with usable log-probabilities "
            f"and found none among {len(voted)}; wait for more votes, or choose ppo, which needs no votes on them"
        )
    advantage_B = torch.zeros(len(data.trajectories))
    advantage_B[voted] = losses.whiten(vote_B)
    return voted, advantage_B


class ReinforcePlusPlus:
    """REINFORCE++ (Hu et al. 2025, arXiv 2501.03262): PPO's clip and a KL in the reward, no critic.

    It needs neither groups nor a critic's warm-up, and so is the critic-free learner that live traffic, where each
    prompt is answered once, can feed.
    """

    uses_trajectories = True
    uses_rollouts = True

    def train(self, lesson: Lesson, reporter: Reporter, config: TrainerConfig) -> Trained:
        """Move POLICY."""
        data = lesson.data
        score_B = losses.whiten(data.score_B.cpu(), shift_mean=False)
        return clipped_passes(
            "reinforce++",
            lambda opening: returns_to_go(score_B, data, opening, config),
            range(len(data.lengths)),
            lesson=lesson,
            reporter=reporter,
            config=config,
            kl_in_loss=False,
        )


def returns_to_go(score_B: Tensor, data: PolicyData, opening: Opening, config: TrainerConfig) -> Advantages:
    """A_t = score − β Σ_{i ≥ t} (log π − log π_ref)_i, brought to mean 0 and variance 1 over all tokens of the batch.

    That is the paper's advantage with its batch normalisation, at γ = 1; `gamma` discounts it.
    """
    present_N, anchor_N = torch.cat(opening.proximal).cpu(), torch.cat(data.anchored).cpu()
    rewards_N = losses.token_rewards(score_B, present_N, anchor_N, data.lengths, opening.beta)
    nothing_N = torch.zeros_like(rewards_N)
    raw_N, _ = losses.advantages_and_returns(rewards_N, nothing_N, data.lengths, config.gamma, lam=1.0)
    spread = raw_N.std(correction=0).item()
    tokens = losses.whiten(raw_N).to(data.score_B.device).split(data.lengths)
    return Advantages(tokens, {"advantage_std": spread}, [SILENT] if spread <= losses.STD_GUARD else [])


def spread_over_tokens(advantage_B: Tensor, data: PolicyData) -> list[Tensor]:
    """Each answer's advantage at every one of its tokens."""
    return [torch.full_like(b, a) for b, a in zip(data.behaviour, advantage_B.tolist(), strict=True)]
