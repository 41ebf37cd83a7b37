"""What the store keeps, as plain values: one frozen dataclass a kind of row.

Times are milliseconds since 1970 UTC. Texts are sealed (`domain.privacy`) before they get here.
"""

from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from plaudit.wire.base import JsonObject
from plaudit.wire.feedback import EventType, Source, Tie
from plaudit.wire.ops import Role
from plaudit.wire.rollouts import Guardrails, RolloutReport, RolloutState, RolloutStep
from plaudit.wire.training import BatchState, RunState
from plaudit.wire.versions import AliasName, GateReport, ProofReport, VersionKind, VersionState
from plaudit_server.domain.privacy import SealedContent, SealedExchange, SealedText, SealedTokens

T = TypeVar("T")

Arm = Literal["stable", "canary", "pinned"]
AnswerStatus = Literal["complete", "aborted", "failed"]
ReplicaState = Literal["active", "draining", "removed"]
ReplicaSource = Literal["settings", "operator"]
Fate = Literal["stored", "erased", "unstored", "unknown"]


@dataclass(frozen=True, slots=True)
class Rows(Generic[T]):
    """One page, newest first. The id of the last item is the next page's `after`."""

    items: list[T]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Interaction:
    """One answer to one prompt (a request with n > 1 has n of them).

    `segment` is the stretch of a rollout whose weight chose the arm; None outside of rollouts.
    """

    id: str
    request_id: str
    created_at_ms: int
    version: str
    arm: Arm
    model_requested: str
    end_user: str | None
    key_id: str | None
    prompt_key: str
    content: SealedContent
    prompt_ids: SealedTokens | None
    response_ids: SealedTokens | None
    logprobs: SealedTokens | None
    prompt_tokens: int
    completion_tokens: int
    sampling: JsonObject
    finish_reason: str | None
    status: AnswerStatus
    train_consent: bool
    redacted: bool
    metadata: dict[str, str] = field(default_factory=dict)
    ttft_ms: float | None = None
    duration_ms: float | None = None
    consumed_by: str | None = None
    segment: int | None = None
    refused: bool | None = None

    @property
    def sealed(self) -> SealedExchange:
        """The part that `domain.privacy.unseal` opens."""
        return SealedExchange(
            content=self.content,
            metadata=self.metadata,
            prompt_ids=self.prompt_ids,
            response_ids=self.response_ids,
            logprobs=self.logprobs,
            redacted=self.redacted,
        )


@dataclass(frozen=True, slots=True)
class NewFeedback:
    """One user's word on one answer, about to be stored.

    `value` None with `retracts` False means that nothing was said about the vote: an earlier one stands.
    """

    response_id: str
    key: str
    end_user: str | None
    value: float | None
    retracts: bool
    tags: list[str]
    comment: SealedText | None
    correction: SealedText | None
    source: Source
    occurred_at_ms: int
    received_at_ms: int
    max_age_ms: int


@dataclass(frozen=True, slots=True)
class StoredFeedback:
    """One live row: the newest word for (response, key, end user). `version` is None until its answer is written."""

    id: str
    response_id: str
    key: str
    end_user: str | None
    value: float | None
    tags: list[str]
    comment: SealedText | None
    correction: SealedText | None
    source: Source
    occurred_at_ms: int
    received_at_ms: int
    version: str | None
    revision: int
    retracted: bool
    trainable: bool


@dataclass(frozen=True, slots=True)
class StoredComparison:
    """One answer preferred to another. A side is a stored answer's id or a sealed text."""

    id: str
    chosen_id: str | None
    rejected_id: str | None
    chosen_text: SealedText | None
    rejected_text: SealedText | None
    chosen_version: str | None
    rejected_version: str | None
    tie: Tie | None
    end_user: str | None
    received_at_ms: int
    trainable: bool = True


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """Something a user did with an answer."""

    id: str
    response_id: str
    type: EventType
    new_response_id: str | None
    end_user: str | None
    occurred_at_ms: int
    received_at_ms: int


@dataclass(frozen=True, slots=True)
class LeasedRecord:
    """One answer of a batch with its live, trainable feedback."""

    interaction: Interaction
    feedback: list[StoredFeedback]


Preference = Literal["comparison", "regeneration"]


@dataclass(frozen=True, slots=True)
class LeasedComparison:
    """One comparison of a batch with its stored sides. `in_batch` has the ids of the sides that are records of it."""

    comparison: StoredComparison
    chosen: Interaction | None
    rejected: Interaction | None
    in_batch: frozenset[str]
    source: Preference = "comparison"


