"""Bad input: a clear error in OpenAI's shape, never a traceback, never a 500."""

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.server import HELLO, Harness, serving

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Harness]:
    async with serving(tmp_path, max_body_bytes=20_000) as running:
        yield running


def error_of(answer: Any) -> dict[str, Any]:
    """The error object; fails where the answer is not in OpenAI's shape."""
    body = answer.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}, body
    assert answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    found: dict[str, Any] = body["error"]
    return found


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"messages": [], "messages": []}', 400),
        (b'{"messages": [{"role": "user", "content": NaN}]}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e400}', 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b'{"messages": [{"role": "user", "content": "\\u0000"}]}', 400),
        (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
        (b'{"messages": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}", 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "seed": 99999999999999999999}', 400),
        (b"[]", 422),
        (b'"text"', 422),
        (b"null", 422),
        (b"", 422),
        (b"{}", 422),
        (b'{"messages": []}', 422),
        (b'{"messages": "hi"}', 422),
        (b'{"messages": ["hi"]}', 422),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None,
)
async def test_bodies(server: Harness, body: bytes, status: int) -> None:
    answer = await server.admin.post(CHAT, content=body, headers=JSON)
    assert answer.status_code == status
    assert error_of(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": 0}, "top_p"),
        ({"stop": ["x"] * 17}, "stop.list[constrained-str]"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"user": ""}, "user"),
        ({"user": "x" * 129}, "user"),
        ({"stream": "sometimes"}, "stream"),
    ],
    ids=str,
)
async def test_fields(server: Harness, fields: dict[str, Any], param: str) -> None:
    answer = await server.admin.post(CHAT, json={"messages": HELLO} | fields)
    assert answer.status_code == 422
    assert (error_of(answer)["param"] or "").split(".")[0] == param.split(".", maxsplit=1)[0]


@pytest.mark.parametrize(
    "moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1700000000", "2026-01-01", 1e300]
)
async def test_moments(server: Harness, moment: Any) -> None:
    response_id = (await server.chat())["id"]
    answer = await server.vote(response_id, occurred_at=moment)
    assert answer.status_code in (201, 422), answer.text
    if answer.status_code == 422:
        assert error_of(answer)["param"] == "occurred_at"


async def test_an_unknown_field_is_named_and_its_value_not_repeated(server: Harness) -> None:
    answer = await server.admin.post("/v1/feedback", json={"response_id": "x", "coment": "my card is 4111-1111"})
    error = error_of(answer)
    assert answer.status_code == 422
    assert "coment" in error["message"]
    assert "4111" not in answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": ""}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": "application/json", "content-encoding": "identity"}, 200),
    ],
    ids=str,
)
async def test_media_types(server: Harness, headers: dict[str, str], status: int) -> None:
    answer = await server.admin.post(CHAT, content=json.dumps({"messages": HELLO}).encode(), headers=headers)
    assert answer.status_code == status
    if status != 200:
        error_of(answer)


async def test_a_body_too_large_is_refused_announced_or_not(server: Harness) -> None:
    large = json.dumps({"messages": [{"role": "user", "content": "x" * 30_000}]}).encode()
    announced = await server.admin.post(CHAT, content=large, headers=JSON)
    assert (announced.status_code, "20000" in error_of(announced)["message"]) == (413, True)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 5000):
            yield large[start : start + 5000]

    chunked = await server.admin.post(CHAT, content=pieces(), headers=JSON)
    assert "content-length" not in chunked.request.headers
    assert chunked.status_code == 413
    error_of(chunked)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/feedback/", 404),
        ("DELETE", "/v1/feedback", 405),
        ("PATCH", CHAT, 405),
        ("GET", "/v1/versions/v0", 422),
        ("GET", "/v1/versions/../../etc/passwd", 404),
        ("GET", "/v1/versions/v99", 404),
        ("GET", "/v1/feedback?limit=0", 422),
        ("GET", "/v1/feedback?since=yesterday", 422),
        ("GET", "/v1/feedback?after=%00", 200),
        ("GET", "/v1/audit?after=99999999999999999999999", 422),
        ("GET", "/v1/training/runs?state=sleeping", 422),
        ("GET", "/v1/chat/completions/%F0%28", 404),
        ("POST", "/v1/batches/none:heartbeat", 422),
        ("GET", "/v1/batches/none", 404),
        ("GET", "/v1/training/runs/none", 404),
        ("DELETE", "/v1/keys/none", 404),
    ],
)
async def test_addresses(server: Harness, method: str, path: str, status: int) -> None:
    answer = await server.admin.request(method, path)
    assert answer.status_code == status, answer.text
    if status != 200:
        error_of(answer)
    if status == 405:
        assert answer.headers["allow"]


async def test_what_nobody_expected_is_a_plain_500_and_logged_once(
    server: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_op: Any) -> None:
        raise RuntimeError("the secret reason")

    monkeypatch.setattr(server.services.database, "read", broken)
    with caplog.at_level(logging.ERROR):
        answer = await server.admin.get("/v1/feedback", headers={"x-request-id": "find-me"})
    assert answer.status_code == 500
    assert "find-me" in error_of(answer)["message"]
    assert "secret reason" not in answer.text
    logged = [record for record in caplog.records if record.name == "plaudit_server.middleware"]
    assert [record.fields["request_id"] for record in logged] == ["find-me"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "ü", "a\tb"])
async def test_a_strange_request_id_is_replaced(server: Harness, given: str) -> None:
    answer = await server.anonymous.get("/healthz", headers=[(b"x-request-id", given.encode())])
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic abc", "Bearer sk-1", "Bearer plk_wrong", "Bearer plk_\xfc"]
)
async def test_bad_keys(server: Harness, header: str) -> None:
    answer = await server.anonymous.post(
        CHAT, content=b"{ not even json", headers=[(b"authorization", header.encode("latin-1"))]
    )
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert error_of(answer)["type"] == "authentication_error"
