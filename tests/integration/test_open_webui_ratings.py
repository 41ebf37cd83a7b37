"""What Open WebUI's event function sends, to the real server. Open WebUI's table of ratings is a stand-in here:
tests/integrations drives the function in the real one."""

import importlib.util
import sys
import time
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.server import Harness, listening, serving

pytestmark = pytest.mark.sqlite
FILE = Path(__file__).parents[2] / "clients" / "open-webui" / "plaudit_ratings.py"


class Ratings:
    """As much of Open WebUI's `Feedbacks` as the function asks for."""

    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}

    def put(self, name: str, message: str, *, age_s: int = 0, **data: Any) -> None:
        at = int(time.time()) - age_s
        given = {"id": name, "user_id": "ada", "updated_at": at, "data": data, "meta": {"message_id": message}}
        self.rows[name] = types.SimpleNamespace(**given)

    async def get_all_feedback_ids(self) -> list[Any]:
        return list(self.rows.values())

    async def get_feedback_by_id(self, id: str) -> Any:
        return self.rows.get(id)


@pytest.fixture
def ratings() -> Ratings:
    return Ratings()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratings: Ratings) -> Any:
    there: dict[str, dict[str, Any]] = {
        "open_webui": {},
        "open_webui.env": {"DATA_DIR": tmp_path},
        "open_webui.models": {},
        "open_webui.models.feedbacks": {"Feedbacks": ratings, "FeedbackModel": object},
    }
    for name, holds in there.items():
        stand_in = types.ModuleType(name)
        vars(stand_in).update(holds)
        monkeypatch.setitem(sys.modules, name, stand_in)
    spec = importlib.util.spec_from_file_location("plaudit_ratings", FILE)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@asynccontextmanager
async def rated(folder: Path, module: Any) -> AsyncIterator[tuple[Harness, Any, str]]:
    """A server, the function set up for it, and the answer that the message `m` is."""
    async with serving(folder) as server, listening(server.app) as url:
        secret = await server.client("feedback", "viewer")
        function = module.Event()
        key = secret.headers["authorization"].removeprefix("Bearer ")
        function.valves = function.Valves(url=f"{url}/v1", key=key)
        answer = await server.chat(user="ada", metadata={module.MARK: "m"})
        yield server, function, answer["id"]


async def votes(server: Harness) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await server.admin.get("/v1/feedback")).json()["data"]
    return found


def happened(name: str, about: str | None = None) -> dict[str, Any]:
    return {"event": name, "subject": {"type": "feedback", "id": about} if about else None}


async def test_given_changed_deleted(tmp_path: Path, module: Any, ratings: Ratings) -> None:
    async with rated(tmp_path, module) as (server, function, answer):
        ratings.put("f", "m", rating=1, reason="accurate", comment="to the point")
        await function.event(happened("chat.created"))
        assert await votes(server) == []
        await function.event(happened("feedback.created", "f"))
        (vote,) = await votes(server)
        assert (vote["response_id"], vote["value"], vote["tags"]) == (answer, 1.0, ["accurate"])
        assert vote["comment"] == "to the point"

        ratings.rows["f"].data = {"rating": "-1"}  # within the same second
        await function.event(happened("feedback.updated", "f"))
        (vote,) = await votes(server)
        assert (vote["value"], vote["tags"], vote["revision"]) == (-1.0, [], 2)
        await function.event(happened("system.startup.completed"))
        assert (await votes(server))[0]["revision"] == 2, "nothing new is to be sent"

        ratings.rows.clear()
        begun_again = module.Event()
        begun_again.valves = function.valves
        await begun_again.event(happened("feedback.deleted", "f"))
        assert (await votes(server))[0]["retracted"]


async def test_what_plaudit_missed_follows(tmp_path: Path, module: Any, ratings: Ratings) -> None:
    async with rated(tmp_path, module) as (server, function, answer):
        there = function.valves
        function.valves = there.model_copy(update={"url": "http://127.0.0.1:9"})
        ratings.put("f", "m", rating=1)
        with pytest.raises(httpx.ConnectError):
            await function.event(happened("feedback.created", "f"))
        function.valves = there
        await function.event(happened("system.startup.completed"))
        assert [vote["response_id"] for vote in await votes(server)] == [answer]


async def test_what_is_not_plaudits_is_left_alone(tmp_path: Path, module: Any, ratings: Ratings) -> None:
    async with rated(tmp_path, module) as (server, function, _):
        ratings.put("other", "of another model", rating=1)
        ratings.put("silent", "m")
        ratings.put("old", "m", age_s=31 * 86_400, rating=1)
        ratings.put("foreign", "m", rating=1)
        ratings.rows["foreign"].user_id = "mallory"  # did not ask
        await function.event(happened("system.startup.completed"))
        assert await votes(server) == []
        assert set(function.ledger.times()) == {"other", "silent", "foreign"}, "they are not asked about again"
