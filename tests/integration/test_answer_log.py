"""Answers wait for no disk, votes do; what waits is bounded."""

import asyncio
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plaudit_server import answer_log, answering
from plaudit_server.domain.ids import new_completion_id
from plaudit_server.domain.privacy import seal
from plaudit_server.store import interactions
from tests.support.server import HELLO, Harness, serving, until

pytestmark = pytest.mark.sqlite  # looks into the file, past the server

CHAT = "/v1/chat/completions"


def on_disk(server: Harness, response_id: str) -> bool:
    """Whether the row is committed, asked past the server: a crash now would leave it."""
    with sqlite3.connect(server.settings.data / "plaudit.db") as connection:
        found = connection.execute("select 1 from interactions where id = ?", (response_id,)).fetchone()
    connection.close()
    return found is not None


class Disk:
    """The database's `write`, which can be held up. Counts what is asked of it."""

    def __init__(self, server: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs = asyncio.Event()
        self.runs.set()
        self.asked = 0
        self._write = server.services.database.write
        monkeypatch.setattr(server.services.database, "write", self.write)

    async def write(self, op: Any, **how: Any) -> Any:
        self.asked += 1
        await self.runs.wait()
        return await self._write(op, **how)


async def test_a_row_is_written_without_anybody_asking_for_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat()
        await until(lambda: on_disk(server, answer["id"]))


async def test_an_answer_does_not_wait_for_the_disk_but_a_vote_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as server:
        disk = Disk(server, monkeypatch)
        disk.runs.clear()
        whole = await server.chat()
        streamed = await server.admin.post(CHAT, json={"messages": HELLO, "stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert not on_disk(server, whole["id"])
        voting = asyncio.create_task(server.vote(whole["id"]))
        await asyncio.sleep(0.2)
        assert not voting.done()
        disk.runs.set()
        vote = await voting
        assert (vote.status_code, vote.json()["version"]) == (201, "base")
        assert on_disk(server, whole["id"])


async def test_a_vote_cuts_the_window_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_log, "WINDOW_S", 3600.0)
    async with serving(tmp_path) as server:
        answer, other = await server.chat(), await server.chat()
        assert not on_disk(server, answer["id"])
        assert (await server.vote(answer["id"])).status_code == 201
        assert on_disk(server, answer["id"]) and on_disk(server, other["id"])
        third = await server.chat()
        body = {"chosen": third["id"], "rejected": answer["id"]}
        assert (await server.admin.post("/v1/comparisons", json=body)).status_code == 201
        fourth = await server.chat()
        event = {"response_id": fourth["id"], "type": "copy"}
        assert (await server.admin.post("/v1/events", json=event)).status_code == 201
        fifth = await server.chat()
        assert (await server.admin.get(f"{CHAT}/{fifth['id']}")).status_code == 200
        sixth = await server.chat()
        assert (await server.admin.get(CHAT)).json()["data"][0]["id"] == sixth["id"]
        seventh = await server.chat()
        assert (await server.admin.delete(f"{CHAT}/{seventh['id']}")).status_code == 200


async def test_closing_writes_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_log, "WINDOW_S", 3600.0)
    async with serving(tmp_path) as server:
        answer = await server.chat()
    assert on_disk(server, answer["id"])


async def test_answers_that_end_together_are_one_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_log, "WINDOW_S", 3600.0)
    async with serving(tmp_path) as server:
        disk = Disk(server, monkeypatch)
        answers = await asyncio.gather(*(server.chat(metadata={"n": str(n)}, store=n != 3) for n in range(20)))
        await server.services.answering.all_written()
        assert disk.asked == 1
        assert [on_disk(server, answer["id"]) for answer in answers] == [n != 3 for n in range(20)]
        found = (await server.admin.get(CHAT, params={"metadata[n]": "7"})).json()["data"]
        assert [row["id"] for row in found] == [answers[7]["id"]]
        assert (await server.vote(answers[3]["id"])).status_code == 410


async def test_a_vote_waits_a_moment_for_a_row_that_another_process_writes(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        given = await server.chat()
        async with asyncio.timeout(5):
            row = await server.services.database.read(lambda conn: interactions.get(conn, given["id"]))
            while row is None:
                await asyncio.sleep(0.01)
                row = await server.services.database.read(lambda conn: interactions.get(conn, given["id"]))
        elsewhere = replace(row, id=new_completion_id())
        voting = asyncio.create_task(server.vote(elsewhere.id))
        await asyncio.sleep(0.03)
        await server.services.database.write(lambda conn: interactions.add(conn, elsewhere))
        assert (await voting).status_code == 201
        assert (await server.vote(new_completion_id())).status_code == 404


async def test_a_row_that_cannot_be_made_does_not_take_others_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(exchange: Any, *rest: Any) -> Any:
        if exchange.metadata.get("odd"):
            raise ValueError("no row can be made of this")
        return seal(exchange, *rest)

    monkeypatch.setattr(answer_log, "seal", picky)
    async with serving(tmp_path) as server:
        one, odd, two = await asyncio.gather(server.chat(), server.chat(metadata={"odd": "1"}), server.chat())
        await server.services.answering.all_written()
        assert on_disk(server, one["id"]) and on_disk(server, two["id"])
        assert "plaudit_answers_unrecorded_total 1.0" in (await server.admin.get("/metrics")).text
        vote = await server.vote(odd["id"])
        assert (vote.status_code, vote.json()["error"]["code"]) == (404, "response_not_found")
        assert "ended too suddenly" in vote.json()["error"]["message"]


async def test_a_disk_that_falls_behind_turns_chats_away_before_memory_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "MOST_WAITING", 3)
    async with serving(tmp_path) as server:
        disk = Disk(server, monkeypatch)
        disk.runs.clear()
        for _ in range(3):
            await server.chat()
        refused = await server.admin.post(CHAT, json={"messages": HELLO})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        disk.runs.set()
        await server.services.answering.all_written()
        await server.chat()
