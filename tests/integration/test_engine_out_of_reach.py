"""vLLM's own endpoints cannot be reached through us, and our client asks for nothing but what it needs."""

from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from plaudit_server.app import create_app
from plaudit_server.engine import allowed, keeper
from plaudit_server.engine.allowed import ALLOWED, OnlyAllowed
from plaudit_server.engine.vllm import VllmEngine
from plaudit_server.errors import EngineError
from plaudit_server.settings import Settings
from tests.support.engine_folders import make_base
from tests.support.engine_stub import StubVllm
from tests.support.server import HELLO, make_client, until
from tests.support.wires import HttpxWire

DANGEROUS = [
    "/pause",
    "/resume",
    "/sleep",
    "/update_weights",
    "/init_weight_transfer_engine",
    "/collective_rpc",
    "/reset_prefix_cache",
    "/invocations",
    "/v1/completions",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/tokenize",
    "/server_info",
    "//pause",
    "///collective_rpc",
    "/./pause",
    "/v1/../pause",
    "/v1/../../pause",
    "/v1/chat/completions/../../../pause",
    "/v1/feedback/t/../../../pause",
    "/v1/%2e%2e/pause",
    "/%70ause",
    "/%2fpause",
    "/v1/models/..%2f..%2fpause",
    "/v1/load_lora_adapter/",
    "/PAUSE",
    "/pause;x=1",
    "/pause%00",
    "http://engine/pause",
]


async def raw(app: Any, method: str, path: str, authorization: str) -> int:
    """The status of a request whose path nobody tidied up on the way, as uvicorn hands it over."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"mode": "abort"}', "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"authorization", authorization.encode()), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("plaudit", 80),
    }
    await app(scope, receive, send)
    return statuses[0]


def over_a_stub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Settings, VllmEngine, StubVllm]:
    """The real engine, whose one replica is a stub that counts its calls and is looked at once."""
    monkeypatch.setattr(keeper, "WATCH_S", 3600)
    settings, stub = (
        Settings(data=folder / "data", engine_urls=["http://engine"], consent_default="granted"),
        StubVllm(),
    )
    return settings, VllmEngine(settings, make_base(folder / "base"), connect=lambda _: stub.client()), stub


async def test_they_are_not_found_and_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, engine, stub = over_a_stub(tmp_path, monkeypatch)
    app = create_app(settings, engine)
    async with app.router.lifespan_context(app):
        await until(engine.is_ready)
        secret = (settings.data / "admin.key").read_text(encoding="ascii").strip()
        before = len(stub.calls)
        for path in DANGEROUS:
            for method in ("POST", "GET", "PUT", "DELETE"):
                assert await raw(app, method, path, f"Bearer {secret}") == 404, (method, path)
        assert stub.calls[before:] == []
        async with make_client(app, secret) as client:  # the stub does count
            assert (await client.post("/v1/chat/completions", json={"messages": HELLO})).status_code == 200
        assert [path for path, _ in stub.calls[before:]] == ["/v1/chat/completions"]


async def test_an_image_is_not_fetched_for_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, engine, stub = over_a_stub(tmp_path, monkeypatch)
    app = create_app(settings, engine)
    async with app.router.lifespan_context(app):
        await until(engine.is_ready)
        secret = (settings.data / "admin.key").read_text(encoding="ascii").strip()
        before = len(stub.calls)
        image = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/secret.png"}}
        async with make_client(app, secret) as client:
            body = {"messages": [{"role": "user", "content": [image]}]}
            answer = await client.post("/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "messages")
        assert "10.0.0.1" not in answer.text
        assert stub.calls[before:] == []


async def test_our_client_sends_only_what_is_allowed() -> None:
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.url.path)
        return httpx.Response(200, json={"data": []})

    wire = OnlyAllowed(HttpxWire(httpx.MockTransport(answer)))
    for method, path in ALLOWED:
        assert (await wire.send(method, path, None, {}, limit_s=None)).status == 200
    assert (await wire.open("/v1/chat/completions", b"{}", {})).status == 200
    assert len(sent) == len(ALLOWED) + 1
    for path in ("/pause", "/v1/models/", "/v1/models?x=1", "/v1/%6dodels", "//v1/models", "/v1/../pause", "/"):
        with pytest.raises(EngineError, match="nothing that the engine may be asked"):
            await wire.send("GET", path, None, {}, limit_s=None)
        with pytest.raises(EngineError, match="nothing that the engine may be asked"):
            await wire.open(path, b"{}", {})
    with pytest.raises(EngineError):
        await wire.send("POST", "/health", None, {}, limit_s=None)
    assert len(sent) == len(ALLOWED) + 1
    await wire.aclose()


async def test_every_call_of_the_client_goes_through_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowed, "ALLOWED", frozenset())
    stub = StubVllm()
    async with stub.client() as client:
        with pytest.raises(EngineError):
            await client.models()
        with pytest.raises(EngineError):
            await client.healthy()
        with pytest.raises(EngineError):
            await client.chat_stream({}, model="base", version="base", request_id="r", on_close=lambda: None)
    assert stub.calls == []
