import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plaudit_server import views
from plaudit_server.domain.ids import choice_id, new_completion_id
from plaudit_server.domain.moments import DAY_MS, now_ms
from plaudit_server.domain.privacy import PlainCipher, SealedText
from plaudit_server.domain.records import Interaction, StoredComparison, StoredEvent, VoteCount
from plaudit_server.store import comparisons, counts, events, feedback, interactions, leases, versions
from plaudit_server.store.database import Database
from tests.support.store_rows import (
    NOW,
    a_registration,
    a_vote,
    an_interaction,
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


async def _add(db: Database, row: Interaction) -> Interaction:
    await db.write(lambda conn: interactions.add(conn, row))
    return row


async def _get(db: Database, response_id: str) -> Interaction | None:
    return await db.read(lambda conn: interactions.get(conn, response_id))


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_answer_comes_back_as_it_was_written(db: Database) -> None:
    row = await _add(db, an_interaction(metadata={"app": "web"}, ttft_ms=12.5, duration_ms=99.0, end_user=None))
    assert await _get(db, row.id) == row
    assert await _get(db, "chatcmpl-nobody") is None
    shown = views.stored_completion(row, PlainCipher(), feedback_count=3)
    assert (shown.content, shown.model, shown.metadata, shown.feedback_count) == (
        "Paris.",
        "policy@base",
        {"app": "web"},
        3,
    )


async def test_an_answer_without_tokens_comes_back_without(db: Database) -> None:
    bare = replace(an_interaction(), prompt_ids=None, response_ids=None, logprobs=None, finish_reason=None)
    assert await _get(db, (await _add(db, bare)).id) == bare


async def test_writing_an_answer_twice_keeps_the_first(db: Database) -> None:
    row = await _add(db, an_interaction(metadata={"a": "b"}))
    await _add(db, replace(row, version="v9"))
    assert await _get(db, row.id) == row


async def test_pages_are_newest_first_and_complete(db: Database) -> None:
    ids = await store_answers(db, 7)
    seen: list[str] = []
    after: str | None = None
    while True:
        rows = await db.read(lambda conn, after=after: interactions.page(conn, after=after, limit=3))
        seen += [row.id for row in rows.items]
        if not rows.has_more:
            break
        after = seen[-1]
    assert seen == sorted(ids, reverse=True)


async def test_filters(db: Database) -> None:
    await _add(db, an_interaction("chatcmpl-a", version="v1", metadata={"app": "web", "x": '"odd" $.key'}))
    await _add(db, an_interaction("chatcmpl-b", end_user="eu_2", metadata={"app": "web"}))
    await _add(db, an_interaction("chatcmpl-c", created_at_ms=NOW + 5, metadata={"app": "cli"}))

    async def found(**filters: Any) -> str:
        rows = await db.read(lambda conn: interactions.page(conn, **filters))
        return "".join(sorted(row.id[-1] for row in rows.items))

    assert await found() == "abc"
    assert await found(version="v1") == "a"
    assert await found(end_user="eu_2") == "b"
    assert await found(since_ms=NOW + 5) == "c"
    assert await found(metadata={"app": "web"}) == "ab"
    assert await found(metadata={"app": "web", "x": '"odd" $.key'}) == "a"
    assert await found(metadata={"app": "nobody"}) == ""
    assert await found(version="base", metadata={"app": "web"}) == "b"


async def test_fates(db: Database) -> None:
    stored = await _add(db, an_interaction())
    erased = await _add(db, an_interaction())
    await db.write(lambda conn: interactions.forget(conn, erased.id, "asked", now_ms=NOW))
    await db.write(lambda conn: interactions.add_tombstone(conn, "chatcmpl-u", "store: false", now_ms=NOW))
    for response_id, fate in [
        (stored.id, "stored"),
        (erased.id, "erased"),
        ("chatcmpl-u", "unstored"),
        ("?", "unknown"),
    ]:
        assert await db.read(lambda conn, r=response_id: interactions.fate(conn, r)) == fate


# ── erasing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_forgetting_leaves_no_text_and_no_row(db: Database, tmp_path: Path) -> None:
    row = await _add(db, an_interaction(text="answer-secret", metadata={"who": "metadata-secret"}))
    texts = {"comment": SealedText(b"comment-secret"), "correction": SealedText(b"correction-secret")}
    said = await vote(db, row.id, -1.0, **texts, tags=["tag-secret"])
    await vote(db, row.id, 1.0)
    await compare(db, row.id, None, rejected_text=SealedText(b"rejected-secret"))
    gone = await db.write(lambda conn: interactions.forget(conn, row.id, "asked", now_ms=NOW))
    assert gone == interactions.Forgotten(found=True, versions=())
    assert await _get(db, row.id) is None
    assert await db.read(lambda conn: feedback.revisions(conn, said.id)) == []
    kept = await db.read(lambda conn: feedback.get(conn, said.id))
    assert kept is not None
    assert (kept.value, kept.comment, kept.correction, kept.tags, kept.trainable) == (1.0, None, None, [], False)
    await db.checkpoint()
    assert b"-secret" not in b"".join(_contents(tmp_path))


def _contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.iterdir()]


