"""What an algorithm is given, what it does, and what it answers."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from plaudit_trainer.batches import PreferenceBatch
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Job, Reporter
from plaudit_trainer.models import Backbone
from plaudit_trainer.reward_model import RewardModel
from plaudit_trainer.trajectories import PolicyData


class NothingToLearn(Exception):
    """The votes hold nothing that this algorithm can use; the message says what is missing and names the mend."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """All that one run has to teach a policy.

    Args:
        job: parent, workspace, base model.
        batch: what the users said: singles and pairs, with their weights.
        backbone: the frozen model; POLICY and REFERENCE hold the parent's adapter.
        judge: the reward model fitted on the batch.
        data: answers with behaviour and reference log-probabilities and scores; none where the algorithm reads votes
            alone (`Algorithm.uses_trajectories`).
    """

    job: Job
    batch: PreferenceBatch
    backbone: Backbone
    judge: RewardModel
    data: PolicyData


@dataclass(frozen=True, slots=True)
class Trained:
    """What training did. `alarms` are conditions under which the run must not be believed."""

    metrics: dict[str, float]
    alarms: list[str]
    change_B: Tensor


class Algorithm(Protocol):
    """Moves POLICY by what a lesson says; leaves REFERENCE and the frozen weights as they are.

    Args:
        uses_trajectories: it learns from answers with their sampling-time log-probabilities, which `Lesson.data` holds.
        uses_rollouts: those may be fresh answers that nobody voted on, which cost the engine time.
    """

    uses_trajectories: bool
    uses_rollouts: bool

    def train(self, lesson: Lesson, reporter: Reporter, config: TrainerConfig) -> Trained:
        """Train POLICY; it ends as the last adapter known to be good.

        What the next run shall go on from (a critic) is written below `lesson.job.workspace`.

        Raises:
            NothingToLearn: before POLICY was touched.
        """
        ...
