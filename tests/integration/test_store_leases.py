import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit.wire.training import AckRequest, FailRequest, HeartbeatRequest, LeaseRequest
from plaudit_server import leasing, views
from plaudit_server.domain.ids import new_id
from plaudit_server.domain.moments import DAY_MS, to_moment
from plaudit_server.domain.privacy import PlainCipher, SealedText
from plaudit_server.domain.records import BatchData, BatchRow, StoredEvent
from plaudit_server.errors import Conflict, NotFound
from plaudit_server.store import events, interactions, leases, runs
from plaudit_server.store import tables as t
from plaudit_server.store.database import Database
from tests.support.store_rows import (
    NOW,
    begin_run,
    compare,
    open_store,
    store_answers,
    store_voted,
    take,
    vote,
)


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_store(tmp_path) as database:
        yield database


def _ids(batch: BatchData) -> list[str]:
    return [record.interaction.id for record in batch.records]


async def _heartbeat(
    db: Database, batch: BatchData, worker: str = "w1", *, at: int = NOW, seconds: float = 60
) -> BatchRow:
    request = HeartbeatRequest(worker=worker, lease_seconds=seconds)
    return await db.write(lambda conn: leases.heartbeat(conn, batch.id or "", request, now_ms=at))


async def _ack(db: Database, batch: BatchData, worker: str = "w1", *, at: int = NOW) -> BatchRow:
    return await db.write(lambda conn: leases.ack(conn, batch.id or "", AckRequest(worker=worker), now_ms=at))


async def _fail(db: Database, batch: BatchData, *, release: bool, worker: str = "w1", at: int = NOW) -> BatchRow:
    request = FailRequest(worker=worker, reason="it broke", release=release)
    return await db.write(lambda conn: leases.fail(conn, batch.id or "", request, now_ms=at))


# ── what is leased ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_voted_answers_are_leased_oldest_first(db: Database) -> None:
    ids = await store_voted(db, 5)
    await store_answers(db, 3)  # nobody said anything about these
    batch = await take(db, max_records=3)
    assert _ids(batch) == ids[:3]
    assert (batch.state, batch.resumed, batch.available, batch.needed) == ("leased", False, 5, 1)
    assert batch.lease_expires_at_ms == NOW + 60_000
    assert _ids(await take(db, "w2")) == ids[3:]
    assert await db.read(leases.waiting) == 0


async def test_a_record_carries_tokens_and_live_votes(db: Database) -> None:
    (answer,) = await store_answers(db, 1)
    await vote(db, answer, 1.0, end_user="eu_1")
    await vote(db, answer, -1.0, end_user="eu_2", correction=SealedText(b"Lyon."), tags=["wrong"])
    await vote(db, answer, 1.0, end_user="eu_3")
    await vote(db, answer, None, end_user="eu_3", retracts=True)
    shown = views.batch(await take(db), PlainCipher())
    (record,) = shown.records
    assert (record.prompt_ids, record.response_ids, record.logprobs) == ([1, 2, 3], [4, 5], [-0.5, -0.25])
    assert (record.content, record.messages[0]["role"], record.version) == ("Paris.", "user", "base")
    assert [(v.value, v.correction, v.tags) for v in record.votes] == [(1.0, None, []), (-1.0, "Lyon.", ["wrong"])]


async def test_a_correction_without_a_vote_is_enough(db: Database) -> None:
    (answer,) = await store_answers(db, 1)
    await vote(db, answer, None, correction=SealedText(b"Lyon."))
    (record,) = views.batch(await take(db), PlainCipher()).records
    assert [(v.value, v.correction) for v in record.votes] == [(None, "Lyon.")]


async def test_what_may_not_be_learnt_from_is_passed_over_and_counted(db: Database) -> None:
    (good,) = await store_voted(db, 1)
    await store_voted(db, 2, train_consent=False)
    await store_voted(db, 1, status="aborted")
    (old,) = await store_answers(db, 1)
    await vote(db, old, occurred_at_ms=NOW + 40 * DAY_MS, received_at_ms=NOW + 40 * DAY_MS)
    (taken_back,) = await store_voted(db, 1)
    await vote(db, taken_back, None, retracts=True)
    (erased,) = await store_voted(db, 1)
    await db.write(lambda conn: interactions.forget(conn, erased, "asked", now_ms=NOW))
    await vote(db, "chatcmpl-not-yet-written")
    batch = await take(db)
    assert _ids(batch) == [good]
    assert batch.dropped == {"no_consent": 2, "not_complete": 1, "too_old": 1, "retracted": 1}


