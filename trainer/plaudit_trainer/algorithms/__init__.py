"""Ways to train a policy, by the name that `algorithm` in the trainer's settings gives them."""

from plaudit_trainer.algorithms.base import Algorithm
from plaudit_trainer.config import TrainerConfig


def chosen(config: TrainerConfig) -> Algorithm:
    """The configured algorithm; only its own module is imported."""
    match config.algorithm:
        case "ppo":
            from plaudit_trainer.algorithms.ppo import PPO

            return PPO()
