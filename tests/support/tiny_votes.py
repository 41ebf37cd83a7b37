"""Simulated users with a tiny model behind them: answers, votes on them, and the run that a server would open."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import Batch, GeneratedAnswer, GeneratePrompt, RecordVote, Run, TrainingRecord
from plaudit_trainer.batches import Trajectory
from plaudit_trainer.models import POLICY, Backbone
from plaudit_trainer.rollouts import generate_unpublished
from tests.support.tiny_models import END, tiny_backbone

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIKED = frozenset(range(3, 30))


class TinyEngine:
    """Answers with a tiny model under its base weights; log-probabilities are its own."""

    def __init__(self) -> None:
        self.backbone: Backbone = tiny_backbone()
        self.calls: list[tuple[str, int]] = []

    def generate(
        self, prompts: Sequence[GeneratePrompt], *, version: str, n: int, sampling: SamplingParams
    ) -> list[GeneratedAnswer]:
        self.calls.append((version, len(prompts)))
        ids = [self.ids(str((p.messages or [{}])[0].get("content"))) for p in prompts for _ in range(n)]
        exchanges = generate_unpublished(
            self.backbone, ids, max_new_tokens=sampling.max_tokens or 12, temperature=1.0, seed=len(self.calls)
        )
        with self.backbone.using(POLICY):
            logprobs = self.backbone.all_logprobs(self.backbone.encode(exchanges), [1.0] * len(exchanges))
        return [
            GeneratedAnswer(
                prompt_index=i // n,
                prompt_ids=list(e.prompt_ids),
                response_ids=list(e.response_ids),
                logprobs=logp.tolist(),
                text=" ".join(map(str, e.response_ids)),
                finish_reason="stop" if e.response_ids[-1] == END else "length",
            )
            for i, (e, logp) in enumerate(zip(exchanges, logprobs, strict=True))
        ]

    @staticmethod
    def ids(text: str) -> tuple[int, ...]:
        return tuple(3 + ord(c) % 60 for c in text)


class Quiet:
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps: list[dict[str, float]] = []

    def stage(self, name: str, total: int | None = None) -> None:
        self.stages.append(name)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        self.steps.append(metrics)


def share_liked(ids: Sequence[int]) -> float:
    return sum(i in LIKED for i in ids) / len(ids)


def votes_on(engine: TinyEngine, count: int = 48, *, value: float | None = None) -> Batch:
    """Users like answers made mostly of low tokens; `value` overrides every vote."""
    questions = [f"q{i % 24} what{'?' * (i % 3)}" for i in range(count)]
    prompts = [GeneratePrompt(messages=[{"role": "user", "content": q}]) for q in questions]
    answers = engine.generate(prompts, version="base", n=1, sampling=SamplingParams(max_tokens=12))
    median = sorted(share_liked(a.response_ids) for a in answers)[count // 2]
    records = []
    for i, (a, q) in enumerate(zip(answers, questions, strict=True)):
        up = share_liked(a.response_ids) >= median
        vote = RecordVote(
            feedback_id=f"f{i}",
            key="thumb",
            value=value if value is not None else (1.0 if up else -1.0),
            end_user=f"u{i % 24}",
            source="user",
            occurred_at=NOW + timedelta(seconds=i),
        )
        records.append(
            TrainingRecord(
                response_id=f"r{i}",
                version="base",
                created_at=NOW,
                prompt_key=q,
                messages=[{"role": "user", "content": q}],
                content=a.text,
                prompt_ids=a.prompt_ids,
                response_ids=a.response_ids,
                logprobs=a.logprobs,
                finish_reason=a.finish_reason,
                sampling=SamplingParams(max_tokens=12),
                end_user=vote.end_user,
                redacted=False,
                votes=[vote],
            )
        )
    return Batch(id="b", state="leased", available=count, needed=1, records=records)


def run(parent_location: Path | None = None, warm_start: Path | None = None) -> Run:
    return Run(
        id="r",
        batch_id="b",
        version="v2" if parent_location else "v1",
        parent="v1" if parent_location else "base",
        parent_location=str(parent_location) if parent_location else None,
        warm_start_location=str(warm_start) if warm_start else None,
        state="running",
        created_at=NOW,
        updated_at=NOW,
    )


def trajectory(**changes: Any) -> Trajectory:
    """A short finished answer of the base model that nobody voted on."""
    start = Trajectory(((5, 6), (7, 8, END)), (-1.0, -1.0, -1.0), 1.0, "stop", False, "base", None, "c")
    return replace(start, **changes)
