"""Invented records, comparisons and batches for tests of the trainer."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from plaudit.wire.base import JsonObject
from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import Batch, RecordVote, Run, TrainingComparison, TrainingRecord

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def encode(messages: Sequence[JsonObject], answer: str) -> tuple[list[int], list[int]]:
    """Tokens are characters."""
    return [ord(c) for c in str(messages[-1]["content"])], [*(ord(c) for c in answer), 2]


def record(
    i: int,
    *,
    value: float | None = 1.0,
    user: str | None = "",
    question: str = "",
    days: float | None = None,
    **changes: Any,
) -> TrainingRecord:
    """Answer i with one vote (none where `value` is None) of user i, who was first seen `days` ago."""
    question = question or f"question {i}"
    vote = RecordVote(
        feedback_id=f"f{i}",
        key="thumb",
        value=value,
        end_user=f"u{i}" if user == "" else user,
        rater_since=None if days is None else NOW - timedelta(days=days),
        source="user",
        occurred_at=NOW + timedelta(seconds=i),
    )
    fields: dict[str, Any] = {
        "response_id": f"r{i}",
        "version": "v1",
        "created_at": NOW,
        "prompt_key": question,
        "messages": [{"role": "user", "content": question}],
        "content": f"answer {i}",
        "prompt_ids": [ord(c) for c in question],
        "response_ids": [100 + i, 2],
        "logprobs": [-1.0, -2.0],
        "finish_reason": "stop",
        "sampling": SamplingParams(temperature=0.8),
        "end_user": "asker",
        "redacted": False,
        "votes": [vote] if value is not None else [],
    }
    return TrainingRecord(**(fields | changes))


def comparison(**changes: Any) -> TrainingComparison:
    """Answer 0 preferred to a written one."""
    fields: dict[str, Any] = {
        "id": "c1",
        "messages": [{"role": "user", "content": "question 0"}],
        "chosen_id": "r0",
        "rejected_id": None,
        "chosen_text": "answer 0",
        "rejected_text": "worse",
        "tie": None,
        "end_user": "judge",
    }
    return TrainingComparison(**(fields | changes))


def leased(records: list[TrainingRecord], comparisons: list[TrainingComparison] | None = None) -> Batch:
    """A batch leased NOW."""
    return Batch(
        id="b",
        state="leased",
        available=1,
        needed=1,
        leased_at=NOW,
        records=records,
        comparisons=comparisons or [],
    )


def run_on(warm_start: Path | None = None) -> Run:
    """A run from base that goes on from the reward model in `warm_start`."""
    return Run(
        id="r",
        batch_id="b",
        version="v1",
        parent="base",
        warm_start_location=str(warm_start) if warm_start else None,
        state="running",
        created_at=NOW,
        updated_at=NOW,
    )
