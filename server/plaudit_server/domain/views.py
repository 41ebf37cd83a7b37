"""Stored rows as the wire shows them. Sealed texts are opened here and nowhere else on the way out."""

from plaudit.wire.chat import SamplingParams, StoredCompletion
from plaudit.wire.feedback import Comparison, Event, Feedback
from plaudit.wire.ops import Key
from plaudit.wire.training import Batch, LeaseState, RecordVote, Run, RunMetricPoint, TrainingComparison, TrainingRecord
from plaudit.wire.versions import Alias, AuditEntry, Lineage, Version
from plaudit_server.domain import records as r
from plaudit_server.domain.feedback import Outcome
from plaudit_server.domain.moments import to_moment
from plaudit_server.domain.privacy import Cipher, SealedText, unseal, unseal_text
from plaudit_server.domain.versions import fingerprint


def stored_completion(row: r.Interaction, cipher: Cipher, *, feedback_count: int = 0) -> StoredCompletion:
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


def feedback(row: r.StoredFeedback, cipher: Cipher, *, status: Outcome | None = None) -> Feedback:
    """A piece of feedback."""
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


def comparison(row: r.StoredComparison, cipher: Cipher) -> Comparison:
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


def event(row: r.StoredEvent) -> Event:
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


def batch(data: r.BatchData, cipher: Cipher) -> Batch:
    """A leased batch, or why there is none."""
    return Batch(
        id=data.id,
        state=data.state,
        reason=data.reason,
        resumed=data.resumed,
        available=data.available,
        needed=data.needed,
        lease_expires_at=None if data.lease_expires_at_ms is None else to_moment(data.lease_expires_at_ms),
        records=[training_record(record, cipher) for record in data.records],
        comparisons=[training_comparison(pair, cipher) for pair in data.comparisons],
        dropped=data.dropped,
    )


def training_record(record: r.LeasedRecord, cipher: Cipher) -> TrainingRecord:
    """One answer with its votes. Feedback that is only a correction carries the vote 0 beside it."""
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
        votes=[_vote(said_of_it, cipher) for said_of_it in record.feedback],
    )


def _vote(row: r.StoredFeedback, cipher: Cipher) -> RecordVote:
    return RecordVote(
        feedback_id=row.id,
        key=row.key,
        value=0.0 if row.value is None else row.value,
        end_user=row.end_user,
        source=row.source,
        occurred_at=to_moment(row.occurred_at_ms),
        tags=row.tags,
        correction=unseal_text(row.correction, cipher),
    )


def training_comparison(pair: r.LeasedComparison, cipher: Cipher) -> TrainingComparison:
    """A comparison with both texts. An id is given only where that answer is a record of the same batch."""
    row = pair.comparison
    prompt = pair.chosen or pair.rejected
    assert prompt is not None, "a comparison has a stored side, or it is not leased"
    return TrainingComparison(
        id=row.id,
        messages=unseal(prompt.sealed, cipher).messages,
        chosen_id=row.chosen_id if row.chosen_id in pair.in_batch else None,
        rejected_id=row.rejected_id if row.rejected_id in pair.in_batch else None,
        chosen_text=_side(pair.chosen, row.chosen_text, cipher),
        rejected_text=_side(pair.rejected, row.rejected_text, cipher),
        tie=row.tie,
        end_user=row.end_user,
    )


def _side(stored: r.Interaction | None, written: SealedText | None, cipher: Cipher) -> str:
    return unseal(stored.sealed, cipher).content if stored else unseal_text(written, cipher) or ""


def lease_state(row: r.BatchRow) -> LeaseState:
    """Where a batch stands."""
    expires = to_moment(row.lease_expires_at_ms) if row.state == "leased" else None
    return LeaseState(id=row.id, state=row.state, reason=row.reason, lease_expires_at=expires, version=row.version)


def run(row: r.RunRow) -> Run:
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


def metric_point(row: r.MetricPoint) -> RunMetricPoint:
    """The metrics of one step."""
    return RunMetricPoint(stage=row.stage, step=row.step, at=to_moment(row.at_ms), metrics=row.metrics)


def version(row: r.VersionRow) -> Version:
    """A policy version."""
    return Version(
        name=row.name,
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


def lineage(data: r.LineageData) -> Lineage:
    """Where a version comes from."""
    counts = ("records", "up", "down", "comparisons")
    return Lineage(
        version=data.version,
        parents=data.parents,
        batches=[
            {"id": b.id, "version": b.version, **{name: getattr(b, name) for name in counts}} for b in data.batches
        ],
        feedback={name: sum(getattr(b, name) for b in data.batches) for name in counts},
        erased_sources=data.erased_sources,
    )


def alias(row: r.AliasRow) -> Alias:
    """An alias."""
    return Alias(
        name=row.name, version=row.version, etag=row.etag, updated_at=to_moment(row.updated_at_ms), reason=row.reason
    )


def key(row: r.KeyRow) -> Key:
    """A key, without its secret."""
    revoked = None if row.revoked_at_ms is None else to_moment(row.revoked_at_ms)
    return Key(
        id=row.id,
        name=row.name,
        roles=row.roles,
        hint=row.hint,
        created_at=to_moment(row.created_at_ms),
        revoked_at=revoked,
    )


def audit_entry(row: r.AuditRow) -> AuditEntry:
    """An entry of the audit log."""
    return AuditEntry(
        id=row.id, at=to_moment(row.at_ms), actor=row.actor, action=row.action, subject=row.subject, detail=row.detail
    )
