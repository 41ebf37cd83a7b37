"""The critic: what an answer will be worth, from what is there of it so far.

Shapes: N response tokens of all answers laid end to end, F features.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plaudit_trainer import losses
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Job
from plaudit_trainer.models import Encoded
from plaudit_trainer.reward_model import RewardModel
from plaudit_trainer.trajectories import PolicyData

_PRIOR_TOKENS = 8.0
"""How many average tokens an answer's first real ones are mixed with before the critic believes them."""


class Critic:
    """V of the state before each response token: a linear head on what the reward model reads, of the prefix so far.

    It starts as the reward model (the mean of its heads on the prefix, mixed with the average answer while the prefix
    is short) plus a part that reads the prompt, and is pulled back to that start as it learns.
    """

    def __init__(self, judge: RewardModel, context_BF: Tensor) -> None:
        self.judge = judge
        self.centre_D = context_BF.mean(0)
        self.scale_D = context_BF.std(0, correction=0).clamp(min=losses.STD_GUARD) * context_BF.shape[1] ** 0.5
        self.start_F = torch.cat([judge.weight_FK.mean(1) / judge.std, torch.zeros(context_BF.shape[1])])
        self.weight_F = nn.Parameter(self.start_F.clone())
        self.bias = nn.Parameter(-(judge.offset_K.mean() + judge.mean) / judge.std)

    @classmethod
    def load(cls, job: Job, data: PolicyData, judge: RewardModel, config: TrainerConfig) -> "Critic":
        """From this run's reward model; the part that reads the prompt goes on from the last run's, where it fits."""
        critic = cls(judge, torch.stack([e.context_D for e in data.encoded]).cpu())
        file = Path(job.run.warm_start_location or ".") / "critic" / "critic.safetensors"
        if job.run.warm_start_location and file.is_file():
            saved = load_file(file)
            if saved["weight"].shape == critic.weight_F.shape:
                critic.centre_D, critic.scale_D = saved["centre"], saved["scale"]
                width = len(critic.centre_D)
                critic.start_F[-width:] = saved["weight"][-width:]
                critic.weight_F.data.copy_(critic.start_F)
        return critic

    def save(self, folder: Path) -> None:
        """Write it as safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"weight": self.weight_F.detach(), "bias": self.bias.detach(), "centre": self.centre_D}
        save_file({**tensors, "scale": self.scale_D}, folder / "critic.safetensors")

    def features(self, encoded: Encoded) -> Tensor:
        """(R, F): of the state before each response token."""
        prefix_TF = self.judge.standardise(encoded.prefix_TF[:-1].cpu())
        count_T = torch.arange(1, len(prefix_TF) + 1)
        shrunk_TF = prefix_TF * (count_T / (count_T + _PRIOR_TOKENS))[:, None]
        so_far_TF = torch.cat([torch.zeros(1, prefix_TF.shape[1]), shrunk_TF])
        context_D = (encoded.context_D.cpu() - self.centre_D) / self.scale_D
        return torch.cat([so_far_TF, context_D.expand(len(so_far_TF), -1)], dim=1)

    def values(self, features_NF: Tensor) -> Tensor:
        """(N,)."""
        return features_NF @ self.weight_F + self.bias

    def fit(self, features_NF: Tensor, returns_N: Tensor, old_N: Tensor, clip: float, config: TrainerConfig) -> float:
        """Minimise the clipped value loss and the pull to the start; the explained variance of the returns after it."""
        optimiser = torch.optim.Adam([self.weight_F, self.bias], lr=config.critic_lr)
        for _ in range(config.critic_steps):
            optimiser.zero_grad()
            loss = losses.value_loss(self.values(features_NF), old_N, returns_N, clip)
            (loss + config.critic_prior * ((self.weight_F - self.start_F) ** 2).sum()).backward()
            optimiser.step()
        with torch.no_grad():
            unexplained = (returns_N - self.values(features_NF)).var()
            return (1 - unexplained / returns_N.var().clamp(min=losses.STD_GUARD)).item()
