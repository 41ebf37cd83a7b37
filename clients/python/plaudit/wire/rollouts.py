"""Rollouts: a candidate serves a growing share of users until the evidence decides."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from plaudit.wire.base import Moment, RequestModel, ResponseModel, Text, VersionName

RolloutState = Literal[
    "running",  # the candidate serves its share; steps, rollback and promotion go by themselves where that is allowed
    "paused",  # the arms stay as they are and votes count; only a rollback goes by itself
    "promoted",  # the candidate is stable
    "rolled_back",  # the evidence was against it
    "aborted",  # a person ended it, or moved `stable` under it
    "expired",  # undecided after `max_duration`
]
RolloutDecision = Literal["hold", "advance", "promote", "rollback", "expire"]
GuardrailName = Literal["errors", "ttft", "length", "refusals"]

MAX_SHARE = 0.95
"""Largest share of a step. All of the users is a promotion, and nothing is left to compare with."""


class RolloutStep(RequestModel):
    """One step: the share of users that the candidate serves, and for how long at least."""

    weight: float = Field(gt=0, le=MAX_SHARE, description="share of users, 0 to 0.95")
    min_seconds: float = Field(default=3600, ge=0, le=31_536_000, description="before the next step, or promotion")


class Guardrails(RequestModel):
    """What the candidate may cost at most. A figure fires when it certainly exceeds its bound; null turns it off."""

    min_users: int = Field(default=50, ge=2, le=1_000_000, description="users an arm in this step, to be judged")
    errors: float | None = Field(default=0.02, ge=0, le=1, description="growth of the share of failed answers")
    ttft: float | None = Field(default=1.25, ge=1, le=100, description="ratio of mean times to the first token")
    length: float | None = Field(default=1.5, ge=1, le=100, description="ratio of mean lengths in tokens")
    refusals: float | None = Field(default=0.05, ge=0, le=1, description="growth of the share of answers that refuse")
    on_breach: Literal["rollback", "hold"] = "rollback"


class RolloutCreate(RequestModel):
    """Begin a rollout. One may be under way at a time."""

    candidate: VersionName
    steps: Annotated[list[RolloutStep], Field(min_length=1, max_length=10, description="weights must grow")]
    min_raters: int = Field(default=100, ge=1, le=1_000_000, description="raters an arm before a promotion")
    max_duration: float = Field(
        default=1_209_600, gt=0, le=31_536_000, description="seconds; undecided then, it ends and stable serves all"
    )
    guardrails: Guardrails = Field(default_factory=Guardrails)
    auto_promote: bool = False
    auto_rollback: bool = True
    reason: Text | None = None

    @model_validator(mode="after")
    def _grows(self) -> Self:
        weights = [step.weight for step in self.steps]
        if any(later <= earlier for earlier, later in pairwise(weights)):
            raise ValueError("the weights of the steps must grow, so that nobody leaves the candidate by a step")
        return self


class RolloutAction(RequestModel):
    """Why a person promotes, pauses, resumes or aborts."""

    reason: Text | None = None


class ArmReport(ResponseModel):
    """One arm, or one arm within one segment. A user counts once: with the first answer, and with the first vote."""

    version: VersionName
    exposed: int = Field(description="users who were answered by it first")
    raters: int
    up: int
    down: int
    up_rate: float | None = None


class SegmentReport(ResponseModel):
    """A stretch of constant weight."""

    weight: float
    started_at: Moment
    e_value: float = Field(description="evidence, from this segment alone, that the candidate is worse")
    stable: ArmReport
    canary: ArmReport


class GuardrailReport(ResponseModel):
    """One engineering figure on both arms, over the users of the present segment."""

    name: GuardrailName
    state: Literal["ok", "fired", "too_few"]
    stable: float | None = Field(description="mean over users: a share, milliseconds, or tokens")
    canary: float | None
    excess: float | None = Field(description="canary − ratio · stable, or canary − stable")
    low: float | None = Field(description="lower end of its confidence sequence; fires above the bound")
    bound: float
    users_stable: int
    users_canary: int


class RolloutReport(ResponseModel):
    """How a rollout stands: the evidence, the decision, and the decision in words."""

    at: Moment
    decision: RolloutDecision
    automatic: bool = Field(description="whether the server carries the decision out by itself")
    words: str
    e_value: float = Field(description="that the candidate is worse; rolled back at `e_bound`")
    e_bound: float
    sample_ratio_e_value: float = Field(description="that users do not fall on the arms by the weights")
    sample_ratio_ok: bool
    difference: float | None = Field(description="up-rate of the candidate − of stable, weighted against drift")
    difference_low: float | None = Field(description="lower end of its one-sided 95 % confidence sequence")
    margin: float = Field(description="promoted when `difference_low` lies above minus this")
    stable: ArmReport
    canary: ArmReport
    segments: list[SegmentReport]
    guardrails: list[GuardrailReport]


class StepShown(RolloutStep):
    """A step as the server tells it; a newer one may tell more."""

    model_config = ConfigDict(extra="ignore")


class GuardrailsShown(Guardrails):
    """Guardrails as the server tells them; a newer one may tell more."""

    model_config = ConfigDict(extra="ignore")


class Rollout(ResponseModel):
    """A rollout. `report` is of now while it lasts, and of its end afterwards."""

    object: Literal["rollout"] = "rollout"
    id: str
    candidate: VersionName
    stable: VersionName = Field(description="what it is compared with")
    state: RolloutState
    step: int = Field(description="which of `steps` it is on, from 0")
    weight: float = Field(description="share of users that the candidate serves now")
    steps: list[StepShown]
    min_raters: int
    max_duration: float
    guardrails: GuardrailsShown
    auto_promote: bool
    auto_rollback: bool
    created_at: Moment
    updated_at: Moment
    ended_at: Moment | None = None
    actor: str
    reason: str | None = Field(default=None, description="why it is in this state, in words")
    report: RolloutReport | None = None
