"""Rows of the store as messages of the wire. What was sealed is opened here and nowhere else."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from plaudit.wire.base import JsonObject
from plaudit.wire.chat import SamplingParams, StoredCompletion
from plaudit.wire.feedback import Comparison, Event, Feedback
from plaudit.wire.ops import Key, Replica, ReplicaHealth
from plaudit.wire.overview import VersionVotes, VotePoint, VoteRate
from plaudit.wire.rollouts import GuardrailsShown, Rollout, RolloutReport, StepShown
from plaudit.wire.training import (
    Batch,
    LeaseState,
    RecordVote,
    Run,
    RunMetricPoint,
    TrainingComparison,
    TrainingRecord,
)
from plaudit.wire.versions import Alias, AuditEntry, Lineage, Version
from plaudit_server.domain.feedback import Outcome
from plaudit_server.domain.moments import to_moment
from plaudit_server.domain.privacy import Cipher, SealedText, unseal, unseal_text
from plaudit_server.domain.records import (
    AliasRow,
    AuditRow,
    BatchData,
    BatchRow,
    Interaction,
    KeyRow,
    LeasedComparison,
    LeasedRecord,
    LineageData,
    MetricPoint,
    ReplicaRow,
    RolloutRow,
    RunRow,
    StoredComparison,
    StoredEvent,
    StoredFeedback,
    VersionRow,
    VoteBucket,
)
from plaudit_server.domain.standing import wilson
from plaudit_server.domain.versions import fingerprint, version_number


def stored_completion(row: Interaction, cipher: Cipher, feedback_count: int) -> StoredCompletion:
    """A logged answer."""
    said = unseal(row.sealed, cipher)
    return StoredCompletion(
        id=row.id,
        created_at=to_moment(row.created_at_ms),
        model=f"policy@{row.version}",
        version=row.version,
        arm=row.arm,
        messages=said.messages,
        content=said.content,
        finish_reason=row.finish_reason,
        status=row.status,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        sampling=SamplingParams.model_validate(row.sampling),
        metadata=row.metadata,
        train_consent=row.train_consent,
        redacted=row.redacted,
        end_user=row.end_user,
        feedback_count=feedback_count,
    )


def feedback(row: StoredFeedback, cipher: Cipher, status: Outcome | None = None) -> Feedback:
    """A piece of feedback; `status` where it was just given."""
    return Feedback(
        id=row.id,
        response_id=row.response_id,
        key=row.key,
        value=row.value,
        tags=row.tags,
        comment=unseal_text(row.comment, cipher),
        correction=unseal_text(row.correction, cipher),
        end_user=row.end_user,
        source=row.source,
        occurred_at=to_moment(row.occurred_at_ms),
        received_at=to_moment(row.received_at_ms),
        version=row.version,
        revision=row.revision,
        retracted=row.retracted,
        trainable=row.trainable,
        status=status,
    )


def comparison(row: StoredComparison, cipher: Cipher) -> Comparison:
    """A comparison."""
    return Comparison(
        id=row.id,
        chosen=row.chosen_id,
        rejected=row.rejected_id,
        chosen_text=unseal_text(row.chosen_text, cipher),
        rejected_text=unseal_text(row.rejected_text, cipher),
        tie=row.tie,
        end_user=row.end_user,
        received_at=to_moment(row.received_at_ms),
    )


def event(row: StoredEvent) -> Event:
    """An event."""
    return Event(
        id=row.id,
        response_id=row.response_id,
        type=row.type,
        new_response_id=row.new_response_id,
        end_user=row.end_user,
        occurred_at=to_moment(row.occurred_at_ms),
        received_at=to_moment(row.received_at_ms),
    )


def version(row: VersionRow) -> Version:
    """A policy version."""
    return Version(
        name=row.name,
        kind=row.kind,
        state=row.state,
        reason=row.reason,
        parent=row.parent,
        fingerprint=fingerprint(row.name, row.manifest_sha256),
        location=row.location,
        manifest_sha256=row.manifest_sha256,
        run_id=row.run_id,
        batch_ids=row.batch_ids,
        records=row.records,
        created_at=to_moment(row.created_at_ms),
        aliases=row.aliases,
        gate=row.gate,
        proof=row.proof,
        metrics=row.metrics,
        tainted=row.tainted,
    )


def lineage(data: LineageData) -> Lineage:
    """Where a version comes from, with counts over all its batches."""
    batches: list[JsonObject] = [
        {
            "id": b.id,
            "version": b.version,
            "records": b.records,
            "up": b.up,
            "down": b.down,
            "comparisons": b.comparisons,
        }
        for b in data.batches
    ]
    counts = {
        name: sum(getattr(batch, name) for batch in data.batches) for name in ("records", "up", "down", "comparisons")
    }
    return Lineage(
        version=data.version,
        parents=data.parents,
        batches=batches,
        feedback=counts,
        erased_sources=data.erased_sources,
    )


def alias(row: AliasRow) -> Alias:
    """An alias."""
    return Alias(
        name=row.name, version=row.version, etag=row.etag, updated_at=to_moment(row.updated_at_ms), reason=row.reason
    )


def rollout(row: RolloutRow, report: RolloutReport | None = None) -> Rollout:
    """A rollout; `report` of now in place of the one that was kept."""
    return Rollout(
        id=row.id,
        candidate=row.candidate,
        stable=row.stable,
        state=row.state,
        step=row.step,
        weight=row.weight,
        steps=[StepShown(**step.model_dump()) for step in row.steps],
        min_raters=row.min_raters,
        max_duration=row.max_duration_ms / 1000,
        guardrails=GuardrailsShown(**row.guardrails.model_dump()),
        auto_promote=row.auto_promote,
        auto_rollback=row.auto_rollback,
        created_at=to_moment(row.created_at_ms),
        updated_at=to_moment(row.updated_at_ms),
        ended_at=None if row.ended_at_ms is None else to_moment(row.ended_at_ms),
        actor=row.actor,
        reason=row.reason,
        report=report or row.report,
    )


def version_votes(rows: Sequence[VoteBucket]) -> list[VersionVotes]:
    """Votes by version, the oldest version first; `rows` in rising order of time."""
    of: dict[str, list[VoteBucket]] = {}
    for row in rows:
        of.setdefault(row.version, []).append(row)
    return [_votes_of(name, of[name]) for name in sorted(of, key=version_number)]


def _votes_of(name: str, rows: Sequence[VoteBucket]) -> VersionVotes:
    points = [VotePoint(begins_at=to_moment(one.begins_ms), **_rate(one.up, one.down).model_dump()) for one in rows]
    together = _rate(sum(one.up for one in rows), sum(one.down for one in rows))
    return VersionVotes(version=name, points=points, **together.model_dump())


def _rate(up: int, down: int) -> VoteRate:
    share, low, high = wilson(up, down) or (None, None, None)
    return VoteRate(up=up, down=down, up_rate=share, low=low, high=high)


def key(row: KeyRow) -> Key:
    """A key, without its secret."""
    return Key(
        id=row.id,
        name=row.name,
        roles=row.roles,
        hint=row.hint,
        created_at=to_moment(row.created_at_ms),
        revoked_at=None if row.revoked_at_ms is None else to_moment(row.revoked_at_ms),
    )


def replica(row: ReplicaRow | None, health: ReplicaHealth | None, name: str | None = None) -> Replica:
    """An engine replica. Without a row it is a child of this server; without health it is not here yet, or gone."""
    seen = {} if health is None else health.model_dump(exclude={"replica"})
    listed = (
        {}
        if row is None
        else {
            "name": row.name,
            "url": row.url,
            "source": row.source,
            "draining": row.state == "draining",
            "removed": row.state == "removed",
            "added_at": to_moment(row.added_at_ms),
        }
    )
    return Replica.model_validate({"name": name, **seen, **listed})


def audit(row: AuditRow) -> AuditEntry:
    """An entry of the audit log."""
    return AuditEntry(
        id=row.id, at=to_moment(row.at_ms), actor=row.actor, action=row.action, subject=row.subject, detail=row.detail
    )


def run(row: RunRow) -> Run:
    """A training run."""
    return Run(
        id=row.id,
        batch_id=row.batch_id,
        version=row.version,
        parent=row.parent,
        parent_location=row.parent_location,
        warm_start_location=row.warm_start_location,
        state=row.state,
        stage=row.stage,
        progress=row.progress,
        reason=row.reason,
        created_at=to_moment(row.created_at_ms),
        updated_at=to_moment(row.updated_at_ms),
        metrics=row.metrics,
    )


def metric_point(point: MetricPoint) -> RunMetricPoint:
    """One step's metrics."""
    return RunMetricPoint(stage=point.stage, step=point.step, at=to_moment(point.at_ms), metrics=point.metrics)


