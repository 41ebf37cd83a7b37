"""Several passes over a batch of answers, as all learners with sampled log-probabilities make them.

What a pass does is the learner's; its steps are PPO's wherever an advantage a token is all that differs.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from plaudit_trainer import losses
from plaudit_trainer.algorithms import ppo
from plaudit_trainer.algorithms.base import Lesson, NothingToLearn, Trained
from plaudit_trainer.algorithms.ppo import PolicyUpdate, answer_kl
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Reporter
from plaudit_trainer.models import POLICY

_UPDATE = "ppo/"
"""What the shared update calls its figures."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What is known as a pass begins.

    Args:
        update: the policy's optimiser.
        order: rows of the data, in the order in which minibatches take them.
        proximal: log-probabilities of all answers under POLICY as it is now.
        beta: the weight of the KL to the reference now.
        reporter: names figures after the learner.
    """

    update: PolicyUpdate
    order: list[int]
    proximal: list[Tensor]
    beta: float
    reporter: Reporter


@dataclass(frozen=True, slots=True)
class Advantages:
    """Of each token, one tensor an answer of the data; what to report; and what is wrong with them."""

    tokens: Sequence[Tensor]
    figures: dict[str, float] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)


def make_passes(
    name: str,
    one_pass: Callable[[Opening], list[str]],
    rows: Sequence[int],
    *,
    lesson: Lesson,
    reporter: Reporter,
    config: TrainerConfig,
) -> Trained:
    """`ppo_epochs` passes over these rows of the data; `one_pass` answers with alarms.

    Before each but the first the proximal policy is renewed and β adapted to the KL target. POLICY ends as the last
    adapter within `ppo.kl_bound`.
    """
    backbone, data, named = lesson.backbone, lesson.data, _Named(reporter, name)
    named.stage("policy", total=config.ppo_epochs * math.ceil(len(rows) / config.minibatch))
    update = PolicyUpdate(list(backbone.adapter(POLICY).values()), config)
    shuffle = random.Random(config.seed)  # noqa: S311 (an order of examples is no secret)
    order, present = list(rows), data.reference  # POLICY starts as REFERENCE
    beta = ppo.first_coefficient(data, config)
    alarms: list[str] = []
    for epoch in range(config.ppo_epochs):
        if epoch > 0:
            with backbone.using(POLICY):
                present = backbone.all_logprobs(data.encoded, data.temperatures)
            used = answer_kl(present, data.anchored, data.behaviour, config)
            beta = losses.adapted_coefficient(beta, used, config.kl_target)
        shuffle.shuffle(order)
        found = one_pass(Opening(update, order, present, beta, named))
        alarms += [alarm for alarm in found if alarm not in alarms]
        if update.stopped:
            break
    trained = ppo.finished(backbone, data, update, alarms, config)
    return replace(trained, metrics=_named(trained.metrics, name))


def clipped_passes(
    name: str,
    advantages_of: Callable[[Opening], Advantages],
    rows: Sequence[int],
    *,
    lesson: Lesson,
    reporter: Reporter,
    config: TrainerConfig,
    kl_in_loss: bool,
) -> Trained:
    """Passes of PPO's clipped update with advantages of one's own.

    Args:
        kl_in_loss: the KL to the reference is a term of the loss, because it is no part of the advantages.
    """

    def one_pass(opening: Opening) -> list[str]:
        advantages = advantages_of(opening)
        ppo.improve(
            opening.update,
            lesson.backbone,
            lesson.data,
            opening.order,
            proximal=opening.proximal,
            advantages=advantages.tokens,
            figures={"beta": opening.beta} | advantages.figures,
            reporter=opening.reporter,
            config=config,
            kl_weight=opening.beta * kl_in_loss,
        )
        return advantages.alarms

    return make_passes(name, one_pass, rows, lesson=lesson, reporter=reporter, config=config)


def require_one_process(name: str, lesson: Lesson) -> None:
    """Some learners do not share their passes over processes.

    Raises:
        NothingToLearn: this trainer has several.
    """
    if lesson.backbone.crew.size > 1:
        raise NothingToLearn(
            f"{name} trains in one process and there are {lesson.backbone.crew.size}: start the trainer without "
            "`accelerate launch`, or choose ppo, grpo, reinforce++ or reinforce"
        )


class _Named:
    """A reporter that calls the shared update's figures by the learner's name."""

    def __init__(self, reporter: Reporter, name: str) -> None:
        self.reporter, self.name = reporter, name

    def stage(self, name: str, total: int | None = None) -> None:
        """See `Reporter`."""
        self.reporter.stage(name, total)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """See `Reporter`."""
        self.reporter.step(step, _named(metrics, self.name))


def _named(metrics: dict[str, float], name: str) -> dict[str, float]:
    return {
        f"{name}/{key.removeprefix(_UPDATE)}" if key.startswith(_UPDATE) else key: value
        for key, value in metrics.items()
    }
