"""The trainer's endpoints: leases, runs, rollouts, scores.

A batch is leased, trained on, and either consumed by a registered version or given back. A record is consumed once.
"""

from typing import Annotated, Literal

from pydantic import Field

from plaudit.wire.base import JsonObject, Label, Moment, RequestModel, ResponseModel, Text, VersionName
from plaudit.wire.chat import SamplingParams
from plaudit.wire.feedback import Source, Tie

BatchState = Literal[
    "leased",  # a worker holds it until lease_expires_at
    "insufficient_data",  # nothing was leased: the reason says what is missing
    "consumed",  # its records were trained on by a registered version, for ever
    "released",  # given back: its records wait for a later batch
    "expired",  # the worker went away: as released
    "discarded",  # failed in a way that trying again would repeat: its records are set aside
]
RunState = Literal["running", "published", "rejected", "failed"]


class RecordVote(ResponseModel):
    """One live vote on a record's answer, or a correction of it (then `value` may be None: no vote was given)."""

    feedback_id: str
    key: str
    value: float | None
    end_user: str | None
    rater_since: Moment | None = Field(default=None, description="when this rater was first seen; null: unknown")
    source: Source
    occurred_at: Moment
    tags: list[str] = Field(default_factory=list)
    correction: str | None = None


class TrainingRecord(ResponseModel):
    """One answer with everything learnt about it.

    `prompt_ids`, `response_ids` and `logprobs` are exactly what the engine used and drew; they are None together
    where redaction changed the text, and such a record must never enter a PPO ratio.
    """

    response_id: str
    version: VersionName
    created_at: Moment
    prompt_key: str = Field(description="keyed hash of the prompt: equal for equal prompts")
    messages: list[JsonObject]
    content: str
    prompt_ids: list[int] | None
    response_ids: list[int] | None
    logprobs: list[float] | None
    finish_reason: str | None
    sampling: SamplingParams
    end_user: str | None
    redacted: bool
    votes: list[RecordVote]


class TrainingComparison(ResponseModel):
    """A comparison between two answers; a side is a record's id or a written text.

    `regeneration`: nobody said so, but a user had an answer made again and kept the new one.
    """

    id: str
    source: Literal["comparison", "regeneration"] = "comparison"
    messages: list[JsonObject]
    chosen_id: str | None
    rejected_id: str | None
    chosen_text: str
    rejected_text: str
    tie: Tie | None
    end_user: str | None
    rater_since: Moment | None = Field(default=None, description="when this rater was first seen; null: unknown")


class LeaseRequest(RequestModel):
    """Ask for feedback to learn from. A worker that still holds a live lease gets that one again."""

    worker: Label
    max_records: Annotated[int, Field(ge=1, le=100_000)] = 1024
    min_records: Annotated[int, Field(ge=1, le=100_000)] = 32
    lease_seconds: Annotated[float, Field(gt=0, le=86_400)] = 300
    max_prompts: Annotated[int, Field(ge=0, le=4096)] = Field(
        default=0, description="prompts of the log to give along, to draw answers to"
    )


class Batch(ResponseModel):
    """A leased batch, or the reason why there is none."""

    object: Literal["batch"] = "batch"
    id: str | None
    state: BatchState
    reason: str | None = None
    resumed: bool = False
    available: int = Field(description="records that could be leased now, this batch's included")
    needed: int
    lease_expires_at: Moment | None = None
    leased_at: Moment | None = Field(default=None, description="by the server's clock; what a rater's age is held to")
    records: list[TrainingRecord] = Field(default_factory=list)
    comparisons: list[TrainingComparison] = Field(default_factory=list)
    prompts: list[list[JsonObject]] = Field(
        default_factory=list, description="messages of the newest other prompts with consent, each prompt once"
    )
    dropped: dict[str, int] = Field(default_factory=dict, description="records passed over, by reason")


class HeartbeatRequest(RequestModel):
    """Keep a lease alive."""

    worker: Label
    lease_seconds: Annotated[float, Field(gt=0, le=86_400)] = 300


class AckRequest(RequestModel):
    """Consume a batch without a version (registering a version acknowledges its batches by itself)."""

    worker: Label
    reason: Text | None = None