@pytest.mark.parametrize("never", [{"train_consent": False}, {"status": "aborted"}])
async def test_a_vote_that_can_teach_nothing_leaves_no_work_to_a_lease(db: Database, never: dict[str, Any]) -> None:
    (answer,) = await store_answers(db, 1, **never)
    await vote(db, answer)
    live = select(t.feedback.c.id).where(t.feedback.c.spent.is_(False))
    assert (await db.read(lambda conn: conn.execute(live))).all() == []
    assert (await take(db)).dropped == {"no_consent" if "train_consent" in never else "not_complete": 1}


async def test_too_little_data_is_said_in_words_and_leases_nothing(db: Database) -> None:
    await store_voted(db, 3)
    await store_voted(db, 1, train_consent=False)
    batch = await take(db, min_records=4)
    assert (batch.id, batch.state, batch.available, batch.needed) == (None, "insufficient_data", 3, 4)
    assert batch.reason == "3 records wait, 4 are needed; passed over: 1 no consent"
    assert views.batch(batch, PlainCipher()).dropped == {"no_consent": 1}
    assert await db.read(leases.waiting) == 3


async def test_redacted_records_are_leased_without_tokens(db: Database) -> None:
    await store_voted(db, 1, prompt_ids=None, response_ids=None, logprobs=None, redacted=True)
    (record,) = views.batch(await take(db), PlainCipher()).records
    assert record.redacted
    assert (record.prompt_ids, record.response_ids, record.logprobs) == (None, None, None)


# ── comparisons ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_comparison_brings_both_of_its_answers(db: Database) -> None:
    first, second = await store_answers(db, 2)
    pair = await compare(db, second, first)
    batch = await take(db)
    assert _ids(batch) == [first, second]
    (shown,) = views.batch(batch, PlainCipher()).comparisons
    assert (shown.id, shown.chosen_id, shown.rejected_id) == (pair.id, second, first)
    assert (shown.chosen_text, shown.rejected_text) == ("Paris.", "Paris.")
    assert (await _ack(db, batch)).comparisons == 1
    assert (await take(db)).state == "insufficient_data"


async def test_a_written_side_is_a_text(db: Database) -> None:
    (answer,) = await store_answers(db, 1)
    await compare(db, None, answer)
    (shown,) = views.batch(await take(db), PlainCipher()).comparisons
    assert (shown.chosen_id, shown.chosen_text, shown.rejected_id) == (None, "a better one", answer)


async def test_a_side_outside_the_batch_is_given_as_text_only(db: Database) -> None:
    first, second = await store_answers(db, 2)
    await compare(db, first, second)
    (shown,) = views.batch(await take(db, max_records=1), PlainCipher()).comparisons
    assert (shown.chosen_id, shown.rejected_id, shown.rejected_text) == (first, None, "Paris.")


async def test_a_comparison_with_an_answer_without_consent_is_not_used(db: Database) -> None:
    (mine,) = await store_answers(db, 1)
    (other,) = await store_answers(db, 1, train_consent=False)
    await compare(db, mine, other)
    assert (await take(db)).dropped == {"no_consent": 1}
    await vote(db, mine)
    batch = await take(db)
    assert _ids(batch) == [mine]
    assert batch.comparisons == []


async def test_a_late_comparison_of_consumed_answers_does_not_reopen_them(db: Database) -> None:
    first, second = await store_voted(db, 2)
    batch = await take(db)
    await compare(db, first, second)  # while they are leased
    await _ack(db, batch)
    await compare(db, second, first)  # after they were consumed
    (fresh,) = await store_answers(db, 1)
    assert (await take(db)).available == 0
    await compare(db, fresh, first)  # a new answer against a consumed one teaches something
    assert _ids(await take(db)) == [fresh]


# ── regenerations ───────────────────────────────────────────────────────────────────────────────────────────────────


async def _again(db: Database, old: str, new: str | None, **changes: Any) -> StoredEvent:
    values: dict[str, Any] = {"id": new_id("evt_"), "response_id": old, "type": "regenerate", "new_response_id": new}
    values |= {"end_user": "eu_1", "occurred_at_ms": NOW, "received_at_ms": NOW}
    event = StoredEvent(**(values | changes))
    return await db.write(lambda conn: events.add(conn, event))


