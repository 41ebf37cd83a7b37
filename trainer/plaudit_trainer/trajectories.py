"""Answers that a policy is trained on, ready for use: encoded once, scored, with reference log-probabilities.

B answers. The numbers in brackets in this package are those of docs/explanation/learning.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plaudit_trainer.batches import Trajectory
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.models import REFERENCE, Backbone, Encoded, Exchange
from plaudit_trainer.reward_model import RewardModel
from plaudit_trainer.rollouts import end_tokens


@dataclass(frozen=True, slots=True)
class PolicyData:
    """Trajectories ready for PPO: encoded, scored, with behaviour and reference log-probabilities (one tensor each).

    Args:
        reference: under the parent, where training starts.
        parts: what `score_B` is the sum of, for reports: each (B,).
        anchor: under what the policy may not drift far from, the base model; empty where that is the parent.
    """

    trajectories: list[Trajectory]
    encoded: list[Encoded]
    score_B: Tensor
    behaviour: list[Tensor]
    reference: list[Tensor]
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    anchor: list[Tensor] = field(default_factory=list)

    @property
    def anchored(self) -> list[Tensor]:
        """What the KL is measured from."""
        return self.anchor or self.reference

    @property
    def lengths(self) -> list[int]:
        """Response tokens of each."""
        return [len(t.logprobs) for t in self.trajectories]

    @property
    def temperatures(self) -> list[float]:
        """At which each was drawn; applied in every pass over it."""
        return [t.temperature for t in self.trajectories]


def prepare(
    trajectories: Sequence[Trajectory],
    backbone: Backbone,
    judge: RewardModel,
    config: TrainerConfig,
    encode: Callable[[Sequence[Exchange]], list[Encoded]] | None = None,
) -> PolicyData:
    """Encode and score trajectories, and recompute their log-probabilities under the reference and the anchor.

    Args:
        encode: knows some of the answers already; unset: the backbone's own.
    """
    encoded = (encode or backbone.encode)([Exchange(*t.tokens) for t in trajectories])
    temperatures = [t.temperature for t in trajectories]
    with backbone.using(REFERENCE):
        reference = backbone.all_logprobs(encoded, temperatures)
    anchor: list[Tensor] = []
    if config.kl_anchor == "base" and changes_anything(backbone, REFERENCE):
        with backbone.using(None):
            anchor = backbone.all_logprobs(encoded, temperatures)
    parts = score_parts(trajectories, encoded, judge, end_tokens(backbone.model), config)
    score_B = sum(parts.values(), torch.zeros(len(encoded))).to(backbone.device)
    behaviour = [torch.tensor(t.logprobs, device=backbone.device) for t in trajectories]
    return PolicyData(list(trajectories), encoded, score_B, behaviour, reference, parts, anchor)


def changes_anything(backbone: Backbone, name: str) -> bool:
    """Whether an adapter differs from the bare base model: some B is not zero."""
    return any(bool(weight.any()) for path, weight in backbone.adapter(name).items() if "lora_B" in path)


def answer_scores(
    trajectories: Sequence[Trajectory],
    encoded: Sequence[Encoded],
    judge: RewardModel,
    ends: Sequence[int],
    config: TrainerConfig,
) -> Tensor:
    """(B,): w_v · own vote + (1 − w_v) · reward model where there is a vote, else the reward model; less penalties."""
    return sum(score_parts(trajectories, encoded, judge, ends, config).values(), torch.zeros(len(encoded)))


def score_parts(
    trajectories: Sequence[Trajectory],
    encoded: Sequence[Encoded],
    judge: RewardModel,
    ends: Sequence[int],
    config: TrainerConfig,
) -> dict[str, Tensor]:
    """What each answer's score is made of, (B,) each: the vote's part, the reward model's, and the penalties'."""
    if not encoded:
        return {}
    share_B = torch.tensor([0.0 if t.vote is None else config.vote_share for t in trajectories])
    vote_B = torch.tensor([0.0 if t.vote is None else t.vote for t in trajectories])
    lacking_B = torch.tensor([float(lacks_end(t, ends)) for t in trajectories])
    return {
        "vote": share_B * vote_B,
        "model": (1 - share_B) * judge.scores(judge.features(encoded)),
        "missing_end": -config.missing_end_penalty * lacking_B,
    }


def lacks_end(trajectory: Trajectory, ends: Sequence[int]) -> bool:
    """It stopped, but not by an end-of-text token. Cut at a token limit or at the caller's stop string is not bad."""
    if trajectory.finish_reason == "length" or (trajectory.finish_reason == "stop" and trajectory.has_stops):
        return False
    return trajectory.tokens[1][-1] not in ends
