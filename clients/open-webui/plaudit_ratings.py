"""
title: Plaudit ratings
author: Plaudit
version: 0.1.0
required_open_webui_version: 0.10.0
description: Forwards ratings of Plaudit's answers, with reason and comment, to Plaudit; takes back what is deleted.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from open_webui.env import DATA_DIR
from open_webui.models.feedbacks import FeedbackModel, Feedbacks
from pydantic import BaseModel, Field

log = logging.getLogger(__name__)

MARK = "open_webui_message"
"""The key of Plaudit's `metadata` that holds Open WebUI's message id; `plaudit_models.py` sets it."""
DAY_S = 86_400
PASSING = (401, 403, 408, 429)
"""Refusals that say nothing about the vote: it is sent again."""


class Event:
    """An Open WebUI event function. Every event about ratings makes it send whatever Plaudit has not got yet, so that
    ratings given while Plaudit was away follow with the next one, or when Open WebUI starts."""

    class Valves(BaseModel):
        """What an administrator sets."""

        url: str = Field(default="http://127.0.0.1:8000", description="Plaudit's address, without /v1")
        key: str = Field(
            default="",
            description="A key with the roles feedback and viewer (to find the answer that a message is)",
            json_schema_extra={"input": {"type": "password"}},
        )
        max_age_days: int = Field(default=30, description="Older ratings are not sent: nothing is learnt from them")
        timeout_s: float = Field(default=30, description="Seconds to wait for Plaudit")

    def __init__(self) -> None:
        self.valves = self.Valves()
        self.ledger = Ledger(Path(DATA_DIR) / "plaudit_ratings.db")
        self.turn = asyncio.Lock()

    async def event(self, event: dict[str, Any]) -> None:
        """Called by Open WebUI for everything that happens."""
        name = str(event.get("event"))
        if not (name.startswith("feedback.") or name == "system.startup.completed"):
            return
        async with self.turn, self._client() as client:
            changed = (event.get("subject") or {}).get("id")
            present = await self._send_new(client, changed)
            if name.startswith("feedback.deleted"):
                await self._take_back(client, present)

    async def _send_new(self, client: httpx.AsyncClient, changed: str | None) -> set[str]:
        """Send what is new or changed; the ids of all ratings there are.

        Times are whole seconds: a second change within one is seen because the event names what changed.
        """
        rows = await Feedbacks.get_all_feedback_ids()
        known = self.ledger.times()
        oldest = time.time() - self.valves.max_age_days * DAY_S
        for row in rows:
            if row.id == changed or (known.get(row.id) != row.updated_at and row.updated_at >= oldest):
                rating = await Feedbacks.get_feedback_by_id(row.id)
                if rating is not None:
                    await self._send(client, rating)
        return {row.id for row in rows}

    async def _send(self, client: httpx.AsyncClient, rating: FeedbackModel) -> None:
        response_id = await self._answer_of(client, str((rating.meta or {}).get("message_id") or ""))
        said = _said(rating)
        if response_id and said:
            vote = {"response_id": response_id, "end_user": rating.user_id, "occurred_at": _moment(rating), **said}
            answer = await client.post("/v1/feedback", json=vote)
            if answer.status_code in PASSING or answer.is_server_error:
                answer.raise_for_status()
            if answer.is_error:
                log.warning("Plaudit refused rating %s (%d): %s", rating.id, answer.status_code, answer.text[:200])
                response_id = ""
        self.ledger.put(rating.id, rating.updated_at, response_id, rating.user_id)

    async def _answer_of(self, client: httpx.AsyncClient, message_id: str) -> str:
        """The answer that a message is, the latest where it took several; empty where Plaudit gave none."""
        if not message_id:
            return ""
        found = await client.get("/v1/chat/completions", params={f"metadata[{MARK}]": message_id, "limit": 1})
        found.raise_for_status()
        return next((str(one["id"]) for one in found.json()["data"]), "")

    async def _take_back(self, client: httpx.AsyncClient, present: set[str]) -> None:
        for rating_id, response_id, user in self.ledger.votes():
            if rating_id in present:
                continue
            vote = {"response_id": response_id, "value": None, "end_user": user}
            answer = await client.post("/v1/feedback", json=vote)
            if answer.status_code in PASSING or answer.is_server_error:
                answer.raise_for_status()
            self.ledger.forget(rating_id)

    def _client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.valves.key}"}
        url = self.valves.url.rstrip("/").removesuffix("/v1")
        return httpx.AsyncClient(base_url=url, headers=headers, timeout=self.valves.timeout_s)


class Ledger:
    """What was sent, in a file: which rating, as of when, as whose word on which answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._do(
            "CREATE TABLE IF NOT EXISTS sent"
            " (rating_id TEXT PRIMARY KEY, updated_at INTEGER, response_id TEXT, user_id TEXT)"
        )

    def times(self) -> dict[str, int]:
        """When each rating that was dealt with had last changed, in seconds."""
        return dict(self._do("SELECT rating_id, updated_at FROM sent"))

    def votes(self) -> list[tuple[str, str, str]]:
        """Rating, answer and user of what Plaudit has."""
        return self._do("SELECT rating_id, response_id, user_id FROM sent WHERE response_id <> ''")

    def put(self, rating_id: str, updated_at: int, response_id: str, user_id: str) -> None:
        """Note that a rating was dealt with; `response_id` is empty where it is not Plaudit's to have."""
        self._do("INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?)", (rating_id, updated_at, response_id, user_id))

    def forget(self, rating_id: str) -> None:
        """Note that a vote was taken back."""
        self._do("DELETE FROM sent WHERE rating_id = ?", (rating_id,))

    def _do(self, statement: str, values: Iterable[Any] = ()) -> list[Any]:
        with closing(sqlite3.connect(self.path, timeout=10)) as connection, connection:
            return connection.execute(statement, tuple(values)).fetchall()


def _said(rating: FeedbackModel) -> dict[str, Any]:
    """Thumb, reason and comment as Plaudit has them; empty where there is none."""
    data = rating.data or {}
    thumb = str(data.get("rating") or "")
    said: dict[str, Any] = {"value": int(thumb) > 0} if thumb in ("1", "-1") else {}
    if data.get("reason"):
        said["tags"] = [str(data["reason"])[:128]]
    if data.get("comment"):
        said["comment"] = str(data["comment"])
    return said


def _moment(rating: FeedbackModel) -> str:
    return datetime.fromtimestamp(rating.updated_at, UTC).isoformat()
