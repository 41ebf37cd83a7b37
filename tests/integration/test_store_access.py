import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from plaudit_server import views
from plaudit_server.domain.moments import DAY_MS
from plaudit_server.domain.records import SavedAnswer
from plaudit_server.errors import Conflict, NotFound
from plaudit_server.store import audit, idempotency, keys
from plaudit_server.store.database import Database
from tests.support.store_rows import NOW, open_store


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_store(tmp_path) as database:
        yield database


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_key_is_found_by_its_secret_and_by_nothing_else(db: Database) -> None:
    row, secret = await db.write(lambda conn: keys.create(conn, name="web", roles=["feedback", "chat"], now_ms=NOW))
    assert re.fullmatch(r"plk_[A-Za-z0-9_-]{43}", secret)
    assert (row.roles, row.revoked_at_ms) == (["chat", "feedback"], None)
    assert secret.startswith(row.hint.rstrip("…"))
    assert await db.read(lambda conn: keys.find(conn, secret)) == row
    for wrong in ("", "plk_", secret[:-1], secret.swapcase(), row.id, row.hint, "\ud83d"):
        assert await db.read(lambda conn, wrong=wrong: keys.find(conn, wrong)) is None


async def test_the_secret_is_not_on_the_disk(db: Database, tmp_path: Path) -> None:
    _, secret = await db.write(lambda conn: keys.create(conn, name="web", roles=["chat"], now_ms=NOW))
    await db.checkpoint()
    assert secret.encode() not in _bytes(tmp_path)


def _bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_a_given_secret_is_used_and_cannot_be_used_twice(db: Database) -> None:
    secret = keys.new_secret()
    _, kept = await db.write(lambda conn: keys.create(conn, name="admin", roles=["admin"], now_ms=NOW, secret=secret))
    assert kept == secret
    with pytest.raises(IntegrityError):
        await db.write(lambda conn: keys.create(conn, name="other", roles=["admin"], now_ms=NOW, secret=secret))


async def test_a_revoked_key_opens_nothing(db: Database) -> None:
    row, secret = await db.write(lambda conn: keys.create(conn, name="web", roles=["chat"], now_ms=NOW))
    revoked = await db.write(lambda conn: keys.revoke(conn, row.id, now_ms=NOW + 5))
    assert await db.read(lambda conn: keys.find(conn, secret)) is None
    assert revoked.revoked_at_ms == NOW + 5
    assert await db.write(lambda conn: keys.revoke(conn, row.id, now_ms=NOW + 9)) == revoked
    assert await db.read(lambda conn: keys.get(conn, row.id)) == revoked
    assert views.key(revoked).revoked_at is not None
    with pytest.raises(NotFound):
        await db.write(lambda conn: keys.revoke(conn, "key_nobody", now_ms=NOW))


async def test_keys_are_listed_newest_first(db: Database) -> None:
    made = [(await db.write(lambda conn: keys.create(conn, name="k", roles=["chat"], now_ms=NOW)))[0] for _ in range(3)]
    page = await db.read(lambda conn: keys.page(conn, limit=2))
    assert (page.items, page.has_more) == ([made[2], made[1]], True)
    assert (await db.read(lambda conn: keys.page(conn, after=made[1].id))).items == [made[0]]


# ── idempotency ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def _begin(db: Database, *, body: str = "h", at: int = NOW, scope: str = "key_1 POST /x") -> SavedAnswer | None:
    return await db.write(lambda conn: idempotency.begin(conn, scope=scope, key="abc", body_hash=body, now_ms=at))


async def _finish(db: Database, *, at: int = NOW) -> None:
    await db.write(
        lambda conn: idempotency.finish(conn, scope="key_1 POST /x", key="abc", status=201, body=b'{"a":1}', now_ms=at)
    )


async def test_the_first_answer_is_given_again(db: Database) -> None:
    assert await _begin(db) is None
    await _finish(db)
    assert await _begin(db) == SavedAnswer(201, b'{"a":1}')
    assert await _begin(db, scope="key_2 POST /x") is None


async def test_another_body_under_the_same_key_is_a_conflict(db: Database) -> None:
    await _begin(db)
    for _ in range(2):
        with pytest.raises(Conflict) as raised:
            await _begin(db, body="other")
        assert raised.value.code == "idempotency_key_reused"
        await _finish(db)


async def test_a_request_under_way_is_a_conflict_until_it_lapses(db: Database) -> None:
    await _begin(db)
    with pytest.raises(Conflict) as raised:
        await _begin(db)
    assert raised.value.code == "idempotency_in_progress"
    assert await _begin(db, at=NOW + 900_000) is None


async def test_an_abandoned_key_may_be_tried_again_and_a_finished_one_stays(db: Database) -> None:
    claim = {"scope": "key_1 POST /x", "key": "abc"}
    await _begin(db)
    await db.write(lambda conn: idempotency.abandon(conn, **claim))
    assert await _begin(db, body="other") is None
    await _finish(db)
    await db.write(lambda conn: idempotency.abandon(conn, **claim))
    assert await _begin(db, body="other") is not None


async def test_answers_are_kept_for_a_day(db: Database) -> None:
    await _begin(db)
    await _finish(db)
    assert await _begin(db, at=NOW + DAY_MS - 1) is not None
    assert await db.write(lambda conn: idempotency.purge(conn, now_ms=NOW + DAY_MS - 1)) == 0
    assert await db.write(lambda conn: idempotency.purge(conn, now_ms=NOW + DAY_MS)) == 1
    assert await _begin(db, at=NOW + DAY_MS, body="other") is None


async def test_of_many_at_once_one_goes_on(db: Database) -> None:
    outcomes = await asyncio.gather(*(_begin(db) for _ in range(20)), return_exceptions=True)
    assert outcomes.count(None) == 1
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 19


# ── audit ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_audit_entries_are_numbered_and_listed_newest_first(db: Database) -> None:
    for i in range(3):
        await db.write(
            lambda conn, i=i: audit.append(
                conn, actor="key_1", action="test", subject=f"s{i}", detail={"i": i}, now_ms=NOW + i
            )
        )
    page = await db.read(lambda conn: audit.page(conn, limit=2))
    assert ([(e.id, e.subject, e.detail, e.at_ms) for e in page.items], page.has_more) == (
        [(3, "s2", {"i": 2}, NOW + 2), (2, "s1", {"i": 1}, NOW + 1)],
        True,
    )
    assert [e.id for e in (await db.read(lambda conn: audit.page(conn, after=2))).items] == [1]


async def test_an_entry_of_an_op_that_failed_is_not_there(db: Database) -> None:
    async def fail(conn: object) -> None:
        await audit.append(conn, actor="a", action="b", subject="c", now_ms=NOW)  # type: ignore[arg-type]
        raise Conflict

    with pytest.raises(Conflict):
        await db.write(fail)
    assert (await db.read(audit.page)).items == []