def lease_state(row: BatchRow) -> LeaseState:
    """Where a batch stands."""
    return LeaseState(
        id=row.id,
        state=row.state,
        reason=row.reason,
        lease_expires_at=to_moment(row.lease_expires_at_ms),
        version=row.version,
        worker=row.worker,
        created_at=to_moment(row.created_at_ms),
        records=row.records,
        up=row.up,
        down=row.down,
        comparisons=row.comparisons,
        dropped=row.dropped,
    )


Since = Mapping[str, datetime]
"""When each rater was first seen, by their keyed hash."""


def batch(data: BatchData, cipher: Cipher) -> Batch:
    """A leased batch with its texts and tokens."""
    expires, leased = data.lease_expires_at_ms, data.leased_at_ms
    since = {user: to_moment(seen) for user, seen in data.first_seen_ms.items()}
    return Batch(
        id=data.id,
        state=data.state,
        reason=data.reason,
        resumed=data.resumed,
        available=data.available,
        needed=data.needed,
        lease_expires_at=None if expires is None else to_moment(expires),
        leased_at=None if leased is None else to_moment(leased),
        records=[_record(record, since, cipher) for record in data.records],
        comparisons=[found for found in (_sides(each, since, cipher) for each in data.comparisons) if found],
        prompts=[unseal(row.sealed, cipher).messages for row in data.prompts],
        dropped=data.dropped,
    )