async def test_forgetting_an_answer_in_flight_keeps_it_from_being_written(db: Database) -> None:
    response_id = new_completion_id()
    await vote(db, response_id, comment=SealedText(b"hello"))
    gone = await db.write(lambda conn: interactions.forget(conn, response_id, "asked", now_ms=NOW))
    assert not gone.found
    await _add(db, an_interaction(response_id))
    assert await _get(db, response_id) is None
    again = await db.write(lambda conn: interactions.forget(conn, response_id, "asked", now_ms=NOW))
    assert again == gone


async def test_forgetting_takes_a_record_out_of_a_live_batch(db: Database) -> None:
    first, second = await store_voted(db, 2)
    pair = await compare(db, first, second)
    batch = await take(db)
    assert [p.comparison.id for p in batch.comparisons] == [pair.id]
    await db.write(lambda conn: interactions.forget(conn, first, "asked", now_ms=NOW))
    again = await take(db)
    assert again.resumed
    assert [r.interaction.id for r in again.records] == [second]
    assert again.comparisons == []
    assert await db.read(leases.waiting) == 0
    # The worker may have read it: what it registers is tainted from the start.
    request = a_registration(await begin_run(db, again))
    version, _ = await db.write(lambda conn: versions.register(conn, request, now_ms=NOW))
    assert (version.tainted, version.records) == (True, 1)


# ── votes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_vote_is_created_then_replaced_with_its_history(db: Database) -> None:
    (answer,) = await store_answers(db, 1)
    first, created = await db.write(
        lambda conn: feedback.put(conn, a_vote(answer, 1.0, tags=["a"], comment=SealedText(b"good")))
    )
    second, replaced = await db.write(
        lambda conn: feedback.put(conn, a_vote(answer, -1.0, occurred_at_ms=NOW + 1, received_at_ms=NOW + 2))
    )
    assert (created, replaced) == ("created", "replaced")
    assert (first.id, first.revision, first.version) == (second.id, 1, "base")
    assert (second.revision, second.value, second.tags, second.comment) == (2, -1.0, [], None)
    assert (second.occurred_at_ms, second.received_at_ms) == (NOW + 1, NOW + 2)
    assert await db.read(lambda conn: feedback.get(conn, first.id)) == second
    assert await db.read(lambda conn: feedback.revisions(conn, first.id)) == [first]


async def test_the_same_content_twice_changes_nothing(db: Database) -> None:
    (answer,) = await store_answers(db, 1)
    first = await vote(db, answer, 1.0, comment=SealedText(b"good"))
    again = await vote(db, answer, 1.0, comment=SealedText(b"good"), received_at_ms=NOW + 99)
    assert again == first