async def test_a_regenerated_answer_that_was_kept_is_preferred_once(db: Database) -> None:
    old, new = await store_answers(db, 2)
    event = await _again(db, old, new)
    batch = await take(db)
    assert _ids(batch) == [old, new]
    (shown,) = views.batch(batch, PlainCipher()).comparisons
    assert (shown.id, shown.source, shown.chosen_id, shown.rejected_id) == (event.id, "regeneration", new, old)
    assert (await take(db, "w2")).state == "insufficient_data"
    await _fail(db, batch, release=True)
    again = await take(db)
    assert [pair.comparison.id for pair in again.comparisons] == [event.id]
    assert (await _ack(db, again)).comparisons == 0
    assert (await take(db)).state == "insufficient_data"


async def test_an_answer_sent_back_in_its_turn_was_not_kept(db: Database) -> None:
    first, second, third = await store_answers(db, 3)
    await _again(db, first, second)
    await _again(db, second, third)
    (pair,) = (await take(db)).comparisons
    assert (pair.comparison.chosen_id, pair.comparison.rejected_id) == (third, second)


async def test_a_kept_answer_that_is_sent_back_during_the_lease_is_no_preference(db: Database) -> None:
    first, second, third = await store_answers(db, 3)
    await _again(db, first, second)
    assert len((await take(db)).comparisons) == 1
    await _again(db, second, third)
    again = await take(db)
    assert (again.resumed, again.comparisons, again.records) == (True, [], [])


@pytest.mark.parametrize("changes", [{"train_consent": False}, {"status": "aborted"}, {"prompt_key": "another"}])
async def test_regenerations_that_cannot_be_compared_teach_nothing(db: Database, changes: dict[str, Any]) -> None:
    (old,) = await store_answers(db, 1)
    (new,) = await store_answers(db, 1, **changes)
    await _again(db, old, new)
    await _again(db, old, None)
    await _again(db, old, new, type="copy")
    assert (await take(db)).state == "insufficient_data"


async def test_a_regeneration_of_consumed_answers_does_not_reopen_them(db: Database) -> None:
    old, new = await store_voted(db, 2)
    batch = await take(db)
    await _again(db, old, new)
    await _ack(db, batch)
    assert (await take(db)).available == 0


# ── raters and prompts ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_raters_come_with_the_moment_they_were_first_seen(db: Database) -> None:
    await store_answers(db, 1, created_at_ms=NOW - 9 * DAY_MS, end_user="eu_old")
    (answer,) = await store_answers(db, 1, end_user="eu_asker")
    await vote(db, answer, end_user="eu_old")
    await vote(db, "chatcmpl-elsewhere", end_user="eu_voter", received_at_ms=NOW - 3 * DAY_MS)
    await vote(db, answer, end_user="eu_voter")
    await vote(db, answer, end_user="eu_new")
    await vote(db, answer, end_user=None)
    await compare(db, answer, None, end_user="eu_old")
    shown = views.batch(await take(db), PlainCipher())
    ages = {v.end_user: v.rater_since and (to_moment(NOW) - v.rater_since).days for v in shown.records[0].votes}
    assert ages == {"eu_old": 9, "eu_voter": 3, "eu_new": 0, None: None}
    assert shown.comparisons[0].rater_since == to_moment(NOW - 9 * DAY_MS)
    assert shown.leased_at == to_moment(NOW)


async def test_prompts_of_the_log_come_along_newest_first_and_once(db: Database) -> None:
    await store_voted(db, 1)
    for i, changes in enumerate([{}, {}, {"train_consent": False}, {"status": "aborted"}, {}]):
        await store_answers(db, 2, prompt_key=f"other {i}", created_at_ms=NOW - 50_000 + i, **changes)
    await store_answers(db, 1, prompt_key="later", created_at_ms=NOW + 1)
    assert views.batch(await take(db), PlainCipher()).prompts == []
    resumed = await take(db, max_prompts=8)
    assert [row.prompt_key for row in resumed.prompts] == ["other 4", "other 1", "other 0"]
    assert len((await take(db, max_prompts=2)).prompts) == 2
    assert views.batch(resumed, PlainCipher()).prompts[0][0]["role"] == "user"


# ── holding, resuming, losing ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_worker_gets_its_batch_again(db: Database) -> None:
    ids = await store_voted(db, 3)
    first = await take(db)
    await store_voted(db, 2)
    again = await take(db, at=NOW + 30_000)
    assert (again.id, again.resumed, _ids(again)) == (first.id, True, ids)
    assert again.lease_expires_at_ms == NOW + 90_000
    assert again.available == 5


