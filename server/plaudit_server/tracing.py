"""Traces by OpenTelemetry, where `PLAUDIT_OTLP_ENDPOINT` says where to; else nothing of it is imported or run.

Few spans, made by hand: a request, its call of the engine, the writing of its rows, a swap, a move of an alias. The
caller's `traceparent` is the parent, and the engine is given ours. Attributes are numbers, versions, routes and ids
of ours: never a message, never what an exception says. `tracestate` and `baggage` are not taken, since anything can
be in them.
"""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plaudit_server.errors import SettingError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

Attributes = Mapping[str, str | float | bool]
Kind = Literal["internal", "server", "client"]

_EXPORT_TIMEOUT_S = 5
_UNTRACED_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: their spans would drown the others."""

_traceparent: ContextVar[str | None] = ContextVar("plaudit_traceparent", default=None)


def outgoing_headers() -> dict[str, str]:
    """What a request to the engine carries of the present trace: `traceparent`, or nothing where there is none."""
    present = _traceparent.get()
    return {} if present is None else {"traceparent": present}


class Tracing:
    """Makes spans and sends them in the background, from a thread with a bounded queue: a slow collector loses spans.

    Args:
        provider: OpenTelemetry's; closed with this.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("plaudit_server")
        self._kind = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER, "client": SpanKind.CLIENT}
        self._propagator = TraceContextTextMapPropagator()

    async def close(self) -> None:
        """Send what is left; a collector that does not answer is waited for some seconds."""
        await asyncio.to_thread(self._provider.shutdown)

    @contextmanager
    def span(
        self, name: str, attributes: Attributes, *, kind: Kind = "internal", traceparent: str | None = None
    ) -> Iterator["Span"]:
        """A span that is the parent of what begins inside it.

        Args:
            name: what is done.
            attributes: never text of users.
            kind: `server` for what is asked of us, `client` for what we ask of the engine.
            traceparent: where the caller is in its trace; unset: the span that this code is in.
        """
        with self._tracer.start_as_current_span(
            name,
            context=self._context(traceparent),
            kind=self._kind[kind],
            attributes=attributes,
            # What an exception says can quote what a person wrote.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                failed(span, error)
                raise

    def begin(self, name: str, attributes: Attributes) -> "Span":
        """A span of kind `client` that ends when it is told to."""
        return self._tracer.start_span(name, kind=self._kind["client"], attributes=attributes)

    def _context(self, traceparent: str | None) -> "Context | None":
        return None if traceparent is None else self._propagator.extract({"traceparent": traceparent})


@contextmanager
def carried_by(span: "Span") -> Iterator[None]:
    """Requests to the engine made inside belong to `span`."""
    context = span.get_span_context()
    token = _traceparent.set(f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}")
    try:
        yield
    finally:
        _traceparent.reset(token)


def failed(span: "Span", error: BaseException) -> None:
    """Mark a span as failed, by the error's type."""
    from opentelemetry.trace import StatusCode

    span.set_status(StatusCode.ERROR)
    span.set_attribute("error.type", type(error).__name__)


def open_tracing(endpoint: str | None) -> Tracing | None:
    """Tracing to an OTLP/HTTP collector, or None where there is no endpoint.

    OpenTelemetry's own variables are heeded: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`,
    `OTEL_EXPORTER_OTLP_HEADERS`.

    Args:
        endpoint: such as `http://collector:4318`; `/v1/traces` is added where there is no path.

    Raises:
        SettingError: OpenTelemetry is not installed.
    """
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingError(
            "PLAUDIT_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: pip install 'plaudit[otel]', or unset it"
        ) from error
    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "plaudit")})
    # Its own exit handler would come after the event loop; `close` is called in time.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=_traces_url(endpoint), timeout=_EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


def _traces_url(endpoint: str) -> str:
    scheme, _, rest = endpoint.partition("://")
    host, _, path = rest.partition("/")
    return endpoint if path else f"{scheme}://{host}/v1/traces"


class RequestSpans:
    """A span for each request, from its first byte to the last of its answer. Only there where traces are on."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self.app = app
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] in _UNTRACED_PATHS:
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"traceparent", b"").decode("latin-1")
        with self.tracing.span("request", {}, kind="server", traceparent=given or None) as span:

            async def send_noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            try:
                await self.app(scope, receive, send_noting)
            finally:
                _describe(span, scope)


def _describe(span: "Span", scope: Scope) -> None:
    # The route's template, not the path: a path can be anything.
    route = getattr(scope.get("route"), "path", "unmatched")
    method = scope["method"] if scope["method"].isalpha() and len(scope["method"]) < 8 else "other"
    span.update_name(f"{method} {route}")
    span.set_attribute("http.request.method", method)
    span.set_attribute("http.route", route)
    span.set_attribute("plaudit.request_id", scope.get("state", {}).get("request_id", ""))