async def test_a_hundred_identical_votes_at_once_make_one_row(db: Database) -> None:
    (answer,) = await store_answers(db, 1)
    outcomes = await asyncio.gather(*(db.write(lambda conn: feedback.put(conn, a_vote(answer))) for _ in range(100)))
    assert sorted(outcome for _, outcome in outcomes) == ["created"] + ["replaced"] * 99
    assert {row for row, _ in ((r.id, o) for r, o in outcomes)} == {outcomes[0][0].id}
    rows = await db.read(lambda conn: feedback.page(conn, response_id=answer))
    assert [row.revision for row in rows.items] == [1]


async def test_a_hundred_different_votes_at_once_keep_every_revision(db: Database) -> None:
    (answer,) = await store_answers(db, 1)
    rows = await asyncio.gather(*(vote(db, answer, i / 100) for i in range(100)))
    assert sorted(row.revision for row in rows) == list(range(1, 101))
    assert len(await db.read(lambda conn: feedback.revisions(conn, rows[0].id))) == 99


async def test_users_and_keys_have_their_own_votes(db: Database) -> None:
    (answer,) = await store_answers(db, 1)
    rows = [
        await vote(db, answer, end_user="eu_1"),
        await vote(db, answer, end_user="eu_2"),
        await vote(db, answer, end_user=None),
        await vote(db, answer, key="style"),
    ]
    assert len({row.id for row in rows}) == 4
    assert (await vote(db, answer, -1.0, end_user=None)).id == rows[2].id
    assert rows[2].end_user is None
    assert await db.read(lambda conn: feedback.counts(conn, [answer, "chatcmpl-other"])) == {answer: 4}


async def test_a_comment_alone_leaves_the_vote_standing(db: Database) -> None:
    (answer,) = await store_answers(db, 1)
    await vote(db, answer, -1.0)
    said = await vote(db, answer, None, comment=SealedText(b"too long"))
    assert (said.value, said.comment, said.retracted, said.revision) == (-1.0, b"too long", False, 2)


async def test_retracting_keeps_the_row(db: Database) -> None:
    (answer,) = await store_answers(db, 1)
    first = await vote(db, answer, 1.0)
    taken_back = await vote(db, answer, None, retracts=True)
    assert (taken_back.id, taken_back.value, taken_back.retracted, taken_back.trainable) == (
        first.id,
        None,
        True,
        False,
    )
    assert await db.read(lambda conn: feedback.counts(conn, [answer])) == {}
    again = await vote(db, answer, 1.0)
    assert (again.value, again.retracted, again.trainable, again.revision) == (1.0, False, True, 3)


async def test_a_vote_before_its_answer_is_kept_and_learns_its_version(db: Database) -> None:
    response_id = choice_id(new_completion_id(), 1)
    early = await vote(db, response_id, 1.0, occurred_at_ms=now_ms(), received_at_ms=now_ms())
    assert early.version is None
    assert await db.read(leases.waiting) == 0
    await _add(db, an_interaction(response_id, version="v7"))
    late = await db.read(lambda conn: feedback.get(conn, early.id))
    assert late is not None
    assert late.version == "v7"
    assert await db.read(leases.waiting) == 1


async def test_a_vote_after_thirty_days_is_kept_untrainable(db: Database) -> None:
    (answer,) = await store_answers(db, 1, created_at_ms=NOW)
    late = NOW + 30 * DAY_MS + 1
    row = await vote(db, answer, 1.0, occurred_at_ms=late, received_at_ms=late)
    assert (row.value, row.trainable) == (1.0, False)
    assert await db.read(leases.waiting) == 0


