"""Health, readiness, metrics, documents, what is logged."""

import asyncio
import logging
from pathlib import Path

import pytest

from plaudit_server.app import create_app
from plaudit_server.engine.fake import FakeEngine
from plaudit_server.errors import SettingError
from plaudit_server.settings import Settings
from plaudit_server.telemetry import JsonLines
from tests.support.server import HELLO, serving


async def test_health_answers_before_the_engine_does(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine(start_s=0.3)) as server:
        health = (await server.anonymous.get("/healthz")).json()
        assert (health["status"], health["engine"], health["fake_engine"]) == ("starting", "starting", True)
        assert health["stable"] == "base"
        assert (await server.anonymous.get("/readyz")).status_code == 503

        async def ready() -> bool:
            return (await server.anonymous.get("/readyz")).status_code == 200

        await server.until(ready)
        assert (await server.anonymous.get("/readyz")).json()["status"] == "ok"
        server.engine.crash()
        assert (await server.anonymous.get("/readyz")).status_code == 503
        assert (await server.anonymous.get("/healthz")).status_code == 200


async def test_health_tells_when_a_trainer_was_last_here(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert (await server.anonymous.get("/healthz")).json()["trainer_seen_at"] is None
        await server.admin.post("/v1/batches:lease", json={"worker": "w"})
        assert (await server.anonymous.get("/healthz")).json()["trainer_seen_at"] is not None


async def test_metrics(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat()
        await server.vote(answer["id"], True)
        await server.admin.post("/v1/chat/completions", json={"messages": HELLO, "stream": True})
        await server.anonymous.get("/nowhere")
        text = (await server.admin.get("/metrics")).text
        for line in (
            'plaudit_requests_total{method="POST",route="/v1/chat/completions",status="200"} 2.0',
            'plaudit_requests_total{method="GET",route="unmatched",status="404"} 1.0',
            'plaudit_chats_total{status="complete",version="base"} 2.0',
            'plaudit_votes_total{value="up",version="base"} 1.0',
            'plaudit_tokens_total{kind="completion",version="base"} 28.0',
            'plaudit_ttft_seconds_count{version="base"} 2.0',
            "plaudit_overhead_seconds_count 2.0",
            "plaudit_chats_in_flight 0.0",
            'plaudit_engine_state{replica="fake-0",state="ready"} 1.0',
            "plaudit_records_waiting 1.0",
        ):
            assert line in text, line
        assert (await server.anonymous.get("/metrics")).status_code == 401
        viewer = await server.client("viewer")
        assert (await viewer.get("/metrics")).status_code == 200


async def test_two_apps_do_not_mix_their_figures(tmp_path: Path) -> None:
    async with serving(tmp_path / "a") as one, serving(tmp_path / "b") as two:
        await one.chat()
        assert "plaudit_overhead_seconds_count 1.0" in (await one.admin.get("/metrics")).text
        assert "plaudit_overhead_seconds_count 0.0" in (await two.admin.get("/metrics")).text


async def test_no_text_of_users_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with serving(tmp_path) as server:
            answer = await server.chat("My name is Ottoline.", user="ottoline")
            await server.vote(answer["id"], True, comment="Ottoline likes it", end_user="ottoline")
            server.engine.fail_after_tokens = 1
            body = {"messages": [{"role": "user", "content": "Ottoline?"}], "stream": True}
            await server.admin.post("/v1/chat/completions", json=body)
            await server.admin.post("/v1/feedback", json={"Ottoline": 1})
    ours = [record for record in caplog.records if record.name.startswith("plaudit")]
    assert ours
    assert not [line for line in map(JsonLines().format, ours) if "ttoline" in line]


async def test_unset_consent_is_said_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path, consent_default=None):
        pass
    assert "PLAUDIT_CONSENT_DEFAULT is not set" in caplog.text


async def test_a_second_server_on_the_folder_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        second = create_app(Settings(data=server.settings.data, engine="fake"))
        with pytest.raises(SettingError, match="another Plaudit server"):
            async with second.router.lifespan_context(second):
                pass
    async with serving(tmp_path):  # the first has let go
        await asyncio.sleep(0)


async def test_documents(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert "Plaudit" in (await server.anonymous.get("/docs")).text
        assert (await server.anonymous.get("/openapi.json")).json()["info"]["title"] == "Plaudit"
