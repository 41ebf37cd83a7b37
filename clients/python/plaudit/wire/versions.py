"""Policy versions: what they are, why they may serve, and who serves now."""

from typing import Annotated, Literal

from pydantic import Field

from plaudit.wire.base import JsonObject, Label, Moment, RequestModel, ResponseModel, Text, VersionName

VersionState = Literal[
    "loading",  # registered; the engine is loading it and the probe runs
    "ready",  # proven on every replica: may get traffic
    "rejected",  # failed the trainer's gate; kept with its figures, never loaded
    "failed",  # failed the artefact check or the swap probe; never got traffic
]
AliasName = Literal["stable", "canary", "previous"]
VersionKind = Literal[
    "adapter",  # LoRA matrices on the base model: many live beside each other on a replica
    "full",  # a whole model of the base model's architecture: a replica holds one at a time
]


class GateCheck(ResponseModel):
    """One line of the gate: a figure with its interval and the bound it was held against."""

    name: str
    passed: bool
    value: float | None
    low: float | None = Field(default=None, description="lower end of the 95 % interval")
    high: float | None = Field(default=None, description="upper end of the 95 % interval")
    n: int = 0
    bound: str = Field(description="the rule in words, such as `win rate lower bound ≥ 0.48`")
    detail: str | None = None


class GateReport(ResponseModel):
    """All checks of the gate. A version is published as a candidate only where every one passed."""

    passed: bool
    checks: list[GateCheck]

    @property
    def refusals(self) -> list[str]:
        """Why it failed, a line a check."""
        return [f"{c.name} = {c.value} (n = {c.n}): needs {c.bound}" for c in self.checks if not c.passed]


class ReplicaProof(ResponseModel):
    """What one replica showed of one version."""

    replica: str
    passed: bool
    slope: float | None = Field(description="of the served change on the trained change, parent to new; 1 = it is live")
    low: float | None = None
    high: float | None = None
    correlation: float | None = None
    tokens: int = 0
    tensors_expected: int = 0
    tensors_matched: int = 0
    workers: int = 0
    reason: str | None = None


class ProofReport(ResponseModel):
    """The proof of a swap: every replica must pass."""

    passed: bool
    replicas: list[ReplicaProof]
    checked_at: Moment
    seconds: float
    reason: str | None = None


class TensorDigest(ResponseModel):
    """SHA-256 of one tensor's bytes as stored (row-major)."""

    sha256: str
    shape: list[int]
    dtype: str


class FileDigest(ResponseModel):
    """SHA-256 and size of one file of a version."""

    sha256: str
    bytes: int


class LoraShape(ResponseModel):
    """The adapter's geometry."""

    rank: int
    alpha: float
    target_modules: list[str]


class Manifest(ResponseModel):
    """`manifest.json`, written last: a version's folder without one does not exist.

    Paths are relative to the version's folder; the adapter lies in `adapter/` or the whole model in `model/`, the probe
    in `probe.json`. `lora` is None where the version is a whole model; `base_fingerprint` is the served base model's
    either way.
    """

    format: Literal[1] = 1
    kind: VersionKind = "adapter"
    version: VersionName
    parent: VersionName
    base_model: str
    base_fingerprint: str
    run_id: str
    batch_ids: list[str]
    created_at: Moment
    lora: LoraShape | None = None
    files: dict[str, FileDigest]
    tensors: dict[str, TensorDigest]
    software: dict[str, str] = Field(default_factory=dict)


class ProbeSequence(ResponseModel):
    """One probe text as token ids, with the trainer's log-probabilities (nats) of each response token.

    `parent_logprobs` and `new_logprobs` are computed in the precision the engine serves in. Where that is lower than
    float32, `exact_change` is their difference as float32 has it: free of rounding noise, the probe's instrument.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    parent_logprobs: list[float]
    new_logprobs: list[float]
    exact_change: list[float] | None = None


class Probe(ResponseModel):
    """`probe.json`: what the trainer computed with exactly the bytes it published."""

    format: Literal[1] = 1
    sequences: list[ProbeSequence]


class VersionCreate(RequestModel):
    """Register a version whose folder is complete. Also acknowledges its batches, in the same transaction."""

    name: VersionName
    kind: VersionKind = Field(default="adapter", description="what the folder holds: an adapter, or a whole model")
    run_id: str
    batch_ids: list[str] = Field(min_length=1)
    parent: VersionName
    location: Annotated[str, Field(max_length=4096, description="the version's folder, as the engine sees it")]
    manifest_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    outcome: Literal["candidate", "rejected"]
    reason: Text | None = None
    gate: GateReport
    metrics: dict[str, float] = Field(default_factory=dict)


class Version(ResponseModel):
    """A policy version: an immutable LoRA adapter or whole model, and everything known of it."""

    object: Literal["version"] = "version"
    name: VersionName
    kind: VersionKind = Field(default="adapter", description="base is a whole model, `full`")
    state: VersionState
    reason: str | None = Field(default=None, description="why it is rejected or failed, in words")
    parent: VersionName | None
    fingerprint: str = Field(description="v42-<first 8 of the manifest's sha256>")
    location: str | None = None
    manifest_sha256: str | None = None
    run_id: str | None = None
    batch_ids: list[str] = Field(default_factory=list)
    records: int = 0
    created_at: Moment
    aliases: list[AliasName] = Field(default_factory=list)
    gate: GateReport | None = None
    proof: ProofReport | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    tainted: bool = False


class Lineage(ResponseModel):
    """Where a version comes from, nearest ancestor first."""

    object: Literal["lineage"] = "lineage"
    version: VersionName
    parents: list[VersionName]
    batches: list[JsonObject]
    feedback: dict[str, int] = Field(description="counts over all ancestors' batches: records, up, down, comparisons")
    erased_sources: int = 0


class Alias(ResponseModel):
    """A name that traffic follows. `etag` counts its moves and goes into `If-Match`."""

    object: Literal["alias"] = "alias"
    name: AliasName
    version: VersionName
    etag: str
    updated_at: Moment
    reason: str | None = None


class AliasUpdate(RequestModel):
    """Point an alias at a version."""

    version: VersionName
    reason: Text | None = None


class PromoteRequest(RequestModel):
    """Make a version the stable one."""

    reason: Text | None = None


class RollbackRequest(RequestModel):
    """Move `stable` back. `previous` is the version that was stable before the last move."""

    to: Literal["previous"] | VersionName = "previous"
    reason: Text = "no reason given"


class AuditEntry(ResponseModel):
    """One thing that somebody with power did."""

    object: Literal["audit"] = "audit"
    id: int
    at: Moment
    actor: str
    action: Label
    subject: str
    detail: JsonObject = Field(default_factory=dict)
