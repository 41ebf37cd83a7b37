"""Answers that a policy is trained on, ready for use: encoded once, scored, with reference log-probabilities.

B answers. The numbers in brackets in this package are those of docs/explanation/learning.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit_trainer.batches import Trajectory
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.models import REFERENCE, Backbone, Encoded, Exchange
from plaudit_trainer.reward_model import RewardModel, answer_features
from plaudit_trainer.rollouts import end_tokens


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
