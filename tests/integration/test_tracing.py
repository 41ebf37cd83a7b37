"""Spans of a request: what they are, whose trace they belong to, where they go, and that they carry no text."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from plaudit_server import tracing as module
from plaudit_server.app import create_app
from plaudit_server.engine.fake import FakeEngine
from plaudit_server.engine.replica import ReplicaClient
from plaudit_server.errors import EngineRefused, EngineUnavailable, SettingError
from plaudit_server.settings import Settings
from plaudit_server.tracing import Tracing, carried_by, open_tracing, outgoing_headers
from tests.support.server import HELLO, serving
from tests.support.streams import each_chunk
from tests.support.wires import HttpxWire

pytestmark = pytest.mark.sqlite  # nothing here is the database's affair

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736
MARKER = "Ottoline-Marmalade"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


class _HeadersSeen(FakeEngine):
    """Notes the headers that a client of a real engine would send."""

    def __init__(self) -> None:
        super().__init__()
        self.headers: list[dict[str, str]] = []

    def _accept(self, body: Any, version: str) -> None:
        self.headers.append(outgoing_headers())
        super()._accept(body, version)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_is_two_spans_of_the_callers_trace(
    tmp_path: Path, tracing: Tracing, exporter: InMemorySpanExporter, stream: bool
) -> None:
    engine = _HeadersSeen()
    async with serving(tmp_path, engine, tracing=tracing) as server:
        body = {"messages": HELLO, "stream": stream}
        answer = await server.admin.post("/v1/chat/completions", json=body, headers={"traceparent": CALLER})
        assert answer.status_code == 200
        (request,) = named(exporter, "POST /v1/chat/completions")
        (asked,) = named(exporter, "engine.chat_stream" if stream else "engine.chat")
    assert {span.context.trace_id for span in (request, asked)} == {TRACE_ID}
    assert request.parent is not None
    assert request.parent.span_id == 0x00F067AA0BA902B7
    assert asked.parent is not None
    assert asked.parent.span_id == request.context.span_id
    assert (request.kind, asked.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "plaudit.request_id": answer.headers["x-request-id"],
    }
    assert asked.attributes is not None
    assert asked.attributes["gen_ai.usage.output_tokens"] == 14
    assert asked.attributes["plaudit.version"] == "base"
    assert engine.headers == [{"traceparent": f"00-{TRACE_ID:032x}-{asked.context.span_id:016x}-01"}]


async def test_without_a_caller_a_trace_begins_here_and_a_broken_one_is_not_taken(
    tmp_path: Path, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    async with serving(tmp_path, tracing=tracing) as server:
        for headers in ({}, {"traceparent": "00-nonsense-" + MARKER}, {"tracestate": f"a={MARKER}"}):
            await server.admin.get("/v1/models", headers=headers)
        spans = named(exporter, "GET /v1/models")
    assert [span.parent for span in spans] == [None, None, None]
    assert len({span.context.trace_id for span in spans}) == 3
    assert not any(span.context.trace_state for span in spans)


async def test_a_caller_that_does_not_sample_is_heeded(
    tmp_path: Path, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    engine = _HeadersSeen()
    async with serving(tmp_path, engine, tracing=tracing) as server:
        unsampled = {"traceparent": CALLER.removesuffix("01") + "00"}
        await server.admin.post("/v1/chat/completions", json={"messages": HELLO}, headers=unsampled)
        assert not named(exporter, "engine.chat")
    assert engine.headers[0]["traceparent"].endswith("-00")


async def test_swaps_and_alias_moves_are_spans(
    tmp_path: Path, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    async with serving(tmp_path, tracing=tracing) as server:
        name = await server.publish()
        await server.admin.post(f"/v1/versions/{name}/promote")
        await server.admin.post("/v1/rollback", json={"reason": MARKER})
        (installed,) = named(exporter, "engine.install")
        (moved,) = named(exporter, "alias.move")
        (rolled_back,) = named(exporter, "alias.rollback")
    assert dict(installed.attributes or {}) == {
        "plaudit.version": name,
        "plaudit.parent": "base",
        "plaudit.passed": True,
    }
    (proof,) = installed.events
    assert proof.attributes is not None
    assert (proof.name, proof.attributes["plaudit.slope"], proof.attributes["plaudit.low"]) == ("proof", 1.0, 0.95)
    assert dict(moved.attributes or {}) == {"plaudit.alias": "stable", "plaudit.version": name}
    assert dict(rolled_back.attributes or {})["plaudit.version"] == "base"


async def test_the_trainers_calls_are_spans(tmp_path: Path, tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    async with serving(tmp_path, tracing=tracing) as server:
        prompts = [{"messages": HELLO}]
        await server.admin.post("/v1/training/generate", json={"version": "base", "prompts": prompts, "n": 2})
        sequences = [{"prompt_ids": [1], "response_ids": [2]}]
        await server.admin.post("/v1/training/score", json={"version": "base", "sequences": sequences})
        (drawn,) = named(exporter, "engine.generate")
        (scored,) = named(exporter, "engine.score")
    assert dict(drawn.attributes or {}) == {"plaudit.version": "base", "plaudit.prompts": 1, "plaudit.n": 2}
    assert dict(scored.attributes or {}) == {"plaudit.version": "base", "plaudit.sequences": 1}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_is_marked_by_its_type(
    tmp_path: Path, tracing: Tracing, exporter: InMemorySpanExporter, stream: bool
) -> None:
    async with serving(tmp_path, tracing=tracing) as server:
        server.engine.refuse = EngineRefused(400, f"I refuse {MARKER}")
        refused = await server.admin.post("/v1/chat/completions", json={"messages": HELLO, "stream": stream})
        assert refused.status_code == 400
        (asked,) = named(exporter, "engine.chat_stream" if stream else "engine.chat")
    assert asked.status.status_code is StatusCode.ERROR
    assert asked.attributes is not None
    assert asked.attributes["error.type"] == "EngineRefused"
    assert not asked.events


async def test_answers_are_written_together_in_a_trace_of_its_own(
    tmp_path: Path, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    async with serving(tmp_path, tracing=tracing) as server:
        for _ in range(2):
            await server.admin.post("/v1/chat/completions", json={"messages": HELLO}, headers={"traceparent": CALLER})
    written = named(exporter, "answers.write")
    assert [span.parent for span in written] == [None] * len(written)
    assert sum(int(span.attributes["plaudit.answers"]) for span in written if span.attributes) == 2  # type: ignore[call-overload]


async def test_an_abandoned_stream_ends_its_span(
    tmp_path: Path, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    async with serving(tmp_path, tracing=tracing) as server:
        stream = await server.services.engine.chat_stream({"messages": HELLO}, version="base", request_id="r")
        await anext(each_chunk(stream))
        assert not named(exporter, "engine.chat_stream")
        await stream.aclose()
        assert len(named(exporter, "engine.chat_stream")) == 1


async def test_health_and_metrics_make_no_spans(
    tmp_path: Path, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    async with serving(tmp_path, tracing=tracing) as server:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await server.admin.get(path)).is_success
    assert exporter.get_finished_spans() == ()


async def test_no_text_of_users_is_in_any_span(
    tmp_path: Path, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    async with serving(tmp_path, tracing=tracing) as server:
        answer = await server.chat(f"I am {MARKER}.", user=MARKER, metadata={"name": MARKER})
        await server.vote(answer["id"], True, comment=MARKER, correction=MARKER, tags=[MARKER], end_user=MARKER)
        server.engine.fail_after_tokens = 1
        await server.admin.post("/v1/chat/completions", json={"messages": HELLO, "stream": True, "user": MARKER})
        server.engine.fail_after_tokens = None
        server.engine.refuse = EngineRefused(400, MARKER)
        await server.admin.post("/v1/chat/completions", json={"messages": HELLO}, headers={"baggage": f"a={MARKER}"})
        await server.admin.get(f"/{MARKER}")
        await server.admin.get(f"/v1/versions/{MARKER}")
        await server.admin.request("MARMALADE", f"/v1/models?x={MARKER}")
    spans = exporter.get_finished_spans()
    assert len(spans) > 10
    assert not [span.to_json() for span in spans if MARKER.lower() in span.to_json().lower()]


async def test_the_client_of_a_real_engine_sends_the_trace(tracing: Tracing) -> None:
    sent: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("traceparent"))
        return httpx.Response(503)

    async with ReplicaClient(wire=HttpxWire(httpx.MockTransport(answer))) as client:
        body = {"messages": HELLO}
        with pytest.raises(EngineUnavailable):
            await client.chat(dict(body), model="base", version="base", request_id="r")
        with tracing.span("a", {}) as span, carried_by(span):
            with pytest.raises(EngineUnavailable):
                await client.chat(dict(body), model="base", version="base", request_id="r")
            with pytest.raises(EngineUnavailable):
                await client.chat_stream(
                    dict(body), model="base", version="base", request_id="r", on_close=lambda: None
                )
    context = span.get_span_context()
    expected = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert sent == [None, expected, expected]


class _Collector(BaseHTTPRequestHandler):
    """An OTLP/HTTP receiver that keeps what it is sent."""

    received: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        self.received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def collecting() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    received: list[tuple[str, bytes]] = []
    handler = type("Handler", (_Collector,), {"received": received})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}", received
        finally:
            http.shutdown()
            thread.join()


async def test_a_real_collector_receives_the_spans_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "plaudit-eu")
    with collecting() as (address, received):
        async with serving(tmp_path, otlp_endpoint=address) as server:
            await server.admin.post("/v1/chat/completions", json={"messages": HELLO}, headers={"traceparent": CALLER})
        # The lifespan is over: what was left has been sent.
        assert {path for path, _ in received} == {"/v1/traces"}
        resources = [r for _, raw in received for r in ExportTraceServiceRequest.FromString(raw).resource_spans]
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    assert {"POST /v1/chat/completions", "engine.chat", "answers.write"} <= {span.name for span in spans}
    assert {span.trace_id.hex() for span in spans if span.name == "engine.chat"} == {f"{TRACE_ID:032x}"}
    named_as = {a.value.string_value for r in resources for a in r.resource.attributes if a.key == "service.name"}
    assert named_as == {"plaudit-eu"}


async def test_a_collector_that_is_away_costs_no_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EXPORT_TIMEOUT_S", 0.2)
    with collecting() as (address, _):
        pass  # nobody listens there any more
    async with serving(tmp_path, otlp_endpoint=address) as server:
        assert (await server.chat())["choices"]


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://vendor.example/otlp/v1/traces", "https://vendor.example/otlp/v1/traces"),
    ],
)
def test_the_path_is_added_where_there_is_none(endpoint: str, url: str) -> None:
    assert module._traces_url(endpoint) == url


def test_off_by_default_nothing_of_it_is_imported() -> None:
    code = (
        "import sys\nfrom plaudit_server.app import create_app\nfrom plaudit_server.settings import Settings\n"
        "app = create_app(Settings(engine='fake'))\n"
        "assert 'RequestSpans' not in str(app.user_middleware)\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"


async def test_off_the_engine_is_not_wrapped_and_is_told_nothing(tmp_path: Path) -> None:
    engine = _HeadersSeen()
    async with serving(tmp_path, engine) as server:
        assert server.services.engine is engine
        await server.admin.post("/v1/chat/completions", json={"messages": HELLO}, headers={"traceparent": CALLER})
    assert engine.headers == [{}]


def test_where_it_is_wanted_but_not_installed_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingError, match=r"plaudit\[otel\]"):
        open_tracing("http://127.0.0.1:4318")
    with pytest.raises(SettingError):
        create_app(Settings(engine="fake", otlp_endpoint="http://127.0.0.1:4318"))


def test_an_endpoint_must_be_an_address() -> None:
    with pytest.raises(ValueError, match="otlp_endpoint"):
        Settings(otlp_endpoint="collector:4318")


def test_the_json_of_a_span_has_its_attributes(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    """The search for markers above looks where attributes are."""
    with tracing.span("a", {"x": MARKER}):
        pass
    (span,) = exporter.get_finished_spans()
    assert orjson.loads(span.to_json())["attributes"] == {"x": MARKER}