async def test_feedback_pages_and_filters(db: Database) -> None:
    first, second = await store_answers(db, 2)
    rows = [await vote(db, first, end_user=f"eu_{i}", received_at_ms=NOW + i) for i in range(5)]
    await vote(db, second)

    async def found(**filters: Any) -> tuple[list[str], bool]:
        page = await db.read(lambda conn: feedback.page(conn, **filters))
        return [row.id for row in page.items], page.has_more

    newest_first = [row.id for row in reversed(rows)]
    assert await found(response_id=first) == (newest_first, False)
    assert await found(response_id=first, limit=2) == (newest_first[:2], True)
    assert await found(response_id=first, limit=2, after=newest_first[1]) == (newest_first[2:4], True)
    assert await found(response_id=first, since_ms=NOW + 3) == (newest_first[:2], False)
    assert await found(version="v9") == ([], False)


async def test_deleting_feedback_takes_its_history_along(db: Database) -> None:
    (answer,) = await store_answers(db, 1)
    row = await vote(db, answer, 1.0)
    await vote(db, answer, -1.0)
    assert await db.write(lambda conn: feedback.delete(conn, row.id))
    assert not await db.write(lambda conn: feedback.delete(conn, row.id))
    assert await db.read(lambda conn: feedback.get(conn, row.id)) is None
    assert await db.read(lambda conn: feedback.revisions(conn, row.id)) == []
    assert await db.read(leases.waiting) == 0


async def test_counts_by_version_key_and_sign(db: Database) -> None:
    first, second, third = await store_answers(db, 3)
    await vote(db, first, 1.0)
    await vote(db, second, 0.5)
    await vote(db, third, -1.0)
    await vote(db, third, 0.0, key="style")
    await vote(db, third, None, key="other", comment=SealedText(b"x"))
    await vote(db, "chatcmpl-early", 1.0)
    found = await db.read(counts.votes)
    assert set(found) == {
        VoteCount("base", "thumb", "up", 2),
        VoteCount("base", "thumb", "down", 1),
        VoteCount("base", "style", "neutral", 1),
        VoteCount(None, "thumb", "up", 1),
    }
    assert await db.read(counts.answers) == {"base": 3}


async def test_feedback_as_the_wire_shows_it(db: Database) -> None:
    (answer,) = await store_answers(db, 1)
    row = await vote(db, answer, 1.0, comment=SealedText("schön".encode()), tags=["a"])
    shown = views.feedback(row, PlainCipher(), status="created")
    assert (shown.comment, shown.tags, shown.version, shown.status) == ("schön", ["a"], "base", "created")


# ── comparisons and events ──────────────────────────────────────────────────────────────────────────────────────────


async def test_comparisons_come_back_as_they_were_written(db: Database) -> None:
    first, second = await store_answers(db, 2)
    pair = await compare(db, first, second, tie="good")
    written = await compare(db, None, second, chosen_version="v3")

    async def get(comparison_id: str) -> StoredComparison | None:
        return await db.read(lambda conn: comparisons.get(conn, comparison_id))

    assert await get(pair.id) == pair
    assert await get(written.id) == written
    assert await get("cmp_nobody") is None
    page = await db.read(lambda conn: comparisons.page(conn, limit=1))
    assert (page.items, page.has_more) == ([written], True)
    shown = views.comparison(written, PlainCipher())
    assert (shown.chosen, shown.chosen_text, shown.rejected) == (None, "a better one", second)


async def test_events_come_back_as_they_were_written(db: Database) -> None:
    one = StoredEvent("evt_1", "chatcmpl-a", "regenerate", "chatcmpl-b", "eu_1", NOW, NOW + 1)
    two = StoredEvent("evt_2", "chatcmpl-c", "copy", None, None, NOW, NOW)
    await db.write(lambda conn: events.add(conn, one))
    await db.write(lambda conn: events.add(conn, two))
    assert await db.read(lambda conn: events.get(conn, "evt_1")) == one
    assert (await db.read(events.page)).items == [two, one]
    assert (await db.read(lambda conn: events.page(conn, response_id="chatcmpl-a"))).items == [one]
    assert views.event(one).new_response_id == "chatcmpl-b"