async def test_an_expired_batch_is_free_again_for_anybody(db: Database) -> None:
    ids = await store_voted(db, 3)
    first = await take(db)
    run = await begin_run(db, first)
    assert (await take(db, "w2", at=NOW + 59_999)).state == "insufficient_data"
    second = await take(db, "w2", at=NOW + 60_000)
    assert second.id != first.id
    assert _ids(second) == ids
    row = await db.read(lambda conn: leases.get(conn, first.id or ""))
    assert (row.state, row.reason) == ("expired", "the worker let the lease expire")
    ended = await db.read(lambda conn: runs.get(conn, run.id))
    assert (ended.state, ended.reason) == ("failed", "the worker let the lease expire")


async def test_heartbeats_keep_a_lease_alive(db: Database) -> None:
    await store_voted(db, 1)
    batch = await take(db)
    for step in range(1, 5):
        row = await _heartbeat(db, batch, at=NOW + step * 50_000)
        assert row.lease_expires_at_ms == NOW + step * 50_000 + 60_000
    assert (await take(db, "w2", at=NOW + 250_000)).state == "insufficient_data"


async def test_a_lost_lease_stays_lost(db: Database) -> None:
    await store_voted(db, 1)
    batch = await take(db)
    late = NOW + 60_000
    for attempt in (_heartbeat(db, batch, at=late), _ack(db, batch, at=late), _fail(db, batch, release=True, at=late)):
        with pytest.raises(Conflict, match="expired") as raised:
            await attempt
        assert raised.value.code == "lease_lost"
    await take(db, "w2", at=late)
    with pytest.raises(Conflict, match="expired"):
        await _heartbeat(db, batch, at=NOW)


async def test_only_the_holder_may_act_on_a_batch(db: Database) -> None:
    await store_voted(db, 1)
    batch = await take(db)
    for attempt in (_heartbeat(db, batch, "w2"), _ack(db, batch, "w2"), _fail(db, batch, release=True, worker="w2")):
        with pytest.raises(Conflict, match="another worker"):
            await attempt
    with pytest.raises(NotFound):
        await db.write(lambda conn: leases.get(conn, "batch_nobody"))


async def test_a_released_batch_waits_again(db: Database) -> None:
    ids = await store_voted(db, 2)
    batch = await take(db)
    row = await _fail(db, batch, release=True)
    assert (row.state, row.reason) == ("released", "it broke")
    assert await _fail(db, batch, release=True) == row
    with pytest.raises(Conflict, match="released"):
        await _fail(db, batch, release=False)
    assert _ids(await take(db)) == ids


async def test_a_discarded_batch_is_set_aside_for_ever(db: Database) -> None:
    ids = await store_voted(db, 2)
    batch = await take(db)
    row = await _fail(db, batch, release=False)
    assert (row.state, row.version, row.records) == ("discarded", None, 2)
    await vote(db, ids[0], -1.0)
    assert (await take(db)).available == 0


async def test_an_acknowledged_batch_is_consumed_and_counted(db: Database) -> None:
    ids = await store_voted(db, 3)
    await vote(db, ids[0], -1.0, end_user="eu_2")
    batch = await take(db)
    row = await _ack(db, batch)
    assert (row.state, row.records, row.up, row.down, row.comparisons) == ("consumed", 3, 3, 1, 0)
    assert await _ack(db, batch) == row
    answer = await db.read(lambda conn: interactions.get(conn, ids[0]))
    assert answer is not None
    assert answer.consumed_by == batch.id


async def test_votes_after_the_lease_are_kept_and_do_not_reopen_a_record(db: Database) -> None:
    (answer,) = await store_voted(db, 1)
    batch = await take(db)
    during = await vote(db, answer, -1.0, end_user="eu_2")
    await _ack(db, batch)
    after = await vote(db, answer, -1.0, end_user="eu_3")
    changed = await vote(db, answer, -1.0)
    assert (during.trainable, after.trainable, changed.revision) == (True, True, 2)
    assert (await take(db)).available == 0


async def test_a_record_whose_votes_were_taken_back_during_the_lease_is_left_out(db: Database) -> None:
    first, second = await store_voted(db, 2)
    await take(db)
    await vote(db, first, None, retracts=True)
    assert _ids(await take(db)) == [second]


