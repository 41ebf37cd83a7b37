"""Two servers on one PostgreSQL: what goes in through one comes out of the other."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from plaudit_server.domain.moments import now_ms
from plaudit_server.errors import SettingError
from plaudit_server.overview import look
from plaudit_server.store import idempotency
from tests.support.databases import current
from tests.support.server import HELLO, Harness, serving

pytestmark = pytest.mark.postgres


@asynccontextmanager
async def two_servers(folder: Path) -> AsyncIterator[tuple[Harness, Harness]]:
    """A server with its data folder, and a second one with its own, told where the key of the hashes is."""
    url = await current.ready(folder)
    async with serving(folder / "a", database_url=url) as first:
        _hand_over_admin_key(folder)
        shared = {"database_url": url, "hash_key_file": folder / "a" / "data" / "hash.key", "live_tick_s": 0.05}
        async with serving(folder / "b", **shared) as second:
            yield first, second


def _hand_over_admin_key(folder: Path) -> None:
    (folder / "b" / "data").mkdir(parents=True)
    shutil.copy(folder / "a" / "data" / "admin.key", folder / "b" / "data" / "admin.key")


async def test_a_vote_through_one_for_an_answer_through_the_other(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as (first, second):
        answer = await first.chat("Which is it?", user="ottoline")
        vote = await second.vote(answer["id"], True, end_user="ottoline")
        assert (vote.status_code, vote.json()["version"]) == (201, "base")
        again = await first.vote(answer["id"], False, end_user="ottoline")  # one user to both: one hash, one row
        assert (again.status_code, again.json()["id"], again.json()["revision"]) == (200, vote.json()["id"], 2)
        mine = await second.admin.get("/v1/chat/completions", params={"user": "ottoline"})
        assert [row["id"] for row in mine.json()["data"]] == [answer["id"]]


async def test_a_listener_at_one_hears_of_votes_through_the_other(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as (first, second):

        async def welcome() -> None:
            return

        heard = second.services.live.listen(partial(look, second.services), welcome)
        async with asyncio.timeout(10):
            assert b'"records":0' in await anext(heard)
            await first.rated(1)
            while b'"records":1' not in await anext(heard):
                pass
        await heard.aclose()


async def test_an_alias_moved_at_one_is_in_force_at_the_other_within_a_second(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as (first, second):
        name = await first.publish()

        async def resident() -> bool:
            return (await second.admin.post("/v1/chat/completions", json=_asking(f"policy@{name}"))).is_success

        await second.until(resident)
        moved = await first.admin.post(f"/v1/versions/{name}/promote")
        assert moved.status_code == 200, moved.text
        at = time.monotonic()

        async def in_force() -> bool:
            answer = await second.admin.post("/v1/chat/completions", json=_asking("policy"))
            return answer.headers.get("x-model-version") == name or name in answer.text

        await second.until(in_force, seconds=5)
        assert time.monotonic() - at < 1
        back = await second.admin.post("/v1/rollback", json={"to": "previous", "reason": "worse"})
        assert back.json()["version"] == "base"
        at = time.monotonic()

        async def back_in_force() -> bool:
            return first.services.serving.catalog.stable == "base"

        await first.until(back_in_force, seconds=5)
        assert time.monotonic() - at < 1


def _asking(model: str) -> dict[str, object]:
    return {"model": model, "messages": HELLO}


async def test_no_record_is_leased_twice(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as servers:
        ids = await servers[0].rated(12)
        lease = {"min_records": 1, "max_records": 3}
        taken = await asyncio.gather(
            *(servers[i % 2].admin.post("/v1/batches:lease", json=lease | {"worker": f"w{i}"}) for i in range(6))
        )
        leased = [record["response_id"] for batch in taken for record in batch.json()["records"]]
        assert sorted(leased) == sorted(ids)


async def test_a_key_revoked_at_one_opens_nothing_at_the_other(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as (first, second):
        made = (await first.admin.post("/v1/keys", json={"name": "app", "roles": ["viewer"]})).json()
        headers = {"authorization": f"Bearer {made['secret']}"}
        assert (await second.anonymous.get("/v1/versions", headers=headers)).status_code == 200
        await first.admin.delete(f"/v1/keys/{made['id']}")

        async def closed() -> bool:
            return (await second.anonymous.get("/v1/versions", headers=headers)).status_code == 401

        await second.until(closed, seconds=3)


async def test_the_first_keys_are_made_once_for_a_database(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as (first, _):
        names = sorted(key["name"] for key in (await first.admin.get("/v1/keys")).json()["data"])
    assert names == ["admin", "trainer"]
    assert not (tmp_path / "b" / "data" / "trainer.key").exists()


async def test_a_server_with_another_hash_key_is_refused(tmp_path: Path) -> None:
    url = await current.ready(tmp_path)
    async with serving(tmp_path / "a", database_url=url):
        pass
    with pytest.raises(SettingError, match=r"hash\.key.*cannot be read.*PLAUDIT_HASH_KEY_FILE"):
        async with serving(tmp_path / "b", database_url=url):
            pass
    other = tmp_path / "other.key"
    other.write_text("ab" * 32, encoding="ascii")
    with pytest.raises(SettingError, match=r"other\.key is not the key.*PLAUDIT_HASH_KEY_FILE"):
        async with serving(tmp_path / "b", database_url=url, hash_key_file=other):
            pass


async def test_a_server_that_starts_leaves_the_others_requests_alone(tmp_path: Path) -> None:
    url = await current.ready(tmp_path)
    async with serving(tmp_path / "a", database_url=url) as first:
        claim = {"scope": "s", "key": "k", "body_hash": "h", "now_ms": now_ms(), "holder": first.services.server_id}
        await first.services.database.write(lambda conn: idempotency.begin(conn, **claim))
        _hand_over_admin_key(tmp_path)
        hash_key = tmp_path / "a" / "data" / "hash.key"
        async with serving(tmp_path / "b", database_url=url, hash_key_file=hash_key) as second:
            gone = await second.services.database.write(
                lambda conn: idempotency.abandon_unfinished(conn, first.services.server_id)
            )
            assert gone == 1  # it was still there


async def test_a_restarted_server_gives_its_own_requests_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        holder = server.services.server_id
        claim = {"scope": "s", "key": "k", "body_hash": "h", "now_ms": now_ms(), "holder": holder}
        await server.services.database.write(lambda conn: idempotency.begin(conn, **claim))
    async with serving(tmp_path) as server:
        assert server.services.server_id == holder
        assert await server.services.database.write(lambda conn: idempotency.abandon_unfinished(conn, holder)) == 0