@dataclass(frozen=True, slots=True)
class BatchData:
    """A leased batch, or (`id` None) the reason why there is none.

    `first_seen_ms` has, for each rater of the batch, when anything of theirs first reached us.
    """

    id: str | None
    state: BatchState
    reason: str | None
    resumed: bool
    available: int
    needed: int
    lease_expires_at_ms: int | None
    records: list[LeasedRecord] = field(default_factory=list)
    comparisons: list[LeasedComparison] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    leased_at_ms: int | None = None
    prompts: list[Interaction] = field(default_factory=list)
    first_seen_ms: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchRow:
    """Where a batch stands. The counts are of what it consumed."""

    id: str
    worker: str
    state: BatchState
    reason: str | None
    created_at_ms: int
    lease_expires_at_ms: int
    version: str | None
    records: int
    up: int
    down: int
    comparisons: int
    dropped: dict[str, int]


@dataclass(frozen=True, slots=True)
class RunRow:
    """One training run."""

    id: str
    batch_id: str
    worker: str
    version: str
    parent: str
    parent_location: str | None
    warm_start_location: str | None
    state: RunState
    stage: str | None
    progress: float | None
    reason: str | None
    config: JsonObject
    created_at_ms: int
    updated_at_ms: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """The metrics of one step of a run."""

    stage: str | None
    step: int | None
    at_ms: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A policy version. `number` is 0 for base."""

    name: str
    number: int
    kind: VersionKind
    state: VersionState
    reason: str | None
    parent: str | None
    location: str | None
    manifest_sha256: str | None
    run_id: str | None
    batch_ids: list[str]
    records: int
    created_at_ms: int
    gate: GateReport | None
    proof: ProofReport | None
    metrics: dict[str, float]
    tainted: bool
    aliases: list[AliasName]


@dataclass(frozen=True, slots=True)
class LineageData:
    """Where a version comes from: ancestors nearest first, and the batches of the version and of all of them."""

    version: str
    parents: list[str]
    batches: list[BatchRow]
    erased_sources: int


@dataclass(frozen=True, slots=True)
class AliasRow:
    """A name that traffic follows. `etag` counts its moves."""

    name: AliasName
    version: str
    etag: str
    updated_at_ms: int
    actor: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """A rollout. `segment` is its present (or last) stretch of constant weight; `stable_etag` names who was stable.

    `paused_ms` was spent in pauses that are over. `revision` counts the changes of state and step: whoever acts on what
    they read compares it.
    """

    id: str
    candidate: str
    stable: str
    stable_etag: str
    state: RolloutState
    step: int
    steps: list[RolloutStep]
    min_raters: int
    max_duration_ms: int
    guardrails: Guardrails
    auto_promote: bool
    auto_rollback: bool
    created_at_ms: int
    updated_at_ms: int
    ended_at_ms: int | None
    paused_at_ms: int | None
    paused_ms: int
    actor: str
    reason: str | None
    report: RolloutReport | None
    revision: int
    segment: int
    segment_started_at_ms: int

    @property
    def weight(self) -> float:
        """The share of users that the candidate serves now."""
        return self.steps[self.step].weight if self.is_live else 0.0

    @property
    def is_live(self) -> bool:
        """Whether it still assigns users to arms."""
        return self.state in ("running", "paused")


@dataclass(frozen=True, slots=True)
class KeyRow:
    """An API key, without its secret."""

    id: str
    name: str
    roles: list[Role]
    hint: str
    created_at_ms: int
    revoked_at_ms: int | None


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """An engine replica that somebody else runs. `source`: who put it on the list."""

    name: str
    url: str
    state: ReplicaState
    source: ReplicaSource
    added_at_ms: int


@dataclass(frozen=True, slots=True)
class SavedAnswer:
    """What was answered the first time that an idempotency key was used. `body` is sealed by whoever saved it."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One thing that somebody with power did."""

    id: int
    at_ms: int
    actor: str
    action: str
    subject: str
    detail: JsonObject


@dataclass(frozen=True, slots=True)
class VoteCount:
    """Live votes of one version, key and sign."""

    version: str | None
    key: str
    sign: Literal["up", "down", "neutral"]
    count: int


@dataclass(frozen=True, slots=True)
class VoteBucket:
    """Votes for and against a version that came in one stretch of time."""

    version: str
    begins_ms: int
    up: int
    down: int


@dataclass(frozen=True, slots=True)
class NewestMarks:
    """Marks that move when something is added; None where there is nothing."""

    feedback_ms: int | None
    answer: str | None
    audit: int | None


@dataclass(frozen=True, slots=True)
class StageSpan:
    """The first and the newest step that a run reported of its present stage."""

    first: MetricPoint | None
    last: MetricPoint | None


@dataclass(frozen=True, slots=True)
class RefusalRow:
    """A version that was refused, or a run that failed."""

    subject: str
    kind: Literal["rejected", "failed", "run_failed"]
    at_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class HeldLeases:
    """Batches that workers hold: how many, when the oldest was leased, and when the first lapses."""

    count: int
    oldest_at_ms: int | None
    first_expiry_ms: int | None


@dataclass(frozen=True, slots=True)
class NewestRun:
    """The newest training run, as the metrics page shows it. `metrics` has its version's figures too."""

    state: RunState
    stage: str | None
    progress: float | None
    step: int | None
    updated_at_ms: int
    metrics: dict[str, float]