def _record(record: LeasedRecord, since: Since, cipher: Cipher) -> TrainingRecord:
    row = record.interaction
    said = unseal(row.sealed, cipher)
    return TrainingRecord(
        response_id=row.id,
        version=row.version,
        created_at=to_moment(row.created_at_ms),
        prompt_key=row.prompt_key,
        messages=said.messages,
        content=said.content,
        prompt_ids=None if said.prompt_ids is None else list(said.prompt_ids),
        response_ids=None if said.response_ids is None else list(said.response_ids),
        logprobs=None if said.logprobs is None else list(said.logprobs),
        finish_reason=row.finish_reason,
        sampling=SamplingParams.model_validate(row.sampling),
        end_user=row.end_user,
        redacted=row.redacted,
        votes=[_vote(given, since, cipher) for given in record.feedback if given.value is not None or given.correction],
    )


def _vote(row: StoredFeedback, since: Since, cipher: Cipher) -> RecordVote:
    return RecordVote(
        feedback_id=row.id,
        key=row.key,
        value=row.value,
        end_user=row.end_user,
        rater_since=since.get(row.end_user or ""),
        source=row.source,
        occurred_at=to_moment(row.occurred_at_ms),
        tags=row.tags,
        correction=unseal_text(row.correction, cipher),
    )


def _sides(leased: LeasedComparison, since: Since, cipher: Cipher) -> TrainingComparison | None:
    """A comparison with both texts. A side that is not a record of the batch goes by its text alone."""
    row = leased.comparison
    prompt = leased.chosen or leased.rejected
    if prompt is None:
        return None  # both answers were erased meanwhile
    chosen = _text(row.chosen_text, leased.chosen, cipher)
    rejected = _text(row.rejected_text, leased.rejected, cipher)
    if chosen is None or rejected is None:
        return None
    return TrainingComparison(
        id=row.id,
        source=leased.source,
        messages=unseal(prompt.sealed, cipher).messages,
        chosen_id=row.chosen_id if row.chosen_id in leased.in_batch else None,
        rejected_id=row.rejected_id if row.rejected_id in leased.in_batch else None,
        chosen_text=chosen,
        rejected_text=rejected,
        tie=row.tie,
        end_user=row.end_user,
        rater_since=since.get(row.end_user or ""),
    )


def _text(written: SealedText | None, answer: Interaction | None, cipher: Cipher) -> str | None:
    return unseal_text(written, cipher) if answer is None else unseal(answer.sealed, cipher).content