# ── at most once, by constraint ─────────────────────────────────────────────────────────────────────────────────────


async def test_consuming_a_record_twice_violates_a_constraint(db: Database) -> None:
    (answer,) = await store_voted(db, 1)
    first = await take(db)
    await _ack(db, first)
    await store_voted(db, 1)
    second = await take(db)

    async def sneak_in(conn: AsyncConnection) -> None:
        await conn.execute(insert(t.claims).values(item_id=answer, batch_id=second.id))
        await leases.consume(conn, [second.id or ""], "v1", now_ms=NOW)

    with pytest.raises(IntegrityError):
        await db.write(sneak_in)
    row = await db.read(lambda conn: leases.get(conn, second.id or ""))
    assert row.state == "leased"


async def test_holding_a_record_twice_violates_a_constraint(db: Database) -> None:
    (answer,) = await store_voted(db, 1)
    await take(db)
    await store_voted(db, 1)
    second = await take(db, "w2")

    async def steal(conn: AsyncConnection) -> None:
        await conn.execute(insert(t.claims).values(item_id=answer, batch_id=second.id))

    with pytest.raises(IntegrityError):
        await db.write(steal)


async def test_parallel_leases_never_overlap(db: Database) -> None:
    ids = await store_voted(db, 40)
    batches = await asyncio.gather(*(take(db, f"w{i}", max_records=6) for i in range(10)))
    taken = [response_id for batch in batches for response_id in _ids(batch)]
    assert sorted(taken) == sorted(ids)
    assert len(set(taken)) == 40
    assert sorted(len(batch.records) for batch in batches) == [0, 0, 0, 4, 6, 6, 6, 6, 6, 6]


async def test_what_was_taken_since_it_was_found_is_looked_for_again(db: Database) -> None:
    ids = await store_voted(db, 3)
    request = LeaseRequest(worker="w2", min_records=1, max_records=3)
    found = await db.read(lambda conn: leases.survey(conn, 3))
    assert list(found.oldest) == ids
    await take(db, max_records=1)
    assert await db.write(lambda conn: leases.lease(conn, request, found, now_ms=NOW)) is None
    assert _ids(await leasing.take(db, request, now_ms=NOW)) == ids[1:]
    found = await db.read(lambda conn: leases.survey(conn, 3))
    assert (found.available, list(found.oldest)) == (0, [])


async def test_nothing_is_held_up_while_a_lease_looks_for_records(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    (answer,) = await store_voted(db, 1)
    looking, look, survey = asyncio.Event(), asyncio.Event(), leases.survey

    async def slow(conn: AsyncConnection, max_records: int) -> leases.Survey:
        looking.set()
        await look.wait()
        return await survey(conn, max_records)

    monkeypatch.setattr(leases, "survey", slow)
    leased = asyncio.create_task(take(db))
    await looking.wait()
    await asyncio.wait_for(vote(db, answer, end_user="eu_2"), timeout=5)
    look.set()
    assert len((await leased).records) == 1


async def test_one_worker_asking_in_parallel_gets_one_batch(db: Database) -> None:
    await store_voted(db, 10)
    batches = await asyncio.gather(*(take(db, max_records=3) for _ in range(8)))
    assert len({batch.id for batch in batches}) == 1
    assert [batch.resumed for batch in batches].count(False) == 1


async def test_many_rounds_of_chance_train_nothing_twice(db: Database) -> None:
    """Workers lease, die, give back and consume at random; each record is consumed at most once, and none is lost."""
    chance = random.Random(7)
    ids = await store_voted(db, 30)
    now = NOW
    for _ in range(120):
        worker = f"w{chance.randrange(4)}"
        now += chance.randrange(40_000)
        batch = await take(db, worker, at=now, max_records=chance.randrange(1, 8))
        if batch.id is None:
            continue
        action = chance.random()
        if action < 0.3:
            await _ack(db, batch, worker, at=now)
        elif action < 0.6:
            await _fail(db, batch, release=True, worker=worker, at=now)

    async def tally(conn: AsyncConnection) -> tuple[list[str], list[str]]:
        used = list((await conn.execute(select(t.consumptions.c.item_id))).scalars())
        held = list((await conn.execute(select(t.claims.c.item_id))).scalars())
        return used, held

    used, held = await db.read(tally)
    assert len(used) == len(set(used))
    assert len(used) + len(held) + await db.read(leases.waiting) == len(ids)
    assert not set(used) & set(held)
