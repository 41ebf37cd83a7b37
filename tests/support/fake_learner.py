"""A FAKE learner and a base model of three bytes, for tests of the trainer's loop. Nothing is learnt here."""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from plaudit.wire.versions import GateReport, LoraShape
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Job, Outcome, Reporter, Sampler, Verdict

IS_FAKE = True


class SilentClock:
    """Time that passes at once, and chance that always draws the middle. `during` happens in each sleep."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.during: Callable[[], None] = lambda: None

    def now(self) -> float:
        return sum(self.slept)

    def draw(self) -> float:
        return 0.5

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.during()

    async def asleep(self, seconds: float) -> None:
        raise NotImplementedError("the trainer is synchronous")


def write_safetensors(path: Path, tensors: dict[str, Sequence[float]]) -> None:
    """A file in the safetensors format with one-dimensional float32 tensors."""
    header, data = {}, b""
    for name, values in tensors.items():
        raw = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


def fill_workspace(folder: Path, value: float = 1.0) -> None:
    """What a learner leaves behind."""
    write_safetensors(folder / "adapter" / "adapter_model.safetensors", {"a.lora_A": [value, 2.0], "a.lora_B": [0.0]})
    (folder / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    (folder / "probe.json").write_text('{"format": 1, "sequences": []}', encoding="utf-8")
    write_safetensors(folder / "reward" / "head.safetensors", {"head": [value]})


def fake_base(folder: Path) -> Path:
    """Enough of a model folder to have a fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "fake"}', encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"abc")
    return folder


def outcome(verdict: Verdict = "candidate", reason: str | None = None) -> Outcome:
    """An outcome with that verdict."""
    return Outcome(
        verdict=verdict,
        reason=reason,
        gate=GateReport(passed=verdict == "candidate", checks=[]),
        metrics={"loss": 0.5},
        lora=LoraShape(rank=1, alpha=2.0, target_modules=["a"]),
    )


class FakeLearner:
    """Fills the workspace and returns what it was told to, or raises it. Remembers its jobs.

    Args:
        results: verdicts or errors, one a run; then candidates for ever.
        during: called in the middle of the work.
    """

    def __init__(
        self, *results: Outcome | BaseException, during: Callable[[Job, Sampler, Reporter], None] | None = None
    ) -> None:
        self._results = list(results)
        self._during = during
        self.jobs: list[Job] = []

    def __call__(self, job: Job, sampler: Sampler, reporter: Reporter, config: TrainerConfig) -> Outcome:
        self.jobs.append(job)
        reporter.stage("faking", 2)
        fill_workspace(job.workspace, float(len(self.jobs)))
        reporter.step(1, {"loss": 1.0})
        if self._during is not None:
            self._during(job, sampler, reporter)
        reporter.step(2, {"loss": 0.5})
        result = self._results.pop(0) if self._results else outcome()
        if isinstance(result, BaseException):
            raise result
        return result
