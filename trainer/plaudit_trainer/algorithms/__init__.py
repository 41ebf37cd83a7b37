"""Ways to train a policy, by the name that `algorithm` in the trainer's settings gives them."""

from plaudit_trainer.algorithms.base import Algorithm
from plaudit_trainer.config import TrainerConfig


def chosen(config: TrainerConfig) -> Algorithm:  # noqa: PLR0911 (one return a name)
    """The configured algorithm; only its own module is imported."""
    match config.algorithm:
        case "ppo":
            from plaudit_trainer.algorithms.ppo import PPO

            return PPO()
        case "kto":
            from plaudit_trainer.algorithms.preference import KTO

            return KTO()
        case "dpo":
            from plaudit_trainer.algorithms.preference import DPO

            return DPO()
        case "grpo":
            from plaudit_trainer.algorithms.grouped import GRPO

            return GRPO()
        case "reinforce++":
            from plaudit_trainer.algorithms.reinforce import ReinforcePlusPlus

            return ReinforcePlusPlus()
        case "reinforce":
            from plaudit_trainer.algorithms.reinforce import Reinforce

            return Reinforce()
        case "sac":
            from plaudit_trainer.algorithms.sac import SAC

            return SAC()
