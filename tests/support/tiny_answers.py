"""Answers of a tiny model with rewards on them, ready for PPO, and PPO on them."""

from collections.abc import Sequence
from typing import Any

import torch

from plaudit_trainer.algorithms.base import Trained
from plaudit_trainer.algorithms.critic import Critic
from plaudit_trainer.algorithms.ppo import train
from plaudit_trainer.models import REFERENCE, Backbone
from plaudit_trainer.reward_model import RewardModel, answer_features
from plaudit_trainer.rollouts import generate_unpublished
from plaudit_trainer.trajectories import PolicyData
from tests.support.tiny_models import tiny_config
from tests.support.tiny_votes import Quiet, trajectory

LIKED = frozenset(range(3, 30))
SETTINGS: dict[str, Any] = {"lr": 3e-3, "ppo_epochs": 4, "kl_ceiling": 1e6, "kl_target": 1e6}


def liked(ids: Sequence[int]) -> float:
    """The share of liked tokens."""
    return sum(i in LIKED for i in ids) / len(ids)


def sampled(backbone: Backbone, count: int = 192, seed: int = 0) -> PolicyData:
    """Answers of the base model, scored by the share of liked tokens."""
    prompts = [(5 + i % 50, 6 + i // 50, 7) for i in range(count)]
    answers = generate_unpublished(backbone, prompts, max_new_tokens=12, temperature=1.0, seed=seed)
    encoded = backbone.encode(answers)
    with backbone.using(REFERENCE):
        reference = backbone.all_logprobs(encoded, [1.0] * count)
    trajectories = [
        trajectory(tokens=(a.prompt_ids, a.response_ids), logprobs=tuple(logp.tolist()))
        for a, logp in zip(answers, reference, strict=True)
    ]
    score_B = torch.tensor([liked(a.response_ids) for a in answers])
    return PolicyData(trajectories, encoded, (score_B - score_B.mean()) / score_B.std(), reference, reference)


def trained(backbone: Backbone, data: PolicyData, **changes: Any) -> tuple[Trained, Quiet]:
    """PPO on them; what it did, and the log of its steps."""
    config, log = tiny_config(**(SETTINGS | changes)), Quiet()
    judge = RewardModel.fresh(answer_features(data.encoded), config)
    critic = Critic(judge, torch.stack([e.context_D for e in data.encoded]))
    return train(backbone, critic, data, log, config), log
