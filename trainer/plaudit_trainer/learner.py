"""What the loop asks for: turn one leased batch of feedback into a candidate version, or say why there is none.

This module is light (no torch), so that the loop and its tests import in milliseconds; the work is imported when
`learn` is called.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import Batch, GeneratedAnswer, GeneratePrompt, Run
from plaudit.wire.versions import GateReport, LoraShape
from plaudit_trainer.config import TrainerConfig

Verdict = Literal[
    "candidate",  # the gate passed: register it, let the server prove it
    "rejected",  # trained (at least the reward model), but not fit to serve: register it as rejected, with the reason
    "insufficient",  # nothing could be learnt from these votes: acknowledge the batch with the reason
]


@dataclass(frozen=True, slots=True)
class Job:
    """One run's work.

    Args:
        run: the run as the server opened it: parent, its folder, the folder to warm-start from.
        batch: the leased records and comparisons.
        base: Hugging Face folder of the base model.
        workspace: an empty folder to fill with `adapter/` (PEFT LoRA), `probe.json`, `reward/`, `critic/` and
            `report.json`. The caller makes a version of it, or throws it away.
    """

    run: Run
    batch: Batch
    base: Path
    workspace: Path


class Reporter(Protocol):
    """Where progress goes. Either call raises where the lease was lost: the batch is no longer ours."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage begins; `total` is its number of steps where that is known."""
        ...

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """One step of the present stage is done."""
        ...


class Sampler(Protocol):
    """Draws answers from published versions, through the server."""

    def generate(
        self, prompts: Sequence[GeneratePrompt], *, version: str, n: int, sampling: SamplingParams
    ) -> list[GeneratedAnswer]:
        """`n` answers a prompt; answers to prompts the engine refused are missing."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job. `reason` is in words, None for a candidate; metrics are finite numbers."""

    verdict: Verdict
    reason: str | None
    gate: GateReport
    metrics: dict[str, float]
    lora: LoraShape


def learn(job: Job, sampler: Sampler, reporter: Reporter, config: TrainerConfig) -> Outcome:
    """Learn from one batch with the configured algorithm, filling `job.workspace`.

    For the verdicts `candidate` and `rejected` the workspace holds a complete version: where the policy was not
    trained (the reward model is below its bar) `adapter/` is the parent's policy unchanged. For `insufficient` it
    holds `report.json` only.
    """
    from plaudit_trainer.run import learn_from_votes

    return learn_from_votes(job, sampler, reporter, config)
