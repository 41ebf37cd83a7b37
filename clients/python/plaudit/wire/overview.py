"""The loop at a glance, and what users said of each version over time."""

from typing import Literal

from pydantic import Field

from plaudit.wire.base import Moment, ResponseModel, VersionName
from plaudit.wire.rollouts import Rollout
from plaudit.wire.training import BatchState, Run, RunState
from plaudit.wire.versions import Alias, VersionState

Topic = Literal["server", "aliases", "waiting", "counts", "newest", "run", "refusal", "rollout"]
"""The parts of an overview: each is an event of `GET /v1/live`, sent when it changes."""


class ServerNow(ResponseModel):
    """The process that answers."""

    status: Literal["ok", "starting", "degraded"]
    engine: Literal["starting", "ready", "down"]
    fake_engine: bool
    release: str
    replicas: int
    replicas_ready: int
    trainer_seen_at: Moment | None = Field(description="when a trainer last called this process, or reported to any")


class Waiting(ResponseModel):
    """What the next batch would find."""

    records: int = Field(description="answers with feedback that could be leased now")
    passed_over: dict[str, int] = Field(description="answers with feedback that cannot, by reason")


class Counts(ResponseModel):
    """How many there are, by state."""

    versions: dict[VersionState, int]
    runs: dict[RunState, int]
    batches: dict[BatchState, int]


class Newest(ResponseModel):
    """Marks that move when something is added: whoever shows a list knows by them when to ask for it again."""

    feedback_at: Moment | None
    answer: str | None
    audit: int | None


class RunNow(Run):
    """The run that began last, with where its stage stands."""

    step: int | None = Field(default=None, description="of the present stage")
    steps: int | None = Field(default=None, description="of the present stage altogether, where the trainer knows")
    stage_ends_at: Moment | None = Field(default=None, description="estimated from the steps so far")


class Refusal(ResponseModel):
    """The last thing that was not to be: a version that gate or proof refused, or a run that failed."""

    subject: str = Field(description="a version's name or a run's id")
    kind: Literal["rejected", "failed", "run_failed"]
    at: Moment
    reason: str


class Overview(ResponseModel):
    """How the loop stands."""

    object: Literal["overview"] = "overview"
    server: ServerNow
    aliases: list[Alias]
    waiting: Waiting
    counts: Counts
    newest: Newest
    run: RunNow | None = None
    refusal: Refusal | None = None
    rollout: Rollout | None = Field(default=None, description="the newest, with its report")


class VoteRate(ResponseModel):
    """Votes and the share of thumbs up among them, with Wilson's 95 % interval; null where nobody voted."""

    up: int
    down: int
    up_rate: float | None
    low: float | None
    high: float | None


class VotePoint(VoteRate):
    """The votes that were received in one stretch of time."""

    begins_at: Moment


class VersionVotes(VoteRate):
    """A version's votes, together and over time."""

    version: VersionName
    points: list[VotePoint]


class VoteStatistics(ResponseModel):
    """Live votes by version, oldest version first. Neutral ones (value 0) are left out."""

    object: Literal["vote_statistics"] = "vote_statistics"
    key: str
    since: Moment
    bucket_seconds: int
    versions: list[VersionVotes]
