"""Rows for tests of the store: plausible values, each overridable, at a clock that the test sets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from plaudit.wire.training import LeaseRequest, RunCreate
from plaudit.wire.versions import GateCheck, GateReport, ProofReport, VersionCreate
from plaudit_server import leasing
from plaudit_server.domain.ids import new_completion_id, new_id
from plaudit_server.domain.moments import DAY_MS, to_moment
from plaudit_server.domain.privacy import Exchange, NoRedaction, PlainCipher, SealedText, seal
from plaudit_server.domain.records import BatchData, Interaction, NewFeedback, RunRow, StoredComparison, StoredFeedback
from plaudit_server.store import comparisons, feedback, interactions, runs, versions
from plaudit_server.store.database import Database
from tests.support.databases import current

NOW = 1_800_000_000_000
"""The tests' present, milliseconds."""


@asynccontextmanager
async def open_store(folder: Path) -> AsyncIterator[Database]:
    """A migrated database in a folder, closed afterwards."""
    database = await Database.open(await current.ready(folder))
    try:
        yield database
    finally:
        await database.close()


def an_interaction(response_id: str | None = None, *, text: str = "Paris.", **changes: Any) -> Interaction:
    """An answer of `base` to one question, with consent, made a minute before NOW."""
    exchange = Exchange(
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        content=text,
        prompt_ids=[1, 2, 3],
        response_ids=[4, 5],
        logprobs=[-0.5, -0.25],
        metadata=changes.pop("metadata", {}),
    )
    sealed = seal(exchange, NoRedaction(), PlainCipher())
    values: dict[str, Any] = {
        "id": response_id or new_completion_id(),
        "request_id": new_id("req_"),
        "created_at_ms": NOW - 60_000,
        "version": "base",
        "arm": "stable",
        "model_requested": "policy",
        "end_user": "eu_1",
        "key_id": "key_1",
        "prompt_key": "pk_1",
        "content": sealed.content,
        "prompt_ids": sealed.prompt_ids,
        "response_ids": sealed.response_ids,
        "logprobs": sealed.logprobs,
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "sampling": {"temperature": 1.0},
        "finish_reason": "stop",
        "status": "complete",
        "train_consent": True,
        "redacted": sealed.redacted,
        "metadata": sealed.metadata,
    }
    return Interaction(**{**values, **changes})


def a_vote(response_id: str, value: float | None = 1.0, **changes: Any) -> NewFeedback:
    """A thumb given and received NOW."""
    values: dict[str, Any] = {
        "key": "thumb",
        "end_user": "eu_1",
        "retracts": False,
        "tags": [],
        "comment": None,
        "correction": None,
        "source": "user",
        "occurred_at_ms": NOW,
        "received_at_ms": NOW,
        "max_age_ms": 30 * DAY_MS,
    }
    return NewFeedback(response_id=response_id, value=value, **{**values, **changes})


def a_comparison(chosen: str | None, rejected: str | None, **changes: Any) -> StoredComparison:
    """A comparison; a side that is None becomes a written text."""
    values: dict[str, Any] = {
        "id": new_id("cmp_"),
        "chosen_id": chosen,
        "rejected_id": rejected,
        "chosen_text": None if chosen else SealedText(b"a better one"),
        "rejected_text": None if rejected else SealedText(b"a worse one"),
        "chosen_version": None,
        "rejected_version": None,
        "tie": None,
        "end_user": "eu_1",
        "received_at_ms": NOW,
    }
    return StoredComparison(**{**values, **changes})


async def store_answers(database: Database, count: int, **changes: Any) -> list[str]:
    """Write answers, one millisecond apart; their ids, oldest first."""
    made = [an_interaction(**{"created_at_ms": NOW - 60_000 + i, **changes}) for i in range(count)]
    for one in made:
        await database.write(lambda conn, one=one: interactions.add(conn, one))
    return [one.id for one in made]


async def store_voted(database: Database, count: int, *, value: float = 1.0, **changes: Any) -> list[str]:
    """Write answers with a vote on each; the answers' ids, oldest first."""
    ids = await store_answers(database, count, **changes)
    await asyncio.gather(*(vote(database, response_id, value) for response_id in ids))
    return ids


async def vote(database: Database, response_id: str, value: float | None = 1.0, **changes: Any) -> StoredFeedback:
    """Write one vote."""
    new = a_vote(response_id, value, **changes)
    return (await database.write(lambda conn: feedback.put(conn, new)))[0]


async def compare(database: Database, chosen: str | None, rejected: str | None, **changes: Any) -> StoredComparison:
    """Write one comparison."""
    new = a_comparison(chosen, rejected, **changes)
    return await database.write(lambda conn: comparisons.add(conn, new))


async def take(database: Database, worker: str = "w1", *, at: int = NOW, **changes: Any) -> BatchData:
    """Lease; one record is enough unless told otherwise."""
    request = LeaseRequest(**{"worker": worker, "min_records": 1, "lease_seconds": 60, **changes})
    return await leasing.take(database, request, now_ms=at)


async def begin_run(database: Database, batch: BatchData, worker: str = "w1", *, at: int = NOW) -> RunRow:
    """Begin a run on a leased batch."""
    assert batch.id is not None
    request = RunCreate(batch_id=batch.id, worker=worker)
    return await database.write(lambda conn: runs.create(conn, request, now_ms=at))


def a_registration(run: RunRow, **changes: Any) -> VersionCreate:
    """The registration of what a run published."""
    check = GateCheck(name="win rate", passed=True, value=0.6, low=0.5, high=0.7, n=100, bound="≥ 0.48")
    values: dict[str, Any] = {
        "name": run.version,
        "run_id": run.id,
        "batch_ids": [run.batch_id],
        "parent": run.parent,
        "location": f"/srv/versions/{run.version}",
        "manifest_sha256": f"{run.id[-8:]:a>64}".replace("-", "0"),
        "outcome": "candidate",
        "gate": GateReport(passed=True, checks=[check]),
        "metrics": {"kl": 0.01},
    }
    return VersionCreate(**{**values, **changes})


def a_proof(*, passed: bool = True, reason: str | None = None) -> ProofReport:
    """What the swap probe says."""
    return ProofReport(passed=passed, replicas=[], checked_at=to_moment(NOW), seconds=0.5, reason=reason)


async def publish(database: Database, worker: str = "w1", *, at: int = NOW, ready: bool = True) -> str:
    """Go the whole way from votes to a registered (and proven) version; its name."""
    await store_voted(database, 2)
    run = await begin_run(database, await take(database, worker, at=at), worker, at=at)
    request = a_registration(run)
    await database.write(lambda conn: versions.register(conn, request, now_ms=at))
    if ready:
        await database.write(lambda conn: versions.set_proof(conn, run.version, a_proof()))
    return run.version