class FailRequest(RequestModel):
    """Give a batch back (`release`), or set its records aside."""

    worker: Label
    reason: Text
    release: bool = True


class LeaseState(ResponseModel):
    """Where a batch stands."""

    object: Literal["batch.state"] = "batch.state"
    id: str
    state: BatchState
    reason: str | None = None
    lease_expires_at: Moment | None = None
    version: VersionName | None = None
    worker: str | None = None
    created_at: Moment | None = None
    records: int = 0
    up: int = Field(default=0, description="votes of the records; with `down` and `comparisons`: once it is consumed")
    down: int = 0
    comparisons: int = 0
    dropped: dict[str, int] = Field(
        default_factory=dict, description="records passed over when it was leased, by reason"
    )


class RunCreate(RequestModel):
    """Begin a run on a leased batch. The same batch always answers with the same run and version name.

    Without a batch: a run that learns from no feedback, such as instruction tuning. The server makes an empty batch
    for it, leased to this worker for `lease_seconds`; registering the run's version consumes it as any other.
    """

    batch_id: str | None = None
    worker: Label
    parent: VersionName | None = Field(
        default=None, description="only without a batch: the version it starts from; null: the stable one"
    )
    lease_seconds: Annotated[float, Field(gt=0, le=86_400, description="only without a batch")] = 900
    config: JsonObject = Field(default_factory=dict)


class Run(ResponseModel):
    """One training run. `version` is the name reserved for what it will publish."""

    object: Literal["run"] = "run"
    id: str
    batch_id: str
    version: VersionName
    parent: VersionName = Field(description="the version to start from: the stable one when the run began")
    parent_location: str | None = Field(default=None, description="folder of the parent; None for base")
    warm_start_location: str | None = Field(
        default=None, description="folder of the newest registered version, whose reward model and critic go on"
    )
    state: RunState
    stage: str | None = None
    progress: float | None = None
    reason: str | None = None
    created_at: Moment
    updated_at: Moment
    metrics: dict[str, float] = Field(default_factory=dict, description="the newest value of each metric")


class RunUpdate(RequestModel):
    """Progress of a run: the stage it is in, a step's metrics, or its end."""

    stage: Label | None = None
    step: Annotated[int, Field(ge=0)] | None = None
    progress: Annotated[float, Field(ge=0, le=1)] | None = None
    metrics: dict[str, float] = Field(default_factory=dict, max_length=200)
    state: Literal["failed"] | None = None
    reason: Text | None = None


class RunMetricPoint(ResponseModel):
    """The metrics of one step."""

    stage: str | None
    step: int | None
    at: Moment
    metrics: dict[str, float]


class GeneratePrompt(RequestModel):
    """A prompt, as messages (the engine applies the chat template) or as token ids."""

    messages: list[JsonObject] | None = None
    prompt_ids: list[int] | None = None


class GenerateRequest(RequestModel):
    """Draw answers for the trainer: low priority, never logged as users' traffic."""

    version: VersionName
    prompts: list[GeneratePrompt] = Field(min_length=1, max_length=4096)
    n: Annotated[int, Field(ge=1, le=64)] = 1
    sampling: SamplingParams = Field(default_factory=SamplingParams)


class GeneratedAnswer(ResponseModel):
    """One drawn answer with the ids and sampling-time log-probabilities the engine reported."""

    prompt_index: int
    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: str | None


class GenerateResponse(ResponseModel):
    """Answers in the order of the prompts; a prompt the engine refused is missing and counted."""

    version: VersionName
    answers: list[GeneratedAnswer]
    failed: int = 0


class TokenSequence(RequestModel):
    """Token ids of a prompt and of an answer to it."""

    prompt_ids: list[int] = Field(min_length=1)
    response_ids: list[int] = Field(min_length=1)


class ScoreRequest(RequestModel):
    """Ask for the log-probability of each response token under a version."""

    version: VersionName
    sequences: list[TokenSequence] = Field(min_length=1, max_length=4096)


class ScoreResponse(ResponseModel):
    """Log-probabilities (nats) of the response tokens, one list a sequence."""

    version: VersionName
    logprobs: list[list[float]]
