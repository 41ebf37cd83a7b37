"""What people write appears in no log line of any level or library, in no metric, and in no error answer."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from plaudit_server import telemetry
from plaudit_server.errors import EngineError
from plaudit_server.store import Connection, feedback, interactions
from tests.support.server import Harness, ask_and_leave, listening, serving

LEVELS = [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR]
MARKERS = ("Ottoline-question", "Ottoline-comment", "Ottoline-correction", "Ottoline-tag", "Ottoline-person")
QUESTION, COMMENT, CORRECTION, TAG, PERSON = MARKERS


@contextmanager
def logged(level: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Everything that the process logs, as `serve` would write it; the loggers are put back as they were."""
    root, written = logging.getLogger(), io.StringIO()
    handlers, before = root.handlers[:], root.level
    names = [logging.getLogger(name) for name in telemetry._TALKATIVE]
    levels = [each.level for each in names]
    monkeypatch.setattr(telemetry.sys, "stderr", written)
    # `force` would close the handlers of the tests themselves.
    root.handlers = []
    try:
        telemetry.configure_logging(level)
        yield written
    finally:
        root.handlers = handlers
        root.setLevel(before)
        for each, was in zip(names, levels, strict=True):
            each.setLevel(was)


async def live(server: Harness, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that a person can say, well and badly; returns the answers that were errors."""
    said = [{"role": "user", "content": QUESTION}]
    ask = {"messages": said, "user": PERSON, "metadata": {"name": PERSON}}
    chat, votes = "/v1/chat/completions", "/v1/feedback"
    answer = (await server.admin.post(chat, json=ask)).json()
    words = {"comment": COMMENT, "correction": CORRECTION, "tags": [TAG], "end_user": PERSON}
    assert (await server.vote(answer["id"], True, **words)).status_code == 201
    assert (await server.vote(answer["id"], None, end_user=PERSON)).status_code == 200
    assert (await server.admin.post(chat, json=ask | {"stream": True})).status_code == 200
    await ask_and_leave(server.app, chat, ask | {"stream": True}, dict(server.admin.headers), after=1)
    bad = [
        await server.admin.post(chat, json=ask | {"temperature": QUESTION}),
        await server.admin.post(chat, json=ask | {"model": QUESTION * 9}),
        await server.admin.post(chat, content=f'{{"messages": "{QUESTION}'.encode()),
        await server.admin.post(votes, json={"response_id": answer["id"], "value": COMMENT, "comment": COMMENT}),
        await server.admin.post(votes, json={"response_id": "chatcmpl-none", "value": 1} | words),
        await server.admin.post(votes, json={"response_id": answer["id"], "value": 1, "comment": [COMMENT]}),
    ]
    server.engine.down = True
    bad.append(await server.admin.post(chat, json=ask))
    server.engine.down = False
    server.engine.fail_after_tokens = 1
    assert QUESTION not in (await server.admin.post(chat, json=ask | {"stream": True})).text
    server.engine.fail_after_tokens = None
    bad += await break_inside(server, ask, monkeypatch)
    assert {each.status_code // 100 for each in bad} <= {4, 5}
    return [each.text for each in bad]


async def break_inside(server: Harness, ask: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Failures that nobody foresaw, whose exceptions quote what they were given."""

    async def broken(*_: Any, **__: Any) -> Any:
        raise ValueError(f"cannot do anything with {QUESTION}")

    with monkeypatch.context() as patch:
        patch.setattr(server.engine, "chat", broken)
        answers = [await server.admin.post("/v1/chat/completions", json=ask)]
    # A statement that the database refuses: its error would quote the parameters.

    async def refused(conn: Connection, given: Any) -> None:
        await conn.execute(text("INSERT INTO nowhere VALUES (:words)"), {"words": QUESTION})

    with monkeypatch.context() as patch:
        patch.setattr(interactions, "add_many", refused)
        unwritten = await server.admin.post("/v1/chat/completions", json=ask)
        assert unwritten.status_code == 200  # an answer does not wait for its row
        await server.services.answering.all_written()
    with monkeypatch.context() as patch:
        patch.setattr(feedback, "put", refused)
        answers.append(await server.vote((await server.chat())["id"], True, comment=COMMENT))
    return answers


@pytest.mark.parametrize("level", LEVELS, ids=logging.getLevelName)
async def test_no_words_of_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    with logged(level, monkeypatch) as written:
        async with serving(tmp_path, access_log=True) as server, listening(server.app) as address:
            server.admin = httpx.AsyncClient(base_url=address, headers=server.admin.headers, trust_env=False)
            errors = await live(server, monkeypatch)
            metrics = (await server.admin.get("/metrics")).text
            await server.admin.aclose()
    lines = written.getvalue().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events.count("request.failed") == 2, "both failures that nobody foresaw are logged"
    assert "answer.unrecorded" in events
    assert (level <= logging.WARNING) == ("chat.failed" in events)
    assert (level <= logging.INFO) == ("request" in events)
    assert all(set(json.loads(line)) >= {"at", "level", "logger", "event"} for line in lines)
    told = "\n".join([*lines, metrics, *errors])
    assert [marker for marker in MARKERS if marker.lower() in told.lower()] == []


async def test_the_access_log_tells_what_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with logged(logging.INFO, monkeypatch) as written:
        async with serving(tmp_path, access_log=True) as server:
            answer = await server.admin.get("/v1/versions/v9?token=hidden", headers={"x-request-id": "mine-1"})
            assert answer.status_code == 404
            await server.chat()
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    missing, chat = [line for line in lines if line["logger"] == "plaudit_server.access_log"]
    assert (missing["method"], missing["route"], missing["status"]) == ("GET", "/v1/versions/{version}", 404)
    assert (missing["request_id"], missing["version"]) == ("mine-1", None)
    assert (chat["route"], chat["status"], chat["version"]) == ("/v1/chat/completions", 200, "base")
    assert 0 <= chat["seconds"] < 30
    assert "hidden" not in written.getvalue()


async def test_there_is_no_access_log_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with logged(logging.DEBUG, monkeypatch) as written:
        async with serving(tmp_path) as server:
            await server.chat()
    assert "plaudit_server.access_log" not in written.getvalue()


async def test_an_engine_that_quotes_the_prompt_in_mid_stream_is_not_quoted_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as server:

        async def quoting(*_: Any) -> Any:
            raise EngineError(f"cannot template {QUESTION}")
            yield

        monkeypatch.setattr(server.engine, "_draw", quoting)
        with logged(logging.DEBUG, monkeypatch) as written:
            body = {"messages": [{"role": "user", "content": QUESTION}], "stream": True}
            answer = await server.admin.post("/v1/chat/completions", json=body)
    assert "cannot template" in answer.text  # the caller may know: it is the caller's own
    line = next(json.loads(one) for one in written.getvalue().splitlines() if "chat.failed" in one)
    assert line["error"] == "EngineError"
    assert QUESTION not in written.getvalue()
